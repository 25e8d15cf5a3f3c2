"""A run's figures over HTTP in Prometheus' text format, while it goes on: nothing is counted here.

A scrape reads what the run already has: the counters that its agents share, the histograms that they reported, what the
observer saw last, and the records of trials that have ended. Names are OpenTelemetry's messaging conventions where
those have one (docs/metrics.md). The page is served by a thread of the process that steers, never by an agent.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from loadgen.consuming import DAMAGED
from loadgen.errors import HostError, ScenarioError
from loadgen.histogram import bucket_indices

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from loadgen.driver import Int64
    from loadgen.histogram import Histogram
    from loadgen.trial import Live

    Sample = tuple[Mapping[str, str], float]  # the values of its labels beside the trial's, and its own

LOOPBACK = "127.0.0.1"
TRIALS_KEPT = 20  # of those that have ended: a page with all of a long run's would be megabytes
TRIAL_LABELS = ("trial", "scenario", "messaging_system", "driver")
SEND, RECEIVE = {"messaging_operation_name": "send"}, {"messaging_operation_name": "receive"}
# Two bounds an octave from 8 µs to 69 s: powers of two and their middles are edges of the histograms' own buckets, so
# that nothing is interpolated. Values are whole nanoseconds: those below an edge are at most one less.
EDGES_NS: Int64 = np.array([1 << e | half << (e - 1) for e in range(13, 37) for half in (0, 1)], np.int64)
EDGE_BUCKETS = bucket_indices(EDGES_NS)
BOUNDS = [floatToGoString((edge - 1) / 1e9) for edge in EDGES_NS.tolist()]  # type: ignore[no-untyped-call]

COUNTERS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    ("sent", "messaging_client_sent_messages", "Messages handed to the client, warm-up included.", SEND),
    ("received", "messaging_client_consumed_messages", "Messages that all subscribers received, duplicates included.",
     RECEIVE),
    ("acked", "loadgen_confirmed_messages", "Messages that the broker confirmed; absent without confirms.", {}),
    ("failed_requests", "loadgen_failed_requests", "Requests that were refused or lost, and tried again.", {}),
)  # fmt: skip
LATENCIES = "loadgen_latency_seconds"
OPERATION = "messaging_client_operation_duration_seconds"
OPENTELEMETRY = {
    "messaging_client_sent_messages": "messaging.client.sent.messages",
    "messaging_client_consumed_messages": "messaging.client.consumed.messages",
    OPERATION: "messaging.client.operation.duration",
}
"""The names that OpenTelemetry's messaging conventions have for what is exposed."""
# What the observer saw last of the trial under way: its name there, here, what it is, further labels.
BROKER_GAUGES: tuple[tuple[str, str, str], ...] = (
    (
        "depth_msgs",
        "loadgen_broker_depth_messages",
        "Ready messages of all queues, or what the consumers of all groups have not received of a log.",
    ),
    ("broker_connections", "loadgen_broker_connections", "Established connections to the ports that clients use."),
    ("connected_consumers", "loadgen_broker_consumers", "Consumers of queues, members of groups; absent without any."),
    ("broker_rss_bytes", "loadgen_broker_resident_memory_bytes", "Resident memory of the broker if it runs here."),
    (
        "broker_memory_bytes",
        "loadgen_broker_reported_memory_bytes",
        "Memory in use as the broker tells: RabbitMQ's count, Kafka's heap as the last garbage collection left it.",
    ),
)
ENDED_GAUGES = (
    ("achieved_msgs_per_s", "loadgen_trial_achieved_messages_per_second", "What came through in the measured window."),
    ("goodput_msgs_per_s", "loadgen_trial_goodput_messages_per_second", "Received once and intact in the window."),
    ("lost", "loadgen_trial_lost_messages", "Sent and never received."),
    ("duplicated", "loadgen_trial_duplicated_messages", "Received again."),
    ("corrupted", "loadgen_trial_corrupted_messages", "Received with a changed byte."),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A trial as one scrape shows it; `latencies` are, by kind, counts up to each bound and above, and a sum (ns)."""

    labels: tuple[str, ...]
    counts: Mapping[str, int]
    errors: Mapping[str, int]
    latencies: Mapping[str, tuple[Sequence[int], int]]
    newest: Mapping[str, float]
    record: Mapping[str, Any]


class Exposition(Collector):
    """What is shown of a run: the trial under way and the last ones that ended."""

    def __init__(self) -> None:
        self._planned = 0
        self._ended: deque[Shown] = deque(maxlen=TRIALS_KEPT)
        self._verdicts: dict[str, int] = {}
        self._live: Live | None = None
        self._lock = threading.Lock()

    def plan(self, trials: int) -> None:
        """So many trials are planned; searches add their own."""
        self._planned = trials

    def begin(self, live: Live) -> None:
        """A trial is under way."""
        with self._lock:
            self._live = live

    def end(self, record: Mapping[str, Any]) -> None:
        """It has ended, with this record: from now on its counts are the record's."""
        with self._lock:
            if self._live is not None and self._live.trial.id == record["id"]:
                self._ended.append(_ended(_shown(self._live), record))
                self._live = None
            status = str(record["verdict"]["status"])
            self._verdicts[status] = self._verdicts.get(status, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """The page: called by prometheus_client for each scrape."""
        with self._lock:
            trials = [*self._ended] + ([_shown(self._live)] if self._live is not None else [])
            verdicts = dict(self._verdicts)
        planned = GaugeMetricFamily(
            "loadgen_trials_planned", "Trials of the plan; those that a search adds come on top."
        )
        planned.add_metric([], self._planned)
        yield planned
        ended = CounterMetricFamily("loadgen_trials_ended", "Trials that have ended, by verdict.", labels=["verdict"])
        for status, number in verdicts.items():
            ended.add_metric([status], number)
        yield ended
        yield from families(trials)


def families(trials: Sequence[Shown]) -> Iterator[Metric]:
    """Every metric that trials have, with what it is of each of these."""
    yield from _counters(trials)
    yield from _histograms(trials)
    yield from _gauges(trials)


def _shown(live: Live) -> Shown:
    """A trial under way."""
    trial = live.trial
    labels = (trial.id, trial.scenario, trial.broker, trial.driver)
    latencies = {kind: _cumulated(each) for kind, each in live.latencies().items()}
    newest = {} if live.observer is None else live.observer.newest()
    return Shown(labels, live.counts(), dict(live.errors), latencies, newest, {})


def _ended(last: Shown, record: Mapping[str, Any]) -> Shown:
    """A trial that has ended: its record's own counts; the observer is gone."""
    counts = {name: number if record.get(name) is None else record[name] for name, number in last.counts.items()}
    errors = {**last.errors, **(record.get("errors") or {})}
    if record.get("corrupted"):
        errors[DAMAGED] = record["corrupted"]
    return Shown(last.labels, counts, errors, last.latencies, {}, record)


def _cumulated(histogram: Histogram) -> tuple[list[int], int]:
    total = np.concatenate([[0], np.cumsum(histogram.counts)])
    return [*total[EDGE_BUCKETS].tolist(), int(total[-1])], histogram.sum


def _counters(trials: Iterable[Shown]) -> Iterator[Metric]:
    trials = list(trials)
    for name, metric, text, labels in COUNTERS:
        family = CounterMetricFamily(metric, text, labels=[*TRIAL_LABELS, *labels])
        for each in trials:
            if name in each.counts:
                family.add_metric([*each.labels, *labels.values()], each.counts[name])
        yield family
    family = CounterMetricFamily(
        "loadgen_errors",
        "Messages refused, returned, damaged or, known at the end only, given up.",
        labels=[*TRIAL_LABELS, "error_type"],
    )
    for each in trials:
        for reason, number in each.errors.items():
            family.add_metric([*each.labels, reason], number)
    yield family


def _histograms(trials: Iterable[Shown]) -> Iterator[Metric]:
    own = HistogramMetricFamily(
        LATENCIES, "Durations by kind: those of `trial.latency_ns` in run.json but `ack_service`, and `resolution`.",
        labels=[*TRIAL_LABELS, "kind"],
    )  # fmt: skip
    operation = HistogramMetricFamily(
        OPERATION, "Sending: from handing a message over to its confirmation (`ack_service` of run.json).",
        labels=[*TRIAL_LABELS, *SEND],
    )  # fmt: skip
    for each in trials:
        for kind, (counts, sum_ns) in each.latencies.items():
            family, last = (operation, SEND["messaging_operation_name"]) if kind == "ack_service" else (own, kind)
            buckets = [(bound, float(count)) for bound, count in zip([*BOUNDS, "+Inf"], counts, strict=True)]
            family.add_metric([*each.labels, last], buckets, sum_ns / 1e9)
    yield from (operation, own)


def _gauges(trials: Iterable[Shown]) -> Iterator[Metric]:
    trials = list(trials)
    for shown, gauges in (("newest", BROKER_GAUGES), ("record", ENDED_GAUGES)):
        for name, metric, text in gauges:
            family = GaugeMetricFamily(metric, text, labels=TRIAL_LABELS)
            for each in trials:
                if (value := getattr(each, shown).get(name)) is not None:
                    family.add_metric(each.labels, value)
            yield family
    used = CounterMetricFamily("loadgen_cpu_seconds", "CPU time since the trial began.", labels=[*TRIAL_LABELS, "role"])
    for each in trials:
        for role in ("producers", "consumers", "broker", "loadgen"):
            if (used_s := each.newest.get(f"{role}_cpu_s")) is not None:
                used.add_metric([*each.labels, role], used_s)
    yield used


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `--prometheus`: this machine alone where no host is told. Port 0 is any that is free."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isdecimal() or int(port) > 65_535 or (colon and not host):
        raise ScenarioError(f"--prometheus {text}: expected PORT or HOST:PORT, such as 9464 or 0.0.0.0:9464")
    return host or LOOPBACK, int(port)


@contextlib.contextmanager
def exposed(address: str | None) -> Iterator[tuple[Exposition, str | None]]:
    """Serve a page while this lasts; the value is what it shows, and its URL (None: nobody asked for one)."""
    exposition = Exposition()
    if address is None:
        yield exposition, None
        return
    host, port = parse_address(address)
    registry = CollectorRegistry()
    registry.register(exposition)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        why = f"cannot listen there: {error.strerror or error}"
        if error.errno == errno.EADDRINUSE:
            why = "the port is taken by another program; choose another one"
        raise HostError(f"--prometheus {address}: {why}") from None
    shown = f"[{host}]" if ":" in host else host
    try:
        yield exposition, f"http://{shown}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
