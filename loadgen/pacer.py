"""Arrival schedules without clock or sleep: how many messages are due by now, and when each one was intended.

A schedule belongs to one of n producers and is the same function whatever the pattern of calls. Times are
ns from the common start. The law of every open loop: `due(t)` is the number of messages whose intended time
is ≤ t.

The open loops with regular arrivals (`Fixed`, `Ramp`, `Burst`) have one schedule for all producers, of which
producer k takes every n-th message from the k-th on: producers interleave evenly. `Poisson` producers are
independent, each with its share of the rate, since a sum of independent Poisson processes is one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from loadgen.driver import Int64
    from loadgen.scenario import Rate

NS_PER_S = 1_000_000_000
ALWAYS_DUE = 1 << 62  # more messages than any run sends
GROUP_NS = 250_000
RUSH_MSGS, RUSH_NS = 64, 8_000_000  # 8,000 messages a second of one producer, over the time of 32 groups
_MAX_DENOMINATOR = 1_000_000  # rates are taken as fractions; a millionth of a message a second is fine enough
_CHUNK_GAPS = 1 << 13  # drawn in some 60 µs, so that a draw is no stall in the schedule it makes
_KEPT_CHUNKS = 4


class Pacer(Protocol):
    """One producer's schedule."""

    def due(self, elapsed_ns: int) -> int:
        """How many messages are due in total `elapsed_ns` after the start."""
        ...

    def intended(self, first: int, count: int) -> Int64 | None:
        """When messages first … are intended: int64[count], ns from the start; None where no such time is."""
        ...

    def next_due_ns(self, done: int) -> int:
        """When the next message is due after `done` messages, in ns from the start."""
        ...


class Fixed:
    """Messages at even distances: message j of all producers at floor(j · 10⁹ / rate) ns, in whole numbers.

    Args:
        rate_msgs_per_s: the rate of all producers together.
        share: which producer this is, 0 … producers - 1.
        producers: how many there are.
    """

    def __init__(self, rate_msgs_per_s: float, share: int = 0, producers: int = 1) -> None:
        _demand_share(share, producers)
        rate = Fraction(str(rate_msgs_per_s)).limit_denominator(_MAX_DENOMINATOR)
        if rate <= 0:
            raise ValueError(f"rate {rate_msgs_per_s}: expected at least 0.000001 messages a second")
        gap = NS_PER_S / rate
        self._gap_num, self._gap_den = gap.numerator, gap.denominator
        self._share, self._producers = share, producers
        step = gap * producers
        self._whole_ns, self._rest = divmod(step.numerator, step.denominator)
        self._step_den = step.denominator

    def due(self, elapsed_ns: int) -> int:
        """How many messages are due in total `elapsed_ns` after the start."""
        # floor(x) ≤ t is x < t + 1: the last message j of all producers with j · gap < t + 1.
        last = -(-(elapsed_ns + 1) * self._gap_den // self._gap_num) - 1
        return max(0, (last - self._share) // self._producers + 1)

    def intended(self, first: int, count: int) -> Int64:
        """When messages first … are intended (int64[count]), in ns from the start."""
        # Message i is at floor((a + i · (whole · den + rest)) / den): only i · rest could outgrow 64 bits.
        chunk = max(1, (1 << 62) // self._step_den)
        if count > chunk:
            parts = [self.intended(at, min(chunk, first + count - at)) for at in range(first, first + count, chunk)]
            return np.concatenate(parts)
        base_ns, carried = divmod((first * self._producers + self._share) * self._gap_num, self._gap_den)
        offsets = np.arange(count, dtype=np.int64)
        times = offsets * self._whole_ns
        if self._step_den > 1:
            # The base carries parts of the gap's denominator, of which the step's is a divisor.
            offsets *= self._rest
            offsets += carried // (self._gap_den // self._step_den)
            offsets //= self._step_den
            times += offsets
        times += base_ns
        return times

    def next_due_ns(self, done: int) -> int:
        """When message `done` is due, in ns from the start."""
        return (done * self._producers + self._share) * self._gap_num // self._gap_den


class Poisson:
    """Independent arrivals: exponential gaps, drawn in chunks of which each has its own seed.

    A chunk can be drawn again at any time, so that memory stays small and no pattern of calls changes the
    schedule; only where each chunk begins is kept (a whole number a chunk).

    Args:
        rate_msgs_per_s: this producer's own rate.
        seed: any whole numbers; another producer needs others.
    """

    def __init__(self, rate_msgs_per_s: float, seed: int | list[int]) -> None:
        if not rate_msgs_per_s > 0:
            raise ValueError(f"rate {rate_msgs_per_s}: expected more than 0 messages a second")
        self._mean_gap_ns = NS_PER_S / rate_msgs_per_s
        self._seed = [seed] if isinstance(seed, int) else list(seed)
        self._begins_ns = [0]  # where chunk c begins: when the last message of chunk c - 1 is intended
        self._kept: OrderedDict[int, Int64] = OrderedDict()

    def due(self, elapsed_ns: int) -> int:
        """How many messages are due in total `elapsed_ns` after the start."""
        while self._begins_ns[-1] <= elapsed_ns:
            self._chunk(len(self._begins_ns) - 1)
        index = bisect_right(self._begins_ns, elapsed_ns) - 1
        if index < 0:
            return 0
        return index * _CHUNK_GAPS + int(np.searchsorted(self._chunk(index), elapsed_ns, side="right"))

    def intended(self, first: int, count: int) -> Int64:
        """When messages first … are intended (int64[count]), in ns from the start."""
        parts = []
        until = first + count
        while first < until:
            index, begin = divmod(first, _CHUNK_GAPS)
            end = min(_CHUNK_GAPS, begin + until - first)
            parts.append(self._chunk(index)[begin:end])
            first += end - begin
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def next_due_ns(self, done: int) -> int:
        """When message `done` is due, in ns from the start."""
        index, within = divmod(done, _CHUNK_GAPS)
        return int(self._chunk(index)[within])

    def _chunk(self, index: int) -> Int64:
        """The intended times of messages index · _CHUNK_GAPS …: int64[_CHUNK_GAPS]."""
        kept = self._kept.get(index)
        if kept is not None:
            self._kept.move_to_end(index)
            return kept
        while len(self._begins_ns) <= index:
            self._chunk(len(self._begins_ns) - 1)
        gaps = np.random.default_rng([*self._seed, index]).standard_exponential(_CHUNK_GAPS)
        np.cumsum(gaps, out=gaps)
        gaps *= self._mean_gap_ns
        times = np.rint(gaps).astype(np.int64) + self._begins_ns[index]
        if index + 1 == len(self._begins_ns):
            self._begins_ns.append(int(times[-1]))
        self._kept[index] = times
        if len(self._kept) > _KEPT_CHUNKS:
            self._kept.popitem(last=False)
        return times


class Ramp:
    """A rate that changes linearly from one value to another, and stays there afterwards.

    With r(t) = r₀ + a·t, N(t) = r₀·t + a·t²/2 messages were due by t; message j is due at the inverse,
    t = 2j / (r₀ + √(r₀² + 2aj)): the root of the quadratic in the form that loses no digits (Press et al.,
    Numerical Recipes, 5.6).

    Args:
        from_msgs_per_s: the rate of all producers together at the start.
        to_msgs_per_s: the same at the end.
        duration_s: how long the change takes.
        share: which producer this is, 0 … producers - 1.
        producers: how many there are.
    """

    def __init__(
        self,
        from_msgs_per_s: float,
        to_msgs_per_s: float,
        duration_s: float,
        share: int = 0,
        producers: int = 1,
    ) -> None:
        _demand_share(share, producers)
        if not (from_msgs_per_s > 0 and to_msgs_per_s > 0 and duration_s > 0):
            raise ValueError(
                f"ramp {from_msgs_per_s} … {to_msgs_per_s} in {duration_s} s: expected more than 0 of each"
            )
        self._from, self._to, self._duration_s = from_msgs_per_s, to_msgs_per_s, duration_s
        self._slope = (to_msgs_per_s - from_msgs_per_s) / duration_s
        self._ramp_msgs = (from_msgs_per_s + to_msgs_per_s) / 2 * duration_s
        self._share, self._producers = share, producers

    def due(self, elapsed_ns: int) -> int:
        """How many messages are due in total `elapsed_ns` after the start."""
        if elapsed_ns < 0:
            return 0
        elapsed_s = elapsed_ns / NS_PER_S
        within_s = min(elapsed_s, self._duration_s)
        total = (self._from + self._slope * within_s / 2) * within_s + (elapsed_s - within_s) * self._to
        count = max(0, math.ceil((total - self._share) / self._producers))
        # The estimate is good to a rounding error; the intended times decide.
        while self.next_due_ns(count) <= elapsed_ns:
            count += 1
        while count and self.next_due_ns(count - 1) > elapsed_ns:
            count -= 1
        return count

    def intended(self, first: int, count: int) -> Int64:
        """When messages first … are intended (int64[count]), in ns from the start."""
        index = np.arange(first, first + count, dtype=np.float64) * self._producers + self._share
        ramping = np.minimum(index, self._ramp_msgs)
        root = np.sqrt(np.maximum(self._from**2 + 2 * self._slope * ramping, 0.0))
        times_s = 2 * ramping / (self._from + root) + (index - ramping) / self._to
        return np.floor(times_s * NS_PER_S).astype(np.int64)

    def next_due_ns(self, done: int) -> int:
        """When message `done` is due, in ns from the start."""
        index = float(done * self._producers + self._share)
        ramping = min(index, self._ramp_msgs)
        root = math.sqrt(max(self._from**2 + 2 * self._slope * ramping, 0.0))
        # The same operations in the same order as for arrays: IEEE 754 rounds them alike.
        return math.floor((2 * ramping / (self._from + root) + (index - ramping) / self._to) * NS_PER_S)


class Burst:
    """`Fixed` on a clock of its own, which runs `times` as fast for the first `burst_s` of each `every_s`.

    In whole numbers: after t ns that clock shows a whole number of ns, and a message that it shows due at w ns is
    intended in the ns in which w passes.

    Args:
        inner: the schedule by that clock.
        times: how many times its rate a burst has, 2 …
        burst_s: how long a burst lasts.
        every_s: from the begin of one burst to that of the next.
    """

    def __init__(self, inner: Fixed, times: int, burst_s: float, every_s: float) -> None:
        if not (times >= 2 and 0 < burst_s < every_s):
            raise ValueError(f"{times} times for {burst_s} s every {every_s} s: expected times ≥ 2, burst_s < every_s")
        self._inner, self._times = inner, times
        self._burst_ns, self._every_ns = round(burst_s * NS_PER_S), round(every_s * NS_PER_S)
        self._gained_ns = (times - 1) * self._burst_ns  # by the clock in each burst
        self._shown_ns = self._every_ns + self._gained_ns  # by the clock in each `every_s`

    def due(self, elapsed_ns: int) -> int:
        """How many messages are due in total `elapsed_ns` after the start."""
        # What is intended at this ns or before comes before the clock's reading at the next one.
        periods, within_ns = divmod(elapsed_ns + 1, self._every_ns)
        shown_ns = periods * self._shown_ns + min(within_ns * self._times, within_ns + self._gained_ns)
        return self._inner.due(shown_ns - 1)

    def intended(self, first: int, count: int) -> Int64:
        """When messages first … are intended (int64[count]), in ns from the start."""
        periods, shown_ns = np.divmod(self._inner.intended(first, count), self._shown_ns)
        times: Int64 = periods * self._every_ns + np.maximum(shown_ns // self._times, shown_ns - self._gained_ns)
        return times

    def next_due_ns(self, done: int) -> int:
        """When message `done` is due, in ns from the start."""
        periods, shown_ns = divmod(self._inner.next_due_ns(done), self._shown_ns)
        return periods * self._every_ns + max(shown_ns // self._times, shown_ns - self._gained_ns)


class Saturate:
    """A closed loop: there is always a message due, and none has an intended time."""

    def due(self, elapsed_ns: int) -> int:
        """More messages than any run sends, from the start on."""
        return ALWAYS_DUE if elapsed_ns >= 0 else 0

    def intended(self, first: int, count: int) -> None:
        """None: what leaves as soon as there is room is not intended for any time."""
        del first, count

    def next_due_ns(self, done: int) -> int:
        """The start: it is due already."""
        del done
        return 0


class Grouping:
    """Which of a schedule's messages leave together, where more come than a producer's loop has turns to spare for.

    A turn of the loop, with its sleep and with what the broker does for each packet, costs the same CPU for one message
    as for ten, and on a machine that brokers and clients share, turns without end make all that they measure late. So
    where `RUSH_MSGS` or more were due within the last `RUSH_NS`, what is due until an edge of a grid of `GROUP_NS`
    leaves at that edge, and not before: late by as much at most, which is told as schedule lag. Producers have grids of
    their own, evenly shifted. Below that rate nothing is held. What it gains is in docs/performance.md ("What the loops
    ask of the machine").
    """

    def __init__(self, pacer: Pacer, share: int = 0, producers: int = 1) -> None:
        self._pacer = pacer
        self._phase_ns = GROUP_NS * share // producers
        self._edge_ns: int | None = None
        self.next_edge_ns: int | None = None
        """When the next messages leave, in ns from the start; None where each leaves as soon as it is due."""

    def until(self, elapsed_ns: int) -> int:
        """The moment (ns from the start) until which what is due leaves now, `elapsed_ns` after the start."""
        edge_ns = elapsed_ns - (elapsed_ns - self._phase_ns) % GROUP_NS
        if edge_ns != self._edge_ns:
            self._edge_ns = edge_ns
            is_rush = self._pacer.due(edge_ns) - self._pacer.due(edge_ns - RUSH_NS) >= RUSH_MSGS
            self.next_edge_ns = edge_ns + GROUP_NS if is_rush else None
        return elapsed_ns if self.next_edge_ns is None else edge_ns


def make_pacer(rate: Rate, producer: int, producers: int, duration_s: float, seed: int) -> Pacer:
    """The schedule of one of `producers` producers, for warm-up and measurement together (`duration_s`)."""
    if rate.kind == "saturate":
        return Saturate()
    msgs_per_s = rate.msgs_per_s
    assert isinstance(msgs_per_s, (int, float)), "a sweep of rates is resolved by the plan"
    if rate.kind == "fixed":
        return Fixed(msgs_per_s, producer, producers)
    if rate.kind == "poisson":
        return Poisson(msgs_per_s / producers, [seed, producer])
    if rate.kind == "burst":
        assert isinstance(rate.burst_times, int), "a sweep of bursts is resolved by the plan"
        assert rate.burst_s is not None
        assert rate.every_s is not None
        return Burst(Fixed(msgs_per_s, producer, producers), rate.burst_times, rate.burst_s, rate.every_s)
    assert rate.to_msgs_per_s is not None, "the scenario checks that a ramp has an end"
    return Ramp(msgs_per_s, rate.to_msgs_per_s, duration_s, producer, producers)


def _demand_share(share: int, producers: int) -> None:
    if not 0 <= share < producers:
        raise ValueError(f"producer {share} of {producers}: expected 0 … producers - 1")
