"""What a trial with a backlog shows: where consumers begin, when the first message came, how fast all were drained.

A backlog's messages have no response times, since nobody was to receive them yet; what is told is the time to the
first message, the rate, and the time until consumers had caught up with producers.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from loadgen.abilities import Seekable
from loadgen.agent import SECOND_NS
from loadgen.backlog import PLACES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.agent import Drained
    from loadgen.driver import Admin, Target
    from loadgen.fleet import Outcome
    from loadgen.flow import Flow
    from loadgen.ledger import Account
    from loadgen.plan import Trial

QUIET_S = 0.05  # before and after the moment that consumers seek to: clocks tell milliseconds


def mark(trial: Trial, admin: Admin, target: Target) -> dict[str, Any] | None:
    """Where consumers are to begin, as `loadgen.driver.start_of` reads it; what they skip has just been written."""
    if trial.backlog.start_from == "time":
        time.sleep(QUIET_S)
        now_ms = time.time_ns() // 1_000_000
        time.sleep(QUIET_S)
        return {"time_ms": now_ms}
    return {"offsets": admin.ends(target)} if isinstance(admin, Seekable) else None


def drained(trial: Trial, flow: Flow, outcome: Outcome, account: Account | None) -> dict[str, Any] | None:
    """`trial.backlog` of run.json; None where there was no backlog."""
    backlog = trial.backlog
    if not backlog.msgs:
        return None
    seen = [result.drained for result in outcome.results if result.drained is not None]
    opened = [each.opened_ns for each in seen if each.opened_ns]
    firsts = [each.first_ns for each in seen if each.first_ns]
    caught_up_ns, received = _end(trial, flow, seen, outcome.start_ns)
    end_ns = round(trial.duration_s * SECOND_NS) if caught_up_ns is None else caught_up_ns
    first_ns = min(firsts, default=0)
    rate = received * SECOND_NS / (end_ns - first_ns) if first_ns and end_ns > first_ns else None
    return {
        "msgs": backlog.msgs,
        "bytes": round(backlog.msgs * trial.message.mean_size_bytes),
        "build_s": outcome.build_s or None,
        "build_msgs_per_s": backlog.msgs / outcome.build_s if outcome.build_s else None,
        "start_from": backlog.start_from,
        "skipped_msgs": backlog.skipped(trial.producers),
        "early_msgs": None if account is None else account.early,
        "begun_producers": None if account is None else account.begun,
        "first_ns": first_ns - min(opened) if first_ns and opened else None,
        "drain_msgs_per_s": rate,
        "catch_up_s": None if caught_up_ns is None else caught_up_ns / SECOND_NS,
    }


def _end(trial: Trial, flow: Flow, seen: Sequence[Drained], start_ns: int) -> tuple[int | None, int]:
    """When consumers had caught up (ns since the begin; None: never), and what was received until then, or at all.

    A replay is over with its last message. In an open loop no more is under way then than is at any time.
    """
    if trial.is_replay:
        received = sum(each.backlog_msgs for each in seen)
        wanted = (trial.backlog.msgs - trial.backlog.skipped(trial.producers)) * trial.subscribers
        return max(each.backlog_ns for each in seen) if received >= wanted else None, received
    peak = trial.rate.peak_msgs_per_s
    assert peak is not None, "producers go on at a rate"
    end_ns = start_ns + round(trial.duration_s * SECOND_NS)
    found_ns = flow.caught_up_ns(start_ns, end_ns, peak)
    return None if found_ns is None else found_ns - start_ns, flow.received_by(start_ns, found_ns or end_ns)


def replayed_s(trial: Trial, outcome: Outcome) -> float | None:
    """How long a replay took from its begin to the last message, at most the window (s); None of any other trial."""
    seen = [result.drained for result in outcome.results if result.drained is not None]
    last_ns = max((each.last_ns for each in seen), default=0)
    if not trial.is_replay or not last_ns:
        return None
    return min(trial.duration_s, last_ns / SECOND_NS)


def begun_right(backlog: dict[str, Any] | None, producers: int, subscribers: int) -> tuple[bool | None, str] | None:
    """Whether consumers began where they were to: (finding, reason); None where there was no backlog."""
    if backlog is None:
        return None
    place = PLACES[backlog["start_from"]]
    early, begun = backlog["early_msgs"], backlog["begun_producers"]
    if early is None or begun is None:
        return None, "not counted"
    if early:
        return False, f"{early:,} messages came that lie before the place where consumers were to begin"
    if begun < producers * subscribers:
        return False, f"the first message behind that place came of {begun} of {producers * subscribers} producers"
    return True, f"at the backlog's {place}, with the message that is the first there"
