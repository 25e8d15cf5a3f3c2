"""A queue in memory that confirms, serves, delays, loses, doubles, swaps, damages and pauses as it is told.

With several subscribers each has such a queue, and all get the same: harm is done before messages are copied.

`Hub` is the broker without clock or socket; run as a module, `Server` puts it behind a Unix socket. It
knows exactly what harm it did (`Hub.harm`), which is what a ledger is tested against.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.drivers.memory_behaviour import NS_PER_MS, Behaviour, Harm, Service
from loadgen.drivers.memory_link import Frame, FrameSocket, Kind, batch

if TYPE_CHECKING:
    from loadgen.driver import Bool, Int64, UInt8

OUTBOX_MAX_BYTES = 1 << 20  # of deliveries under way to one consumer
DELIVERY_MAX_BYTES = 256 << 10
_STREAM = 0x485542
IDLE_S = 0.5  # how often a server with nothing to do looks whether its maker is still there


@dataclass(slots=True)
class Chunk:
    """Messages begin … end of a batch that wait for delivery or acknowledgement; `ready_ns` ascends."""

    data: UInt8
    offsets: Int64
    size_bytes: int
    ready_ns: Int64 | int
    begin: int
    end: int
    redelivered: bool = False

    @property
    def count(self) -> int:
        """How many messages."""
        return self.end - self.begin

    @property
    def bytes(self) -> int:
        """Of how many bytes."""
        return int(self.offsets[self.end] - self.offsets[self.begin])

    def ready_count(self, now_ns: int) -> int:
        """How many of them may be delivered by now."""
        if self.next_ready_ns() > now_ns:
            return 0
        if isinstance(self.ready_ns, int):
            return self.count
        return int(np.searchsorted(self.ready_ns, now_ns, side="right")) - self.begin

    def next_ready_ns(self) -> int:
        """When its first message may be delivered."""
        return self.ready_ns if isinstance(self.ready_ns, int) else int(self.ready_ns[self.begin])

    def take(self, count: int) -> Chunk:
        """Cut off the first `count` messages."""
        middle = self.begin + count
        head = Chunk(self.data, self.offsets, self.size_bytes, self.ready_ns, self.begin, middle, self.redelivered)
        self.begin = middle
        return head

    def delivery(self) -> Frame:
        """The frame that delivers it."""
        offsets = self.offsets[self.begin : self.end + 1]
        data = self.data[offsets[0] : offsets[-1]]
        return batch(Kind.DELIVER, 0, data, offsets, self.size_bytes, flags=int(self.redelivered))


@dataclass(slots=True, eq=False)
class Peer:
    """A client as the broker sees it; `outbox` is what waits to be sent to it."""

    role: Kind | None = None
    subscriber: int = 0
    prefetch: int = 0
    automatic: bool = False
    outbox: deque[Frame] = field(default_factory=deque)
    outbox_bytes: int = 0
    unacked: deque[Chunk] = field(default_factory=deque)
    unacked_count: int = 0

    def room(self) -> int:
        """How many messages may be delivered to it now."""
        if self.role is not Kind.CONSUME or self.outbox_bytes >= OUTBOX_MAX_BYTES:
            return 0
        if self.automatic or not self.prefetch:
            return 1 << 30
        return self.prefetch - self.unacked_count


class Hub:
    """The broker: all that happens, happens in `handle` and `advance`, at the moment they are given."""

    def __init__(self, behaviour: Behaviour, start_ns: int, subscribers: int = 1) -> None:
        self.behaviour = behaviour
        self.harm = Harm(behaviour.harm_log)
        self.taken = 0
        self.stopped = False
        self.waiting_count = 0
        self.waiting_bytes = 0
        self._is_harmless = behaviour.is_harmless
        self._start_ns = start_ns
        self._offered = 0
        self._queues: list[deque[Chunk]] = [deque() for _ in range(subscribers)]
        self._confirms: deque[tuple[int, Peer, Frame]] = deque()
        self._peers: list[Peer] = []
        self._confirm_delay_ns = int(behaviour.confirm_delay_ms * NS_PER_MS)
        self._turns = [0] * subscribers
        self._last_ready_ns = 0
        # A stream of its own: a schedule of the same seed would draw the very same numbers (the pacer's [seed, 0, 0] is
        # what numpy makes of seed alone), and arrivals would know how long they will be served.
        self._rng = np.random.default_rng([behaviour.seed, _STREAM])
        self._service = Service(behaviour, self._rng)

    def connect(self) -> Peer:
        """A new client."""
        peer = Peer()
        self._peers.append(peer)
        return peer

    def disconnect(self, peer: Peer) -> None:
        """A client has left: what it did not acknowledge goes back to the head of the queue."""
        self._peers.remove(peer)
        for chunk in reversed(peer.unacked):
            chunk.redelivered = True
            chunk.ready_ns = 0
            self._queues[peer.subscriber].appendleft(chunk)
            self.waiting_count += chunk.count
            self.waiting_bytes += chunk.bytes

    @property
    def is_full(self) -> bool:
        """Whether producers have to wait."""
        return self.waiting_bytes >= self.behaviour.max_bytes

    @property
    def depth(self) -> int:
        """Messages that wait or are not acknowledged."""
        return self.waiting_count + sum(peer.unacked_count for peer in self._peers)

    def handle(self, peer: Peer, frame: Frame, now_ns: int) -> None:
        """Do what a frame says."""
        if frame.kind is Kind.PUBLISH:
            self._publish(peer, frame, now_ns)
        elif frame.kind is Kind.ACK:
            self._acknowledge(peer, frame.first)
        elif frame.kind is Kind.PRODUCE:
            peer.role = Kind.PRODUCE
            peer.automatic = bool(frame.flags)  # nothing is confirmed
        elif frame.kind is Kind.CONSUME:
            peer.role, peer.subscriber = Kind.CONSUME, frame.count
            peer.prefetch, peer.automatic = frame.first, bool(frame.flags)
        elif frame.kind is Kind.ASK:
            told = {
                "depth": self.depth,
                "stored": self.taken,
                "harm": self.harm.counts,
                **asdict(self.behaviour),
            }
            self._send(peer, Frame(Kind.ANSWER, body=np.frombuffer(json.dumps(told).encode(), np.uint8)))
        elif frame.kind is Kind.STOP:
            self.stopped = True

    def advance(self, now_ns: int) -> None:
        """Confirm and deliver all that is ready."""
        if self._pause_end_ns(now_ns) is not None:
            return
        while self._confirms and self._confirms[0][0] <= now_ns:
            _, peer, frame = self._confirms.popleft()
            self._send(peer, frame)
        for subscriber, queue in enumerate(self._queues):
            while queue and self._deliver(subscriber, queue, now_ns):
                pass

    def next_event_ns(self, now_ns: int) -> int | None:
        """When `advance` has something to do next, as far as time decides that."""
        times = []
        if self._confirms:
            times.append(self._confirms[0][0])
        open_to = {peer.subscriber for peer in self._peers if peer.room() > 0}
        times += [self._queues[each][0].next_ready_ns() for each in open_to if self._queues[each]]
        if not times:
            return None
        return max(min(times), self._pause_end_ns(now_ns) or 0)

    def _pause_end_ns(self, now_ns: int) -> int | None:
        cycle_ns = int(self.behaviour.pause_every_ms * NS_PER_MS)
        if not cycle_ns or not self.behaviour.pause_ms:
            return None
        into_ns = (now_ns - self._start_ns) % cycle_ns
        pausing = into_ns >= cycle_ns - self.behaviour.pause_ms * NS_PER_MS
        return now_ns - into_ns + cycle_ns if pausing else None

    def _send(self, peer: Peer, frame: Frame) -> None:
        peer.outbox.append(frame)
        peer.outbox_bytes += len(frame.body)

    def _publish(self, peer: Peer, frame: Frame, now_ns: int) -> None:
        """Take a batch, and say when each part of it will have been confirmed."""
        if self._service.exists:
            self._serve(peer, frame, now_ns)
            return
        ready_ns = now_ns + self._confirm_delay_ns
        if self._is_harmless:
            if not peer.automatic:
                confirm = Frame(Kind.CONFIRM, count=frame.count, first=frame.first)
                self._confirms.append((ready_ns, peer, confirm))
            self.taken += frame.count
            self._enqueue(*frame.split(), frame.size_bytes, now_ns)
            return
        accepted = ~self._every(self.behaviour.refuse_every, self._offered, frame.count)
        self._offered += frame.count
        if not peer.automatic:
            edges = [0, *(np.flatnonzero(np.diff(accepted)) + 1).tolist(), frame.count]
            for begin, end in itertools.pairwise(edges):
                kind = Kind.CONFIRM if accepted[begin] else Kind.REFUSE
                self._confirms.append((ready_ns, peer, Frame(kind, count=end - begin, first=frame.first + begin)))
        self.harm.note("refused", np.flatnonzero(~accepted), *frame.split())
        rows = np.flatnonzero(accepted)
        if len(rows):
            self._take(frame, rows, now_ns)

    def _serve(self, peer: Peer, frame: Frame, now_ns: int) -> None:
        """Take a batch whose messages the one server works on in turn; each is confirmed when that begins."""
        begins_ns, ends_ns = self._service.serve(frame.count, now_ns)
        if not peer.automatic:
            for row, begin_ns in enumerate(begins_ns.tolist()):
                confirm = Frame(Kind.CONFIRM, count=1, first=frame.first + row)
                self._confirms.append((begin_ns + self._confirm_delay_ns, peer, confirm))
        self.taken += frame.count
        self._enqueue(*frame.split(), frame.size_bytes, ends_ns)

    def _take(self, frame: Frame, rows: Int64, now_ns: int) -> None:
        """Put these rows of a batch into the queue, after the harm that is due."""
        data, offsets = frame.split()
        first, self.taken = self.taken, self.taken + len(rows)
        kept, corrupted, done = self._harmed(rows, first)
        for what, which in done.items():
            self.harm.note(what, which, data, offsets)
        if not np.array_equal(kept, np.arange(frame.count)) or corrupted.any():
            data, offsets = _gather(data, offsets, kept)
            data[offsets[1:][corrupted] - 1] ^= 0xFF
        if len(kept):
            self._enqueue(data, offsets, frame.size_bytes, now_ns)

    def _enqueue(self, data: UInt8, offsets: Int64, size_bytes: int, from_ns: Int64 | int) -> None:
        count = len(offsets) - 1
        ready_ns = self._ready_ns(count, from_ns)
        for queue in self._queues:
            chunk = Chunk(data, offsets, size_bytes, ready_ns, 0, count)
            queue.append(chunk)
            self.waiting_count += count
            self.waiting_bytes += chunk.bytes

    def _harmed(self, rows: Int64, first: int) -> tuple[Int64, Bool, dict[str, Int64]]:
        """Which rows, numbered from first, are delivered, in which order, which of these are damaged; the harm done."""
        count, how = len(rows), self.behaviour
        order = np.arange(count)
        late = np.flatnonzero(self._every(how.reorder_every, first, count)[1:]) + 1
        order[late], order[late - 1] = late - 1, late
        copies = 1 + self._every(how.duplicate_every, first, count).astype(np.int64)
        lost = self._every(how.loss_every, first, count)
        copies[lost] = 0
        order = np.repeat(order, copies[order])
        corrupted = self._every(how.corrupt_every, first, count)[order]
        done = {
            "lost": rows[lost],
            "duplicated": rows[copies > 1],
            "reordered": rows[late - 1][copies[late] * copies[late - 1] > 0],
            "corrupted": rows[order][corrupted],
        }
        return rows[order], corrupted, done

    @staticmethod
    def _every(number: int, first: int, count: int) -> Bool:
        """Which of messages first … first + count - 1, counted from 1, are a number-th: bool[count]."""
        which = np.zeros(count, np.bool_)
        if number:
            which[-(first + 1) % number :: number] = True
        return which

    def _ready_ns(self, count: int, from_ns: Int64 | int) -> Int64 | int:
        """When each of `count` messages may be delivered, which until `from_ns` were not the queue's to delay."""
        delay_ns = self.behaviour.delay_ms * NS_PER_MS
        if self.behaviour.delay_distribution == "fixed" or not delay_ns:
            return from_ns + int(delay_ns)
        ready: Int64 = from_ns + self._rng.exponential(delay_ns, count).astype(np.int64)
        ready[0] = max(int(ready[0]), self._last_ready_ns)
        np.maximum.accumulate(ready, out=ready)
        self._last_ready_ns = int(ready[-1])
        return ready

    def _deliver(self, subscriber: int, queue: deque[Chunk], now_ns: int) -> bool:
        """Send a batch from the head of a queue to its subscriber's next consumer; False where that cannot be."""
        chunk = queue[0]
        ready = chunk.ready_count(now_ns)
        if ready <= 0:
            return False
        turn = self._turns[subscriber]
        for step in range(len(self._peers)):
            peer = self._peers[(turn + step) % len(self._peers)]
            room = peer.room() if peer.subscriber == subscriber else 0
            if room > 0:
                break
        else:
            return False
        self._turns[subscriber] = (turn + step + 1) % len(self._peers)
        count = min(ready, room)
        if chunk.bytes > DELIVERY_MAX_BYTES:
            limit = int(chunk.offsets[chunk.begin]) + DELIVERY_MAX_BYTES
            count = min(count, max(1, int(np.searchsorted(chunk.offsets, limit)) - chunk.begin))
        part = chunk.take(count)
        if not chunk.count:
            queue.popleft()
        self.waiting_count -= part.count
        self.waiting_bytes -= part.bytes
        if not peer.automatic:
            peer.unacked.append(part)
            peer.unacked_count += part.count
        self._send(peer, part.delivery())
        return True

    def _acknowledge(self, peer: Peer, count: int) -> None:
        peer.unacked_count -= count
        while count:
            chunk = peer.unacked[0]
            taken = min(count, chunk.count)
            chunk.begin += taken
            count -= taken
            if not chunk.count:
                peer.unacked.popleft()


def _gather(data: UInt8, offsets: Int64, rows: Int64) -> tuple[UInt8, Int64]:
    """The messages of these rows end to end, and where each begins (int64[n + 1])."""
    sizes = np.diff(offsets)[rows]
    placed = np.concatenate(([0], np.cumsum(sizes)))
    # Byte j of row i comes from offsets[rows[i]] + j: one index for all bytes, since rows have many sizes.
    index = np.arange(int(placed[-1])) + np.repeat(offsets[rows] - placed[:-1], sizes)
    return data[index], placed


class Server:
    """A hub behind a Unix socket, for as long as its maker lives or until it is told to stop."""

    def __init__(self, listener: socket.socket, behaviour: Behaviour, maker_pid: int, subscribers: int) -> None:
        self._maker_pid = maker_pid
        self.hub = Hub(behaviour, time.monotonic_ns(), subscribers)
        self._listener = listener
        self._clients: dict[FrameSocket, Peer] = {}

    def run(self) -> None:
        """Serve until told to stop."""
        while not self.hub.stopped and os.getppid() == self._maker_pid:
            now = time.monotonic_ns()
            self.hub.advance(now)
            for client, peer in list(self._clients.items()):
                self._push(client, peer)
            next_ns = self.hub.next_event_ns(now)
            wait_s = IDLE_S if next_ns is None else min(IDLE_S, max(0.0, (next_ns - time.monotonic_ns()) / 1e9))
            full = self.hub.is_full
            readers = [each for each, peer in self._clients.items() if not (full and peer.role is Kind.PRODUCE)]
            writers = [each for each in self._clients if each.backlog_bytes]
            waited: list[Any] = [self._listener, *readers]
            readable, _, _ = select.select(waited, writers, [], wait_s)
            for each in readable:
                if each is self._listener:
                    stream, _ = self._listener.accept()
                    self._clients[FrameSocket(stream)] = self.hub.connect()
                else:
                    self._read(each)
        for client in self._clients:
            client.stream.close()

    def _read(self, client: FrameSocket) -> None:
        peer = self._clients[client]
        try:
            for frame in client.read():
                self.hub.handle(peer, frame, time.monotonic_ns())
        except (EOFError, OSError):
            self._drop(client)

    def _push(self, client: FrameSocket, peer: Peer) -> None:
        try:
            while peer.outbox:
                client.write(peer.outbox.popleft())
            client.push()
        except OSError:
            self._drop(client)
        peer.outbox_bytes = client.backlog_bytes

    def _drop(self, client: FrameSocket) -> None:
        self.hub.disconnect(self._clients.pop(client))
        client.stream.close()


def main() -> None:
    """Serve one trial; arguments: number of the inherited socket, behaviour as JSON, pid of the maker, subscribers."""
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        Server(listener, Behaviour(**json.loads(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4])).run()


if __name__ == "__main__":
    main()
