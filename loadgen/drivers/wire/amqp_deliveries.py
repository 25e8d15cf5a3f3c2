"""Deliveries out of a receive buffer, in place: runs of equal ones as matrices, everything else frame by frame.

A delivery is three kinds of frames: method, header, bodies. The first one is read by a general walk, which learns
the bytes that are the same in every delivery of this consumer; from then on a delivery is recognised by comparing
those bytes, and as many as follow with the same size are compared at once, as rows of 64-bit words.

Where a consumer reads several queues or messages of many routing keys, the keys are not compared, and the consumer tag
ends in the queue's number (`numbered_tag`), which is read from every delivery.

Requests and replies carry properties that differ too, the correlation id and whom to answer: neither is compared, and
where they stand is told (`Deliveries.ids_at`, `.reply_to_at`).
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
    from collections.abc import Callable, Collection, Sequence

    import numpy.typing as npt

    from loadgen.driver import Bool, Int64

RESERVE_BYTES = 8  # a buffer's deliveries begin here or later: words of a row may begin in the bytes before it
_FEW_ROWS = 4  # below this, comparing one by one costs less than numpy's dozen calls
_HEAD_BYTES = FRAME_HEAD.size
_WORD_BYTES = 8
_INDEX = struct.Struct(">I")
_TAG = struct.Struct(">QB")
_SIZE = struct.Struct(">Q")
_FLAGS = struct.Struct(">H")
_CONFIRMS = frozenset((spec.Basic.Ack.INDEX, spec.Basic.Nack.INDEX))
_NUMBER_BYTES = 2  # of a queue, as hexadecimal digits at the end of a consumer tag
_NUMBERS = np.zeros(1 << 16, np.int64)  # by both digits as one number
_NUMBERS[[int.from_bytes(b"%02x" % number, "big") for number in range(256)]] = np.arange(256)
_CORRELATED, _ANSWERABLE = 0x0400, 0x0200  # the flags of the properties correlation-id and reply-to
_NOWHERE = (0, 0)
_FRAME_TYPES = frozenset((spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY, spec.FRAME_HEARTBEAT))


def numbered_tag(tag: str, number: int) -> str:
    """The consumer tag for a queue of this number (0 … 255), where one channel consumes from several."""
    return f"{tag}-{number:02x}"


@dataclass(slots=True)
class Deliveries:
    """What one pass found: n complete messages and the delivery tag of the last one.

    `sources` are the numbers of the queues that they came from (int64[n]), None where consumer tags hold none.
    `ids_at` and `reply_to_at` are where correlation id and reply-to of each begin and end (int64[n, 2], both 0 where a
    message has none), None where nobody asked for them.
    """

    starts: Int64
    sizes: Int64 | int
    redelivered: Bool | None
    last_tag: int
    sources: Int64 | None = None
    ids_at: Int64 | None = None
    reply_to_at: Int64 | None = None


Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Properties:
    """Where the texts of correlation id and reply-to begin and end in a buffer; 0 and 0 where a message has none."""

    correlation: Span = _NOWHERE
    reply_to: Span = _NOWHERE

    @classmethod
    def of(cls, raw: bytearray, header_at: int) -> Properties:
        """From the content header frame at `header_at`."""
        at = header_at + _HEAD_BYTES + 12  # behind class, weight and body size
        (flags,) = _FLAGS.unpack_from(raw, at)
        at += _FLAGS.size
        for flag in (0x8000, 0x4000):  # content type and encoding
            at += 1 + raw[at] if flags & flag else 0
        if flags & 0x2000:  # headers
            at += 4 + _INDEX.unpack_from(raw, at)[0]
        at += bool(flags & 0x1000) + bool(flags & 0x0800)  # delivery mode and priority
        spans = []
        for flag in (_CORRELATED, _ANSWERABLE):
            spans.append((at + 1, at + 1 + raw[at]) if flags & flag else _NOWHERE)
            at = spans[-1][1] or at
        return cls(*spans)

    def minus(self, at: int) -> Properties:
        """The same, counted from `at`."""
        correlation, reply_to = (
            _NOWHERE if each == _NOWHERE else (each[0] - at, each[1] - at) for each in (self.correlation, self.reply_to)
        )
        return Properties(correlation, reply_to)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Those that there are."""
        return tuple(each for each in (self.correlation, self.reply_to) if each != _NOWHERE)


class _Likeness:
    """The bytes that all deliveries of one consumer share, and where the others stand in a row.

    `varying` are places (first, end) that may differ beside delivery tag, redelivered flag, size and body;
    `properties` are counted from the body.
    """

    def __init__(
        self,
        delivery: bytes,
        tag_at: int,
        size_at: int,
        body_at: int,
        varying: Sequence[tuple[int, int]],
        properties: Properties,
    ) -> None:
        self.tag_at, self.size_at, self.body_at = tag_at, size_at, body_at
        self.properties = properties
        self.size = self.last_size = -1
        self.row_bytes = MAX_FRAME_BYTES
        self._varying = varying
        self._delivery = delivery
        self._channel: int = FRAME_HEAD.unpack_from(delivery)[1]
        self._body_head_at = body_at - _HEAD_BYTES
        holes = sorted([(tag_at, tag_at + _TAG.size), (size_at, size_at + _SIZE.size), *varying])
        begins = [0, *(end for _, end in holes)]
        ends = [*(begin for begin, _ in holes), self._body_head_at]
        self._constants = [(begin, delivery[begin:end]) for begin, end in zip(begins, ends, strict=True) if begin < end]
        # Words of a row begin up to eight bytes early, in the end mark of the frame before, so that they end with
        # the last byte before the body.
        self._early = 8 - body_at % 8
        self._words: npt.NDArray[np.uint64]
        self._mask: npt.NDArray[np.uint64]
        self._mask_redelivered: npt.NDArray[np.uint64]
        self._expected = b""

    def size_of(self, raw: bytearray, at: int) -> int:
        """The body size of the delivery at `at` if it is of this likeness with one body frame, else -1."""
        for place, constant in self._constants:
            if not raw.startswith(constant, at + place):
                return -1
        (size,) = _SIZE.unpack_from(raw, at + self.size_at)
        if size == self.size:
            return size if raw.startswith(self._body_head, at + self._body_head_at) else -1
        head = FRAME_HEAD.unpack_from(raw, at + self._body_head_at)
        return size if head == (spec.FRAME_BODY, self._channel, size) else -1

    def fill(self, raw: bytearray, at: int, end: int) -> int:
        """How many deliveries fit from `at` on if all are of the last size and delivered for the first time, else 0.

        One masking and one comparison of bytes: most reads cost no more than this.
        """
        count = (end - at) // self.row_bytes
        words = np.ndarray((count, len(self._words)), np.uint64, raw, at - self._early, (self.row_bytes, _WORD_BYTES))
        masked = (words & self._mask).tobytes()
        if len(self._expected) < len(masked):
            self._expected = self._words.tobytes() * (2 * count)
        if masked != self._expected[: len(masked)] or raw[at + count * self.row_bytes - 1] != FRAME_END:
            return 0
        return count

    def run(self, raw: bytearray, at: int, end: int) -> tuple[int, Bool | None]:
        """How many deliveries of the same size follow each other from `at` (the first is known), with their flags."""
        count = (end - at) // self.row_bytes
        words = np.ndarray((count, len(self._words)), np.uint64, raw, at - self._early, (self.row_bytes, _WORD_BYTES))
        flags = None
        differs = (words & self._mask) != self._words
        if differs.any():
            differs = (words & self._mask_redelivered) != self._words
            wrong = differs.any(axis=1)
            count = int(wrong.argmax()) if wrong.any() else count
            flag_at = at + self.tag_at + _TAG.size - 1
            flags = (np.ndarray((count,), np.uint8, raw, flag_at, (self.row_bytes,)) & 1).astype(np.bool_)
        if count and raw[at + count * self.row_bytes - 1] != FRAME_END:
            count -= 1
        if flags is not None:
            flags = flags[:count] if flags[:count].any() else None
        return count, flags

    def become(self, size: int) -> None:
        """Render words and masks for deliveries of this body size."""
        self.size = size
        self.row_bytes = self.body_at + size + 1
        self._body_head = FRAME_HEAD.pack(spec.FRAME_BODY, self._channel, size)
        row = bytearray(self._delivery[: self._body_head_at] + self._body_head)
        row[self.tag_at : self.tag_at + _TAG.size] = bytes(_TAG.size)
        row[self.size_at : self.size_at + _SIZE.size] = _SIZE.pack(size)
        mask = bytearray(b"\xff" * len(row))
        mask[self.tag_at : self.tag_at + _TAG.size - 1] = bytes(_TAG.size - 1)
        for begin, end in self._varying:
            row[begin:end] = mask[begin:end] = bytes(end - begin)
        self._words = self._as_words(row, FRAME_END)
        self._mask = self._as_words(mask, 0xFF)
        mask[self.tag_at + _TAG.size - 1] = 0xFE
        self._mask_redelivered = self._as_words(mask, 0xFF)
        self._expected = b""

    def _as_words(self, row: bytes | bytearray, end_before: int) -> npt.NDArray[np.uint64]:
        return np.frombuffer(bytes(self._early - 1) + bytes([end_before]) + row, np.uint64)


class DeliveryParser:
    """Finds the deliveries of one consumer in its buffer; every other frame goes to `handle`.

    It stops before a frame of one of the `others`, channels with parsers of their own: RabbitMQ writes the frames of a
    message without others in between.

    Where `is_spread`, deliveries may differ in their routing keys, and consumer tags are numbered (`numbered_tag`);
    where `has_priorities`, in the last property of their header; where `is_correlated`, in correlation id and reply-to,
    and at a confirm a pass ends.

    After a pass `begin` is where the first byte stands that has not been parsed, and `need_bytes` how many there must
    be from there on for another pass to be of use.
    """

    def __init__(
        self,
        handle: Callable[[Frame], None],
        *,
        is_spread: bool = False,
        has_priorities: bool = False,
        is_correlated: bool = False,
        channel: int = CHANNEL,
        others: Collection[int] = (),
    ) -> None:
        self._handle = handle
        self._channel = channel
        self._others = frozenset(others)
        self._is_spread = is_spread
        self._has_priorities = has_priorities
        self._is_correlated = is_correlated
        self._likeness: _Likeness | None = None
        self.begin = self._need_end = 0
        self.need_bytes = 1
        # What one pass has found so far: (first start, distance, count, size) of each run.
        self._runs: list[tuple[int, int, int, int]] = []
        self._flags: list[tuple[int, Bool | bool]] = []  # (how many messages before, flags) where any is set
        self._numbers: list[tuple[int, int, int]] = []  # (place of the queue's number, distance, count) of each run
        self._properties: list[Properties] = []  # of each run, counted from the body
        self._last_tag = 0

    def parse(self, raw: bytearray, begin: int, end: int) -> Deliveries | None:
        """All complete deliveries between `begin` and `end`; None if there is none.

        A body that came in several frames is moved together within the buffer.
        """
        self._need_end = 0
        like, found = self._likeness, 0
        if like is not None and end - begin >= _FEW_ROWS * like.row_bytes and (found := like.fill(raw, begin, end)):
            begin += found * like.row_bytes
            (self._last_tag,) = _SIZE.unpack_from(raw, begin - like.row_bytes + like.tag_at)
            first = begin - found * like.row_bytes + like.body_at
            if begin == end:
                self.begin, self.need_bytes = begin, _HEAD_BYTES + 1
                starts = np.arange(first, end, like.row_bytes)
                self._numbers = [(first - like.body_at + like.tag_at, like.row_bytes, found)]
                self._properties = [like.properties]
                return self._with_properties(
                    Deliveries(starts, like.size, None, self._last_tag, self._sources(raw)), [found]
                )
            self._runs, self._flags = [(first, like.row_bytes, found, like.size)], []
            self._numbers = [(first - like.body_at + like.tag_at, like.row_bytes, found)]
            self._properties = [like.properties]
        else:
            self._runs, self._flags, self._numbers, self._properties = [], [], [], []
        self.begin = begin
        while end - self.begin > _HEAD_BYTES:
            count = self._next_run(raw, end, found)
            if count < 0:
                break
            found += count
        self.need_bytes = max(_HEAD_BYTES + 1, self._need_end - self.begin)
        return self._collect(raw, found) if found else None

    def _next_run(self, raw: bytearray, end: int, found: int) -> int:
        """Take the next run of deliveries or one other frame; how many deliveries, -1 if incomplete."""
        at, like = self.begin, self._likeness
        if like is None or end - at < like.body_at or (size := like.size_of(raw, at)) < 0:
            return self._general(raw, at, end, found)
        row_bytes = like.body_at + size + 1
        if end - at < row_bytes:
            self._need_end = at + row_bytes
            return -1
        if size != like.size and size == like.last_size:  # two of a size: more are likely
            like.become(size)
        like.last_size = size
        flags = None
        if size == like.size and end - at >= _FEW_ROWS * row_bytes:
            count, flags = like.run(raw, at, end)
        else:
            count = int(raw[at + row_bytes - 1] == FRAME_END)
        if not count:
            return self._general(raw, at, end, found)
        last = at + (count - 1) * row_bytes
        self._last_tag, bits = _TAG.unpack_from(raw, last + like.tag_at)
        self._runs.append((at + like.body_at, row_bytes, count, size))
        self._properties.append(like.properties)
        self._numbers.append((at + like.tag_at, row_bytes, count))
        self.begin = last + row_bytes
        if flags is not None:
            self._flags.append((found, flags))
        elif bits & 1:
            self._flags.append((found, True))
        return count

    def _general(self, raw: bytearray, at: int, end: int, found: int) -> int:
        """One delivery or one other frame, with nothing taken for granted."""
        frame_end = self._frame_end(raw, at, end)
        if frame_end < 0:
            return -1
        kind, channel, _ = FRAME_HEAD.unpack_from(raw, at)
        if channel in self._others:
            return -1
        is_method = kind == spec.FRAME_METHOD and frame_end - at > _HEAD_BYTES + _INDEX.size
        if not is_method or channel != self._channel:
            self._handle(decode(raw[at:frame_end]))
            self.begin = frame_end
            return 0
        index = _INDEX.unpack_from(raw, at + _HEAD_BYTES)[0]
        if self._is_correlated and index in _CONFIRMS:
            return -1
        if index != spec.Basic.Deliver.INDEX:
            self._handle(decode(raw[at:frame_end]))
            self.begin = frame_end
            return 0
        return self._delivery(raw, at, frame_end, end, found)

    def _delivery(self, raw: bytearray, at: int, method_end: int, end: int, found: int) -> int:
        """The delivery whose method frame is at `at`: find its header and bodies, move the bodies together."""
        header = self._content_frame(raw, method_end, end, spec.FRAME_HEADER)
        if header is None:
            return -1
        header_at, header_end = header
        (size,) = _SIZE.unpack_from(raw, header_at + _HEAD_BYTES + 4)
        if size > MAX_FRAME_BYTES:
            raise TrialError(f"rabbitmq announced a message of {size} bytes; expected at most {MAX_FRAME_BYTES}")
        pieces: list[Span] = []
        missing, body_end = size, header_end
        while missing:
            body = self._content_frame(raw, body_end, end, spec.FRAME_BODY)
            if body is None:
                self._need_end = max(self._need_end, body_end + missing + _HEAD_BYTES + 1)
                return -1
            body_at, body_end = body
            pieces.append((body_at + _HEAD_BYTES, body_end - 1))
            missing -= body_end - body_at - _HEAD_BYTES - 1
        if missing < 0:
            raise TrialError("rabbitmq sent a message whose body is longer than its header says")
        tag_at = at + _HEAD_BYTES + _INDEX.size + 1 + raw[at + _HEAD_BYTES + _INDEX.size]
        self._last_tag, bits = _TAG.unpack_from(raw, tag_at)
        start = pieces[0][0] if pieces else header_end
        properties = Properties.of(raw, header_at) if self._is_correlated else Properties()
        if len(pieces) == 1 and header_at == method_end and start == header_end + _HEAD_BYTES:
            size_at = header_at + _HEAD_BYTES + 4
            varying = [*self._varying(raw, at, tag_at, header_end), *properties.minus(at).spans]
            self._likeness = _Likeness(
                bytes(raw[at:start]), tag_at - at, size_at - at, start - at, varying, properties.minus(start)
            )
        self._properties.append(properties.minus(start))
        _join(raw, pieces)
        if bits & 1:
            self._flags.append((found, True))
        self._runs.append((start, size, 1, size))
        self._numbers.append((tag_at, size, 1))
        self.begin = body_end
        return 1

    def _varying(self, raw: bytearray, at: int, tag_at: int, header_end: int) -> list[tuple[int, int]]:
        """Where a delivery like the one at `at` may differ: queue's number and routing key, priority; from there on."""
        varying = []
        if self._is_spread:
            exchange_at = tag_at + _TAG.size
            key_at = exchange_at + 1 + raw[exchange_at]
            varying += [(tag_at - _NUMBER_BYTES - at, tag_at - at), (key_at + 1 - at, key_at + 1 + raw[key_at] - at)]
        if self._has_priorities:  # the last of the properties that messages have, before the frame's end mark
            varying.append((header_end - 2 - at, header_end - 1 - at))
        return varying

    def _sources(self, raw: bytearray) -> Int64 | None:
        """The number of the queue of each message found; it stands before the delivery tag."""
        if not self._is_spread:
            return None
        digits = [
            np.ndarray((count,), ">u2", raw, place - _NUMBER_BYTES, (distance,))
            for place, distance, count in self._numbers
        ]
        sources: Int64 = _NUMBERS[np.concatenate(digits)]
        return sources

    def _content_frame(self, raw: bytearray, at: int, end: int, kind: int) -> tuple[int, int] | None:
        """The next frame of the content being read; frames of the connection may stand before it."""
        while (frame_end := self._frame_end(raw, at, end)) >= 0:
            found, channel, _ = FRAME_HEAD.unpack_from(raw, at)
            if channel == self._channel:
                if found != kind:
                    raise TrialError(f"rabbitmq sent a frame of type {found} within a message; expected type {kind}")
                return at, frame_end
            self._handle(decode(raw[at:frame_end]))
            at = frame_end
        return None

    def _frame_end(self, raw: bytearray, at: int, end: int) -> int:
        """Where the frame at `at` ends, -1 if it is incomplete; raises TrialError if it is none."""
        if end - at < _HEAD_BYTES:
            self._need_end = at + _HEAD_BYTES + 1
            return -1
        kind, _, length = FRAME_HEAD.unpack_from(raw, at)
        frame_end = at + _HEAD_BYTES + length + 1
        if kind not in _FRAME_TYPES or length > MAX_FRAME_BYTES:
            raise TrialError("rabbitmq sent bytes that are no AMQP frame; the connection cannot be trusted")
        if frame_end > end:
            self._need_end = frame_end
            return -1
        if raw[frame_end - 1] != FRAME_END:
            raise TrialError("rabbitmq sent a frame without its end mark; the connection cannot be trusted")
        return int(frame_end)

    def _collect(self, raw: bytearray, found: int) -> Deliveries:
        runs = self._runs
        sizes: Int64 | int = runs[0][3]
        if len(runs) == found:
            starts = np.array([first for first, _, _, _ in runs])
        else:
            starts = np.concatenate([np.arange(count) * distance + first for first, distance, count, _ in runs])
        if any(size != sizes for _, _, _, size in runs):
            sizes = np.repeat([size for _, _, _, size in runs], [count for _, _, count, _ in runs])
        redelivered = None
        if self._flags:
            redelivered = np.zeros(found, np.bool_)
            for place, flags in self._flags:
                redelivered[place : place + (1 if isinstance(flags, bool) else len(flags))] = flags
        return self._with_properties(
            Deliveries(starts, sizes, redelivered, self._last_tag, self._sources(raw)),
            [count for _, _, count, _ in runs],
        )

    def _with_properties(self, found: Deliveries, counts: Sequence[int]) -> Deliveries:
        """Where correlation ids and reply-tos stand; `counts` are how many deliveries each run has."""
        if not self._is_correlated:
            return found
        for name, spans in (
            ("ids_at", [each.correlation for each in self._properties]),
            ("reply_to_at", [each.reply_to for each in self._properties]),
        ):
            places = np.repeat(np.array(spans, np.int64), counts, axis=0)
            places += np.where(places[:, 1:] != 0, found.starts[:, None], 0)
            setattr(found, name, places)
        return found


def _join(raw: bytearray, pieces: Sequence[Span]) -> None:
    """Move the pieces of a body together, behind the first one."""
    filled = pieces[0][0] if pieces else 0
    for first, last in pieces:
        if first != filled:
            raw[filled : filled + last - first] = raw[first:last]
        filled += last - first


def decode(encoded: bytearray) -> Frame:
    """One whole frame by pika's codec."""
    try:
        return frame.decode_frame(bytes(encoded))[1]
    except (exceptions.AMQPError, KeyError, struct.error) as error:
        raise TrialError(f"rabbitmq sent a frame that cannot be read: {error!r}") from None
