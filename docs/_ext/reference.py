"""The reference, made from the code when the site is built: each page is a pure function that returns Markdown.

As a Sphinx extension it writes them into `docs/reference/`, which git does not keep.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knob_reference import knob_page
from tables import block, code, codes, page, table

from loadgen import errors
from loadgen.arguments import EXAMPLES, make_parser, parsers
from loadgen.exposition import BOUNDS, OPENTELEMETRY, TRIAL_LABELS, Exposition, Shown, families
from loadgen.gate.metrics import OWN, PERCENTILES, metric, names
from loadgen.record import LATENCY_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "loadgen/run.schema.json"
ARRAYS = {"trials": "trial", "searches": "searches", "ceilings": "ceilings", "findings": "findings"}
"""The run's lists of records, and what their fields are called here."""
UNITS = ("messages_per_second", "seconds", "bytes", "messages", "requests", "connections", "consumers", "trials")
USAGE_COLUMNS = 100


def metric_page() -> str:
    """What Prometheus sees, and what a limit can speak of."""
    return page(
        "Metrics",
        "Made from the code. [Metrics for Prometheus](../metrics.md) tells how to see the first table, and "
        "[A gate for CI](../gate.md) what limits on the second are.",
        "## Prometheus",
        f"*Labels* are those beside {codes(TRIAL_LABELS)}, which every metric of a trial has.",
        prometheus_table(),
        "## Limits",
        "What `[[limit]]`, `[[relative]]` and `[[ratio]]` of `loadgen check` take as `metric`. Latencies may be named "
        "in `ms`, `us` or `s`. *Worse* is the direction that fails a relative limit.",
        table(("metric", "unit", "worse", "meaning"), _gate_rows()),
        "## Records",
        "Every other figure of a trial is a field of its record: [the schema of a run](results-schema.md). "
        "`Run.trials` has them as columns, latencies as `e2e_p99_ns`, which `loadgen history --metric` takes.",
    )


def prometheus_table() -> str:
    """A row for each metric that a run serves; docs/metrics.md has it, too."""
    head = ("metric", "type", "unit", "labels", "OpenTelemetry", "meaning")
    return table(head, map(_prometheus_row, prometheus_metrics()))


def prometheus_metrics() -> list[Metric]:
    """Every metric of the page that a run serves, with one sample at least."""
    shown = Exposition()
    shown.plan(1)
    shown.end({"id": "", "verdict": {"status": "valid"}})
    count = dict.fromkeys(("sent", "received", "acked", "failed_requests"), 1)
    every = _Anything()
    latencies = {kind: ([0] * (len(BOUNDS) + 1), 0) for kind in ("e2e", "ack_service")}
    trial = Shown(("",) * len(TRIAL_LABELS), count, {"": 1}, latencies, every, every)
    plan = [each for each in shown.collect() if each.samples]
    return [*plan, *families([trial])]


class _Anything(dict[str, Any]):
    """A record that has every field."""

    def get(self, key: str, default: Any = None) -> Any:
        del key, default
        return 1


def _prometheus_row(each: Metric) -> tuple[str, ...]:
    name = each.name + "_total" * (each.type == "counter")
    labels = list(dict.fromkeys(label for sample in each.samples for label in sample.labels))
    own = [label for label in labels if label not in {*TRIAL_LABELS, "le"}]
    unit = next((unit for unit in UNITS if unit in each.name), "messages")
    convention = code(OPENTELEMETRY[each.name]) if each.name in OPENTELEMETRY else ""
    return code(name), each.type, unit.replace("_per_second", "/s"), codes(own), convention, each.documentation


def _gate_rows() -> Iterator[tuple[str, ...]]:
    record = json.loads(SCHEMA.read_text(encoding="utf-8"))["properties"]["trials"]["items"]["properties"]
    kinds = record["latency_ns"]["properties"]
    for kind in LATENCY_KINDS:
        own = [f"{kind}_{each}_ms" for each in PERCENTILES]
        yield codes(own), "ms", metric(own[0]).worse, kinds[kind]["description"].replace(" (ns)", "")
    for name in names():
        if not name.endswith("_ms"):
            found = metric(name)
            yield code(name), found.unit, found.worse, OWN.get(name) or record[name]["description"]


def schema_page() -> str:
    """Every field of run.json."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    rows = list(schema_rows(schema))
    own = [row for row in rows if row[0].partition(".")[0] not in ARRAYS.values() or "." not in row[0]]
    parts = [
        f"## {name}\n\n{schema['properties'][name]['items']['description']}\n\n"
        + _schema_table(row for row in rows if row[0].startswith(f"{prefix}."))
        for name, prefix in ARRAYS.items()
    ]
    return page(
        "The schema of a run",
        f"Made from `loadgen/run.schema.json`, version {schema['properties']['schema_version']['const']}. "
        "[A run on disk](../results.md) tells what stands beside `run.json`, and what a trial cannot know. Units are "
        "in the names, or in brackets. Every field is always there: `null` is what nobody knows, or what there is not.",
        "## run.json",
        _schema_table(own),
        *parts,
    )


def schema_rows(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, type and meaning of every field, the nested ones behind their parent."""
    for name, field in schema.get("properties", {}).items():
        path = prefix + name
        yield path, _types(field), field["description"]
        below = ARRAYS[name] if not prefix and name in ARRAYS else path
        if name == "latency_ns":  # of one form for each kind, which therefore stands there once
            kinds = field["properties"].items()
            yield from ((f"{path}.{kind}", _types(each), each["description"]) for kind, each in kinds)
            yield from schema_rows(field["additionalProperties"], f"{path}.<kind>.")
            continue
        yield from schema_rows(field, f"{below}.")
        if isinstance(field.get("items"), dict):
            yield from schema_rows(field["items"], f"{below}.")
        if isinstance(field.get("additionalProperties"), dict):
            yield from schema_rows(field["additionalProperties"], f"{below}.<{name.removesuffix('s')}>.")


def _schema_table(rows: Any) -> str:
    return table(("field", "type", "meaning"), [(code(path), types, text) for path, types, text in rows])


def _types(field: dict[str, Any]) -> str:
    if "const" in field:
        return code(json.dumps(field["const"]))
    if "enum" in field:
        return codes(json.dumps(value) if not isinstance(value, str) else value for value in field["enum"])
    given = field.get("type", "any")
    return ", ".join([given] if isinstance(given, str) else given)


def cli_page() -> str:
    """Every command, with its usage, what it takes, and an example."""
    whole = make_parser(argparse.ArgumentParser)
    return page(
        "Command line",
        "Made from the parser: `loadgen COMMAND --help` says the same.",
        "## Exit status",
        table(("status", "name", "meaning"), _statuses(whole.epilog or "")),
        *(_command(each) for each in parsers(whole)),
    )


def _statuses(epilog: str) -> Iterator[tuple[str, str, str]]:
    """Each exit status that the code has, in the words of `loadgen --help`."""
    told = dict(re.findall(r"(\d+) ([^,.]+(?:, (?!\d)[^,.]+)*)", epilog.partition(": ")[2]))
    for name, value in sorted(vars(errors).items(), key=lambda each: str(each[1]).zfill(4)):
        if name.startswith("EXIT_"):
            yield code(str(value)), code(name), told[str(value)]


def _command(parser: argparse.ArgumentParser) -> str:
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=USAGE_COLUMNS)
    example = EXAMPLES.get(parser.prog.partition(" ")[2])
    parts = [
        f"## {parser.prog}",
        command_text(parser),
        block("text", parser.format_usage()),
        table(("argument", "values", "default", "meaning"), [_argument(each) for each in arguments_of(parser)]),
        block("console", f"$ {example}") if example else "",
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part)


def command_text(parser: argparse.ArgumentParser) -> str:
    """What a command is for: its description, else the line that stands in the list of commands."""
    if parser.description:
        return parser.description
    above, _, name = parser.prog.rpartition(" ")
    whole = make_parser(argparse.ArgumentParser)
    (parent,) = (each for each in parsers(whole) if each.prog == above)
    (text,) = (
        choice.help
        for action in parent._actions
        if isinstance(action, argparse._SubParsersAction)
        for choice in action._choices_actions
        if choice.dest == name
    )
    return f"{str(text)[0].upper()}{str(text)[1:]}" + "." * (not str(text).endswith("?"))


def arguments_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What a command takes, `--help` aside."""
    return [each for each in parser._actions if not isinstance(each, argparse._HelpAction)]


def _argument(action: argparse.Action) -> tuple[str, str, str, str]:
    if isinstance(action, argparse._SubParsersAction):
        return code(str(action.metavar)), codes(action.choices), "required", "What is to be done."
    name = code(", ".join(action.option_strings) or str(action.metavar or action.dest))
    metavar = action.metavar if action.option_strings else None
    values = codes(action.choices) if action.choices else code(str(metavar)) if metavar else ""
    is_needed = action.required and action.nargs != "*"
    default = "required" if is_needed else _default(action.default)
    return name, values, default, action.help or ""


def _default(value: Any) -> str:
    return "" if value in (None, False, [], ()) else code(str(value))


def overview_page() -> str:
    """The README, whose links are seen from here."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\((?:docs/)?(?!https?:|#)", lambda found: "](../" if "docs/" in found[0] else "](../../", text)


PAGES: dict[str, Callable[[], str]] = {
    "overview": overview_page,
    "knobs": knob_page,
    "metrics": metric_page,
    "results-schema": schema_page,
    "cli": cli_page,
}


def write(app: Sphinx) -> None:
    """Write the pages that have changed, so that Sphinx reads no other."""
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    for name, made in PAGES.items():
        path, text = folder / f"{name}.md", made()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the pages before Sphinx looks which there are."""
    app.connect("config-inited", lambda app, _: write(app))
    return {"parallel_read_safe": True}
