"""Publishes out of a receive buffer, whole runs at a time, and deliveries made of them.

A delivery is a publish with another method frame: header and body frames are the same bytes. Publishes of one
connection by one route differ in their bodies only, so that those of one size are rows of a matrix. The first publish
is read frame by frame; from then on a run is known by comparing its constant bytes, all at once. Of mixed sizes only
the lengths are followed one by one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from pika import spec

from loadgen.drivers.wire.amqp_deliveries import decode
from loadgen.drivers.wire.amqp_frames import CHANNEL, FRAME_END, FRAME_HEAD, MAX_FRAME_BYTES, encode
from loadgen.errors import TrialError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loadgen.driver import UInt8

FEW_ROWS = 4  # below this, bytes joined one by one cost less than numpy's dozen calls
_HEAD_BYTES = FRAME_HEAD.size
_INDEX = struct.Struct(">I")
_SIZE = struct.Struct(">Q")
_TAG = struct.Struct(">Q")
_PUBLISH_HEAD = bytes([spec.FRAME_METHOD]) + CHANNEL.to_bytes(2, "big")
_SIZE_AT = _HEAD_BYTES + 4  # in a header frame, behind class and weight
_FRAME_TYPES = frozenset((spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY, spec.FRAME_HEARTBEAT))


Route = tuple[str, str]
"""Exchange and routing key."""


@dataclass(slots=True)
class Chunk:
    """Publishes end to end as they came: rows of `row_bytes`, or of any length between the places in `bounds`.

    Numbers `first` … `end` - 1 of them are left. `data` is the receive buffer's until `keep` is called.
    """

    data: memoryview
    method_bytes: int
    end: int
    bounds: Sequence[int]
    row_bytes: int = 0  # where all are of one length, else 0
    first: int = 0

    @property
    def count(self) -> int:
        """How many are left."""
        return self.end - self.first

    @property
    def bytes(self) -> int:
        """How large those are, in bytes."""
        return self.bounds[self.end] - self.bounds[self.first]

    def take(self, count: int) -> Chunk:
        """Cut off the next `count`."""
        begin, self.first = self.first, self.first + count
        return Chunk(self.data, self.method_bytes, self.first, self.bounds, self.row_bytes, begin)

    def keep(self) -> None:
        """Copy what is left out of the receive buffer."""
        begin, count = self.bounds[self.first], self.count
        self.data = memoryview(bytes(self.data[begin : self.bounds[self.end]]))
        if self.row_bytes:
            self.bounds = range(0, (count + 1) * self.row_bytes, self.row_bytes)
        else:
            self.bounds = [each - begin for each in self.bounds[self.first : self.end + 1]]
        self.first, self.end = 0, count

    def contents(self) -> Iterator[memoryview]:
        """Header and bodies of each."""
        for begin, end in pairwise(self.bounds[self.first : self.end + 1]):
            yield self.data[begin + self.method_bytes : end]

    def matrix(self) -> UInt8:
        """Header and bodies of each as a row, where all are of one length."""
        flat = np.frombuffer(self.data, np.uint8, self.count * self.row_bytes, self.first * self.row_bytes)
        return flat.reshape(self.count, self.row_bytes)[:, self.method_bytes :]


class DeliveryTemplate:
    """The method frame of one consumer's deliveries, all alike but for the delivery tag."""

    def __init__(self, consumer_tag: str, queue: str) -> None:
        self._method = encode(spec.Basic.Deliver(consumer_tag, 0, redelivered=False, exchange="", routing_key=queue))
        self._tag_at = _HEAD_BYTES + _INDEX.size + 1 + len(consumer_tag.encode())
        self._row = np.frombuffer(self._method, np.uint8)

    def render(self, chunk: Chunk, first_tag: int) -> memoryview:
        """What is left of a chunk as deliveries with tags first_tag …."""
        if not chunk.row_bytes or chunk.count < FEW_ROWS:
            before, after = self._method[: self._tag_at], self._method[self._tag_at + _TAG.size :]
            pieces: list[bytes | memoryview] = []
            for tag, content in enumerate(chunk.contents(), first_tag):
                pieces += (before, _TAG.pack(tag), after, content)
            return memoryview(b"".join(pieces))
        count, method_bytes = chunk.count, len(self._method)
        rows = np.empty((count, method_bytes + chunk.row_bytes - chunk.method_bytes), np.uint8)
        rows[:, :method_bytes] = self._row
        tags = np.arange(first_tag, first_tag + count, dtype=">u8")
        rows[:, self._tag_at : self._tag_at + _TAG.size] = tags.view(np.uint8).reshape(count, _TAG.size)
        rows[:, method_bytes:] = chunk.matrix()
        return rows.reshape(-1).data


class _Likeness:
    """The bytes that all publishes of one connection share, and those that also tell the size."""

    def __init__(self, publish: bytes, route: Route, method_bytes: int, body_at: int) -> None:
        self.route, self.method_bytes, self.body_at = route, method_bytes, body_at
        self.size_at = method_bytes + _SIZE_AT
        self._before_size = publish[: self.size_at]
        self._after_size = publish[self.size_at + _SIZE.size : body_at - _HEAD_BYTES]
        (size,) = _SIZE.unpack_from(publish, self.size_at)
        self._become(size)

    def _become(self, size: int) -> None:
        """Render the bytes before the body of publishes of this size."""
        self.size = size
        self.row_bytes = self.body_at + size + 1
        body_head = FRAME_HEAD.pack(spec.FRAME_BODY, CHANNEL, size)
        self._head = self._before_size + _SIZE.pack(size) + self._after_size + body_head
        self._heads = b""

    def rows(self, raw: bytearray, at: int, end: int) -> int:
        """How many publishes of the last size follow each other from `at`."""
        count = (end - at) // self.row_bytes
        if count < FEW_ROWS:
            found = 0
            while found < count and raw.startswith(self._head, at + found * self.row_bytes):
                found += 1
            return found
        if not raw.startswith(self._head, at):
            return 0
        heads = np.ndarray((count, self.body_at), np.uint8, raw, at, (self.row_bytes, 1)).tobytes()
        if len(self._heads) < len(heads):
            self._heads = self._head * (2 * count)
        if heads == self._heads[: len(heads)]:
            return count - int(raw[at + count * self.row_bytes - 1] != FRAME_END)
        both = np.frombuffer(heads, np.uint8).reshape(count, -1) != np.frombuffer(self._head, np.uint8)
        return int(both.any(axis=1).argmax())

    def mixed(self, raw: bytearray, at: int, end: int) -> list[int]:
        """Where publishes of any sizes with one body frame begin from `at` on, and the last one ends."""
        bounds, last_size = [at], -1
        while end - at >= self.body_at:
            (size,) = _SIZE.unpack_from(raw, at + self.size_at)
            past = at + self.body_at + size + 1
            if past > end or size == last_size or not raw.startswith(self._before_size, at):
                break
            if FRAME_HEAD.unpack_from(raw, at + self.body_at - _HEAD_BYTES) != (spec.FRAME_BODY, CHANNEL, size):
                break
            if not raw.startswith(self._after_size, at + self.size_at + _SIZE.size):
                break
            bounds.append(past)
            at, last_size = past, size
        if last_size >= 0 and end - at >= self.body_at:
            (size,) = _SIZE.unpack_from(raw, at + self.size_at)
            if size == last_size:  # two of a size: more are likely
                self._become(size)
        return bounds


class PublishParser:
    """Finds the publishes at the beginning of a buffer.

    Where one is incomplete, `need_end` is up to where bytes must have come for another look to be of use.
    """

    def __init__(self) -> None:
        self.need_end = 0
        self._likeness: _Likeness | None = None

    def run(self, raw: bytearray, at: int, end: int) -> tuple[Route, Chunk] | None:
        """The route, and the publishes from `at` on that are like the last one; None if there are none."""
        like = self._likeness
        if like is None:
            return None
        count = like.rows(raw, at, end)
        if count:
            bounds: Sequence[int] = range(0, (count + 1) * like.row_bytes, like.row_bytes)
            data = memoryview(raw)[at : at + count * like.row_bytes]
            return like.route, Chunk(data, like.method_bytes, count, bounds, like.row_bytes)
        places = like.mixed(raw, at, end)
        if len(places) == 1:
            return None
        data = memoryview(raw)[at : places[-1]]
        return like.route, Chunk(data, like.method_bytes, len(places) - 1, [each - at for each in places])

    def is_publish(self, raw: bytearray, at: int) -> bool:
        """Whether the whole frame at `at` is a publish's first."""
        if not raw.startswith(_PUBLISH_HEAD, at):
            return False
        return bool(_INDEX.unpack_from(raw, at + _HEAD_BYTES)[0] == spec.Basic.Publish.INDEX)

    def one(self, raw: bytearray, at: int, end: int) -> tuple[Route, Chunk] | None:
        """The publish whose whole method frame is at `at`, with nothing taken for granted; None if it is incomplete."""
        method_end = self.frame_end(raw, at, end)
        header_end = self._content_end(raw, method_end, end, spec.FRAME_HEADER)
        if header_end < 0:
            return None
        (size,) = _SIZE.unpack_from(raw, method_end + _SIZE_AT)
        body_end, missing = header_end, size
        while missing > 0:
            begin = body_end
            body_end = self._content_end(raw, begin, end, spec.FRAME_BODY)
            if body_end < 0:
                return None
            missing -= body_end - begin - _HEAD_BYTES - 1
        if missing < 0:
            raise TrialError("a message's body is longer than its header says")
        data = raw[at:body_end]
        method = decode(data[: method_end - at]).method
        route = (method.exchange, method.routing_key)
        body_at = header_end - at + _HEAD_BYTES
        if size and len(data) == body_at + size + 1:
            self._likeness = _Likeness(bytes(data), route, method_end - at, body_at)
        return route, Chunk(memoryview(data), method_end - at, 1, (0, len(data)), len(data))

    def frame_end(self, raw: bytearray, at: int, end: int) -> int:
        """Where the frame at `at` ends, -1 if it is incomplete; raises TrialError if it is none."""
        if end - at < _HEAD_BYTES + 1:
            self.need_end = at + _HEAD_BYTES + 1
            return -1
        kind, _, length = FRAME_HEAD.unpack_from(raw, at)
        if kind not in _FRAME_TYPES or length > MAX_FRAME_BYTES:
            raise TrialError("bytes that are no AMQP frame")
        frame_end: int = at + _HEAD_BYTES + length + 1
        if frame_end > end:
            self.need_end = frame_end
            return -1
        if raw[frame_end - 1] != FRAME_END:
            raise TrialError("a frame without its end mark")
        return frame_end

    def _content_end(self, raw: bytearray, at: int, end: int, kind: int) -> int:
        """Where the content frame at `at` ends, -1 if it is incomplete."""
        frame_end = self.frame_end(raw, at, end)
        if frame_end > 0:
            found, channel, _ = FRAME_HEAD.unpack_from(raw, at)
            if found != kind or channel != CHANNEL:
                raise TrialError(f"a frame of type {found} within a message; expected type {kind} of channel {CHANNEL}")
        return frame_end
