"""A broker that stands still for a second, and what a response time must say about it.

The broker's processes are stopped (SIGSTOP) for T in a run of D at a fixed rate λ, and go on (SIGCONT). With a capacity
of μ messages a second and ρ = λ/μ, take the stall as the beginning of time. The message that is due at x has λx
others before it, which are done λx/μ = ρx after the broker goes on: it is answered at T + ρx, so that

    response(x) = T + ρx − x = T − (1 − ρ)·x        for 0 ≤ x ≤ T/(1 − ρ)

and about nothing at any other time. (Service without a stall is left out: a fraction of a millisecond.) Of all λD
messages those with a response over r are due in the first (T − r)/(1 − ρ) of the stall. Hence

    the share q of all messages is at or below          T − (1 − q)·D·(1 − ρ), or about nothing where that is negative
    the longest response is                             T
    responses over h = 50 ms number about               λ·(T/(1 − ρ) − h)

(which exceeds λ·(T − h)/(1 − ρ) by λ·h·ρ/(1 − ρ), under 0.6 % of it at ρ ≤ 0.1). ρ is measured: μ is what a short run
with the same settings achieves when it is asked for far more than it can do, since that is how a backlog is worked off.
(A closed loop is no measure of it: its consumer naps and reads many messages at once, which with a window of one leaves
the broker twice the CPU.) T is the time that really passed between the two signals.

The same run with a window of one: the producer has at most one message under way, and hands the next one over when
that is confirmed. One message then was sent into the stall, and all others were handed over after it. From the moment
of sending (service time) nearly nothing shows; from the moment when they were due (response time) all of it does. That
is what "coordinated omission" hides (G. Tene, "How NOT to Measure Latency", 2013).

Responses over h are counted in the seconds in which the messages were due that the stall held up. Those of all other
seconds tell how much the machine was disturbed by others: a run in which they are over 2 % of the stall's is repeated,
twice at most, and the least disturbed one counts, whatever its own figures are.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.report.words import broker_name
from loadgen.scenario import Rate
from prove.charts import KNOWN_COLOUR, SEEN_COLOUR, SHADE_COLOUR, draw
from prove.histograms import share_over
from prove.proof import Chart, Proof, Row, Scale, at_most, near, same
from prove.trials import Measured, measure, own_broker, trial_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from matplotlib.axes import Axes

    from loadgen.driver import Int64
    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.histogram import Histogram

WARMUP_S = 1.0
LIMIT_S = 0.05
LOAD_MOST = 0.1
LOAD = 0.08  # aimed at where RATE_MOST_MSGS_PER_S is more than that
RATE_MOST_MSGS_PER_S = 1_000.0
OVERLOAD_MSGS_PER_S = 200_000.0  # a capacity over this is no more exact than that, and so far off that ρ is about 0
STALL_AT = 0.6  # of the window: a window whose first half was cut as not yet steady still has it
ATTEMPTS, DISTURBED = 3, 0.02
HIDDEN_SHARE = 0.05  # of the responses over the limit, so many service times may be too: one, and what noise adds
WIDE, ONE = "a wide window", "a window of one"
KNOBS: Mapping[BrokerName, Mapping[str, dict[str, Any]]] = {
    "rabbitmq": {
        WIDE: {"confirm_window": 10_000, "prefetch": 1_000, "ack_every": 10},
        ONE: {"confirm_window": 1, "prefetch": 1_000, "ack_every": 1},
    },
    # Kafka bounds what is under way in bytes: two messages of 100 do not fit into 200 with their overhead.
    "kafka": {WIDE: {}, ONE: {"buffer_memory": 200, "batch_size": 200, "max_in_flight_requests_per_connection": 1}},
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a run is, how long the broker stands still in it, and how far the model may be off."""

    duration_s: float
    stall_s: float
    time_s: float
    count_share: float
    brokers: tuple[BrokerName, ...]
    windows: tuple[str, ...]


BOUNDS = {
    Scale.FULL: Bounds(20.0, 1.0, 0.05, 0.05, ("rabbitmq", "kafka"), (WIDE, ONE)),
    Scale.SMALL: Bounds(5.0, 1.0, 0.2, 0.2, ("rabbitmq",), (ONE,)),
}


@dataclass(slots=True)
class Stall:
    """Stops processes once, some time after it is first called, and notes when that was."""

    pids: tuple[int, ...]
    after_s: float
    for_s: float
    stopped_ns: int = 0
    continued_ns: int = 0
    _thread: threading.Thread | None = field(default=None)

    def __call__(self, _: str) -> None:
        """A trial's progress: the first time that it is told, the trial begins."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="stall", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        time.sleep(self.after_s)
        try:
            self.stopped_ns = time.monotonic_ns()
            self._signal(signal.SIGSTOP)
            time.sleep(self.for_s)
        finally:
            self.continued_ns = time.monotonic_ns()
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        """To each whole group that is headed by one of the processes: a broker is more than one."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                send = os.killpg if os.getpgid(pid) == pid else os.kill
                send(pid, number)

    def end(self) -> None:
        """Wait until it is over; a trial that ended before it leaves no stopped broker behind."""
        if self._thread is not None:
            self._thread.join()

    @property
    def length_s(self) -> float:
        """How long the processes really stood still, in s."""
        return (self.continued_ns - self.stopped_ns) / 1e9


@dataclass(frozen=True, slots=True)
class Model:
    """What theory says of a run: rate λ in messages a second, load ρ, stall T and run D in s."""

    rate_msgs_per_s: float
    load: float
    stall_s: float
    duration_s: float

    def quantile_s(self, share: float) -> float:
        """The response time that a share of all messages is not over, in s."""
        return max(0.0, self.stall_s - (1 - share) * self.duration_s * (1 - self.load))

    def over(self, limit_s: float) -> float:
        """How many messages have a response over a limit."""
        return self.rate_msgs_per_s * (self.stall_s / (1 - self.load) - limit_s)


@dataclass(frozen=True, slots=True)
class Run:
    """One run through a stall: the model of it, what was measured, and when it happened."""

    broker: BrokerName
    window: str
    capacity_msgs_per_s: float
    model: Model
    measured: Measured
    stall: Stall

    @property
    def seconds(self) -> range:
        """The seconds of the window in which the messages were due that the stall held up."""
        begin_ns, _ = self.measured.window_ns
        first_s = (self.stall.stopped_ns - begin_ns) / 1e9
        return range(int(first_s), int(first_s + self.model.stall_s / (1 - self.model.load)) + 1)

    @property
    def over(self) -> float:
        """How many responses over the limit there were in these seconds."""
        return _over(self.measured.histogram("e2e", self.seconds))

    @property
    def disturbance(self) -> float:
        """How many there were in all others, over how many the stall should have made."""
        elsewhere = _over(self.measured.histogram("e2e")) - self.over
        return max(0.0, elsewhere) / self.model.over(LIMIT_S)

    @property
    def title(self) -> str:
        """The run as rows name it."""
        return f"{broker_name(self.broker)}, {self.window}"


def prove(scale: Scale) -> Proof:
    """Run every broker with every window through a stall."""
    bounds = BOUNDS[scale]
    runs: list[Run] = []
    for broker in bounds.brokers:
        with own_broker(broker) as endpoint:
            runs += [_least_disturbed(endpoint, window, bounds) for window in bounds.windows]
    return compare(runs, bounds)


def _least_disturbed(endpoint: Endpoint, window: str, bounds: Bounds) -> Run:
    """A run in which little else happened: what others did to the machine shows in the seconds without a stall."""
    tried: list[Run] = []
    while not tried or (tried[-1].disturbance > DISTURBED and len(tried) < ATTEMPTS):
        tried.append(_run(endpoint, window, bounds))
    return min(tried, key=lambda run: run.disturbance)


def _run(endpoint: Endpoint, window: str, bounds: Bounds) -> Run:
    broker = endpoint.broker
    knobs = KNOBS[broker][window]
    burst = trial_of(broker, Rate.fixed(OVERLOAD_MSGS_PER_S), warmup_s=0.5, duration_s=2.0, knobs=knobs)
    capacity = float(measure(burst, endpoint).record["achieved_msgs_per_s"])
    rate = float(max(10, int(min(RATE_MOST_MSGS_PER_S, LOAD * capacity))))
    trial = trial_of(broker, Rate.fixed(rate), warmup_s=WARMUP_S, duration_s=bounds.duration_s, knobs=knobs)
    stall = Stall(endpoint.pids, WARMUP_S + STALL_AT * bounds.duration_s, bounds.stall_s)
    try:
        measured = measure(trial, endpoint, progress=stall)
    finally:
        stall.end()
    model = Model(rate, rate / capacity, stall.length_s, float(measured.record["window_s"]))
    return Run(broker, window, capacity, model, measured, stall)


def compare(runs: list[Run], bounds: Bounds) -> Proof:
    """The proof of what was seen."""
    rows = [row for run in runs for row in _rows(run, bounds)]
    return Proof(
        name="stall",
        claim="When a broker stands still, every message that it held up has the response time that it must have, also "
        "where the producer waits for it; service time hides the stall where the window is one.",
        rows=tuple(rows),
        notes=tuple(_note(run) for run in runs),
        charts=tuple(_charts(runs)),
    )


def _note(run: Run) -> str:
    model, capacity = run.model, run.capacity_msgs_per_s
    bound = "at least " * (capacity > 0.98 * OVERLOAD_MSGS_PER_S)
    wide = " The service time of a wide window shows the stall as well: its messages were all sent into it."
    return (
        f"{run.title}: {model.rate_msgs_per_s:,.0f} msg/s, ρ = {model.load:.3f} of a capacity of "
        f"{bound}{capacity:,.0f} msg/s, stopped for {model.stall_s * 1e3:,.1f} ms in a window of "
        f"{model.duration_s:g} s. The other seconds had {run.disturbance:.1%} as many responses over 50 ms as the "
        f"stall's.{wide if run.window == WIDE else ''}"
    )


def _rows(run: Run, bounds: Bounds) -> Iterator[Row]:
    model, response = run.model, run.measured.histogram("e2e")
    yield at_most(f"{run.title}: load", LOAD_MOST, model.load)
    for name, share in (("p97.5", 0.975), ("p99", 0.99), ("the longest", 1.0)):
        seen_ms = response.percentile(share * 100) / 1e6
        yield near(f"{run.title}: {name} response", model.quantile_s(share) * 1e3, seen_ms, bounds.time_s * 1e3, "ms")
    expected = model.over(LIMIT_S)
    yield near(f"{run.title}: responses over 50 ms", expected, run.over, bounds.count_share * expected)
    if run.window == ONE:
        # A time that nobody took is not over any limit.
        timed = run.measured.histogram("e2e_service").count
        yield same(f"{run.title}: messages with a service time beside their response time", response.count, timed)
        services = _over(run.measured.histogram("e2e_service", run.seconds))
        yield at_most(f"{run.title}: service times over 50 ms", HIDDEN_SHARE * expected, services)


def _over(histogram: Histogram) -> float:
    return share_over(histogram, LIMIT_S * 1e9) * histogram.count


# --- the picture ---


def _charts(runs: list[Run]) -> Iterator[Chart]:
    for broker in dict.fromkeys(run.broker for run in runs):
        shown = [run for run in runs if run.broker == broker]
        title = f"{broker_name(broker)} stopped for a second: the time that messages took, by when they were due"
        yield draw(f"stall-{broker}", title, [partial(_panel, run=run) for run in shown])


def _panel(axes: Axes, *, run: Run) -> None:
    tapped, begin_ns = run.measured.tapped, run.stall.stopped_ns
    due_s = (tapped.intended_ns - begin_ns) / 1e9
    shown = (due_s > -0.5) & (due_s < run.model.stall_s * 1.5)
    axes.axvspan(0, run.model.stall_s, color=SHADE_COLOUR, alpha=0.5, linewidth=0, label="broker stopped")
    x_s, responses_ms = _highest(due_s[shown], (tapped.received_ns - tapped.intended_ns)[shown])
    axes.plot(x_s, responses_ms, color=SEEN_COLOUR, linewidth=3.5, alpha=0.6, label="response time")
    x_s, services_ms = _highest(due_s[shown], (tapped.received_ns - tapped.sent_ns)[shown])
    axes.plot(x_s, services_ms, color=KNOWN_COLOUR, linewidth=1.0, label="service time")
    end_s = run.model.stall_s / (1 - run.model.load)
    axes.plot([0, end_s], [run.model.stall_s * 1e3, 0], color="black", linewidth=0.8, linestyle=":", label="model")
    axes.set_title(run.window)
    axes.set_xticks([-0.5, 0, 0.5, 1, 1.5])
    axes.set_xlabel("due, s after the broker was stopped")
    axes.set_ylabel("end to end, ms")
    axes.legend(frameon=False, loc="upper right")


def _highest(due_s: Any, times_ns: Int64) -> tuple[Any, Any]:
    """The longest time in ms of each hundredth of a second in which a message was due."""
    places = np.floor(due_s * 100).astype(np.int64)
    order = np.argsort(places, kind="stable")
    begins = np.flatnonzero(np.diff(places[order], prepend=places.min() - 1))
    return places[order][begins] / 100, np.maximum.reduceat(times_ns[order], begins) / 1e6
