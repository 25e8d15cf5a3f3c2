"""Levels of response times: geometric means of what recorders hand over, in few blocks of enough messages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.levels import BLOCKS_MOST, MESSAGES_MIN, Levels
from loadgen.recorder import Recorder

SECOND_NS = 1_000_000_000


def levels_of(seconds: list[list[int]], interval_s: int = 1) -> Levels:
    """The levels of durations (ns) by the second in which they were intended, handed over in two parts each."""
    levels, recorder = Levels(interval_s), Recorder(("e2e",), origin_ns=0)
    for part in (0, 1):
        for second, values in enumerate(seconds):
            recorder.record("e2e", second * SECOND_NS, np.array(values[part::2], np.int64))
        for delta in recorder.take():
            levels.add(delta)
    return levels


DURATIONS = st.integers(1_000, 10**9)


@given(st.lists(st.lists(DURATIONS, min_size=MESSAGES_MIN, max_size=MESSAGES_MIN + 5), max_size=8))
def test_a_second_with_enough_messages_is_a_block_with_their_geometric_mean(seconds: list[list[int]]) -> None:
    """To the width of a bucket, whatever parts they come in."""
    means = [float(np.exp(np.log(values).mean())) for values in seconds]
    assert levels_of(seconds).blocks() == pytest.approx(np.array(means), rel=0.002)


@given(st.lists(st.integers(0, 25), max_size=120), st.integers(1, 3))
def test_every_message_is_in_a_block_of_enough(counts: list[int], interval_s: int) -> None:
    """At most forty blocks of ten messages and more, in order, with nothing left out; none where there are fewer."""
    seconds = [[1_000 * 2**second % 10**9 + 1_000] * count for second, count in enumerate(counts)]
    levels = levels_of(seconds, interval_s)
    blocks = levels.blocks()
    total = sum(counts)
    assert len(blocks) <= min(BLOCKS_MOST, total // MESSAGES_MIN)
    assert bool(len(blocks)) is (total >= MESSAGES_MIN)
    if len(blocks) == 1:
        logs = np.log(np.concatenate([np.array(each, np.float64) for each in seconds]))
        assert blocks[0] == pytest.approx(float(np.exp(logs.mean())), rel=0.002)


def test_many_seconds_are_forty_blocks_at_most_in_their_order() -> None:
    """A rise is a rise in the blocks, too."""
    blocks = levels_of([[1_000_000 * (second + 1)] * 30 for second in range(400)]).blocks()
    assert 30 <= len(blocks) <= BLOCKS_MOST
    assert (np.diff(blocks) > 0).all()
