"""A TCP proxy in front of a broker's nodes, in a process of its own, where the way from clients to a node can be hurt.

It knows no protocol: what comes from a client goes to the node and back, byte for byte and in order, each direction of
each connection for itself. Its maker says by lines of JSON on its standard input what is wrong with the way to a node
(`Condition`) or that its connections are to be reset; each is answered by a line when it has been done. When that input
ends, it ends: whoever made it may have been killed.

- Cut: nothing is read, written or accepted. What clients send meanwhile waits in the sockets and passes afterwards.
  The listener's queue is filled, so that the kernel drops the SYN of who wants to connect, as a network does that loses
  packets: it is repeated after 1, 3 and 7 s. Unlike behind a real cut, a client's kernel is told that its bytes came.
- Late: each chunk of bytes waits before it is passed on, none overtakes another, and as many may be under way as come
  (up to `LATE_BYTES` in each direction of a connection).
- Rate: a token bucket for each direction of a node, which all connections share in turns. What is above it waits, first
  here (`HELD_BYTES`), then in the sockets' buffers, then in the client or the broker.

Waiting is `select` on the epoll's own descriptor, since it is exact to microseconds where `epoll` rounds up to
milliseconds (as `drivers/wire/framed.py` does).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

BUFFER_BYTES = 256 << 10
HELD_BYTES = 256 << 10
LATE_BYTES = 64 << 20
PACKET_BYTES = 1_500  # an Ethernet frame: no bucket of a real link holds less
BURST_S = 0.02  # … and so much of its rate otherwise
SHARES = 8  # a connection takes at most such a part of a bucket at a time
BACKLOG = 1_024
NS_PER_S = 1_000_000_000
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER for 0 s: closing says RST
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


@dataclass(frozen=True, slots=True)
class Condition:
    """What is wrong with the way to a node: by default nothing."""

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
class _End:
    """One socket of a connection: what comes out of it goes `out`, what goes into it comes by `into`."""

    socket: socket.socket
    number: int
    out: _Way = field(init=False)
    into: _Way = field(init=False)
    is_connecting: bool = False
    watched: int = 0


@dataclass(slots=True, eq=False)
class _Way:
    """One direction of a connection, and what is held of it: (when it is due in monotonic ns, bytes)."""

    gate: _Gate
    source: _End
    sink: _End
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
        return not self.has_ended and self.held_bytes < self.gate.room_bytes


@dataclass(slots=True, eq=False)
class _Gate:
    """The way to one node: where clients come in, where they are led to, and what is wrong with it."""

    node: int
    listener: socket.socket
    upstream: tuple[str, int]
    condition: Condition = field(default_factory=Condition)
    buckets: list[Bucket | None] = field(default_factory=lambda: [None, None])
    room_bytes: int = HELD_BYTES
    filler: socket.socket | None = None
    filler_address: tuple[str, int] | None = None
    """Of a filler that is to be accepted yet."""
    ends: dict[int, _End] = field(default_factory=dict)
    holding: tuple[deque[_Way], deque[_Way]] = field(default_factory=lambda: (deque(), deque()))
    """The ways that hold bytes, by direction."""


class Proxy:
    """Serves clients on listening sockets until its maker is gone.

    Args:
        gates: (node, the listening socket's descriptor, the port on 127.0.0.1 that it leads to) of each node.
        orders: the descriptor that orders come from.
        answers: the descriptor that answers go to.
    """

    def __init__(self, gates: list[tuple[int, int, int]], orders: int, answers: int) -> None:
        self._epoll = select.epoll()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._orders, self._answers, self._heard = orders, answers, b""
        self._is_over = False
        self._connections = self._bytes = 0
        self._gates: dict[int, _Gate] = {}
        self._by_listener: dict[int, _Gate] = {}
        self._ends: dict[int, _End] = {}
        os.set_blocking(orders, False)
        self._epoll.register(orders, _IN)
        for node, number, port in gates:
            listener = socket.socket(fileno=number)
            listener.setblocking(False)
            gate = _Gate(node, listener, ("127.0.0.1", port))
            self._gates[node] = self._by_listener[listener.fileno()] = gate
            self._epoll.register(listener.fileno(), _IN)

    def run(self) -> None:
        """Serve until orders end."""
        due_ns: int | None = None
        while not self._is_over:
            wait_s = None if due_ns is None else max(0, due_ns - time.monotonic_ns()) / NS_PER_S
            select.select([self._epoll.fileno()], [], [], wait_s)
            for number, events in self._epoll.poll(0):
                if number == self._orders:
                    self._hear()
                elif number in self._by_listener:
                    self._accept(self._by_listener[number])
                elif number in self._ends:  # none that went in this very turn
                    self._serve(self._ends[number], events)
            due_ns = self._release()

    # --- orders ---

    def _hear(self) -> None:
        data = os.read(self._orders, 1 << 16)
        self._is_over = not data
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            answer = json.dumps(self._obey(json.loads(line))).encode() + b"\n"
            with contextlib.suppress(BrokenPipeError):  # its end is the next thing that is heard
                os.write(self._answers, answer)

    def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        named = [*order.get("reset", ()), *([order["node"]] if "condition" in order else [])]
        hit = sum(len(self._gates[node].ends) // 2 for node in named)
        for node in order.get("reset", ()):
            while ends := self._gates[node].ends:
                self._drop(next(iter(ends.values())), is_reset=True)
        if "condition" in order:
            self._change(self._gates[order["node"]], Condition(**order["condition"]))
        return {"connections": self._connections, "bytes": self._bytes, "cpu_s": time.process_time(), "hit": hit}

    def _change(self, gate: _Gate, condition: Condition) -> None:
        before, gate.condition = gate.condition, condition
        rate, now_ns = condition.rate_bytes_per_s, time.monotonic_ns()
        if rate != before.rate_bytes_per_s:
            gate.buckets = [None if rate is None else Bucket(rate, now_ns) for _ in gate.buckets]
        gate.room_bytes = HELD_BYTES
        if condition.late_ns:
            under_way = LATE_BYTES if rate is None else rate * condition.late_ns // NS_PER_S
            gate.room_bytes = min(LATE_BYTES, HELD_BYTES + under_way)
        if condition.is_cut and not before.is_cut:
            self._shut(gate)
        elif before.is_cut and not condition.is_cut:
            self._open(gate)
        for end in gate.ends.values():
            self._watch(end)

    def _shut(self, gate: _Gate) -> None:
        """Let nobody connect: with its queue full, the kernel drops every SYN."""
        self._epoll.unregister(gate.listener.fileno())
        gate.listener.listen(0)
        gate.filler = socket.socket()
        gate.filler.setblocking(False)
        gate.filler.connect_ex(gate.listener.getsockname())

    def _open(self, gate: _Gate) -> None:
        assert gate.filler is not None, "it was shut"
        with contextlib.suppress(OSError):  # it may not have come in: others had filled the queue before
            gate.filler.getpeername()
            gate.filler_address = gate.filler.getsockname()
        gate.filler.close()
        gate.listener.listen(BACKLOG)
        self._epoll.register(gate.listener.fileno(), _IN)

    # --- connections ---

    def _accept(self, gate: _Gate) -> None:
        try:
            client, address = gate.listener.accept()
        except OSError:  # it has left already
            return
        if address == gate.filler_address:
            client.close()
            gate.filler_address = None
            return
        server = socket.socket()
        ends: list[_End] = []
        for each in (client, server):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ends.append(_End(each, each.fileno()))
        self._connections += 1
        is_refused = server.connect_ex(gate.upstream) not in {0, errno.EINPROGRESS}
        ends[1].is_connecting = True
        for direction, (source, sink) in enumerate([ends, ends[::-1]]):
            source.out = sink.into = _Way(gate, source, sink, direction)
        ends[1].into.is_blocked = True  # until it is connected
        for end in ends:
            self._ends[end.number] = gate.ends[end.number] = end
            self._watch(end)
        if is_refused:
            self._drop(ends[0], is_reset=True)

    def _watch(self, end: _End) -> None:
        """Be told of what is of use now, and of nothing else: an end that has broken would be told again and again."""
        wanted = 0
        if not end.out.gate.condition.is_cut:
            wanted = (_IN if end.out.reads else 0) | (_OUT if end.into.is_blocked else 0)
        if wanted == end.watched:
            return
        if not wanted:
            self._epoll.unregister(end.number)
        elif end.watched:
            self._epoll.modify(end.number, wanted)
        else:
            self._epoll.register(end.number, wanted)
        end.watched = wanted

    def _serve(self, end: _End, events: int) -> None:
        if end.out.gate.condition.is_cut:  # since this turn
            return
        if end.into.is_blocked and events & ~_IN:
            self._take_more(end)
        if end.number in self._ends and end.watched & _IN and events & ~_OUT:
            self._read(end.out)

    def _take_more(self, end: _End) -> None:
        """The sink takes bytes again, or for the first time; or it could not be connected."""
        if end.is_connecting and end.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._drop(end, is_reset=True)
            return
        end.is_connecting = end.into.is_blocked = False
        self._watch(end)
        self._end_if_over(end.into)

    def _read(self, way: _Way) -> None:
        """Take what has come, and pass it on where nothing keeps it."""
        try:
            count = way.source.socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:  # its socket is gone for both directions; what was read of it before still goes through
            count, way.is_dead = 0, True
            way.source.into.lose_sink()
        if not count:
            way.has_ended = True
        self._bytes += count
        condition, rest = way.gate.condition, self._buffer[:count]
        is_free = not way.held and not way.is_blocked and not condition.late_ns and condition.rate_bytes_per_s is None
        if count and is_free:
            rest = rest[way.write(rest) :]
        if len(rest) and not way.is_dead:
            if not way.held:
                way.gate.holding[way.direction].append(way)
            way.hold(bytes(rest), time.monotonic_ns() + condition.late_ns)
        if way.has_ended or way.is_blocked or not way.reads:
            self._settle(way)

    def _settle(self, way: _Way) -> None:
        """What became of a way after it was read from or written to."""
        self._watch(way.source)
        self._watch(way.sink)
        self._end_if_over(way)

    def _end_if_over(self, way: _Way) -> None:
        """Tell the sink that nothing more comes; when both have been told, the connection is over."""
        twin = way.sink.out
        if way.has_ended and not way.held and not way.is_done and not way.is_blocked:
            way.is_done = True
            if not way.is_dead:
                with contextlib.suppress(OSError):
                    way.sink.socket.shutdown(socket.SHUT_WR)
        if way.is_done and twin.is_done:
            self._drop(way.source, is_reset=way.is_dead or twin.is_dead)

    def _drop(self, end: _End, *, is_reset: bool) -> None:
        """Close both sockets of a connection, by RST or in order."""
        for each in (end, end.out.sink):
            if each.watched:
                self._epoll.unregister(each.number)
            del self._ends[each.number]
            del each.out.gate.ends[each.number]
            with contextlib.suppress(ValueError):
                each.out.gate.holding[each.out.direction].remove(each.out)
            each.out.held.clear()
            if is_reset:
                with contextlib.suppress(OSError):
                    each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            each.socket.close()

    # --- what is held ---

    def _release(self) -> int | None:
        """Pass on what is due; when there is more to do that no socket tells (monotonic ns), None for never."""
        due: list[int] = []
        for gate in self._gates.values():
            for ways, bucket in zip(gate.holding, gate.buckets, strict=True):
                if ways and not gate.condition.is_cut:
                    due += self._release_from(ways, bucket)
        return min(due, default=None)

    def _release_from(self, ways: deque[_Way], bucket: Bucket | None) -> list[int]:
        """The same of one direction: each way in its turn; who lacks tokens has the next one, so that all share."""
        due: list[int] = []
        idle = 0
        while idle < len(ways):
            way, now_ns = ways[0], time.monotonic_ns()
            if not way.held:  # its sink has gone
                ways.popleft()
                continue
            due_ns, data = way.held[0]
            if way.is_blocked or due_ns > now_ns:
                if not way.is_blocked:
                    due.append(due_ns)
                ways.rotate(-1)
                idle += 1
                continue
            size_bytes = len(data) if bucket is None else min(len(data), bucket.share_bytes)
            if bucket is not None and bucket.has_bytes(now_ns) < size_bytes:
                return [*due, bucket.full_at_ns(size_bytes)]
            count = way.push(size_bytes)
            if bucket is not None:
                bucket.take(count)
            idle = 0
            ways.popleft()
            if way.held:
                ways.append(way)
            self._settle(way)
        return due


def main() -> None:
    """Serve; the argument is the gates as JSON."""
    Proxy(json.loads(sys.argv[1]), sys.stdin.fileno(), sys.stdout.fileno()).run()


def order_of(node: int, condition: Condition) -> dict[str, Any]:
    """The order that something be wrong with the way to a node, or nothing any more."""
    return {"node": node, "condition": asdict(condition)}


if __name__ == "__main__":
    main()
