"""Kafka record batches (format v2) as byte matrices: made once for a message size, then only stamped and sealed.

Records of one size differ in length by their offset delta alone, a varint of one, two or three bytes; so a batch is at
most three matrices, and a batch of k records is the beginning of any longer one. A buffer is therefore made for the
largest batch, filled from its first row on, and sealed (header, CRC32C) at whatever count it has when it leaves.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from crc32c import crc32c

from loadgen.payload import STAMP_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Int64, UInt8
    from loadgen.drivers.wire.kafka_codecs import Codecs
    from loadgen.payload import Payloads

HEADER_BYTES = 61
CRC_FROM = 21  # the checksum covers everything from the attributes on
MAX_RECORDS = 1 << 20  # offset deltas of at most three bytes
KEY_BYTES = 8
_DELTA_LIMITS = (64, 8192, MAX_RECORDS)  # from here on the offset delta takes one byte more
_HEAD = struct.Struct(">qiibI")  # base offset, length, leader epoch, magic, CRC
_BODY = struct.Struct(">hiqqqhii")  # attributes, last delta, two times, producer id and epoch, sequence, count
_MURMUR_SEED = 0x9747B28C
_MURMUR_M = 0x5BD1E995
_U32 = 0xFFFFFFFF


def zigzag_varint(value: int) -> bytes:
    """A signed varint as Kafka's records have them."""
    return uvarint((value << 1) ^ (value >> 63))


def uvarint(value: int) -> bytes:
    """An unsigned varint: seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def murmur2(keys: UInt8) -> Int64:
    """Kafka's murmur2 of each row of uint8[n, length], as int64[n] in 0 … 2^32−1."""
    count, length = keys.shape
    mixed = np.full(count, (_MURMUR_SEED ^ length) & _U32, np.uint64)
    m, mask = np.uint64(_MURMUR_M), np.uint64(_U32)
    whole = length // 4 * 4
    words = np.ascontiguousarray(keys[:, :whole]).view("<u4").reshape(count, whole // 4)
    for column in range(whole // 4):
        word = words[:, column].astype(np.uint64) * m & mask
        word = (word ^ (word >> np.uint64(24))) * m & mask
        mixed = (mixed * m & mask) ^ word
    if whole < length:
        for column in range(whole, length):
            mixed ^= keys[:, column].astype(np.uint64) << np.uint64(8 * (column - whole))
        mixed = mixed * m & mask
    mixed = (mixed ^ (mixed >> np.uint64(13))) * m & mask
    mixed ^= mixed >> np.uint64(15)
    return mixed.astype(np.int64)


def key_table(keys: int) -> UInt8:
    """The bytes of every key: its index as eight big-endian bytes, uint8[keys, 8]."""
    return np.arange(keys, dtype=">i8").view(np.uint8).reshape(keys, KEY_BYTES)


def key_partitions(table: UInt8, partitions: int) -> Int64:
    """Where Java's default partitioner sends each key: toPositive(murmur2(key)) % partitions."""
    return (murmur2(table) & 0x7FFFFFFF) % partitions


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one length: records `first` … of a batch, `count` of them at `offset` bytes, `row_bytes` each."""

    first: int
    count: int
    offset: int
    row_bytes: int
    key_at: int
    value_at: int


class Layout:
    """How batches of values of one size lie in memory, up to `limit_bytes` (a batch of one may be larger)."""

    def __init__(self, value_bytes: int, limit_bytes: int, *, keyed: bool) -> None:
        self.value_bytes = value_bytes
        self.keyed = keyed
        self.groups: list[Group] = []
        end, first = HEADER_BYTES, 0
        for delta_bytes, limit in enumerate(_DELTA_LIMITS, 1):
            _, key_at, value_at = self._row_head(delta_bytes)
            row_bytes = value_at + value_bytes + 1
            fitting = (limit_bytes - end) // row_bytes
            count = min(limit - first, max(fitting, 0 if first else 1))
            if count <= 0:
                break
            self.groups.append(Group(first, count, end, row_bytes, key_at, value_at))
            end, first = end + count * row_bytes, first + count
            if first < limit:
                break
        self.capacity = first
        self.max_bytes = end
        self._master = self._make_master()
        self._spare: list[RowBuffer] = []

    def _row_head(self, delta_bytes: int) -> tuple[bytes, int, int]:
        """The bytes before the offset delta, and where key and value begin."""
        key = zigzag_varint(KEY_BYTES) if self.keyed else zigzag_varint(-1)
        key_bytes = KEY_BYTES if self.keyed else 0
        after_length = (
            2 + delta_bytes + len(key) + key_bytes + len(zigzag_varint(self.value_bytes)) + self.value_bytes + 1
        )
        head = zigzag_varint(after_length) + b"\0\0"  # attributes and timestamp delta
        key_at = len(head) + delta_bytes + len(key)
        return head, key_at, key_at + key_bytes + len(zigzag_varint(self.value_bytes))

    def _make_master(self) -> UInt8:
        master = np.zeros(self.max_bytes, np.uint8)
        for delta_bytes, group in enumerate(self.groups, 1):
            rows = master[group.offset : group.offset + group.count * group.row_bytes]
            rows = rows.reshape(group.count, group.row_bytes)
            head, key_at, value_at = self._row_head(delta_bytes)
            rows[:, : len(head)] = np.frombuffer(head, np.uint8)
            zigzags = np.arange(group.first, group.first + group.count) * 2
            for byte in range(delta_bytes):
                more = 0x80 if byte < delta_bytes - 1 else 0
                rows[:, len(head) + byte] = (zigzags >> (7 * byte)) & 0x7F | more
            key = zigzag_varint(KEY_BYTES) if self.keyed else zigzag_varint(-1)
            rows[:, key_at - len(key) : key_at] = np.frombuffer(key, np.uint8)
            size = zigzag_varint(self.value_bytes)
            rows[:, value_at - len(size) : value_at] = np.frombuffer(size, np.uint8)
        return master

    def bytes_of(self, count: int) -> int:
        """The size in bytes of a batch of `count` records, its header included."""
        for group in reversed(self.groups):
            if count > group.first:
                return group.offset + (count - group.first) * group.row_bytes
        return HEADER_BYTES

    def take(self) -> RowBuffer:
        """A buffer for the largest batch, ready to be filled."""
        return self._spare.pop() if self._spare else RowBuffer(self, self._master.copy())

    def give_back(self, rows: RowBuffer) -> None:
        """Let a buffer be used again; the last one given back is still in the processor's cache."""
        self._spare.append(rows)


class RowBuffer:
    """One batch being filled: views of where its stamps, bodies and keys go."""

    def __init__(self, layout: Layout, flat: UInt8) -> None:
        self.layout = layout
        self.view = flat.data
        self._spans = []
        for group in layout.groups:
            rows = flat[group.offset : group.offset + group.count * group.row_bytes].reshape(
                group.count, group.row_bytes
            )
            values = rows[:, group.value_at : group.value_at + layout.value_bytes]
            keys = rows[:, group.key_at : group.key_at + KEY_BYTES] if layout.keyed else None
            self._spans.append((group.first, group.first + group.count, values, keys))

    def _parts(self, at: int, count: int) -> Iterator[tuple[UInt8, UInt8 | None, slice]]:
        """Rows for records at … at+count by groups: value rows, key rows, and which of the records they are."""
        for first, end, values, keys in self._spans:
            begin, stop = max(at, first), min(at + count, end)
            if begin < stop:
                rows = slice(begin - first, stop - first)
                yield values[rows], None if keys is None else keys[rows], slice(begin - at, stop - at)

    def fill(self, at: int, stamps: UInt8, payloads: Payloads, first_seq: int) -> None:
        """Write messages first_seq … with these stamps (uint8[n, 24]) from record `at` on."""
        for values, _, part in self._parts(at, len(stamps)):
            values[:, :STAMP_BYTES] = stamps[part]
            payloads.write_bodies(values[:, STAMP_BYTES:], first_seq + part.start)

    def fill_whole(self, at: int, messages: UInt8, keys: UInt8 | None) -> None:
        """Write whole messages (uint8[n, size]) and keys, if they have any, from record `at` on."""
        for values, key_rows, part in self._parts(at, len(messages)):
            values[:] = messages[part]
            if key_rows is not None and keys is not None:
                key_rows[:] = keys[part]


def pack_record(out: bytearray, delta: int, key: bytes | None, value: memoryview) -> None:
    """Append one record of any size to a batch, as its record number `delta`."""
    head = b"\0\0" + zigzag_varint(delta)
    head += zigzag_varint(-1) if key is None else zigzag_varint(len(key)) + key
    head += zigzag_varint(len(value))
    out += zigzag_varint(len(head) + len(value) + 1)
    out += head
    out += value
    out.append(0)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sends a batch, so that the broker knows its repetitions: the default is nobody."""

    producer_id: int = -1
    epoch: int = -1
    sequence: int = -1
    attributes: int = 0


def seal(view: memoryview, end: int, count: int, time_ms: int, identity: Identity, codec: int = 0) -> memoryview:
    """Write the header of a batch of `count` records that ends at `end`, and return the batch."""
    _BODY.pack_into(
        view,
        CRC_FROM,
        codec | identity.attributes,
        count - 1,
        time_ms,
        time_ms,
        identity.producer_id,
        identity.epoch,
        identity.sequence,
        count,
    )
    _HEAD.pack_into(view, 0, 0, end - 12, -1, 2, crc32c(view[CRC_FROM:end]))
    return view[:end]


def seal_compressed(
    codecs: Codecs, codec: int, view: memoryview, end: int, count: int, time_ms: int, identity: Identity
) -> memoryview:
    """The batch with its records compressed, in memory of its own."""
    packed = memoryview(bytearray(HEADER_BYTES) + codecs.compress(codec, view[HEADER_BYTES:end]))
    return seal(packed, len(packed), count, time_ms, identity, codec)
