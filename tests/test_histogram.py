"""The histogram counts exactly, where and as HdrHistogram does."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.histogram import BUCKETS, LIMIT_NS, LOWEST_OF_BUCKET_NS, Counts, Histogram, bucket_indices

_AROUND_POWERS = {(1 << power) + step for power in range(1, 42) for step in (-1, 0, 1)}
EDGES_NS = sorted(_AROUND_POWERS | {0, 1000, 3_600_000_000_000, LIMIT_NS - 1})
held_values = st.one_of(
    st.sampled_from(EDGES_NS),
    st.integers(0, LIMIT_NS - 1),
    st.floats(0, 42, exclude_max=True).map(lambda power: int(2.0**power)),
)
any_values = st.one_of(held_values, st.integers(-(1 << 62), 1 << 62))


def made_of(values_ns: list[int]) -> Histogram:
    """A histogram of these values."""
    histogram = Histogram()
    histogram.add(np.array(values_ns, np.int64))
    return histogram


def hdr_of(values_ns: list[int]) -> HdrHistogram:
    """The same recorded by hdrhistogram itself, value by value."""
    histogram = HdrHistogram(1, 3_600_000_000_000, 3)
    for value in values_ns:
        histogram.record_value(value)
    return histogram


def test_every_edge_falls_into_hdrhistograms_own_bucket() -> None:
    """At and around each power of two the bucket is the one that hdrhistogram computes."""
    hdr = HdrHistogram(1, 3_600_000_000_000, 3)
    ours = bucket_indices(np.array(EDGES_NS, np.int64)).tolist()
    assert ours == [hdr.get_counts_array_index(value) for value in EDGES_NS]
    assert hdr.counts_len == BUCKETS


def test_buckets_cover_the_range_without_gaps() -> None:
    """The lowest value of each bucket is in it, and the value before it in the bucket before."""
    lowest = LOWEST_OF_BUCKET_NS[:-1]
    assert bucket_indices(lowest).tolist() == list(range(BUCKETS))
    assert bucket_indices(LOWEST_OF_BUCKET_NS[1:] - 1).tolist() == list(range(BUCKETS))
    assert LOWEST_OF_BUCKET_NS[-1] == LIMIT_NS


@settings(max_examples=60)
@given(st.lists(held_values, max_size=60))
def test_the_encoding_is_hdrhistograms_own_byte_for_byte(values_ns: list[int]) -> None:
    """The same values give the same bytes as hdrhistogram's own recording, empty included."""
    assert made_of(values_ns).encode() == hdr_of(values_ns).encode()


@settings(max_examples=60)
@given(st.lists(held_values, min_size=1, max_size=60))
def test_decoding_gives_every_bucket_back(values_ns: list[int]) -> None:
    """A decoded histogram has the same counts; its extremes are its buckets', its mean within a bucket."""
    histogram = made_of(values_ns)
    decoded = Histogram.decode(histogram.encode())
    assert (decoded.counts == histogram.counts).all()
    assert decoded.min <= histogram.min
    assert decoded.max >= histogram.max
    assert math.isclose(decoded.mean, histogram.mean, rel_tol=1 / 1024, abs_tol=1)
    assert Histogram.of(Counts.decode(histogram.encode(), histogram.max)).max == histogram.max
    assert Histogram.of(Counts.decode(histogram.encode(), 3 * histogram.max + 5_000)).max == decoded.max, (
        "no such bucket"
    )


@settings(max_examples=60)
@given(st.lists(held_values, min_size=1, max_size=200), st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_without_its_empty_buckets_a_histogram_is_the_same(values_ns: list[int], percents: list[float]) -> None:
    """Count, largest value and every percentile; an empty one has none."""
    histogram = made_of(values_ns)
    counts = Counts.decode(histogram.encode(), histogram.max)
    assert (counts.count, counts.max_ns) == (histogram.count, histogram.max)
    assert counts.percentiles(percents) == histogram.percentiles(percents)
    empty = Counts.decode(Histogram().encode())
    assert (empty.count, Histogram.of(empty).count) == (0, 0)
    with pytest.raises(ValueError, match="empty"):
        empty.percentiles([50])


@settings(max_examples=60)
@given(st.lists(held_values, min_size=1, max_size=200))
def test_smallest_largest_and_mean_are_exact(values_ns: list[int]) -> None:
    """They are the values' own, not their buckets'."""
    histogram = made_of(values_ns)
    assert (histogram.min, histogram.max, histogram.sum) == (min(values_ns), max(values_ns), sum(values_ns))
    assert histogram.mean == sum(values_ns) / len(values_ns)


@settings(max_examples=60)
@given(st.lists(any_values, max_size=200))
def test_nothing_is_dropped(values_ns: list[int]) -> None:
    """What no bucket can hold, negative values included, is counted as out of range."""
    held = [value for value in values_ns if 0 <= value < LIMIT_NS]
    histogram = made_of(values_ns)
    assert histogram.count == len(held)
    assert histogram.out_of_range_count == len(values_ns) - len(held)
    assert (histogram.counts == made_of(held).counts).all()


@settings(max_examples=100)
@given(
    st.lists(held_values, min_size=1, max_size=120),
    st.one_of(st.sampled_from([0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0]), st.floats(0, 100)),
)
def test_a_percentile_follows_the_ceil_rule(values_ns: list[int], percent: float) -> None:
    """Smallest end of a recorded bucket with count(<= end) >= ceil(p/100 * n), at most the largest value."""
    rank = max(1, math.ceil(Fraction(str(percent)) * len(values_ns) / 100))
    ends = LOWEST_OF_BUCKET_NS[bucket_indices(np.array(values_ns, np.int64)) + 1] - 1
    expected = next(end for end in sorted(ends.tolist()) if sum(ends <= end) >= rank)
    assert made_of(values_ns).percentile(percent) == min(expected, max(values_ns))


def test_a_percentiles_rank_is_not_rounded_up_by_binary_fractions() -> None:
    """99.9 % of 1000 values is the 999th, though 99.9 / 100 * 1000 is a little more than 999 in binary."""
    histogram = made_of([*range(1, 1000), 1_000_000])
    assert histogram.percentile(99.9) == 999


def test_percentiles_agree_with_hdrhistogram_where_the_rules_do() -> None:
    """For ranks that are whole numbers, hdrhistogram's percentiles are the same up to the exact largest value."""
    values_ns = np.random.default_rng(3).integers(1, 1 << 40, 1000).tolist()
    ours, theirs = made_of(values_ns), hdr_of(values_ns)
    for percent in (10.0, 50.0, 90.0, 99.0):
        assert ours.percentile(percent) == theirs.get_value_at_percentile(percent)


@pytest.mark.parametrize("percent", [-0.1, 100.1, math.nan])
def test_an_impossible_percentile_is_refused(percent: float) -> None:
    """Percentiles go from 0 to 100."""
    with pytest.raises(ValueError, match=r"percentile"):
        made_of([1]).percentile(percent)


def test_an_empty_histogram_has_no_values() -> None:
    """Its summary says None and asking for a value raises, so that no 0 looks like a measurement."""
    histogram = Histogram()
    assert histogram.summary()["count"] == 0
    assert {value for name, value in histogram.summary().items() if name != "count"} == {None}
    for ask in (
        lambda: histogram.min,
        lambda: histogram.max,
        lambda: histogram.mean,
        lambda: histogram.percentile(50),
    ):
        with pytest.raises(ValueError, match="empty"):
            ask()


def test_the_summary_has_the_fields_of_a_trial() -> None:
    """Count, extremes, mean and percentiles under the names that results carry."""
    summary = made_of(list(range(1, 2001))).summary()
    assert summary == {
        "count": 2000, "min": 1, "mean": 1000.5, "p50": 1000, "p90": 1800, "p99": 1980, "p99_9": 1998,
        "p99_99": 2000, "max": 2000,
    }  # fmt: skip


@settings(max_examples=40)
@given(st.lists(any_values, max_size=80), st.lists(any_values, max_size=80))
def test_merging_is_recording_everything_in_one(first_ns: list[int], second_ns: list[int]) -> None:
    """Two histograms merged are one of both sets of values."""
    merged, one = made_of(first_ns), made_of(first_ns + second_ns)
    merged.merge(made_of(second_ns))
    assert (merged.counts == one.counts).all()
    assert (merged.out_of_range_count, merged.sum) == (one.out_of_range_count, one.sum)
    assert merged.summary() == one.summary()


def test_another_layout_is_refused() -> None:
    """A histogram with other digits or range is not silently read as ours."""
    with pytest.raises(ValueError, match="layout"):
        Histogram.decode(HdrHistogram(1, 1000, 2).encode())


def test_a_sum_beyond_64_bits_is_exact() -> None:
    """Millions of hours do not overflow the sum."""
    histogram = Histogram()
    values_ns = np.full(3_000_000, LIMIT_NS - 1)
    histogram.add(values_ns)
    assert histogram.sum == 3_000_000 * (LIMIT_NS - 1) > 1 << 63
