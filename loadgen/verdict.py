"""Is this number to be believed, and what set it? Small checkers, each looking at the facts, one verdict.

A checker returns a `Check`: True (nothing against it), False (the number is not to be used) or None (cannot
tell), always with a reason in words. The verdict is `invalid` when any check is False, else `unknown` when
any is None, else `valid`. What *bounded* the rate is a second question, answered beside it (`bound`): a
generator-bound number is a true number about the client, and never the broker's.

Facts that were not observed are None, and a checker that needs them says None too; one that does not apply
to the trial (a schedule in a closed loop, a count that this broker does not keep) says True and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.facts import Facts

Status = Literal["valid", "invalid", "unknown"]
BoundBy = Literal["broker", "generator", "host", "offered", "unknown"]

LAG_FLOOR_NS = 1_000_000
"""A schedule lag p99 under 1 ms is fine: time.sleep alone shows 0.2 ms on a quiet machine (measured)."""
LAG_SHARE = 0.1
"""Above the floor, the lag's p99 may be 10 % of the latency's median: then it moves no shown figure much."""
LAG_HOPELESS = 10.0
"""Ten times the allowed lag is as large as the latency itself: the generator was measured."""
HELD_BACK_SHARE = 0.05
"""Producers without room for 5 % of the time were held back; a lag's p99 needs but 1 % of it."""
OTHERS_CORES = 0.2
"""Other programs may use a fifth of a core; idle brokers and a desktop use a tenth."""
STEAL_SHARE = 0.05
"""A hypervisor that takes over 5 % of the CPU time is as large as the differences that are looked for."""
MISSING_SHARE = 0.01
"""With 1 % of the messages in no percentile not even the p99 can be told."""
SAMPLES_MIN = 2
"""The fewest observer's samples that say something about a window."""


class Check(NamedTuple):
    """One checker's finding: True nothing against it, False not to be used, None cannot tell."""

    name: str
    passed: bool | None
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings; `reasons` are those of the checks that did not pass, worst first, then of `bound_by`."""

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
    doubtful = [each for each in checks if each.passed is None]
    bound_by, why = bound(facts)
    reasons = [f"{each.name}: {each.reason}" for each in failed + doubtful]
    return Verdict(
        status="invalid" if failed else "unknown" if doubtful else "valid",
        bound_by=bound_by,
        reasons=(*reasons, f"bound by {bound_by}: {why}"),
        checks=checks,
    )


def bound(facts: Facts) -> tuple[BoundBy, str]:
    """What set the rate, in the design's words, and why.

    A full client core is asked before a full host: a thread that had its core to itself was not waiting for
    the machine.
    """
    if facts.is_carried:
        return "offered", f"it carried the {facts.offered_msgs_per_s:,.0f} msg/s that were offered"
    if facts.is_generator_full:
        return "generator", f"a client's thread used {_percent(facts.agent_core_share_max)} of its core"
    if facts.is_host_full:
        return "host", _host_text(facts)
    if facts.agent_core_share_max is None or facts.host_busy_share is None:
        return "unknown", "the clients' or the host's CPU use was not observed"
    return _bound_elsewhere(facts)


def _bound_elsewhere(facts: Facts) -> tuple[BoundBy, str]:
    """Neither clients nor host were used up: the broker, unless its producers always had room.

    In an open loop that was not carried, only producers that were held back point at the broker; late or
    lost messages have other causes too.
    """
    clients, host = _percent(facts.agent_core_share_max), _percent(facts.host_busy_share)
    room = f"clients at {clients} of a core, host at {host}"
    held_back = facts.producers_held_back_share
    if held_back is not None and held_back < HELD_BACK_SHARE:
        return (
            "unknown",
            f"producers had room {_percent(1 - held_back)} of the time and CPU was left ({room})",
        )
    if facts.is_open_loop and held_back is None:
        return "unknown", f"CPU was left ({room}), and whether producers were held back was not observed"
    return "broker", f"CPU was left for the clients ({room})"


# --- accounting ---


def check_integrity(facts: Facts) -> Check:
    """No message arrived changed: in no class and at no rate is one allowed."""
    bad = facts.corrupted
    return Check("integrity", bad == 0, f"{bad:,} corrupted messages" if bad else "every message arrived as sent")


def check_foreign(facts: Facts) -> Check:
    """Every message was one that this trial's producers sent: others took resources, and nobody knows whose."""
    strange = facts.foreign
    return Check("foreign", strange == 0, f"{strange:,} messages that nobody here sent" if strange else "none")


def check_loss(facts: Facts) -> Check:
    """No confirmed message is missing once the queue is drained; class `none` only states its loss.

    What was never confirmed may be lost in any class (the producer knew). Before a drain ends, missing is
    not lost. Where nobody consumes, the broker must hold what it confirmed.
    """
    name = "loss"
    if facts.consumers == 0:
        return _loss_unconsumed(facts)
    if facts.durability == "none":
        if not facts.drained and facts.lost:
            return Check(name, None, f"{facts.lost:,} messages still missing when the drain was given up")
        return Check(name, True, f"{facts.lost:,} of {facts.sent:,} lost, as class none allows")
    if not facts.drained and facts.confirmed_lost:
        text = f"{facts.confirmed_lost:,} confirmed messages missing when the drain was given up"
        return Check(name, None, text)
    if facts.confirmed_lost:
        text = f"{facts.confirmed_lost:,} confirmed messages lost in class {facts.durability}"
        return Check(name, False, text)
    unconfirmed = f"; {facts.lost:,} unconfirmed ones lost" if facts.lost else ""
    return Check(name, True, f"no confirmed message lost{unconfirmed}")


def _loss_unconsumed(facts: Facts) -> Check:
    """With no consumer, what the broker counts as stored (or as waiting) stands for what was received."""
    held = facts.depth_at_end if facts.stored is None else facts.stored
    if held is None:
        return Check("loss", None, "nobody consumed, and the broker did not tell what it holds")
    if facts.durability == "none" or facts.acked is None:
        return Check("loss", True, f"nobody consumed: the broker holds {held:,} of {facts.sent:,} sent")
    text = f"nobody consumed: the broker holds {held:,} of {facts.acked:,} confirmed messages"
    return Check("loss", held >= facts.acked, text)


def check_drained(facts: Facts) -> Check:
    """All that was sent arrived or was given up as lost before the trial ended: else counts are not final."""
    if facts.consumers == 0:
        return Check("drained", True, "nobody consumed")
    if facts.drained:
        return Check("drained", True, "the queue was emptied")
    return Check("drained", None, "the queue was not emptied in time: counts are not final")


def check_duplicates(facts: Facts) -> Check:
    """Every duplicate is explained by a redelivery or a resend; one out of nothing is a defect."""
    unexplained = facts.duplicated - facts.explained_duplicates
    if unexplained > 0:
        return Check("duplicates", False, f"{unexplained:,} duplicates without redelivery or resend")
    text = f"{facts.duplicated:,} duplicates, all by redelivery or resend" if facts.duplicated else "none"
    return Check("duplicates", True, text)


def check_order(facts: Facts) -> Check:
    """Where order is promised (one consumer a queue or partition), it changed only with redelivery."""
    if not facts.out_of_order:
        return Check("order", True, "kept")
    text = f"{facts.out_of_order:,} messages out of order without redelivery"
    if not facts.order_promised:
        return Check("order", True, f"{text}, which nobody promised here")
    return Check("order", None, text)


def check_stored(facts: Facts) -> Check:
    """The broker's own count lies between what it confirmed (or delivered) and what was sent."""
    if facts.stored is None:
        return Check("broker's count", True, "this broker keeps none")
    least, what = facts.received - facts.duplicated, "received"
    if facts.acked is not None and facts.acked > least:
        least, what = facts.acked, "acked"
    if facts.stored < least:
        return Check("broker's count", False, f"stored {facts.stored:,}, but {least:,} were {what}")
    text = f"stored {facts.stored:,} of {facts.sent:,} sent"
    if facts.stored > facts.sent:
        return Check("broker's count", None, f"{text}: resent, or not of this trial")
    return Check("broker's count", True, text)


def check_traffic(facts: Facts) -> Check:
    """Something was sent and, with consumers, received inside a window that has a length."""
    if facts.window_s <= 0 or facts.sent == 0:
        return Check("traffic", False, "nothing was sent in the measured window")
    if facts.consumers and facts.received == 0:
        return Check("traffic", False, f"nothing of {facts.sent:,} messages was received")
    return Check("traffic", True, f"{facts.sent:,} sent, {facts.received:,} received")


def check_errors(facts: Facts) -> Check:
    """Messages refused, or due and never sent, are part of a result but want an explanation before it is used."""
    seen = [f"{count:,} {name}" for name, count in sorted(facts.errors.items()) if count]
    return Check("errors", None if seen else True, ", ".join(seen) or "none")


# --- time ---


def check_schedule(facts: Facts) -> Check:
    """Messages left when they were intended: p99 of the lag under max(1 ms, 10 % of the end-to-end median).

    Up to ten times that cannot tell, beyond it the generator was measured. Lag of producers that the broker
    held back (no room for 1 % of the time explains a p99) is the broker's own, and response times include
    it.
    """
    name = "schedule lag"
    if not facts.is_open_loop:
        return Check(name, True, "a closed loop has no schedule")
    if facts.lag_p99_ns is None:
        return Check(name, None, "not measured")
    allowed_ns = max(LAG_FLOOR_NS, LAG_SHARE * (facts.e2e_p50_ns or 0))
    text = f"p99 {facts.lag_p99_ns / 1e6:.2f} ms, allowed {allowed_ns / 1e6:.2f} ms"
    if facts.lag_p99_ns < allowed_ns:
        return Check(name, True, text)
    held_back = facts.producers_held_back_share or 0
    if held_back >= 0.01 and not facts.is_generator_full:
        return Check(name, True, f"{text}: the broker held producers back {_percent(held_back)} of the time")
    return Check(name, None if facts.lag_p99_ns <= LAG_HOPELESS * allowed_ns else False, text)


def check_carried(facts: Facts) -> Check:
    """An open loop's rate was carried within 1 %; if not, the number stands and `bound_by` says why."""
    if not facts.is_open_loop:
        return Check("rate", True, "a closed loop offers no rate")
    if facts.offered_msgs_per_s is None:
        return Check("rate", None, "the offered rate is not known")
    text = f"offered {facts.offered_msgs_per_s:,.0f}, sent {facts.achieved_msgs_per_s:,.0f} msg/s"
    if facts.consumers:
        text += f", goodput {facts.goodput_msgs_per_s:,.0f} msg/s"
    return Check("rate", True, text if facts.is_carried else f"{text}: not carried")


def check_complete(facts: Facts) -> Check:
    """Every message due in the window has its latencies: one that was not sent, confirmed or received has none.

    Percentiles of the rest would be the better the more is missing, and above the missing share they say nothing.
    """
    name = "latency complete"
    if not facts.is_open_loop:
        return Check(name, True, "a closed loop has no response times")
    if facts.missing is None or facts.due is None:
        return Check(name, None, "not counted")
    if not facts.missing:
        return Check(name, True, f"all of {facts.due:,} messages due")
    share = facts.missing / max(1, facts.due)
    text = f"{facts.missing:,} of {facts.due:,} messages due were not sent, confirmed or received ({share:.2%})"
    return Check(name, False if share > MISSING_SHARE else None, text)


def check_range(facts: Facts) -> Check:
    """No latency fell outside the histogram: a dropped tail makes every percentile above it too small."""
    if facts.out_of_range:
        return Check("histogram range", False, f"{facts.out_of_range:,} values out of range")
    return Check("histogram range", True, "all values recorded")


# --- the machine ---


def check_generator(facts: Facts) -> Check:
    """A client thread at 95 % of its core: that bounds a rate, and casts doubt on an open loop's latency.

    Latencies of an open loop that carried its rate on a full core contain the client's own queue.
    """
    if facts.agent_core_share_max is None:
        return Check("generator CPU", None, "not observed")
    text = f"busiest client thread at {_percent(facts.agent_core_share_max)} of a core"
    return Check("generator CPU", None if facts.is_generator_full and facts.is_carried else True, text)


def check_host(facts: Facts) -> Check:
    """A used-up machine bounds a rate ("with this client on this host") and casts doubt on a latency."""
    if facts.host_busy_share is None:
        return Check("host CPU", None, "not observed")
    return Check("host CPU", None if facts.is_host_full and facts.is_carried else True, _host_text(facts))


def check_others(facts: Facts) -> Check:
    """Programs that are neither clients nor broker used at most a fifth of a core."""
    if facts.others_cores is None:
        return Check("other programs", None, "not observed")
    names = f" ({', '.join(facts.others_names)})" if facts.others_names else ""
    text = f"others used {facts.others_cores:.2f} cores{names}"
    return Check("other programs", None if facts.others_cores > OTHERS_CORES else True, text)


def check_steal(facts: Facts) -> Check:
    """The hypervisor took at most 5 % of the CPU time."""
    if facts.steal_share is None:
        return Check("stolen CPU", None, "not observed")
    text = f"{_percent(facts.steal_share)} of the CPU time stolen"
    return Check("stolen CPU", None if facts.steal_share > STEAL_SHARE else True, text)


def check_alarms(facts: Facts) -> Check:
    """No resource alarm and no blocked connection: under one the broker refuses work, by design.

    A broker that has none or cannot be asked (`alarms` None) is nothing against the number.
    """
    if facts.alarms:
        return Check("alarms", False, f"the broker raised an alarm: {', '.join(facts.alarms)}")
    if facts.blocked_connections:
        return Check("alarms", False, f"the broker blocked {facts.blocked_connections:,} connections")
    return Check("alarms", True, "not observed" if facts.alarms is None else "none")


def check_disk(facts: Facts) -> Check:
    """The broker's disk did not run full."""
    if facts.disk_full:
        return Check("disk", False, "the broker's disk ran full")
    return Check("disk", True, "not observed" if facts.disk_full is None else "had room")


def check_observed(facts: Facts) -> Check:
    """The observer looked to the end, and often enough for its means to say something about the window."""
    if facts.observer_defects:
        return Check("observation", None, f"the observer failed: {facts.observer_defects[0]}")
    if facts.samples is not None and facts.samples < SAMPLES_MIN:
        return Check("observation", None, f"only {facts.samples} samples in the window")
    return Check("observation", True, "not counted" if facts.samples is None else f"{facts.samples} samples")


CHECKERS: tuple[Callable[[Facts], Check], ...] = (
    check_traffic,
    check_integrity,
    check_foreign,
    check_loss,
    check_drained,
    check_duplicates,
    check_order,
    check_stored,
    check_errors,
    check_schedule,
    check_carried,
    check_complete,
    check_range,
    check_generator,
    check_host,
    check_others,
    check_steal,
    check_alarms,
    check_disk,
    check_observed,
)


def _host_text(facts: Facts) -> str:
    pressure = facts.psi_cpu_some_share
    text = f"host CPU at {_percent(facts.host_busy_share)}"
    return text if pressure is None else f"{text}, tasks waiting for a CPU {_percent(pressure)} of the time"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.0%}"
