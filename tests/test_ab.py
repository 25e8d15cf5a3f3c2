"""Two configurations interleaved: the plan's order, the effect that is found, and the words for it."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import synthetic

from loadgen.analysis.ab import compare_variants, sentences
from loadgen.cli import main
from loadgen.errors import ScenarioError
from loadgen.load import load_variants
from loadgen.plan import Profile, make_ab_plan
from loadgen.runs import RunWriter, load
from loadgen.scenario import Kafka, RabbitMQ, Rate, Scenario

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.runs import Run

PROFILE = Profile("test", 0.1, 0.2, 4)
SCENARIO = Scenario(name="ab", question="Which?", rate=Rate.fixed(100), rabbitmq=RabbitMQ(), kafka=Kafka())
FILE = """
from loadgen import Kafka, Message, RabbitMQ, Rate, Scenario
scenario = Scenario(name="ab", question="Which?", message=Message(size_bytes=100), rate=Rate.fixed(500),
                    rabbitmq=RabbitMQ(), kafka=Kafka(), warmup_s=0.2, duration_s=1.6)
"""


def recorded(folder: Path, repeats: int, ratio: float, spread: float, invalid: int = 0) -> Run:
    """A run of pairs whose goodput differs by a known ratio, give or take a spread of the logarithm."""
    noise = np.random.default_rng(7)
    writer = RunWriter(folder, "ab", {})
    for repeat in range(1, repeats + 1):
        for variant, level in (("A", 1_000.0), ("B", 1_000.0 * ratio)):
            writer.add_trial(
                {
                    "id": f"ab/rabbitmq/amqp/variant={variant}/{repeat}", "broker": "rabbitmq", "driver": "amqp",
                    "point": {"variant": variant, "pair": 1}, "repeat": repeat,
                    "consumers": 1, "window_s": 1.0, "rate": {"kind": "saturate"},
                    "goodput_msgs_per_s": level * math.exp(noise.normal(0, spread)), "achieved_msgs_per_s": level,
                    "verdict": {"status": "invalid" if repeat <= invalid else "valid", "bound_by": "broker",
                                "reasons": [], "checks": []},
                }
            )  # fmt: skip
    return load(writer.finish("complete"))


def test_a_plan_interleaves_pairs_in_an_order_drawn_by_its_seed() -> None:
    """Each pair stands together, both variants of it get the same messages, and who goes first varies."""
    plan = make_ab_plan(SCENARIO, SCENARIO, Profile("test", 0.1, 0.2, 20), brokers=("kafka",))
    pairs = list(zip(plan.trials[::2], plan.trials[1::2], strict=True))
    assert all({one.point["variant"], other.point["variant"]} == {"A", "B"} for one, other in pairs)
    assert all((one.repeat, one.seed) == (other.repeat, other.seed) for one, other in pairs)
    first = Counter(one.point["variant"] for one, _ in pairs)
    assert min(first["A"], first["B"]) >= 3
    assert make_ab_plan(SCENARIO, SCENARIO, Profile("test", 0.1, 0.2, 20), brokers=("kafka",)) == plan


def test_variants_with_other_points_are_refused() -> None:
    """What cannot be paired is said in one line."""
    swept = SCENARIO.model_copy(update={"producers": [1, 2]})
    with pytest.raises(ScenarioError, match="the same number on the same brokers"):
        make_ab_plan(SCENARIO, swept, PROFILE)


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["kafka.linger_ms=5"], (None, 5.0)),
        (["kafka.linger_ms=1", "kafka.linger_ms=5"], (1.0, 5.0)),
        (["kafka.linger_ms=1 kafka.batch_size=1000", "kafka.linger_ms=5"], (1.0, 5.0)),
    ],
)
def test_sets_make_the_variants_of_one_file(tmp_path: Path, sets: list[str], expected: tuple[Any, Any]) -> None:
    """One set changes B, two are A's and B's, and each may hold several pairs."""
    path = tmp_path / "s.py"
    path.write_text(FILE)
    a, b = load_variants([path], sets)
    assert a.kafka is not None
    assert b.kafka is not None
    assert (a.kafka.linger_ms, b.kafka.linger_ms) == expected


@pytest.mark.parametrize(("files", "sets"), [(1, 0), (1, 3), (3, 1)])
def test_what_makes_no_two_variants_is_refused(tmp_path: Path, files: int, sets: int) -> None:
    """The line says what was expected."""
    path = tmp_path / "s.py"
    path.write_text(FILE)
    with pytest.raises(ScenarioError, match="expected one"):
        load_variants([path] * files, ["producers=1"] * sets)


def test_a_real_effect_is_shown_with_its_interval(tmp_path: Path) -> None:
    """A fifth more at a spread of 3 % is found in five pairs, and the interval holds the truth."""
    (compared,) = compare_variants(recorded(tmp_path, 5, 1.2, 0.03), 1.1)
    effect = compared.effects[0]
    assert (effect.measure, effect.ratio.direction, effect.is_told) == ("rate", "higher", True)
    assert (effect.ratio.low or 0) < 1.2 < (effect.ratio.high or 0)
    assert effect.bootstrap is None
    assert "higher" in sentences(compared, 1.1)[0]


def test_no_difference_says_how_many_repeats_would_show_one(tmp_path: Path) -> None:
    """Three noisy pairs show nothing, and the words give the number that would."""
    (compared,) = compare_variants(recorded(tmp_path, 3, 1.0, 0.1), 1.1)
    effect = compared.effects[0]
    assert not effect.is_told
    assert (effect.repeats_needed or 0) > 3
    assert f"10% would need {effect.repeats_needed} repeats" in sentences(compared, 1.1)[0]


def test_enough_pairs_without_an_effect_tell_that_there_is_none(tmp_path: Path) -> None:
    """Where a tenth would have been found, not finding it is an answer; a bootstrap stands beside from ten pairs on."""
    (compared,) = compare_variants(recorded(tmp_path, 12, 1.0, 0.02), 1.1)
    effect = compared.effects[0]
    assert effect.is_told
    assert effect.bootstrap is not None
    assert "would have been" in sentences(compared, 1.1)[0]


def test_two_drivers_are_compared_too(tmp_path: Path) -> None:
    """What differs between A and B is shown as both; the pair's number holds them together."""
    writer = RunWriter(tmp_path, "ab", {})
    for repeat in (1, 2, 3):
        for variant, driver, rate in (("A", "amqp", 40_000.0), ("B", "pika", 15_000.0)):
            writer.add_trial(
                {
                    "id": f"ab/{variant}/{repeat}", "broker": "rabbitmq", "driver": driver, "repeat": repeat,
                    "point": {"variant": variant, "pair": 1, "prefetch": 10 if variant == "A" else 20},
                    "rate": {"kind": "saturate"}, "consumers": 0, "achieved_msgs_per_s": rate + repeat,
                    "window_s": 1.0, "verdict": {"status": "valid", "bound_by": "broker", "reasons": [], "checks": []},
                }
            )  # fmt: skip
    (compared,) = compare_variants(load(writer.finish("complete")), 1.1)
    assert (compared.driver, compared.point) == ("amqp / pika", {"prefetch": "10 / 20"})
    assert compared.effects[0].ratio.direction == "lower"


def test_curves_are_refused() -> None:
    """Each variant's curve would have rates of its own."""
    curved = SCENARIO.model_copy(update={"rate": Rate.curve([0.5])})
    with pytest.raises(ScenarioError, match="rates of its own"):
        make_ab_plan(curved, SCENARIO, PROFILE)


def test_struck_trials_leave_their_pair(tmp_path: Path) -> None:
    """An invalid trial enters no comparison, and is counted."""
    (compared,) = compare_variants(recorded(tmp_path, 5, 1.2, 0.03, invalid=2), 1.1)
    assert compared.struck == 4
    assert compared.effects[0].ratio.pairs == 3


def test_the_command_compares_two_rates_on_queues_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`loadgen ab` runs both variants, finds that one carries twice the other, and writes an ordinary run."""
    path = tmp_path / "s.py"
    path.write_text(FILE)
    words = ["--brokers", "memory", "--broker", "kafka", "--repeats", "2", "--results", str(tmp_path / "results")]
    with synthetic.undrawn():
        status = main(["ab", str(path), "--set", "rate=500", "--set", "rate=1000", *words, "--json"])
    said = json.loads(capsys.readouterr().out)
    assert status in {0, 2, 3}  # a machine in use may cost a trial or a certainty, never the figures
    (compared,) = said["compared"]
    rate = next(each for each in compared["effects"] if each["measure"] == "rate")
    assert rate["ratio"]["ratio"] is None or rate["ratio"]["ratio"] == pytest.approx(2.0, rel=0.35)
    run = load(said["path"])
    assert {record["point"]["variant"] for record in run.records} == {"A", "B"}
    assert run.header["plan"]["is_ab"] is True
