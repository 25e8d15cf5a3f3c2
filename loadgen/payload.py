"""The bytes of every message: a 24-byte stamp and a body that can be told again from its sequence number.

Stamp (little-endian): intended time i64 (monotonic ns) · identity u64 (producer in the top 16 bits, sequence below)
· schedule lag u32 (sent − intended, in units of `LAG_UNIT_NS`, saturating) · check u32 (a multiplicative hash of the
twenty bytes before it and of the run's token). A receiver therefore knows, without any table, when the message
should have left, when it did, whose it is, whether a byte of it changed, and that it belongs to this run.

Bodies come from a pool made from the seed alone, larger than a batch and than the codecs' windows that matter, and
message k takes entry k of the pool in turn: no two bodies of one batch overlap (else compression would be faked),
and a receiver compares every byte received with the pool's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from loadgen.driver import Int64, Received, UInt8, UInt64
    from loadgen.scenario import Message

STAMP_BYTES = 24
LAG_UNIT_NS = 64
MAX_LAG_UNITS = (1 << 32) - 1
SEQUENCE_BITS = 48
UNKNOWN = -1
POOL_BYTES = 16 << 20  # over the 8 MiB window of zstd's default levels and any batch a broker takes by default
MIN_POOL_BODIES = 64  # fewer only where so many would be over MAX_POOL_BYTES
MAX_POOL_BODIES = 1 << 20  # of bodies of a few bytes: what each costs beside its bytes is the more then
MAX_POOL_BYTES = 64 << 20
MATCH_BYTES = 256 << 10  # bodies compared at once: more would leave the cache, and cost fresh pages each time

STAMP = np.dtype([("intended_ns", "<i8"), ("identity", "<u8"), ("lag", "<u4"), ("check", "<u4")])
_STAMP_STRUCT = struct.Struct("<qQII")
SCALAR_MSGS = 6  # up to so many messages, Python's integers are faster than numpy's calls (measured)
_ODD = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
_MIX = tuple(np.uint64(odd) for odd in _ODD)
_SHIFT = np.uint64(32)


def _check(
    intended_ns: npt.NDArray[np.uint64], identity: npt.NDArray[np.uint64], lag: npt.NDArray[np.uint32], token: int
) -> npt.NDArray[np.uint32]:
    """The stamp's check: the high half of a sum of odd multiples (multiply-shift hashing, Dietzfelbinger 1997)."""
    mixed = intended_ns * _MIX[0]
    mixed += identity * _MIX[1]
    mixed += (lag.astype(np.uint64) + np.uint64(token)) * _MIX[2]
    mixed >>= _SHIFT
    return mixed.astype(np.uint32)


@dataclass(slots=True)
class Parsed:
    """What n received messages say of themselves; the times of rows whose `intact` is False cannot be used.

    Of those, `producer` and `seq` are known where only the body is damaged, and `UNKNOWN` where the stamp is.
    """

    intended_ns: Int64
    sent_ns: Int64
    producer: Int64
    seq: Int64
    intact: npt.NDArray[np.bool_]


class Pool:
    """The bodies that the messages of one trial take in turn.

    `sizes` (int64[n]) are whole message sizes in bytes, stamp included; `offsets` (int64[n+1]) are where each body
    begins in `data` (uint8). `matrix` is the bodies as rows where all are of one size, else None.
    """

    def __init__(self, sizes: Int64, data: UInt8) -> None:
        self.sizes = sizes
        self.data = data
        self.offsets = np.concatenate(([0], np.cumsum(sizes - STAMP_BYTES)))
        self.count = len(sizes)
        fixed = bool((sizes == sizes[0]).all())
        self.size_bytes = int(sizes[0]) if fixed else None
        self.matrix = data.reshape(self.count, int(sizes[0]) - STAMP_BYTES) if fixed else None


@lru_cache(maxsize=2)
def make_pool(message: Message, seed: int) -> Pool:
    """The pool of a message description and a seed: the same in every process.

    A share `message.compressibility` of each body is zeros and the rest random bytes, so that a codec finds about
    that share to remove in one body and nothing more across bodies.
    """
    rng = np.random.default_rng([seed, 0xB0D1E5])
    count = pool_bodies(max(1.0, message.mean_size_bytes - STAMP_BYTES))
    sizes = message.draw_sizes(rng, count)
    body_sizes = sizes - STAMP_BYTES
    total = int(body_sizes.sum())
    data = rng.integers(0, 256, total, dtype=np.uint8)
    share = message.compressibility
    assert isinstance(share, int | float), "a sweep of compressibilities is resolved by the plan"
    if share > 0:
        _blank(data, body_sizes, share)
    return Pool(sizes, data)


def pool_bodies(mean_bytes: float) -> int:
    """How many bodies a pool holds: `POOL_BYTES` of them, of large ones fewer, but never one alone."""
    most = max(2, min(MAX_POOL_BODIES, int(MAX_POOL_BYTES / mean_bytes)))
    return min(most, max(MIN_POOL_BODIES, int(POOL_BYTES / mean_bytes)))


def _blank(data: UInt8, body_sizes: Int64, share: float) -> None:
    """Make the first `share` of each body zeros, without an index for each byte."""
    zeros = np.rint(body_sizes * share).astype(np.int64)
    if (body_sizes == body_sizes[0]).all():
        data.reshape(len(body_sizes), int(body_sizes[0]))[:, : int(zeros[0])] = 0
        return
    begins = np.cumsum(body_sizes) - body_sizes
    for begin, end in zip(begins.tolist(), (begins + zeros).tolist(), strict=True):
        data[begin:end] = 0


class Payloads:
    """Writes and checks the messages of one trial; as a writer it speaks for producer number `producer`.

    `token` marks the run (any u32 not shared with a run before), so that a message left from elsewhere is noticed.
    """

    def __init__(self, message: Message, seed: int, token: int, producer: int = 0) -> None:
        self.message = message
        self.pool = make_pool(message, seed)
        self.seed = seed
        self.token = token
        self.producer = producer
        self.size_bytes = self.pool.size_bytes
        self.mean_size_bytes = float(self.pool.sizes.mean())
        self._identity = np.uint64(producer << SEQUENCE_BITS)
        # Producers start at different places of the pool, so that their batches differ too.
        self._shift = self._shift_of(producer)
        self._keys = _make_keys(message, seed, self.pool.count) if message.key_count else None
        self.ahead_ns = 0
        """How far the clock that all stamps are told by is ahead of this host's, in ns; 0 where they are one."""

    def _shift_of(self, producer: int) -> int:
        return (producer * 7919) % self.pool.count

    def origins(self, first_seq: int, count: int) -> Int64:
        """The number of the producer that each message comes from (int64[count])."""
        del first_seq
        return np.full(count, self.producer)

    def sizes(self, first_seq: int, count: int) -> Int64:
        """Sizes in bytes (int64[count]) of messages first_seq …, stamp included."""
        return self.pool.sizes[self._indices(first_seq, count)]

    def key_indices(self, first_seq: int, count: int) -> Int64 | None:
        """Which key each message has (int64[count], 0 … message.keys−1), or None where messages have no keys."""
        if self._keys is None:
            return None
        return self._keys[self._indices(first_seq, count)]

    def _indices(self, first_seq: int, count: int) -> Int64:
        return (np.arange(first_seq, first_seq + count) + self._shift) % self.pool.count

    def identities(self, first_seq: int, count: int) -> UInt64:
        """What tells messages first_seq … from all others of the trial (uint64[count]), as in their stamps."""
        return np.arange(first_seq, first_seq + count, dtype=np.uint64) | self._identity

    def stamps(self, first_seq: int, intended_ns: Int64, sent_ns: int | Int64) -> UInt8:
        """The stamps of messages first_seq … as uint8[n, 24]; times are this host's."""
        if self.ahead_ns:
            intended_ns, sent_ns = intended_ns + self.ahead_ns, sent_ns + self.ahead_ns
        if len(intended_ns) <= SCALAR_MSGS and isinstance(sent_ns, int):
            return self._few_stamps(first_seq, intended_ns, sent_ns)
        stamps = np.empty(len(intended_ns), STAMP)
        identity = np.arange(first_seq, first_seq + len(intended_ns), dtype=np.uint64)
        identity |= self._identity
        lag = (sent_ns - intended_ns) // LAG_UNIT_NS
        np.maximum(lag, 0, out=lag)
        np.minimum(lag, MAX_LAG_UNITS, out=lag)
        stamps["intended_ns"] = intended_ns
        stamps["identity"] = identity
        stamps["lag"] = lag
        stamps["check"] = _check(intended_ns.view(np.uint64), identity, stamps["lag"], self.token)
        return stamps.view(np.uint8).reshape(len(intended_ns), STAMP_BYTES)

    def _few_stamps(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> UInt8:
        """The same for a few messages, in Python's own integers: numpy's fixed cost a call would be most of it."""
        packed = bytearray()
        identity = first_seq | int(self._identity)
        for intended in intended_ns.tolist():
            lag = min(max(0, (sent_ns - intended) // LAG_UNIT_NS), MAX_LAG_UNITS)
            mixed = intended * _ODD[0] + identity * _ODD[1] + (lag + self.token) * _ODD[2]
            packed += _STAMP_STRUCT.pack(intended, identity, lag, mixed >> 32 & 0xFFFFFFFF)
            identity += 1
        return np.frombuffer(packed, np.uint8).reshape(len(intended_ns), STAMP_BYTES)

    def write(self, rows: UInt8, first_seq: int, intended_ns: Int64, sent_ns: int | Int64) -> None:
        """Fill `rows` (uint8[n, size], any strides) with messages first_seq … of one fixed size."""
        rows[:, :STAMP_BYTES] = self.stamps(first_seq, intended_ns, sent_ns)
        self.write_bodies(rows[:, STAMP_BYTES:], first_seq)

    def write_bodies(self, rows: UInt8, first_seq: int) -> None:
        """Fill `rows` (uint8[n, size − 24]) with the bodies of messages first_seq … of one fixed size."""
        matrix = self.pool.matrix
        assert matrix is not None, "bodies of mixed sizes are packed, not written into rows"
        done = 0
        while done < len(rows):
            begin = (first_seq + done + self._shift) % self.pool.count
            take = min(len(rows) - done, self.pool.count - begin)
            rows[done : done + take] = matrix[begin : begin + take]
            done += take

    def pack(self, first_seq: int, intended_ns: Int64, sent_ns: int | Int64) -> tuple[UInt8, Int64]:
        """Messages first_seq … end to end in one buffer, and where each begins (int64[n+1]); any sizes."""
        count = len(intended_ns)
        if self.size_bytes is not None:
            rows = np.empty((count, self.size_bytes), np.uint8)
            self.write(rows, first_seq, intended_ns, sent_ns)
            return rows.reshape(-1), np.arange(count + 1) * self.size_bytes
        indices = self._indices(first_seq, count)
        offsets = np.concatenate(([0], np.cumsum(self.pool.sizes[indices])))
        flat = np.empty(int(offsets[-1]), np.uint8)
        stamps = self.stamps(first_seq, intended_ns, sent_ns)
        bodies, starts = self.pool.data, self.pool.offsets
        for row, (index, begin, end) in enumerate(
            zip(indices.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        ):
            flat[begin : begin + STAMP_BYTES] = stamps[row]
            flat[begin + STAMP_BYTES : end] = bodies[starts[index] : starts[index + 1]]
        return flat, offsets

    def parse(self, buffer: UInt8, starts: Int64, sizes: Int64 | int) -> Parsed:
        """Read n received messages (as in `Received`) and compare each of their bytes with what was sent.

        Their times are this host's again.
        """
        parsed = self._parsed(buffer, starts, sizes)
        if self.ahead_ns:
            parsed.intended_ns -= self.ahead_ns
            parsed.sent_ns -= self.ahead_ns
        return parsed

    def _parsed(self, buffer: UInt8, starts: Int64, sizes: Int64 | int) -> Parsed:
        """The same with the times as they stand in the stamps."""
        count = len(starts)
        if count and (sizes if isinstance(sizes, int) else int(sizes.min())) < STAMP_BYTES:
            return self._parse_long_enough(buffer, starts, sizes)
        if count <= SCALAR_MSGS and isinstance(sizes, int) and self.pool.matrix is not None:
            return self._parse_few(buffer, starts, sizes)
        stamps = _gather(buffer, starts, STAMP_BYTES).view(STAMP).reshape(count)
        identity = stamps["identity"]
        intended = np.ascontiguousarray(stamps["intended_ns"])
        lag = stamps["lag"]
        intact = stamps["check"] == _check(intended.view(np.uint64), identity, lag, self.token)
        producer = (identity >> np.uint64(SEQUENCE_BITS)).astype(np.int64)
        seq = (identity & np.uint64((1 << SEQUENCE_BITS) - 1)).astype(np.int64)
        sent = intended + lag.astype(np.int64) * LAG_UNIT_NS
        if np.count_nonzero(intact) < count:
            seq[~intact] = UNKNOWN
            producer[~intact] = UNKNOWN
        intact &= self._bodies_match(buffer, starts, sizes, producer, seq)
        return Parsed(intended, sent, producer, seq, intact)

    def _parse_long_enough(self, buffer: UInt8, starts: Int64, sizes: Int64 | int) -> Parsed:
        """The same where some messages are too short to hold a stamp: they are nobody's and not intact."""
        each = np.broadcast_to(np.asarray(sizes), len(starts))
        rows = np.flatnonzero(each >= STAMP_BYTES)
        parsed = self._parsed(buffer, starts[rows], each[rows])
        producer, seq = (np.full(len(starts), UNKNOWN, np.int64) for _ in range(2))
        intended_ns, sent_ns = (np.zeros(len(starts), np.int64) for _ in range(2))
        intact = np.zeros(len(starts), np.bool_)
        producer[rows], seq[rows], intact[rows] = parsed.producer, parsed.seq, parsed.intact
        intended_ns[rows], sent_ns[rows] = parsed.intended_ns, parsed.sent_ns
        return Parsed(intended_ns, sent_ns, producer, seq, intact)

    def _parse_few(self, buffer: UInt8, starts: Int64, size_bytes: int) -> Parsed:
        """The same for a few messages of one size, in Python's own integers."""
        rows = [self._parse_one(buffer, start, size_bytes) for start in starts.tolist()]
        intended_ns, sent_ns, producer, seq, intact = zip(*rows, strict=True) if rows else ((),) * 5
        return Parsed(
            np.array(intended_ns, np.int64),
            np.array(sent_ns, np.int64),
            np.array(producer, np.int64),
            np.array(seq, np.int64),
            np.array(intact, np.bool_),
        )

    def _parse_one(self, buffer: UInt8, start: int, size_bytes: int) -> tuple[int, int, int, int, bool]:
        """One message: intended and sent time, producer, sequence number, whether it is intact."""
        intended_ns, identity, lag, check = _STAMP_STRUCT.unpack_from(buffer.data, start)
        sent_ns = intended_ns + lag * LAG_UNIT_NS
        mixed = intended_ns * _ODD[0] + identity * _ODD[1] + (lag + self.token) * _ODD[2]
        if mixed >> 32 & 0xFFFFFFFF != check:
            return intended_ns, 0, UNKNOWN, UNKNOWN, False
        producer, seq = identity >> SEQUENCE_BITS, identity & ((1 << SEQUENCE_BITS) - 1)
        begin = int(self.pool.offsets[(seq + producer * 7919) % self.pool.count])
        body = buffer[start + STAMP_BYTES : start + size_bytes]
        expected = self.pool.data[begin : begin + (self.size_bytes or 0) - STAMP_BYTES]
        return intended_ns, sent_ns, producer, seq, body.tobytes() == expected.tobytes()

    def _bodies_match(
        self, buffer: UInt8, starts: Int64, sizes: Int64 | int, producer: Int64, seq: Int64
    ) -> npt.NDArray[np.bool_]:
        pool = self.pool
        # Nearly always all are of one producer, and one remainder does for all.
        is_one = len(producer) > 0 and np.count_nonzero(producer == producer[0]) == len(producer)
        shifts = self._shift_of(int(producer[0])) if is_one else producer * 7919 % pool.count
        indices = (seq + shifts) % pool.count
        if pool.matrix is not None and isinstance(sizes, int):
            if sizes != self.size_bytes:
                return np.zeros(len(starts), np.bool_)
            return _rows_match(buffer, starts, pool.matrix, indices)
        matches = np.empty(len(starts), np.bool_)
        each = np.broadcast_to(np.asarray(sizes), len(starts))
        for row, (begin, size, index) in enumerate(zip(starts.tolist(), each.tolist(), indices.tolist(), strict=True)):
            body = pool.data[pool.offsets[index] : pool.offsets[index + 1]]
            matches[row] = np.array_equal(buffer[begin + STAMP_BYTES : begin + size], body)
        return matches


def sequence_numbers(buffer: UInt8, starts: Int64) -> Int64:
    """The sequence numbers that the stamps of n messages (as in `Received`) hold: int64[n], unchecked."""
    within = np.minimum(starts, len(buffer) - STAMP_BYTES)  # a foreign message may be shorter than a stamp
    identity = _gather(buffer, within, STAMP_BYTES).view(STAMP).reshape(len(starts))["identity"]
    return (identity & np.uint64((1 << SEQUENCE_BITS) - 1)).astype(np.int64)


class Relayed(Payloads):
    """Messages that were received and are sent on as they came, a batch at a time: first `stage`, then send."""

    def __init__(self, message: Message, seed: int, token: int, producer: int = 0) -> None:
        super().__init__(message.model_copy(update={"keys": 0, "key_exponent": 0.0}), seed, token, producer)
        self._first_seq = 0
        self._staged: UInt8 = np.empty(0, np.uint8)
        self._starts: Int64 = np.empty(0, np.int64)
        self._sizes: Int64 = np.empty(0, np.int64)
        self._identities: UInt64 = np.empty(0, np.uint64)

    def stage(self, first_seq: int, batch: Received, rows: Int64, identities: UInt64 | None = None) -> None:
        """What the next `send` is of: these rows (int64[n]) of a batch, whose buffer is read until then.

        Args:
            first_seq: what the one who sends numbers the first of them.
            batch: as it was received.
            rows: which of its messages.
            identities: whose they are said to be; None: what their stamps say.
        """
        self._first_seq, self._staged, self._starts = first_seq, batch.buffer, batch.starts[rows]
        sizes = batch.sizes
        self._sizes = np.full(len(rows), sizes) if isinstance(sizes, int) else sizes[rows]
        if identities is None:
            stamps = _gather(self._staged, self._starts, STAMP_BYTES).view(STAMP).reshape(len(rows))
            identities = np.ascontiguousarray(stamps["identity"])
        self._identities = identities

    def _part(self, first_seq: int, count: int) -> slice:
        begin = first_seq - self._first_seq
        assert 0 <= begin <= begin + count <= len(self._starts), "what is sent was staged"
        return slice(begin, begin + count)

    def identities(self, first_seq: int, count: int) -> UInt64:
        """Whose the messages are."""
        return self._identities[self._part(first_seq, count)]

    def origins(self, first_seq: int, count: int) -> Int64:
        """The producers that they come from."""
        return (self.identities(first_seq, count) >> np.uint64(SEQUENCE_BITS)).astype(np.int64)

    def stamps(self, first_seq: int, intended_ns: Int64, sent_ns: int | Int64) -> UInt8:
        """The stamps that they came with; times of sending are those of their producers."""
        del sent_ns
        return _gather(self._staged, self._starts[self._part(first_seq, len(intended_ns))], STAMP_BYTES)

    def write(self, rows: UInt8, first_seq: int, intended_ns: Int64, sent_ns: int | Int64) -> None:
        """Copy them into `rows`; one of another size is cut or filled up, and its receiver will see."""
        del intended_ns, sent_ns
        self._copy(rows, first_seq, 0)

    def write_bodies(self, rows: UInt8, first_seq: int) -> None:
        """Copy what stands behind their stamps."""
        self._copy(rows, first_seq, STAMP_BYTES)

    def _copy(self, rows: UInt8, first_seq: int, at: int) -> None:
        width, part = rows.shape[1], self._part(first_seq, len(rows))
        starts, sizes = self._starts[part], self._sizes[part]
        if not width:
            return
        if (sizes == width + at).all():
            rows[:] = _gather(self._staged, starts + at, width)
            return
        rows[:] = 0
        for row, (begin, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
            kept = self._staged[begin + at : begin + min(size, width + at)]
            rows[row, : len(kept)] = kept

    def pack(self, first_seq: int, intended_ns: Int64, sent_ns: int | Int64) -> tuple[UInt8, Int64]:
        """They end to end in one buffer, and where each begins (int64[n+1])."""
        del sent_ns
        part = self._part(first_seq, len(intended_ns))
        starts, sizes = self._starts[part], self._sizes[part]
        pieces = [
            self._staged[begin : begin + size] for begin, size in zip(starts.tolist(), sizes.tolist(), strict=True)
        ]
        return np.concatenate(pieces), np.concatenate(([0], np.cumsum(sizes)))


def _rows_match(buffer: UInt8, starts: Int64, matrix: UInt8, indices: Int64) -> npt.NDArray[np.bool_]:
    """Whether the body after each stamp equals its row of the pool's matrix."""
    count, width = len(starts), matrix.shape[1]
    if width == 0 or count == 0:
        return np.ones(count, np.bool_)
    step = max(1, MATCH_BYTES // width)
    if count > step:
        parts = [slice(at, at + step) for at in range(0, count, step)]
        return np.concatenate([_rows_match(buffer, starts[part], matrix, indices[part]) for part in parts])
    got = _gather(buffer, starts + STAMP_BYTES, width)
    first = int(indices[0])
    # Nearly always the messages of a batch follow each other, and so do their bodies in the pool: no copy.
    consecutive = int(indices[-1]) - first == count - 1 and bool((np.diff(indices) == 1).all())
    expected = matrix[first : first + count] if consecutive else matrix[indices]
    if np.array_equal(got, expected):
        return np.ones(count, np.bool_)
    matches: npt.NDArray[np.bool_] = (got == expected).all(axis=1)
    return matches


def _gather(buffer: UInt8, starts: Int64, width: int) -> UInt8:
    """Copy `width` bytes from each of `starts` into uint8[n, width], as one take of opaque items."""
    if not len(starts):
        return np.empty((0, width), np.uint8)
    windows: npt.NDArray[Any] = np.ndarray((len(buffer) - width + 1,), f"V{width}", buffer, 0, (1,))
    return windows[starts].view(np.uint8).reshape(len(starts), width)


def _make_keys(message: Message, seed: int, count: int) -> Int64:
    """Which key each pool entry has: uniform or by Zipf's law over `message.keys` keys, from the seed."""
    rng = np.random.default_rng([seed, 0x6B657973])
    keys, exponent = message.key_count, message.key_exponent
    assert isinstance(exponent, int | float), "a sweep of exponents is resolved by the plan"
    if not exponent:
        return rng.integers(0, keys, count)
    weights = np.arange(1, keys + 1, dtype=np.float64) ** -exponent
    below = np.cumsum(weights) / weights.sum()
    return np.minimum(np.searchsorted(below, rng.random(count), side="right"), keys - 1)
