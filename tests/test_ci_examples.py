"""The CI workflows that come with the project: valid by their own schemas, and every command in them is one."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from loadgen.arguments import make_parser
from loadgen.gate.limits import read_limits

ROOT = Path(__file__).parents[1]
WORKFLOWS = {
    ROOT / ".github/workflows/loadgen.yml": "github-workflows",
    ROOT / "docs/examples/gitlab-ci.yml": "gitlab-ci",
}


def commands(path: Path) -> list[list[str]]:
    """Every call of loadgen in a workflow, as words."""
    found: list[list[str]] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            for each in value.values():
                look(each)
        elif isinstance(value, list):
            for each in value:
                look(each)
        elif isinstance(value, str):
            calls = re.findall(r"\bloadgen (?:up|down|run|check|baseline|runs|history)\b[^|;\n]*", value)
            found.extend(shlex.split(call)[1:] for call in calls)

    look(yaml.safe_load(path.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize(("path", "schema"), WORKFLOWS.items(), ids=str)
def test_a_workflow_is_valid_by_its_own_schema(path: Path, schema: str) -> None:
    """As the package check-jsonschema carries it; a wrong one is found."""
    vendored = resources.files("check_jsonschema").joinpath(f"builtin_schemas/vendor/{schema}.json")
    judged = json.loads(vendored.read_text(encoding="utf-8"))
    validator = jsonschema.validators.validator_for(judged)(judged)
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    workflow = {("on" if key is True else key): value for key, value in workflow.items()}  # YAML 1.1 reads `on` as true
    assert [error.message for error in validator.iter_errors(workflow)] == []
    name = next(key for key in workflow if key in {"jobs", "measure"})
    assert not validator.is_valid({**workflow, name: 5})


@pytest.mark.parametrize("path", WORKFLOWS, ids=str)
def test_every_command_of_a_workflow_is_one_and_its_files_are_there(path: Path) -> None:
    """The command line takes its words, the scenarios exist, and the limits can be read."""
    found = commands(path)
    assert {words[0] for words in found} >= {"run", "check", "baseline"}
    for words in found:
        arguments = make_parser(argparse.ArgumentParser).parse_args(words)
        assert all((ROOT / scenario).is_file() for scenario in getattr(arguments, "scenarios", ()))
        if getattr(arguments, "thresholds", None):
            assert read_limits(ROOT / arguments.thresholds)
