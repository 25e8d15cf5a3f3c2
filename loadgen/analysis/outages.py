"""What faults cost: the latency of messages intended while they lasted, and how a trial went second by second.

A fault lasts from its begin until the rate was back; where no rate could be compared, until it was mended; where the
rate was not back, until the next fault or the window's end. A message belongs to the interval in which it was intended
(a second; more in trials of over twelve minutes), so a fault has whole intervals: those that it touches. What never
came has no latency and is in neither part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.analysis.drift import observed
from loadgen.histogram import Counts, together
from loadgen.record import RESPONSE_KINDS

if TYPE_CHECKING:
    from loadgen.analysis.drift import Float64
    from loadgen.frames import Second
    from loadgen.record import Record
    from loadgen.runs import Run

GAP_WORDS = {"confirm": "confirmed", "delivery": "delivered"}
"""What stands still in a gap of each kind."""
BEFORE_S = 1.0
"""With less before a fault there is no rate to compare with."""
PERCENTS = (50.0, 99.0, 99.9)
Percentiles = tuple[int, int, int]
"""Latency in ns at each of `PERCENTS`."""


@dataclass(frozen=True, slots=True)
class Cost:
    """End-to-end response times of a trial under its faults and apart from them; None where no message has any.

    `intervals` are the numbers of those that faults touch, of `interval_s` each.
    """

    intervals: tuple[int, ...]
    interval_s: float
    under: Percentiles | None
    apart: Percentiles | None


@dataclass(frozen=True, slots=True)
class Course:
    """A trial with faults over its window: rates by when things happened, latency by when messages were intended.

    Rates are pairs of moments (s since the window began) and messages/s in the second before (float[n] each), empty
    where there are none; `kind` is the latency's, "" in a closed loop.
    """

    record: Record
    interval_s: float
    confirmed: tuple[Float64, Float64]
    delivered: tuple[Float64, Float64]
    kind: str
    seconds: tuple[Second, ...]


def spans(record: Record) -> list[tuple[float, float]]:
    """Begin and end (s since the window began) of each fault that began inside the window."""
    faults, window_s = record["faults"] or (), float(record["window_s"] or 0)
    nexts = [*(each["at_s"] for each in faults[1:]), window_s][: len(faults)]
    found = [(max(0.0, each["at_s"]), _end_s(each, next_s)) for each, next_s in zip(faults, nexts, strict=True)]
    return [(begin_s, min(end_s, window_s)) for begin_s, end_s in found if begin_s < window_s]


def _end_s(fault: Record, next_s: float) -> float:
    at_s = float(fault["at_s"])
    if fault["back_after_s"] is not None:
        return at_s + float(fault["back_after_s"])
    if fault["delivery_gap_s"] is None or at_s < BEFORE_S:
        return at_s + float(fault["mended_after_s"])
    return next_s


def costs(run: Run) -> dict[str, Cost]:
    """By trial, of each that has faults; its histograms are read once, for all that tell of it."""
    return {record["id"]: cost(run, record) for record in run.records if record["faults"]}


def cost(run: Run, record: Record) -> Cost:
    """What a trial's faults did to its latency; nothing is known of one that was cut short before its window."""
    length_s = float(record["interval_s"] or 1.0)
    if not record["window_s"]:
        return Cost((), length_s, None, None)
    touched: set[int] = set()
    for begin_s, end_s in spans(record):
        first = math.floor(begin_s / length_s)
        touched.update(range(first, max(first + 1, math.ceil(end_s / length_s))))
    under: list[Counts] = []
    apart: list[Counts] = []
    for interval in run.within(record["id"], "e2e"):
        (under if round(interval.start_s / length_s) in touched else apart).append(interval.counts)
    return Cost(tuple(sorted(touched)), length_s, _percentiles(together(under)), _percentiles(together(apart)))


def _percentiles(histogram: Counts) -> Percentiles | None:
    if not histogram.count:
        return None
    p50_ns, p99_ns, p99_9_ns = histogram.percentiles(PERCENTS)
    return p50_ns, p99_ns, p99_9_ns


def courses(run: Run) -> list[Course]:
    """Of each trial with faults that had a window."""
    return [_course(run, record) for record in run.records if record["faults"] and record["window_s"]]


def _course(run: Run, record: Record) -> Course:
    kind = next((each for each in RESPONSE_KINDS if (record["latency_ns"].get(each) or {}).get("count")), "")
    by_second = run.seconds(record["id"], kind) if kind else {}
    return Course(
        record,
        float(record["interval_s"] or 1.0),
        observed(run, record, "acked_msgs_per_s"),
        observed(run, record, "received_msgs_per_s"),
        kind,
        tuple(by_second[number] for number in sorted(by_second)),
    )


def gaps(record: Record, kind: str) -> list[tuple[float, float]]:
    """Begin and length (s) of the longest time without a `confirm` or a `delivery` of each fault that had one."""
    found = [(each.get(f"{kind}_gap_at_s"), each[f"{kind}_gap_s"]) for each in record["faults"] or ()]
    return [(at_s, gap_s) for at_s, gap_s in found if at_s is not None and gap_s]
