"""The figures behind the table's cells: what the trials of a scenario, or the findings of a probe, come to."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from loadgen.report import chosen, words
from loadgen.report import points as pt
from loadgen.report.rules import INTERLEAVED, OUT_OF_ORDER, RECEIVED, Figure
from loadgen.stats.confidence import Estimate, estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.record import Record

LATENCY_SCENARIO, THROUGHPUT_SCENARIO, SCALING_SCENARIO = "latency", "throughput", "scaling"
# What each use is decided by: tasks by how long the slowest hundredth waits and works, calls by how long the usual one
# takes, logs by how many messages they carry.
USES = {
    "task queue": ("use-task-queue", "p99 from enqueued to worker", "ns", pt.latency("e2e", "p99")),
    "RPC": ("use-rpc", "p50 round trip", "ns", pt.latency("e2e", "p50")),
    "event streaming": ("event-stream", "events", "msgs_per_s", pt.goodput),
    "log aggregation": ("use-log-aggregation", "log lines", "msgs_per_s", pt.goodput),
}
STREAM_SCENARIO = "event-stream"
EXACT = ("number", "percent")
THROUGHPUT_CLASSES = ("none", "broker", "flushed")


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
        bound_by=point.latency_bound_by if unit == "ns" else point.bound_by,
        by_repeat={repeat: value for repeat, value in point.by_repeat(measure).items() if value},
        chosen=settings_of(point),
    )


def settings_of(point: pt.Point) -> str:
    """What a point's scenario chose for its broker, beside what its class demands: `prefetch 1`."""
    record = next(iter((*point.used, *point.struck)))
    return ", ".join(chosen.changed(point.broker, point.driver, point.durability, record["settings"]))


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
    """Goodput of the throughput scenario by the wire driver, in each class of one node, and of RabbitMQ's streams."""
    figures = [
        _figure(point, f"class {point.durability}", "msgs_per_s", pt.goodput)
        for point in _wire_points(comparisons, THROUGHPUT_SCENARIO, broker)
        if point.durability in THROUGHPUT_CLASSES and point.fraction is None
    ]
    return figures + [
        _figure(point, "stream", "msgs_per_s", pt.goodput)
        for point in _wire_points(comparisons, STREAM_SCENARIO, broker)
        if point.driver == "stream" and point.fraction is None
    ]


def order_figures(comparisons: Sequence[pt.Comparison], broker: str) -> list[Figure]:
    """Messages received, and those out of order, of all wire trials without faults in which one consumer read alone."""
    records = [
        record
        for comparison in comparisons
        for point in comparison.points
        if point.broker == broker and point.driver_kind == "wire" and point.shared["consumers"] == 1
        for record in point.used
        if record["out_of_order"] is not None and record["received"] and not record["faults"]
    ]
    if not records:
        return []

    def total(what: str, counted: Sequence[Record], key: str = "received") -> Figure:
        count = float(sum(record[key] for record in counted))
        estimate = Estimate((count,), count, None, None)
        ids = tuple(record["id"] for record in counted)
        return Figure(what, "count", "all trials with one consumer", "all", estimate, ids, (), "")

    return [
        total(RECEIVED, records),
        total(OUT_OF_ORDER, records, "out_of_order"),
        total(INTERLEAVED, [record for record in records if _tests_order(record)]),
    ]


def _tests_order(record: Record) -> bool:
    """Whether order could have broken: several producers, and several queues or partitions, at once."""
    settings = record["settings"]
    places = max(settings.get("queues", 1), settings.get("partitions", 1))
    return bool(record["producers"] > 1 and places > 1)


def scaling_figures(comparisons: Sequence[pt.Comparison], broker: str) -> list[Figure]:
    """Goodput of the scaling scenario at each number of queues or partitions."""
    knob = {"rabbitmq": "rabbitmq.queues", "kafka": "kafka.partitions"}[broker]
    found = [
        (point.swept[knob], point)
        for point in _wire_points(comparisons, SCALING_SCENARIO, broker)
        if knob in point.swept and not point.is_open_loop
    ]
    return [
        replace(
            _figure(
                point,
                words.plural(places, knob.partition(".")[2].removesuffix("s")),
                "msgs_per_s",
                pt.goodput,
                "throughput",
            ),
            at=places,
        )
        for places, point in sorted(found, key=lambda each: each[0])
    ]


def use_figures(comparisons: Sequence[pt.Comparison], broker: str) -> list[Figure]:
    """For each use its figure that decides, from the scenario of that use."""
    return [
        _figure(point, what, unit, measure, use)
        for use, (scenario, what, unit, measure) in USES.items()
        for point in _wire_points(comparisons, scenario, broker)
    ]


def finding_figures(findings: Sequence[dict[str, Any]], probe: str, broker: str) -> list[Figure]:
    """What a probe found on one broker: its values over their repeats, and the broker's own word.

    One that contradicts the broker's own word is struck, like an invalid trial, and so is one that could not be had.
    """
    return [_found(each) for each in findings if (each["probe"], each["broker"]) == (probe, broker)]


def _found(finding: dict[str, Any]) -> Figure:
    is_struck = finding["agrees"] is False or not finding["values"]
    ids = (finding["id"],)
    return Figure(
        what=finding["what"],
        unit=finding["unit"],
        point=finding["point"],
        durability="",
        estimate=estimate([]) if is_struck else _estimated(finding["values"], finding["unit"]),
        trial_ids=() if is_struck else ids,
        struck_ids=ids if is_struck else (),
        bound_by="",
        said=finding["error"] or finding["said"],
        is_found=True,
    )


def _estimated(values: Sequence[float], unit: str) -> Estimate:
    """Counts and shares are what they are; of what varies from start to start there is an interval over repeats."""
    if unit in EXACT or len(values) == 1:
        return Estimate(tuple(values), float(median(values)), None, None)
    return estimate(values)
