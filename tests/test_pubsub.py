"""Publish-subscribe: every subscriber receives every message, and whatever is counted says so."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pytest
from patience import PATIENCE_S
from verdicts import BUSY, against, due

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario, ceiling, engine, sites, verdict
from loadgen.analysis.capacity import capacities
from loadgen.board import Board, Cell
from loadgen.ceiling import measure_ceiling
from loadgen.checks import Check, accounting
from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.kafka_admin import KafkaAdmin
from loadgen.drivers.memory import memory_endpoint
from loadgen.endpoint import Endpoint
from loadgen.engine import Options, execute
from loadgen.knobs import resolve
from loadgen.ledger import ReceivedBook, SentBook, settle
from loadgen.nullbroker import null_broker
from loadgen.payload import Payloads
from loadgen.plan import Profile, make_plan
from loadgen.producing import ProducerAgent
from loadgen.report.capacity import capacity_blocks
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Driver
    from loadgen.endpoint import BrokerName
    from loadgen.runs import Run

SHORT = Profile("test", warmup_s=0.3, duration_s=1.0, repeats=1)
COUNT = 200
WAIT_S = PATIENCE_S
SERVICE_MS = 2.0
ENOUGH = 300.0


def trial_record(endpoint: Endpoint, knobs: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The record of one short trial."""
    part = RabbitMQ if endpoint.broker == "rabbitmq" else Kafka
    values: dict[str, Any] = {"name": "pubsub", "question": "?", "message": Message(size_bytes=200)}
    values |= {"rate": Rate.fixed(400), endpoint.broker: part(**(knobs or {}))}
    plan = make_plan([Scenario(**{**values, **changes})], SHORT, brokers=(endpoint.broker,))
    record, outcome = run_trial(plan.trials[0], Setting(endpoint, lambda _: None))
    assert outcome.error is None, outcome.traceback or outcome.error
    return record


def demand_fan_out(record: dict[str, Any], subscribers: int) -> None:
    """All of them received everything once and intact, and no check of the accounts is against it."""
    assert record["subscribers"] == subscribers
    assert record["received"] == subscribers * record["sent"] > 0
    assert [record[each] for each in ("lost", "duplicated", "corrupted", "foreign")] == [0] * 4
    assert record["broker_counts"]["depth_at_end"] == 0
    # How busy the machine is, is none of this test's.
    failed = against(record, BUSY)
    assert not failed, failed


# --- in memory: the logic ---


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_an_open_loop_counts_for_every_subscriber(broker: BrokerName) -> None:
    """Rates, the number under way and the account are those of three subscribers with consumers that compete."""
    record = trial_record(memory_endpoint(broker, delay_ms=50), {"partitions": 2} if broker == "kafka" else {},
                          subscribers=3, consumers=2)  # fmt: skip
    demand_fan_out(record, 3)
    assert record["offered_msgs_per_s"] == 400
    assert due(record) == 520
    assert record["latency_ns"]["e2e"]["count"] == 3 * 400
    assert bool(record["missing_msgs"]) == ("unsent" in record["errors"])
    # Each message is under way for 50 ms, three times: by Little's law 60 are, where 20 would be one subscriber's.
    assert record["under_way"]["mean_msgs"] > 40
    assert record["little"]["agrees"] is not False


def test_what_one_message_loses_is_lost_to_all() -> None:
    """Losses and duplicates are counted for each subscriber; nothing is confirmed lost that was not."""
    endpoint = memory_endpoint("rabbitmq", loss_every=50, duplicate_every=70)
    record = trial_record(endpoint, subscribers=2, durability=Durability.BROKER)
    lost, doubled = record["sent"] // 50, record["sent"] // 70 - record["sent"] // 350
    assert (record["lost"], record["confirmed_lost"], record["duplicated"]) == (2 * lost, 2 * lost, 2 * doubled)
    assert record["verdict"]["status"] == "invalid"


def test_a_closed_loop_without_confirms_goes_on_to_its_end() -> None:
    """What bounds it is the least received, and with three subscribers that is enough to go on."""
    record = trial_record(
        memory_endpoint("rabbitmq"), {"confirm_window": 100}, subscribers=3, rate=Rate.saturate(),
        durability=Durability.NONE,
    )  # fmt: skip
    demand_fan_out(record, 3)


@pytest.mark.parametrize(("received", "allowed"), [((100, 40), 40), ((100, 100), 100), ((100, 0), 0)])
def test_the_window_counts_from_the_slowest_subscriber(received: tuple[int, int], allowed: int) -> None:
    """Of 100 messages in a window of 100, what one has and the other has not is still under way."""
    board = Board.create(3)
    try:
        for row, count in enumerate(received, 1):
            board.cells[row, Cell.SUBSCRIBER], board.cells[row, Cell.RECEIVED] = row - 1, count
        board.cells[3, Cell.SENT] = 100
        spec = SimpleNamespace(consumers=1, count=1, target=SimpleNamespace(subscribers=2))
        agent = SimpleNamespace(
            spec=spec, board=board, confirms=False, last_progress=(0, 0), forgiven=0, window_msgs=100, send_msgs=25
        )
        assert ProducerAgent._allowed(agent, 1) == allowed  # type: ignore[arg-type]
    finally:
        board.remove()


def test_the_least_received_is_that_of_the_subscriber_furthest_behind() -> None:
    """Consumers of one subscriber add up, producers count for nobody."""
    board = Board.create(5)
    try:
        for row, (subscriber, received) in enumerate([(0, 5), (0, 6), (1, 9), (1, 1), (0, 0)], 1):
            board.cells[row, Cell.SUBSCRIBER], board.cells[row, Cell.RECEIVED] = subscriber, received
            board.cells[row, Cell.SENT] = 50 * (row == 5)
        assert board.least_received(2) == 10
        assert board.least_received(1) == board.total(Cell.RECEIVED) == 21
        assert board.least_received(3) == 0  # one of which nothing has come yet
    finally:
        board.remove()


class Silent:
    """A listener that remembers what stays."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        """A line that stays."""
        self.lines.append(text)

    def progress(self, text: str) -> None:
        """A line that the next one replaces."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Silent]:
    """A capacity search with three subscribers, at a queue that takes 2 ms for a message.

    It looks no further than it was asked to; how it comes to a rate of producing is asked in test_search_budget.py.
    """
    scenario = Scenario(
        name="fan-out", question="?", message=Message(size_bytes=100), subscribers=3,
        rate=Rate.search(enough_msgs_per_s=ENOUGH), rabbitmq=RabbitMQ(confirm_window=100), warmup_s=0.3, duration_s=1.6,
    )  # fmt: skip
    plan = make_plan([scenario], Profile("test", 0.3, 1.6, 1, search_budget_s=180.0), brokers=("rabbitmq",))
    options = Options("fan-out", ["test"], results=tmp_path_factory.mktemp("r"), brokers="memory")
    listener = Silent()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sites, "memory_endpoint", lambda name: memory_endpoint(name, service_ms=SERVICE_MS))
        # A machine that is busy with something else is looked at in other tests.
        patch.setattr(verdict, "CHECKERS", (accounting.check_traffic, accounting.check_loss))
        patch.setattr(engine, "versions_changed", lambda _: Check("versions", passed=True, reason=""))
        patch.setattr(ceiling, "OPEN_SHARES", ())  # of a search that ended below what is enough
        return execute(plan, options, listener), listener


def test_a_capacity_is_the_rate_of_producing(searched: tuple[Run, Silent]) -> None:
    """It is no higher than the rate that is enough, however many receive it; what they consumed stands beside it."""
    run, listener = searched
    (told,) = run.header["searches"]
    found = told["capacity_msgs_per_s"]
    assert 0 < found <= ENOUGH
    assert told["subscribers"] == 3
    assert 2 * found < told["consumed_msgs_per_s"]
    assert any("consumed by 3 subscribers" in line for line in listener.lines)


def test_the_report_tells_produced_from_consumed(searched: tuple[Run, Silent]) -> None:
    """The capacity's line names the subscribers and what they consumed together."""
    run, _ = searched
    (block,) = capacity_blocks(run, capacities(run))
    assert block.load == "100 B, 3 subscribers with 1 consumer each"
    assert "consumed" in block.lines[0].rate.interval


# --- the null broker, by which ceilings are measured ---


@pytest.mark.parametrize(
    ("driver", "rate"), [("amqp", Rate.saturate()), ("amqp", Rate.fixed(400)), ("kafka", Rate.saturate())]
)
def test_a_null_broker_serves_every_subscriber(driver: str, rate: Rate) -> None:
    """Saturated and paced, two subscribers of one queue, or one group, each receive everything once."""
    broker: BrokerName = "kafka" if driver == "kafka" else "rabbitmq"
    with null_broker(broker) as endpoint:
        demand_fan_out(trial_record(endpoint, {"driver": driver}, subscribers=2, rate=rate), 2)


def test_a_ceiling_with_subscribers_is_of_producing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there with a fan-out; with queues that share the load the record says that none is known."""
    monkeypatch.setattr(ceiling, "WARMUP_S", 0.2)
    monkeypatch.setattr(ceiling, "OPEN_SHARES", ())
    nowhere = Endpoint("rabbitmq", (("127.0.0.1", 9),))

    def measured(queues: int, subscribers: int) -> dict[str, Any]:
        knobs = {"rabbitmq": RabbitMQ(queues=queues), "subscribers": subscribers}
        scenario = Scenario(name="c", question="?", rate=Rate.fixed(10), **knobs)
        trial = make_plan([scenario], SHORT, brokers=("rabbitmq",)).trials[0]
        return measure_ceiling(trial, Setting(nowhere, lambda _: None), 1.5)

    found = measured(queues=1, subscribers=2)
    assert found["error"] is None
    assert found["subscribers"] == 2
    assert found["achieved_msgs_per_s"] > 10
    unknown = measured(queues=2, subscribers=1)
    assert unknown["achieved_msgs_per_s"] is None
    assert "no ceiling is known" in unknown["error"]


# --- real brokers ---


@pytest.fixture(params=["rabbitmq", "kafka"])
def endpoint(request: pytest.FixtureRequest) -> Endpoint:
    """Both brokers in turn."""
    found: Endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    return found


def test_a_trial_with_two_subscribers_on_a_real_broker(endpoint: Endpoint) -> None:
    """Everything comes twice, and the broker's configuration in the record names how."""
    record = trial_record(endpoint, subscribers=2)
    demand_fan_out(record, 2)
    if endpoint.broker == "rabbitmq":
        told = record["broker_configuration"]
        assert told["source"] == "management API"
        assert (told["exchange"]["type"], told["bindings"], len(told["queues"])) == ("fanout", 2, 2)
    else:
        assert record["broker_counts"]["stored"] == record["sent"]  # once, however many read it


@pytest.mark.parametrize("driver", ["kafka", "confluent", "memory"])
def test_each_subscriber_reads_by_itself(driver: str, request: pytest.FixtureRequest) -> None:
    """Two consumers share the messages of one subscriber, and the other receives all of them, too."""
    where = memory_endpoint("kafka") if driver == "memory" else request.getfixturevalue("kafka_endpoint")
    with fan_out(load_driver(driver), where, partitions=2) as (target, sent):
        readers = [(0, 0, 2), (0, 1, 2), (1, 0, 1)]
        with contextlib.ExitStack() as closing:
            books = read(driver, target, readers, closing)
        account = settle([sent], books)
        assert (account.received, account.distinct, account.lost, account.duplicated) == (2 * COUNT, 2 * COUNT, 0, 0)
        if driver != "memory":
            assert {book.group: book.received_count for book in books[1:]}["1"] == COUNT


@pytest.mark.parametrize("driver", ["kafka", "confluent"])
def test_kafka_knows_a_group_for_each_subscriber(driver: str, kafka_endpoint: Endpoint) -> None:
    """By the broker's own offsets: each group commits by itself, and the depth is what both have yet to read."""
    admin = KafkaAdmin(kafka_endpoint)
    with fan_out(load_driver(driver), kafka_endpoint, partitions=1) as (target, _):
        assert len(set(target.groups)) == 2
        assert admin.depth(target) == admin.depth(target, 0) == 2 * COUNT
        assert admin.depth(target, COUNT) == COUNT
        with contextlib.ExitStack() as closing:
            read(driver, target, [(1, 0, 1)], closing)
        assert [admin.committed(target, group, [0]) for group in target.groups] == [{}, {0: COUNT}]
        assert admin.depth(target) == COUNT
        with contextlib.ExitStack() as closing:
            read(driver, target, [(0, 0, 1)], closing)
        assert [admin.committed(target, group, [0]) for group in target.groups] == [{0: COUNT}, {0: COUNT}]
        assert admin.depth(target) == 0
        groups = admin._client.list_consumer_groups().result(WAIT_S).valid
        assert {each.group_id for each in groups} >= set(target.groups)
    left = {each.group_id for each in admin._client.list_consumer_groups().result(WAIT_S).valid}
    assert not left & set(target.groups)


@contextlib.contextmanager
def fan_out(driver: Driver, endpoint: Endpoint, partitions: int) -> Iterator[tuple[Target, SentBook]]:
    """A topic for two subscribers in which messages wait, removed afterwards."""
    name = f"pubsub-{uuid4().hex[:8]}"
    settings = resolve("kafka", {"partitions": partitions, "auto_commit_interval_ms": 50}, "broker", "default")
    target = Target(endpoint, name, settings, group=name, subscribers=2)
    admin = driver.admin(endpoint)
    admin.create(target)
    try:
        book = SentBook(0)
        with contextlib.closing(driver.producer(target, Payloads(Message(size_bytes=100), 1, 2))) as producer:
            settled = []
            for first in range(0, COUNT, 20):
                now = time.monotonic_ns()
                producer.send(first, np.full(20, now), now)
                settled += producer.poll(0)
            settled += producer.flush(WAIT_S)
        book.sent(COUNT)
        for each in settled:
            book.confirmed(each.seqs)
        yield target, book
    finally:
        admin.delete(target)
        admin.close()


def read(
    driver: str, target: Target, readers: list[tuple[int, int, int]], closing: contextlib.ExitStack
) -> list[ReceivedBook]:
    """What consumers, given as (subscriber, index, count), receive until each subscriber has had everything."""
    payloads = Payloads(Message(size_bytes=100), 1, 2)
    books = [ReceivedBook(str(subscriber)) for subscriber, _, _ in readers]
    consumers = [load_driver(driver).consumer(target.of(sub), index, count) for sub, index, count in readers]
    for each in consumers:
        closing.callback(each.close)
    wanted = COUNT * len({subscriber for subscriber, _, _ in readers})
    deadline = time.monotonic() + WAIT_S
    while sum(book.received_count for book in books) < wanted and time.monotonic() < deadline:
        for consumer, book in zip(consumers, books, strict=True):
            for batch in consumer.receive(0.02):
                book.receive(payloads.parse(batch.buffer, batch.starts, batch.sizes), batch.source, batch.redelivered)
            consumer.settle()
    return books
