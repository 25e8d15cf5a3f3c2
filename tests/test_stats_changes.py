"""Change points: where a level changed, that it seldom is where it did not, and no outlier."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.stats.changes import SIDE_LEAST, changes


def test_a_step_is_found_where_it_is() -> None:
    """Twenty runs, a step of 20 % amid noise of 3 %: one change, at its place; two steps are two."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.03, 30)
    step = np.where(np.arange(30) >= 12, np.log(1.2), 0.0)
    assert [each.at for each in changes(noise + step, seed=1)] == [12]
    both = step - np.where(np.arange(30) >= 21, np.log(1.4), 0.0)
    assert [each.at for each in changes(noise + both, seed=1)] == [12, 21]


def test_a_series_without_a_change_shows_one_in_twenty_cases() -> None:
    """The first division is tested at 5 %."""
    rng = np.random.default_rng(2)
    shown = sum(bool(changes(rng.normal(0, 1, 14), seed=number)) for number in range(200))
    assert shown <= 20, "10 of 200 are due; over 20 would come once in a thousand times"


@pytest.mark.parametrize("runs", [6, 7])
def test_too_few_values_have_no_change_however_far_apart(runs: int) -> None:
    """Of six, any division is as extreme in 2 of 20 orders; ties by rounding count as ties."""
    values = [0.1 * place for place in range(3)] + [5 + 0.1 * place for place in range(runs - 3)]
    assert all(changes(values, seed=seed) == [] for seed in range(5))


def test_an_outlier_is_no_change() -> None:
    """One bad run, however bad."""
    rng = np.random.default_rng(3)
    values = rng.normal(0, 0.03, 20)
    values[9] = 5.0
    assert changes(values, seed=1) == []


@given(st.lists(st.floats(-1e6, 1e6), max_size=14), st.integers(0, 5))
def test_levels_have_room_and_one_seed_gives_one_answer(values: list[float], seed: int) -> None:
    """Every level has as many values as one needs; nothing is found in a series of one value."""
    found = changes(values, seed=seed)
    ends = [0, *(each.at for each in found), len(values)]
    assert not found or min(np.diff(ends)) >= SIDE_LEAST
    assert changes(values, seed=seed) == found
    assert changes([1.5] * len(values), seed=seed) == []


def test_what_is_no_series_is_refused() -> None:
    """NaN has no level."""
    with pytest.raises(ValueError, match="finite"):
        changes([1.0, float("nan")], seed=1)
