"""report.html: one file that needs no network, made from a run's files; report.md and charts/ beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen.analysis import FOUND_KINDS
from loadgen.record import end_to_end, enters
from loadgen.report import (
    ab,
    ab_chart,
    answer,
    capacity,
    capacity_chart,
    charts,
    curve,
    detail,
    fault_chart,
    heat_chart,
    load_chart,
    promises,
    slowest,
    soak,
    soak_chart,
    sweep_chart,
    timeline,
    words,
)
from loadgen.report.content import gather
from loadgen.report.markdown import by_point, render_markdown
from loadgen.report.sheet import anchors_of, environment, save_charts, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadgen.record import Record
    from loadgen.report.content import Content
    from loadgen.report.drawing import Chart
    from loadgen.runs import Run

COUNTS = ("sent", "acked", "received", "lost", "duplicated", "out_of_order", "corrupted")
MARKS = {True: "✓", False: "✗", None: "?"}
CONFIGURATION_CHARS_MAX = 400  # of one value: lists of features run to pages


@dataclass(frozen=True)
class Drawings:
    """The charts by where they stand in the page."""

    load: Sequence[Chart]
    seconds: Sequence[Chart]
    others: Sequence[Chart]
    long: Sequence[Chart] = ()
    faults: Sequence[Chart] = ()
    pairs: Sequence[Chart | None] = ()
    """Of A against B, one a point; None where a point has no pair."""

    @property
    def all(self) -> list[Chart]:
        """Every chart, in the page's order."""
        pairs = [each for each in self.pairs if each]
        return [*pairs, *self.load, *self.others, *self.faults, *self.long, *self.seconds]


def write_report(run: Run, other: Run | None = None) -> dict[str, Path]:
    """Write the page, its Markdown and the charts into the run's folder; `other` has trials with faults to be cited."""
    content = gather(run, other)
    drawn = Drawings(
        load=[*capacity_chart.draw(content.table.capacities), *load_chart.draw(content.table.curves)],
        seconds=[*heat_chart.draw(run, content.table, content.worst), *timeline.draw(run, content.worst)],
        others=[*charts.draw(run, content.table), *sweep_chart.draw(content.table.comparisons)],
        long=soak_chart.draw(content.long),
        faults=fault_chart.draw(content.courses),
        pairs=ab_chart.draw(content.variants.compared, content.variants.effect_ratio) if content.variants else (),
    )
    links = save_charts(run, drawn.all)
    return {
        "html": run.save("report.html", render_html(run, content, drawn)),
        "markdown": run.save("report.md", render_markdown(run, content, links)),
        "charts": run.path / "charts",
    }


def render_html(run: Run, content: Content, drawn: Drawings) -> str:
    """The page's text. Everything from the run is escaped; only our own drawings are markup."""
    anchors = anchors_of(run)
    anchors |= {each["id"]: f"finding-{number}" for number, each in enumerate(content.table.findings, 1)}
    rows = {record["id"]: _trial_row(record, anchors[record["id"]]) for record in run.records}
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            run=run,
            content=content,
            table=content.table,
            machine=answer.machine(run),
            by_point=by_point,
            words=words,
            notes={
                "capacity": capacity.CAPACITY_NOTE,
                "overload": curve.OVERLOAD_NOTE,
                "one_run": detail.ONE_RUN_NOTE,
                "soak": soak.SOAK_NOTE,
                "promises": content.promise_note,
                "cost": promises.COST_NOTE,
                "slowest": slowest.SLOWEST_NOTE,
                "slow_lead": slowest.lead(content.table.tails, content.table.short),
            },
            columns={
                "capacity": capacity.CAPACITY_COLUMNS,
                "curve": curve.CURVE_COLUMNS,
                "soak": soak.SOAK_HEADS,
                "promises": promises.PROMISE_HEADS,
                "cost": promises.COST_HEADS,
            },
            variants=_variants(content, drawn),
            charts={
                name: [shown(chart) for chart in getattr(drawn, name)]
                for name in ("load", "long", "faults", "seconds", "others")
            },
            anchors=anchors,
            links=_links(run, content.table.other, anchors),
            tails=[(tail, slowest.summary(tail)) for tail in content.table.tails],
            trials=[rows[record["id"]] for record in content.table.trials],
            searches=[(each, [rows[record["id"]] for record in each.probes]) for each in content.searches],
            brokers=[_broker(name, broker) for name, broker in run.header["brokers"].items()],
            command=words.command(run.header),
        )
    )


def _links(run: Run, other: Run | None, anchors: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """Where what a figure cites can be read, by run (nothing is this one) and id: in this page, or in the other's."""
    links = {("", name): f"#{anchor}" for name, anchor in anchors.items()}
    if other is not None:
        page = (Path(os.path.relpath(other.path, run.path)) / "report.html").as_posix()
        links |= {(other.id, name): f"{page}#{anchor}" for name, anchor in anchors_of(other).items()}
    return links


def _variants(content: Content, drawn: Drawings) -> dict[str, Any] | None:
    """A against B as the page shows it: each point's block beside its chart."""
    if content.variants is None:
        return None
    figures = [shown(chart) if chart else None for chart in drawn.pairs]
    return {
        "blocks": list(zip(content.variants.blocks, figures, strict=True)),
        "columns": ab.columns(content.variants.effect_ratio),
        "multiplicity": content.variants.multiplicity,
    }


def _trial_row(record: Record, anchor: str) -> dict[str, Any]:
    """A trial as its line shows it."""
    e2e = record["latency_ns"].get(end_to_end(record))
    service = record["latency_ns"].get(end_to_end(record, "_service"))
    is_found = (record["rate"] or {}).get("kind") in FOUND_KINDS and record["offered_msgs_per_s"] is not None
    return {
        "anchor": anchor,
        "record": record,
        "is_struck": not enters(record),
        "latency": e2e or service,
        # A rate that was found is in no name, so it stands beside what came through.
        "offered": record["offered_msgs_per_s"] * record["subscribers"] if is_found else None,
        "is_closed_loop": not e2e and bool(service),
        "counts": [(name.replace("_", " "), record[name]) for name in COUNTS if record[name] is not None],
        "status": record["verdict"]["status"] if record["status"] == "complete" else record["status"],
        "reasons": [*([record["error"]] if record["error"] else []), *record["verdict"]["reasons"]],
        "checks": [(MARKS[check["passed"]], check) for check in record["verdict"].get("checks") or ()],
        "settings": ", ".join(f"{name} {value}" for name, value in record["settings"].items() if value is not None),
    }


def _broker(name: str, broker: Record) -> dict[str, Any]:
    configuration = [
        (key, str(value)[:CONFIGURATION_CHARS_MAX])
        for key, value in sorted((broker.get("configuration") or {}).items())
    ]
    return {
        "name": words.broker_name(name),
        "version": broker.get("version"),
        "source": broker.get("source"),
        "deviations": broker.get("deviations") or [],
        "configuration": configuration,
    }
