"""What CI reads of a check: JUnit XML, a Markdown summary, and the JSON of Bencher and of github-action-benchmark.

Formats: JUnit as Jenkins, GitLab and GitHub's reporters read it (a test case a limit; what is missed is a failure, what
cannot be told is skipped); Bencher's Metric Format (bencher.dev/docs/reference/bencher-metric-format);
github-action-benchmark's `customSmallerIsBetter` and `customBiggerIsBetter`, which take a file each.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from loadgen.gate.judging import count, counts, points, usable
from loadgen.stats.confidence import estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.gate.judging import Finding
    from loadgen.gate.metrics import Metric
    from loadgen.run import Run

MARKS = {"kept": "✓", "missed": "✗", "cannot tell": "?"}
SLUG_MAX = 64
"""Bencher's for the name of a measure."""


def junit(found: Sequence[Finding], run: Run) -> str:
    """A test suite of the run with a case for each limit at each point."""
    told = count(found)
    suite = ET.Element(
        "testsuite", name=f"loadgen check {run.id}", tests=str(len(found)), failures=str(told["missed"]),
        errors="0", skipped=str(told["cannot tell"]), timestamp=str(run.header.get("created_utc", ""))[:19],
    )  # fmt: skip
    for each in found:
        case = ET.SubElement(suite, "testcase", classname=each.point, name=each.limit.text, time="0")
        if each.outcome == "missed":
            ET.SubElement(case, "failure", message=each.said, type="missed").text = each.line
        elif each.outcome == "cannot tell":
            ET.SubElement(case, "skipped", message=each.said)
        else:
            ET.SubElement(case, "system-out").text = each.said
    return _document(suite)


def _document(suite: ET.Element) -> str:
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def summary(found: Sequence[Finding], run: Run, notes: Sequence[str] = (), baseline: Run | None = None) -> str:
    """Markdown for a pull request or a job's summary page: what was missed first."""
    told = count(found)
    against = f" against `{baseline.id}`" if baseline is not None else ""
    head = f"{told['missed']} missed, {told['cannot tell']} cannot be told, {told['kept']} kept"
    lines = [f"### loadgen check: {head}", "", f"Run `{run.id}`{against}.", ""]
    lines += ["| | point | limit | what was found |", "| --- | --- | --- | --- |"]
    order = {"missed": 0, "cannot tell": 1, "kept": 2}
    for each in sorted(found, key=lambda each: order[each.outcome]):
        cells = (f"{MARKS[each.outcome]} {each.outcome}", f"`{each.point}`", each.limit.text, each.said)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines).rstrip() + "\n"


def refusal(run_id: str, why: str) -> tuple[str, str]:
    """JUnit and summary of a run that was not checked: a suite with one error, which no CI takes for a pass."""
    suite = ET.Element("testsuite", name=f"loadgen check {run_id}", tests="1", failures="0", errors="1", skipped="0")
    case = ET.SubElement(suite, "testcase", classname=run_id, name="the run can be checked", time="0")
    ET.SubElement(case, "error", message=why, type="refused").text = why
    return _document(suite), f"### loadgen check: not checked\n\n{why}\n"


def bencher(found: Sequence[Finding], run: Run) -> str:
    """Bencher's Metric Format: each point's metrics with the interval over repeats."""
    document: dict[str, dict[str, dict[str, float]]] = {}
    for point, metric, values in _measured(found, run):
        value, ends = _told(metric, values)
        entry = {"value": value} | (dict(zip(("lower_value", "upper_value"), ends, strict=True)) if ends else {})
        document.setdefault(point, {})[metric.name[:SLUG_MAX].replace("_", "-")] = entry
    return json.dumps(document, indent=1) + "\n"


def benchmark_action(found: Sequence[Finding], run: Run, worse: str) -> str:
    """github-action-benchmark's list of those metrics that get worse this way (`higher`, `lower`)."""
    rows: list[dict[str, Any]] = []
    for point, metric, values in _measured(found, run):
        if metric.worse != worse:
            continue
        value, ends = _told(metric, values)
        row = {"name": f"{point} {metric.name}", "unit": metric.unit, "value": value}
        if ends:
            row["range"] = f"{ends[0]:.4g} … {ends[1]:.4g}"
        row["extra"] = f"{len(values)} repeats of run {run.id}"
        rows.append(row)
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def _told(metric: Metric, values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """The median with its interval over repeats; of counts the largest, which are no sample."""
    over = estimate(values)
    if metric.is_count or over.median is None or over.dropped:
        return max(values), None
    return over.median, None if over.low is None or over.high is None else (over.low, over.high)


def _measured(found: Sequence[Finding], run: Run) -> list[tuple[str, Metric, list[float]]]:
    """Each point and metric that a limit speaks of, once, with the repeats' values; of a ratio those of each broker.

    A ratio has no side that is worse, and what is drawn over time has one: so its brokers are told, each by itself.
    """
    of = points(run)
    asked = dict.fromkeys(
        (point, each.limit.metric)
        for each in found
        for point, records in of.items()
        if point == each.point or (each.limit.kind == "ratio" and each.limit.fits(records[0]))
    )
    measured = [
        (point, metric, list(counts(metric, of[point]).values()) if metric.is_count else usable(metric, of[point]))
        for point, metric in asked
    ]
    return [each for each in measured if each[2]]
