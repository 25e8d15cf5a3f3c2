"""Order-statistic intervals: exact against the binomial distribution, and honest where a sample is too small."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.histogram import LOWEST_OF_BUCKET_NS, Histogram, bucket_indices
from loadgen.stats.order import Ranks, percentile_interval, percentile_ranks

PERCENTILES = st.sampled_from([0.1, 1.0, 10.0, 50.0, 75.0, 90.0, 99.0, 99.9])
CONFIDENCES = st.sampled_from([0.5, 0.9, 0.95, 0.99])


def at_most(successes: int, count: int, share: Fraction) -> Fraction:
    """P(binomial(count, share) ≤ successes), exactly."""
    return sum(
        (math.comb(count, each) * share**each * (1 - share) ** (count - each) for each in range(successes + 1)),
        Fraction(0),
    )


@pytest.mark.parametrize(
    ("count", "percentile", "ranks"),
    [(5, 50, (None, None)), (6, 50, (1, 6)), (10, 50, (2, 9)), (20, 50, (6, 15)), (100, 50, (40, 61))],
)
def test_the_median_lies_between_the_ranks_of_the_tables(
    count: int, percentile: float, ranks: tuple[int | None, int | None]
) -> None:
    """The 95 % ranks for a median are those of the published tables; five values are too few."""
    assert percentile_ranks(count, percentile) == Ranks(*ranks)


def test_a_confidence_met_exactly_is_met() -> None:
    """Two values enclose the median with probability 1/2 to the last bit: enough for 50 %."""
    assert percentile_ranks(2, 50, confidence=0.5) == Ranks(1, 2)


@settings(max_examples=60)
@given(st.integers(1, 60), PERCENTILES, CONFIDENCES)
def test_ranks_keep_their_promise_and_no_tighter_ones_would(count: int, percentile: float, confidence: float) -> None:
    """In exact fractions: each side misses with at most half of the doubt, and the next rank inwards with more."""
    share, doubt = Fraction(str(percentile)) / 100, Fraction((1 - confidence) / 2)
    ranks = percentile_ranks(count, percentile, confidence)
    low, high = ranks.low or 0, ranks.high or count + 1
    assert low == 0 or at_most(low - 1, count, share) <= doubt
    assert high == count + 1 or 1 - at_most(high - 1, count, share) <= doubt
    assert at_most(low, count, share) > doubt
    assert 1 - at_most(high - 2, count, share) > doubt


@settings(max_examples=40)
@given(st.integers(0, 10**9), PERCENTILES, CONFIDENCES)
def test_a_percentile_seen_from_the_top_has_mirrored_ranks(count: int, percentile: float, confidence: float) -> None:
    """What holds for p counted up holds for 100 - p counted down, up to a thousand million values."""
    up = percentile_ranks(count, percentile, confidence)
    down = percentile_ranks(count, float(100 - Fraction(str(percentile))), confidence)
    assert up.high == (None if down.low is None else count + 1 - down.low)
    assert up.low == (None if down.high is None else count + 1 - down.high)


@pytest.mark.parametrize(("percentile", "fewest"), [(50.0, 6), (99.0, 368), (99.9, 3688), (99.99, 36887)])
def test_a_tail_has_no_upper_bound_until_the_sample_is_large_enough(percentile: float, fewest: int) -> None:
    """(p/100)^n must fall to 2.5 %: 100 values bound no p99, and 3,688 are the fewest that bound a p99.9."""
    assert percentile_ranks(fewest - 1, percentile).high is None
    assert percentile_ranks(fewest, percentile).high == fewest


def test_of_very_many_values_ranks_are_those_of_the_normal_distribution() -> None:
    """For 1e9 values the binomial is normal: the ranks of a p99.9 lie 1.96·√(n·p·q) to both sides, ± 3."""
    ranks = percentile_ranks(10**9, 99.9)
    reach = 1.959964 * math.sqrt(1e9 * 0.999 * 0.001)
    assert ranks.low is not None
    assert ranks.high is not None
    assert abs(ranks.low - (999_000_000 - reach)) < 3
    assert abs(ranks.high - (999_000_000 + reach)) < 3


@pytest.mark.parametrize(
    ("count", "percentile", "confidence", "what"),
    [(-1, 50, 0.95, "count"), (10, 0, 0.95, "percentile"), (10, 100, 0.95, "percentile"), (10, 50, 1.0, "confidence")],
)
def test_what_has_no_answer_is_refused(count: int, percentile: float, confidence: float, what: str) -> None:
    """Impossible arguments are named in the error."""
    with pytest.raises(ValueError, match=what):
        percentile_ranks(count, percentile, confidence)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=80), PERCENTILES, CONFIDENCES)
def test_bounds_are_the_edges_of_the_buckets_that_hold_the_ranks(
    values_ns: list[int], percentile: float, confidence: float
) -> None:
    """Each bound is at or outside the sorted value of its rank, in that value's bucket, and the value between them."""
    histogram = Histogram()
    histogram.add(np.array(values_ns, np.int64))
    ranks = percentile_ranks(len(values_ns), percentile, confidence)
    found = percentile_interval(histogram, percentile, confidence)
    ordered = np.sort(np.array(values_ns, np.int64))
    assert (found.low_ns is None, found.high_ns is None) == (ranks.low is None, ranks.high is None)
    assert found.value_ns == histogram.percentile(percentile)
    if found.low_ns is not None and ranks.low is not None:
        exact = ordered[ranks.low - 1]
        assert max(LOWEST_OF_BUCKET_NS[bucket_indices(exact[None])[0]], ordered[0]) == found.low_ns <= exact
        assert found.low_ns <= found.value_ns
    if found.high_ns is not None and ranks.high is not None:
        exact = ordered[ranks.high - 1]
        assert exact <= found.high_ns <= ordered[-1]
        assert found.value_ns <= found.high_ns


def test_an_empty_histogram_has_no_percentile() -> None:
    """Nothing measured is an error, as it is for the histogram's own percentiles."""
    with pytest.raises(ValueError, match="empty"):
        percentile_interval(Histogram(), 50)


def test_the_interval_covers_the_true_percentile() -> None:
    """Over 600 samples of 2,000 exponential values the true p99 is missed in at most 5 %, and three σ of chance."""
    rng = np.random.default_rng(7)
    true_ns, missed = math.log(100) * 1e6, 0
    for _ in range(600):
        histogram = Histogram()
        histogram.add(rng.exponential(1e6, 2_000).astype(np.int64))
        found = percentile_interval(histogram, 99)
        assert found.low_ns is not None
        assert found.high_ns is not None
        missed += not found.low_ns <= true_ns <= found.high_ns
    assert 0.01 <= missed / 600 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
