"""Schedules are pure: what is due and what was intended agree, for any pattern of calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.pacer import (
    ALWAYS_DUE,
    GROUP_NS,
    NS_PER_S,
    RUSH_MSGS,
    RUSH_NS,
    Burst,
    Fixed,
    Grouping,
    Pacer,
    Poisson,
    Ramp,
    Saturate,
    make_pacer,
)
from loadgen.scenario import Rate

if TYPE_CHECKING:
    from collections.abc import Callable

rates = st.one_of(st.sampled_from([0.1, 1.0, 3.0, 333.33, 7_000.0, 1e6, 1e9]), st.floats(0.01, 5e6))
ramp_rates = st.floats(0.5, 3e6)
shares = st.integers(1, 9).flatmap(lambda producers: st.tuples(st.integers(0, producers - 1), st.just(producers)))
fixed = st.builds(lambda rate, share: Fixed(rate, *share), rates, shares)
poisson = st.builds(Poisson, rates, st.integers(0, 5))
ramp = st.builds(
    lambda begin, end, duration_s, share: Ramp(begin, end, duration_s, *share),
    ramp_rates, ramp_rates, st.floats(0.2, 3_600), shares,
)  # fmt: skip
burst = st.builds(
    lambda rate, share, times, rest_s, burst_s: Burst(Fixed(rate, *share), times, burst_s, burst_s + rest_s),
    rates, shares, st.integers(2, 1_000), st.floats(0.001, 60), st.floats(0.001, 5),
)  # fmt: skip
open_loops = st.one_of(fixed, poisson, ramp, burst)
firsts = st.one_of(st.integers(0, 20), st.integers(8_180, 8_200), st.integers(0, 30_000))
DAY_NS = 86_400 * NS_PER_S


@settings(max_examples=80)
@given(open_loops, firsts, st.integers(-2, 2))
def test_due_is_the_number_of_intended_times_up_to_now(pacer: Pacer, first: int, aside_ns: int) -> None:
    """At, just before and just after an intended time, exactly the messages intended by then are due."""
    moment_ns = pacer.next_due_ns(first) + aside_ns
    due = pacer.due(moment_ns)
    assert pacer.next_due_ns(due) > moment_ns
    assert due == 0 or pacer.next_due_ns(due - 1) <= moment_ns


@settings(max_examples=100)
@given(open_loops, firsts, st.integers(1, 300))
def test_intended_times_ascend_and_are_those_of_the_single_messages(pacer: Pacer, first: int, count: int) -> None:
    """A batch's intended times never go back and are what each message alone is told."""
    times = pacer.intended(first, count)
    assert times is not None
    assert times.dtype == np.int64
    assert (np.diff(times) >= 0).all()
    assert times.tolist() == [pacer.next_due_ns(first + index) for index in range(count)]


@settings(max_examples=60)
@given(
    st.sampled_from([
        lambda: Fixed(333.33, 1, 3), lambda: Poisson(1e6, 7), lambda: Poisson(0.5, [1, 2]),
        lambda: Ramp(10, 9e5, 2.0, 2, 4), lambda: Burst(Fixed(333.33, 1, 3), 7, 0.01, 0.1),
    ]),
    st.lists(st.one_of(st.integers(0, 40_000), st.floats(0, 0.05)), max_size=8),
    firsts,
)  # fmt: skip
def test_the_schedule_does_not_depend_on_the_calls(make: Callable[[], Pacer], calls: list[float], first: int) -> None:
    """Whatever was asked before, a message's intended time is the same."""
    asked, fresh = make(), make()
    for call in calls:
        if isinstance(call, int):
            asked.intended(call, 3)
        else:
            asked.due(int(call * NS_PER_S))
    assert asked.intended(first, 50).tolist() == fresh.intended(first, 50).tolist()
    moment_ns = fresh.next_due_ns(first)
    assert asked.due(moment_ns) == make().due(moment_ns)


@settings(max_examples=80)
@given(rates, st.integers(1, 20), st.integers(0, 3 * DAY_NS))
def test_fixed_producers_together_keep_the_rate_for_days(rate: float, producers: int, moment_ns: int) -> None:
    """The sum over all producers is rate * t, less than one message off, without drift."""
    total = sum(Fixed(rate, share, producers).due(moment_ns) for share in range(producers))
    assert abs(total - rate * moment_ns / NS_PER_S) <= 1 + 1e-6 * total


@settings(max_examples=40)
@given(st.sampled_from([1.0, 3.0, 10_000.0, 333.33]), st.integers(1, 7))
def test_fixed_producers_interleave_evenly(rate: float, producers: int) -> None:
    """Merged, the producers' messages are the one producer's schedule."""
    merged = np.sort(np.concatenate([Fixed(rate, share, producers).intended(0, 30) for share in range(producers)]))
    assert merged.tolist() == Fixed(rate).intended(0, 30 * producers).tolist()


@settings(max_examples=40)
@given(ramp_rates, ramp_rates, st.floats(0.2, 60), st.integers(1, 7), st.floats(0, 2))
def test_a_ramp_sends_what_its_rate_integrates_to(
    begin: float, end: float, duration_s: float, producers: int, share_of_time: float
) -> None:
    """By any moment all producers together have sent the integral of the rate, one message at most off."""
    moment_s = share_of_time * duration_s
    within_s = min(moment_s, duration_s)
    expected = (begin + (end - begin) * within_s / duration_s / 2) * within_s + (moment_s - within_s) * end
    total = sum(
        Ramp(begin, end, duration_s, share, producers).due(int(moment_s * NS_PER_S)) for share in range(producers)
    )
    assert abs(total - expected) <= 1.001 + 1e-6 * expected


@settings(max_examples=100)
@given(
    st.integers(1, 1_000), st.integers(2, 100), st.integers(1, 8), st.integers(1, 20), st.integers(1, 7),
    st.integers(0, 3 * 86_400 * 4),
)  # fmt: skip
def test_a_burst_sends_exactly_so_many_times_the_rate(
    rate: int, times: int, burst: int, rest: int, producers: int, quarter: int
) -> None:
    """In each quarter of a second, for days, all producers together send its share of the rate or `times` that."""
    every_s = (burst + rest) / 4
    asked = Rate.burst(4 * rate, times, burst / 4, every_s)
    pacers = [make_pacer(asked, producer, producers, 1.0, seed=0) for producer in range(producers)]
    begin, end = (sum(pacer.due(at * NS_PER_S // 4 - 1) for pacer in pacers) for at in (quarter, quarter + 1))
    assert end - begin == rate * (times if quarter % (burst + rest) < burst else 1)
    periods, within = divmod(quarter, burst + rest)
    assert begin == rate * (periods * (burst * times + rest) + min(within * times, within + burst * (times - 1)))


def test_poisson_gaps_are_exponential() -> None:
    """Seeded: the mean and the variance of 200,000 gaps are those of the exponential law, to five standard errors."""
    rate, count = 50_000.0, 200_000
    gaps = np.diff(Poisson(rate, 11).intended(0, count + 1)) * rate / NS_PER_S
    assert abs(gaps.mean() - 1) < 5 / np.sqrt(count)
    assert abs(gaps.var() - 1) < 5 * np.sqrt(8 / count)  # var of the variance is (mu4 - sigma^4)/n = 8/n


def test_poisson_producers_are_independent_and_share_the_rate() -> None:
    """Four producers' counts in windows of 1 ms have the variance of a Poisson process of the whole rate."""
    rate = Rate.poisson(100_000)
    pacers = [make_pacer(rate, producer, 4, 10.0, seed=5) for producer in range(4)]
    edges = range(0, 2 * NS_PER_S, 1_000_000)
    counts = np.diff([[pacer.due(edge) for edge in edges] for pacer in pacers], axis=1).sum(axis=0)
    assert abs(counts.mean() - 100) < 5 * 10 / np.sqrt(len(counts))
    assert abs(counts.var() / 100 - 1) < 5 * np.sqrt(2 / len(counts))


def test_seeds_and_producers_have_different_schedules() -> None:
    """No two producers or repeats of a Poisson load send in step."""
    rate = Rate.poisson(1_000)
    starts = {make_pacer(rate, producer, 2, 10.0, seed).next_due_ns(0) for producer in (0, 1) for seed in (1, 2)}
    assert len(starts) == 4


def test_saturation_is_always_due_and_intends_nothing() -> None:
    """A closed loop has no intended times."""
    pacer = make_pacer(Rate.saturate(), 0, 2, 10.0, seed=1)
    assert isinstance(pacer, Saturate)
    assert (pacer.due(0), pacer.due(10**12), pacer.next_due_ns(10**9)) == (ALWAYS_DUE, ALWAYS_DUE, 0)
    assert pacer.intended(0, 5) is None


@pytest.mark.parametrize(
    ("rate", "kind"),
    [(Rate.fixed(10), Fixed), (Rate.poisson(10), Poisson), (Rate.ramp(1, 9), Ramp), (Rate.burst(5, 6, 1, 5), Burst)],
)
def test_each_rate_has_its_schedule(rate: Rate, kind: type) -> None:
    """A scenario's rate becomes the pacer of its name, at the rate it says."""
    pacers = [make_pacer(rate, producer, 5, 100.0, seed=3) for producer in range(5)]
    assert all(type(pacer) is kind for pacer in pacers)
    expected = 500 if kind is Ramp else 1_000
    assert abs(sum(pacer.due(100 * NS_PER_S) for pacer in pacers) - expected) < 5 * np.sqrt(1_000)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Fixed(0), lambda: Fixed(1, 2, 2), lambda: Poisson(-1, 0), lambda: Ramp(1, 2, 0),
        lambda: Burst(Fixed(1), 1, 1, 2), lambda: Burst(Fixed(1), 2, 2, 2),
    ],
)  # fmt: skip
def test_an_impossible_schedule_is_refused(wrong: Callable[[], Pacer]) -> None:
    """Rates, durations and shares that cannot be are errors at once."""
    with pytest.raises(ValueError, match="expected"):
        wrong()


RUSH_MSGS_PER_S = RUSH_MSGS * NS_PER_S / RUSH_NS


@given(open_loops, shares, st.lists(st.integers(0, 10 * NS_PER_S), min_size=1, max_size=30))
def test_what_is_held_leaves_at_the_next_edge(pacer: Pacer, share: tuple[int, int], moments_ns: list[int]) -> None:
    """Nothing leaves before it is due, nor later than a group lasts; what is held is told an edge that is to come."""
    grouping = Grouping(pacer, *share)
    for now_ns in sorted(moments_ns):
        until_ns = grouping.until(now_ns)
        assert now_ns - GROUP_NS < until_ns <= now_ns
        if grouping.next_edge_ns is None:
            assert until_ns == now_ns
        else:
            assert grouping.next_edge_ns - GROUP_NS == until_ns
            assert now_ns < grouping.next_edge_ns
            assert pacer.due(until_ns) - pacer.due(until_ns - RUSH_NS) >= RUSH_MSGS


@given(
    rate=st.floats(1, 20 * RUSH_MSGS_PER_S),
    is_random=st.booleans(),
    moment_ns=st.integers(RUSH_NS + GROUP_NS, NS_PER_S),
    share=shares,
)
def test_only_a_rush_is_grouped(*, rate: float, is_random: bool, moment_ns: int, share: tuple[int, int]) -> None:
    """Below 8,000 messages a second each leaves at its moment, above they leave at edges; chance blurs it a little."""
    grouping = Grouping(Poisson(rate, 7) if is_random else Fixed(rate), *share)
    until_ns = grouping.until(moment_ns)
    if rate < RUSH_MSGS_PER_S * (0.4 if is_random else 0.98):
        assert grouping.next_edge_ns is None
    if rate > RUSH_MSGS_PER_S * (2 if is_random else 1.02):
        assert grouping.next_edge_ns == until_ns + GROUP_NS


@given(st.integers(1, 40), st.integers(RUSH_NS + GROUP_NS, NS_PER_S))
def test_producers_take_turns_with_their_groups(producers: int, moment_ns: int) -> None:
    """Their edges are evenly apart, so that a broker has no burst of all of them at once."""
    edges = []
    for share in range(producers):
        grouping = Grouping(Fixed(1e5), share, producers)
        grouping.until(moment_ns)
        assert grouping.next_edge_ns is not None
        edges.append(grouping.next_edge_ns % GROUP_NS)
    apart = np.diff(sorted([*edges, min(edges) + GROUP_NS]))
    assert apart.max() - apart.min() <= 1
