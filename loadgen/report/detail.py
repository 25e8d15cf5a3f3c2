"""The detailed comparison: one line a point, with every figure's interval, as data for all three formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadgen.report import phases, words, work
from loadgen.report import points as pt
from loadgen.report.evidence import settings_of
from loadgen.stats.confidence import estimate
from loadgen.stats.order import percentile_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from loadgen.record import Record
    from loadgen.runs import Run
    from loadgen.stats.confidence import Estimate

PERCENTILES = ("p50", "p99", "p99_9")
TAILS = {"p99": 99.0, "p99_9": 99.9}
ROLES = ("producers", "consumers", "broker")
ONE_RUN = "one run"
ONE_RUN_NOTE = (
    f"“{ONE_RUN}”: a single repeat has no interval. The bounds are those between which chance alone, over the messages "
    "of that run, leaves its percentile with 95 % confidence (exact, by order statistics): a lower bound of the "
    "uncertainty, as messages of one run are not independent."
)


@dataclass(frozen=True)
class Quantity:
    """A figure as it is shown: the median, and the interval beside it."""

    text: str
    interval: str


NOTHING = Quantity(words.NOTHING, "")


@dataclass(frozen=True)
class Line:
    """One point: its driver, its rates, latencies and costs, and what is to be thought of them."""

    broker: str
    driver: str
    driver_kind: str
    own_label: str
    rate: Quantity
    e2e: tuple[Quantity, ...]
    ack: tuple[Quantity, ...]
    cpu: tuple[Quantity, ...]
    repeats: int
    verdicts: str
    bound_by: str
    trial_ids: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """The lines that may be compared, and Kafka over RabbitMQ where each has one point."""

    scenario: str
    durability: str
    load: str
    is_open_loop: bool
    lines: tuple[Line, ...]
    ratios: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...] = ()
    """What its points showed beside these figures: backlogs drained, rebalances, who did the work."""

    @property
    def has_single_runs(self) -> bool:
        """Whether a figure of it stands on one repeat, with that run's own bounds."""
        return any(ONE_RUN in each.interval for line in self.lines for each in (*line.e2e, *line.ack))


def blocks(run: Run, comparisons: Sequence[pt.Comparison]) -> list[Block]:
    """Every comparison of the run; the fractions of a curve together."""
    return [
        Block(
            scenario=first.scenario,
            durability=first.durability,
            load=_load(first.shared),
            is_open_loop=_is_open_loop(first),
            lines=tuple(_line(run, point) for each in together for point in each.points),
            ratios=() if _is_curve(first.shared) else tuple(_ratios(first)),
            notes=tuple(_notes(together)),
        )
        for first, together in _gathered(comparisons)
    ]


def _notes(together: Sequence[pt.Comparison]) -> Iterator[str]:
    """What else there is to say of these points."""
    points = [point for each in together for point in each.points]
    yield from _chosen(together)
    yield from phases.notes(points)
    yield from work.notes(points)


def _chosen(together: Sequence[pt.Comparison]) -> list[str]:
    """What was set for each broker that nobody's default is, where it is the same in all of its points."""
    seen: dict[str, set[str]] = {}
    for point in (point for each in together for point in each.points if point.used or point.struck):
        seen.setdefault(pt.driver_name(point.broker, point.driver), set()).add(settings_of(point))
    told = [f"{name}: {next(iter(texts))}" for name, texts in seen.items() if len(texts) == 1 and any(texts)]
    return [f"Set for this load: {'; '.join(told)}"] if told else []


def _gathered(comparisons: Iterable[pt.Comparison]) -> list[tuple[pt.Comparison, list[pt.Comparison]]]:
    """Comparisons by themselves, those of one curve under the first of them."""
    found: list[tuple[pt.Comparison, list[pt.Comparison]]] = []
    for each in comparisons:
        home = next((members for first, members in found if _is_same_curve(first, each)), None)
        if home is None:
            found.append((each, [each]))
        else:
            home.append(each)
    return found


def _is_same_curve(one: pt.Comparison, other: pt.Comparison) -> bool:
    return (
        _is_curve(one.shared)
        and (one.scenario, one.durability) == (other.scenario, other.durability)
        and {**one.shared, "rate": {**one.shared["rate"], "fractions": None}}
        == {**other.shared, "rate": {**other.shared["rate"], "fractions": None}}
    )


def _is_curve(shared: dict[str, Any]) -> bool:
    return bool(shared["rate"].get("kind") == "curve")


def _load(shared: dict[str, Any]) -> str:
    text = pt.load_label(shared)
    if not _is_curve(shared):
        return text
    return text.replace(pt.rate_label(shared["rate"]), "at fractions of each one's own capacity")


def _is_open_loop(comparison: pt.Comparison) -> bool:
    return bool(comparison.shared["rate"].get("kind") != "saturate")


def quantity(found: Estimate, unit: str, bounds: str = "") -> Quantity:
    """A median and its interval; where there is none, `bounds` stands for it, if anything."""
    if not found.n:
        return NOTHING
    is_bounded = bool(bounds) and not found.has_interval
    return Quantity(
        words.shown(found.median, unit), bounds if is_bounded else words.interval(found, unit, is_bare=True)
    )


def one_run(run: Run, records: Sequence[Record], kind: str, percentile: str) -> str:
    """How far chance alone could have moved a single run's tail: `one run: 0.58–0.71`; empty with more repeats."""
    if percentile not in TAILS or len(records) != 1:
        return ""
    histogram = run.histogram(pt.kind_of(records[0], kind), trial=records[0]["id"])
    if not histogram.count:
        return ""
    found = percentile_interval(histogram, TAILS[percentile])
    return f"{ONE_RUN}: {words.span(found.low_ns, found.high_ns, found.value_ns, 'ns', is_bare=True)}"


def _line(run: Run, point: pt.Point) -> Line:
    suffix = "" if point.is_open_loop else "_service"

    def time(kind: str, percentile: str) -> Quantity:
        measure = pt.latency(kind, percentile)
        told = [record for record in point.used if measure(record)]
        return quantity(estimate(map(measure, told)), "ns", one_run(run, told, kind, percentile))

    def times(kind: str) -> tuple[Quantity, ...]:
        return tuple(time(kind + suffix, each) for each in PERCENTILES)

    share = f"{pt.rate_label(point.shared['rate'])}, " if _is_curve(point.shared) else ""
    return Line(
        broker=words.broker_name(point.broker),
        driver=point.driver,
        driver_kind=point.driver_kind,
        own_label=f"{share}{point.own_label}".removesuffix(", "),
        rate=quantity(point.estimate(pt.goodput), "msgs_per_s"),
        e2e=times("e2e"),
        ack=times("ack"),
        cpu=tuple(quantity(point.estimate(pt.cpu_us_per_msg(role)), "us") for role in ROLES),
        repeats=len(point.used),
        verdicts=point.verdicts,
        bound_by=point.bound_by or words.NOTHING,
        trial_ids=tuple(record["id"] for record in (*point.used, *point.struck)),
    )


def _ratios(comparison: pt.Comparison) -> list[tuple[str, str, str]]:
    """(what, ratio with interval, direction) of Kafka over RabbitMQ, for wire and for client drivers."""
    measures: list[tuple[str, Callable[[Record], float | None]]] = [("goodput", pt.goodput)]
    if comparison.shared["rate"].get("kind") == "search":
        measures = []  # capacities are compared in their own section; latencies at different rates are not
    elif _is_open_loop(comparison):
        measures = [("e2e p50", pt.latency("e2e", "p50")), ("e2e p99", pt.latency("e2e", "p99"))]
    measures.append(("broker CPU a message", pt.cpu_us_per_msg("broker")))
    found: list[tuple[str, str, str]] = []
    for driver_kind in ("wire", "client"):
        for what, measure in measures:
            ratio = comparison.ratio(measure, driver_kind)
            if ratio.ratio is not None:
                name = what if driver_kind == "wire" else f"{what}, client drivers"
                found.append((name, words.times(ratio), ratio.direction))
    return found
