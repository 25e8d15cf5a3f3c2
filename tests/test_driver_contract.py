"""One contract for every driver, against real brokers (and the one in memory)."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.client import confluent_consumer
from loadgen.drivers.memory import memory_endpoint
from loadgen.errors import BrokerError, ScenarioError
from loadgen.knobs import resolve
from loadgen.ledger import Account, ReceivedBook, SentBook, settle
from loadgen.payload import Payloads
from loadgen.scenario import Message, Uniform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Consumer, Driver, Producer, Settled
    from loadgen.endpoint import BrokerName, Endpoint

BROKER_OF: dict[str, BrokerName] = {
    "amqp": "rabbitmq", "pika": "rabbitmq", "pika-blocking": "rabbitmq", "aio-pika": "rabbitmq",
    "stream": "rabbitmq", "rstream": "rabbitmq", "kafka": "kafka", "confluent": "kafka",
    "confluent-sync": "kafka", "memory": "rabbitmq",
}  # fmt: skip
CROSSINGS = [
    ("amqp", "pika"), ("pika", "amqp"), ("amqp", "pika-blocking"), ("pika-blocking", "amqp"),
    ("amqp", "aio-pika"), ("aio-pika", "amqp"), ("stream", "rstream"), ("rstream", "stream"),
    ("kafka", "confluent"), ("confluent", "kafka"), ("confluent-sync", "kafka"),
]  # fmt: skip
FIXED, MIXED = Message(size_bytes=100), Message(size_bytes=Uniform(min_bytes=24, max_bytes=3_000))
STREAMS = ("stream", "rstream")
PATIENCE_S = 60.0  # until a test gives up; no driver needs it, however busy the machine


@dataclass
class Bench:
    """A driver at its broker, and everything that a test opened, to be closed and removed after it."""

    name: str
    endpoint: Endpoint
    opened: list[Any] = field(default_factory=list)
    created: list[Target] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.driver: Driver = load_driver(self.name)
        self.admin = self.driver.admin(self.endpoint)

    @property
    def broker(self) -> BrokerName:
        """Which broker's knobs apply."""
        return BROKER_OF[self.name]

    def target(self, durability: str = "broker", **knobs: Any) -> Target:
        """A fresh queue or topic with the knobs of a durability class, some of them changed."""
        kind = "stream" if self.name in STREAMS else self.broker
        mine = {key.partition("__")[2]: value for key, value in knobs.items() if key.startswith(kind)}
        if kind == "kafka":
            mine = {"auto_commit_interval_ms": 50, **mine}
        if kind == "stream":
            mine = {"driver": self.name, "store_offset_interval_ms": 50, **mine}
        settings = resolve(self.broker, mine, durability, "default")
        unique = f"contract-{uuid.uuid4().hex[:12]}"
        target = Target(self.endpoint, unique, settings, group=f"{unique}-group")
        self.admin.create(target)
        self.created.append(target)
        return target

    def producer(self, target: Target, payloads: Payloads) -> Producer:
        """A producer that is closed after the test."""
        self.opened.append(self.driver.producer(target, payloads))
        return self.opened[-1]  # type: ignore[no-any-return]

    def consumer(self, target: Target, index: int = 0, count: int = 1) -> Consumer:
        """A consumer that is closed after the test."""
        self.opened.append(self.driver.consumer(target, index, count))
        return self.opened[-1]  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close everything, then remove everything."""
        for each in self.opened:
            each.close()
        for target in self.created:
            self.admin.delete(target)
        self.admin.close()


def bench_of(name: str, request: pytest.FixtureRequest) -> Bench:
    """The named driver at the session's broker."""
    endpoint = memory_endpoint() if name == "memory" else request.getfixturevalue(f"{BROKER_OF[name]}_endpoint")
    return Bench(name, endpoint)


@pytest.fixture(params=BROKER_OF)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Every driver in turn."""
    with contextlib.closing(bench_of(request.param, request)) as bench:
        yield bench


def payloads_of(producer: int = 0, message: Message = FIXED) -> Payloads:
    """A producer's messages."""
    return Payloads(message, seed=1, token=4711, producer=producer)


def send(producer: Producer, count: int, first: int = 0, batch: int = 37) -> list[Settled]:
    """Send messages first … as there is room, and wait until all are settled."""
    settled: list[Settled] = []
    sent, deadline_s = 0, time.monotonic() + PATIENCE_S
    while sent < count:
        number = min(producer.room_msgs, batch, count - sent)
        if number > 0:
            now_ns = time.monotonic_ns()
            producer.send(first + sent, np.full(number, now_ns), now_ns)
            sent += number
        settled += producer.poll(0 if number > 0 else 0.1)
        assert time.monotonic() < deadline_s, f"{sent} of {count} messages sent"
    return settled + producer.flush(PATIENCE_S)


def receive(
    consumers: list[Consumer], message: Message, count: int, *, settles: bool = True, quiet_s: float = 0.1
) -> list[ReceivedBook]:
    """What the consumers receive until `count` have come and nothing more comes, each in a book of its own."""
    books = [ReceivedBook() for _ in consumers]
    payloads = payloads_of(message=message)
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        enough = sum(book.received_count for book in books) >= count
        any_came = False
        for consumer, book in zip(consumers, books, strict=True):
            for each in consumer.receive(quiet_s if enough else 0.02):
                any_came = True
                check_moments(each.read_ns, each.parsed_ns)
                book.receive(payloads.parse(each.buffer, each.starts, each.sizes), each.source, each.redelivered)
            if settles:
                consumer.settle()
        if enough and not any_came:
            break
    return books


def check_moments(read_ns: int, parsed_ns: int) -> None:
    """A batch was read before it was parsed, and both before now."""
    assert 0 < read_ns <= parsed_ns <= time.monotonic_ns()


def sent_book(producer: int, count: int, settled: list[Settled] | None = None) -> SentBook:
    """A producer's book; with `settled` None everything counts as confirmed."""
    book = SentBook(producer)
    book.sent(count)
    if settled is None:
        book.confirmed(np.arange(count))
        return book
    for each in settled:
        if each.error is None:
            book.confirmed(each.seqs)
        else:
            book.failed(each.seqs, each.error)
    return book


def demand_perfect(account: Account, count: int) -> None:
    """Everything was confirmed and came once, intact and in order."""
    assert account.errors == {}
    assert (account.sent, account.acked, account.received, account.distinct) == (count,) * 4
    assert (account.lost, account.duplicated, account.corrupted, account.foreign) == (0,) * 4
    assert (account.out_of_order, account.reordered_redelivery) == (0, 0)


def depth_reaches(bench: Bench, target: Target, wanted: int) -> bool:
    """Whether the depth becomes what is wanted; commits and acknowledgements are asynchronous."""
    deadline_s = time.monotonic() + PATIENCE_S
    while bench.admin.depth(target) != wanted:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("message", [FIXED, MIXED, Message(size_bytes=24), Message(size_bytes=200_000)])
def test_messages_come_once_intact_and_in_order(bench: Bench, message: Message) -> None:
    """Of one size or mixed, the smallest and larger than a frame: all are confirmed and received as they were sent."""
    count = 12 if message.mean_size_bytes > 10_000 else 200
    target = bench.target()
    consumer = bench.consumer(target)
    settled = send(bench.producer(target, payloads_of(message=message)), count)
    books = receive([consumer], message, count)
    demand_perfect(settle([sent_book(0, count, settled)], books), count)


def test_what_was_sent_before_is_received_by_a_later_consumer(bench: Bench) -> None:
    """A consumer that comes after the messages gets them all."""
    target = bench.target()
    settled = send(bench.producer(target, payloads_of()), 150)
    books = receive([bench.consumer(target)], FIXED, 150)
    demand_perfect(settle([sent_book(0, 150, settled)], books), 150)


@pytest.mark.parametrize("batch", [1, 100])
def test_every_message_is_settled_exactly_once(bench: Bench, batch: int) -> None:
    """Each sequence number is confirmed once, at a moment after it was sent, sent singly or in batches."""
    target = bench.target()
    producer = bench.producer(target, payloads_of())
    begin_ns = time.monotonic_ns()
    settled = send(producer, 100, batch=batch)
    assert sorted(np.concatenate([each.seqs for each in settled]).tolist()) == list(range(100))
    assert {each.error for each in settled} == {None}
    assert all(begin_ns < each.at_ns <= time.monotonic_ns() for each in settled)
    assert producer.poll(0) == producer.flush(1.0) == []


def test_room_ends_and_comes_back(bench: Bench) -> None:
    """What is unconfirmed is bounded; after confirmations there is room again, and all of it arrives."""
    message = Message(size_bytes=1_000)
    target = bench.target(rabbitmq__confirm_window=60, stream__confirm_window=60, kafka__buffer_memory=60_000)
    consumer = bench.consumer(target)
    producer = bench.producer(target, payloads_of(message=message))
    assert producer.room_msgs > 0
    sent = 0
    while (room := producer.room_msgs) > 0 and sent <= 60:
        now_ns = time.monotonic_ns()
        number = min(room, 7)
        producer.send(sent, np.full(number, now_ns), now_ns)
        sent += number
    settled = producer.poll(0)
    # A blocking client has waited for each confirmation in `send`, so that its window never fills.
    unconfirmed = sent - sum(len(each.seqs) for each in settled)
    assert unconfirmed <= 60, "more was taken than the window holds"
    settled += producer.flush(PATIENCE_S)
    assert producer.room_msgs > 0
    settled += send(producer, 50, first=sent)
    account = settle([sent_book(0, sent + 50, settled)], receive([consumer], message, sent + 50))
    demand_perfect(account, sent + 50)


@pytest.mark.timeout(60, func_only=True)
def test_polling_without_a_timeout_never_waits(bench: Bench) -> None:
    """Thousands of polls with nothing to tell, idle and with messages under way, end well within the timeout.

    Were each of them to wait for a twentieth of a second only, it would be a hundred.
    """
    producer = bench.producer(bench.target(), payloads_of())
    for _ in range(1_000):
        assert producer.poll(0) == []
    now_ns = time.monotonic_ns()
    producer.send(0, np.full(1, now_ns), now_ns)
    settled = [each for _ in range(1_000) for each in producer.poll(0)]
    assert sum(len(each.seqs) for each in settled + producer.flush(PATIENCE_S)) == 1


def test_receiving_from_nothing_times_out_empty(bench: Bench) -> None:
    """An empty queue or topic gives an empty list, again and again."""
    consumer = bench.consumer(bench.target())
    for _ in range(3):
        assert consumer.receive(0.02) == []
        consumer.settle()


def test_the_gauge_tells_depth_consumers_and_what_was_stored(bench: Bench) -> None:
    """One look tells what `depth` and `stored` do, and who consumes where the broker knows it."""
    target = bench.target()
    send(bench.producer(target, payloads_of()), 20)
    assert depth_reaches(bench, target, 20)
    seen = bench.admin.gauge(target)
    assert (seen.depth_msgs, seen.stored_msgs) == (20, bench.admin.stored(target))
    assert seen.consumers in {0, None}
    if bench.name in {"kafka", "memory", *STREAMS}:
        return  # no broker knows who reads without joining
    consumer = bench.consumer(target)
    deadline_s = time.monotonic() + PATIENCE_S
    while bench.admin.gauge(target).consumers != 1 and time.monotonic() < deadline_s:
        consumer.receive(0.05)
        consumer.settle()
    assert bench.admin.gauge(target).consumers == 1


def test_settling_empties_the_queue(bench: Bench) -> None:
    """The depth is what was sent, and 0 after everything was settled."""
    target = bench.target()
    send(bench.producer(target, payloads_of()), 150)
    assert depth_reaches(bench, target, 150)
    consumer = bench.consumer(target)
    assert receive([consumer], FIXED, 150)[0].received_count == 150
    deadline_s = time.monotonic() + PATIENCE_S
    while bench.admin.depth(target) and time.monotonic() < deadline_s:
        consumer.receive(0.05)  # an idle consumer goes on acknowledging and committing
        consumer.settle()
    assert bench.admin.depth(target) == 0


def test_what_was_settled_stays_settled_after_close(bench: Bench) -> None:
    """Closing right after settling loses no acknowledgement: nothing comes a second time."""
    target = bench.target(rabbitmq__ack_every=1_000, rabbitmq__prefetch=1_000)
    send(bench.producer(target, payloads_of()), 50)
    first = bench.consumer(target)
    assert receive([first], FIXED, 50)[0].received_count == 50
    first.close()
    assert depth_reaches(bench, target, 0)
    assert receive([bench.consumer(target)], FIXED, 0)[0].received_count == 0


def test_what_was_not_settled_comes_to_the_next_consumer(bench: Bench) -> None:
    """A consumer that leaves without settling loses nothing; RabbitMQ flags what it delivers again.

    Unlimited, it was handed more than the default prefetch.
    """
    target = bench.target(rabbitmq__prefetch=0)
    settled = send(bench.producer(target, payloads_of()), 120)
    first = bench.consumer(target)
    lost_books = receive([first], FIXED, 120, settles=False)
    first.close()
    books = receive([bench.consumer(target)], FIXED, 120)
    account = settle([sent_book(0, 120, settled)], books)
    assert (account.distinct, account.lost, account.duplicated, account.corrupted) == (120, 0, 0, 0)
    both = settle([sent_book(0, 120, settled)], lost_books + books)
    assert both.duplicated == 120
    # Kafka and streams have no such flag: an offset read by somebody else looks like any other.
    if bench.broker == "rabbitmq" and bench.name not in STREAMS:
        assert both.dup_redelivery == 120


@pytest.mark.parametrize("name", ["kafka", "confluent"])
def test_class_none_never_delivers_twice(name: str, request: pytest.FixtureRequest) -> None:
    """At most once: what was handed out counts as processed, so a consumer that dies over it has lost it."""
    with contextlib.closing(bench_of(name, request)) as bench:
        target = bench.target("none", kafka__max_poll_records=30)
        send(bench.producer(target, payloads_of()), 80)
        assert depth_reaches(bench, target, 80)
        first = bench.consumer(target)
        deadline_s = time.monotonic() + PATIENCE_S
        handed: list[int] = []
        while not handed and time.monotonic() < deadline_s:
            handed = [len(batch.starts) for batch in first.receive(0.1)]
        first.close()
        assert 0 < sum(handed) <= 30
        assert depth_reaches(bench, target, 80 - sum(handed))
        rest = 80 - sum(handed)
        assert receive([bench.consumer(target)], FIXED, rest)[0].received_count == rest


@pytest.mark.parametrize("name", ["kafka", "confluent", *STREAMS])
def test_the_gauge_counts_what_consumers_have_not_been_handed(name: str, request: pytest.FixtureRequest) -> None:
    """With the number received, the depth of a topic does not wait for a commit; it is never below 0."""
    with contextlib.closing(bench_of(name, request)) as bench:
        target = bench.target(
            kafka__partitions=3, kafka__auto_commit_interval_ms=3_600_000,
            stream__partitions=3, stream__store_offset_interval_ms=3_600_000,
        )  # fmt: skip
        assert bench.admin.depth(target, 0) == 0
        send(bench.producer(target, payloads_of()), 80)
        assert [bench.admin.depth(target, received) for received in (0, 30, 80, 81)] == [80, 50, 0, 0]
        assert bench.admin.depth(target) == 80


def test_a_consumer_is_ready_when_it_is_made(request: pytest.FixtureRequest) -> None:
    """Consumers of one group have their shares of the partitions before any of them asks for a message."""
    with contextlib.closing(bench_of("confluent", request)) as bench:
        target = bench.target(kafka__partitions=4)
        consumers = [bench.consumer(target, index, 3) for index in range(3)]
        deadline_s = time.monotonic() + PATIENCE_S
        shares: list[int] = []
        while sorted(shares) != [1, 1, 2] and time.monotonic() < deadline_s:
            shares = [len(consumer._mine) for consumer in consumers]  # type: ignore[attr-defined]
            time.sleep(0.01)
        assert sorted(shares) == [1, 1, 2]


def test_a_group_that_gives_nothing_is_one_line(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer without partitions after the time for it says so, naming its group, and leaves."""
    monkeypatch.setattr(confluent_consumer, "JOINED_S", 0.0)
    with contextlib.closing(bench_of("confluent", request)) as bench:
        target = bench.target()
        with pytest.raises(BrokerError, match=f"group {target.group}: no partitions after 0 s"):
            bench.consumer(target)


def test_several_producers_keep_their_own_order(bench: Bench) -> None:
    """Three producers into one queue or topic: nothing of anybody is lost or overtaken."""
    target = bench.target()
    consumer = bench.consumer(target)
    books = []
    producers = [bench.producer(target, payloads_of(number)) for number in range(3)]
    for number, producer in enumerate(producers):
        books.append(sent_book(number, 60, send(producer, 60)))
    demand_perfect(settle(books, receive([consumer], FIXED, 180)), 180)


def test_several_consumers_share_the_messages(bench: Bench) -> None:
    """Two consumers of one queue, or of four partitions: each message comes to one of them, in its source's order."""
    target = bench.target(kafka__partitions=4, stream__partitions=4)
    consumers = [bench.consumer(target, index, 2) for index in range(2)]
    settled = send(bench.producer(target, payloads_of()), 200, batch=11)
    books = receive(consumers, FIXED, 200)
    demand_perfect(settle([sent_book(0, 200, settled)], books), 200)


def test_without_confirms_everything_still_comes(bench: Bench) -> None:
    """At most once: nothing is settled, flush means written, and on a healthy broker all of it arrives.

    A stream's protocol has no publishing without confirms, and the class is refused.
    """
    if bench.name in STREAMS:
        with pytest.raises(ScenarioError, match="class `none`"):
            bench.target("none")
        return
    target = bench.target("none")
    consumer = bench.consumer(target)
    producer = bench.producer(target, payloads_of())
    assert [each for each in send(producer, 200) if each.error is not None] == []
    account = settle([sent_book(0, 200)], receive([consumer], FIXED, 200))
    demand_perfect(account, 200)


def test_closing_never_raises(bench: Bench) -> None:
    """With messages under way, unsettled, twice, and when queue or topic are gone."""
    target = bench.target()
    producer, consumer = bench.producer(target, payloads_of()), bench.consumer(target)
    now_ns = time.monotonic_ns()
    producer.send(0, np.full(5, now_ns), now_ns)
    producer.close()
    consumer.receive(0.05)
    consumer.close()
    idle_producer, idle_consumer = bench.producer(target, payloads_of(1)), bench.consumer(target)
    bench.admin.delete(target)
    for each in (idle_consumer, idle_producer, producer, consumer):
        each.close()
        each.close()


def test_the_control_plane_tells_the_truth(bench: Bench) -> None:
    """An existing name is refused, stored is what was taken, effective is plain data, deleting twice is no error."""
    target = bench.target()
    with pytest.raises(BrokerError):
        bench.admin.create(target)
    assert bench.admin.depth(target) == 0
    send(bench.producer(target, payloads_of()), 64)
    assert bench.admin.stored(target) in {64, None}
    effective = bench.admin.effective(target)
    assert effective
    json.dumps(effective)
    bench.admin.delete(target)
    bench.admin.delete(target)
    bench.admin.create(target)
    assert depth_reaches(bench, target, 0)


@pytest.mark.parametrize("name", [name for name in BROKER_OF if name != "memory"])
def test_a_broker_that_is_not_there_is_one_clear_error(name: str, request: pytest.FixtureRequest) -> None:
    """Where nobody listens, the control plane says so with BrokerError instead of trying for ever."""
    endpoint = request.getfixturevalue(f"{BROKER_OF[name]}_endpoint")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        nowhere = replace(endpoint, hosts=(("127.0.0.1", port),), stream_port=port)
        with pytest.raises(BrokerError):
            load_driver(name).admin(nowhere)


def test_a_driver_says_what_it_is(bench: Bench) -> None:
    """Name, broker and kind are those of its entry point."""
    driver = bench.driver
    assert driver.name == bench.name
    assert driver.broker == ("memory" if bench.name == "memory" else bench.broker)
    assert driver.kind == {"memory": "memory", "amqp": "wire", "stream": "wire", "kafka": "wire"}.get(
        bench.name, "client"
    )


@pytest.mark.parametrize(("writer", "reader"), CROSSINGS)
@pytest.mark.parametrize("message", [FIXED, MIXED], ids=["fixed", "mixed"])
def test_what_one_driver_writes_another_reads(
    writer: str, reader: str, message: Message, request: pytest.FixtureRequest
) -> None:
    """Wire and client drivers of a broker exchange messages byte for byte, in order."""
    with (
        contextlib.closing(bench_of(reader, request)) as reading,
        contextlib.closing(bench_of(writer, request)) as writing,
    ):
        target = writing.target()
        settled = send(writing.producer(target, payloads_of(message=message)), 150)
        books = receive([reading.consumer(target)], message, 150)
        demand_perfect(settle([sent_book(0, 150, settled)], books), 150)


@pytest.mark.parametrize(("writer", "reader"), [("kafka", "kafka"), ("kafka", "confluent"), ("confluent", "kafka")])
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_codecs_are_read_by_either_driver(writer: str, reader: str, codec: str, request: pytest.FixtureRequest) -> None:
    """Compressed batches are the same messages to both Kafka drivers."""
    with (
        contextlib.closing(bench_of(reader, request)) as reading,
        contextlib.closing(bench_of(writer, request)) as writing,
    ):
        assert codec in writing.driver.capabilities.compression
        target = writing.target(kafka__compression_type=codec, kafka__linger_ms=2.0)
        settled = send(writing.producer(target, payloads_of()), 300, batch=100)
        books = receive([reading.consumer(target)], FIXED, 300)
        demand_perfect(settle([sent_book(0, 300, settled)], books), 300)
