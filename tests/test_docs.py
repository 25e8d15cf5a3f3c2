"""The documentation: built without a warning, its links and anchors lead somewhere, its reference is complete."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import reference
from knob_reference import BROKERS, drivers_of, fault_parts, fields, knob_page, knob_table
from links import PAGES, on_site
from tables import cell

from loadgen.arguments import EXAMPLES, make_parser, parsers
from loadgen.exposition import OPENTELEMETRY
from loadgen.gate.metrics import names
from loadgen.part import Part
from loadgen.scenario import FromFile, Kafka, LogNormal, Message, RabbitMQ, Rate, Scenario, Uniform

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = DOCS / "reference"
WRITTEN = sorted(path for path in [ROOT / "README.md", *DOCS.rglob("*.md")] if MADE not in path.parents)
PARTS: list[type[Part]] = [Scenario, Message, Uniform, LogNormal, FromFile, Rate, *BROKERS.values(), *fault_parts()]
LINK = re.compile(r"(?<!`)!?\[[^\]\n]*\]\(([^)\s]+)\)")


def built(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Sphinx as `make docs` starts it."""
    words = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-d", str(target / "trees")]
    return subprocess.run(
        [*words, str(source), str(target / "html")], check=False, capture_output=True, text=True, timeout=200
    )


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Every page is there, the ones made from the code too, and those that link to code lead to them."""
    done = built(DOCS, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    pages = {str(path.relative_to(tmp_path / "html")) for path in (tmp_path / "html").rglob("*.html")}
    assert pages >= {str(path.relative_to(DOCS).with_suffix(".html")) for path in DOCS.rglob("*.md")}
    assert pages >= {f"reference/{name}.html" for name in reference.PAGES}
    assert 'href="reference/results-schema.html"' in (tmp_path / "html/results.html").read_text()


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    """A warning is an error: of a page, of an anchor, of a file of the project."""
    source = tmp_path / "docs"
    (source / "_ext").mkdir(parents=True)
    shutil.copy(DOCS / "conf.py", source)
    shutil.copy(DOCS / "_ext/links.py", source / "_ext")
    (source / "_ext/reference.py").write_text("def setup(app): pass\n")
    links = ("nowhere.md", "index.md#nowhere", "../nowhere.py")
    (source / "index.md").write_text("# Page\n\n" + "\n\n".join(f"[gone]({link})" for link in links) + "\n")
    done = built(source, tmp_path)
    assert done.returncode == 1
    assert len([line for line in done.stderr.splitlines() if "nowhere" in line]) == len(links), done.stderr


def slugs(path: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: dict[str, int] = {}
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        number = found[slug] = found.get(slug, -1) + 1
        anchors.add(f"{slug}-{number}" if number else slug)
    return anchors


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere_on_github(path: Path) -> None:
    """Every link to a file or heading of the project, from pages as they are in git: none to a page that is made."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in LINK.findall(text):
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{link}: no such file"
        assert MADE not in target.parents, f"{link}: is made when the site is built; link to the code"
        assert not anchor or anchor in slugs(target), f"{link}: no such heading"


def test_links_to_described_code_lead_to_its_description() -> None:
    """Seen from each folder; other files stay what they are."""
    assert on_site("[a](../loadgen/run.schema.json)", "results") == "[a](reference/results-schema.md)"
    assert on_site("[a](../../loadgen/scenario.py)", "howto/tune-a-scenario") == "[a](../reference/knobs.md)"
    assert on_site("[a](../README.md#use)", "index") == "[a](reference/overview.md#use)"
    assert on_site("[a](../Makefile)", "index") == "[a](../Makefile)"
    for code, page in PAGES.items():
        assert (ROOT / code).is_file()
        assert Path(page).stem in reference.PAGES


def rows(page: str) -> dict[str, list[list[str]]]:
    """A page's tables: the cells of each row, by the code in its first cell."""
    found: dict[str, list[list[str]]] = {}
    for line in page.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for name in re.findall(r"`([^`]+)`", cells[0]):
                found.setdefault(name, []).append(cells)
    return found


@pytest.fixture(scope="module")
def knobs() -> str:
    """The page of knobs."""
    return knob_page()


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_knob_is_described(part: type[Part], knobs: str) -> None:
    """With what it may be, what it is by default, and what it means; a broker's, with drivers that know it."""
    section = re.split(rf"^##+ {part.__name__}$", knobs, flags=re.MULTILINE)[1].partition("\n#")[0]
    told = rows(section)
    for name, _ in fields(part):
        (cells,) = told[name]
        _, values, _, default, last, meaning = cells
        assert values, name
        assert default, name
        assert last, f"{name}: no driver knows it"
        assert len(meaning) > 8, name


def test_a_knob_without_a_docstring_is_found() -> None:
    """The page is not made."""

    class Mute(Part):
        """Says nothing of its knob."""

        knob: int = 1

    with pytest.raises(ValueError, match="knob: has no docstring"):
        knob_table(Mute)


def test_drivers_are_those_that_can_do_it() -> None:
    """By capabilities, by the knobs of streams, and for knobs that follow from another one."""
    assert drivers_of("rabbitmq", "channels_per_connection") == ["amqp"]
    assert drivers_of("rabbitmq", "sub_entry_size") == ["stream"]
    assert drivers_of("rabbitmq", "credits") == ["stream", "rstream"]
    assert drivers_of("rabbitmq", "prefetch") == ["amqp", "pika", "pika-blocking", "aio-pika"]
    assert drivers_of("kafka", "transaction_ms") == ["kafka", "confluent"]
    assert drivers_of("kafka", "linger_ms") == ["kafka", "confluent", "confluent-sync"]


def schema_fields(schema: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Name and description of every property, however deep."""
    for name, field in schema.get("properties", {}).items():
        yield name, field.get("description")
        yield from schema_fields(field)
    for inner in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(inner, dict):
            yield from schema_fields(inner)


def test_every_field_of_the_schema_is_described() -> None:
    """In its own words, with its type."""
    found = rows(reference.schema_page()).items()
    told = {(name.rpartition(".")[2], cells[2]) for name, every in found for cells in every}
    assert all(cells[1] for _, every in found for cells in every)
    for name, description in schema_fields(json.loads(reference.SCHEMA.read_text())):
        assert description, name
        assert (name, cell(description)) in told, name


def test_every_metric_is_described() -> None:
    """Prometheus' with type, unit and meaning; those of limits with unit and direction."""
    told = rows(reference.metric_page())
    for each in reference.prometheus_metrics():
        (cells,) = told[each.name + "_total" * (each.type == "counter")]
        assert cells[1] in {"counter", "gauge", "histogram"}
        assert cells[2]
        assert len(cells[5]) > 8, each.name
    for name in names():
        (cells,) = told[name]
        assert cells[1]
        assert cells[2] in {"higher", "lower"}
        assert len(cells[3]) > 8, name


def test_the_page_on_metrics_has_the_table_of_what_is_exposed() -> None:
    """Every name with its type, unit, labels and meaning, as the reference makes it of the code: copy it from there."""
    assert reference.prometheus_table() in (DOCS / "metrics.md").read_text(), reference.prometheus_table()
    conventions = {
        each.name: each.name.removesuffix("_seconds").replace("_", ".") for each in reference.prometheus_metrics()
    }
    shared = {name: told for name, told in conventions.items() if name.startswith("messaging_")}
    assert shared == OPENTELEMETRY


def test_every_command_and_option_is_described() -> None:
    """And every command that does something has an example, which is one."""
    page = reference.cli_page()
    for parser in parsers(make_parser(argparse.ArgumentParser)):
        section = re.split(rf"^## {parser.prog}$", page, flags=re.MULTILINE)[1].partition("\n## ")[0]
        assert len(section.splitlines()[2]) > 8, parser.prog
        told = rows(section)
        for action in reference.arguments_of(parser):
            name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            assert len(told[name][0][3]) > 4, f"{parser.prog} {name}"
        if not any("{" not in (each.metavar or "") and each.dest in {"command", "action"} for each in parser._actions):
            assert f"$ {EXAMPLES[parser.prog.partition(' ')[2]]}" in section


def test_every_exit_status_is_told() -> None:
    """As `loadgen --help` does."""
    assert set(rows(reference.cli_page().partition("## loadgen")[0])) >= {"0", "1", "2", "3", "64", "69", "71", "130"}


def test_every_system_of_the_article_is_driven_by_what_there_is() -> None:
    """Twelve rows; each scenario that a row names is a file, and each knob one of a scenario's or a broker's."""
    page = (DOCS / "systems.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 12
    known = {*Scenario.model_fields, *RabbitMQ.model_fields, *Kafka.model_fields, *Message.model_fields}
    for _, scenarios, knobs, _ in rows:
        for path in re.findall(r"`(scenarios/[^`]+)`", scenarios):
            assert (ROOT / path).is_file(), path
        for knob in re.findall(r"`((?:rabbitmq|kafka|message)\.)?([a-z_]+)(?:=[^`]*)?`", knobs):
            assert knob[1] in known, knob
