"""The report's drawings on axes of one's own: each takes matplotlib axes, or makes some, and returns them.

    from loadgen import load_run, plots

    run = load_run("results/latest")
    plots.percentiles(run, "e2e", offered_msgs_per_s=5_000).set_title("what users wait for")

Colours, scales and marks are the report's, so that a chart says the same in both. `where` names columns of
`Run.trials`, as everywhere; trials that are struck out are in no drawing. What cannot be drawn is one line that says
what there is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

from loadgen.analysis.capacity import capacities
from loadgen.analysis.curve import curves
from loadgen.analysis.density import density
from loadgen.analysis.history import histories
from loadgen.analysis.tail import explain
from loadgen.errors import ScenarioError
from loadgen.record import RESPONSE_KINDS, end_to_end, number_of
from loadgen.report import capacity_chart, charts, heat_chart, load_chart, slowest, sweep_chart, words
from loadgen.report import curve as curve_report
from loadgen.report import points as pt
from loadgen.report import timeline as timeline_chart
from loadgen.report.drawing import DASHES, OTHER_COLOUR, colour, log_latency_axis, rate_tick, styled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    from loadgen.analysis.history import History
    from loadgen.histogram import Histogram
    from loadgen.record import Record
    from loadgen.run import Run

__all__ = ["capacity", "compare", "curve", "heat_map", "histogram", "history", "percentiles", "sweep", "timeline"]
SIZE = (7.2, 4.2)
# Now, since a backend sets itself up when it is first used: within a style, Jupyter's would be undone where that ends.
plt.switch_backend(mpl.get_backend())


def _axes(ax: Axes | None, size: tuple[float, float] = SIZE) -> Axes:
    """The axes given, or new ones in the report's style; called while that style holds."""
    return ax if ax is not None else plt.subplots(figsize=size, layout="constrained")[1]


def histogram(found: Histogram, label: str = "", *, ax: Axes | None = None, **line: Any) -> Axes:
    """One histogram's latency by percentile, in ms; `line` is what `Axes.plot` takes (`color`, `linestyle`, …).

    The horizontal axis is logarithmic in 1/(1 − p), so that each nine has as much room; it ends where one message is
    left behind a percentile. Call it again with the same axes to lay another curve beside it.
    """
    if not found.count:
        raise ScenarioError("an empty histogram has no curve")
    with styled():
        axes = _axes(ax)
        style: dict[str, Any] = {"color": OTHER_COLOUR, "linewidth": 2.2, "label": label or None, **line}
        axes.plot(*charts.curve(found), **style)
        charts.percentile_axis(axes)
        axes.set_ylabel("ms (log scale)")
        charts.fit_latencies([axes])
        if label:
            axes.legend(frameon=False, loc="upper left", handlelength=1.8)
    return axes


def percentiles(run: Run, kind: str = "e2e", *, ax: Axes | None = None, **where: Any) -> Axes:
    """Latency by percentile of every point that fits: its repeats, thin, and all of them merged, bold."""
    points = _points(run, run.having(kind, run.select(**where)))
    with styled():
        axes = _axes(ax)
        charts.draw_latencies(axes, run, points, kind, _naming(points))
        axes.set_ylabel(f"{kind}, ms (log scale)")
        charts.fit_latencies([axes])
    return axes


def timeline(run: Run, trial: str | None = None, kind: str | None = None, *, ax: Axes | None = None) -> Axes:
    """A trial second by second: p50, p99 and the largest latency, with the names of what explains its slowest ones.

    Args:
        run: whose trial it is.
        trial: its id; by default the one whose slowest second stands out most, else the first with response times.
        kind: which latency; by default response times, end to end before confirmation.
        ax: where to draw.
    """
    if trial is None:
        trial = _worst(run)
    told = explain(run, trial, kind)
    if told is None or not told.seconds:
        run.having(kind or "e2e", [run.trial(trial)])
        raise ScenarioError(f"{trial}: no second of its window has such latencies")
    with styled():
        axes = _axes(ax, (9.2, 3.0))
        timeline_chart.draw_seconds(axes, run.trial(trial), told)
        axes.set_xlabel("second of the window")
    return axes


def heat_map(run: Run, trial: str | None = None, kind: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Where a trial's messages lie, second by second: the stronger, the more. Arguments as of `timeline`."""
    record = run.trial(trial or _worst(run))
    kind = kind or end_to_end(record)
    run.having(kind, [record])
    found = density(run, record, kind)
    if found is None:
        raise ScenarioError(f"{record['id']}: no second of its window has such latencies")
    with styled():
        axes = _axes(ax, (9.2, 3.0))
        heat_chart.draw_density(axes, record, found)
        axes.set_xlabel("second of the window")
    return axes


def _worst(run: Run) -> str:
    """The trial that a report would show first."""
    records = [
        record
        for record in run.select()
        if any((record["latency_ns"].get(kind) or {}).get("count") for kind in RESPONSE_KINDS)
    ]
    if not records:
        raise ScenarioError(f"{run.id}: no usable trial with response times, as closed loops have none; name a kind")
    tails, _ = slowest.tails(run, records)
    worst = [*slowest.worst(run, tails), *tails]
    return worst[0].trial_id if worst else str(records[0]["id"])


def curve(run: Run, *, ax: Axes | None = None, **where: Any) -> Axes:
    """Response time against offered rate: p50 and p99, with capacity, knee and the tool's own limit."""
    ids = _ids(run, where)
    found = [
        each
        for each in curves(run)
        if each.shown and (ids is None or ids & {one.trial_id for point in each.points for one in point.repeats})
    ]
    if not found:
        raise ScenarioError(f"{run.id}: no latency-rate curve fits; `loadgen run scenarios/capacity.py` measures one")
    groups = curve_report.grouped(found)
    if len(groups) > 1:
        named = "; ".join(f"{each[0].scenario}, class {each[0].durability}" for each in groups)
        raise ScenarioError(f"{run.id}: {len(groups)} curves that may not be compared ({named}): name one of them")
    with styled():
        axes = _axes(ax, (9.2, 4.9))
        load_chart.draw_panel(axes, groups[0])
        load_chart.leave_room(axes)
        axes.set_ylabel(load_chart.LATENCY_LABEL)
    return axes


def capacity(run: Run, *, ax: Axes | None = None) -> Axes:
    """Every capacity of a run with its limits, and how far off the load generator's own limit lies."""
    groups = capacity_chart.found_groups(capacities(run))
    if not groups:
        raise ScenarioError(f"{run.id}: no capacity was found; `loadgen run … --set rate=search` looks for one")
    with styled():
        axes = _axes(ax, capacity_chart.size(groups))
        capacity_chart.draw_capacities(axes, groups)
    return axes


def sweep(run: Run, knob: str | None = None, *, ax: Axes | None = None, **where: Any) -> Axes:
    """Throughput of closed loops along a knob with three values or more, both axes logarithmic."""
    found = sweep_chart.sweeps(pt.comparisons(run.select(**where)))
    fitting = [each for each in found if knob is None or each.knob == knob]
    if len(fitting) != 1:
        there = ", ".join(f"{each.knob} of {each.scenario}" for each in found) or "none"
        asked = f"{knob!r}: no sweep" if knob and not fitting else f"{len(fitting)} sweeps"
        raise ScenarioError(f"{run.id}: {asked} of three values or more in closed loops fits; there are {there}")
    with styled():
        axes = _axes(ax)
        sweep_chart.draw_sweep(axes, fitting[0])
        axes.legend(frameon=False, handlelength=2.2)
    return axes


def compare(run: Run, measure: str = "goodput_msgs_per_s", *, ax: Axes | None = None, **where: Any) -> Axes:
    """A line for each point: every repeat, their median and its interval, of any column of `Run.trials`."""

    def value(record: Record) -> float | None:
        return number_of(record, measure)

    every = _points(run, run.select(**where))
    points = [point for point in every if point.estimate(value).n]
    if not points:
        raise ScenarioError(f"{run.id}: {measure}: no usable trial has it above 0; see run.trials.columns")
    text = _text_of(measure)
    with styled():
        axes = _axes(ax, charts.repeats_size(points))
        charts.draw_repeats(axes, points, value, text, _naming(points))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(measure, x)))
        axes.set_xlabel(f"{measure} (log scale)")
    return axes


def history(runs: Sequence[Run], measure: str = "e2e_p99_ns", *, ax: Axes | None = None, **where: Any) -> Axes:
    """Points over runs: each run's repeats, their median and its interval, by the time the run began.

    What was set otherwise than in the run before is named at its first point; `loadgen.analysis.history` has it all.
    """
    found = histories(runs, measure, **where)
    with styled(), mpl.rc_context({"date.converter": "concise"}):
        axes = _axes(ax, (9.2, 4.2))
        axes.set_yscale("log")
        seen: dict[str, int] = {}
        for each in found:
            seen[each.broker] = place = seen.get(each.broker, -1) + 1
            _draw_history(axes, each, DASHES[place % len(DASHES)])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _tick(measure, y)))
        if measure.endswith("_ns"):
            log_latency_axis(axes)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _tick(measure, y)))
        axes.margins(x=0.08)
        axes.set_ylabel(f"{measure} (log scale)")
        axes.grid(visible=True, which="major")
        axes.legend(frameon=False, fontsize=8)
    return axes


def _draw_history(axes: Axes, each: History, style: Any) -> None:
    ink = colour(each.broker)
    when = np.array([moment.created_utc.removesuffix("Z") for moment in each.moments], "datetime64[ms]")
    medians = [moment.estimate.median or float("nan") for moment in each.moments]
    axes.plot(when, medians, color=ink, linewidth=1.8, linestyle=style, label=each.point, zorder=3)
    for x, moment in zip(when, each.moments, strict=True):
        found = moment.estimate
        axes.scatter([x] * found.n, found.values, s=16, color=ink, alpha=0.75, zorder=4)
        if found.low is not None and found.high is not None and not words.is_too_wide(found.low, found.high):
            axes.plot([x] * 2, [found.low, found.high], color=ink, linewidth=7, alpha=0.28, solid_capstyle="butt")
        if moment.changed:
            axes.annotate(
                moment.changed[0] + (f" (+{len(moment.changed) - 1})" if len(moment.changed) > 1 else ""),
                (x, max(found.values)), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8, color=ink,
            )  # fmt: skip


def _points(run: Run, records: Sequence[Record]) -> list[pt.Point]:
    """These trials as the report's points; those that are struck out stay out."""
    found = [point for each in pt.comparisons(records, run.header["searches"]) for point in each.points]
    return [replace(point, struck=()) for point in found if point.used]


def _naming(points: Sequence[pt.Point]) -> Callable[[pt.Point], str]:
    """How to name points beside each other: the broker, and what tells it from the others."""

    def named(*more: Callable[[pt.Point], str]) -> Callable[[pt.Point], str]:
        return lambda point: ", ".join([charts.line_label(point), *(each(point) for each in more)])

    def rate(point: pt.Point) -> str:
        return pt.rate_label(point.shared["rate"])

    def load(point: pt.Point) -> str:
        return pt.load_label(point.shared)

    def origin(point: pt.Point) -> str:
        return f"{point.scenario}, class {point.durability}"

    tried: list[Callable[[pt.Point], str]] = [
        lambda point: words.broker_name(point.broker), named(), named(rate), named(load), named(load, origin)
    ]  # fmt: skip
    return next((each for each in tried if len({each(point) for point in points}) == len(points)), tried[-1])


def _ids(run: Run, where: dict[str, Any]) -> set[str] | None:
    """The trials that fit, overload among them: it is shown in a curve although its trials are invalid."""
    return {record["id"] for record in run.select(struck=True, **where)} if where else None


def _text_of(measure: str) -> Callable[[float], str]:
    return lambda value: words.shown(value, words.unit_of(measure))


def _tick(measure: str, value: float) -> str:
    unit = words.unit_of(measure)
    return rate_tick(value) if unit in {"msgs_per_s", "number"} else words.shown(value, unit)
