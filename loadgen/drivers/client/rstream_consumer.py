"""A consumer through rstream: subscriptions whose callback gets every message, offsets stored on the broker."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from rstream import Consumer, ConsumerOffsetSpecification, OffsetNotFound, OffsetType, amqp_decoder

from loadgen.driver import Received
from loadgen.drivers.client.event_loop import EventLoop
from loadgen.drivers.client.rstream_login import LOST, login, refused
from loadgen.drivers.stream_settings import Streams

if TYPE_CHECKING:
    from rstream import AMQPMessage, MessageContext

    from loadgen.driver import Target


@dataclass(slots=True)
class Reading:
    """One stream: what came and was not handed out, and the last offsets handed out, settled and stored (−1: none)."""

    number: int
    stream: str
    bodies: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    handed: int = -1
    settled: int = -1
    stored: int = -1


class RstreamConsumer:
    """See `loadgen.driver.Consumer`: reads its share of the partitions from the stored offsets on."""

    def __init__(self, target: Target, index: int, count: int) -> None:
        settings = target.settings
        self._group = target.group or target.name
        self._credits: int = settings["credits"]
        self._every_s: float = settings["store_offset_interval_ms"] / 1000
        self._next_store_s = time.monotonic() + self._every_s
        shares = Streams(target).read_by(index, count)
        self._readings = {stream: Reading(number, stream) for number, stream in shares.items()}
        self._read_ns = 0
        self._address = target.endpoint.address
        self._loop = EventLoop()
        self._consumer: Consumer | None = None
        try:
            self._consumer = self._loop.run(self._open(login(target.endpoint, settings["heartbeat"])))
        except LOST as error:
            self.close()
            raise refused(target.endpoint, error) from None

    async def _open(self, where: dict[str, object]) -> Consumer:
        consumer = Consumer(**where, on_close_handler=self._loop.lost)  # type: ignore[arg-type]
        await consumer.start()
        for reading in self._readings.values():
            start = ConsumerOffsetSpecification(OffsetType.FIRST, None)
            with contextlib.suppress(OffsetNotFound):
                reading.stored = await consumer.query_offset(reading.stream, self._group)
                reading.handed = reading.settled = reading.stored
                start = ConsumerOffsetSpecification(OffsetType.OFFSET, reading.stored + 1)
            await consumer.subscribe(
                reading.stream,
                self._on_message,
                decoder=amqp_decoder,
                offset_specification=start,
                initial_credit=self._credits,
                subscriber_name=self._group,
            )
        return consumer

    def _on_message(self, message: AMQPMessage, context: MessageContext) -> None:
        """The library's callback for each message."""
        if not self.has_waiting:
            self._read_ns = time.monotonic_ns()
        reading = self._readings[context.stream]
        reading.bodies.append(message.body)
        reading.offsets.append(context.offset)
        self._loop.well()
        self._loop.tell()

    @property
    def has_waiting(self) -> bool:
        """Whether messages have come since the last call, which handed out all."""
        return any(reading.bodies for reading in self._readings.values())

    def receive(self, timeout_s: float) -> list[Received]:
        """Turn the loop until there is a message; all that came with it."""
        if not self.has_waiting:
            self._loop.pump(timeout_s)
            self._loop.look(self._address)
        if time.monotonic() >= self._next_store_s:
            self._store()
        return [self._received(reading) for reading in self._readings.values() if reading.bodies]

    def _received(self, reading: Reading) -> Received:
        bodies, offsets = reading.bodies, reading.offsets
        reading.bodies, reading.offsets = [], []
        before, reading.handed = reading.handed, max(reading.handed, offsets[-1])
        again = np.array(offsets) <= before  # after a reconnection, what was not settled comes again
        sizes = np.array([len(body) for body in bodies])
        return Received(
            buffer=np.frombuffer(b"".join(bodies), np.uint8),
            starts=np.cumsum(sizes) - sizes,
            sizes=int(sizes[0]) if (sizes == sizes[0]).all() else sizes,
            source=reading.number,
            read_ns=self._read_ns,
            parsed_ns=time.monotonic_ns(),
            redelivered=again if again.any() else None,
            first_position=offsets[0] if offsets[-1] - offsets[0] == len(offsets) - 1 else None,
        )

    def settle(self, count: int | None = None) -> None:
        """What was handed out has been processed: its offsets may be stored."""
        if count is not None:
            return
        for reading in self._readings.values():
            reading.settled = reading.handed

    def _store(self) -> None:
        """Tell the broker how far was processed; an offset that could not be told is told the next time."""
        self._next_store_s = time.monotonic() + self._every_s
        assert self._consumer is not None
        for reading in self._readings.values():
            if reading.settled > reading.stored:
                with contextlib.suppress(*LOST):
                    self._loop.run(self._consumer.store_offset(reading.stream, self._group, reading.settled))
                    reading.stored = reading.settled

    def close(self) -> None:
        """Store how far was processed and leave; never raises."""
        with contextlib.suppress(Exception):
            if self._consumer is not None:
                self._store()
        self._loop.close(None if self._consumer is None else self._consumer.close)
