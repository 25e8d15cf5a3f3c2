"""Several connections of one process, and connections that are closed and opened anew as the trial goes on."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from loadgen.drivers.wire.amqp_acks import IDLE_S
from loadgen.drivers.wire.amqp_consumer import AmqpConsumer
from loadgen.drivers.wire.amqp_producer import AmqpProducer, poll_while

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.driver import Int64, Received, Settled, Target
    from loadgen.payload import Payloads

_NEVER_NS = 1 << 62
_TURN_S = 0.05  # a connection whose time has come may be idle


class _Member(Protocol):
    """A producer or consumer on a connection of its own."""

    @property
    def owes(self) -> bool: ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


_M = TypeVar("_M", bound=_Member)


class _Pool(Generic[_M]):
    """Members on `count` connections, each of which is opened anew after `every_s`, once it owes nothing."""

    def __init__(self, make: Callable[[int], _M], count: int, every_s: float | None) -> None:
        self._make = make
        self._every_ns = _NEVER_NS if every_s is None else round(every_s * 1e9)
        self._connects: list[tuple[int, int]] = []
        self.members: list[_M] = []
        try:
            for number in range(count):
                self.members.append(make(number))
        except BaseException:
            self.close()
            raise
        # In turn, so that not all of them are away at the same time.
        now_ns = time.monotonic_ns()
        self._due_ns = [now_ns + self._every_ns * (number + 1) // count for number in range(count)]

    def is_due(self, number: int) -> bool:
        """Whether a connection's time has come."""
        return time.monotonic_ns() >= self._due_ns[number]

    def renew(self) -> None:
        """Close and open those whose time has come and that owe nothing."""
        for number, member in enumerate(self.members):
            if self.is_due(number) and not member.owes:
                member.close()
                began_ns = time.monotonic_ns()
                self.members[number] = self._make(number)
                ended_ns = time.monotonic_ns()
                self._connects.append((began_ns, ended_ns))
                self._due_ns[number] = ended_ns + self._every_ns

    def take_connects(self) -> list[tuple[int, int]]:
        """Begin and end of each opening since the last call, in monotonic ns."""
        taken, self._connects = self._connects, []
        return taken

    def wait(self, timeout_s: float, writing: list[_M] | None = None) -> list[_M]:
        """Those that have something to read (or can write), after at most so long."""
        readable, writable, _ = select.select(self.members, writing or [], [], max(0.0, timeout_s))
        return list(dict.fromkeys([*readable, *writable]))

    def close(self) -> None:
        """Close all; never raises."""
        for member in self.members:
            member.close()


class ProducerPool:
    """See `loadgen.driver.Producer`: batches go to the connection that has the most room."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        count = target.settings["connections_per_process"]
        every_s = target.settings["reconnect_every_s"]
        self._pool = _Pool(lambda _: AmqpProducer(target, payloads, count), count, every_s)
        self._next = self._pool.members[0]
        self._used: dict[int, int] = {}

    @property
    def blocked(self) -> bool:
        """Whether the broker has asked all of them to publish no more for now."""
        return all(each.blocked for each in self._pool.members)

    @property
    def room_msgs(self) -> int:
        """That of the connection which is next; one whose time has come gets nothing more."""
        rooms = [
            (0 if self._pool.is_due(number) else each.room_msgs, -self._used.get(number, 0), number)
            for number, each in enumerate(self._pool.members)
        ]
        room, used, number = max(rooms)
        self._next, self._used[number] = self._pool.members[number], -used
        self._number = number
        return room

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Hand a batch to the connection whose room was told."""
        self._used[self._number] += 1
        self._next.send(first_seq, intended_ns, sent_ns)

    def poll(self, timeout_s: float) -> list[Settled]:
        """What any of them has settled; returns early when there is room again."""
        had_room = self.room_msgs > 0
        deadline_s = time.monotonic() + timeout_s
        while True:
            settled = [each for member in self._pool.members for each in member.poll(0)]
            self._pool.renew()
            left_s = deadline_s - time.monotonic()
            if settled or left_s <= 0 or (not had_room and self.room_msgs > 0):
                return settled
            self._pool.wait(min(left_s, _TURN_S), [each for each in self._pool.members if each.has_unsent])

    def flush(self, timeout_s: float) -> list[Settled]:
        """Wait until all is written and settled, at most `timeout_s`."""
        return poll_while(lambda: any(each.owes for each in self._pool.members), self.poll, timeout_s)

    def take_connects(self) -> list[tuple[int, int]]:
        """The openings since the last call (begin, end), in monotonic ns."""
        return self._pool.take_connects()

    def close(self) -> None:
        """Close all connections; never raises."""
        self._pool.close()


class ConsumerPool:
    """See `loadgen.driver.Consumer`: each connection is a consumer of its own to the broker."""

    def __init__(self, target: Target, index: int, count: int) -> None:
        connections = target.settings["connections_per_process"]
        self._before: dict[str, int] = {}  # what consumers on connections that are closed had fail

        def make(number: int) -> AmqpConsumer:
            return AmqpConsumer(target, index * connections + number, count * connections)

        self._pool = _Pool(make, connections, target.settings["reconnect_every_s"])
        self._handed: list[AmqpConsumer] = []

    @property
    def failed(self) -> dict[str, int]:
        """How many deliveries were requeued, failed or rejected."""
        told = [each.failed for each in self._pool.members]
        return {how: self._before.get(how, 0) + sum(each[how] for each in told) for how in told[0]}

    @property
    def has_waiting(self) -> bool:
        """Whether whole deliveries were left of the last read."""
        return any(each.has_waiting for each in self._pool.members)

    def receive(self, timeout_s: float) -> list[Received]:
        """Wait for the first message on any connection; what each of them has read with it."""
        self._renew()
        deadline_s = time.monotonic() + timeout_s
        while True:
            ready = [each for each in self._pool.members if each.has_waiting]
            resting = [each for each in self._pool.members if each.has_rest]
            left_s = 0.0 if ready else deadline_s - time.monotonic()
            found = self._pool.wait(min(left_s, IDLE_S) if resting else min(left_s, _TURN_S))
            ready = list(dict.fromkeys([*ready, *found]))
            received: list[Received] = []
            self._handed = []
            # One that is idle acknowledges what is left; heartbeats are sent from here, too.
            for member in ready or self._pool.members:
                if batches := member.receive(0):
                    self._handed.append(member)
                    received += batches
            if received or time.monotonic() >= deadline_s:
                return received

    def settle(self, count: int | None = None) -> None:
        """Acknowledge what was handed out, or `count` more messages of the one that did."""
        for member in self._handed:
            member.settle(count)

    def take_connects(self) -> list[tuple[int, int]]:
        """The openings since the last call (begin, end), in monotonic ns."""
        return self._pool.take_connects()

    def close(self) -> None:
        """Close all connections, which gives back what was not settled; never raises."""
        self._pool.close()

    def _renew(self) -> None:
        """Have connections opened anew, with what is settled on them acknowledged first."""
        before = {id(each): each.failed for each in self._pool.members}
        for number, member in enumerate(self._pool.members):
            if self._pool.is_due(number):
                member.acknowledge_rest()
        self._pool.renew()
        kept = {id(each) for each in self._pool.members}
        for gone in (failed for number, failed in before.items() if number not in kept):
            for how, times in gone.items():
                self._before[how] = self._before.get(how, 0) + times


def is_pooled(target: Target) -> bool:
    """Whether a process has more than the one connection that it keeps."""
    settings = target.settings
    return settings.get("connections_per_process", 1) > 1 or settings.get("reconnect_every_s") is not None
