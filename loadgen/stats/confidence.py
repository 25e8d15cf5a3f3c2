"""How sure a number is: intervals whose unit is the repeat, never the message.

Messages of one trial share its warm-up, its page cache and its neighbours, so they are no independent
samples; repeats are. Rates, latencies and costs vary by factors rather than by sums, so all work is on
logarithms: a ratio and its reciprocal then have the same interval, and no interval reaches below zero.

Method: Student's t interval of the mean of the log values (Student, "The probable error of a mean",
Biometrika 6, 1908); for two brokers, of the mean of the paired differences of logs: pairing by repeat takes
out what both had in common in that round (R. Jain, "The Art of Computer Systems Performance Analysis", 1991,
on paired observations). A percentile bootstrap is not used: over three repeats it covers about three cases
in four where t covers 95 %. For repeats of two runs, which have no pairs, it is Welch's t interval of the difference of
the means of logs (B. L. Welch, "The generalization of 'Student's' problem when several different population variances
are involved", Biometrika 34, 1947).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import median as median_of
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CONFIDENCE = 0.95
Direction = Literal["higher", "lower", "no difference shown"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """One quantity over the repeats: its median and the interval of its geometric mean.

    `low` and `high` are None with fewer than two usable repeats: one run has no interval. `values` are those
    used, in their order; `dropped` counts those that could not be (missing, zero or not finite).
    """

    values: tuple[float, ...]
    median: float | None
    low: float | None
    high: float | None
    dropped: int = 0
    confidence: float = CONFIDENCE

    @property
    def n(self) -> int:
        """How many repeats stand behind it."""
        return len(self.values)

    @property
    def has_interval(self) -> bool:
        """Whether there were repeats enough for an interval."""
        return self.low is not None

    @property
    def reach(self) -> float | None:
        """How far the interval reaches from the median on its longer side, as a share of it; None without one."""
        if self.low is None or self.high is None or self.median is None:
            return None
        return max(self.high / self.median - 1, 1 - self.low / self.median)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Numerator over denominator, paired by repeat: the geometric mean of the ratios and its interval.

    `direction` speaks of the numerator and stays "no difference shown" unless the interval excludes 1.
    """

    ratio: float | None
    low: float | None
    high: float | None
    pairs: int
    confidence: float = CONFIDENCE

    @property
    def direction(self) -> Direction:
        """Whether the numerator is shown to be higher or lower than the denominator."""
        if self.low is None or self.high is None:
            return "no difference shown"
        if self.low > 1:
            return "higher"
        return "lower" if self.high < 1 else "no difference shown"


def _usable(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Student's t interval of the mean, in the values' unit; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    variance = math.fsum((each - mean) ** 2 for each in values) / (len(values) - 1)
    reach = t_quantile((1 + confidence) / 2, len(values) - 1) * math.sqrt(variance / len(values))
    return mean - reach, mean + reach


def _t_interval(logs: Sequence[float], confidence: float) -> tuple[float, float] | None:
    """The t interval of the mean of logs, taken back to the natural scale; None for fewer than two."""
    found = t_interval(logs, confidence)
    # Two repeats far apart reach beyond what a float can hold; an infinite end is the honest one then.
    return None if found is None else (_exp(found[0]), _exp(found[1]))


@lru_cache(maxsize=1_024)
def t_quantile(share: float, freedom: float) -> float:
    """Student's t below which this share lies; kept, since scipy takes longer for it than all else of an interval."""
    # Not scipy.stats, which has the same: its import takes longer than all of a check of a run.
    from scipy.special import stdtrit  # noqa: PLC0415 - an import that `loadgen --help` must not pay

    return float(stdtrit(freedom, share))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def estimate(values: Iterable[float | None], confidence: float = CONFIDENCE) -> Estimate:
    """Median and log-scale t interval over repeats; one repeat has no interval.

    The median is shown because one disturbed repeat hardly moves it; the interval is of the geometric mean,
    which is the log-normal's median, so both estimate the same thing. (With few, skewed repeats the median
    may lie near an end of the interval; it is not forced inside.)
    """
    given = list(values)
    used = tuple(float(value) for value in given if value is not None and _usable(value))
    interval = _t_interval([math.log(value) for value in used], confidence)
    low, high = interval or (None, None)
    return Estimate(used, median_of(used) if used else None, low, high, len(given) - len(used), confidence)


def log_ratios(pairs: Iterable[tuple[float | None, float | None]]) -> list[float]:
    """The logarithm of numerator / denominator of each pair that has both, positive and finite."""
    return [
        math.log(top) - math.log(bottom)
        for top, bottom in pairs
        if top is not None and bottom is not None and _usable(top) and _usable(bottom)
    ]


def paired_ratio(pairs: Iterable[tuple[float | None, float | None]], confidence: float = CONFIDENCE) -> Ratio:
    """Numerator / denominator over (numerator, denominator) pairs of one repeat each; halves are left out.

    The t interval is of the mean difference of logs within pairs: repeats of the two brokers are
    interleaved, so what disturbed one round disturbed both of its halves and falls out of the difference.
    """
    logs = log_ratios(pairs)
    if not logs:
        return Ratio(None, None, None, 0, confidence)
    low, high = _t_interval(logs, confidence) or (None, None)
    return Ratio(math.exp(math.fsum(logs) / len(logs)), low, high, len(logs), confidence)


def unpaired_ratio(
    top: Iterable[float | None], bottom: Iterable[float | None], confidence: float = CONFIDENCE
) -> Ratio:
    """Numerator / denominator of values that have no pairs, such as the repeats of two runs: Welch's t interval.

    `pairs` is the smaller number of values; with fewer than two on either side there is no interval. Two sides without
    any spread have an interval of no width.
    """
    logs = [[math.log(value) for value in values if value is not None and _usable(value)] for values in (top, bottom)]
    fewest = min(map(len, logs))
    if not fewest:
        return Ratio(None, None, None, 0, confidence)
    means = [math.fsum(each) / len(each) for each in logs]
    difference = means[0] - means[1]
    if fewest < 2:
        return Ratio(_exp(difference), None, None, fewest, confidence)
    errors = [
        math.fsum((value - mean) ** 2 for value in each) / (len(each) - 1) / len(each)
        for each, mean in zip(logs, means, strict=True)
    ]
    reach = 0.0
    if sum(errors) > 0:
        shares = [error / sum(errors) for error in errors]  # a tiny error would vanish, squared
        freedom = 1 / sum(share**2 / (len(each) - 1) for share, each in zip(shares, logs, strict=True))
        reach = t_quantile((1 + confidence) / 2, freedom) * math.sqrt(sum(errors))
    return Ratio(_exp(difference), _exp(difference - reach), _exp(difference + reach), fewest, confidence)
