"""The ratio of two configurations without the assumption of a normal distribution: a paired BCa bootstrap.

The twin of `confidence.paired_ratio` for ten pairs and more: pairs are resampled as wholes, so what a repeat had in
common stays in common, and the ends of the interval are corrected for bias and skewness (B. Efron, "Better
bootstrap confidence intervals", JASA 82, 1987; B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993,
section 14.3). With few pairs it covers less than it claims: over three repeats three in four cases instead of 95 %.
Below ten it is refused. Of normal log ratios, simulated, its 95 % interval misses the median in 7 % (10 and 15
pairs) and 5 % (30), the geometric mean in 10 %, 9 % and 6 %: for that mean t is the better choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from loadgen.stats.confidence import log_ratios

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

PAIRS_MIN = 10
Statistic = Literal["median", "mean"]


@dataclass(frozen=True, slots=True)
class BootstrapRatio:
    """Numerator over denominator, paired by repeat: the middle of the ratios and its interval.

    As with `confidence.Ratio`, `low` and `high` are None where there is no interval to be had; `reason` says why,
    and is None where there is one.
    """

    ratio: float | None
    low: float | None
    high: float | None
    pairs: int
    confidence: float
    reason: str | None = None


def bootstrap_ratio(
    pairs: Iterable[tuple[float | None, float | None]],
    statistic: Statistic = "median",
    *,
    seed: int,
    resamples: int = 9999,
    confidence: float = 0.95,
) -> BootstrapRatio:
    """Numerator / denominator over (numerator, denominator) pairs of one repeat each; halves are left out.

    `statistic` is the median of the pairs' ratios or their geometric mean. One seed gives one interval.

    Raises:
        ValueError: an unknown statistic, fewer than 100 resamples, or a confidence outside (0, 1).
    """
    if statistic not in {"median", "mean"}:
        raise ValueError(f"statistic {statistic!r}: expected 'median' or 'mean'")
    if resamples < 100:
        raise ValueError(f"{resamples} resamples: expected at least 100")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: expected more than 0 and less than 1")
    logs = np.array(log_ratios(pairs))
    count = len(logs)
    if not count:
        return BootstrapRatio(None, None, None, 0, confidence, "no pair has both of its halves")
    middle = np.median if statistic == "median" else np.mean
    found = float(middle(logs))
    if count < PAIRS_MIN:
        reason = f"{count} pairs: a bootstrap needs at least {PAIRS_MIN}"
        return BootstrapRatio(math.exp(found), None, None, count, confidence, reason)
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    resampled = middle(logs[drawn], axis=1)
    left_out = np.array([middle(np.delete(logs, each)) for each in range(count)])
    low, high = np.quantile(resampled, _bca_shares(found, resampled, left_out, confidence), method="inverted_cdf")
    return BootstrapRatio(math.exp(found), math.exp(low), math.exp(high), count, confidence)


def _bca_shares(
    found: float, resampled: NDArray[np.float64], left_out: NDArray[np.float64], confidence: float
) -> tuple[float, float]:
    """Which quantiles of the resampled statistic are the ends of the interval (Efron 1987, equations 2.3 and 6.6).

    Resamples that equal the statistic (a median repeats itself often) count half below it. The acceleration is the
    jackknife's, from the statistic with each pair left out; pairs that are all alike have none.
    """
    from scipy.special import ndtr, ndtri  # noqa: PLC0415 - an import that `loadgen --help` must not pay

    below = float(np.mean(resampled < found) + np.mean(resampled <= found)) / 2
    fewest = 0.5 / len(resampled)
    bias = float(ndtri(min(max(below, fewest), 1 - fewest)))
    skew = left_out.mean() - left_out
    spread = float(np.sum(skew**2))
    acceleration = float(np.sum(skew**3)) / (6 * spread**1.5) if spread > 0 else 0.0
    ends = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        shifted = bias + float(ndtri(tail))
        ends.append(float(ndtr(bias + shifted / max(1 - acceleration * shifted, 1e-9))))
    return ends[0], ends[1]
