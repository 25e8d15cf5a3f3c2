"""Where a series of numbers changed its level: E-divisive, by energy distance and permutations.

Of every place that a series can be divided at, the one is taken where both sides differ most by their energy distance
(G. Székely and M. Rizzo, "Energy statistics", Journal of Statistical Planning and Inference 143, 2013, with the
exponent 1); whether that much arises by chance is asked by permuting the series. A shown change divides it, and both
sides are asked again. (D. Matteson and N. James, "A nonparametric approach for multiple change point analysis of
multivariate data", JASA 109, 2014; for performance of software: D. Daly et al., "The use of change point detection to
identify software performance regressions in a continuous integration system", ICPE 2020.) No distribution is assumed,
and a single outlier is no change, as each side has `SIDE_LEAST` values at the least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    from numpy.typing import ArrayLike

    Float64 = npt.NDArray[np.float64]

SIDE_LEAST = 3
"""Fewer values on either side are an outlier's, not a level's."""
PERMUTATIONS = 499
TIES = 1e-9
"""Permutations that differ by the rounding of their sums alone are as large."""


@dataclass(frozen=True, slots=True)
class Change:
    """The first value of a new level, and how likely as large a difference is by chance."""

    at: int
    p_value: float


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
    found: list[Change] = []
    segments = [(0, len(series))]
    while segments:
        begin, end = segments.pop()
        part = series[begin:end]
        if len(part) < 2 * SIDE_LEAST:
            continue
        place, statistic = _largest(part)
        least = statistic * (1 - TIES)
        by_chance = sum(_largest(rng.permutation(part))[1] >= least for _ in range(PERMUTATIONS))
        p_value = (1 + by_chance) / (1 + PERMUTATIONS)
        if p_value <= alpha and statistic > 0:
            found.append(Change(begin + place, p_value))
            segments += [(begin, begin + place), (begin + place, end)]
    return sorted(found, key=lambda each: each.at)


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
