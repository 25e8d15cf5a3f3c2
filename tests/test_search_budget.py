"""A capacity search ends within its time budget, whatever its trials take; the plan counts it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.errors import BrokerError
from loadgen.facts import carries
from loadgen.plan import PROFILES, SEARCH_CONFIRMS, Plan, Profile, make_plan
from loadgen.scenario import Kafka, RabbitMQ, Rate, Scenario
from loadgen.searching import find_capacity

if TYPE_CHECKING:
    from loadgen.plan import Trial

CAPACITY = 10_000.0


@dataclass
class Simulated:
    """Trials on a clock of its own: so many seconds beside their windows, on a system of known capacity."""

    overhead_s: float
    burst_factor: float = 1.0
    confirms: bool = True
    ceiling_share: float = 1.0
    knows_ceiling: bool = False
    now_s: float = 0.0
    ran: list[Trial] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def clock_s(self) -> float:
        """Now."""
        return self.now_s

    def run(self, trial: Trial) -> dict[str, Any]:
        """A trial's record, after as long as it takes."""
        self.now_s += trial.warmup_s + trial.duration_s + self.overhead_s
        self.ran.append(trial)
        offered = trial.rate.msgs_per_s
        assert not isinstance(offered, list)
        carried = CAPACITY * self.burst_factor if offered is None else min(offered, CAPACITY)
        failed = not self.confirms and trial.purpose == "measure"
        check = {"name": "loss", "passed": not failed, "reason": "1 lost"}
        return {
            "id": trial.id, "status": "complete", "purpose": trial.purpose,
            "goodput_msgs_per_s": carried * trial.subscribers, "offered_msgs_per_s": offered,
            "window_s": trial.duration_s, "errors": {}, "under_way": {},
            "latency_ns": {"e2e": None}, "subscribers": trial.subscribers,
            "verdict": {"status": "valid", "bound_by": "broker", "checks": [check]},
        }  # fmt: skip

    def keep(self, record: dict[str, Any]) -> None:
        """Nothing to write to."""

    def found(self, answer: dict[str, Any]) -> None:
        """The search's answer, as it is written down."""
        self.answers.append(dict(answer))

    def ceiling_s(self, trial: Trial, needed_msgs_per_s: float | None = None) -> float:
        """As long as the plan allows; where it is known, only that of a rate that was found takes it."""
        return 0.0 if self.knows_ceiling and needed_msgs_per_s is None else trial.ceiling_s

    def ceiling(self, trial: Trial, needed_msgs_per_s: float) -> dict[str, Any]:
        """Ten times the capacity, after as long as it takes at most."""
        del needed_msgs_per_s
        self.now_s += self.ceiling_share * trial.ceiling_s
        return {
            "achieved_msgs_per_s": 10 * CAPACITY, "bound_by": "generator", "paced_msgs_per_s": 8 * CAPACITY,
            "unpaced_msgs_per_s": None, "unpaced_bound_by": None, "paced_reason": None,
        }  # fmt: skip


def point(profile: Profile, **given: Any) -> Trial:
    """A search's trial."""
    scenario = Scenario(name="s", question="?", rate=Rate.search(), kafka=Kafka(**given.pop("kafka", {})), **given)
    return make_plan([scenario], profile, brokers=("kafka",)).trials[0]


@settings(max_examples=60)
@given(
    profile=st.sampled_from(sorted(PROFILES)),
    overhead_s=st.floats(0.2, 9.0),
    burst_factor=st.floats(0.02, 3.0),
    confirms=st.booleans(),
    knows_ceiling=st.booleans(),
)
def test_a_search_ends_within_its_budget(
    profile: str, overhead_s: float, burst_factor: float, confirms: bool, knows_ceiling: bool
) -> None:
    """However slow its trials are and however far off its start, and with the ceiling measured in the same time.

    So also where it was known before, and tells nothing of the rate that is found.
    """
    bench = Simulated(overhead_s, burst_factor, confirms, knows_ceiling=knows_ceiling)
    trial = point(PROFILES[profile])
    answer = find_capacity(trial, bench, bench.clock_s)
    assert answer["budget_s"] == PROFILES[profile].search_budget_s
    assert answer["elapsed_s"] == bench.now_s <= answer["budget_s"]
    found = answer["capacity_msgs_per_s"]
    assert (found is None) or carries(CAPACITY, found, 1.0)
    if not confirms:
        assert found is None
    if answer["ended_by"] == "budget":
        assert "budget used up" in answer["reason"]


def test_a_short_profile_finds_a_point_in_90_s_with_trials_that_take_their_usual_time() -> None:
    """The bracket is then as narrow as the search wants it, and not as narrow as time allows."""
    bench = Simulated(overhead_s=2.5)
    answer = find_capacity(point(PROFILES["quick"]), bench, bench.clock_s)
    assert (answer["ended_by"], answer["is_lower_bound"]) == ("resolution", False)
    assert bench.now_s <= PROFILES["quick"].search_budget_s == 90.0


def test_a_capacity_is_the_rate_of_producing_however_many_receive_it() -> None:
    """Three subscribers receive three times what the broker takes, which stands beside the capacity."""
    bench = Simulated(overhead_s=1.0)
    answer = find_capacity(point(PROFILES["quick"], subscribers=3), bench, bench.clock_s)
    assert answer["capacity_msgs_per_s"] == pytest.approx(CAPACITY, rel=0.08)
    assert carries(CAPACITY, answer["capacity_msgs_per_s"], 1.0)
    assert answer["consumed_msgs_per_s"] == 3 * answer["capacity_msgs_per_s"]


def test_slow_trials_leave_a_wider_bracket_and_say_so() -> None:
    """What is known is told: a rate that a full trial sustained, the one that failed, and why there is no more."""
    bench = Simulated(overhead_s=7.0, burst_factor=1.6)
    answer = find_capacity(point(PROFILES["quick"]), bench, bench.clock_s)
    assert answer["ended_by"] == "budget"
    assert answer["capacity_msgs_per_s"] <= CAPACITY < answer["high_msgs_per_s"]
    assert answer["reason"].startswith("budget used up; at ")
    usual = Simulated(overhead_s=2.5, burst_factor=1.6)
    closer = find_capacity(point(PROFILES["quick"]), usual, usual.clock_s)
    assert len(bench.ran) < len(usual.ran)
    assert closer["capacity_msgs_per_s"] > answer["capacity_msgs_per_s"]


def test_trials_that_are_longer_than_the_profiles_own_get_the_time_for_it() -> None:
    """A scenario that asks for a window of ten minutes has a budget with room for such trials."""
    quick = PROFILES["quick"]
    trial = point(quick, duration_s=600.0)
    assert trial.search_budget_s == quick.search_budget_s + SEARCH_CONFIRMS * (600.0 - quick.duration_s)
    bench = Simulated(overhead_s=2.5)
    answer = find_capacity(trial, bench, bench.clock_s)
    assert answer["capacity_msgs_per_s"] is not None
    assert bench.now_s <= trial.search_budget_s


def plan_of(rate: Rate, **given: Any) -> Plan:
    """A plan on both brokers."""
    scenario = Scenario(name="s", question="?", rate=rate, kafka=Kafka(), rabbitmq=RabbitMQ(), **given)
    return make_plan([scenario], PROFILES["quick"])


def test_the_budget_is_in_the_plans_minutes() -> None:
    """A search is expected to take no longer than its budget, which is the most that the plan says."""
    plan = plan_of(Rate.search())
    assert plan.longest_s == len(plan.trials) * 90.0
    assert plan.expected_s <= plan.longest_s
    assert plan.describe()["longest_s"] == plan.longest_s
    assert all("within 90 s" in trial.describe() for trial in plan.trials)
    plain = plan_of(Rate.fixed(1_000))
    assert plain.longest_s == plain.expected_s
    curve = plan_of(Rate.curve([0.5]))
    assert curve.longest_s - curve.expected_s == pytest.approx(
        sum(trial.longest_s - trial.expected_s for trial in curve.trials if trial.rate.kind == "search")
    )


@dataclass
class Failing(Simulated):
    """Trials of which the chosen ones come to nothing: an agent dies, or the broker is gone and ends the run."""

    dies: frozenset[int] = frozenset()
    ends: int = 0

    def run(self, trial: Trial) -> dict[str, Any]:
        """A record, or the end."""
        record = super().run(trial)
        if len(self.ran) == self.ends:
            raise BrokerError("kafka at 127.0.0.1:1 died during trial s/probe-2")
        if len(self.ran) in self.dies:
            return {**record, "status": "failed", "error": "consumer0 died", "goodput_msgs_per_s": 0.0}
        return record


def test_a_dead_agent_costs_a_search_a_trial_and_not_its_answer() -> None:
    """The same rate again, and the capacity is what it would have been."""
    bench = Failing(overhead_s=1.0, dies=frozenset({3}))
    answer = find_capacity(point(PROFILES["quick"]), bench, bench.clock_s)
    assert bench.ran[2].rate == bench.ran[3].rate
    assert answer["capacity_msgs_per_s"] == pytest.approx(CAPACITY, rel=0.08)
    assert bench.answers == [answer]


def test_a_search_whose_trials_do_not_run_cannot_tell() -> None:
    """Twice in a row: no capacity, no rate that is called too much, and the reason."""
    bench = Failing(overhead_s=1.0, dies=frozenset({3, 4}))
    answer = find_capacity(point(PROFILES["quick"]), bench, bench.clock_s)
    assert (answer["capacity_msgs_per_s"], answer["high_msgs_per_s"], answer["ended_by"]) == (None, None, "failed")
    assert answer["reason"].startswith("cannot tell: ")
    assert "consumer0 died" in answer["reason"]


def test_a_search_that_a_dead_broker_ended_is_written_down() -> None:
    """The run ends, as it must; its search is on record as one that cannot tell."""
    bench = Failing(overhead_s=1.0, ends=2)
    with pytest.raises(BrokerError, match="died during"):
        find_capacity(point(PROFILES["quick"]), bench, bench.clock_s)
    (answer,) = bench.answers
    assert (answer["capacity_msgs_per_s"], answer["ended_by"], answer["bound_by"]) == (None, "failed", "unknown")
    assert "died during" in answer["reason"]


def test_a_full_trial_that_failed_is_no_answer_of_its_point() -> None:
    """Where none was sustained, all of them are steps on the way: in no figure."""
    bench = Simulated(overhead_s=1.0, confirms=False)
    kept: list[dict[str, Any]] = []
    bench.keep = kept.append  # type: ignore[method-assign]
    answer = find_capacity(point(PROFILES["quick"]), bench, bench.clock_s)
    assert answer["capacity_msgs_per_s"] is None
    full = [trial.id for trial in bench.ran if trial.purpose == "measure"]
    assert len(full) > 1
    assert [(each["id"], each["purpose"]) for each in kept] == [(each, "probe") for each in full]
