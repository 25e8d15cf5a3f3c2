"""Reading Kafka record batches (format v2) of any producer: uniform runs as matrices, the rest record by record.

The first record of a run is decoded byte by byte. The records after it are taken as rows of its length for as long as
every byte that determines a row's shape (lengths, and whether a varint goes on) equals the first row's: by induction
each of them then begins where the row begins. A batch shaped like an earlier one is only held against that one's
shape, and batches of one shape that follow each other are checked all at once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from crc32c import crc32c

from loadgen.drivers.wire.kafka_batch import CRC_FROM, HEADER_BYTES
from loadgen.drivers.wire.kafka_codecs import CODEC_MASK, Codecs

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from loadgen.driver import Int64, UInt8

CONTROL_BIT = 0x20
LENGTH_FROM = 12  # a batch's length counts from here on
_HEADER = struct.Struct(">qiibIhiqqqhii")
_FIRST_CHUNK_ROWS, _CHUNK_GROWTH = 256, 8
_SHORT_RUN_ROWS = 4
_MAX_SHAPES = 256


class DamagedBatchError(Exception):
    """A record batch that is not as its own header or checksum says."""


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """Where a record batch lies in a buffer and what its header says."""

    at: int
    size_bytes: int
    base_offset: int
    last_delta: int
    count: int
    attributes: int

    @property
    def next_offset(self) -> int:
        """The offset after the batch's last."""
        return self.base_offset + self.last_delta + 1

    @property
    def codec(self) -> int:
        """The number of its codec."""
        return self.attributes & CODEC_MASK

    @property
    def is_control(self) -> bool:
        """Whether it marks the end of a transaction instead of holding messages."""
        return bool(self.attributes & CONTROL_BIT)


def batch_headers(view: memoryview, begin: int, end: int) -> list[BatchHeader]:
    """The whole record batches in view[begin:end]; a fetch may end in a part of one, which is left out."""
    found = []
    while end - begin >= HEADER_BYTES:
        offset, length, _, magic, checksum, attributes, last_delta, *_, count = _HEADER.unpack_from(view, begin)
        if magic != 2:
            raise DamagedBatchError(f"record batch at offset {offset} has format {magic}; expected 2 (Kafka 0.11 and later)")
        size_bytes = LENGTH_FROM + length
        if size_bytes < HEADER_BYTES:
            raise DamagedBatchError(f"record batch at offset {offset} says it has {length} bytes")
        if begin + size_bytes > end:
            break
        if crc32c(view[begin + CRC_FROM : begin + size_bytes]) != checksum:
            raise DamagedBatchError(f"record batch at offset {offset} has another checksum than its header")
        found.append(BatchHeader(begin, size_bytes, offset, last_delta, count, attributes))
        begin += size_bytes
    return found


@dataclass(frozen=True, slots=True)
class Records:
    """n values in a buffer; `first_offset` is None unless their offsets follow each other without a gap."""

    buffer: UInt8
    starts: Int64
    sizes: Int64 | int
    first_offset: int | None
    next_offset: int


@dataclass(frozen=True, slots=True)
class _Row:
    """The shape of one record: its length in bytes, its value, and the bytes that must be so again, as words."""

    row_bytes: int
    value_at: int
    value_bytes: int
    words: tuple[tuple[int, np.uint64, np.uint64], ...]  # where, mask, expected


@dataclass(frozen=True, slots=True)
class _Shape:
    """The shape of a whole records section: runs of rows, and where every value starts in it."""

    runs: tuple[tuple[int, int, _Row], ...]  # where, how many rows, their shape
    starts: Int64
    sizes: Int64 | int


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A zigzag varint and where it ends."""
    raw = shift = 0
    while True:
        byte = view[at]
        at += 1
        raw |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (raw >> 1) ^ -(raw & 1), at
        shift += 7
        if shift > 63:
            raise DamagedBatchError("a varint of more than ten bytes")


class RecordReader:
    """Reads record batches and remembers their shapes; one for each consumer."""

    def __init__(self) -> None:
        self._codecs = Codecs()
        self._shapes: dict[tuple[int, int], _Shape] = {}

    def read(self, buffer: UInt8, headers: list[BatchHeader]) -> Iterator[Records]:
        """The values of these batches of one partition, as few `Records` as buffers and gaps allow.

        `buffer` must go on for eight bytes beyond the last batch.
        """
        for group in _alike(headers):
            if group[0].is_control:
                continue
            if group[0].codec:
                flat, groups = self._unpacked(buffer, group)
            else:
                flat, groups = buffer, [(each.at + HEADER_BYTES, each) for each in group]
            yield self._read_group(flat, groups, [each.size_bytes for each in group])

    def _unpacked(self, buffer: UInt8, headers: list[BatchHeader]) -> tuple[UInt8, list[tuple[int, BatchHeader]]]:
        """The records of compressed batches, end to end in one buffer."""
        view = memoryview(buffer)
        parts, placed, at = [], [], 0
        for each in headers:
            try:
                part = self._codecs.decompress(each.codec, view[each.at + HEADER_BYTES : each.at + each.size_bytes])
            except ValueError as error:
                raise DamagedBatchError(f"record batch at offset {each.base_offset}: {error}") from None
            parts.append(part)
            placed.append((at, each))
            at += len(part)
        return np.frombuffer(b"".join([*parts, bytes(8)]), np.uint8), placed

    def _read_group(
        self, flat: UInt8, placed: list[tuple[int, BatchHeader]], sizes_bytes: list[int]
    ) -> Records:
        raise NotImplementedError
