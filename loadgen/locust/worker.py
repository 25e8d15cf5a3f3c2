"""A Locust worker's half: users come and go, each is one agent of the crew, and what the crew says goes on.

The same object serves a Locust that runs alone; then its messages reach the master's half in the same process.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import gevent
from gevent.event import Event
from gevent.queue import Queue
from locust.exception import RPCError
from locust.runners import WorkerRunner

from loadgen.load import fingerprint
from loadgen.locust.helper import Helper
from loadgen.locust.options import scenarios
from loadgen.locust.statistics import feed
from loadgen.tracking import clock_id
from loadgen.versions import own_version

if TYPE_CHECKING:
    from locust.env import Environment

    from loadgen.agent import Role

UP, DOWN = "loadgen.up", "loadgen.down"
RETIRE_S = 0.6  # after a user has said that it leaves: by then the others have its share
LEAVE_S = 12.0  # for an agent to flush, settle and report
ORDERLY_S = 40.0  # for the master to end a trial in order, once this process is asked to go

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Place:
    """A user's place: the agent that carries its load, while there is one."""

    uid: int
    scenario: str
    broker: str
    role: Role
    trial: int = 0
    has_agent: bool = False
    is_leaving: bool = False
    error: str | None = None
    ended: Event = field(default_factory=Event)


workers: WeakKeyDictionary[Environment, Worker] = WeakKeyDictionary()
"""The one of each Locust environment that runs users."""


class Worker:
    """The users' side, in the process that runs them."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        workers[environment] = self
        assert environment.runner is not None
        self.runner = environment.runner
        self._uids = itertools.count(1)
        self._places: dict[int, Place] = {}
        self._trial: dict[str, Any] | None = None
        self._name, self._number = "", 0
        self._over = Event()
        self._over.set()
        self._orders: Queue[dict[str, Any]] = Queue()
        self.crew = Helper("crew", self._hear, self._lost)
        self._squad: Helper | None = None
        self.runner.register_message(DOWN, self._receive)
        self._greenlet = gevent.spawn(self._follow)
        self.hello()

    # What users do.

    def enter(self, scenario: str, broker: str, role: Role) -> Place:
        """Take a place for a user; its agent starts as soon as there is a trial of its scenario and broker."""
        place = Place(next(self._uids), scenario, broker, role)
        self._places[place.uid] = place
        self._join(place)
        return place

    def look_after(self, place: Place) -> None:
        """Begin again where an agent has failed, as an HTTP user goes on after a failed request."""
        if place.error is not None:
            self._join(place)

    def leave(self, place: Place) -> None:
        """Give the place up, and wait until its agent has said all."""
        place.is_leaving = True
        self._tell("leave", uid=place.uid, number=place.trial)
        try:
            if not place.has_agent or place.ended.wait(RETIRE_S):
                return
            self.crew.send("retire", uid=place.uid)
            if not place.ended.wait(LEAVE_S):
                self.crew.send("kill", uid=place.uid)
                place.ended.wait(1)
        finally:
            self._places.pop(place.uid, None)

    def _join(self, place: Place) -> None:
        trial = self._trial
        if trial is None or (trial["scenario"], trial["broker"]) != (place.scenario, place.broker):
            return
        if not place.is_leaving:
            place.trial, place.error = trial["number"], None
            self._tell("join", uid=place.uid, number=place.trial, role=place.role)

    # What the master says.

    def hello(self) -> None:
        """Tell the master who is here, and learn what is being run."""
        self._tell(
            "hello",
            pids=[os.getpid(), self.crew.pid],
            boot=clock_id(),
            host=socket.gethostname(),
            version=own_version(),
            scenarios={name: fingerprint(each) for name, each in scenarios.items()},
        )

    def _receive(self, environment: Environment, msg: Any) -> None:
        del environment
        self._orders.put(dict(msg.data))

    def _follow(self) -> None:
        for order in self._orders:
            kind = order.pop("kind")
            try:
                getattr(self, f"_on_{kind}")(**order)
            except Exception:  # one order that cannot be followed must not be the last that is heard
                logger.exception("the master's order %s could not be followed", kind)

    def _on_trial(self, number: int, scenario: str, broker: str, common: bytes) -> None:
        """A new trial: all users that it concerns take part in it."""
        if number == self._number:
            return  # told twice, since this worker said twice that it is there
        self._number = number
        self._over.clear()
        self._trial = {"number": number, "scenario": scenario, "broker": broker}
        self._name = f"{scenario} {broker}"
        self.crew.send("trial", number=number, common=common)
        for place in list(self._places.values()):
            self._join(place)

    def _on_seat(self, uid: int, number: int, role: Role, index: int, count: int, subscriber: int) -> None:
        place = self._places.get(uid)
        if place is None or place.trial != number or place.is_leaving:
            return
        place.has_agent = True
        place.ended.clear()
        self.crew.send("join", uid=uid, number=number, role=role, index=index, count=count, subscriber=subscriber)

    def _on_start(self, number: int, origin_ns: int) -> None:
        self.crew.send("start", number=number, origin_ns=origin_ns)

    def _on_shares(self, number: int, at_ms: int, places: dict[int, list[int]]) -> None:
        self.crew.send("shares", number=number, at_ms=at_ms, places=places)

    def _on_clock(self, reference: str, port: int) -> None:
        self.crew.send("clock", reference=reference, host=getattr(self.runner, "master_host", "127.0.0.1"), port=port)

    def _on_stop(self) -> None:
        self._trial = None  # who comes now waits for the next trial
        self.crew.send("stop")

    def _on_halt(self) -> None:
        self.crew.send("halt")

    def _on_over(self) -> None:
        self._over.set()

    def _on_fleet(self, order: str, data: dict[str, Any]) -> None:
        """The command line's fleet: its squad is a process of its own, which this one only passes on to."""
        if order == "hello":
            self.hello()
            return
        if self._squad is None:
            self._squad = Helper("squad", self._hear_squad, lambda: self._tell("fleet", what="died"))
        if order == "clock":
            data["host"] = getattr(self.runner, "master_host", "127.0.0.1")
        self._squad.send(order, **data)

    # What the crew says.

    def _hear(self, kind: str, message: dict[str, Any]) -> None:
        if kind == "report":
            for row in message.pop("rows"):
                feed(self.environment.stats, self._name, row)
        elif kind == "ended":
            self._ended(message)
        self._tell(kind, **message)

    def _hear_squad(self, kind: str, message: dict[str, Any]) -> None:
        self._tell("fleet", what=kind, **message)

    def _ended(self, message: dict[str, Any]) -> None:
        place = self._places.get(message["uid"])
        if place is not None and place.trial == message["number"]:
            self._release(place, message["error"])
        if message["error"] is not None:
            logger.error(message["error"])

    def _lost(self) -> None:
        """The crew has died: whoever waits must not wait for ever, and the run must say so."""
        logger.error("the crew of this worker has ended; its agents' messages cannot be told")
        for place in self._places.values():
            self._release(place, None)
        self._tell("died")

    def _release(self, place: Place, error: str | None) -> None:
        place.has_agent, place.error = False, error
        place.ended.set()

    def _tell(self, kind: str, **data: Any) -> None:
        try:
            self.runner.send_message(UP, {"kind": kind, **data})
        except RPCError as error:  # the master is gone, which Locust itself finds out and ends of
            logger.warning("the master does not hear this worker: %s", error)

    # The end.

    def end(self) -> None:
        """Go in order: a trial that is being ended is waited for, and what is left of the crew with it."""
        if isinstance(self.runner, WorkerRunner) and not self._over.is_set():
            self._over.wait(ORDERLY_S)
        if self._squad is not None:
            self._squad.close()
        self.crew.close()
