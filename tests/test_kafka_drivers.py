"""Both Kafka drivers on a real broker: what one writes the other reads, and what goes wrong is told in one line."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from patience import PATIENCE_S

from loadgen import brokers
from loadgen.driver import Rebalancing, Target
from loadgen.drivers import load_driver
from loadgen.drivers.wire import kafka_cluster
from loadgen.drivers.wire.kafka_batch import key_partitions, key_table
from loadgen.endpoint import Credentials, Endpoint
from loadgen.errors import BrokerError, TrialError
from loadgen.knobs import resolve
from loadgen.payload import Payloads
from loadgen.scenario import Message, Uniform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadgen.driver import Admin, Consumer, Driver, Producer, Received, Settled

COUNT = 4_000
WIRE, CLIENT = load_driver("kafka"), load_driver("confluent")
PAIRS = [(WIRE, CLIENT), (CLIENT, WIRE), (WIRE, WIRE)]
MIXED = Uniform(min_bytes=24, max_bytes=400)


@pytest.fixture(scope="module")
def admin(kafka_endpoint: Endpoint) -> Iterator[Admin]:
    """The control plane of the session's broker."""
    made = WIRE.admin(kafka_endpoint)
    yield made
    made.close()


@pytest.fixture
def make_target(kafka_endpoint: Endpoint, admin: Admin) -> Iterator[Callable[..., Target]]:
    """Makes fresh topics, and removes them."""
    made: list[Target] = []

    def make(*, group: bool = True, **knobs: Any) -> Target:
        name = f"drivers-{secrets.token_hex(6)}"
        durability = "none" if knobs.get("acks") == "0" else "broker"
        settings = resolve("kafka", knobs, durability, "default")
        target = Target(kafka_endpoint, name, settings, group=f"group-{name}" if group else "")
        admin.create(target)
        made.append(target)
        return target

    yield make
    for target in made:
        admin.delete(target)


def payloads_of(message: Message, producer: int = 0) -> Payloads:
    """The payloads of this module's trials."""
    return Payloads(message, seed=3, token=4, producer=producer)


def send(producer: Producer, count: int, first: int = 0, step: int = 700) -> list[Settled]:
    """Send `count` messages and wait for all acknowledgements."""
    settled: list[Settled] = []
    at = first
    while at < first + count:
        number = min(step, first + count - at, producer.room_msgs)
        if number:
            now = time.monotonic_ns()
            producer.send(at, np.full(number, now), now)
            at += number
        settled += producer.poll(0 if number else 0.1)
    return settled + producer.flush(PATIENCE_S)


@dataclass
class Got:
    """What a consumer received, by partition, in order."""

    seqs: dict[int, list[int]] = field(default_factory=dict)
    offsets: dict[int, list[int]] = field(default_factory=dict)
    redelivered: int = 0
    batches: list[int] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many messages."""
        return sum(map(len, self.seqs.values()))

    @property
    def all_seqs(self) -> list[int]:
        """Of all partitions, sorted."""
        return sorted(seq for each in self.seqs.values() for seq in each)

    def take(self, batch: Received, payloads: Payloads) -> None:
        """Check and note one batch."""
        parsed = payloads.parse(batch.buffer, batch.starts, batch.sizes)
        assert parsed.intact.all()
        assert batch.read_ns <= batch.parsed_ns
        assert batch.first_position is not None
        self.seqs.setdefault(batch.source, []).extend(parsed.seq.tolist())
        offsets = range(batch.first_position, batch.first_position + len(batch.starts))
        self.offsets.setdefault(batch.source, []).extend(offsets)
        if batch.redelivered is not None:
            self.redelivered += int(batch.redelivered.sum())


def receive(consumer: Consumer, payloads: Payloads, count: int, patience_s: float = PATIENCE_S) -> Got:
    """Receive and settle until `count` messages have come."""
    got, deadline_s = Got(), time.monotonic() + patience_s
    while got.count < count and time.monotonic() < deadline_s:
        batches = consumer.receive(0.2)
        got.batches.append(sum(len(each.starts) for each in batches))
        for batch in batches:
            got.take(batch, payloads)
        consumer.settle()
    return got


@dataclass
class Sent:
    """A finished round: what was acknowledged, and what came back."""

    acked: list[int]
    errors: set[str | None]
    got: Got


def round_trip(writer: Driver, reader: Driver, target: Target, message: Message, count: int = COUNT) -> Sent:
    """Send with one driver, read with the other."""
    payloads = payloads_of(message)
    producer = writer.producer(target, payloads)
    try:
        settled = send(producer, count)
    finally:
        producer.close()
    consumer = reader.consumer(target, 0, 1)
    try:
        got = receive(consumer, payloads, count)
    finally:
        consumer.close()
    acked = sorted(seq for each in settled for seq in each.seqs.tolist())
    return Sent(acked, {each.error for each in settled}, got)


def names(driver: Any) -> str | None:
    """Test ids."""
    return getattr(driver, "name", None)


@pytest.mark.parametrize(("writer", "reader"), PAIRS, ids=names)
@pytest.mark.parametrize("codec", WIRE.capabilities.compression)
def test_all_codecs_all_ways(
    make_target: Callable[..., Target], admin: Admin, writer: Driver, reader: Driver, codec: str
) -> None:
    """Every byte, in order and at every offset, whichever driver wrote and whichever reads."""
    target = make_target(compression_type=codec)
    sent = round_trip(writer, reader, target, Message(size_bytes=100, compressibility=0.5))
    assert sent.acked == list(range(COUNT))
    assert sent.errors == {None}
    assert sent.got.seqs == {0: list(range(COUNT))}
    assert sent.got.offsets == {0: list(range(COUNT))}
    assert sent.got.redelivered == 0
    assert admin.stored(target) == COUNT
    assert admin.depth(target) == 0


@pytest.mark.parametrize(("writer", "reader"), PAIRS, ids=names)
@pytest.mark.parametrize(
    "message",
    [Message(size_bytes=MIXED), Message(size_bytes=MIXED, keys=50), Message(size_bytes=60, keys=50)],
    ids=repr,
)
def test_sizes_keys_and_partitions(
    make_target: Callable[..., Target], writer: Driver, reader: Driver, message: Message
) -> None:
    """Mixed sizes and keys over several partitions: nothing lost, and the partitioner's own order in each."""
    sent = round_trip(writer, reader, make_target(partitions=3), message)
    assert sent.acked == sent.got.all_seqs == list(range(COUNT))
    assert all(seqs == sorted(seqs) for seqs in sent.got.seqs.values())
    if message.keys:
        places = key_partitions(key_table(50), 3)[payloads_of(message).key_indices(0, COUNT)]
        assert {part: np.flatnonzero(places == part).tolist() for part in sent.got.seqs} == sent.got.seqs


@pytest.mark.parametrize("driver", [WIRE, CLIENT], ids=names)
@pytest.mark.parametrize("acks", ["0", "1", "all"])
def test_acks(make_target: Callable[..., Target], driver: Driver, acks: str) -> None:
    """Acknowledged once each with 1 and all; with 0 never, and yet all there once closed."""
    sent = round_trip(driver, WIRE, make_target(acks=acks, enable_idempotence=False), Message(size_bytes=100))
    assert sent.acked == ([] if acks == "0" else list(range(COUNT)))
    assert sent.got.all_seqs == list(range(COUNT))


@pytest.mark.parametrize("driver", [WIRE, CLIENT], ids=names)
def test_max_poll_records(make_target: Callable[..., Target], driver: Driver) -> None:
    """No call hands out more than `max_poll_records`, and nothing is lost between the calls."""
    sent = round_trip(WIRE, driver, make_target(max_poll_records=77), Message(size_bytes=100))
    assert sent.got.seqs == {0: list(range(COUNT))}
    assert max(sent.got.batches) == 77


@pytest.mark.parametrize("driver", [WIRE, CLIENT], ids=names)
def test_a_message_over_every_limit_is_fetched(make_target: Callable[..., Target], driver: Driver) -> None:
    """A batch larger than `max_partition_fetch_bytes` comes nevertheless."""
    target = make_target(max_partition_fetch_bytes=1_000, batch_size=1_000)
    sent = round_trip(WIRE, driver, target, Message(size_bytes=50_000), count=20)
    assert sent.got.seqs == {0: list(range(20))}


@pytest.mark.parametrize("driver", [WIRE, CLIENT], ids=names)
def test_what_was_settled_is_not_read_again(make_target: Callable[..., Target], admin: Admin, driver: Driver) -> None:
    """Offsets are committed for what was settled only: the next consumer of the group goes on from there."""
    target = make_target(max_poll_records=1_000)
    payloads = payloads_of(Message(size_bytes=100))
    producer = WIRE.producer(target, payloads)
    send(producer, 3_000)
    producer.close()
    first = driver.consumer(target, 0, 1)
    got = receive(first, payloads, 1_000)
    while not (unsettled := first.receive(1)):
        pass
    first.close()
    assert admin.depth(target) == 3_000 - got.count
    second = driver.consumer(target, 0, 1)
    rest = receive(second, payloads, 3_000 - got.count)
    second.close()
    assert unsettled
    assert rest.all_seqs == list(range(got.count, 3_000))
    assert admin.depth(target) == 0


def test_commits_while_reading(make_target: Callable[..., Target], admin: Admin) -> None:
    """Offsets are committed every `auto_commit_interval_ms`, without closing."""
    target = make_target(auto_commit_interval_ms=10)
    payloads = payloads_of(Message(size_bytes=100))
    producer, consumer = WIRE.producer(target, payloads), WIRE.consumer(target, 0, 1)
    send(producer, 500)
    receive(consumer, payloads, 500)
    deadline_s = time.monotonic() + PATIENCE_S
    while admin.depth(target) and time.monotonic() < deadline_s:
        consumer.receive(0.02)
    assert admin.depth(target) == 0
    producer.close()
    consumer.close()


@pytest.mark.parametrize("driver", [WIRE, CLIENT], ids=names)
def test_consumers_without_a_group_share_partitions(make_target: Callable[..., Target], driver: Driver) -> None:
    """Each partition is read by one consumer; a consumer without any simply gets nothing."""
    target = make_target(partitions=3, group=False)
    payloads = payloads_of(Message(size_bytes=60, keys=100))
    producer = WIRE.producer(target, payloads)
    send(producer, 3_000)
    producer.close()
    consumers = [driver.consumer(target, index, 4) for index in range(4)]
    everything: list[int] = []
    places = key_partitions(key_table(100), 3)[payloads.key_indices(0, 3_000)]
    for index, consumer in enumerate(consumers[:3]):
        got = receive(consumer, payloads, int((places == index).sum()))
        assert set(got.seqs) == {index}
        everything += got.all_seqs
    assert consumers[3].receive(0.05) == []
    assert sorted(everything) == list(range(3_000))
    for consumer in consumers:
        consumer.close()


def test_a_rebalance_in_mid_trial_is_noted(make_target: Callable[..., Target]) -> None:
    """A member that joins late takes partitions from the first, which tells when it had none."""
    target = make_target(partitions=2)
    first = CLIENT.consumer(target, 0, 2)
    assert isinstance(first, Rebalancing)
    first.receive(0.1)
    assert first.take_rebalances() == []
    made: list[Consumer] = []
    joining = threading.Thread(target=lambda: made.append(CLIENT.consumer(target, 1, 2)))
    before_ns = time.monotonic_ns()
    joining.start()
    seen: list[tuple[int, int]] = []
    deadline = time.monotonic() + PATIENCE_S
    while (joining.is_alive() or not seen) and time.monotonic() < deadline:
        first.receive(0.1)
        seen += first.take_rebalances()
    joining.join()
    assert seen
    assert all(before_ns <= began_ns <= ended_ns for began_ns, ended_ns in seen)
    for consumer in (first, *made):
        consumer.close()


def test_offset_out_of_range_begins_again(make_target: Callable[..., Target]) -> None:
    """A consumer whose place is gone begins at the earliest, and marks what it hands out again."""
    target = make_target()
    payloads = payloads_of(Message(size_bytes=100))
    producer, consumer = WIRE.producer(target, payloads), WIRE.consumer(target, 0, 1)
    send(producer, 300)
    assert receive(consumer, payloads, 300).count == 300
    link = next(iter(consumer._links.values()))  # type: ignore[attr-defined]
    consumer._lose(next(iter(consumer._links)), kafka_cluster.LinkError("cut by the test"))  # type: ignore[attr-defined]
    assert link.connection.fileno() == -1
    consumer._progress.fetched[0] = 10_000  # type: ignore[attr-defined]
    assert consumer.failed_requests == 1  # type: ignore[attr-defined]
    again = receive(consumer, payloads, 300)
    assert (again.count, again.redelivered) == (300, 300)
    producer.close()
    consumer.close()


def test_a_connection_cut_while_sending(make_target: Callable[..., Target], admin: Admin) -> None:
    """Connections that break under load cost no message and make none twice, with idempotence."""
    target = make_target(partitions=2)
    payloads = payloads_of(Message(size_bytes=1_000))
    producer = WIRE.producer(target, payloads)
    settled: list[Settled] = []
    for part in range(8):
        producer.send(part * 500, np.full(500, 1), 2)
        settled += producer.poll(0)
        for link in producer._sender._links.values():  # type: ignore[attr-defined]
            link.connection._socket.shutdown(socket.SHUT_RDWR)
    settled += producer.flush(10)
    assert sorted(seq for each in settled for seq in each.seqs.tolist()) == list(range(4_000))
    assert {each.error for each in settled} == {None}
    assert admin.stored(target) == admin.gauge(target).stored_msgs == 4_000
    assert producer.failed_requests >= 1  # type: ignore[attr-defined]
    consumer = WIRE.consumer(target, 0, 1)
    got = receive(consumer, payloads, 4_000)
    assert got.all_seqs == list(range(4_000))
    assert all(seqs == sorted(seqs) for seqs in got.seqs.values())
    producer.close()
    consumer.close()


@pytest.mark.parametrize("driver", [WIRE, CLIENT], ids=names)
def test_a_refused_message_is_settled_with_its_error(make_target: Callable[..., Target], driver: Driver) -> None:
    """A message that the broker does not take is told by the broker's own name for why."""
    target = make_target(batch_size=3_000_000)
    producer = driver.producer(target, payloads_of(Message(size_bytes=2_000_000)))
    (settled,) = send(producer, 1)
    assert (settled.seqs.tolist(), settled.error) == (
        [0],
        "MSG_SIZE_TOO_LARGE" if driver is CLIENT else "MESSAGE_TOO_LARGE",
    )
    producer.close()


def test_a_synchronous_send_returns_with_its_result(make_target: Callable[..., Target], admin: Admin) -> None:
    """When `send` returns the broker has the message, however long others might linger; nothing else is under way."""
    target = make_target(linger_ms=5_000.0)
    producer = load_driver("confluent-sync").producer(target, payloads_of(Message(size_bytes=100)))
    for seq in range(3):
        assert producer.room_msgs == 1
        producer.send(seq, np.full(1, 1), 2)
        assert admin.stored(target) == seq + 1
        assert [each.seqs.tolist() for each in producer.poll(0)] == [[seq]]
    producer.close()


def test_topic_as_asked_for(make_target: Callable[..., Target], admin: Admin) -> None:
    """The broker itself tells what was asked for; a topic that exists is an error, one that is gone is none."""
    target = make_target(partitions=2)
    told = admin.effective(target)
    assert (told["file.delete.delay.ms"], told["partitions"], told["replication.factor"]) == ("1000", 2, 1)
    assert told["flush.messages"] != "1"
    with pytest.raises(BrokerError, match="TOPIC_ALREADY_EXISTS"):
        admin.create(target)
    admin.delete(target)
    admin.delete(target)


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("driver", [WIRE, CLIENT], ids=names)
def test_nobody_there(driver: Driver) -> None:
    """A wrong port is one line naming broker and address, at once, from every role."""
    endpoint = Endpoint("kafka", (("127.0.0.1", closed_port()),), credentials=Credentials("me", "s3cret"))
    target = Target(endpoint, "t", resolve("kafka", {}, "broker", "default"), group="g")
    payloads = payloads_of(Message())
    roles = (
        lambda: driver.admin(endpoint),
        lambda: driver.producer(target, payloads),
        lambda: driver.consumer(target, 0, 1),
    )
    for connect in roles:
        with pytest.raises(BrokerError) as told:
            connect()
        assert f"kafka at {endpoint.address}: connection refused" in str(told.value)
        assert "\n" not in str(told.value)
        assert "s3cret" not in str(told.value)


@pytest.mark.parametrize("driver", [WIRE, CLIENT], ids=names)
def test_not_kafka(driver: Driver) -> None:
    """Another server on the port is told as such."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            connection.recv(100)
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            connection.recv(100)
            connection.close()

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        with pytest.raises(BrokerError, match="another protocol"):
            driver.admin(Endpoint("kafka", (server.getsockname()[:2],)))
        thread.join(PATIENCE_S)


def test_no_such_topic(kafka_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic that was not created is one line."""
    monkeypatch.setattr(kafka_cluster, "START_S", 0.1)
    target = Target(kafka_endpoint, "never-made", resolve("kafka", {}, "broker", "default"))
    with pytest.raises(BrokerError, match="topic never-made: UNKNOWN_TOPIC_OR_PARTITION"):
        WIRE.producer(target, payloads_of(Message()))


def test_a_broker_that_goes_away_for_good(make_target: Callable[..., Target], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few seconds without any broker the trial ends in one line naming broker and address."""
    monkeypatch.setattr(kafka_cluster, "GIVE_UP_S", 0.3)
    target = make_target()
    payloads = payloads_of(Message(size_bytes=100))
    producer, consumer = WIRE.producer(target, payloads), WIRE.consumer(target, 0, 1)
    gone = Endpoint("kafka", (("127.0.0.1", closed_port()),))
    for cluster in (producer._sender.cluster, consumer._cluster):  # type: ignore[attr-defined]
        cluster.endpoint, cluster.addresses = gone, {}
    for links in (producer._sender._links, consumer._links):  # type: ignore[attr-defined]
        for link in links.values():
            link.connection._socket.shutdown(socket.SHUT_RDWR)
    producer.send(0, np.full(10, 1), 2)
    with pytest.raises(TrialError, match=f"kafka at {gone.address}: gone for"):
        producer.flush(5)
    with pytest.raises(TrialError, match=f"kafka at {gone.address}: gone for"):
        receive(consumer, payloads, 1, patience_s=5)
    producer.close()
    consumer.close()


@pytest.fixture
def mortal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A Kafka of this test's own, to be killed."""
    cache = Path(os.environ.get("LOADGEN_CACHE_DIR", Path(__file__).parents[1] / ".brokers/install")).absolute()
    monkeypatch.setenv("LOADGEN_CACHE_DIR", str(cache))
    monkeypatch.setenv("LOADGEN_BROKERS_DIR", str(tmp_path))
    with brokers.open_brokers("local", ("kafka",)) as opened:
        yield opened["kafka"]


def test_a_group_is_asked_for_on_a_broker_that_has_just_started(mortal: Endpoint) -> None:
    """Its coordinator is only just being made: it is waited for, and the process lives on."""
    target = Target(mortal, "early", resolve("kafka", {}, "broker", "default"), group="early")
    admin = WIRE.admin(mortal)
    admin.create(target)
    assert admin.depth(target) == 0
    admin.delete(target)
    admin.close()


def test_kill_and_restart_in_mid_run(mortal: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker killed and restarted under load: every message acknowledged, there once and in order."""
    monkeypatch.setattr(kafka_cluster, "GIVE_UP_S", 2 * PATIENCE_S)  # however long a restart takes on a busy machine
    target = Target(mortal, "survivor", resolve("kafka", {}, "broker", "default"), group="survivors")
    admin = WIRE.admin(mortal)
    admin.create(target)
    payloads = payloads_of(Message(size_bytes=500))
    producer, consumer = WIRE.producer(target, payloads), WIRE.consumer(target, 0, 1)
    settled: list[Settled] = []
    got = Got()

    def work(first: int) -> None:
        for part in range(10):
            producer.send(first + part * 100, np.full(100, 1), 2)
            settled.extend(producer.poll(0.002))
            for batch in consumer.receive(0.002):
                got.take(batch, payloads)
            consumer.settle()

    work(0)
    brokers.kill(mortal)
    work(1_000)
    helper = multiprocessing.get_context("spawn").Process(target=brokers.restart, args=(mortal,))
    helper.start()  # meanwhile the clients go on
    work(2_000)
    deadline_s = time.monotonic() + PATIENCE_S
    while (got.count < 3_000 or len(settled) == 0) and time.monotonic() < deadline_s:
        settled.extend(producer.poll(0.01))
        for batch in consumer.receive(0.01):
            got.take(batch, payloads)
        consumer.settle()
    settled.extend(producer.flush(PATIENCE_S))
    helper.join(PATIENCE_S)
    assert sorted(seq for each in settled for seq in each.seqs.tolist()) == list(range(3_000))
    assert {each.error for each in settled} == {None}
    assert got.seqs == {0: list(range(3_000))}
    assert admin.stored(target) == 3_000
    producer.close()
    consumer.close()
    assert admin.depth(target) == 0
