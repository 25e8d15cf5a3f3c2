"""A consumer through aio-pika: `async for message in queue.iterator()`, each within `message.process()`."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING

from loadgen.drivers.client.aio_pika_link import LOST, Link
from loadgen.drivers.client.pika_consumers import Inbox
from loadgen.drivers.failures import ACCEPT, FAIL, REQUEUE
from loadgen.drivers.rabbitmq_topology import Topology
from loadgen.drivers.wire.amqp_acks import IDLE_S, Acks
from loadgen.errors import TrialError

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage, AbstractQueueIterator

    from loadgen.driver import Received, Target
    from loadgen.drivers.wire.amqp_acks import Said


class AioPikaConsumer:
    """See `loadgen.driver.Consumer`.

    With `ack_every` 1 a message is acknowledged by leaving its `process()`, which is what the documentation of aio-pika
    shows; with more, `message.ack(multiple=True)` acknowledges so many at once.
    """

    def __init__(self, target: Target, index: int, count: int) -> None:
        settings = target.settings
        self._acks = Acks(target)
        self._numbers: dict[str, int] = {}
        self._inbox = Inbox(self._numbers, self._acks)
        self._held: deque[AbstractIncomingMessage] = deque()  # in the order of their coming, unacknowledged
        self._let_go = 0
        self._is_cancelled = False
        self._link = Link(target.endpoint, settings["heartbeat"], confirms=False)
        try:
            underlay = self._link.loop.run(self._link.channel.get_underlay_channel())
            underlay.on_consumer_cancel_callbacks.add(self._on_cancelled)
            self._link.loop.run(self._link.channel.set_qos(prefetch_count=settings["prefetch"]))
            for number, name in Topology(target).read_by(index, count).items():
                tag = f"loadgen-{index}-{number}"
                self._numbers[tag] = number
                iterator = self._link.loop.run(self._consume(name, tag))
                self._link.loop.start(self._read(iterator))
        except LOST as error:
            self.close()
            raise self._link.refused(error) from None

    async def _consume(self, name: str, tag: str) -> AbstractQueueIterator:
        """Subscribe, so that deliveries come from now on."""
        queue = await self._link.channel.get_queue(name)
        iterator = queue.iterator(no_ack=not self._acks.is_manual, consumer_tag=tag)
        await iterator.consume()
        return iterator

    async def _read(self, iterator: AbstractQueueIterator) -> None:
        """Take what a queue delivers, for as long as there is a queue."""
        async for message in iterator:
            self._inbox.on_message(None, message, None, message.body)
            if self._acks.is_manual:
                self._held.append(message)
            self._link.loop.tell()

    def _on_cancelled(self, *_arguments: object) -> None:
        self._is_cancelled = True
        self._link.loop.tell()

    @property
    def failed(self) -> dict[str, int]:
        """How many deliveries it has requeued, failed or rejected."""
        return self._acks.failed

    @property
    def has_waiting(self) -> bool:
        """Whether deliveries have come since the last call, which handed out all."""
        return bool(self._inbox)

    def receive(self, timeout_s: float) -> list[Received]:
        """Turn the loop until there is a message; all that came with it."""
        if self._acks.has_rest and not self._inbox:
            first_s = min(IDLE_S, timeout_s)
            self._link.loop.pump(first_s)
            timeout_s -= first_s
            if not self._inbox:
                self._acknowledge(self._acks.rest())
        if not self._inbox:
            self._link.loop.pump(timeout_s)
            self._link.look()
        if self._is_cancelled and not self._inbox:
            why = "its queue was deleted or its node went away"
            raise TrialError(f"rabbitmq at {self._link.address} cancelled the consumer: {why}")
        return self._inbox.hand_out()

    def settle(self, count: int | None = None) -> None:
        """Acknowledge every whole `ack_every` of what has been processed; the rest when idle."""
        self._acknowledge(self._acks.settle(count))

    def _acknowledge(self, said: list[Said]) -> None:
        """Say what becomes of settled messages; those that a lost connection delivered come again."""
        if said:
            with contextlib.suppress(*LOST):
                self._link.loop.run(self._say(said))

    async def _say(self, said: list[Said]) -> None:
        for tag, verdict in said:
            done = [self._held.popleft() for _ in range(tag - self._let_go)]
            self._let_go = tag
            if verdict != ACCEPT:
                await (done[-1].nack() if verdict == REQUEUE else done[-1].reject(requeue=verdict == FAIL))
            elif len(done) == 1:
                async with done[0].process():
                    pass  # it was: this leaves
            else:
                await done[-1].ack(multiple=True)

    def close(self) -> None:
        """Acknowledge what was settled and close: what was not goes back to the queue; never raises."""
        with contextlib.suppress(*LOST):
            self._acknowledge(self._acks.rest())
        self._link.close()
