"""The verdict turns when it must: what disturbs a trial is named by the check that it belongs to.

An ordinary trial at a fixed rate is run on a real broker, first undisturbed and then with one thing done to it:

    a fifth of a core        the producer is stopped (SIGSTOP) for 80 ms of each 100 ms      schedule lag: starved
    stopped for a second     the producer, once, in mid-run                                  schedule lag: stopped
    a slow consumer          it works on each message for twice the time between two         backlog: slow consumers
    a neighbour              two programs that only use the CPU                              other programs: its name
    a disk alarm             RabbitMQ is told to want more free space than there is          alarms: disk

Each must be named in the way that only a real cause is: a lag, a backlog and an alarm make the trial invalid, and other
programs make it doubtful; the reason must have the cause's own name, and a slow consumer must be what bounded the rate.
The same trial undisturbed must name none of them. No time is compared with a limit of this page's: the checks' own
limits decide.

A fifth of a core is given by signals and not by a control group's quota, since that needs rights which not everybody
has. It is what a quota does to a process that never sleeps, and more than it does to one that does: stopped are also
the 80 ms in which it would have waited. (A consumer that is stopped nine tenths of the time need not be slow: it may
take in bulk what it missed. So the slow one works on each message, as an application does.)
"""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from loadgen.brokers import local, shortage
from loadgen.errors import TrialError
from loadgen.observer import WATCH_INTERVAL_S
from loadgen.report.words import broker_name
from loadgen.scenario import Rate
from loadgen.trial import Setting, run_trial
from prove.proof import Proof, Row, Scale
from prove.trials import own_broker, trial_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from loadgen.endpoint import BrokerName, Endpoint

RATE_MSGS_PER_S = 1_000.0
WARMUP_S = 1.0
CYCLE_S = 0.1
FIFTH_S = 0.02  # of each cycle that a producer with a fifth of a core runs
STOP_S = 1.0
NEIGHBOURS = 2
NEIGHBOUR = "prove-neighbour"  # the name by which the kernel, and so the verdict, knows them
SPIN = f"""
import os
with open("/proc/self/comm", "w") as name:
    name.write({NEIGHBOUR!r})
parent = os.getppid()
while os.getppid() == parent:  # it ends with the one who started it
    pass
"""
ATTEMPTS = 3  # to have an undisturbed trial
BROKERS: tuple[BrokerName, ...] = ("rabbitmq", "kafka")
SLOW_MS = 2_000 / RATE_MSGS_PER_S  # of work on each message: half of the rate
# Few messages at a time, so that a slow consumer's are in the broker and not in the consumer.
KNOBS: Mapping[BrokerName, dict[str, Any]] = {
    "rabbitmq": {"prefetch": 5, "ack_every": 1},
    "kafka": {"max_partition_fetch_bytes": 1_000, "max_poll_records": 5},
}


@dataclass(slots=True)
class Stage:
    """What a disturbance works with: the agents' processes by name, the broker, and when it must be over."""

    endpoint: Endpoint
    agents: dict[str, psutil.Process]
    length_s: float
    ended: threading.Event = field(default_factory=threading.Event)
    began_s: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float) -> bool:
        """Wait, at most until the measured window or the whole trial is over; the value is whether it is."""
        left_s = self.began_s + self.length_s - time.monotonic()
        return self.ended.wait(max(0.0, min(seconds, left_s))) or seconds >= left_s


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is done to a trial, and the check that must name it.

    `passed` is the check's finding then (None: cannot tell), `reason` what its reason must say, and `bound_by` what
    the verdict must give as the limit of the rate (empty: whatever it is). `think_ms` is how long the consumer works on
    each message.
    """

    name: str
    act: Callable[[Stage], None]
    check: str
    passed: bool | None = False
    reason: str = ""
    think_ms: float = 0.0
    bound_by: str = ""

    @property
    def status(self) -> str:
        """What the verdict must come to at least."""
        return "invalid" if self.passed is False else "unknown"

    def named(self, verdict: Mapping[str, Any]) -> str | None:
        """The reason of the finding by which a verdict names it; None where it does not."""
        reason = self.found(verdict)
        is_named = reason is not None and self.reason in reason and self.bound_by in {"", verdict["bound_by"]}
        return reason if is_named else None

    def found(self, verdict: Mapping[str, Any]) -> str | None:
        """The reason of that finding, whatever it was due to; None where the check found nothing."""
        told = [each["reason"] for each in verdict["checks"] if (each["name"], each["passed"]) == self.finding]
        return told[0] if told else None

    @property
    def words(self) -> str:
        """What the verdict must say."""
        bound = f", bound by {self.bound_by}" if self.bound_by else ""
        return f"{self.check}: {self.reason}{bound}"

    @property
    def finding(self) -> tuple[str, bool | None]:
        """The check's name and what it must find."""
        return self.check, self.passed


def untouched(_: Stage) -> None:
    """Nobody does anything to the trial."""


def limited(role: str, runs_s: float) -> Callable[[Stage], None]:
    """An agent that may run for so long of each cycle only."""

    def act(stage: Stage) -> None:
        while not stage.wait(runs_s):
            _stop(stage, role, CYCLE_S - runs_s)

    return act


def stopped(stage: Stage) -> None:
    """The producer stands still once, from a third of the trial on."""
    if not stage.wait(WARMUP_S + (stage.length_s - WARMUP_S) / 3):
        _stop(stage, "producer", STOP_S)


def burning(stage: Stage) -> None:
    """Programs that are no part of the trial use the CPU."""
    with contextlib.ExitStack() as stack:
        for _ in range(NEIGHBOURS):
            neighbour = stack.enter_context(subprocess.Popen([sys.executable, "-c", SPIN]))
            stack.callback(neighbour.kill)
        stage.wait(stage.length_s)


def alarmed(stage: Stage) -> None:
    """RabbitMQ wants more free space than there is, long enough to be looked at once."""
    server = local.node_of(local.cluster_of(stage.endpoint), 1).server
    try:
        shortage.begin(stage.endpoint, 1, "disk")
        stage.ended.wait(WATCH_INTERVAL_S + 0.2)
    finally:
        shortage.end(stage.endpoint, 1, "disk", server)


def _stop(stage: Stage, role: str, seconds: float) -> None:
    """Stop an agent for a time; one that has ended meanwhile is no other process with its pid."""
    agent = stage.agents[f"{role}0"]
    with contextlib.suppress(psutil.NoSuchProcess):
        try:
            agent.suspend()
            stage.wait(seconds)
        finally:
            agent.resume()


STOPPED = Case("producer stopped for a second", stopped, "schedule lag", reason="stopped")
STARVED = Case("producer with a fifth of a core", limited("producer", FIFTH_S), "schedule lag", reason="starved")
SLOW = Case("slow consumer", untouched, "backlog", reason="consumers were slow", think_ms=SLOW_MS, bound_by="consumers")
ALARMED = Case("disk alarm", alarmed, "alarms", reason="disk")
BURNING = Case("neighbours use the CPU", burning, "other programs", passed=None, reason=NEIGHBOUR)
CASES: Mapping[Scale, Mapping[BrokerName, tuple[Case, ...]]] = {
    Scale.FULL: {
        broker: (
            STARVED,
            STOPPED,
            SLOW,
            BURNING,
            *([ALARMED] if broker == "rabbitmq" else []),
        )
        for broker in BROKERS
    },
    Scale.SMALL: {"rabbitmq": (STOPPED, BURNING)},
}
DURATION_S = {Scale.FULL: 6.0, Scale.SMALL: 3.0}


class Beside:
    """A trial's progress: when it is told first, the trial has begun, and a disturbance begins beside it."""

    def __init__(self, act: Callable[[Stage], None], endpoint: Endpoint, length_s: float) -> None:
        self._act = act
        self._stage = Stage(endpoint, {}, length_s)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __call__(self, _: str) -> None:
        """Begin, the first time."""
        if self._thread is None:
            for child in multiprocessing.active_children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._stage.agents[child.name] = psutil.Process(child.pid)
            self._stage.began_s = time.monotonic()
            self._thread = threading.Thread(target=self._run, name="disturbs", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            self._act(self._stage)
        except BaseException as error:  # noqa: BLE001 - it is raised where the trial's caller waits
            self._error = error

    def end(self) -> None:
        """Wait until all has been put back as it was; raises what went wrong with it."""
        self._stage.ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error


@dataclass(frozen=True, slots=True)
class Seen:
    """The verdict on the trial that a case was done to; None is the undisturbed one, had after so many attempts."""

    broker: BrokerName
    case: Case | None
    verdict: Mapping[str, Any]
    attempts: int = 1

    @property
    def title(self) -> str:
        """The trial as rows name it."""
        return f"{broker_name(self.broker)}, {self.case.name if self.case else 'undisturbed'}"


def prove(scale: Scale) -> Proof:
    """Run every case on every broker, each broker's undisturbed trial first."""
    found: list[Seen] = []
    for broker, cases in CASES[scale].items():
        with own_broker(broker) as endpoint:
            found += measure(endpoint, cases, DURATION_S[scale])
    return compare(found)


def measure(endpoint: Endpoint, cases: tuple[Case, ...], duration_s: float) -> list[Seen]:
    """The undisturbed trial, then one with each case."""
    first = _undisturbed(endpoint, cases, duration_s)
    return [first, *(Seen(endpoint.broker, case, verdict_of(endpoint, case, duration_s)) for case in cases)]


def _undisturbed(endpoint: Endpoint, cases: tuple[Case, ...], duration_s: float) -> Seen:
    """The trial without a disturbance of ours; one that the machine itself disturbed is run again."""
    for attempt in range(1, ATTEMPTS + 1):
        seen = Seen(endpoint.broker, None, verdict_of(endpoint, None, duration_s), attempt)
        if not any(case.found(seen.verdict) for case in cases):
            break
    return seen


def verdict_of(endpoint: Endpoint, case: Case | None, duration_s: float) -> dict[str, Any]:
    """The verdict of the ordinary trial while something is done to it."""
    rate = Rate.fixed(RATE_MSGS_PER_S)
    trial = trial_of(
        endpoint.broker,
        rate,
        warmup_s=WARMUP_S,
        duration_s=duration_s,
        knobs=KNOBS[endpoint.broker],
        think_ms=case.think_ms if case else 0.0,
    )
    beside = Beside(case.act if case else untouched, endpoint, WARMUP_S + duration_s)
    try:
        record, outcome = run_trial(trial, Setting(endpoint, beside))
    finally:
        beside.end()
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.error is not None:
        raise TrialError(f"{trial.broker}: {outcome.error}")
    verdict: dict[str, Any] = record["verdict"]
    return verdict


def compare(found: list[Seen]) -> Proof:
    """The proof of what was seen."""
    how = (
        f"Every trial offers {RATE_MSGS_PER_S:,.0f} msg/s of 100 B. The producer with a fifth of a core is stopped "
        f"and continued by signals ten times a second, the slow consumer works {SLOW_MS:g} ms on each message, the "
        f"neighbours are two programs of ours "
        f"({NEIGHBOUR}), the alarm is set and taken back by rabbitmqctl while the trial runs."
    )
    again = ", ".join(f"{broker_name(each.broker)}'s {each.attempts} times" for each in found if each.attempts > 1)
    if again:
        how += f" An undisturbed trial in which others used the machine was run again: {again}."
    return Proof(
        name="turns",
        claim="A generator that is starved or stopped, a slow consumer, a neighbour on the CPU and a broker's alarm "
        "are each named by the verdict, and a trial without them names none.",
        rows=tuple(row for broker in BROKERS for row in _rows([each for each in found if each.broker == broker])),
        notes=(how, _table(found)),
    )


def _rows(found: list[Seen]) -> Iterator[Row]:
    """One broker's: the undisturbed trial names nothing, each other one its cause."""
    cases = [each.case for each in found if each.case is not None]
    for seen in found:
        if seen.case is None:
            yield _undisturbed_row(seen, cases)
        else:
            undisturbed = [each.verdict for each in found if each.case is None]
            yield _disturbed_row(seen, seen.case, undisturbed)


def _undisturbed_row(seen: Seen, cases: list[Case]) -> Row:
    """Nothing of all that; a program that is none of ours may be there, and then it stands in the row."""
    told = {case.check: reason for case in cases if (reason := case.found(seen.verdict)) is not None}
    is_clear = not any(
        case.named(seen.verdict) is not None or (case.passed is False and case.check in told) for case in cases
    )
    checks = ", ".join(dict.fromkeys(f"{case.check} ({case.reason})" for case in cases))
    text = "; ".join(f"{check}: {reason}" for check, reason in told.items()) or "none"
    return Row(seen.title, f"none of {checks}", text, "", ok=bool(cases) and is_clear)


def _disturbed_row(seen: Seen, case: Case, undisturbed: list[Mapping[str, Any]]) -> Row:
    """Named, and at least as bad as that; what the undisturbed trials have as well is named by nobody."""
    named = case.named(seen.verdict)
    is_new = bool(undisturbed) and not any(case.named(each) for each in undisturbed)
    reason = ", ".join(each["reason"] for each in seen.verdict["checks"] if each["name"] == case.check)
    bound = f", bound by {seen.verdict['bound_by']}" if case.bound_by else ""
    text = f"{seen.verdict['status']}, {case.check}: {reason}{bound}{'' if is_new else ' (undisturbed as well)'}"
    is_bad_enough = seen.verdict["status"] in {"invalid", case.status}
    return Row(
        seen.title, f"{case.status} for {case.words}", text, "", ok=named is not None and is_bad_enough and is_new
    )


def _table(found: list[Seen]) -> str:
    """Everything that each verdict found, for who wants to see what else a cause has done."""
    lines = ["| trial | verdict | bound by | not to be used for | in doubt for |", "| --- | --- | --- | --- | --- |"]
    for each in found:
        checks = each.verdict["checks"]
        failed, doubtful = (
            ", ".join(check["name"] for check in checks if check["passed"] is finding and check["weighs"]) or "–"
            for finding in (False, None)
        )
        status, bound_by = each.verdict["status"], each.verdict["bound_by"]
        lines.append(f"| {each.title} | {status} | {bound_by} | {failed} | {doubtful} |")
    return "\n".join(lines)
