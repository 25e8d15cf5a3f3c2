"""The scaling law: a rate that follows it is explained without residue, and costs are never negative."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.stats.scaling import Scaling, fit

PLACES = [1, 2, 4, 8, 16]


@given(st.floats(1, 1e7), st.floats(0, 0.95), st.floats(0, 0.05))
def test_a_rate_by_the_law_gives_the_law_back(rate: float, contention: float, crosstalk: float) -> None:
    """Rates that follow the law exactly are fitted exactly."""
    law = Scaling(rate, contention, crosstalk, ())
    found = fit(PLACES, [law.rate(places) for places in PLACES])
    assert found.rate_of_one == pytest.approx(rate, rel=1e-6)
    assert found.contention == pytest.approx(contention, abs=1e-6)
    assert found.crosstalk == pytest.approx(crosstalk, abs=1e-6)
    assert np.abs(found.residuals).max() < 1e-6


@given(st.lists(st.floats(1, 1e6), min_size=4, max_size=4))
def test_whatever_was_measured_the_law_has_no_negative_part(rates: list[float]) -> None:
    """Parameters are costs, and residuals those of the law that is returned."""
    found = fit([1, 2, 4, 8], rates)
    assert found.rate_of_one > 0
    assert found.contention >= 0
    assert found.crosstalk >= 0
    for places, measured, residual in zip([1, 2, 4, 8], rates, found.residuals, strict=True):
        assert found.rate(places) * (1 + residual) == pytest.approx(measured)


def test_the_peak_is_where_more_places_begin_to_cost() -> None:
    """At the peak the rate is higher than on either side; without crosstalk there is none."""
    law = Scaling(100.0, 0.1, 0.01, ())
    assert law.peak is not None
    assert law.rate(law.peak) > max(law.rate(law.peak - 1), law.rate(law.peak + 1))
    assert Scaling(100.0, 0.1, 0.0, ()).peak is None


@pytest.mark.parametrize(
    ("places", "rates"),
    [([1, 2, 4], [1, 2, 3]), ([1, 2, 4, 4], [1, 2, 3, 3]), ([1, 2, 4, 8], [1, 2, 3, 0]), ([1, 2, 4, 8], [1, 2, 3])],
)
def test_too_little_is_refused(places: list[float], rates: list[float]) -> None:
    """Four numbers of places with a rate each are the least that a law of three parameters can be wrong about."""
    with pytest.raises(ValueError, match="scaling: expected"):
        fit(places, rates)
