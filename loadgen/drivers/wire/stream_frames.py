"""Publish frames of a batch of messages, made by numpy; RabbitMQ's routing of keys to a super stream's partitions.

A message is an entry: its length and an AMQP 1.0 message of one data section, so that every client can read it. In a
frame each entry has a publishing id before it, or, in sub-entries, a group of them has one. Publishing ids are
sequence numbers + 1 (0 is what the broker says of a publisher that it does not know).
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import cramjam
import numpy as np

from loadgen.drivers.wire.kafka_codecs import CODECS, Codecs
from loadgen.drivers.wire.stream_protocol import VERSION, Key

if TYPE_CHECKING:
    from loadgen.driver import Int64, UInt8
    from loadgen.payload import Payloads

HEAD = struct.Struct(">IHHBi")  # size, key, version, publisher, entries
ID_BYTES = 8
LENGTH_BYTES = 4
SUB_ENTRY = struct.Struct(">QBHII")  # publishing id, codec, messages, bytes, compressed bytes
SUB_ENTRY_BIT = 0x80
MAX_SUB_ENTRY_MSGS = 0xFFFF
ROUTING_SEED = 104_729  # that of every RabbitMQ stream client
_EXPANSION = 0.97  # the share of a frame that is filled with sub-entries: a codec may make random bytes longer
_ALL = slice(None)


def data_head(size_bytes: int) -> bytes:
    """What stands before a body of so many bytes: an AMQP 1.0 data section, in the shorter of its two encodings."""
    return b"\x00\x53\x75" + (bytes((0xA0, size_bytes)) if size_bytes <= 0xFF else struct.pack(">BI", 0xB0, size_bytes))


class StreamCodecs(Codecs):
    """Kafka's codecs but for snappy, which stream clients put into snappy's own framing."""

    def compress(self, codec: int, data: memoryview) -> bytes:
        """The entries of a sub-entry, compressed by codec number `codec` (0 is none)."""
        if codec == 0:
            return bytes(data)
        return bytes(cramjam.snappy.compress(data)) if codec == 2 else super().compress(codec, data)

    def _decompress(self, codec: int, data: memoryview) -> bytes:
        if codec == 0:
            return bytes(data)
        return bytes(cramjam.snappy.decompress(data)) if codec == 2 else super()._decompress(codec, data)


class FixedRows:
    """Messages of one size as rows of a matrix: publishing id, length, data section."""

    def __init__(self, payloads: Payloads, capacity: int) -> None:
        assert payloads.size_bytes is not None
        self._payloads = payloads
        head = data_head(payloads.size_bytes)
        self.row_bytes = ID_BYTES + LENGTH_BYTES + len(head) + payloads.size_bytes
        self.frame = bytearray(HEAD.size + capacity * self.row_bytes)  # a frame's head has its place before the rows
        self._matrix = np.frombuffer(self.frame, np.uint8, offset=HEAD.size).reshape(capacity, self.row_bytes)
        length = struct.pack(">I", len(head) + payloads.size_bytes)
        self._matrix[:, ID_BYTES : ID_BYTES + LENGTH_BYTES + len(head)] = np.frombuffer(length + head, np.uint8)
        self._ids: np.ndarray[Any, Any] = np.ndarray((capacity,), ">u8", self.frame, HEAD.size, (self.row_bytes,))
        self._body_at = ID_BYTES + LENGTH_BYTES + len(head)
        self._count = 0

    def fill(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Take messages first_seq …; their bytes stay until the next call."""
        self._count = count = len(intended_ns)
        self._ids[:count] = np.arange(first_seq + 1, first_seq + 1 + count)
        self._payloads.write(self._matrix[:count, self._body_at :], first_seq, intended_ns, sent_ns)

    def with_ids(self, rows: Int64 | slice) -> bytes:
        """Rows behind each other, each with its publishing id."""
        return self._matrix[: self._count][rows].tobytes()

    def entries(self, rows: Int64 | slice) -> bytes:
        """Rows behind each other, without publishing ids."""
        return self._matrix[: self._count, ID_BYTES:][rows].tobytes()


class MixedRows:
    """Messages of any sizes, one by one."""

    def __init__(self, payloads: Payloads) -> None:
        self._payloads = payloads
        self._entries: list[bytes] = []
        self._first_id = 0

    def fill(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Take messages first_seq …; their bytes stay until the next call."""
        flat, offsets = self._payloads.pack(first_seq, intended_ns, sent_ns)
        view = flat.data
        self._first_id = first_seq + 1
        self._entries = [entry(view[begin:end]) for begin, end in pairwise(offsets.tolist())]

    def with_ids(self, rows: Int64 | slice) -> bytes:
        """Messages behind each other, each with its publishing id."""
        chosen = range(len(self._entries))[rows] if isinstance(rows, slice) else rows.tolist()
        return b"".join(struct.pack(">Q", self._first_id + row) + self._entries[row] for row in chosen)

    def entries(self, rows: Int64 | slice) -> bytes:
        """Messages behind each other, without publishing ids."""
        chosen = self._entries[rows] if isinstance(rows, slice) else [self._entries[row] for row in rows.tolist()]
        return b"".join(chosen)


def entry(body: memoryview | bytes) -> bytes:
    """One message as it stands in a chunk."""
    head = data_head(len(body))
    return struct.pack(">I", len(head) + len(body)) + head + body


class PublishPacker:
    """The frames of one producer's batches; `rows` is how many messages go into a batch at most.

    Message k goes to the partition of its key, without keys to one partition a batch in turn. With `group_msgs` over 1
    so many make a sub-entry, compressed by `codec`; what `pack` returns then are the messages behind each id.
    """

    def __init__(
        self, payloads: Payloads, frame_max: int, *, partitions: int = 1, group_msgs: int = 1, codec: str = "none"
    ) -> None:
        self._payloads = payloads
        self._frame_max = frame_max
        self._codec = CODECS.index(codec)
        self._codecs = StreamCodecs()
        self._group_msgs = group_msgs
        self._is_grouped = group_msgs > 1 or self._codec > 0
        overhead = LENGTH_BYTES + len(data_head(payloads.message.max_size_bytes))
        each = overhead + payloads.message.max_size_bytes + (SUB_ENTRY.size if self._is_grouped else ID_BYTES)
        room = (frame_max - HEAD.size) * (_EXPANSION if self._is_grouped else 1)
        self.rows = max(1, int(room / each))
        fixed = payloads.size_bytes is not None
        self._rows: FixedRows | MixedRows = FixedRows(payloads, self.rows) if fixed else MixedRows(payloads)
        self._partitions = partitions
        self._turn = payloads.producer % partitions
        keys = payloads.message.key_count
        self._partition_of = key_partitions(keys, partitions) if keys and partitions > 1 else None

    def pack(
        self, first_seq: int, intended_ns: Int64, sent_ns: int
    ) -> tuple[list[memoryview], list[tuple[int, int, Int64]]]:
        """The frames of messages first_seq …, and with sub-entries (publisher, id, sequence numbers) of each.

        The publisher's number is the partition's. Frames are valid until the next call.
        """
        rows, count = self._rows, len(intended_ns)
        rows.fill(first_seq, intended_ns, sent_ns)
        shares = self._shares(first_seq, count)
        if not self._is_grouped:
            if isinstance(rows, FixedRows) and len(shares) == 1:
                size = HEAD.size + count * rows.row_bytes
                HEAD.pack_into(rows.frame, 0, size - 4, Key.PUBLISH, VERSION, shares[0][0], count)
                return [memoryview(rows.frame)[:size]], []
            return [self._frame(number, rows.with_ids(which), n) for number, which, n in shares], []
        frames, groups = [], []
        for number, which, _ in shares:
            place = np.arange(count) if isinstance(which, slice) else which
            parts = np.split(place, range(self._group_msgs, len(place), self._group_msgs))
            frames.append(self._frame(number, b"".join(map(self._sub_entry, parts, [first_seq] * len(parts))),
                                      len(parts)))  # fmt: skip
            groups += [(number, int(part[-1]) + first_seq + 1, part + first_seq) for part in parts]
        return frames, groups

    def _shares(self, first_seq: int, count: int) -> list[tuple[int, Int64 | slice, int]]:
        """Which rows go to which partition, and how many they are."""
        if self._partition_of is not None:
            indices = self._payloads.key_indices(first_seq, count)
            assert indices is not None
            chosen = self._partition_of[indices]
            found = [(int(number), np.flatnonzero(chosen == number)) for number in np.unique(chosen)]
            return [(number, which, len(which)) for number, which in found]
        self._turn = (self._turn + 1) % self._partitions
        return [(self._turn, _ALL, count)]

    def _sub_entry(self, part: Int64, first_seq: int) -> bytes:
        plain = self._rows.entries(part)
        packed = self._codecs.compress(self._codec, memoryview(plain))
        kind = SUB_ENTRY_BIT | self._codec << 4
        return SUB_ENTRY.pack(int(part[-1]) + first_seq + 1, kind, len(part), len(plain), len(packed)) + packed

    def _frame(self, publisher: int, body: bytes, count: int) -> memoryview:
        size = HEAD.size + len(body)
        assert size <= self._frame_max + 4, f"a frame of {size} bytes, over {self._frame_max}"
        return memoryview(HEAD.pack(size - 4, Key.PUBLISH, VERSION, publisher, count) + body)


def key_partitions(keys: int, partitions: int) -> Int64:
    """The partition of each key, int64[keys], as RabbitMQ's clients hash the key's number in decimal digits."""
    found = np.empty(keys, np.int64)
    for digits in range(1, len(str(keys - 1)) + 1):
        low, high = (10 ** (digits - 1) if digits > 1 else 0), min(keys, 10**digits)
        numbers = np.arange(low, high)
        columns = [(numbers // 10**place % 10 + ord("0")).astype(np.uint8) for place in reversed(range(digits))]
        found[low:high] = murmur3(np.stack(columns, axis=1), ROUTING_SEED) % partitions
    return found


def murmur3(rows: UInt8, seed: int) -> Int64:
    """MurmurHash3 x86 32-bit of each row of uint8[n, length], as unsigned numbers (Appleby's reference)."""
    mask = np.uint64(0xFFFFFFFF)
    count, length = rows.shape
    mixed = np.full(count, seed, np.uint64)
    for begin in range(0, length, 4):
        word = np.zeros(count, np.uint64)
        for place in range(min(4, length - begin)):
            word |= rows[:, begin + place].astype(np.uint64) << np.uint64(8 * place)
        word = word * np.uint64(0xCC9E2D51) & mask
        word = (word << np.uint64(15) | word >> np.uint64(17)) & mask
        mixed ^= word * np.uint64(0x1B873593) & mask
        if begin + 4 <= length:
            mixed = (mixed << np.uint64(13) | mixed >> np.uint64(19)) & mask
            mixed = (mixed * np.uint64(5) + np.uint64(0xE6546B64)) & mask
    mixed ^= np.uint64(length)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(factor) & mask
    return (mixed ^ mixed >> np.uint64(16)).astype(np.int64)
