"""Transactions on a real broker: what is kept, what is marked, what readers of either isolation level get."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from kafkabench import CLIENT, WIRE, Bench, payloads_of, receive, send, seqs_of
from kafkawire import PRODUCE, watched, written
from patience import until

from loadgen.drivers.kafka_config import ABORTED
from loadgen.drivers.wire.kafka_cluster import BACKOFF_S, Cluster, Coordinated
from loadgen.drivers.wire.kafka_protocol import feature_levels
from loadgen.drivers.wire.kafka_records import BatchHeader, committed
from loadgen.nullbroker import null_broker
from loadgen.scenario import Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Driver, Target
    from loadgen.drivers.wire.kafka_protocol import Connection
    from loadgen.endpoint import Endpoint

SMALL = Message(size_bytes=100)
ADD_PARTITIONS, END = 24, 26
SERVER_SIDE = "transaction.version"
DRIVERS = [WIRE, CLIENT]
BOTH = pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)


@pytest.fixture(scope="module")
def bench(kafka_endpoint: Endpoint) -> Iterator[Bench]:
    """The session's broker."""
    made = Bench(kafka_endpoint)
    made.target()  # its group is the cluster's first, perhaps: those without one are not waited for
    yield made
    made.close()


def ended(target: Target, transactions: int, partition: int = 0) -> list[BatchHeader]:
    """What a partition holds with the marks of so many transactions: they are written after EndTxn is answered."""
    batches: list[BatchHeader] = []

    def are_marked() -> bool:
        batches[:] = [each.header for each in written(target.endpoint, target.name, partition)]
        return sum(each.is_control for each in batches) >= transactions

    assert until(are_marked)
    assert sum(each.is_control for each in batches) == transactions
    return batches


@BOTH
def test_every_third_transaction_is_aborted(bench: Bench, driver: Driver) -> None:
    """The broker keeps and marks all; committed readers get two thirds, of whichever driver, others get everything."""
    target = bench.target(
        partitions=2, transaction_msgs=50, transaction_abort_every=3, partitioner="round_robin", grouped=False
    )
    producer = driver.producer(target, payloads_of(SMALL))
    settled = send(producer, 620, step=80)
    producer.close()
    aborted = [seq for seq in range(620) if seq // 50 % 3 == 2]
    kept = sorted(set(range(620)) - set(aborted))
    assert (seqs_of(settled), seqs_of(settled, ABORTED)) == (kept, aborted)
    assert {len(each.seqs) for each in settled[:-1]} == {50}
    for partition in range(2):
        batches = ended(target, 13, partition)
        assert all(each.is_transactional and each.producer_id >= 0 for each in batches)
        assert len({each.producer_id for each in batches}) == 1
    levels = {"read_committed": kept, "read_uncommitted": list(range(620))}
    for level, expected in levels.items():
        for reader in DRIVERS:
            consumer = reader.consumer(bench.by(target, isolation_level=level), 0, 1)
            wanted = len(expected)
            got = receive([consumer], payloads_of(SMALL), lambda got: len(got.seqs) >= wanted)  # noqa: B023
            assert got.seqs == expected
            assert all((np.diff(each) > 0).all() for each in got.by_partition.values())
            assert consumer.receive(0.1) == []
            consumer.close()


@BOTH
def test_nobody_sees_an_open_transaction(bench: Bench, driver: Driver) -> None:
    """What was sent is acknowledged and readable once its transaction has ended, here by a flush: not before."""
    target = bench.target(transaction_msgs=100, isolation_level="read_committed")
    producer = driver.producer(target, payloads_of(SMALL))
    producer.send(0, np.full(60, 1), 2)
    consumer = WIRE.consumer(target, 0, 1)
    assert until(lambda: not producer.poll(0.01) and bool(written(target.endpoint, target.name)))
    assert consumer.receive(0.3) == []
    assert producer.room_msgs == 40
    assert seqs_of(producer.flush(20)) == list(range(60))
    assert receive([consumer], payloads_of(SMALL), lambda got: len(got.seqs) == 60).seqs == list(range(60))
    producer.close()
    consumer.close()


@BOTH
def test_a_transaction_ends_when_its_time_is_over(bench: Bench, driver: Driver) -> None:
    """Without another message and without flush, `transaction_ms` after its first one."""
    target = bench.target(transaction_ms=30)
    assert target.settings["transaction_msgs"] == 1_000_000
    with watched(bench.endpoint) as (by_proxy, seen):
        producer = driver.producer(bench.by(target, by_proxy), payloads_of(SMALL))
        acked: list[int] = []
        for part in range(3):
            producer.send(part * 10, np.full(10, 1), 2)
            assert until(lambda: acked.extend(seqs_of(producer.poll(0.05))) or len(acked) == 10 * part + 10)  # noqa: B023
        producer.close()
    ends = [each for each in seen.requests if each.api == END]
    assert [each.said.committed for each in ends][:3] == [True, True, True]
    transactional = {each.transactional_id for each in seen.of(PRODUCE)}
    assert transactional == {f"{target.name}-0"}
    ended(target, 3)


@BOTH
def test_the_broker_adds_partitions_where_it_can(bench: Bench, driver: Driver) -> None:
    """Transactions are of the cluster's version: with 2 nobody asks for partitions, and each has the next epoch."""
    assert feature_levels(bench.endpoint, bench.endpoint.hosts)[SERVER_SIDE] == 2, "as Kafka 4 is shipped"
    target = bench.target(transaction_msgs=10, partitions=2, partitioner="round_robin")
    with watched(bench.endpoint) as (by_proxy, seen):
        producer = driver.producer(bench.by(target, by_proxy), payloads_of(SMALL))
        assert seqs_of(send(producer, 40, step=10)) == list(range(40))
        producer.close()
    asked = {each.api: each.version for each in seen.requests}
    is_new = driver is WIRE
    assert (ADD_PARTITIONS in asked, asked[PRODUCE] >= 12, asked[END] >= 5) == (not is_new, is_new, is_new)
    epochs = sorted({each.producer_epoch for each in seen.of(END)})
    assert epochs == [epochs[0] + step for step in range(4 if is_new else 1)]
    for partition in range(2):
        ended(target, 4, partition)


def test_what_cannot_be_stored_takes_its_transaction_along(bench: Bench) -> None:
    """A batch that the broker refuses aborts its transaction; the next ones go on under another epoch."""
    target = bench.target(
        transaction_msgs=10, max_message_bytes=5_000, batch_size=2_000, isolation_level="read_committed"
    )
    producer = WIRE.producer(bench.by(target, batch_size=50_000), payloads_of(Message(size_bytes=1_000)))
    settled = send(producer, 10, step=10)
    assert seqs_of(settled, "MESSAGE_TOO_LARGE") + seqs_of(settled, ABORTED) == list(range(10))
    producer.close()
    producer = WIRE.producer(target, payloads_of(Message(size_bytes=1_000)))
    producer._sender._needs_identity = True  # type: ignore[attr-defined]
    producer.send(0, np.full(4, 1), 2)
    settled = producer.flush(20)
    # Its first batch left at once, and with it the old epoch; what followed was part of the next transaction.
    assert seqs_of(settled, ABORTED)[:1] == [0]
    assert sorted(seqs_of(settled, ABORTED) + seqs_of(settled)) == list(range(4))
    assert seqs_of(send(producer, 20, first=4)) == list(range(4, 24))
    consumer = WIRE.consumer(target, 0, 1)
    kept = [*seqs_of(settled), *range(4, 24)]
    got = receive([consumer], payloads_of(Message(size_bytes=1_000)), lambda got: len(got.seqs) >= len(kept))
    assert got.seqs == kept
    producer.close()
    consumer.close()


def test_transactions_survive_their_connections(bench: Bench) -> None:
    """The coordinator's connection and the leader's break in mid-transaction: each message is there once."""
    target = bench.target(transaction_msgs=40, isolation_level="read_committed")
    producer = WIRE.producer(target, payloads_of(SMALL))
    acked: list[int] = []

    def has_room() -> bool:
        acked.extend(seqs_of(producer.poll(0.01)))
        return producer.room_msgs >= 20

    for part in range(10):
        for first in (part * 40, part * 40 + 20):
            assert until(has_room)
            producer.send(first, np.full(20, 1), 2)
            for connection in producer._sender.connections if part % 2 else []:  # type: ignore[attr-defined]
                with contextlib.suppress(OSError):  # the broker was faster
                    connection._socket.shutdown(socket.SHUT_RDWR)
            acked += seqs_of(producer.poll(0))
    acked += seqs_of(producer.flush(20))
    assert sorted(acked) == list(range(400))
    consumer = WIRE.consumer(target, 0, 1)
    assert receive([consumer], payloads_of(SMALL), lambda got: len(got.seqs) == 400).seqs == list(range(400))
    producer.close()
    consumer.close()


def test_a_null_broker_ends_transactions_too() -> None:
    """What the tool itself can do is measured with the same requests: all are answered, and every message comes."""
    with null_broker("kafka") as endpoint:
        bench = Bench(endpoint)
        target = bench.target(transaction_msgs=30, isolation_level="read_committed")
        consumer = WIRE.consumer(target, 0, 1)
        producer = WIRE.producer(target, payloads_of(SMALL))
        assert seqs_of(send(producer, 100)) == list(range(100))
        assert receive([consumer], payloads_of(SMALL), lambda got: len(got.seqs) == 100).seqs == list(range(100))
        producer.close()
        consumer.close()
        bench.close()


def test_a_broker_that_is_gone_is_asked_as_seldom_as_by_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that cannot go on asks ten times a second at the most, however often its producer is looked at."""
    asked: list[float] = []
    ask = Cluster.ask_coordinator

    def counted(cluster: Cluster, key: str, kind: Coordinated = "group") -> Connection:
        asked.append(time.monotonic())
        return ask(cluster, key, kind)

    with null_broker("kafka") as endpoint:
        bench = Bench(endpoint)
        target = bench.target(transaction_msgs=30)
        producer = WIRE.producer(target, payloads_of(SMALL))
        producer.send(0, np.full(10, 1), 2)
        consumer = WIRE.consumer(bench.by(target, isolation_level="read_uncommitted"), 0, 1)
        assert until(lambda: not producer.poll(0.05) and bool(consumer.receive(0.05)))
        assert producer.poll(0.5) == []
        consumer.close()
        bench.close()
    monkeypatch.setattr(Cluster, "ask_coordinator", counted)
    assert producer.flush(1) == []
    producer.close()
    assert asked
    assert min(np.diff(asked), default=1) >= BACKOFF_S


def test_aborted_batches_are_those_between_first_offset_and_mark() -> None:
    """A producer's batches are left out from its aborted transaction's first offset to its mark, others' are kept."""
    mark = bytearray(100)
    mark[61:71] = bytes([20, 0, 0, 0, 8, 0, 0, 0, 0, 12])  # a record whose key is version 0, type 0: abort

    def batch(offset: int, producer: int, attributes: int) -> BatchHeader:
        return BatchHeader(0, 100, offset, 0, 1, attributes, producer)

    log = [
        batch(0, 1, 0x10),
        batch(1, 2, 0x10),
        batch(2, -1, 0),
        batch(3, 1, 0x30),
        batch(4, 1, 0x10),
        batch(5, 2, 0x10),
    ]
    kept = committed(memoryview(mark), log, [(1, 0)])
    assert [each.base_offset for each in kept] == [1, 2, 3, 4, 5]
    kept = committed(memoryview(mark), log, [(2, 5), (1, 0)])
    assert [each.base_offset for each in kept] == [1, 2, 3, 4]
