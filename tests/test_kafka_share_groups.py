"""Share groups on a real broker: one partition, many consumers, each record acknowledged by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from kafkabench import CLIENT, WIRE, Bench, payloads_of, receive, send
from kafkawire import watched
from kio.schema.share_group_describe.v1.request import ShareGroupDescribeRequest
from kio.schema.types import GroupId
from patience import until

from loadgen.drivers.kafka_share_admin import FEATURE, ShareGroups
from loadgen.drivers.wire.kafka_protocol import Connection
from loadgen.scenario import Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Driver, Target
    from loadgen.endpoint import Endpoint

SMALL = Message(size_bytes=100)
SHARE_FETCH, SHARE_ACKNOWLEDGE = 78, 79
BOTH = pytest.mark.parametrize("driver", [WIRE, CLIENT], ids=lambda driver: driver.name)


@pytest.fixture(scope="module")
def bench(kafka_endpoint: Endpoint) -> Iterator[Bench]:
    """The session's broker."""
    made = Bench(kafka_endpoint)
    yield made
    made.close()


def filled(target: Target, count: int, step: int = 20) -> None:
    """Put messages into a topic, in batches of `step`."""
    producer = WIRE.producer(target, payloads_of(SMALL))
    for first in range(0, count, step):
        send(producer, step, first)
    producer.close()


def described(target: Target) -> Any:
    """The share group as its coordinator describes it."""
    connection = Connection(target.endpoint, *target.endpoint.hosts[0])
    try:
        request = ShareGroupDescribeRequest(group_ids=(GroupId(target.group),), include_authorized_operations=False)
        return connection.call(request).groups[0]
    finally:
        connection.close()


def undone(target: Target) -> int | None:
    """How many records the group is not done with, as the broker tells it."""
    return ShareGroups(target.endpoint).lags(target.group, target.name, [0]).get(0)


def test_the_broker_has_share_groups_as_it_is_shipped(bench: Bench) -> None:
    """Their feature is on in a cluster that nobody changed: no deviation is needed."""
    assert ShareGroups(bench.endpoint).features()[FEATURE] >= 1
    assert not [each for each in bench.endpoint.deviations if "share.version" in each or "group.share" in each]


def test_the_group_is_configured_as_asked_for(bench: Bench) -> None:
    """The group's own configuration is what its knobs say, and begins at the beginning."""
    target = bench.target(
        group="share", share_delivery_count_limit=3, share_partition_max_record_locks=500,
        share_record_lock_duration_ms=20_000, isolation_level="read_committed",
    )  # fmt: skip
    told = bench.admin.effective(target)
    assert told["share.auto.offset.reset"] == "earliest"
    assert told["share.isolation.level"] == "read_committed"
    assert (told["share.delivery.count.limit"], told["share.partition.max.record.locks"]) == ("3", "500")
    assert told["share.record.lock.duration.ms"] == "20000"


@BOTH
def test_consumers_outnumber_partitions(bench: Bench, driver: Driver) -> None:
    """Three members read the one partition, each gets some of it, nothing comes twice, and all of it is done."""
    target = bench.target(group="share", max_poll_records=20)
    consumers = [driver.consumer(target, index, 3) for index in range(3)]
    assert until(lambda: len(described(target).members) == 3)
    assert bench.admin.gauge(target).consumers == 3
    filled(target, 1_200)
    shares: list[int] = [0, 0, 0]
    seqs: list[int] = []
    payloads = payloads_of(SMALL)

    def take_in_turn() -> bool:
        for index, consumer in enumerate(consumers):
            got = receive_once(consumer, payloads)
            shares[index] += len(got)
            seqs.extend(got)
        return len(seqs) >= 1_200

    assert until(take_in_turn)
    assert sorted(seqs) == list(range(1_200))
    assert min(shares) > 0
    group = described(target)
    assert group.group_state == "Stable"
    assert [tuple(member.assignment.topic_partitions[0].partitions) for member in group.members] == [(0,)] * 3
    for consumer in consumers:
        consumer.close()
    assert until(lambda: undone(target) == 0)
    assert bench.admin.depth(target) == 0
    assert until(lambda: described(target).members == ())
    assert bench.admin.gauge(target).consumers == 0


def receive_once(consumer: Any, payloads: Any) -> list[int]:
    """One call, settled; the sequence numbers that it brought."""
    seqs: list[int] = []
    for batch in consumer.receive(0.05):
        seqs += payloads.parse(batch.buffer, batch.starts, batch.sizes).seq.tolist()
    consumer.settle()
    return seqs


@BOTH
def test_released_records_come_again_and_rejected_ones_do_not(bench: Bench, driver: Driver) -> None:
    """Every 10th is released at first: it comes once more, marked; every 25th is rejected: it came once, for good."""
    target = bench.target(group="share", release_every=10, reject_every=25, max_poll_records=50)
    filled(target, 400)
    consumer = driver.consumer(target, 0, 1)
    released = [seq for seq in range(400) if (seq + 1) % 10 == 0 and (seq + 1) % 25]
    got = receive([consumer], payloads_of(SMALL), lambda got: len(got.seqs) >= 400 + len(released))
    assert consumer.receive(0.3) == []
    consumer.close()
    assert got.seqs == sorted([*range(400), *released])
    assert sorted(got.again) == released
    assert until(lambda: undone(target) == 0)


@BOTH
def test_failing_records_come_until_the_limit(bench: Bench, driver: Driver) -> None:
    """Every 10th fails whenever it comes: the broker gives it up after as many deliveries as the group allows."""
    target = bench.target(group="share", fail_every=10, share_delivery_count_limit=3, max_poll_records=50)
    filled(target, 100)
    failing = [seq for seq in range(100) if (seq + 1) % 10 == 0]
    consumer = driver.consumer(target, 0, 1)
    got = receive([consumer], payloads_of(SMALL), lambda got: len(got.seqs) >= 100 + 2 * len(failing))
    assert consumer.receive(0.3) == []
    consumer.close()
    assert got.seqs == sorted([*range(100), *failing, *failing])
    assert until(lambda: undone(target) == 0)


@BOTH
@pytest.mark.parametrize("mode", ["auto", "sync", "async"])
def test_how_acknowledgements_are_sent(bench: Bench, driver: Driver, mode: str) -> None:
    """In passing with the next fetch, or by a request of their own, which sync waits for."""
    target = bench.target(group="share", commit_mode=mode, max_poll_records=50)
    filled(target, 200)
    with watched(bench.endpoint) as (by_proxy, seen):
        consumer = driver.consumer(bench.by(target, by_proxy), 0, 1)
        done = 0
        while done < 200:
            done += len(receive_once(consumer, payloads_of(SMALL)))
            if mode == "sync" and done:
                assert undone(target) == 200 - done

        def own() -> int:
            return sum(each.api == SHARE_ACKNOWLEDGE for each in seen.requests)

        if mode == "async":
            assert until(lambda: consumer.receive(0.05) or own() > 0)
        else:
            assert own() >= 4 if mode == "sync" else own() == 0
        consumer.close()
    assert until(lambda: undone(target) == 0)


def test_what_was_not_settled_goes_to_another(bench: Bench) -> None:
    """A consumer that leaves gives back what it had not settled, and it is marked when it comes again."""
    target = bench.target(group="share", max_poll_records=50)
    filled(target, 100)
    first = WIRE.consumer(target, 0, 2)
    assert until(lambda: bool(first.receive(0.2)))
    first.close()
    second = WIRE.consumer(target, 1, 2)
    got = receive([second], payloads_of(SMALL), lambda got: len(got.seqs) >= 100)
    second.close()
    assert got.seqs == list(range(100))
    assert 20 <= len(got.again) <= 60  # what it was handed, and what had been acquired with it: whole batches


@pytest.mark.parametrize("mode", ["batch_optimized", "record_limit"])
def test_acquire_modes(bench: Bench, mode: str) -> None:
    """A batch is handed to one consumer as a whole, or only as much of it as it may have at once."""
    target = bench.target(group="share", max_poll_records=10, share_acquire_mode=mode, batch_size=100_000)
    filled(target, 400, step=400)
    consumers = [WIRE.consumer(target, index, 2) for index in range(2)]
    assert until(lambda: len(described(target).members) == 2)
    payloads = payloads_of(SMALL)
    first: list[int] = []
    assert until(lambda: bool(first.extend(receive_once(consumers[0], payloads)) or first))
    second = receive_once(consumers[1], payloads)
    if mode == "record_limit":
        assert until(lambda: bool(second or second.extend(receive_once(consumers[1], payloads))))
    assert len(first) == 10
    assert second == ([] if mode == "batch_optimized" else list(range(10, 20)))
    rest = receive(consumers, payloads, lambda got: len(got.seqs) >= 400 - len(first) - len(second))
    assert sorted(first + second + rest.seqs) == list(range(400))
    assert rest.largest <= 10
    for consumer in consumers:
        consumer.close()


def test_committed_readers_of_a_share_group(bench: Bench) -> None:
    """With share.isolation.level = read_committed aborted records do not come, and the group is done with them."""
    target = bench.target(
        group="share", transaction_msgs=10, transaction_abort_every=2, isolation_level="read_committed"
    )
    producer = WIRE.producer(target, payloads_of(SMALL))
    send(producer, 100, step=10)
    producer.close()
    consumer = WIRE.consumer(target, 0, 1)
    got = receive([consumer], payloads_of(SMALL), lambda got: len(got.seqs) >= 50)
    consumer.receive(0.1)
    consumer.close()
    assert got.seqs == [seq for seq in range(100) if seq // 10 % 2 == 0]
    assert until(lambda: undone(target) == 0)
