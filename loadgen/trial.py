"""One trial from an empty queue to a judged record: create, drive, watch, account, judge, delete."""

from __future__ import annotations

import json
import secrets
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from loadgen.agent import SECOND_NS, Report
from loadgen.board import Board, Cell
from loadgen.drain import begun_right, drained, mark
from loadgen.driver import confirms
from loadgen.drivers import load_driver
from loadgen.errors import HostError, LoadgenError
from loadgen.facts import facts_of
from loadgen.figures import account_of, figures, offered_msgs_per_s
from loadgen.fleet import Fleet, Outcome
from loadgen.flow import Flow, Settled, is_growing
from loadgen.histogram import Histogram
from loadgen.host import disk_free
from loadgen.legs import depth_of, gauge_of, target_of
from loadgen.membership import rebalances
from loadgen.observer import Observer
from loadgen.payload import Payloads
from loadgen.removals import Removals, removals_of, removed_msgs
from loadgen.roster import roster
from loadgen.series import Gathered
from loadgen.verdict import judge
from loadgen.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from loadgen.driver import Admin, Gauge, Target
    from loadgen.endpoint import Endpoint
    from loadgen.hands import Hands
    from loadgen.ledger import Account
    from loadgen.observer import Observations
    from loadgen.plan import Trial
    from loadgen.recorder import IntervalDelta
    from loadgen.runs import RunWriter

MIN_FREE_BYTES = 1 << 30  # below this a trial is stopped, before the brokers are harmed
PROGRESS_EVERY_S = 0.5
TOLD_EVERY_S = 60.0  # how often what was observed goes to disk: a trial of hours may be killed
TOLD_LATE_NS = 12 * SECOND_NS  # what is looked at every five seconds is known by then
DRAINED_S = 60.0
DRAIN_INTERVAL_S = 0.1  # how often the observer looks where a backlog is drained, which may take half a second only
CUT_MOST_S = 60  # what comes later than a minute after the warm-up is no warm-up

COUNTED = {
    "sent": Cell.SENT,
    "acked": Cell.ACKED,
    "received": Cell.RECEIVED,
    "errors": Cell.ERRORS,
    "failed_requests": Cell.FAILED_REQUESTS,
}

Record = dict[str, Any]


def counted(trial: Trial) -> list[str]:
    """Those of `COUNTED` that mean something in a trial."""
    absent = {"acked": not confirms(trial.settings), "received": not trial.consumers}
    return [name for name in COUNTED if not absent.get(name)]


@dataclass
class Live:
    """What a trial looks like while it runs: for progress, and for keeping what its agents reported."""

    trial: Trial
    endpoint: Endpoint
    writer: RunWriter | None
    progress: Callable[[str], None]
    gauge: Callable[[int], Gauge]
    token: int = 0
    left_s: float = 0.0
    start_ns: int = 0
    received: int = 0
    observer: Observer | None = None
    board: Board | None = None
    flow: Flow = field(init=False)
    hlog_start_s: float | None = None
    histograms: dict[str, Histogram] = field(default_factory=dict)
    early: list[IntervalDelta] = field(default_factory=list)  # may turn out to be warm-up
    cut: list[IntervalDelta] = field(default_factory=list)  # did
    errors: dict[str, int] = field(default_factory=dict)
    second: Histogram = field(default_factory=Histogram)
    shown: str = ""
    mark: Callable[[], Record | None] = lambda: None
    """Where consumers are to begin, once what they skip is written."""
    handled: int = 0
    """Received by a role in the middle."""
    _shown_s: float = 0.0
    _told_s: float = field(default_factory=time.monotonic)
    _told_rows: int = 0
    _counts: tuple[float, int] = (0.0, 0)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # a scrape comes from another thread

    def __post_init__(self) -> None:
        length_s = self.trial.warmup_s + self.trial.duration_s
        self.flow = Flow(self.trial.subscribers, self.trial.backlog.skipped(self.trial.producers), length_s)
        self.gathered = Gathered(self.interval_s)
        self.suffix = "" if self.trial.rate.is_open_loop else "_service"

    @property
    def interval_s(self) -> int:
        """How long an interval is on disk."""
        return self.trial.interval_s

    def started(self, start_ns: int, pids: dict[str, tuple[int, ...]]) -> None:
        """All agents are connected: watch them and the broker from the start on."""
        self.start_ns = start_ns
        window_in_s = (start_ns - time.monotonic_ns()) / SECOND_NS + self.trial.warmup_s
        if self.writer is not None:
            begun = {**describe(self.trial), "window_s": self.trial.duration_s}
            self.hlog_start_s = self.writer.begin_trial(
                begun, started_s=time.time() + window_in_s, interval_s=self.interval_s
            )
        groups = {**pids, "broker": self.endpoint.pids}
        is_drain = self.trial.backlog.msgs > 0 and self.trial.duration_s <= DRAINED_S
        interval_s = DRAIN_INTERVAL_S if is_drain else self.interval_s
        self.observer = Observer(
            groups, self.endpoint, interval_s, gauge=lambda: self.gauge(self.received), counts=self.counts
        )
        self.observer.start(start_ns)

    def marked(self, board: Board) -> None:
        """Tell consumers where to begin."""
        board.leave(json.dumps(self.mark()))

    def reported(self, report: Report) -> None:
        """Keep an agent's second: merged for the record (first: a disk may be full), and on disk at once."""
        newest = Histogram()
        self._keep(report.deltas)
        for delta in report.deltas:
            if delta.kind == ("e2e", "rtt")[self.trial.pattern.is_request_reply] + self.suffix:
                delta.add_to(newest)
        for reason, number in report.errors.items():
            self.errors[reason] = self.errors.get(reason, 0) + number
        if newest.count:
            self.second = newest
        for event in report.events:
            if self.observer is not None:
                self.observer.note(*event)
        if self.writer is not None:
            self.writer.add_intervals(self.trial.id, report.deltas, agent=report.agent)
            row = self.gathered.add(report.agent, report.series)
            if row is not None:
                self._write_rows([{"agent": report.agent, **row}])

    def tell_observed(self, observations: Observations, until_ns: int | None = None) -> None:
        """Put on disk what was observed since the last time, by a moment; in the end all, with what agents left."""
        rows = observations.rows_from(self._told_rows, until_ns)
        self._told_rows += len(rows)
        told = [{"agent": "observer", **row} for row in rows]
        if until_ns is None:
            told += [{"agent": agent, **row} for agent, row in self.gathered.rest().items()]
        self._write_rows(told)

    def _write_rows(self, rows: list[Record]) -> None:
        if self.writer is not None and rows:
            self.writer.add_series({"trial": self.trial.id, **row} for row in rows)

    def _keep(self, deltas: Iterable[IntervalDelta]) -> None:
        with self._lock:
            for delta in deltas:
                # Interval 0 is the first of the measured window; nothing is intended after its end.
                if 0 <= delta.interval < min(CUT_MOST_S, self.trial.duration_s / 2):
                    self.early.append(delta)
                elif delta.interval >= 0:
                    delta.add_to(self.histograms.setdefault(delta.kind, Histogram()))

    def counts(self) -> dict[str, int]:
        """What all agents have done so far, from warm-up on; what this trial does not have is not in it."""
        if self.board is None:
            return {}
        counts = {name: self.board.total(cell) for name, cell in COUNTED.items()}
        return {name: counts[name] for name in counted(self.trial)}

    def measured(self, cut_s: int) -> dict[str, Histogram]:
        """The measured window's histograms by kind, without its first `cut_s` seconds; final once called."""
        with self._lock:
            for delta in self.early:
                if delta.interval >= cut_s:
                    delta.add_to(self.histograms.setdefault(delta.kind, Histogram()))
                else:
                    self.cut.append(delta)
            self.early.clear()
        return self.histograms

    def latencies(self) -> dict[str, Histogram]:
        """Copies of what the planned window has so far, by kind; what is cut off stays in, so that none shrinks."""
        with self._lock:
            found: dict[str, Histogram] = {}
            for kind, histogram in self.histograms.items():
                found.setdefault(kind, Histogram()).merge(histogram)
            for delta in (*self.early, *self.cut):
                delta.add_to(found.setdefault(delta.kind, Histogram()))
        return found

    def turned(self, board: Board) -> None:
        """Look at the counters, show where the trial is, and stop it before it fills the disk."""
        self.board = board
        self.received = board.total(Cell.RECEIVED)
        self.handled = board.total(Cell.HANDLED)
        if self.start_ns:
            self.flow.sample(board, time.monotonic_ns())
        now = time.monotonic()
        if now - self._shown_s < PROGRESS_EVERY_S or not (self.start_ns or self.trial.backlog.msgs):
            return
        self._shown_s = now
        self._demand_room()
        if self.observer is not None and now - self._told_s >= TOLD_EVERY_S:
            self._told_s = now
            late_ns = max(TOLD_LATE_NS, round((self.interval_s + 2) * SECOND_NS))  # of what an interval asks once
            self.tell_observed(self.observer.seen(), time.monotonic_ns() - late_ns)
        if not self.start_ns:
            written = board.total(Cell.SENT)
            self.progress(f"{self.shown}{self.trial.id}: {written:,} of {self.trial.backlog.msgs:,} messages written")
            return
        skipped = self.trial.backlog.skipped(self.trial.producers)
        sent = (board.total(Cell.SENT) - skipped) * self.trial.subscribers
        received = board.total(Cell.RECEIVED)
        then, before = self._counts
        rate = (received - before) / (now - then) if then else 0.0
        self._counts = (now, received)
        elapsed_s = (time.monotonic_ns() - self.start_ns) / SECOND_NS
        left_s = max(0.0, self.trial.warmup_s + self.trial.duration_s - elapsed_s)
        latency = ""
        if self.second.count:
            p50, p99 = self.second.percentiles([50, 99])
            loop = "" if self.trial.rate.is_open_loop else " (closed loop, not latency)"
            latency = f" · p50 {p50 / 1e6:.2f} p99 {p99 / 1e6:.2f} ms{loop}"
        self.progress(
            f"{self.shown}{self.trial.id}: {rate:,.0f} msg/s{latency} · backlog {max(0, sent - received):,}"
            f" · {left_s:.0f} s of {self.left_s + left_s:.0f} s left"
        )

    def _demand_room(self) -> None:
        data_dir = self.endpoint.data_dir
        if data_dir is not None and disk_free(data_dir) < MIN_FREE_BYTES:
            raise HostError(
                f"disk: under {MIN_FREE_BYTES / 1e9:.0f} GB free where {self.endpoint.broker} keeps its data; free "
                "space or shorten the trial (--set duration_s=…)"
            )


@dataclass(frozen=True, slots=True)
class Setting:
    """What a trial needs beside itself."""

    endpoint: Endpoint
    progress: Callable[[str], None]
    writer: RunWriter | None = None
    cpus: tuple[int, ...] = ()
    shown: str = ""
    left_s: float = 0.0
    began: Callable[[Live], None] | None = None
    """Told of the trial as soon as it can be watched."""
    hands: Callable[[], Hands] | None = None
    """What moves the agents where they are not processes of this machine."""


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


def run_trial(trial: Trial, setting: Setting) -> tuple[Record, Outcome]:
    """Run one trial; the record tells all, also of a trial that failed. Raises only what ends a whole run."""
    endpoint = setting.endpoint
    if endpoint.source == "memory":
        trial = replace(trial, driver="memory")
    admin = load_driver(trial.driver).admin(endpoint)
    # A name that no earlier trial or run has had: a topic of the same name may still be in deletion.
    name = f"loadgen-{trial.scenario}-{secrets.token_hex(4)}"
    target = target_of(trial, endpoint, name)
    try:
        admin.create(target)
        try:
            if target.onward is not None:
                admin.create(target.onward)
            record, outcome = _driven(trial, setting, admin, target)
        finally:
            left_behind = _delete(admin, target)
            if target.onward is not None:
                left_behind = left_behind or _delete(admin, target.onward)
    finally:
        admin.close()
    if left_behind is not None:
        record["left_behind"] = left_behind
        record["verdict"]["reasons"].append(f"left behind: {left_behind['name']} ({left_behind['reason']})")
    return record, outcome


def _delete(admin: Admin, target: Target) -> Record | None:
    """Remove the queue or topic; where that fails, what stays on the broker and why."""
    try:
        admin.delete(target)
    except LoadgenError as error:
        return {"name": target.name, "reason": str(error)}
    return None


def _driven(trial: Trial, setting: Setting, admin: Admin, target: Target) -> tuple[Record, Outcome]:
    configuration = admin.effective(target)
    # The depth is asked from a thread of the observer's; clients are not shared between threads.
    gauge = load_driver(trial.driver).admin(setting.endpoint)
    token = secrets.randbits(32)
    skipped = trial.backlog.skipped(trial.producers) * trial.subscribers
    live = Live(
        trial=trial,
        endpoint=setting.endpoint,
        writer=setting.writer,
        progress=setting.progress,
        gauge=lambda received: gauge_of(
            gauge, target, received + skipped, live.handled if trial.pattern.has_middle else None
        ),
        token=token,
        mark=lambda: mark(trial, admin, target),
        left_s=setting.left_s,
        shown=setting.shown,
    )
    if setting.began is not None:
        setting.began(live)
    told = versions(trial.driver, setting.endpoint.version)
    started = datetime.now(UTC)
    try:
        try:
            outcome = Fleet(live, None if setting.hands is None else setting.hands()).run(
                lambda board: roster(trial, target, token, board, setting.cpus), trial.agents
            )
        finally:
            observations = live.observer.stop() if live.observer is not None else None
    finally:
        gauge.close()
    if outcome.flows is not None:  # what each worker read of its own board, in place of this one's late copy
        live.flow = Flow(trial.subscribers, trial.backlog.skipped(trial.producers))
        live.flow.overlay(outcome.flows)
    about = {"versions": told, "started_utc": f"{started:%Y-%m-%dT%H:%M:%SZ}", "broker_configuration": configuration}
    return judged(trial, live, outcome, observations, admin, target) | about, outcome


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
    settled = _settled(trial, live, outcome, has_gone=removals.unreceived_msgs > 0)
    record = {**describe(trial), **figures(trial, live, outcome, account, removals, settled.cut_s)}
    if outcome.start_ns:
        record["backlog"] = drained(trial, live.flow, outcome, account)
        record["rebalances"] = rebalances(trial, outcome)
    if live.hlog_start_s is not None:
        record["hlog_start_s"] = live.hlog_start_s + settled.cut_s
    if observations is not None and record["window_s"]:
        record |= _observed(record, live, observations, outcome)
    record |= _flowed(record, live, settled)
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
        return held, removals_of(admin, target, Payloads(trial.message, trial.seed, live.token))
    except LoadgenError as error:
        outcome.error = str(error)
        return {}, Removals()


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


def _settled(trial: Trial, live: Live, outcome: Outcome, *, has_gone: bool) -> Settled:
    """Where the trial became steady; one that was cut short keeps its whole window.

    Where messages have gone without being received, the number under way is not known, but the rate is.
    """
    if outcome.error is not None or outcome.interrupted:
        return Settled(0, None, "the trial was cut short")
    if trial.backlog.msgs:
        return Settled(0, True, "a backlog is drained: its rate is told for as long as that took")
    if trial.membership.changes:
        return Settled(0, True, "a consumer came or went: what changed then is what is looked for")
    found = live.flow.settled(
        live.start_ns,
        trial.warmup_s,
        trial.duration_s,
        consumed=trial.consumers > 0,
        is_open=trial.rate.is_open_loop and not has_gone,
    )
    # Whole intervals of the log, so that the window still begins with one.
    cut_s = -(-found.cut_s // trial.interval_s) * trial.interval_s
    return replace(found, cut_s=cut_s if cut_s <= CUT_MOST_S else 0)


def _flowed(record: Record, live: Live, settled: Settled) -> Record:
    """What the counters say of the window: steady or not, the number under way, Little's law."""
    steady = {"steady": settled.steady, "reason": settled.reason, "cut_s": settled.cut_s}
    if not record["window_s"] or not record["consumers"]:
        return {"steady": steady}
    if removed_msgs(record):
        why = "messages that left the queue otherwise than to a consumer never leave the gauge"
        return {"steady": steady, "little": {"agrees": None, "reason": why}}
    begin_ns = live.start_ns + round(record["warmup_s"] * SECOND_NS)
    agrees, reason = live.flow.little(record, begin_ns)
    if live.trial.backlog.msgs:
        agrees, reason = None, "messages of a backlog have no service time"
    return {
        "steady": steady,
        "under_way": live.flow.summary(begin_ns, record["window_s"]),
        "little": {"agrees": agrees, "reason": reason},
    }


def _verdict(record: Record, outcome: Outcome, account: Account | None) -> Record:
    if outcome.error is not None or outcome.interrupted:
        why = outcome.error or "interrupted: what was measured is kept, and not judged"
        status = "invalid" if outcome.error else "unknown"
        return {"status": status, "bound_by": "unknown", "reasons": [why], "checks": []}
    due = None if account is None else account.due
    facts = facts_of(record, drained=outcome.drained, due=due)
    begun = begun_right(record.get("backlog"), record["producers"], record["subscribers"])
    return judge(replace(facts, **_flow_facts(record), begun=begun)).record()


def _flow_facts(record: Record) -> Record:
    """What the counters showed, as the verdict's flow checks take it: (finding, reason) each."""
    steady, little = record["steady"], record.get("little")
    under_way, offered = record.get("under_way"), record["offered_msgs_per_s"]
    known: Record = {"steady": (steady["steady"], steady["reason"])}
    if little is not None:
        known["little"] = (little["agrees"], little["reason"])
    if record.get("membership") is not None:
        known["backlog"] = (True, "a consumer came or went: what piled up then is what is looked for")
    elif under_way and offered:
        is_grown = is_growing(under_way, offered * record["subscribers"])
        grew = under_way["slope_msgs_per_s"]["estimate"]
        known["backlog"] = (not is_grown, f"it grew by {grew:,.0f} msg/s" if is_grown else "it did not grow")
    return known
