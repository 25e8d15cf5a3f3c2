"""The stream driver on a real broker: other clients, knobs as the broker sees them, offsets, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
import uuid
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pika
import pytest
import rstream
from kafkawire import watched
from patience import PATIENCE_S, until
from rstream.compression import CompressionType

from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.stream_admin import StreamAdmin
from loadgen.drivers.wire.kafka_codecs import CODECS
from loadgen.drivers.wire.stream_connection import StreamConnection, open_any
from loadgen.drivers.wire.stream_consumer import StreamConsumer, query_offset
from loadgen.drivers.wire.stream_producer import StreamProducer, last_publishing_id, publisher_name
from loadgen.drivers.wire.stream_protocol import FIRST, KEY, LAST, NEXT, Key, Offset, Reader, properties, text
from loadgen.endpoint import Credentials
from loadgen.errors import BrokerError, TrialError
from loadgen.knobs import resolve
from loadgen.payload import Payloads
from loadgen.scenario import Message, Uniform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from loadgen.driver import Received, Settled
    from loadgen.endpoint import Endpoint

FIXED, MIXED = Message(size_bytes=100), Message(size_bytes=Uniform(min_bytes=24, max_bytes=3_000))
CHUNK = struct.Struct(">BBHIqQQIIII")  # as in a Deliver frame


class Site:
    """A broker where streams are made, and removed after the test with everything that was opened."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.admin = StreamAdmin(endpoint)
        self._opened: list[Any] = []
        self._targets: list[Target] = []

    def target(self, **knobs: Any) -> Target:
        """A fresh stream with some knobs changed."""
        settings = resolve("rabbitmq", {"driver": "stream", **knobs}, "broker", "default")
        name = f"streams-{uuid.uuid4().hex[:12]}"
        target = Target(self.endpoint, name, settings, group=f"{name}-group")
        self.admin.create(target)
        self._targets.append(target)
        return target

    def producer(self, target: Target, message: Message = FIXED, number: int = 0) -> StreamProducer:
        """A producer, closed after the test."""
        self._opened.append(StreamProducer(target, Payloads(message, seed=1, token=2, producer=number)))
        return self._opened[-1]  # type: ignore[no-any-return]

    def consumer(self, target: Target, index: int = 0, count: int = 1, start: Offset = FIRST) -> StreamConsumer:
        """A consumer, closed after the test."""
        self._opened.append(StreamConsumer(target, index, count, start))
        return self._opened[-1]  # type: ignore[no-any-return]

    def connection(self) -> StreamConnection:
        """A bare connection, closed after the test."""
        self._opened.append(open_any(self.endpoint))
        return self._opened[-1]  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close everything, then remove everything."""
        for each in self._opened:
            each.close()
        for target in self._targets:
            self.admin.delete(target)
        self.admin.close()


@pytest.fixture
def site(rabbitmq_endpoint: Endpoint) -> Iterator[Site]:
    """The session's broker."""
    with contextlib.closing(Site(rabbitmq_endpoint)) as made:
        yield made


def send(producer: StreamProducer, count: int, first: int = 0, batch: int = 50) -> list[Settled]:
    """Send messages first … in batches, and wait until all are settled."""
    settled = []
    for at in range(first, first + count, batch):
        number = min(batch, first + count - at)
        now_ns = time.monotonic_ns()
        producer.send(at, np.full(number, now_ns), now_ns)
        settled += producer.flush(PATIENCE_S)
    return settled


def bodies(batch: Received) -> list[bytes]:
    """Each message of a batch."""
    sizes = np.broadcast_to(np.asarray(batch.sizes), len(batch.starts)).tolist()
    pairs = zip(batch.starts.tolist(), sizes, strict=True)
    return [batch.buffer[start : start + size].tobytes() for start, size in pairs]


def drain(consumer: StreamConsumer, count: int, quiet_s: float = 0.1) -> list[tuple[int, int, bytes]]:
    """(partition, offset, body) of `count` messages, and of all that comes until it is quiet."""
    found: list[tuple[int, int, bytes]] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        received = consumer.receive(quiet_s if len(found) >= count else 0.1)
        for batch in received:
            assert batch.first_position is not None
            found += [(batch.source, batch.first_position + at, body) for at, body in enumerate(bodies(batch))]
        consumer.settle()
        if len(found) >= count and not received:
            break
    return found


def sent_bodies(count: int, message: Message = FIXED, number: int = 0) -> list[bytes]:
    """The bodies (without the stamps, which hold times) of a producer's messages."""
    payloads = Payloads(message, seed=1, token=2, producer=number)
    flat, offsets = payloads.pack(0, np.zeros(count, np.int64), 0)
    return [flat[a + 24 : b].tobytes() for a, b in pairwise(offsets.tolist())]


# --- other clients ---


def rstream_login(endpoint: Endpoint) -> dict[str, Any]:
    """Where and as whom rstream connects."""
    return {"host": endpoint.hosts[0][0], "port": endpoint.stream_port, "username": "guest", "password": "guest"}


async def read_by_rstream(endpoint: Endpoint, stream: str, count: int) -> list[bytes]:
    """The bodies that rstream hands to an application."""
    found: list[bytes] = []
    consumer = rstream.Consumer(**rstream_login(endpoint))

    async def take(message: rstream.AMQPMessage, _: Any) -> None:
        found.append(message.body)
        if len(found) == count:
            consumer.stop()

    await consumer.start()
    await consumer.subscribe(stream, take, decoder=rstream.amqp_decoder)
    await asyncio.wait_for(consumer.run(), PATIENCE_S)
    await consumer.close()
    return found


async def write_by_rstream(endpoint: Endpoint, stream: str, groups: Sequence[tuple[str, Sequence[bytes]]]) -> None:
    """Have rstream publish: plain, or each group as a sub-entry of a codec."""
    async with rstream.Producer(**rstream_login(endpoint)) as producer:
        for codec, each in groups:
            messages = [rstream.AMQPMessage(body=body) for body in each]
            if codec == "plain":
                await producer.send_batch(stream, messages)
            else:
                kind = {"none": CompressionType.No, "gzip": CompressionType.Gzip}[codec]
                await producer.send_sub_entry(stream, messages, compression_type=kind)


@pytest.mark.parametrize("message", [FIXED, MIXED], ids=["fixed", "mixed"])
@pytest.mark.parametrize(("group_msgs", "codec"), [(1, "none"), (10, "none"), (10, "gzip")])
def test_what_we_write_rstream_reads(site: Site, message: Message, group_msgs: int, codec: str) -> None:
    """Plain and in sub-entries, byte for byte and in order."""
    target = site.target(sub_entry_size=group_msgs, compression=codec)
    send(site.producer(target, message), 120)
    found = asyncio.run(read_by_rstream(site.endpoint, target.name, 120))
    assert [body[24:] for body in found] == sent_bodies(120, message)


def test_what_rstream_writes_we_read(site: Site) -> None:
    """Plain and in sub-entries of its codecs, of one size and of many, byte for byte and in order."""
    target = site.target()
    groups = [
        ("plain", [b"%03d" % number for number in range(40)]),
        ("none", [bytes([number]) * (number + 1) for number in range(30)]),
        ("gzip", [b"x" * 300] * 20),
        ("plain", [b"y" * number for number in range(250, 262)]),
    ]
    asyncio.run(write_by_rstream(site.endpoint, target.name, groups))
    expected = [body for _, each in groups for body in each]
    # rstream sends sub-entries after a delay of its own, so that their place among the others is open.
    assert sorted(body for _, _, body in drain(site.consumer(target), len(expected))) == sorted(expected)


@contextlib.contextmanager
def amqp_channel(endpoint: Endpoint) -> Iterator[Any]:
    """A channel of an AMQP 0-9-1 client."""
    with contextlib.closing(pika.BlockingConnection(pika.ConnectionParameters(*endpoint.hosts[0]))) as connection:
        yield connection.channel()


def test_amqp_clients_read_and_write_the_same_stream(site: Site) -> None:
    """What we write an AMQP 0-9-1 client reads; what it publishes, with properties and headers, we read."""
    target = site.target()
    send(site.producer(target, MIXED), 50)
    found: list[bytes] = []
    with amqp_channel(site.endpoint) as channel:
        channel.basic_qos(prefetch_count=100)
        for method, _, body in channel.consume(target.name, arguments={"x-stream-offset": "first"}):
            found.append(body)
            channel.basic_ack(method.delivery_tag)
            if len(found) == 50:
                break
        channel.cancel()
        plain = pika.BasicProperties(content_type="text/plain", message_id="7", headers={"a": 1, "b": "c"})
        channel.confirm_delivery()
        for number in range(5):
            channel.basic_publish("", target.name, b"by amqp %d" % number, plain if number % 2 else None)
    assert [body[24:] for body in found] == sent_bodies(50, MIXED)
    read = drain(site.consumer(target), 55)
    assert [body for _, _, body in read[50:]] == [b"by amqp %d" % number for number in range(5)]


# --- knobs as the broker sees them ---


def test_retention_is_what_the_broker_tells(site: Site) -> None:
    """Lengths, ages and segment sizes are the stream's own arguments."""
    target = site.target(max_length_bytes=10_000_000, max_age="2h", max_segment_size_bytes=2_000_000)
    told = site.admin.effective(target)
    assert (told["type"], told["source"]) == ("stream", "management API")
    asked = {"x-max-length-bytes": 10_000_000, "x-max-age": "2h", "x-stream-max-segment-size-bytes": 2_000_000}
    assert asked.items() <= told["arguments"].items()


def chunks_of(connection: StreamConnection, stream: str, credit: int) -> Iterator[tuple[int, int, int]]:
    """(entries, messages, kind of the first entry) of each chunk that the broker delivers for so much credit."""
    body = b"\0" + text(stream) + FIRST.encode() + struct.pack(">H", credit) + properties({})
    connection.call(Key.SUBSCRIBE, body)
    return coming(connection)


def coming(connection: StreamConnection) -> Iterator[tuple[int, int, int]]:
    """The same of each chunk that comes, for which nobody gives any credit."""
    while True:
        try:
            frame = connection.early.popleft() if connection.early else connection.await_frame(0.5)
        except BrokerError:  # nothing more comes
            return
        if KEY.unpack_from(frame)[0] == Key.DELIVER:
            _, _, entries, messages, *_ = CHUNK.unpack_from(frame, 5)
            yield entries, messages, frame[5 + CHUNK.size]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("message", [FIXED, MIXED], ids=["fixed", "mixed"])
def test_sub_entries_are_stored_as_such(site: Site, codec: str, message: Message) -> None:
    """100 messages are ten entries of the codec in the broker's chunks, and come back intact at all their offsets."""
    target = site.target(sub_entry_size=10, compression=codec)
    settled = send(site.producer(target, message), 100, batch=100)
    assert sorted(np.concatenate([each.seqs for each in settled]).tolist()) == list(range(100))
    found = list(chunks_of(site.connection(), target.name, 100))
    assert [sum(column) for column in zip(*(each[:2] for each in found), strict=True)] == [10, 100]
    assert {kind for _, _, kind in found} == {0x80 | CODECS.index(codec) << 4}
    read = drain(site.consumer(target), 100)
    assert [offset for _, offset, _ in read] == list(range(100))
    assert [body[24:] for _, _, body in read] == sent_bodies(100, message)


def test_credits_bound_what_is_on_its_way(site: Site) -> None:
    """A consumer that does not read on is sent a chunk for each credit; one that does gives others and gets all."""
    target = site.target(credits=2)
    send(site.producer(target), 60, batch=10)  # each batch is confirmed before the next: six chunks or more
    for credit in (2, 4):
        settings = {**target.settings, "credits": credit}
        consumer = site.consumer(replace(target, settings=settings, group=f"{target.group}-{credit}"))
        assert len(list(coming(consumer._connections[0]))) == credit
    assert len(drain(site.consumer(target), 60)) == 60


@pytest.mark.parametrize("driver", ["stream", "rstream"])
def test_a_subscription_asks_for_its_credits(site: Site, driver: str) -> None:
    """A proxy reads them in the frame by which a consumer of either driver subscribes."""
    target = site.target(driver=driver, credits=7)
    host, _ = site.endpoint.hosts[0]
    assert site.endpoint.stream_port is not None
    with watched(replace(site.endpoint, hosts=((host, site.endpoint.stream_port),))) as (by_proxy, seen):
        way = replace(site.endpoint, stream_port=by_proxy.hosts[0][1])
        load_driver(driver).consumer(replace(target, endpoint=way), 0, 1).close()
    (frame,) = [each.frame for each in seen.requests if each.api == Key.SUBSCRIBE]
    reader = Reader(frame[8:])
    assert (reader.number("B"), reader.text()) == (0, target.name)
    assert reader.number("H") == 1  # from the first offset on
    assert reader.number("H") == 7


def test_a_named_producers_messages_are_stored_once(site: Site) -> None:
    """With deduplication what is sent again is confirmed again and stored once; without, it is there twice."""
    for deduplication, stored in ((True, 130), (False, 180)):
        target = site.target(deduplication=deduplication)
        first = site.producer(target)
        send(first, 100)
        first.close()
        again = send(site.producer(target), 80, first=50)
        assert sum(len(each.seqs) for each in again if each.error is None) == 80
        assert len(drain(site.consumer(target), stored)) == stored
        last = last_publishing_id(site.endpoint, publisher_name(target, 0), target.name)
        assert last == (130 if deduplication else 0)


def test_partitions_hold_their_keys(site: Site) -> None:
    """A super stream has the partitions asked for; each key is in one of them, its messages in their order."""
    message = Message(size_bytes=60, keys=20)
    target = site.target(partitions=3)
    assert site.admin.effective(target)["streams"] == [f"{target.name}-{number}" for number in range(3)]
    send(site.producer(target, message), 300)
    payloads = Payloads(message, seed=1, token=2)
    keys = payloads.key_indices(0, 300)
    assert keys is not None
    homes: dict[int, set[int]] = {}
    consumer = site.consumer(target)
    order: dict[int, list[int]] = {}
    count = 0
    while count < 300:
        for batch in consumer.receive(1.0):
            seqs = payloads.parse(batch.buffer, batch.starts, batch.sizes).seq
            count += len(seqs)
            order.setdefault(batch.source, []).extend(seqs.tolist())
            for key in keys[seqs].tolist():
                homes.setdefault(key, set()).add(batch.source)
    assert sorted(order) == [0, 1, 2]
    assert all(len(partitions) == 1 for partitions in homes.values())
    assert all(seqs == sorted(seqs) for seqs in order.values())


@pytest.mark.parametrize("partitions", [1, 2])
def test_one_active_consumer_at_a_time(site: Site, partitions: int) -> None:
    """Of two consumers each partition has one active; when they leave, another goes on where they stopped."""
    target = site.target(single_active_consumer=True, partitions=partitions, store_offset_interval_ms=50)
    both = [site.consumer(target, index, 2) for index in range(2)]
    producer = site.producer(target)
    for consumer in both:  # they are told by the broker what they are
        drain(consumer, 0, quiet_s=0.3)
    send(producer, 100)
    found = [drain(consumer, 0, quiet_s=0.5) for consumer in both]
    sources = [{source for source, _, _ in each} for each in found]
    assert sum(len(each) for each in found) == 100
    assert not sources[0] & sources[1]
    assert len(sources[0] | sources[1]) == partitions
    both[0].close()
    send(producer, 60, first=100)
    rest = drain(both[1], 60, quiet_s=0.5)
    assert len(rest) == 60
    assert {source for source, _, _ in rest} == set(range(partitions))


def test_stored_offsets_are_the_brokers(site: Site) -> None:
    """What was processed is stored after its interval and at the end, never what was only handed out."""
    target = site.target(store_offset_interval_ms=50)
    send(site.producer(target), 40)
    connection, consumer = site.connection(), site.consumer(target)
    assert query_offset(connection, target.group, target.name) is None
    assert len(drain(consumer, 40)) == 40
    assert until(lambda: consumer.receive(0.05) == [] and query_offset(connection, target.group, target.name) == 39)
    send(site.producer(target, number=1), 10)
    handed = 0
    while handed < 10:
        handed += sum(len(each.starts) for each in consumer.receive(0.5))
    time.sleep(0.1)
    assert consumer.receive(0.1) == []
    assert query_offset(connection, target.group, target.name) == 39
    consumer.settle()
    consumer.close()
    stored = query_offset(connection, target.group, target.name)
    assert stored is not None
    assert stored >= 49


# --- where a subscription begins ---


def test_offsets_to_begin_at(site: Site) -> None:
    """First, last, next, an offset within a chunk and a moment begin where the protocol says."""
    target = site.target()
    producer = site.producer(target)
    send(producer, 100, batch=50)
    time.sleep(0.05)
    between_ms = time.time_ns() // 1_000_000
    time.sleep(0.05)
    send(producer, 50, first=100)
    begins = {
        FIRST: range(150),
        Offset("offset", 70): range(70, 150),
        Offset("offset", 120): range(120, 150),
        Offset("timestamp", between_ms): range(100, 150),
        NEXT: range(150, 150),
    }
    for number, (start, expected) in enumerate(begins.items()):
        own = replace(target, group=f"{target.group}-{number}")
        assert [offset for _, offset, _ in drain(site.consumer(own, start=start), len(expected))] == list(expected)
    own = replace(target, group=f"{target.group}-last")
    last = [offset for _, offset, _ in drain(site.consumer(own, start=LAST), 1)]
    assert 100 <= last[0] <= 149  # the broker may have made one chunk of the batch, or several
    assert last == list(range(last[0], 150))
    own = replace(target, group=f"{target.group}-next")
    consumer = site.consumer(own, start=NEXT)
    send(producer, 10, first=150)
    assert [offset for _, offset, _ in drain(consumer, 10)] == list(range(150, 160))


def test_a_stored_offset_wins_over_the_start(site: Site) -> None:
    """A group that was here before goes on where it stopped, in the middle of a chunk or behind the end."""
    target = site.target()
    send(site.producer(target), 100, batch=100)
    connection = site.connection()
    connection.send(struct.pack(">IHH", 4 + 12 + len(target.group) + len(target.name), Key.STORE_OFFSET, 1)
                    + text(target.group) + text(target.name) + struct.pack(">Q", 41))  # fmt: skip
    assert until(lambda: query_offset(connection, target.group, target.name) == 41)
    first = site.consumer(target, start=LAST)
    assert [offset for _, offset, _ in drain(first, 58)] == list(range(42, 100))
    first.close()
    assert site.admin.depth(target) == 0
    assert drain(site.consumer(target), 0) == []


# --- what goes wrong ---


@pytest.mark.parametrize("role", ["producer", "consumer"])
def test_a_stream_that_goes_is_told(site: Site, role: str) -> None:
    """Deleted under its users, a stream is one line that names it."""
    target = site.target()
    producer, consumer = site.producer(target), site.consumer(target)
    send(producer, 5)
    site.admin.delete(target)
    use: Callable[[float], list[Any]] = producer.poll if role == "producer" else consumer.receive
    with pytest.raises(TrialError, match=f"stream {target.name} has gone") as caught:
        until(lambda: use(0.1) is None)  # what came before is handed out first
    assert "\n" not in str(caught.value)


def test_a_refused_publish_is_settled_as_an_error(site: Site) -> None:
    """What the broker answers by PublishError is settled with its reason."""
    target = site.target()
    producer = site.producer(target)
    producer._connections[0].call(Key.DELETE_PUBLISHER, b"\0")
    settled = send(producer, 30, batch=30)
    assert [(each.error, sorted(each.seqs.tolist())) for each in settled] == [
        ("publish error: publisher does not exist", list(range(30)))
    ]
    assert producer.room_msgs > 0


def test_roles_without_a_stream_are_one_line(site: Site) -> None:
    """Producer and consumer of a stream that is not there say so; so does the control plane."""
    missing = replace(site.target(), name="never-made")
    for use in (site.producer, site.consumer, site.admin.depth, site.admin.effective):
        with pytest.raises(BrokerError, match="does not exist") as caught:
            use(missing)
        assert "\n" not in str(caught.value)
    site.admin.delete(missing)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"credentials": Credentials("guest", "wrong")}, "refused the credentials of user guest"),
        ({"virtual_host": "nowhere"}, "virtual host access failure"),
        ({"stream_port": None}, "LOADGEN_RABBITMQ_STREAM_PORT"),
    ],
)
def test_mistakes_in_an_endpoint_are_one_line(site: Site, changed: dict[str, Any], words: str) -> None:
    """What is wrong, and nothing of the password."""
    with pytest.raises(BrokerError, match=words) as caught:
        StreamAdmin(replace(site.endpoint, **changed))
    assert "\n" not in str(caught.value)
    assert "wrong" not in str(caught.value)


def test_amqps_port_speaks_no_streams(site: Site) -> None:
    """The stream driver at the AMQP port is told so at once."""
    with pytest.raises(BrokerError, match=r"stream port|another protocol") as caught:
        StreamAdmin(replace(site.endpoint, stream_port=site.endpoint.hosts[0][1]))
    assert "\n" not in str(caught.value)
