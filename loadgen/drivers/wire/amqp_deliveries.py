"""Deliveries out of a receive buffer, in place: runs of equal ones as matrices, everything else frame by frame.

A delivery is three kinds of frames: method, header, bodies. The first one is read by a general walk, which learns
the bytes that are the same in every delivery of this consumer; from then on a delivery is recognised by comparing
those bytes, and as many as follow with the same size are compared at once, as rows of 64-bit words.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pika import exceptions, frame, spec

from loadgen.drivers.wire.amqp_frames import CHANNEL, FRAME_END, FRAME_HEAD, MAX_FRAME_BYTES, Frame
from loadgen.errors import TrialError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from loadgen.driver import Bool, Int64, UInt8

RESERVE_BYTES = (
    8  # a buffer's deliveries begin here or later: words of a row may begin in the bytes before it
)
_FEW_ROWS = 4  # below this, comparing one by one costs less than numpy's dozen calls
_HEAD_BYTES = FRAME_HEAD.size
_INDEX = struct.Struct(">I")
_TAG = struct.Struct(">QB")
_SIZE = struct.Struct(">Q")
_FRAME_TYPES = frozenset((spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY, spec.FRAME_HEARTBEAT))


@dataclass(slots=True)
class Deliveries:
    """What one pass found: n complete messages and the delivery tag of the last one."""

    starts: Int64
    sizes: Int64 | int
    redelivered: Bool | None
    last_tag: int


class _Likeness:
    """The bytes that all deliveries of one consumer share, and where the others stand in a row."""

    def __init__(self, delivery: bytes, tag_at: int, size_at: int, body_at: int) -> None:
        self.tag_at, self.size_at, self.body_at = tag_at, size_at, body_at
        self.before_tag = delivery[:tag_at]
        self.before_size = delivery[tag_at + _TAG.size : size_at]
        self.before_body = delivery[size_at + _SIZE.size : body_at - _HEAD_BYTES]
        self.size = -1
        self.row_bytes = 0
        self._words: npt.NDArray[np.uint64]
        self._mask: npt.NDArray[np.uint64]
        self._mask_redelivered: npt.NDArray[np.uint64]
        # Words of a row begin up to eight bytes early, in the end mark of the frame before, so that they end with
        # the last byte before the body.
        self._early = 8 - body_at % 8

    def size_of(self, view: memoryview, at: int) -> int:
        """The body size of the delivery at `at` if it is of this likeness with one body frame, else −1."""
        tag_end, size_end = at + self.tag_at + _TAG.size, at + self.size_at + _SIZE.size
        body_head = at + self.body_at - _HEAD_BYTES
        if (
            view[at : at + self.tag_at] != self.before_tag
            or view[tag_end : at + self.size_at] != self.before_size
            or view[size_end:body_head] != self.before_body
        ):
            return -1
        (size,) = _SIZE.unpack_from(view, at + self.size_at)
        kind, channel, length = FRAME_HEAD.unpack_from(view, body_head)
        return size if (kind, channel, length) == (spec.FRAME_BODY, CHANNEL, size) else -1

    def run(self, buffer: UInt8, at: int, end: int, size: int) -> tuple[int, Bool | None]:
        """How many deliveries of this size follow each other from `at` (the first is known), with their flags."""
        if size != self.size:
            self._become(size)
        count = (end - at) // self.row_bytes
        shape = (count, len(self._words))
        words: npt.NDArray[np.uint64] = np.ndarray(
            shape, np.uint64, buffer, at - self._early, (self.row_bytes, 8)
        )
        flags = None
        differs = (words & self._mask) != self._words
        if differs.any():
            differs = (words & self._mask_redelivered) != self._words
            wrong = differs.any(axis=1)
            count = int(wrong.argmax()) if wrong.any() else count
            flag_at = at + self.tag_at + _TAG.size - 1
            flags = (buffer[flag_at : flag_at + count * self.row_bytes : self.row_bytes] & 1).astype(np.bool_)
        if count and buffer[at + count * self.row_bytes - 1] != FRAME_END:
            count -= 1
        return count, None if flags is None else flags[:count]

    def _become(self, size: int) -> None:
        """Render words and masks for deliveries of this body size."""
        self.size = size
        self.row_bytes = self.body_at + size + 1
        body_head = FRAME_HEAD.pack(spec.FRAME_BODY, CHANNEL, size)
        row = (
            self.before_tag
            + bytes(_TAG.size)
            + self.before_size
            + _SIZE.pack(size)
            + self.before_body
            + body_head
        )
        mask = bytearray(b"\xff" * len(row))
        mask[self.tag_at : self.tag_at + _TAG.size - 1] = bytes(_TAG.size - 1)
        self._words = self._as_words(row, FRAME_END)
        self._mask = self._as_words(mask, 0xFF)
        mask[self.tag_at + _TAG.size - 1] = 0xFE
        self._mask_redelivered = self._as_words(mask, 0xFF)

    def _as_words(self, row: bytes | bytearray, end_before: int) -> npt.NDArray[np.uint64]:
        return np.frombuffer(bytes(self._early - 1) + bytes([end_before]) + row, np.uint64)


class DeliveryParser:
    """Finds the deliveries of one consumer in its buffer; every other frame goes to `handle`."""

    def __init__(self, handle: Callable[[Frame], None]) -> None:
        self._handle = handle
        self._likeness: _Likeness | None = None
        self._begin = self._need_end = 0
        # What one pass has found so far: (first start, distance, count, size) of each run.
        self._runs: list[tuple[int, int, int, int]] = []
        self._flags: list[tuple[int, Bool | bool]] = []  # (how many messages before, flags) where any is set
        self._last_tag = 0

    def parse(self, buffer: UInt8, begin: int, end: int) -> Deliveries | None:
        """All complete deliveries between `begin` and `end`; None if there is none.

        A body that came in several frames is moved together within the buffer.
        """
        self._runs, self._flags, self._begin, self._need_end = [], [], begin, 0
        view = buffer.data
        found = 0
        while end - self._begin > _HEAD_BYTES:
            count = self._next_run(buffer, view, end, found)
            if count < 0:
                break
            found += count
        return self._collect(found) if found else None

    @property
    def begin(self) -> int:
        """Where the first byte stands that has not been parsed."""
        return self._begin

    @property
    def need_bytes(self) -> int:
        """How many bytes there must be from `begin` on for another pass to be of use."""
        return max(1, self._need_end - self._begin)

    def _next_run(self, buffer: UInt8, view: memoryview, end: int, found: int) -> int:
        """Take the next run of deliveries or one other frame; how many deliveries, −1 if incomplete."""
        at, like = self._begin, self._likeness
        if like is not None and end - at >= like.body_at and (size := like.size_of(view, at)) >= 0:
            row_bytes = like.body_at + size + 1
            if end - at < row_bytes:
                self._need_end = at + row_bytes
                return -1
            if end - at >= _FEW_ROWS * row_bytes:
                count, flags = like.run(buffer, at, end, size)
            else:
                count, flags = int(view[at + row_bytes - 1] == FRAME_END), None
            if count:
                last = at + (count - 1) * row_bytes
                self._last_tag, bits = _TAG.unpack_from(view, last + like.tag_at)
                self._runs.append((at + like.body_at, row_bytes, count, size))
                self._begin = last + row_bytes
                if flags is not None:
                    self._flags.append((found, flags))
                elif bits & 1:
                    self._flags.append((found, True))
                return count
        return self._general(view, at, end, found)

    def _general(self, view: memoryview, at: int, end: int, found: int) -> int:
        """One delivery or one other frame, with nothing taken for granted."""
        frame_end = self._frame_end(view, at, end)
        if frame_end < 0:
            return -1
        kind, channel, _ = FRAME_HEAD.unpack_from(view, at)
        is_method = kind == spec.FRAME_METHOD and frame_end - at > _HEAD_BYTES + _INDEX.size
        if not is_method or channel != CHANNEL:
            self._other(view[at:frame_end])
            self._begin = frame_end
            return 0
        if _INDEX.unpack_from(view, at + _HEAD_BYTES)[0] != spec.Basic.Deliver.INDEX:
            self._other(view[at:frame_end])
            self._begin = frame_end
            return 0
        return self._delivery(view, at, frame_end, end, found)

    def _delivery(self, view: memoryview, at: int, method_end: int, end: int, found: int) -> int:
        """The delivery whose method frame is at `at`: find its header and bodies, move the bodies together."""
        header = self._content_frame(view, method_end, end, spec.FRAME_HEADER)
        if header is None:
            return -1
        header_at, header_end = header
        (size,) = _SIZE.unpack_from(view, header_at + _HEAD_BYTES + 4)
        if size > MAX_FRAME_BYTES:
            raise TrialError(
                f"rabbitmq announced a message of {size} bytes; expected at most {MAX_FRAME_BYTES}"
            )
        pieces: list[tuple[int, int]] = []
        missing, body_end = size, header_end
        while missing:
            body = self._content_frame(view, body_end, end, spec.FRAME_BODY)
            if body is None:
                self._need_end = max(self._need_end, body_end + missing + _HEAD_BYTES + 1)
                return -1
            body_at, body_end = body
            pieces.append((body_at + _HEAD_BYTES, body_end - 1))
            missing -= body_end - body_at - _HEAD_BYTES - 1
        if missing < 0:
            raise TrialError("rabbitmq sent a message whose body is longer than its header says")
        tag_at = at + _HEAD_BYTES + _INDEX.size + 1 + view[at + _HEAD_BYTES + _INDEX.size]
        self._last_tag, bits = _TAG.unpack_from(view, tag_at)
        start = pieces[0][0] if pieces else header_end
        if len(pieces) == 1 and header_at == method_end and start == header_end + _HEAD_BYTES:
            size_at = header_at + _HEAD_BYTES + 4
            self._likeness = _Likeness(bytes(view[at:start]), tag_at - at, size_at - at, start - at)
        filled = start
        for first, last in pieces:
            if first != filled:
                view[filled : filled + last - first] = view[first:last]
            filled += last - first
        if bits & 1:
            self._flags.append((found, True))
        self._runs.append((start, size, 1, size))
        self._begin = body_end
        return 1

    def _content_frame(self, view: memoryview, at: int, end: int, kind: int) -> tuple[int, int] | None:
        """The next frame of the content being read; frames of the connection may stand before it."""
        while (frame_end := self._frame_end(view, at, end)) >= 0:
            found, channel, _ = FRAME_HEAD.unpack_from(view, at)
            if channel == CHANNEL:
                if found != kind:
                    raise TrialError(
                        f"rabbitmq sent a frame of type {found} within a message; expected type {kind}"
                    )
                return at, frame_end
            self._other(view[at:frame_end])
            at = frame_end
        return None

    def _frame_end(self, view: memoryview, at: int, end: int) -> int:
        """Where the frame at `at` ends, −1 if it is incomplete; raises TrialError if it is none."""
        if end - at < _HEAD_BYTES:
            self._need_end = at + _HEAD_BYTES + 1
            return -1
        kind, _, length = FRAME_HEAD.unpack_from(view, at)
        frame_end = at + _HEAD_BYTES + length + 1
        if kind not in _FRAME_TYPES or length > MAX_FRAME_BYTES:
            raise TrialError("rabbitmq sent bytes that are no AMQP frame; the connection cannot be trusted")
        if frame_end > end:
            self._need_end = frame_end
            return -1
        if view[frame_end - 1] != FRAME_END:
            raise TrialError("rabbitmq sent a frame without its end mark; the connection cannot be trusted")
        return int(frame_end)

    def _other(self, encoded: memoryview) -> None:
        self._handle(decode(encoded))

    def _collect(self, found: int) -> Deliveries:
        starts: list[Int64] = []
        sizes: Int64 | int = self._runs[0][3]
        if len(self._runs) == 1:
            first, distance, count, _ = self._runs[0]
            all_starts = (
                np.arange(first, first + count * distance, distance) if count > 1 else np.array([first])
            )
        else:
            runs = self._runs
            starts = [np.arange(run[2]) * run[1] + run[0] for run in runs if run[2] > 1]
            if starts:
                starts = [np.arange(run[2]) * run[1] + run[0] for run in runs]
                all_starts = np.concatenate(starts)
            else:
                all_starts = np.array([run[0] for run in runs])
            if any(run[3] != sizes for run in runs):
                sizes = np.repeat([run[3] for run in runs], [run[2] for run in runs])
        redelivered = None
        if self._flags:
            redelivered = np.zeros(found, np.bool_)
            for place, flags in self._flags:
                redelivered[place : place + (1 if isinstance(flags, bool) else len(flags))] = flags
        return Deliveries(all_starts, sizes, redelivered, self._last_tag)


def decode(encoded: memoryview) -> Frame:
    """One whole frame by pika's codec."""
    try:
        return frame.decode_frame(bytes(encoded))[1]
    except (exceptions.AMQPError, KeyError, struct.error) as error:
        raise TrialError(f"rabbitmq sent a frame that cannot be read: {error!r}") from None
