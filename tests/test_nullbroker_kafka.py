"""A null broker's Kafka side, byte by byte: batches come out as they went in, at consecutive offsets, when they may."""

from __future__ import annotations

import struct
import time
from datetime import timedelta
from itertools import pairwise
from typing import Any

import nullclients
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.schema.api_versions.v0.request import ApiVersionsRequest
from kio.schema.create_topics.v4.request import CreatableTopic, CreateTopicsRequest
from kio.schema.delete_topics.v3.request import DeleteTopicsRequest
from kio.schema.fetch.v10.response import FetchResponse
from kio.schema.list_offsets.v1.request import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from kio.schema.list_offsets.v1.response import ListOffsetsResponse
from kio.schema.produce.v7.response import ProduceResponse
from kio.schema.types import BrokerId, TopicName
from kio.serial import entity_reader
from kio.static.primitive import i16, i32, i32Timedelta, i64

from loadgen.drivers.wire.kafka_batch import HEADER_BYTES, Identity, pack_record, seal
from loadgen.drivers.wire.kafka_protocol import encode
from loadgen.drivers.wire.kafka_records import BatchHeader, batch_headers
from loadgen.nullbroker import kafka_log
from loadgen.nullbroker.kafka import KafkaRelay

TOPIC = "loadgen-null-1"
LATER_MS = 60_000  # a fetch that waits so long is not answered for its lateness within a test


class Client(nullclients.Client):
    """One session, driven by hand."""

    def answers(self) -> list[bytes]:
        """The whole responses that came, without their lengths; they are forgotten."""
        found, raw = [], bytes(self.line.written)
        while raw:
            (size,) = struct.unpack_from(">i", raw)
            found.append(raw[4 : 4 + size])
            raw = raw[4 + size :]
        self.line.written.clear()
        return found

    def answer(self, response_type: Any, correlation: int = 7) -> Any:
        """The one response that came, by kio."""
        (raw,) = self.answers()
        assert raw[:4] == struct.pack(">i", correlation)
        response, length = entity_reader(response_type)(raw, 4)
        assert 4 + length == len(raw)
        return response


def relay_with(partitions: int = 1) -> KafkaRelay:
    """A null broker with one topic."""
    relay = KafkaRelay(1)
    topic = CreatableTopic(
        name=TopicName(TOPIC), num_partitions=i32(partitions), replication_factor=i16(1), assignments=(), configs=()
    )
    Client(relay).say(encode(CreateTopicsRequest(topics=(topic,)), 1))
    return relay


def batch(*values: bytes) -> bytes:
    """A record batch of these values, as a producer seals it."""
    raw = bytearray(HEADER_BYTES)
    for delta, value in enumerate(values):
        pack_record(raw, delta, None, memoryview(value))
    return bytes(seal(memoryview(raw), len(raw), len(values), 1, Identity()))


def produce(*batches: tuple[int, bytes], acks: int = -1, topic: str = TOPIC) -> bytes:
    """A produce request with these batches by partition."""
    name = topic.encode()
    body = struct.pack(">hhih3shhiih", 0, 7, 7, 3, b"abc", -1, acks, 1_000, 1, len(name)) + name
    body += struct.pack(">i", len(batches))
    for partition, records in batches:
        body += struct.pack(">ii", partition, len(records)) + records
    return struct.pack(">i", len(body)) + body


def fetch(
    offsets: dict[int, int], wait_ms: int = LATER_MS, min_bytes: int = 1, part_bytes: int = 1 << 20,
    max_bytes: int = 50 << 20,
) -> bytes:  # fmt: skip
    """A fetch request from these offsets by partition."""
    name = TOPIC.encode()
    body = struct.pack(">hhih3siiiibii", 1, 10, 7, 3, b"abc", -1, wait_ms, min_bytes, max_bytes, 0, 0, -1)
    body += struct.pack(">ih", 1, len(name)) + name + struct.pack(">i", len(offsets))
    for partition, offset in offsets.items():
        body += struct.pack(">iiqqi", partition, -1, offset, -1, part_bytes)
    body += struct.pack(">i", 0)
    return struct.pack(">i", len(body)) + body


def fetched(response: Any) -> dict[int, tuple[bytes, list[BatchHeader]]]:
    """By partition: the records' bytes, and the headers of the batches, whose checksums are checked on the way."""
    assert response.error_code == 0
    (topic,) = response.responses
    found = {}
    for each in topic.partitions:
        assert each.error_code == 0
        raw = bytes(each.records or b"")
        headers = batch_headers(memoryview(raw), 0, len(raw))
        assert sum(header.size_bytes for header in headers) == len(raw)
        found[int(each.partition_index)] = (raw, headers)
    return found


def after_offset(raw: bytes) -> bytes:
    """A batch but for its base offset."""
    return raw[8:]


@pytest.mark.parametrize("acks", [-1, 1, 0])
def test_requests_cut_at_any_byte_are_understood(acks: int) -> None:
    """Two reads that meet at any place: the batch is stored, answered where that is wanted, and served."""
    sent = batch(b"one", b"two", b"three")
    request = produce((0, sent), acks=acks)
    for cut in range(1, len(request)):
        relay = relay_with()
        producer, consumer = Client(relay), Client(relay)
        consumer.say(fetch({0: 0}))
        producer.say(request[:cut], request[cut:])
        if acks:
            (topic,) = producer.answer(ProduceResponse).responses
            assert [(each.error_code, each.base_offset) for each in topic.partition_responses] == [(0, 0)]
        assert producer.answers() == []
        raw, _ = fetched(consumer.answer(FetchResponse))[0]
        assert raw == sent


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.data())
def test_requests_cut_into_any_pieces_are_served_at_consecutive_offsets(counts: list[int], data: st.DataObject) -> None:
    """Several requests in pieces of any lengths: every batch once, in order, unchanged but for its base offset."""
    sent = [batch(*(bytes([number]) * 9 for _ in range(count))) for number, count in enumerate(counts)]
    stream = b"".join(produce((0, each)) for each in sent)
    cuts = data.draw(st.lists(st.integers(1, len(stream) - 1), max_size=8, unique=True).map(sorted))
    relay = relay_with()
    producer, consumer = Client(relay), Client(relay)
    consumer.say(fetch({0: 0}, wait_ms=0))
    got, offset = b"", 0
    consumer.answers()
    for begin, end in pairwise([0, *cuts, len(stream)]):
        producer.say(stream[begin:end])
        consumer.say(fetch({0: offset}, wait_ms=0))
        raw, headers = fetched(consumer.answer(FetchResponse))[0]
        for header in headers:
            assert header.base_offset == offset
            offset = header.next_offset
        got += raw
    assert offset == sum(counts)
    at = 0
    for each in sent:
        assert after_offset(got[at : at + len(each)]) == after_offset(each)
        at += len(each)
    assert at == len(got)


def test_a_fetch_waits_for_what_it_asked_for() -> None:
    """It is answered when enough bytes are there, or empty when its time has come, and not before."""
    relay = relay_with(2)
    producer, consumer = Client(relay), Client(relay)
    one = batch(b"x" * 50)
    consumer.say(fetch({0: 0, 1: 0}, min_bytes=2 * len(one)))
    producer.say(produce((0, one)))
    assert consumer.answers() == []
    producer.say(produce((1, one)))
    assert {number: len(headers) for number, (_, headers) in fetched(consumer.answer(FetchResponse)).items()} == {
        0: 1,
        1: 1,
    }
    consumer.say(fetch({0: 1, 1: 1}, wait_ms=30))
    assert relay.wait_s() is not None
    deadline_s = time.monotonic() + 60
    while not consumer.line.written and time.monotonic() < deadline_s:
        relay.turn()
    assert all(not headers for _, headers in fetched(consumer.answer(FetchResponse)).values())
    assert relay.wait_s() is None


def test_a_fetch_is_answered_within_its_limits_but_never_stuck() -> None:
    """At most so many bytes of a partition and altogether, of whole batches, and one batch at least."""
    relay = relay_with(2)
    producer, consumer = Client(relay), Client(relay)
    consumer.say(fetch({0: 0, 1: 0}, wait_ms=0))
    consumer.answers()
    each = batch(b"x" * 100)
    producer.say(*[produce((number, each)) for number in (0, 1) for _ in range(5)])

    def counts(**limits: int) -> list[int]:
        consumer.say(fetch({0: 0, 1: 0}, wait_ms=0, **limits))
        return [len(headers) for _, headers in fetched(consumer.answer(FetchResponse)).values()]

    assert counts() == [5, 5]
    assert counts(part_bytes=2 * len(each) + 1) == [2, 2]
    assert counts(max_bytes=6 * len(each)) == [5, 1]
    assert counts(part_bytes=1, max_bytes=1) == [1, 0]


def test_every_reader_gets_all_of_it_and_it_is_kept_no_longer() -> None:
    """Two readers of one partition at their own paces; what both have had is gone, and its memory is used again."""
    relay = relay_with()
    producer, readers = Client(relay), [Client(relay), Client(relay)]
    for each in readers:
        each.say(fetch({0: 0}, wait_ms=0))
        each.answers()
    producer.say(produce((0, batch(b"a"))), produce((0, batch(b"b"))))
    for each in readers:
        each.say(fetch({0: 0}, wait_ms=0))
        assert len(fetched(each.answer(FetchResponse))[0][1]) == 2
    held = relay.stock.bytes
    readers[0].say(fetch({0: 2}, wait_ms=0))
    assert relay.stock.bytes == held > 0
    readers[1].say(fetch({0: 1}, wait_ms=0))
    assert 0 < relay.stock.bytes < held
    readers[1].session.closed()
    assert relay.stock.bytes == 0
    shelves = [block for shelf in relay.blocks._shelves.values() for block in shelf]
    assert len(shelves) == len(set(map(id, shelves))) == 3, (
        "two produce requests that were kept, and a fetch beside them"
    )


def test_without_readers_it_is_a_sink_that_counts() -> None:
    """Batches are confirmed at their offsets and dropped; the topic's end tells how many came."""
    relay = relay_with()
    producer = Client(relay)
    large = batch(*[b"x" * 10_000] * 20)
    for _ in range(2 * kafka_log.KEPT_MAX_BYTES // len(large)):
        producer.say(produce((0, large)))
    assert not producer.line.is_held
    assert relay.stock.bytes == 0
    assert len(producer.answers()) * 20 == ends(relay)[0]


def ends(relay: KafkaRelay, timestamp: int = -1) -> list[int]:
    """The offsets that every partition's end (or, with −2, beginning) is told to be at."""
    client = Client(relay)
    partitions = tuple(
        ListOffsetsPartition(partition_index=i32(each), timestamp=i64(timestamp))
        for each in range(len(relay.control.topics[TOPIC]))
    )
    topic = ListOffsetsTopic(name=TopicName(TOPIC), partitions=partitions)
    request = ListOffsetsRequest(replica_id=BrokerId(-1), topics=(topic,))
    client.say(encode(request, 7))
    return [int(each.offset) for each in client.answer(ListOffsetsResponse).topics[0].partitions]


@pytest.mark.parametrize("goes_on", ["fetched", "closed", "deleted"])
def test_what_is_kept_is_bounded_and_the_producer_waits_then(goes_on: str) -> None:
    """Beyond the bound a producer is not read from until readers have had enough, or there is nobody to keep it for."""
    relay = relay_with()
    producer, consumer = Client(relay), Client(relay)
    consumer.say(fetch({0: 0}, min_bytes=1 << 30))
    large = batch(*[b"x" * 10_000] * 20)
    sent = 0
    while not producer.line.is_held:
        producer.say(produce((0, large)))
        sent += 1
        assert sent * len(large) < 2 * kafka_log.KEPT_MAX_BYTES, "nothing ever held it back"
    if goes_on == "fetched":
        consumer.say(fetch({0: 0}, wait_ms=0, part_bytes=50 << 20))
        assert len(fetched(consumer.answer(FetchResponse))[0][1]) == sent
        consumer.say(fetch({0: sent * 20}))
    elif goes_on == "closed":
        consumer.session.closed()
    else:
        timeout = i32Timedelta.parse(timedelta(seconds=1))
        Client(relay).say(encode(DeleteTopicsRequest(topic_names=(TopicName(TOPIC),), timeout=timeout), 1))
    assert not producer.line.is_held
    assert relay.stock.bytes == 0


def test_a_late_reader_goes_on_with_what_comes() -> None:
    """What was dropped before it came is a gap; the next batch is served to a fetch from the beginning."""
    relay = relay_with()
    producer, consumer = Client(relay), Client(relay)
    producer.say(produce((0, batch(b"gone", b"gone"))))
    consumer.say(fetch({0: 0}, wait_ms=LATER_MS))
    assert consumer.answers() == []
    producer.say(produce((0, batch(b"kept"))))
    _, headers = fetched(consumer.answer(FetchResponse))[0]
    assert [header.base_offset for header in headers] == [2]
    assert (ends(relay), ends(relay, -2)) == ([3], [0])


def test_a_topic_that_is_not_there_is_told_by_its_error() -> None:
    """Produce and fetch answer UNKNOWN_TOPIC_OR_PARTITION at once."""
    relay = relay_with()
    client = Client(relay)
    client.say(produce((5, batch(b"x"))))
    assert client.answer(ProduceResponse).responses[0].partition_responses[0].error_code == 3
    client.say(fetch({5: 0}))
    assert client.answer(FetchResponse).responses[0].partitions[0].error_code == 3
    client.say(produce((0, batch(b"x")), topic="nowhere"))
    assert client.answer(ProduceResponse).responses[0].partition_responses[0].error_code == 3


def test_a_version_that_it_does_not_speak_is_told_in_the_oldest() -> None:
    """A request for versions in a newer layout is answered as the protocol says: UNSUPPORTED_VERSION, and the list."""
    client = Client(relay_with())
    plain = encode(ApiVersionsRequest(), 7)
    newer = plain[:6] + struct.pack(">h", 3) + plain[8:]
    client.say(newer, plain)
    first, second = client.answers()
    assert (first[4:6], second[4:6]) == (b"\0\x23", b"\0\0")
    assert first[6:] == second[6:] != b""


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">i", 3) + b"abc",
        struct.pack(">ihhih", 10, 99, 0, 7, 0),
        produce((0, b"x" * 80)),
        produce((0, batch(b"x")[:-1])),
        struct.pack(">ihhih", 10, 0, 7, 7, 0),
        struct.pack(">i", len(produce((0, batch(b"x")))) - 3) + produce((0, batch(b"x")))[4:] + b"x",
        struct.pack(">ihhihi", 14, 3, 5, 7, 0, 1_000),
    ],
)
def test_what_it_does_not_understand_is_hung_up_on(said: bytes) -> None:
    """Another protocol, an unknown request, a damaged batch, a request that is shorter than it says."""
    client = Client(relay_with())
    with pytest.raises(EOFError):
        client.say(said)
    assert client.answers() == []
