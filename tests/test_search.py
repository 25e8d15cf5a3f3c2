"""The capacity search's logic, on systems whose capacity is known."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.facts import Facts
from loadgen.search import CONFIRM_SHARE, DISTURBANCES, Capacity, Probe, Seen, search
from loadgen.stats.confidence import estimate
from loadgen.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.search import Step


def run(
    answer: Callable[[Probe], Seen],
    producers: int = 1,
    most: int = 8,
    has_time: Callable[[Step], bool] = lambda _: True,
    enough: float | None = None,
    **kwargs: bool,
) -> tuple[Capacity, list[Probe]]:
    """Answer every probe until the search knows."""
    has_objective = kwargs.get("has_objective", False)
    steps = search(producers, most, has_objective=has_objective, has_time=has_time, enough_msgs_per_s=enough)
    probe = next(steps)
    probes = [probe]
    while True:
        try:
            probe = steps.send(answer(probe))
        except StopIteration as end:
            return end.value, probes
        probes.append(probe)


def system(capacity: float, burst_factor: float = 1.0) -> Callable[[Probe], Seen]:
    """One that sustains every rate up to its capacity; a closed loop shows a multiple of that."""

    def answer(probe: Probe) -> Seen:
        if probe.rate_msgs_per_s is None:
            return Seen(capacity * burst_factor, False, "a closed loop", "broker")
        carried = probe.rate_msgs_per_s <= capacity
        return Seen(min(probe.rate_msgs_per_s, capacity), carried, "carried" if carried else "not carried", "broker")

    return answer


@given(capacity=st.floats(10, 1e7), burst_factor=st.floats(0.25, 2.0))
def test_a_known_capacity_is_found_within_the_searchs_resolution(capacity: float, burst_factor: float) -> None:
    """Whatever the burst pretends, the answer lies between capacity / 1.08 and capacity, in few trials."""
    found, probes = run(system(capacity, burst_factor))
    assert found.rate_msgs_per_s is not None
    assert found.high_msgs_per_s is not None
    assert capacity / 1.08 <= found.rate_msgs_per_s <= capacity < found.high_msgs_per_s <= 1.1 * capacity
    assert (found.bound_by, found.is_lower_bound) == ("broker", False)
    assert len(probes) <= 16
    assert [probe.step for probe in probes].count("confirm") <= 2


def test_a_good_burst_makes_a_search_short() -> None:
    """Where the closed loop tells the truth, a burst, eight probes and the full trial are enough."""
    _, probes = run(system(50_000.0))
    assert len(probes) <= 10


def noisy(seed: int, varies: float, stray: float = 0.0) -> Callable[[Probe], Seen]:
    """A system whose capacity of 10,000 differs from trial to trial, and now and then falls by 40 %: a stall."""
    noise = np.random.default_rng(seed)

    def answer(probe: Probe) -> Seen:
        stalled = 0.6 if noise.random() < stray else 1.0
        return system(10_000.0 * stalled * float(np.exp(noise.normal(0, varies))), noise.uniform(0.8, 1.8))(probe)

    return answer


def within(probes_most: int) -> Callable[[Step], bool]:
    """Time for so many trials before those of full length, which always fit in."""
    asked: list[str] = []

    def has_time(step: Step) -> bool:
        asked.append(step)
        return step == "confirm" or len(asked) < probes_most

    return has_time


@pytest.mark.parametrize(
    ("varies", "stray", "agreeing"),
    [(0.02, 0.0, 0.99), (0.03, 0.02, 0.95), (0.05, 0.03, 0.85)],
)
def test_searches_of_a_noisy_system_agree_within_15_per_cent(varies: float, stray: float, agreeing: float) -> None:
    """Trials vary, one in some is wild, the burst is off by up to 1.8: three searches' interval is within ± 15 %.

    With the eight short trials that a budget of 90 s has room for, over 100 trios; the bias is small, too.
    """
    trios = []
    for trio in range(100):
        found = [run(noisy(3 * trio + each, varies, stray), has_time=within(9))[0] for each in range(3)]
        trios.append(estimate([each.rate_msgs_per_s for each in found]))
    narrow = [each for each in trios if each.n == 3 and each.low and each.high
              and each.median and each.high / each.median <= 1.15 and each.low / each.median >= 0.85]  # fmt: skip
    assert len(narrow) >= agreeing * len(trios)
    medians = [each.median for each in trios if each.median is not None]
    assert 0.93 * 10_000 <= float(np.median(medians)) <= 10_000


def test_one_wild_probe_does_not_decide() -> None:
    """The first probe fails by chance, well below the capacity: the search comes back to where it was."""
    seen: list[float] = []

    def answer(probe: Probe) -> Seen:
        if probe.step == "probe":
            seen.append(probe.rate_msgs_per_s or 0)
            if len(seen) == 1:
                return Seen(0.0, False, "a stall", "unknown")
        return system(10_000.0)(probe)

    found, _ = run(answer)
    assert seen[0] < 9_000
    assert found.rate_msgs_per_s == pytest.approx(10_000, rel=0.08)


@pytest.mark.parametrize("step", ["burst", "probe", "confirm"])
def test_a_trial_that_did_not_run_says_nothing_of_its_rate(step: str) -> None:
    """Once: it is repeated at the same rate, and the capacity is what it is. Twice: the search cannot tell."""
    for times in (1, 2):
        died: list[Probe] = []

        def answer(probe: Probe, died: list[Probe] = died, times: int = times) -> Seen:
            if probe.step == step and len(died) < times:
                died.append(probe)
                return Seen(0.0, False, "producer0 died", has_run=False)
            return system(10_000.0)(probe)

        found, probes = run(answer)
        at = probes.index(died[0])
        assert probes[at + 1] == died[0]
        if times == 1:
            assert found.rate_msgs_per_s == pytest.approx(10_000, rel=0.08)
        else:
            assert (found.rate_msgs_per_s, found.high_msgs_per_s, found.ended_by) == (None, None, "failed")
            assert found.reason.startswith("cannot tell: ")
            assert "producer0 died" in found.reason


def test_without_time_to_repeat_what_did_not_run_the_search_cannot_tell() -> None:
    """A rate of which nobody knows anything is not called too much."""

    def answer(probe: Probe) -> Seen:
        if probe.step == "probe":
            return Seen(0.0, False, "producer0 died", has_run=False)
        return system(10_000.0)(probe)

    asked: list[str] = []

    def has_time(step: Step) -> bool:
        asked.append(step)
        return len(asked) <= 1

    found, _ = run(answer, has_time=has_time)
    assert (found.rate_msgs_per_s, found.ended_by) == (None, "failed")
    assert "no time" in found.reason


def test_a_generator_at_its_limit_gets_more_producers() -> None:
    """Three producers' worth of capacity is found by adding producers, and not reported as the broker's before."""

    def answer(probe: Probe) -> Seen:
        own = 1_000.0 * probe.producers
        seen = system(min(2_900.0, own))(probe)
        is_own = own < 2_900.0
        limit = "generator" if is_own else "broker"
        return Seen(
            seen.rate_msgs_per_s, seen.sustained, seen.why, limit,  # type: ignore[arg-type]
            is_client_full=is_own and not seen.sustained, is_producer_full=is_own and not seen.sustained,
        )  # fmt: skip

    found, _ = run(answer)
    assert found.producers == 4
    assert found.bound_by == "broker"
    assert found.rate_msgs_per_s == pytest.approx(2_900, rel=0.08)


def test_a_generator_that_cannot_grow_makes_a_lower_bound() -> None:
    """With all producers that are allowed the tool says "at least", and that it was the limit."""

    def answer(probe: Probe) -> Seen:
        seen = system(1_000.0)(probe)
        return Seen(seen.rate_msgs_per_s, seen.sustained, seen.why, "generator", is_producer_full=True)

    found, probes = run(answer, most=2)
    assert (found.bound_by, found.is_lower_bound, found.producers) == ("generator", True, 2)
    assert max(probe.producers for probe in probes) == 2


def test_a_full_consumer_gets_no_more_producers() -> None:
    """They would only make it worse; the answer is "at least", and says why."""

    def answer(probe: Probe) -> Seen:
        seen = system(1_000.0)(probe)
        return Seen(seen.rate_msgs_per_s, seen.sustained, seen.why, "generator", is_client_full=True)

    found, _ = run(answer)
    assert (found.bound_by, found.is_lower_bound, found.producers) == ("generator", True, 1)


def test_disturbances_are_checks_that_exist() -> None:
    """A check that was renamed would never disturb a search again."""
    facts = Facts(
        durability="broker", rate_kind="fixed", consumers=1, window_s=1.0, sent=1, acked=1, received=1
    )  # fmt: skip
    assert {each.name for each in judge(facts).checks} >= DISTURBANCES


def test_a_disturbed_probe_is_tried_again() -> None:
    """One probe that a neighbour spoiled does not cost a fifth of the capacity."""
    spoiled: list[float] = []

    def answer(probe: Probe) -> Seen:
        if probe.step == "probe" and not spoiled:
            spoiled.append(probe.rate_msgs_per_s or 0)
            return Seen(0.0, False, "stolen", "unknown", disturbed=True)
        return system(10_000.0)(probe)

    found, probes = run(answer)
    assert [probe.rate_msgs_per_s for probe in probes].count(spoiled[0]) == 2
    assert found.rate_msgs_per_s == pytest.approx(10_000, rel=0.08)


def test_what_only_short_probes_sustain_is_not_reported() -> None:
    """The full trial decides: each time it fails a little less is tried, and after four the answer is none."""

    def answer(probe: Probe) -> Seen:
        if probe.step == "confirm":
            return Seen(0.0, False, "the backlog grew", "broker")
        return system(10_000.0)(probe)

    found, probes = run(answer)
    rates = [probe.rate_msgs_per_s or 0 for probe in probes if probe.step == "confirm"]
    assert found.rate_msgs_per_s is None
    assert len(rates) == 4
    assert all(below <= CONFIRM_SHARE * above * (1 + 1e-9) for above, below in itertools.pairwise(rates))
    assert rates[-1] > 0.75 * rates[0]
    assert "full trial" in found.reason


def test_where_full_trials_carry_far_less_the_last_one_is_at_what_came_through() -> None:
    """Short probes sustain what full trials do not: where time runs out what was carried is tried, and found."""

    def answer(probe: Probe) -> Seen:
        if probe.step == "confirm":
            return system(6_000.0)(probe)
        return system(10_000.0)(probe)

    confirms = 0

    def has_time(step: str) -> bool:
        nonlocal confirms
        confirms += step == "confirm"
        return step != "confirm" or confirms <= 2

    found, probes = run(answer, has_time=has_time)
    assert [probe.step for probe in probes].count("confirm") == 3
    assert found.rate_msgs_per_s == pytest.approx(CONFIRM_SHARE**2 * 6_000)
    assert found.ended_by == "budget"
    none, _ = run(answer, has_time=lambda step: step != "last" and has_time(step))
    assert none.rate_msgs_per_s is None


def test_a_dead_system_has_no_capacity() -> None:
    """Nothing came through: the search ends after its burst."""
    found, probes = run(lambda _: Seen(0.0, False, "no consumer", "unknown"))
    assert found.rate_msgs_per_s is None
    assert len(probes) == 1


@given(capacity=st.floats(10, 1e7), burst_factor=st.floats(0.25, 2.0), room=st.integers(1, 20))
def test_a_budget_ends_a_search_with_what_it_has(capacity: float, burst_factor: float, room: int) -> None:
    """After as many trials as there is room for comes the one of full length, and what is then said is true."""
    asked: list[str] = []

    def has_time(step: str) -> bool:
        asked.append(step)
        return len(asked) < room if step != "confirm" else True

    found, probes = run(system(capacity, burst_factor), has_time=has_time)
    confirms = [probe for probe in probes if probe.step == "confirm"]
    assert len(probes) - len(confirms) <= max(1, room)
    if found.rate_msgs_per_s is not None:
        assert found.rate_msgs_per_s <= capacity
        assert found.high_msgs_per_s is None or found.high_msgs_per_s > capacity
        assert found.is_lower_bound is (found.high_msgs_per_s is None)
    else:  # bursts that pretend twice the capacity, and no time to find out
        assert found.high_msgs_per_s is not None
        assert found.high_msgs_per_s > capacity
    assert ("budget used up" in found.reason) is (found.ended_by == "budget")
    if found.ended_by == "resolution":
        assert (found.high_msgs_per_s or 0) <= (found.rate_msgs_per_s or 0) * 1.15


def test_without_time_for_a_full_trial_there_is_no_capacity() -> None:
    """What no full trial sustained is not reported, however short the time; what failed bounds it from above."""
    found, probes = run(system(1_000.0), has_time=lambda step: step == "probe")
    assert "confirm" not in [probe.step for probe in probes]
    assert (found.rate_msgs_per_s, found.ended_by) == (None, "budget")
    assert found.high_msgs_per_s is not None
    assert found.high_msgs_per_s > 1_000.0


def test_an_objective_begins_lower() -> None:
    """A latency objective is looked for from 60 % of saturation on."""
    _, probes = run(system(10_000.0), has_objective=True)
    assert probes[1].rate_msgs_per_s == pytest.approx(6_000)


@settings(max_examples=60)
@given(capacity=st.floats(10, 1e7), share=st.floats(0.1, 3.0), burst_factor=st.floats(0.5, 2.0))
def test_no_rate_above_enough_is_tried(capacity: float, share: float, burst_factor: float) -> None:
    """A system that sustains as much as is enough has at least so much, after few trials; else nothing changes."""
    enough = share * capacity
    found, probes = run(system(capacity, burst_factor), enough=enough)
    assert all((probe.rate_msgs_per_s or 0) <= enough for probe in probes)
    assert found.rate_msgs_per_s is not None
    if found.ended_by == "enough":
        assert (found.rate_msgs_per_s, found.is_lower_bound, found.bound_by) == (enough, True, "offered")
        assert enough <= capacity
    else:
        assert found.rate_msgs_per_s <= capacity
        assert found.rate_msgs_per_s >= min(enough, capacity) / 1.09
    if share < 0.4:
        assert found.ended_by == "enough"
        assert len(probes) <= 4


def test_a_full_trial_that_fails_at_enough_is_told_as_an_edge() -> None:
    """What only a probe carried is not "at least": the search goes below, and what failed stands above."""

    def answer(probe: Probe) -> Seen:
        rate = probe.rate_msgs_per_s or 5_000.0
        carried = rate <= (900 if probe.step == "confirm" else 5_000)
        return Seen(min(rate, 5_000.0), carried and probe.step != "burst", "told", "broker")

    found, _ = run(answer, enough=1_000.0)
    assert found.rate_msgs_per_s is not None
    assert found.rate_msgs_per_s <= 900
    assert found.high_msgs_per_s is not None
    assert not found.is_lower_bound
    assert found.ended_by != "enough"
