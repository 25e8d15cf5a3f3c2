"""Scenarios: frozen, checked when they are built, each mistake one clear line."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from loadgen import Durability, FromFile, Kafka, LogNormal, Message, RabbitMQ, Rate, Scenario, Uniform
from loadgen.errors import ScenarioError
from loadgen.knobs import points


def scenario(**changes: object) -> Scenario:
    """A small valid scenario, changed."""
    values: dict[str, object] = {
        "name": "some-thing",
        "question": "How fast?",
        "rate": Rate.saturate(),
        "rabbitmq": RabbitMQ(),
        "kafka": Kafka(),
    }
    return Scenario(**{**values, **changes})


MISTAKES = [
    (lambda: RabbitMQ(prefetch=-1), ("RabbitMQ", "prefetch", "-1", "0")),
    (lambda: RabbitMQ(prefetch=[1, 70_000]), ("prefetch", "70000", "65535")),
    (lambda: RabbitMQ(prefech=1), ("prefech", "no such knob", "prefetch")),
    (lambda: RabbitMQ(prefetch=[]), ("prefetch", "at least 1 item")),
    (lambda: RabbitMQ(queue_type="quorumm"), ("queue_type", "quorumm", "classic", "quorum")),
    (lambda: Kafka(acks=2), ("Kafka", "acks", "2", "all")),
    (lambda: Kafka(linger_ms="soon"), ("linger_ms", "soon", "number")),
    (lambda: Kafka(compression_type=["zst"]), ("compression_type", "zst", "zstd")),
    (lambda: Message(size_bytes=3), ("size_bytes", "3", "24")),
    (lambda: Message(compressibility=2), ("compressibility", "0.95")),
    (lambda: Rate.fixed(-1), ("msgs_per_s", "-1", "greater than 0")),
    (lambda: Uniform(min_bytes=100, max_bytes=50), ("min_bytes 100", "max_bytes 50")),
    (lambda: FromFile(path=Path("no-such-file")), ("no-such-file", "one size in bytes a line")),
    (lambda: scenario(name="Not A Name"), ("name", "Not A Name")),
    (lambda: scenario(durability="flushd"), ("durability", "flushd", "flushed")),
    (lambda: scenario(rabbitmq=None, kafka=None), ("rabbitmq=RabbitMQ", "kafka=Kafka")),
    (
        lambda: scenario(durability="replicated", kafka=Kafka(replication_factor=2)),
        ("kafka.replication_factor", "class `replicated`"),
    ),
    (
        lambda: scenario(durability="replicated", kafka=Kafka(min_insync_replicas=1)),
        ("kafka.min_insync_replicas", "class `replicated`"),
    ),
    (
        lambda: scenario(durability="replicated_flushed", kafka=Kafka(min_insync_replicas=[2, 4])),
        ("kafka.min_insync_replicas = 4", "at most replication_factor"),
    ),
    (
        lambda: scenario(rabbitmq=RabbitMQ(quorum_initial_group_size=3), durability="flushed"),
        ("rabbitmq.quorum_initial_group_size = 3", "this class has 1 node"),
    ),
    (
        lambda: scenario(rabbitmq=RabbitMQ(quorum_initial_group_size=1)),
        ("rabbitmq.quorum_initial_group_size = 1", "knob of quorum queues"),
    ),
    (lambda: scenario(kafka=Kafka(acks=0)), ("kafka.acks", "'0'", "class `broker`")),
    (lambda: scenario(rabbitmq=RabbitMQ(confirms=False)), ("rabbitmq.confirms", "class `broker`")),
    (
        lambda: scenario(durability="flushed", rabbitmq=RabbitMQ(persistent=False)),
        ("rabbitmq.persistent", "class `flushed`"),
    ),
    (lambda: scenario(durability="flushed", rabbitmq=RabbitMQ(prefetch=0)), ("prefetch", "quorum", "2000")),
    (
        lambda: scenario(kafka=Kafka(max_in_flight_requests_per_connection=6, enable_idempotence=True)),
        ("max_in_flight", "at most 5"),
    ),
    (lambda: scenario(kafka=Kafka(acks=1, enable_idempotence=True)), ("enable_idempotence", "acks = all")),
    (lambda: scenario(rabbitmq=RabbitMQ(prefetch=5, ack_every=50)), ("ack_every", "50", "prefetch")),
    (lambda: RabbitMQ(prefetch=[100, 100]), ("prefetch", "100 stands in the sweep twice")),
    (lambda: Kafka(acks=["1", 1]), ("acks", "'1' stands in the sweep twice")),
    (lambda: Rate.fixed([10, 20, 10.0]), ("msgs_per_s", "10.0 stands in the sweep twice")),
    (lambda: Rate.fixed([]), ("msgs_per_s", "at least 1 item")),
    (lambda: Rate.burst(10, 1, 1, 2), ("burst_times = 1", "greater than or equal to 2")),
    (lambda: Rate.burst(10, [2, 2], 1, 2), ("burst_times", "2 stands in the sweep twice")),
    (lambda: Rate.burst(10, 2, 3, 3), ("burst_s = 3", "less than every_s = 3")),
    (lambda: Rate(kind="fixed", msgs_per_s=5, burst_s=1), ("only Rate.burst has bursts",)),
    (lambda: Rate(kind="burst", msgs_per_s=5, burst_s=1, every_s=2), ("only Rate.burst has bursts", "burst_times")),
    (lambda: Message(size_bytes=[64, 64]), ("size_bytes", "64 stands in the sweep twice")),
    (lambda: Message(size_bytes=[]), ("size_bytes", "at least 1 item")),
    (lambda: scenario(durability=["none", "none"]), ("durability", "stands in the sweep twice")),
    (lambda: scenario(producers=[]), ("producers", "at least 1 item")),
    (
        lambda: scenario(message=Message(size_bytes=[100, 1 << 20])),
        ("message.size_bytes", "1048576", "kafka takes at most 1048495", "message.max.bytes = 1048588"),
    ),
    (
        lambda: scenario(message=Message(size_bytes=Uniform(min_bytes=24, max_bytes=2_000_000))),
        ("message.size_bytes", "2000000", "at most"),
    ),
    (lambda: scenario(kafka=Kafka(batch_size=2_000_000)), ("kafka.batch_size", "2000000", "1048588")),
    (lambda: scenario(kafka=Kafka(batch_size=9_000, buffer_memory=8_000)), ("batch_size", "9000", "buffer_memory")),
    (lambda: scenario(consumers=[1, 3], kafka=Kafka(partitions=2)), ("kafka.partitions = 2", "consumers = 3")),
    (lambda: scenario(kafka=None, message=Message(keys=5)), ("message.keys = 5", "RabbitMQ")),
    (lambda: scenario(kafka=Kafka(commit="before")), ("kafka.commit", "'before'", "class `broker`")),
    (lambda: Message(key_exponent=1), ("key_exponent = 1", "keys ≥ 1")),
    (lambda: Message(keys=[10, 0], key_exponent=[0, 2]), ("key_exponent = 2", "keys ≥ 1")),
    (lambda: Message(keys=[7, 7]), ("keys", "7 stands in the sweep twice")),
    (lambda: Message(compressibility=[0.5, 1]), ("compressibility", "0.95")),
    (lambda: scenario(kafka=None, message=Message(keys=[0, 5])), ("message.keys = [0, 5]", "RabbitMQ")),
    (lambda: scenario(kafka=Kafka(partitioner="murmur2")), ("kafka.partitioner = murmur2", "message.keys ≥ 1")),
    (
        lambda: scenario(message=Message(keys=5), kafka=Kafka(partitioner="sticky", driver="confluent")),
        ("kafka.partitioner = sticky", "driver = kafka"),
    ),
    (lambda: scenario(kafka=Kafka(replication_factor=3)), ("kafka.replication_factor = 3", "at most 1")),
    (lambda: scenario(kafka=Kafka(min_insync_replicas=2)), ("kafka.min_insync_replicas = 2", "replication_factor = 1")),
    (
        lambda: scenario(kafka=Kafka(max_message_bytes=20_000), message=Message(size_bytes=20_000)),
        ("message.size_bytes = 20000", "max_message_bytes = 20000"),
    ),
    (lambda: scenario(kafka=Kafka(segment_bytes=1_000)), ("segment_bytes", "1000", "1048576")),
    (lambda: scenario(kafka=Kafka(transaction_abort_every=2)), ("transaction_abort_every = 2", "transaction_msgs")),
    (
        lambda: scenario(kafka=Kafka(transaction_ms=10, enable_idempotence=False)),
        ("transaction_ms", "enable_idempotence = True"),
    ),
    (lambda: scenario(durability="none", kafka=Kafka(transaction_msgs=10)), ("transaction_msgs", "acks = all")),
    (lambda: scenario(kafka=Kafka(release_every=10)), ("kafka.release_every = 10", "group = share")),
    (
        lambda: scenario(kafka=Kafka(group="share", group_protocol="classic")),
        ("kafka.group_protocol = classic", "group = partitions"),
    ),
    (lambda: scenario(consumers=3), ("kafka.partitions = 1", "at least 3", "group = share")),
    *(
        (
            lambda knob=knob, given=given: scenario(rabbitmq=RabbitMQ(**{knob: 5}), **given),
            (f"rabbitmq.{knob} = 5", "automatic acknowledgement", "ack = manual", f"no {knob}"),
        )
        for knob, given in (("prefetch", {"durability": "none"}), ("ack_every", {"durability": ["broker", "none"]}))
    ),
    (
        lambda: scenario(kafka=Kafka(group="share", max_partition_fetch_bytes=1_000)),
        ("kafka.max_partition_fetch_bytes = 1000", "share group", "max_poll_records", "group = partitions"),
    ),
    (lambda: scenario(think_ms=-1), ("think_ms", "-1", "greater than or equal to 0")),
    (lambda: scenario(think="slowly"), ("think", "slowly", "exponential")),
    (lambda: scenario(think_ms=1, think_spread=0.5), ("think_spread", "0.5", "greater than or equal to 1")),
    (lambda: scenario(think_spread=4), ("think_spread = 4", "think_ms = 0", "think_ms > 0")),
    (lambda: scenario(think_ms=1, think_spread=4), ("think_spread = 4", "consumers = 1", "consumers ≥ 2")),
    (lambda: scenario(subscribers=0), ("subscribers = 0", "greater than or equal to 1")),
    (lambda: scenario(subscribers=[1, 2], consumers=0), ("subscribers = 2", "nobody consumes", "consumers ≥ 1")),
    (lambda: scenario(subscribers=2, consumers=200, kafka=None), ("subscribers = 2", "consumers = 200", "256")),
    (
        lambda: scenario(subscribers=2, rabbitmq=RabbitMQ(exchange="default")),
        ("rabbitmq.exchange = default", "subscribers = 2", "fanout, direct, topic or headers"),
    ),
    (
        lambda: scenario(subscribers=2, rabbitmq=RabbitMQ(exchange="consistent-hash", queues=2)),
        ("rabbitmq.exchange = consistent-hash", "subscribers = 2", "expected direct or topic"),
    ),
    (
        lambda: scenario(rabbitmq=RabbitMQ(exchange="fanout", queues=3)),
        ("rabbitmq.queues = 3", "fanout", "direct or topic, or consistent-hash"),
    ),
    (lambda: scenario(rabbitmq=RabbitMQ(exchange="headers", queues=3)), ("rabbitmq.queues = 3", "headers")),
    (lambda: scenario(rabbitmq=RabbitMQ(bindings=5)), ("rabbitmq.bindings = 5", "default exchange", "topic")),
    (
        lambda: scenario(rabbitmq=RabbitMQ(exchange="consistent-hash", bindings=5)),
        ("rabbitmq.bindings = 5", "weight", "expected 1"),
    ),
    (lambda: scenario(rabbitmq=RabbitMQ(exchange="amq.topic")), ("exchange = 'amq.topic'", "'topic'")),
    (lambda: scenario(rabbitmq=RabbitMQ(queues=257)), ("queues = 257", "256")),
]


@pytest.mark.parametrize(("make", "words"), MISTAKES)
def test_each_mistake_is_one_line_that_names_knob_value_and_what_is_allowed(
    make: object, words: tuple[str, ...]
) -> None:
    """A mistake raises ScenarioError in one line with the knob, the value and the alternatives."""
    with pytest.raises(ScenarioError) as caught:
        make()  # type: ignore[operator]
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_scenario_cannot_be_changed() -> None:
    """A scenario that was checked stays as it was."""
    with pytest.raises(ValueError, match="frozen"):
        scenario().producers = 5  # type: ignore[misc]


def test_lists_are_sweeps_over_their_whole_product() -> None:
    """Every combination of the lists is one point, and names the values that vary."""
    swept = scenario(durability=["flushed", "broker"], rabbitmq=RabbitMQ(prefetch=[1, 10, 100]), kafka=Kafka(acks=None))
    found = list(points(swept))
    rabbitmq = [point for point in found if point.broker == "rabbitmq"]
    assert len(rabbitmq) == 6
    assert {(str(p.durability), p.settings["prefetch"]) for p in rabbitmq} == {
        (d, n) for d in ("flushed", "broker") for n in (1, 10, 100)
    }
    assert all(set(point.swept) == {"durability", "rabbitmq.prefetch"} for point in rabbitmq)
    assert len([point for point in found if point.broker == "kafka"]) == 2


def test_what_a_message_is_made_of_is_swept_alike_for_both_brokers() -> None:
    """Each combination is a point of either broker, with one value each; keys give Kafka its partitioner."""
    message = Message(size_bytes=[64, 128], compressibility=[0, 0.5], keys=[1, 10], key_exponent=[0, 1])
    told = [tuple(point.message.model_dump().values()) for point in points(scenario(message=message))]
    assert told == 2 * list(product([64, 128], [0, 0.5], [1, 10], [0, 1]))
    assert [point.swept for point in points(scenario(message=message))][-1] == {
        "size_bytes": 128, "compressibility": 0.5, "keys": 10, "key_exponent": 1,
    }  # fmt: skip
    found = [point for point in points(scenario(message=Message(keys=[0, 5]))) if point.broker == "kafka"]
    assert [point.settings["partitioner"] for point in found] == ["sticky", "murmur2"]


@pytest.mark.parametrize(
    ("durability", "rabbitmq", "kafka"),
    [
        ("none", {"confirms": False, "persistent": False, "ack": "automatic"}, {"acks": "0", "commit": "before"}),
        ("broker", {"confirms": True, "persistent": True, "mandatory": False}, {"acks": "all", "commit": "after"}),
        ("flushed", {"confirms": True, "queue_type": "quorum"}, {"acks": "all", "flush_messages": 1}),
    ],
)
def test_a_class_sets_what_it_promises(durability: str, rabbitmq: dict[str, object], kafka: dict[str, object]) -> None:
    """The durability class decides the knobs that carry its promise, on both brokers."""
    by_broker = {point.broker: point.settings for point in points(scenario(durability=Durability(durability)))}
    assert rabbitmq.items() <= by_broker["rabbitmq"].items()
    assert kafka.items() <= by_broker["kafka"].items()


def test_a_class_may_keep_more_than_it_promises() -> None:
    """What promises more than the class can be swept beside what the class demands; what promises less is refused."""
    none = scenario(
        durability="none", rabbitmq=RabbitMQ(confirms=[False, True]), kafka=Kafka(acks=["0", "1", "all"])
    )  # fmt: skip
    found = list(points(none))
    assert [p.settings["confirms"] for p in found if p.broker == "rabbitmq"] == [False, True]
    assert [p.settings["acks"] for p in found if p.broker == "kafka"] == ["0", "1", "all"]
    more = scenario(rabbitmq=RabbitMQ(queue_type=["classic", "quorum"]), kafka=Kafka(flush_messages=[1, 100]))
    found = list(points(more))
    assert [p.settings["queue_type"] for p in found if p.broker == "rabbitmq"] == ["classic", "quorum"]
    assert [p.settings["flush_messages"] for p in found if p.broker == "kafka"] == [1, 100]
    whole = scenario(durability="replicated", kafka=Kafka(min_insync_replicas=[2, 3]))
    assert [p.settings["min_insync_replicas"] for p in points(whole) if p.broker == "kafka"] == [2, 3]
    with pytest.raises(ScenarioError, match="contradicts durability class `flushed`"):
        list(points(scenario(durability="flushed", rabbitmq=RabbitMQ(queue_type="classic"))))


def test_what_nobody_chose_is_no_mistake() -> None:
    """A preset's prefetch and fetch size, and the defaults, stand beside knobs with which they do nothing."""
    scenario(durability=["none", "broker"], preset="throughput", kafka=Kafka(group="share"))
    scenario(durability="none", rabbitmq=RabbitMQ(ack="manual", prefetch=5, ack_every=5))


def test_a_knob_wins_over_the_preset() -> None:
    """A preset fills only the knobs that the scenario leaves open."""
    found = {p.broker: p.settings for p in points(scenario(preset="throughput", kafka=Kafka(linger_ms=1)))}
    assert found["kafka"]["linger_ms"] == 1
    assert found["kafka"]["batch_size"] == 262_144


@pytest.mark.parametrize("distribution", [Uniform(min_bytes=30, max_bytes=300), LogNormal(median_bytes=200, sigma=0.5)])
def test_sizes_follow_their_distribution_within_its_bounds(distribution: Uniform | LogNormal) -> None:
    """Drawn sizes have the stated mean and never leave the bounds."""
    sizes = Message(size_bytes=distribution).draw_sizes(np.random.default_rng(1), 20_000)
    assert sizes.min() >= 24
    assert sizes.max() <= distribution.max_bytes
    assert abs(sizes.mean() / distribution.mean_bytes - 1) < 0.03


def test_sizes_from_a_file_are_those_in_the_file(tmp_path: Path) -> None:
    """A file's sizes are drawn, and no others."""
    path = tmp_path / "sizes.txt"
    path.write_text("30\n40\n1000\n")
    sizes = Message(size_bytes=FromFile(path=path)).draw_sizes(np.random.default_rng(1), 1_000)
    assert set(sizes.tolist()) == {30, 40, 1000}


def test_a_scenario_survives_json() -> None:
    """What a run keeps of a scenario builds the same scenario again."""
    first = scenario(durability=["none", "broker"], message=Message(size_bytes=LogNormal(median_bytes=200, sigma=1)))
    assert Scenario(**first.model_dump(mode="json", exclude_none=True)) == first


def test_the_brokers_limits_leave_room_for_what_they_take() -> None:
    """The largest message that each broker takes as it is shipped is no mistake."""
    scenario(kafka=None, message=Message(size_bytes=512 << 20))  # what one of them is told to take, it tells itself
    scenario(rabbitmq=None, message=Message(size_bytes=1_048_495))
    scenario(message=Message(size_bytes=LogNormal(median_bytes=200, sigma=1)))


@pytest.mark.parametrize(("given", "kept"), [(0, "0"), (1, "1"), (-1, "all"), ("-1", "all"), ("all", "all")])
def test_acks_may_be_written_as_kafka_does(given: object, kept: str) -> None:
    """Numbers and words for the same promise come to the same knob."""
    assert Kafka(acks=given).acks == kept


@pytest.mark.parametrize(
    ("subscribers", "queues", "exchange"), [(1, 1, "default"), (1, 3, "default"), (2, 1, "fanout"), (2, 3, "direct")]
)
def test_the_exchange_that_nobody_chose_is_the_simplest_that_will_do(
    subscribers: int, queues: int, exchange: str
) -> None:
    """One subscriber needs no exchange of its own, several need one that copies, or that routes and copies."""
    made = scenario(subscribers=subscribers, rabbitmq=RabbitMQ(queues=queues))
    (found,) = {point.settings["exchange"] for point in points(made) if point.broker == "rabbitmq"}
    assert found == exchange


def test_subscribers_are_swept_and_keys_have_a_use_where_queues_share() -> None:
    """Both brokers get every number of subscribers; keys without Kafka need several queues."""
    swept = [(point.broker, point.subscribers, point.swept) for point in points(scenario(subscribers=[1, 2]))]
    assert swept == [(broker, count, {"subscribers": count}) for broker in ("rabbitmq", "kafka") for count in (1, 2)]
    scenario(kafka=None, message=Message(keys=5), rabbitmq=RabbitMQ(queues=2))
