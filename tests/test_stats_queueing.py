"""Little's law holds of a true gauge and of no other, and simulated queues wait as long as theory says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stats_trend import ar1, upper

from loadgen.stats.queueing import (
    batch_means,
    little,
    md1_sojourn_s,
    md1_wait_s,
    mm1_sojourn_s,
    mm1_wait_s,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SERVICE_RATE = 1_000.0


def waits_s(rng: np.random.Generator, load: float, services_s: Floats) -> Floats:
    """How long each customer waits for a single server, by Lindley's recursion; arrivals are Poisson."""
    between_s = rng.exponential(1 / (load * SERVICE_RATE), len(services_s))
    walk = np.concatenate([[0.0], np.cumsum(services_s[:-1] - between_s[1:])])
    waits: Floats = walk - np.minimum.accumulate(walk)
    return waits


def delay_line(seed: int, rate: float, mean_s: float, seconds: float) -> tuple[float, float, Floats, Floats]:
    """Poisson arrivals that each stay an exponential time: rate, mean time, and the number in it at 20 Hz."""
    rng = np.random.default_rng(seed)
    entered = np.cumsum(rng.exponential(1 / rate, int(rate * (seconds + 2))))
    stayed = rng.exponential(mean_s, len(entered))
    times = np.arange(1, 1 + seconds, 1 / 20)
    number = np.searchsorted(entered, times) - np.searchsorted(np.sort(entered + stayed), times)
    inside = (entered >= times[0]) & (entered < times[-1])
    return inside.sum() / (times[-1] - times[0]), float(stayed[inside].mean()), times, number.astype(np.float64)


@pytest.mark.parametrize("load", [0.5, 0.8, 0.95])
def test_simulated_queues_wait_as_theory_says(load: float) -> None:
    """A million arrivals: the mean wait and sojourn of M/M/1 and M/D/1 lie in their 99 % batch-means intervals."""
    rng = np.random.default_rng(1)
    rate = load * SERVICE_RATE
    for services_s, wait_s, sojourn_s in (
        (rng.exponential(1 / SERVICE_RATE, 1_000_000), mm1_wait_s, mm1_sojourn_s),
        (np.full(1_000_000, 1 / SERVICE_RATE), md1_wait_s, md1_sojourn_s),
    ):
        waited_s = waits_s(rng, load, services_s)
        wait, sojourn = batch_means(waited_s), batch_means(waited_s + services_s)
        assert wait.low <= wait_s(rate, SERVICE_RATE) <= wait.high
        assert sojourn.low <= sojourn_s(rate, SERVICE_RATE) <= sojourn.high
        assert wait.standard_error < 0.1 * wait.mean  # the interval is narrow enough to say something


@settings(max_examples=60)
@given(st.floats(0.01, 0.99), st.floats(0.1, 1e6))
def test_the_formulas_agree_with_each_other(load: float, service_rate: float) -> None:
    """M/M/1: L = ρ/(1 - ρ) by Little's law; a constant service halves the wait; wait and service make the sojourn."""
    rate = load * service_rate
    assert rate * mm1_sojourn_s(rate, service_rate) == pytest.approx(load / (1 - load), rel=1e-6)
    assert md1_wait_s(rate, service_rate) == pytest.approx(mm1_wait_s(rate, service_rate) / 2)
    assert md1_sojourn_s(rate, service_rate) == pytest.approx(md1_wait_s(rate, service_rate) + 1 / service_rate)


@pytest.mark.parametrize("arrivals", [10.0, 11.0, -1.0])
def test_an_overloaded_queue_has_no_mean_wait(arrivals: float) -> None:
    """At and above capacity the wait grows for ever; there is no number to give."""
    with pytest.raises(ValueError, match="expected arrivals"):
        mm1_wait_s(arrivals, 10.0)


@pytest.mark.parametrize("coefficient", [0.0, 0.8, 0.95])
def test_batch_means_cover_the_mean_of_autocorrelated_values(coefficient: float) -> None:
    """Of 400 AR(1) series of 4,000 values the 95 % interval misses at most 6 %, and 3 σ; a naive one misses most."""
    rows = ar1(np.random.default_rng(2), coefficient, 4_000, 400)
    found = [batch_means(row, confidence=0.95) for row in rows]
    assert sum(not each.low <= 0 <= each.high for each in found) <= 400 * upper(0.06, 400)


@settings(max_examples=40)
@given(st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=60), st.integers(2, 10))
def test_batch_means_are_plain_means(values: list[int], batches: int) -> None:
    """The mean is that of the values kept, inside its interval, and the interval has its standard error."""
    if len(values) < batches:
        with pytest.raises(ValueError, match="at least"):
            batch_means(values, batches)
        return
    found = batch_means(values, batches)
    assert found.mean == pytest.approx(np.mean(values[len(values) % batches :]), abs=1e-6)
    assert found.low <= found.mean <= found.high
    assert found.standard_error >= 0
    assert found.batches == batches


def test_littles_law_holds_of_a_true_gauge() -> None:
    """Of 200 runs of 6 s with 100 in the system at most 2 % are not said to agree, and 3 σ; 0.3 % to disagree."""
    found = [little(*delay_line(seed, 5_000, 0.02, 6)) for seed in range(200)]
    assert sum(each.agrees is not True for each in found) <= 200 * upper(0.02, 200)
    assert sum(each.agrees is False for each in found) <= 200 * upper(0.003, 200)


def test_more_than_three_standard_errors_may_be_chance_where_the_error_is_estimated() -> None:
    """Ten parts make three standard errors one time in 67 by chance: only four and more contradict."""
    rate, mean_s, times, number = delay_line(1, 5_000, 0.02, 6)
    true = little(rate, mean_s, times, number)
    assert true.gauged is not None
    assert true.standard_error is not None
    for errors, agrees in ((2.9, True), (3.1, None), (4.0, None), (4.2, False)):
        mean = (true.gauged + errors * true.standard_error) / rate
        found = little(rate, mean, times, number)
        assert (found.agrees, found.is_doubted) == (agrees, agrees is None)


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_a_wrong_mean_time_is_found(factor: float) -> None:
    """A latency that is a fifth too small or too large disagrees with the gauge in every run."""
    for seed in range(20):
        rate, mean_s, times, number = delay_line(seed, 20_000, 0.02, 20)
        found = little(rate, factor * mean_s, times, number)
        assert found.agrees is False
        assert found.expected == pytest.approx(factor * rate * mean_s)
        assert "by the gauge" in found.reason


def test_a_gauge_read_askew_needs_its_allowance() -> None:
    """A gauge that reads `received` 5 ms late is off by λ·5 ms: it disagrees unless that is said."""
    rate, mean_s, times, number = delay_line(1, 20_000, 0.02, 20)
    askew = number - 0.005 * rate
    assert little(rate, mean_s, times, askew).agrees is False
    assert little(rate, mean_s, times, askew, skew_s=0.005).agrees is True


def test_the_gauge_is_averaged_over_time_and_not_over_samples() -> None:
    """A sampler that looks ten times as often while the system is full finds the mean of time all the same."""
    times = np.concatenate([np.arange(0, 5, 0.1), np.arange(5, 10, 0.01)])
    found = little(1_000, 0.06, times, np.where(times < 5, 30.0, 90.0))
    assert found.gauged == pytest.approx(60, rel=0.01)


def test_what_cannot_tell_says_so() -> None:
    """Fewer than 20 in the system, fewer than 50 samples, and a window of a few mean times are no evidence."""
    times = np.arange(100) / 20
    few, short, brief = (
        little(100, 0.1, times, np.full(100, 10.0)),
        little(100, 1.0, times[:49], np.full(49, 100.0)),
        little(100, 1.0, times, np.full(100, 100.0)),
    )
    assert (few.agrees, short.agrees, brief.agrees) == (None, None, None)
    assert not any(each.is_doubted for each in (few, short, brief))
    assert "below 20" in few.reason
    assert "49 samples" in short.reason
    assert "of the window" in brief.reason
    assert (short.gauged, short.standard_error) == (None, None)


def test_impossible_arguments_are_named() -> None:
    """Negative rates, unequal lengths and times that stand still are refused."""
    with pytest.raises(ValueError, match="rate"):
        little(-1, 1, [0, 1], [1, 1])
    with pytest.raises(ValueError, match="one value a time"):
        little(1, 1, [0, 1], [1])
    with pytest.raises(ValueError, match="growing"):
        little(1, 1, [0, 0], [1, 1])
    with pytest.raises(ValueError, match="batches"):
        batch_means([1.0, 2.0], 1)
    with pytest.raises(ValueError, match="finite"):
        batch_means([1.0, float("nan")], 2)
    with pytest.raises(ValueError, match="confidence"):
        batch_means([1.0, 2.0], 2, confidence=0.0)
