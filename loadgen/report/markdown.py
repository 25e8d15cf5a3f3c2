"""The report for a terminal and as Markdown: the same data as the page, without its drawings."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from loadgen.record import end_to_end, enters
from loadgen.report import ab, answer, detail, slowest, words
from loadgen.report.capacity import CAPACITY_COLUMNS, CAPACITY_NOTE
from loadgen.report.curve import CURVE_COLUMNS, OVERLOAD_NOTE
from loadgen.report.promises import COST_HEADS, COST_NOTE, PROMISE_HEADS
from loadgen.report.soak import SOAK_HEADS, SOAK_NOTE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from loadgen.record import Record
    from loadgen.report.capacity import CapacityBlock
    from loadgen.report.content import Content
    from loadgen.report.curve import CurveSheet
    from loadgen.report.detail import Quantity
    from loadgen.report.rules import Figure
    from loadgen.report.table import Cell
    from loadgen.runs import Run

    Columns = Sequence[tuple[str, Callable[[Any], Quantity]]]

WIDTH_CHARS = 110
CITED_MAX = 12
"""So many trials or findings are named below a point of a cell; of all trials of a run, no."""
WORST_LINES = 4  # of a worst trial's slow seconds, for a terminal
_TRIAL_HEADS = ("trial", "offered", "goodput", "p50", "p99", "verdict", "bound by", "why")
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
    if figure.is_found:
        return _found_text(figure)
    if not estimate.n:
        return f"{figure.what}: no valid trial"
    interval = words.interval(estimate, figure.unit)
    text = f"{figure.what}: {words.shown(estimate.median, figure.unit)} ({interval}, n {estimate.n})"
    return f"{text} [{figure.caveat}]" if figure.caveat else text


def _found_text(figure: Figure) -> str:
    """`largest message 16 MiB: 406 PRECONDITION_FAILED …`, with an interval where a quantity varies."""
    estimate = figure.estimate
    if not estimate.n:
        return f"{figure.what}: not to be used: {figure.said}"
    text = f"{figure.what}: {words.shown(estimate.median, figure.unit)}"
    if estimate.low is not None:
        text += f" ({words.interval(estimate, figure.unit)}, n {estimate.n})"
    return text


def by_point(cell: Cell) -> list[tuple[str, list[Figure]]]:
    """A cell's figures under the point that they belong to, with its class and what was set for it."""
    grouped: dict[str, list[Figure]] = {}
    for figure in cell.figures:
        grouped.setdefault(_heading(figure), []).append(figure)
    return list(grouped.items())


def _heading(figure: Figure) -> str:
    own = f"class {figure.durability}"
    is_told = not figure.durability or figure.durability == "all" or own in {figure.what, figure.point}
    parts = [figure.point, *([] if is_told else [own]), *([figure.chosen] if figure.chosen else [])]
    return ", ".join(parts)


def render_text(run: Run, content: Content) -> str:
    """What `loadgen compare` and `loadgen run` print: the answer, the measured rows, capacities, the comparison."""
    table = content.table
    lines = [] if run.status == "complete" else [wrapped(f"{run.status}: {run.reason or 'it has not ended'}", "")]
    lines += _decision_text(content)
    lines += [*(wrapped(sentence, "") for sentence in content.sentences), ""]
    lines += _parts_text(content.in_words)
    for row in table.measured:
        for cell in row.cells:
            lines.append(f"{row.feature} · {words.broker_name(cell.broker)}: claimed “{cell.claim}” → {cell.judgement}")
            for point, figures in by_point(cell):
                lines.append(wrapped(f"{point}: " + "; ".join(figure_text(figure) for figure in figures), "    "))
            lines.append(wrapped(f"because {cell.reason}", "    "))
    silent = len(table.rows) - len(table.measured)
    if silent and content.decision is None:
        lines.append(f"{silent} of the table's {len(table.rows)} rows are not measured by this run.")
    for capacities in content.capacities:
        lines += ["", *_capacity_text(capacities)]
    for sheet in content.curves:
        lines += ["", *_curve_text(sheet)]
    lines += _tables_text(content)
    for block in content.blocks:
        lines += ["", *_block_text(block)]
    lines += _slowest_text(run, content)
    if table.struck:
        lines += ["", f"Struck out ({len(table.struck)} of {words.plural(len(table.trials), 'trial')}):"]
        lines += [wrapped(f"{record['id']}: {_why(record)}", "    ") for record in table.struck]
    return "\n".join(lines)


def _decision_text(content: Content) -> list[str]:
    if content.decision is None:
        return []
    return [wrapped(content.decision.headline, ""), "", *_parts_text(content.decision.parts)]


def _parts_text(parts: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Sentences below their headings."""
    lines: list[str] = []
    for head, said in parts:
        lines += [f"{head}:", *(wrapped(line, "  ") for line in said), ""]
    return lines


def _tables_text(content: Content) -> list[str]:
    """What faults showed, and what hours did."""
    lines: list[str] = []
    if content.promises:
        lines += ["", "Promises under faults", *_columns([PROMISE_HEADS, *(line.cells for line in content.promises)])]
        lines += ["", wrapped(content.promise_note, "")]
        lines += ["", "What faults cost", *_columns([COST_HEADS, *(line.cost for line in content.promises)])]
    for soaked in content.soaks:
        lines += ["", f"Over time: {soaked.title}", *_columns([SOAK_HEADS, *(line.cells for line in soaked.lines)])]
    return lines


def _capacity_text(block: CapacityBlock) -> list[str]:
    """The table without what the first rate above showed, which is a sentence and follows."""
    columns = CAPACITY_COLUMNS[:-1]
    rows = [[_name(line), *(_one_line(of(line)) for _, of in columns)] for line in block.lines]
    lines = [f"Capacity: {block.scenario}, class {block.durability}: {block.load}"]
    lines += _columns([["", *(head for head, _ in columns)], *rows])
    lines += [wrapped(f"{_name(line)}: {line.above}; {line.effort}", "    ") for line in block.lines]
    lines += [wrapped(note, "    ") for note in block.notes]
    return [*lines, *([f"  Kafka / RabbitMQ, capacity: {block.ratio}"] if block.ratio else [])]


def _curve_text(sheet: CurveSheet) -> list[str]:
    heads = [head for head, _ in CURVE_COLUMNS]
    rows = [[of(line).text for _, of in CURVE_COLUMNS] for line in sheet.lines]
    lines = [f"Latency against load: {_name(sheet)}, {sheet.scenario}, class {sheet.durability}: {sheet.load}"]
    lines += [*_columns([heads, *rows]), wrapped(sheet.knee, "  ")]
    return [*lines, *([wrapped(OVERLOAD_NOTE, "  ")] if sheet.has_overload else [])]


def _slowest_text(run: Run, content: Content) -> list[str]:
    said = slowest.lead(content.table.tails, content.table.short)
    if not said:
        return []
    lines = ["", wrapped(f"The slowest seconds: {said}", "")]
    for tail in content.worst:
        broker = words.broker_name(run.trial(tail.trial_id)["broker"])
        lines.append(wrapped(f"{broker}'s worst trial, {tail.trial_id}:", "  "))
        lines += [wrapped(line, "    ") for line in tail.lines()[:WORST_LINES]]
    return lines


def _name(line: Any) -> str:
    """`RabbitMQ (amqp) prefetch 10`."""
    return f"{line.broker} ({line.driver}) {line.own_label}".rstrip()


def _one_line(quantity: Quantity) -> str:
    return f"{quantity.text} ({quantity.interval})" if quantity.interval else quantity.text


def _why(record: dict[str, object]) -> str:
    verdict = record["verdict"]
    assert isinstance(verdict, dict)
    if record["status"] != "complete":
        return f"{record['status']}: {record['error'] or 'it did not come to its end'}"
    return f"{verdict['status']}: {'; '.join(verdict['reasons']) or 'no reason given'}"


def wrapped(text: str, indent: str) -> str:
    """Text of at most 110 characters a line, each indented."""
    return textwrap.fill(text, WIDTH_CHARS, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _block_text(block: detail.Block) -> list[str]:
    kind = "response time" if block.is_open_loop else words.CLOSED_LOOP
    head = ["", "goodput", "e2e p50 / p99 / p99.9", "ack p50 / p99", "CPU µs p+c / broker", "n", "bound by"]
    rows = [
        [
            _name(line),
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
    lines += [wrapped(note, "  ") for note in block.notes]
    return lines


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def render_markdown(run: Run, content: Content, charts: Iterable[tuple[str, str]]) -> str:
    """The report as Markdown, for repositories and pull requests; `charts` are (title, relative path)."""
    table = content.table
    what = "A against B" if content.variants else "RabbitMQ vs Kafka"
    lines = [f"# {what}: {table.run_id}", "", *_decision_markdown(content)]
    lines += [" ".join(map(escaped, content.sentences)), "", *_parts_markdown(content.in_words)]
    lines += _variants_markdown(content)
    lines += [*_claims_markdown(content), *_capacity_markdown(content)]
    for title, path in charts:
        lines += [f"![{escaped(title)}]({path})", ""]
    lines += ["## Caveats", "", *(f"- {escaped(each)}" for each in content.caveats), ""]
    lines += _promises_markdown(content)
    lines += _soak_markdown(content)
    lines += _slowest_markdown(content)
    lines += ["## In detail", ""]
    for block in content.blocks:
        lines += _block_markdown(block)
    if content.has_single_runs:
        lines += [detail.ONE_RUN_NOTE, ""]
    lines += _where_markdown(run)
    lines += _findings_markdown(content)
    lines += ["## Trials", "", *_trials_markdown(table.trials)]
    for search in content.searches:
        name = f"`{search.id}`: {escaped(search.answer)}" if search.id else escaped(search.answer)
        lines += ["", f"<details><summary>{name}</summary>", "", *_trials_markdown(search.probes), "", "</details>"]
    return "\n".join(lines) + "\n"


def _claims_markdown(content: Content) -> list[str]:
    """The article's table, claim by claim."""
    if not content.rows:
        return []
    lines = ["| Feature | RabbitMQ | | Apache Kafka | |", "| --- | --- | --- | --- | --- |"]
    for row in content.rows:
        cells = [text for cell in row.cells for text in (escaped(cell.claim), _cell_markdown(cell))]
        lines.append(f"| {row.feature} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Each cell: the article's claim, then what was measured (median, 95 % interval, repeats n).",
        "",
    ]


def _where_markdown(run: Run) -> list[str]:
    """The machine, the brokers with what differs from their defaults, and the command."""
    facts = [*answer.machine(run), ("Profile", run.header.get("profile")), ("Command", words.command(run.header))]
    lines = [
        "## Where it was measured",
        "",
        *(f"- {name}: {escaped(str(value))}" for name, value in facts if value),
        "",
    ]
    for name, broker in (run.header["brokers"] or {}).items():
        differs = [f"`{each}`" for each in broker.get("deviations") or ()]
        said = f"differs from what is shipped: {', '.join(differs)}" if differs else "as shipped"
        version = broker.get("version") or "of unknown version"
        lines.append(f"- {words.broker_name(name)} {version} from {broker.get('source')}; {said}")
    return [*lines, ""]


def _findings_markdown(content: Content) -> list[str]:
    """What probes found, each with the broker's own word."""
    found = content.table.findings
    if not found:
        return []
    heads = ("finding", "under", "quantity", "found", "the broker's own word")
    lines = ["## Findings of the probes", "", row_markdown(heads), row_markdown("---" for _ in heads)]
    for each in found:
        mark = "~~" if each["agrees"] is False or each["error"] else ""
        values = ", ".join(words.shown(value, each["unit"]) for value in each["values"])
        cells = (f"{mark}`{each['id']}`{mark}", each["point"], each["what"], values, each["error"] or each["said"])
        lines.append(row_markdown(map(escaped, map(str, cells))))
    return [*lines, ""]


def _decision_markdown(content: Content) -> list[str]:
    if content.decision is None:
        return []
    lines = [f"**{escaped(content.decision.headline)}**", "", *_parts_markdown(content.decision.parts)]
    return [*lines, "## The run behind it", ""]


def _parts_markdown(parts: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    lines: list[str] = []
    for head, said in parts:
        lines += [f"## {head}", "", *(f"- {escaped(line)}" for line in said), ""]
    return lines


def _variants_markdown(content: Content) -> list[str]:
    if content.variants is None:
        return []
    columns = ab.columns(content.variants.effect_ratio)
    lines = ["## A against B", ""]
    for block in content.variants.blocks:
        lines += [f"### {escaped(_name(block))}", "", f"What differs: {escaped(block.in_words)}.", ""]
        lines += [*_table_markdown([head for head, _ in columns], columns, block.lines), ""]
        lines += [f"{words.plural(block.struck, 'trial')} struck out.", ""] if block.struck else []
    return [*lines, content.variants.multiplicity, ""]


def _capacity_markdown(content: Content) -> list[str]:
    if not content.capacities and not content.curves:
        return []
    lines = ["## Capacity", "", CAPACITY_NOTE, ""]
    for block in content.capacities:
        lines += [f"### {block.scenario}, class {block.durability}: {escaped(block.load)}", ""]
        lines += _table_markdown(["", *(head for head, _ in CAPACITY_COLUMNS)], CAPACITY_COLUMNS, block.lines)
        lines += [f"- {escaped(note)}" for note in block.notes]
        lines += [f"- Kafka / RabbitMQ, capacity: {block.ratio}"] if block.ratio else []
        lines.append("")
    for sheet in content.curves:
        lines += [f"### Latency against load: {escaped(_name(sheet))}, class {sheet.durability}", ""]
        lines += [f"{sheet.scenario}, {escaped(sheet.load)}: {escaped(sheet.knee)}.", ""]
        lines += [*_table_markdown([head for head, _ in CURVE_COLUMNS], CURVE_COLUMNS, sheet.lines), ""]
        lines += [OVERLOAD_NOTE, ""] if sheet.has_overload else []
    return lines


def _table_markdown(heads: Sequence[str], columns: Columns, lines: Sequence[Any]) -> list[str]:
    """A table of quantities; where there is a head more than columns, each line's name comes first."""
    names = [[escaped(_name(line))] if len(heads) > len(columns) else [] for line in lines]
    rows = [
        [*name, *(quantity_markdown(of(line)) for _, of in columns)] for name, line in zip(names, lines, strict=True)
    ]
    return [row_markdown(heads), row_markdown(["---"] * len(heads)), *map(row_markdown, rows)]


def row_markdown(cells: Iterable[str]) -> str:
    """A table's row of texts that are escaped already."""
    return f"| {' | '.join(cells)} |"


def quantity_markdown(quantity: Quantity) -> str:
    """A figure, and below it its interval."""
    text, interval = escaped(quantity.text), escaped(quantity.interval)
    return f"{text}<br><sub>{interval}</sub>" if interval else text


def _promises_markdown(content: Content) -> list[str]:
    if not content.promises:
        return []
    lines = ["## Promises under faults", "", escaped(content.promise_note), ""]
    lines += [row_markdown(PROMISE_HEADS), row_markdown("---" for _ in PROMISE_HEADS)]
    lines += [*(row_markdown(map(escaped, line.cells)) for line in content.promises), ""]
    lines += [COST_NOTE, "", row_markdown(COST_HEADS), row_markdown("---" for _ in COST_HEADS)]
    return [*lines, *(row_markdown(map(escaped, line.cost)) for line in content.promises), ""]


def _soak_markdown(content: Content) -> list[str]:
    if not content.soaks:
        return []
    lines = ["## Over time", "", SOAK_NOTE, ""]
    for block in content.soaks:
        lines += [f"### {escaped(block.title)}", "", f"{block.answer} {block.kept}", ""]
        lines += [row_markdown(SOAK_HEADS), row_markdown("---" for _ in SOAK_HEADS)]
        lines += [*(row_markdown(map(escaped, line.cells)) for line in block.lines), ""]
    return lines


def _slowest_markdown(content: Content) -> list[str]:
    said = slowest.lead(content.table.tails, content.table.short)
    if not said:
        return []
    lines = ["## The slowest seconds", "", said, ""]
    lines += [slowest.SLOWEST_NOTE, ""] if content.table.tails else []
    for tail in content.worst:
        lines += [f"- `{tail.trial_id}`", *(f"  - {escaped(line)}" for line in tail.lines())]
    return [*lines, ""]


def _trials_markdown(trials: Iterable[Record]) -> list[str]:
    lines = [row_markdown(_TRIAL_HEADS), row_markdown("---" for _ in _TRIAL_HEADS)]
    for record in trials:
        mark = "" if enters(record) else "~~"
        verdict, latency = record["verdict"], record["latency_ns"].get(end_to_end(record)) or {}
        why = record["error"] or "; ".join(verdict["reasons"])
        figures = (
            f"`{record['id']}`", words.offered(record["offered_msgs_per_s"]), words.rate(record["goodput_msgs_per_s"]),
            *(words.duration(latency.get(name)) for name in ("p50", "p99")),
        )  # fmt: skip
        cells = (*(f"{mark}{each}{mark}" for each in figures), verdict["status"], verdict["bound_by"], escaped(why))
        lines.append(row_markdown(cells))
    return lines


def _cell_markdown(cell: Cell) -> str:
    parts = [f"**{cell.judgement}**"]
    for point, figures in by_point(cell):
        parts.append(f"{escaped(point)}: {'; '.join(escaped(figure_text(figure)) for figure in figures)}")
        ids = dict.fromkeys(name for figure in figures for name in (*figure.trial_ids, *figure.struck_ids))
        if len(ids) <= CITED_MAX:
            parts.append(f"<sub>{' '.join(f'`{name}`' for name in ids)}</sub>")
    if cell.figures:
        parts.append(f"_{escaped(cell.reason)}_")
    return "<br>".join(parts)


def _block_markdown(block: detail.Block) -> list[str]:
    kind = "response times" if block.is_open_loop else f"service times: {words.CLOSED_LOOP}"
    lines = [f"### {block.scenario}, class {block.durability}: {escaped(block.load)}", "", f"Times are {kind}.", ""]
    lines += [row_markdown(_DETAIL_HEADS), row_markdown(["---"] * len(_DETAIL_HEADS))]
    for line in block.lines:
        quantities = (line.rate, *line.e2e, *line.ack, *line.cpu)
        shown = [quantity_markdown(each) for each in quantities]
        name = escaped(_name(line))
        lines.append(f"| {name} | {' | '.join(shown)} | {line.verdicts} | {line.bound_by} |")
    lines.append("")
    lines += [f"- Kafka / RabbitMQ, {what}: {ratio}, {direction}" for what, ratio, direction in block.ratios]
    lines += [f"- {escaped(note)}" for note in block.notes]
    return [*lines, ""]


def escaped(text: str) -> str:
    """Text that cannot break a table or become markup."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ").replace("*", "\\*")
