"""Is this number to be believed, and what set it? Small checkers, each looking at the facts, one verdict.

A checker (`loadgen.checks`) returns a `Check`: True (nothing against it), False (the number is not to be used) or
None (cannot tell), always with a reason in words. **The rule**: the verdict is `invalid` when any check is False, else
`unknown` when any is None and weighs, else `valid`. A None that does not weigh (`loadgen.checks` says which and why) is
listed among the checks and changes nothing: a trial at a low rate, where Little's law cannot be told, on a virtual
machine that tells no CPU frequency, is a good trial of which this much is not known.

What *bounded* the rate is a second question, answered beside it (`bound`): a generator-bound number is a true number
about the client, and never the broker's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loadgen.checks import Check, accounting, flow, machine, percent, timing
from loadgen.checks.causes import slow_consumers
from loadgen.checks.machine import host_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.facts import Facts

__all__ = ["CHECKERS", "BoundBy", "Check", "Status", "Verdict", "bound", "judge"]

Status = Literal["valid", "invalid", "unknown"]
BoundBy = Literal["broker", "consumers", "generator", "host", "offered", "unknown"]

HELD_BACK_SHARE = 0.05
"""Producers without room for 5 % of the time were held back; a lag's p99 needs but 1 % of it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings; `reasons` are those that decided the status, worst first, and what limited the rate."""

    status: Status
    bound_by: BoundBy
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]

    def record(self) -> dict[str, Any]:
        """As it stands in run.json."""
        return {
            "status": self.status,
            "bound_by": self.bound_by,
            "reasons": list(self.reasons),
            "checks": [each._asdict() for each in self.checks],
        }


def judge(facts: Facts) -> Verdict:
    """Ask every checker."""
    checks = tuple(checker(facts) for checker in CHECKERS)
    failed = [each for each in checks if each.passed is False]
    doubtful = [each for each in checks if each.passed is None and each.weighs]
    bound_by, why = bound(facts)
    # What the queue's limits did is part of the answer, also where nothing is wrong with it.
    noted = [each for each in checks if facts.removed and each.name == "queue limits" and each.passed]
    reasons = [f"{each.name}: {each.reason}" for each in failed + doubtful + noted]
    return Verdict(
        status="invalid" if failed else "unknown" if doubtful else "valid",
        bound_by=bound_by,
        reasons=(*reasons, f"bound by {bound_by}: {why}"),
        checks=checks,
    )


def add_check(verdict: dict[str, Any], check: Check) -> None:
    """Enter a finding that came after the judgement into a verdict's record; without doubt it changes nothing else."""
    verdict["checks"] = [*verdict.get("checks", ()), check._asdict()]
    if check.passed is True or (check.passed is None and not check.weighs):
        return
    verdict["reasons"] = [f"{check.name}: {check.reason}", *verdict["reasons"]]
    worst = {"invalid": 2, "unknown": 1, "valid": 0}
    found: Status = "unknown" if check.passed is None else "invalid"
    verdict["status"] = max(verdict["status"], found, key=lambda status: worst[status])


def bound(facts: Facts) -> tuple[BoundBy, str]:
    """What set the rate, in the design's words, and why.

    A rate that was carried is the offered one, and what a queue's limits remove is the broker's doing.
    """
    if facts.is_carried and not facts.drains:
        return "offered", f"it carried the {facts.offered_msgs_per_s:,.0f} msg/s that were offered"
    if facts.removed:
        return "broker", f"its queue's limits kept {facts.removed:,} messages from being received"
    used_up = _used_up(facts)
    if used_up is not None:
        return used_up
    if facts.agent_core_share_max is None or facts.host_busy_share is None:
        return "unknown", "the clients' or the host's CPU use was not observed"
    return _bound_elsewhere(facts)


def _used_up(facts: Facts) -> tuple[BoundBy, str] | None:
    """Consumers' time, a client's core or the whole machine; None where all had some left.

    Consumers that did nothing but work on messages are asked first: no broker, and no other machine, would have had
    them receive more. A full client core is asked before a full host: a thread that had its core to itself was not
    waiting for the machine.
    """
    if slow := slow_consumers(facts):
        return "consumers", slow
    if facts.is_generator_full:
        return "generator", f"a client's thread used {percent(facts.agent_core_share_max)} of its core"
    if facts.is_host_full:
        return "host", host_text(facts)
    return None


def _bound_elsewhere(facts: Facts) -> tuple[BoundBy, str]:
    """Neither clients nor host were used up: the broker, unless its producers always had room.

    In an open loop that was not carried, only producers that were held back point at the broker; late or
    lost messages have other causes too.
    """
    clients, host = percent(facts.agent_core_share_max), percent(facts.host_busy_share)
    room = f"clients at {clients} of a core, host at {host}"
    if facts.drains:
        return "broker", f"CPU was left for the consumers ({room})"
    held_back = facts.producers_held_back_share
    if held_back is not None and held_back < HELD_BACK_SHARE:
        return (
            "unknown",
            f"producers had room {percent(1 - held_back)} of the time and CPU was left ({room})",
        )
    if facts.is_open_loop and held_back is None:
        return "unknown", f"CPU was left ({room}), and whether producers were held back was not observed"
    return "broker", f"CPU was left for the clients ({room})"


CHECKERS: tuple[Callable[[Facts], Check], ...] = (
    accounting.check_traffic,
    accounting.check_integrity,
    accounting.check_foreign,
    accounting.check_confirmed,
    accounting.check_loss,
    accounting.check_limits,
    accounting.check_dead_letters,
    accounting.check_drained,
    accounting.check_begun,
    accounting.check_duplicates,
    accounting.check_order,
    accounting.check_stored,
    accounting.check_errors,
    timing.check_schedule,
    timing.check_carried,
    timing.check_complete,
    timing.check_shares,
    timing.check_range,
    timing.check_resolution,
    timing.check_clock,
    flow.check_steady,
    flow.check_backlog,
    flow.check_little,
    machine.check_generator,
    machine.check_host,
    machine.check_others,
    machine.check_steal,
    machine.check_frequency,
    machine.check_swap,
    machine.check_alarms,
    machine.check_disk,
    machine.check_observed,
)
