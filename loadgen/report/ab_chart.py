"""B over A, pair by pair: every repeat's ratio, their geometric mean and its interval, against no difference at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from loadgen.analysis.ab import finding, level, percentage
from loadgen.report import words
from loadgen.report.ab import label
from loadgen.report.drawing import GRID, PAPER, Chart, colour, finish, name_rows, named, styled
from loadgen.report.ratio_axis import draw_band, ratio_axis, tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from loadgen.analysis.ab import Compared, Effect

ROW_INCHES = 0.36


def draw(found: Sequence[Compared], effect_ratio: float) -> list[Chart | None]:
    """A chart for each point, in their order; None where a point has no pair."""
    with styled():
        return [_chart(each, number, effect_ratio) for number, each in enumerate(found, 1)]


def _chart(compared: Compared, number: int, effect_ratio: float) -> Chart | None:
    effects = [effect for effect in compared.effects if effect.ratios]
    if not effects:
        return None
    figure = Figure(figsize=(9.2, 0.9 + ROW_INCHES * len(effects)), layout="constrained")
    axes = figure.subplots()
    _axis(axes, effects, effect_ratio)
    for row, effect in enumerate(effects):
        _draw_effect(axes, effect, row, colour(compared.broker))
    name_rows(axes, range(len(effects)), [effect.measure for effect in effects], len(effects) - 0.4)
    where = ", ".join(part for part in (words.broker_name(compared.broker), label(compared)) if part)
    said = " ".join(f"{effect.measure}: {finding(effect, effect_ratio)}." for effect in effects)
    note = (
        "Dots: each pair of repeats; bar: geometric mean; band: its interval. Filled where the interval excludes 1, "
        f"hollow where no difference is shown. Grey: less than the {percentage(effect_ratio)} asked about. {said}"
    )
    return finish(figure, f"ab-{number}", f"{where}: B over A, pair by pair", note)


def _axis(axes: Axes, effects: Sequence[Effect], effect_ratio: float) -> None:
    """A logarithmic axis around 1; grey is less than the effect asked about."""
    seen = [ratio for effect in effects for ratio in effect.ratios]
    ends = [end for effect in effects for end in (effect.ratio.low, effect.ratio.high)]
    ratio_axis(axes, [*seen, effect_ratio], ends, "B / A")
    axes.axvspan(1 / effect_ratio, effect_ratio, color=GRID, alpha=0.55, linewidth=0, zorder=0)


def _draw_effect(axes: Axes, effect: Effect, row: int, ink: str) -> None:
    ratio = effect.ratio
    assert ratio.ratio is not None
    text = f"{words.significant(ratio.ratio)}×"
    draw_band(axes, ratio, row, ink)
    if ratio.low is not None and ratio.high is not None:
        text += f" ({words.significant(ratio.low)}–{words.significant(ratio.high)} at {level(effect)})"
    dots = axes.scatter(
        effect.ratios,
        [row] * len(effect.ratios),
        s=20,
        facecolors=ink if effect.is_shown else PAPER,
        edgecolors=ink,
        linewidths=1.1,
        zorder=3,
    )
    named(dots, f"{effect.measure}, a pair")
    axes.plot([ratio.ratio] * 2, [row - 0.3, row + 0.3], color=ink, linewidth=1.6, zorder=4)
    tell(axes, row, text, is_shown=effect.is_shown)
