"""RabbitMQ's drivers against a real broker: they agree with each other byte for byte, and fail in one line."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

import numpy as np
import pika
import pytest
from patience import until

from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.rabbitmq_admin import RabbitMQAdmin, parameters_of
from loadgen.drivers.rabbitmq_management import management_request
from loadgen.endpoint import Credentials, Endpoint
from loadgen.errors import BrokerError, LoadgenError, TrialError
from loadgen.payload import Payloads
from loadgen.scenario import Message, Uniform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadgen.driver import Consumer, Producer, Settled

SETTINGS: dict[str, Any] = {
    "queue_type": "classic",
    "persistent": True,
    "confirms": True,
    "confirm_window": 100,
    "mandatory": False,
    "prefetch": 100,
    "ack": "manual",
    "ack_every": 10,
    "heartbeat": 60,
}
DRIVERS = ["amqp", "pika", "pika-blocking", "aio-pika"]
SIZES: dict[str, int | Uniform] = {
    "small": 100,
    "one frame": 131_064,
    "two frames": 131_065,
    "large": 700_000,
    "mixed": Uniform(min_bytes=24, max_bytes=200_000),
}
WAIT_S = 60.0


@cache
def payloads_of(size_bytes: int | Uniform) -> Payloads:
    """The payloads of a message size; their pool takes a moment to make."""
    return Payloads(Message(size_bytes=size_bytes), seed=1, token=9, producer=3)


@pytest.fixture(scope="module")
def admin(rabbitmq_endpoint: Endpoint) -> Iterator[RabbitMQAdmin]:
    """The control plane."""
    admin = RabbitMQAdmin(rabbitmq_endpoint)
    yield admin
    admin.close()


@pytest.fixture
def make_target(rabbitmq_endpoint: Endpoint, admin: RabbitMQAdmin) -> Iterator[Callable[..., Target]]:
    """Makes fresh queues, deleted after the test."""
    made: list[Target] = []

    def make(**knobs: Any) -> Target:
        target = Target(rabbitmq_endpoint, f"test-{uuid4().hex[:12]}", {**SETTINGS, **knobs})
        admin.create(target)
        made.append(target)
        return target

    yield make
    for target in made:
        admin.delete(target)


@pytest.fixture
def close_all() -> Iterator[contextlib.ExitStack]:
    """Closes clients at the test's end."""
    with contextlib.ExitStack() as stack:
        yield stack


def publish(producer: Producer, first_seq: int, count: int) -> list[Settled]:
    """Messages first_seq … as the window allows, until all are settled."""
    settled: list[Settled] = []
    sent = 0
    deadline = time.monotonic() + WAIT_S
    while sent < count:
        assert time.monotonic() < deadline, "the producer takes no more"
        if number := min(producer.room_msgs, count - sent):
            now = time.monotonic_ns()
            producer.send(first_seq + sent, np.full(number, now), now)
            sent += number
        settled += producer.poll(0 if producer.room_msgs else 0.1)
    return settled + producer.flush(WAIT_S)


def receive(consumer: Consumer, count: int, payloads: Payloads | None = None) -> list[tuple[int, bytes, bool]]:
    """So many messages, settled: sequence number, bytes, redelivered."""
    got: list[tuple[int, bytes, bool]] = []
    deadline = time.monotonic() + WAIT_S
    while len(got) < count:
        assert time.monotonic() < deadline, f"only {len(got)} of {count} came"
        for batch in consumer.receive(0.1):
            number = len(batch.starts)
            seqs = np.zeros(number, np.int64)
            if payloads is not None:
                parsed = payloads.parse(batch.buffer, batch.starts, batch.sizes)
                assert parsed.intact.all()
                seqs = parsed.seq
            flags = np.zeros(number, np.bool_) if batch.redelivered is None else batch.redelivered
            assert batch.read_ns <= batch.parsed_ns
            sizes = np.broadcast_to(batch.sizes, number)
            for seq, start, size, flag in zip(seqs, batch.starts, sizes, flags, strict=True):
                got.append((int(seq), batch.buffer[start : start + size].tobytes(), bool(flag)))
        consumer.settle()
    assert len(got) == count
    return got


def settled_seqs(settled: list[Settled]) -> list[int]:
    """All sequence numbers settled, in order of number."""
    return sorted(seq for each in settled for seq in each.seqs.tolist())


def one_line(error: BaseException) -> str:
    """The text, which must be one line without a password."""
    text = str(error)
    assert "\n" not in text
    assert "wrong-password" not in text
    return text


@pytest.mark.parametrize("size", SIZES)
def test_pika_reads_what_the_wire_writes(make_target: Any, size: str) -> None:
    """Bodies, delivery mode and order, as an independent client sees them."""
    target = make_target()
    payloads = payloads_of(SIZES[size])
    producer = load_driver("amqp").producer(target, payloads)
    settled = publish(producer, 5, 40)
    producer.close()
    assert settled_seqs(settled) == list(range(5, 45))
    assert all(each.error is None for each in settled)
    connection = pika.BlockingConnection(parameters_of(target.endpoint, 60))
    channel = connection.channel()
    bodies = []
    for _ in range(40):
        method, properties, body = channel.basic_get(target.name, auto_ack=True)
        assert method is not None
        assert properties.delivery_mode == 2
        assert not method.redelivered
        bodies.append(body)
    connection.close()
    sizes = np.array([len(body) for body in bodies])
    parsed = payloads.parse(np.frombuffer(b"".join(bodies), np.uint8), np.cumsum(sizes) - sizes, sizes)
    assert parsed.intact.all()
    assert parsed.seq.tolist() == list(range(5, 45))
    assert set(parsed.producer.tolist()) == {3}


@pytest.mark.parametrize("size", SIZES)
def test_the_wire_reads_what_pika_writes(make_target: Any, size: str, close_all: contextlib.ExitStack) -> None:
    """The same bytes in the same order, with properties that pika's user may set in the way."""
    target = make_target()
    payloads = payloads_of(SIZES[size])
    now = np.full(40, 1_000)
    flat, offsets = payloads.pack(1, now, 2_000)
    bodies = [flat[a:b].tobytes() for a, b in pairwise(offsets)]
    with pika.BlockingConnection(parameters_of(target.endpoint, 60)) as connection:
        channel = connection.channel()
        for at, body in enumerate(bodies):
            headers = {"x-odd": "y"} if at % 7 == 3 else None
            channel.basic_publish("", target.name, body, pika.BasicProperties(headers=headers))
    consumer = load_driver("amqp").consumer(target, 0, 1)
    close_all.callback(consumer.close)
    assert [body for _, body, _ in receive(consumer, 40)] == bodies


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
@pytest.mark.parametrize("reader", DRIVERS)
@pytest.mark.parametrize("writer", DRIVERS)
def test_every_driver_reads_every_other(
    make_target: Any, admin: Any, writer: str, reader: str, queue_type: str, close_all: contextlib.ExitStack
) -> None:
    """All confirmed once, all received once and in order, and nothing left in the queue."""
    target = make_target(queue_type=queue_type, ack_every=7)
    payloads = payloads_of(100)
    consumer = load_driver(reader).consumer(target, 0, 1)
    close_all.callback(consumer.close)
    producer = load_driver(writer).producer(target, payloads)
    close_all.callback(producer.close)
    settled = publish(producer, 0, 150)
    assert settled_seqs(settled) == list(range(150))
    assert [seq for seq, _, _ in receive(consumer, 150, payloads)] == list(range(150))
    assert consumer.receive(0.05) == []  # idle: the rest is acknowledged
    consumer.close()
    assert admin.depth(target) == 0


@pytest.mark.parametrize("driver", DRIVERS)
def test_at_most_once_settles_nothing(make_target: Any, driver: str, close_all: contextlib.ExitStack) -> None:
    """Without confirms nothing is settled, with automatic acks nothing is owed; all still arrive."""
    target = make_target(confirms=False, ack="automatic", persistent=False)
    payloads = payloads_of(100)
    producer = load_driver(driver).producer(target, payloads)
    close_all.callback(producer.close)
    assert publish(producer, 0, 150) == []
    consumer = load_driver(driver).consumer(target, 0, 1)
    close_all.callback(consumer.close)
    assert [seq for seq, _, _ in receive(consumer, 150, payloads)] == list(range(150))


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_prefetch_of_one_does_not_stall(make_target: Any, driver: str, close_all: contextlib.ExitStack) -> None:
    """Each message comes after the one before was settled, also where acks are to be gathered."""
    target = make_target(prefetch=1, ack_every=10)
    payloads = payloads_of(100)
    producer = load_driver(driver).producer(target, payloads)
    publish(producer, 0, 30)
    producer.close()
    consumer = load_driver(driver).consumer(target, 0, 1)
    close_all.callback(consumer.close)
    assert [seq for seq, _, _ in receive(consumer, 30, payloads)] == list(range(30))


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_was_not_settled_comes_again(
    make_target: Any, admin: Any, driver: str, close_all: contextlib.ExitStack
) -> None:
    """Closed before settling, a consumer leaves its messages to the next, which sees the broker's flag."""
    target = make_target()
    payloads = payloads_of(100)
    producer = load_driver(driver).producer(target, payloads)
    close_all.callback(producer.close)
    publish(producer, 0, 20)
    first = load_driver(driver).consumer(target, 0, 1)
    assert first.receive(WAIT_S)
    first.close()
    assert until(lambda: admin.depth(target) == 20)  # they are back a moment after the connection is closed
    publish(producer, 20, 5)
    assert admin.depth(target) == 25
    second = load_driver(driver).consumer(target, 0, 1)
    close_all.callback(second.close)
    got = receive(second, 25, payloads)
    assert [seq for seq, _, _ in got] == list(range(25))
    assert got[0][2]
    assert not any(flag for seq, _, flag in got if seq >= 20)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_mandatory_message_without_a_queue_is_returned(
    make_target: Any, admin: Any, driver: str, close_all: contextlib.ExitStack
) -> None:
    """Each is settled once, as returned, though the broker confirms it too."""
    target = make_target(mandatory=True)
    producer = load_driver(driver).producer(target, payloads_of(100))
    close_all.callback(producer.close)
    assert {each.error for each in publish(producer, 0, 10)} == {None}
    admin.delete(target)
    settled = publish(producer, 10, 20)
    assert settled_seqs(settled) == list(range(10, 30))
    assert {each.error for each in settled} == {"return: NO_ROUTE"}


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_refusing_queue_nacks(
    rabbitmq_endpoint: Endpoint, admin: Any, driver: str, close_all: contextlib.ExitStack
) -> None:
    """A full queue that rejects publishes settles every message once, the refused ones as `nack`."""
    target = Target(rabbitmq_endpoint, f"test-{uuid4().hex[:12]}", SETTINGS)
    with pika.BlockingConnection(parameters_of(rabbitmq_endpoint, 60)) as connection:
        arguments = {"x-queue-type": "classic", "x-max-length": 5, "x-overflow": "reject-publish"}
        connection.channel().queue_declare(target.name, durable=True, arguments=arguments)
    close_all.callback(admin.delete, target)
    producer = load_driver(driver).producer(target, payloads_of(100))
    close_all.callback(producer.close)
    settled = publish(producer, 0, 60)
    assert settled_seqs(settled) == list(range(60))
    errors = {seq: each.error for each in settled for seq in each.seqs.tolist()}
    assert set(errors.values()) == {None, "nack"}
    assert admin.depth(target) == sum(error is None for error in errors.values())


def test_a_robust_connection_comes_back(make_target: Any, close_all: contextlib.ExitStack) -> None:
    """Cut off, aio-pika connects again: what was under way is told as lost or confirmed, later messages come."""
    target = make_target()
    payloads, driver = payloads_of(100), load_driver("aio-pika")
    producer, consumer = driver.producer(target, payloads), driver.consumer(target, 0, 1)
    close_all.callback(producer.close)
    close_all.callback(consumer.close)
    publish(producer, 0, 3)
    assert [seq for seq, _, _ in receive(consumer, 3, payloads)] == [0, 1, 2]
    for client in (producer, consumer):
        for transport in list(client._link.loop._loop._transports.values()):  # type: ignore[attr-defined]
            transport.abort()
    seq, confirmed, deadline = 3, False, time.monotonic() + WAIT_S
    while not confirmed:
        assert time.monotonic() < deadline, "it does not connect again"
        (settled,) = publish(producer, seq, 1)
        assert settled.error is None or settled.error.startswith("lost: ")
        confirmed, seq = settled.error is None, seq + 1
    got: list[int] = []
    while seq - 1 not in got:
        assert time.monotonic() < deadline, "nothing more is consumed"
        for batch in consumer.receive(0.1):
            got += payloads.parse(batch.buffer, batch.starts, batch.sizes).seq.tolist()
        consumer.settle()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_deleted_queue_ends_its_consumer(
    make_target: Any, admin: Any, driver: str, close_all: contextlib.ExitStack
) -> None:
    """The broker's cancel is one line, not a consumer that waits for ever."""
    target = make_target()
    consumer = load_driver(driver).consumer(target, 0, 1)
    close_all.callback(consumer.close)
    admin.delete(target)
    with pytest.raises(TrialError, match="cancelled the consumer") as caught:
        receive(consumer, 1)
    one_line(caught.value)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_consumer_of_no_queue_is_told(rabbitmq_endpoint: Endpoint, driver: str) -> None:
    """The broker's own reason, in one line."""
    with pytest.raises(BrokerError, match="404 NOT_FOUND") as caught:
        load_driver(driver).consumer(Target(rabbitmq_endpoint, "no-such-queue", SETTINGS), 0, 1)
    one_line(caught.value)


def kill_connections(endpoint: Endpoint, ports: set[int]) -> None:
    """Have the broker close these connections (known by our port), by its management API."""
    deadline = time.monotonic() + WAIT_S
    while ports and time.monotonic() < deadline:  # the API learns of connections late
        for each in management_request(endpoint, "connections") or []:
            if each.get("peer_port") in ports:
                management_request(endpoint, f"connections/{quote(each['name'], safe='')}", "DELETE")
                ports = ports - {each["peer_port"]}
        time.sleep(0.2)
    assert not ports


def port_of(client: Any) -> int:
    """The local port of a wire driver's connection."""
    return int(client._connection._socket.getsockname()[1])


def test_a_connection_closed_by_force_is_told(make_target: Any, close_all: contextlib.ExitStack) -> None:
    """Producer and consumer both end with the broker's reason in one line."""
    target = make_target()
    driver = load_driver("amqp")
    producer, consumer = driver.producer(target, payloads_of(100)), driver.consumer(target, 0, 1)
    close_all.callback(producer.close)
    close_all.callback(consumer.close)
    publish(producer, 0, 10)
    kill_connections(target.endpoint, {port_of(producer), port_of(consumer)})
    for use in (lambda: publish(producer, 10, 200), lambda: receive(consumer, 500)):
        with pytest.raises(TrialError, match="320 CONNECTION_FORCED") as caught:
            use()
        one_line(caught.value)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_message_over_the_brokers_own_limit_is_one_line(
    make_target: Any, driver: str, close_all: contextlib.ExitStack
) -> None:
    """The limit that the broker tells is the one by which it refuses, with its own word; who knows it does not ask."""
    target = make_target(confirm_window=1)
    limit_bytes = target.endpoint.max_message_bytes
    assert limit_bytes == target.endpoint.configuration["environment"]["rabbit"]["max_message_size"] == 16 << 20
    taken = load_driver(driver).producer(target, payloads_of(limit_bytes))
    close_all.callback(taken.close)
    assert settled_seqs(publish(taken, 0, 1)) == [0]
    refused = load_driver(driver).producer(target, payloads_of(limit_bytes + 1))
    close_all.callback(refused.close)
    with pytest.raises(TrialError, match=f"406 PRECONDITION_FAILED .*{limit_bytes}") as caught:
        publish(refused, 0, 1)
    one_line(caught.value)


@pytest.mark.parametrize("driver", DRIVERS)
def test_wrong_credentials_are_told(rabbitmq_endpoint: Endpoint, driver: str) -> None:
    """One line that names the user and never the password, from each role and the control plane."""
    endpoint = replace(rabbitmq_endpoint, credentials=Credentials("somebody", "wrong-password"))
    target = Target(endpoint, "queue", SETTINGS)
    chosen = load_driver(driver)
    attempts: list[Callable[[], Any]] = [
        lambda: chosen.producer(target, payloads_of(100)),
        lambda: chosen.consumer(target, 0, 1),
        lambda: chosen.admin(endpoint),
    ]
    for attempt in attempts:
        with pytest.raises(BrokerError, match="refused the credentials of user somebody") as caught:
            attempt()
        assert endpoint.address in one_line(caught.value)


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_unknown_virtual_host_is_told(rabbitmq_endpoint: Endpoint, driver: str) -> None:
    """The broker's refusal of a virtual host is not mistaken for wrong credentials."""
    endpoint = replace(rabbitmq_endpoint, virtual_host="no-such-host")
    with pytest.raises(BrokerError, match="no-such-host") as caught:
        load_driver(driver).producer(Target(endpoint, "queue", SETTINGS), payloads_of(100))
    one_line(caught.value)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_wrong_port_is_told(rabbitmq_endpoint: Endpoint, driver: str) -> None:
    """A port where nobody listens is one line that names it."""
    endpoint = replace(rabbitmq_endpoint, hosts=(("127.0.0.1", 1),))
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1") as caught:
        load_driver(driver).producer(Target(endpoint, "queue", SETTINGS), payloads_of(100))
    assert "refused" in one_line(caught.value)


def test_the_first_host_that_answers_is_used(rabbitmq_endpoint: Endpoint, make_target: Any) -> None:
    """A cluster's dead member does not keep clients away."""
    endpoint = replace(rabbitmq_endpoint, hosts=(("127.0.0.1", 1), *rabbitmq_endpoint.hosts))
    target = replace(make_target(), endpoint=endpoint)
    for driver in DRIVERS:
        producer = load_driver(driver).producer(target, payloads_of(100))
        assert settled_seqs(publish(producer, 0, 3)) == [0, 1, 2]
        producer.close()


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_the_control_plane_tells_the_truth(make_target: Any, admin: RabbitMQAdmin, queue_type: str) -> None:
    """Creation is fresh or refused, depth counts, the configuration is the broker's own, deleting twice is fine."""
    target = make_target(queue_type=queue_type)
    with pytest.raises(BrokerError, match="already") as caught:
        admin.create(target)
    one_line(caught.value)
    producer = load_driver("amqp").producer(target, payloads_of(100))
    publish(producer, 0, 12)
    producer.close()
    assert admin.depth(target) == 12
    assert admin.stored(target) is None
    effective = admin.effective(target)
    assert effective["durable"] is True
    assert effective["arguments"]["x-queue-type"] == queue_type
    declared = RabbitMQAdmin(replace(target.endpoint, management_url=None))
    assert declared.effective(target)["arguments"]["x-queue-type"] == queue_type
    declared.close()
    admin.delete(target)
    admin.delete(target)
    with pytest.raises(LoadgenError, match="no queue") as caught:
        admin.depth(target)
    one_line(caught.value)


def test_the_control_plane_survives_a_lost_connection(make_target: Any, admin: RabbitMQAdmin) -> None:
    """An admin whose connection has gone makes a new one."""
    target = make_target()
    admin._connection.close()
    assert admin.depth(target) == 0


UNDER_GEVENT = """
from gevent import monkey
monkey.patch_all()
import json, sys, time
import gevent, numpy as np
from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.endpoint import Credentials, Endpoint
from loadgen.payload import Payloads
from loadgen.scenario import Message

host, port, user, password, queue = json.load(sys.stdin)
endpoint = Endpoint("rabbitmq", ((host, port),), Credentials(user, password))
settings = dict(persistent=True, mandatory=False, confirms=True, confirm_window=50, heartbeat=60)
settings |= dict(prefetch=50, ack="manual", ack_every=10)
target, payloads = Target(endpoint, queue, settings), Payloads(Message(size_bytes=100), 1, 2)
driver = load_driver("amqp")
seqs, waits = [], []

def consume():
    consumer = driver.consumer(target, 0, 1)
    while len(seqs) < 300:
        for batch in consumer.receive(0.2):
            seqs.extend(payloads.parse(batch.buffer, batch.starts, batch.sizes).seq.tolist())
        consumer.settle()
    consumer.close()

def produce():
    gevent.sleep(0.3)  # the consumer waits meanwhile: it must not hold the hub
    producer = driver.producer(target, payloads)
    for first in range(0, 300, 10):
        while producer.room_msgs < 10:
            producer.poll(0.1)
        now = time.monotonic_ns()
        producer.send(first, np.full(10, now), now)
    producer.flush(5)
    producer.close()

def tick():
    while True:
        waits.append(time.monotonic())
        gevent.sleep(0.01)

gevent.spawn(tick)
gevent.joinall([gevent.spawn(consume), gevent.spawn(produce)], raise_error=True, timeout=20)
assert seqs == list(range(300)), len(seqs)
assert len(waits) > 10, len(waits)
print("done")
"""


def test_the_wire_shares_a_gevent_hub(make_target: Any) -> None:
    """A waiting consumer lets other greenlets run, and batches pass as ever."""
    target = make_target()
    credentials = target.endpoint.credentials or Credentials("guest", "guest")
    host, port = target.endpoint.hosts[0]
    where = json.dumps([host, port, credentials.username, credentials.password, target.name])
    done = subprocess.run(
        [sys.executable, "-c", UNDER_GEVENT], input=where, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
