"""Kafka's protocol for a null broker: produce and fetch requests by struct, all others in `kafka_control`."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadgen.drivers.wire.framed import MAX_FRAME_BYTES
from loadgen.drivers.wire.kafka_protocol import API_FETCH, API_PRODUCE, FETCH_VERSION, PRODUCE_VERSION
from loadgen.nullbroker.kafka_control import Control
from loadgen.nullbroker.kafka_log import Block, Blocks, Stock
from loadgen.nullbroker.server import in_seconds

if TYPE_CHECKING:
    from loadgen.nullbroker.kafka_log import Partition
    from loadgen.nullbroker.server import Peer

UNKNOWN_TOPIC_OR_PARTITION = 3
_MS = 1_000_000
_SIZE = struct.Struct(">i")
_SHORT = struct.Struct(">h")
_HEAD = struct.Struct(">hhih")  # API, version, correlation, length of the client's name
_ACKS = struct.Struct(">hi")  # acks, timeout
_PRODUCED = struct.Struct(">ii")  # partition, length of its records
_PRODUCE_ANSWER = struct.Struct(">ihqqq")  # partition, error, base offset, append time, log start
_FETCH = struct.Struct(">iiiibiii")  # replica, max wait, min and max bytes, isolation, session and its epoch, topics
_ASKED = struct.Struct(">iiqqi")  # partition, leader epoch, offset, log start, max bytes
_FETCH_HEAD = struct.Struct(">iiihii")  # size, correlation, throttle time, error, session, topics
_FETCH_ANSWER = struct.Struct(">ihqqqii")  # partition, error, high watermark, last stable, log start, aborted, length


@dataclass(slots=True, eq=False)
class Fetch:
    """A fetch that is not answered yet: what is wanted of each topic, by its name as it came, and until when."""

    session: KafkaSession
    correlation: int
    min_bytes: int
    max_bytes: int
    deadline_ns: int
    wanted: list[tuple[bytes, list[Wanted]]] = field(default_factory=list)

    @property
    def is_idle(self) -> bool:
        """Whether nothing has come in any of its partitions."""
        return all(
            each.partition is not None and each.partition.end <= each.offset
            for _, wanted in self.wanted
            for each in wanted
        )


@dataclass(slots=True)
class Wanted:
    """One partition's part of a fetch; `partition` is None where there is no such partition."""

    number: int
    partition: Partition | None
    offset: int
    max_bytes: int


class KafkaRelay:
    """All topics of a null broker that listens on `port`."""

    def __init__(self, port: int) -> None:
        self.stock = Stock()
        self.control = Control(port, self.stock)
        self.blocks = Blocks()
        self.waiting: dict[KafkaSession, Fetch] = {}

    def session(self, peer: Peer) -> KafkaSession:
        """A client has connected."""
        return KafkaSession(self, peer)

    def turn(self) -> None:
        """Answer every fetch that has enough by now or has waited long enough."""
        if self.waiting:
            now_ns = time.monotonic_ns()
            for session, fetch in list(self.waiting.items()):
                if session.answer(fetch, is_late=now_ns >= fetch.deadline_ns):
                    del self.waiting[session]

    def wait_s(self) -> float | None:
        """When the first fetch has waited long enough."""
        if not self.waiting:
            return None
        return in_seconds(min(fetch.deadline_ns for fetch in self.waiting.values()))

    def partition(self, topic: bytes, number: int) -> Partition | None:
        """A partition by its topic's name and its number; None if there is none."""
        return self.control.partition(topic.decode(errors="replace"), number)


class KafkaSession:
    """One connection; each request is received into a block of its own, whose bytes its record batches stay in."""

    def __init__(self, relay: KafkaRelay, peer: Peer) -> None:
        self._relay = relay
        self._peer = peer
        self._head = memoryview(bytearray(_SIZE.size))
        self._block: Block | None = None
        self._size_bytes = self._filled = 0
        self._read: set[Partition] = set()

    def readable(self) -> None:
        """Receive on; at a request's end, do what it says."""
        if self._block is None:
            self._filled += self._peer.read_into(self._head[self._filled :])
            if self._filled < _SIZE.size:
                return
            (self._size_bytes,) = _SIZE.unpack(self._head)
            if not _HEAD.size <= self._size_bytes <= MAX_FRAME_BYTES:
                raise EOFError  # another protocol
            self._block, self._filled = self._relay.blocks.take(self._size_bytes), 0
        block = self._block
        self._filled += self._peer.read_into(block.view[self._filled : self._size_bytes])
        if self._filled == self._size_bytes:
            self._block, self._filled = None, 0
            try:
                self._request(block)
            except struct.error:
                raise EOFError from None  # a request that is not what it says
            finally:
                block.release()

    def closed(self) -> None:
        """The client is gone."""
        self._relay.waiting.pop(self, None)
        for partition in self._read:
            partition.left(self)

    def _request(self, block: Block) -> None:
        view = block.view
        api, version, correlation, name_bytes = _HEAD.unpack_from(view)
        at = _HEAD.size + max(0, name_bytes)
        if (api, version) == (API_PRODUCE, PRODUCE_VERSION):
            self._produce(block, at, correlation)
        elif (api, version) == (API_FETCH, FETCH_VERSION):
            self._fetch(view, at, correlation)
        else:
            answer = self._relay.control.answer(api, version, bytes(view[at : self._size_bytes]))
            self._peer.write(_SIZE.pack(4 + len(answer)) + _SIZE.pack(correlation) + answer)

    def _produce(self, block: Block, at: int, correlation: int) -> None:
        view = block.view
        (transaction_bytes,) = _SHORT.unpack_from(view, at)
        at += _SHORT.size + max(0, transaction_bytes)
        acks, _ = _ACKS.unpack_from(view, at)
        at += _ACKS.size
        (topics,) = _SIZE.unpack_from(view, at)
        at += _SIZE.size
        answers = [_SIZE.pack(topics)]
        for _ in range(topics):
            topic, at = _string(view, at)
            (count,) = _SIZE.unpack_from(view, at)
            at += _SIZE.size
            answers.append(_SHORT.pack(len(topic)) + topic + _SIZE.pack(count))
            for _ in range(count):
                number, size_bytes = _PRODUCED.unpack_from(view, at)
                at += _PRODUCED.size
                partition = self._relay.partition(topic, number)
                if partition is None:
                    answers.append(_PRODUCE_ANSWER.pack(number, UNKNOWN_TOPIC_OR_PARTITION, -1, -1, -1))
                else:
                    first = partition.append(view[at : at + size_bytes], block, self._peer)
                    answers.append(_PRODUCE_ANSWER.pack(number, 0, first, -1, 0))
                at += size_bytes
        if at != self._size_bytes:
            raise EOFError
        if acks:
            body = b"".join([_SIZE.pack(correlation), *answers, bytes(4)])  # no throttling
            self._peer.write(_SIZE.pack(len(body)) + body)

    def _fetch(self, view: memoryview, at: int, correlation: int) -> None:
        _, wait_ms, min_bytes, max_bytes, _, _, _, topics = _FETCH.unpack_from(view, at)
        at += _FETCH.size
        deadline_ns = time.monotonic_ns() + wait_ms * _MS
        fetch = Fetch(self, correlation, min_bytes, max_bytes, deadline_ns)
        for _ in range(topics):
            topic, at = _string(view, at)
            (count,) = _SIZE.unpack_from(view, at)
            at += _SIZE.size
            wanted = []
            for _ in range(count):
                number, _, offset, _, part_bytes = _ASKED.unpack_from(view, at)
                at += _ASKED.size
                partition = self._relay.partition(topic, number)
                if partition is not None:
                    partition.asked(self, offset)
                    self._read.add(partition)
                wanted.append(Wanted(number, partition, offset, part_bytes))
            fetch.wanted.append((topic, wanted))
        self._relay.waiting[self] = fetch  # answered at the turn's end, with all that comes in it

    def answer(self, fetch: Fetch, *, is_late: bool) -> bool:
        """Answer a fetch if there is enough for it, or as it is late; whether it was answered."""
        if not is_late and fetch.is_idle:
            return False
        parts: list[bytes | memoryview] = [b""]
        found_bytes = 0
        is_wrong = False
        for topic, wanted in fetch.wanted:
            parts.append(_SHORT.pack(len(topic)) + topic + _SIZE.pack(len(wanted)))
            for each in wanted:
                if each.partition is None:
                    is_wrong = True
                    parts.append(_FETCH_ANSWER.pack(each.number, UNKNOWN_TOPIC_OR_PARTITION, -1, -1, -1, -1, 0))
                    continue
                left_bytes = fetch.max_bytes - found_bytes
                batches: list[memoryview] = []
                if each.partition.end > each.offset and (left_bytes > 0 or not found_bytes):
                    batches = each.partition.read(each.offset, min(each.max_bytes, left_bytes))
                size_bytes = sum(map(len, batches))
                end = each.partition.end
                parts.append(_FETCH_ANSWER.pack(each.number, 0, end, end, 0, -1, size_bytes))
                parts += batches
                found_bytes += size_bytes
        if found_bytes < fetch.min_bytes and not is_late and not is_wrong:
            return False
        size_bytes = sum(map(len, parts)) + _FETCH_HEAD.size - _SIZE.size
        parts[0] = _FETCH_HEAD.pack(size_bytes, fetch.correlation, 0, 0, 0, len(fetch.wanted))
        self._peer.write(*parts)
        return True


def _string(view: memoryview, at: int) -> tuple[bytes, int]:
    """The string at a place, as bytes, and where it ends."""
    (length,) = _SHORT.unpack_from(view, at)
    return bytes(view[at + _SHORT.size : at + _SHORT.size + length]), at + _SHORT.size + length
