"""comparison.html and comparison.md: several runs beside each other, every figure with the trials behind it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen.report import answer, words
from loadgen.report.across import by_point, differences, headlines, letters, notes
from loadgen.report.across_chart import draw
from loadgen.report.detail import NOTHING, Quantity, quantity
from loadgen.report.markdown import escaped, quantity_markdown, row_markdown
from loadgen.report.sheet import anchors_of, environment, save_charts, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadgen.analysis.across import Across, Row
    from loadgen.report.drawing import Chart
    from loadgen.run import Run
    from loadgen.stats.confidence import Ratio


@dataclass(frozen=True, slots=True)
class Held:
    """One run's value in a line: the value, its ratio to the first run's, what that shows, and (trial, where to read).

    The first run has no ratio.
    """

    value: Quantity
    ratio: Quantity | None
    change: str
    trials: tuple[tuple[str, str], ...]


def write_comparison(runs: Sequence[Run], found: Across) -> dict[str, Path]:
    """Write the page and its Markdown into the last run's folder; keys as of `write_report`."""
    home, drawn = runs[-1], draw(runs, found)
    pages = [_page_of(run, home) for run in runs]
    places = [_places(run, page) for run, page in zip(runs, pages, strict=True)]
    blocks = [(point, rows[0].settings, [_line(row, places) for row in rows]) for point, rows in by_point(found)]
    links = save_charts(home, drawn)
    return {
        "html": home.save("comparison.html", _html(runs, found, drawn, pages, blocks)),
        "markdown": home.save("comparison.md", _markdown(found, blocks, links)),
        "charts": home.path / "charts",
    }


def _page_of(run: Run, home: Run) -> str:
    """Where a run's own report is, seen from where the comparison is; empty where it has none yet."""
    page = run.path / "report.html"
    return Path(os.path.relpath(page, home.path)).as_posix() if page.exists() else ""


def _places(run: Run, page: str) -> dict[str, str]:
    """Where each trial can be read, by its id; empty where the run has no page yet."""
    return {name: f"{page}#{anchor}" if page else "" for name, anchor in anchors_of(run).items()}


def _line(row: Row, places: Sequence[Mapping[str, str]]) -> tuple[str, list[Held]]:
    """A quantity and what each run says of it; `places` are where its trials can be read."""
    held = []
    for number, place in enumerate(places):
        found, ratio = row.estimates[number], row.ratios[number]
        trials = tuple((name, place[name]) for name in row.trials[number])
        value = NOTHING if found is None else quantity(found, row.unit)
        if number == 0:
            held.append(Held(value, None, "", trials))
        else:
            held.append(Held(value, _ratio(ratio), "" if ratio is None else row.change(number), trials))
    return row.measure, held


def _ratio(ratio: Ratio | None) -> Quantity:
    if ratio is None or ratio.ratio is None:
        return NOTHING
    return Quantity(f"{words.significant(ratio.ratio)}×", words.ratio_interval(ratio))


def _runs(runs: Sequence[Run], found: Across, pages: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "letter": letter,
            "run": run,
            "page": page,
            "brokers": ", ".join(
                f"{words.broker_name(name)} {broker.get('version')}" for name, broker in run.header["brokers"].items()
            ),
            "machine": answer.machine(run),
            "command": words.command(run.header),
        }
        for letter, run, page in zip(letters(found), runs, pages, strict=True)
    ]


def _html(
    runs: Sequence[Run], found: Across, drawn: Sequence[Chart], pages: Sequence[str], blocks: Sequence[Any]
) -> str:
    return (
        environment()
        .get_template("comparison.html.jinja")
        .render(
            runs=_runs(runs, found, pages),
            letters=letters(found),
            headlines=headlines(found),
            differences=differences(found),
            notes=notes(found),
            blocks=blocks,
            charts=[shown(chart) for chart in drawn],
            words=words,
        )
    )


def _markdown(found: Across, blocks: Sequence[Any], links: Sequence[tuple[str, str]]) -> str:
    """The comparison for a pull request."""
    names = letters(found)
    lines = ["# Runs beside each other", ""]
    lines += [f"- {letter}: `{name}`" for letter, name in zip(names, found.runs, strict=True)]
    lines += ["", *(f"- **{escaped(each)}**" for each in headlines(found))]
    lines += [f"- {escaped(each)}" for each in differences(found)]
    heads = ["", *(head for number, name in enumerate(names) for head in _heads(name, names[0], number))]
    for point, settings, rows in blocks:
        lines += ["", f"## {escaped(point)}", "", *(f"Settings differ: {escaped(each)}." for each in settings)]
        lines += [row_markdown(heads), row_markdown(["---"] * len(heads))]
        for measure, held in rows:
            cells = [text for each in held for text in _cells(each)]
            lines.append(row_markdown([measure, *cells]))
    lines += ["", *(f"![{escaped(title)}]({path})\n" for title, path in links), *notes(found)]
    return "\n".join(lines) + "\n"


def _heads(name: str, first: str, number: int) -> list[str]:
    return [name] if number == 0 else [name, f"{name} / {first}"]


def _cells(held: Held) -> list[str]:
    if held.ratio is None:
        return [quantity_markdown(held.value)]
    return [quantity_markdown(held.value), f"{quantity_markdown(held.ratio)} {held.change}"]
