"""Small checkers of a trial's facts, by subject: accounting, timing, machine, flow, repeats.

Each is a function `Facts -> Check`; `loadgen.verdict` lists them and makes one verdict of their findings. Facts that
were not observed are None, and a checker that needs them says None too; one that does not apply to the trial (a
schedule in a closed loop), or that asks for what most machines do not tell (a CPU's frequency), says True and why.
"""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
    """One checker's finding: True nothing against it, False not to be used, None cannot tell."""

    name: str
    passed: bool | None
    reason: str


def percent(share: float | None) -> str:
    """A share (0 to 1) for people."""
    return "unknown" if share is None else f"{share:.0%}"


def milliseconds(duration_ns: float) -> str:
    """A duration for people, with the digits that a short one needs."""
    duration_ms = duration_ns / 1e6
    return f"{duration_ms:.2f} ms" if duration_ms >= 0.1 else f"{duration_ms:.6f}".rstrip("0").rstrip(".") + " ms"
