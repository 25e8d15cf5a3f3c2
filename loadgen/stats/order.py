"""A percentile of one run and how far chance alone could have moved it: exact order-statistic intervals.

Of n independent values the number at or below the true percentile p is binomial(n, p/100), whatever their
distribution. So two of the sorted values enclose the percentile with at least a given confidence, and which two
depends on n and p alone (G. Hahn and W. Meeker, "Statistical Intervals", 1991, section 5.2; J.-Y. Le Boudec,
"Performance Evaluation of Computer and Communication Systems", 2010, theorem 2.1).

The messages of one run are not independent: a pause of the broker delays thousands of them at once. Their
interval is therefore a **lower bound** of the uncertainty, useful to say that a run was too short for its tail.
Whether two configurations differ is decided over repeats (`confidence.paired_ratio`), never by these intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from loadgen.histogram import LOWEST_OF_BUCKET_NS

if TYPE_CHECKING:
    from loadgen.histogram import Histogram


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of the sorted values (1-based) enclose the percentile; None where the sample has no bound on that side."""

    low: int | None
    high: int | None


@dataclass(frozen=True, slots=True)
class Interval:
    """A percentile of a histogram and its bounds in ns; None where the sample cannot bound it on that side."""

    low_ns: int | None
    value_ns: int
    high_ns: int | None


def percentile_ranks(count: int, percentile: float, confidence: float = 0.95) -> Ranks:
    """The ranks between which the true percentile lies with at least `confidence`, its doubt split evenly.

    `low` is the largest rank whose value exceeds the percentile with probability at most (1 - confidence)/2, and
    `high` the smallest whose value falls short of it as rarely. A side that no rank can bound is None: 100 values
    say nothing of how large a p99.9 may be. The other side then stands by itself, at (1 + confidence)/2.

    Raises:
        ValueError: count below 0, percentile or confidence outside the open range.
    """
    if count < 0:
        raise ValueError(f"count {count}: expected 0 or more")
    if not 0 < percentile < 100:
        raise ValueError(f"percentile {percentile}: expected more than 0 and less than 100")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: expected more than 0 and less than 1")
    if count == 0:
        return Ranks(None, None)
    # From the decimal digits, as Histogram.percentiles does it: 1 - 99.9 / 100 in binary is not 0.001.
    share = Fraction(str(percentile)) / 100
    doubt = (1 - confidence) / 2
    low = _rank_beyond(count, float(share), doubt)
    # The same seen from the largest value down: so many values lie above the percentile.
    from_the_top = _rank_beyond(count, float(1 - share), doubt)
    return Ranks(low or None, count + 1 - from_the_top if from_the_top else None)


def percentile_interval(histogram: Histogram, percentile: float, confidence: float = 0.95) -> Interval:
    """A histogram's percentile between the bounds of `percentile_ranks`, in ns.

    Bounds are the outer edges of the buckets that hold the two ranks, no further out than the exact smallest and
    largest value; so the buckets' width (0.1 %) widens the interval and never narrows it. The value is that of
    `Histogram.percentile`.

    Raises:
        ValueError: the histogram is empty, or percentile or confidence is outside its open range.
    """
    ranks = percentile_ranks(histogram.count, percentile, confidence)
    value_ns = histogram.percentile(percentile)
    cumulative = np.cumsum(histogram.counts)
    low_ns = high_ns = None
    if ranks.low is not None:
        bucket = np.searchsorted(cumulative, ranks.low)
        low_ns = max(int(LOWEST_OF_BUCKET_NS[bucket]), histogram.min)
    if ranks.high is not None:
        bucket = np.searchsorted(cumulative, ranks.high)
        high_ns = min(int(LOWEST_OF_BUCKET_NS[bucket + 1]) - 1, histogram.max)
    return Interval(low_ns, value_ns, high_ns)


def _rank_beyond(count: int, share: float, doubt: float) -> int:
    """The largest r with P(binomial(count, share) ≤ r - 1) ≤ doubt, 0 where there is none."""
    from scipy.special import betainc  # noqa: PLC0415 - an import that `loadgen --help` must not pay

    low, high = 0, count
    while low < high:
        rank = (low + high + 1) // 2
        # P(binomial(n, p) ≤ r - 1), as an incomplete beta function, which is as exact for 10⁹ messages as for ten.
        if betainc(count - rank + 1, rank, 1 - share) <= doubt:
            low = rank
        else:
            high = rank - 1
    return low
