"""AMQP 0-9-1 bytes in bulk: publishes as rows of one matrix, confirms and deliveries parsed as rows of another.

Every publish to one exchange with bodies of one size has the same length (routing keys are of one length) and differs
only in routing key and body, and so nearly do the deliveries of one consumer (delivery tag, redelivered flag and body)
and all single confirms (tag, flag). Hence the hot frames are byte matrices; pika's codec makes the templates, and reads
every frame that is not hot.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from pika import frame, spec

from loadgen.errors import TrialError

if TYPE_CHECKING:
    from loadgen.driver import Bool, Int64, UInt8, UInt64
    from loadgen.drivers.rabbitmq_topology import Routes
    from loadgen.payload import Payloads

CHANNEL = 1
FRAME_OVERHEAD_BYTES = 8  # type, channel, size before the payload and the end mark after it
FRAME_END = spec.FRAME_END
MAX_FRAME_BYTES = 1 << 30  # a length beyond it is no frame: RabbitMQ's largest message is 512 MiB

FRAME_HEAD = struct.Struct(">BHI")
_BODY_SIZE = struct.Struct(">Q")

Frame = Any  # pika's frames carry no types

CORRELATION_BYTES = 16
_PLACE_OF_ID = "correlation-id--"
_HEX_DIGITS = np.frombuffer(b"".join(b"%02x" % number for number in range(256)), np.uint8).reshape(256, 2)


def correlation_ids(identities: UInt64) -> UInt8:
    """A message's identity (uint64[n], as in its stamp) as 16 hexadecimal digits: uint8[n, 16]."""
    digits: UInt8 = _HEX_DIGITS[identities.astype(">u8").view(np.uint8)].reshape(len(identities), CORRELATION_BYTES)
    return digits


def encode(method: Any, channel: int = CHANNEL) -> bytes:
    """One method frame by pika's codec."""
    encoded: bytes = frame.Method(channel, method).marshal()
    return encoded


class PublishHead:
    """The method and header frames of one producer's publishes: alike but for routing key, body size and properties.

    These are a priority, or a correlation id where `reply_to` says whom to answer or the publish `is_reply`: not both.
    """

    def __init__(
        self,
        routes: Routes,
        *,
        persistent: bool,
        mandatory: bool,
        priorities: int | None = None,
        reply_to: str | None = None,
        is_reply: bool = False,
        channel: int = CHANNEL,
    ) -> None:
        self.routes = routes
        self.channel = channel
        self._priorities = priorities
        self.is_correlated = is_reply or reply_to is not None
        assert not (priorities and self.is_correlated), "a priority is looked for in the last property"
        publish = spec.Basic.Publish(exchange=routes.exchange, routing_key=routes.text(), mandatory=mandatory)
        self._method = encode(publish, channel)
        self._properties = spec.BasicProperties(
            delivery_mode=2 if persistent else 1,
            headers=None if routes.headers is None else dict(routes.headers),
            priority=0 if priorities else None,
            correlation_id=_PLACE_OF_ID if self.is_correlated else None,
            reply_to=reply_to,
        )
        # Behind the frame's head, the method's index, a short that means nothing, and the exchange: all but the key.
        self.key_at = FRAME_HEAD.size + 4 + 2 + 1 + len(routes.exchange.encode()) + 1
        self.key_bytes = routes.keys.shape[1]

    def priority_of(self, first_seq: int, count: int) -> Int64 | None:
        """The priority of each of messages first_seq … (int64[count]); None where there are none."""
        return np.arange(first_seq, first_seq + count) % self._priorities if self._priorities else None

    def frames(self, size_bytes: int) -> bytes:
        """For a body of so many bytes, with the first routing key."""
        header: bytes = frame.Header(self.channel, size_bytes, self._properties).marshal()
        return self._method + header

    @property
    def correlation_at(self) -> int | None:
        """Where the correlation id stands, None where there is none."""
        return self.frames(0).index(_PLACE_OF_ID.encode(), len(self._method)) if self.is_correlated else None

    def pieces(self) -> tuple[bytes, bytes, bytes, bytes]:
        """What stands before the routing key, between key and body size, behind that, and behind a correlation id."""
        whole = self.frames(0)
        size_at = len(self._method) + FRAME_HEAD.size + 4  # behind class and weight
        end = len(whole) if self.correlation_at is None else self.correlation_at
        return (
            whole[: self.key_at],
            whole[self.key_at + self.key_bytes : size_at],
            whole[size_at + _BODY_SIZE.size : end],
            whole[end + CORRELATION_BYTES :],
        )


class PublishTemplate:
    """Publishes of one fixed body size to one exchange, as rows whose constant bytes are written once and for all.

    `row_bytes` is a whole publish: method, header and as many body frames as `frame_max` makes necessary.
    """

    def __init__(self, head: PublishHead, size_bytes: int, frame_max: int, rows: int) -> None:
        self._head = head
        row = bytearray(head.frames(size_bytes))
        self._priority_at = len(row) - 2  # the last property, before the frame's end mark
        self._pieces: list[tuple[int, int, int]] = []  # (column of the row, first and last byte of the body)
        largest = frame_max - FRAME_OVERHEAD_BYTES
        for begin in range(0, size_bytes, largest):
            end = min(size_bytes, begin + largest)
            self._pieces.append((len(row) + FRAME_HEAD.size, begin, end))
            row += frame.Body(head.channel, bytes(end - begin)).marshal()
        self.row_bytes = len(row)
        self._routes = head.routes
        self._matrix = np.tile(np.frombuffer(row, np.uint8), (rows, 1))
        self._flat = self._matrix.reshape(-1).data
        self._keys = self._matrix[:, head.key_at : head.key_at + head.key_bytes]
        at = head.correlation_at
        self._correlations = None if at is None else self._matrix[:, at : at + CORRELATION_BYTES]
        self._bodies = self._matrix[:, self._pieces[0][0] : self._pieces[0][0] + self._pieces[0][2]]
        self._scratch = np.empty((rows, size_bytes), np.uint8) if len(self._pieces) > 1 else None

    def fill(self, payloads: Payloads, first_seq: int, intended_ns: Int64, sent_ns: int) -> memoryview:
        """The frames of messages first_seq …; valid until the next call."""
        count = len(intended_ns)
        routes = self._routes.rows(payloads, first_seq, count)
        if routes is not None:
            self._keys[:count] = self._routes.keys[routes]
        if (priorities := self._head.priority_of(first_seq, count)) is not None:
            self._matrix[:count, self._priority_at] = priorities
        if self._correlations is not None:
            self._correlations[:count] = correlation_ids(payloads.identities(first_seq, count))
        if self._scratch is None:
            payloads.write(self._bodies[:count], first_seq, intended_ns, sent_ns)
        else:
            payloads.write(self._scratch[:count], first_seq, intended_ns, sent_ns)
            for column, begin, end in self._pieces:
                self._matrix[:count, column : column + end - begin] = self._scratch[:count, begin:end]
        return self._flat[: count * self.row_bytes]


class PublishPacker:
    """Publishes of mixed sizes, one after the other: the correct path where rows are of different lengths."""

    def __init__(self, head: PublishHead, frame_max: int) -> None:
        self._head = head
        self._routes = head.routes
        self._before, self._between, self._after, self._last = head.pieces()
        self._first = self._before + head.routes.keys[0].tobytes() + self._between
        self._largest = frame_max - FRAME_OVERHEAD_BYTES

    def fill(self, payloads: Payloads, first_seq: int, intended_ns: Int64, sent_ns: int) -> memoryview:
        """The frames of messages first_seq …."""
        flat, offsets = payloads.pack(first_seq, intended_ns, sent_ns)
        routes = self._routes.rows(payloads, first_seq, len(intended_ns))
        rows = [0] * len(intended_ns) if routes is None else routes.tolist()
        bodies = flat.data
        end_mark = bytes([FRAME_END])
        pieces: list[bytes | memoryview] = []
        ends = self._ends(payloads, first_seq, len(rows))
        for row, after, (begin, end) in zip(rows, ends, pairwise(offsets.tolist()), strict=True):
            front = self._first if not row else self._before + self._routes.keys[row].tobytes() + self._between
            pieces += (front, _BODY_SIZE.pack(end - begin), after)
            for first in range(begin, end, self._largest):
                last = min(end, first + self._largest)
                pieces += (
                    FRAME_HEAD.pack(spec.FRAME_BODY, self._head.channel, last - first),
                    bodies[first:last],
                    end_mark,
                )
        return memoryview(b"".join(pieces))

    def _ends(self, payloads: Payloads, first_seq: int, count: int) -> list[bytes]:
        """What stands behind the body size in the header of each of messages first_seq …."""
        if self._head.is_correlated:
            ids = correlation_ids(payloads.identities(first_seq, count))
            return [self._after + each.tobytes() + self._last for each in ids]
        priorities = self._head.priority_of(first_seq, count)
        return [self._after] * count if priorities is None else [self._after_of(each) for each in priorities.tolist()]

    def _after_of(self, priority: int) -> bytes:
        """What stands behind the body size in the header of a message of this priority."""
        return self._after[:-2] + bytes([priority]) + self._after[-1:]


# --- confirms ---

_CONFIRM = struct.Struct(">7sIQBB")  # frame head, class and method, delivery tag, bits, frame end
_ACK, _NACK = spec.Basic.Ack.INDEX, spec.Basic.Nack.INDEX
_CONFIRM_BYTES = 13  # of its payload
_FEW_CONFIRMS = 16  # below this, unpacking one by one costs less than numpy's dozen calls


class Unconfirmed:
    """A channel's tags sent and not settled: each leaves exactly once, whatever the order of acks, nacks and returns.

    All tags below `low` are settled; those settled beyond it are marked in a ring until `low` has passed them.
    """

    def __init__(self, window: int, channel: int = CHANNEL) -> None:
        self.confirm_head = FRAME_HEAD.pack(spec.FRAME_METHOD, channel, _CONFIRM_BYTES)
        self.low = 1
        self.high = 0
        self.count = 0
        self._window = window
        self._ring_mask = (1 << (window.bit_length() + 2)) - 1
        self._ring = np.zeros(self._ring_mask + 1, np.bool_)

    @property
    def room(self) -> int:
        """How many more may be sent: the window, and the ring where an early tag is still open long after others."""
        return min(self._window - self.count, self._ring_mask - (self.high - self.low))

    def sent(self, count: int) -> None:
        """The next `count` tags have been sent."""
        self.high += count
        self.count += count
        assert self.high - self.low <= self._ring_mask, "more messages unconfirmed than the window allows"

    def through(self, tag: int) -> Int64:
        """Settle every tag up to and with `tag`; returns those that were not settled before."""
        self._expect(tag)
        if tag < self.low:
            return np.empty(0, np.int64)
        tags = np.arange(self.low, tag + 1)
        if self.count != self.high - self.low + 1:  # some were settled out of order
            places = tags & self._ring_mask
            tags = tags[~self._ring[places]]
            self._ring[places] = False
        self.count -= len(tags)
        self.low = tag + 1
        self._advance()
        return tags

    def each(self, tags: Int64) -> Int64:
        """Settle these tags; returns those that were not settled before."""
        self._expect(int(tags.max()))
        tags = np.unique(tags)
        tags = tags[tags >= self.low]
        places = tags & self._ring_mask
        fresh = ~self._ring[places]
        tags, places = tags[fresh], places[fresh]
        self._ring[places] = True
        self.count -= len(tags)
        self._advance()
        return tags

    def _advance(self) -> None:
        """Move `low` past what the ring says is settled."""
        if self.count == self.high - self.low + 1 or not self._ring[self.low & self._ring_mask]:
            return
        places = np.arange(self.low, self.high + 1) & self._ring_mask
        settled = self._ring[places]
        run = len(settled) if settled.all() else int(settled.argmin())
        self._ring[places[:run]] = False
        self.low += run

    def _expect(self, tag: int) -> None:
        if tag > self.high:
            raise TrialError(f"rabbitmq confirmed delivery tag {tag}, but only {self.high} messages were published")


def parse_confirms(
    buffer: UInt8, begin: int, end: int, unconfirmed: Unconfirmed
) -> tuple[int, list[tuple[Int64, bool]]]:
    """Settle the acks and nacks at `begin` … as far as there is nothing else between them.

    Returns where it stopped (at another frame or at an incomplete one) and, in order, the tags that were settled,
    with whether they were refused.
    """
    count = (end - begin) // _CONFIRM.size
    if count > _FEW_CONFIRMS:
        return _parse_many_confirms(buffer, begin, count, unconfirmed)
    settled: list[tuple[Int64, bool]] = []
    view = buffer.data
    first, refused = unconfirmed.low, False  # a run of tags settled in order, not yet in `settled`
    while end - begin >= _CONFIRM.size:
        head, index, tag, bits, mark = _CONFIRM.unpack_from(view, begin)
        if head != unconfirmed.confirm_head or index not in {_ACK, _NACK} or mark != FRAME_END:
            break
        begin += _CONFIRM.size
        if (index == _NACK) != refused:
            if unconfirmed.low > first:
                settled.append((np.arange(first, unconfirmed.low), refused))
            first, refused = unconfirmed.low, index == _NACK
        in_order = unconfirmed.count == unconfirmed.high - unconfirmed.low + 1
        if in_order and unconfirmed.low <= tag <= unconfirmed.high and (bits & 1 or tag == unconfirmed.low):
            unconfirmed.count -= tag + 1 - unconfirmed.low
            unconfirmed.low = tag + 1
            continue
        if unconfirmed.low > first:
            settled.append((np.arange(first, unconfirmed.low), refused))
        tags = unconfirmed.through(tag) if bits & 1 else unconfirmed.each(np.array([tag]))
        if len(tags):
            settled.append((tags, refused))
        first = unconfirmed.low
    if unconfirmed.low > first:
        settled.append((np.arange(first, unconfirmed.low), refused))
    return begin, settled


def _parse_many_confirms(
    buffer: UInt8, begin: int, count: int, unconfirmed: Unconfirmed
) -> tuple[int, list[tuple[Int64, bool]]]:
    size = _CONFIRM.size
    rows = buffer[begin : begin + count * size].reshape(count, size)
    indices = rows[:, 7:11].copy().view(">u4")[:, 0]
    good = (rows[:, :7] == np.frombuffer(unconfirmed.confirm_head, np.uint8)).all(axis=1)
    good &= (indices == _ACK) | (indices == _NACK)
    good &= rows[:, -1] == FRAME_END
    if not good.all():
        count = int(good.argmin())
    if not count:
        return begin, []
    tags = rows[:count, 11:19].copy().view(">i8")[:, 0].astype(np.int64)
    multiple = (rows[:count, 19] & 1).astype(np.bool_)
    refused = indices[:count] == _NACK
    return begin + count * size, settle_confirms(tags, multiple, refused, unconfirmed)


def settle_confirms(tags: Int64, multiple: Bool, refused: Bool, unconfirmed: Unconfirmed) -> list[tuple[Int64, bool]]:
    """Settle confirms in the order they came; the tags settled, with whether they were refused."""
    edges = [0, *(np.flatnonzero(np.diff(refused)) + 1).tolist(), len(tags)]
    settled: list[tuple[Int64, bool]] = []
    for first, last in pairwise(edges):
        # Within one kind the order is of no consequence: all up to the highest `multiple`, and each single one.
        wide = tags[first:last][multiple[first:last]]
        single = tags[first:last][~multiple[first:last]]
        news = [unconfirmed.through(int(wide.max()))] if len(wide) else []
        news += [unconfirmed.each(single)] if len(single) else []
        settled += [(new, bool(refused[first])) for new in news if len(new)]
    return settled
