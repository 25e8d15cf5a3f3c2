"""Who did the work: what each consumer had of its subscriber's messages, how long it was busy, and how even that is.

A broker that hands out equal shares is fair to workers that are alike. Where one of them is slower, equal shares keep
it busy while the others idle; so fairness is told of the messages and of the time that was spent on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadgen.agent import SECOND_NS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.agent import Result
    from loadgen.plan import Trial
    from loadgen.record import Record


def jain_index(amounts: Sequence[float]) -> float | None:
    """How evenly an amount is shared: (Σx)² / (n Σx²), 1 where all have as much, 1/n where one has all.

    None for fewer than two, who share nothing, and where there was nothing to share. The amounts are of one unit, and
    not negative. Source: R. Jain, D. Chiu, W. Hawe, "A Quantitative Measure of Fairness and Discrimination for Resource
    Allocation in Shared Computer Systems", DEC Research Report TR-301, 1984.
    """
    if len(amounts) < 2 or not any(amounts):
        return None
    shares = np.asarray(amounts, float) / max(amounts)  # else squares of what is tiny would be 0
    return min(1.0, float(shares.sum() ** 2 / (len(shares) * np.dot(shares, shares))))


def shared_work(trial: Trial, results: Sequence[Result], cut_s: int) -> Record:
    """`work` and `fairness` of a trial's record, as its schema has them; nothing where somebody did not live to tell.

    The first `cut_s` seconds of the window are left out.
    """
    pattern = trial.pattern
    role = "processor" if pattern.processors else pattern.receiving_role
    counted = "handled" if pattern.has_middle else "received"
    told = sorted(
        (each for each in results if each.role == role),
        key=lambda each: (each.subscriber, len(each.agent), each.agent),  # consumer10 comes after consumer9
    )
    if not told or len(told) != (pattern.processors or trial.all_consumers):
        return {}

    def total(result: Result, what: str) -> int:
        return sum(result.per_second.get(what, ())[cut_s:])

    work = [
        {
            "agent": each.agent,
            "subscriber": each.subscriber,
            "think_ms": each.think_ms,
            "msgs": total(each, counted),
            "busy_s": total(each, "busy_ns") / SECOND_NS if each.think_ms else None,
        }
        for each in told
    ]
    return {"work": work, "fairness": {"of_msgs": _fairness(work, "msgs"), "of_busy_time": _fairness(work, "busy_s")}}


def _fairness(work: Sequence[Record], what: str) -> float | None:
    """The index of the subscriber whose consumers share the least evenly; None where none has several."""
    amounts: dict[int, list[float]] = {}
    for each in work:
        if each[what] is not None:
            amounts.setdefault(each["subscriber"], []).append(each[what])
    found = [index for index in map(jain_index, amounts.values()) if index is not None]
    return min(found, default=None)
