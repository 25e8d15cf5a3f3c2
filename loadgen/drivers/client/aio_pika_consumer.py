"""A consumer through aio-pika: `async for message in queue.iterator()`, each within `message.process()`."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from loadgen.driver import Received
from loadgen.drivers.client.aio_pika_link import LOST, Link
from loadgen.drivers.rabbitmq_topology import Topology
from loadgen.drivers.wire.amqp_acks import IDLE_S
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage, AbstractQueueIterator

    from loadgen.driver import Target


class AioPikaConsumer:
    """See `loadgen.driver.Consumer`.

    With `ack_every` 1 a message is acknowledged by leaving its `process()`, which is what the documentation of aio-pika
    shows; with more, `message.ack(multiple=True)` acknowledges so many at once.
    """

    def __init__(self, target: Target, index: int, count: int) -> None:
        settings = target.settings
        self._is_manual: bool = settings["ack"] == "manual"
        self._every: int = settings["ack_every"]
        self._waiting: dict[int, list[AbstractIncomingMessage]] = {}
        self._arrived: list[AbstractIncomingMessage] = []
        self._handed: deque[AbstractIncomingMessage] = deque()  # and not settled
        self._settled: list[AbstractIncomingMessage] = []  # and not acknowledged
        self._read_ns = 0
        self._link = Link(target.endpoint, settings["heartbeat"], confirms=False)
        try:
            self._link.loop.run(self._link.channel.set_qos(prefetch_count=settings["prefetch"]))
            for number, name in Topology(target).read_by(index, count).items():
                iterator = self._link.loop.run(self._consume(name))
                self._link.loop.start(self._read(number, iterator))
        except LOST as error:
            self.close()
            raise BrokerError(f"rabbitmq at {self._link.address}: {error}") from None

    async def _consume(self, name: str) -> AbstractQueueIterator:
        """Subscribe, so that deliveries come from now on."""
        queue = await self._link.channel.get_queue(name)
        iterator = queue.iterator(no_ack=not self._is_manual)
        await iterator.consume()
        return iterator

    async def _read(self, number: int, iterator: AbstractQueueIterator) -> None:
        """Take what a queue delivers, for as long as there is a queue."""
        async for message in iterator:
            if not self._arrived:
                self._read_ns = time.monotonic_ns()
            self._waiting.setdefault(number, []).append(message)
            self._arrived.append(message)
            self._link.loop.tell()

    @property
    def has_waiting(self) -> bool:
        """Whether deliveries have come since the last call, which handed out all."""
        return bool(self._arrived)

    def receive(self, timeout_s: float) -> list[Received]:
        """Turn the loop until there is a message; all that came with it."""
        if self._settled and not self._arrived:
            first_s = min(IDLE_S, timeout_s)
            self._link.loop.pump(first_s)
            timeout_s -= first_s
            if not self._arrived:
                self._acknowledge(len(self._settled))
        if not self._arrived:
            self._link.loop.pump(timeout_s)
            self._link.look()
        waiting, self._waiting = self._waiting, {}
        if self._is_manual:
            self._handed += self._arrived
        self._arrived.clear()
        return [self._received(number, messages) for number, messages in waiting.items()]

    def _received(self, number: int, messages: list[AbstractIncomingMessage]) -> Received:
        bodies = [message.body for message in messages]
        redelivered = np.array([bool(message.redelivered) for message in messages])
        sizes = np.array([len(body) for body in bodies])
        return Received(
            buffer=np.frombuffer(b"".join(bodies), np.uint8),
            starts=np.cumsum(sizes) - sizes,
            sizes=int(sizes[0]) if (sizes == sizes[0]).all() else sizes,
            source=number,
            read_ns=self._read_ns,
            parsed_ns=time.monotonic_ns(),
            redelivered=redelivered if redelivered.any() else None,
        )

    def settle(self, count: int | None = None) -> None:
        """Acknowledge every whole `ack_every` of what has been processed; the rest when idle."""
        for _ in range(len(self._handed) if count is None else min(count, len(self._handed))):
            self._settled.append(self._handed.popleft())
        if len(self._settled) >= self._every:
            self._acknowledge(len(self._settled) // self._every * self._every)

    def _acknowledge(self, count: int) -> None:
        """Acknowledge the first `count` settled messages; what a lost connection delivered comes again."""
        done, self._settled = self._settled[:count], self._settled[count:]
        with contextlib.suppress(*LOST):
            self._link.loop.run(self._say(done))

    async def _say(self, done: list[AbstractIncomingMessage]) -> None:
        if self._every == 1:
            for message in done:
                async with message.process():
                    pass  # it was: this leaves
            return
        for at in range(self._every, len(done) + 1, self._every):
            await done[at - 1].ack(multiple=True)
        if len(done) % self._every:
            await done[-1].ack(multiple=True)

    def close(self) -> None:
        """Acknowledge what was settled and close: what was not goes back to the queue; never raises."""
        with contextlib.suppress(*LOST):
            if self._settled:
                self._acknowledge(len(self._settled))
        self._link.close()
