"""Where a series of numbers changed its level: E-divisive, by energy distance and permutations.

Of every place that a series can be divided at, the one is taken where both sides differ most by their energy distance
(G. Székely and M. Rizzo, "Energy statistics", Journal of Statistical Planning and Inference 143, 2013, with the
exponent 1); whether that much arises by chance is asked by permuting the series, for as long as the answer is open
(J. Besag and P. Clifford, "Sequential Monte Carlo p-values", Biometrika 78, 1991). A shown change divides it, and both
sides are asked again. (D. Matteson and N. James, "A nonparametric approach for multiple change point analysis of
multivariate data", JASA 109, 2014; for performance of software: D. Daly et al., "The use of change point detection to
identify software performance regressions in a continuous integration system", ICPE 2020.) No distribution is assumed,
and a single outlier is no change, as each side has `SIDE_LEAST` values at the least.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from numpy.typing import ArrayLike

    Float64 = npt.NDArray[np.float64]

SIDE_LEAST = 3
"""Fewer values on either side are an outlier's, not a level's."""
EXCEEDED = 10
"""Permutations that are as extreme, after which no more are asked: the p-value is then known to a third of itself."""
PER_LEVEL = 25
"""The most permutations are so many over the level, so that an extreme order's p-value lies well below it."""
RAREST_SHARE = 0.6
"""Of the level, below which the rarest order has to lie: permutations know a p-value to about a third of itself."""
TIES = 1e-9
"""Permutations that differ by the rounding of their sums alone are as large."""


@dataclass(frozen=True, slots=True)
class Change:
    """The first value of a new level, and how likely as large a difference is by chance."""

    at: int
    p_value: float


def fewest(alpha: float) -> int:
    """Of how many values a change can be shown at this level.

    Of fewer even a perfect division is not rare among its orders: of seven values 2 in 35 are as extreme, of eight 2 in
    70.
    """
    number = 2 * SIDE_LEAST
    while 2 / math.comb(number, number // 2) > RAREST_SHARE * alpha:
        number += 1
    return number


def changes(values: ArrayLike, *, seed: int, alpha: float = 0.05) -> list[Change]:
    """Where the level of a series (float[n], in the order of time) changed, from its beginning on.

    The first division is tested at `alpha`, so that a series without a change shows one in so many of all cases. One
    seed gives one answer. Levels that differ by factors are compared by the logarithms of their values.

    Raises:
        ValueError: a value that is not finite, or not one series.
    """
    series = np.asarray(values, np.float64)
    if series.ndim != 1 or not bool(np.all(np.isfinite(series))):
        raise ValueError("changes: expected one series of finite values")
    rng = np.random.default_rng(seed)
    most, least = math.ceil(PER_LEVEL / alpha), fewest(alpha)
    found: list[Change] = []
    segments = [(0, len(series))]
    while segments:
        begin, end = segments.pop()
        part = series[begin:end]
        if len(part) < least:
            continue
        place, statistic = _largest(part)
        p_value = _p_value(part, statistic * (1 - TIES), most, rng)
        if p_value <= alpha and statistic > 0:
            found.append(Change(begin + place, p_value))
            segments += [(begin, begin + place), (begin + place, end)]
    return sorted(found, key=lambda each: each.at)


def _p_value(part: Float64, statistic: float, most: int, rng: np.random.Generator) -> float:
    """How often an order of the same values is as extreme, by at most so many of them."""
    exceeded = 0
    for asked in range(1, most + 1):
        exceeded += _largest(rng.permutation(part))[1] >= statistic
        if exceeded == EXCEEDED:
            return exceeded / asked
    return (1 + exceeded) / (1 + most)


def _largest(part: Float64) -> tuple[int, float]:
    """Where both sides differ most, and by how much: n·m/(n+m) · (2·mean |x−y| − mean |x−x'| − mean |y−y'|)."""
    distances = np.abs(part[:, None] - part[None, :])
    sums = distances.cumsum(axis=0).cumsum(axis=1)  # of the square from the first value on
    number = len(part)
    left = np.arange(SIDE_LEAST, number - SIDE_LEAST + 1)
    right = number - left
    within_left = sums[left - 1, left - 1]
    across = sums[left - 1, number - 1] - within_left
    within_right = sums[number - 1, number - 1] - within_left - 2 * across
    energy = 2 * across / (left * right) - within_left / left**2 - within_right / right**2
    scaled = left * right / number * energy
    best = int(np.argmax(scaled))
    return int(left[best]), float(scaled[best])
