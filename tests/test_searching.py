"""Capacity searches and curves carried out by the engine, on queues whose capacity is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import ceiling, searching, sites
from loadgen import plan as plan_module
from loadgen import search as search_module
from loadgen import verdict as verdict_module
from loadgen.analysis import curve
from loadgen.checks import accounting
from loadgen.drivers.memory import memory_endpoint
from loadgen.engine import Options, execute, plan_of
from loadgen.errors import ScenarioError
from loadgen.facts import Facts
from loadgen.outcome import exit_status
from loadgen.plan import Profile, make_plan
from loadgen.scenario import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.search import search, seen_in

if TYPE_CHECKING:
    from loadgen.runs import Run

SERVICE_MS = 1.0
KNOWN_MSGS_PER_S = 1_000.0
OVERLOAD = 2.0  # times what was found, which may be well below what the server carries


class Silent:
    """A listener that remembers what stays."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        """A line that stays."""
        self.messages.append(text)

    def progress(self, text: str) -> None:
        """A line that the next one replaces."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A curve on a queue with one server that takes 1 ms for a message.

    It has time enough on a slow machine; on any other it ends when it knows the edge to a third.
    """
    scenario = Scenario(
        name="known",
        question="What does one server carry?",
        message=Message(size_bytes=100),
        rate=Rate.curve([0.3, OVERLOAD]),
        rabbitmq=RabbitMQ(confirm_window=200),
        warmup_s=0.5,
        duration_s=1.5,
    )
    plan = make_plan([scenario], Profile("test", 0.5, 1.5, 1, search_budget_s=180.0), brokers=("rabbitmq",))
    options = Options(name="known", command=["test"], results=tmp_path_factory.mktemp("r"), brokers="memory")
    with pytest.MonkeyPatch.context() as patch:
        # What others do to this machine, how finely it looks and what there is without a broker, other tests look at.
        patch.setattr(verdict_module, "CHECKERS", (accounting.check_traffic, accounting.check_loss))
        patch.setattr(search_module, "SPREAD", 1.3)
        patch.setattr(plan_module, "CEILING_S", 8.0)
        patch.setattr(ceiling, "WARMUP_S", 0.2)
        patch.setattr(ceiling, "OPEN_SHARES", ())
        patch.setattr(sites, "memory_endpoint", lambda name: memory_endpoint(name, service_ms=SERVICE_MS))
        return execute(plan, options, Silent())


def test_a_known_capacity_is_found_and_not_exceeded(run: Run) -> None:
    """A server of 1 ms a message cannot carry over 1,000 a second, and the search says what it found at the edge."""
    (search,) = run.header["searches"]
    found = search["capacity_msgs_per_s"]
    # How far below it stays is the machine's affair; above it would be a lie.
    assert 0 < found <= 1.03 * KNOWN_MSGS_PER_S
    assert search["high_msgs_per_s"] is None or search["high_msgs_per_s"] > found
    assert search["reason"]


def test_the_proof_of_a_search_stays_on_record(run: Run) -> None:
    """Burst, probes and the confirming trial are all there, none of them an answer of the curve."""
    (search,) = run.header["searches"]
    records = {record["id"]: record for record in run.records}
    steps = [records[each]["purpose"] for each in search["trials"]]
    assert steps[0] == "burst"
    assert set(steps[1:]) == {"probe"}
    assert search["trial"] == search["trials"][-1]
    assert records[search["trial"]]["offered_msgs_per_s"] == pytest.approx(search["capacity_msgs_per_s"])


def test_a_curve_is_measured_at_its_fractions_of_the_capacity(run: Run) -> None:
    """Each trial offers its share, says which, and those over the capacity are there too."""
    (search,) = run.header["searches"]
    measured = [record for record in run.records if record["purpose"] == "measure"]
    assert sorted(record["point"]["fraction"] for record in measured) == [0.3, OVERLOAD]
    for record in measured:
        assert record["rate"]["kind"] == "curve"
        offered = record["point"]["fraction"] * search["capacity_msgs_per_s"]
        assert record["offered_msgs_per_s"] == pytest.approx(offered)


def test_more_load_waits_longer(run: Run) -> None:
    """Queueing: above its capacity a server's median response time is far above that at 0.3 of it."""
    median = {
        record["point"]["fraction"]: record["latency_ns"]["e2e"]["p50"]
        for record in run.records
        if record["purpose"] == "measure"
    }
    assert median[OVERLOAD] > 3 * median[0.3]


def test_the_generators_ceiling_is_kept(run: Run) -> None:
    """Without a broker (here: its queue in memory) the same scenario was measured, or it is said that time was up.

    (A busy machine can fail all that should confirm a capacity; the last try then takes the ceiling's time.)
    """
    (search,) = run.header["searches"]
    measured = [ceiling["achieved_msgs_per_s"] for ceiling in run.header["ceilings"]]
    assert search["ceiling_msgs_per_s"] == (measured[0] if measured else None)
    assert bool(measured) != ("no time to see what the tool carries without a broker" in search["reason"])


def test_the_run_keeps_its_schema_and_can_be_run_again(run: Run) -> None:
    """Searches and ceilings are documented fields; the plan is the same one again."""
    schema = json.loads((Path(sites.__file__).parent / "run.schema.json").read_text())
    jsonschema.validate({**run.header, "trials": run.records}, schema)
    again = plan_of(run, ("rabbitmq", "kafka"))
    assert [trial.rate.kind for trial in again.trials] == ["search", "curve", "curve"]
    assert exit_status(run) in {0, 2}


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ({"rate": Rate.search(), "consumers": 0}, "expected consumers"),
        ({"rate": Rate.curve(), "consumers": [0, 1]}, "expected consumers"),
    ],
)
def test_what_nobody_consumes_has_no_capacity(mistake: dict[str, Any], words: str) -> None:
    """One line says so, before any broker is touched."""
    with pytest.raises(ScenarioError, match=words):
        Scenario(name="x", question="?", kafka=Kafka(), **mistake)


@pytest.mark.parametrize(
    "make",
    [lambda: Rate.curve([]), lambda: Rate.curve([0.0]), lambda: Rate.curve([0.5, 0.5]), lambda: Rate.search(-1),
     lambda: Rate(kind="fixed", msgs_per_s=5, p99_ms=1), lambda: Rate(kind="search", msgs_per_s=5),
     lambda: Rate(kind="fixed", msgs_per_s=5, enough_msgs_per_s=9), lambda: Rate.search(enough_msgs_per_s=0)],
)  # fmt: skip
def test_impossible_rates_are_refused(make: Any) -> None:
    """Each mistake is one line."""
    with pytest.raises(ScenarioError) as error:
        make()
    assert "\n" not in str(error.value)


def record(**changes: Any) -> dict[str, Any]:
    """A trial that carried its 1,000 messages a second."""
    return {
        "goodput_msgs_per_s": 1_000.0, "offered_msgs_per_s": 1_000.0, "window_s": 5.0, "errors": {}, "under_way": {},
        "latency_ns": {"e2e": {"p99": 4e6}}, "verdict": {"status": "valid", "bound_by": "offered", "checks": []},
        **changes,
    }  # fmt: skip


GROWING = {"slope_msgs_per_s": {"estimate": 50.0, "low": 40.0, "high": 60.0}}
WRONG = {"status": "invalid", "bound_by": "broker", "checks": [{"name": "loss", "passed": False, "reason": "3 lost"}]}


@pytest.mark.parametrize(
    ("changes", "p99_ms", "why"),
    [
        ({"goodput_msgs_per_s": 985.0}, None, "only 985 msg/s came through"),
        ({"under_way": GROWING}, None, "the backlog grew by 50 msg/s"),
        ({"errors": {"nacked": 3}}, None, "3 nacked"),
        ({}, 3.0, "p99 was 4.00 ms, over 3 ms"),
        ({"verdict": WRONG}, None, "loss: 3 lost"),
    ],
)
def test_a_rate_is_not_sustained_for_a_reason(changes: dict[str, Any], p99_ms: float | None, why: str) -> None:
    """Each condition is looked at, and the one that failed is told."""
    seen = seen_in(record(**changes), p99_ms)
    assert not seen.sustained
    assert why in seen.why
    assert (seen.limit == "objective") is (p99_ms is not None)


def test_a_backlog_that_nobody_could_test_says_nothing_of_the_rate() -> None:
    """Too few samples for a slope with an interval: the probe is tried again, as one that did not run."""
    few = {"slope_msgs_per_s": {"estimate": 0.0, "low": None, "high": None}, "samples": 12}
    seen = seen_in(record(under_way=few))
    assert (seen.sustained, seen.has_run) == (False, False)
    assert seen.why == "at 1,000 msg/s there were 12 samples of the backlog, too few to test its slope"
    assert seen_in(record(under_way=few, goodput_msgs_per_s=900.0)).has_run, "what did not come through needs no test"


FULL_HOST = {"name": "host CPU", "passed": None, "reason": "full"}
FULL_CORE = {"name": "generator CPU", "passed": None, "reason": "full"}
LATE = {"name": "schedule lag", "passed": False, "reason": "p99 90 ms"}
RATHER_LATE = {"name": "schedule lag", "passed": None, "reason": "p99 2 ms"}


def judged(*checks: dict[str, Any], service_ms: float = 4.0, **changes: Any) -> dict[str, Any]:
    """A trial of which these checks found something, whose messages took 4 ms from when they were due (p99)."""
    status = "invalid" if any(each["passed"] is False for each in checks) else "unknown"
    latency = {"e2e": {"p99": 4e6}, "e2e_service": {"p99": service_ms * 1e6}, "schedule_lag": {"p99": 2e6}}
    verdict = {"status": status, "bound_by": "offered", "checks": list(checks)}
    return record(latency_ns=latency, verdict=verdict, **changes)


@pytest.mark.parametrize(
    ("seen", "limit"),
    [
        (judged(), "objective"),
        (judged(RATHER_LATE), "generator"),
        (judged(FULL_CORE), "generator"),
        (judged(FULL_HOST), "host"),
        (judged(FULL_HOST, RATHER_LATE), "host"),
        (judged(service_ms=2.0), "generator"),  # from when it was really sent it kept the objective
        (judged(service_ms=2.0, blocked_share=0.5), "objective"),  # … but the broker kept it from being sent
    ],
)
def test_an_objective_missed_because_of_the_generator_is_its_own_limit(seen: dict[str, Any], limit: str) -> None:
    """Late, on a full core, or late by as much as was missed: never called the broker's."""
    missed = seen_in(seen, 3.0)
    assert (missed.sustained, missed.limit) == (False, limit)
    assert ("2.00 ms late" in missed.why) is (limit != "objective")
    assert seen_in(seen, 5.0).sustained


def test_an_objective_that_the_generator_missed_makes_a_lower_bound() -> None:
    """Whatever rate was found below it, the broker may keep the objective at higher ones: "at least"."""
    steps = search(1, 8, has_objective=True)
    probe = next(steps)
    while True:
        rate = probe.rate_msgs_per_s
        kept = rate is not None and rate <= 1_000
        seen = judged(*([] if kept else [RATHER_LATE]), goodput_msgs_per_s=rate or 1_500.0, offered_msgs_per_s=rate)
        try:
            probe = steps.send(seen_in(seen, 5.0 if kept else 3.0))
        except StopIteration as end:
            found = end.value
            break
    assert (found.bound_by, found.is_lower_bound) == ("generator", True)
    assert found.rate_msgs_per_s == pytest.approx(1_000, rel=0.08)


@pytest.mark.parametrize(
    ("seen", "is_confirming", "sustained", "limit"),
    [
        (judged(LATE), False, False, "generator"),
        (judged(LATE, FULL_HOST), False, False, "host"),
        (judged(LATE, goodput_msgs_per_s=1_100.0), False, True, "unknown"),  # it makes up for its start
        (judged(LATE, goodput_msgs_per_s=1_100.0), True, False, "generator"),
        (judged(RATHER_LATE), True, True, "unknown"),
    ],
)
def test_probes_are_held_to_the_rules_of_the_trial_that_is_reported(
    seen: dict[str, Any], is_confirming: bool, sustained: bool, limit: str
) -> None:
    """A hopelessly late schedule is the clients' or the machine's limit, but for a probe that is catching up."""
    found = seen_in(seen, is_confirming=is_confirming)
    assert (found.sustained, found.limit) == (sustained, limit)


@given(
    st.floats(0.1, 1e6), st.floats(0.5, 60), st.sampled_from([0.9, 0.98, 0.99, 0.991, 1.0]), st.floats(-3, 3)
)  # fmt: skip
def test_search_curve_and_verdict_mean_the_same_by_carried(
    offered: float, window_s: float, share: float, messages: float
) -> None:
    """Within 1 %, give or take what is chance: one definition, wherever a rate is said to be carried."""
    achieved = max(0.0, offered * share + messages / window_s)
    seen = record(goodput_msgs_per_s=achieved, offered_msgs_per_s=offered, window_s=window_s, consumers=1)
    facts = Facts(
        durability="broker", rate_kind="fixed", consumers=1, window_s=window_s, sent=1, acked=1, received=1,
        offered_msgs_per_s=offered, achieved_msgs_per_s=offered, goodput_msgs_per_s=achieved,
    )  # fmt: skip
    assert seen_in(seen).sustained is facts.is_carried is curve._is_carried({**seen, "subscribers": 1})


LEVEL = {"slope_msgs_per_s": {"estimate": 2.0, "low": -30.0, "high": 40.0}, "samples": 50}


@pytest.mark.parametrize(
    ("changes", "carried"),
    [
        ({"goodput_msgs_per_s": 970.0, "under_way": LEVEL}, True),  # 75 messages: what came in 75 ms
        ({"goodput_msgs_per_s": 955.0, "under_way": LEVEL}, False),  # more than a stall of 0.1 s explains
        ({"goodput_msgs_per_s": 970.0, "under_way": GROWING}, False),
        ({"goodput_msgs_per_s": 970.0, "under_way": {}}, False),  # nobody looked
        ({"goodput_msgs_per_s": 970.0, "sent_msgs_per_s": 970.0, "under_way": LEVEL}, False),
    ],
)
def test_what_a_stall_holds_up_is_no_shortfall_of_a_level_backlog(changes: dict[str, Any], carried: bool) -> None:
    """Of what was received, where the backlog was tested: for search, curve and verdict alike."""
    seen = record(window_s=2.5, consumers=1, **changes)
    facts = Facts(
        durability="broker", rate_kind="fixed", consumers=1, window_s=2.5, sent=1, acked=1, received=1,
        offered_msgs_per_s=1_000.0, achieved_msgs_per_s=changes.get("sent_msgs_per_s", 1_000.0),
        goodput_msgs_per_s=changes["goodput_msgs_per_s"], is_level=changes["under_way"] is LEVEL,
    )  # fmt: skip
    assert seen_in(seen).sustained is facts.is_carried is curve._is_carried({**seen, "subscribers": 1}) is carried


def test_a_rate_is_sustained_with_every_subscriber_served() -> None:
    """Three subscribers receive three times what was produced."""
    assert seen_in(record()).sustained
    assert seen_in(record(), 5.0).sustained
    assert seen_in(record(goodput_msgs_per_s=3_000.0), fan_out=3).sustained
    assert not seen_in(record(goodput_msgs_per_s=2_000.0), fan_out=3).sustained


AMPLE = {"achieved_msgs_per_s": 5_000.0}


@pytest.mark.parametrize(
    ("ceiling", "before", "bound_by", "words"),
    [
        ({"achieved_msgs_per_s": 1_050.0}, "broker", "generator", "the tool itself carries 1,050 msg/s here; ?"),
        ({**AMPLE, "unpaced_msgs_per_s": 1_100.0}, "broker", "generator", "paces less than 1,100 msg/s here; ?"),
        ({**AMPLE, "unpaced_msgs_per_s": 1_100.0}, "objective", "generator", "paces less than 1,100 msg/s here; ?"),
        # A host that is used up leaves open what the generator could do: the limit may be the host's.
        ({"achieved_msgs_per_s": 1_050.0, "bound_by": "host"}, "broker", "host", "uses up the machine, whose limit"),
        ({"achieved_msgs_per_s": 900.0, "bound_by": "host"}, "generator", "generator", "uses up the machine"),
        ({**AMPLE, "unpaced_msgs_per_s": 1_050.0, "unpaced_bound_by": "host"}, "objective", "host", "paces less than"),
        # … and so does what stood in for the broker, which is neither.
        ({"achieved_msgs_per_s": 1_050.0, "bound_by": "null broker"}, "broker", "unknown", "held by the null broker"),
        ({"achieved_msgs_per_s": 1_050.0, "bound_by": "pre-filled topic"}, "host", "host", "held by the pre-filled"),
        (
            {"achieved_msgs_per_s": 1_050.0, "bound_by": "host", "unpaced_msgs_per_s": 900.0},
            "broker", "generator", "paces less than 900 msg/s here; ?",
        ),
    ],
)  # fmt: skip
def test_a_capacity_that_the_tool_was_not_shown_to_exceed_is_at_least_that(
    ceiling: dict[str, Any], before: str, bound_by: str, words: str
) -> None:
    """By the closed loop's rate or by a schedule that was not kept, whatever set that: nothing shows it had more."""
    answer = with_ceiling(ceiling, bound_by=before)
    assert (answer["is_lower_bound"], answer["bound_by"]) == (True, bound_by)
    assert words in answer["reason"]
    assert answer["reason"].startswith("without a broker the tool itself")
    assert answer["ceiling_msgs_per_s"] == ceiling["achieved_msgs_per_s"]


@pytest.mark.parametrize(
    ("ceiling", "reason"),
    [
        (AMPLE, "?"),
        ({**AMPLE, "bound_by": "host", "unpaced_msgs_per_s": 3_000.0, "unpaced_bound_by": "host"}, "?"),
        # Something else used the machine meanwhile: that shows nothing, and is said.
        (
            {**AMPLE, "unpaced_msgs_per_s": 1_100.0, "unpaced_bound_by": "unknown"},
            "?; whether the tool itself paces 1,100 msg/s without a broker is not known",
        ),
        (
            {"achieved_msgs_per_s": None, "error": "no ceiling is known: a null broker has no share groups"},
            "?; no ceiling is known: a null broker has no share groups",
        ),
        ({"achieved_msgs_per_s": 0.0}, "?; no ceiling is known: without a broker nothing came through"),
    ],
)
def test_a_ceiling_far_above_or_unknown_changes_no_limit_and_an_unknown_one_is_told(
    ceiling: dict[str, Any], reason: str
) -> None:
    """The capacity stays as it was found; where nobody knows what the tool carries, the answer says so in words."""
    answer = with_ceiling(ceiling)
    assert (answer["is_lower_bound"], answer["bound_by"], answer["reason"]) == (False, "broker", reason)
    assert answer["ceiling_msgs_per_s"] == (ceiling["achieved_msgs_per_s"] or None)


@pytest.mark.parametrize(("bound_by", "is_at_least"), [("host", True), ("unknown", True), ("broker", False)])
def test_what_the_machine_bounds_is_at_least_that_where_no_ceiling_is_known(bound_by: str, is_at_least: bool) -> None:
    """Nothing shows that the clients had more to give; a broker that was the limit with room left is one without it."""
    answer = with_ceiling({"achieved_msgs_per_s": None, "error": "no ceiling is known: ?"}, bound_by=bound_by)
    assert (answer["is_lower_bound"], answer["bound_by"]) == (is_at_least, bound_by)


@pytest.mark.parametrize(
    ("paced", "unpaced", "needed", "is_told"),
    [
        (22.0, 60.0, 21.0, True),
        (22.0, 60.0, 66.0, True),
        (22.0, 60.0, 44.0, False),  # what lies between the two nobody has tried
        (None, 60.0, 44.0, False),
        (22.0, None, 44.0, False),
        (22.0, 60.0, 101.0, True),  # the closed loop carried less
        (None, None, 44.0, True),  # no open loop could be tried
        (22.0, 60.0, None, True),
    ],
)
def test_a_ceiling_tells_of_rates_up_to_what_was_paced_and_from_what_was_not(
    paced: float | None, unpaced: float | None, needed: float | None, is_told: bool
) -> None:
    """A search that finds more than the one before asks again, instead of leaning on what was paced for that."""
    ceiling = {"achieved_msgs_per_s": 100.0, "paced_msgs_per_s": paced, "unpaced_msgs_per_s": unpaced}
    assert searching.tells(ceiling, needed) is is_told
    assert searching.tells({**ceiling, "achieved_msgs_per_s": None}, needed)


def with_ceiling(ceiling: dict[str, Any], bound_by: str = "broker") -> dict[str, Any]:
    """What a search that found 1,000 a second says once it knows this ceiling."""
    answer = {
        "capacity_msgs_per_s": 1_000.0, "is_lower_bound": False, "bound_by": bound_by, "reason": "?",
        "ceiling_msgs_per_s": None,
    }  # fmt: skip
    known = {"bound_by": "generator", "unpaced_msgs_per_s": None, "unpaced_bound_by": "generator", "error": None}
    searching._add_ceiling(answer, {**known, **ceiling})
    return answer
