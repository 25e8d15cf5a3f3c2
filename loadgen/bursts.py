"""Bursts: where they lie in a trial, and how long it took until what piled up in each was worked off.

What is owed to consumers is told by the schedule, not by what was sent: where a broker holds producers back, a part of
the burst waits with them.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.agent import SECOND_NS
from loadgen.errors import ScenarioError
from loadgen.flow import CAUGHT_UP_S, FEW_MSGS
from loadgen.pacer import make_pacer

if TYPE_CHECKING:
    from loadgen.flow import Flow
    from loadgen.plan import Trial
    from loadgen.scenario import Rate


def spans_s(rate: Rate, warmup_s: float, duration_s: float) -> list[tuple[float, float]]:
    """When each burst ends and the next begins, in s from the trial's start, where all that lies in its window."""
    assert rate.burst_s is not None
    assert rate.every_s is not None
    first, last = -(-warmup_s // rate.every_s), (warmup_s + duration_s) // rate.every_s
    begins_s = [number * rate.every_s for number in range(int(first), int(last))]
    return [(begin_s + rate.burst_s, begin_s + rate.every_s) for begin_s in begins_s]


def refuse_unseen(rate: Rate, warmup_s: float, duration_s: float) -> None:
    """Raise ScenarioError where a trial is too short for a burst and what follows it."""
    if rate.kind == "burst" and not spans_s(rate, warmup_s, duration_s):
        raise ScenarioError(
            f"every_s = {rate.every_s:g}: no burst and the rest behind it lie within the measured window, from "
            f"{warmup_s:g} to {warmup_s + duration_s:g} s; expected a shorter every_s, or a longer duration_s"
        )


def worked_off(trial: Trial, flow: Flow, start_ns: int) -> dict[str, Any] | None:
    """`trial.bursts` of run.json; None where there are none, nobody consumes, or no whole one lies in the window."""
    rate = trial.rate
    if rate.kind != "burst" or not trial.consumers:
        return None
    assert isinstance(rate.msgs_per_s, int | float), "a sweep of rates is resolved by the plan"
    spans = spans_s(rate, trial.warmup_s, trial.duration_s)
    at_s, _, received = flow.between(start_ns, start_ns + round((trial.warmup_s + trial.duration_s) * SECOND_NS))
    inside = at_s >= trial.warmup_s
    at_s, received = at_s[inside], received[inside]
    if not spans or not len(at_s):  # a window that others chose, as under Locust
        return None
    pacer = make_pacer(rate, 0, 1, trial.warmup_s + trial.duration_s, trial.seed)
    due = np.array([pacer.due(round(each * SECOND_NS)) for each in at_s.tolist()], np.float64)
    owed = due * trial.subscribers - received
    # The least that was owed at any time is what always is: under Locust also what came before the first producer.
    least = float(owed.min())
    few = least + max(FEW_MSGS, CAUGHT_UP_S * rate.msgs_per_s) * trial.subscribers
    took_s = []
    for end_s, next_s in spans:
        quiet = at_s[(at_s >= end_s) & (at_s < next_s) & (owed <= few)]
        took_s += [float(quiet[0]) - end_s] if len(quiet) else []
    return {
        "count": len(spans),
        "worked_off": len(took_s),
        "median_s": median(took_s) if took_s else None,
        "max_s": max(took_s, default=None),
        "owed_msgs_max": int(owed.max()),
    }


def worked_off_right(bursts: dict[str, Any]) -> tuple[bool, str]:
    """Whether the backlog of each burst was gone before the next one: (finding, reason)."""
    left = bursts["count"] - bursts["worked_off"]
    if left:
        return False, f"{left} of {bursts['count']} bursts were not worked off when the next one began"
    return True, f"each of {bursts['count']} bursts was worked off before the next one"
