"""Capacity search: which rate to try next, told by what the last one showed. Pure: it never touches a broker.

The capacity of a scenario is the highest offered rate that is *sustained*: carried within 1 %, with a backlog that does
not grow, without errors, with the objective kept, and with a generator that could have done more. It is found by

1. a short closed-loop burst, which says where to look;
2. short open-loop probes: up by a fifth, then by more, until one fails; then the geometric mean of the highest rate
   that was sustained and the lowest that was not, until these are 6 % apart;
3. one trial of full length at the highest sustained rate, which alone is reported; where it fails, 7 % less is tried.

A probe that failed while something else used the machine is tried once more. Where the generator was the limit, it gets
more producers; where it cannot have them, the answer says so, and the capacity is "at least".

A search has a time budget. When a further probe would leave no room for a trial of full length (and for another, should
it fail), the search goes on to that trial with what it knows: its bracket is as wide as it is, and `ended_by` says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loadgen.facts import CORE_FULL_SHARE, carries
from loadgen.flow import is_growing
from loadgen.verdict import BoundBy

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

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
End = Literal["resolution", "probes", "budget"]
"""Why a search looked no further: its bracket is narrow enough, it has probed enough, or its time is up."""


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

    `is_lower_bound` says that no rate above was shown to be too much for the broker. `ended_by` is "budget" where there
    was no time to look more closely.
    """

    rate_msgs_per_s: float | None
    high_msgs_per_s: float | None
    producers: int
    bound_by: Limit
    is_lower_bound: bool
    reason: str
    ended_by: End = "resolution"


def search(
    producers: int, producers_most: int, *, has_objective: bool, has_time: Callable[[Step], bool] = lambda _: True
) -> Generator[Probe, Seen, Capacity]:
    """Yield what to measure, take what was seen, return the capacity (rates in messages/s, all producers together).

    `has_time` tells whether the budget has room for a step and for those that must come after it.
    """
    burst = yield Probe("burst", None, producers)
    while burst.is_producer_full and producers < producers_most and has_time("burst"):
        producers = min(producers_most, 2 * producers)
        burst = yield Probe("burst", None, producers)
    if burst.rate_msgs_per_s <= 0:
        return Capacity(None, None, producers, burst.limit, False, f"nothing came through: {burst.why}")
    low, high, failed = 0.0, math.inf, burst
    retries, up = RETRIES, UP
    ended_by: End = "probes"
    rate = burst.rate_msgs_per_s * (START_SHARE_OBJECTIVE if has_objective else START_SHARE)
    for _ in range(PROBES_MOST):
        if not has_time("probe"):
            ended_by = "budget"
            break
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
            ended_by = "resolution"
            break
        rate = _next(low, high, up)
        up *= UP_FASTER
    if not low and ended_by != "budget":
        return Capacity(None, high, producers, failed.limit, False, f"no rate was sustained: {failed.why}", ended_by)
    # Without a rate that a probe sustained the next guess is all there is: a trial of full length tells as well.
    state = _Bracket(low or rate, high, failed, producers, ended_by)
    return (yield from _confirm(state, has_time))


def _next(low: float, high: float, up: float) -> float:
    if math.isinf(high):
        return low * up
    return high * DOWN if not low else math.sqrt(low * high)


@dataclass(slots=True)
class _Bracket:
    """What probes came to: `low` was sustained, or is the best guess, `high` was not (infinite: never reached)."""

    low: float
    high: float
    failed: Seen
    producers: int
    ended_by: End

    def answer(self, *, confirmed: Seen | None) -> Capacity:
        """The capacity, where a trial of full length sustained it; without one there is none."""
        failed, is_reached = self.failed, not math.isinf(self.high)
        high = self.high if is_reached else None
        reason = failed.why if is_reached else "no higher rate failed"
        if confirmed is None:
            reason = f"no full trial sustained it: {failed.why}"
        if self.ended_by == "budget":
            reason = f"budget used up; {reason}"
        rate = self.low if confirmed else None
        is_lower = confirmed is not None and (not is_reached or failed.limit == "generator" or confirmed.is_client_full)
        return Capacity(rate, high, self.producers, failed.limit, is_lower, reason, self.ended_by)


def _confirm(state: _Bracket, has_time: Callable[[Step], bool]) -> Generator[Probe, Seen, Capacity]:
    """A trial of full length at the rate that short ones sustained, or a little below."""
    retries, attempt = 1, 0
    while attempt < CONFIRMS_MOST:
        if not has_time("confirm"):
            state.ended_by = "budget"
            break
        seen = yield Probe("confirm", state.low, state.producers)
        if seen.sustained:
            return state.answer(confirmed=seen)
        if seen.disturbed and retries:
            retries -= 1
            continue
        attempt += 1
        state.low, state.high, state.failed = state.low * CONFIRM_STEP, state.low, seen
    return state.answer(confirmed=None)


def seen_in(
    record: Mapping[str, Any], p99_ms: float | None = None, fan_out: int = 1, *, is_confirming: bool = False
) -> Seen:
    """What a finished trial's record says to the search.

    Args:
        record: a complete trial's, judged.
        p99_ms: the objective on the end-to-end response time.
        fan_out: how often each message is to be received. Rates are those of producing, `fan_out` times as many come.
        is_confirming: whether the trial is the one that is reported, which must not be invalid.
    """
    achieved = (record["goodput_msgs_per_s"] or 0.0) / fan_out
    verdict = record["verdict"]
    limit: Limit = verdict["bound_by"] if verdict["bound_by"] != "offered" else "unknown"
    shares = (record.get("observer") or {}).get("agent_core_share_max") or {}
    full = {role for role in ("producers", "consumers") if (shares.get(role) or 0.0) >= CORE_FULL_SHARE}
    offered = record["offered_msgs_per_s"]
    if offered is None:
        why: str | None = "a closed loop"
    else:
        why = against(record, achieved, offered, fan_out) or _invalid(verdict, is_confirming=is_confirming)
        if why is None and p99_ms is not None:
            why = _missed(record, offered, p99_ms)
            limit = "objective" if why else limit
    carried = f"carried {achieved:,.0f} of {offered or 0:,.0f} msg/s"
    return Seen(achieved, why is None, why or carried, limit, is_disturbed(verdict), bool(full), "producers" in full)


def is_disturbed(verdict: Mapping[str, Any]) -> bool:
    """Whether something else than the trial used the machine meanwhile."""
    return any(each["passed"] is None and each["name"] in DISTURBANCES for each in verdict.get("checks", ()))


def against(record: Mapping[str, Any], achieved: float, offered: float, fan_out: int) -> str | None:
    """What speaks against an offered rate (messages/s) having been sustained, in words, or None.

    `achieved` is what came through of it, `fan_out` how often each message was to be received.
    """
    at = f"at {offered:,.0f} msg/s"
    errors = {name: count for name, count in record["errors"].items() if name != "unsent"}
    if errors:
        return f"{at}: {', '.join(f'{count:,} {name}' for name, count in errors.items())}"
    if not carries(achieved, offered, record["window_s"]):
        return f"{at} only {achieved:,.0f} came through"
    growth = record.get("under_way") or {}
    if is_growing(growth, offered * fan_out):
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
