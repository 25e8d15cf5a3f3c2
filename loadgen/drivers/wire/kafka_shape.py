"""The shape of a record batch: where each record's value lies, found once and then only checked.

The first record of a run is decoded byte by byte. The records after it are taken as rows of its length for as long as
every byte that determines a row's shape (lengths, and whether a varint goes on) equals the first row's: by induction
each of them then begins where its row begins. Whatever has no such runs is decoded record by record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from loadgen.driver import Int64, UInt8

_FIRST_CHUNK_ROWS, _CHUNK_GROWTH = 256, 8
_MAX_RUNS = 64
_MIN_RUN_ROWS = 8
_ALL, _CONTINUES, _ANY = b"\xff", b"\x80", b"\x00"


class DamagedBatchError(Exception):
    """A record batch that is not as its own header or checksum says."""


@dataclass(frozen=True, slots=True)
class Run:
    """`rows` records of one shape from `at` bytes on.

    `words` are eight-byte words of a row that must be the same in each: where, which bits of it, and their value.
    """

    at: int
    rows: int
    row_bytes: int
    value_at: int
    value_bytes: int
    words: tuple[tuple[int, np.uint64, np.uint64], ...]

    def differing(self, flat: UInt8, at: int, batches: int, stride: int, rows: int) -> npt.NDArray[np.bool_]:
        """Which rows (bool[batches, rows]) from `at` on are of another shape; batches are `stride` bytes apart."""
        found: npt.NDArray[np.bool_] | None = None
        for where, mask, expected in self.words:
            words: npt.NDArray[np.uint64] = np.ndarray(
                (batches, rows), "<u8", flat.data, at + where, (stride, self.row_bytes)
            )
            different = (words & mask) != expected
            found = different if found is None else found | different
        assert found is not None, "every record begins with its length, so there is a word"
        return found


@dataclass(frozen=True, slots=True)
class Shape:
    """A whole records section as runs; `starts` are where its values begin, counted from the section's begin."""

    runs: tuple[Run, ...]
    starts: Int64
    sizes: Int64 | int

    def fits(self, flat: UInt8, begin: int, batches: int, stride: int) -> bool:
        """Whether the sections that begin at `begin`, begin + stride … have this shape."""
        return not any(run.differing(flat, begin + run.at, batches, stride, run.rows).any() for run in self.runs)


def find_shape(flat: UInt8, begin: int, end: int, count: int) -> Shape | None:
    """The shape of the `count` records in flat[begin:end]; None if they have no runs worth it.

    `flat` must go on for eight bytes beyond `end`.
    """
    view = flat.data
    runs: list[Run] = []
    at, done = begin, 0
    while done < count:
        if len(runs) >= 4 and (done < _MIN_RUN_ROWS * len(runs) or len(runs) >= _MAX_RUNS):
            return None
        first = _first_row(view, at, begin, end)
        rows = _rows_alike(flat, at, first, min(count - done, (end - at) // first.row_bytes))
        runs.append(Run(first.at, rows, first.row_bytes, first.value_at, first.value_bytes, first.words))
        at += rows * first.row_bytes
        done += rows
    if at != end:
        raise DamagedBatchError(f"{end - at} bytes are left after the last of {count} records")
    starts = np.concatenate([np.arange(run.rows) * run.row_bytes + (run.at + run.value_at) for run in runs])
    sizes = [run.value_bytes for run in runs]
    if len(set(sizes)) == 1:
        return Shape(tuple(runs), starts, sizes[0])
    return Shape(tuple(runs), starts, np.repeat(sizes, [run.rows for run in runs]))


def _rows_alike(flat: UInt8, at: int, first: Run, limit: int) -> int:
    """How many rows from `at` on, at most `limit`, are shaped like the first one."""
    rows, chunk = 1, _FIRST_CHUNK_ROWS
    while rows < limit:
        taken = min(chunk, limit - rows)
        differing = first.differing(flat, at + rows * first.row_bytes, 1, 0, taken)[0]
        if differing.any():
            return rows + int(differing.argmax())
        rows, chunk = rows + taken, chunk * _CHUNK_GROWTH
    return rows


def _first_row(view: memoryview, at: int, begin: int, end: int) -> Run:
    """Decode one record, and note which of its bytes make its shape."""
    try:
        length, body = varint(view, at)
        _, delta_at = varint(view, body + 1)  # after the attributes: the timestamp delta
        _, key_size_at = varint(view, delta_at)
        key_bytes, key_at = varint(view, key_size_at)
        value_size_at = key_at + max(key_bytes, 0)
        value_bytes, value_at = varint(view, value_size_at)
    except IndexError:
        raise DamagedBatchError("a record goes beyond its batch") from None
    value_bytes = max(value_bytes, 0)
    row_end = body + length
    if not at < value_at + value_bytes < row_end <= end:
        raise DamagedBatchError("a record goes beyond its batch")
    mask = (
        _ALL * (body - at)
        + _ANY  # attributes
        + _CONTINUES * (key_size_at - body - 1)
        + _ALL * (key_at - key_size_at)
        + _ANY * (value_size_at - key_at)
        + _ALL * (value_at - value_size_at)
    )
    words = []
    for where in range(0, len(mask), 8):
        bits = int.from_bytes(mask[where : where + 8], "little")
        if bits:
            value = int.from_bytes(view[at + where : at + where + 8], "little")
            words.append((where, np.uint64(bits), np.uint64(value & bits)))
    return Run(at - begin, 1, row_end - at, value_at - at, value_bytes, tuple(words))


def varint(view: memoryview, at: int) -> tuple[int, int]:
    """A zigzag varint and where it ends."""
    raw = shift = 0
    while shift < 70:
        byte = view[at]
        at += 1
        raw |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (raw >> 1) ^ -(raw & 1), at
        shift += 7
    raise DamagedBatchError("a varint of more than ten bytes")


def decode_section(flat: UInt8, begin: int, end: int, count: int) -> tuple[Int64, Int64, Int64]:
    """Where the values of any `count` records in flat[begin:end] begin, their sizes, and the offset deltas.

    Only the chain of lengths is followed in a loop; what stands in the records is read from all of them at once.
    """
    view = flat.data
    bodies, ends = [], []
    at = begin
    for _ in range(count):
        if at >= end:
            raise DamagedBatchError("a record goes beyond its batch")
        length, body = varint(view, at)
        at = body + length
        if length < 6 or at > end:
            raise DamagedBatchError("a record goes beyond its batch")
        bodies.append(body)
        ends.append(at)
    if at != end:
        raise DamagedBatchError(f"{end - at} bytes are left after the last of {count} records")
    limits = np.array(ends, np.int64)
    _, after_time = _varints(flat, np.array(bodies, np.int64) + 1, limits)
    deltas, key_sizes_at = _varints(flat, after_time, limits)
    key_bytes, keys_at = _varints(flat, key_sizes_at, limits)
    value_bytes, starts = _varints(flat, keys_at + np.maximum(key_bytes, 0), limits)
    sizes = np.maximum(value_bytes, 0)
    if (starts + sizes >= limits).any():
        raise DamagedBatchError("a record goes beyond its batch")
    return starts, sizes, deltas


def _varints(flat: UInt8, at: Int64, limits: Int64) -> tuple[Int64, Int64]:
    """The zigzag varint at each of these places, and where each ends."""
    raw = np.zeros(len(at), np.int64)
    ends = at.copy()
    going = np.arange(len(at))
    for shift in range(0, 70, 7):
        if (ends[going] >= limits[going]).any():
            raise DamagedBatchError("a record goes beyond its batch")
        byte = flat[ends[going]].astype(np.int64)
        raw[going] |= (byte & 0x7F) << np.int64(min(shift, 63))
        ends[going] += 1
        going = going[byte >= 0x80]
        if not len(going):
            return (raw >> 1) & np.int64(2**63 - 1) ^ -(raw & 1), ends
    raise DamagedBatchError("a varint of more than ten bytes")
