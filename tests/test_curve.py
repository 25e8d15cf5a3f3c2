"""Latency-rate curves: every repeat is kept, overload is shown, and the knee is where the medians have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.analysis.curve import SOUND_CHECKS, Curve, curves
from loadgen.facts import Facts
from loadgen.runs import RunWriter, load
from loadgen.stats.confidence import estimate
from loadgen.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from loadgen.runs import Run

CAPACITY = 10_000.0
FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.1)


def mm1_ns(fraction: float) -> float:
    """The response time of M/M/1 with a service time of 1 ms, and what stands for it in overload."""
    return 1e6 / (1 - fraction) if fraction < 1 else 900e6


def record(fraction: float, repeat: int = 1, broker: str = "kafka", **given: Any) -> dict[str, Any]:
    """A curve's trial whose percentiles are those of M/M/1: p50, p99 and p99.9 in their fixed proportions."""
    median_ns = mm1_ns(fraction) * given.pop("times", 1.0)
    summary = {"count": 1_000, "p50": median_ns, "p99": 6.6 * median_ns, "p99_9": 10 * median_ns}
    return synthetic.fraction_trial(broker, fraction, repeat, CAPACITY, latency_ns={"e2e": summary}) | given


def failing(*names: str) -> dict[str, Any]:
    """The verdict of a trial in which these checks failed."""
    checks = [{"name": name, "passed": False, "reason": "so"} for name in names]
    return {"status": "invalid", "bound_by": "broker", "reasons": [f"{name}: so" for name in names], "checks": checks}


def write(root: Path, records: Iterable[dict[str, Any]], searches: Iterable[dict[str, Any]] = ()) -> Run:
    """A finished run of these trials."""
    writer = RunWriter(root, "curve", synthetic.HEADER)
    for each in records:
        writer.add_trial(each)
    for each in searches:
        writer.add("searches", each)
    return load(writer.finish("complete"))


def only(run: Run) -> Curve:
    """The run's only curve."""
    (found,) = curves(run)
    return found


def usual(repeats: int = 3) -> list[dict[str, Any]]:
    """Every fraction, once a repeat."""
    return [record(fraction, repeat) for repeat in range(1, repeats + 1) for fraction in reversed(FRACTIONS)]


def test_every_repeat_of_every_fraction_is_kept(tmp_path: Path) -> None:
    """Points come by fraction, each with all its repeats, and their figures are estimates over these."""
    records = usual()
    curve = only(write(tmp_path, records))
    assert tuple(point.fraction for point in curve.points) == FRACTIONS
    for point in curve.points:
        mine = [each for each in records if each["point"]["fraction"] == point.fraction]
        assert [each.trial_id for each in point.repeats] == [each["id"] for each in mine]
        assert point.offered_msgs_per_s == pytest.approx(point.fraction * CAPACITY)
        for found, name in ((point.p50, "p50"), (point.p99, "p99"), (point.p99_9, "p99_9")):
            assert found == estimate(each["latency_ns"]["e2e"][name] for each in mine)
        assert point.achieved == estimate(each["goodput_msgs_per_s"] for each in mine)


def test_overload_is_shown_although_its_trials_are_invalid(tmp_path: Path) -> None:
    """Above the capacity the verdict is that of overload: the point stays, and says what it is."""
    curve = only(write(tmp_path, usual()))
    over = [point for point in curve.points if point.is_overload]
    assert [(point.fraction, point.why, len(point.repeats), point.carried) for point in over] == [
        (1.1, "above the capacity", 3, 0)
    ]
    assert over[0].p50.n == 3
    assert all(point.carried == 3 and not point.why for point in curve.points if not point.is_overload)


@pytest.mark.parametrize("name", sorted(SOUND_CHECKS))
def test_overload_excuses_no_defect(tmp_path: Path, name: str) -> None:
    """A trial that lost or changed messages, or that nobody watched, is struck at any rate."""
    records = usual()
    broken = next(each for each in records if each["point"]["fraction"] == 1.1)
    broken["verdict"] = failing("latency complete", name)
    point = only(write(tmp_path, records)).points[-1]
    assert [each["id"] for each in point.struck] == [broken["id"]]
    assert len(point.repeats) == 2


def test_the_checks_that_excuse_nothing_are_checks() -> None:
    """A check that is renamed must be renamed here: its old name would excuse what it finds."""
    facts = Facts(durability="broker", rate_kind="fixed", consumers=1, window_s=1.0, sent=1, acked=1, received=1)
    assert {check.name for check in judge(facts).checks} >= SOUND_CHECKS


@pytest.mark.parametrize(
    "spoilt",
    [
        {"verdict": {"status": "invalid", "bound_by": "unknown", "reasons": ["so"], "checks": []}},
        {"status": "failed", "error": "the broker died"},
        {"status": "partial"},
        {"status": "failed", "offered_msgs_per_s": None, "goodput_msgs_per_s": None, "window_s": None},
    ],
)
def test_what_nobody_can_excuse_is_struck(tmp_path: Path, spoilt: dict[str, Any]) -> None:
    """An invalid verdict without a reason by name, and a trial that did not end, are in no figure."""
    records = [*usual(1), record(1.1, 2) | spoilt]
    point = only(write(tmp_path, records)).points[-1]
    assert [each["repeat"] for each in point.struck] == [2]
    assert [each.repeat for each in point.repeats] == [1]


def test_an_invalid_trial_below_capacity_is_struck_whatever_failed(tmp_path: Path) -> None:
    """Overload is no excuse where most repeats carried the rate."""
    bad = record(0.5, 4, times=50.0, verdict=failing("latency complete"))
    point = next(each for each in only(write(tmp_path, [*usual(), bad])).points if each.fraction == 0.5)
    assert not point.is_overload
    assert [each["repeat"] for each in point.struck] == [4]
    assert point.p50.values == (mm1_ns(0.5),) * 3


@settings(max_examples=20)
@given(fraction=st.sampled_from((0.5, 1.0, 1.2)), carried=st.lists(st.booleans(), min_size=1, max_size=5))
def test_a_rate_that_most_repeats_did_not_carry_is_overload(
    tmp_path_factory: pytest.TempPathFactory, fraction: float, carried: list[bool]
) -> None:
    """Above the capacity always; else where at least half fell short. No valid repeat is ever left out."""
    records = []
    for repeat, held in enumerate(carried, 1):
        one = record(fraction, repeat, goodput_msgs_per_s=fraction * CAPACITY * (0.995 if held else 0.9))
        records.append(one | {"verdict": {"status": "valid", "bound_by": "broker", "reasons": []}})
    (point,) = only(write(tmp_path_factory.mktemp("run"), records)).points
    assert point.is_overload == (fraction > 1 or 2 * sum(carried) <= len(carried))
    assert (point.carried, len(point.repeats), point.struck) == (sum(carried), len(carried), ())
    assert bool(point.why) == point.is_overload
    if point.is_overload and fraction <= 1:
        assert point.why == f"not carried in {len(carried) - sum(carried)} of {len(carried)}"
    assert ("yet carried" in point.why) == (fraction > 1 and any(carried))


def test_the_knee_of_mm1_is_at_half_of_its_capacity(tmp_path: Path) -> None:
    """Kleinrock's power of M/M/1 is largest at a load of one half; repeats that agree are counted."""
    curve = only(write(tmp_path, usual()))
    assert curve.knee.rate_msgs_per_s == pytest.approx(0.5 * CAPACITY)
    assert curve.knee_point is not None
    assert curve.knee_point.fraction == 0.5
    assert curve.knee_by_repeat == (0.5, 0.5, 0.5)


def test_a_tail_does_not_move_the_knee(tmp_path: Path) -> None:
    """A pause that fills the p99 of one point stays out of it, as one disturbed repeat of three does."""
    records = usual()
    for each in records:
        fraction, repeat = each["point"]["fraction"], each["repeat"]
        if fraction == 0.5:
            each["latency_ns"]["e2e"]["p99"] = 5e9
        if fraction == 0.5 and repeat == 2:
            each["latency_ns"]["e2e"]["p50"] *= 10
    curve = only(write(tmp_path, records))
    assert curve.knee_point is not None
    assert curve.knee_point.fraction == 0.5
    assert len(curve.knee_by_repeat) == 3
    assert curve.knee_by_repeat.count(0.5) == 2


def test_no_knee_is_made_up(tmp_path: Path) -> None:
    """Too few points, or a range that does not enclose it, have none, and say why."""
    few = only(write(tmp_path / "few", [record(fraction) for fraction in (0.3, 0.5, 0.7)]))
    assert (few.knee.rate_msgs_per_s, few.knee_point, few.knee_by_repeat) == (None, None, ())
    assert "at least 4" in few.knee.reason
    low = only(write(tmp_path / "low", [record(fraction) for fraction in (0.1, 0.2, 0.3, 0.4)]))
    assert low.knee_point is None
    assert "above the highest rate" in low.knee.reason


def test_probes_are_no_points_of_a_curve(tmp_path: Path) -> None:
    """What a search tried on its way stays out, also at a rate that the curve has."""
    tried = synthetic.probe("kafka", 1, "probe", 0.5 * CAPACITY, rate=record(0.5)["rate"])
    curve = only(write(tmp_path, [*usual(1), tried]))
    assert all(len(point.repeats) == 1 for point in curve.points)


def test_a_curve_knows_its_own_capacity(tmp_path: Path) -> None:
    """Variants and swept values have curves of their own, and each is matched with the search of its point."""
    records, searches = [], []
    for variant, capacity in (("A", 10_000.0), ("B", 12_000.0)):
        tried = synthetic.probe("kafka", 1, "confirm", capacity, home=f"load/kafka/{variant}")
        tried |= {"point": {"variant": variant}, "purpose": "probe"}
        searches.append(synthetic.search_record("kafka", [tried], capacity, point={"variant": variant}))
        records.append(tried)
        for fraction in FRACTIONS:
            records.append(record(fraction) | {"id": f"{variant}/{fraction}/1"})
            records[-1]["point"] = {"variant": variant, "fraction": fraction}
    found = curves(write(tmp_path, records, searches))
    assert [curve.point for curve in found] == [{"variant": "A"}, {"variant": "B"}]
    assert [curve.capacity.msgs_per_s for curve in found if curve.capacity] == [10_000.0, 12_000.0]
    (alone,) = curves(write(tmp_path, usual(1)))
    assert alone.capacity is None


def test_a_curve_in_memory_finds_its_capacity(tmp_path: Path) -> None:
    """The plan names a driver, the trials another: what ran is what counts."""
    tried = synthetic.probe("kafka", 1, "confirm", CAPACITY) | {"driver": "memory", "driver_kind": "memory"}
    search = synthetic.search_record("kafka", [tried], CAPACITY) | {"driver": "kafka", "key": "load/kafka/kafka"}
    records = [tried, *(each | {"driver": "memory"} for each in usual(1))]
    curve = only(write(tmp_path, records, [search]))
    assert curve.capacity is not None
    assert curve.capacity.msgs_per_s == CAPACITY


def test_a_curve_whose_capacity_was_not_found_is_empty_and_there(tmp_path: Path) -> None:
    """Its trials failed before they began: nothing is shown of them, and nothing is invented."""
    unrun = {"status": "failed", "error": "no capacity was found", "verdict": failing(), "offered_msgs_per_s": None}
    unrun |= {"window_s": None, "goodput_msgs_per_s": None, "latency_ns": {}}
    curve = only(write(tmp_path, [each | unrun for each in usual(1)]))
    assert curve.shown == ()
    assert [len(point.struck) for point in curve.points] == [1] * len(FRACTIONS)
    assert (curve.knee_point, curve.capacity, curve.points[0].offered_msgs_per_s) == (None, None, None)


def test_without_consumers_confirmations_are_what_is_measured(tmp_path: Path) -> None:
    """Where nobody receives, response times are those of publishing and rates those of what was confirmed."""
    records = usual(1)
    for each in records:
        each |= {"consumers": 0, "goodput_msgs_per_s": 0.0, "achieved_msgs_per_s": each["offered_msgs_per_s"]}
        each["latency_ns"] = {"e2e": None, "ack": each["latency_ns"]["e2e"]}
    curve = only(write(tmp_path, records))
    assert [point.carried for point in curve.points] == [1] * len(FRACTIONS)
    assert curve.knee_point is not None


def test_other_runs_have_no_curves(tmp_path: Path) -> None:
    """Fixed rates are points of their own; a trial known only by its name has no rate at all."""
    assert curves(synthetic.compare_run(tmp_path, repeats=1)) == []
    assert curves(write(tmp_path, [{"id": "known/only/by/name", "status": "partial"}])) == []
