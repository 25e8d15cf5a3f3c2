"""The recorder puts every value into its own interval and loses none."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.histogram import LIMIT_NS, Histogram
from loadgen.recorder import BUFFER_VALUES, IntervalDelta, Recorder

INTERVAL_NS = 1_000
values = st.integers(-5, LIMIT_NS + 5)
moments = st.integers(-3 * INTERVAL_NS, 6 * INTERVAL_NS)
batches = st.lists(
    st.tuples(st.sampled_from(["e2e", "ack"]), st.lists(st.tuples(moments, values), max_size=12), st.booleans()),
    max_size=12,
)


def merged(deltas: list[IntervalDelta]) -> dict[tuple[str, int], Histogram]:
    """The deltas' histograms by kind and interval."""
    histograms: dict[tuple[str, int], Histogram] = {}
    for delta in deltas:
        delta.add_to(histograms.setdefault((delta.kind, delta.interval), Histogram()))
    return histograms


@settings(max_examples=60)
@given(batches, st.integers(0, 1 << 60))
def test_merged_deltas_are_one_histogram_of_everything(
    recorded: list[tuple[str, list[tuple[int, int]], bool]], origin_ns: int
) -> None:
    """Whatever the batches, their intervals and the moments of taking, no value is lost or misplaced."""
    recorder = Recorder(["e2e", "ack"], origin_ns, INTERVAL_NS)
    deltas: list[IntervalDelta] = []
    expected: dict[tuple[str, int], list[int]] = {}
    for kind, rows, take_now in recorded:
        when_ns, values_ns = (np.array([row[at] for row in rows], np.int64) for at in (0, 1))
        recorder.record(kind, when_ns + origin_ns, values_ns)
        for when, value in rows:
            expected.setdefault((kind, when // INTERVAL_NS), []).append(value)
        if take_now:
            deltas += recorder.take()
    deltas += recorder.take()
    histograms = merged(pickle.loads(pickle.dumps(deltas)))  # noqa: S301 - our own bytes
    assert histograms.keys() == expected.keys()
    for key, histogram in histograms.items():
        one = Histogram()
        one.add(np.array(expected[key], np.int64))
        assert (histogram.counts == one.counts).all()
        assert histogram.summary() == one.summary()
        assert (histogram.sum, histogram.out_of_range_count) == (one.sum, one.out_of_range_count)


def test_batches_larger_than_the_buffer_are_kept_whole() -> None:
    """A batch of several buffers, with one moment or one for each value, is counted completely."""
    count = 3 * BUFFER_VALUES + 7
    recorder = Recorder(["e2e"], 0, INTERVAL_NS)
    recorder.record("e2e", np.arange(count), np.full(count, 500))
    recorder.record("e2e", 5, np.full(count, 500))
    recorder.record("e2e", np.int64(5), np.full(count, 500))
    histograms = merged(recorder.take())
    assert sum(histogram.count for histogram in histograms.values()) == 3 * count
    assert histograms["e2e", 0].count == 2 * count + INTERVAL_NS


def test_a_late_value_is_one_more_delta_of_its_old_interval() -> None:
    """What comes after its interval was taken is handed over with the next take."""
    recorder = Recorder(["e2e"], 0, INTERVAL_NS)
    recorder.record("e2e", 10, np.array([7]))
    assert [(delta.interval, delta.count) for delta in recorder.take()] == [(0, 1)]
    recorder.record("e2e", 5 * INTERVAL_NS, np.array([8]))
    recorder.record("e2e", 20, np.array([9]))
    assert sorted((delta.interval, delta.count) for delta in recorder.take()) == [(0, 1), (5, 1)]
    assert recorder.take() == []


def test_the_recorder_copies_what_it_is_given() -> None:
    """The caller may use its arrays again at once."""
    recorder = Recorder(["e2e"], 0, INTERVAL_NS)
    reused = np.array([7])
    recorder.record("e2e", np.array([0]), reused)
    reused[0] = 9
    assert recorder.take()[0].max_ns == 7


def test_values_out_of_range_alone_make_a_delta() -> None:
    """An interval with nothing but impossible values still says so."""
    recorder = Recorder(["e2e"], 0, INTERVAL_NS)
    recorder.record("e2e", 0, np.array([-1, LIMIT_NS]))
    (delta,) = recorder.take()
    assert (delta.count, delta.out_of_range_count) == (0, 2)
    histogram = Histogram()
    delta.add_to(histogram)
    assert (histogram.count, histogram.out_of_range_count) == (0, 2)


def test_a_delta_is_as_large_as_its_different_values() -> None:
    """A second of a million alike durations travels in a few hundred bytes."""
    recorder = Recorder(["e2e"], 0)
    recorder.record("e2e", 0, np.full(1_000_000, 1_000_000))
    assert len(pickle.dumps(recorder.take())) < 1_000
