"""Runs that others are held against: kept by a name, found again, and refused where they cannot be compared.

A baseline is a folder `baselines/NAME` with a run's `run.json`: its figures, versions and machine, small enough for
git. Histograms and series stay with the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen.analysis import is_measured
from loadgen.analysis.across import asked, changed_settings, differences
from loadgen.errors import ScenarioError
from loadgen.files import as_host_error, write_atomically
from loadgen.gate.judging import points
from loadgen.record import enters
from loadgen.runs import RUN_FILE, load
from loadgen.store import demand_name, portable, stored

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from loadgen.record import Record
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
    """Every baseline: name, run, when it was measured, its scenarios, how many points, its commit."""
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
                "revision": run.revision,
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
    """A baseline by its name, a run by its folder or id, or the newest run of a folder that can stand against `but`.

    That is the run that it is for: of a folder an earlier one is taken that is complete and has all points in common.
    """
    if (root / text / RUN_FILE).is_file():
        return load(root / text)
    folder = Path(text)
    if folder.is_dir() and not (folder / RUN_FILE).is_file():
        fitting = [run for run in stored(folder) if run.status == "complete" and (but is None or _precedes(run, but))]
        if not fitting:
            raise ScenarioError(f"{folder}: no earlier and complete run of the same points there; expected one")
        return fitting[-1]
    try:
        return load(text, results)
    except ScenarioError:
        names = ", ".join(path.parent.name for path in sorted(root.glob(f"*/{RUN_FILE}"))) or "none"
        raise ScenarioError(
            f"baseline {text}: no such baseline, run or folder of runs; saved in {root}: {names}"
        ) from None


def _precedes(one: Run, other: Run) -> bool:
    """Whether it was measured before the other one, with an answer at each of its points."""
    measured = {point for point, records in points(one).items() if any(map(enters, records))}
    is_before = str(one.header.get("created_utc")) < str(other.header.get("created_utc"))
    return is_before and not _is_same(one, other) and measured.issuperset(points(other))


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
        if point not in before:
            said.append(f"{point}: not in the baseline, and held against nothing")
            continue
        if (otherwise := _asked_otherwise(records, before[point])) and "scenario" not in allowed:
            raise ScenarioError(f"{point}: {otherwise}: not compared; to do so all the same: --allow scenario")
        if otherwise:
            said.append(f"{point}: differs: {otherwise}")
        if changed := changed_settings([before[point], records]):
            said.append(f"{point}: settings differ: {'; '.join(changed)}")
    return said


def _asked_otherwise(now: Sequence[Record], before: Sequence[Record]) -> str:
    """In which a point's trials were asked for something else than the baseline's: `consumers 1 / 4`."""
    new, old = _asked(now[0]), _asked(before[0])
    found = []
    for name, value in new.items():
        was = old[name]
        if isinstance(value, dict) and isinstance(was, dict):
            # A field that came into records later says nothing of older ones.
            parts = [part for part in value if part in was and value[part] != was[part]]
            found += [f"{name}.{part} {was[part]} / {value[part]}" for part in parts]
        elif value != was:
            found.append(f"{name} {was or 'none'} / {value or 'none'}")
    return "; ".join(found)


def _asked(record: Record) -> dict[str, Any]:
    """All that was asked of a trial beside its broker's settings."""
    # A slow start lengthens the warm-up at the cost of the window (`loadgen.flow`): what was asked for is both.
    told = asked(record) | {"length_s": (record["warmup_s"] or 0) + (record["window_s"] or 0)}
    told["faults"] = ", ".join(sorted({fault["kind"] for fault in record["faults"] or ()}))
    if told["think"] and not told["think"]["mean_ms"]:
        told["think"] = None
    return told
