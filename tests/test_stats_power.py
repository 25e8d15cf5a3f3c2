"""Power: against published values, the house's rule of thumb, and the very test whose power it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, nct, t

from loadgen.stats.confidence import paired_ratio
from loadgen.stats.power import detectable_ratio, power, repeats_needed, spread_bound

EFFECTS = st.floats(1.005, 3.0)
SPREADS = st.floats(0.005, 0.5)


def power_two_sample(effect: float, deviation: float, repeats: int) -> float:
    """The power of the two-sided two-sample t test of logs at 5 %, so many runs in each group."""
    freedom = 2 * repeats - 2
    threshold = t.ppf(0.975, freedom)
    return float(nct.sf(threshold, freedom, effect * math.sqrt(repeats / 2) / deviation))


@pytest.mark.parametrize(
    ("effect", "wanted", "pairs"), [(0.2, 0.8, 199), (0.5, 0.8, 34), (0.8, 0.8, 15), (0.5, 0.9, 44), (0.5, 0.95, 54)]
)
def test_pairs_needed_are_those_of_the_tables(effect: float, wanted: float, pairs: int) -> None:
    """For Cohen's small, medium and large effects a paired two-sided 5 % test needs these many pairs (G*Power)."""
    assert repeats_needed(math.exp(effect), 1.0, wanted) == pairs


@pytest.mark.parametrize(("spread", "paired", "nothing_shared", "unpaired"), [(0.05, 6, 8, 7), (0.13, 22, 42, 41)])
def test_the_rule_of_thumb_for_ten_per_cent(spread: float, paired: int, nothing_shared: int, unpaired: int) -> None:
    """The module's table: "7 repeats at 5 %" is the unpaired design; pairs that share nothing cost one more."""
    assert repeats_needed(1.1, spread) == paired
    assert repeats_needed(1.1, spread * math.sqrt(2)) == nothing_shared
    enough = [each for each in range(2, 100) if power_two_sample(math.log(1.1), spread, each) >= 0.9]
    assert enough[0] == unpaired


def test_it_is_the_power_of_the_interval_that_is_reported() -> None:
    """Of 2,000 simulated comparisons as many find the difference as the formula says, within four σ."""
    rng, repeats = np.random.default_rng(3), 8
    logs = math.log(1.1) + 0.08 * rng.standard_normal((2_000, repeats))
    found = sum(
        paired_ratio([(math.exp(each), 1.0) for each in row]).direction != "no difference shown" for row in logs
    )
    expected = power(1.1, 0.08, repeats)
    assert 0.5 < expected < 0.95
    assert found / 2_000 == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 2_000))


@settings(max_examples=60)
@given(EFFECTS, SPREADS, st.integers(2, 60), st.floats(0.001, 0.2))
def test_more_repeats_larger_effects_and_less_noise_never_hurt(
    effect: float, spread: float, repeats: int, alpha: float
) -> None:
    """Power grows in each of them, stays within alpha … 1, and a ratio is as hard to find as its reciprocal."""
    found = power(effect, spread, repeats, alpha)
    assert alpha - 1e-9 <= found <= 1
    slack = 1e-6
    assert power(effect, spread, repeats + 1, alpha) >= found - slack
    assert power(effect * 1.1, spread, repeats, alpha) >= found - slack
    assert power(effect, spread / 1.1, repeats, alpha) >= found - slack
    assert power(1 / effect, spread, repeats, alpha) == pytest.approx(found, abs=1e-9)


@settings(max_examples=40)
@given(SPREADS, st.integers(2, 60), st.floats(0.3, 0.99))
def test_what_is_detectable_is_what_has_that_power(spread: float, repeats: int, wanted: float) -> None:
    """detectable_ratio is power's inverse, and those repeats, no fewer, are needed for it."""
    ratio = detectable_ratio(spread, repeats, wanted)
    if ratio < 1e9:
        assert power(ratio, spread, repeats) == pytest.approx(wanted, abs=1e-6)
        needed = repeats_needed(ratio * (1 + 1e-6), spread, wanted)
        assert needed is not None
        assert needed <= repeats
        assert power(ratio, spread, needed) >= wanted - 1e-3


def test_the_ends_of_the_scale() -> None:
    """One pair shows nothing, no effect is found as often as alpha says, no noise hides nothing, too much too much."""
    assert power(2.0, 0.1, 1) == 0.0
    assert power(1.0, 0.1, 10, alpha=0.01) == 0.01
    assert power(1.01, 0.0, 2) == 1.0
    assert power(1e6, 1e-9, 1000) == pytest.approx(1.0)
    assert repeats_needed(1.0, 0.1) is None
    assert repeats_needed(1.01, 0.13, most=100) is None
    assert repeats_needed(1.01, 0.0) == 2
    assert detectable_ratio(0.1, 1) == math.inf
    assert detectable_ratio(0.0, 5) == 1.0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((0.0, 0.1, 5), "ratio"),
        ((1.1, -0.1, 5), "deviation"),
        ((1.1, 0.1, -1), "repeats"),
        ((1.1, 0.1, 5, 1.0), "alpha"),
    ],
)
def test_impossible_arguments_are_named(arguments: tuple[float, float, int], what: str) -> None:
    """Each refusal says which argument was wrong."""
    with pytest.raises(ValueError, match=what):
        power(*arguments)
    with pytest.raises(ValueError, match="power"):
        detectable_ratio(0.1, 5, 0.01)


@given(st.floats(0.001, 1.0), st.integers(1, 200), st.floats(0.05, 0.95))
def test_a_spread_lies_below_its_bound_as_often_as_is_said(spread: float, freedom: int, confidence: float) -> None:
    """The bound is where so much of the estimate's own distribution lies above the estimate."""
    bound = spread_bound(spread, freedom, confidence)
    assert chi2.sf(freedom * spread**2 / bound**2, freedom) == pytest.approx(confidence)


def test_a_bound_without_an_estimate_is_refused() -> None:
    """One pair has no spread."""
    with pytest.raises(ValueError, match="0 degrees of freedom"):
        spread_bound(0.1, 0)
