"""What a machine can judge about the house: length, names, imports that point down the flow, nothing left open."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

FILES = sorted(path for folder in ("loadgen", "scenarios", "bench") for path in Path(folder).rglob("*.py"))
SOURCES = [path for path in FILES if path.parts[0] == "loadgen"]
LEFT_OPEN = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError|# type: ignore(?!\[)|# noqa(?!:)")
# Only these may know what stands beside them (docs/architecture.md).
READERS_ONLY = ("report", "analysis")


def tree(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text())


def imported(path: Path) -> set[str]:
    """The loadgen modules that a file imports anywhere, type checking aside."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("loadgen"):
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_functions_stay_under_70_lines_and_files_under_500(path: Path) -> None:
    """A function that grows has parts with names of their own, and so has a file."""
    assert len(path.read_text().splitlines()) <= 500
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{path}:{node.lineno} {node.name}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_is_left_open_or_silenced_without_a_reason(path: Path) -> None:
    """No marks of unfinished work, no blanket ignores."""
    marks = [line for line in path.read_text().splitlines() if LEFT_OPEN.search(line)]
    assert not marks


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_only_the_command_line_prints(path: Path) -> None:
    """Everything else tells its caller."""
    if path.name in {"cli.py", "commands.py", "console.py"}:
        return
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_reports_read_files_and_never_a_broker() -> None:
    """Report and analysis know nothing of brokers, drivers or agents."""
    for path in SOURCES:
        if path.parts[1] in READERS_ONLY:
            for module in imported(path):
                assert not module.startswith(("loadgen.brokers", "loadgen.drivers", "loadgen.agent", "loadgen.fleet"))


def test_the_data_plane_knows_nothing_of_files_or_reports() -> None:
    """Drivers, pacer, payload, histogram and ledger import nothing that comes after them in the flow."""
    after = ("loadgen.runs", "loadgen.report", "loadgen.engine", "loadgen.trial", "loadgen.fleet", "loadgen.cli")
    for path in SOURCES:
        if path.parts[1] == "drivers" or path.stem in {"pacer", "payload", "histogram", "ledger", "recorder", "driver"}:
            assert not [module for module in imported(path) if module.startswith(after)], path


def test_the_architecture_page_names_every_module() -> None:
    """docs/architecture.md is kept true."""
    page = Path("docs/architecture.md").read_text()
    for path in SOURCES:
        top = path.parts[1]
        name = top if top.endswith(".py") else f"{top}/"
        if name != "__init__.py":
            assert f"`{name}" in page or f"`{name}`" in page, name
