"""The likelihood of an autocorrelation and what it makes of an interval, against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t

from loadgen.stats import autocorrelation
from loadgen.stats.autocorrelation import BATCHES, batched, coefficient


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(10, 40), st.integers(2, 4))
def test_weights_and_variances_are_those_of_the_dense_covariance(seed: int, count: int, columns: int) -> None:
    """For each φ the restricted likelihood and the variance of least squares are those of the n × n covariance."""
    rng = np.random.default_rng(seed)
    design = np.column_stack([np.ones(count), rng.standard_normal((count, columns - 1))])
    values, freedom = rng.standard_normal(count), count - columns
    estimator = np.linalg.pinv(design)[1]
    weights, variances = autocorrelation._over_phis(design, values, estimator, freedom)
    likelihoods, expected = [], []
    for phi in autocorrelation._PHIS:
        covariance = phi ** np.abs(np.subtract.outer(np.arange(count), np.arange(count))) / (1 - phi**2)
        inverse = np.linalg.inv(covariance)
        normal = design.T @ inverse @ design
        rest = inverse - inverse @ design @ np.linalg.inv(normal) @ design.T @ inverse
        squares = values @ rest @ values
        determinants = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(normal)[1]
        likelihoods.append(-(determinants + freedom * np.log(squares)) / 2)
        expected.append(squares / freedom * (estimator @ covariance @ estimator))
    dense = np.exp(np.array(likelihoods) - max(likelihoods))
    assert weights == pytest.approx(dense / dense.sum(), rel=1e-6, abs=1e-9)
    assert variances == pytest.approx(np.array(expected), rel=1e-6)


def test_without_doubt_of_the_autocorrelation_it_is_the_t_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """With φ = 0 as the only candidate the interval is the textbook's: estimate ± t · standard error."""
    monkeypatch.setattr(autocorrelation, "_PHIS", np.array([0.0]))
    rng = np.random.default_rng(1)
    place, values = np.arange(25.0), rng.standard_normal(25)
    found = coefficient(np.column_stack([np.ones(25), place]), values, 1, 0.9)
    slope, level = np.polyfit(place, values, 1)
    residuals = values - level - slope * place
    error = np.sqrt(residuals @ residuals / 23 / np.sum((place - place.mean()) ** 2))
    assert found.value == pytest.approx(slope)
    assert found.high - found.low == pytest.approx(2 * t.ppf(0.95, 23) * error)


@settings(max_examples=40)
@given(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=400))
def test_batches_are_equal_runs_of_the_last_values(values: list[int]) -> None:
    """Each batch mean is of equally many neighbours, 30 to 59 of them; short series stay as they are."""
    means = batched(np.array(values, np.float64))
    width = max(1, len(values) // BATCHES)
    assert len(means) == len(values) // width
    assert len(values) < 2 * BATCHES or BATCHES <= len(means) < 2 * BATCHES
    assert means[-1] == pytest.approx(sum(values[-width:]) / width)
    assert means.sum() * width == pytest.approx(sum(values[len(values) % width :]), abs=1e-3)
