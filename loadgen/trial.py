"""One trial from an empty queue to a judged record: create, drive, watch, account, judge, delete."""

from __future__ import annotations

import json
import secrets
import threading
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from loadgen.agent import SECOND_NS, Report
from loadgen.board import Board, Cell
from loadgen.drain import mark
from loadgen.driver import confirms
from loadgen.drivers import load_driver
from loadgen.errors import HostError, LoadgenError
from loadgen.facts import RESTING_GROUP
from loadgen.fleet import Fleet, Outcome
from loadgen.flow import Flow
from loadgen.histogram import Histogram
from loadgen.host import disk_free
from loadgen.hurting import Hurting
from loadgen.judging import CUT_MOST_S, describe, judged
from loadgen.legs import gauge_of, target_of
from loadgen.levels import Levels
from loadgen.observer import Observer
from loadgen.roster import roster
from loadgen.series import Gathered
from loadgen.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from loadgen.driver import Admin, Gauge, Target
    from loadgen.endpoint import Endpoint
    from loadgen.hands import Hands
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
    levels: Levels = field(init=False)
    hlog_start_s: float | None = None
    histograms: dict[str, Histogram] = field(default_factory=dict)
    early: list[IntervalDelta] = field(default_factory=list)  # may turn out to be warm-up
    cut: list[IntervalDelta] = field(default_factory=list)  # did
    errors: dict[str, int] = field(default_factory=dict)
    second: Histogram = field(default_factory=Histogram)
    shown: str = ""
    hurting: Hurting | None = None
    """What is done to the broker meanwhile."""
    resting: tuple[int, ...] = ()
    """Processes of the run's other brokers."""
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
        self.levels = Levels(self.interval_s)
        self.gathered = Gathered(self.interval_s)
        suffix = "" if self.trial.rate.is_open_loop else "_service"
        self.shown_kind = ("e2e", "rtt")[self.trial.pattern.is_request_reply] + suffix

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
        groups = {**pids, "broker": self.endpoint.pids} | ({RESTING_GROUP: self.resting} if self.resting else {})
        is_drain = self.trial.backlog.msgs > 0 and self.trial.duration_s <= DRAINED_S
        interval_s = DRAIN_INTERVAL_S if is_drain else self.interval_s
        self.observer = Observer(
            groups, self.endpoint, interval_s, gauge=lambda: self.gauge(self.received), counts=self.counts
        )
        self.observer.start(start_ns)
        if self.hurting is not None:
            window_ns = start_ns + round(self.trial.warmup_s * SECOND_NS)
            self.hurting.begin(window_ns, window_ns + round(self.trial.duration_s * SECOND_NS), self.observer)

    def marked(self, board: Board) -> None:
        """Tell consumers where to begin."""
        board.leave(json.dumps(self.mark()))

    def reported(self, report: Report) -> None:
        """Keep an agent's second: merged for the record (first: a disk may be full), and on disk at once."""
        newest = Histogram()
        self._keep(report.deltas)
        for delta in report.deltas:
            if delta.kind == self.shown_kind:
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
                if delta.interval >= 0 and delta.kind == self.shown_kind:
                    self.levels.add(delta)
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
            if self.hurting is not None:
                self.hurting.sample(board, time.monotonic_ns())
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
    resting: tuple[int, ...] = ()
    """Processes of the run's other brokers, which stand idle meanwhile."""


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
        resting=setting.resting,
        hurting=Hurting(trial.faults, target, consumes=trial.consumers > 0, cpus=setting.cpus)
        if trial.faults
        else None,
    )
    if setting.began is not None:
        setting.began(live)
    told = versions(trial.driver, setting.endpoint.version)
    started = datetime.now(UTC)
    try:
        try:
            outcome = Fleet(live, None if setting.hands is None else setting.hands()).run(
                lambda board: roster(
                    trial, target if live.hurting is None else live.hurting.reached(), token, board, setting.cpus
                ),
                trial.agents,
            )
        finally:
            try:
                if live.hurting is not None:
                    live.hurting.stop()
            finally:
                observations = live.observer.stop() if live.observer is not None else None
    finally:
        gauge.close()
    if outcome.flows is not None:  # what each worker read of its own board, in place of this one's late copy
        live.flow = Flow(trial.subscribers, trial.backlog.skipped(trial.producers))
        live.flow.overlay(outcome.flows)
    about = {"versions": told, "started_utc": f"{started:%Y-%m-%dT%H:%M:%SZ}", "broker_configuration": configuration}
    return judged(trial, live, outcome, observations, admin, target) | about, outcome
