"""How every chart of the report looks, and how a figure becomes a file: matplotlib without its global state.

Orange and dark blue are told apart by all common kinds of colour vision, as they differ in lightness too, and
each series is named beside it.
"""

from __future__ import annotations

import io
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from loadgen.frames import Float64

COLOURS = {"rabbitmq": "#e65c00", "kafka": "#1f3a6e"}
OTHER_COLOUR = "#5b7f5b"
INK, MUTED, GRID, PAPER = "#1b1f24", "#5f6873", "#d5d9de", "#ffffff"
# In the page these become variables, so that one drawing serves light and dark; see page.py.
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "loadgen",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # given, since to look for it costs a sixth of a drawing, and no axis has marks at its top
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
}
PNG_DPI = 160
FEW_DECADES = 50.0
SEEN_SHARE = 1 / 300
"""A bar of less than this share of an axis could not be seen."""
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)))
"""Lines of one colour, told apart."""


POINTS_PER_INCH = 72.0
MARKS_MAX = 240
"""So many values of one line can be pointed at; of longer ones every second, third, … value."""
Mark = tuple[float, float, str, str]
"""A value that can be pointed at: where it is (points from the left and the top), its text, whose it is (a broker)."""


@dataclass(frozen=True)
class Chart:
    """One drawing in both formats, with the words that stand in for it where it cannot be seen."""

    name: str
    title: str
    note: str
    svg: str
    png: bytes
    marks: tuple[Mark, ...] = ()
    """What the page shows where the pointer is."""


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the report's style while the block lasts."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # the stubs want literal keys
        yield


def colour(broker: str) -> str:
    """A broker's colour."""
    return COLOURS.get(broker, OTHER_COLOUR)


def finish(figure: Figure, name: str, title: str, note: str) -> Chart:
    """Draw a figure in both formats; `name` is its file's and stands before every id within the drawing."""
    svg, png = io.StringIO(), io.BytesIO()
    # Not `savefig`, which draws everything once more, to nowhere.
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    marks = _marks(figure)
    figure.set_layout_engine("none")  # everything has its place now; to find it again would take as long
    figure.set_dpi(PNG_DPI)
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})  # type: ignore[no-untyped-call]
    # Ids must stay apart when several drawings stand in one page.
    text = re.sub(r"<metadata>.*?</metadata>", "", svg.getvalue(), flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return Chart(name, title, note, text[text.index("<svg") :], png.getvalue(), marks)


def panels(count: int, columns: int, size: tuple[float, float], *, shares_y: bool = True) -> tuple[Figure, Any]:
    """A figure of `size` (width, height of a row, in inches) with so many panels, and the grid of its axes.

    What the last row has beyond them is not shown.
    """
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0], size[1] * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=shares_y, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return figure, grid


@dataclass(frozen=True)
class Margins:
    """The room around and between panels that is known before they are drawn, in inches.

    To find it (matplotlib's constrained layout) takes as long as to draw them, which an hour's report would wait for.
    """

    left: float = 0.8
    right: float = 0.25
    top: float = 0.32
    bottom: float = 0.48
    between: float = 0.65
    """From a panel to the one beside it: for that one's marks."""


def stacked(
    width: float, heights: Sequence[float], gaps: Sequence[float], columns: int = 1, margins: Margins | None = None
) -> tuple[Figure, NDArray[Any]]:
    """A figure with panels one below the other, and their axes: object[rows, columns]; sizes are in inches.

    `width` is that of a panel, `gaps` are below each row but the last. Nothing is shared.
    """
    around = margins or Margins()
    whole = around.left + columns * width + (columns - 1) * around.between + around.right
    tall = around.top + sum(heights) + sum(gaps) + around.bottom
    figure = Figure(figsize=(whole, tall))
    grid = np.empty((len(heights), columns), object)
    foot = tall - around.top
    for row, height in enumerate(heights):
        foot -= height
        for column in range(columns):
            left = around.left + column * (width + around.between)
            grid[row, column] = figure.add_axes((left / whole, foot / tall, width / whole, height / tall))
        foot -= gaps[row] if row < len(gaps) else 0.0
    return figure, grid


def name_rows(axes: Axes, heights: Sequence[float], names: Sequence[str], end: float) -> None:
    """Name the rows of an axis that counts downwards to `end` and measures nothing."""
    axes.set_yticks(heights, names)
    axes.set_ylim(end, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def head_rows(axes: Axes, height: float, text: str) -> None:
    """What the rows below have in common."""
    axes.text(
        0, height, text, transform=axes.get_yaxis_transform(), va="center", ha="left", fontsize=8.5, color=MUTED,
        style="italic",
    )  # fmt: skip


def pointable(axes: Axes, x: Callable[[float], str] | None = None, y: Callable[[float], str] | None = None) -> None:
    """Let values of these axes be read in the page where the pointer is, in these words.

    It is matplotlib's own place for how a cursor's position is told. Of lines and dots those are shown that have a
    label, in the legend or by `named`, but those that were drawn with `picker=False`.
    """
    axes.fmt_xdata, axes.fmt_ydata = x, y


def named(artist: Artist, name: str) -> None:
    """Give a line or dots a name that is in no legend."""
    artist.set_label(f"_{name}")


def _marks(figure: Figure) -> tuple[Mark, ...]:
    """The values of a drawing that can be pointed at."""
    height = float(figure.get_figheight()) * POINTS_PER_INCH
    scale = POINTS_PER_INCH / figure.dpi
    found: list[Mark] = []
    for axes in figure.axes:
        if not axes.get_visible() or (axes.fmt_xdata is None and axes.fmt_ydata is None):
            continue
        for artist in (*axes.get_lines(), *axes.collections):
            name = str(artist.get_label()).removeprefix("_")
            if (
                name.startswith("child")
                or not isinstance(artist, (Line2D, PathCollection))
                or artist.get_picker() is False
            ):
                continue
            for (x, y), (left, top) in zip(*_places(axes, artist), strict=True):
                told = [of(value) for of, value in ((axes.fmt_ydata, y), (axes.fmt_xdata, x)) if of is not None]
                text = f"{name}: {' at '.join(told)}"
                found.append((round(left * scale, 1), round(height - top * scale, 1), text, _whose(artist)))
    return tuple(found)


def _places(axes: Axes, artist: Line2D | PathCollection) -> tuple[list[list[float]], list[list[float]]]:
    """An artist's values, and where they are in the drawing's pixels: only what is within its axes."""
    if isinstance(artist, Line2D):
        transform, held = artist.get_transform(), artist.get_xydata()
    else:
        transform, held = artist.get_offset_transform(), artist.get_offsets()
    if transform != axes.transData:
        return [], []  # a line across the whole panel has no values of its own
    values: Float64 = np.asarray(held, np.float64)
    values = values[:: 1 + len(values) // MARKS_MAX]
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return [], []
    with np.errstate(all="ignore"):  # what a logarithmic axis cannot show is nowhere
        places = np.asarray(axes.transData.transform(values), np.float64)
    box = axes.bbox
    inside = (box.x0 - 1 <= places[:, 0]) & (places[:, 0] <= box.x1 + 1)
    inside &= (box.y0 - 1 <= places[:, 1]) & (places[:, 1] <= box.y1 + 1)
    return values[inside].tolist(), places[inside].tolist()


def _whose(artist: Line2D | PathCollection) -> str:
    """The broker whose colour it has; empty for all others."""
    inks = [artist.get_color()] if isinstance(artist, Line2D) else list(artist.get_edgecolors())  # type: ignore[attr-defined]
    return next((broker for broker, ink in COLOURS.items() if inks and to_hex(inks[0]) == ink), "")


def log_latency_axis(axes: Axes) -> None:
    """A logarithmic axis of milliseconds, marked 1, 2, 5, 10 as people read them."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())  # dozens of marks without a word, each of which takes its time


def log_ticks(axes: Axes) -> None:
    """Marks of a logarithmic horizontal axis: the powers of ten, and where it has few of them, 2 and 5 between."""
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < FEW_DECADES * low else (1.0,)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def rate_tick(rate: float) -> str:
    """A rate on an axis: 500, 10 k, 1 M."""
    scale, unit = next((each for each in ((1e6, " M"), (1e3, " k")) if rate >= each[0]), (1.0, ""))
    return f"{rate / scale:g}{unit}"
