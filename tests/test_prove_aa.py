"""A comparison's false alarms and its power: on invented and recorded trials, and on what a broker might have shown."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prove import aa, families, pairs
from prove.proof import Scale

from loadgen.analysis import ab
from loadgen.analysis.ab import compare_variants
from loadgen.drivers.memory import memory_endpoint
from loadgen.stats.confidence import Ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prove.proof import Row

RATES = st.floats(1.0, 1e7)
RESAMPLES = aa.RESAMPLES[Scale.SMALL]


@pytest.fixture(scope="module")
def populations() -> list[pairs.Recorded]:
    """Log-normal trials, and those that were recorded on both brokers."""
    return [pairs.invented(*aa.INVENTED, seed=1), *pairs.kept()]


def live(equal: Sequence[aa.Halves], paced: float = 0.9) -> aa.Live:
    """Comparisons as if they had been measured; paced pairs hardly vary."""
    return aa.Live("rabbitmq", tuple(equal), ((1_000.0, 1_000 * paced), (1_001.0, 1_001 * paced + 0.5)))


def failing(rows: Sequence[Row]) -> list[str]:
    """The rows that did not hold, by what stands after the last colon of their names."""
    return [row.name.rpartition(": ")[2] for row in rows if not row.ok]


def test_alarms_are_five_per_cent_and_a_tenth_less_is_found(populations: list[pairs.Recorded]) -> None:
    """The small proof passes on every population, with its picture."""
    proof = aa.prove(Scale.SMALL)
    assert proof.passed, [row for row in proof.rows if not row.ok]
    assert len(proof.rows) == 3 * len(populations) + 4
    assert len(populations) == 3
    assert "</svg>" in proof.charts[0].svg
    assert all(f"{each.left_out} more were left out" in " ".join(proof.notes) for each in pairs.kept())


def test_recorded_pairs_are_many_and_tell_where_they_come_from() -> None:
    """More pairs of each broker than a comparison needs, no two alike, with the day and the machine."""
    recorded = pairs.kept()
    assert [each.title.split()[0] for each in recorded] == ["RabbitMQ", "Kafka"]
    for each in recorded:
        assert len(set(each.pairs)) == len(each.pairs) > each.repeats_needed(aa.SLOWED, aa.POWER, aa.ALPHA)
        assert datetime.strptime(each.made_utc, "%Y-%m-%d %H:%M").replace(tzinfo=UTC) < datetime.now(UTC)
        assert re.fullmatch(r".+, \d+ CPUs, Linux \d+\..+", each.machine)
        assert all(rate > 0 for pair in each.pairs for rate in pair)


def test_a_test_that_takes_the_spread_for_known_fails(
    populations: list[pairs.Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.96 standard errors, as if the spread were not estimated from a few pairs, raise too many alarms: noticed."""

    def by_normal(given: Sequence[tuple[float, float]]) -> Ratio:
        logs = [math.log(top / bottom) for top, bottom in given]
        mean = math.fsum(logs) / len(logs)
        error = math.sqrt(math.fsum((each - mean) ** 2 for each in logs) / (len(logs) - 1) / len(logs))
        return Ratio(math.exp(mean), math.exp(mean - 1.96 * error), math.exp(mean + 1.96 * error), len(logs))

    monkeypatch.setattr(aa, "paired_ratio", by_normal)
    proof = aa.compare(populations[:1], [], RESAMPLES)
    assert failing(proof.rows) == ["alarms", "comparisons of which scipy's t test thinks otherwise"]


def test_whole_comparisons_say_what_ab_says() -> None:
    """The same ratios at the same levels as those of a run of one point: the answer alone, the others as a family."""
    recorded = pairs.invented_latencies(9, seed=3)
    trials = [
        {
            "id": f"t/{variant}/{repeat}", "status": "complete", "purpose": "measure", "repeat": repeat,
            "broker": "kafka", "driver": "kafka", "durability": "broker", "scenario": "s", "consumers": 1,
            "subscribers": 1, "producers": 1, "rate": {"kind": "fixed"}, "message": {}, "settings": {},
            "point": {"variant": variant, "pair": 1}, "verdict": {"status": "valid"}, "window_s": 1.0,
            "latency_ns": {"e2e": {"p50": half[0], "p99": half[1]}, "ack": None}, "goodput_msgs_per_s": half[2],
            "achieved_msgs_per_s": 1e6,
            "cpu_s": {"producers": half[3], "consumers": 0.0, "broker": half[4]},
        }
        for repeat, halves in enumerate(recorded.pairs, 1)
        for variant, half in zip("AB", halves, strict=True)
    ]  # fmt: skip
    (told,) = compare_variants(SimpleNamespace(records=trials, header={"scenarios": []}), 1.1)  # type: ignore[arg-type]
    assert [effect.measure for effect in told.effects] == list(recorded.measures)
    quantities = [[(first[at], second[at]) for first, second in recorded.pairs] for at in range(len(recorded.measures))]
    found = families.ratios_of(quantities)
    assert [each.confidence for each in found] == pytest.approx([0.95] + [1 - 0.05 / 4] * 4)
    for effect, ratio in zip(told.effects, found, strict=True):
        assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx(
            (effect.ratio.ratio, effect.ratio.low, effect.ratio.high)
        )


def test_a_family_without_its_correction_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four intervals of 95 % each raise three times as many alarms as is promised of them together: noticed."""
    recorded = pairs.invented_latencies(200, seed=1)
    monkeypatch.setattr(ab, "corrected_confidence", lambda _: 0.95)
    assert "alarms in any" in failing(list(families.rows(recorded, 300)))


def test_a_family_needs_pairs_enough() -> None:
    """One line says so."""
    with pytest.raises(pairs.TrialError, match="3 pairs, 10 are needed"):
        families.compared(pairs.invented_latencies(3, seed=1), 10, 5)


def test_a_paced_comparison_that_showed_nothing_is_made_again_with_what_its_spread_needs() -> None:
    """More repeats where pairs vary by 9 % than where they vary by 4 %, and never more than there is time for."""

    def seen(spread: float) -> aa.Halves:
        return tuple(
            (1_000.0, 958.0 * math.exp(spread * each)) for each in (-1.3, 1.2, 0.4, -0.9, 1.0, -0.6, 0.7, -0.5)
        )

    assert aa.again_repeats(seen(0.04), 0.1) == 8
    assert 8 < aa.again_repeats(seen(0.09), 0.1) < aa.again_repeats(seen(0.15), 0.1) < 100
    assert aa.again_repeats(seen(0.09), 40.0) == 3
    assert aa.again_repeats(seen(0.09), 1e6) == 2


@pytest.mark.parametrize("slowed", [1.0, 0.9, 0.7])
def test_the_pictures_comparisons_say_what_ours_say(populations: list[pairs.Recorded], slowed: float) -> None:
    """The same draws, judged by another's t test all at once: the same share of them is lower, to the comparison."""
    for recorded in populations:
        one_by_one = aa.resampled(recorded, 6, 400, slowed=slowed, seed=5).lower_share
        assert aa.found_share(recorded, 6, 400, slowed=slowed, seed=5) == one_by_one


def test_a_broker_is_warmed_once_for_each_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next proof finds it warm; one that was started anew is cold."""
    runs: list[tuple[int, ...]] = []
    monkeypatch.setattr(pairs, "carry_out", lambda _, endpoint: runs.append(endpoint.pids))
    monkeypatch.setattr(pairs, "_warmed", set())
    for pid in (7, 7, 8):
        pairs.warm(replace(memory_endpoint("kafka"), pids=(pid,)))
    assert runs == [(7,)] * pairs.WARM_TIMES + [(8,)] * pairs.WARM_TIMES


def test_too_few_repeats_fail(populations: list[pairs.Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    """With two repeats less than are recommended, a tenth less is found too seldom: noticed."""
    enough = pairs.Recorded.repeats_needed
    monkeypatch.setattr(pairs.Recorded, "repeats_needed", lambda *given: enough(*given) - 2)
    assert "a tenth less is found" in failing(aa.compare(populations[:1], [], RESAMPLES).rows)


@settings(max_examples=25)
@given(st.lists(st.tuples(RATES, RATES), min_size=4, max_size=30), st.floats(1.0, 3.0), st.integers(0, 99))
def test_a_coin_makes_equal_of_whatever_was_recorded(halves: list[tuple[float, float]], bias: float, seed: int) -> None:
    """However unequal a pair's halves were, as many resamples show B lower as show it higher."""
    recorded = pairs.Recorded("biased", tuple((first * bias, second) for first, second in halves))
    seen = aa.resampled(recorded, 4, 400, seed=seed)
    lower, higher = int(seen.lower.sum()), int(seen.higher.sum())
    # Five standard deviations of a fair coin.
    assert abs(lower - higher) <= 5 * math.sqrt(lower + higher) + 1


def test_the_same_seed_makes_the_same_comparisons(populations: list[pairs.Recorded]) -> None:
    """What stands on the page can be computed again."""
    first, again, other = (aa.resampled(populations[0], 5, 300, seed=seed) for seed in (1, 1, 2))
    assert (first.p_values == again.p_values).all()
    assert (first.p_values != other.p_values).any()


@pytest.mark.long
def test_comparisons_on_a_broker_are_counted(populations: list[pairs.Recorded]) -> None:
    """Comparisons that show nothing, and a paced producer's: all hold; five alarms on whichever broker are too many."""
    halves = pairs.invented(0.05, 60, seed=4).pairs
    equal = [halves[at : at + 3] for at in range(0, 60, 3)]
    calm = [each for each in equal if not live([each]).alarms]
    assert len(calm) > 15
    assert aa.compare(populations[:1], [live(calm)], RESAMPLES).passed
    alarmed = ((1_000.0, 900.0), (1_001.0, 901.0), (1_002.0, 902.0))
    assert live([alarmed]).alarms == 1
    both = [live([*calm[:8], *[alarmed] * 2]), live([*calm[8:15], *[alarmed] * 2])]
    assert not [
        row for row in aa.compare(populations[:1], both, RESAMPLES).rows if row.name.startswith("19 ") and not row.ok
    ]
    more = [live([*calm[:8], *[alarmed] * 2]), live([*calm[8:15], *[alarmed] * 3])]
    assert [row.seen for row in aa.compare(populations[:1], more, RESAMPLES).rows if row.name.startswith("20 ")] == [
        "5"
    ]
    assert not aa.compare(populations[:1], more, RESAMPLES).passed


@pytest.mark.parametrize("paced", [1.0, 1.1])
def test_a_pacer_that_does_something_else_fails(populations: list[pairs.Recorded], paced: float) -> None:
    """A rate that was not lower is noticed."""
    assert not aa.compare(populations[:1], [live([], paced)], RESAMPLES).passed


def test_pairs_in_which_others_used_the_cpu_are_left_out() -> None:
    """Only trials in which the machine's checks found nothing are recorded."""
    trial = {
        "status": "complete",
        "verdict": {
            "status": "valid",
            "checks": [{"name": name, "passed": True, "reason": ""} for name in pairs.UNDISTURBED],
        },
    }
    assert pairs.is_undisturbed(trial)
    for name in pairs.UNDISTURBED:
        checks = [{"name": each, "passed": None if each == name else True} for each in pairs.UNDISTURBED]
        assert not pairs.is_undisturbed({**trial, "verdict": {"status": "unknown", "checks": checks}})
    assert not pairs.is_undisturbed({**trial, "status": "failed"})


def test_more_than_a_thousand_repeats_are_told(populations: list[pairs.Recorded]) -> None:
    """Pairs that differ by factors of thousands cannot be compared to a tenth: one line says so."""
    wild = replace(populations[0], pairs=((1.0, 1e6), (1e6, 1.0)))
    with pytest.raises(pairs.TrialError, match="1,000 repeats would not do"):
        wild.repeats_needed(aa.SLOWED, aa.POWER, aa.ALPHA)
