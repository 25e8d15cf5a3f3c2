"""Where a trial's latencies lie, second by second: how many messages in each range of latency, for a heat map.

A percentile is one number a second: two humps (cache hit and miss, leader near and far) or a band that splits are
invisible in it. (B. Gregg, "Visualizing System Latency", ACM Queue 8(5), 2010.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.frames import interval_count
from loadgen.histogram import LOWEST_OF_BUCKET_NS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from loadgen.driver import Int64
    from loadgen.run import Run

BINS_PER_DECADE = 16
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
    found: list[tuple[int, Int64, Int64]] = []
    for interval in run.within(record["id"], kind):
        used = np.flatnonzero(interval.histogram.counts)
        column = round(interval.start_s / length_s) // together
        if len(used) and 0 <= column < number:
            # Latencies below 1 ns have no logarithm; nothing is that fast.
            decades = np.log10(np.maximum(1, LOWEST_OF_BUCKET_NS[used]))
            found.append((column, (decades * BINS_PER_DECADE).astype(np.int64), interval.histogram.counts[used]))
    if not found:
        return None
    low, high = min(int(bins[0]) for _, bins, _ in found), max(int(bins[-1]) for _, bins, _ in found)
    counts = np.zeros((number, high - low + 1), np.int64)
    for column, bins, held in found:
        np.add.at(counts[column], bins - low, held)
    edges_ns = 10.0 ** (np.arange(low, high + 2) / BINS_PER_DECADE)
    return Density(str(record["id"]), kind, length_s * together, edges_ns, counts)
