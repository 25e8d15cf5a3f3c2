"""A trial by the second: its latencies from the histogram log, and beside them what the observer saw.

Seconds are those of the measured window, counted from its beginning; in long trials they are intervals of some seconds
(`interval_s`). A message belongs to the second in which it was intended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loadgen.histogram import BUCKETS, LOWEST_OF_BUCKET_NS, Counts, Histogram, together

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

    from loadgen.driver import Int64
    from loadgen.run import Run

Float64 = npt.NDArray[np.float64]
BINS_PER_DECADE = 16
# Latencies below 1 ns have no logarithm; nothing is that fast.
BIN_OF_BUCKET = (np.log10(np.maximum(1, LOWEST_OF_BUCKET_NS[:BUCKETS])) * BINS_PER_DECADE).astype(np.int64)
"""The range of latency that a bucket is in: so many begin below it, from 1 ns on."""
NOT_SEEN = frozenset({"trial", "agent", "elapsed_s", "monotonic_ns"})
"""Columns of a sample that say whose it is and when it was taken."""


@dataclass(frozen=True, slots=True)
class Second:
    """One interval of the window: messages intended in it, and their latency."""

    at_s: float
    count: int
    p50_ns: int
    p99_ns: int
    p99_9_ns: int
    max_ns: int
    first_bin: int
    bins: Int64 = field(repr=False, compare=False)
    """How many messages lie in the ranges of latency from the `first_bin`th on, of which a power of ten has
    `BINS_PER_DECADE`."""


def seconds_of(run: Run, record: Mapping[str, Any], kind: str) -> tuple[dict[int, Second], Histogram]:
    """The window's intervals that have messages, by number, and all of them as one histogram.

    An interval's lines (one an agent) are added up.
    """
    length_s = record["interval_s"] or 1.0
    number = interval_count(record)
    merged: dict[int, list[Counts]] = {}
    for interval in run.intervals(record["id"], kind):
        index = round(interval.start_s / length_s)
        # Only the buckets in use: a run of an hour has thousands of lines, of a quarter of a megabyte each.
        if 0 <= index < number and len((counts := interval.counts).used):
            merged.setdefault(index, []).append(counts)
    seconds: dict[int, Second] = {}
    wholes = []
    for index, parts in merged.items():
        whole = parts[0] if len(parts) == 1 else together(parts)
        wholes.append(whole)
        p50_ns, p99_ns, p99_9_ns = whole.percentiles([50, 99, 99.9])
        seconds[index] = Second(index * length_s, whole.count, p50_ns, p99_ns, p99_9_ns, whole.max_ns, *_bins(whole))
    return seconds, Histogram.of(together(wholes))


def _bins(found: Counts) -> tuple[int, Int64]:
    """The first range of latency that holds values, and how many it and the following ones hold."""
    bins = BIN_OF_BUCKET[found.used]
    first = int(bins[0])
    held = np.zeros(int(bins[-1]) - first + 1, np.int64)
    np.add.at(held, bins - first, found.counts)
    return first, held


def interval_count(record: Mapping[str, Any]) -> int:
    """How many intervals a trial's window has, the last of which may be a part of one."""
    intervals = float(record["window_s"]) / (record["interval_s"] or 1.0)
    return math.ceil(intervals - 1e-6)


def by_interval(run: Run, record: Mapping[str, Any], names: Iterable[str]) -> dict[str, Float64]:
    """The observer's columns by interval of the window; NaN where it has none. A row counts where its middle lies."""
    values = {name: np.full(interval_count(record), np.nan) for name in names}
    frame = run.samples
    if not {"trial", "agent", "elapsed_s"} <= set(frame.columns):
        return values
    rows = frame[(frame["trial"] == record["id"]) & (frame["agent"] == "observer")].sort_values("elapsed_s")
    if rows.empty:
        return values
    import pandas as pd  # noqa: PLC0415 - `run.samples` has paid for it

    length_s = record["interval_s"] or 1.0
    ends = (rows["elapsed_s"].to_numpy(dtype=np.float64) - record["warmup_s"]) / length_s
    begins = np.concatenate([[ends[0] - 1], ends[:-1]])
    for name in set(values) & set(rows.columns):
        column = pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=np.float64)
        for begin, end, value in zip(begins, ends, column, strict=True):
            # Every interval whose middle the row covers: a late sample stands for two.
            values[name][max(0, math.ceil(begin - 0.5)) : max(0, math.ceil(end - 0.5))] = value
    return values


def series_frame(run: Run) -> pd.DataFrame:
    """One row an interval of each trial's window; `Run.series` tells of the columns."""
    import pandas as pd  # noqa: PLC0415 - half a second of import, for who asks for frames

    names = [name for name in run.samples.columns if name not in NOT_SEEN]
    parts = []
    for record in run.records:
        if not record["window_s"]:
            continue
        columns: dict[str, Any] = {
            "trial": record["id"], "broker": record["broker"],
            "at_s": np.arange(interval_count(record)) * (record["interval_s"] or 1.0),
        }  # fmt: skip
        for kind, summary in record["latency_ns"].items():
            if summary and summary.get("count"):
                columns |= _latencies(run, record, kind)
        seen = by_interval(run, record, names)
        columns |= {name: values for name, values in seen.items() if np.isfinite(values).any()}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _latencies(run: Run, record: Mapping[str, Any], kind: str) -> dict[str, Float64]:
    number = interval_count(record)
    columns = {name: np.full(number, np.nan) for name in (f"{kind}_p50_ns", f"{kind}_p99_ns", f"{kind}_max_ns")}
    columns[f"{kind}_count"] = np.zeros(number)
    for index, second in run.seconds(record["id"], kind).items():
        columns[f"{kind}_count"][index] = second.count
        columns[f"{kind}_p50_ns"][index] = second.p50_ns
        columns[f"{kind}_p99_ns"][index] = second.p99_ns
        columns[f"{kind}_max_ns"][index] = second.max_ns
    return columns
