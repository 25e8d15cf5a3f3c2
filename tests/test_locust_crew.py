"""A worker's crew, driven as Locust's process drives it: trials that follow each other, orders that come late."""

from __future__ import annotations

import os
import socket
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from loadgen.board import Cell
from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.memory import memory_endpoint
from loadgen.knobs import resolve
from loadgen.locust.crew import Crew
from loadgen.locust.line import Line
from loadgen.locust.messages import pack, unpack
from loadgen.pacer import make_pacer
from loadgen.producing import ProducerAgent
from loadgen.scenario import Message, Rate
from loadgen.shares import MS_NS, Changing, Silent
from loadgen.think import Think

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 60.0
TARGET = Target(memory_endpoint("kafka"), f"demo-{os.getpid()}", resolve("kafka", {}, "broker", "low_latency"))
COMMON = {
    "driver": "memory",
    "target": TARGET,
    "message": Message(),
    "rate": Rate.fixed(1_000),
    "think": Think(),
    "seed": 1,
    "token": 1,
    "consumers": 0,
    "ramp_s": 1.0,
}


class Driven:
    """A crew in a thread of its own, its line's other end here."""

    def __init__(self) -> None:
        here, there = socket.socketpair()
        here.settimeout(PATIENCE_S)
        self.line, self.crew = Line(here), Crew(Line(there))
        self.socket = there
        self.thread = threading.Thread(target=self.crew.run)
        self.thread.start()

    def hear(self, *kinds: str) -> dict[str, Any]:
        """The next message of one of these kinds."""
        while (message := self.line.receive()) is not None:
            if message["kind"] in kinds:
                return message
        raise AssertionError(f"the crew did not say {kinds}")

    def begin(self, number: int, origin_ns: int = 0) -> None:
        """A trial of one producer, whose load begins now."""
        self.line.send("trial", number=number, common=pack(COMMON))
        self.line.send("join", uid=7, number=number, role="producer", index=0, count=1, subscriber=0)
        assert self.hear("ready", "ended")["kind"] == "ready"
        self.line.send("shares", number=number, at_ms=1, places={7: [0, 1]})
        self.line.send("start", number=number, origin_ns=origin_ns or time.monotonic_ns())
        self.hear("report")

    def result(self) -> Any:
        """What the agent says at its end."""
        message = self.hear("result")
        assert message["parts"] == 1
        return unpack(message["blob"])


@pytest.fixture
def driven() -> Iterator[Driven]:
    """A crew that ends with the test."""
    admin = load_driver("memory").admin(TARGET.endpoint)
    admin.create(TARGET)
    made = Driven()
    yield made
    made.line.close_sending()
    made.thread.join(PATIENCE_S)
    made.line.close()
    made.socket.close()
    admin.delete(TARGET)
    admin.close()


def test_an_old_trials_end_is_not_a_new_ones(driven: Driven) -> None:
    """Agents of every trial have names of their own: what is heard late of one that has gone ends nobody else."""
    driven.begin(1)
    (gone,) = driven.crew._members
    driven.begin(2)
    assert gone not in driven.crew._members
    driven.crew._inbox.put((gone, None))
    driven.line.send("stop")
    assert driven.hear("result", "ended")["kind"] == "result"


def test_a_share_order_that_comes_late_is_counted_and_told(driven: Driven) -> None:
    """What was sent meanwhile by the old share stands in the result and among the events; in time it is nothing."""
    driven.begin(1)
    driven.line.send("shares", number=1, at_ms=500, places={7: [1, 2]})  # a second has passed
    event = None
    while event is None:
        events = unpack(driven.hear("report")["blob"])["events"]
        event = next((each for each in events if each[0] == "late share"), None)
    assert "sent twice or left out" in event[3]
    driven.line.send("stop")
    late = sum(driven.result().per_second["misshared"])
    assert late >= 250, "half of what was sent since was another's"


def test_who_leaves_goes_on_until_others_have_its_share(driven: Driven) -> None:
    """Asked to leave before its share is anybody else's, a producer sends until then, and nothing is misshared."""
    origin_ns = time.monotonic_ns()
    driven.begin(1, origin_ns)
    driven.line.send("retire", uid=7)
    at_ms = (time.monotonic_ns() - origin_ns) // 1_000_000 + 2_400  # in time even where the machine is busy
    driven.line.send("shares", number=1, at_ms=at_ms, places={7: [0, 0]})
    result = driven.result()
    assert "misshared" not in result.per_second
    assert result.sent_book is not None
    assert result.sent_book.sent_count == at_ms - 1, "one in each millisecond from the first on"


def test_who_leaves_sends_what_was_due_before_others_had_its_share() -> None:
    """What fell due between the last look and the moment of the new shares is nobody else's: it is sent first."""
    schedule = Changing()
    schedule.change(1, make_pacer(Rate.fixed(1_000), 0, 1, 1.0, seed=0))  # type: ignore[arg-type]
    schedule.change(100 * MS_NS, Silent())
    agent = SimpleNamespace(
        shared=schedule, row={Cell.RETIRE: 1}, board=SimpleNamespace(ordered=lambda _: 0), retired_ns=0,
        clock=SimpleNamespace(start_ns=0), sent=96, _due=schedule.due,
    )  # fmt: skip
    assert not ProducerAgent._is_over(agent, 101 * MS_NS)  # type: ignore[arg-type]
    agent.sent = schedule.due(99 * MS_NS)
    assert ProducerAgent._is_over(agent, 101 * MS_NS)  # type: ignore[arg-type]
    agent.sent = 96  # where the broker takes nothing more, this comes to an end, too
    assert ProducerAgent._is_over(agent, 1_101 * MS_NS)  # type: ignore[arg-type]


def test_an_order_to_leave_that_comes_between_two_looks_ends_nobody_at_once() -> None:
    """Whoever is asked to leave while it looks whether it is asked goes on until its share is somebody else's."""
    looks = iter([0, 1, 1])

    class Row:
        def __getitem__(self, _: object) -> int:
            return next(looks)

    silent = SimpleNamespace(is_silent=lambda _: False)
    agent = SimpleNamespace(
        shared=silent, row=Row(), board=SimpleNamespace(ordered=lambda _: 0), retired_ns=0,
        clock=SimpleNamespace(start_ns=0), must_end=lambda _: bool(next(looks)),
    )  # fmt: skip
    assert not ProducerAgent._is_over(agent, 1)  # type: ignore[arg-type]
    assert not ProducerAgent._is_over(agent, 2)  # type: ignore[arg-type]
