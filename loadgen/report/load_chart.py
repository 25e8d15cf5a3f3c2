"""Response time against offered rate: the chart that says how much load a broker bears, and what it costs.

Medians over repeats are joined, every repeat is a dot, and overload is hollow. Brokers that are far apart share one
panel with a logarithmic rate, so that their curves lie beside each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from loadgen.report import points as pt
from loadgen.report import words
from loadgen.report.capacity import limits_text, rate_text
from loadgen.report.curve import OVERLOAD_NOTE, grouped
from loadgen.report.drawing import (
    INK,
    MUTED,
    PAPER,
    Chart,
    colour,
    finish,
    log_latency_axis,
    named,
    panels,
    pointable,
    rate_tick,
    styled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    from loadgen.analysis.curve import Curve, CurvePoint, Repeat
    from loadgen.stats.confidence import Estimate

APART = 4.0
"""From here on the smaller of two brokers would have less than a quarter of a linear axis."""
MS = 1e6
LATENCY_LABEL = "response time, ms (log scale)"
MARKS_NOTE = (
    "Dots: each repeat; lines: medians over repeats. Band: capacity with its interval over repeats, or where there is "
    "one search, from the rate that it sustained to the one that was too much. Knee: the largest rate / p50."
)


@dataclass(frozen=True)
class Series:
    """One percentile as it is drawn."""

    name: str
    of_point: Callable[[CurvePoint], Estimate]
    of_repeat: Callable[[Repeat], float | None]
    width: float
    marker: str
    size: float


SERIES = (
    Series("p99", lambda point: point.p99, lambda each: each.p99_ns, 2.0, "o", 20),
    Series("p50", lambda point: point.p50, lambda each: each.p50_ns, 1.1, "s", 13),
)


def draw(curves: Sequence[Curve]) -> list[Chart]:
    """A chart for each group of curves that may be compared; none where nothing was measured."""
    with styled():
        return [_chart(group, number) for number, group in enumerate(grouped(curves), 1)]


def _chart(group: Sequence[Curve], number: int) -> Chart:
    found = _panels(group)
    figure, grid = panels(len(found), min(2, len(found)), (9.2, 4.9) if len(found) == 1 else (11.5, 4.3))
    for axes, panel in zip(grid.flat, found, strict=False):
        draw_panel(axes, panel)
        if len(found) > 1:
            axes.set_title(_panel_title(panel), pad=14 + 12 * len(panel))
    leave_room(grid[0, 0])
    for axes in grid[:, 0]:
        axes.set_ylabel(LATENCY_LABEL)
    return finish(figure, f"curve-{number}", _title(group), _note(group))


def leave_room(axes: Axes) -> None:
    """Room for what stands below the curves."""
    low, high = axes.get_ylim()
    axes.set_ylim(low / 2.5, high)


def _panels(group: Sequence[Curve]) -> list[list[Curve]]:
    """Both brokers in one panel for each kind of driver; each curve in its own where a broker has several."""
    panels: list[list[Curve]] = []
    for kind in dict.fromkeys(curve.driver_kind for curve in group):
        same = [curve for curve in group if curve.driver_kind == kind]
        is_alone = len({curve.broker for curve in same}) == len(same)
        panels += [same] if is_alone else [[curve] for curve in same]
    return panels


def _panel_title(panel: Sequence[Curve]) -> str:
    own = [_named(curve) for curve in panel]
    return own[0] if len(own) == 1 else f"{panel[0].driver_kind} drivers"


def _named(curve: Curve) -> str:
    """`RabbitMQ`, with what tells it from the broker's other curves."""
    label = pt.own_label(curve.broker, curve.point, None)
    driver = f" ({curve.driver})" if curve.driver_kind == "client" else ""
    return f"{words.broker_name(curve.broker)}{driver}{f', {label}' if label else ''}"


# --- one panel ---


def draw_panel(axes: Axes, panel: Sequence[Curve]) -> None:
    """Curves that lie beside each other, with capacity, knee and the tool's own limits."""
    for curve in panel:
        for series in SERIES:
            _draw_series(axes, curve, series)
    log_latency_axis(axes)
    pointable(axes, lambda x: f"{words.rate(x)} offered", lambda y: words.duration(y * MS))
    axes.grid(visible=True, which="major")
    axes.set_axisbelow(True)
    _rate_axis(axes, panel)
    is_apart = axes.get_xscale() == "log"
    for row, curve in enumerate(panel):
        _draw_capacity(axes, curve, 0 if is_apart else row, f"{_named(curve)}: " if len(panel) > 1 else "")
        _draw_knee(axes, curve)
    far = [(curve, text) for curve in panel if (text := _draw_ceilings(axes, curve))]
    for row, (curve, text) in enumerate(far):
        _point_to_ceiling(axes, curve, text, row)
    _legend(axes, panel)


def _draw_series(axes: Axes, curve: Curve, series: Series) -> None:
    ink = colour(curve.broker)
    shown = [point for point in curve.shown if series.of_point(point).n]
    sound = [point for point in shown if not point.is_overload]
    over = [*sound[-1:], *(point for point in shown if point.is_overload)]
    for points, style in ((sound, "-"), (over, (0, (3, 2)))):
        x = [_rate(point) for point in points]
        y = [(series.of_point(point).median or 0) / MS for point in points]
        axes.plot(x, y, color=ink, linewidth=series.width, linestyle=style, zorder=3)
    for point in shown:
        dots = [(each.offered_msgs_per_s, series.of_repeat(each)) for each in point.repeats]
        told = [(rate, value / MS) for rate, value in dots if value]
        drawn = axes.scatter(
            [rate for rate, _ in told],
            [value for _, value in told],
            s=series.size,
            marker=series.marker,
            facecolors=PAPER if point.is_overload else ink,
            edgecolors=ink,
            linewidths=1.0,
            alpha=1.0 if point.is_overload else 0.75,
            zorder=4,
        )
        named(drawn, f"{_named(curve)}, {series.name}{', overload' if point.is_overload else ''}")
    if shown:
        first = shown[0]
        axes.annotate(
            series.name, (_rate(first), max(series.of_point(first).values) / MS),
            xytext=(0, 5), textcoords="offset points", ha="center", fontsize=8.5, color=ink,
        )  # fmt: skip


def _rate(point: CurvePoint) -> float:
    return point.offered_msgs_per_s or 0.0


def _rate_axis(axes: Axes, panel: Sequence[Curve]) -> None:
    """From 0, or logarithmic where the curves lie far apart; wide enough for a ceiling that is near."""
    offered = [_rate(point) for curve in panel for point in curve.shown]
    least = min(max(_rate(point) for point in curve.shown) for curve in panel)
    most = max(offered)
    near = [rate for curve in panel for rate, _ in _ceilings(curve) if rate < 1.6 * most]
    if most / least < APART:
        axes.set_xlim(0, 1.08 * max([most, *near]))
    else:
        axes.set_xscale("log")
        axes.set_xlim(min(offered) / 1.5, 1.35 * max([most, *near]))
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: rate_tick(x)))
    scale = " (log scale)" if axes.get_xscale() == "log" else ""
    axes.set_xlabel(f"offered rate, messages a second{scale}")


def _ceilings(curve: Curve) -> list[tuple[float, str]]:
    """Rates at which the generator's own limits lie, with what each is: as an open loop, and as a closed one."""
    capacity = curve.capacity
    if capacity is None or capacity.ceiling is None:
        return []
    ceiling = capacity.ceiling
    rates = [
        ("the tool alone" if ceiling.paced_msgs_per_s is None else "the tool as a closed loop", ceiling.msgs_per_s)
    ]
    if ceiling.paced_msgs_per_s is not None:
        rates.insert(0, ("the tool alone paces", ceiling.paced_msgs_per_s))
    return [(rate, f"{what} {words.rate(rate)}{_times(rate, capacity.msgs_per_s)}") for what, rate in rates]


def _times(rate: float, capacity: float | None) -> str:
    return f" ({words.significant(rate / capacity)}×)" if capacity else ""


def _draw_capacity(axes: Axes, curve: Curve, row: int, name: str) -> None:
    """A band of the interval, a line at the median, and the figure above the panel, each broker's on its own line."""
    if curve.capacity is None or curve.capacity.msgs_per_s is None:
        return
    ink, rate = colour(curve.broker), curve.capacity.msgs_per_s
    low, high = curve.capacity.limits
    if low is not None and high is not None and np.isfinite(high):
        axes.axvspan(low, high, color=ink, alpha=0.16, linewidth=0, zorder=1)
    axes.axvline(rate, color=ink, linewidth=1.0, alpha=0.7, zorder=2)
    axes.annotate(
        f"{name}capacity {rate_text(curve.capacity)}", (rate, 1.0),
        xycoords=("data", "axes fraction"), xytext=(2, 5 + 12 * row), textcoords="offset points",
        ha="right", fontsize=8.5, color=ink,
    )  # fmt: skip


def _draw_knee(axes: Axes, curve: Curve) -> None:
    point = curve.knee_point
    if point is None or point.p50.median is None:
        return
    at = (_rate(point), point.p50.median / MS)
    axes.scatter(*at, s=120, facecolors="none", edgecolors=INK, linewidths=1.3, zorder=5)
    axes.annotate(
        f"knee {words.rate(at[0])}\n{pt.fraction_label(point.fraction)} of capacity", at,
        xytext=(0, -11), textcoords="offset points", ha="center", va="top", fontsize=8.5, color=INK, zorder=6,
    )  # fmt: skip


def _draw_ceilings(axes: Axes, curve: Curve) -> str:
    """A line where each of the generator's own limits is, if that lies within the panel; those beyond, in words."""
    low, high = axes.get_xlim()
    ink, far = colour(curve.broker), []
    for number, (rate, text) in enumerate(_ceilings(curve)):
        if not low < rate < high:
            far.append(text)
            continue
        axes.axvline(rate, color=ink, linewidth=1.2 if number == 0 else 0.8, linestyle=(0, (1, 1.5)), zorder=2)
        axes.annotate(
            f"{words.broker_name(curve.broker)}: {text}", (rate, 0.97), xycoords=("data", "axes fraction"),
            xytext=(-4, 0), textcoords="offset points", ha="right", va="top", rotation=90, fontsize=8, color=ink,
        )  # fmt: skip
    return ", ".join(far)


def _point_to_ceiling(axes: Axes, curve: Curve, text: str, row: int) -> None:
    """An arrow over the edge, with the number, where the limit is far off."""
    axes.annotate(
        f"{words.broker_name(curve.broker)}: {text} →", (1.0, 0.03 + 0.055 * row), xycoords="axes fraction",
        xytext=(-3, 0), textcoords="offset points", ha="right", va="bottom", fontsize=8, color=colour(curve.broker),
    )  # fmt: skip


def _legend(axes: Axes, panel: Sequence[Curve]) -> None:
    handles = [Line2D([], [], color=colour(curve.broker), linewidth=2.2, label=_named(curve)) for curve in panel]
    handles += [
        Line2D([], [], color=MUTED, linewidth=each.width, marker=each.marker, markersize=4, label=each.name)
        for each in SERIES
    ]
    if any(point.is_overload for curve in panel for point in curve.shown):
        hollow = {"marker": "o", "markersize": 4.5, "markerfacecolor": PAPER, "linestyle": (0, (3, 2))}
        handles.append(Line2D([], [], color=MUTED, label="overload", **hollow))  # type: ignore[arg-type]
    axes.legend(handles=handles, frameon=False, loc="upper left", handlelength=1.8)


# --- in words ---


def _title(group: Sequence[Curve]) -> str:
    knees = [
        f"{_named(curve)}’s knee is at {words.rate(point.offered_msgs_per_s)} "
        f"({pt.fraction_label(point.fraction)} of capacity)"
        for curve in group
        if (point := curve.knee_point) is not None
    ]
    first = group[0]
    what = f"Response time against load ({words.message(first.message)}, class {first.durability})"
    return f"{what}: {', '.join(knees) if knees else 'no knee within the rates that were measured'}"


def _note(group: Sequence[Curve]) -> str:
    said = [MARKS_NOTE]
    if any(point.is_overload for curve in group for point in curve.shown):
        lengths = sorted({curve.window_s for curve in group if curve.window_s})
        trials = f" (here {' or '.join(f'{each:g}' for each in lengths)} s)" if lengths else ""
        said.append(f"Hollow, dashed: overload. {OVERLOAD_NOTE.removesuffix('.')}{trials}.")
    return " ".join([*said, *(_in_words(curve) for curve in group)])


def _in_words(curve: Curve) -> str:
    """A curve as a sentence: its ends, its knee, its capacity, its ceiling."""
    sound = [point for point in curve.shown if not point.is_overload]
    told = {point.fraction: point for point in (*sound[:1], curve.knee_point, *sound[-1:]) if point is not None}
    parts = [_point_words(point, "the knee, " if point is curve.knee_point else "") for point in told.values()]
    for point in curve.shown:
        if point.is_overload:
            is_plain = point.fraction > 1 and not point.carried
            parts.append(_point_words(point, "overload, " if is_plain else f"overload ({point.why}), "))
    text = f"{_named(curve)}, p50 and p99: {'; '.join(parts)}."
    capacity = curve.capacity
    if capacity is None or capacity.msgs_per_s is None:
        return text
    text += f" Capacity {rate_text(capacity)} ({limits_text(capacity)})"
    if capacity.headroom is not None and capacity.ceiling is not None:
        does = "carries" if capacity.ceiling.paced_msgs_per_s is None else "paces"
        text += f"; the tool itself {does} {words.significant(capacity.headroom)}× that here"
    return f"{text}."


def _point_words(point: CurvePoint, what: str) -> str:
    times = f"{words.duration(point.p50.median)} and {words.duration(point.p99.median)}"
    return f"{times} at {what}{pt.fraction_label(point.fraction)} of capacity ({words.rate(point.offered_msgs_per_s)})"
