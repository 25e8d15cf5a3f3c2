"""A TCP proxy in front of a broker's nodes, in a process of its own, where the way between two parties can be hurt.

It knows no protocol: what comes from one side goes to the other and back, byte for byte and in order, each direction of
each connection for itself. Its maker says by lines of JSON what is wrong with a link (`Condition`: the clients' with a
node, or that of two nodes) or that its connections are to be reset; each is answered by a line when it has been done.
When those orders end, it ends: whoever made it may have been killed.

- Cut: nothing is read, written or accepted. What is sent meanwhile waits in the sockets and passes afterwards. The
  listener's queue is filled, so that the kernel drops the SYN of who wants to connect, as a network does that loses
  packets: it is repeated after 1, 3 and 7 s. Unlike behind a real cut, the sender's kernel is told that its bytes came.
  Where several parties come by one listener it stays open, and who is cut off is let in no further than here.
- Late: each chunk of bytes waits before it is passed on, none overtakes another, and as many may be under way as come
  (up to `LATE_BYTES` in each direction of a connection).
- Rate: a token bucket for each direction of a link, which all its connections share in turns. What is above it waits,
  first here (`HELD_BYTES`), then in the sockets' buffers, then in who sends.

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
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from loadgen.brokers.ports import HOST
from loadgen.brokers.way import HELD_BYTES, NOBODY, NS_PER_S, Bucket, Condition, End, Gate, Link, Way

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable

BUFFER_BYTES = 256 << 10
LATE_BYTES = 64 << 20
BACKLOG = 1_024
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER for 0 s: closing says RST
_HAS_LEFT = frozenset({7, 8})  # TCP_CLOSE, TCP_CLOSE_WAIT as TCP_INFO begins: the peer has sent all that it will
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT

Parties = tuple[int, int]
"""Whom a link is between, in order: two nodes, or `NOBODY` and one."""


class Proxy:
    """Serves whoever connects to its gates, until `run` is told that it is over.

    Args:
        gates: each way in to a node.
        opener: the party that opened a connection, by the address of its other end and the gate's port; None where all
            are clients, whom a cut keeps out at the gate itself.
    """

    def __init__(self, gates: Iterable[Gate], opener: Callable[[tuple[str, int], int], int] | None = None) -> None:
        self._epoll = select.epoll()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._gates, self._opener = list(gates), opener
        self._heard = b""
        self._is_over = False
        self._connections = self._bytes = self._strangers = 0
        self._links: dict[Parties, Link] = {}
        self._ends: dict[int, End] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        for gate in self._gates:
            gate.listener.setblocking(False)
            self._attend(gate.listener.fileno(), partial(self._accept, gate))

    def obey(self, orders: int, answers: int) -> None:
        """Hear orders from one descriptor from now on, and answer them by another."""
        os.set_blocking(orders, False)
        self._heard = b""
        self._attend(orders, partial(self._hear, orders, answers))

    def run(self) -> None:
        """Serve until orders end."""
        due_ns: int | None = None
        while not self._is_over:
            wait_s = None if due_ns is None else max(0, due_ns - time.monotonic_ns()) / NS_PER_S
            select.select([self._epoll.fileno()], [], [], wait_s)
            for number, events in self._epoll.poll(0):
                if number in self._watched:
                    self._watched[number]()
                elif number in self._ends:  # none that went in this very turn
                    self._serve(self._ends[number], events)
            due_ns = self._release()

    def _attend(self, number: int, act: Callable[[], None]) -> None:
        self._watched[number] = act
        self._epoll.register(number, _IN)

    def _ignore(self, number: int) -> None:
        del self._watched[number]
        self._epoll.unregister(number)

    # --- orders ---

    def _hear(self, orders: int, answers: int) -> None:
        try:
            data = os.read(orders, 1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            self._parted(orders)
            return
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            answer = json.dumps(self._obey(json.loads(line))).encode() + b"\n"
            with contextlib.suppress(ConnectionError):  # its end is the next thing that is heard
                os.write(answers, answer)

    def _parted(self, orders: int) -> None:
        """Nobody gives orders any more."""
        self._ignore(orders)
        self._is_over = True

    def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry an order out; how many connections of each link it hit, and what has passed so far."""
        resets = [self._link(*parties) for parties in order.get("reset", ())]
        hits = [len(link.ends) // 2 for link in resets]
        for link in resets:
            while link.ends:
                self._drop(next(iter(link.ends.values())), is_reset=True)
        if "condition" in order:
            low, high = order["link"]
            hits.append(len(self._link(low, high).ends) // 2)
            self._change((low, high), Condition(**order["condition"]))
        passed = {"connections": self._connections, "strangers": self._strangers, "bytes": self._bytes}
        return {**passed, "cpu_s": time.process_time(), "hits": hits}

    def _link(self, party: int, other: int) -> Link:
        return self._links.setdefault((min(party, other), max(party, other)), Link())

    def _change(self, parties: Parties, condition: Condition) -> None:
        link = self._link(*parties)
        before, link.condition = link.condition, condition
        rate, now_ns = condition.rate_bytes_per_s, time.monotonic_ns()
        if rate != before.rate_bytes_per_s:
            link.buckets = [None if rate is None else Bucket(rate, now_ns) for _ in link.buckets]
        link.room_bytes = HELD_BYTES
        if condition.late_ns:
            under_way = LATE_BYTES if rate is None else rate * condition.late_ns // NS_PER_S
            link.room_bytes = min(LATE_BYTES, HELD_BYTES + under_way)
        if condition.is_cut != before.is_cut:
            for gate in self._gates:
                if self._opener is None and gate.node == parties[1]:
                    (self._shut if condition.is_cut else self._open)(gate)
        if not condition.is_cut:
            for end in self._still_waiting(link):
                self._connect(end)
        for end in link.ends.values():
            self._watch(end)

    def _shut(self, gate: Gate) -> None:
        """Let nobody connect: with its queue full, the kernel drops every SYN."""
        self._ignore(gate.listener.fileno())
        gate.listener.listen(0)
        gate.filler = socket.socket()
        gate.filler.setblocking(False)
        gate.filler.connect_ex(gate.listener.getsockname())

    def _open(self, gate: Gate) -> None:
        assert gate.filler is not None, "it was shut"
        with contextlib.suppress(OSError):  # it may not have come in: others had filled the queue before
            gate.filler.getpeername()
            gate.filler_address = gate.filler.getsockname()
        gate.filler.close()
        gate.listener.listen(BACKLOG)
        self._attend(gate.listener.fileno(), partial(self._accept, gate))

    # --- connections ---

    def _accept(self, gate: Gate) -> None:
        try:
            client, address = gate.listener.accept()
        except OSError:  # it has left already
            return
        if address == gate.filler_address:
            client.close()
            gate.filler_address = None
            return
        ends: list[End] = []
        for each in (client, socket.socket()):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ends.append(End(each, each.fileno()))
        self._connections += 1
        opener = NOBODY if self._opener is None else self._opener(address, gate.listener.getsockname()[1])
        self._strangers += opener == NOBODY
        link = self._link(opener, gate.node)
        ends[1].is_connecting, ends[1].waits_for = True, gate.upstream
        for source, sink in (ends, ends[::-1]):
            source.out = sink.into = Way(link, source, sink, int((source is ends[0]) is (opener > gate.node)))
        ends[1].into.is_blocked = True  # until it is connected
        for end in ends:
            self._ends[end.number] = link.ends[end.number] = end
        if not link.condition.is_cut:
            self._connect(ends[1])
        else:  # or they would take all descriptors that there are
            self._still_waiting(link)

    def _connect(self, end: End) -> None:
        """Lead a connection on; one that is refused at once is reset."""
        upstream, end.waits_for = end.waits_for, None
        assert upstream is not None, "it is led on once"
        if end.socket.connect_ex(upstream) not in {0, errno.EINPROGRESS}:
            self._drop(end, is_reset=True)
            return
        self._watch(end.out.sink)
        self._watch(end)

    def _still_waiting(self, link: Link) -> list[End]:
        """Those who came while their link was cut; who has given up meanwhile is forgotten, as if never there."""
        waiting = [end for end in link.ends.values() if end.waits_for is not None]
        for end in waiting:
            if end.out.sink.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _HAS_LEFT:
                self._drop(end, is_reset=True)
        return [end for end in waiting if end.number in self._ends]

    def _watch(self, end: End) -> None:
        """Be told of what is of use now, and of nothing else: an end that has broken would be told again and again."""
        wanted = 0
        if not end.out.link.condition.is_cut:
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

    def _serve(self, end: End, events: int) -> None:
        if end.out.link.condition.is_cut:  # since this turn
            return
        if end.into.is_blocked and events & ~_IN:
            self._take_more(end)
        if end.number in self._ends and end.watched & _IN and events & ~_OUT:
            self._read(end.out)

    def _take_more(self, end: End) -> None:
        """The sink takes bytes again, or for the first time; or it could not be connected."""
        if end.is_connecting and end.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._drop(end, is_reset=True)
            return
        end.is_connecting = end.into.is_blocked = False
        self._watch(end)
        self._end_if_over(end.into)

    def _read(self, way: Way) -> None:
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
        condition, rest = way.link.condition, self._buffer[:count]
        is_free = not way.held and not way.is_blocked and not condition.late_ns and condition.rate_bytes_per_s is None
        if count and is_free:
            rest = rest[way.write(rest) :]
        if len(rest) and not way.is_dead:
            if not way.held:
                way.link.holding[way.direction].append(way)
            way.hold(bytes(rest), time.monotonic_ns() + condition.late_ns)
        if way.has_ended or way.is_blocked or not way.reads:
            self._settle(way)

    def _settle(self, way: Way) -> None:
        """What became of a way after it was read from or written to."""
        self._watch(way.source)
        self._watch(way.sink)
        self._end_if_over(way)

    def _end_if_over(self, way: Way) -> None:
        """Tell the sink that nothing more comes; when both have been told, the connection is over."""
        twin = way.sink.out
        if way.has_ended and not way.held and not way.is_done and not way.is_blocked:
            way.is_done = True
            if not way.is_dead:
                with contextlib.suppress(OSError):
                    way.sink.socket.shutdown(socket.SHUT_WR)
        if way.is_done and twin.is_done:
            self._drop(way.source, is_reset=way.is_dead or twin.is_dead)

    def _drop(self, end: End, *, is_reset: bool) -> None:
        """Close both sockets of a connection, by RST or in order."""
        for each in (end, end.out.sink):
            if each.watched:
                self._epoll.unregister(each.number)
            del self._ends[each.number]
            del each.out.link.ends[each.number]
            with contextlib.suppress(ValueError):
                each.out.link.holding[each.out.direction].remove(each.out)
            each.out.held.clear()
            if is_reset:
                with contextlib.suppress(OSError):
                    each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            each.socket.close()

    # --- what is held ---

    def _release(self) -> int | None:
        """Pass on what is due; when there is more to do that no socket tells (monotonic ns), None for never."""
        due: list[int] = []
        for link in self._links.values():
            for ways, bucket in zip(link.holding, link.buckets, strict=True):
                if ways and not link.condition.is_cut:
                    due += self._release_from(ways, bucket)
        return min(due, default=None)

    def _release_from(self, ways: deque[Way], bucket: Bucket | None) -> list[int]:
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
    """Serve clients; the argument is (node, the listening socket's descriptor, the port it leads to) of each gate."""
    gates = [Gate(node, socket.socket(fileno=number), (HOST, port)) for node, number, port in json.loads(sys.argv[1])]
    proxy = Proxy(gates)
    proxy.obey(sys.stdin.fileno(), sys.stdout.fileno())
    proxy.run()


def order_of(parties: Parties, condition: Condition) -> dict[str, Any]:
    """The order that something be wrong with a link, or nothing any more."""
    return {"link": parties, "condition": asdict(condition)}


if __name__ == "__main__":
    main()
