"""A long trial over time: rate, latency, memory and what the broker keeps, a column for each trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import FuncFormatter

from loadgen.report import words
from loadgen.report.drawing import (
    MUTED,
    Chart,
    colour,
    finish,
    log_latency_axis,
    pointable,
    rate_tick,
    stacked,
    styled,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from loadgen.analysis.drift import Drift, Long

COLUMNS_MAX = 3
STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("rate, msg/s", ("rate",)),
    ("end to end, ms", ("p50", "p99")),
    (
        "broker’s memory and data, MB",
        (
            "memory of the broker’s processes",
            "memory in use by the broker’s own word",
            "the broker’s data on disk",
        ),
    ),
    ("loadgen’s memory, MB", ("memory of producers", "memory of consumers", "memory of what observes and writes")),
)
SCALES = {"msgs_per_s": 1.0, "ns": 1e6, "bytes": 1e6}


def draw(trials: Sequence[Long]) -> list[Chart]:
    """One drawing; none where no trial was long."""
    shown = [trial for trial in trials if trial.drifts][:COLUMNS_MAX]
    if not shown:
        return []
    with styled():
        width = 3.75 if len(shown) > 1 else 8.15
        figure, grid = stacked(width, [1.6] * len(PANELS), [0.2] * (len(PANELS) - 1), len(shown))
        for column, trial in enumerate(shown):
            for row, (label, names) in enumerate(PANELS):
                _panel(grid[row, column], trial, label if column == 0 else "", names)
                grid[row, column].set_xlim(0, trial.window_s / 60)
                grid[row, column].tick_params(axis="x", labelbottom=row == len(PANELS) - 1)
            grid[0, column].set_title(f"{words.broker_name(trial.broker)} ({trial.driver})", fontsize=9)
            grid[-1, column].set_xlabel("minutes of the window")
        note = (
            f"Rates and latencies of {shown[0].interval_s:g} s each; memory and data as they were read then. The first "
            "tenth of each window is left out, as in the table."
        )
        return [finish(figure, "soak", "Over time", note)]


def _panel(axes: Axes, trial: Long, label: str, names: Sequence[str]) -> None:
    by_name = {each.name: each for each in trial.drifts}
    drawn = [by_name[name] for name in names if name in by_name]
    for each, style in zip(drawn, STYLES, strict=False):
        axes.plot(
            each.at_s / 60, each.values / SCALES[each.unit], color=colour(trial.broker), linewidth=1.1,
            linestyle=style, label=_short(each),
        )  # fmt: skip
    axes.set_ylabel(label, fontsize=8)
    axes.grid(visible=True, which="major")
    if drawn:
        unit = drawn[0].unit
        pointable(axes, lambda x: f"minute {x:.1f}", lambda y: words.shown(y * SCALES[unit], unit))
    if not drawn:
        axes.text(0.5, 0.5, "not observed", transform=axes.transAxes, ha="center", color=MUTED, fontsize=8.5)
        return
    if drawn[0].unit == "ns":
        log_latency_axis(axes)
    else:
        top = max(float(each.values.max()) / SCALES[each.unit] for each in drawn)
        axes.set_ylim(0, top * 1.25 or 1)
        if drawn[0].unit == "msgs_per_s":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rate_tick(value)))
    if len(drawn) > 1:
        axes.legend(frameon=False, fontsize=7.5, ncols=len(drawn), loc="upper left", handlelength=1.8)


def _short(drift: Drift) -> str:
    """A quantity's name in a legend."""
    return {
        "memory of the broker’s processes": "processes",
        "memory in use by the broker’s own word": "own word",
        "the broker’s data on disk": "data on disk",
        "memory of producers": "producers",
        "memory of consumers": "consumers",
        "memory of what observes and writes": "observer",
    }.get(drift.name, drift.name)
