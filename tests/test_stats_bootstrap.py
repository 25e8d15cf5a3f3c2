"""The paired bootstrap: the interval that scipy finds, covered as often as claimed, refused where it cannot be."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from loadgen.stats.bootstrap import bootstrap_ratio

POSITIVE = st.floats(1e-3, 1e9)
PAIRS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=10, max_size=20)
Statistic = Literal["median", "mean"]


def noisy_pairs(seed: int, count: int, deviation: float = 0.1) -> list[tuple[float, float]]:
    """Pairs whose halves share a level and whose log ratios are normal around ln 1.1."""
    rng = np.random.default_rng(seed)
    levels, logs = rng.uniform(1e3, 1e5, count), math.log(1.1) + deviation * rng.standard_normal(count)
    return [(float(level * math.exp(each)), float(level)) for level, each in zip(levels, logs, strict=True)]


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_the_interval_is_that_of_another_implementation(statistic: Statistic) -> None:
    """Of skewed ratios the BCa interval that scipy finds has the same ends, but for the chance of the resamples."""
    logs = np.random.default_rng(1).exponential(0.1, 25) ** 1.5
    ours = bootstrap_ratio([(math.exp(each), 1.0) for each in logs], statistic, seed=2, resamples=50_000)
    middle = {"median": np.median, "mean": np.mean}[statistic]
    theirs = bootstrap((logs,), middle, n_resamples=50_000, method="BCa", rng=3).confidence_interval
    assert ours.low is not None
    assert ours.high is not None
    width = math.log(ours.high / ours.low)
    assert math.log(ours.low) == pytest.approx(theirs.low, abs=0.04 * width)
    assert math.log(ours.high) == pytest.approx(theirs.high, abs=0.04 * width)


@pytest.mark.parametrize("pairs", [[], [(None, 1.0), (0.0, 1.0), (math.inf, 2.0)]])
def test_nothing_usable_is_nothing_at_all(pairs: list[tuple[float | None, float | None]]) -> None:
    """Halves of pairs and values that are no rate leave neither ratio nor interval, and a reason."""
    found = bootstrap_ratio(pairs, seed=1)
    assert (found.ratio, found.low, found.high, found.pairs) == (None, None, None, 0)
    assert found.reason == "no pair has both of its halves"


def test_fewer_than_ten_pairs_have_a_ratio_and_no_interval() -> None:
    """Nine pairs are refused with a reason; the tenth makes an interval."""
    pairs = noisy_pairs(3, 10)
    found = bootstrap_ratio(pairs[:9], seed=1)
    assert found.ratio is not None
    assert (found.low, found.high) == (None, None)
    assert found.reason == "9 pairs: a bootstrap needs at least 10"
    assert bootstrap_ratio(pairs, seed=1).reason is None


@settings(max_examples=30)
@given(PAIRS, st.sampled_from(["median", "mean"]), st.integers(0, 99))
def test_one_seed_makes_one_interval_in_any_unit(
    pairs: list[tuple[float, float]], statistic: Statistic, seed: int
) -> None:
    """The same seed gives the same ends; units scale the ratio, and the other way up it is the reciprocal."""
    found = bootstrap_ratio(pairs, statistic, seed=seed, resamples=200)
    assert found == bootstrap_ratio(pairs, statistic, seed=seed, resamples=200)
    assert found.ratio is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.high
    scaled = bootstrap_ratio([(top * 8, bottom * 2) for top, bottom in pairs], statistic, seed=seed, resamples=200)
    assert scaled.ratio == pytest.approx(4 * found.ratio)
    back = bootstrap_ratio([(bottom, top) for top, bottom in pairs], statistic, seed=seed, resamples=200)
    assert back.ratio == pytest.approx(1 / found.ratio)


def test_pairs_that_are_all_alike_leave_no_doubt() -> None:
    """Twelve equal ratios make an interval of one point, without a division by zero."""
    found = bootstrap_ratio([(3.0, 2.0)] * 12, seed=1)
    assert (found.ratio, found.low, found.high) == (pytest.approx(1.5), pytest.approx(1.5), pytest.approx(1.5))


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_the_interval_covers_the_true_ratio(statistic: Statistic) -> None:
    """Of 15 pairs a 95 % interval misses the true ratio in at most 9 %, as the module says, and 3 σ of 500 runs."""
    missed = 0
    for seed in range(500):
        found = bootstrap_ratio(noisy_pairs(seed, 15), statistic, seed=seed, resamples=499)
        assert found.low is not None
        assert found.high is not None
        missed += not found.low <= 1.1 <= found.high
    assert 0.02 <= missed / 500 <= 0.09 + 3 * math.sqrt(0.09 * 0.91 / 500)


def test_impossible_arguments_are_named() -> None:
    """An unknown statistic, too few resamples and a confidence of 1 are refused."""
    with pytest.raises(ValueError, match="statistic"):
        bootstrap_ratio([], "mode", seed=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_ratio([], seed=1, resamples=99)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_ratio([], seed=1, confidence=1.0)
