"""A TCP proxy in front of a broker that delays deliveries, and keeps its own log of every message that went past.

It is a process of its own on plain sockets and knows neither AMQP nor Kafka: a message is known by the stamp that it
carries (its intended time, between the proxy's start and now, followed by its identity). What the broker sends is
passed on chunk by chunk as it was read: a chunk in which a message's stamp ends waits for a delay that is drawn for it,
and all others leave at once, but never before what came earlier on the same connection. The first that a consumer
sends after a message was released (AMQP's ack, Kafka's next fetch) is its answer, and what clients send is not delayed.
A message that has caught up with another one is let go three milliseconds after it (`APART_NS`), when that one's answer
has been read: of two answers in one reading the kernel tells when the second came.

When bytes came is told by the kernel, which notes it in the sender's own system call (SO_TIMESTAMPNS): how long the
proxy takes to wake up, on a busy machine milliseconds, is then part of the delay that it logs, and of nothing else. So
it need not hurry to read an answer, and looks away from a consumer for two milliseconds after each release: woken by
the answer it would take the CPU from a consumer that has yet to read its clock.

Kafka tells its clients where the leader listens: that address is replaced by the proxy's own, byte for byte.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from loadgen.driver import Bool, Int64

CHUNK_BYTES = 1 << 16
STAMP_HEAD_BYTES = 16  # intended time and identity
PRODUCERS_MAX = 64
SEQUENCE_BITS = 48
SEQUENCE_MASK = (1 << SEQUENCE_BITS) - 1
IDLE_S = 0.5
LOOK_AWAY_NS = 2_000_000
APART_NS = LOOK_AWAY_NS + 1_000_000
NS_PER_S = 1_000_000_000
_SO_TIMESTAMPNS = 35  # linux/asm-generic/socket.h; Python has no name for it
_TIMESPEC = struct.Struct("@qq")
_RELEASED, _ANSWERED = 3, 4  # of a row of the log
_CLOCKS_NS, _CLOCKS_TRIED = 5_000, 10


@dataclass(frozen=True, slots=True)
class Delay:
    """What every delivering chunk waits for: `hold_ms`, and `mean_ms` more, always or on average.

    Of so many messages (`every`) one is delayed by that more, by sequence number; a chunk is if one of its messages is.
    """

    mean_ms: float
    distribution: Literal["fixed", "exponential"] = "fixed"
    seed: int = 1
    hold_ms: float = 0.0
    every: int = 1

    def delays(self, identity: Int64 | int) -> Bool | bool:
        """Whether a message is one of those that are delayed; of identities (int64[n]) bool[n]."""
        return (identity & SEQUENCE_MASK) % self.every == 0


@dataclass(frozen=True, slots=True)
class Passage:
    """The proxy's log of n messages; each field is int64[n], times in monotonic ns.

    When a message's chunk came, when it should have left and when it did, and when its consumer answered (0: never).
    """

    identity: Int64
    arrived_ns: Int64
    due_ns: Int64
    released_ns: Int64
    answered_ns: Int64


@dataclass(slots=True)
class _Chunk:
    data: bytes
    identities: list[int]
    arrived_ns: int
    release_ns: int


@dataclass(slots=True, eq=False)
class _Way:
    """One direction of a connection: read from `source`, pass on to `sink`."""

    source: socket.socket
    sink: socket.socket
    delivers: bool
    twin: _Way | None = None
    not_before_ns: int = 0
    apart_ns: int = 0  # when the next message may be let go
    chunks: deque[_Chunk] = field(default_factory=deque)
    unanswered: list[list[int]] = field(default_factory=list)  # rows of the log, of what was released to the source
    last_ns: int = 0
    tail: bytes = b""
    ended: bool = False


class Proxy:
    """The proxy itself: connections, chunks that wait, and the log, a row as `Passage` for each message."""

    def __init__(self, upstream: tuple[str, int], delay: Delay) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.log: list[list[int]] = []
        self._upstream = upstream
        self._delay = delay
        self._rng = np.random.default_rng(delay.seed)
        self._started_ns = time.monotonic_ns()
        self._ways: list[_Way] = []
        host = upstream[0].encode()
        address = len(host).to_bytes(2, "big") + host
        self._told = address + upstream[1].to_bytes(4, "big")
        self._telling = address + int(self.listener.getsockname()[1]).to_bytes(4, "big")

    def run(self, stop: Connection) -> None:
        """Serve until something is heard on `stop`."""
        while not stop.poll():
            self._release()
            now_ns = time.monotonic_ns()
            sources = [way.source for way in self._ways if not way.ended and way.not_before_ns <= now_ns]
            moments = [way.chunks[0].release_ns for way in self._ways if way.chunks]
            moments += [way.not_before_ns for way in self._ways if way.not_before_ns > now_ns]
            wait_s = min([IDLE_S, *(max(0, each - now_ns) / NS_PER_S for each in moments)])
            waited: list[Any] = [self.listener, stop, *sources]
            readable, _, _ = select.select(waited, [], [], wait_s)
            for way in [way for way in self._ways if way.source in readable]:
                self._read(way)
            if self.listener in readable:
                self._accept()

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        server = socket.create_connection(self._upstream)
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        asking, delivering = _Way(client, server, delivers=False), _Way(server, client, delivers=True)
        delivering.twin = asking
        self._ways += [asking, delivering]

    def _read(self, way: _Way) -> None:
        try:
            data, came_ns = _receive(way.source)
        except OSError:
            data, came_ns = b"", 0
        if not data:
            way.ended = True
        elif way.delivers:
            self._hold(way, data.replace(self._told, self._telling), came_ns)
        else:
            self._answered(way, came_ns)
            way.chunks.append(_Chunk(data, [], came_ns, came_ns))

    @staticmethod
    def _answered(way: _Way, came_ns: int) -> None:
        """A client has sent something: that answers the messages that had been released to it by then."""
        for row in way.unanswered:
            if row[_RELEASED] <= came_ns:
                row[_ANSWERED] = came_ns
        way.unanswered[:] = [row for row in way.unanswered if not row[_ANSWERED]]

    def _hold(self, way: _Way, data: bytes, came_ns: int) -> None:
        """Keep what the broker sent until its time has come."""
        seen = way.tail + data
        way.tail = seen[-(STAMP_HEAD_BYTES - 1) :]
        identities = identities_in(seen, self._started_ns, came_ns)
        way.last_ns = max(way.last_ns, came_ns + self._drawn_ns(identities))
        if identities:
            way.last_ns = max(way.last_ns, way.apart_ns)
            way.apart_ns = way.last_ns + APART_NS
        way.chunks.append(_Chunk(data, identities, came_ns, way.last_ns))

    def _drawn_ns(self, identities: list[int]) -> int:
        """How long a chunk with these messages waits; one without any does not."""
        if not identities:
            return 0
        wait_ns = self._delay.hold_ms * 1e6
        if any(self._delay.delays(each) for each in identities):
            mean_ns = self._delay.mean_ms * 1e6
            wait_ns += mean_ns if self._delay.distribution == "fixed" else self._rng.exponential(mean_ns)
        return round(wait_ns)

    def _release(self) -> None:
        """Pass on every chunk whose time has come, and end connections of which all has been passed on."""
        for way in self._ways:
            while way.chunks and way.chunks[0].release_ns <= time.monotonic_ns():
                chunk = way.chunks.popleft()
                released_ns = time.monotonic_ns()
                with contextlib.suppress(OSError):  # that side has left: what it was sent is of no use to anybody
                    way.sink.sendall(chunk.data)
                rows = [[each, chunk.arrived_ns, chunk.release_ns, released_ns, 0] for each in chunk.identities]
                self.log += rows
                if rows and way.twin is not None:
                    way.twin.unanswered += rows
                    way.twin.not_before_ns = released_ns + LOOK_AWAY_NS
            if way.ended and not way.chunks:
                with contextlib.suppress(OSError):
                    way.sink.shutdown(socket.SHUT_WR)
        self._ways = [way for way in self._ways if not way.ended or way.chunks]


def _receive(source: socket.socket) -> tuple[bytes, int]:
    """What has come, and when the last of it did by the kernel's clock (monotonic ns)."""
    data, ancillary, _, _ = source.recvmsg(CHUNK_BYTES, socket.CMSG_SPACE(_TIMESPEC.size))
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, ns = _TIMESPEC.unpack(value[: _TIMESPEC.size])
            return data, seconds * NS_PER_S + ns - _real_less_monotonic_ns()
    return data, time.monotonic_ns()  # a kernel that does not tell


def _real_less_monotonic_ns() -> int:
    """How far the two clocks are apart, read so close together that nothing came between."""
    best_ns, apart_ns = 1 << 62, 0
    for _ in range(_CLOCKS_TRIED):
        before_ns, real_ns, after_ns = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        if after_ns - before_ns < best_ns:
            best_ns, apart_ns = after_ns - before_ns, real_ns - before_ns
        if best_ns < _CLOCKS_NS:
            break
    return apart_ns


def identities_in(data: bytes, from_ns: int, until_ns: int) -> list[int]:
    """The identities of the messages whose stamps' heads lie in these bytes, in their order.

    A stamp is an intended time in from_ns … until_ns and then the identity of one of the first producers. In random
    bytes, some 10⁻¹³ of all places look like that.
    """
    places = len(data) - STAMP_HEAD_BYTES + 1
    if places <= 0:
        return []
    intended = np.ndarray((places,), "<i8", data, 0, (1,))
    found = np.flatnonzero((intended >= from_ns) & (intended <= until_ns))
    if not len(found):
        return []
    identities = np.ndarray((places,), "<u8", data, STAMP_HEAD_BYTES // 2, (1,))[found].tolist()
    return [each for each in identities if each >> SEQUENCE_BITS < PRODUCERS_MAX and not each >> 40 & 0xFF]


def _serve(upstream: tuple[str, int], delay: Delay, pipe: Connection) -> None:
    """The proxy's process: tell the port, serve until asked for the log."""
    proxy = Proxy(upstream, delay)
    pipe.send(proxy.listener.getsockname()[1])
    gc.disable()  # a collection would be a delay that nobody ordered
    proxy.run(pipe)
    pipe.send(np.array(proxy.log, np.int64).reshape(-1, 5))


class Running:
    """A proxy that runs: where it listens, and its log when it has ended."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.port: int = pipe.recv()

    def end(self) -> Passage:
        """End it and have its log."""
        self._pipe.send("end")
        return Passage(*self._pipe.recv().T)


@contextlib.contextmanager
def proxied(upstream: tuple[str, int], delay: Delay) -> Iterator[Running]:
    """A proxy in front of `upstream` for as long as the block lasts."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(upstream, delay, there), name="proxy", daemon=True)
    process.start()
    there.close()
    try:
        yield Running(here)
    finally:
        process.terminate()
        process.join()
        here.close()
