"""Limits held against a run, and where they are relative against a baseline: kept, missed, or not to be told.

**A breach is shown, not suspected.** Repeats are the unit. Against a baseline the ratio of geometric means has Welch's
t interval (`loadgen.stats.confidence.unpaired_ratio`: repeats of two runs are no pairs). A limit is missed where the
interval excludes "as good or better", at 5 % for all relative limits of a check together (Bonferroni); it is kept where
the interval excludes the effect that matters (`effect`). Between the two it cannot be told, and the repeats that would
tell nine times in ten are named. Runs of different days differ by more than their repeats do: changes up to `neglect`
are no breach, however surely they are shown. So chance fails 5 of 100 checks of runs that differ by just so much, and
fewer of runs that are alike.

**Of the brokers' ratio** each repeat has its own (they take turns), and those of both runs are compared. It cannot say
which of the two changed, but what slowed the machine down between the runs falls out of it.

**An absolute limit** is missed where the interval of the repeats lies beyond it and kept where all of it lies within;
one repeat alone stands for itself. Counts (losses, errors) have no interval: each repeat has to keep the limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import geometric_mean, median, stdev
from typing import TYPE_CHECKING, Literal

from loadgen.analysis import is_answer
from loadgen.analysis.ab import ALPHA, POWER, percentage
from loadgen.record import enters, point_label
from loadgen.stats.confidence import Ratio, estimate, unpaired_ratio
from loadgen.stats.power import repeats_needed, spread_bound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from loadgen.gate.limits import Limit
    from loadgen.gate.metrics import Metric
    from loadgen.record import Record
    from loadgen.run import Run

EVERY_POINT = "every point"
Outcome = Literal["kept", "missed", "cannot tell"]
BROKERS = ("kafka", "rabbitmq")
"""Over and under the fraction bar of a `ratio`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One limit at one point: what came of it, and why, in one line.

    `value` is the run's (geometric mean over repeats; of a ratio Kafka's over RabbitMQ's), `before` the baseline's;
    `change` is the run's over the baseline's. `needed` repeats would tell, where that is known.
    """

    point: str
    limit: Limit
    outcome: Outcome
    said: str
    value: float | None = None
    before: float | None = None
    change: Ratio | None = None
    needed: int | None = None

    @property
    def line(self) -> str:
        """`missed  latency/kafka/…: e2e_p99_ms +23.4 % (…)`."""
        return f"{self.outcome}: {self.point}: {self.said}"


Values = list[float]


@dataclass(frozen=True, slots=True)
class _Question:
    """A relative limit at one point, before it is known how many there are; its values are above 0."""

    point: str
    limit: Limit
    now: Values
    before: Values
    texts: Callable[[float], str]


def judge(limits: Sequence[Limit], run: Run, baseline: Run | None = None) -> list[Finding]:
    """Every limit at every point that it speaks of, in their order."""
    now, before = points(run), points(baseline) if baseline is not None else {}
    found: list[Finding | _Question] = []
    for limit in limits:
        told = list(_ask(limit, now, before))
        if not told:
            told = [Finding(EVERY_POINT, limit, "cannot tell", f"{limit.text}: no trial here that it speaks of")]
        found += told
    family = max(1, sum(_is_testable(each) for each in found if isinstance(each, _Question)))
    return [_answer(each, family) if isinstance(each, _Question) else each for each in found]


def _ask(
    limit: Limit, now: Mapping[str, list[Record]], before: Mapping[str, list[Record]]
) -> Iterable[Finding | _Question]:
    """What a limit asks, point by point."""
    fitting = {point: records for point, records in now.items() if limit.fits(records[0])}
    if limit.kind == "limit":
        yield from (_absolute(limit, point, records) for point, records in fitting.items() if _has(limit, records))
        return
    if limit.kind == "ratio":
        there = _shared(limit, {name: records for name, records in before.items() if limit.fits(records[0])})
        for point, ratios in _shared(limit, fitting).items():
            yield _Question(point, limit, ratios, there.get(point, []), lambda value: f"{value:.3g}")
        return
    for point, records in fitting.items():
        # Which points the baseline lacks is told once, and not for each limit; a quantity that is gone is a finding.
        if point in before and (_has(limit, records) or _has(limit, before[point])):
            # A value of 0 has no ratio to anything.
            these, those = ([each for each in usable(limit.metric, of) if each > 0] for of in (records, before[point]))
            yield _Question(point, limit, these, those, limit.metric.text)


def points(run: Run) -> dict[str, list[Record]]:
    """A run's trials that are answers, by point; those that are struck out too, since a limit may speak of them."""
    found: dict[str, list[Record]] = {}
    for record in run.records:
        if is_answer(record):
            found.setdefault(point_label(record), []).append(record)
    return found


def _has(limit: Limit, records: Iterable[Record]) -> bool:
    """Whether these trials have the quantity, be it in one that is struck out."""
    return any(limit.metric.of(record) is not None or _is_unsettled(limit.metric, record) for record in records)


def usable(metric: Metric, records: Iterable[Record]) -> Values:
    """A metric of the trials that count."""
    found = (metric.of(record) for record in records if enters(record))
    return [value for value in found if value is not None]


def _shared(limit: Limit, points: Mapping[str, list[Record]]) -> dict[str, Values]:
    """Kafka's value over RabbitMQ's of each repeat that has both, by what both points share."""
    sides: dict[str, dict[str, list[dict[int, float]]]] = {}
    for records in points.values():
        first = records[0]
        if first["driver_kind"] == "client":
            continue
        broker = first["broker"]
        by_repeat = {
            record["repeat"]: value for record in records if enters(record) and (value := limit.metric.of(record))
        }
        label = point_label({**first, "broker": "kafka/rabbitmq", "driver": "wire"})
        sides.setdefault(label, {}).setdefault(broker, []).append(by_repeat)
    found = {}
    for label, by_broker in sides.items():
        over, under = (by_broker.get(broker, []) for broker in BROKERS)
        if len(over) == 1 and len(under) == 1:  # else there is no telling which belong together
            found[label] = [over[0][repeat] / under[0][repeat] for repeat in sorted(over[0].keys() & under[0].keys())]
    return found


# --- absolute limits ---


def _absolute(limit: Limit, point: str, records: Sequence[Record]) -> Finding:
    if limit.metric.is_count:
        return _count(limit, point, records)
    values = usable(limit.metric, records)
    if not values:
        return Finding(point, limit, "cannot tell", f"{limit.text}: no trial of it is to be used")
    found, middle = estimate(values), float(median(values))
    low, high = (found.low, found.high) if found.low is not None and found.high is not None else (middle, middle)
    if found.dropped:  # a rate of 0 has no logarithm, and is a value all the same
        low, high = min(values), max(values)
    most, least = limit.at_most, limit.at_least
    text = limit.metric.text
    shown = f"{text(middle)} ({text(low)} … {text(high)}, {len(values)} repeats)" if low < high else text(middle)
    is_missed = (most is not None and low > most) or (least is not None and high < least)
    is_kept = (most is None or high <= most) and (least is None or low >= least)
    outcome: Outcome = "missed" if is_missed else "kept" if is_kept else "cannot tell"
    said = f"{limit.metric.name} {shown}, limit {_bound(limit)}"
    if outcome == "cannot tell":
        said += ": the interval includes the limit; more repeats may tell"
    return Finding(point, limit, outcome, said, value=middle)


def _bound(limit: Limit) -> str:
    bounds = [f"at most {limit.metric.text(limit.at_most)}"] if limit.at_most is not None else []
    bounds += [f"at least {limit.metric.text(limit.at_least)}"] if limit.at_least is not None else []
    return " and ".join(bounds)


def _count(limit: Limit, point: str, records: Sequence[Record]) -> Finding:
    counted, name = counts(limit.metric, records), limit.metric.name
    unsettled = [each["id"] for each in records if each["status"] == "complete" and _is_unsettled(limit.metric, each)]
    if not counted and not unsettled:
        return Finding(point, limit, "cannot tell", f"{limit.text}: no trial of it came to its end")
    most, least = limit.at_most, limit.at_least
    beyond = [
        (trial, value)
        for trial, value in counted.items()
        if (most is not None and value > most) or (least is not None and value < least)
    ]
    if unsettled and not beyond:
        said = f"{name} in {unsettled[0]} is not known: its drain was given up, and what is missing may wait there yet"
        return Finding(point, limit, "cannot tell", said)
    worst = max(counted.values()) if most is not None else min(counted.values())
    said = f"{name} {worst:,.0f} in {len(counted)} trials, limit {_bound(limit)}"
    if beyond:
        said = f"{name} {beyond[0][1]:,.0f} in {beyond[0][0]}, limit {_bound(limit)}"
    return Finding(point, limit, "missed" if beyond else "kept", said, value=worst)


def _is_unsettled(metric: Metric, record: Record) -> bool:
    """Whether a trial has a count of which nobody knows how much of it will turn out to be none."""
    return record.get(metric.name) is not None and metric.of(record) is None


def counts(metric: Metric, records: Iterable[Record]) -> dict[str, float]:
    """A count of every trial that came to its end, by its id: what is invalid may be so for the very losses."""
    ended = [record for record in records if record["status"] == "complete"]
    return {record["id"]: value for record in ended if (value := metric.of(record)) is not None}


# --- relative limits ---


def _is_testable(question: _Question) -> bool:
    return min(len(question.now), len(question.before)) > 1


def _answer(question: _Question, family: int) -> Finding:
    """One relative limit at the level that leaves 5 % to all of them; a ratio's has two sides, the others one."""
    limit, is_ratio = question.limit, question.limit.kind == "ratio"
    alpha = ALPHA / family * (1 if is_ratio else 2)
    change = unpaired_ratio(question.now, question.before, 1 - alpha)
    name = limit.metric.name if not is_ratio else f"Kafka/RabbitMQ {limit.metric.name}"
    value, before = (geometric_mean(each) if each else None for each in (question.now, question.before))

    def finding(outcome: Outcome, said: str, needed: int | None = None) -> Finding:
        return Finding(question.point, limit, outcome, f"{name} {said}", value, before, change, needed)

    if value is None or before is None or change.ratio is None:
        lacking = "this run" if value is None else "the baseline"
        return finding("cannot tell", f"has no usable repeat in {lacking}")
    told = f"{change.ratio - 1:+.1%}"
    span = f"{question.texts(before)} → {question.texts(value)}"
    if change.low is None or change.high is None:
        return finding("cannot tell", f"{told} ({span}): one repeat has no interval; needs 2 at the least")
    told = f"{told} ({change.low - 1:+.1%} … {change.high - 1:+.1%} at {change.confidence:.4g}, {span})"
    most, least = _worse(limit, change)
    if least > limit.neglect_ratio or (is_ratio and most < 1 / limit.neglect_ratio):
        return finding("missed", told)
    if max(most, _inverse(least) if is_ratio else 0) < limit.effect_ratio:
        neglected = f", of which {percentage(limit.neglect_ratio)} are neglected" if least > 1 else ""
        return finding("kept", f"{told}{neglected}")
    needed = repeats_to_tell(limit, question.now, question.before, alpha)
    wants = f"{needed}" if needed is not None else "more than 1,000"
    return finding(
        "cannot tell", f"{told}: {percentage(limit.effect_ratio)} needs {wants} repeats of each run to be told", needed
    )


def _worse(limit: Limit, change: Ratio) -> tuple[float, float]:
    """The most and the least by which it got worse, as factors; of a ratio, of which neither side is worse, up."""
    assert change.low is not None
    assert change.high is not None
    if limit.kind == "ratio" or limit.metric.worse == "higher":
        return change.high, change.low
    return _inverse(change.low), _inverse(change.high)


def _inverse(factor: float) -> float:
    return 1 / factor if factor else math.inf


def repeats_to_tell(limit: Limit, now: Sequence[float], before: Sequence[float], alpha: float) -> int | None:
    """Repeats of each run that would find the effect nine times in ten, by the upper bound of the spread seen.

    To be found it has to be told from what is neglected. Two independent samples of n are taken as n pairs of the same
    spread, which asks for a little too many. None where 1,000 would not do.

    Args:
        limit: the relative limit, with its effect and what it neglects.
        now: the run's values, at least two.
        before: the baseline's values, at least two.
        alpha: the level of the two-sided interval that the limit is judged by.
    """
    spreads, pairs = [stdev(map(math.log, each)) for each in (now, before)], min(len(now), len(before))
    bound = spread_bound(math.hypot(*spreads), pairs - 1)
    return repeats_needed(limit.effect_ratio / limit.neglect_ratio, bound, POWER, min(0.5, alpha))


def count(found: Iterable[Finding]) -> dict[Outcome, int]:
    """How many limits were kept, missed, and not to be told."""
    told = [each.outcome for each in found]
    return {"kept": told.count("kept"), "missed": told.count("missed"), "cannot tell": told.count("cannot tell")}
