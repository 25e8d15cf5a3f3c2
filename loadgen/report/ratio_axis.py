"""A horizontal axis of ratios: logarithmic around 1, so that a ratio and its reciprocal are equally far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from loadgen.report import words
from loadgen.report.drawing import INK, MUTED, pointable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes

    from loadgen.stats.confidence import Ratio

MARKS = (1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1e3, 1e4, 1e5, 1e6)
REACH_MOST = 3.0
"""An interval that reaches further than so many times the ratios themselves is cut off; its ends stand beside it."""


def ratio_axis(axes: Axes, ratios: Iterable[float], ends: Iterable[float | None], what: str) -> None:
    """Make the axis wide enough for the ratios, and for the ends of their intervals as far as those are of their size.

    The right third stays free for figures in words.
    """
    dots = max((abs(math.log(ratio)) for ratio in ratios), default=math.log(MARKS[0]))
    widest = max([dots, *(abs(math.log(end)) for end in ends if end and math.isfinite(end))])
    reach = 1.15 * max(min(widest, REACH_MOST * dots), math.log(MARKS[0]))
    axes.set_xlim(math.exp(-reach), math.exp(1.9 * reach))
    axes.set_xscale("log")
    axes.axvline(1.0, color=INK, linewidth=0.9, zorder=1)
    axes.xaxis.set_major_locator(FixedLocator(_marks(reach)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))
    axes.set_xlabel(f"{what} (log scale)")
    pointable(axes, lambda x: f"{words.significant(x)}×")
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)


def draw_band(axes: Axes, ratio: Ratio, row: float, ink: str) -> None:
    """The interval of a ratio, if it has one; what is beyond the axis ends with it."""
    if ratio.low is not None and ratio.high is not None:
        high = ratio.high if math.isfinite(ratio.high) else axes.get_xlim()[1]
        axes.plot([ratio.low, high], [row] * 2, color=ink, linewidth=8, alpha=0.28, solid_capstyle="butt", zorder=2)


def tell(axes: Axes, row: float, text: str, *, is_shown: bool) -> None:
    """A ratio in words, on the right of its row."""
    axes.annotate(
        text, (1.0, row), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=8.5,
        color=INK if is_shown else MUTED, zorder=5,
    )  # fmt: skip


def _marks(reach: float) -> list[float]:
    """1, and the three largest round ratios within reach (a natural logarithm), with their reciprocals."""
    above = [mark for mark in MARKS if math.log(mark) <= reach][-3:]
    return [*(1 / mark for mark in reversed(above)), 1.0, *above]
