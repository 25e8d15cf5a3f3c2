"""Slopes of autocorrelated series: no wolf is cried over slow noise, and a backlog that grows is seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from loadgen.stats.trend import slope

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

HZ = 20.0


def ar1(rng: np.random.Generator, coefficient: float, count: int, rows: int) -> Floats:
    """Stationary AR(1) series with mean 0 and standard deviation 1: float[rows, count]."""
    noise = rng.standard_normal((rows, count)) * math.sqrt(1 - coefficient**2)
    noise[:, 0] /= math.sqrt(1 - coefficient**2)
    series: Floats = lfilter([1], [1, -coefficient], noise, axis=1)
    return series


def backlog(rng: np.random.Generator, arrivals_per_s: float, served_per_s: float, seconds: float) -> Floats:
    """The number in a queue with Poisson arrivals and services in slots of 1 ms, at 20 Hz after 2 s of warm-up."""
    slots = int((seconds + 2) * 1000)
    steps = rng.poisson(arrivals_per_s / 1000, slots) - rng.poisson(served_per_s / 1000, slots)
    walk = np.cumsum(steps)
    waiting: Floats = (walk - np.minimum(np.minimum.accumulate(walk), 0)).astype(np.float64)
    return waiting[2000 :: int(1000 / HZ)]


def times_of(series: Floats) -> Floats:
    """When a series was sampled (s)."""
    return np.arange(series.shape[-1]) / HZ


def upper(share: float, runs: int) -> float:
    """The largest share that chance makes of a true one: three standard deviations above."""
    return share + 3 * math.sqrt(share * (1 - share) / runs)


@pytest.mark.parametrize("count", [60, 120, 400])
@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.8, 0.9])
def test_the_interval_covers_the_slope_of_autocorrelated_noise(coefficient: float, count: int) -> None:
    """AR(1), φ up to 0.9, 60 to 400 samples: a 95 % interval misses in at most 6 %, growth is shown in 3 %, and 3 σ."""
    rng, runs = np.random.default_rng(1), 250
    found = [slope(times_of(row), row) for row in ar1(rng, coefficient, count, runs)]
    assert sum(each.low > 0 or each.high < 0 for each in found if each.low is not None and each.high is not None) <= (
        runs * upper(0.06, runs)
    )
    assert sum(bool(each.grows) for each in found) <= runs * upper(0.03, runs)


def test_fast_noise_on_top_of_slow_noise_is_no_growth() -> None:
    """White noise hides from AR(1) how slow the rest is, and from batches less: growth in at most 5 %, and 3 σ."""
    rng, runs = np.random.default_rng(2), 300
    rows = ar1(rng, 0.95, 120, runs) + rng.standard_normal((runs, 120))
    found = [slope(times_of(row), row) for row in rows]
    assert sum(bool(each.grows) for each in found) <= runs * upper(0.05, runs)


@pytest.mark.parametrize("load", [0.8, 0.95, 0.98])
def test_the_backlog_of_a_stationary_queue_does_not_grow(load: float) -> None:
    """Over 6 s at up to 98 % load of 20,000 msg/s no more than 2.5 % of the runs, and 3 σ, are said to grow."""
    rng, runs = np.random.default_rng(3), 150
    series = [backlog(rng, load * 20_000, 20_000, 6) for _ in range(runs)]
    assert sum(bool(slope(times_of(each), each).grows) for each in series) <= runs * upper(0.025, runs)


def test_a_queue_offered_two_per_cent_too_much_is_seen_to_grow() -> None:
    """At 102 % of 20,000 msg/s over 10 s growth is shown in nine of ten runs, and by 400 msg/s in the middle."""
    rng, runs = np.random.default_rng(4), 100
    found = [slope(times_of(each), each) for each in (backlog(rng, 20_400, 20_000, 10) for _ in range(runs))]
    assert sum(bool(each.grows) for each in found) >= 0.9 * runs
    assert np.median([each.per_s for each in found if each.per_s is not None]) == pytest.approx(400, rel=0.1)


@pytest.mark.parametrize("coefficient", [0.5, 0.9])
def test_growth_of_two_per_cent_of_a_rate_is_seen_through_noise(coefficient: float) -> None:
    """Of 5,000 msg/s 100 stay behind: within 6 s it shows through a backlog that varies by 50, nine times in ten."""
    rng, runs = np.random.default_rng(5), 100
    rows = 300 + 50 * ar1(rng, coefficient, 120, runs)
    found = [slope(times_of(row), row + 100 * times_of(row)) for row in rows]
    assert sum(bool(each.grows) for each in found) >= 0.9 * runs


@settings(max_examples=40)
@given(
    st.integers(0, 2**32), st.integers(20, 200), st.floats(-1e6, 1e6), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3),
    st.floats(0.01, 100),
)  # fmt: skip
def test_a_line_added_adds_its_slope_and_units_only_scale(
    seed: int, count: int, offset: float, growth: float, unit: float, period_s: float
) -> None:
    """Values·unit + offset + growth·t have the slope·unit + growth, and an interval as wide times the unit."""
    rng = np.random.default_rng(seed)
    times, noise = np.arange(count) * period_s, rng.standard_normal(count)
    plain, changed = slope(times, noise), slope(times, unit * noise + offset + growth * times)
    assert plain.per_s is not None
    assert plain.low is not None
    assert changed.per_s is not None
    assert changed.low is not None
    slack = 1e-9 * (abs(growth) + abs(offset) / (count * period_s)) + 1e-6 * unit * abs(plain.low)
    assert changed.per_s == pytest.approx(unit * plain.per_s + growth, abs=slack)
    assert changed.low == pytest.approx(unit * plain.low + growth, abs=slack, rel=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(20, 59))
def test_seen_backwards_growth_is_decline(seed: int, count: int) -> None:
    """The reversed series has the negative slope and the mirrored interval."""
    values = np.random.default_rng(seed).exponential(1, count)
    forth, back = slope(times_of(values), values), slope(times_of(values), values[::-1])
    assert forth.per_s == pytest.approx(-(back.per_s or 0), abs=1e-12)
    assert forth.low == pytest.approx(-(back.high or 0), rel=1e-6, abs=1e-9)


def test_it_is_the_slope_of_least_squares() -> None:
    """Below 60 samples the slope is that of any other least squares, and n is what went in."""
    rng = np.random.default_rng(6)
    times, values = np.cumsum(rng.uniform(0.04, 0.06, 50)), rng.standard_normal(50)
    found = slope(times, values)
    assert found.per_s == pytest.approx(np.polyfit(times, values, 1)[0])
    assert found.n == 50


def test_an_exact_line_leaves_no_doubt() -> None:
    """A straight line and a constant have an interval of one point: their own slope."""
    times = np.arange(100) / HZ
    line, flat = slope(times, 3 + 2 * times), slope(times, np.full(100, 7.0))
    assert (line.low, line.high, line.grows) == (pytest.approx(2), pytest.approx(2), True)
    assert (flat.per_s, flat.low, flat.high, flat.grows) == (0, 0, 0, False)


def test_more_confidence_is_a_wider_interval() -> None:
    """At 99 % the interval encloses that at 80 %."""
    values = ar1(np.random.default_rng(8), 0.6, 100, 1)[0]
    wide, narrow = slope(times_of(values), values, 0.99), slope(times_of(values), values, 0.8)
    assert wide.low is not None
    assert wide.high is not None
    assert narrow.low is not None
    assert narrow.high is not None
    assert wide.low < narrow.low < narrow.high < wide.high


def test_few_samples_have_no_interval() -> None:
    """Nineteen samples have a slope, one has none, and of neither is it said that it grows."""
    times = np.arange(19.0)
    found = slope(times, 2 * times)
    assert (found.per_s, found.low, found.high, found.grows) == (pytest.approx(2), None, None, None)
    assert slope([1.0], [1.0]).per_s is None
    assert slope([], []).n == 0


@pytest.mark.parametrize(
    ("times", "values", "what"),
    [([1, 2], [1], "one time a value"), ([1, 1], [1, 2], "grow"), ([1, 2], [1, math.nan], "finite")],
)
def test_what_is_no_series_is_refused(times: list[float], values: list[float], what: str) -> None:
    """Unequal lengths, times that stand still and numbers that are none are named."""
    with pytest.raises(ValueError, match=what):
        slope(times, values)
    with pytest.raises(ValueError, match="confidence"):
        slope(np.arange(20), np.arange(20) ** 2, 1.0)
