"""The production's own agents in one process, on a clock that moves only while all of them wait.

A producer and a consumer, as `loadgen.process` would start them in two processes, run here as two greenlets around
one queue in memory: each runs until it waits for a confirmation, a delivery or a due time, and then the clock moves to
the next moment at which something happens. Whatever an agent's own code costs takes no time at all. What the agents
do is theirs alone (pacer, intended times, stamps, window, parsing, ledger, recorder): only the clock, and the link to
the queue, are put in their way from outside.
"""

from __future__ import annotations

import gc
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from greenlet import getcurrent, greenlet  # it brings none, as gevent's part

from loadgen import agent, consuming, pacer, producing
from loadgen.agent import AgentSpec, Handed, Result
from loadgen.board import Board, Cell
from loadgen.driver import Target
from loadgen.drivers.memory import MemoryConsumer, MemoryDriver, MemoryProducer, memory_endpoint
from loadgen.drivers.memory_behaviour import Behaviour
from loadgen.drivers.memory_hub import Hub
from loadgen.drivers.memory_link import NS_PER_S, Frame, SimulatedClock
from loadgen.histogram import Histogram
from loadgen.ledger import Account, settle
from loadgen.scenario import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from multiprocessing.connection import Connection

    from loadgen.drivers.memory_hub import Peer
    from loadgen.payload import Payloads
    from loadgen.scenario import Rate

NEVER_NS = 1 << 62
SIZE_BYTES = 32
WINDOW_MSGS = 1 << 14  # more than ever wait, so that nothing but the server holds a message up
PREFETCH_MSGS = 0  # unlimited


@dataclass(slots=True)
class _Waiting:
    """Until when an agent waits, and for whose frames."""

    peer: Peer | None
    until_ns: int


class Stage:
    """Where agents take turns: the clock, the queue, and who waits for what."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.clock = SimulatedClock()
        self.hub = Hub(behaviour, self.clock.now_ns)
        self._scheduler = getcurrent()
        self._waiting: dict[greenlet, _Waiting] = {}
        self._advanced_ns = -1

    def handle(self, peer: Peer, frame: Frame) -> None:
        """A client's frame has come to the queue."""
        self.hub.handle(peer, frame, self.clock.now_ns)
        self._advanced_ns = -1

    def advance(self) -> None:
        """Let the queue do what it has to do by now, unless it has done that and nothing has come since."""
        if self._advanced_ns != self.clock.now_ns:
            self.hub.advance(self.clock.now_ns)
            self._advanced_ns = self.clock.now_ns

    def wait(self, peer: Peer | None, until_ns: int) -> None:
        """Called by an agent: let the others run until a frame has come for this peer, or until a moment."""
        self._waiting[getcurrent()] = _Waiting(peer, until_ns)
        self._scheduler.switch()

    def run(self, agents: list[greenlet], between: Callable[[], None]) -> None:
        """Run all agents to their end; `between` is called whenever all of them wait."""
        for each in agents:
            each.switch()
        while not all(each.dead for each in agents):
            between()
            self.advance()
            ready = [each for each, waiting in self._waiting.items() if self._is_ready(waiting)]
            if not ready:
                self._move_clock()
            for each in ready:
                del self._waiting[each]
                each.switch()

    def _is_ready(self, waiting: _Waiting) -> bool:
        return waiting.until_ns <= self.clock.now_ns or bool(waiting.peer is not None and waiting.peer.outbox)

    def _move_clock(self) -> None:
        moments = [waiting.until_ns for waiting in self._waiting.values()]
        next_ns = self.hub.next_event_ns(self.clock.now_ns)
        if next_ns is not None and next_ns > self.clock.now_ns:
            moments.append(next_ns)
        self.clock.now_ns = min(moments)


class StageLink:
    """A client's link to the queue on a stage (see `loadgen.drivers.memory_link.Link`)."""

    backlog_bytes = 0

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._peer = stage.hub.connect()

    def now_ns(self) -> int:
        """The simulated moment."""
        return self._stage.clock.now_ns

    def send(self, frame: Frame) -> None:
        """Hand the frame over."""
        self._stage.handle(self._peer, frame)

    def receive(self, timeout_s: float) -> list[Frame]:
        """All frames that have come, else let the others run until one has, or for `timeout_s`."""
        now_ns = self._stage.clock.now_ns
        self._stage.advance()
        if not self._peer.outbox and timeout_s > 0:
            # A wait is never shorter than the clock's unit, or an agent that waits for less would turn for ever.
            self._stage.wait(self._peer, now_ns + max(1, round(timeout_s * NS_PER_S)))
        frames = list(self._peer.outbox)
        self._peer.outbox.clear()
        self._peer.outbox_bytes = 0
        for frame in frames:
            frame.read_ns = self._stage.clock.now_ns
        return frames

    def close(self) -> None:
        """Leave."""
        self._stage.hub.disconnect(self._peer)


class StageTime:
    """What the agents' modules call `time`, on a stage's clock."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def monotonic_ns(self) -> int:
        """The simulated moment."""
        return self._stage.clock.now_ns

    def sleep(self, seconds: float) -> None:
        """Let the others run for so long."""
        self._stage.wait(None, self._stage.clock.now_ns + round(seconds * NS_PER_S))

    def process_time(self) -> float:
        """Nothing costs anything here."""
        return 0.0


class StageDriver(MemoryDriver):
    """The memory driver with its clients on a stage's links."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.clock)
        self._stage = stage

    def producer(self, target: Target, payloads: Payloads) -> MemoryProducer:
        """Connect a producer."""
        return MemoryProducer(target, payloads, StageLink(self._stage))

    def consumer(self, target: Target, index: int, count: int) -> MemoryConsumer:
        """Connect a consumer."""
        del index, count
        return MemoryConsumer(target, StageLink(self._stage))


@dataclass(slots=True)
class Simulated:
    """What the agents reported: histograms by kind and interval (0 is the window's first second), and their books."""

    histograms: dict[tuple[str, int], Histogram] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    handed: Handed = field(default_factory=Handed)

    def send(self, message: tuple[str, Any]) -> None:
        """Take what an agent says, as the fleet's end of its pipe would."""
        kind, what = message
        if kind == "report":
            self.handed.add(what)
            for delta in what.deltas:
                delta.add_to(self.histograms.setdefault((delta.kind, delta.interval), Histogram()))
        elif kind == "result":
            self.results.append(what)

    def close(self) -> None:
        """Nothing is held."""

    def window(self, kind: str) -> list[Histogram]:
        """The histograms of the measured window, one a second, in order."""
        return [self.histograms[key] for key in sorted(self.histograms) if key[0] == kind and key[1] >= 0]

    def account(self) -> Account:
        """What became of every message."""
        return settle(
            [result.sent_book for result in self.results if result.sent_book is not None],
            self.handed.of("received_book", self.results),
        )


def simulate(
    rate: Rate,
    behaviour: Mapping[str, Any],
    *,
    seed: int,
    warmup_s: float,
    duration_s: float,
    groups: bool = False,
) -> Simulated:
    """Run one producer and one consumer around a queue that behaves so (`memory_behaviour.Behaviour`'s fields).

    Each message leaves at its own moment whatever the rate, unless `groups`: turns of the loop cost nothing here.
    """
    endpoint = memory_endpoint("rabbitmq", **behaviour)
    stage = Stage(Behaviour.of(endpoint.configuration))
    settings = {"confirm_window": WINDOW_MSGS, "prefetch": PREFETCH_MSGS, "confirms": True}
    board = Board.create(2)
    seen = Simulated()
    pipe: Connection = seen  # type: ignore[assignment]  # all that an agent does with its pipe is to send
    try:
        common: dict[str, Any] = {
            "count": 1, "driver": "memory", "target": Target(endpoint, "simulated", settings),
            "message": Message(size_bytes=SIZE_BYTES), "rate": rate, "seed": seed, "token": seed, "warmup_s": warmup_s,
            "duration_s": duration_s, "consumers": 1, "board": board.path, "rows": board.rows,
        }  # fmt: skip
        board.order(Cell.START_NS, stage.clock.now_ns)
        with _on(stage, groups=groups):
            consumer = consuming.ConsumerAgent(AgentSpec("consumer", "consumer0", 1, 0, **common), pipe)
            producer = producing.ProducerAgent(AgentSpec("producer", "producer0", 2, 0, **common), pipe)
            loops = [greenlet(consumer.run), greenlet(producer.run)]

            def stop_when_done() -> None:
                if loops[1].dead and not stage.hub.depth:
                    board.order(Cell.STOP_CONSUMING)

            stage.run(loops, stop_when_done)
    finally:
        board.remove()
        gc.enable()  # an agent turns it off for as long as its process lives
    return seen


@contextmanager
def _on(stage: Stage, *, groups: bool) -> Iterator[None]:
    """Put a stage's clock and driver in place of the real ones, in the agents' modules alone."""
    with ExitStack() as stack:
        for module in (agent, consuming, producing):
            stack.enter_context(mock.patch.object(module, "time", StageTime(stage)))
        # Nobody wakes up late here, and time passes in sleep only.
        stack.enter_context(mock.patch.object(producing, "EARLY_NS", 0))
        if not groups:
            stack.enter_context(mock.patch.object(pacer, "RUSH_MSGS", math.inf))
        for module in (consuming, producing):
            stack.enter_context(mock.patch.object(module, "load_driver", return_value=StageDriver(stage)))
        yield
