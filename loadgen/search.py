"""Capacity search: which rate to try next, told by what the last one showed. Pure: it never touches a broker.

The capacity of a scenario is the highest offered rate that is *sustained*: carried within 1 %, with a backlog that does
not grow, without errors, with the objective kept, and with a generator that could have done more. It is found by

1. a short closed-loop burst, which says where to look;
2. short open-loop probes: up by a fifth, then by more, until one fails; then the geometric mean of the highest rate
   that was sustained and the lowest that was not, until these are 6 % apart;
3. one trial of full length at the highest sustained rate, which alone is reported; where it fails, 7 % less is tried.

A probe that failed while something else used the machine is tried once more. Where the generator was the limit, it gets
more producers; where it cannot have them, the answer says so, and the capacity is "at least".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loadgen.facts import CARRIED_SHARE, CORE_FULL_SHARE
from loadgen.flow import is_growing
from loadgen.verdict import BoundBy

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

START_SHARE = 0.85  # of the burst's rate: an open loop in small batches carries less than a closed one
START_SHARE_OBJECTIVE = 0.6  # … and a latency objective is met well below saturation
UP = 1.2
UP_FASTER = 1.4  # each time that was not enough
DOWN = 0.7
APART = 1.06
PROBES_MOST = 10
CONFIRM_STEP = 0.93
CONFIRMS_MOST = 3
RETRIES = 2
DISTURBANCES = frozenset({"stolen CPU", "other programs", "CPU frequency", "swap"})

Step = Literal["burst", "probe", "confirm"]
Limit = BoundBy | Literal["objective"]


@dataclass(frozen=True, slots=True)
class Probe:
    """What to measure next; a burst has no rate."""

    step: Step
    rate_msgs_per_s: float | None
    producers: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What a probe showed: `limit` is what bounded it where it was not sustained, `why` says how one knows."""

    rate_msgs_per_s: float
    sustained: bool
    why: str
    limit: Limit = "unknown"
    disturbed: bool = False
    is_client_full: bool = False
    """A client's thread used up its core: it may not have been able to do more."""
    is_producer_full: bool = False
    """… a producer's, so that more producers would help."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The answer. `rate_msgs_per_s` was sustained over a full trial, `high_msgs_per_s` was not (None: never reached).

    `is_lower_bound` says that no rate above was shown to be too much for the broker.
    """

    rate_msgs_per_s: float | None
    high_msgs_per_s: float | None
    producers: int
    bound_by: Limit
    is_lower_bound: bool
    reason: str


def search(producers: int, producers_most: int, *, has_objective: bool) -> Generator[Probe, Seen, Capacity]:
    """Yield what to measure, take what was seen, return the capacity (rates in messages/s, all producers together)."""
    burst = yield Probe("burst", None, producers)
    while burst.is_producer_full and producers < producers_most:
        producers = min(producers_most, 2 * producers)
        burst = yield Probe("burst", None, producers)
    if burst.rate_msgs_per_s <= 0:
        return Capacity(None, None, producers, burst.limit, False, f"nothing came through: {burst.why}")
    low, high, failed = 0.0, math.inf, burst
    retries, up = RETRIES, UP
    rate = burst.rate_msgs_per_s * (START_SHARE_OBJECTIVE if has_objective else START_SHARE)
    for _ in range(PROBES_MOST):
        seen = yield Probe("probe", rate, producers)
        if not seen.sustained and seen.disturbed and retries:
            retries -= 1
            continue
        if seen.sustained:
            low = rate
        elif seen.is_producer_full and producers < producers_most:
            producers, high = min(producers_most, 2 * producers), math.inf
            continue
        else:
            high, failed = rate, seen
        if high <= low * APART:
            break
        rate = _next(low, high, up)
        up *= UP_FASTER
    if not low:
        return Capacity(None, high, producers, failed.limit, False, f"no rate was sustained: {failed.why}")
    return (yield from _confirm(low, high, failed, producers))


def _next(low: float, high: float, up: float) -> float:
    if math.isinf(high):
        return low * up
    return high * DOWN if not low else math.sqrt(low * high)


def _confirm(low: float, high: float, failed: Seen, producers: int) -> Generator[Probe, Seen, Capacity]:
    """A trial of full length at the rate that short ones sustained, or a little below."""
    retries = 1
    attempt = 0
    while attempt < CONFIRMS_MOST:
        seen = yield Probe("confirm", low, producers)
        if seen.sustained:
            reached = not math.isinf(high)
            is_lower_bound = not reached or failed.limit == "generator" or seen.is_client_full
            reason = failed.why if reached else "no higher rate failed"
            return Capacity(low, high if reached else None, producers, failed.limit, is_lower_bound, reason)
        if seen.disturbed and retries:
            retries -= 1
            continue
        low, high, failed, attempt = low * CONFIRM_STEP, low, seen, attempt + 1
    reason = f"short probes sustained it, a full trial did not: {failed.why}"
    return Capacity(None, high, producers, failed.limit, False, reason)


def seen_in(
    record: Mapping[str, Any], p99_ms: float | None = None, fan_out: int = 1, *, is_confirming: bool = False
) -> Seen:
    """What a finished trial's record says to the search.

    Args:
        record: a complete trial's, judged.
        p99_ms: the objective on the end-to-end response time.
        fan_out: how often each message is to be received.
        is_confirming: whether the trial is the one that is reported, which must not be invalid.
    """
    achieved = (record["goodput_msgs_per_s"] or 0.0) / fan_out
    verdict = record["verdict"]
    limit: Limit = verdict["bound_by"] if verdict["bound_by"] != "offered" else "unknown"
    shares = (record.get("observer") or {}).get("agent_core_share_max") or {}
    full = {role for role in ("producers", "consumers") if (shares.get(role) or 0.0) >= CORE_FULL_SHARE}
    disturbed = any(each["passed"] is None and each["name"] in DISTURBANCES for each in verdict.get("checks", ()))
    offered = record["offered_msgs_per_s"]
    if offered is None:
        why: str | None = "a closed loop"
    else:
        why = _against(record, achieved, offered) or _invalid(verdict, is_confirming=is_confirming)
        if why is None and p99_ms is not None:
            why = _missed(record, offered, p99_ms)
            limit = "objective" if why else limit
    carried = f"carried {achieved:,.0f} of {offered or 0:,.0f} msg/s"
    return Seen(achieved, why is None, why or carried, limit, disturbed, bool(full), "producers" in full)


def _against(record: Mapping[str, Any], achieved: float, offered: float) -> str | None:
    """What speaks against the rate having been sustained, or nothing."""
    at = f"at {offered:,.0f} msg/s"
    errors = {name: count for name, count in record["errors"].items() if name != "unsent"}
    if errors:
        return f"{at}: {', '.join(f'{count:,} {name}' for name, count in errors.items())}"
    # A message more or less at the window's edges is chance.
    if achieved < offered * (1 - CARRIED_SHARE) - 2 / record["window_s"]:
        return f"{at} only {achieved:,.0f} came through"
    growth = record.get("under_way") or {}
    if is_growing(growth, offered):
        return f"{at} the backlog grew by {growth['slope_msgs_per_s']['estimate']:,.0f} msg/s"
    return None


def _missed(record: Mapping[str, Any], offered: float, p99_ms: float) -> str | None:
    """How the objective was missed, or nothing."""
    p99_ns = (record["latency_ns"]["e2e"] or {}).get("p99")
    if p99_ns is not None and p99_ns <= p99_ms * 1e6:
        return None
    seen = "not known" if p99_ns is None else f"{p99_ns / 1e6:.2f} ms"
    return f"at {offered:,.0f} msg/s the p99 was {seen}, over {p99_ms:g} ms"


def _invalid(verdict: Mapping[str, Any], *, is_confirming: bool) -> str | None:
    """What the verdict has against the trial; a probe may be late, as long as it carried its rate."""
    failed = [each for each in verdict.get("checks", ()) if each["passed"] is False]
    reasons = [each for each in failed if is_confirming or each["name"] != "schedule lag"]
    return f"{reasons[0]['name']}: {reasons[0]['reason']}" if reasons else None
