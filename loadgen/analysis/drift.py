"""Does a long trial drift? Rate, latency, memory and what the broker keeps: each one's slope, with its interval.

The slope is that of `loadgen.stats.trend`, whose interval admits that neighbouring intervals of a run resemble each
other. The first tenth of the window is left out: a broker that has just begun to work is still compiling its code and
filling its caches. Several quantities are looked at, so that each interval is wider than 95 %: together they miss in at
most one trial of twenty (Bonferroni).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loadgen.record import end_to_end
from loadgen.retention import is_limited
from loadgen.stats.trend import slope

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.frames import Second
    from loadgen.record import Record
    from loadgen.runs import Run

Float64 = npt.NDArray[np.float64]

WINDOW_MIN_S = 300.0
"""A shorter window says nothing of what happens in hours."""
POINTS_MIN = 60
LEFT_OUT_SHARE = 0.1
MISSES = 0.05
HOUR_S = 3_600.0

RATE, LATENCY, MEMORY, KEPT = "msgs_per_s", "ns", "bytes", "number"


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something that may drift: a column of the observer's rows, or, without one, a percentile of each interval."""

    name: str
    unit: str
    column: str = ""


QUANTITIES = (
    Quantity("rate", RATE, "received_msgs_per_s"),
    Quantity("p50", LATENCY),
    Quantity("p99", LATENCY),
    Quantity("memory of the broker’s processes", MEMORY, "broker_rss_bytes"),
    Quantity("memory in use by the broker’s own word", MEMORY, "broker_memory_bytes"),
    Quantity("the broker’s data on disk", MEMORY, "broker_data_bytes"),
    Quantity("messages that can be read", KEPT, "retained_msgs"),
    Quantity("memory of producers", MEMORY, "producers_rss_bytes"),
    Quantity("memory of consumers", MEMORY, "consumers_rss_bytes"),
    Quantity("memory of what observes and writes", MEMORY, "loadgen_rss_bytes"),
)


@dataclass(frozen=True, slots=True)
class Drift:
    """A quantity over the window: seconds since the window began and values (float[n] each), and the slope of these.

    `share_per_hour` is the slope as a share of the mean, `low` and `high` its interval; None where that cannot be told.
    """

    name: str
    unit: str
    at_s: Float64
    values: Float64
    mean: float
    share_per_hour: float | None
    low: float | None
    high: float | None

    @property
    def direction(self) -> str:
        """Whether it rises, falls or shows no drift."""
        if self.low is None or self.high is None:
            return "cannot tell"
        return "rises" if self.low > 0 else "falls" if self.high < 0 else "no drift shown"


@dataclass(frozen=True, slots=True)
class Kept:
    """What the broker kept: at most `max_msgs` at once, `last_msgs` when it was asked last.

    `forgotten_msgs` is how many a log's limit had removed by then, None of a queue, which keeps what waits in it.
    """

    max_msgs: int
    last_msgs: int
    forgotten_msgs: int | None
    max_bytes: int | None
    is_limited: bool


@dataclass(frozen=True, slots=True)
class Long:
    """A long trial: how each quantity went, and what was kept; None where the broker does not tell."""

    trial_id: str
    scenario: str
    broker: str
    driver: str
    window_s: float
    interval_s: float
    drifts: tuple[Drift, ...]
    kept: Kept | None


def long_trials(run: Run) -> list[Long]:
    """The trials of a run that are long enough for the question."""
    return [long_trial(run, record) for record in run.records if (record["window_s"] or 0.0) >= WINDOW_MIN_S]


def long_trial(run: Run, record: Record) -> Long:
    """How one trial went over its window."""
    intervals = run.seconds(record["id"], end_to_end(record))
    seen = [(quantity, *_later(*_series(run, record, quantity, intervals))) for quantity in QUANTITIES]
    told = [each for each in seen if len(each[1]) >= POINTS_MIN]
    confidence = 1 - MISSES / max(1, len(told))
    return Long(
        record["id"],
        record["scenario"],
        record["broker"],
        record["driver"],
        record["window_s"],
        record["interval_s"] or 1.0,
        tuple(_drift(quantity, at_s, values, confidence) for quantity, at_s, values in told),
        _kept(run, record),
    )


def _later(at_s: Float64, values: Float64) -> tuple[Float64, Float64]:
    """A series without the first tenth of what there is of it: a run may have been killed."""
    later = at_s >= LEFT_OUT_SHARE * at_s[-1] if len(at_s) else np.zeros(0, np.bool_)
    return at_s[later], values[later]


def _drift(quantity: Quantity, at_s: Float64, values: Float64, confidence: float) -> Drift:
    mean = float(values.mean())
    found = slope(at_s, values, confidence)
    shares: list[float | None] = [
        None if each is None or not mean else each * HOUR_S / mean for each in (found.per_s, found.low, found.high)
    ]
    return Drift(quantity.name, quantity.unit, at_s, values, mean, *shares)


def _series(run: Run, record: Record, quantity: Quantity, intervals: Mapping[int, Second]) -> tuple[Float64, Float64]:
    """When (s since the window began) and what (float[n] each)."""
    if quantity.column:
        return observed(run, record, quantity.column)
    found = [each for _, each in sorted(intervals.items())]
    values = [each.p50_ns if quantity.name == "p50" else each.p99_ns for each in found]
    return np.array([each.at_s for each in found], np.float64), np.array(values, np.float64)


def observed(run: Run, record: Record, column: str) -> tuple[Float64, Float64]:
    """A column of the observer's rows: their ends (s since the window began) and its values, where it has any."""
    series = run.samples
    if column not in series.columns:
        return np.empty(0), np.empty(0)
    rows = series[(series["trial"] == record["id"]) & (series["agent"] == "observer") & series[column].notna()]
    at_s = rows["elapsed_s"].to_numpy(np.float64) - record["warmup_s"]
    values = rows[column].to_numpy(np.float64)
    inside = (at_s > 0) & (at_s <= record["window_s"])
    return at_s[inside], values[inside]


def _kept(run: Run, record: Record) -> Kept | None:
    at_s, values = observed(run, record, "retained_msgs")
    if not len(at_s):
        return None
    _, forgotten = observed(run, record, "forgotten_msgs")
    _, data_bytes = observed(run, record, "broker_data_bytes")
    settings: Mapping[str, Any] = record["settings"]
    return Kept(
        int(values.max()),
        int(values[-1]),
        int(forgotten[-1]) if len(forgotten) else None,
        int(data_bytes.max()) if len(data_bytes) else None,
        is_limited(settings),
    )
