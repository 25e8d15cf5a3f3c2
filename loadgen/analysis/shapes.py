"""Published shapes: whether a run's curve has the form that others have published, or cannot tell.

Absolute rates belong to a machine; what carries over is a shape, such as "the largest step is from 20 to 200 in
flight". Each scenario under `scenarios/published/` has its rules here, by name. A rule compares the rates of two points
by their paired interval over repeats, or one step of the curve with another: a shape is *reproduced* where all of its
rules hold, *not* reproduced where one is shown not to hold, and otherwise nobody can tell, which is the answer of one
repeat, too.

Bounds lie around what was published, which each rule names. A tenth is left where two points are published as equal:
that much repeats differ by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from loadgen.analysis import is_measured
from loadgen.record import enters
from loadgen.stats.confidence import paired_ratio, t_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadgen.record import Record
    from loadgen.runs import Run

Outcome = Literal["reproduced", "not reproduced", "cannot tell"]
Rates = dict[Any, dict[int, float]]
SIZES = (64, 256, 1024, 4096, 16_384, 65_536)
EQUAL_SHARE = 0.1
"""What two rates that were published as equal may differ by here."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The rate at `value` over that at `base` lies between `least` and `most` (None: no bound).

    Rates are in messages/s; `scale` is how much larger the ratio is in the unit that the rule is about.
    """

    says: str
    value: Any
    base: Any
    least: float | None = None
    most: float | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """From `begin` to `end` the rate rises by more messages/s than in any other step between neighbours of `along`."""

    says: str
    begin: Any
    end: Any
    along: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """What was published of one scenario's curve along `knob`."""

    knob: str
    rules: tuple[Rule | Step, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one broker's curve; `reasons` has a line for each rule, with what was seen, `against` those that decided it.

    Nothing is against a shape that is reproduced.
    """

    scenario: str
    broker: str
    outcome: Outcome
    reasons: tuple[str, ...]
    against: tuple[str, ...]


def _falling(sizes: Sequence[int]) -> list[Rule | Step]:
    """Each larger size has no more messages a second than the one before it, and no fewer bytes a second."""
    return [
        rule
        for smaller, larger in pairwise(sizes)
        for rule in (
            Rule(f"no more messages at {larger:,} B than at {smaller:,} B", larger, smaller, most=1 + EQUAL_SHARE),
            Rule(
                f"no fewer bytes at {larger:,} B than at {smaller:,} B", larger, smaller,
                least=1 - EQUAL_SHARE, scale=larger / smaller,
            ),
        )
    ]  # fmt: skip


SHAPES: Mapping[str, Shape] = {
    "published-in-flight": Shape(
        "rabbitmq.confirm_window",
        (
            Rule("20 to 200 in flight is a large step (published: 2.2)", 200, 20, least=1.5),
            Step("20 to 200 in flight is the largest step", 20, 200, (1, 20, 200, 1000, 10_000)),
            Rule(
                "nothing is won beyond 1,000 (published: 1.0)", 10_000, 1000,
                least=1 - 2 * EQUAL_SHARE, most=1 + EQUAL_SHARE,
            ),
        ),
    ),
    "published-prefetch": Shape(
        "rabbitmq.prefetch",
        (
            Rule("a prefetch of 1 collapses (published: under 0.02)", 1, 100, most=0.2),
            Rule("a prefetch of 10 is far below, too (published: under 0.15)", 10, 100, most=0.5),
            Rule(
                "from 100 on there is a plateau (published: 1.1)", 1000, 100,
                least=1 - EQUAL_SHARE, most=1 + 2 * EQUAL_SHARE,
            ),
        ),
    ),
    "published-message-size": Shape(
        "size_bytes",
        (
            *_falling(SIZES),
            Rule("from end to end in messages small ones win", SIZES[-1], SIZES[0], most=0.5),
            Rule("from end to end in bytes large ones win", SIZES[-1], SIZES[0], least=2.0, scale=SIZES[-1] / SIZES[0]),
        ),
    ),
}  # fmt: skip
PARITY = "published-flush-parity"
PARITY_RULES: Mapping[str, Rule] = {
    "flushed": Rule(
        "with equal guarantees rates are nearly equal (published: 1.1)", "kafka", "rabbitmq", least=0.88, most=1.38
    ),
    "broker": Rule("as shipped Kafka is an order of magnitude above", "kafka", "rabbitmq", least=10.0),
}
"""By durability class; nearly equal is within a quarter of the published 1.1, either way."""


def judged(run: Run) -> list[Verdict]:
    """A verdict for each published curve in the run, by scenario and broker; empty where it has none."""
    found: list[Verdict] = []
    for scenario in dict.fromkeys(record["scenario"] for record in run.records):
        records = [each for each in run.records if each["scenario"] == scenario and is_measured(each) and enters(each)]
        if scenario == PARITY:
            ruled = [
                _ruled(rule, _rates([each for each in records if each["durability"] == durability], "broker"))
                for durability, rule in PARITY_RULES.items()
            ]
            found.append(_verdict(scenario, "both", ruled))
        elif scenario in SHAPES:
            shape = SHAPES[scenario]
            for broker in dict.fromkeys(each["broker"] for each in run.records if each["scenario"] == scenario):
                rates = _rates([each for each in records if each["broker"] == broker], shape.knob)
                found.append(_verdict(scenario, broker, [_ruled(rule, rates) for rule in shape.rules]))
    return found


def sentences(run: Run) -> list[str]:
    """Each verdict in a sentence, for the report."""
    return [
        f"Published shape, {each.scenario} on {each.broker}: {each.outcome} ({'; '.join(each.reasons)})."
        for each in judged(run)
    ]


def _rates(records: list[Record], knob: str) -> Rates:
    """Goodput in messages/s by value of the knob and repeat."""
    found: Rates = {}
    for record in records:
        value = record["broker"] if knob == "broker" else _value(record["point"], knob)
        if value is not None and record["goodput_msgs_per_s"]:
            found.setdefault(value, {})[record["repeat"]] = float(record["goodput_msgs_per_s"])
    return found


def _value(point: Mapping[str, Any], knob: str) -> Any:
    """The swept value, under the knob's own or its short name."""
    return point.get(knob, point.get(knob.rpartition(".")[2]))


def _verdict(scenario: str, broker: str, ruled: Sequence[tuple[Outcome, str]]) -> Verdict:
    outcomes, reasons = zip(*ruled, strict=True)
    worst = _worst(outcomes)
    against = tuple(reason for outcome, reason in ruled if outcome == worst != "reproduced")
    return Verdict(scenario, broker, worst, reasons, against)


def _worst(outcomes: Sequence[Outcome]) -> Outcome:
    """What several rules come to together."""
    return next((each for each in _WORST_FIRST if each in outcomes), "reproduced")


_WORST_FIRST: tuple[Outcome, ...] = ("not reproduced", "cannot tell")


def _ruled(rule: Rule | Step, rates: Rates) -> tuple[Outcome, str]:
    """Whether one rule holds, with what was seen."""
    return _stepped(rule, rates) if isinstance(rule, Step) else _compared(rule, rates)


def _compared(rule: Rule, rates: Rates) -> tuple[Outcome, str]:
    """Whether one ratio lies where it should, by its interval."""
    values, bases = rates.get(rule.value, {}), rates.get(rule.base, {})
    ratio = paired_ratio([(values[each], bases[each]) for each in sorted(values.keys() & bases.keys())])
    if ratio.ratio is None:
        return "cannot tell", f"{rule.says}: {rule.value} or {rule.base} has no usable repeat"
    if ratio.low is None or ratio.high is None:
        return "cannot tell", f"{rule.says}: {rule.scale * ratio.ratio:.3g}×, one repeat has no interval"
    seen, low, high = (rule.scale * each for each in (ratio.ratio, ratio.low, ratio.high))
    text = f"{rule.says}: {rule.value} is {seen:.3g}× ({low:.3g} … {high:.3g}) of {rule.base}"
    least, most = rule.least or 0.0, rule.most if rule.most is not None else math.inf
    if high < least or low > most:
        return "not reproduced", text
    return ("reproduced" if low >= least and high <= most else "cannot tell"), text


def _stepped(rule: Step, rates: Rates) -> tuple[Outcome, str]:
    """Whether one step is larger than each of the others, by the t interval of the difference within repeats."""
    others = [each for each in pairwise(rule.along) if each != (rule.begin, rule.end)]
    found = [_larger(rule, other, rates) for other in others]
    worst = _worst([outcome for outcome, _ in found])
    return worst, f"{rule.says}: {'; '.join(said for outcome, said in found if outcome == worst)}"


def _larger(rule: Step, other: tuple[Any, Any], rates: Rates) -> tuple[Outcome, str]:
    """Whether a step is larger than one other: both in messages/s, their difference as a share of the rate after it."""
    points = [rates.get(each, {}) for each in (rule.begin, rule.end, *other)]
    repeats = sorted(set.intersection(*map(set, points)))
    more = []
    for repeat in repeats:
        begin, end, other_begin, other_end = (each[repeat] for each in points)
        more.append(((end - begin) - (other_end - other_begin)) / end)
    what = f"{other[0]} to {other[1]}"
    if not more:
        return "cannot tell", f"no usable repeat beside {what}"
    interval = t_interval(more)
    if interval is None:
        return "cannot tell", f"one repeat has no interval beside {what}"
    low, high = interval
    outcome: Outcome = "reproduced" if low > 0 else "not reproduced" if high < 0 else "cannot tell"
    return outcome, f"larger than {what} by {fmean(more):.0%} ({low:.0%} … {high:.0%}) of the rate at {rule.end}"
