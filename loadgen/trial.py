"""One trial from an empty queue to a judged record: create, drive, watch, account, judge, delete."""

from __future__ import annotations

import contextlib
import secrets
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from loadgen.agent import SECOND_NS, AgentSpec, Report, Result
from loadgen.board import Board, Cell
from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.errors import LoadgenError, TrialError
from loadgen.fleet import Fleet, Outcome
from loadgen.histogram import Histogram
from loadgen.host import disk_free
from loadgen.ledger import settle
from loadgen.observer import Observer
from loadgen.record import LATENCY_KINDS
from loadgen.verdict import Facts, judge, observed_facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.driver import Admin
    from loadgen.endpoint import Endpoint
    from loadgen.ledger import Account
    from loadgen.observer import Observations
    from loadgen.plan import Trial
    from loadgen.runs import RunWriter

MIN_FREE_BYTES = 1 << 30  # below this a trial is stopped, before the brokers are harmed
PROGRESS_EVERY_S = 0.5

Record = dict[str, Any]


@dataclass
class Live:
    """What a trial looks like while it runs: for progress, and for keeping what its agents reported."""

    trial: Trial
    endpoint: Endpoint
    writer: RunWriter | None
    progress: Callable[[str], None]
    depth: Callable[[], int]
    left_s: float = 0.0
    start_ns: int = 0
    observer: Observer | None = None
    histograms: dict[str, Histogram] = field(default_factory=dict)
    second: Histogram = field(default_factory=Histogram)
    shown: str = ""
    _shown_s: float = 0.0
    _counts: tuple[float, int] = (0.0, 0)

    def started(self, start_ns: int, pids: dict[str, tuple[int, ...]]) -> None:
        """All agents are connected: watch them and the broker from the start on."""
        self.start_ns = start_ns
        window_in_s = (start_ns - time.monotonic_ns()) / SECOND_NS + self.trial.warmup_s
        if self.writer is not None:
            begun = {**describe(self.trial), "window_s": self.trial.duration_s}
            self.writer.begin_trial(begun, started_s=time.time() + window_in_s)
        groups = {**pids, "broker": self.endpoint.pids}
        self.observer = Observer(groups, self.endpoint, depth=self.depth)
        self.observer.start(start_ns)

    def reported(self, report: Report) -> None:
        """Keep an agent's second: on disk at once, and merged for the record."""
        if self.writer is not None:
            self.writer.add_intervals(self.trial.id, report.deltas, agent=report.agent)
            self.writer.add_series([{"trial": self.trial.id, "agent": report.agent, **report.series}])
        newest = Histogram()
        for delta in report.deltas:
            # Interval 0 is the first of the measured window; nothing is intended after its end.
            if delta.interval >= 0:
                delta.add_to(self.histograms.setdefault(delta.kind, Histogram()))
            if delta.kind in {"e2e", "e2e_service"} and (delta.kind == "e2e" or not self.trial.rate.is_open_loop):
                delta.add_to(newest)
        if newest.count:
            self.second = newest

    def turned(self, board: Board) -> None:
        """Show where the trial is, and stop it before it fills the disk."""
        now = time.monotonic()
        if now - self._shown_s < PROGRESS_EVERY_S or not self.start_ns:
            return
        self._shown_s = now
        sent, received = board.total(Cell.SENT), board.total(Cell.RECEIVED)
        then, before = self._counts
        rate = (received - before) / (now - then) if then else 0.0
        self._counts = (now, received)
        elapsed_s = (time.monotonic_ns() - self.start_ns) / SECOND_NS
        left_s = max(0.0, self.trial.warmup_s + self.trial.duration_s - elapsed_s)
        latency = ""
        if self.second.count:
            p50, p99 = self.second.percentiles([50, 99])
            latency = f" · p50 {p50 / 1e6:.2f} p99 {p99 / 1e6:.2f} ms"
        self.progress(
            f"{self.shown}{self.trial.id}: {rate:,.0f} msg/s{latency} · backlog {max(0, sent - received):,}"
            f" · {left_s:.0f} s of {self.left_s + left_s:.0f} s left"
        )
        data_dir = self.endpoint.data_dir
        if data_dir is not None and disk_free(data_dir) < MIN_FREE_BYTES:
            raise TrialError(
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
        "rate": trial.rate.model_dump(mode="json"),
        "producers": trial.producers,
        "consumers": trial.consumers,
        "warmup_s": trial.warmup_s,
        "offered_msgs_per_s": trial.rate.msgs_per_s if trial.rate.kind in {"fixed", "poisson"} else None,
    }


def run_trial(trial: Trial, setting: Setting) -> tuple[Record, Outcome]:
    """Run one trial; the record tells all, also of a trial that failed. Raises only what ends a whole run."""
    endpoint = setting.endpoint
    if endpoint.source == "memory":
        trial = replace(trial, driver="memory")
    admin = load_driver(trial.driver).admin(endpoint)
    # A name that no earlier trial or run has had: a topic of the same name may still be in deletion.
    name = f"loadgen-{trial.scenario}-{secrets.token_hex(4)}"
    target = Target(endpoint, name, trial.settings, group=name)
    try:
        admin.create(target)
        try:
            return _driven(trial, setting, admin, target)
        finally:
            with contextlib.suppress(LoadgenError):
                admin.delete(target)
    finally:
        admin.close()


def _driven(trial: Trial, setting: Setting, admin: Admin, target: Target) -> tuple[Record, Outcome]:
    configuration = admin.effective(target)
    # The depth is asked from a thread of the observer's; clients are not shared between threads.
    gauge = load_driver(trial.driver).admin(setting.endpoint)
    live = Live(
        trial, setting.endpoint, setting.writer, setting.progress, lambda: gauge.depth(target), setting.left_s,
        shown=setting.shown,
    )  # fmt: skip
    started = datetime.now(UTC)
    token = secrets.randbits(32)
    try:
        outcome = Fleet(live).run(
            lambda board: _specs(trial, target, token, board, setting.cpus), trial.producers + trial.consumers
        )
        observations = live.observer.stop() if live.observer is not None else None
    finally:
        gauge.close()
    if observations is not None and setting.writer is not None:
        setting.writer.add_series([{"trial": trial.id, "agent": "observer", **row} for row in observations.rows])
    record = describe(trial)
    record |= {"started_utc": f"{started:%Y-%m-%dT%H:%M:%SZ}", "broker_configuration": configuration}
    record |= _figures(trial, live, outcome, observations)
    if outcome.error is None:
        record["broker_counts"] = {"stored": admin.stored(target), "depth_at_end": admin.depth(target)}
    record["verdict"] = _verdict(record, outcome, observations)
    return record, outcome


def _specs(trial: Trial, target: Target, token: int, board: Board, cpus: tuple[int, ...]) -> list[AgentSpec]:
    # Consumers first: they are waiting when the first message is sent.
    roles = [("consumer", trial.consumers), ("producer", trial.producers)]
    specs: list[AgentSpec] = []
    for role, count in roles:
        for index in range(count):
            specs.append(
                AgentSpec(
                    role=role,  # type: ignore[arg-type]
                    name=f"{role}{index}",
                    row=len(specs) + 1,
                    index=index,
                    count=count,
                    driver=trial.driver,
                    target=target,
                    message=trial.message,
                    rate=trial.rate,
                    seed=trial.seed,
                    token=token,
                    warmup_s=trial.warmup_s,
                    duration_s=trial.duration_s,
                    consumers=trial.consumers,
                    board=board.path,
                    rows=board.rows,
                    cpus=cpus,
                )
            )
    return specs


def _sum(results: list[Result], what: str) -> int:
    return sum(result.in_window.get(what, 0) for result in results)


def _figures(trial: Trial, live: Live, outcome: Outcome, observations: Observations | None) -> Record:
    """Rates, latencies, the ledger's account, CPU and memory, as the design names them."""
    results = outcome.results
    producers = [result for result in results if result.role == "producer"]
    consumers = [result for result in results if result.role == "consumer"]
    account = _account(producers, consumers)
    window_s = trial.duration_s
    acked, received = _sum(results, "acked"), _sum(results, "received")
    achieved = received if trial.consumers else acked
    once = _goodput(received, account)
    figures: Record = {
        "status": "failed" if outcome.error else "partial" if outcome.interrupted else "complete",
        "error": outcome.error,
        "traceback": outcome.traceback,
        "window_s": window_s,
        "drain_s": outcome.drain_s,
        "sent_msgs_per_s": _sum(results, "sent") / window_s,
        "acked_msgs_per_s": acked / window_s if _confirms(trial) else None,
        "achieved_msgs_per_s": achieved / window_s,
        "goodput_msgs_per_s": once / window_s,
        "goodput_bytes_per_s": _sum(results, "received_bytes") * (once / received if received else 1) / window_s,
        **_accounted(trial, account, producers),
        "latency_ns": _latencies(live),
        "out_of_range": sum(histogram.out_of_range_count for histogram in live.histograms.values()),
        "resolution_ns": _resolution(live),
        "blocked_share": max((result.blocked_share for result in producers), default=0.0),
        "cpu_s": {"producers": sum(r.cpu_s for r in producers), "consumers": sum(r.cpu_s for r in consumers)},
        "agent_cpu_share_max": max((r.cpu_s / window_s for r in results), default=0.0),
    }
    if observations is not None:
        begin_ns = live.start_ns + round(trial.warmup_s * SECOND_NS)
        summary = observations.summary(begin_ns, begin_ns + round(window_s * SECOND_NS))
        figures["observer"] = summary
        figures["cpu_s"]["broker"] = summary["cpu_s"].get("broker")
        figures["rss_bytes"] = summary["rss_bytes"]
    return figures


def _confirms(trial: Trial) -> bool:
    return bool(trial.settings.get("confirms", trial.settings.get("acks") != "0"))


def _goodput(received: int, account: Account | None) -> int:
    """Received once and intact inside the window; duplicates of the whole trial are taken off, the stricter way."""
    return received if account is None else max(0, received - account.duplicated)


def _account(producers: list[Result], consumers: list[Result]) -> Account | None:
    sent = [result.sent_book for result in producers if result.sent_book is not None]
    received = [result.received_book for result in consumers if result.received_book is not None]
    return settle(sent, received) if sent and received else None


def _accounted(trial: Trial, account: Account | None, producers: list[Result]) -> Record:
    if account is None:
        return {"sent": sum(p.sent_book.sent_count for p in producers if p.sent_book is not None)}
    unsent = sum(max(0, p.due - p.sent_book.sent_count) for p in producers if p.sent_book is not None)
    return {
        "sent": account.sent,
        "acked": account.acked if _confirms(trial) else None,
        "received": account.received,
        "lost": account.lost,
        "confirmed_lost": account.confirmed_lost,
        "unconfirmed_lost": account.unconfirmed_lost,
        "duplicated": account.duplicated,
        "dup_resend": account.dup_resend,
        "dup_redelivery": account.dup_redelivery,
        "out_of_order": account.out_of_order,
        "reordered_redelivery": account.reordered_redelivery,
        "corrupted": account.corrupted,
        "errors": {**account.errors, **({"unsent": unsent} if unsent else {})},
        "ledger_examples": account.examples,
    }


def _latencies(live: Live) -> Record:
    return {
        kind: live.histograms[kind].summary() if kind in live.histograms and live.histograms[kind].count else None
        for kind in LATENCY_KINDS
    }


def _resolution(live: Live) -> Record:
    histogram = live.histograms.get("resolution")
    if histogram is None or not histogram.count:
        return {"p50": None, "p99": None}
    p50, p99 = histogram.percentiles([50, 99])
    return {"p50": p50, "p99": p99}


def _facts(record: Record, outcome: Outcome, observed: Record) -> Facts:
    """What the verdict looks at, from the record as it stands."""
    window_s = record["window_s"]
    kind = record["rate"]["kind"]
    lag, e2e = record["latency_ns"]["schedule_lag"], record["latency_ns"]["e2e"]
    competing = record["consumers"] > max(1, record["settings"].get("partitions", 1))
    return Facts(
        durability=record["durability"],
        rate_kind=kind,
        consumers=record["consumers"],
        window_s=window_s,
        sent=record["sent"],
        acked=record.get("acked"),
        received=record.get("received", 0),
        lost=record.get("lost", 0),
        confirmed_lost=record.get("confirmed_lost", 0),
        duplicated=record.get("duplicated", 0),
        explained_duplicates=record.get("dup_redelivery", 0) + record.get("dup_resend", 0),
        corrupted=record.get("corrupted", 0),
        out_of_order=record.get("out_of_order", 0),
        order_promised=not competing,
        stored=record.get("broker_counts", {}).get("stored"),
        # Consumers saw all of it, or went quiet before an empty queue: what is missing then is lost, not late.
        drained=outcome.drained or record.get("broker_counts", {}).get("depth_at_end") == 0,
        errors=record.get("errors", {}),
        out_of_range=record["out_of_range"],
        offered_msgs_per_s=record["offered_msgs_per_s"],
        achieved_msgs_per_s=record["sent_msgs_per_s"],
        goodput_msgs_per_s=record["goodput_msgs_per_s"],
        lag_p99_ns=lag["p99"] if lag else None,
        e2e_p50_ns=e2e["p50"] if e2e else None,
        cpu_cores={name: None if seconds is None else seconds / window_s for name, seconds in record["cpu_s"].items()},
        producers_held_back_share=record["blocked_share"],
        **observed,
    )


def _verdict(record: Record, outcome: Outcome, observations: Observations | None) -> Record:
    if outcome.error is not None or outcome.interrupted:
        why = outcome.error or "interrupted: what was measured is kept, and not judged"
        status = "invalid" if outcome.error else "unknown"
        return {"status": status, "bound_by": "unknown", "reasons": [why], "checks": []}
    observed = observed_facts(record["observer"]) if observations is not None else {}
    return judge(_facts(record, outcome, observed)).record()
