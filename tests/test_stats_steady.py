"""Warm-up and drift: transients are cut, pauses are not, and what never settles is said never to have settled."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from test_stats_trend import HZ, ar1, times_of, upper

from loadgen.stats.steady import _marginal_errors, _rank_sum_chance, drift, shift, steady_state

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SERIES = st.lists(st.integers(0, 10_000), min_size=20, max_size=120)


def throughput(seed: int, seconds: float, coefficient: float = 0.5, noise: float = 0.05) -> Floats:
    """A steady 10,000 msg/s sampled at 20 Hz, with autocorrelated noise."""
    rng = np.random.default_rng(seed)
    return 10_000 * (1 + noise * ar1(rng, coefficient, int(seconds * HZ), 1)[0])


def marginal_error(means: Floats, cut: int) -> float:
    """MSER by its definition."""
    kept = means[cut:]
    return float(np.sum((kept - kept.mean()) ** 2) / len(kept) ** 2)


# --- MSER ---


@settings(max_examples=60)
@given(SERIES)
def test_each_cut_has_the_marginal_error_of_its_definition(values: list[int]) -> None:
    """Sums taken from the end are the sums over what is kept."""
    means = np.array(values, np.float64)
    expected = [marginal_error(means, cut) for cut in range(len(means))]
    assert _marginal_errors(means) == pytest.approx(np.array(expected), rel=1e-6, abs=1e-9 * max(expected))


# --- drift ---


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("count", [60, 120, 400])
def test_stationary_noise_does_not_drift(coefficient: float, count: int) -> None:
    """With noise of 20 %, so that halves often differ by a tenth by chance, drift is found in at most 5 %, and 3 σ."""
    rng, runs = np.random.default_rng(2), 200
    found = [drift(1 + 0.2 * row) for row in ar1(rng, coefficient, count, runs)]
    assert sum(each.drifted is True for each in found) <= runs * upper(0.05, runs)


@pytest.mark.parametrize("shape", ["jump", "slope"])
def test_a_change_by_a_fifth_is_found(shape: str) -> None:
    """A second half 20 % below the first, at once or bit by bit, is found in nine of ten runs of 120 samples."""
    place, found = np.arange(120) / 120, 0
    lost = np.where(place >= 0.5, 0.2, 0.0) if shape == "jump" else 0.4 * (place - 0.25)
    for seed in range(50):
        result = drift(throughput(seed, 6) * (1 - lost))
        found += result.drifted is True
        assert result.change == pytest.approx(-0.2 / 0.9, abs=0.06)
    assert found >= 45


def test_what_is_certain_but_small_does_not_matter() -> None:
    """A change of 5 % that no noise hides is no drift at 10 %, and is one at 2 %."""
    values = np.concatenate([np.full(60, 100.0), np.full(60, 105.0)])
    values[::2] += 0.1
    assert drift(values).drifted is False
    assert drift(values, share=0.02).drifted is True


def test_what_may_be_chance_is_neither_found_nor_denied() -> None:
    """One spike that lifts its half by more than a tenth leaves the question open."""
    values = np.full(60, 10.0) + np.random.default_rng(3).normal(0, 0.1, 60)
    values[45] = 200.0
    found = drift(values)
    assert found.change is not None
    assert found.change > 0.1
    assert found.drifted is None
    assert "chance" in found.reason


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(10, 29).map(lambda half: 2 * half), st.floats(1e-3, 1e6))
def test_change_is_the_difference_of_means_in_any_unit_and_direction(seed: int, count: int, unit: float) -> None:
    """The change is plain arithmetic, inside its interval, unmoved by units and negated by reversal."""
    values = np.random.default_rng(seed).exponential(1, count)
    found, scaled, back = drift(values), drift(values * unit), drift(values[::-1])
    first, second = values[: count // 2].mean(), values[count // 2 :].mean()
    assert found.change is not None
    assert found.low is not None
    assert found.high is not None
    assert found.change == pytest.approx((second - first) / values.mean(), abs=1e-9)
    assert found.low <= found.change <= found.high
    assert scaled.change == pytest.approx(found.change, abs=1e-9)
    assert scaled.low == pytest.approx(found.low, rel=1e-6, abs=1e-9)
    assert back.change == pytest.approx(-found.change, abs=1e-9)


def test_nothing_at_all_does_not_drift() -> None:
    """Zeros do not change; values around 0 have no shares; nineteen are too few."""
    assert drift(np.zeros(40)).drifted is False
    assert drift([1.0, -1.0] * 20).drifted is None
    assert drift(np.ones(19)).drifted is None


# --- shift: a few levels ---

# Apart by more than rounding is: what is one rank in one unit is not a tie in another.
LEVELS = st.lists(st.integers(1, 1_000_000).map(lambda count: count / 1_000), min_size=4, max_size=40, unique=True)
COUNTS = pytest.mark.parametrize("count", [4, 10, 20, 40])


def levels(count: int, seed: int, coefficient: float = 0.5, noise: float = 0.2) -> Floats:
    """A steady millisecond, told by so many levels that vary by a fifth and resemble their neighbours."""
    return np.exp(noise * ar1(np.random.default_rng(seed), coefficient, count, 1)[0])


@settings(max_examples=60)
@given(LEVELS)
def test_ranks_are_as_likely_as_the_exact_test_says(values: list[float]) -> None:
    """The same figure as scipy's."""
    first, second = np.split(np.array(values), [len(values) // 2])
    expected = mannwhitneyu(second, first, method="exact").pvalue
    assert _rank_sum_chance(first, second) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60)
@given(LEVELS, st.floats(0.01, 100))
@example([2.0, 0.5, 1.0, 1 / 3], 1.5)  # exactly the share that is allowed
def test_a_shift_has_no_unit_and_two_directions(values: list[float], unit: float) -> None:
    """In other units it is the same; with the halves exchanged it is its inverse, and as sure."""
    found, scaled = shift(values, 0.5), shift(np.array(values) * unit, 0.5)
    assert (scaled.change, scaled.drifted) == (pytest.approx(found.change, abs=1e-6), found.drifted)
    if len(values) % 2 == 0:
        back = shift([*values[len(values) // 2 :], *values[: len(values) // 2]], 0.5)
        assert back.drifted is found.drifted
        assert (1 + (back.change or 0)) * (1 + (found.change or 0)) == pytest.approx(1, rel=1e-6)


@COUNTS
@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.8])
def test_steady_levels_are_hardly_ever_doubted(count: int, coefficient: float) -> None:
    """Of levels that vary by a fifth at most three runs in a hundred are not said to be steady, and 3 σ."""
    found = [shift(levels(count, seed, coefficient), 0.5).drifted for seed in range(300)]
    assert sum(each is not False for each in found) <= 300 * upper(0.03, 300)


@COUNTS
def test_a_pause_in_one_second_is_no_shift(count: int) -> None:
    """Wherever it is, and however long: the other seconds are as they were."""
    for at in range(count):
        values = levels(count, at, noise=0.1)
        values[at] *= 1_000
        assert shift(values, 0.5).drifted is False


@COUNTS
@pytest.mark.parametrize("shape", ["jump", "slope"])
def test_levels_that_treble_are_never_said_to_be_steady(count: int, shape: str) -> None:
    """At once or bit by bit, up or down: nine of ten are doubted, and found where there are enough of them."""
    place = np.arange(count) / (count - 1)
    for direction in (1, -1):
        change = np.log(3) * (place >= 0.5) if shape == "jump" else np.log(9) * place
        found = [shift(levels(count, seed) * np.exp(direction * change), 0.5).drifted for seed in range(50)]
        assert sum(each is not False for each in found) >= 45
        assert count < 8 or sum(each is True for each in found) >= 45


def test_three_levels_cannot_tell() -> None:
    """Whatever they look like."""
    assert shift([1.0, 1.0, 9.0]).drifted is shift([]).drifted is None
    assert shift([]).change is None


# --- both ---


@pytest.mark.parametrize("seconds", [6, 20, 60])
def test_a_steady_run_keeps_the_floor_and_little_more(seconds: int) -> None:
    """Without a transient most of the data is kept, and 19 of 20 runs are said to be steady."""
    found = [steady_state(times_of(each), each, 1.0) for each in (throughput(seed, seconds) for seed in range(100))]
    assert sum(each.steady is True for each in found) >= 95
    assert sum(each.warmup_s > 1 + 0.25 * seconds for each in found) <= 10
    assert min(each.warmup_s for each in found) == 1.0


@pytest.mark.parametrize("seconds", [6, 20])
def test_a_slow_start_lengthens_the_warm_up(seconds: int) -> None:
    """A rate that starts at 40 % and settles after 2 s is cut there, nine times in ten, and the rest is steady."""
    good = 0
    for seed in range(40):
        values = throughput(seed, seconds)
        values *= 1 - 0.6 * np.maximum(1 - times_of(values) / 2, 0)
        found = steady_state(times_of(values), values, 0.5)
        good += 1.2 <= found.warmup_s <= 3 and found.steady is True
    assert good >= 36


@pytest.mark.parametrize("at_s", [2, 4, 6, 9])
def test_a_pause_is_a_finding_and_no_warm_up(at_s: int) -> None:
    """A second without a message in the midst of 20 s is never cut away with all that came before it."""
    for seed in range(40):
        values = throughput(seed, 20)
        values[at_s * 20 : at_s * 20 + 20] = 0
        values[at_s * 20 + 20 : at_s * 20 + 30] *= 3
        assert steady_state(times_of(values), values, 0.5).warmup_s < at_s


def test_a_slow_start_is_cut_although_a_pause_follows() -> None:
    """The pause, which weighs more than the start, does not hide it: both are told apart in nine of ten runs."""
    good = 0
    for seed in range(40):
        values = throughput(seed, 20)
        values[:40] *= np.linspace(0.4, 1, 40)
        values[120:140] = 0
        good += 1.2 <= steady_state(times_of(values), values, 0.5).warmup_s <= 3
    assert good >= 36


def test_one_slow_second_is_no_warm_up_of_a_latency() -> None:
    """Of per-second p99s one of ten times the rest leaves the warm-up at its floor or little above."""
    for seed in range(40):
        values = 5e6 * np.exp(0.1 * np.random.default_rng(seed).standard_normal(60))
        values[20] *= 10
        assert steady_state(np.arange(60.0), values, 3.0).warmup_s < 20


def test_a_rate_that_falls_all_the_time_is_not_steady() -> None:
    """A run that loses a third of its rate from start to end is said never to have been steady."""
    for seed in range(20):
        values = throughput(seed, 20) * np.linspace(1, 0.65, 400)
        found = steady_state(times_of(values), values, 1.0)
        assert found.steady is False
        assert "differs" in found.reason


@settings(max_examples=40)
@given(SERIES, st.floats(0, 3))
def test_the_warm_up_is_never_below_its_floor(values: list[int], floor_s: float) -> None:
    """Whatever the data, at least the floor is left out, and never more than half of the rest."""
    times = np.arange(len(values)) / HZ
    found = steady_state(times, values, floor_s)
    assert floor_s <= found.warmup_s <= max(floor_s, floor_s + (times[-1] - floor_s) / 2 + 1 / HZ)
    assert found.reason


def test_too_few_samples_cannot_tell() -> None:
    """Nineteen samples after the floor are too few, whatever they look like."""
    found = steady_state(np.arange(25) / 1.0, np.ones(25), 6.0)
    assert (found.warmup_s, found.steady) == (6.0, None)
    assert steady_state(np.arange(25) / 1.0, np.ones(25), 5.0).steady is True


def test_impossible_arguments_are_named() -> None:
    """What cannot be meant is refused with its name."""
    with pytest.raises(ValueError, match="floor"):
        steady_state([0.0], [1.0], -1.0)
    with pytest.raises(ValueError, match="share"):
        drift(np.ones(30), share=0)
    with pytest.raises(ValueError, match="share"):
        shift(np.ones(30), share=0)
    with pytest.raises(ValueError, match="levels"):
        shift([1.0, 1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="finite"):
        shift([1.0, math.inf, 1.0, 1.0])
