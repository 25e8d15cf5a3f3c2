"""Which protocols a broker speaks: by each, messages that go there and come back, confirmed, with its usual client.

A round trip is one message under way: it ends when the broker has confirmed it and the consumer was handed it,
whichever is later. The burst is `BURST` messages as fast as the client confirms them, until all are received. Both are
figures of these Python clients on small loads; what a broker carries is measured by trials.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from confluent_kafka import TopicPartition

from loadgen.errors import BrokerError, LoadgenError
from loadgen.probes import Probe
from loadgen.probes.finding import Finding, NotHereError
from loadgen.probes.places import (
    TIMEOUT_S,
    asked_of_management,
    confirming,
    connected,
    extent_of,
    fresh_name,
    fresh_queue,
    fresh_topic,
    login_of,
    producer_of,
    publish,
    publish_to,
    reading,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.probes.finding import Ground

TRIPS, WARM_TRIPS, BURST = 50, 10, 500
SIZE_BYTES = 100
POLL_S = 0.05
LISTED_S = 15.0
ROUND_TRIP, RATE = "confirmed round trip", "burst, confirmed and received"
INSTALL = "install it with `pip install 'loadgen[probes]'`"


class Speaker(Protocol):
    """One conversation: a publisher that waits for confirms, and a consumer whose messages come into `inbox`."""

    inbox: queue.SimpleQueue[bytes]

    def send(self, bodies: Sequence[bytes]) -> None:
        """Publish all, and return when the broker has confirmed all."""
        ...


@dataclass(frozen=True, slots=True)
class Spoken:
    """A protocol, the client that speaks it, and what the management calls its connections."""

    name: str
    client: str
    window: str
    """How many are unconfirmed at once, and whether they are written to disk: what the client's usual call does."""
    open: Callable[[Endpoint], AbstractContextManager[Speaker]]
    managed_as: str = ""

    @property
    def point(self) -> str:
        """As findings name it."""
        return f"{self.name}, {self.client}: {self.window}"


def look(ground: Ground, broker: BrokerName) -> Iterator[Finding]:
    """By each protocol of the broker: confirmed round trips, and bursts; all stay connected until the broker told."""
    endpoint = ground.endpoints[broker]
    with ExitStack() as held:
        talks: list[_Talk] = []
        for spoken in PROTOCOLS[broker]:
            ground.progress(f"{broker}: {spoken.point}")
            try:
                talks.append(_talk(endpoint, spoken, ground.repeats, held))
            except NotHereError as error:
                yield Finding(broker, spoken.point, ROUND_TRIP, "ns", error=str(error))
            except LoadgenError as error:  # the others are asked all the same
                yield Finding(broker, spoken.point, ROUND_TRIP, "ns", agrees=False, error=str(error))
        listed = _listed(endpoint, talks)
        for talk in talks:
            said, agrees = talk.own_word(listed)
            point = talk.spoken.point
            yield Finding(broker, point, ROUND_TRIP, "ns", tuple(talk.trip_ns), said, agrees)
            yield Finding(broker, point, RATE, "msgs_per_s", tuple(talk.rate_msgs_per_s), said, agrees)


@dataclass(slots=True)
class _Talk:
    """One conversation and what it showed, once a repeat."""

    spoken: Spoken
    speaker: Speaker
    trip_ns: list[float] = field(default_factory=list)
    rate_msgs_per_s: list[float] = field(default_factory=list)

    def own_word(self, listed: list[str] | None) -> tuple[str, bool | None]:
        """What the broker says of it: the connection's protocol, or how many messages the log holds."""
        if isinstance(self.speaker, _Kafka):
            count = self.speaker.held()
            return f"the log holds {count:,} messages", count == len(self.trip_ns) * (WARM_TRIPS + TRIPS + BURST)
        if listed is None:
            return "", None
        same = [kind for kind in listed if kind.startswith(self.spoken.managed_as)]
        return f"its management lists a connection of {same[0] if same else 'other protocols only'}", bool(same)


def _talk(endpoint: Endpoint, spoken: Spoken, repeats: int, held: ExitStack) -> _Talk:
    """Open a conversation, which `held` ends, and time it."""
    try:
        talk = _Talk(spoken, held.enter_context(spoken.open(endpoint)))
        for _ in range(repeats):
            trips = [_trip(talk.speaker, number) for number in range(WARM_TRIPS + TRIPS)][WARM_TRIPS:]
            talk.trip_ns.append(float(median(trips)))
            talk.rate_msgs_per_s.append(_burst(talk.speaker))
    except ImportError as error:
        raise NotHereError(f"{spoken.client} is not installed ({error}): {INSTALL}") from None
    except queue.Empty:
        raise BrokerError(f"{spoken.name}: a confirmed message did not come within {TIMEOUT_S:g} s") from None
    except LoadgenError:
        raise
    except Exception as error:  # each client has errors of its own, and none may cost the others' findings
        raise BrokerError(f"{spoken.point}: {type(error).__name__}: {error}") from error
    return talk


def _burst(speaker: Speaker) -> float:
    """How many messages a second, from the first one sent until all are confirmed and received."""
    begin_ns = time.perf_counter_ns()
    bodies = [b"burst %d " % number + bytes(SIZE_BYTES) for number in range(BURST)]
    speaker.send(bodies)
    came = [speaker.inbox.get(timeout=TIMEOUT_S) for _ in bodies]
    took_ns = time.perf_counter_ns() - begin_ns
    if sorted(came) != sorted(bodies):
        raise BrokerError("what came back is not what was sent")
    return BURST / took_ns * 1e9


def _listed(endpoint: Endpoint, talks: Sequence[_Talk]) -> list[str] | None:
    """The protocols of all connections that the management knows, as soon as it knows these; None where there is none.

    It gathers what it tells every few seconds.
    """
    wanted = {talk.spoken.managed_as for talk in talks if talk.spoken.managed_as}
    until_s = time.monotonic() + LISTED_S
    while True:
        told = asked_of_management(endpoint, "connections") if wanted else None
        if told is None:
            return None
        kinds = [str(each.get("protocol")) for each in told]
        if all(any(kind.startswith(each) for kind in kinds) for each in wanted) or time.monotonic() > until_s:
            return kinds
        time.sleep(POLL_S)


def _trip(speaker: Speaker, number: int) -> int:
    body = b"trip %d " % number + bytes(SIZE_BYTES)
    begin_ns = time.perf_counter_ns()
    speaker.send([body])
    came = speaker.inbox.get(timeout=TIMEOUT_S)
    took_ns = time.perf_counter_ns() - begin_ns
    if came != body:
        raise BrokerError("what came back is not what was sent")
    return took_ns


@contextmanager
def _in_thread(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Something that goes on beside, until it is told to stop."""
    stopping = threading.Event()
    thread = threading.Thread(target=work, args=(stopping,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(TIMEOUT_S)


# --- AMQP 0-9-1 ---


class _Amqp091:
    def __init__(self, channel: Any, name: str) -> None:
        self.inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._channel, self._name = channel, name

    def send(self, bodies: Sequence[bytes]) -> None:
        """See `Speaker`: a blocking channel confirms one at a time."""
        publish_to(self._channel, self._name, bodies)


@contextmanager
def _amqp_0_9_1(endpoint: Endpoint) -> Iterator[Speaker]:
    with connected(endpoint) as sending, connected(endpoint) as receiving, fresh_queue(sending) as name:
        speaker = _Amqp091(confirming(sending), name)
        channel = receiving.channel()
        channel.basic_qos(prefetch_count=200)

        def take(channel: Any, method: Any, _: Any, body: bytes) -> None:
            channel.basic_ack(method.delivery_tag)
            speaker.inbox.put(body)

        channel.basic_consume(name, take)

        def receive(stopping: threading.Event) -> None:
            while not stopping.is_set():
                receiving.process_data_events(POLL_S)

        with _in_thread(receive):
            yield speaker


# --- AMQP 1.0 ---


class _Amqp1:
    def __init__(self, publisher: Any, message: Any) -> None:
        self.inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._publisher, self._message = publisher, message

    def send(self, bodies: Sequence[bytes]) -> None:
        """See `Speaker`: the client waits for each outcome."""
        for body in bodies:
            outcome = self._publisher.publish(self._message(body)).outcome.state.value
            if outcome != "accepted":
                raise BrokerError(f"AMQP 1.0: a message was {outcome}, not accepted")


@contextmanager
def _amqp_1_0(endpoint: Endpoint) -> Iterator[Speaker]:
    import rabbitmq_amqp_python_client as client  # noqa: PLC0415 - of an extra

    _demand_plain(endpoint)
    host, port = endpoint.hosts[0]
    user, password = login_of(endpoint)
    told = client.ConnectionParameters(
        host=host, port=port, user=user, password=password, virtual_host=endpoint.virtual_host
    )
    connection = client.Connection(told)
    name = fresh_name()

    def message(body: bytes) -> Any:
        return client.Message(body, header=client.Header(durable=True))

    with ExitStack() as held:
        held.callback(connection.close)
        connection.management().queue(name).classic().queue().declare()
        held.callback(connection.management().queue(name).delete)
        publisher = connection.publisher_builder().queue(name).build()
        held.callback(publisher.close)
        speaker = _Amqp1(publisher, message)

        def take(context: Any, message: Any) -> None:
            context.accept()
            speaker.inbox.put(message.body_as_bytes())

        held.callback(connection.consumer_builder().queue(name).message_handler(take).build().close)
        yield speaker


# --- STOMP ---


class _Stomp:
    def __init__(self, connection: Any, destination: str) -> None:
        self.inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.receipts: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._connection, self._destination = connection, destination

    def send(self, bodies: Sequence[bytes]) -> None:
        """See `Speaker`: receipts come as they do."""
        for number, body in enumerate(bodies):
            self._connection.send(self._destination, body, headers={"persistent": "true", "receipt": str(number)})
        for _ in bodies:
            self.receipts.get(timeout=TIMEOUT_S)


@contextmanager
def _stomp(endpoint: Endpoint) -> Iterator[Speaker]:
    import stomp  # noqa: PLC0415 - of an extra

    _demand_plain(endpoint)
    port = _port(endpoint, endpoint.stomp_port, "STOMP")
    connection = stomp.StompConnection12([(endpoint.hosts[0][0], port)], auto_decode=False, vhost=endpoint.virtual_host)

    class Listener(stomp.ConnectionListener):  # type: ignore[misc]
        def on_message(self, frame: Any) -> None:
            connection.ack(frame.headers["ack"])
            speaker.inbox.put(frame.body)

        def on_receipt(self, frame: Any) -> None:
            speaker.receipts.put(frame.headers["receipt-id"])

    with connected(endpoint) as other, fresh_queue(other) as name:
        speaker = _Stomp(connection, f"/amq/queue/{name}")
        connection.set_listener("probe", Listener())
        connection.connect(*login_of(endpoint), wait=True)
        _send_at_once(None, None, connection.transport.socket)
        connection.subscribe(f"/amq/queue/{name}", id="1", ack="client-individual", headers={"prefetch-count": "200"})
        try:
            yield speaker
        finally:
            connection.disconnect()


# --- MQTT ---


class _Mqtt:
    def __init__(self, client: Any, topic: str) -> None:
        self.inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._client, self._topic = client, topic

    def send(self, bodies: Sequence[bytes]) -> None:
        """See `Speaker`: quality of service 1."""
        for each in [self._client.publish(self._topic, body, qos=1) for body in bodies]:
            each.wait_for_publish(TIMEOUT_S)
            if not each.is_published():
                raise BrokerError(f"MQTT: a message was not confirmed within {TIMEOUT_S:g} s")


def _send_at_once(_client: Any, _data: Any, opened: Any) -> None:
    """As every other client here does it: else each message waits for the other side's delayed acknowledgement."""
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@contextmanager
def _mqtt(endpoint: Endpoint) -> Iterator[Speaker]:
    from paho.mqtt import client as paho  # noqa: PLC0415 - of an extra
    from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415

    _demand_plain(endpoint)
    port = _port(endpoint, endpoint.mqtt_port, "MQTT")
    name = fresh_name()
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)
    user, password = login_of(endpoint)
    client.username_pw_set(f"{endpoint.virtual_host}:{user}", password)
    client.max_inflight_messages_set(200)
    ready = threading.Event()
    speaker = _Mqtt(client, f"loadgen/{name}")
    client.on_message = lambda _client, _data, message: speaker.inbox.put(bytes(message.payload))
    client.on_subscribe = lambda *_: ready.set()
    client.on_socket_open = _send_at_once
    client.connect(endpoint.hosts[0][0], port)
    client.loop_start()
    try:
        client.subscribe(f"loadgen/{name}", qos=1)
        if not ready.wait(TIMEOUT_S):
            raise BrokerError("MQTT: the subscription was not confirmed")
        yield speaker
    finally:
        client.disconnect()
        client.loop_stop()


# --- RabbitMQ's stream protocol ---


class _Stream:
    def __init__(self, loop: asyncio.AbstractEventLoop, producer: Any, name: str) -> None:
        self.inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._loop, self._producer, self._name = loop, producer, name

    def send(self, bodies: Sequence[bytes]) -> None:
        """See `Speaker`: one at a time, as `send_wait` does."""

        async def publish() -> None:
            for body in bodies:
                await self._producer.send_wait(self._name, body)

        asyncio.run_coroutine_threadsafe(publish(), self._loop).result(TIMEOUT_S)


@contextmanager
def _stream(endpoint: Endpoint) -> Iterator[Speaker]:
    from rstream import Consumer, Producer  # noqa: PLC0415 - half a second that only this needs

    user, password = login_of(endpoint)
    port = _port(endpoint, endpoint.stream_port, "stream")
    _demand_plain(endpoint)
    told: dict[str, Any] = {"host": endpoint.hosts[0][0], "port": port, "username": user, "password": password}
    told["vhost"] = endpoint.virtual_host
    name, loop = fresh_name(), asyncio.new_event_loop()

    def turn(_: threading.Event) -> None:
        loop.run_forever()

    def wait(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(TIMEOUT_S)

    with closing(loop), _in_thread(turn):
        producer, consumer = Producer(**told), Consumer(**told)
        speaker = _Stream(loop, producer, name)

        async def begin() -> None:
            await producer.start()
            await producer.create_stream(name)
            await consumer.start()
            await consumer.subscribe(name, lambda message, _: speaker.inbox.put(bytes(message)))

        async def end() -> None:
            for step in (consumer.close, partial(producer.delete_stream, name, missing_ok=True), producer.close):
                with suppress(Exception):  # one that never began cannot be ended; the others are
                    await step()

        try:
            wait(begin())
            yield speaker
        finally:
            try:
                wait(end())
            finally:
                loop.call_soon_threadsafe(loop.stop)


# --- Kafka ---


class _Kafka:
    def __init__(self, endpoint: Endpoint, producer: Any, topic: str) -> None:
        self.inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._producer, self._endpoint, self._topic = producer, endpoint, topic

    def send(self, bodies: Sequence[bytes]) -> None:
        """See `Speaker`."""
        publish(self._producer, self._topic, list(bodies))

    def held(self) -> int:
        """How many messages the log holds, by its offsets."""
        with reading(self._endpoint) as consumer:
            low, high = extent_of(consumer, self._topic)
        return high - low


@contextmanager
def _kafka(endpoint: Endpoint) -> Iterator[Speaker]:
    with fresh_topic(endpoint) as topic, reading(endpoint, fetch__wait__max__ms=100) as consumer:
        speaker = _Kafka(endpoint, producer_of(endpoint), topic)
        consumer.assign([TopicPartition(topic, 0, 0)])

        def receive(stopping: threading.Event) -> None:
            while not stopping.is_set():
                if (message := consumer.poll(POLL_S)) is not None and message.error() is None:
                    speaker.inbox.put(message.value() or b"")

        with _in_thread(receive):
            yield speaker


def _demand_plain(endpoint: Endpoint) -> None:
    if endpoint.tls is not None:
        raise NotHereError("is tried without TLS only, which this endpoint demands")


def _port(endpoint: Endpoint, port: int | None, protocol: str) -> int:
    if port is None:
        raise NotHereError(f"where {endpoint.broker} listens for {protocol} is not known of {endpoint.source} brokers")
    return port


PROTOCOLS: dict[str, tuple[Spoken, ...]] = {
    "rabbitmq": (
        Spoken("AMQP 0-9-1", "pika", "one at a time, persistent", _amqp_0_9_1, "AMQP 0-9-1"),
        Spoken("AMQP 1.0", "rabbitmq-amqp-python-client", "one at a time, durable", _amqp_1_0, "AMQP 1-0"),
        Spoken("STOMP", "stomp.py", "all at once, persistent", _stomp, "STOMP"),
        Spoken("MQTT", "paho-mqtt", "200 at once, quality of service 1", _mqtt, "MQTT"),
        Spoken("RabbitMQ streams", "rstream", "one at a time", _stream, "stream"),
    ),
    "kafka": (Spoken("Kafka protocol", "confluent-kafka", "all at once, acks=all", _kafka),),
}
PROBE = Probe("Which protocols does each broker speak, and how long does a confirmed round trip take?", look, 10.0)
