"""Capacities of a run: searches of one point together, what counts of them, and how far off the tool's own limit is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.analysis.capacity import PointCapacity, capacities
from loadgen.runs import RunWriter, load
from loadgen.stats.confidence import estimate

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.runs import Run

INVALID = {"status": "invalid", "bound_by": "unknown", "reasons": ["integrity: 1 corrupted message"]}


def write(root: Path, *searches: dict[str, Any], ceilings: tuple[dict[str, Any], ...] = ()) -> Run:
    """A run of searches; each is what differs from the usual: `capacity`, `broker`, `confirm` (of its last trial)."""
    writer = RunWriter(root, "search", synthetic.HEADER)
    for number, one in enumerate(searches, 1):
        given = {"repeat": number, "broker": "kafka", "capacity": 1_000.0, "confirm": {}, "burst": {}, **one}
        broker, repeat, capacity = given.pop("broker"), given.pop("repeat"), given.pop("capacity")
        home = f"load/{broker}/{number}"
        tried = [
            synthetic.probe(broker, 1, "burst", None, repeat=repeat, home=home, **given.pop("burst")),
            synthetic.probe(broker, 2, "confirm", capacity or 9.0, repeat=repeat, home=home, **given.pop("confirm")),
        ]
        for record in tried:
            writer.add_trial({**record, "point": given.get("point") or {}})
        writer.add("searches", synthetic.search_record(broker, tried, capacity, **given))
    for each in ceilings:
        writer.add("ceilings", each)
    return load(writer.finish("complete"))


def only(run: Run) -> PointCapacity:
    """The run's only capacity."""
    (found,) = capacities(run)
    return found


def test_repeats_of_one_point_have_the_interval_over_repeats(tmp_path: Path) -> None:
    """The capacity is the median over searches, its interval that of the repeats, never one search's bracket."""
    found = only(write(tmp_path, {"capacity": 900.0}, {"capacity": 1_000.0}, {"capacity": 1_050.0}))
    assert found.estimate == estimate([900.0, 1_000.0, 1_050.0])
    assert found.msgs_per_s == 1_000.0
    assert found.limits == (found.estimate.low, found.estimate.high)
    assert (found.limits_are, found.bracket) == ("repeats", None)
    assert found.by_repeat == {1: 900.0, 2: 1_000.0, 3: 1_050.0}
    assert found.elapsed_s == 3 * 52.0
    assert found.resolution == pytest.approx(0.05)


@pytest.mark.parametrize("high", [1_080.0, None])
def test_one_search_has_its_bracket(tmp_path: Path, high: float | None) -> None:
    """From what was sustained to what was not; without the latter there is no upper bound, and none is made up."""
    found = only(write(tmp_path, {"high_msgs_per_s": high}))
    assert (found.limits, found.limits_are) == ((1_000.0, high), "bracket")
    assert not found.estimate.has_interval
    assert (found.resolution is None) == (high is None)


def test_one_search_that_never_reached_the_limit_makes_all_a_lower_bound(tmp_path: Path) -> None:
    """A mean of values of which one is too small is too small; what bounded each is told."""
    generator = {"is_lower_bound": True, "bound_by": "generator", "producers": 8}
    found = only(write(tmp_path, {}, generator, {}))
    assert found.is_lower_bound
    assert found.bound_by == "broker / generator"
    assert found.producers == 8
    assert not only(write(tmp_path, {}, {}, {})).is_lower_bound


@pytest.mark.parametrize(
    "confirm", [{"verdict": INVALID}, {"status": "partial"}, {"status": "failed", "error": "gone"}]
)
def test_a_search_counts_with_its_confirming_trial(tmp_path: Path, confirm: dict[str, Any]) -> None:
    """A rate whose trial is not to be used is no capacity, and its search stays in sight."""
    found = only(write(tmp_path, {"capacity": 1_000.0}, {"capacity": 5_000.0, "confirm": confirm}))
    assert found.estimate.values == (1_000.0,)
    assert (len(found.used), len(found.searches)) == (1, 2)
    assert [record["offered_msgs_per_s"] for record in found.trials] == [1_000.0]


def test_a_point_without_a_capacity_says_so(tmp_path: Path) -> None:
    """A search that found no rate is there with its reason and without a number."""
    found = only(write(tmp_path, {"capacity": None, "reason": "no rate was sustained"}))
    assert (found.msgs_per_s, found.limits, found.limits_are) == (None, (None, None), "none")
    assert (found.bound_by, found.is_lower_bound, found.headroom) == ("", False, None)
    assert found.searches[0]["reason"] == "no rate was sustained"


def test_latency_at_capacity_is_of_the_confirming_trials(tmp_path: Path) -> None:
    """Not of bursts and probes; and of publishing where nobody consumes."""
    times = [{"e2e": {"count": 5, "p99": value}, "ack": {"count": 5, "p99": 1.0}} for value in (7e6, 9e6)]
    run = write(tmp_path, *({"confirm": {"latency_ns": each}, "burst": {"latency_ns": times[0]}} for each in times))
    assert only(run).latency("p99") == estimate([7e6, 9e6])
    published = {"latency_ns": {"e2e": None, "ack": {"count": 5, "p99": 3e6}}}
    assert only(write(tmp_path, {"confirm": published})).latency("p99").values == (3e6,)
    assert only(write(tmp_path, {})).latency("p99").n == 0


def test_the_ceiling_is_that_of_the_same_point_and_as_many_producers(tmp_path: Path) -> None:
    """Others' ceilings and those that could not be measured are not taken."""
    search = synthetic.search_record("kafka", [synthetic.probe("kafka", 1, "burst", None)], 1_000.0)
    ceilings = (
        synthetic.ceiling_record(search, achieved_msgs_per_s=None, error="no route"),
        synthetic.ceiling_record(search, achieved_msgs_per_s=4_000.0),
        synthetic.ceiling_record(search, achieved_msgs_per_s=7_000.0, producers=2),
        synthetic.ceiling_record(search, achieved_msgs_per_s=99.0, key="load/rabbitmq/amqp"),
    )
    found = only(write(tmp_path, {"producers": 2}, ceilings=ceilings))
    assert found.ceiling is not None
    assert (found.ceiling.msgs_per_s, found.ceiling.how) == (7_000.0, "null broker")
    assert found.headroom == 7.0
    assert "a lower bound" in found.ceiling.limits


def test_a_capacity_is_held_against_the_open_loops_ceiling(tmp_path: Path) -> None:
    """A capacity is an open loop's rate: so is what it is compared with, where that is known."""
    search = synthetic.search_record("kafka", [synthetic.probe("kafka", 1, "burst", None)], 1_000.0)
    paced = {"paced_msgs_per_s": 3_000.0, "unpaced_msgs_per_s": 4_000.0, "paced_reason": "late"}
    found = only(
        write(tmp_path, {}, ceilings=(synthetic.ceiling_record(search, achieved_msgs_per_s=5_000.0, **paced),))
    )
    assert found.ceiling is not None
    assert (found.ceiling.msgs_per_s, found.ceiling.held_msgs_per_s, found.headroom) == (5_000.0, 3_000.0, 3.0)
    unpaced = {"paced_msgs_per_s": None, "unpaced_msgs_per_s": 3_000.0, "paced_reason": "late"}
    found = only(
        write(tmp_path, {}, ceilings=(synthetic.ceiling_record(search, achieved_msgs_per_s=5_000.0, **unpaced),))
    )
    assert found.ceiling is not None
    assert (found.headroom, found.ceiling.paced_reason) == (5.0, "late")


def test_without_a_ceiling_of_its_own_a_search_tells_what_it_was_held_against(tmp_path: Path) -> None:
    """The search's own field stands in; where that is null too, nobody knows."""
    assert only(write(tmp_path, {"ceiling_msgs_per_s": 3_000.0})).headroom == 3.0
    assert only(write(tmp_path, {"ceiling_msgs_per_s": None})).ceiling is None


def test_the_key_is_by_the_driver_that_really_ran(tmp_path: Path) -> None:
    """A plan carried out in memory names the drivers it would have used; its trials name the one that it did."""
    run = write(tmp_path, {"burst": {"driver": "memory", "driver_kind": "memory"}})
    assert run.header["searches"][0]["driver"] == "memory"
    assert (only(run).driver, only(run).key) == ("memory", "load/kafka/memory")


def test_a_run_without_searches_has_no_capacities(tmp_path: Path) -> None:
    """Also one that an earlier version wrote, without the field."""
    assert capacities(synthetic.compare_run(tmp_path, repeats=1)) == []


POINTS = st.fixed_dictionaries(
    {}, optional={"variant": st.sampled_from("AB"), "kafka.linger_ms": st.sampled_from([0, 5])}
)


@settings(max_examples=15)
@given(st.lists(st.tuples(st.sampled_from(["rabbitmq", "kafka"]), POINTS), min_size=1, max_size=6))
def test_every_search_belongs_to_one_point(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, dict[str, Any]]]
) -> None:
    """Points are told apart by broker and swept values, variants included; none is lost and none counted twice."""
    searches = [{"broker": broker, "point": point, "capacity": 100.0 + i} for i, (broker, point) in enumerate(asked)]
    found = capacities(write(tmp_path_factory.mktemp("run"), *searches))
    rates = sorted(rate for each in found for rate in each.estimate.values)
    assert rates == [100.0 + i for i in range(len(asked))]
    assert len(found) == len({(broker, str(sorted(point.items()))) for broker, point in asked})
    for each in found:
        assert np.isin(each.estimate.values, rates).all()
        assert {search["key"] for search in each.searches} == {each.searches[0]["key"]}
