"""RabbitMQ's exchanges, bindings and queues as the broker itself tells them, and what comes through them."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import quote
from uuid import uuid4

import numpy as np
import pytest

from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.rabbitmq_admin import RabbitMQAdmin
from loadgen.drivers.rabbitmq_management import management_request
from loadgen.drivers.rabbitmq_topology import Topology
from loadgen.errors import BrokerError
from loadgen.knobs import resolve
from loadgen.ledger import ReceivedBook, SentBook, settle
from loadgen.payload import Payloads
from loadgen.scenario import Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Consumer
    from loadgen.endpoint import Endpoint

COUNT = 300
WAIT_S = 60.0
PLAIN, KEYED = Message(size_bytes=100), Message(size_bytes=100, keys=40)
FAN_OUTS: list[dict[str, Any]] = [
    {"exchange": "fanout", "bindings": 3},
    {"exchange": "direct", "bindings": 3},
    {"exchange": "topic", "bindings": 3},
    {"exchange": "headers", "bindings": 3},
]
SPREADS: list[dict[str, Any]] = [
    {"exchange": "default", "queues": 3},
    {"exchange": "direct", "queues": 3},
    {"exchange": "topic", "queues": 3},
    {"exchange": "consistent-hash", "queues": 3},
]
# To aio-pika exchanges differ by having a name or none.
SPREAD_BY = [(knobs, driver) for driver in ("amqp", "pika", "pika-blocking") for knobs in SPREADS]
SPREAD_BY += [(knobs, "aio-pika") for knobs in SPREADS[:2]]


@pytest.fixture(scope="module")
def admin(rabbitmq_endpoint: Endpoint) -> Iterator[RabbitMQAdmin]:
    """The control plane."""
    with contextlib.closing(RabbitMQAdmin(rabbitmq_endpoint)) as admin:
        yield admin


class Bench:
    """A target, made and removed, with the clients that use it."""

    def __init__(self, endpoint: Endpoint, admin: RabbitMQAdmin) -> None:
        self.endpoint, self.admin = endpoint, admin
        self.closing = contextlib.ExitStack()

    def target(self, subscribers: int = 1, **knobs: Any) -> Target:
        """A fresh one."""
        settings = resolve("rabbitmq", knobs, "broker", "default")
        target = Target(self.endpoint, f"topology-{uuid4().hex[:8]}", settings, subscribers=subscribers)
        self.admin.create(target)
        self.closing.callback(self.admin.delete, target)
        return target

    def consumers(self, driver: str, target: Target, count: int) -> list[Consumer]:
        """So many, of each subscriber, in the order of the subscribers."""
        chosen = load_driver(driver)
        made = [chosen.consumer(target.of(sub), i, count) for sub in range(target.subscribers) for i in range(count)]
        for each in made:
            self.closing.callback(each.close)
        return made

    def sent(self, driver: str, target: Target, message: Message = PLAIN, producer: int = 0) -> SentBook:
        """What a producer sent and had confirmed."""
        made = load_driver(driver).producer(target, Payloads(message, seed=1, token=2, producer=producer))
        book, at, settled = SentBook(producer), 0, []
        with contextlib.closing(made):
            while at < COUNT:
                if number := min(made.room_msgs, 17, COUNT - at):
                    now = time.monotonic_ns()
                    made.send(at, np.full(number, now), now)
                    book.sent(number)
                    at += number
                settled += made.poll(0 if number else 0.1)
            settled += made.flush(WAIT_S)
        for each in settled:
            assert each.error is None
            book.confirmed(each.seqs)
        return book


@pytest.fixture
def bench(rabbitmq_endpoint: Endpoint, admin: RabbitMQAdmin) -> Iterator[Bench]:
    """What a test opens is closed, clients before what they use is removed."""
    made = Bench(rabbitmq_endpoint, admin)
    with made.closing:
        yield made


class Reader:
    """Consumers read until nothing more comes; which message came from which queue of which subscriber is kept."""

    def __init__(self, consumers: list[Consumer], target: Target, message: Message = PLAIN) -> None:
        each = len(consumers) // target.subscribers
        self.books = [ReceivedBook(str(place // each)) for place in range(len(consumers))]
        self.queue_of: dict[tuple[int, int, int], int] = {}  # (subscriber, producer, number) -> queue
        self.payloads = Payloads(message, seed=1, token=2)
        self.consumers = consumers

    def read(self, wanted: int) -> None:
        """Until so many have come, and a little longer, so that one too many would show."""
        deadline = time.monotonic() + WAIT_S
        quiet = 0
        while quiet < 2 and time.monotonic() < deadline:
            quiet += sum(book.received_count for book in self.books) >= wanted
            for consumer, book in zip(self.consumers, self.books, strict=True):
                for batch in consumer.receive(0.03):
                    quiet = 0
                    parsed = self.payloads.parse(batch.buffer, batch.starts, batch.sizes)
                    book.receive(parsed, batch.source, batch.redelivered)
                    for producer, seq in zip(parsed.producer.tolist(), parsed.seq.tolist(), strict=True):
                        self.queue_of[int(book.group), producer, seq] = batch.source
                consumer.settle()


def told(endpoint: Endpoint, path: str) -> Any:
    """What the management API answers for something in our virtual host."""
    vhost = quote(endpoint.virtual_host, safe="")
    return management_request(endpoint, path.format(vhost))


def demand_perfect(sent: list[SentBook], reader: Reader, subscribers: int) -> None:
    """Every subscriber received every message once, intact, and in order within each of its queues."""
    account = settle(sent, reader.books)
    total = subscribers * COUNT * len(sent)
    assert (account.received, account.distinct) == (total, total)
    wrong = ("lost", "duplicated", "corrupted", "foreign", "out_of_order")
    assert [getattr(account, each) for each in wrong] == [0] * len(wrong)


@pytest.mark.parametrize("driver", ["amqp", "pika", "pika-blocking", "aio-pika"])
@pytest.mark.parametrize("knobs", FAN_OUTS, ids=lambda knobs: knobs["exchange"])
def test_each_subscriber_has_a_queue_that_receives_everything_once(
    bench: Bench, knobs: dict[str, Any], driver: str
) -> None:
    """The broker tells an exchange of that type and that many bindings of each queue, and none delivers twice."""
    target = bench.target(subscribers=2, **knobs)
    exchange = told(bench.endpoint, f"exchanges/{{}}/{target.name}")
    assert (exchange["type"], exchange["durable"]) == (knobs["exchange"], True)
    bindings = told(bench.endpoint, f"exchanges/{{}}/{target.name}/bindings/source")
    by_queue = [each["destination"] for each in bindings]
    assert {queue: by_queue.count(queue) for queue in by_queue} == dict.fromkeys(Topology(target).queues(), 3)
    if knobs["exchange"] == "headers":
        assert {each["arguments"]["x-match"] for each in bindings} == {"all"}
    effective = bench.admin.effective(target)
    assert (effective["exchange"]["type"], effective["bindings"]) == (knobs["exchange"], 6)
    reader = Reader(bench.consumers(driver, target, 1), target)
    sent = bench.sent(driver, target)
    reader.read(2 * COUNT)
    demand_perfect([sent], reader, 2)


@pytest.mark.parametrize(("knobs", "driver"), SPREAD_BY, ids=str)
def test_queues_share_a_subscribers_messages_by_key(bench: Bench, knobs: dict[str, Any], driver: str) -> None:
    """Each queue gets some, a key stays with its queue, and order is kept, read by fewer consumers than queues."""
    target = bench.target(**knobs)
    queues = Topology(target).queues()
    assert len(queues) == 3
    reader = Reader(bench.consumers(driver, target, 2), target, KEYED)
    sent = [bench.sent(driver, target, KEYED, producer) for producer in (0, 1)]
    reader.read(2 * COUNT)
    demand_perfect(sent, reader, 1)
    assert set(reader.queue_of.values()) == {0, 1, 2}
    homes: dict[int, set[int]] = {}
    for (_, producer, seq), queue in reader.queue_of.items():
        keys = Payloads(KEYED, seed=1, token=2, producer=producer).key_indices(seq, 1)
        assert keys is not None
        homes.setdefault(int(keys[0]), set()).add(queue)
    assert all(len(each) == 1 for each in homes.values())
    if knobs["exchange"] == "consistent-hash":
        exchange = told(bench.endpoint, f"exchanges/{{}}/{target.name}")
        assert exchange["type"] == "x-consistent-hash"
    else:
        assert all(home == {key % 3} for key, home in homes.items())


@pytest.mark.parametrize("exchange", ["direct", "consistent-hash"])
def test_messages_without_keys_are_spread_evenly(bench: Bench, admin: RabbitMQAdmin, exchange: str) -> None:
    """In turn, or by the hash of many keys: the queues' own depths add up, and none has much more than its share."""
    target = bench.target(exchange=exchange, queues=3)
    bench.sent("amqp", target)
    names = Topology(target).queues()
    depths = [seen.depth_msgs if (seen := admin._ready([name])) else 0 for name in names]
    assert sum(depths) == admin.depth(target) == COUNT
    assert all(COUNT / 3 / 2 < depth < COUNT / 3 * 2 for depth in depths)


def test_subscribers_have_partitions_of_their_own(bench: Bench) -> None:
    """Two subscribers of two queues each, read by three consumers that compete: everything twice, keys at home."""
    target = bench.target(subscribers=2, exchange="direct", queues=2)
    assert len(Topology(target).queues()) == 4
    reader = Reader(bench.consumers("amqp", target, 3), target, KEYED)
    sent = bench.sent("amqp", target, KEYED)
    reader.read(2 * COUNT)
    account = settle([sent], reader.books)
    assert (account.distinct, account.lost, account.duplicated) == (2 * COUNT, 0, 0)
    for seq in range(COUNT):
        assert reader.queue_of[0, 0, seq] == reader.queue_of[1, 0, seq]


def test_a_thousand_bindings_are_made_and_removed(bench: Bench, admin: RabbitMQAdmin) -> None:
    """The broker counts them, the message finds the one that matches, and nothing is left afterwards."""
    target = bench.target(exchange="headers", bindings=1_000)
    assert admin.effective(target)["bindings"] == 1_000
    reader = Reader(bench.consumers("amqp", target, 1), target)
    sent = bench.sent("amqp", target)
    reader.read(COUNT)
    demand_perfect([sent], reader, 1)
    for each in reader.consumers:
        each.close()
    admin.delete(target)
    admin.delete(target)
    for path in (f"exchanges/{{}}/{target.name}", f"queues/{{}}/{target.name}"):
        with pytest.raises(HTTPError, match="404"):
            told(bench.endpoint, path)


def test_an_exchange_type_that_is_not_there_is_one_line(
    bench: Bench, admin: RabbitMQAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing, and which plugin brings it; no queue is left behind."""
    settings = resolve("rabbitmq", {"exchange": "consistent-hash"}, "broker", "default")
    target = Target(bench.endpoint, f"topology-{uuid4().hex[:8]}", settings)
    monkeypatch.setattr(Topology, "exchange_type", "x-no-such-type")
    with pytest.raises(BrokerError, match="rabbitmq_consistent_hash_exchange") as caught:
        admin.create(target)
    assert "\n" not in str(caught.value)
    with pytest.raises(BrokerError, match="no queue"):
        admin.depth(target)
