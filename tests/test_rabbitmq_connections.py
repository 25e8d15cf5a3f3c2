"""RabbitMQ's connections, channels, prefetch, windows and heartbeats, as the broker or the wire shows them."""

from __future__ import annotations

import contextlib
import re
import time
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

import numpy as np
import psutil
import pytest
from patience import PATIENCE_S, until

from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.rabbitmq_admin import RabbitMQAdmin
from loadgen.drivers.rabbitmq_management import management_request
from loadgen.errors import ScenarioError
from loadgen.knobs import resolve
from loadgen.ledger import ReceivedBook, SentBook, settle
from loadgen.payload import Payloads
from loadgen.plan import Profile, make_plan
from loadgen.scenario import Message, RabbitMQ, Rate, Scenario
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadgen.endpoint import Endpoint

DRIVERS = ("amqp", "pika", "pika-blocking", "aio-pika")
PAYLOADS = Payloads(Message(size_bytes=100), seed=1, token=2)
SHORT = Profile("short", warmup_s=0.0, duration_s=1.0, repeats=1)


@pytest.fixture
def make_target(rabbitmq_endpoint: Endpoint) -> Iterator[Callable[..., Target]]:
    """Makes fresh targets of validated knobs, deleted after the test."""
    with contextlib.ExitStack() as closing:
        admin = closing.enter_context(contextlib.closing(RabbitMQAdmin(rabbitmq_endpoint)))

        def make(durability: str = "broker", **knobs: Any) -> Target:
            settings = resolve("rabbitmq", knobs, durability, "default")
            target = Target(rabbitmq_endpoint, f"connections-{uuid4().hex[:8]}", settings)
            admin.create(target)
            closing.callback(admin.delete, target)
            return target

        yield make


@pytest.fixture
def close_all() -> Iterator[contextlib.ExitStack]:
    """Closes clients at the test's end."""
    with contextlib.ExitStack() as stack:
        yield stack


def told(endpoint: Endpoint, path: str) -> Any:
    """What the management API answers."""
    return management_request(endpoint, path)


def consumers_of(target: Target) -> list[tuple[str, int, int]]:
    """The queue's consumers by the broker's own view: connection, channel number, prefetch."""
    found = told(target.endpoint, f"consumers/{quote(target.endpoint.virtual_host, safe='')}")
    return [
        (each["channel_details"]["connection_name"], each["channel_details"]["number"], each["prefetch_count"])
        for each in found
        if each["queue"]["name"] == target.name and each["channel_details"]  # which are not there at first
    ]


def pass_on(producer: Any, consumer: Any, count: int, first: int = 0) -> tuple[SentBook, ReceivedBook]:
    """Send so many messages and receive them meanwhile, each settled."""
    sent, received = SentBook(0), ReceivedBook()
    at, deadline = 0, time.monotonic() + PATIENCE_S
    while received.received_count < count or sent.confirmed_count < count:
        assert time.monotonic() < deadline, f"{received.received_count} of {count} came"
        if number := min(producer.room_msgs, count - at, 7):
            now = time.monotonic_ns()
            producer.send(first + at, np.full(number, now), now)
            sent.sent(number)
            at += number
        for settled in producer.poll(0.001):
            assert settled.error is None
            sent.confirmed(settled.seqs - first)
        for batch in consumer.receive(0.001):
            received.receive(PAYLOADS.parse(batch.buffer, batch.starts, batch.sizes), batch.source, batch.redelivered)
        consumer.settle()
    return sent, received


@pytest.mark.parametrize(("connections", "channels"), [(1, 3), (2, 1), (2, 2)])
def test_a_process_has_several_connections_and_channels(
    make_target: Any, close_all: contextlib.ExitStack, connections: int, channels: int
) -> None:
    """The broker sees as many connections with as many channels each, each of them takes part, and nothing is lost."""
    target = make_target(
        connections_per_process=connections, channels_per_connection=channels, prefetch=20, confirm_window=100
    )
    driver = load_driver("amqp")
    producer, consumer = driver.producer(target, PAYLOADS), driver.consumer(target, 0, 1)
    close_all.callback(producer.close)
    close_all.callback(consumer.close)

    def consume_everywhere() -> bool:
        seen = consumers_of(target)
        by_connection = Counter(connection for connection, _, _ in seen)
        return (
            sorted(by_connection.values()) == [channels] * connections
            and {number for _, number, _ in seen} == set(range(1, channels + 1))
            and {prefetch for _, _, prefetch in seen} == {20}
        )

    assert until(consume_everywhere)
    sent, received = pass_on(producer, consumer, 3_000)
    account = settle([sent], [received])
    assert (account.distinct, account.duplicated, account.corrupted, account.lost) == (3_000, 0, 0, 0)
    seen_publishing: set[tuple[str, int]] = set()

    def publish_everywhere() -> bool:
        for each in told(target.endpoint, "channels"):
            if each.get("confirm") and each.get("message_stats", {}).get("publish"):
                seen_publishing.add((each["connection_details"]["name"], each["number"]))
        return len(seen_publishing) >= connections * channels

    assert until(publish_everywhere)


def test_failures_and_priorities_work_on_every_channel(make_target: Any, close_all: contextlib.ExitStack) -> None:
    """What depends on single deliveries is told on the channel that they came by."""
    target = make_target(
        connections_per_process=2, channels_per_connection=2, prefetch=10, requeue_every=10, priorities=3
    )
    driver = load_driver("amqp")
    producer, consumer = driver.producer(target, PAYLOADS), driver.consumer(target, 0, 1)
    close_all.callback(producer.close)
    close_all.callback(consumer.close)
    sent, received = pass_on(producer, consumer, 1_100)
    while received.received_count < 1_100:  # a hundred and more came again
        for batch in consumer.receive(0.1):
            received.receive(PAYLOADS.parse(batch.buffer, batch.starts, batch.sizes), batch.source, batch.redelivered)
        consumer.settle()
    deadline = time.monotonic() + PATIENCE_S
    while (account := settle([sent], [received])).duplicated < 110 and time.monotonic() < deadline:
        for batch in consumer.receive(0.1):
            received.receive(PAYLOADS.parse(batch.buffer, batch.starts, batch.sizes), batch.source, batch.redelivered)
        consumer.settle()
    assert (account.distinct, account.duplicated, account.dup_redelivery, account.lost) == (1_100, 110, 110, 0)
    assert consumer.failed == {"requeued": 110, "failed": 0, "rejected": 0}


def test_connections_are_opened_anew(rabbitmq_endpoint: Endpoint) -> None:
    """A trial with churn is accounted for exactly, and each opening's time is recorded as a kind of its own."""
    knobs = RabbitMQ(reconnect_every_s=0.2, connections_per_process=2, prefetch=10, ack_every=1)
    scenario = Scenario(
        name="churn", question="?", message=Message(size_bytes=100), rate=Rate.fixed(500), rabbitmq=knobs
    )
    (trial,) = make_plan([scenario], SHORT).trials
    record, outcome = run_trial(trial, Setting(rabbitmq_endpoint, lambda _: None))
    assert outcome.error is None, outcome.traceback
    assert record["sent"] == record["acked"] == 500
    assert [record[name] for name in ("lost", "duplicated", "corrupted", "missing_msgs")] == [0, 0, 0, 0]
    connects = record["latency_ns"]["connect"]
    assert 4 <= connects["count"] <= 20  # two processes, two connections each, five times a second at the most
    assert connects["min"] > 0


def opened(endpoint: Endpoint) -> tuple[int, int]:
    """How many connections and channels the broker has ever opened, by its own count."""
    with urllib.request.urlopen(str(endpoint.prometheus_url)) as answer:  # noqa: S310
        page = answer.read().decode()
    counts = dict(re.findall(r"^rabbitmq_(connections|channels)_opened_total (\d+)$", page, re.MULTILINE))
    return int(counts["connections"]), int(counts["channels"])


def test_churn_is_seen_by_the_broker(make_target: Any, close_all: contextlib.ExitStack) -> None:
    """It counts connections and their channels as they are opened anew; nothing is lost on the way or comes twice."""
    target = make_target(reconnect_every_s=0.1, channels_per_connection=3, prefetch=5)
    driver = load_driver("amqp")
    before = opened(target.endpoint)
    producer, consumer = driver.producer(target, PAYLOADS), driver.consumer(target, 0, 1)
    close_all.callback(producer.close)
    close_all.callback(consumer.close)
    connects = 2
    sent, received = pass_on(producer, consumer, 200)
    deadline = time.monotonic() + PATIENCE_S
    while connects < 6 and time.monotonic() < deadline:
        producer.poll(0.05)
        consumer.receive(0.05)
        connects += len(producer.take_connects()) + len(consumer.take_connects())
    connections, channels = (after - then for after, then in zip(opened(target.endpoint), before, strict=True))
    assert connections >= connects >= 6
    assert channels >= 3 * connects
    account = settle([sent], [received])
    assert (account.distinct, account.duplicated, account.lost) == (200, 0, 0)
    again, rest = pass_on(producer, consumer, 50, first=200)
    assert (again.confirmed_count, rest.received_count) == (50, 50)


def listed(endpoint: Endpoint) -> dict[str, tuple[int, bool, int | None]]:
    """By queue what the broker lists of its consumer: prefetch, whether it acknowledges, its connection's heartbeat."""
    beats = {each["name"]: each.get("timeout") for each in told(endpoint, "connections")}
    found = told(endpoint, f"consumers/{quote(endpoint.virtual_host, safe='')}")
    return {
        each["queue"]["name"]: (
            each["prefetch_count"], each["ack_required"], beats.get(each["channel_details"]["connection_name"]),
        )
        for each in found
        if each["channel_details"]
    }  # fmt: skip


def our_ports(endpoint: Endpoint) -> set[int]:
    """Our ends of the connections that this process has to the broker."""
    found = psutil.Process().net_connections("tcp")
    return {each.laddr.port for each in found if each.raddr and each.raddr.port == endpoint.hosts[0][1]}


def confirming(endpoint: Endpoint) -> dict[int, bool | None]:
    """By our end's port, whether the channel is in confirm mode; None where that is not known yet."""
    found = [each for each in told(endpoint, "channels") if each.get("connection_details")]
    return {each["connection_details"]["peer_port"]: each.get("confirm") for each in found}


def test_clients_are_listed_as_asked_for(
    make_target: Any, close_all: contextlib.ExitStack, rabbitmq_endpoint: Endpoint
) -> None:
    """By the broker, each driver's prefetch (0 is no limit), acknowledgement, heartbeat, and confirms or none."""
    wanted: dict[str, tuple[int, bool, int]] = {}
    confirms: dict[int, bool] = {}
    for driver in DRIVERS:
        for durability, chosen, beat_s in (
            ("broker", {"prefetch": 0}, 31),
            ("broker", {"prefetch": 7}, 47),
            ("none", {}, 60),
        ):
            target = make_target(durability, heartbeat=beat_s, **chosen)
            close_all.callback(load_driver(driver).consumer(target, 0, 1).close)
            wanted[target.name] = (target.settings["prefetch"], durability != "none", beat_s)
            before = our_ports(rabbitmq_endpoint)
            close_all.callback(load_driver(driver).producer(target, PAYLOADS).close)
            (port,) = our_ports(rabbitmq_endpoint) - before
            confirms[port] = durability != "none"
    assert until(lambda: wanted.items() <= listed(rabbitmq_endpoint).items()), listed(rabbitmq_endpoint)
    assert until(lambda: confirms.items() <= confirming(rabbitmq_endpoint).items()), confirming(rabbitmq_endpoint)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_window_and_a_prefetch_of_one(make_target: Any, close_all: contextlib.ExitStack, driver: str) -> None:
    """There is room for one message until it is confirmed, and one comes until it is acknowledged."""
    target = make_target(prefetch=1, confirm_window=1)
    chosen = load_driver(driver)
    consumer, producer = chosen.consumer(target, 0, 1), chosen.producer(target, PAYLOADS)
    close_all.callback(consumer.close)
    close_all.callback(producer.close)
    for first in range(3):
        assert producer.room_msgs == 1
        now = time.monotonic_ns()
        producer.send(first, np.array([now]), now)
        if driver != "pika-blocking":  # which has waited for the confirm
            assert producer.room_msgs == 0
        (settled,) = producer.flush(PATIENCE_S)
        assert settled.seqs.tolist() == [first]
    got = [batch for batch in consumer.receive(PATIENCE_S) for _ in batch.starts]
    assert len(got) == 1
    assert consumer.receive(0.2) == []  # no more before that one is acknowledged
    consumer.settle()
    assert len(consumer.receive(PATIENCE_S)) == 1


def test_client_libraries_have_one_connection() -> None:
    """What a driver cannot do is refused before any broker is touched; so is what would lose messages."""
    for knobs in ({"channels_per_connection": 2}, {"connections_per_process": 2}, {"reconnect_every_s": 1.0}):
        scenario = Scenario(name="x", question="?", rate=Rate.saturate(), rabbitmq=RabbitMQ(driver="pika", **knobs))
        with pytest.raises(ScenarioError, match=next(iter(knobs))):
            make_plan([scenario], SHORT)
    with pytest.raises(ScenarioError, match="expected at least 4"):
        RabbitMQ(confirm_window=2) and Scenario(
            name="x", question="?", rate=Rate.saturate(),
            rabbitmq=RabbitMQ(confirm_window=2, channels_per_connection=2, connections_per_process=2),
        )  # fmt: skip
    for knobs in ({"channels_per_connection": 2}, {"connections_per_process": 2}, {"reconnect_every_s": 1.0}):
        with pytest.raises(ScenarioError, match=next(iter(knobs))):
            Scenario(name="x", question="?", rate=Rate.fixed(9), pattern="request_reply", rabbitmq=RabbitMQ(**knobs))
    with pytest.raises(ScenarioError, match="expected ack = manual"):
        Scenario(
            name="x", question="?", rate=Rate.saturate(), durability="none", rabbitmq=RabbitMQ(reconnect_every_s=1)
        )
