"""Heat map of latency over time: where each second's messages lie, both brokers on the same axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from loadgen.analysis.density import density
from loadgen.checks import milliseconds
from loadgen.record import end_to_end
from loadgen.report import points as pt
from loadgen.report import words
from loadgen.report.drawing import (
    MUTED,
    Chart,
    Margins,
    colour,
    finish,
    log_latency_axis,
    named,
    pointable,
    stacked,
    styled,
)
from loadgen.report.slowest import excess, is_long_enough

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from loadgen.analysis.density import Density
    from loadgen.analysis.tail import Tail
    from loadgen.record import Record
    from loadgen.report.table import Table
    from loadgen.runs import Run

MS = 1e6
PANEL_INCHES, WIDTH_INCHES = 1.9, 8.25
MARGINS = Margins(top=0.75)  # the legend's two lines, and the first panel's title
LEVELS = (
    (0.0, 0.12, "under 0.1 %"),
    (0.001, 0.26, "0.1 to 1 %"),
    (0.01, 0.45, "1 to 3 %"),
    (0.03, 0.68, "3 to 10 %"),
    (0.1, 1.0, "over 10 %"),
)
"""A cell's shade by the least share of its second's messages: single ones are faint, and there."""


def draw(run: Run, table: Table, worst: Sequence[Tail]) -> list[Chart]:
    """A panel a broker, of one repeat at one load; no drawing where no trial has seconds enough."""
    shown = [
        (record, found)
        for record in _records(run, table, worst)
        if (found := density(run, record, end_to_end(record))) is not None
    ]
    if not shown:
        return []
    with styled():
        figure, grid = stacked(WIDTH_INCHES, [PANEL_INCHES] * len(shown), [0.38] * (len(shown) - 1), margins=MARGINS)
        for axes, (record, found) in zip(grid[:, 0], shown, strict=True):
            draw_density(axes, record, found)
            axes.set_title(f"{words.broker_name(record['broker'])}: {record['id']}", fontsize=8.5, pad=4)
        _share_axes(list(grid[:, 0]), shown)
        handles = [Patch(color=MUTED, alpha=alpha, linewidth=0, label=text) for _, alpha, text in LEVELS]
        figure.legend(
            handles=handles, title="share of a second's messages", loc="upper right", frameon=False,
            ncols=len(LEVELS), fontsize=8, title_fontsize=8,
        )  # fmt: skip
        return [finish(figure, "heat", "Latency over time, message by message", _note(shown))]


def _records(run: Run, table: Table, worst: Sequence[Tail]) -> list[Record]:
    """Each broker's trial of one load and one repeat: those of the worst tail, else of the first load that both have.

    Where a broker has no such repeat, its first one stands for it.
    """
    loads = [[point for point in comparison.points if _is_shown(point)] for comparison in table.comparisons]
    loads = sorted((points for points in loads if points), key=_brokers, reverse=True)
    repeat = 1
    for tail in sorted(worst, key=excess, reverse=True)[:1]:
        repeat = run.trial(tail.trial_id)["repeat"]
        loads.sort(key=lambda points: tail.trial_id in _ids(points), reverse=True)
    by_broker: dict[str, Record] = {}
    for point in loads[0] if loads else ():
        fitting = [record for record in point.used if record["repeat"] == repeat]
        by_broker.setdefault(point.broker, (fitting or point.used)[0])
    return [by_broker[broker] for broker in sorted(by_broker, key=pt.broker_rank)]


def _ids(points: Sequence[pt.Point]) -> set[str]:
    return {record["id"] for point in points for record in point.used}


def _is_shown(point: pt.Point) -> bool:
    """Trials with faults have a drawing of their own (`fault_chart`)."""
    return (
        point.is_open_loop
        and not point.is_beyond_capacity
        and point.driver_kind != "client"
        and bool(point.used)
        and not point.used[0]["faults"]
        and all(is_long_enough(record) for record in point.used)
    )


def _brokers(points: Sequence[pt.Point]) -> int:
    return len({point.broker for point in points})


def draw_density(axes: Axes, record: Record, found: Density) -> None:
    """A trial's messages by second and latency, in the broker's colour."""
    shares = found.shares
    ends = [*(least for least, _, _ in LEVELS[1:]), np.inf]
    ink, edges_ms = colour(record["broker"]), found.edges_ns / MS
    for (least, alpha, share), end in zip(LEVELS, ends, strict=True):
        columns, bins = np.nonzero((shares > 0) & (shares >= least) & (shares < end))
        if len(columns):
            # One path for all cells of a shade: a drawing of thousands of elements would make the page heavy.
            cells = PathPatch(_cells(found, columns, bins), color=ink, alpha=alpha, lw=0)
            cells.set_in_layout(False)  # nor `add_patch`: all the cells' corners are looked at for limits that are set
            axes.add_artist(cells)
            middles_ms = np.sqrt(edges_ms[bins] * edges_ms[bins + 1])
            middles = axes.scatter((columns + 0.5) * found.column_s, middles_ms, edgecolors=ink, visible=False)
            named(middles, f"{share} of its second's messages")

    def between(middle_ms: float) -> str:
        place = int(np.searchsorted(edges_ms, middle_ms)) - 1
        return " to ".join(words.duration(found.edges_ns[each]) for each in (place, place + 1))

    pointable(axes, lambda x: f"second {x - found.column_s / 2:g}", between)
    log_latency_axis(axes)
    axes.set_xlim(0, record["window_s"])
    axes.set_ylim(found.edges_ns[0] / MS / 1.2, found.edges_ns[-1] / MS * 1.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(f"{found.kind}, ms")
    axes.grid(visible=True, which="major")
    axes.set_axisbelow(True)


def _cells(found: Density, columns: np.ndarray, bins: np.ndarray) -> Path:
    left, right = columns * found.column_s, (columns + 1) * found.column_s
    low, high = found.edges_ns[bins] / MS, found.edges_ns[bins + 1] / MS
    corners = np.stack([left, low, right, low, right, high, left, high, left, low], axis=1).reshape(-1, 2)
    codes = np.tile([Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY], len(columns))
    return Path(corners, codes)


def _share_axes(grid: Sequence[Axes], shown: Sequence[tuple[Record, Density]]) -> None:
    low, high = min(each.edges_ns[0] for _, each in shown), max(each.edges_ns[-1] for _, each in shown)
    for axes in grid:
        axes.set_xlim(0, max(record["window_s"] for record, _ in shown))
        axes.set_ylim(low / MS / 1.2, high / MS * 1.2)
        axes.tick_params(axis="x", labelbottom=axes is grid[-1])
    grid[-1].set_xlabel("second of the window")


def _note(shown: Sequence[tuple[Record, Density]]) -> str:
    said = []
    for record, found in shown:
        counts = found.counts.sum(axis=0)
        usual = int(np.argmax(counts))
        low, high = (milliseconds(found.edges_ns[place]) for place in (usual, usual + 1))
        said.append(
            f"{words.broker_name(record['broker'])}: messages most often took {low} to {high}, the slowest "
            f"{milliseconds(found.edges_ns[-1])} at most."
        )
    return (
        f"{' '.join(said)} Each cell is a range of latency in one second (one interval, where trials are long), by the "
        "moment in which messages were intended; the stronger its colour, the more of that second's messages. A band "
        "that splits in two, which no percentile shows, can be seen here."
    )
