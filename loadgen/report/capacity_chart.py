"""Capacities side by side, each search a dot, with how far off the load generator's own limits lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from loadgen.report import points as pt
from loadgen.report import words
from loadgen.report.capacity import found_producers, grouped, limits_text, load_text, rate_text
from loadgen.report.drawing import (
    MUTED,
    PAPER,
    Chart,
    colour,
    finish,
    head_rows,
    log_ticks,
    name_rows,
    named,
    pointable,
    rate_tick,
    styled,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from loadgen.analysis.capacity import PointCapacity

ROW_INCHES, GROUP_INCHES = 0.34, 0.3
GROUP_ROWS = 0.8
PACED, CLOSED = ">", "|"
NOTE = (
    "Dots: each search; tick: median; band: interval over repeats, or where there is one search, from the rate that it "
    "sustained to the one that was too much. Triangle: the highest rate that the tool itself was seen to pace without "
    "a broker; bar: what it carries as a closed loop. Hollow: at least so much, as the broker's limit was not reached."
)


def draw(found: Sequence[PointCapacity]) -> list[Chart]:
    """One chart of all capacities of a run; none where none was found."""
    groups = found_groups(found)
    if not groups:
        return []
    with styled():
        return [_chart(groups)]


def found_groups(found: Sequence[PointCapacity]) -> list[list[PointCapacity]]:
    """Capacities of which at least one search has an answer, those that may be compared together."""
    groups = [[each for each in group if each.used] for group in grouped(found)]
    return [group for group in groups if group]


def _chart(groups: Sequence[Sequence[PointCapacity]]) -> Chart:
    points = [each for group in groups for each in group]
    figure = Figure(figsize=size(groups), layout="constrained")
    draw_capacities(figure.subplots(), groups)
    said = " ".join(_in_words(point) for point in points)
    return finish(figure, "capacity", "Capacity, and how far off the tool’s own limit is", f"{NOTE} {said}")


def size(groups: Sequence[Sequence[PointCapacity]]) -> tuple[float, float]:
    """Width and height in inches of a drawing of these."""
    return 9.2, 1.35 + ROW_INCHES * sum(map(len, groups)) + GROUP_INCHES * len(groups)


def draw_capacities(axes: Axes, groups: Sequence[Sequence[PointCapacity]]) -> None:
    """A line for each capacity that was found, those that may be compared together."""
    points = [each for group in groups for each in group]
    axes.set_xlim(_limits(points))  # by hand: capacities that are all alike have no range of their own
    axes.set_xscale("log")
    log_ticks(axes)
    pointable(axes, words.rate)
    for point, row in zip(points, _rows(axes, groups), strict=True):
        _draw_point(axes, point, row)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: rate_tick(x)))
    axes.set_xlabel("offered rate that was sustained, messages a second (log scale)")
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)
    _legend(axes, points)


def _limits(points: Sequence[PointCapacity]) -> tuple[float, float]:
    ends = [end for point in points for end in (*point.estimate.values, *point.limits) if end]
    ends += [
        end for point in points if point.ceiling for end in (point.ceiling.msgs_per_s, point.ceiling.held_msgs_per_s)
    ]
    return min(ends) / 1.5, max(ends) * 1.5


def _rows(axes: Axes, groups: Sequence[Sequence[PointCapacity]]) -> list[float]:
    """Label the y axis with the points, below what those of a group have in common; the value is each one's height."""
    rows: list[float] = []
    height = 0.0
    for group in groups:
        first = group[0]
        what = f"{first.scenario}, class {first.durability}: {load_text(first, first.p99_ms)}"
        head_rows(axes, height, what)
        rows += [height + GROUP_ROWS + number for number in range(len(group))]
        height = rows[-1] + 1.2
    name_rows(axes, rows, [_name(each) for group in groups for each in group], height - 0.5)
    return rows


def _name(point: PointCapacity) -> str:
    label = pt.own_label(point.broker, point.point, found_producers(point))
    return f"{words.broker_name(point.broker)} ({point.driver}) {label}".rstrip()


def _draw_point(axes: Axes, point: PointCapacity, row: float) -> None:
    ink, (low, high) = colour(point.broker), point.limits
    assert point.msgs_per_s is not None
    if low is not None and high is not None:
        axes.plot([low, high], [row] * 2, color=ink, linewidth=7, alpha=0.28, solid_capstyle="butt", zorder=2)
    face = PAPER if point.is_lower_bound else ink
    values = point.estimate.values
    dots = axes.scatter(values, [row] * len(values), s=20, facecolors=face, edgecolors=ink, linewidths=1.1, zorder=4)
    named(dots, f"{_name(point)}, a search")
    axes.plot([point.msgs_per_s] * 2, [row - 0.3, row + 0.3], color=ink, linewidth=1.6, zorder=3)
    axes.annotate(
        rate_text(point), (point.msgs_per_s, row - 0.22), xytext=(0, 3), textcoords="offset points", ha="center",
        va="bottom", fontsize=8.5,
    )  # fmt: skip
    if point.ceiling is None:
        return
    held = point.ceiling.held_msgs_per_s
    axes.plot([point.msgs_per_s, held], [row] * 2, color=ink, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    limits = [(point.ceiling.msgs_per_s, CLOSED, 11, "closed")]
    limits += [(held, PACED, 6, "open")] * (point.ceiling.paced_msgs_per_s is not None)
    for rate, mark, size_pt, kind in limits:
        (drawn,) = axes.plot(rate, row, color=ink, marker=mark, markersize=size_pt, linestyle="none", zorder=3)
        named(drawn, f"{_name(point)}, the tool as {'an' if kind == 'open' else 'a'} {kind} loop")
    axes.annotate(
        f"{words.significant(held / point.msgs_per_s)}×", (held, row - 0.22), xytext=(0, 3),
        textcoords="offset points", ha="center", va="bottom", fontsize=8.5, color=MUTED,
    )  # fmt: skip


def _legend(axes: Axes, points: Sequence[PointCapacity]) -> None:
    known = [point.ceiling for point in points if point.ceiling]
    marks = [(CLOSED, "the tool as a closed loop")] * bool(known)
    marks += [(PACED, "the tool as an open loop")] * any(each.paced_msgs_per_s is not None for each in known)
    handles = [Line2D([], [], color=MUTED, marker="o", markersize=4.5, linestyle="none", label="capacity")]
    handles += [
        Line2D([], [], color=MUTED, marker=mark, markersize=8, linestyle="none", label=text) for mark, text in marks
    ]
    axes.legend(handles=handles, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), handlelength=1.0)


def _in_words(point: PointCapacity) -> str:
    text = f"{_name(point)}: {rate_text(point)}"
    if limits := limits_text(point):
        text += f" ({limits})"
    ceiling = point.ceiling
    if ceiling is None:
        return f"{text}."
    if ceiling.paced_msgs_per_s is not None:
        text += f"; the tool alone paces {words.rate(ceiling.paced_msgs_per_s)}"
    return f"{text}; as a closed loop the tool carries {words.rate(ceiling.msgs_per_s)}."
