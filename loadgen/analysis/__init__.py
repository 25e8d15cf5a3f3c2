"""What a run's files say, over trials: capacities, curves, slow seconds. Files only, never a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadgen.record import Record

FOUND_KINDS = frozenset({"search", "curve"})
"""Rates that a search finds, with as many producers as it takes."""
TOLD_KINDS = ("fixed", "poisson", "ramp", "burst")
"""Open loops that were told their rate: what came through of it is no finding."""
COMPARED_KINDS = frozenset(TOLD_KINDS) - {"ramp"}
"""Those at whose load two brokers' latencies are compared: a ramp has no load of its own."""


def is_measured(record: Record) -> bool:
    """Whether a trial is an answer of its scenario; the others were a capacity search's way to one, and no figure's."""
    return bool(record["purpose"] == "measure")


def is_answer(record: Record) -> bool:
    """Whether a trial is of a point: measured, and known by more than its intervals."""
    return is_measured(record) and record["broker"] is not None and record["rate"] is not None


def capacity_key(record: Record) -> str:
    """Which capacity a trial builds on: as `key` of the run's `searches`, but by the driver that really ran."""
    rest = {name: str(value) for name, value in record["point"].items() if name != "fraction"}
    names = (f"{name}={rest[name]}" for name in sorted(rest))
    return "/".join((record["scenario"], record["broker"], record["driver"], *names))
