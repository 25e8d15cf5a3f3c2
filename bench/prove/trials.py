"""Trials of ours for proofs: the ordinary `run_trial`, and beside it a log of every message as it was received."""

from __future__ import annotations

import struct
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from loadgen import brokers, hands, process
from loadgen.consuming import ConsumerAgent
from loadgen.errors import BrokerError, TrialError
from loadgen.histogram import Histogram
from loadgen.payload import LAG_UNIT_NS
from loadgen.plan import Profile, make_plan
from loadgen.runs import RunWriter, load
from loadgen.scenario import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from loadgen.agent import AgentSpec
    from loadgen.driver import Int64, Received
    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.fleet import Outcome
    from loadgen.plan import Trial
    from loadgen.runs import Run

_STAMP_HEAD = struct.Struct("<qQI")  # intended time, identity, schedule lag (`loadgen.payload`)


@dataclass(frozen=True, slots=True)
class Tapped:
    """Every message that was received, in that order; each field is int64[n], times are monotonic ns.

    `read_ns` is when the first byte of its batch was read, by the driver's own word.
    """

    identity: Int64
    intended_ns: Int64
    sent_ns: Int64
    received_ns: Int64
    read_ns: Int64

    def intended_between(self, begin_ns: int, end_ns: int) -> Tapped:
        """Those that were intended in begin_ns … end_ns, the end not included."""
        inside = (self.intended_ns >= begin_ns) & (self.intended_ns < end_ns)
        fields = (self.identity, self.intended_ns, self.sent_ns, self.received_ns, self.read_ns)
        return Tapped(*(each[inside] for each in fields))


@dataclass(frozen=True, slots=True)
class Measured:
    """A trial that was carried out: its record, what the agents said, its histograms on disk, and the log of receipts.

    `seconds` has a histogram of each kind for each second of the measured window, 0, 1, 2, …, by intended time.
    """

    record: dict[str, Any]
    outcome: Outcome
    seconds: dict[str, dict[int, Histogram]]
    tapped: Tapped

    def histogram(self, kind: str, within: range | None = None) -> Histogram:
        """The histogram of a kind over the whole measured window, or over some of its seconds."""
        merged = Histogram()
        for second, histogram in self.seconds[kind].items():
            if within is None or second in within:
                merged.merge(histogram)
        return merged

    @property
    def window_ns(self) -> tuple[int, int]:
        """When the measured window began and ended, on the monotonic clock."""
        begin_ns = self.outcome.start_ns + round(self.record["warmup_s"] * 1e9)
        return begin_ns, begin_ns + round(self.record["window_s"] * 1e9)


def trial_of(
    broker: BrokerName, rate: Rate, *, warmup_s: float, duration_s: float, size_bytes: int = 100, **changes: Any
) -> Trial:
    """One trial on one broker; `changes` are fields of the scenario, or `knobs` for the broker's own."""
    knobs = changes.pop("knobs", {})
    part: dict[str, Any] = {broker: RabbitMQ(**knobs) if broker == "rabbitmq" else Kafka(**knobs)}
    scenario = Scenario(
        name="prove",
        question="Is what is measured what is true?",
        message=Message(size_bytes=size_bytes),
        rate=rate,
        preset="low_latency",
        **part,
        **changes,
    )
    return make_plan([scenario], Profile("prove", warmup_s, duration_s, 1), brokers=(broker,)).trials[0]


def _quiet(_: str) -> None:
    """Progress that nobody watches."""


def measure(trial: Trial, endpoint: Endpoint, progress: Callable[[str], None] = _quiet) -> Measured:
    """Carry a trial out with its receipts tapped; a trial that fails raises TrialError."""
    with tempfile.TemporaryDirectory(prefix="prove-") as name:
        folder = Path(name)
        writer = RunWriter(folder, "prove", {})
        with mock.patch.object(hands, "agent_main", partial(_tapped_main, str(folder))):
            record, outcome = run_trial(trial, Setting(endpoint, progress, writer))
        if outcome.interrupted:
            raise KeyboardInterrupt
        if outcome.error is not None:
            raise TrialError(f"{trial.broker}: {outcome.error}")
        writer.add_trial(record)
        run = load(writer.finish("complete"))
        seconds = {kind: _seconds(run, trial.id, kind) for kind in ("e2e", "e2e_service")}
        tables = [np.load(path) for path in sorted(folder.glob("*.npy"))]
    table = np.concatenate([np.empty((0, 5), np.int64), *tables])
    intended_ns, identity, lag, received_ns, read_ns = table[np.argsort(table[:, 3], kind="stable")].T
    return Measured(
        record, outcome, seconds, Tapped(identity, intended_ns, intended_ns + lag * LAG_UNIT_NS, received_ns, read_ns)
    )


def _seconds(run: Run, trial_id: str, kind: str) -> dict[int, Histogram]:
    """By the seconds of the measured window, as a run's own `histogram` takes them."""
    found: dict[int, Histogram] = {}
    for interval in run.intervals(trial_id, kind):
        second = round(interval.start_s)
        if 0 <= second < run.trial(trial_id)["window_s"]:
            found.setdefault(second, Histogram()).merge(interval.histogram)
    return found


class TappedConsumer(ConsumerAgent):
    """The production's consumer, which also writes down each message the moment it is handed over.

    The log reads the clock and the stamp by itself, so that it may disagree with what the consumer records.
    """

    folder = ""

    def __init__(self, spec: AgentSpec, pipe: Connection) -> None:
        super().__init__(spec, pipe)
        self._log: list[tuple[int, int, int, int, int]] = []

    def run(self) -> None:
        """Run as ever, and save the log at the end."""
        super().run()
        np.save(Path(self.folder) / self.spec.name, np.array(self._log, np.int64).reshape(-1, 5))

    def take(self, batch: Received) -> None:
        """Log the batch, then take it as ever."""
        at_ns = time.monotonic_ns()
        raw = batch.buffer.data
        self._log += [(*_STAMP_HEAD.unpack_from(raw, start), at_ns, batch.read_ns) for start in batch.starts.tolist()]
        super().take(batch)


def _tapped_main(folder: str, spec: AgentSpec, pipe: Connection) -> None:
    """What a spawned process of a tapped trial runs instead of `loadgen.process.main`."""
    TappedConsumer.folder = folder
    process.ROLES["consumer"] = TappedConsumer
    process.main(spec, pipe)


@contextmanager
def own_broker(broker: BrokerName) -> Iterator[Endpoint]:
    """A broker of this checkout that nobody else is using, since a proof may stop it for a while."""
    with brokers.open_brokers("local", (broker,)) as endpoints:
        (record,) = (each for each in brokers.status() if each["broker"] == broker)
        if len(record["used_by_pids"]) > 1:
            users = ", ".join(map(str, record["used_by_pids"]))
            raise BrokerError(f"{broker} is in use elsewhere too (pids {users}): wait until that has ended")
        yield endpoints[broker]
