"""Published shapes: whether a run's curve has the form that others have published, or cannot tell.

Absolute rates belong to a machine; what carries over is a shape, such as "the largest step is from 20 to 200 in
flight". Each scenario under `scenarios/published/` has its rules here, by name. A rule compares the rates of two points
by their paired interval over repeats: a shape is *reproduced* where all of its rules hold, *not* reproduced where one
is shown not to hold, and otherwise nobody can tell, which is the answer of one repeat, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loadgen.analysis import is_measured
from loadgen.record import enters
from loadgen.stats.confidence import paired_ratio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.record import Record
    from loadgen.runs import Run

Outcome = Literal["reproduced", "not reproduced", "cannot tell"]
Rates = dict[Any, dict[int, float]]


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
class Shape:
    """What was published of one scenario's curve along `knob`."""

    knob: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one broker's curve; `reasons` has a line for each rule, with what was seen."""

    scenario: str
    broker: str
    outcome: Outcome
    reasons: tuple[str, ...]


SHAPES: Mapping[str, Shape] = {
    "published-in-flight": Shape(
        "rabbitmq.confirm_window",
        (
            Rule("20 to 200 in flight is a large step", 200, 20, least=1.5),
            Rule("hardly anything is won beyond 1,000", 5000, 1000, most=1.15),
        ),
    ),
    "published-prefetch": Shape(
        "rabbitmq.prefetch",
        (
            Rule("a prefetch of 1 collapses", 1, 100, most=0.5),
            Rule("from 100 on there is a plateau", 1000, 100, least=0.85, most=1.25),
        ),
    ),
    "published-message-size": Shape(
        "size_bytes",
        (
            Rule("in messages small ones win", 65_536, 64, most=0.5),
            Rule("in bytes large ones win", 65_536, 64, least=2.0, scale=65_536 / 64),
        ),
    ),
}
PARITY = "published-flush-parity"
PARITY_RULE = Rule("with equal guarantees rates are nearly equal (published: 1.1)", "kafka", "rabbitmq", 0.5, 2.0)


def judged(run: Run) -> list[Verdict]:
    """A verdict for each published curve in the run, by scenario and broker; empty where it has none."""
    found: list[Verdict] = []
    for scenario in dict.fromkeys(record["scenario"] for record in run.records):
        records = [each for each in run.records if each["scenario"] == scenario and is_measured(each) and enters(each)]
        if scenario == PARITY:
            flushed = [each for each in records if each["durability"] == "flushed"]
            found.append(_verdict(scenario, "both", (PARITY_RULE,), _rates(flushed, "broker")))
        elif scenario in SHAPES:
            shape = SHAPES[scenario]
            for broker in dict.fromkeys(each["broker"] for each in run.records if each["scenario"] == scenario):
                own = [each for each in records if each["broker"] == broker]
                found.append(_verdict(scenario, broker, shape.rules, _rates(own, shape.knob)))
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


def _verdict(scenario: str, broker: str, rules: tuple[Rule, ...], rates: Rates) -> Verdict:
    outcomes, reasons = zip(*(_ruled(rule, rates) for rule in rules), strict=True)
    worst: Outcome = "reproduced"
    if "not reproduced" in outcomes:
        worst = "not reproduced"
    elif "cannot tell" in outcomes:
        worst = "cannot tell"
    return Verdict(scenario, broker, worst, reasons)


def _ruled(rule: Rule, rates: Rates) -> tuple[Outcome, str]:
    """Whether one rule holds, by the interval of the ratio."""
    values, bases = rates.get(rule.value, {}), rates.get(rule.base, {})
    ratio = paired_ratio([(values[each], bases[each]) for each in sorted(values.keys() & bases.keys())])
    if ratio.ratio is None:
        return "cannot tell", f"{rule.says}: {rule.value} or {rule.base} has no usable repeat"
    if ratio.low is None or ratio.high is None:
        return "cannot tell", f"{rule.says}: {ratio.ratio:.3g}×, one repeat has no interval"
    seen, low, high = (rule.scale * each for each in (ratio.ratio, ratio.low, ratio.high))
    text = f"{rule.says}: {rule.value} is {seen:.3g}× ({low:.3g} … {high:.3g}) of {rule.base}"
    least, most = rule.least or 0.0, rule.most if rule.most is not None else float("inf")
    if high < least or low > most:
        return "not reproduced", text
    return ("reproduced" if low >= least and high <= most else "cannot tell"), text
