"""The article's table as data: ten rows of claims, the measurements beside them, and what else a run has to say.

No measured cell is written by hand: each is the median over repeats of the trials that answer its row, with
their interval, number and ids. A row that nothing answers yet says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadgen.analysis import is_measured
from loadgen.analysis.capacity import PointCapacity, capacities
from loadgen.analysis.curve import Curve, curves
from loadgen.record import enters
from loadgen.report import points as pt
from loadgen.report import slowest
from loadgen.report.rules import (
    INTERLEAVED,
    MS,
    NOT_MEASURED,
    CeilingClaim,
    Claim,
    Figure,
    Judgement,
    LatencyClaim,
    OrderClaim,
    ReachClaim,
)
from loadgen.stats.confidence import Estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.analysis.tail import Tail
    from loadgen.record import Record
    from loadgen.runs import Run

BROKERS = ("rabbitmq", "kafka")
LATENCY_SCENARIO, THROUGHPUT_SCENARIO = "latency", "throughput"
THROUGHPUT_CLASSES = ("none", "broker", "flushed")


@dataclass(frozen=True)
class Claimed:
    """A row of the article: its words for each broker, and the rules that stand for those words."""

    feature: str
    rabbitmq: str
    kafka: str
    measure: Callable[[Sequence[pt.Comparison], str], list[Figure]] | None = None
    rules: tuple[Claim, Claim] | None = None


@dataclass(frozen=True)
class Cell:
    """One broker's side of a row."""

    broker: str
    claim: str
    figures: tuple[Figure, ...]
    judgement: Judgement
    reason: str


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    feature: str
    cells: tuple[Cell, ...]

    @property
    def is_measured(self) -> bool:
        """Whether any trial of the run answers it."""
        return any(cell.figures for cell in self.cells)


@dataclass(frozen=True)
class Table:
    """What the run says to the article, its comparisons, capacities and curves, and its slow seconds.

    `trials` are answers of their scenarios; `probes` were capacity searches' ways to one, and are in no figure.
    """

    run_id: str
    rows: tuple[Row, ...]
    comparisons: tuple[pt.Comparison, ...]
    trials: tuple[Record, ...]
    struck: tuple[Record, ...] = field(default=())
    probes: tuple[Record, ...] = field(default=())
    capacities: tuple[PointCapacity, ...] = field(default=())
    curves: tuple[Curve, ...] = field(default=())
    tails: tuple[Tail, ...] = field(default=())
    short: tuple[Record, ...] = field(default=())
    """Trials with response times, but too few seconds to tell slow ones from the others."""


def _figure(
    point: pt.Point, what: str, unit: str, measure: Callable[[Record], float | None], name: str | None = None
) -> Figure:
    return Figure(
        what=what,
        unit=unit,  # type: ignore[arg-type]
        point=name or point.label,
        durability=point.durability,
        estimate=point.estimate(measure),
        trial_ids=tuple(record["id"] for record in point.used),
        struck_ids=tuple(record["id"] for record in point.struck),
        bound_by=point.bound_by,
    )


def _wire_points(comparisons: Sequence[pt.Comparison], scenario: str, broker: str) -> list[pt.Point]:
    return [
        point
        for comparison in comparisons
        if comparison.scenario == scenario
        for point in comparison.points
        if point.broker == broker and point.driver_kind == "wire" and (point.used or point.struck)
    ]


def latency_figures(comparisons: Sequence[pt.Comparison], broker: str) -> list[Figure]:
    """End-to-end response time, p50 and p99, at the latency scenario's fixed rates, by the wire driver."""
    points = _wire_points(comparisons, LATENCY_SCENARIO, broker)
    found = [each for each in points if each.is_open_loop and not each.is_beyond_capacity]
    shown = [(point, percentile) for point in found for percentile in ("p50", "p99")]
    return [_figure(point, percentile, "ns", pt.latency("e2e", percentile)) for point, percentile in shown]


def throughput_figures(comparisons: Sequence[pt.Comparison], broker: str) -> list[Figure]:
    """Goodput of the throughput scenario by the wire driver, in each class of one node."""
    return [
        _figure(point, f"class {point.durability}", "msgs_per_s", pt.goodput)
        for point in _wire_points(comparisons, THROUGHPUT_SCENARIO, broker)
        if point.durability in THROUGHPUT_CLASSES and point.fraction is None
    ]


def order_figures(comparisons: Sequence[pt.Comparison], broker: str) -> list[Figure]:
    """Messages received, and those out of order, of all wire trials in which one consumer read alone."""
    records = [
        record
        for comparison in comparisons
        for point in comparison.points
        if point.broker == broker and point.driver_kind == "wire" and point.shared["consumers"] == 1
        for record in point.used
        if record["out_of_order"] is not None and record["received"]
    ]
    if not records:
        return []

    def total(what: str, counted: Sequence[Record], key: str = "received") -> Figure:
        count = float(sum(record[key] for record in counted))
        estimate = Estimate((count,), count, None, None)
        ids = tuple(record["id"] for record in counted)
        return Figure(what, "count", "all trials with one consumer", "all", estimate, ids, (), "")

    return [
        total("received", records),
        total("out of order", records, "out_of_order"),
        total(INTERLEAVED, [record for record in records if _tests_order(record)]),
    ]


def _tests_order(record: Record) -> bool:
    """Whether order could have broken: several producers, and several queues or partitions, at once."""
    settings = record["settings"]
    places = max(settings.get("queues", 1), settings.get("partitions", 1))
    return bool(record["producers"] > 1 and places > 1)


ARTICLE = (
    Claimed("Protocol", "AMQP, STOMP, MQTT", "Kafka protocol"),
    Claimed("Message ordering", "per queue", "per partition", order_figures, (OrderClaim(), OrderClaim())),
    Claimed("Message retention", "per queue (memory/disk)", "configurable (days/size)"),
    Claimed("Delivery semantics", "at-least-once, at-most-once", "at-least-once, exactly-once"),
    Claimed(
        "Latency",
        "low (< 1 ms)",
        "low (1–5 ms)",
        latency_figures,
        (LatencyClaim(0, MS), LatencyClaim(MS, 5 * MS)),
    ),
    Claimed(
        "Throughput",
        "up to 100K msg/s",
        "up to millions msg/s",
        throughput_figures,
        (CeilingClaim(100e3), ReachClaim(1e6)),
    ),
    Claimed("Message size", "up to 128 MB (default 64 MB)", "up to 10 MB (default 1 MB)"),
    Claimed("Scaling", "queue partitioning", "partition scaling"),
    Claimed("Use case", "task queues, RPC", "event streaming, log aggregation"),
    Claimed("Complexity", "lower", "higher"),
)


def make_table(run: Run) -> Table:
    """Answer the article's rows from a run; files only, never a broker."""
    trials = tuple(record for record in run.trials if is_measured(record))
    comparisons = pt.comparisons(trials, run.header["searches"])
    rows = tuple(
        Row(claimed.feature, tuple(_cell(claimed, comparisons, index) for index in range(len(BROKERS))))
        for claimed in ARTICLE
    )
    tails, short = slowest.tails(run, trials)
    return Table(
        run_id=run.id,
        rows=rows,
        comparisons=tuple(comparisons),
        trials=trials,
        struck=tuple(record for record in trials if not enters(record)),
        probes=tuple(record for record in run.trials if not is_measured(record)),
        capacities=tuple(capacities(run)),
        curves=tuple(curves(run)),
        tails=tuple(tails),
        short=tuple(short),
    )


def _cell(claimed: Claimed, comparisons: Sequence[pt.Comparison], index: int) -> Cell:
    broker, claim = BROKERS[index], (claimed.rabbitmq, claimed.kafka)[index]
    if claimed.measure is None or claimed.rules is None:
        return Cell(broker, claim, (), *NOT_MEASURED)
    figures = claimed.measure(comparisons, broker)
    counted = [figure for figure in figures if figure.estimate.n]
    if not counted:
        reason = "every trial that would answer it is invalid or incomplete" if figures else NOT_MEASURED[1]
        return Cell(broker, claim, tuple(figures), "not measured", reason)
    judgement, reason = claimed.rules[index].judge(counted)
    return Cell(broker, claim, tuple(figures), judgement, reason)
