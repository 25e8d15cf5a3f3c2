"""Schedules that change while they run: producers come and go, and share one rate between those that are there.

A share is a place in the schedule of all producers: place k of n sends every n-th message from the k-th on. When the
number of producers changes, all of them change their shares at one moment, and every message of the common schedule
is still sent exactly once: what was intended before the moment by the old shares, what comes after by the new ones.
No arrears arise and no burst follows. Who hears of a change late, and has sent meanwhile, cannot take that back: such
messages are counted (`Changing.follow`), and the verdict tells of them. Independent (Poisson) producers get a new rate
of their own at that moment; since such arrivals have no memory, the sum stays a Poisson process of the scenario's rate.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from loadgen.pacer import Pacer, Poisson, make_pacer

if TYPE_CHECKING:
    from loadgen.driver import Int64
    from loadgen.scenario import Rate

NEVER_NS = 1 << 62
MS_NS = 1_000_000
AHEAD_MS = 500  # from the order to share otherwise until it holds: by then every producer has it
MAX_PRODUCERS = (1 << 16) - 1
MAX_AT_MS = (1 << 31) - 1


class Timed(Protocol):
    """An open loop's schedule: a `Pacer` whose messages all have intended times."""

    def due(self, elapsed_ns: int) -> int:
        """How many messages are due in total `elapsed_ns` after the start."""
        ...

    def intended(self, first: int, count: int) -> Int64:
        """When messages first … are intended: int64[count], ns from the start."""
        ...

    def next_due_ns(self, done: int) -> int:
        """When the next message is due after `done` messages, in ns from the start."""
        ...


class Silent:
    """The schedule of who has no share: nothing is ever due."""

    def due(self, elapsed_ns: int) -> int:
        """None."""
        del elapsed_ns
        return 0

    def intended(self, first: int, count: int) -> Int64:
        """There are no messages to ask for."""
        assert count == 0, f"message {first} of a schedule that has none"
        return np.empty(0, np.int64)

    def next_due_ns(self, done: int) -> int:
        """Never."""
        del done
        return NEVER_NS


class Delayed:
    """A schedule that begins later: `from_ns` after the start."""

    def __init__(self, pacer: Timed, from_ns: int) -> None:
        self._pacer, self._from_ns = pacer, from_ns

    def due(self, elapsed_ns: int) -> int:
        """How many messages are due in total `elapsed_ns` after the start."""
        return self._pacer.due(elapsed_ns - self._from_ns) if elapsed_ns >= self._from_ns else 0

    def intended(self, first: int, count: int) -> Int64:
        """When messages first … are intended (int64[count]), in ns from the start."""
        return self._pacer.intended(first, count) + self._from_ns

    def next_due_ns(self, done: int) -> int:
        """When message `done` is due, in ns from the start."""
        return self._pacer.next_due_ns(done) + self._from_ns


@dataclass(frozen=True, slots=True)
class _Part:
    """From `begin_ns` on `pacer` holds, of which message `first` is the first; `before` came in earlier parts."""

    begin_ns: int
    pacer: Timed
    first: int
    before: int


class Changing:
    """A schedule that becomes another one at given moments; of each only what is intended in its time counts."""

    def __init__(self) -> None:
        self._parts = [_Part(0, Silent(), 0, 0)]
        self._begins_ns = [0]
        self._befores = [0]

    def change(self, at_ns: int, pacer: Timed) -> None:
        """Let `pacer` hold from `at_ns` on, which must be after all that was sent and all earlier changes.

        Where it is not after the last change, that one is replaced.
        """
        last = self._parts[-1]
        if at_ns <= last.begin_ns:
            self._drop()
            at_ns, before = last.begin_ns, last.before
        else:
            before = last.before + last.pacer.due(at_ns - 1) - last.first
        self._parts.append(_Part(at_ns, pacer, pacer.due(at_ns - 1), before))
        self._begins_ns.append(at_ns)
        self._befores.append(before)

    def follow(self, at_ns: int, pacer: Timed, sent: int) -> Int64:
        """Let `pacer` hold from `at_ns` on, an order that may come late: `sent` messages have been sent.

        Where nothing was sent since `at_ns`, the order holds from then on, and what it missed is late but not left out.
        Else it holds from after the last that was sent, which stays sent; the answer tells what that has spoilt.

        Returns:
            The intended times (int64[n], ns from the start) of messages that were sent and were somebody else's by
            then, and of those that were this one's and are left out; empty where the order came in time.
        """
        before = self.due(at_ns - 1)
        if sent <= before:
            self.change(at_ns, pacer)
            return np.empty(0, np.int64)
        stayed = self.intended(before, sent - before)
        hold_ns = int(stayed[-1]) + 1
        first = pacer.due(at_ns - 1)
        ordered = pacer.intended(first, pacer.due(hold_ns - 1) - first)
        self.change(hold_ns, pacer)
        return np.setxor1d(stayed, ordered)

    def is_silent(self, elapsed_ns: int) -> bool:
        """Whether an order has come by which nothing is due any more from this moment on."""
        last = self._parts[-1]
        return len(self._parts) > 1 and isinstance(last.pacer, Silent) and last.begin_ns <= elapsed_ns

    def _drop(self) -> None:
        for each in (self._parts, self._begins_ns, self._befores):
            each.pop()

    def due(self, elapsed_ns: int) -> int:
        """How many messages are due in total `elapsed_ns` after the start."""
        if elapsed_ns < 0:
            return 0
        part = self._parts[bisect_right(self._begins_ns, elapsed_ns) - 1]
        return part.before + part.pacer.due(elapsed_ns) - part.first

    def intended(self, first: int, count: int) -> Int64:
        """When messages first … are intended (int64[count]), in ns from the start."""
        index = bisect_right(self._befores, first) - 1
        found = []
        while count:
            part = self._parts[index]
            index += 1
            held = count if index == len(self._parts) else min(count, self._befores[index] - first)
            found.append(part.pacer.intended(first - part.before + part.first, held))
            first, count = first + held, count - held
        return found[0] if len(found) == 1 else np.concatenate([np.empty(0, np.int64), *found])

    def next_due_ns(self, done: int) -> int:
        """When message `done` is due, in ns from the start."""
        part = self._parts[bisect_right(self._befores, done) - 1]
        return part.pacer.next_due_ns(done - part.before + part.first)


@dataclass(frozen=True, slots=True)
class Share:
    """Place `place` of `producers` from `at_ms` (1 …) after the start on; of no producers it is none at all."""

    at_ms: int
    place: int
    producers: int

    def word(self) -> int:
        """The share as one number (1 … 2^63 - 1), so that a single store into a board's cell replaces it whole."""
        assert 1 <= self.at_ms <= MAX_AT_MS
        assert 0 <= self.place <= MAX_PRODUCERS
        assert 0 <= self.producers <= MAX_PRODUCERS
        return self.at_ms << 32 | self.place << 16 | self.producers

    @classmethod
    def of(cls, word: int) -> Share:
        """The share that a cell holds."""
        return cls(word >> 32, word >> 16 & 0xFFFF, word & 0xFFFF)

    def pacer(self, rate: Rate, ramp_s: float, seed: list[int]) -> Timed:
        """The schedule of this share of an open loop's rate.

        Args:
            rate: what all producers together are to send.
            ramp_s: how long a ramp takes, from the start.
            seed: of independent arrivals; another for each producer and each of its shares.
        """
        if not self.producers:
            return Silent()
        if rate.kind == "poisson":
            assert isinstance(rate.msgs_per_s, (int, float)), "a sweep of rates is resolved by the plan"
            return Delayed(Poisson(rate.msgs_per_s / self.producers, seed), self.at_ms * MS_NS)
        pacer: Pacer = make_pacer(rate, self.place, self.producers, ramp_s, seed=0)
        return cast("Timed", pacer)
