"""The detailed comparison: one line a point, with every figure's interval, as data for all three formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.report import points as pt
from loadgen.report import words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.stats.confidence import Estimate
    from loadgen.record import Record

PERCENTILES = ("p50", "p99", "p99_9")
ROLES = ("producers", "consumers", "broker")


@dataclass(frozen=True)
class Quantity:
    """A figure as it is shown: the median, and the interval beside it."""

    text: str
    interval: str


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


def blocks(comparisons: Sequence[pt.Comparison]) -> list[Block]:
    """Every comparison of the run."""
    return [
        Block(
            scenario=each.scenario,
            durability=each.durability,
            load=pt.load_label(each.shared),
            is_open_loop=_is_open_loop(each),
            lines=tuple(_line(point) for point in each.points),
            ratios=tuple(_ratios(each)),
        )
        for each in comparisons
    ]


def _is_open_loop(comparison: pt.Comparison) -> bool:
    return bool(comparison.shared["rate"].get("kind") != "saturate")


def _quantity(estimate: Estimate, unit: str) -> Quantity:
    if not estimate.n:
        return Quantity(words.NOTHING, "")
    return Quantity(words.shown(estimate.median, unit), words.interval(estimate, unit, is_bare=True))


def _line(point: pt.Point) -> Line:
    suffix = "" if point.is_open_loop else "_service"

    def times(kind: str) -> tuple[Quantity, ...]:
        return tuple(_quantity(point.estimate(pt.latency(kind + suffix, each)), "ns") for each in PERCENTILES)

    return Line(
        broker=words.broker_name(point.broker),
        driver=point.driver,
        driver_kind=point.driver_kind,
        own_label=point.own_label,
        rate=_quantity(point.estimate(pt.goodput), "msgs_per_s"),
        e2e=times("e2e"),
        ack=times("ack"),
        cpu=tuple(_quantity(point.estimate(pt.cpu_us_per_msg(role)), "us") for role in ROLES),
        repeats=len(point.used),
        verdicts=point.verdicts,
        bound_by=point.bound_by or words.NOTHING,
        trial_ids=tuple(record["id"] for record in (*point.used, *point.struck)),
    )


def _ratios(comparison: pt.Comparison) -> list[tuple[str, str, str]]:
    """(what, ratio with interval, direction) of Kafka over RabbitMQ, for wire and for client drivers."""
    measures: list[tuple[str, Callable[[Record], float | None]]] = [("goodput", pt.goodput)]
    if _is_open_loop(comparison):
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
