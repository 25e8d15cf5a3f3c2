"""A producer and a consumer that outlive their connection, as an application's do: they open another one.

With the knob `recover_within_s` a lost connection is no end: another is opened, by any of the broker's addresses, with
a pause that doubles from 0.1 s to 1 s. A producer then sends again what was not confirmed, in its order, before
anything new: whether it had arrived nobody knows, so that it may be there twice. What a consumer had not acknowledged
comes again by itself, marked as redelivered. When nobody has answered for the knob's time the trial ends.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from loadgen.drivers.wire.amqp_consumer import AmqpConsumer
from loadgen.drivers.wire.amqp_producer import AmqpProducer, poll_while
from loadgen.errors import BrokerError, TrialError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.driver import Int64, Received, Settled, Target
    from loadgen.payload import Payloads

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0


class _Client(Protocol):
    def close(self) -> None: ...

    def crash(self) -> None: ...


_M = TypeVar("_M", bound=_Client)


class _Link(Generic[_M]):
    """A producer or consumer on a connection, which is opened anew after it was lost."""

    def __init__(self, make: Callable[[], _M], within_s: float) -> None:
        self._make, self._within_s = make, within_s
        self.now: _M | None = make()  # what is wrong at the start a person can mend
        self._lost_ns = 0
        self._why: Exception | None = None
        self._pause_s = FIRST_PAUSE_S
        self._next_s = 0.0
        self._outages: list[tuple[int, int]] = []

    def lost(self, why: Exception) -> None:
        """The connection is gone."""
        if self.now is not None:
            self.now.close()
            self.now = None
            self._lost_ns, self._pause_s, self._next_s = time.monotonic_ns(), FIRST_PAUSE_S, 0.0
        self._why = why

    def reopened(self, timeout_s: float) -> bool:
        """Try to open it where it is time to, else wait for at most so long; raises TrialError after too long."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            time.sleep(min(timeout_s, self._next_s - now_s))
            return False
        try:
            self.now = self._make()
        except (BrokerError, TrialError) as error:
            self._why = error
        else:
            self._outages.append((self._lost_ns, time.monotonic_ns()))
            return True
        if (time.monotonic_ns() - self._lost_ns) / 1e9 > self._within_s:
            raise TrialError(f"no connection for {self._within_s:g} s: {self._why}")
        self._next_s = time.monotonic() + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        return False

    def take_outages(self) -> list[tuple[int, int]]:
        """Those that have ended since the last call: when the connection was lost, and when another could be used."""
        taken, self._outages = self._outages, []
        return taken

    def crash(self) -> None:
        """Leave it, if there is one, as a killed process does."""
        if self.now is not None:
            self.now.crash()
            self.now = None

    def close(self) -> None:
        """Close it, if there is one."""
        if self.now is not None:
            self.now.close()


class RecoveringProducer:
    """See `loadgen.driver.Producer` and `Resending`: what was not confirmed is sent again on a new connection."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        settings = target.settings
        self._link = _Link(lambda: AmqpProducer(target, payloads), settings["recover_within_s"])
        self._has_confirms: bool = settings["confirms"]
        size = 1 << (8 * settings["confirm_window"]).bit_length()  # as far as unconfirmed ones may lie apart, and more
        self._mask = size - 1
        self._intended_ns, self._sent_ns = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self._is_open = np.zeros(size, np.bool_)
        self._end = 0
        self._again: list[Int64] = []  # runs that are to be sent again, in their order
        self._resent: list[Int64] = []

    @property
    def blocked(self) -> bool:
        """Whether the broker has asked to publish no more for now."""
        return self._link.now is not None and self._link.now.blocked

    @property
    def room_msgs(self) -> int:
        """None while there is no connection, or something to be sent again."""
        return 0 if self._link.now is None or self._again else self._link.now.room_msgs

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Hand over a batch; where the connection breaks meanwhile it is among what is sent again."""
        assert self._link.now is not None, "there was room"
        count = len(intended_ns)
        if self._has_confirms:
            where = np.arange(first_seq, first_seq + count) & self._mask
            self._intended_ns[where], self._sent_ns[where], self._is_open[where] = intended_ns, sent_ns, True
            self._end = first_seq + count
        try:
            self._link.now.send(first_seq, intended_ns, sent_ns)
        except TrialError as error:
            self._lose(error)

    def poll(self, timeout_s: float) -> list[Settled]:
        """As a producer's; without a connection, look for one."""
        if self._link.now is None and not self._link.reopened(timeout_s):
            return []
        assert self._link.now is not None
        try:
            self._send_again()
            settled = self._link.now.poll(0 if self._again else timeout_s)
        except TrialError as error:
            self._lose(error)
            return []
        for each in settled if self._has_confirms else ():
            self._is_open[each.seqs & self._mask] = False
        return settled

    def flush(self, timeout_s: float) -> list[Settled]:
        """Wait until all is written and, with confirms, settled, at most `timeout_s`."""
        return poll_while(lambda: self._owes, self.poll, timeout_s)

    def resent_seqs(self) -> Int64:
        """What was sent a second time, since nobody knew whether it had arrived (`loadgen.driver.Resending`)."""
        return np.concatenate([np.zeros(0, np.int64), *self._resent])

    def take_outages(self) -> list[tuple[int, int]]:
        """See `loadgen.driver.Recovering`."""
        return self._link.take_outages()

    def crash(self) -> None:
        """See `loadgen.driver.Crashing`."""
        self._link.crash()

    def close(self) -> None:
        """Close the connection; never raises."""
        self._link.close()

    @property
    def _owes(self) -> bool:
        return bool(self._again) or self._link.now is None or self._link.now.owes

    def _lose(self, error: TrialError) -> None:
        """The connection is gone: all that is unconfirmed is to be sent again, in runs of what was sent together."""
        self._link.lost(error)
        if not self._has_confirms:
            return
        seqs = np.arange(max(0, self._end - self._mask - 1), self._end)
        seqs = seqs[self._is_open[seqs & self._mask]]
        breaks = np.flatnonzero((np.diff(seqs) != 1) | (np.diff(self._sent_ns[seqs & self._mask]) != 0)) + 1
        self._again = [run for run in np.split(seqs, breaks) if len(run)]

    def _send_again(self) -> None:
        """As many of the runs as there is room for."""
        producer = self._link.now
        assert producer is not None
        while self._again and (room := producer.room_msgs) > 0:
            run = self._again[0]
            now, rest = run[:room], run[room:]
            where = now & self._mask
            self._resent.append(now)  # before: what breaks in the middle may have arrived
            producer.send(int(now[0]), self._intended_ns[where], int(self._sent_ns[where[0]]))
            self._again[:1] = [rest] if len(rest) else []


class RecoveringConsumer:
    """See `loadgen.driver.Consumer`: what it had not acknowledged comes again on a new connection."""

    def __init__(self, target: Target, index: int, count: int) -> None:
        within_s: float = target.settings["recover_within_s"]
        self._link = _Link(lambda: AmqpConsumer(target, index, count), within_s)
        self._before: dict[str, int] = {}  # what it had fail on connections that are gone
        self._handed: AmqpConsumer | None = None

    @property
    def has_waiting(self) -> bool:
        """Whether whole deliveries were left of the last read."""
        return self._link.now is not None and self._link.now.has_waiting

    @property
    def failed(self) -> dict[str, int]:
        """How many deliveries were requeued, failed or rejected."""
        now = {} if self._link.now is None else self._link.now.failed
        return {how: self._before.get(how, 0) + now.get(how, 0) for how in self._before | now}

    def receive(self, timeout_s: float) -> list[Received]:
        """As a consumer's; without a connection, look for one."""
        if self._link.now is None and not self._link.reopened(timeout_s):
            return []
        self._handed = self._link.now
        assert self._handed is not None
        try:
            return self._handed.receive(timeout_s)
        except TrialError as error:
            self._lose(error)
            return []

    def settle(self, count: int | None = None) -> None:
        """Acknowledge what was handed out on this connection: what came on one that is gone comes again."""
        if self._handed is None:
            return
        try:
            self._handed.settle(count)
        except TrialError as error:
            self._lose(error)

    def take_outages(self) -> list[tuple[int, int]]:
        """See `loadgen.driver.Recovering`."""
        return self._link.take_outages()

    def crash(self) -> None:
        """See `loadgen.driver.Crashing`."""
        self._link.crash()

    def close(self) -> None:
        """Close the connection, which gives back what was not settled; never raises."""
        self._link.close()

    def _lose(self, error: TrialError) -> None:
        if self._link.now is not None:
            self._before = self.failed
        self._handed = None
        self._link.lost(error)
