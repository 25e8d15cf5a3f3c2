"""Plans and scenario files: order, cost, and what `--set` changes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from knob_reference import fields, values_of

from loadgen import At, Cut, Durability, Kafka, Kill, Message, RabbitMQ, Rate, Scenario, plan
from loadgen.driver import Capabilities, DriverInfo
from loadgen.errors import HostError, ScenarioError
from loadgen.knobs import Site, points
from loadgen.load import _locate, apply_sets, load_scenarios, parse_set, scenario_files
from loadgen.plan import PROFILES, make_ab_plan, make_plan

if TYPE_CHECKING:
    from loadgen.part import Part

BOTH = Scenario(
    name="both",
    question="How fast?",
    rate=Rate.fixed([100, 200, 300]),
    rabbitmq=RabbitMQ(),
    kafka=Kafka(),
)


def test_the_brokers_alternate_within_each_point_and_take_turns_at_being_first() -> None:
    """Neighbours in the order are the two brokers at one point, and repeats swap who begins."""
    trials = make_plan([BOTH], PROFILES["quick"]).trials
    pairs = list(zip(trials[::2], trials[1::2], strict=True))
    for first, second in pairs:
        assert {first.broker, second.broker} == {"rabbitmq", "kafka"}
        assert first.rate == second.rate
        assert (first.repeat, first.seed) == (second.repeat, second.seed)
    assert {first.broker for first, _ in pairs if first.repeat == 1} == {"rabbitmq"}
    assert {first.broker for first, _ in pairs if first.repeat == 2} == {"kafka"}


def test_the_order_is_the_seeds_and_every_point_is_run_in_every_repeat() -> None:
    """One seed gives one order; the set of trials does not depend on it."""
    plans = [make_plan([BOTH], PROFILES["standard"], seed=seed) for seed in (1, 1, 2)]
    ids = [[trial.id for trial in plan.trials] for plan in plans]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]
    assert sorted(ids[0]) == sorted(ids[2])
    assert len(ids[0]) == 3 * 2 * PROFILES["standard"].repeats


def test_repeats_have_messages_of_their_own() -> None:
    """The seed of a trial's messages differs from repeat to repeat."""
    trials = make_plan([BOTH], PROFILES["quick"]).trials
    assert len({trial.seed for trial in trials}) == PROFILES["quick"].repeats


def test_a_plan_refuses_over_half_of_the_free_disk() -> None:
    """The error names the worst trial and what to do."""
    big = Scenario(
        name="big", question="?", message=Message(size_bytes=1_000_000), rate=Rate.fixed(10_000), kafka=Kafka()
    )
    made = make_plan([big], PROFILES["quick"])
    made.refuse_over_half_of(int(made.peak_bytes_max * 2) + 1)
    with pytest.raises(HostError, match=r"big/kafka.*half.*shorten"):
        made.refuse_over_half_of(int(made.peak_bytes_max * 2) - 1)


def test_trials_on_brokers_of_one_size_come_together() -> None:
    """First those of one node, then those of three; variants of different sizes cannot be interleaved."""
    mixed = BOTH.model_copy(update={"durability": [Durability.REPLICATED, Durability.BROKER]})
    made = make_plan([mixed], PROFILES["quick"])
    assert [trial.nodes for trial in made.trials] == [1] * 18 + [3] * 18
    assert made.sites == (Site(1), Site(3))
    assert made.brokers_of(Site(3)) == ("rabbitmq", "kafka")
    with pytest.raises(ScenarioError, match="do not stand side by side"):
        make_ab_plan(BOTH, BOTH.model_copy(update={"durability": Durability.REPLICATED}), PROFILES["quick"])


def test_trials_with_faults_between_nodes_have_brokers_of_their_own() -> None:
    """After all others of three nodes; beside a variant without such faults they cannot be interleaved."""
    whole = BOTH.model_copy(update={"durability": Durability.REPLICATED, "rate": Rate.fixed(100)})
    cut, kill = (
        whole.model_copy(update={"name": name, "faults": (At(1, fault),)})
        for name, fault in (("cut", Cut(between="nodes")), ("kill", Kill()))
    )
    made = make_plan([cut, kill, whole], PROFILES["quick"], repeats=1)
    assert made.sites == (Site(3), Site(3, is_linked=True))
    assert {trial.scenario for trial in made.of_site(Site(3, is_linked=True))} == {"cut"}
    assert [trial.scenario == "cut" for trial in made.trials] == [False] * 4 + [True] * 2
    assert {trial.nodes for trial in made.trials} == {3}
    with pytest.raises(ScenarioError, match="faults between nodes, which need brokers of their own"):
        make_ab_plan(whole, cut, PROFILES["quick"])


def test_subscribers_are_in_a_trials_line_and_in_what_it_stores() -> None:
    """Each queue of RabbitMQ's keeps a copy, Kafka's one log is read by all; bindings take time to be made."""
    scenario = Scenario(
        name="fan",
        question="?",
        rate=Rate.fixed(100),
        subscribers=[1, 3],
        rabbitmq=RabbitMQ(exchange="topic", bindings=[1, 1000]),
        kafka=Kafka(),
    )
    found = {trial.id: trial for trial in make_plan([scenario], PROFILES["quick"], repeats=1).trials}
    one, three = (found[f"fan/rabbitmq/amqp/subscribers={n}-bindings=1/1"] for n in (1, 3))
    assert three.stored_bytes_max == 3 * one.stored_bytes_max
    assert "1 → 3 × 1" in three.describe()
    assert found["fan/rabbitmq/amqp/subscribers=3-bindings=1000/1"].expected_s > three.expected_s + 2
    stored = {found[f"fan/kafka/kafka/subscribers={n}/1"].stored_bytes_max for n in (1, 3)}
    assert stored == {one.stored_bytes_max}


def test_a_plan_without_the_broker_asked_for_says_so() -> None:
    """Asking for a broker that no scenario drives is an error, not an empty run."""
    only_kafka = Scenario(name="k", question="?", rate=Rate.saturate(), kafka=Kafka())
    with pytest.raises(ScenarioError, match="no scenario here drives rabbitmq"):
        make_plan([only_kafka], PROFILES["quick"], brokers=("rabbitmq",))


def test_a_plan_refuses_what_a_driver_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting beyond the driver's capabilities is one line naming both, before any broker is touched."""
    scenario = Scenario(name="k", question="?", rate=Rate.saturate(), kafka=Kafka(compression_type="zstd"))
    make_plan([scenario], PROFILES["quick"])
    driver = DriverInfo("kafka", "kafka", "wire", Capabilities(partitions=True, compression=("none", "lz4")))
    monkeypatch.setattr(plan, "load_driver", lambda _: driver)
    with pytest.raises(ScenarioError, match=r"kafka\.compression_type = zstd: driver kafka cannot") as caught:
        make_plan([scenario], PROFILES["quick"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("able", "settings", "lacking"),
    [
        (Capabilities(), {"confirms": True}, None),
        (Capabilities(confirms=False), {"confirms": True}, "confirms = True"),
        (Capabilities(confirms=False), {"acks": "all"}, "acks = all"),
        (Capabilities(confirms=False), {"confirms": False, "acks": "0"}, None),
        (Capabilities(), {"partitions": 2}, "partitions = 2"),
        (Capabilities(), {"partitions": 1, "enable_idempotence": False, "compression_type": "none"}, None),
        (Capabilities(), {"enable_idempotence": True}, "enable_idempotence = True"),
        (Capabilities(compression=("none", "gzip")), {"compression_type": "lz4"}, "compression_type = lz4"),
    ],
)
def test_a_capability_is_asked_for_by_the_setting_that_needs_it(
    able: Capabilities, settings: dict[str, object], lacking: str | None
) -> None:
    """Each capability answers for one knob, and only where the knob is used."""
    assert able.lacking(settings) == lacking


def test_a_plan_says_where_keys_are_not_used() -> None:
    """Keys choose a partition; a trial of RabbitMQ says that it has no use for them."""
    scenario = BOTH.model_copy(update={"message": Message(keys=10)})
    for trial in make_plan([scenario], PROFILES["quick"]).trials:
        assert ("keys are not used" in trial.describe()) == (trial.broker == "rabbitmq")


def test_rates_that_look_alike_are_trials_of_their_own() -> None:
    """An id holds a swept value in full."""
    scenario = Scenario(name="k", question="?", rate=Rate.fixed([1_234_567, 1_234_568, 0.5]), kafka=Kafka())
    ids = {trial.id for trial in make_plan([scenario], PROFILES["quick"], repeats=1).trials}
    assert len(ids) == 3


def test_points_of_a_shared_sweep_have_names_and_their_counterpart() -> None:
    """Of what messages are made of, and of requests: each point of RabbitMQ's is followed by Kafka's of the same."""
    body = BOTH.model_copy(update={"message": Message(compressibility=[0, 0.5], keys=[2, 4]), "rate": Rate.fixed(9)})
    asked = {"pattern": "request_reply", "timeout_ms": [5, 50], "requests_in_flight": [1, 2], "rate": Rate.saturate()}
    for scenario, names in ((body, ("compressibility", "keys")), (BOTH.model_copy(update=asked), (*asked,)[1:3])):
        trials = make_plan([scenario], PROFILES["quick"], repeats=1).trials
        assert len(trials) == 2 * 4
        for first, second in zip(trials[::2], trials[1::2], strict=True):
            assert (first.broker, second.broker) == ("rabbitmq", "kafka")
            assert (first.message, first.pattern, first.point) == (second.message, second.pattern, second.point)
            held = {**first.message.model_dump(), **asdict(first.pattern)}
            assert first.point == {name: held[name] for name in names}
            assert all(f"{name}={first.point[name]:g}" in first.id for name in names)


def test_every_scenario_of_the_project_loads_and_is_short() -> None:
    """Each file in scenarios/ asks one question in under 40 lines."""
    files = scenario_files()
    assert len(files) >= 3
    for path in files:
        assert len({each.question for each in load_scenarios(path)}) == 1
        assert len(path.read_text().splitlines()) < 40


def test_client_libraries_are_held_to_one_rate_with_an_acknowledgement_each() -> None:
    """The scenario of their latencies has the drivers of that of their rates, as an open loop."""
    latency, rates = (load_scenarios(Path(f"scenarios/client_{name}.py"))[0] for name in ("latency", "libraries"))
    found = list(points(latency))
    assert [point.driver for point in found] == [point.driver for point in points(rates)]
    assert {point.settings["ack_every"] for point in found if "ack" in point.settings} == {1}
    assert all(point.rate.is_open_loop for point in found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("x = 1", "defines no Scenario"),
        ("import nothing_of_that_name", ":1: ModuleNotFoundError"),
        ("x = (", ":1: SyntaxError"),
        ("from loadgen import *\n\nKafka(acks=9)", "acks = 9"),
    ],
)
def test_a_scenario_file_that_cannot_be_used_is_one_line(tmp_path: Path, content: str | None, words: str) -> None:
    """The error names the file, the line where there is one, and the mistake."""
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ScenarioError) as caught:
        load_scenarios(path)
    assert words in str(caught.value)
    assert "mine.py" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", ("a", 1)),
        ("a=1,2.5", ("a", [1, 2.5])),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=zstd", ("a", "zstd")),
        ("a=none,lz4", ("a", ["none", "lz4"])),
        ("a=true", ("a", True)),
        ("a=False", ("a", False)),
        ("rate=10,20", ("rate", [10, 20])),
        ("rate=poisson:10,20", ("rate", "poisson:10,20")),
    ],
)
def test_set_values_are_read_as_a_person_means_them(text: str, expected: tuple[str, object]) -> None:
    """Numbers, booleans and words, with commas for a sweep."""
    assert parse_set(text) == expected


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50", Rate.fixed(50)),
        ("fixed:50,60", Rate.fixed([50, 60])),
        ("poisson:50", Rate.poisson(50)),
        ("ramp:10:900", Rate.ramp(10, 900)),
        ("burst:50:2,9:0.5:3", Rate.burst(50, [2, 9], 0.5, 3)),
        ("saturate", Rate.saturate()),
        ("search", Rate.search()),
        ("search:12.5", Rate.search(12.5)),
        ("curve:0.5,0.9", Rate.curve([0.5, 0.9])),
    ],
)
def test_set_names_every_kind_of_rate(text: str, rate: Rate) -> None:
    """By its name and what it takes, with colons between; commas make a sweep of one of them."""
    assert apply_sets(BOTH, [parse_set(f"rate={text}")]).rate == rate
    poisson = BOTH.model_copy(update={"rate": Rate.poisson(1)})
    assert apply_sets(poisson, [("rate", 7)]).rate == Rate.poisson(7)  # a number alone leaves the kind


def test_set_changes_the_knob_and_keeps_the_rest() -> None:
    """A replaced knob is checked like any other; what was given before stays."""
    changed = apply_sets(BOTH, [("kafka.linger_ms", 3), ("prefetch", [1, 2]), ("rate", 50), ("size_bytes", 64)])
    assert changed.kafka == Kafka(linger_ms=3)
    assert changed.rabbitmq == RabbitMQ(prefetch=[1, 2])
    assert changed.rate == Rate.fixed(50)
    assert changed.message.size_bytes == 64
    assert changed.consumers == BOTH.consumers


@pytest.mark.parametrize("part", [Scenario, Message, RabbitMQ, Kafka], ids=lambda part: part.__name__)
def test_set_may_name_whatever_can_be_swept(part: type[Part]) -> None:
    """By the models themselves: a knob that takes a list is known, as the part's that has it."""
    prefix = "" if part is Scenario else part.__name__.lower()
    swept = [name for name, field in fields(part) if values_of(field)[2]]
    assert len(swept) > 3
    for name in swept:
        assert _locate(BOTH, f"{prefix}.{name}" if prefix else name) == (prefix, name)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (("bogus", 1), "no such knob"),
        (("driver", "x"), "rabbitmq.driver or kafka.driver"),
        (("kafka.acks", 7), "acks = 7"),
        (("rate", "fast"), "rate=fast: expected messages a second, .* ramp:from_msgs_per_s:to_msgs_per_s"),
        (("rate", "ramp:5"), "rate=ramp:5: expected rate=ramp:from_msgs_per_s:to_msgs_per_s"),
        (("rate", "burst:5:2:1:1:9"), "expected rate=burst:msgs_per_s:times:burst_s:every_s"),
        (("rate", "poisson:soon"), "msgs_per_s = 'soon'"),
        (("durability", "flushd"), "flushd"),
    ],
)
def test_a_set_that_cannot_be_is_one_line(pair: tuple[str, object], words: str) -> None:
    """A wrong `--set` says what is wrong with it."""
    with pytest.raises(ScenarioError, match=words):
        apply_sets(BOTH, [pair])
