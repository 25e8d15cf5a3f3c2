"""Kafka seen from outside its drivers: the requests that pass a small proxy, and the record batches a broker keeps.

RabbitMQ's streams have frames with the same heads, so that the proxy sees these, too.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from kio.index import load_request_schema
from kio.schema.fetch.v10.request import FetchPartition, FetchRequest, FetchTopic
from kio.schema.types import BrokerId, TopicName
from kio.serial import entity_reader
from kio.static.primitive import i8, i32, i32Timedelta, i64

from loadgen.drivers.wire.kafka_protocol import Connection
from loadgen.drivers.wire.kafka_records import BatchHeader, RecordReader, batch_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.endpoint import Endpoint

PRODUCE, FETCH, OFFSET_COMMIT = 0, 1, 8
_HEAD = struct.Struct(">hhi")


@dataclass(slots=True)
class Request:
    """One request as a client sent it."""

    api: int
    version: int
    correlation: int
    frame: bytes

    @property
    def said(self) -> Any:
        """Its contents by the protocol's own schema."""
        schema = load_request_schema(self.api, self.version)
        _, at = entity_reader(schema.__header_schema__)(self.frame, 0)
        return entity_reader(schema)(self.frame, at)[0]


@dataclass
class Seen:
    """What passed a proxy; `in_flight` is how many produce requests of one connection were unanswered at most.

    Whoever sends a produce request while `is_cutting` is hung up on, and the broker does not get it.
    """

    requests: list[Request] = field(default_factory=list)
    in_flight: int = 0
    is_cutting: bool = False

    def of(self, api: int) -> list[Any]:
        """The contents of all requests of one kind, in their order."""
        return [each.said for each in list(self.requests) if each.api == api]


@dataclass(eq=False)
class _Side:
    """One direction of a connection."""

    source: socket.socket
    sink: socket.socket
    rest: bytes = b""
    waiting: set[int] = field(default_factory=set)

    def frames(self, data: bytes) -> Iterator[bytes]:
        """The whole frames in what has come so far, without their lengths."""
        self.rest += data
        while len(self.rest) >= 4 and len(self.rest) >= 4 + (size := int.from_bytes(self.rest[:4], "big")):
            yield self.rest[4 : 4 + size]
            self.rest = self.rest[4 + size :]


class _Proxy(threading.Thread):
    """Passes on everything, answers to produce requests after `hold_s`; the leader's address becomes its own."""

    def __init__(self, upstream: tuple[str, int], seen: Seen, hold_s: float) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.ended = threading.Event()
        self._upstream, self._seen, self._hold_s = upstream, seen, hold_s
        host = upstream[0].encode()
        # Whatever the encoding of the host's length: a port follows the host.
        self._told = host + upstream[1].to_bytes(4, "big")
        self._telling = host + int(self.listener.getsockname()[1]).to_bytes(4, "big")
        self._asking: dict[socket.socket, _Side] = {}
        self._answering: dict[socket.socket, tuple[_Side, _Side]] = {}

    def run(self) -> None:
        while not self.ended.is_set():
            ready, _, _ = select.select([self.listener, *self._asking, *self._answering], [], [], 0.05)
            for each in ready:
                if each is self.listener:
                    self._accept()
                    continue
                if each not in self._asking and each not in self._answering:
                    continue  # its other side has ended meanwhile
                try:
                    data = each.recv(1 << 18)
                except OSError:
                    data = b""
                if not data:
                    self._end(each)
                elif each in self._asking:
                    self._asked(self._asking[each], data)
                else:
                    self._answered(*self._answering[each], data)
        for each in [self.listener, *self._asking, *self._answering]:
            each.close()

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        server = socket.create_connection(self._upstream)
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asking = self._asking[client] = _Side(client, server)
        self._answering[server] = (_Side(server, client), asking)

    def _end(self, one: socket.socket) -> None:
        side = self._asking.pop(one, None) or self._answering.pop(one)[0]
        self._asking.pop(side.sink, None)
        self._answering.pop(side.sink, None)
        for each in (side.source, side.sink):
            each.close()

    def _asked(self, side: _Side, data: bytes) -> None:
        for frame in side.frames(data):
            request = Request(*_HEAD.unpack_from(frame.ljust(_HEAD.size)), frame)  # a stream's may be shorter
            self._seen.requests.append(request)
            if request.api == PRODUCE:
                side.waiting.add(request.correlation)
                self._seen.in_flight = max(self._seen.in_flight, len(side.waiting))
                if self._seen.is_cutting:
                    self._end(side.source)
                    return
        with contextlib.suppress(OSError):
            side.sink.sendall(data)

    def _answered(self, side: _Side, asking: _Side, data: bytes) -> None:
        for frame in side.frames(data):
            correlation = int.from_bytes(frame[:4], "big")
            if correlation in asking.waiting:
                self._hold(asking)
                asking.waiting.discard(correlation)
            told = frame.replace(self._told, self._telling)
            with contextlib.suppress(OSError):
                side.sink.sendall(len(told).to_bytes(4, "big") + told)

    def _hold(self, asking: _Side) -> None:
        """Keep an answer back, and read meanwhile what else is asked for."""
        until_s = time.monotonic() + self._hold_s
        while (left_s := until_s - time.monotonic()) > 0:
            if select.select([asking.source], [], [], left_s)[0]:
                data = asking.source.recv(1 << 18)
                if not data:
                    return
                self._asked(asking, data)


@contextlib.contextmanager
def watched(endpoint: Endpoint, hold_s: float = 0.0) -> Iterator[tuple[Endpoint, Seen]]:
    """A way to the broker on which everything is seen; answers to produce requests may be held back."""
    seen = Seen()
    proxy = _Proxy(endpoint.hosts[0], seen, hold_s)
    proxy.start()
    try:
        yield replace(endpoint, hosts=(proxy.listener.getsockname()[:2],)), seen
    finally:
        proxy.ended.set()
        proxy.join(60)


@dataclass(slots=True)
class Written:
    """One record batch as the broker keeps it: its header and its values."""

    header: BatchHeader
    values: list[bytes]


def written(endpoint: Endpoint, topic: str, partition: int = 0) -> list[Written]:
    """Every record batch of a partition from its first offset on."""
    found: list[Written] = []
    connection = Connection(endpoint, *endpoint.hosts[0])
    try:
        offset = 0
        while True:
            data = _fetched(connection, topic, partition, offset)
            headers = batch_headers(memoryview(data), 0, len(data))
            if not headers:
                return found
            found += [_kept(data, each) for each in headers]
            offset = headers[-1].next_offset
    finally:
        connection.close()


def _fetched(connection: Connection, topic: str, partition: int, offset: int) -> bytes:
    wanted = FetchPartition(
        partition=i32(partition),
        current_leader_epoch=i32(-1),
        fetch_offset=i64(offset),
        log_start_offset=i64(-1),
        partition_max_bytes=i32(1 << 24),
    )
    answer = connection.call(
        FetchRequest(
            replica_id=BrokerId(-1),
            max_wait=i32Timedelta.parse(timedelta(milliseconds=10)),
            min_bytes=i32(0),
            max_bytes=i32(1 << 24),
            isolation_level=i8(0),
            session_id=i32(0),
            session_epoch=i32(-1),
            topics=(FetchTopic(topic=TopicName(topic), partitions=(wanted,)),),
            forgotten_topics_data=(),
        )
    )
    return bytes(answer.responses[0].partitions[0].records or b"")


def _kept(data: bytes, header: BatchHeader) -> Written:
    padded = np.frombuffer(data + bytes(8), np.uint8)
    values: list[bytes] = []
    for records in RecordReader().read(padded, [header]):
        sizes = np.broadcast_to(np.asarray(records.sizes), len(records.starts))
        values += [
            records.buffer[at : at + size].tobytes()
            for at, size in zip(records.starts.tolist(), sizes.tolist(), strict=True)
        ]
    return Written(header, values)
