"""The runs of a folder: listed, tagged, and removed when they are too many.

A tag is a line in the file `tags` of a run's folder, so that it moves with it: runs go from machine to machine as
folders. What is tagged, and what still runs, is never removed.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen.brokers.state import cache_dir
from loadgen.errors import ScenarioError
from loadgen.files import as_host_error, write_atomically
from loadgen.runs import RUN_FILE, load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.run import Run

TAGS_FILE = "tags"
_OWN = re.compile(r"\d{8}T\d{6}Z-")
"""How a run's folder begins that nobody has given another name."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def stored(root: Path) -> list[Run]:
    """Every run under a folder, the oldest first; what cannot be read is passed over."""
    found = []
    for path in sorted(root.glob(f"*/{RUN_FILE}")):
        if not path.parent.is_symlink():
            try:
                found.append(load(path.parent, is_mended=False))
            except ScenarioError:
                continue
    return sorted(found, key=lambda run: (str(run.header.get("created_utc")), run.id))


def demand_name(what: str, name: str) -> None:
    """Raise ScenarioError for what cannot be a name that somebody gives to a run."""
    if not _NAME.fullmatch(name):
        raise ScenarioError(f"{what} {name!r}: expected letters, digits, '.', '_' and '-'")


def tags(run: Run) -> list[str]:
    """A run's tags, in order."""
    path = run.path / TAGS_FILE
    return sorted(set(path.read_text(encoding="utf-8").split())) if path.is_file() else []


def tag(run: Run, name: str, *, is_on: bool = True) -> list[str]:
    """Add a tag to a run, or take it away; all that it has then. ScenarioError for what is no tag, or not there."""
    demand_name("tag", name)
    now = set(tags(run))
    if not is_on and name not in now:
        raise ScenarioError(f"{run.id}: has no tag {name}; it has {', '.join(sorted(now)) or 'none'}")
    kept = sorted(now | {name} if is_on else now - {name})
    write_atomically(run.path / TAGS_FILE, "".join(f"{each}\n" for each in kept).encode())
    return kept


def described(run: Run) -> dict[str, Any]:
    """A run as a list of runs shows it."""
    verdicts = [record["verdict"]["status"] for record in run.records if record["status"] == "complete"]
    return {
        "id": run.id,
        "created_utc": run.header.get("created_utc"),
        "status": run.status,
        "trials": len(run.records),
        "valid": verdicts.count("valid"),
        "invalid": verdicts.count("invalid"),
        "size_bytes": sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file()),
        "tags": tags(run),
    }


def in_words(row: dict[str, Any]) -> str:
    """One line of a list of runs."""
    named = f"  [{', '.join(row['tags'])}]" if row["tags"] else ""
    counted = f"{row['trials']} trials, {row['valid']} valid, {row['invalid']} invalid"
    return f"{row['id']:42} {row['status']:9} {counted:38} {row['size_bytes'] / 1e6:8.1f} MB{named}"


def superfluous(runs: Sequence[Run], keep: int) -> list[Run]:
    """All but the newest `keep` runs, those that are tagged, that still run, and whose folder somebody named.

    A run that was killed says that it runs until it is loaded once (`loadgen report RUN`).
    """
    own = [run for run in runs if _OWN.match(run.path.name)]
    old = own[: max(0, len(own) - keep)]
    return [run for run in old if run.status != "running" and not tags(run)]


def portable(text: str) -> str:
    """A run's document without the folders of this machine: `<checkout>`, `<installed>`, `<home>`."""
    places = {str(Path.cwd()): "<checkout>", str(cache_dir().resolve()): "<installed>", str(Path.home()): "<home>"}
    for folder, what in sorted(places.items(), key=lambda each: -len(each[0])):
        if len(folder) > 1:
            text = text.replace(json.dumps(folder)[1:-1], what)
    return text


def remove(runs: Sequence[Run]) -> None:
    """Remove runs from the disk; HostError where that is refused."""
    for run in runs:
        with as_host_error(run.path):
            shutil.rmtree(run.path)
