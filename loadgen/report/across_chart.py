"""Several runs beside each other, drawn: every ratio with its interval, and latency by percentile, run by run."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from loadgen.histogram import Histogram
from loadgen.record import end_to_end
from loadgen.report import charts, words
from loadgen.report.across import by_point, label, letters
from loadgen.report.drawing import (
    DASHES,
    PAPER,
    Chart,
    colour,
    finish,
    head_rows,
    name_rows,
    named,
    panels,
    styled,
)
from loadgen.report.ratio_axis import draw_band, ratio_axis, tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from loadgen.analysis.across import Across, Row
    from loadgen.run import Run

ROW_INCHES, HEAD_INCHES = 0.3, 1.1
ROWS_MAX = 36
"""So many figures are in one drawing; more have several."""
PANELS_MAX = 4
TITLE_CHARS = 62


def draw(runs: Sequence[Run], found: Across) -> list[Chart]:
    """What changed with each later run, and the latencies of the points whose p99 changed most."""
    with styled():
        drawn = [chart for number in range(1, len(runs)) for chart in _ratios(found, number)]
        return [*drawn, *_latencies(runs, found)]


def _ratios(found: Across, number: int) -> list[Chart]:
    """The ratios of one later run to the first one, in drawings of at most `ROWS_MAX` rows, no point torn apart."""
    parts: list[list[tuple[str, list[Row]]]] = []
    for point, rows in by_point(found):
        known = [row for row in rows if (ratio := row.ratios[number]) is not None and ratio.ratio is not None]
        if known and (not parts or sum(1 + len(each) for _, each in [*parts[-1], (point, known)]) > ROWS_MAX):
            parts.append([])
        if known:
            parts[-1].append((point, known))
    return [_ratio_chart(found, number, part, place) for place, part in enumerate(parts, 1)]


def _ratio_chart(found: Across, number: int, points: Sequence[tuple[str, Sequence[Row]]], part: int) -> Chart:
    names = letters(found)
    what = f"{names[number]} / {names[0]}"
    rows = [row for _, each in points for row in each]
    ratios = [ratio for row in rows if (ratio := row.ratios[number]) is not None]
    lines = len(rows) + len(points)
    figure = Figure(figsize=(9.2, HEAD_INCHES + ROW_INCHES * lines), layout="constrained")
    axes = figure.subplots()
    ends = [end for ratio in ratios for end in (ratio.low, ratio.high)]
    ratio_axis(axes, [ratio.ratio for ratio in ratios if ratio.ratio is not None], ends, what)
    heights: list[int] = []
    for place, (point, each) in enumerate(points):
        head_rows(axes, len(heights) + place, point)
        for row in each:
            heights.append(len(heights) + place + 1)
            _draw_ratio(axes, row, number, heights[-1], what)
    name_rows(axes, heights, [row.measure for row in rows], lines - 0.4)
    note = (
        "Dot: the ratio of the repeats’ geometric means; band: its interval. Filled where the interval excludes 1, "
        f"hollow where no difference is shown. A rate right of 1 is better, a latency worse. {what}: "
        + " ".join(f"{row.measure} {words.times(ratio)}." for row, ratio in zip(rows, ratios, strict=True))
    )
    title = f"{names[number]} over {names[0]}: {found.runs[number]} over {found.runs[0]}"
    return finish(figure, f"comparison-{names[number].lower()}-{part}", title, note)


def _draw_ratio(axes: Axes, row: Row, number: int, line: int, what: str) -> None:
    ratio, ink = row.ratios[number], colour(row.point["broker"])
    assert ratio is not None, "only what is known is drawn"
    assert ratio.ratio is not None, "likewise"
    is_shown = ratio.direction != "no difference shown"
    draw_band(axes, ratio, line, ink)
    dot = axes.scatter(
        [ratio.ratio], [line], s=26, facecolors=ink if is_shown else PAPER, edgecolors=ink, linewidths=1.2, zorder=3
    )
    named(dot, f"{label(row)}: {row.measure}, {what}")
    tell(axes, line, words.times(ratio), is_shown=is_shown)


def _latencies(runs: Sequence[Run], found: Across) -> list[Chart]:
    """Latency by percentile of every run, for the points whose p99 changed most."""
    rows = sorted((row for row in found.rows if row.measure == "p99"), key=_change, reverse=True)
    shown = [(row, merged) for row in rows[:PANELS_MAX] if (merged := _merged(runs, row))]
    if not shown:
        return []
    columns = min(2, len(shown))
    figure, grid = panels(len(shown), columns, (9.2 if columns > 1 else 6.4, 3.6), shares_y=False)
    for axes, (row, merged) in zip(grid.flat, shown, strict=False):
        axes.set_title(textwrap.fill(label(row), TITLE_CHARS), fontsize=8.5)
        _draw_runs(axes, merged, letters(found), colour(row.point["broker"]))
    for axes in grid[:, 0]:
        axes.set_ylabel("response time, ms")
    note = "All repeats of a run merged, message by message, from the moment that each was due."
    if len(rows) > PANELS_MAX:
        note += f" The {PANELS_MAX} points whose p99 changed most."
    return [finish(figure, "comparison-latency", "Latency by percentile, run by run", note)]


def _merged(runs: Sequence[Run], row: Row) -> dict[int, Histogram]:
    """The latencies of a point's repeats, by the run's place; of those that have any."""
    found = {}
    for number, (run, trials) in enumerate(zip(runs, row.trials, strict=True)):
        merged = Histogram()
        for name in trials:
            merged.merge(run.histogram(end_to_end(run.trial(name)), trial=name))
        if merged.count:
            found[number] = merged
    return found


def _change(row: Row) -> float:
    """How far the farthest of a row's ratios is from 1, as a natural logarithm."""
    return max((abs(math.log(ratio.ratio)) for ratio in row.ratios if ratio is not None and ratio.ratio), default=0.0)


def _draw_runs(axes: Axes, merged: dict[int, Histogram], names: Sequence[str], ink: str) -> None:
    for number, histogram in merged.items():
        style = DASHES[number % len(DASHES)]
        width = max(0.8, 2.4 - 0.6 * (number // len(DASHES)))  # beyond three runs the same dashes are thinner
        axes.plot(*charts.curve(histogram), color=ink, linewidth=width, linestyle=style, label=names[number])
    charts.percentile_axis(axes)
    charts.fit_latencies([axes])
    axes.legend(frameon=False, loc="upper left", handlelength=2.2)
