"""Runs that others are held against: kept by a name, found again, and refused where they cannot be compared.

A baseline is a folder `baselines/NAME` with a run's `run.json`: its figures, versions and machine, small enough for
git. Histograms and series stay with the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen.analysis import is_measured
from loadgen.analysis.across import changed_settings, differences
from loadgen.errors import ScenarioError
from loadgen.files import as_host_error, write_atomically
from loadgen.gate.judging import points
from loadgen.record import enters
from loadgen.runs import RUN_FILE, load, load_runs
from loadgen.store import demand_name, portable

if TYPE_CHECKING:
    from collections.abc import Collection

    from loadgen.run import Run

_WHICH = {
    "machine": "machine",
    "broker versions": "versions",
    "clients": "versions",
    "lengths of trials": "scenario",
}
"""What makes two runs no comparison of what changed, and the word by which it is passed over all the same."""


def save(run: Run, name: str, root: Path, *, replaces: bool = False) -> Path:
    """Keep a run as the baseline of this name; ScenarioError for a name that is taken or is none."""
    demand_name("baseline", name)
    folder = root / name
    if folder.exists() and not replaces:
        raise ScenarioError(f"{folder}: is there already; choose another name, or --replace it")
    if not any(is_measured(record) and enters(record) for record in run.records):
        raise ScenarioError(f"{run.id}: has no trial to be used; expected a run that others can be held against")
    with as_host_error(folder):
        text = portable((run.path / RUN_FILE).read_text(encoding="utf-8"))
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RUN_FILE, text.encode())
    return folder


def saved(root: Path) -> list[dict[str, Any]]:
    """Every baseline: name, run, when it was measured, its scenarios, how many points, the tool's revision."""
    rows = []
    for folder in sorted(path.parent for path in root.glob(f"*/{RUN_FILE}")):
        run = load(folder)
        rows.append(
            {
                "name": folder.name,
                "run": _id(run),
                "created_utc": run.header.get("created_utc"),
                "scenarios": [scenario["name"] for scenario in run.header["scenarios"]],
                "points": len(points(run)),
                "revision": (run.environment.get("git") or {}).get("revision"),
            }
        )
    return rows


def _id(run: Run) -> str:
    """Which run it is, under whatever name it is kept."""
    return str(run.header.get("id") or run.id)


def _is_same(one: Run, other: Run) -> bool:
    """Whether they are one run: two of one second may have one id, in folders of their own."""
    return _id(one) == _id(other) and one.header.get("created_utc") == other.header.get("created_utc")


def in_words(row: dict[str, Any]) -> str:
    """A line of `saved` for people."""
    when = str(row["created_utc"] or "")[:16].replace("T", " ")
    what = f"{row['points']} point{'s' * (row['points'] != 1)} of {', '.join(row['scenarios'])}"
    return f"{row['name']:20} {when:16}  {what}, revision {row['revision'] or 'unknown'}"


def find(text: str, root: Path, results: Path, but: Run | None = None) -> Run:
    """A baseline by its name, a run by its folder or id, or the newest complete run of a folder of runs.

    `but` is the run that it is for, which is not held against itself.
    """
    if (root / text / RUN_FILE).is_file():
        return load(root / text)
    folder = Path(text)
    if folder.is_dir() and not (folder / RUN_FILE).is_file():
        runs = load_runs(folder / "*")
        complete = [run for run in runs if run.status == "complete" and not (but and _is_same(run, but))]
        if not complete:
            raise ScenarioError(f"{folder}: no complete run there; expected one to be held against")
        return complete[-1]
    try:
        return load(text, results)
    except ScenarioError:
        names = ", ".join(path.parent.name for path in sorted(root.glob(f"*/{RUN_FILE}"))) or "none"
        raise ScenarioError(
            f"baseline {text}: no such baseline, run or folder of runs; saved in {root}: {names}"
        ) from None


def refuse_incomparable(run: Run, baseline: Run, allowed: Collection[str] = ()) -> list[str]:
    """What else than the result differs, in words, as far as it is allowed; ScenarioError where it is not.

    Settings of the brokers may differ: whether they make a run worse is what is asked.
    """
    if _is_same(baseline, run):
        raise ScenarioError(f"{run.id}: is held against itself; expected another run as the baseline")
    said = []
    for what, text in differences([baseline, run]).items():
        which = _WHICH.get(what)
        if which is not None and which not in allowed:
            raise ScenarioError(f"{what} differ ({text}): not compared; to do so all the same: --allow {which}")
        said.append(f"{what} differ: {text}")
    now, before = points(run), points(baseline)
    gone = [point for point in before if point not in now]
    if gone and "scenario" not in allowed:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise ScenarioError(f"{gone[0]}{more}: of the baseline, and not in {run.id}; to pass over it: --allow scenario")
    said += [f"{point}: of the baseline, and not measured" for point in gone]
    for point, records in now.items():
        if changed := changed_settings([before.get(point, []), records]) if point in before else []:
            said.append(f"{point}: settings differ: {'; '.join(changed)}")
    return said
