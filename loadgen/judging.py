"""What a trial was and what came of it, as its record tells it: its figures, what was observed, and the verdict."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.abilities import Rereadable
from loadgen.agent import SECOND_NS
from loadgen.bursts import worked_off, worked_off_right
from loadgen.drain import begun_right, drained
from loadgen.drivers import load_driver
from loadgen.errors import LoadgenError
from loadgen.facts import facts_of
from loadgen.figures import account_of, figures, offered_msgs_per_s
from loadgen.flow import Settled, is_growing
from loadgen.legs import depth_of
from loadgen.membership import rebalances
from loadgen.payload import Payloads
from loadgen.ramps import risen
from loadgen.removals import Removals, removals_of, removed_msgs
from loadgen.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadgen.driver import Admin, Target
    from loadgen.fleet import Outcome
    from loadgen.ledger import Account
    from loadgen.observer import Observations
    from loadgen.plan import Trial
    from loadgen.trial import Live

REREAD_MOST_MSGS = 1_000_000  # more would take longer than a trial
CUT_MOST_S = 60  # what comes later than a minute after the warm-up is no warm-up
CHANGING = {
    "burst": "bursts came and went: what piled up in them is what is looked for",
    "ramp": "the rate changes: what latency does meanwhile is what is looked for",
}
"""Rates by which a trial is in no one state, and is not meant to be."""

Record = dict[str, Any]


def describe(trial: Trial) -> Record:
    """The part of a trial's record that was known before it ran."""
    return {
        "id": trial.id,
        "scenario": trial.scenario,
        "broker": trial.broker,
        "driver": trial.driver,
        "driver_kind": load_driver(trial.driver).kind,
        "durability": str(trial.durability),
        "settings": trial.settings,
        "point": {name: getattr(value, "value", value) for name, value in trial.point.items()},
        "repeat": trial.repeat,
        "seed": trial.seed,
        "message": trial.message.model_dump(mode="json"),
        "rate": (trial.asked or trial.rate).model_dump(mode="json"),
        "purpose": trial.purpose,
        "producers": trial.producers,
        "consumers": trial.consumers,
        "think": asdict(trial.think),
        "membership": asdict(trial.membership) if trial.membership.changes else None,
        "subscribers": trial.subscribers,
        "pattern": trial.pattern.kind,
        "processors": trial.pattern.processors or None,
        "warmup_s": trial.warmup_s,
        "offered_msgs_per_s": offered_msgs_per_s(trial),
    }


def judged(
    trial: Trial, live: Live, outcome: Outcome, observations: Observations | None, admin: Admin, target: Target
) -> Record:
    """What came of a trial that has ended: its figures, what was observed, what the broker holds, and the verdict."""
    if observations is not None:
        try:
            live.tell_observed(observations)
        except LoadgenError as error:  # a full disk ends the run, and does not take the record along
            outcome.error, outcome.cause = outcome.error or str(error), outcome.cause or error
    held, removals = _told_by_broker(trial, live, outcome, admin, target)
    account = account_of(outcome, trial.settings, removals)
    settled = _settled(trial, live, outcome, observations, has_gone=removals.unreceived_msgs > 0)
    record = {**describe(trial), **figures(trial, live, outcome, account, removals, settled.cut_s)}
    if live.hurting is not None:
        end_ns = live.start_ns + round((trial.warmup_s + trial.duration_s) * SECOND_NS)
        record["faults"] = live.hurting.record(live.flow, end_ns)
        record["proxy"], record["links"] = live.hurting.proxy, live.hurting.links
    if outcome.start_ns:
        record["backlog"] = drained(trial, live.flow, outcome, account)
        record["rebalances"] = rebalances(trial, outcome)
    if live.hlog_start_s is not None:
        record["hlog_start_s"] = live.hlog_start_s + settled.cut_s
    if observations is not None and record["window_s"]:
        record |= _observed(record, live, observations, outcome)
    record |= _flowed(record, live, settled)
    if outcome.error is None and not outcome.interrupted:
        record["ramp"] = risen(trial, live.levels)
    strays = removed_msgs(record) or record.get("lost") or record.get("duplicated")  # which stay owed, or are twice
    if outcome.error is None and not outcome.interrupted and not strays:
        record["bursts"] = worked_off(trial, live.flow, outcome.start_ns)
    if held:
        record["broker_counts"] = held
    record["verdict"] = _verdict(record, outcome, account)
    return record


def _told_by_broker(
    trial: Trial, live: Live, outcome: Outcome, admin: Admin, target: Target
) -> tuple[Record, Removals]:
    """What the broker still holds and has stored, and what it took out of its queues by itself.

    Where it went after the last message the trial is lost, its record is not.
    """
    if outcome.error is not None:
        return {}, Removals()
    try:
        # The depth first: what expires in between is counted twice, and not missed.
        held = {"stored": admin.stored(target), "depth_at_end": depth_of(admin, target)}
        payloads = Payloads(trial.message, trial.seed, live.token)
        if trial.faults and isinstance(admin, Rereadable) and (held["stored"] or 0) <= REREAD_MOST_MSGS:
            held["read_again"] = _read_again(admin.reread(target), payloads)
        return held, removals_of(admin, target, payloads)
    except LoadgenError as error:
        outcome.error = str(error)
        return {}, Removals()


def _read_again(bodies: Iterable[bytes], payloads: Payloads) -> int:
    """How many different messages of this trial these are."""
    found: set[tuple[int, int]] = set()
    start = np.zeros(1, np.int64)
    for body in bodies:
        parsed = payloads.parse(np.frombuffer(body, np.uint8), start, len(body))
        if parsed.intact[0]:
            found.add((int(parsed.producer[0]), int(parsed.seq[0])))
    return len(found)


def _observed(record: Record, live: Live, observations: Observations, outcome: Outcome) -> Record:
    """What the observer adds to the figures, from the window as long as it really was."""
    begin_ns = live.start_ns + round(record["warmup_s"] * SECOND_NS)
    summary = observations.summary(begin_ns, begin_ns + round(record["window_s"] * SECOND_NS))
    cpu_s = {**record["cpu_s"], "broker": summary["cpu_s"].get("broker")}
    return {
        "observer": summary,
        "cpu_s": cpu_s,
        "rss_bytes": summary["rss_bytes"],
        "clock": outcome.clock or summary["clock"],
    }


def _settled(
    trial: Trial, live: Live, outcome: Outcome, observations: Observations | None, *, has_gone: bool
) -> Settled:
    """Where the trial became steady.

    Where messages have gone without being received, the number under way is not known, but the rate is. Seconds in
    which a client had no connection were never a warm-up, whatever the flow was like: they are left where they are.
    """
    if (kept := _kept_whole(trial, outcome)) is not None:
        return kept
    found = live.flow.settled(
        live.start_ns,
        trial.warmup_s,
        trial.duration_s,
        consumed=trial.consumers > 0,
        is_open=trial.rate.is_open_loop and not has_gone,
        levels_ns=live.levels.blocks(),
    )
    # Whole intervals of the log, so that the window still begins with one.
    cut_s = -(-found.cut_s // trial.interval_s) * trial.interval_s
    window_ns = live.start_ns + round(trial.warmup_s * SECOND_NS)
    if cut_s and _was_cut_off(observations, window_ns, window_ns + cut_s * SECOND_NS):
        return Settled(0, False, "its first seconds differ from the rest: a client was without a connection in them")
    if cut_s > CUT_MOST_S:
        return Settled(
            0, False, f"its first {cut_s} s differ from the rest: a warm-up takes {CUT_MOST_S} s at the most"
        )
    return replace(found, cut_s=cut_s)


def _kept_whole(trial: Trial, outcome: Outcome) -> Settled | None:
    """What is said of a trial that keeps its whole window, whatever its flow was like; None of any other."""
    if outcome.error is not None or outcome.interrupted:
        return Settled(0, None, "the trial was cut short")
    if trial.backlog.msgs:
        return Settled(0, True, "a backlog is drained: its rate is told for as long as that took")
    if trial.membership.changes:
        return Settled(0, True, "a consumer came or went: what changed then is what is looked for")
    if trial.faults:
        return Settled(0, True, "the broker was hurt: what changed then is what is looked for")
    if trial.rate.kind in CHANGING:
        return Settled(0, True, CHANGING[trial.rate.kind])
    return None


def _was_cut_off(observations: Observations | None, begin_ns: int, end_ns: int) -> bool:
    """Whether a client was without a connection at any moment between two."""
    noted = () if observations is None else observations.noted
    return any(each.kind == "outage" and each.began_ns < end_ns and each.ended_ns > begin_ns for each in noted)


def _flowed(record: Record, live: Live, settled: Settled) -> Record:
    """What the counters say of the window: steady or not, the number under way, Little's law."""
    steady = {name: getattr(settled, name) for name in ("steady", "reason", "cut_s", "weighs")}
    if not record["window_s"] or not record["consumers"]:
        return {"steady": steady}
    if removed_msgs(record):
        why = "messages that left the queue otherwise than to a consumer never leave the gauge"
        return {"steady": steady, "little": {"agrees": None, "reason": why, "weighs": False}}
    begin_ns = live.start_ns + round(record["warmup_s"] * SECOND_NS)
    agrees, reason, weighs = live.flow.little(record, begin_ns)
    if live.trial.backlog.msgs:
        agrees, reason, weighs = None, "messages of a backlog have no service time", False
    return {
        "steady": steady,
        "under_way": live.flow.summary(begin_ns, record["window_s"]),
        "little": {"agrees": agrees, "reason": reason, "weighs": weighs},
    }


def _verdict(record: Record, outcome: Outcome, account: Account | None) -> Record:
    if outcome.error is not None or outcome.interrupted:
        why = outcome.error or "interrupted: what was measured is kept, and not judged"
        status = "invalid" if outcome.error else "unknown"
        return {"status": status, "bound_by": "unknown", "reasons": [why], "checks": []}
    due = None if account is None else account.due
    facts = facts_of(record, drained=outcome.drained, due=due)
    begun = begun_right(record.get("backlog"), record["producers"], record["subscribers"])
    confirmed: Record = {
        "unsettled": None if account is None else account.unsettled,
        "gave_up_confirms": any(result.gave_up_confirms for result in outcome.results),
    }
    return judge(replace(facts, **confirmed, **_flow_facts(record), begun=begun)).record()


def _flow_facts(record: Record) -> Record:
    """What the counters showed, as the verdict's flow checks take it: (finding, reason) each."""
    steady, little = record["steady"], record.get("little")
    under_way, offered = record.get("under_way"), record["offered_msgs_per_s"]
    known: Record = {"steady": (steady["steady"], steady["reason"]), "steady_weighs": steady["weighs"]}
    if little is not None:
        known |= {"little": (little["agrees"], little["reason"]), "little_weighs": bool(little.get("weighs"))}
    if record.get("membership") is not None:
        known["backlog"] = (True, "a consumer came or went: what piled up then is what is looked for")
    elif record.get("faults"):
        known["backlog"] = (True, "the broker was hurt: what piled up then is what is looked for")
    elif record.get("bursts"):
        known["backlog"] = worked_off_right(record["bursts"])
    elif under_way and offered:
        known["backlog"] = _grown(under_way, offered * record["subscribers"])
        known["is_level"] = known["backlog"][0] is True
    return known


def _grown(under_way: Record, offered_msgs_per_s: float) -> tuple[bool | None, str]:
    """Whether a backlog stayed as it was, and what was seen of it."""
    is_grown = is_growing(under_way, offered_msgs_per_s)
    if is_grown is None:
        return None, f"{under_way['samples']} samples are too few to test its slope"
    grew = under_way["slope_msgs_per_s"]["estimate"]
    return not is_grown, f"it grew by {grew:,.0f} msg/s" if is_grown else "it did not grow"
