"""The knee: where theory puts it, in any unit and order, and never at an end of what was measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.stats.knee import knee
from loadgen.stats.queueing import md1_sojourn_s, mm1_sojourn_s

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE_RATE = 10_000.0
CURVES = st.lists(
    st.tuples(st.integers(1, 10**6), st.floats(1e3, 1e9)), min_size=4, max_size=12, unique_by=lambda p: p[0]
)


@pytest.mark.parametrize(("sojourn_s", "share"), [(mm1_sojourn_s, 0.5), (md1_sojourn_s, 2 - math.sqrt(2))])
def test_queues_have_their_knee_where_theory_puts_it(sojourn_s: Callable[[float, float], float], share: float) -> None:
    """M/M/1 at half of its capacity, M/D/1 at 2 - √2 of it: the nearest of the points measured."""
    rates = np.arange(0.05, 1, 0.05) * SERVICE_RATE
    found = knee(rates, [sojourn_s(float(rate), SERVICE_RATE) * 1e9 for rate in rates])
    assert found.rate_msgs_per_s == pytest.approx(rates[np.argmin(np.abs(rates - share * SERVICE_RATE))])
    assert found.latency_ns == pytest.approx(sojourn_s(found.rate_msgs_per_s or 0, SERVICE_RATE) * 1e9)


@pytest.mark.parametrize(("shares", "end"), [((0.6, 0.7, 0.8, 0.9), "lowest"), ((0.1, 0.2, 0.3, 0.4), "highest")])
def test_a_knee_outside_the_measured_range_is_not_invented(shares: tuple[float, ...], end: str) -> None:
    """Where the best point is the first or the last there is no knee, and the reason says at which end."""
    rates = [share * SERVICE_RATE for share in shares]
    found = knee(rates, [mm1_sojourn_s(rate, SERVICE_RATE) * 1e9 for rate in rates])
    assert (found.rate_msgs_per_s, found.latency_ns) == (None, None)
    assert end in found.reason


def test_fewer_than_four_points_have_no_knee() -> None:
    """Three points show no bend, none at all neither."""
    assert knee([1, 2, 3], [1, 1, 3]).reason == "3 points: a knee needs at least 4"
    assert knee([], []).rate_msgs_per_s is None


@settings(max_examples=80)
@given(CURVES, st.randoms(use_true_random=False), st.sampled_from([0.25, 2.0, 1024.0]))
def test_neither_order_nor_units_move_it(curve: list[tuple[int, float]], random: object, factor: float) -> None:
    """It is one of the points, none has more power, and shuffling or another unit finds the same one."""
    rates, latencies = zip(*curve, strict=True)
    found = knee(rates, latencies)
    shuffled = list(curve)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = knee([rate * factor for rate, _ in shuffled], [latency * factor for _, latency in shuffled])
    if found.rate_msgs_per_s is None or found.latency_ns is None:
        assert again.rate_msgs_per_s is None
        return
    assert again.rate_msgs_per_s == found.rate_msgs_per_s * factor
    assert (found.rate_msgs_per_s, found.latency_ns) in curve
    assert min(rates) < found.rate_msgs_per_s < max(rates)
    best = max(rate / latency for rate, latency in curve)
    assert found.rate_msgs_per_s / found.latency_ns == pytest.approx(best)


@pytest.mark.parametrize(
    ("rates", "latencies", "what"),
    [
        ([1, 2, 3, 4], [1, 1, 1], "one of each"),
        ([0, 2, 3, 4], [1, 1, 1, 1], "rate"),
        ([1, 2, 3, 4], [1, 1, math.nan, 1], "latency"),
        ([1, 2, 2, 4], [1, 1, 2, 1], "once"),
    ],
)
def test_what_is_no_curve_is_refused(rates: list[float], latencies: list[float], what: str) -> None:
    """Unequal lengths, values that are no rate or latency, and a rate given twice are named."""
    with pytest.raises(ValueError, match=what):
        knee(rates, latencies)
