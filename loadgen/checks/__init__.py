"""Small checkers of a trial's facts, by subject: accounting, timing, machine, flow, causes, repeats.

Each is a function `Facts -> Check`; `loadgen.verdict` lists them and makes one verdict of their findings. Facts that
were not observed are None, and a checker that needs them says None too, never True: where nobody looked nothing was
found in order. Only what cannot be wrong (the schedule of a closed loop, which has none) is True without a look.

**What an unknown weighs.** Most of them cast doubt on the number, since what was not looked at would change it. Those
of `weighs=False` do not, for one of two reasons: many brokers and machines never tell it, and if it were wrong
something else that is looked at would show it (a disk that ran full or an alarm: refused or missing messages, a rate
that was not carried; swapping or a slower CPU: late schedules, full cores); or it is a second opinion that needs more
messages than a quiet trial has (Little's law below L = 20), or it is about what consumers do, of which there are
none. They are listed as unknown and change nothing.
"""

from __future__ import annotations

from typing import NamedTuple


class Check(NamedTuple):
    """One checker's finding: True nothing against it, False not to be used, None cannot tell or nobody looked.

    `weighs` tells of a None whether it casts doubt on the number; of the others it has no meaning.
    """

    name: str
    passed: bool | None
    reason: str
    weighs: bool = True


def percent(share: float | None) -> str:
    """A share (0 to 1) for people."""
    return "unknown" if share is None else f"{share:.0%}"


def milliseconds(duration_ns: float) -> str:
    """A duration for people, with the digits that a short one needs."""
    duration_ms = duration_ns / 1e6
    return f"{duration_ms:.2f} ms" if duration_ms >= 0.1 else f"{duration_ms:.6f}".rstrip("0").rstrip(".") + " ms"
