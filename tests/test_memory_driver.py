"""The broker in memory does exactly the harm it is told to do, on a simulated clock and between processes."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.memory import REFUSED, MemoryDriver, memory_endpoint
from loadgen.drivers.memory_behaviour import Behaviour, Service
from loadgen.drivers.memory_link import SimulatedClock
from loadgen.errors import BrokerError, ScenarioError, TrialError
from loadgen.hands import forkserver
from loadgen.ledger import Account, ReceivedBook, SentBook, settle
from loadgen.payload import Payloads
from loadgen.scenario import Message, Uniform

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadgen.driver import Received

MS_NS = 1_000_000
FIXED, MIXED = Message(size_bytes=100), Message(size_bytes=Uniform(min_bytes=30, max_bytes=90))


def target_of(name: str = "queue", **values: Any) -> Target:
    """A queue in memory; `memory__x` names the setting memory.x."""
    return Target(memory_endpoint(), name, {key.replace("__", "."): value for key, value in values.items()})


class Simulation:
    """A queue on a simulated clock with its producer and its consumers."""

    def __init__(self, message: Message = FIXED, consumers: int = 1, **values: Any) -> None:
        self.clock = SimulatedClock()
        self.driver = MemoryDriver(self.clock)
        self.target = target_of(**{"confirm_window": 10_000, **values})
        self.admin = self.driver.admin(self.target.endpoint)
        self.admin.create(self.target)
        self.payloads = Payloads(message, seed=1, token=7)
        self.producer = self.driver.producer(self.target, self.payloads)
        self.consumers = [self.driver.consumer(self.target, index, consumers) for index in range(consumers)]
        self.sent_book = SentBook(0)
        self.books = [ReceivedBook() for _ in range(consumers)]

    def send(self, count: int) -> None:
        """Send the next messages, all intended now."""
        first = self.sent_book.sent_count
        self.producer.send(first, np.full(count, self.clock.now_ns), self.clock.now_ns)
        self.sent_book.sent(count)

    def drain(self) -> None:
        """Receive and settle all that comes, and all confirmations."""
        for each in self.producer.flush(10.0):
            if each.error is None:
                self.sent_book.confirmed(each.seqs)
            else:
                self.sent_book.failed(each.seqs, each.error)
        idle = 0
        while idle < len(self.consumers):
            idle = 0
            for consumer, book in zip(self.consumers, self.books, strict=False):
                batches = consumer.receive(1.0)
                idle += not batches
                for each in batches:
                    book.receive(self.parse(each), each.source, each.redelivered)
                consumer.settle()

    def parse(self, batch: Received) -> Any:
        """What a batch's messages say."""
        return self.payloads.parse(batch.buffer, batch.starts, batch.sizes)

    def account(self) -> Account:
        """The ledger's account."""
        return settle([self.sent_book], self.books)


periods = st.sampled_from([0, 0, 2, 3, 5, 11])


@settings(max_examples=60)
@given(
    st.sampled_from([FIXED, MIXED]), st.integers(1, 3), st.lists(st.integers(1, 40), max_size=8),
    periods, periods, periods, periods, periods,
)  # fmt: skip
def test_the_ledger_finds_exactly_the_harm_that_was_done(
    message: Message,
    consumers: int,
    batches: list[int],
    loss: int,
    duplicate: int,
    reorder: int,
    corrupt: int,
    refuse: int,
) -> None:
    """Loss, duplicates, damage and refusals as the broker did them; swaps too where one consumer gets everything."""
    simulation = Simulation(
        message, consumers, memory__loss_every=loss, memory__duplicate_every=duplicate, memory__reorder_every=reorder,
        memory__corrupt_every=corrupt, memory__refuse_every=refuse,
    )  # fmt: skip
    for count in batches:
        simulation.send(count)
        simulation.drain()
    account, told = simulation.account(), simulation.admin.effective(simulation.target)
    harm = told["harm"]
    assert account.corrupted == harm["corrupted"]
    assert account.errors == ({REFUSED: harm["refused"]} if harm["refused"] else {})
    assert account.sent - harm["refused"] == told["stored"] == account.acked
    assert account.foreign == 0
    assert simulation.admin.depth(simulation.target) == 0
    if not corrupt:
        assert account.lost == account.confirmed_lost == harm["lost"]
        assert account.duplicated == harm["duplicated"]
        assert account.dup_resend == account.dup_redelivery == 0  # nobody says why they are there
        if consumers == 1:
            assert account.out_of_order == harm["reordered"]


def test_messages_and_confirmations_take_the_time_they_are_told() -> None:
    """A fixed delay is kept to the nanosecond of the simulated clock, for deliveries and for confirmations."""
    simulation = Simulation(memory__delay_ms=7, memory__confirm_delay_ms=3)
    begin_ns = simulation.clock.now_ns
    simulation.send(5)
    (settled,) = simulation.producer.poll(1.0)
    assert settled.at_ns - begin_ns == 3 * MS_NS
    (batch,) = simulation.consumers[0].receive(1.0)
    assert (batch.read_ns - begin_ns, len(batch.starts)) == (7 * MS_NS, 5)


def test_exponential_delays_keep_mean_and_order() -> None:
    """Seeded: the mean of well-spaced messages' delays is the one asked for, and nothing overtakes."""
    simulation = Simulation(memory__delay_ms=1, memory__delay_distribution="exponential", memory__seed=5)
    delays_ns = []
    for _ in range(2_000):
        simulation.send(1)
        (batch,) = simulation.consumers[0].receive(1.0)
        delays_ns.append(batch.read_ns - int(simulation.parse(batch).intended_ns[0]))
        simulation.producer.poll(0)
    assert abs(np.mean(delays_ns) / MS_NS - 1) < 5 / np.sqrt(len(delays_ns))
    simulation.send(500)
    simulation.drain()
    assert simulation.account().out_of_order == 0


def test_one_server_works_on_one_message_at_a_time() -> None:
    """Deliveries follow each other at the service time, and each confirmation comes when its work begins."""
    simulation = Simulation(memory__service_ms=2)
    begin_ns = simulation.clock.now_ns
    simulation.send(4)
    confirmed = [each.at_ns - begin_ns for _ in range(4) for each in simulation.producer.poll(1.0)]
    assert confirmed == [0, 2 * MS_NS, 4 * MS_NS, 6 * MS_NS]
    (consumer,) = simulation.consumers
    assert sum(len(batch.starts) for batch in consumer.receive(0)) == 3  # all but the one that is being worked on
    (batch,) = consumer.receive(1.0)
    assert (batch.read_ns - begin_ns, len(batch.starts)) == (8 * MS_NS, 1)
    simulation.clock.now_ns = begin_ns + 100 * MS_NS
    simulation.send(1)
    (batch,) = consumer.receive(1.0)
    assert batch.read_ns - begin_ns == 102 * MS_NS  # an idle server begins at once


@given(st.integers(1, 60), st.sampled_from(["fixed", "exponential"]))
def test_a_server_is_never_idle_while_a_message_waits(count: int, distribution: str) -> None:
    """Work begins when the message has come and the one before it is done, whatever batches the messages come in."""
    service = Service(Behaviour(service_ms=1, service_distribution=distribution), np.random.default_rng(count))
    arrivals = np.sort(np.random.default_rng(count + 1).integers(0, count * MS_NS, count)).repeat(2)
    begins, ends = np.hstack([service.serve(2, int(now_ns)) for now_ns in arrivals[::2]])
    assert (begins == np.maximum(arrivals, np.concatenate(([0], ends[:-1])))).all()
    assert (ends >= begins).all()


@pytest.mark.parametrize("message", [FIXED, MIXED])
def test_the_log_of_harm_names_every_message(message: Message, tmp_path: Path) -> None:
    """What was lost, doubled, swapped, damaged and refused is in the file, each under its own sequence number."""
    log = tmp_path / "harm"
    simulation = Simulation(
        message, memory__loss_every=10, memory__duplicate_every=7, memory__reorder_every=4, memory__corrupt_every=9,
        memory__refuse_every=13, memory__harm_log=str(log),
    )  # fmt: skip
    simulation.send(12)
    simulation.drain()
    simulation.send(12)
    simulation.drain()
    # Counted from 1: up to the refused one the n-th taken is message n - 1, from there on message n. The 20th is lost,
    # and so changes places with none.
    assert sorted(log.read_text().splitlines()) == sorted([
        "lost 9", "lost 20", "duplicated 6", "duplicated 14", "duplicated 21", "reordered 2", "reordered 6",
        "reordered 10", "reordered 15", "corrupted 8", "corrupted 18", "refused 12",
    ])  # fmt: skip


def test_a_pause_stops_everything_and_then_ends() -> None:
    """What is sent in a pause is confirmed and delivered at its end."""
    simulation = Simulation(memory__pause_every_ms=100, memory__pause_ms=40)
    simulation.clock.now_ns += 70 * MS_NS
    begin_ns = simulation.clock.now_ns
    simulation.send(3)
    assert simulation.producer.poll(0) == []
    assert simulation.consumers[0].receive(0) == []
    (settled,) = simulation.producer.poll(1.0)
    (batch,) = simulation.consumers[0].receive(1.0)
    assert settled.at_ns - begin_ns == batch.read_ns - begin_ns == 30 * MS_NS


def test_prefetch_bounds_what_is_unacknowledged() -> None:
    """A consumer gets its prefetch, and more only after it settled."""
    simulation = Simulation(prefetch=4)
    simulation.send(10)
    consumer = simulation.consumers[0]
    sizes = []
    while batches := consumer.receive(0.1):
        sizes.append(sum(len(batch.starts) for batch in batches))
        assert consumer.receive(0.1) == []
        consumer.settle()
    assert sizes == [4, 4, 2]


def test_what_a_consumer_did_not_settle_comes_again_and_is_flagged() -> None:
    """The next consumer gets it in order, marked as redelivered, and the ledger knows it for that."""
    simulation = Simulation(consumers=2, prefetch=10)
    first, second = simulation.consumers
    simulation.send(10)
    for batch in first.receive(0.1):
        simulation.books[0].receive(simulation.parse(batch), batch.source, batch.redelivered)
    first.close()
    simulation.consumers, simulation.books = [second], [simulation.books[1], simulation.books[0]]
    simulation.drain()
    account = simulation.account()
    assert (account.distinct, account.duplicated, account.dup_redelivery, account.lost) == (10, 10, 10, 0)


def test_automatic_acknowledgement_redelivers_nothing() -> None:
    """What was delivered is gone, settled or not."""
    simulation = Simulation(ack="automatic")
    simulation.send(10)
    simulation.consumers[0].receive(0.1)
    assert simulation.admin.depth(simulation.target) == 0


def test_without_confirms_nothing_is_settled() -> None:
    """At most once: written is done."""
    simulation = Simulation(confirms=False)
    simulation.send(10)
    assert simulation.producer.flush(0.1) == []
    assert sum(len(batch.starts) for batch in simulation.consumers[0].receive(0.1)) == 10


def test_the_window_is_the_room_and_comes_back_with_confirmations() -> None:
    """A producer has room for its window less what is unconfirmed; a Kafka-like buffer is a window too."""
    simulation = Simulation(confirm_window=10, memory__confirm_delay_ms=1)
    simulation.send(10)
    assert simulation.producer.room_msgs == 0
    simulation.producer.flush(1.0)
    assert simulation.producer.room_msgs == 10
    assert Simulation(confirm_window=None, buffer_memory=5_000).producer.room_msgs == 50


@pytest.mark.parametrize(
    ("settings_given", "words"),
    [
        ({"memory.lose_every": 2}, "no such setting"),
        ({"memory.loss_every": -1}, "at least 0"),
        ({"memory.delay_ms": "3"}, "at least 0"),
        ({"memory.loss_every": 2.5}, "whole number"),
        ({"memory.reorder_every": 1}, "at least 2"),
        ({"memory.delay_distribution": "normal"}, "exponential"),
        ({"memory.service_distribution": "normal"}, "exponential"),
        ({"memory.service_ms": 1, "memory.loss_every": 2}, "goes with no loss_every"),
        ({"memory.harm_log": 1}, "path"),
        ({"memory.pause_every_ms": 5, "memory.pause_ms": 5}, "longer"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings_given: dict[str, Any], words: str) -> None:
    """One line that says what was expected."""
    with pytest.raises(ScenarioError, match=words):
        Behaviour.of(settings_given)


def test_the_endpoint_may_carry_the_behaviour() -> None:
    """A trial whose settings say nothing has the endpoint's behaviour, and its own settings win."""
    clock = SimulatedClock()
    driver = MemoryDriver(clock)
    endpoint = memory_endpoint("kafka", loss_every=7, delay_ms=2)
    target = Target(endpoint, "queue", {"memory.delay_ms": 5})
    driver.admin(endpoint).create(target)
    told = driver.admin(endpoint).effective(target)
    assert (told["loss_every"], told["delay_ms"]) == (7, 5)


@pytest.fixture
def target() -> Iterator[Target]:
    """A queue in a process of its own."""
    target = target_of(f"test-{uuid.uuid4().hex[:8]}", confirm_window=5_000, prefetch=0)
    admin = load_driver("memory").admin(target.endpoint)
    admin.create(target)
    yield target
    admin.delete(target)


def _produce(target: Target, producer: int, count: int) -> None:
    """A producer process: send everything, wait for every confirmation."""
    payloads = Payloads(FIXED, seed=1, token=7, producer=producer)
    client = load_driver("memory").producer(target, payloads)
    sent = 0
    while sent < count:
        number = min(client.room_msgs, count - sent, 700)
        if number:
            client.send(sent, np.full(number, sent), sent)
            sent += number
        client.poll(0 if number else 1.0)
    client.flush(10.0)
    client.close()


def test_processes_share_a_queue(target: Target) -> None:
    """Producers in two processes and one consumer here: everything arrives once and intact."""
    context = forkserver()
    count = 20_000
    processes = [context.Process(target=_produce, args=(target, producer, count)) for producer in (0, 1)]
    for process in processes:
        process.start()
    consumer = load_driver("memory").consumer(target, 0, 1)
    payloads, book = Payloads(FIXED, seed=1, token=7), ReceivedBook()
    for _ in range(200):
        for batch in consumer.receive(0.5):
            book.receive(payloads.parse(batch.buffer, batch.starts, batch.sizes), batch.source, batch.redelivered)
        consumer.settle()
        if book.received_count == 2 * count:
            break
    for process in processes:
        process.join()
    consumer.close()
    books = [SentBook(producer) for producer in (0, 1)]
    for each in books:
        each.sent(count)
        each.confirmed(np.arange(count))
    account = settle(books, [book])
    assert (account.distinct, account.lost, account.duplicated, account.corrupted) == (2 * count, 0, 0, 0)
    assert account.out_of_order == 0
    admin = load_driver("memory").admin(target.endpoint)
    assert (admin.depth(target), admin.stored(target)) == (0, 2 * count)


def test_a_full_queue_holds_its_producers_back() -> None:
    """Beyond `memory.max_bytes` the broker reads no more, and what waited is all there afterwards."""
    target = target_of(f"test-{uuid.uuid4().hex[:8]}", confirm_window=100_000, memory__max_bytes=1_000_000)
    driver = load_driver("memory")
    admin = driver.admin(target.endpoint)
    admin.create(target)
    payloads = Payloads(FIXED, seed=1, token=7)
    producer, consumer = driver.producer(target, payloads), driver.consumer(target, 0, 1)
    sent = 0
    for first in range(0, 100_000, 5_000):
        producer.send(first, np.zeros(5_000, np.int64), 0)
        sent += 5_000
    settled = sum(len(each.seqs) for each in producer.poll(0.2))
    stored = admin.stored(target)
    assert stored is not None
    assert stored < sent
    received = 0
    while received < sent:
        settled += sum(len(each.seqs) for each in producer.poll(0))
        received += sum(len(batch.starts) for batch in consumer.receive(0.01))
        consumer.settle()
    settled += sum(len(each.seqs) for each in producer.flush(5.0))
    assert settled == sent
    for client in (producer, consumer, admin):
        client.close()
    admin.delete(target)


def test_an_existing_queue_is_an_error_and_a_missing_one_too(target: Target) -> None:
    """Create refuses a name in use, delete forgives a queue that is gone, clients are told that there is none."""
    driver = load_driver("memory")
    admin = driver.admin(target.endpoint)
    with pytest.raises(BrokerError, match="exists"):
        admin.create(target)
    missing = replace(target, name="missing")
    admin.delete(missing)
    with pytest.raises(BrokerError, match="no such queue"):
        driver.consumer(missing, 0, 1)


def test_a_queue_that_goes_away_fails_the_trial(target: Target) -> None:
    """Clients of a deleted queue raise TrialError, and close all the same."""
    driver = load_driver("memory")
    producer = driver.producer(target, Payloads(FIXED, seed=1, token=7))
    consumer = driver.consumer(target, 0, 1)
    driver.admin(target.endpoint).delete(target)
    with pytest.raises(TrialError, match="went away"):
        producer.poll(1.0)
    with pytest.raises(TrialError, match="went away"):
        consumer.receive(1.0)
    producer.close()
    consumer.close()
