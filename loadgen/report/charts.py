"""The report's charts: what a performance engineer would print.

Latency and throughput show every repeat, so that nobody has to trust a mean.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from loadgen.histogram import Histogram
from loadgen.report import points as pt
from loadgen.report import words
from loadgen.report.drawing import (
    DASHES,
    MUTED,
    STYLE,
    Chart,
    colour,
    finish,
    head_rows,
    log_latency_axis,
    log_ticks,
    name_rows,
    named,
    panels,
    pointable,
    rate_tick,
    styled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from matplotlib.axes import Axes

    from loadgen.record import Record
    from loadgen.report.table import Table
    from loadgen.runs import Run
    from loadgen.stats.confidence import Estimate

    Measure = Callable[[Record], float | None]

__all__ = ["STYLE", "draw"]  # the method page's charts look like the report's

MS = 1e6
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
CURVE_POINTS = 160
CPU_MARKS = {"producers": ">", "consumers": "<", "broker": "s"}
TITLE_CHARS = 46
SHOWN_FROM = 1.2  # 1 / (1 - p): the fastest sixth of the messages is of no interest


def draw(run: Run, table: Table) -> list[Chart]:
    """Every chart that the run has data for."""
    with styled():
        drawn = [
            _latency_chart(run, table, is_open_loop=True),
            _throughput_chart(table),
            _cpu_chart(table),
            _latency_chart(run, table, is_open_loop=False),
        ]
    return [chart for chart in drawn if chart is not None]


# --- latency by percentile ---


def curve(histogram: Histogram) -> tuple[Any, Any]:
    """1/(1 − p) and the latency in ms there, as far as there are messages behind a percentile."""
    # The last point stands for one message: beyond it a curve would draw what nobody measured.
    ends = max(histogram.count, 2)
    x = np.geomspace(1.0, ends, CURVE_POINTS)
    values = histogram.percentiles([round(100 * (1 - 1 / each), 9) for each in x])
    return x, np.array(values) / MS


def _latency_panels(table: Table, *, is_open_loop: bool) -> list[pt.Comparison]:
    fractions = _panel_fractions(table)
    return [
        comparison
        for comparison in table.comparisons
        if fractions.issuperset(comparison.shared["rate"].get("fractions") or ())
        and any(_is_drawn(point, is_open_loop=is_open_loop) for point in comparison.points)
        and all(len([p for p in comparison.points if p.broker == b and _is_wire(p)]) <= 1 for b in pt.BROKER_ORDER)
    ]


def _panel_fractions(table: Table) -> set[float]:
    """Of a curve, which has its own chart, the points nearest to half of the capacity and to nine tenths of it."""
    points = [point for each in table.comparisons for point in each.points if point.used]
    known = sorted({point.fraction for point in points if point.fraction is not None and point.fraction <= 1})
    return {min(known, key=lambda fraction: abs(fraction - wanted)) for wanted in (0.5, 0.9) if known}


def _is_wire(point: pt.Point) -> bool:
    return point.driver_kind != "client"


def _is_drawn(point: pt.Point, *, is_open_loop: bool) -> bool:
    return _is_wire(point) and bool(point.used) and point.is_open_loop == is_open_loop


def _latency_chart(run: Run, table: Table, *, is_open_loop: bool) -> Chart | None:
    compared = _latency_panels(table, is_open_loop=is_open_loop)
    if not compared:
        return None
    kind = "e2e" if is_open_loop else "e2e_service"
    columns = 3 if len(compared) % 3 == 0 else min(2, len(compared))
    figure, grid = panels(len(compared), columns, ({1: 6.4, 2: 9.2, 3: 11.5}[columns], 3.5))
    drawn = 0
    for axes, comparison in zip(grid.flat, compared, strict=False):
        drawn += _latency_panel(axes, run, comparison, kind)
    if not drawn:
        return None
    fit_latencies([axes for axes in grid.flat if axes.get_visible()])
    what = "response time, from the intended send" if is_open_loop else f"service time: {words.CLOSED_LOOP}"
    for axes in grid[:, 0]:
        axes.set_ylabel(f"end to end, ms\n({what.partition(':')[0].partition(',')[0]})")
    if is_open_loop:
        title = "Latency by percentile"
    else:
        title = f"Time from send to receipt under full load ({words.CLOSED_LOOP})"
        figure.suptitle(words.CLOSED_LOOP, x=0.995, ha="right", fontsize=9, color=MUTED, style="italic")
    note = f"End-to-end {what}, wire drivers. Thin: each repeat; bold: all repeats merged, message by message."
    return finish(figure, "latency" if is_open_loop else "closed-loop", title, note)


def fit_latencies(shared: Sequence[Axes]) -> None:
    """One range for all panels (which share it): from the lowest latency shown to the highest of any line."""
    curves = [line.get_data() for axes in shared for line in axes.get_lines()]
    shown = [np.asarray(y, float)[np.asarray(x, float) >= SHOWN_FROM] for x, y in curves]
    shared[0].set_ylim(min(y.min() for y in shown) * 0.8, max(y.max() for y in shown) * 1.15)


def _latency_panel(axes: Axes, run: Run, comparison: pt.Comparison, kind: str) -> int:
    load = textwrap.fill(pt.load_label(comparison.shared), TITLE_CHARS)
    axes.set_title(f"{comparison.scenario}, class {comparison.durability}\n{load}", fontsize=9)
    points = [point for point in comparison.points if _is_wire(point) and point.used]
    return draw_latencies(axes, run, points, kind, lambda point: pt.driver_name(point.broker, point.driver))


def draw_latencies(
    axes: Axes, run: Run, points: Iterable[pt.Point], kind: str, label: Callable[[pt.Point], str]
) -> int:
    """Each point's repeats, thin, and all of them merged, bold; the value is how many points have that latency."""
    drawn, seen = 0, dict[str, int]()
    for point in points:
        merged = Histogram()
        for record in point.used:
            histogram = run.histogram(pt.kind_of(record, kind), trial=record["id"])
            if histogram.count:
                axes.plot(*curve(histogram), color=colour(point.broker), linewidth=0.7, alpha=0.45)
                merged.merge(histogram)
        if merged.count:
            seen[point.broker] = place = seen.get(point.broker, -1) + 1
            style = DASHES[place % len(DASHES)]
            axes.plot(*curve(merged), color=colour(point.broker), linewidth=2.2, linestyle=style, label=label(point))
            drawn += 1
    percentile_axis(axes)
    if drawn:
        axes.legend(frameon=False, loc="lower right", handlelength=1.4)
    return drawn


def percentile_axis(axes: Axes) -> None:
    """Latency over percentiles as far as there are messages behind them, spread so that each nine has as much room."""
    longest = max([10.0, *(float(np.max(line.get_xdata())) for line in axes.get_lines())])
    axes.set_xscale("log")
    log_latency_axis(axes)
    shown = [p for p in PERCENTILES if 1 / (1 - p / 100) <= longest * 1.001]
    axes.xaxis.set_major_locator(FixedLocator([1 / (1 - p / 100) for p in shown]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _percent(x)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(SHOWN_FROM, longest)
    axes.set_xlabel("percentile of messages, %")
    axes.grid(visible=True, which="major")
    axes.tick_params(labelleft=True)
    pointable(axes, lambda x: f"{_percent(x)} % of messages", lambda y: words.duration(y * MS))


def _percent(x: float) -> str:
    """The percentile at a place 1/(1 − p) of the axis: `99.9`."""
    return f"{round(100 * (1 - 1 / x), 4):g}"


# --- one line a point: throughput and CPU ---


def _saturated(table: Table) -> list[pt.Point]:
    """The throughput scenario's points and the client drivers' beside them; else all closed loops'."""
    closed = [point for comparison in table.comparisons for point in comparison.points if not point.is_open_loop]
    closed = [point for point in closed if point.used]
    asked = [point for point in closed if point.scenario in {"throughput", "clients"}]
    return sorted(asked or closed, key=lambda point: _line_order(point, bool(asked)))


def _line_order(point: pt.Point, is_by_class: bool) -> tuple[Any, ...]:
    group = (pt.class_rank(point.durability), point.driver_kind == "client") if is_by_class else ()
    return (*group, point.scenario if not is_by_class else "")


def line_label(point: pt.Point) -> str:
    """`Kafka (kafka) linger_ms 5`."""
    return f"{words.broker_name(point.broker)} ({point.driver}) {point.own_label}".rstrip()


def _lines(axes: Axes, points: Sequence[pt.Point], label: Callable[[pt.Point], str] = line_label) -> list[float]:
    """Label the y axis with the points, grouped by class and kind of driver; return each one's height."""
    heights: list[float] = []
    height, group = 0.0, None
    for point in points:
        current = (point.scenario, point.durability, point.driver_kind)
        if current != group:
            height += 0.35 if group else 0.0
            kind = f"{point.driver_kind} drivers"
            kind = kind if point.scenario in {"throughput", "clients"} else f"{point.scenario}, {kind}"
            head_rows(axes, height, f"class {point.durability} · {kind}")
            height, group = height + 0.8, current
        heights.append(height)
        height += 1.0
    name_rows(axes, heights, [label(point) for point in points], height - 0.35)
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)
    return heights


def _throughput_chart(table: Table) -> Chart | None:
    points = [point for point in _saturated(table) if point.estimate(pt.goodput).n]
    if not points:
        return None
    figure = Figure(figsize=repeats_size(points), layout="constrained")
    axes = figure.subplots()
    draw_repeats(axes, points, pt.goodput, words.rate)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: rate_tick(x)))
    axes.set_xlabel("goodput, messages a second (log scale)")
    note = (
        "Dots: each repeat; band: 95 % interval over repeats; tick: median. "
        "Filled: wire drivers, what the broker can do; hollow: client libraries, what an application gets. "
        "Compare within one class only."
    )
    return finish(figure, "throughput", "Throughput at equal guarantees", note)


def repeats_size(points: Sequence[pt.Point]) -> tuple[float, float]:
    """Width and height in inches of a drawing with a line for each of these points."""
    return 9.2, 1.15 + 0.3 * len(points) + 0.33 * _groups(points)


def draw_repeats(
    axes: Axes,
    points: Sequence[pt.Point],
    measure: Measure,
    text: Callable[[float], str],
    label: Callable[[pt.Point], str] = line_label,
) -> None:
    """A line for each point: every repeat, their median and its interval, on a logarithmic axis of one quantity."""
    axes.set_xlim(_limits(points, measure))  # by hand: values that are all alike have no range of their own
    axes.set_xscale("log")
    log_ticks(axes)
    pointable(axes, text)
    for point, height in zip(points, _lines(axes, points, label), strict=True):
        estimate, ink = point.estimate(measure), colour(point.broker)
        if (band := _band(estimate)) is not None:
            axes.plot(
                band,
                [height] * 2,
                color=ink,
                linewidth=7,
                alpha=0.28,
                solid_capstyle="butt",
            )
        face = "none" if point.driver_kind == "client" else ink
        dots = axes.scatter(
            estimate.values,
            [height] * estimate.n,
            s=20,
            facecolors=face,
            edgecolors=ink,
            linewidths=1.1,
            zorder=3,
        )
        named(dots, f"{label(point)}, a repeat")
        assert estimate.median is not None
        axes.plot([estimate.median] * 2, [height - 0.3, height + 0.3], color=ink, linewidth=1.6)
        end = max(*estimate.values, *(band or ()), estimate.median)
        caveat = f"  ({point.bound_by}-bound)" if pt.has_others_limit(point.bound_by) else ""
        axes.annotate(
            text(estimate.median) + caveat, (end, height), xytext=(7, 0), textcoords="offset points",
            va="center", fontsize=8.5,
        )  # fmt: skip


def _band(estimate: Estimate) -> tuple[float, float] | None:
    """The interval, where it says something."""
    low, high = estimate.low, estimate.high
    return None if low is None or high is None or words.is_too_wide(low, high) else (low, high)


def _limits(points: Sequence[pt.Point], measure: Measure) -> tuple[float, float]:
    """Room for all repeats and intervals of points on a logarithmic axis, and for the figures beside them."""
    found = [point.estimate(measure) for point in points]
    ends = [end for each in found for end in (*each.values, *(_band(each) or ())) if end]
    low, high = min(ends), max(ends)
    margin = (high / low) ** 0.05
    return low / margin * 0.8, high * margin * 5


def _groups(points: Sequence[pt.Point]) -> int:
    return len({(point.scenario, point.durability, point.driver_kind) for point in points})


def _cpu_chart(table: Table) -> Chart | None:
    points = [
        point for point in _saturated(table)
        if any(point.estimate(pt.cpu_us_per_msg(role)).n for role in CPU_MARKS)
    ]  # fmt: skip
    if not points:
        return None
    figure = Figure(figsize=(9.2, 1.3 + 0.3 * len(points) + 0.33 * _groups(points)), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")  # the brokers differ by a hundred, and a part of a bar could not be read on such an axis
    seen: list[float] = []
    for point, height in zip(points, _lines(axes, points), strict=True):
        medians = {role: point.estimate(pt.cpu_us_per_msg(role)).median for role in CPU_MARKS}
        known = {role: median for role, median in medians.items() if median is not None}
        for role, median in known.items():
            dot = axes.scatter(
                median, height, s=34, marker=CPU_MARKS[role], color=colour(point.broker), linewidths=0, zorder=3
            )
            named(dot, f"{line_label(point)}, {role}")
        axes.plot([min(known.values()), max(known.values())], [height] * 2, color=colour(point.broker), alpha=0.3)
        missing = [role for role in CPU_MARKS if role not in known]
        text = f"{words.micros(sum(known.values()))} in all" + (f" (without {', '.join(missing)})" if missing else "")
        axes.annotate(
            text, (max(known.values()), height), xytext=(9, 0), textcoords="offset points", va="center", fontsize=8.5
        )
        seen += known.values()
    for role, mark in CPU_MARKS.items():
        axes.scatter([], [], s=34, marker=mark, color=MUTED, linewidths=0, label=role)
    axes.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2)
    axes.set_xlim(min(seen) * 0.7, max(seen) * (max(seen) / min(seen)) ** 0.25 * 1.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    pointable(axes, words.micros)
    axes.set_xlabel("CPU time a message, µs (log scale)")
    note = "Medians over repeats at full load."
    return finish(figure, "cpu", "CPU a message", note)
