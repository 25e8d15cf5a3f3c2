"""The pictures of proofs: small drawings in the report's own style."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from prove.proof import Chart

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

KNOWN_COLOUR, SEEN_COLOUR, SHADE_COLOUR = "#1f3a6e", "#e65c00", "#d5d9de"
PANEL_INCHES = (4.4, 3.1)


def draw(name: str, title: str, panels: list[Callable[[Axes], None]]) -> Chart:
    """A chart of panels, two in a row, each drawn by a function that is given its axes."""
    import matplotlib as mpl  # noqa: PLC0415 - half a second that only a drawing needs
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    from loadgen.report.charts import STYLE  # noqa: PLC0415

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # the stubs want literal keys
        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
            panel(axes)
            axes.grid(visible=True)
            axes.set_axisbelow(True)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", svg.getvalue(), flags=re.DOTALL)
    # A hundredth of a point is finer than any screen; the digits beyond it would be half of the file.
    text = re.sub(r"(\d+\.\d\d)\d+", r"\1", text[text.index("<svg") :])
    return Chart(name, title, text)
