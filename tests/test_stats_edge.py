"""The edge of a noisy yes: beliefs about known edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.stats.edge import Edge


@given(guess=st.floats(1e-3, 1e9), off=st.floats(0.1, 10.0))
def test_asking_at_the_median_closes_in_on_the_edge(guess: float, off: float) -> None:
    """From a guess that is up to ten times too large or too small, within a tenth, whatever the unit."""
    edge, true = Edge(guess), guess * off
    assert edge.at(0.5) == pytest.approx(guess)
    for _ in range(16):
        rate = edge.at(0.5)
        edge.saw(rate, passed=rate <= true)
    assert edge.at(0.5) == pytest.approx(true, rel=0.1)
    assert edge.at(0.1) < edge.at(0.5) < edge.at(0.9)
    assert edge.spread == pytest.approx(edge.at(0.9) / edge.at(0.1))


def test_the_belief_is_as_wide_as_it_is_wrong() -> None:
    """Of 300 noisy systems eight in ten have their edge between the belief's 10 % and 90 % point."""
    noise = np.random.default_rng(1)
    inside = 0
    for _ in range(300):
        edge = Edge(100.0)
        true = 100.0 * math.exp(0.25 * noise.standard_cauchy())
        true = min(max(true, 10.0), 1_000.0)
        for _ in range(8):
            rate = edge.at(0.5)
            edge.saw(rate, passed=rate <= true * math.exp(noise.normal(0, 0.05)))
        inside += edge.at(0.1) <= true <= edge.at(0.9)
    assert 0.7 * 300 <= inside <= 0.95 * 300


def test_one_answer_that_does_not_fit_is_outvoted() -> None:
    """A fail at half of the edge moves the belief, less than a pass at twice it, and passes move it back."""
    edge, passed = Edge(1_000.0), Edge(1_000.0)
    edge.saw(500.0, passed=False)
    passed.saw(2_000.0, passed=True)
    assert edge.at(0.5) < 800.0
    assert passed.at(0.5) > 2_000.0
    for _ in range(3):
        edge.saw(900.0, passed=True)
    edge.saw(1_100.0, passed=False)
    assert edge.at(0.5) == pytest.approx(1_000.0, rel=0.05)


@pytest.mark.parametrize("guess", [0.0, -1.0, math.inf, math.nan])
def test_a_guess_must_be_a_rate(guess: float) -> None:
    """One line says so."""
    with pytest.raises(ValueError, match="expected a number above 0"):
        Edge(guess)
