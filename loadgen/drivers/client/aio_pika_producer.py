"""A producer through aio-pika: every message is one `await exchange.publish(…)` in a task of its own.

An application that awaits each of them has a window of one confirmation (`confirm_window=1`); more of them at once are
more tasks, which is how asyncio does it.
"""

from __future__ import annotations

import time
from itertools import cycle, islice, pairwise, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
from aio_pika import DeliveryMode, Message
from aio_pika.exceptions import DeliveryError

from loadgen.driver import Settled
from loadgen.drivers.client.aio_pika_link import LOST, Link
from loadgen.drivers.rabbitmq_topology import Topology
from loadgen.drivers.wire.amqp_producer import NACK, poll_while
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    import asyncio

    from loadgen.driver import Int64, Target
    from loadgen.payload import Payloads

UNCONFIRMED_BATCH_MSGS = 100  # how many may wait for the socket without confirms


class AioPikaProducer:
    """See `loadgen.driver.Producer`."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        settings = target.settings
        self._payloads = payloads
        self._confirms: bool = settings["confirms"]
        self._window: int = settings["confirm_window"] if self._confirms else UNCONFIRMED_BATCH_MSGS
        self._mandatory: bool = settings["mandatory"]
        self._mode = DeliveryMode.PERSISTENT if settings["persistent"] else DeliveryMode.NOT_PERSISTENT
        self._priorities = range(settings["priorities"]) if settings.get("priorities") else [None]
        self._routes = Topology(target).routes(payloads)
        self._headers: dict[str, Any] = dict(self._routes.headers or {})
        self._tasks: set[asyncio.Task[None]] = set()
        self._heard: list[tuple[int, str | None]] = []
        self._link = Link(target.endpoint, settings["heartbeat"], confirms=self._confirms)
        try:
            self._exchange: Any = self._link.channel.default_exchange
            if self._routes.exchange:
                found = self._link.channel.get_exchange(self._routes.exchange, ensure=False)
                self._exchange = self._link.loop.run(found)
        except LOST as error:
            self.close()
            raise BrokerError(f"rabbitmq at {self._link.address}: {error}") from None

    @property
    def room_msgs(self) -> int:
        """What the window has left."""
        return max(0, self._window - len(self._tasks))

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Start publishing each message; the loop does it when it turns."""
        flat, offsets = self._payloads.pack(first_seq, intended_ns, sent_ns)
        whole = flat.tobytes()
        rows = self._routes.rows(self._payloads, first_seq, len(intended_ns))
        keys = repeat(self._routes.text()) if rows is None else map(self._routes.text, rows.tolist())
        priorities = islice(cycle(self._priorities), first_seq % len(self._priorities), None)
        bounds = pairwise(offsets.tolist())
        for seq, ((begin, end), key, priority) in enumerate(zip(bounds, keys, priorities, strict=False), first_seq):
            message = Message(whole[begin:end], headers=self._headers, delivery_mode=self._mode, priority=priority)
            task = self._link.loop.start(self._publish(seq, message, key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _publish(self, seq: int, message: Message, key: str) -> None:
        """Publish one message and note what became of it."""
        error = None
        try:
            answer = await self._exchange.publish(message, key, mandatory=self._mandatory)
            if (returned := getattr(answer, "delivery", None)) is not None:
                error = f"return: {returned.reply_text}"
        except DeliveryError:
            error = NACK
        except LOST as lost:  # while the connection was mended: the library repeats nothing
            error = f"lost: {type(lost).__name__}"
        if self._confirms or error is not None:
            self._heard.append((seq, error))
        self._link.loop.tell()

    def poll(self, timeout_s: float) -> list[Settled]:
        """Turn the loop until something was confirmed or written."""
        if not self._heard:
            self._link.loop.pump(timeout_s)
            self._link.look()
        if not self._heard:
            return []
        at_ns = time.monotonic_ns()
        heard, self._heard = self._heard, []
        by_error: dict[str | None, list[int]] = {}
        for seq, error in heard:
            by_error.setdefault(error, []).append(seq)
        return [Settled(np.array(seqs, np.int64), at_ns, error) for error, seqs in by_error.items()]

    def flush(self, timeout_s: float) -> list[Settled]:
        """Wait until every publish has ended, at most `timeout_s`."""
        return poll_while(lambda: bool(self._tasks or self._heard), self.poll, timeout_s)

    def close(self) -> None:
        """Close the connection; never raises."""
        self._link.close()
