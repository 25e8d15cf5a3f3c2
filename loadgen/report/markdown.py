"""The report for a terminal and as Markdown: the same data as the page, without its drawings."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from loadgen.report import answer, detail, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadgen.report.rules import Figure
    from loadgen.report.table import Cell, Table

WIDTH_CHARS = 110
_DETAIL_HEADS = (
    "point", "goodput", "e2e p50", "e2e p99", "e2e p99.9", "ack p50", "ack p99", "ack p99.9",
    "CPU producers", "CPU consumers", "CPU broker", "verdicts", "bound by",
)  # fmt: skip


def figure_text(figure: Figure) -> str:
    """`p50 0.34 ms (0.31–0.37 ms, n 7)`, with its caveat."""
    estimate = figure.estimate
    if figure.unit == "count":
        trials = words.plural(len(figure.trial_ids), "trial")
        return f"{figure.what}: {estimate.median or 0:,.0f} messages in {trials}"
    if not estimate.n:
        return f"{figure.what}: no valid trial"
    interval = words.interval(estimate, figure.unit)
    text = f"{figure.what}: {words.shown(estimate.median, figure.unit)} ({interval}, n {estimate.n})"
    return f"{text} [{figure.caveat}]" if figure.caveat else text


def by_point(cell: Cell) -> list[tuple[str, list[Figure]]]:
    """A cell's figures under the point that they belong to."""
    grouped: dict[str, list[Figure]] = {}
    for figure in cell.figures:
        grouped.setdefault(figure.point, []).append(figure)
    return list(grouped.items())


def render_text(table: Table) -> str:
    """What `loadgen compare` and `loadgen run` print: the answer, the measured rows, the comparison."""
    lines = [*(_wrapped(sentence, "") for sentence in answer.sentences(table)), ""]
    measured = [row for row in table.rows if row.is_measured]
    for row in measured:
        for cell in row.cells:
            lines.append(f"{row.feature} · {words.broker_name(cell.broker)}: claimed “{cell.claim}” → {cell.judgement}")
            for point, figures in by_point(cell):
                lines.append(_wrapped(f"{point}: " + "; ".join(figure_text(figure) for figure in figures), "    "))
            lines.append(_wrapped(f"because {cell.reason}", "    "))
    silent = len(table.rows) - len(measured)
    if silent:
        lines.append(f"{silent} of the table's {len(table.rows)} rows are not measured by this run.")
    for block in detail.blocks(table.comparisons):
        lines += ["", *_block_text(block)]
    if table.struck:
        lines += ["", f"Struck out ({len(table.struck)} of {words.plural(len(table.trials), 'trial')}):"]
        lines += [_wrapped(f"{record['id']}: {_why(record)}", "    ") for record in table.struck]
    return "\n".join(lines)


def _why(record: dict[str, object]) -> str:
    verdict = record["verdict"]
    assert isinstance(verdict, dict)
    if record["status"] != "complete":
        return f"{record['status']}: {record['error'] or 'it did not come to its end'}"
    return f"{verdict['status']}: {'; '.join(verdict['reasons']) or 'no reason given'}"


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH_CHARS, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _block_text(block: detail.Block) -> list[str]:
    kind = "response time" if block.is_open_loop else words.CLOSED_LOOP
    head = ["", "goodput", "e2e p50 / p99 / p99.9", "ack p50 / p99", "CPU µs p+c / broker", "n", "bound by"]
    rows = [
        [
            f"{line.broker} ({line.driver}) {line.own_label}".rstrip(),
            line.rate.text,
            " / ".join(each.text for each in line.e2e),
            " / ".join(each.text for each in line.ack[:2]),
            f"{line.cpu[0].text} + {line.cpu[1].text} / {line.cpu[2].text}".replace(" µs", ""),
            str(line.repeats),
            line.bound_by,
        ]
        for line in block.lines
    ]
    lines = [f"{block.scenario}, class {block.durability}: {block.load} ({kind})"]
    lines += _columns([head, *rows])
    lines += [f"  Kafka / RabbitMQ, {what}: {ratio}, {direction}" for what, ratio, direction in block.ratios]
    return lines


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def render_markdown(table: Table, caveats: Iterable[str], charts: Iterable[tuple[str, str]]) -> str:
    """The report as Markdown, for repositories and pull requests; `charts` are (title, relative path)."""
    lines = [f"# RabbitMQ vs Kafka: {table.run_id}", "", " ".join(answer.sentences(table)), ""]
    lines += ["| Feature | RabbitMQ | | Apache Kafka | |", "| --- | --- | --- | --- | --- |"]
    for row in table.rows:
        cells = [text for cell in row.cells for text in (_escaped(cell.claim), _cell_markdown(cell))]
        lines.append(f"| {row.feature} | {' | '.join(cells)} |")
    lines += [
        "",
        "Each cell: the article's claim, then what was measured (median, 95 % interval, repeats n).",
        "",
    ]
    for title, path in charts:
        lines += [f"![{title}]({path})", ""]
    lines += ["## Caveats", "", *(f"- {_escaped(each)}" for each in caveats), "", "## In detail", ""]
    for block in detail.blocks(table.comparisons):
        lines += _block_markdown(block)
    lines += [
        "## Trials",
        "",
        "| trial | goodput | verdict | bound by | why |",
        "| --- | --- | --- | --- | --- |",
    ]
    struck = {record["id"] for record in table.struck}
    for record in table.trials:
        mark = "~~" if record["id"] in struck else ""
        verdict = record["verdict"]
        why = record["error"] or "; ".join(verdict["reasons"])
        goodput = words.rate(record["goodput_msgs_per_s"])
        lines.append(
            f"| {mark}`{record['id']}`{mark} | {mark}{goodput}{mark} | {verdict['status']} "
            f"| {verdict['bound_by']} | {_escaped(why)} |"
        )
    return "\n".join(lines) + "\n"


def _cell_markdown(cell: Cell) -> str:
    parts = [f"**{cell.judgement}**"]
    for point, figures in by_point(cell):
        parts.append(f"{_escaped(point)}: {'; '.join(_escaped(figure_text(figure)) for figure in figures)}")
    if cell.figures:
        parts.append(f"_{_escaped(cell.reason)}_")
    return "<br>".join(parts)


def _block_markdown(block: detail.Block) -> list[str]:
    kind = "response times" if block.is_open_loop else f"service times: {words.CLOSED_LOOP}"
    lines = [f"### {block.scenario}, class {block.durability}: {_escaped(block.load)}", "", f"Times are {kind}.", ""]
    lines += [
        f"| {' | '.join(_DETAIL_HEADS)} |",
        f"| {' | '.join('---' for _ in _DETAIL_HEADS)} |",
    ]
    for line in block.lines:
        quantities = (line.rate, *line.e2e, *line.ack, *line.cpu)
        shown = [f"{each.text}<br><sub>{each.interval}</sub>" if each.interval else each.text for each in quantities]
        name = _escaped(f"{line.broker} ({line.driver}) {line.own_label}".rstrip())
        lines.append(f"| {name} | {' | '.join(shown)} | {line.verdicts} | {line.bound_by} |")
    lines.append("")
    lines += [f"- Kafka / RabbitMQ, {what}: {ratio}, {direction}" for what, ratio, direction in block.ratios]
    return [*lines, ""]


def _escaped(text: str) -> str:
    """Text that cannot break a table or become markup."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ").replace("*", "\\*")
