"""The capacity search's logic, on systems whose capacity is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.facts import Facts
from loadgen.search import APART, CONFIRM_STEP, DISTURBANCES, Capacity, Probe, Seen, search
from loadgen.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.search import Step


def run(
    answer: Callable[[Probe], Seen],
    producers: int = 1,
    most: int = 8,
    has_time: Callable[[Step], bool] = lambda _: True,
    **kwargs: bool,
) -> tuple[Capacity, list[Probe]]:
    """Answer every probe until the search knows."""
    steps = search(producers, most, has_objective=kwargs.get("has_objective", False), has_time=has_time)
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
    """Whatever the burst pretends, the answer lies between capacity / 1.06 and capacity, in few trials."""
    found, probes = run(system(capacity, burst_factor))
    assert found.rate_msgs_per_s is not None
    assert found.high_msgs_per_s is not None
    assert capacity / APART <= found.rate_msgs_per_s <= capacity < found.high_msgs_per_s
    assert (found.bound_by, found.is_lower_bound) == ("broker", False)
    assert len(probes) <= 12
    assert [probe.step for probe in probes].count("confirm") == 1


def test_a_good_burst_makes_a_search_short() -> None:
    """Where the closed loop tells the truth, a burst, five probes and the full trial are enough."""
    _, probes = run(system(50_000.0))
    assert len(probes) <= 7


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000))
def test_noise_moves_the_answer_by_no_more_than_itself(seed: int) -> None:
    """A capacity that varies by 3 % from trial to trial is found within 15 %."""
    noise = np.random.default_rng(seed)

    def answer(probe: Probe) -> Seen:
        return system(10_000.0 * float(np.exp(noise.normal(0, 0.03))))(probe)

    found, _ = run(answer)
    if found.rate_msgs_per_s is not None:  # a full trial may fail three times by chance: then it is said, not guessed
        assert 8_500 <= found.rate_msgs_per_s <= 11_000


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
    assert found.rate_msgs_per_s == pytest.approx(2_900, rel=0.06)


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
    assert found.rate_msgs_per_s == pytest.approx(10_000, rel=0.06)


def test_what_only_short_probes_sustain_is_not_reported() -> None:
    """The full trial decides: each time it fails the rate goes down, and after three the answer is none."""

    def answer(probe: Probe) -> Seen:
        if probe.step == "confirm":
            return Seen(0.0, False, "the backlog grew", "broker")
        return system(10_000.0)(probe)

    found, probes = run(answer)
    rates = [probe.rate_msgs_per_s or 0 for probe in probes if probe.step == "confirm"]
    assert found.rate_msgs_per_s is None
    assert rates == pytest.approx([rates[0], rates[0] * CONFIRM_STEP, rates[0] * CONFIRM_STEP**2])
    assert "full trial" in found.reason


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
        assert (found.high_msgs_per_s or 0) <= (found.rate_msgs_per_s or 0) * APART


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
