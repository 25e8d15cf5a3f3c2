"""Kafka's knobs of topics and producers took effect: as the broker tells it, as it keeps it, or as a proxy sees it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from kafkabench import CLIENT, WIRE, Bench, payloads_of, receive, send, seqs_of
from kafkawire import FETCH, PRODUCE, watched, written
from patience import until

from loadgen.drivers.wire.kafka_batch import key_partitions, key_table
from loadgen.drivers.wire.kafka_codecs import CODECS
from loadgen.drivers.wire.kafka_consumer import KafkaConsumer
from loadgen.errors import BrokerError, ScenarioError
from loadgen.knobs import resolve
from loadgen.scenario import Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Driver, Received, Settled, Target
    from loadgen.endpoint import Endpoint

SMALL = Message(size_bytes=100)
KEYED = Message(size_bytes=60, keys=40)
BOTH = pytest.mark.parametrize("driver", [WIRE, CLIENT], ids=lambda driver: driver.name)


@pytest.fixture(scope="module")
def bench(kafka_endpoint: Endpoint) -> Iterator[Bench]:
    """The session's broker."""
    made = Bench(kafka_endpoint)
    yield made
    made.close()


def sent(driver: Driver, target: Target, message: Message, count: int, producer: int = 0) -> list[int]:
    """Send messages and close; those that were acknowledged."""
    made = driver.producer(target, payloads_of(message, producer))
    try:
        return seqs_of(send(made, count))
    finally:
        made.close()


def partitions_of(target: Target, message: Message, producer: int = 0) -> dict[int, list[int]]:
    """The sequence numbers that the broker keeps in each partition, in their order."""
    payloads = payloads_of(message, producer)
    found = {}
    for partition in range(target.settings["partitions"]):
        values = [value for batch in written(target.endpoint, target.name, partition) for value in batch.values]
        flat = np.frombuffer(b"".join(values), np.uint8)
        sizes = np.array([len(value) for value in values], np.int64)
        found[partition] = payloads.parse(flat, np.cumsum(sizes) - sizes, sizes).seq.tolist()
    return found


def test_the_topic_is_as_asked_for(bench: Bench) -> None:
    """Every knob of the topic is its configuration by the broker's own account."""
    knobs = {
        "retention_ms": 60_000, "retention_bytes": 5_000_000, "segment_bytes": 2_000_000, "max_message_bytes": 300_000,
        "flush_messages": None, "min_insync_replicas": 1, "replication_factor": 1, "partitions": 3,
    }  # fmt: skip
    told = bench.admin.effective(bench.target(**knobs))
    assert (told["retention.ms"], told["retention.bytes"], told["segment.bytes"]) == ("60000", "5000000", "2000000")
    assert (told["max.message.bytes"], told["min.insync.replicas"]) == ("300000", "1")
    assert (told["partitions"], told["replication.factor"]) == (3, 1)
    assert bench.admin.effective(bench.target(flush_messages=7))["flush.messages"] == "7"


def test_more_replicas_than_brokers_are_refused_in_one_line(bench: Bench) -> None:
    """A cluster that is smaller than a scenario says so by the broker's own word."""
    target = bench.by(bench.target(), replication_factor=2)
    with pytest.raises(BrokerError, match="INVALID_REPLICATION_FACTOR") as caught:
        bench.admin.create(type(target)(target.endpoint, f"{target.name}-more", target.settings))
    assert "\n" not in str(caught.value)


def test_segments_are_cut_at_their_size(bench: Bench) -> None:
    """A partition begins a new file whenever the next batch would not fit into `segment_bytes`."""
    target = bench.target(segment_bytes=1 << 20, batch_size=100_000)
    sent(WIRE, target, Message(size_bytes=50_000), 70)
    assert bench.endpoint.data_dir is not None
    logs = list((bench.endpoint.data_dir / f"{target.name}-0").glob("*.log"))
    assert len(logs) >= 4
    assert max(log.stat().st_size for log in logs) <= 1 << 20


@BOTH
def test_messages_beyond_the_shipped_limit(bench: Bench, driver: Driver) -> None:
    """With a larger max.message.bytes such messages are stored and come back whole; the smallest do too."""
    target = bench.target(max_message_bytes=4 << 20, max_partition_fetch_bytes=4 << 20)
    large, smallest = Message(size_bytes=3_000_000), Message(size_bytes=24)
    assert sent(driver, target, large, 3) == [0, 1, 2]
    consumer = driver.consumer(target, 0, 1)
    assert receive([consumer], payloads_of(large), lambda got: len(got.seqs) == 3).seqs == [0, 1, 2]
    consumer.close()
    target = bench.target()
    assert sent(driver, target, smallest, 50) == list(range(50))
    assert {len(value) for batch in written(target.endpoint, target.name) for value in batch.values} == {24}


@BOTH
def test_codecs_are_those_of_the_batches(bench: Bench, driver: Driver) -> None:
    """Each batch is marked with its codec, and takes what the body's entropy leaves."""
    target = bench.target(partitions=len(CODECS), partitioner="explicit", batch_size=100_000, linger_ms=50)
    half = Message(size_bytes=1_000, compressibility=0.5)
    for number, codec in enumerate(CODECS):
        sent(driver, bench.by(target, compression_type=codec), half, 300, producer=number)
        batches = written(target.endpoint, target.name, number)
        assert {each.header.codec for each in batches} == {number}
        stored = sum(each.header.size_bytes for each in batches) / 300_000
        assert 0.45 < stored < 0.65 if number else stored > 1


@BOTH
def test_partitioners(bench: Bench, driver: Driver) -> None:
    """Where each message is kept is where its partitioner would have it, in the producer's order."""
    table = key_table(KEYED.keys)
    indices = payloads_of(KEYED).key_indices(0, 900)
    assert indices is not None
    target = bench.target(partitions=3, partitioner="murmur2")
    sent(driver, target, KEYED, 900)
    by_key = key_partitions(table, 3)[indices]
    assert partitions_of(target, KEYED) == {part: np.flatnonzero(by_key == part).tolist() for part in range(3)}
    target = bench.target(partitions=3, partitioner="explicit")
    sent(driver, target, KEYED, 900)
    assert partitions_of(target, KEYED) == {p: np.flatnonzero(indices % 3 == p).tolist() for p in range(3)}
    target = bench.target(partitions=3, partitioner="explicit")
    sent(driver, target, SMALL, 90, producer=4)
    assert partitions_of(target, SMALL, producer=4) == {0: [], 1: list(range(90)), 2: []}
    target = bench.target(partitions=3, partitioner="round_robin")
    sent(driver, target, SMALL, 900)
    assert partitions_of(target, SMALL) == {part: list(range(part, 900, 3)) for part in range(3)}


@pytest.mark.parametrize(("message", "record_bytes"), [(SMALL, 110), (KEYED, 77)], ids=["plain", "keyed"])
def test_a_sticky_partitioner_stays_for_its_bytes(bench: Bench, message: Message, record_bytes: int) -> None:
    """As much as a batch holds goes to one partition before another is drawn; all have some."""
    target = bench.target(partitions=3, partitioner="sticky", batch_size=2_000)
    assert sent(WIRE, target, message, 900) == list(range(900))
    kept = partitions_of(target, message)
    assert sorted(seq for seqs in kept.values() for seq in seqs) == list(range(900))
    assert all(seqs and (np.diff(seqs) > 0).all() for seqs in kept.values())
    runs = [run for seqs in kept.values() for run in np.split(seqs, np.flatnonzero(np.diff(seqs) != 1) + 1)]
    # The last run is cut off. What one call of the client leaves over may go as a batch of its own, with its header.
    assert min(len(run) for run in runs if run[-1] != 899) * record_bytes >= 2_000 - 3 * 61


def test_messages_one_by_one_stick_to_a_partition(bench: Bench) -> None:
    """Each leaves at once in a batch of its own, and yet the next goes to the same partition (KIP-794)."""
    target = bench.target(partitions=4, partitioner="sticky", batch_size=2_000)
    producer = WIRE.producer(target, payloads_of(SMALL))
    for seq in range(200):
        producer.send(seq, np.full(1, 1), 2)
        assert until(lambda: seqs_of(producer.poll(0.05)))
    producer.close()
    kept = [seqs for seqs in partitions_of(target, SMALL).values() if seqs]
    assert len(kept) > 1
    runs = [run for seqs in kept for run in np.split(seqs, np.flatnonzero(np.diff(seqs) != 1) + 1)]
    batches = [b for part in range(4) for b in written(target.endpoint, target.name, part)]
    assert {len(each.values) for each in batches} == {1}
    each_bytes = batches[0].header.size_bytes
    assert all(len(run) % -(-2_000 // each_bytes) == 0 for run in runs if run[-1] != 199)


def test_librdkafka_sticks_to_a_partition(bench: Bench) -> None:
    """Once it knows the topic what comes at once, without keys, is kept in one partition, later in another."""
    target = bench.target(partitions=3, partitioner="sticky")
    producer = CLIENT.producer(target, payloads_of(SMALL))
    for first in range(0, 400, 20):
        assert seqs_of(send(producer, 20, first)) == list(range(first, first + 20))
        time.sleep(0.012)  # its sticky.partitioning.linger.ms is 10
    producer.close()
    kept = [[seq for seq in seqs if seq >= 20] for seqs in partitions_of(target, SMALL).values()]  # known by then
    kept = [seqs for seqs in kept if seqs]
    assert len(kept) > 1
    runs = [run for seqs in kept for run in np.split(seqs, np.flatnonzero(np.diff(seqs) != 1) + 1)]
    assert np.median(list(map(len, runs))) >= 10


def test_zipf_keys_fill_partitions_unevenly(bench: Bench) -> None:
    """With an exponent of 1 the broker keeps about twice as many messages of the first key as of the second."""
    target = bench.target(partitions=4, partitioner="explicit")
    sent(WIRE, target, Message(size_bytes=60, keys=4, key_exponent=1.0), 6_000)
    counts = [sum(len(b.values) for b in written(target.endpoint, target.name, part)) for part in range(4)]
    assert np.allclose(np.array(counts) / 6_000, np.array([12, 6, 4, 3]) / 25, atol=0.03)


@BOTH
def test_identity_and_acks(bench: Bench, driver: Driver) -> None:
    """Only an idempotent producer signs its batches, and a request asks for the acknowledgement that was chosen."""
    for acks, is_idempotent, number in (("all", True, -1), ("all", False, -1), ("1", False, 1), ("0", False, 0)):
        with watched(bench.endpoint) as (by_proxy, seen):
            target = bench.target(acks=acks, enable_idempotence=is_idempotent)
            sent(driver, bench.by(target, by_proxy), SMALL, 20)
            assert until(lambda: bench.admin.stored(target) == 20)  # noqa: B023 - called at once
        assert {each.acks for each in seen.of(PRODUCE)} == {number}
        signed = {each.header.producer_id >= 0 for each in written(target.endpoint, target.name)}
        assert signed == {is_idempotent}


@BOTH
@pytest.mark.parametrize("in_flight", [1, 3])
def test_requests_in_flight(bench: Bench, driver: Driver, in_flight: int) -> None:
    """While the broker's answers are held back, so many requests and no more are on their way."""
    knobs = {"max_in_flight_requests_per_connection": in_flight, "batch_size": 1_000, "enable_idempotence": False}
    target = bench.target(**knobs)
    with watched(bench.endpoint, hold_s=0.05) as (by_proxy, seen):
        sent(driver, bench.by(target, by_proxy), SMALL, 200)
    assert seen.in_flight == in_flight


@BOTH
def test_linger_and_batch_size(bench: Bench, driver: Driver) -> None:
    """A lingering producer gathers what comes one by one into one request; no batch is larger than batch_size."""
    requests = {}
    for linger_ms in (0, 60_000):
        target = bench.target(linger_ms=linger_ms)
        with watched(bench.endpoint) as (by_proxy, seen):
            producer = driver.producer(bench.by(target, by_proxy), payloads_of(SMALL))
            for seq in range(5):
                producer.send(seq, np.full(1, 1), 2)
                if not linger_ms:
                    assert until(lambda: bool(producer.poll(0.05)))  # noqa: B023 - called at once
                else:
                    producer.poll(0.01)
            if linger_ms:
                assert not seen.of(PRODUCE)
                close_lingering(producer, driver)
            producer.close()
            requests[linger_ms] = len(seen.of(PRODUCE))
    assert requests[0] == 5
    assert requests[60_000] == (1 if driver is WIRE else 0)  # librdkafka's are given up when it is closed
    target = bench.target(batch_size=3_000, linger_ms=20)
    sent(driver, target, SMALL, 1_000)
    sizes = [each.header.size_bytes for each in written(target.endpoint, target.name)]
    assert max(sizes) <= 3_000
    assert max(sizes) > 2_000


@BOTH
def test_a_linger_ends(bench: Bench, driver: Driver) -> None:
    """What came one by one goes as one batch, and not before the first of it has waited for `linger_ms`."""
    linger_s = 2.0  # longer than a busy machine stops between two calls
    target = bench.target(linger_ms=linger_s * 1_000)
    producer = driver.producer(target, payloads_of(SMALL))
    send(producer, 1)  # librdkafka looks a topic up before its first batch
    began_s = time.monotonic()
    settled: list[Settled] = []
    for seq in range(1, 6):
        producer.send(seq, np.full(1, 1), 2)
    assert until(lambda: settled.extend(producer.poll(0.05)) or seqs_of(settled) == [1, 2, 3, 4, 5])
    assert time.monotonic() - began_s >= linger_s
    producer.close()
    assert [len(each.values) for each in written(target.endpoint, target.name)] == [1, 5]


def close_lingering(producer: Any, driver: Driver) -> None:
    """Let what lingers go: the wire driver's flush does not wait for it, librdkafka's linger would be waited for."""
    if driver is WIRE:
        assert seqs_of(producer.flush(20)) == list(range(5))


@BOTH
def test_fetch_parameters(bench: Bench, driver: Driver) -> None:
    """Every fetch asks for what the knobs say."""
    knobs = {"fetch_min_bytes": 77, "fetch_max_wait_ms": 123, "max_partition_fetch_bytes": 54_321}
    target = bench.target(**knobs, isolation_level="read_committed")
    sent(WIRE, target, SMALL, 10)
    with watched(bench.endpoint) as (by_proxy, seen):
        consumer = driver.consumer(bench.by(target, by_proxy), 0, 1)
        receive([consumer], payloads_of(SMALL), lambda got: len(got.seqs) == 10)
        consumer.close()
    fetches = seen.of(FETCH)
    assert {(each.min_bytes, each.isolation_level) for each in fetches} == {(77, 1)}
    assert {round(each.max_wait.total_seconds() * 1_000) for each in fetches} == {123}
    asked = {part.partition_max_bytes for each in fetches for topic in each.topics for part in topic.partitions}
    assert asked == {54_321}


@pytest.mark.parametrize(("count", "is_asked_first"), [(20, False), (2_000, True)], ids=["small", "large"])
def test_the_next_fetch_is_in_no_small_answer_s_latency(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, count: int, is_asked_first: bool
) -> None:
    """Messages of a small answer are stamped before the next fetch is sent; while a large one is parsed, it is on."""
    target = bench.target(batch_size=1 << 20, linger_ms=50)
    assert len(sent(WIRE, target, SMALL, count)) == count
    asked_ns: list[int] = []
    ask = KafkaConsumer._ask

    def noted(self: KafkaConsumer, *arguments: Any) -> None:
        asked_ns.append(time.monotonic_ns())
        ask(self, *arguments)

    monkeypatch.setattr(KafkaConsumer, "_ask", noted)
    consumer = WIRE.consumer(target, 0, 1)
    received: list[Received] = []
    assert until(lambda: received.extend(consumer.receive(0.1)) or received)
    consumer.close()
    first, following = asked_ns[0], asked_ns[1]  # when the answer has come the next is asked for in the same call
    assert first < received[0].read_ns
    assert (following < received[0].parsed_ns) == is_asked_first


@BOTH
def test_retries(bench: Bench, driver: Driver) -> None:
    """A batch whose connection is cut each time is sent so many times more, then it has failed; the rest goes on."""
    target = bench.target(retries=2, enable_idempotence=False, max_in_flight_requests_per_connection=1)
    with watched(bench.endpoint) as (by_proxy, seen):
        producer = driver.producer(bench.by(target, by_proxy), payloads_of(SMALL))
        assert seqs_of(send(producer, 1)) == [0]
        before, seen.is_cutting = len(seen.of(PRODUCE)), True
        settled = send(producer, 1, first=1)
        tries, seen.is_cutting = len(seen.of(PRODUCE)) - before, False
        assert seqs_of(send(producer, 1, first=2)) == [2]
        producer.close()
    (error,) = {each.error for each in settled}
    assert error == ("NETWORK_EXCEPTION" if driver is WIRE else "_TRANSPORT")
    assert (tries, seqs_of(settled, error)) == (1 + 2, [1])
    assert partitions_of(target, SMALL) == {0: [0, 2]}


def test_idempotence_outlives_what_it_gave_up(bench: Bench) -> None:
    """A batch that was given up leaves a gap in the sequence numbers: another producer id goes on, nothing is twice."""
    target = bench.target(retries=1)
    with watched(bench.endpoint) as (by_proxy, seen):
        producer = WIRE.producer(bench.by(target, by_proxy), payloads_of(SMALL))
        assert seqs_of(send(producer, 5)) == [0, 1, 2, 3, 4]
        seen.is_cutting = True
        assert seqs_of(send(producer, 1, first=5), "NETWORK_EXCEPTION") == [5]
        seen.is_cutting = False
        assert seqs_of(send(producer, 5, first=6)) == [6, 7, 8, 9, 10]
        producer.close()
    assert partitions_of(target, SMALL) == {0: [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]}
    ids = [each.header.producer_id for each in written(target.endpoint, target.name)]
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"retries": 0}, "kafka.retries = 0: an idempotent producer sends again"),
        ({"retries": 3, "acks": "0"}, "kafka.retries = 3: without acknowledgements nothing is sent again"),
    ],
)
def test_retries_that_cannot_be_are_refused(knobs: dict[str, Any], said: str) -> None:
    """In one line that names the knob."""
    with pytest.raises(ScenarioError, match=said):
        resolve("kafka", knobs, "none" if "acks" in knobs else "broker", "default")
