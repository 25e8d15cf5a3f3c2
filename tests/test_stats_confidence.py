"""Intervals over repeats: against textbook values, and where honesty says that there is none."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.stats.confidence import estimate, paired_ratio, unpaired_ratio

POSITIVE = st.floats(1e-3, 1e9)


def test_interval_is_students_t_on_logs() -> None:
    """For 1, e, e² the mean log is 1, its standard error 1/√3, and t(0.975, 2) is 4.302653 (tables)."""
    result = estimate([1.0, math.e, math.e**2])
    reach = 4.302653 / math.sqrt(3)
    assert result.median == pytest.approx(math.e)
    assert result.low == pytest.approx(math.exp(1 - reach), rel=1e-6)
    assert result.high == pytest.approx(math.exp(1 + reach), rel=1e-6)


@pytest.mark.parametrize("values", [[], [None], [0.0, -1.0, math.nan, math.inf]])
def test_nothing_usable_is_nothing_at_all(values: list[float | None]) -> None:
    """Without a usable repeat there is neither median nor interval, and what was dropped is counted."""
    result = estimate(values)
    assert (result.n, result.median, result.low, result.high) == (0, None, None, None)
    assert result.dropped == len(values)


def test_one_repeat_has_no_interval() -> None:
    """A single repeat shows its value and claims nothing about the next one."""
    result = estimate([42.0, None])
    assert (result.median, result.has_interval, result.dropped) == (42.0, False, 1)
    assert paired_ratio([(2.0, 1.0)]).direction == "no difference shown"


def test_equal_repeats_have_an_interval_of_one_point() -> None:
    """Repeats that do not vary leave no doubt, and no division by zero."""
    result = estimate([5.0, 5.0, 5.0])
    assert (result.low, result.high) == (pytest.approx(5.0), pytest.approx(5.0))


@settings(max_examples=40)
@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=12))
def test_reciprocal_ratio_has_the_reciprocal_interval(pairs: list[tuple[float, float]]) -> None:
    """Which broker is on top of the fraction changes neither the finding nor its width."""
    forth, back = paired_ratio(pairs), paired_ratio([(bottom, top) for top, bottom in pairs])
    assert forth.ratio == pytest.approx(1 / back.ratio if back.ratio else None)
    if forth.low and back.high and math.isfinite(back.high):
        assert forth.low == pytest.approx(1 / back.high, rel=1e-6)


@settings(max_examples=40)
@given(st.lists(POSITIVE, min_size=2, max_size=12), st.floats(1e-3, 1e3))
def test_units_do_not_matter(values: list[float], factor: float) -> None:
    """The same repeats in other units have the same median and interval in those units."""
    plain, scaled = estimate(values), estimate([value * factor for value in values])
    assert scaled.median == pytest.approx((plain.median or 0) * factor)
    if plain.low and plain.high and plain.low > 1e-200 and plain.high < 1e200:
        assert scaled.low == pytest.approx(plain.low * factor, rel=1e-6)
        assert scaled.high == pytest.approx(plain.high * factor, rel=1e-6)


def test_pairing_takes_out_what_a_round_did_to_both() -> None:
    """A drift of the machine hides the difference of two means, and not the mean of their differences."""
    drift = [1.0, 2.0, 4.0, 8.0, 16.0]
    noise = [1.01, 0.99, 1.02, 0.98, 1.0]
    pairs = [(1.2 * each * jitter, each) for each, jitter in zip(drift, noise, strict=True)]
    assert paired_ratio(pairs).direction == "higher"
    kafka, rabbitmq = estimate(top for top, _ in pairs), estimate(bottom for _, bottom in pairs)
    assert kafka.low is not None
    assert rabbitmq.high is not None
    assert kafka.low < rabbitmq.high


@pytest.mark.parametrize(
    ("pairs", "direction"),
    [
        ([(2.0, 1.0), (2.1, 1.0), (1.9, 1.0)], "higher"),
        ([(1.0, 2.0), (1.0, 2.1), (1.0, 1.9)], "lower"),
        ([(1.1, 1.0), (0.9, 1.0), (1.05, 1.0)], "no difference shown"),
        ([(3.0, None), (None, 1.0), (2.0, 0.0)], "no difference shown"),
        ([], "no difference shown"),
    ],
)
def test_direction_needs_an_interval_that_excludes_one(
    pairs: list[tuple[float | None, float | None]], direction: str
) -> None:
    """A difference is claimed only where the interval does not hold 1; incomplete pairs are left out."""
    assert paired_ratio(pairs).direction == direction


def test_interval_covers_its_share_of_three_repeats() -> None:
    """Over many invented runs of three log-normal repeats, 95 % of the intervals hold the true value."""
    rng = np.random.default_rng(1)
    runs = 100 * rng.lognormal(0, 0.1, (2_000, 3))
    held = sum(bool((found := estimate(run)).low <= 100 <= found.high) for run in runs.tolist())  # type: ignore[operator]
    assert 0.935 <= held / len(runs) <= 0.965


@settings(max_examples=25)
@given(st.lists(POSITIVE, min_size=2, max_size=8))
def test_more_confidence_is_never_narrower(values: list[float]) -> None:
    """A higher confidence reaches at least as far to both sides."""
    found = [estimate(values, confidence) for confidence in (0.5, 0.9, 0.99)]
    for narrow, wide in pairwise(found):
        assert narrow.low is not None
        assert narrow.high is not None
        assert wide.low is not None
        assert wide.high is not None
        assert wide.low <= narrow.low * (1 + 1e-12)
        assert wide.high >= narrow.high * (1 - 1e-12)


def test_unpaired_ratio_is_welchs_t_on_logs() -> None:
    """Against scipy's own Welch interval, which is another program's; sides may have different sizes."""
    from scipy.stats import ttest_ind  # noqa: PLC0415

    top, bottom = [1.0, 1.5, 2.0, 1.2], [0.5, 0.55, 0.45]
    found = unpaired_ratio(top, bottom)
    wanted = ttest_ind(np.log(top), np.log(bottom), equal_var=False).confidence_interval(0.95)
    assert found.low == pytest.approx(math.exp(wanted.low))
    assert found.high == pytest.approx(math.exp(wanted.high))
    assert found.pairs == 3


@settings(max_examples=40)
@given(st.lists(POSITIVE, max_size=6), st.lists(POSITIVE, max_size=6))
def test_an_unpaired_ratio_turns_over_and_needs_two_on_each_side(top: list[float], bottom: list[float]) -> None:
    """One side's value alone has no interval; the reciprocal has the reciprocal interval."""
    forth, back = unpaired_ratio(top, bottom), unpaired_ratio(bottom, top)
    assert (forth.ratio is None) == (not top or not bottom)
    assert (forth.low is None) == (min(len(top), len(bottom)) < 2)
    if forth.low and back.high and math.isfinite(back.high):
        assert forth.low == pytest.approx(1 / back.high, rel=1e-6)


def test_an_unpaired_interval_keeps_its_level() -> None:
    """Of repeats that differ by chance alone about one in twenty shows a difference."""
    noise = np.random.default_rng(5)
    alarms = sum(
        unpaired_ratio(np.exp(noise.normal(0, 0.3, 3)), np.exp(noise.normal(0, 0.1, 5))).direction
        != "no difference shown"
        for _ in range(2_000)
    )
    assert alarms / 2_000 < 0.07
