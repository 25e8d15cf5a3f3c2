"""The run in words, class by class: which broker led, by how much, under which load, and what cannot be said.

A comparison is of one quantity, one class, one message and one load, by wire drivers on both sides. Where several loads
were compared in a class, they are counted: who led in how many, and by which factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from loadgen.analysis import COMPARED_KINDS
from loadgen.analysis.ab import corrected_confidence
from loadgen.report import capacity, words
from loadgen.report import points as pt
from loadgen.stats.confidence import CONFIDENCE, Ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from loadgen.analysis.capacity import PointCapacity
    from loadgen.record import Record
    from loadgen.report.table import Table
    from loadgen.stats.confidence import Estimate

Leader = Literal["kafka", "rabbitmq", "none shown", "one repeat", "not reached"]
QUANTITIES = ("capacity", "throughput", "p50", "p99")
UNITS = {"capacity": "msgs_per_s", "throughput": "msgs_per_s", "p50": "ns", "p99": "ns"}
LESS_IS_BETTER = frozenset({"p50", "p99"})
SHOWN_LOADS = 2  # of many loads in which one broker led, those with the smallest and the largest factor


@dataclass(frozen=True)
class Finding:
    """One comparison: Kafka's and RabbitMQ's values, and Kafka's over RabbitMQ's, paired by repeat.

    `unreached` are brokers whose limit was not reached, so that their value is "at least"; `limits` says what else than
    the brokers had a part.
    """

    durability: str
    quantity: str
    load: str
    kafka: Estimate
    rabbitmq: Estimate
    ratio: Ratio
    unreached: tuple[str, ...] = ()
    limits: str = ""

    @property
    def leader(self) -> Leader:
        """Who is shown to be better: more capacity or throughput, less latency."""
        if len(self.unreached) > 1:
            return "not reached"
        if self.ratio.low is None:
            return "one repeat"
        if self.ratio.direction == "no difference shown":
            return "none shown"
        is_kafka = (self.ratio.direction == "higher") != (self.quantity in LESS_IS_BETTER)
        better: Leader = "kafka" if is_kafka else "rabbitmq"
        return better if all(each == better for each in self.unreached) else "not reached"

    @property
    def factor(self) -> Ratio:
        """The larger value over the smaller one, as far as the ratio tells."""
        found = self.ratio
        if found.ratio is None or found.ratio >= 1:
            return found
        ends = [None if each is None else 1 / each if each else float("inf") for each in (found.high, found.low)]
        return Ratio(1 / found.ratio, ends[0], ends[1], found.pairs, found.confidence)

    @property
    def figures(self) -> str:
        """`41.0 k msg/s for Kafka, 13.0 k msg/s for RabbitMQ`."""
        sides = (("kafka", self.kafka), ("rabbitmq", self.rabbitmq))
        return ", ".join(
            f"{'at least ' * (name in self.unreached)}{words.shown(each.median, UNITS[self.quantity])} for "
            f"{words.broker_name(name)}"
            for name, each in sides
        )


def findings(table: Table) -> list[Finding]:
    """Every comparison of both brokers that the run allows; their intervals hold together (Bonferroni, as in `ab`)."""
    alone = _findings(table, CONFIDENCE)
    return _findings(table, corrected_confidence(sum(each.ratio.low is not None for each in alone)))


def _findings(table: Table, confidence: float) -> list[Finding]:
    pairs = [both for group in capacity.grouped(table.capacities) if (both := capacity.pair(group))]
    found = [_capacity(*both, confidence) for both in pairs]
    for each in table.comparisons:
        kind = each.shared["rate"].get("kind")
        if _is_hurt(each):
            continue
        if kind == "saturate":
            found += _of(each, "throughput", pt.goodput, confidence)
        elif kind in COMPARED_KINDS:
            for quantity in ("p50", "p99"):
                found += _of(each, quantity, pt.latency("e2e", quantity), confidence)
    return found


def _is_hurt(comparison: pt.Comparison) -> bool:
    """Whether its brokers were hurt meanwhile: how long they stood still is told elsewhere."""
    return any(record["faults"] for point in comparison.points for record in point.used)


def _capacity(kafka: PointCapacity, rabbitmq: PointCapacity, confidence: float) -> Finding:
    return Finding(
        durability=kafka.durability,
        quantity="capacity",
        load=f"{kafka.scenario}: {capacity.load_text(kafka, kafka.p99_ms)}",
        kafka=kafka.estimate,
        rabbitmq=rabbitmq.estimate,
        ratio=capacity.ratio(kafka, rabbitmq, confidence),
        unreached=tuple(each.broker for each in (kafka, rabbitmq) if each.is_lower_bound),
        limits=_limits((("Kafka", kafka.bound_by), ("RabbitMQ", rabbitmq.bound_by))),
    )


def _of(
    comparison: pt.Comparison, quantity: str, measure: Callable[[Record], float | None], confidence: float
) -> list[Finding]:
    """The finding of a comparison in which both brokers have a value."""
    kafka, rabbitmq = comparison.one("kafka", "wire"), comparison.one("rabbitmq", "wire")
    if kafka is None or rabbitmq is None:
        return []
    values = kafka.estimate(measure), rabbitmq.estimate(measure)
    ratio = comparison.ratio(measure, confidence=confidence)
    if ratio.ratio is None:
        return []
    return [
        Finding(
            durability=comparison.durability,
            quantity=quantity,
            load=f"{comparison.scenario}: {pt.load_label(comparison.shared)}",
            kafka=values[0],
            rabbitmq=values[1],
            ratio=ratio,
            limits=_limits((("Kafka", _bound(kafka, quantity)), ("RabbitMQ", _bound(rabbitmq, quantity)))),
        )
    ]


def _bound(point: pt.Point, quantity: str) -> str:
    return point.latency_bound_by if quantity in LESS_IS_BETTER else point.bound_by


def _limits(bounds: Iterable[tuple[str, str]]) -> str:
    """`Kafka bound by host`; empty where the brokers or the schedule set the values."""
    parts = [f"{name} bound by {by}" for name, by in bounds if pt.has_others_limit(by)]
    return ", ".join(parts)


def lines(found: Sequence[Finding]) -> list[str]:
    """A sentence for each class and quantity, from the weakest class to the strongest."""
    said = []
    for durability in sorted({each.durability for each in found}, key=pt.class_rank):
        for quantity in QUANTITIES:
            alike = [each for each in found if (each.durability, each.quantity) == (durability, quantity)]
            if alike:
                said.append(f"Class {durability}, {quantity}: {_one(alike[0]) if len(alike) == 1 else _many(alike)}.")
    tested = [each.ratio for each in found if each.ratio.low is not None]
    shown = [each for each in tested if not words.is_too_wide(each.low or 0.0, each.high or 0.0)]
    if len(tested) > 1 and shown:
        level = f"{tested[0].confidence * 100:.3g} %"
        which = f"{len(tested)} intervals" + " (those too wide to print among them)" * (len(shown) < len(tested))
        said.append(f"Each of these {which} is at {level}, so that all of them hold in 95 % of runs.")
    return said


def _one(finding: Finding) -> str:
    """A single comparison in full."""
    if finding.leader in {"kafka", "rabbitmq"}:
        verb = "less" if finding.quantity in LESS_IS_BETTER else "more"
        least = "at least " * bool(finding.unreached)
        led = f"{words.broker_name(finding.leader)} led, {least}{words.times(finding.factor)} {verb}"
    else:
        led = _undecided(finding)
    limits = f"; {finding.limits}" if finding.limits else ""
    return f"{led} ({finding.figures}; {finding.load}; {words.plural(finding.ratio.pairs, 'pair')}{limits})"


def _undecided(finding: Finding) -> str:
    if finding.leader == "one repeat":
        return "one repeat each, which cannot tell"
    if finding.leader == "not reached":
        return "not compared, as a limit was not reached"
    return f"no difference shown, {words.times(finding.ratio)} Kafka over RabbitMQ"


def _many(found: Sequence[Finding]) -> str:
    """Several loads: who led in how many, by which factors."""
    parts = [f"{len(found)} loads"]
    for broker in ("kafka", "rabbitmq"):
        led = sorted((each for each in found if each.leader == broker), key=lambda each: each.factor.ratio or 0.0)
        if led:
            parts.append(f"{words.broker_name(broker)} led in {len(led)}, {_factors(led)}")
    shown_not = sum(each.leader == "none shown" for each in found)
    single = sum(each.leader == "one repeat" for each in found)
    parts += [f"no difference shown in {shown_not}"] if shown_not else []
    parts += [f"one repeat each, which cannot tell, in {single}"] if single else []
    open_ = sum(each.leader == "not reached" for each in found)
    parts += [f"not compared, as a limit was not reached, in {open_}"] if open_ else []
    limited = [each for each in found if each.limits]
    parts += [f"clients or machine had a part in {len(limited)}"] if limited else []
    return "; ".join(parts)


def _factors(led: Sequence[Finding]) -> str:
    verb = "less" if led[0].quantity in LESS_IS_BETTER else "more"
    ends = led if len(led) <= SHOWN_LOADS else [led[0], led[-1]]
    joint = " and " if len(led) == SHOWN_LOADS else " … "
    return joint.join(f"{words.times(each.factor)} {verb} ({each.load})" for each in ends)


def unsaid(table: Table, found: Sequence[Finding]) -> list[str]:
    """What these comparisons leave open, a rule each."""
    return [said for rule in UNSAID if (said := rule(table, found))]


def unsaid_sides(table: Table, found: Sequence[Finding]) -> str | None:
    """Comparisons in which only one broker has trials that count."""
    del found
    parts: dict[str, None] = {}
    for each in table.comparisons:
        sides = {
            name: [point for point in each.points if (point.broker, point.driver_kind) == (name, "wire")]
            for name in pt.BROKER_ORDER
        }
        usable = {name: any(point.used for point in of) for name, of in sides.items()}
        if len(set(usable.values())) == 1:
            continue
        lacking = next(name for name in usable if not usable[name])
        struck = sum(len(point.struck) for point in sides[lacking])
        why = f"none of {words.plural(struck, 'trial')} counts" if struck else "not measured"
        parts[f"{each.scenario} in class {each.durability}: {words.broker_name(lacking)} {why}"] = None
    return f"Only one broker has figures, and nothing is compared: {'; '.join(parts)}." if parts else None


def unsaid_classes(table: Table, found: Sequence[Finding]) -> str | None:
    """Brokers that were measured in different classes alone."""
    classes = {
        name: {each.durability for each in table.comparisons for point in each.points if point.broker == name}
        for name in pt.BROKER_ORDER
    }
    if found or not all(classes.values()) or classes["rabbitmq"] & classes["kafka"]:
        return None
    told = [f"{words.broker_name(name)} in {', '.join(sorted(classes[name], key=pt.class_rank))}" for name in classes]
    return (
        f"The brokers were measured in different durability classes ({'; '.join(told)}), which promise different "
        "things: their figures do not compare them."
    )


def unsaid_sweeps(table: Table, found: Sequence[Finding]) -> str | None:
    """Knobs of one broker, swept, which have no partner."""
    del found
    swept = {
        f"{each.scenario}, class {each.durability}"
        for each in table.comparisons
        for name in pt.BROKER_ORDER
        if sum((point.broker, point.driver_kind) == (name, "wire") for point in each.points) > 1
        and len({point.broker for point in each.points}) > 1
    }
    if not swept:
        return None
    return f"Settings that one broker sweeps by itself have no partner on the other: {'; '.join(sorted(swept))}."


def unsaid_single(table: Table, found: Sequence[Finding]) -> str | None:
    """Comparisons without an interval."""
    del table
    single = sum(each.leader == "one repeat" for each in found)
    if not single:
        return None
    which = "This comparison stands" if len(found) == 1 else f"{single} of {len(found)} comparisons stand"
    return f"{which} on one repeat each, and chance alone may have made the difference (--repeats)."


def unsaid_open(table: Table, found: Sequence[Finding]) -> str | None:
    """Capacities of which one was not reached that might have been the larger."""
    del table
    loads = [each for each in found if each.leader == "not reached"]
    if not loads:
        return None
    return f"A limit that was not reached compares no brokers: {'; '.join(dict.fromkeys(each.load for each in loads))}."


def unsaid_limits(table: Table, found: Sequence[Finding]) -> str | None:
    """Rates that clients or machine set."""
    del table
    limited = [each for each in found if each.limits and each.quantity not in LESS_IS_BETTER]
    if not limited:
        return None
    return (
        f"In {len(limited)} of {words.plural(len(found), 'comparison')} clients or machine set a rate, not the broker "
        "alone: which broker could do more on a machine of its own is not told."
    )


UNSAID: tuple[Callable[[Table, Sequence[Finding]], str | None], ...] = (
    unsaid_sides, unsaid_classes, unsaid_sweeps, unsaid_single, unsaid_open, unsaid_limits,
)  # fmt: skip
