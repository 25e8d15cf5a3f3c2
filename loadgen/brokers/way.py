"""What a TCP proxy (`loadgen.brokers.proxy`) knows of connections: sockets, ways, and what is wrong with their link.

A link is between two parties: nodes by their numbers, and 0 for whoever is none of them. All connections of a link have
its condition, and share its buckets.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

HELD_BYTES = 256 << 10
PACKET_BYTES = 1_500  # an Ethernet frame: no bucket of a real link holds less
BURST_S = 0.02  # … and so much of its rate otherwise
SHARES = 8  # a connection takes at most such a part of a bucket at a time
NS_PER_S = 1_000_000_000
NOBODY = 0
"""The party of a link that is no node: a client, or a tool of the broker's."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What is wrong with a link: by default nothing."""

    is_cut: bool = False
    """Nothing passes."""
    late_ns: int = 0
    """By how much each direction's bytes are late."""
    rate_bytes_per_s: int | None = None
    """How much passes in each direction, of all connections together; None is all."""


class Bucket:
    """How many bytes may pass: `rate_bytes_per_s`, and `burst_bytes` at once. Full when it is made."""

    def __init__(self, rate_bytes_per_s: int, now_ns: int) -> None:
        self.burst_bytes = max(PACKET_BYTES, round(rate_bytes_per_s * BURST_S))
        self.share_bytes = max(PACKET_BYTES, self.burst_bytes // SHARES)
        self._rate = rate_bytes_per_s
        self._level = self.burst_bytes * NS_PER_S  # bytes × 10⁹: whole numbers, so that nothing is ever rounded up
        self._at_ns = now_ns

    def has_bytes(self, now_ns: int) -> int:
        """What may pass now."""
        self._level = min(self.burst_bytes * NS_PER_S, self._level + self._rate * (now_ns - self._at_ns))
        self._at_ns = now_ns
        return self._level // NS_PER_S

    def take(self, size_bytes: int) -> None:
        """So much has passed."""
        self._level -= size_bytes * NS_PER_S

    def full_at_ns(self, size_bytes: int) -> int:
        """When so much may pass, as things are."""
        return self._at_ns + max(0, -(-(size_bytes * NS_PER_S - self._level) // self._rate))


@dataclass(slots=True, eq=False)
class End:
    """One socket of a connection: what comes out of it goes `out`, what goes into it comes by `into`."""

    socket: socket.socket
    number: int
    out: Way = field(init=False)
    into: Way = field(init=False)
    is_connecting: bool = False
    waits_for: tuple[str, int] | None = None
    """Where it is to be connected once its link is no longer cut."""
    watched: int = 0


@dataclass(slots=True, eq=False)
class Way:
    """One direction of a connection, and what is held of it: (when it is due in monotonic ns, bytes)."""

    link: Link
    source: End
    sink: End
    direction: int
    held: deque[tuple[int, memoryview]] = field(default_factory=deque)
    held_bytes: int = 0
    last_ns: int = 0
    is_blocked: bool = False
    """The sink takes nothing more for now."""
    has_ended: bool = False
    is_dead: bool = False
    """One of its sockets broke: its end is a reset."""
    is_done: bool = False
    """The sink knows that it has ended, or is gone."""

    def hold(self, data: bytes, due_ns: int) -> None:
        """Keep bytes until it is time; none overtakes another."""
        self.last_ns = max(self.last_ns, due_ns)
        self.held.append((self.last_ns, memoryview(data)))
        self.held_bytes += len(data)

    def push(self, most_bytes: int) -> int:
        """Write the first of what is held, at most so much of it; how much the sink took."""
        due_ns, data = self.held[0]
        count = self.write(data[:most_bytes])
        if count == len(data):
            self.held.popleft()
        elif count:
            self.held[0] = (due_ns, data[count:])
        self.held_bytes -= count
        return count

    def write(self, data: memoryview) -> int:
        """Write now what the sink takes: how much."""
        try:
            count = self.sink.socket.send(data)
        except BlockingIOError:
            count = 0
        except OSError:
            self.lose_sink()
            return 0
        self.is_blocked = count < len(data)
        return count

    def lose_sink(self) -> None:
        """Nobody is there to take anything any more."""
        self.has_ended = self.is_dead = self.is_done = True
        self.is_blocked = False
        self.held.clear()
        self.held_bytes = 0

    @property
    def reads(self) -> bool:
        """Whether more is taken from its source."""
        return not self.has_ended and self.held_bytes < self.link.room_bytes


@dataclass(slots=True, eq=False)
class Link:
    """All connections between two parties, whoever opened them, and what is wrong with the way between them."""

    condition: Condition = field(default_factory=Condition)
    buckets: list[Bucket | None] = field(default_factory=lambda: [None, None])
    room_bytes: int = HELD_BYTES
    ends: dict[int, End] = field(default_factory=dict)
    holding: tuple[deque[Way], deque[Way]] = field(default_factory=lambda: (deque(), deque()))
    """The ways that hold bytes, by direction: first from the party of the lower number."""


@dataclass(slots=True, eq=False)
class Gate:
    """A way in to one node: where it is connected to, and where that leads."""

    node: int
    listener: socket.socket
    upstream: tuple[str, int]
    filler: socket.socket | None = None
    filler_address: tuple[str, int] | None = None
    """Of a filler that is to be accepted yet."""
