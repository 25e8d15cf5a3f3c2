"""What every page of ours is made of: its templates, its colours, and a drawing put into it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from loadgen.report import drawing, words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadgen.report.drawing import Chart
    from loadgen.run import Run

# The drawings' colours become the page's variables, so that one drawing serves light and dark.
VARIABLES = {
    drawing.COLOURS["rabbitmq"]: "var(--rabbitmq)",
    drawing.COLOURS["kafka"]: "var(--kafka)",
    drawing.OTHER_COLOUR: "var(--other)",
    drawing.INK: "var(--ink)",
    drawing.MUTED: "var(--muted)",
    drawing.GRID: "var(--grid)",
    drawing.PAPER: "var(--paper)",
    "'DejaVu Sans'": "system-ui, 'DejaVu Sans', sans-serif",
}


def environment() -> Environment:
    """Our templates: everything from a run is escaped, and only our own drawings are markup."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(duration=words.duration, rate=words.rate, broker=words.broker_name)
    return found


def anchors_of(run: Run) -> dict[str, str]:
    """Where each trial's line is in its run's page."""
    return {record["id"]: f"trial-{number}" for number, record in enumerate(run.records, 1)}


def save_charts(run: Run, drawn: Iterable[Chart]) -> list[tuple[str, str]]:
    """Put drawings into a run's folder, in both formats; the value has the title of each, and where it is."""
    links = []
    for chart in drawn:
        run.save(f"charts/{chart.name}.svg", f'<?xml version="1.0" encoding="utf-8"?>\n{chart.svg}')
        run.save(f"charts/{chart.name}.png", chart.png)
        links.append((chart.title, f"charts/{chart.name}.svg"))
    return links


def shown(chart: Chart) -> dict[str, Any]:
    """A drawing as the page's templates take it."""
    return {"chart": chart, "svg": _inline(chart)}


def _inline(chart: Chart) -> Markup:
    svg = chart.svg
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    # The drawing's own size in points would not shrink on a phone; its viewBox does.
    head, end, rest = svg.partition(">")
    words_of_head = [part for part in head.split() if not part.startswith(("width=", "height="))]
    label = Markup.escape(f"{chart.title}. {chart.note}")
    return Markup(f'{" ".join(words_of_head)} role="img" aria-label="{label}"{end}{rest}')  # noqa: S704 - our own drawing
