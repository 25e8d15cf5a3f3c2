"""Where a trial's latencies lie, second by second: how many messages in each range of latency, for a heat map.

A percentile is one number a second: two humps (cache hit and miss, leader near and far) or a band that splits are
invisible in it. (B. Gregg, "Visualizing System Latency", ACM Queue 8(5), 2010.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.frames import BINS_PER_DECADE, interval_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from loadgen.driver import Int64
    from loadgen.run import Run

COLUMNS_MAX = 240
"""More intervals than this are put together: a drawing has no room for them."""


@dataclass(frozen=True, slots=True)
class Density:
    """A trial's messages by time and latency.

    `counts` is int64[columns, bins]: `column_s` seconds of the window each, and ranges of latency that begin at
    `edges_ns` (float64[bins + 1], evenly spaced on a logarithmic scale).
    """

    trial_id: str
    kind: str
    column_s: float
    edges_ns: npt.NDArray[np.float64]
    counts: Int64

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """The share of each column's messages in each range: float64[columns, bins]; 0 in a column without any."""
        return np.asarray(self.counts / np.maximum(1, self.counts.sum(axis=1, keepdims=True)))


def density(run: Run, record: Mapping[str, Any], kind: str) -> Density | None:
    """A trial's density; None where its window has no such latencies. A message counts when it was intended."""
    length_s = record["interval_s"] or 1.0
    intervals = interval_count(record)
    together = math.ceil(intervals / COLUMNS_MAX)
    number = math.ceil(intervals / together)
    seconds = run.seconds(record["id"], kind)
    if not seconds:
        return None
    low = min(each.first_bin for each in seconds.values())
    end = max(each.first_bin + len(each.bins) for each in seconds.values())
    counts = np.zeros((number, end - low), np.int64)
    for index, each in seconds.items():
        counts[index // together, each.first_bin - low :][: len(each.bins)] += each.bins
    edges_ns = 10.0 ** (np.arange(low, end + 1) / BINS_PER_DECADE)
    return Density(str(record["id"]), kind, length_s * together, edges_ns, counts)
