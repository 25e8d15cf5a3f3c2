"""Kafka's knobs of consumers took effect: committed offsets and group as the broker tells them, requests as seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import ConsumerGroupState, ConsumerGroupType
from confluent_kafka.admin import AdminClient
from kafkabench import CLIENT, WIRE, Bench, payloads_of, receive, send
from kafkawire import OFFSET_COMMIT, watched
from patience import until

from loadgen.drivers.kafka_config import client_settings
from loadgen.scenario import Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confluent_kafka.admin import ConsumerGroupDescription

    from loadgen.driver import Driver, Target
    from loadgen.endpoint import Endpoint

SMALL = Message(size_bytes=100)
BOTH = pytest.mark.parametrize("driver", [WIRE, CLIENT], ids=lambda driver: driver.name)


@pytest.fixture(scope="module")
def bench(kafka_endpoint: Endpoint) -> Iterator[Bench]:
    """The session's broker."""
    made = Bench(kafka_endpoint)
    yield made
    made.close()


def filled(target: Target, count: int) -> None:
    """Put messages into a topic."""
    producer = WIRE.producer(target, payloads_of(SMALL))
    send(producer, count)
    producer.close()


def described(target: Target) -> ConsumerGroupDescription:
    """The group as its coordinator describes it."""
    asking = AdminClient(client_settings(target.endpoint))
    return asking.describe_consumer_groups([target.group])[target.group].result(60)  # type: ignore[no-any-return]


@BOTH
@pytest.mark.parametrize("mode", ["sync", "async", "auto"])
def test_commit_modes(bench: Bench, driver: Driver, mode: str) -> None:
    """Each batch is committed (sync: before the next one, async: soon), or none before the interval has passed."""
    target = bench.target(commit_mode=mode, max_poll_records=100, auto_commit_interval_ms=60_000)
    filled(target, 500)
    with watched(bench.endpoint) as (by_proxy, seen):
        consumer = driver.consumer(bench.by(target, by_proxy), 0, 1)
        done = 0
        while done < 500:
            done += sum(len(each.starts) for each in consumer.receive(1))
            consumer.settle()
            if mode == "sync":
                assert bench.admin.committed(target, target.group, [0]) == ({0: done} if done else {})
        if mode == "async":
            assert until(lambda: bool(consumer.receive(0.01) or bench.admin.depth(target) == 0))
        commits = len(seen.of(OFFSET_COMMIT))
        assert {"sync": commits >= 5, "async": commits >= 1, "auto": commits == 0}[mode]
        consumer.close()
    assert bench.admin.depth(target) == 0


@BOTH
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_committed_before_it_is_handed_out(bench: Bench, driver: Driver, mode: str) -> None:
    """With commit = before, what was handed out is committed without being settled: at most once."""
    target = bench.target(commit="after", commit_mode=mode, max_poll_records=100)
    target = bench.by(target, commit="before")
    filled(target, 300)
    consumer = driver.consumer(target, 0, 1)
    handed = 0
    while handed < 300:
        handed += sum(len(each.starts) for each in consumer.receive(1))
        assert mode == "async" or bench.admin.committed(target, target.group, [0]) == ({0: handed} if handed else {})
    assert until(lambda: bool(consumer.receive(0.01)) or bench.admin.depth(target) == 0)
    consumer.close()


def test_the_wire_drivers_group_has_no_members(bench: Bench) -> None:
    """Static is what it says: partitions are taken by number, and the group holds offsets only."""
    target = bench.target(partitions=2, commit_mode="sync", group_protocol="static")
    filled(target, 200)
    for driver in (WIRE, CLIENT):
        consumers = [driver.consumer(target, index, 2) for index in range(2)]
        if driver is WIRE:
            got = receive(consumers, payloads_of(SMALL), lambda got: len(got.seqs) == 200)  # type: ignore[arg-type]
            assert got.seqs == list(range(200))
        else:  # goes on from what the other has committed
            assert [consumer.receive(0.3) for consumer in consumers] == [[], []]
        group = described(target)
        assert (group.state, group.members) == (ConsumerGroupState.EMPTY, [])
        for consumer in consumers:
            consumer.close()
    assert bench.admin.depth(target) == 0


@pytest.mark.parametrize(
    ("driver", "protocol"),
    [(CLIENT, "classic"), (CLIENT, "consumer"), (WIRE, "consumer")],
    ids=["confluent classic", "confluent consumer", "kafka consumer"],
)
def test_group_protocols(bench: Bench, driver: Driver, protocol: str) -> None:
    """The coordinator tells the protocol, two members that share the partitions, and what they committed."""
    target = bench.target(partitions=4, group_protocol=protocol, auto_commit_interval_ms=50)
    consumers = [driver.consumer(target, index, 2) for index in range(2)]
    filled(target, 2_000)
    got = receive(consumers, payloads_of(SMALL), lambda got: len(got.seqs) >= 2_000)  # type: ignore[arg-type]
    assert sorted(set(got.seqs)) == list(range(2_000))
    for _ in range(2):
        assert until(lambda: all(consumer.receive(0.05) is not None for consumer in consumers) and shares(target))
    group = described(target)
    expected = {"classic": ConsumerGroupType.CLASSIC, "consumer": ConsumerGroupType.CONSUMER}[protocol]
    assert (group.type, group.state) == (expected, ConsumerGroupState.STABLE)
    for consumer in consumers:
        consumer.close()
    assert bench.admin.depth(target) == 0


def shares(target: Target) -> bool:
    """Whether the group is stable, with two partitions for each of two members."""
    group = described(target)
    given = [len(member.assignment.topic_partitions) for member in group.members]
    return group.state == ConsumerGroupState.STABLE and given == [2, 2]


@pytest.mark.parametrize("mode", ["sync", "auto"])
def test_a_member_that_leaves_gives_its_partitions_to_the_others(bench: Bench, mode: str) -> None:
    """They go on after what it had worked on, committed or not before it left: nothing comes twice or is left out."""
    knobs = {"group_protocol": "consumer", "commit_mode": mode, "auto_commit_interval_ms": 60_000}
    target = bench.target(partitions=4, partitioner="round_robin", max_poll_records=50, **knobs)
    consumers = [WIRE.consumer(target, index, 2) for index in range(2)]
    filled(target, 2_000)
    first = receive(consumers, payloads_of(SMALL), lambda got: len(got.by_partition) >= 3 and shares(target))
    assert len(first.by_partition) >= 3, "both have read"
    consumers[0].close()
    left = 2_000 - len(first.seqs)
    rest = receive(consumers[1:], payloads_of(SMALL), lambda got: len(got.seqs) >= left)
    assert sorted(first.seqs + rest.seqs) == list(range(2_000))
    assert consumers[1].receive(0.1) == []
    consumers[1].close()
    assert bench.admin.depth(target) == 0


@pytest.mark.parametrize("mode", ["sync", "async", "auto"])
def test_a_member_that_the_group_forgot_commits_nothing_more(bench: Bench, mode: str) -> None:
    """Its partition is another's, who has come further: what it worked on since takes no committed offset back."""
    knobs = {"group_protocol": "consumer", "commit_mode": mode, "auto_commit_interval_ms": 20, "max_poll_records": 50}
    target = bench.target(**knobs)
    filled(target, 200)
    forgotten = WIRE.consumer(target, 0, 2)
    receive([forgotten], payloads_of(SMALL), lambda got: len(got.seqs) >= 50)
    assert until(lambda: bench.admin.committed(target, target.group, [0]) == {0: 50} or forgotten.attend())  # type: ignore[attr-defined]
    assert forgotten.receive(5), "worked on while another takes over"
    forget(forgotten, target)
    other = WIRE.consumer(target, 1, 2)
    rest = receive([other], payloads_of(SMALL), lambda got: len(got.seqs) >= 150)
    assert rest.seqs == list(range(50, 200))
    assert until(lambda: bench.admin.depth(target) == 0 or other.receive(0.01))
    member = forgotten._member  # type: ignore[attr-defined]

    def has_heard() -> bool:
        forgotten.settle()
        forgotten.receive(0.02)  # what had been fetched before
        other.receive(0.02)
        assert bench.admin.committed(target, target.group, [0]) == {0: 200}
        return member.incarnation > 0 and member.epoch > 0

    assert until(has_heard)
    other.close()
    got = receive([forgotten], payloads_of(SMALL), lambda _: forgotten._reads == {0})  # type: ignore[attr-defined]
    assert got.seqs == [], "it comes back to what the other has committed"
    forgotten.close()
    assert bench.admin.depth(target) == 0


@pytest.mark.parametrize("mode", ["sync", "auto"])
def test_a_member_that_comes_back_reads_on_from_what_is_committed(bench: Bench, mode: str) -> None:
    """Forgotten and given the same again between two looks: what was not committed comes again, and it owns it."""
    knobs = {"group_protocol": "consumer", "commit_mode": mode, "auto_commit_interval_ms": 60_000}
    target = bench.target(**knobs, max_poll_records=50)
    filled(target, 200)
    consumer = WIRE.consumer(target, 0, 1)
    first = receive([consumer], payloads_of(SMALL), lambda got: len(got.seqs) >= 100)
    kept = 100 if mode == "sync" else 0
    assert bench.admin.committed(target, target.group, [0]) == ({0: kept} if kept else {})
    forget(consumer, target)
    member = consumer._member  # type: ignore[attr-defined]
    member.ask_soon()
    assert until(lambda: consumer.attend() or (member.incarnation >= 1 and member.partitions == {0}))  # type: ignore[attr-defined]
    rest = receive([consumer], payloads_of(SMALL), lambda got: len(got.seqs) >= 200 - kept)
    assert first.seqs == list(range(100))
    assert rest.seqs == list(range(kept, 200))
    assert rest.again == list(range(kept, 100))
    assert member._owned == {0}
    consumer.close()
    assert bench.admin.depth(target) == 0


def forget(consumer: Any, target: Target) -> None:
    """Have the group forget a member that does not know, as if its session had ended."""
    coordinator = consumer._cluster.coordinator(target.group)
    coordinator.call(consumer._member.request(-1))
    coordinator.close()
