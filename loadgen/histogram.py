"""An HdrHistogram of nanoseconds that takes whole arrays: exact counts, three significant digits, one hour.

The layout is HdrHistogram's for (lowest 1 ns, highest 1 h, 3 digits), so that `encode` writes what the Java
and Python HDR tools read: values below 2048 have a bucket each, above that every power of two has 1024
buckets, which makes a bucket at most 1/1024 of its value wide. The array holds values below `LIMIT_NS`
(2^42 ns, 73 minutes: the power of two that the hour needs), as HdrHistogram's own does.

The index needs no logarithm: for v ≥ 1024 the ten bits below a double's leading one are the bucket within
its power of two and the exponent stands right above them, so that index = (bits(double(v)) >> 42) -
1032·1024 (IEEE 754: 52 bits of mantissa, an exponent biased by 1023; HdrHistogram: index = 1024·(e - 9) +
mantissa's ten bits).
"""

from __future__ import annotations

import base64
import ctypes
import struct
import zlib
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadgen.driver import Int64

LOWEST_NS = 1
HIGHEST_NS = 3_600_000_000_000
SIGNIFICANT_DIGITS = 3
LIMIT_NS = 1 << 42
BUCKETS = 33 * 1024
SUMMARY_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9, "p99_99": 99.99}

_LINEAR = 1024  # below this the formula does not hold and every value is its own index
_EXPONENT_OFFSET = 1032 * 1024
_MANTISSA_SHIFT = 42
_COOKIES = (0x1C849304, 0x1C849303)
_HEADER = ">IIIIQQ"  # and a ratio of 8 bytes that is 1
_VARINT_BYTES_MAX = 8  # 2^55; a ninth byte would have another meaning of its highest bit
_CHUNK_VALUES = 1 << 15  # temporary arrays that stay in a core's cache; a chunk's sum fits 64 bits too


def bucket_indices(values_ns: Int64) -> Int64:
    """The bucket of each value (int64[n], n ≥ 1, each 0 … LIMIT_NS - 1) as int64[n]."""
    indices = values_ns.astype(np.float64).view(np.int64)
    indices >>= _MANTISSA_SHIFT
    indices -= _EXPONENT_OFFSET
    if values_ns.min() < _LINEAR:
        np.copyto(indices, values_ns, where=values_ns < _LINEAR)
    return indices


def _lowest_values() -> Int64:
    """The smallest value of every bucket in ns, and one more as the end of the last: int64[BUCKETS + 1]."""
    index = np.arange(BUCKETS + 1)
    shift = np.maximum(index // 1024 - 1, 0)
    lowest: Int64 = (index - shift * 1024) << shift
    return lowest


LOWEST_OF_BUCKET_NS = _lowest_values()


def decode_counts(encoded: bytes | str) -> tuple[Int64, Int64]:
    """The buckets that hold values, and how many each (int64[m] both), of a histogram in HdrHistogram's V2 encoding.

    Base64 of a cookie and a length, and zlib of a header and the counts: each in zigzag and LEB128, where a negative
    number stands for so many empty buckets. Read by numpy, as a run has thousands of them.

    Raises:
        ValueError: it is none, or one of another layout than ours.
    """
    packed = base64.b64decode(encoded)
    cookie, size_bytes = struct.unpack_from(">II", packed)
    payload = zlib.decompress(packed[8 : 8 + size_bytes])
    inner, counts_bytes, _, *layout = struct.unpack_from(_HEADER, payload)
    if (cookie & ~0xF0, inner & ~0xF0) != _COOKIES:
        raise ValueError("not a histogram in HdrHistogram's V2 encoding")
    if layout != [SIGNIFICANT_DIGITS, LOWEST_NS, HIGHEST_NS]:
        raise ValueError(f"histogram of layout {layout}: expected {[SIGNIFICANT_DIGITS, LOWEST_NS, HIGHEST_NS]}")
    data = np.frombuffer(payload, np.uint8, counts_bytes, struct.calcsize(_HEADER) + 8)
    ends = np.flatnonzero(data < 128)
    starts = np.zeros(len(ends), np.int64)
    starts[1:] = ends[:-1] + 1
    more = ends - starts
    if more.max(initial=0) >= _VARINT_BYTES_MAX:
        raise ValueError("a histogram's count is larger than any run's")
    bits = (data & 127).astype(np.int64)
    numbers = bits[starts]
    longer = np.flatnonzero(more)
    place = 1
    while len(longer):
        numbers[longer] |= bits[starts[longer] + place] << 7 * place
        longer = longer[more[longer] > place]
        place += 1
    numbers = (numbers >> 1) ^ -(numbers & 1)
    steps = np.where(numbers < 0, -numbers, 1)
    held = numbers > 0
    return (np.cumsum(steps) - steps)[held], numbers[held]


@dataclass(frozen=True, slots=True)
class Counts:
    """What an encoded histogram holds, without its empty buckets: for who reads thousands of them.

    `used` are the buckets that hold values, in order, and `counts` how many each (int64[m] both); `max_ns` is the
    largest value, -1 where there is none.
    """

    used: Int64
    counts: Int64
    max_ns: int

    @classmethod
    def decode(cls, encoded: bytes | str, known_max_ns: int = -1) -> Counts:
        """What `Histogram.encode` wrote; the largest value is sharpened by what is known of it, if both agree.

        Raises:
            ValueError: it is none, or one of another layout.
        """
        used, counts = decode_counts(encoded)
        if not len(used):
            return cls(used, counts, -1)
        return cls(used, counts, _sharper(int(LOWEST_OF_BUCKET_NS[used[-1] + 1]) - 1, known_max_ns))

    @property
    def count(self) -> int:
        """How many values there are."""
        return int(self.counts.sum())

    def percentiles(self, percents: Iterable[float]) -> list[int]:
        """As those of a `Histogram`."""
        _demand_values(self.max_ns)
        return _values_at(percents, np.cumsum(self.counts), self.used, self.max_ns)


def together(parts: Iterable[Counts]) -> Counts:
    """Several histograms as one."""
    counts, max_ns = np.zeros(BUCKETS, np.int64), -1
    for each in parts:
        counts[each.used] += each.counts
        max_ns = max(max_ns, each.max_ns)
    used = np.flatnonzero(counts)
    return Counts(used, counts[used], max_ns)


class Histogram:
    """Counts of durations in ns, beside their exact smallest, largest and sum.

    `counts` is int64[BUCKETS]. Values that no bucket can hold (negative, or LIMIT_NS and above) are counted
    in `out_of_range_count` and nowhere else. Read back with `decode`, smallest and largest are those of
    their buckets and the sum is made of the buckets' middles, as HdrHistogram does it.
    """

    __slots__ = ("_max_ns", "_min_ns", "_sum_ns", "counts", "out_of_range_count")

    def __init__(self) -> None:
        self.counts: Int64 = np.zeros(BUCKETS, np.int64)
        self.out_of_range_count = 0
        self._min_ns = LIMIT_NS
        self._max_ns = -1
        self._sum_ns = 0

    def clear(self, used: npt.NDArray[np.int32] | Int64) -> None:
        """Forget all; `used` has the indices of all buckets that are not empty, which is quicker than a new one."""
        self.counts[used] = 0
        self.out_of_range_count = 0
        self._min_ns, self._max_ns, self._sum_ns = LIMIT_NS, -1, 0

    def add(self, values_ns: Int64) -> None:
        """Count n values (int64[n])."""
        for begin in range(0, len(values_ns), _CHUNK_VALUES):
            self._add_chunk(values_ns[begin : begin + _CHUNK_VALUES])

    def _add_chunk(self, values_ns: Int64) -> None:
        smallest, largest = int(values_ns.min()), int(values_ns.max())
        if smallest < 0 or largest >= LIMIT_NS:
            held = values_ns[(values_ns >= 0) & (values_ns < LIMIT_NS)]
            self.out_of_range_count += len(values_ns) - len(held)
            if len(held):
                self._add_chunk(held)
            return
        counted = np.bincount(bucket_indices(values_ns))
        self.counts[: len(counted)] += counted
        self._min_ns = min(self._min_ns, smallest)
        self._max_ns = max(self._max_ns, largest)
        self._sum_ns += int(values_ns.sum())

    def add_counts(
        self,
        indices: Any,
        counts: Int64,
        *,
        min_ns: int,
        max_ns: int,
        sum_ns: int,
        out_of_range_count: int = 0,
    ) -> None:
        """Add counts (int64[m]) of different buckets (integers[m]) with their values' exact extremes and sum."""
        self.out_of_range_count += out_of_range_count
        if not len(counts):
            return
        self.counts[indices] += counts
        self._min_ns = min(self._min_ns, min_ns)
        self._max_ns = max(self._max_ns, max_ns)
        self._sum_ns += sum_ns

    def merge(self, other: Histogram) -> None:
        """Add all that another histogram counted."""
        self.counts += other.counts
        self.out_of_range_count += other.out_of_range_count
        self._min_ns = min(self._min_ns, other._min_ns)
        self._max_ns = max(self._max_ns, other._max_ns)
        self._sum_ns += other._sum_ns

    @property
    def count(self) -> int:
        """How many values are in the buckets."""
        return int(self.counts.sum())

    @property
    def sum(self) -> int:
        """The sum of all values in ns."""
        return self._sum_ns

    @property
    def min(self) -> int:
        """The smallest value in ns; an empty histogram has none and raises ValueError."""
        _demand_values(self._max_ns)
        return self._min_ns

    @property
    def max(self) -> int:
        """The largest value in ns; an empty histogram has none and raises ValueError."""
        _demand_values(self._max_ns)
        return self._max_ns

    @property
    def mean(self) -> float:
        """The mean of all values in ns; an empty histogram has none and raises ValueError."""
        _demand_values(self._max_ns)
        return self._sum_ns / self.count

    def percentile(self, percent: float) -> int:
        """The value in ns at or below which `percent` of all values lie."""
        return self.percentiles([percent])[0]

    def percentiles(self, percents: Iterable[float]) -> list[int]:
        """The values in ns at or below which so many percent of all values lie.

        The ceil rule: the percentile p of n values is the highest value v of a bucket that holds values,
        the smallest such v with count(≤ v) ≥ max(1, ceil(p/100 · n)), and at most the exact largest value.
        The rank is computed from p's decimal digits, not from its binary neighbour: 99.9 % of 1000 is 999.

        Raises:
            ValueError: the histogram is empty, or a percentile is outside 0 … 100.
        """
        _demand_values(self._max_ns)
        return _values_at(percents, np.cumsum(self.counts), None, self._max_ns)

    def summary(self) -> dict[str, int | float | None]:
        """Count, and in ns min, mean, max and the percentiles of results; None where nothing was counted."""
        total = self.count
        if not total:
            return {"count": 0, **dict.fromkeys(["min", "mean", *SUMMARY_PERCENTILES, "max"])}
        at = dict(zip(SUMMARY_PERCENTILES, self.percentiles(SUMMARY_PERCENTILES.values()), strict=True))
        return {"count": total, "min": self._min_ns, "mean": self._sum_ns / total, **at, "max": self._max_ns}

    def encode(self) -> bytes:
        """HdrHistogram's V2 compressed encoding in base64; what is out of range is not in it."""
        hdr = HdrHistogram(LOWEST_NS, HIGHEST_NS, SIGNIFICANT_DIGITS)
        used = np.flatnonzero(self.counts)
        if len(used):
            ctypes.memmove(hdr.counts, self.counts.ctypes.data, self.counts.nbytes)
            # Without these, hdrhistogram takes its own counts for empty and encodes nothing, silently.
            hdr.set_internal_tacking_values(int(used[0]), int(used[-1]), int(self.counts.sum()))
        encoded: bytes = hdr.encode()
        return encoded

    @classmethod
    def decode(cls, encoded: bytes | str) -> Histogram:
        """The histogram that `encode` wrote; raises ValueError for one of another layout."""
        return cls.of(Counts.decode(encoded))

    @classmethod
    def of(cls, found: Counts) -> Histogram:
        """The histogram that was encoded, as whole as it can be read back."""
        histogram = cls()
        if len(found.used):
            lowest, following = LOWEST_OF_BUCKET_NS[found.used], LOWEST_OF_BUCKET_NS[found.used + 1]
            middles = (lowest + following) // 2
            # In two halves, each of which 64 bits hold: an hour's sum of middles of 73 minutes does not fit.
            high, low = (int(np.dot(part, found.counts)) for part in (middles >> 21, middles & ((1 << 21) - 1)))
            total = (high << 21) + low
            histogram.add_counts(found.used, found.counts, min_ns=int(lowest[0]), max_ns=found.max_ns, sum_ns=total)
        return histogram


def _sharper(max_ns: int, known_ns: int) -> int:
    """The largest value of a decoded histogram, or what is known of it from elsewhere if that is in the same bucket."""
    if not 0 <= known_ns < LIMIT_NS:
        return max_ns
    decoded, known = bucket_indices(np.array([max_ns, known_ns]))
    return known_ns if decoded == known else max_ns


def _demand_values(max_ns: int) -> None:
    if max_ns < 0:
        raise ValueError("an empty histogram has no smallest, largest or middle value")


def _values_at(percents: Iterable[float], cumulative: Int64, buckets: Int64 | None, max_ns: int) -> list[int]:
    """Where percentiles lie, of counts that were added up from bucket to bucket; None: of all buckets."""
    total = int(cumulative[-1])
    found = np.searchsorted(cumulative, [_rank(percent, total) for percent in percents])
    if buckets is not None:
        found = buckets[found]
    at_most: Int64 = np.minimum(LOWEST_OF_BUCKET_NS[found + 1] - 1, max_ns)
    return [int(value) for value in at_most]


def _rank(percent: float, total: int) -> int:
    if not 0 <= percent <= 100:
        raise ValueError(f"percentile {percent}: expected 0 … 100")
    exact = Fraction(str(percent)) * total / 100
    return max(1, -(-exact.numerator // exact.denominator))
