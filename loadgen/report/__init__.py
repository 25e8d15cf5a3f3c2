"""Reports from runs on disk: the article's table, the comparison in detail, the charts, the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loadgen.analysis.across import Across
    from loadgen.analysis.decision import Decision
    from loadgen.runs import Run

__all__ = ["render_across", "render_decision", "render_run", "write_comparison", "write_report"]


def write_report(run: Run, other: Run | None = None) -> dict[str, Path]:
    """Write report.html, report.md and charts/ into the run's folder; the values are their paths.

    `other` is a run whose trials with faults the table cites, by name. Keys: `html`, `markdown`, `charts` (the folder).
    """
    from loadgen.report.page import write_report as write  # noqa: PLC0415 - matplotlib takes a second to import

    return write(run, other)


def write_comparison(runs: Sequence[Run], found: Across) -> dict[str, Path]:
    """Write comparison.html, comparison.md and charts/ into the last run's folder; keys as above."""
    from loadgen.report.across_page import write_comparison as write  # noqa: PLC0415 - likewise

    return write(runs, found)


def render_run(run: Run, other: Run | None = None) -> str:
    """The run's answer for a terminal; `other` as above."""
    from loadgen.report.content import gather  # noqa: PLC0415
    from loadgen.report.markdown import render_text  # noqa: PLC0415

    return render_text(run, gather(run, other))


def render_decision(decision: Decision) -> list[str]:
    """A decision in words, a sentence each."""
    from loadgen.report.decision import decision_text  # noqa: PLC0415

    return decision_text(decision).lines


def render_across(found: Across) -> str:
    """Several runs beside each other, for a terminal."""
    from loadgen.report.across import across_lines  # noqa: PLC0415
    from loadgen.report.markdown import wrapped  # noqa: PLC0415

    return "\n".join(wrapped(line.strip(), "    " if line.startswith("  ") else "") for line in across_lines(found))
