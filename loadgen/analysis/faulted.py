"""Which other run's trials with faults may stand beside a run: complete, of the same machine and the same brokers.

Runs hold no host's name, so a machine is told by what they do hold of it: CPU, cores, architecture and memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadgen.errors import ScenarioError
from loadgen.runs import load, newest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from loadgen.runs import Run

LATEST = "latest"
MEMORY_SHARE = 0.02
"""Kernels keep a little more or less of the memory for themselves."""


def faulted_run(run: Run, wanted: str, root: Path) -> Run | None:
    """The run that `--faults` names, or for `latest` the newest under `root` that fits.

    None where it is this run, whose own trials are cited anyhow. ScenarioError in one line where it does not fit, or
    none does.
    """
    if wanted != LATEST:
        found = load(wanted, root)
        if why := _lacking(_document(found)) or _unlike(found.header, run.header):
            raise ScenarioError(f"--faults {wanted}: {why}")
        return None if found.id == run.id else found
    return _newest(root, lambda each: each["id"] != run.id and not _unlike(each, run.header))


def refuse_absent(wanted: str, root: Path) -> None:
    """Raise ScenarioError, before anything is measured, where `faulted_run` could not find any after it."""
    if wanted == LATEST:
        _newest(root, lambda _: True)
    elif why := _lacking(_document(load(wanted, root))):
        raise ScenarioError(f"--faults {wanted}: {why}")


def _document(run: Run) -> dict[str, Any]:
    return {**run.header, "status": run.status, "trials": run.records}


def _newest(root: Path, fits: Callable[[Mapping[str, Any]], bool]) -> Run:
    found = newest(root, lambda each: not _lacking(each) and fits(each))
    if found is None:
        raise ScenarioError(
            f"--faults latest: no complete run in {root} has trials with faults on this machine with these brokers; "
            "run `loadgen run scenarios/faults/delivery.py` first"
        )
    return found


def _lacking(document: Mapping[str, Any]) -> str:
    """Why a run cannot be cited at all; "" where it can."""
    if document["status"] != "complete":
        return f"this run is {document['status']}; expected a complete one"
    if not any(record.get("faults") for record in document["trials"]):
        return "no trial of it has faults; expected a run of scenarios/faults/delivery.py, or of another with faults"
    return ""


def _unlike(header: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Why a run may not stand beside ours; "" where it may."""
    mine, its = _machine(ours), _machine(header)
    if other := next((name for name, value in mine.items() if not _is_alike(value, its[name])), None):
        return f"it was measured on another machine: {other} is {its[other]}; expected {mine[other]}"
    expected, ran = _versions(ours), _versions(header)
    if not expected.keys() & ran.keys():
        return f"it has no {' and no '.join(sorted(expected))}"
    changed = next((name for name in sorted(expected.keys() & ran.keys()) if expected[name] != ran[name]), None)
    return f"it ran {changed} {ran[changed]}; expected {expected[changed]}" if changed else ""


def _machine(header: Mapping[str, Any]) -> dict[str, Any]:
    environment = header["environment"]
    cpu = environment.get("cpu") or {}
    return {
        "CPU": cpu.get("model"),
        "cores": cpu.get("cores"),
        "architecture": environment.get("machine"),
        "memory_bytes": environment.get("memory_bytes"),
    }


def _is_alike(value: Any, other: Any) -> bool:
    if isinstance(value, int) and isinstance(other, int):
        return abs(value - other) <= MEMORY_SHARE * value
    return bool(value == other)


def _versions(header: Mapping[str, Any]) -> dict[str, str]:
    """By broker, be it one node or three (`kafka × 3`)."""
    return {name.partition(" ")[0]: str(each["version"]) for name, each in header["brokers"].items()}
