"""The wire producer against a scripted broker: order, retries, idempotence, acknowledgements; frames read by kio."""

from __future__ import annotations

import datetime as dt
import io
from collections import Counter, deque
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from crc32c import crc32c
from kio.records.readers import read_batch
from kio.schema.errors import ErrorCode
from kio.schema.produce.v7.request import ProduceRequest
from kio.schema.produce.v7.response import PartitionProduceResponse, ProduceResponse, TopicProduceResponse
from kio.schema.types import TopicName
from kio.serial import entity_reader, entity_writer
from kio.static.primitive import i32Timedelta as Throttle
from kio.static.primitive import i64

from loadgen.driver import Target
from loadgen.drivers.wire import kafka_sender
from loadgen.drivers.wire.framed import LinkError
from loadgen.drivers.wire.kafka_codecs import CODECS, Codecs
from loadgen.drivers.wire.kafka_producer import KafkaProducer
from loadgen.endpoint import Endpoint
from loadgen.knobs import resolve
from loadgen.payload import Payloads
from loadgen.scenario import Message, Uniform

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.driver import Settled

Verdict = ErrorCode | None | Literal["lost"]  # the broker's answer; None: it hangs up; lost: it appends, then hangs up
READ = entity_reader(ProduceRequest)
WRITE = entity_writer(ProduceResponse)


class ScriptedBroker:
    """Stands for the cluster, its connections and the log behind them."""

    def __init__(self, partitions: int, verdicts: list[Verdict]) -> None:
        self.partitions = partitions
        self.leaders = dict.fromkeys(range(partitions), 1)
        self.verdicts = deque(verdicts)
        self.log: dict[int, list[Any]] = {each: [] for each in range(partitions)}
        self.requests = 0
        self.failed_requests = 0
        self.next_id = 0
        self.expected: dict[tuple[int, int], int] = {}
        self.is_idempotent = False

    def connect(self, _node: int) -> ScriptedConnection:
        """A new connection."""
        return ScriptedConnection(self)

    def producer_id(self) -> tuple[int, int]:
        """A new producer id each time."""
        self.next_id += 1
        self.is_idempotent = True
        return self.next_id, 0

    ask_producer_id = producer_id

    def refresh(self) -> bool:
        """The leaders are as they were."""
        return True

    def trouble(self, problem: str) -> None:
        """Nothing is ever for good here."""

    def well(self) -> None:
        """Fine."""

    def judge(self, partition: int, batch: Any) -> Verdict:
        """The scripted verdict, else what a broker would say of the sequence number."""
        verdict: Verdict = None
        if self.verdicts:
            verdict = self.verdicts.popleft()
            if verdict not in {ErrorCode.none, "lost"}:
                return verdict
        if self.is_idempotent:
            place = (partition, batch.producer_id)
            expected = self.expected.get(place, batch.base_sequence)  # unknown: any number will do
            if batch.base_sequence != expected:
                seen = batch.base_sequence + len(batch.records) <= expected
                return ErrorCode.duplicate_sequence_number if seen else ErrorCode.out_of_order_sequence_number
            self.expected[place] = expected + len(batch.records)
        self.log[partition].append(batch)
        return None if verdict == "lost" else ErrorCode.none

    def values(self, partition: int) -> list[bytes]:
        """Everything in a partition's log."""
        return [each.value for batch in self.log[partition] for each in batch.records]


def plain(batch: bytes) -> bytes:
    """The batch without compression, for kio, which reads none; its checksum must have been right."""
    assert int.from_bytes(batch[17:21], "big") == crc32c(batch[21:])
    codec = batch[22] & 7
    if not codec:
        return batch
    opened = bytearray(batch[:61] + Codecs().decompress(codec, memoryview(batch)[61:]))
    opened[22] = 0
    opened[8:12] = (len(opened) - 12).to_bytes(4, "big")
    opened[17:21] = crc32c(bytes(opened[21:])).to_bytes(4, "big")
    return bytes(opened)


class ScriptedConnection:
    """What the sender uses of a connection; requests are answered once they are wholly written."""

    def __init__(self, broker: ScriptedBroker) -> None:
        self.broker = broker
        self.queued_bytes = self.written_bytes = self.correlation = 0
        self.has_output = False
        self.out = bytearray()
        self.answers: deque[bytes] = deque()
        self.is_dead = False
        self.buffer = np.zeros(0, np.uint8)
        self.found: tuple[int, int] | None = None

    def next_correlation(self) -> int:
        """One more each time."""
        self.correlation += 1
        return self.correlation

    def queue(self, parts: list[Any]) -> None:
        """Take bytes to be written."""
        for each in parts:
            self.out += each
            self.queued_bytes += len(each)
        self.has_output = True

    def write(self) -> None:
        """Write all, and let the broker answer."""
        self.written_bytes, self.has_output = self.queued_bytes, False
        while self.out:
            size = int.from_bytes(self.out[:4], "big")
            frame, self.out = bytes(self.out[4 : 4 + size]), self.out[4 + size :]
            self._answer(frame)

    def _answer(self, frame: bytes) -> None:
        assert frame[:4] == b"\x00\x00\x00\x07"  # Produce, version 7
        assert frame[8:17] == b"\x00\x07loadgen"
        request, read_bytes = READ(frame, 17)
        assert 17 + read_bytes == len(frame)
        self.broker.requests += 1
        (topic,) = request.topic_data
        answers = []
        for each in topic.partition_data:
            batch, _ = read_batch(plain(each.records or b""), 0)
            verdict = self.broker.judge(int(each.index), batch)
            if not isinstance(verdict, ErrorCode):
                self.is_dead = True
                return
            answers.append(
                PartitionProduceResponse(index=each.index, error_code=verdict, base_offset=i64(0), log_append_time=None)
            )
        if request.acks == 0 or self.is_dead:
            return
        out = io.BytesIO(frame[4:8])
        out.seek(4)
        response = TopicProduceResponse(name=TopicName(topic.name), partition_responses=tuple(answers))
        WRITE(out, ProduceResponse(responses=(response,), throttle_time=Throttle.parse(dt.timedelta(0))))
        self.answers.append(out.getvalue())

    def read(self) -> bool:
        """One answer at a time."""
        if self.answers:
            self.buffer = np.frombuffer(self.answers.popleft(), np.uint8)
            self.found = (0, len(self.buffer))
            return True
        if self.is_dead:
            raise LinkError("hung up")
        return False

    def frame(self) -> tuple[int, int] | None:
        """The answer just read."""
        found, self.found = self.found, None
        return found

    def fileno(self) -> int:
        """Never waited on."""
        raise AssertionError

    def finish(self, timeout_s: float) -> None:
        """Nothing is left."""

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[KafkaProducer, ScriptedBroker, Payloads]]:
    """A producer on a scripted broker."""
    monkeypatch.setattr(kafka_sender, "_BACKOFF_NS", 0)
    monkeypatch.setattr("loadgen.drivers.wire.kafka_producer.wait", lambda *_: None)

    def build(
        *verdicts: Verdict, partitions: int = 1, message: Message | None = None, **knobs: Any
    ) -> tuple[KafkaProducer, ScriptedBroker, Payloads]:
        broker = ScriptedBroker(partitions, list(verdicts))
        monkeypatch.setattr(kafka_sender, "Cluster", lambda *_: broker)
        resolved = resolve("kafka", knobs, "none" if knobs.get("acks") == "0" else "broker", "default")
        payloads = Payloads(message or Message(size_bytes=100), seed=1, token=2)
        target = Target(Endpoint("kafka", (("nowhere", 1),)), "topic", resolved)
        return KafkaProducer(target, payloads), broker, payloads

    return build


def send(producer: KafkaProducer, total: int, step: int = 150) -> list[Settled]:
    """Send messages 0 … total−1 in calls of `step`, and wait until all is settled."""
    settled: list[Settled] = []
    at = 0
    while at < total:
        count = min(step, total - at, producer.room_msgs)
        if count:
            producer.send(at, np.full(count, 1000), 2000)
            at += count
        settled += producer.poll(0)
    return settled + producer.flush(5)


def seqs(settled: list[Settled], error: str | None = None) -> list[int]:
    """The sequence numbers settled with this error, sorted."""
    return sorted(seq for each in settled if each.error == error for seq in each.seqs.tolist())


def expected_values(payloads: Payloads, count: int) -> list[bytes]:
    """The messages that `send` hands over."""
    flat, offsets = payloads.pack(0, np.full(count, 1000), 2000)
    return [flat[a:b].tobytes() for a, b in pairwise(offsets)]


RETRIABLE = ErrorCode.not_leader_or_follower
FINE = ErrorCode.none


@pytest.mark.parametrize("message", [Message(size_bytes=100), Message(size_bytes=Uniform(min_bytes=24, max_bytes=400))])
@pytest.mark.parametrize("codec", CODECS)
def test_every_message_arrives_once_and_in_order(make: Any, message: Message, codec: str) -> None:
    """Whatever the sizes, the codec and what must be repeated, the log holds what was sent, settled once."""
    producer, broker, payloads = make(FINE, ErrorCode.unknown_producer_id, message=message, compression_type=codec)
    assert seqs(send(producer, 2_000)) == list(range(2_000))
    assert broker.values(0) == expected_values(payloads, 2_000)
    assert producer.room_msgs > 10_000


@pytest.mark.parametrize(
    "verdicts",
    [
        [RETRIABLE],
        [FINE, RETRIABLE, RETRIABLE, FINE, RETRIABLE],
        [None],
        [FINE, FINE, None, FINE, RETRIABLE, None],
        [RETRIABLE, None, ErrorCode.request_timed_out],
        ["lost"],
        [FINE, "lost", RETRIABLE, FINE, "lost"],
        [RETRIABLE, FINE, FINE, None, RETRIABLE, FINE],
    ],
)
def test_retries_keep_order_with_idempotence(make: Any, verdicts: list[Verdict]) -> None:
    """Refused, hung up on, several in flight: with idempotence the log has every message once, in order."""
    producer, broker, payloads = make(*verdicts)
    assert seqs(send(producer, 3_000)) == list(range(3_000))
    assert broker.values(0) == expected_values(payloads, 3_000)
    assert broker.next_id == 1


def test_without_idempotence_nothing_is_lost(make: Any) -> None:
    """A retry may come late, but all messages are there and settled once."""
    producer, broker, payloads = make(FINE, RETRIABLE, FINE, None, enable_idempotence=False)
    assert seqs(send(producer, 3_000)) == list(range(3_000))
    assert sorted(set(broker.values(0))) == sorted(expected_values(payloads, 3_000))


@pytest.mark.parametrize("is_idempotent", [False, True])
def test_what_was_sent_again_is_told_where_it_may_be_stored_twice(make: Any, is_idempotent: bool) -> None:
    """Without idempotence every doubled message was told of; with it nothing is doubled and nothing told."""
    producer, broker, payloads = make(FINE, "lost", FINE, RETRIABLE, enable_idempotence=is_idempotent)
    send(producer, 3_000)
    expected = expected_values(payloads, 3_000)
    counts = Counter(broker.values(0))
    doubled = {seq for seq, value in enumerate(expected) if counts[value] > 1}
    told = set(producer.resent_seqs().tolist())
    assert bool(doubled) is bool(told) is not is_idempotent
    assert doubled <= told
    assert len(told) < 3_000


def test_duplicates_are_success(make: Any) -> None:
    """A broker that knows a repetition already has the messages."""
    producer, _, _ = make(ErrorCode.duplicate_sequence_number)
    assert seqs(send(producer, 100)) == list(range(100))


def test_refusal_is_told_by_name_and_the_rest_goes_on(make: Any) -> None:
    """A batch that no retry can save is settled with Kafka's error; what follows gets through under a new identity."""
    producer, broker, payloads = make(FINE, ErrorCode.message_too_large)
    settled = send(producer, 3_000, step=100)
    refused = seqs(settled, "MESSAGE_TOO_LARGE")
    assert refused
    assert sorted(refused + seqs(settled)) == list(range(3_000))
    everything = expected_values(payloads, 3_000)
    assert broker.values(0) == [everything[seq] for seq in seqs(settled)]
    assert broker.next_id == 2


LOST_COUNT = [ErrorCode.unknown_producer_id, ErrorCode.invalid_producer_epoch, ErrorCode.out_of_order_sequence_number]


@pytest.mark.parametrize("verdict", LOST_COUNT)
def test_a_forgotten_identity_is_renewed(make: Any, verdict: ErrorCode) -> None:
    """A broker that has forgotten the producer or its count gets the batch again under a fresh id."""
    producer, broker, payloads = make(FINE, verdict)
    assert seqs(send(producer, 2_000)) == list(range(2_000))
    assert broker.values(0) == expected_values(payloads, 2_000)
    assert broker.next_id == 2


def test_no_acknowledgements(make: Any) -> None:
    """With acks=0 nothing is settled, memory is free again once written, and all is in the log."""
    producer, broker, payloads = make(acks="0")
    before = producer.room_msgs
    assert send(producer, 2_000) == []
    assert producer.room_msgs == before
    assert broker.values(0) == expected_values(payloads, 2_000)


def test_room_is_what_buffer_memory_says(make: Any) -> None:
    """Messages that are not settled take room, and settling gives it back."""
    producer, _, _ = make(buffer_memory=50_000, linger_ms=3_600_000)
    room = producer.room_msgs
    assert 400 <= room <= 500
    producer.send(0, np.full(100, 1), 2)
    assert producer.room_msgs == room - 100
    producer.poll(0)
    assert producer.room_msgs == room - 100
    assert seqs(producer.flush(5)) == list(range(100))
    assert producer.room_msgs == room


def test_a_message_larger_than_all_memory_passes(make: Any) -> None:
    """Room is never nothing while nothing is held."""
    producer, broker, _ = make(buffer_memory=1_000, batch_size=500, message=Message(size_bytes=5_000))
    assert producer.room_msgs == 1
    assert seqs(send(producer, 3)) == [0, 1, 2]
    assert len(broker.values(0)) == 3


def test_linger_gathers(make: Any) -> None:
    """A lingering batch leaves when it is full or its time has come, not before."""
    producer, broker, _ = make(linger_ms=3_600_000, batch_size=16_384)
    assert send_without_flush(producer, 140) == []
    assert broker.requests == 0
    assert len(send_without_flush(producer, 10, first=140)) == 1  # the first batch is full at 146 messages
    assert broker.requests == 1


def send_without_flush(producer: KafkaProducer, count: int, first: int = 0) -> list[Settled]:
    """One call and a few polls."""
    producer.send(first, np.full(count, 1), 2)
    return [each for _ in range(3) for each in producer.poll(0)]


def test_sticky_batches_visit_every_partition(make: Any) -> None:
    """Messages without keys fill one partition's batch, then go on to the next; each partition keeps their order."""
    producer, broker, payloads = make(partitions=3)
    assert seqs(send(producer, 3_000, step=1_000)) == list(range(3_000))
    place = {value: at for at, value in enumerate(expected_values(payloads, 3_000))}
    for partition in range(3):
        got = [place[value] for value in broker.values(partition)]
        assert len(got) > 500
        assert got == sorted(got)


def test_keys_have_their_partition(make: Any) -> None:
    """All messages of a key are in one partition, in the order they were sent, behind their key."""
    for message in (Message(size_bytes=60, keys=20), Message(size_bytes=Uniform(min_bytes=24, max_bytes=90), keys=20)):
        producer, broker, payloads = make(RETRIABLE, partitions=4, message=message)
        assert seqs(send(producer, 3_000)) == list(range(3_000))
        place = {value: at for at, value in enumerate(expected_values(payloads, 3_000))}
        indices = payloads.key_indices(0, 3_000)
        home: dict[bytes, int] = {}
        for partition in range(4):
            records = [each for batch in broker.log[partition] for each in batch.records]
            got = [place[each.value] for each in records]
            assert got == sorted(got)
            for each, at in zip(records, got, strict=True):
                assert each.key == int(indices[at]).to_bytes(8, "big")
                assert home.setdefault(each.key, partition) == partition
        assert len(home) == 20


def test_requests_carry_many_partitions(make: Any) -> None:
    """What is due for one leader goes in few requests, a batch of each partition in each."""
    producer, broker, _ = make(partitions=8, message=Message(size_bytes=60, keys=100))
    producer.send(0, np.full(800, 1), 2)
    assert seqs(producer.flush(5)) == list(range(800))
    assert broker.requests == 1
