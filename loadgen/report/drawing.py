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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)))
"""Lines of one colour, told apart."""


@dataclass(frozen=True)
class Chart:
    """One drawing in both formats, with the words that stand in for it where it cannot be seen."""

    name: str
    title: str
    note: str
    svg: str
    png: bytes


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
    FigureCanvasAgg(figure)
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.set_layout_engine("none")  # everything has its place now; to find it again would take as long
    figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
    # Ids must stay apart when several drawings stand in one page.
    text = re.sub(r"<metadata>.*?</metadata>", "", svg.getvalue(), flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return Chart(name, title, note, text[text.index("<svg") :], png.getvalue())


def log_latency_axis(axes: Axes) -> None:
    """A logarithmic axis of milliseconds, marked 1, 2, 5, 10 as people read them."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def log_ticks(axes: Axes) -> None:
    """Marks of a logarithmic horizontal axis: the powers of ten, and where it has few of them, 2 and 5 between."""
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < FEW_DECADES * low else (1.0,)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def rate_tick(rate: float) -> str:
    """A rate on an axis: 500, 10 k, 1 M."""
    scale, unit = next((each for each in ((1e6, " M"), (1e3, " k")) if rate >= each[0]), (1.0, ""))
    return f"{rate / scale:g}{unit}"
