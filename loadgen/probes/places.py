"""Queues and topics of a probe's own, and the ordinary clients that it asks them by; nothing of them stays."""

from __future__ import annotations

import re
import time
import uuid
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pika
import pika.exceptions
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from pika.adapters.utils.connection_workflow import AMQPConnectorException

from loadgen.driver import Target
from loadgen.drivers.client.confluent_consumer import COORDINATING
from loadgen.drivers.kafka_admin import KafkaAdmin
from loadgen.drivers.kafka_config import client_settings
from loadgen.drivers.rabbitmq_admin import credentials_of, describe, parameters_of
from loadgen.drivers.rabbitmq_management import in_path, management_request
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pika.adapters.blocking_connection import BlockingChannel

    from loadgen.endpoint import Endpoint

HEARTBEAT_S = 60
PIKA_ERRORS = (pika.exceptions.AMQPError, AMQPConnectorException)
TIMEOUT_S = 30.0
AGAIN_S = 0.1
PERSISTENT = pika.BasicProperties(delivery_mode=2)


def fresh_name() -> str:
    """A name that nobody else has."""
    return f"loadgen-probe-{uuid.uuid4().hex}"


@contextmanager
def connected(endpoint: Endpoint) -> Iterator[Any]:
    """A blocking connection to RabbitMQ; what pika raises while it is used becomes one line."""
    parameters = parameters_of(endpoint, HEARTBEAT_S)[0]
    parameters.blocked_connection_timeout = TIMEOUT_S  # an alarm would hold a publish for ever
    try:
        connection = pika.BlockingConnection(parameters)
    except (*PIKA_ERRORS, OSError) as error:
        raise BrokerError(describe(endpoint, error)) from error
    try:
        yield connection
    except PIKA_ERRORS as error:
        raise BrokerError(describe(endpoint, error)) from error
    finally:
        with suppress(*PIKA_ERRORS):
            connection.close()


def confirming(connection: Any) -> BlockingChannel:
    """A new channel on which each publish waits for its confirm."""
    channel: BlockingChannel = connection.channel()
    channel.confirm_delivery()
    return channel


@contextmanager
def fresh_queue(connection: Any, arguments: Mapping[str, Any] | None = None) -> Iterator[str]:
    """A durable queue with these arguments."""
    name = fresh_name()
    connection.channel().queue_declare(name, durable=True, arguments=dict(arguments or {}))
    try:
        yield name
    finally:
        with suppress(*PIKA_ERRORS):
            connection.channel().queue_delete(name)


def publish_to(channel: BlockingChannel, queue: str, bodies: Iterable[bytes]) -> None:
    """Publish persistent messages to a queue, one after another."""
    for body in bodies:
        channel.basic_publish("", queue, body, PERSISTENT, mandatory=True)


def depth_of(channel: BlockingChannel, queue: str) -> int:
    """The broker's own count of messages that wait."""
    return int(channel.queue_declare(queue, passive=True).method.message_count)


@contextmanager
def fresh_topic(endpoint: Endpoint, **knobs: Any) -> Iterator[str]:
    """A topic of one partition with these knobs (`loadgen.Kafka` names them)."""
    admin = KafkaAdmin(endpoint)
    target = Target(endpoint, fresh_name(), {"partitions": 1, **knobs})
    try:
        admin.create(target)
        yield target.name
    finally:
        with suppress(BrokerError):
            admin.delete(target)
        admin.close()


def producer_of(endpoint: Endpoint, **settings: Any) -> Producer:
    """A producer that waits for all acknowledgements and lingers for nobody; settings with `__` for each dot."""
    return Producer({**client_settings(endpoint), "acks": "all", "linger.ms": 0, **_dotted(settings)})


@contextmanager
def reading(endpoint: Endpoint, **settings: Any) -> Iterator[Consumer]:
    """A consumer that begins at the beginning and commits nothing by itself."""
    own = {"group.id": fresh_name(), "auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = Consumer({**client_settings(endpoint), **own, **_dotted(settings)})
    try:
        yield consumer
    finally:
        consumer.close()


def publish(producer: Producer, topic: str, bodies: list[bytes]) -> None:
    """Send messages to partition 0 and wait until all are confirmed; BrokerError where one was not."""
    failed: list[Any] = []
    for body in bodies:
        producer.produce(topic, body, partition=0, on_delivery=noting(failed))
        producer.poll(0)
    left = producer.flush(TIMEOUT_S)
    if left or failed:
        why = failed[0].str() if failed else f"no answer within {TIMEOUT_S:g} s"
        raise BrokerError(f"kafka confirmed {len(bodies) - left - len(failed):,} of {len(bodies):,} messages: {why}")


def log_of(endpoint: Endpoint, topic: str, isolation: str = "read_uncommitted") -> Iterator[bytes]:
    """What partition 0 holds now, from its beginning to its end."""
    with reading(endpoint, isolation__level=isolation, enable__partition__eof=True) as consumer:
        consumer.assign([TopicPartition(topic, 0, 0)])
        while (message := consumer.poll(TIMEOUT_S)) is not None and message.error() is None:
            yield message.value() or b""


def extent_of(consumer: Consumer, topic: str) -> tuple[int, int]:
    """The offsets at which partition 0 begins and ends, as the broker has them now.

    Not from a thread beside one that polls: librdkafka would wait for ever.
    """
    low, high = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=TIMEOUT_S)
    return int(low), int(high)


def committed_of(consumer: Consumer, topic: str) -> int:
    """The offset that the consumer's group committed on partition 0; below 0 where it never did.

    The first group of a new broker is asked for while nobody has it yet, which librdkafka calls an error.
    """
    until_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            (told,) = consumer.committed([TopicPartition(topic, 0)], timeout=TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() not in COORDINATING or time.monotonic() > until_s:
                raise
            time.sleep(AGAIN_S)
        else:
            return int(told.offset)


def noting(failed: list[Any]) -> Callable[[Any, Any], None]:
    """A delivery callback that keeps errors."""

    def note(error: Any, _: Any) -> None:
        if error is not None:
            failed.append(error)

    return note


@contextmanager
def policy(endpoint: Endpoint, queue: str, name: str, value: Any) -> Iterator[None]:
    """A policy of one definition on one queue, for as long as the block lasts; BrokerError where it cannot be set."""
    path = f"policies/{in_path(endpoint.virtual_host)}/{queue}"
    definition = {
        "pattern": f"^{re.escape(queue)}$",
        "definition": {name: value},
        "apply-to": "queues",
        "priority": 100,
    }
    try:
        management_request(endpoint, path, "PUT", definition)
        yield
        management_request(endpoint, path, "DELETE")
    except (OSError, ValueError) as error:
        raise BrokerError(f"rabbitmq at {endpoint.address}: policy {name} cannot be set: {error}") from None


def asked_of_management(endpoint: Endpoint, path: str) -> Any:
    """What RabbitMQ's management answers; None where there is none.

    Raises:
        BrokerError: there is one, and it does not answer.
    """
    if endpoint.management_url is None:
        return None
    try:
        return management_request(endpoint, path)
    except (OSError, ValueError) as error:
        raise BrokerError(f"rabbitmq's management at {endpoint.management_url} does not answer: {error}") from None


def login_of(endpoint: Endpoint) -> tuple[str, str]:
    """User and password for RabbitMQ, for clients that are not pika."""
    credentials = credentials_of(endpoint)
    return credentials.username, credentials.password


def _dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("__", "."): value for name, value in settings.items()}
