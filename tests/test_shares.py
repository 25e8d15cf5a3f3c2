"""Shares of a rate that change while it runs: nothing is sent twice, nothing is left out, nothing comes at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.pacer import Fixed, Poisson, Ramp
from loadgen.scenario import Rate
from loadgen.shares import MAX_AT_MS, MAX_PRODUCERS, MS_NS, NEVER_NS, Changing, Delayed, Share, Silent

if TYPE_CHECKING:
    from loadgen.shares import Timed

BURST = Rate.burst(333.33, 9, 0.2, 0.7)
RATES = (Rate.fixed(333.33), Rate.fixed(7_000.0), Rate.ramp(100, 5_000), Rate.ramp(4_000, 10), BURST)
RAMP_S, END_MS = 2.0, 3_000
# The number of producers from each of some moments on.
histories = st.lists(st.tuples(st.integers(1, END_MS - 1), st.integers(0, 7)), min_size=1, max_size=8).map(
    lambda steps: sorted(dict(steps).items())
)


def whole_schedule(rate: Rate) -> Timed:
    """What one producer alone sends."""
    return Share(1, 0, 1).pacer(rate, RAMP_S, [0])


def schedules(rate: Rate, history: list[tuple[int, int]], seed: int = 1) -> list[Changing]:
    """The schedules of all producers that take part at any time."""
    made = [Changing() for _ in range(max(count for _, count in history) or 1)]
    for at_ms, count in history:
        for place, each in enumerate(made):
            share = Share(at_ms, place, count) if place < count else Share(at_ms, 0, 0)
            each.change(at_ms * MS_NS, share.pacer(rate, RAMP_S, [seed, place, at_ms]))
    return made


@settings(max_examples=120)
@given(st.sampled_from(RATES), histories)
def test_all_producers_together_send_the_common_schedule_exactly_once(
    rate: Rate, history: list[tuple[int, int]]
) -> None:
    """Whoever comes and goes: while anybody is there, every intended time of the schedule is somebody's, once."""
    end_ns = END_MS * MS_NS
    sent = [each.intended(0, each.due(end_ns)) for each in schedules(rate, history)]
    whole = whole_schedule(rate)
    expected = whole.intended(0, whole.due(end_ns))
    spans = zip(history, [*history[1:], (END_MS, 0)], strict=True)
    kept = np.zeros(len(expected), bool)
    for (begin_ms, count), (next_ms, _) in spans:
        inside = (expected >= begin_ms * MS_NS) & (expected < next_ms * MS_NS + (next_ms == END_MS))
        kept |= inside & (count > 0)
    assert np.sort(np.concatenate(sent)).tolist() == expected[kept].tolist()


@settings(max_examples=120)
@given(st.sampled_from([*RATES, Rate.poisson(2_000.0)]), histories, st.integers(0, END_MS * MS_NS))
def test_a_changing_schedule_is_one_function_whatever_is_asked(
    rate: Rate, history: list[tuple[int, int]], moment_ns: int
) -> None:
    """What is due, when the next is due and the intended times agree, over all changes."""
    for each in schedules(rate, history):
        due = each.due(moment_ns)
        assert each.next_due_ns(due) > moment_ns
        assert due == 0 or each.next_due_ns(due - 1) <= moment_ns
        times = each.intended(0, due)
        assert len(times) == due
        assert (np.diff(times) >= 0).all()
        assert times[-5:].tolist() == [each.next_due_ns(index) for index in range(max(0, due - 5), due)]
        assert each.intended(due // 2, due - due // 2).tolist() == times[due // 2 :].tolist()


def test_a_change_brings_neither_arrears_nor_a_burst() -> None:
    """From ten producers to one and back, nobody's messages come closer than the rate's own gap."""
    rate = Rate.fixed(1_000.0)
    for each in schedules(rate, [(1, 10), (500, 1), (1_000, 10)]):
        times = each.intended(0, each.due(2_000 * MS_NS))
        assert np.diff(times).min() >= MS_NS


def test_poisson_producers_keep_the_common_rate_through_a_change() -> None:
    """With 2, then 5 producers, about as many messages come in each half as one rate says (within 5 deviations)."""
    made = schedules(Rate.poisson(20_000.0), [(1, 2), (10_000, 5)])
    halves = [sum(each.due(10_000 * MS_NS) for each in made), sum(each.due(20_000 * MS_NS) for each in made)]
    for count in (halves[0], halves[1] - halves[0]):
        assert abs(count - 200_000) < 5 * np.sqrt(200_000)
    first, second = (each.intended(0, 1_000) for each in made[:2])
    assert not np.intersect1d(first, second).size, "producers must not draw the same arrivals"


def test_a_change_at_the_moment_of_the_last_replaces_it() -> None:
    """Two orders for one moment: the later one holds."""
    schedule = Changing()
    schedule.change(5 * MS_NS, Fixed(1_000))
    schedule.change(5 * MS_NS, Fixed(10))
    assert schedule.due(1_000 * MS_NS - 1) == 9
    schedule.change(5 * MS_NS, Silent())
    assert schedule.due(10_000 * MS_NS) == 0
    assert schedule.next_due_ns(0) == NEVER_NS


@settings(max_examples=80)
@given(st.sampled_from(RATES), st.integers(1, 2_000), st.integers(-300, 300), st.integers(1, 6), st.integers(1, 6))
def test_an_order_that_comes_late_leaves_nothing_out_of_who_had_sent_nothing(
    rate: Rate, at_ms: int, late_ms: int, before: int, after: int
) -> None:
    """Who is new sends all of its share from the moment on; who has sent already neither goes back nor sends twice."""
    now_ns = max(1, at_ms + late_ms) * MS_NS
    fresh, old = Changing(), Changing()
    share = Share(at_ms, 0, after).pacer(rate, RAMP_S, [0])
    assert not len(fresh.follow(at_ms * MS_NS, share, 0))
    expected = share.intended(0, share.due(END_MS * MS_NS))
    times = fresh.intended(0, fresh.due(END_MS * MS_NS))
    assert times.tolist() == expected[expected >= at_ms * MS_NS].tolist()
    old.change(1, Share(1, 0, before).pacer(rate, RAMP_S, [0]))
    sent = old.due(now_ns)
    kept = old.intended(0, sent).tolist()
    old.follow(at_ms * MS_NS, share, sent)
    assert old.intended(0, sent).tolist() == kept
    assert (np.diff(old.intended(0, old.due(END_MS * MS_NS))) >= 0).all()


@settings(max_examples=120)
@given(
    st.sampled_from(RATES),
    st.integers(1, 4),
    st.integers(0, 4),
    st.lists(st.integers(0, 900), min_size=4, max_size=4),
)
def test_what_orders_that_come_late_spoil_is_counted(
    rate: Rate, before: int, after: int, heard_after_ms: list[int]
) -> None:
    """Each message that all together send twice or leave out is one that somebody has counted; in time it is none."""
    at_ms, end_ns = 1_000, END_MS * MS_NS
    sent, counted = [np.empty(0, np.int64)], 0
    for place in range(max(before, after)):
        each, old, new = Changing(), (Share(1, 0, 0), Share(1, place, before)), (Share(1, 0, 0), Share(1, place, after))
        each.change(1, old[place < before].pacer(rate, RAMP_S, [0]))
        heard_ns = (at_ms + heard_after_ms[place]) * MS_NS
        pacer = new[place < after].pacer(rate, RAMP_S, [0])
        counted += len(each.follow(at_ms * MS_NS, pacer, each.due(heard_ns - 1)))
        assert each.is_silent(end_ns) == (place >= after)
        sent.append(each.intended(0, each.due(end_ns)))
    whole = whole_schedule(rate)
    expected = whole.intended(0, whole.due(end_ns))
    expected = expected[expected > 0]  # the first order holds from the first ns on
    if not after:
        expected = expected[expected < at_ms * MS_NS]
    times, copies = np.unique(np.concatenate(sent), return_counts=True)
    assert len(np.setdiff1d(expected, times)) + (copies > 1).sum() + len(np.setdiff1d(times, expected)) <= counted
    if not any(heard_after_ms[: max(before, after)]):
        assert not counted


@given(st.integers(1, MAX_AT_MS), st.integers(0, MAX_PRODUCERS), st.integers(0, MAX_PRODUCERS))
def test_a_share_fits_a_cell(at_ms: int, place: int, producers: int) -> None:
    """A share and its word are the same, and a word is a positive int64 that is never 0."""
    share = Share(at_ms, place, producers)
    assert 0 < share.word() < 1 << 63
    assert Share.of(int(np.int64(share.word()))) == share


@pytest.mark.parametrize("inner", [Fixed(50.0), Ramp(10, 20, 1.0), Poisson(100.0, 3)], ids=["fixed", "ramp", "poisson"])
def test_a_delayed_schedule_is_the_same_later(inner: Timed) -> None:
    """All its times are the inner one's and the delay."""
    later = Delayed(inner, 7 * MS_NS)
    assert later.due(7 * MS_NS - 1) == 0
    assert later.due(1_007 * MS_NS) == inner.due(1_000 * MS_NS)
    assert later.intended(3, 4).tolist() == (inner.intended(3, 4) + 7 * MS_NS).tolist()
    assert later.next_due_ns(2) == inner.next_due_ns(2) + 7 * MS_NS
