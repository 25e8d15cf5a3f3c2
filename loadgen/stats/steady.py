"""When a run became steady, told by its own data: warm-up by MSER, and whether the rest still drifts.

MSER cuts off the beginning whose removal makes the mean of the rest most certain: while the transient is cut the
spread falls, afterwards only samples are lost (K. P. White, "An effective truncation heuristic for bias reduction
in simulation output", Simulation 69, 1997; W. Franklin and K. P. White, "Stationarity tests and MSER-5: exploring
the intuition behind mean-squared-error-reduction in detecting and correcting initialization bias", Winter
Simulation Conference 2008). It cuts, but it cannot tell a run that never became steady from one that is merely
noisy. That is `drift`'s question, and where there are but a few values, each of many messages, `shift`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadgen.stats.autocorrelation import SAMPLES_MIN, as_series, as_times, batched, coefficient

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

DRIFT_SHARE = 0.1
"""Halves of a run that differ by a tenth are as far apart as the differences that are looked for."""
BLOCKS_MIN = 4
"""Of fewer levels no half has one that could agree with another."""
CHANCE_MAX = 0.05
ROUNDING = 1e-9  # of logarithms of levels, which other units move: a change of exactly the share allowed is none
_BATCHED_FROM = 100  # samples; fewer would leave MSER-5 too few batches to choose from
_ORDINARY = (5, 95)  # percentiles of the second half, beyond which a sample counts as an ordinary extreme
_ONE_SIDED = 0.9  # the share of a transient that is off to one side; of a pause amid steady samples half of them are


@dataclass(frozen=True, slots=True)
class Drift:
    """The second half's mean less the first's, as a share of both halves' mean, and its interval.

    `drifted` is True where the change is material and the interval excludes 0, False where it is not material, and
    None where it is material but may be chance, or the samples are too few. By ranks (`shift`) the change is a share of
    the first half, and has no interval.
    """

    change: float | None
    low: float | None
    high: float | None
    drifted: bool | None
    reason: str


@dataclass(frozen=True, slots=True)
class Steady:
    """How much of the beginning to leave out (s), and whether the rest is steady; None: it cannot be told."""

    warmup_s: float
    steady: bool | None
    reason: str


def _batches(series: NDArray[np.float64], batch: int) -> NDArray[np.float64]:
    """The means of whole batches of so many values, from the first one on."""
    means: NDArray[np.float64] = series[: len(series) // batch * batch].reshape(-1, batch).mean(axis=1)
    return means


def _marginal_errors(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ(x - mean)² / (k - d)² of what is left after cutting d, for d = 0 … k - 1, from sums taken from the end."""
    from_end = means[::-1] - means[-1]  # near 0, so that squares lose no digits; a constant series is exactly 0
    left = np.arange(1, len(means) + 1)
    squares = np.cumsum(from_end**2) - np.cumsum(from_end) ** 2 / left
    errors: NDArray[np.float64] = (np.maximum(squares, 0) / left**2)[::-1]
    return errors


def drift(values: ArrayLike, share: float = DRIFT_SHARE, confidence: float = 0.95) -> Drift:
    """Whether the means of the two halves of n values (float[n]) differ by a material share, and not by chance.

    Noise is what remains around a straight line through each half, so that neither a jump in the middle nor a
    steady change is taken for noise; its autocorrelation is allowed for (`loadgen.stats.autocorrelation`).

    Raises:
        ValueError: a value not finite, share not above 0, or confidence outside (0, 1).
    """
    if not share > 0:
        raise ValueError(f"share {share}: expected more than 0")
    series = as_series(values, "drift")
    if len(series) < SAMPLES_MIN:
        return Drift(None, None, None, None, f"{len(series)} samples: at least {SAMPLES_MIN} are needed")
    means = batched(series)
    found = coefficient(_halves(len(means)), means, 1, confidence)
    middle = abs(float(means.mean()))
    if middle == 0:
        if not series.any():
            return Drift(0.0, 0.0, 0.0, False, "every sample is 0")
        return Drift(None, None, None, None, "the mean is 0, so nothing is a share of it")
    change, low, high = found.value / middle, found.low / middle, found.high / middle
    text = f"the second half's mean differs from the first's by {change:+.1%} of both ({low:+.1%} … {high:+.1%})"
    if abs(change) < share:
        return Drift(change, low, high, False, text)
    if low <= 0 <= high:
        return Drift(change, low, high, None, f"{text}, which may be chance")
    return Drift(change, low, high, True, text)


def shift(levels: ArrayLike, share: float = DRIFT_SHARE) -> Drift:
    """Whether the second half of n levels (float[n], in their order, above 0) lies off the first one, told by ranks.

    For series too short for `drift`. The change is the median ratio of a level of the second half to one of the first
    (J. Hodges and E. Lehmann, "Estimates of location based on rank tests", Annals of Mathematical Statistics 34, 1963;
    of two in the middle the one nearer to 1), less 1: a pause in one of four seconds does not move it. It is material
    where one half is higher by more than `share`, and beyond chance by the exact rank sum test at 5 %, two-sided
    (H. Mann and D. Whitney, "On a test of whether one of two random variables is stochastically larger than the other",
    ibid. 18, 1947), which fewer than eight levels cannot pass. Levels that resemble their neighbours pass it more
    often: what keeps a steady series from being found is `share`.

    Raises:
        ValueError: a level not finite or not above 0, or share not above 0.
    """
    if not share > 0:
        raise ValueError(f"share {share}: expected more than 0")
    series = as_series(levels, "levels")
    if not bool((series > 0).all()):
        raise ValueError("levels: expected more than 0")
    if len(series) < BLOCKS_MIN:
        return Drift(None, None, None, None, f"{len(series)} levels: at least {BLOCKS_MIN} are needed")
    first, second = np.split(np.log(series), [len(series) // 2])
    apart = np.sort(np.subtract.outer(second, first).ravel())
    low, high = float(apart[(len(apart) - 1) // 2]), float(apart[len(apart) // 2])
    moved = 0.0 if low * high < 0 else min(low, high, key=abs)
    change = float(np.expm1(moved))
    text = f"the second half's levels differ from the first's by {change:+.1%} (median of {len(apart)} ratios)"
    if abs(moved) <= np.log1p(share) + ROUNDING:
        return Drift(change, None, None, False, text)
    if _rank_sum_chance(first, second) > CHANCE_MAX:
        return Drift(change, None, None, None, f"{text}, which may be chance")
    return Drift(change, None, None, True, text)


def _rank_sum_chance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """How likely samples of one distribution lie apart by as many ranks as these, or more, either way."""
    above = float(np.sum(np.subtract.outer(second, first) > 0))
    pairs = len(first) * len(second)
    extreme = math.ceil(max(above, pairs - above))
    # The number of ways to choose which ranks are the second's, by how often one of those exceeds one of the others.
    ways = np.zeros((len(second) + 1, pairs + 1))
    ways[0, 0] = 1.0
    for number in range(1, len(first) + len(second) + 1):
        for chosen in range(min(number, len(second)), 0, -1):
            exceeded = number - chosen
            if exceeded <= len(first):
                ways[chosen, exceeded:] += ways[chosen - 1, : pairs + 1 - exceeded]
    counts = ways[len(second)]
    return min(1.0, 2.0 * float(counts[extreme:].sum() / counts.sum()))


def _halves(count: int) -> NDArray[np.float64]:
    """A constant, the step between the halves, and a line of its own around 0 within each: float[count, 4]."""
    place = np.arange(count, dtype=np.float64)
    second = place >= count // 2
    lines = [np.where(half, place - place[half].mean(), 0.0) / count for half in (~second, second)]
    return np.column_stack([np.ones(count), second - 0.5, *lines])


def steady_state(times_s: ArrayLike, values: ArrayLike, floor_s: float, share: float = DRIFT_SHARE) -> Steady:
    """How long the warm-up of n samples (float[n]) lasted, at least floor_s, and whether the rest is steady.

    `times_s` (float[n], growing, evenly spaced) are when the samples' intervals began, in seconds after the start of
    the trial; the warm-up ends where one begins, and with the first half of what follows the floor at the latest.
    MSER chooses it (MSER-5 from 100 samples on) with two guards, as a pause of the broker is a finding and must not
    be cut away as warm-up: no sample counts as further off than an ordinary extreme of the second half, or `share`
    of its median; and nine tenths of what is cut must lie on one side of what is kept. Whether the rest is
    steady, `drift` decides.

    Raises:
        ValueError: lengths differ, a number is not finite, times do not grow, floor_s is negative, share not above 0.
    """
    if not floor_s >= 0:
        raise ValueError(f"floor of the warm-up {floor_s} s: expected 0 or more")
    series = as_series(values, "steady state")
    times = as_times(times_s, series, "steady state")
    from_floor = int(np.searchsorted(times, floor_s))
    left = len(series) - from_floor
    if left < SAMPLES_MIN:
        return Steady(floor_s, None, f"{left} samples after {floor_s:g} s: at least {SAMPLES_MIN} are needed")
    kept = series[from_floor:]
    cut = _transient(kept, share)
    warmup_s = float(times[from_floor + cut]) if cut else floor_s
    drifted = drift(kept[cut:], share)
    steady = None if drifted.drifted is None else not drifted.drifted
    return Steady(warmup_s, steady, f"after {warmup_s:g} s: {drifted.reason}")


def _transient(values: NDArray[np.float64], share: float) -> int:
    """How many samples of the first half to cut: the least marginal error among cuts that are a transient, or none."""
    batch = 5 if len(values) >= _BATCHED_FROM else 1
    errors = _marginal_errors(_batches(_without_pauses(values, share), batch))
    best_first = np.argsort(errors[: len(errors) // 2 + 1], kind="stable") * batch
    return next(int(cut) for cut in best_first if cut == 0 or _is_one_sided(values[:cut], values[cut:]))


def _without_pauses(values: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """The values, none further off than the second half's ordinary extremes, or `share` of its median."""
    second = values[len(values) // 2 :]
    low, high = np.percentile(second, _ORDINARY)
    middle = float(np.median(second))
    return np.clip(values, min(low, middle - share * abs(middle)), max(high, middle + share * abs(middle)))


def _is_one_sided(cut: NDArray[np.float64], kept: NDArray[np.float64]) -> bool:
    """Whether nearly all of what is cut is below, or nearly all above, the median of what is kept."""
    middle = np.median(kept)
    return max(float(np.mean(cut < middle)), float(np.mean(cut > middle))) >= _ONE_SIDED
