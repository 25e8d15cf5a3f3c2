"""Reads streams by subscriptions with credits, and stores on the broker how far it has processed them."""

from __future__ import annotations

import contextlib
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadgen.driver import Received
from loadgen.drivers.stream_settings import Streams
from loadgen.drivers.wire.framed import SLACK_BYTES, wait
from loadgen.drivers.wire.stream_chunks import ChunkParser, DamagedChunkError
from loadgen.drivers.wire.stream_connection import close_all, open_leaders
from loadgen.drivers.wire.stream_protocol import (
    FIRST,
    KEY,
    NONE,
    RESPONSE_BIT,
    Code,
    Key,
    Offset,
    Reader,
    StreamError,
    answer,
    code_name,
    command,
    properties,
    text,
)
from loadgen.errors import LoadgenError, TrialError

if TYPE_CHECKING:
    from loadgen.driver import Start, Target, UInt8
    from loadgen.drivers.wire.stream_chunks import Chunk
    from loadgen.drivers.wire.stream_connection import StreamConnection

BUFFER_BYTES = 1 << 20  # read at once at most; a larger chunk makes it grow
_IDLE_S = 0.05  # how long it waits at most before it looks whether offsets are to be stored
EVERYWHERE = -1  # the number that stands for all streams
_CREDIT = struct.Struct(">BH")


@dataclass(slots=True)
class Reading:
    """One stream that is read: offsets from `wanted` on, `handed` and `stored` are the next ones of each."""

    number: int
    stream: str
    connection: StreamConnection
    wanted: int = 0
    handed: int = 0
    settled: int = 0
    stored: int = 0
    highest: int = 0
    owed: int = 0

    def seek(self, stored: int | None) -> None:
        """Begin behind the offset that was stored last, if any was."""
        self.wanted = self.handed = self.settled = self.stored = 0 if stored is None else stored + 1


class StreamConsumer:
    """Consumer `index` of `count`: reads its share of the partitions, from the stored offsets on, else from `start`.

    It gives a credit for each chunk when that is handed out, so that the broker sends no more than is read. With
    `single_active_consumer` it subscribes to all of them, and reads those that the broker makes it active for.
    """

    def __init__(self, target: Target, index: int, count: int, start: Offset = FIRST) -> None:
        settings = target.settings
        streams = Streams(target)
        self._group = target.group or target.name
        self._start, self._starts = start, starts_of(target.start)
        self._every_s: float = settings["store_offset_interval_ms"] / 1000
        self._next_store_s = time.monotonic() + self._every_s
        self._credits: int = settings["credits"]
        self._parser = ChunkParser()
        self._readings: dict[int, Reading] = {}
        self._updates: dict[int, tuple[int, Reading]] = {}  # a query's correlation: the update's, and whose
        shares = streams.read_by(index, count)
        names = list(shares.values())
        opened = open_leaders(target.endpoint, names, settings["heartbeat"], BUFFER_BYTES) if names else {}
        self._connections = list(dict.fromkeys(opened.values()))
        self._read_ns = dict.fromkeys(self._connections, 0)
        group = {"name": self._group}
        if settings["single_active_consumer"]:
            group["single-active-consumer"] = "true"
            if streams.is_super:
                group["super-stream"] = target.name
        try:
            for number, stream in shares.items():
                reading = self._readings[number] = Reading(number, stream, opened[stream])
                self._subscribe(reading, group, waits=settings["single_active_consumer"])
        except BaseException:
            close_all(self._connections)
            raise

    def _subscribe(self, reading: Reading, group: dict[str, str], *, waits: bool) -> None:
        """Begin where this group stopped; a single active consumer is told so when it becomes active."""
        start = self._start_in(reading)
        if not waits:
            stored = query_offset(reading.connection, self._group, reading.stream)
            reading.seek(stored)
            if stored is not None:
                start = Offset("offset", stored + 1)
            elif start.kind == "offset":
                reading.seek((start.value or 0) - 1)
        body = struct.pack(">B", reading.number) + text(reading.stream) + start.encode()
        body += struct.pack(">H", self._credits) + properties(group)
        reading.connection.call(Key.SUBSCRIBE, body)

    def _start_in(self, reading: Reading) -> Offset:
        """Where to begin in a stream in which nothing was stored under this name."""
        return self._starts.get(reading.number, self._starts.get(EVERYWHERE, self._start))

    @property
    def has_waiting(self) -> bool:
        """Never: all that was read is handed out."""
        return False

    def receive(self, timeout_s: float) -> list[Received]:
        """Wait for the first message, then return all that one read of each connection brought."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            received: list[Received] = []
            for connection in self._connections:
                received += self._read(connection)
            now_s = time.monotonic()
            if now_s >= self._next_store_s:
                self._store(now_s)
            left_s = deadline_s - now_s
            if received or left_s <= 0:
                return received
            wait(self._connections, min(left_s, _IDLE_S))

    def settle(self, count: int | None = None) -> None:
        """What was handed out has been processed: its offsets may be stored."""
        if count is not None:
            return
        for each in self._readings.values():
            each.settled = each.handed

    def close(self) -> None:
        """Store how far was processed and leave; never raises."""
        with contextlib.suppress(LoadgenError, OSError, ValueError):
            self._store(time.monotonic())
        close_all(self._connections)

    def _read(self, connection: StreamConnection) -> list[Received]:
        """What one read brought; goes on reading while no frame is whole."""
        received: list[Received] = []
        while connection.early:
            frame = connection.early.popleft()
            self._read_ns[connection] = self._read_ns[connection] or time.monotonic_ns()
            self._frame(connection, np.frombuffer(frame + bytes(SLACK_BYTES), np.uint8), 0, len(frame), received)
        read_ns, has_frame = 0, False
        while True:  # frames may have come with the answer to the subscription, before the first read
            while (found := connection.frame()) is not None:
                has_frame = True
                self._read_ns[connection] = self._read_ns[connection] or time.monotonic_ns()
                self._frame(connection, connection.buffer, *found, received)
            if has_frame or received or not connection.read():
                break
            read_ns = time.monotonic_ns()
            self._read_ns[connection] = self._read_ns[connection] or read_ns
        if has_frame:  # the last read may have brought the next frame's first bytes
            self._read_ns[connection] = read_ns if connection.is_mid_frame else 0
        self._give_credits(connection)
        now_ns = read_ns or time.monotonic_ns()
        if read_ns or now_ns > connection.beat_due_ns:
            connection.beat(now_ns, has_heard=read_ns > 0)
        return received

    def _frame(
        self, connection: StreamConnection, buffer: UInt8, begin: int, end: int, received: list[Received]
    ) -> None:
        key, _ = KEY.unpack_from(buffer.data, begin)
        if key == Key.DELIVER:
            try:
                chunk = self._parser.parse(buffer, begin, end)
            except DamagedChunkError as error:
                raise TrialError(f"rabbitmq at {connection.address} delivered {error}") from None
            self._deliver(connection, chunk, received)
            return
        frame = buffer[begin:end].tobytes()
        if key == Key.CONSUMER_UPDATE:
            self._update(connection, Reader(frame[KEY.size :]))
        elif key == Key.QUERY_OFFSET | RESPONSE_BIT:
            self._activate(connection, Reader(frame[KEY.size :]))
        else:
            connection.handle(frame)

    def _deliver(self, connection: StreamConnection, chunk: Chunk, received: list[Received]) -> None:
        """Hand out a chunk's messages but for those before the offset that was wanted."""
        reading = self._readings[chunk.subscription]
        reading.owed += 1
        skip = min(max(0, reading.wanted - chunk.first_offset), chunk.count)
        if skip == chunk.count:
            return
        first, past = chunk.first_offset + skip, chunk.first_offset + chunk.count
        batch = Received(
            chunk.buffer,
            chunk.starts[skip:],
            chunk.sizes if isinstance(chunk.sizes, int) else chunk.sizes[skip:],
            reading.number,
            self._read_ns[connection],
            time.monotonic_ns(),
            first_position=first,
        )
        if first < reading.highest:
            batch.redelivered = np.arange(first, past) < reading.highest
        reading.highest = max(reading.highest, past)
        reading.handed = past
        received.append(batch)

    def _give_credits(self, connection: StreamConnection) -> None:
        """A credit for each chunk that came."""
        for each in self._readings.values():
            if each.owed and each.connection is connection:
                connection.queue([command(Key.CREDIT, _CREDIT.pack(each.number, each.owed))])
                each.owed = 0
        if connection.has_output:
            connection.write()

    def _store(self, now_s: float) -> None:
        """Have the broker keep the offset of the last message processed of each stream."""
        self._next_store_s = now_s + self._every_s
        for each in self._readings.values():
            if each.settled > each.stored:
                store_offset(each.connection, self._group, each.stream, each.settled - 1)
                each.stored = each.settled

    # --- a single active consumer ---

    def _update(self, connection: StreamConnection, reader: Reader) -> None:
        """Become active, for which the stored offset must be known, or step down, leaving it behind."""
        correlation, number, is_active = reader.number("I"), reader.number("B"), reader.number("B")
        reading = self._readings[number]
        if is_active:
            query = connection.post(Key.QUERY_OFFSET, text(self._group) + text(reading.stream))
            self._updates[query] = correlation, reading
            return
        if reading.settled > reading.stored:
            store_offset(connection, self._group, reading.stream, reading.settled - 1)
            reading.stored = reading.settled
        connection.send(answer(Key.CONSUMER_UPDATE, correlation, Code.OK, NONE.encode()))

    def _activate(self, connection: StreamConnection, reader: Reader) -> None:
        query, code, offset = reader.number("I"), reader.number("H"), reader.number("Q")
        if query not in self._updates:
            return
        correlation, reading = self._updates.pop(query)
        if code not in {Code.OK, Code.NO_OFFSET}:
            raise TrialError(f"rabbitmq at {connection.address} refused a stored offset: {code_name(code)}")
        is_known = code == Code.OK
        start = Offset("offset", offset + 1) if is_known else self._start_in(reading)
        reading.seek(start.value - 1 if start.kind == "offset" and start.value else None)
        connection.send(answer(Key.CONSUMER_UPDATE, correlation, Code.OK, start.encode()))


def starts_of(start: Start | None) -> dict[int, Offset]:
    """A target's start as offset specifications, by the stream's number."""
    if start is None:
        return {}
    if start.time_ms is not None:
        return {EVERYWHERE: Offset("timestamp", start.time_ms)}
    return {number: Offset("offset", offset) for number, offset in (start.offsets or {}).items()}


def query_offset(connection: StreamConnection, group: str, stream: str) -> int | None:
    """The offset that was stored last under this name; None if none was."""
    reader = connection.ask(Key.QUERY_OFFSET, text(group) + text(stream))
    code = reader.number("H")
    if code == Code.NO_OFFSET:
        return None
    if code != Code.OK:
        raise StreamError(connection.address, f"the offset stored in {stream}", code)
    return reader.number("Q")


def store_offset(connection: StreamConnection, group: str, stream: str, offset: int) -> None:
    """Have the broker keep an offset under this name; it does not answer."""
    connection.send(command(Key.STORE_OFFSET, text(group) + text(stream) + struct.pack(">Q", offset)))
