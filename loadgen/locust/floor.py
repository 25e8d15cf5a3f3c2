"""Where a master meets its workers: who is there, who takes part, whose share is which, when load begins and drains.

Messages come from workers one after another and are followed in one greenlet; whatever takes time is the keeper's.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gevent
from gevent.queue import Queue
from locust.runners import STATE_MISSING, LocalRunner, MasterRunner

from loadgen.errors import HostError
from loadgen.locust.worker import DOWN, UP
from loadgen.shares import AHEAD_MS
from loadgen.tracking import clock_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.env import Environment
    from locust.runners import Runner

    from loadgen.agent import Role
    from loadgen.locust.helper import Helper
    from loadgen.locust.seats import Key, Seats

START_MS = 100  # from the order to begin until the first message is due
SHARE_S = 0.05  # changes within so short a time are one order
TURN_S = 0.05
WATCH_S = 1.0
FLUSH_S = 8.0  # for all producers to have their last confirmations
QUIET_S = 2.0  # a drain ends when nothing arrived for so long …
DRAIN_S = 20.0  # … or after this in any case
RESULT_S = 12.0  # for all agents to say their last
CLOCK_S = 30.0  # for all workers to have asked for the time
SPARE = 1 << 20  # the number of a consumer beyond those planned: it has no partition of Kafka's

logger = logging.getLogger(__name__)


@dataclass
class Phase:
    """The trial that is being run."""

    number: int
    about: dict[str, Any]
    seats: Seats
    message: dict[str, Any]
    origin_ns: int = 0
    shared_at_ms: int = 0
    shares_soon: bool = False
    reached: bool = False
    stopped: bool = False
    totals: dict[str, dict[str, int]] = field(default_factory=dict)
    moved_s: float = 0.0
    received: int = -1
    clocks: dict[str, Any] = field(default_factory=dict)
    """Of each worker, how its clock did while the trial ran."""
    had: dict[Key, Role] = field(default_factory=dict)
    """Everybody who ever took part."""

    def total(self, what: str) -> int:
        """The sum of what the workers told last."""
        return sum(each[what] for each in self.totals.values())


class Floor:
    """The workers of one master, and the phase that they are in."""

    def __init__(self, runner: Runner, keeper: Helper) -> None:
        self._runner, self._keeper = runner, keeper
        self.phase: Phase | None = None
        self.begun = 0
        self.spawned = False
        self._workers: dict[str, dict[str, Any]] = {}
        self._names = itertools.count()
        self._messages: Queue[tuple[str, dict[str, Any]]] = Queue()
        runner.register_message(UP, self._receive)
        self._greenlets = [gevent.spawn(self._follow)]
        if isinstance(runner, MasterRunner):
            self._greenlets.append(gevent.spawn(self._watch, runner))

    # A phase.

    def begin(self, phase: Phase) -> None:
        """Let the workers take part in a new phase."""
        self.begun += 1
        phase.message["number"] = self.begun
        self.phase = phase
        self._broadcast("trial", **phase.message)

    def demand_clocks(self) -> None:
        """Raise HostError where nobody can say how far the clock of a worker is off."""
        self._wait(lambda: all(each["clock"] or each["error"] for each in self._workers.values()), CLOCK_S)
        for each in self._workers.values():
            if each["clock"] is None:
                raise HostError(f"worker {each['name']}: {each['error'] or 'its clock could not be told'}")

    def clocks(self, phase: Phase) -> dict[str, Any]:
        """The clock of each worker that took part, and by role the workers that had it."""
        names = {worker: each["name"] for worker, each in self._workers.items()}
        return {
            "clocks": {names[each]: phase.clocks.get(each, self._workers[each]["clock"]) for each in names},
            "ends": {
                role: sorted({names[key[0]] for key, had in phase.had.items() if had == role and key[0] in names})
                for role in ("producer", "consumer")
            },
        }

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._workers)

    @property
    def pids(self) -> list[int]:
        """The processes of Locust and of crews on this machine."""
        return [pid for each in self._workers.values() if each["boot"] == clock_id() for pid in each["pids"]]

    def end(self, phase: Phase) -> tuple[bool, float]:
        """Stop the producers, wait until all has arrived and everybody has told; whether it had, and after how long."""
        phase.stopped = True
        self._broadcast("stop")
        began_s = time.monotonic()
        drained = bool(phase.origin_ns) and self._drain(phase)
        drain_s = time.monotonic() - began_s
        self._broadcast("halt")
        self._wait(lambda: not phase.seats.seats and phase.clocks.keys() >= self._workers.keys(), RESULT_S)
        for key in phase.seats.seats:
            self._keeper.send("trouble", error=f"user {key[1]} of worker {key[0]} did not report its end", trace="")
        self.phase = None
        return drained, drain_s

    def over(self) -> None:
        """Nothing more is wanted of the workers: those that are leaving may go."""
        self._broadcast("over")

    def _drain(self, phase: Phase) -> bool:
        """Wait until what was sent was received; whether it was."""

        def is_sent() -> bool:
            return len(phase.totals) == len({key[0] for key in phase.seats.seats}) and not phase.total("producing")

        self._wait(is_sent, FLUSH_S)
        consuming = any(seat.role == "consumer" for seat in phase.seats.seats.values())
        if not consuming:
            return True
        subscribers = phase.seats.planned.subscribers
        phase.moved_s = time.monotonic()

        def is_quiet() -> bool:
            received = phase.total("received")
            if received != phase.received:
                phase.received, phase.moved_s = received, time.monotonic()
            is_empty = received >= phase.total("sent") * subscribers
            return is_empty or time.monotonic() - phase.moved_s > QUIET_S

        self._wait(is_quiet, DRAIN_S)
        return phase.total("received") >= phase.total("sent") * subscribers

    def _wait(self, is_done: Callable[[], bool], most_s: float) -> None:
        end_s = time.monotonic() + most_s
        while not is_done() and time.monotonic() < end_s:
            gevent.sleep(TURN_S)

    # What workers say.

    def _receive(self, environment: Environment, msg: Any) -> None:
        del environment
        self._messages.put((msg.node_id, dict(msg.data)))

    def _follow(self) -> None:
        for worker, message in self._messages:
            try:
                self._serve(worker, **message)
            except Exception:  # one worker's message must not end the hearing of all others
                logger.exception("a message of worker %s could not be followed", worker)

    def _serve(self, worker: str, kind: str, number: int | None = None, **message: Any) -> None:
        phase = self.phase
        if kind in {"hello", "died"}:
            getattr(self, f"_on_{kind}")(worker, **message)
        elif kind == "clocked":
            self._on_clocked(worker, number=number, **message)
        elif phase is not None and number == self.begun:
            getattr(self, f"_on_{kind}")(phase, worker, **message)

    def _on_hello(self, worker: str, pids: list[int], boot: str, **told: Any) -> None:
        """A worker is there; one that comes late learns what is being run."""
        del told
        if worker not in self._workers:
            about = {"pids": pids, "boot": boot, "name": f"w{next(self._names)}", "clock": None, "error": None}
            self._workers[worker] = about
            gevent.spawn(self._greet, worker)
        phase = self.phase
        if phase is not None and not phase.stopped:
            self._send(worker, "trial", **phase.message)
            if phase.origin_ns:
                self._send(worker, "start", number=self.begun, origin_ns=phase.origin_ns)

    def _greet(self, worker: str) -> None:
        """Tell a worker which clock is the reference: this machine's, which the keeper tells at the master's port."""
        port = 0
        if self._workers[worker]["boot"] != clock_id():
            answer = self._keeper.call("clock", host=getattr(self._runner, "master_bind_host", ""), port=self._port)
            port = answer.get("port", 0)
            self._workers[worker]["error"] = answer.get("error")
        self._send(worker, "clock", reference=clock_id(), port=port)

    @property
    def _port(self) -> int:
        return int(getattr(self._runner, "master_bind_port", 0))

    def _on_clocked(
        self, worker: str, clock: dict[str, Any] | None, error: str | None, number: int | None = None
    ) -> None:
        """How far a worker's clock is off, as it joined or at the end of a trial."""
        if worker in self._workers:
            self._workers[worker] |= {"clock": clock, "error": error}
        if self.phase is not None and number == self.begun:
            self.phase.clocks[worker] = clock

    def _on_died(self, worker: str) -> None:
        """A worker's agents are lost, and what they sent and received cannot be told."""
        phase, name = self.phase, self._name(worker)
        if self._workers.pop(worker, None) is None or phase is None:
            return
        phase.totals.pop(worker, None)
        if keys := phase.seats.of_worker(worker):
            for key in keys:
                phase.seats.end(key)
            logger.error("worker %s (%s) was lost: its messages cannot be told", name, worker)
            self._keeper.send("trouble", error=f"worker {name} was lost in mid-trial", trace="")
            self._share(phase)

    def _watch(self, runner: MasterRunner) -> None:
        """Notice the workers that Locust no longer hears: it has no event for that."""
        while True:
            gevent.sleep(WATCH_S)
            for worker in list(self._workers):
                client = runner.clients.get(worker)
                if client is None or client.state == STATE_MISSING:
                    self._messages.put((worker, {"kind": "died"}))

    def _on_join(self, phase: Phase, worker: str, uid: int, role: Any) -> None:
        if phase.stopped:
            return
        seat = phase.seats.join((worker, uid), role)
        phase.had[worker, uid] = role
        subscribers = phase.seats.planned.subscribers if role == "consumer" else 1
        each = max(1, phase.seats.planned.consumers // subscribers)
        self._send(
            worker,
            "seat",
            uid=uid,
            number=self.begun,
            role=role,
            index=seat.index // subscribers if role == "producer" or seat.index < each * subscribers else SPARE,
            count=each if role == "consumer" else max(1, phase.seats.planned.producers),
            subscriber=seat.index % subscribers,
        )

    def _on_ready(self, phase: Phase, worker: str, uid: int, pid: int) -> None:
        if not phase.seats.ready((worker, uid)):
            return
        seat = phase.seats.seats[worker, uid]
        if worker in self._workers and self._workers[worker]["boot"] == clock_id():
            phase.seats.pids[pid] = seat.role
            if phase.origin_ns:
                self._keeper.send("pid", role=seat.role, pid=pid)
        if phase.origin_ns and seat.role == "producer":
            self._share(phase)
        self.look()

    def _on_leave(self, phase: Phase, worker: str, uid: int) -> None:
        if phase.seats.leave((worker, uid)):
            self._share(phase)

    def _on_ended(self, phase: Phase, worker: str, uid: int, role: Any, error: str | None, traceback: str) -> None:
        del role
        seat = phase.seats.end((worker, uid))
        if error is not None:
            self._keeper.send("trouble", error=error, trace=traceback)
        if seat is not None and seat.role == "producer" and not phase.stopped:
            self._share(phase)

    def _on_report(self, phase: Phase, worker: str, blob: bytes) -> None:
        del phase
        self._keeper.send("report", worker=self._name(worker), blob=blob)

    def _on_result(self, phase: Phase, worker: str, uid: int, part: int, parts: int, blob: bytes) -> None:
        del phase
        self._keeper.send("result", worker=self._name(worker), uid=uid, part=part, parts=parts, blob=blob)

    def _on_totals(self, phase: Phase, worker: str, sent: int, received: int, producing: int) -> None:
        phase.totals[worker] = {"sent": sent, "received": received, "producing": producing}

    def _name(self, worker: str) -> str:
        return str(self._workers.get(worker, {}).get("name", "w"))

    def _share(self, phase: Phase) -> None:
        """Tell every producer, in a moment, its part of the rate among those that there are then."""
        if not phase.shares_soon:
            phase.shares_soon = True
            gevent.spawn_later(SHARE_S, self._share_now, phase)

    def _share_now(self, phase: Phase) -> None:
        phase.shares_soon = False
        if not phase.origin_ns or phase.stopped or phase is not self.phase:
            return
        now_ms = (time.monotonic_ns() - phase.origin_ns) // 1_000_000
        phase.shared_at_ms = max(1, phase.shared_at_ms + 1, now_ms + AHEAD_MS)
        for worker, places in phase.seats.shares().items():
            self._send(worker, "shares", number=self.begun, at_ms=phase.shared_at_ms, places=places)

    def look(self) -> None:
        """Begin the load when everybody needed is connected; open the window when all are who were asked for."""
        phase = self.phase
        if phase is None or phase.stopped:
            return
        if not phase.origin_ns and phase.seats.may_start:
            phase.origin_ns = time.monotonic_ns() + START_MS * 1_000_000
            for worker, places in phase.seats.shares().items():
                self._send(worker, "shares", number=self.begun, at_ms=1, places=places)
            phase.shared_at_ms = 1
            self._broadcast("start", number=self.begun, origin_ns=phase.origin_ns)
            self._keeper.send("started", origin_ns=phase.origin_ns)
            for pid, role in phase.seats.pids.items():
                self._keeper.send("pid", role=role, pid=pid)
        if phase.origin_ns and not phase.reached and self.spawned and phase.seats.all_ready:
            phase.reached = True
            self._keeper.send("reached", at_ns=max(time.monotonic_ns(), phase.origin_ns))

    def _broadcast(self, kind: str, **data: Any) -> None:
        for worker in list(self._workers):
            self._send(worker, kind, **data)

    def _send(self, worker: str, kind: str, **data: Any) -> None:
        if isinstance(self._runner, LocalRunner | MasterRunner):
            self._runner.send_message(DOWN, {"kind": kind, **data}, client_id=worker)
