"""What is used of Locust that it does not promise: each name stands here, and its version is bounded."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

LOCUST = Path("loadgen/locust")
OF_DISPATCHERS = {
    "_active_users", "_get_user_current_count", "_prepare_rebalance", "_rebalance", "_user_classes", "_user_gen",
    "_users_on_workers",
}  # fmt: skip
REPLACED = {
    "locust.stats.bucket_response_time", "StatsEntry.to_string", "StatsEntry.percentile", "StatsEntry.to_dict",
    "StatsCSV._percentile_fields",
}  # fmt: skip
# In a process of its own, since importing Locust patches whoever does it.
LOOK = """
import json
from locust import User, stats
from locust.dispatch import UsersDispatcher
from locust.env import Environment


class Node:
    id = "1"
    user_classes_count = {}


class Some(User):
    abstract = False


made = UsersDispatcher([Node()], [Some])
print(json.dumps({
    "dispatcher": dir(made),
    "hook": Environment(user_classes=[Some]).dispatcher_class is UsersDispatcher,
    "replaced": [f"{each.__name__}.{name}" for each in (stats, stats.StatsEntry, stats.StatsCSV) for name in dir(each)],
}))
"""


def private(path: Path) -> dict[str, set[str]]:
    """The private attributes that a module reads or writes, by what they are of (as it is written)."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            found.setdefault(ast.unparse(node.value), set()).add(node.attr)
    return found


def own(path: Path) -> set[str]:
    """The private names that a module defines itself: methods, fields, and what it assigns to `self`."""
    tree = ast.parse(path.read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_the_private_names_that_are_used_of_locust_are_these_in_one_module() -> None:
    """The dispatcher's are those that our subclass of it reads or replaces; no other module looks into Locust."""
    used = private(LOCUST / "dispatch.py")
    assert used["self"] | used["super()"] == OF_DISPATCHERS | {"_placed", "_scenario_names"}
    assert own(LOCUST / "dispatch.py") & {"_placed", "_scenario_names"} == {"_placed", "_scenario_names"}
    for path in LOCUST.glob("*.py"):
        others = set(private(path)) - {"self", "super()", "cls"}
        assert not others & {"runner", "self.runner", "self._runner", "environment", "self.environment"}, path
    text = (LOCUST / "statistics.py").read_text()
    assert set(re.findall(r'^        \((\w+), "(\w+)", ', text, re.MULTILINE)) == {
        ("locust_stats" if each.startswith("locust.") else each.split(".")[0], each.split(".")[-1]) for each in REPLACED
    }


def test_locust_has_what_is_used_of_it_and_its_version_is_bounded() -> None:
    """Whoever raises the bound sees here what has gone."""
    seen = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True, timeout=60)
    told = json.loads(seen.stdout)
    assert set(told["dispatcher"]) >= OF_DISPATCHERS
    assert told["hook"]
    assert set(told["replaced"]) >= REPLACED
    project = tomllib.loads(Path("pyproject.toml").read_text())
    wanted = [*project["project"]["optional-dependencies"]["locust"], *project["dependency-groups"]["test"]]
    assert [each for each in wanted if each.startswith("locust")] == ["locust>=2.46.3,<3"] * 2
    assert importlib.metadata.version("locust").startswith("2.")
