"""Frames between the memory broker and its clients, and the two links that carry them.

A frame is a head of fixed length and a body: `SocketLink` moves frames through a Unix socket between
processes, `SimulatedLink` hands them to a broker in the same process on a clock that only moves when
somebody waits.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import numpy as np

from loadgen.errors import TrialError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Int64, UInt8
    from loadgen.drivers.memory_hub import Hub

NS_PER_S = 1_000_000_000
SOCKET_BUFFER_BYTES = 1 << 20
_HEAD = struct.Struct("<BBxxIIqQ")  # kind, flags, size_bytes, count, first, length of the body
_SCRATCH_BYTES = 1 << 16
_READ_MAX_BYTES = 4 << 20  # what one read may take in, so that a fast writer does not keep a reader for ever


class Kind(IntEnum):
    """What a frame says."""

    PRODUCE = 1  # a producer introduces itself
    CONSUME = 2  # a consumer does: first is its prefetch, count its subscriber, flags 1 that it acks on delivery
    PUBLISH = 3
    CONFIRM = 4
    REFUSE = 5
    DELIVER = 6  # flags 1: redelivered
    ACK = 7  # the next `first` messages were processed
    ASK = 8
    ANSWER = 9
    STOP = 10


@dataclass(slots=True)
class Frame:
    """One frame; a batch of messages has `count`, and `size_bytes` where all are of one size (else 0).

    The body (uint8[m]) of a batch of one size is the messages end to end; of mixed sizes, their sizes in
    bytes as int64[count] come first. `read_ns` is when the first byte was read.
    """

    kind: Kind
    flags: int = 0
    size_bytes: int = 0
    count: int = 0
    first: int = 0
    body: UInt8 = field(default_factory=lambda: np.empty(0, np.uint8))
    read_ns: int = 0

    def head(self) -> bytes:
        """The frame's head as it is sent before the body."""
        return _HEAD.pack(self.kind, self.flags, self.size_bytes, self.count, self.first, len(self.body))

    def split(self) -> tuple[UInt8, Int64]:
        """The messages end to end (uint8[m]); where each begins, and the last ends (int64[count + 1])."""
        if self.size_bytes:
            return self.body, np.arange(self.count + 1) * self.size_bytes
        sizes = self.body[: 8 * self.count].view(np.int64)
        return self.body[8 * self.count :], np.concatenate(([0], np.cumsum(sizes)))


def batch(kind: Kind, first: int, data: UInt8, offsets: Int64, size_bytes: int = 0, flags: int = 0) -> Frame:
    """A frame of messages end to end in `data`; they begin at `offsets` (int64[n + 1]) less the first."""
    if not size_bytes:
        data = np.concatenate((np.diff(offsets).view(np.uint8), data))
    return Frame(kind, flags, size_bytes, len(offsets) - 1, first, data)


class FrameSocket:
    """Frames through a non-blocking stream socket; what cannot be written at once waits in a backlog."""

    def __init__(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            stream.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        self.stream = stream
        self.backlog_bytes = 0
        self._backlog: deque[memoryview] = deque()
        self._scratch = np.empty(_SCRATCH_BYTES, np.uint8)
        self._begin = self._end = 0
        self._partial: Frame | None = None
        self._filled = 0

    def fileno(self) -> int:
        """The socket's, for select."""
        return self.stream.fileno()

    def write(self, frame: Frame) -> None:
        """Queue a frame; `push` sends it."""
        self._backlog.append(memoryview(frame.head()))
        if len(frame.body):
            self._backlog.append(frame.body.data)
        self.backlog_bytes += _HEAD.size + len(frame.body)

    def push(self) -> None:
        """Send as much of the backlog as the socket takes now."""
        backlog = self._backlog
        while backlog:
            parts = [backlog[index] for index in range(min(len(backlog), 64))]
            try:
                sent = self.stream.sendmsg(parts)
            except BlockingIOError:
                return
            self.backlog_bytes -= sent
            while backlog and sent >= len(backlog[0]):
                sent -= len(backlog.popleft())
            if sent:
                backlog[0] = backlog[0][sent:]
                return

    def read(self) -> list[Frame]:
        """All frames that have arrived whole; raises EOFError when the other side has closed."""
        frames: list[Frame] = []
        taken = 0
        while taken < _READ_MAX_BYTES:
            partial = self._partial
            target = self._scratch[self._end :] if partial is None else partial.body[self._filled :]
            try:
                got = self.stream.recv_into(target.data)
            except BlockingIOError:
                return frames
            if not got:
                raise EOFError
            taken += got
            if partial is None:
                self._end += got
                self._parse(frames)
            else:
                self._filled += got
                if self._filled == len(partial.body):
                    frames.append(partial)
                    self._partial = None
            if got < len(target):
                return frames
        return frames

    def _parse(self, frames: list[Frame]) -> None:
        """Cut frames out of the scratch; of a body that has not come whole, the rest is received in place."""
        now = time.monotonic_ns()
        scratch = self._scratch
        while self._end - self._begin >= _HEAD.size:
            kind, flags, size_bytes, count, first, length = _HEAD.unpack_from(scratch.data, self._begin)
            self._begin += _HEAD.size
            here = min(length, self._end - self._begin)
            body = np.empty(length, np.uint8)
            body[:here] = scratch[self._begin : self._begin + here]
            self._begin += here
            frame = Frame(Kind(kind), flags, size_bytes, count, first, body, now)
            if here < length:
                self._partial, self._filled = frame, here
                break
            frames.append(frame)
        rest = self._end - self._begin
        scratch[:rest] = scratch[self._begin : self._end].copy()
        self._begin, self._end = 0, rest


class Link(Protocol):
    """A client's way to the memory broker."""

    @property
    def backlog_bytes(self) -> int:
        """What was sent and has not left yet."""
        ...

    def now_ns(self) -> int:
        """The moment, on this link's clock."""
        ...

    def send(self, frame: Frame) -> None:
        """Send without waiting."""
        ...

    def receive(self, timeout_s: float) -> list[Frame]:
        """Wait up to `timeout_s` for a first frame, return all that are there; the backlog moves too."""
        ...

    def close(self) -> None:
        """Close; never raises."""
        ...


class SocketLink:
    """A link to a broker in another process, in real time."""

    def __init__(self, path: str) -> None:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.connect(path)
        except OSError:
            stream.close()
            raise
        self._frames = FrameSocket(stream)

    @property
    def backlog_bytes(self) -> int:
        """What was sent and has not left yet."""
        return self._frames.backlog_bytes

    def now_ns(self) -> int:
        """Monotonic time."""
        return time.monotonic_ns()

    def send(self, frame: Frame) -> None:
        """Send without waiting."""
        self._frames.write(frame)
        with self._alive():
            self._frames.push()

    def receive(self, timeout_s: float) -> list[Frame]:
        """Wait up to `timeout_s` for a first frame, return all that are there; the backlog moves too."""
        if timeout_s <= 0:  # a poll between sends: reading tells as much as select, for half the cost
            with self._alive():
                self._frames.push()
                return self._frames.read()
        deadline_ns = time.monotonic_ns() + int(timeout_s * NS_PER_S)
        while True:
            left_s = max(0, deadline_ns - time.monotonic_ns()) / NS_PER_S
            writers = [self._frames] if self._frames.backlog_bytes else []
            # Pacing hangs on this wait: select is exact to the microsecond, epoll rounds up to milliseconds.
            readable, writable, _ = select.select([self._frames], writers, [], left_s)
            with self._alive():
                if writable:
                    self._frames.push()
                frames = self._frames.read() if readable else []
            if frames or time.monotonic_ns() >= deadline_ns:
                return frames

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError):
            raise TrialError("the memory broker went away") from None

    def close(self) -> None:
        """Close; never raises."""
        with contextlib.suppress(OSError):
            self._frames.push()
        with contextlib.suppress(OSError):
            self._frames.stream.close()


class SimulatedClock:
    """Time that stands still until somebody waits."""

    def __init__(self, now_ns: int = NS_PER_S) -> None:
        self.now_ns = now_ns


class SimulatedLink:
    """A link to a broker in the same process, in simulated time."""

    def __init__(self, hub: Hub, clock: SimulatedClock) -> None:
        self._hub = hub
        self._clock = clock
        self._peer = hub.connect()
        self._open = True

    @property
    def backlog_bytes(self) -> int:
        """Nothing ever waits."""
        return 0

    def now_ns(self) -> int:
        """The simulated moment."""
        return self._clock.now_ns

    def send(self, frame: Frame) -> None:
        """Hand the frame over."""
        self._hub.handle(self._peer, frame, self._clock.now_ns)

    def receive(self, timeout_s: float) -> list[Frame]:
        """All frames that have come, else move the clock to the next event or by `timeout_s`."""
        deadline_ns = self._clock.now_ns + int(timeout_s * NS_PER_S)
        while True:
            self._hub.advance(self._clock.now_ns)
            if self._peer.outbox:
                frames = list(self._peer.outbox)
                self._peer.outbox.clear()
                self._peer.outbox_bytes = 0
                for frame in frames:
                    frame.read_ns = self._clock.now_ns
                return frames
            next_ns = self._hub.next_event_ns(self._clock.now_ns)
            if next_ns is None or next_ns > deadline_ns or next_ns <= self._clock.now_ns:
                self._clock.now_ns = deadline_ns
                return []
            self._clock.now_ns = next_ns

    def close(self) -> None:
        """Leave."""
        if self._open:
            self._open = False
            self._hub.disconnect(self._peer)
