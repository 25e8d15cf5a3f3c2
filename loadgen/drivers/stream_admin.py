"""RabbitMQ's control plane by its stream protocol: create, watch and delete a trial's stream or super stream."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any, TypeVar

from loadgen.driver import Gauge
from loadgen.drivers.rabbitmq_management import in_path, management_request
from loadgen.drivers.rabbitmq_replicas import demand_replicas
from loadgen.drivers.stream_settings import Streams
from loadgen.drivers.wire.stream_chunks import chunk_end
from loadgen.drivers.wire.stream_connection import open_any
from loadgen.drivers.wire.stream_consumer import query_offset
from loadgen.drivers.wire.stream_protocol import (
    KEY,
    LAST,
    Code,
    Key,
    StreamError,
    properties,
    text,
    texts,
)
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.driver import Target
    from loadgen.drivers.wire.stream_connection import StreamConnection
    from loadgen.endpoint import Endpoint

_Answer = TypeVar("_Answer")
_SUBSCRIPTION = 255
_CHUNK_WITHIN_S = 5.0
_RETRY_WITHIN_S = 5.0  # a node that just started may not know its streams yet
_PAUSE_S = 0.05
_MANAGEMENT_ATTEMPTS = 3
_KEPT = ("type", "durable", "auto_delete", "exclusive", "arguments", "policy", "members")


class StreamAdmin:
    """The streams of one broker's trials (see `loadgen.driver.Admin`)."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection = open_any(endpoint)

    def create(self, target: Target) -> None:
        """Create the stream or super stream; one that exists already raises BrokerError."""
        streams = Streams(target)
        arguments = properties(streams.arguments())

        def ask(connection: StreamConnection) -> None:
            if streams.is_super:
                keys = texts(str(number) for number in range(len(streams.names)))
                connection.call(Key.CREATE_SUPER_STREAM, text(target.name) + texts(streams.names) + keys + arguments)
            else:
                connection.call(Key.CREATE, text(target.name) + arguments)
            connection.metadata(streams.names)

        try:
            self._call(ask)
        except StreamError as error:
            if error.code == Code.STREAM_ALREADY_EXISTS:
                where = self._connection.address
                raise BrokerError(f"rabbitmq at {where} has a stream {target.name} already; delete it first") from None
            raise
        wanted = target.settings.get("initial_cluster_size") or 1
        if wanted > 1:
            try:
                demand_replicas(self._endpoint, streams.names, wanted)
            except BrokerError:
                self.delete(target)
                raise

    def delete(self, target: Target) -> None:
        """Delete it; that it has gone already is no error."""
        key = Key.DELETE_SUPER_STREAM if Streams(target).is_super else Key.DELETE
        try:
            self._call(lambda connection: connection.call(key, text(target.name)))
        except StreamError as error:
            if error.code != Code.STREAM_DOES_NOT_EXIST:
                raise

    def depth(self, target: Target, received: int | None = None) -> int:
        """Messages that subscribers have not processed (by their stored offsets), or not been handed (`received`).

        Offsets are counted up to the last message. Offsets and publishing ids that were stored while nothing was
        published take an offset each, by which a backlog may be overstated; of an empty one that cannot happen.
        """
        names = Streams(target).names
        groups = target.groups or (target.name,)

        def look(connection: StreamConnection) -> int:
            ends = {stream: end_of(connection, stream) for stream in names}
            behind = 0
            for stream, end in ends.items():
                for group in groups if end else ():
                    stored = query_offset(connection, group, stream)
                    behind += max(0, end if stored is None else end - stored - 1)
            unseen = behind if received is None else max(0, sum(ends.values()) * len(groups) - received)
            return min(behind, unseen)

        return self._call(look)

    def ends(self, target: Target) -> dict[int, int]:
        """The offset behind the last message of each partition (see `loadgen.abilities.Seekable`)."""
        names = Streams(target).names
        return self._call(lambda each: {number: end_of(each, stream) for number, stream in enumerate(names)})

    def stored(self, target: Target) -> int | None:
        """None: offsets that consumers store take places among those of the messages."""
        del target
        return None

    def gauge(self, target: Target, received: int | None = None) -> Gauge:
        """The depth; the stream protocol tells nothing of who subscribes."""
        names = Streams(target).names
        begin, end = self._call(
            lambda each: (sum(begin_of(each, name) for name in names), sum(end_of(each, name) for name in names))
        )
        return Gauge(self.depth(target, received), retained_msgs=end - begin, forgotten_msgs=begin)

    def effective(self, target: Target) -> dict[str, Any]:
        """The (first) stream as the management API tells it, else as it was made."""
        streams = Streams(target)
        found = self._call(lambda connection: connection.metadata(streams.names))
        leaders = sorted({f"{host}:{port}" for host, port in found.leaders.values()})
        known = {"streams": streams.names, "leaders": leaders}
        told = self._from_management(streams.names[0])
        if told is None:
            return known | {"type": "stream", "arguments": streams.arguments(), "source": "declared"}
        return known | {key: told[key] for key in _KEPT if key in told} | {"source": "management API"}

    def close(self) -> None:
        """Close the connection; never raises."""
        self._connection.leave()

    def _call(self, use: Callable[[StreamConnection], _Answer]) -> _Answer:
        """Use the connection, a new one where the last was lost; wait a moment for a stream that is not there yet."""
        deadline_s = time.monotonic() + _RETRY_WITHIN_S
        has_failed = False
        while True:
            try:
                return use(self._connection)
            except StreamError as error:
                if error.code != Code.STREAM_NOT_AVAILABLE or time.monotonic() > deadline_s:
                    raise
                time.sleep(_PAUSE_S)
            except BrokerError:
                if has_failed:
                    raise
                has_failed = True
                self._connection.close()
                self._connection = open_any(self._endpoint)

    def _from_management(self, stream: str) -> dict[str, Any] | None:
        """What the management API knows of a queue, which it learns late; None where it does not tell."""
        if self._endpoint.management_url is None:
            return None
        path = f"queues/{in_path(self._endpoint.virtual_host)}/{in_path(stream)}"
        for _ in range(_MANAGEMENT_ATTEMPTS):
            try:
                found = management_request(self._endpoint, path)
            except (OSError, ValueError):
                time.sleep(_PAUSE_S)
                continue
            if isinstance(found, dict) and "arguments" in found:
                return found
        return None


def begin_of(connection: StreamConnection, stream: str) -> int:
    """The offset of the first message that a stream still has, 0 if it never had one."""
    stats = connection.call(Key.STREAM_STATS, text(stream)).stats()
    return max(0, stats.get("first_chunk_id", 0))


def end_of(connection: StreamConnection, stream: str) -> int:
    """The offset behind the last message of a stream, 0 if it has none: its last chunk tells."""
    stats = connection.call(Key.STREAM_STATS, text(stream)).stats()
    if stats.get("committed_chunk_id", -1) < 0:
        return 0
    body = struct.pack(">B", _SUBSCRIPTION) + text(stream) + LAST.encode() + struct.pack(">H", 1) + properties({})
    connection.call(Key.SUBSCRIBE, body)
    try:
        while True:
            frame = connection.early.popleft() if connection.early else connection.await_frame(_CHUNK_WITHIN_S)
            if KEY.unpack_from(frame)[0] == Key.DELIVER:
                return chunk_end(frame)
    finally:
        connection.call(Key.UNSUBSCRIBE, struct.pack(">B", _SUBSCRIPTION))
        connection.early.clear()
