"""A producer through aio-pika: every message is one `await exchange.publish(…)` in a task of its own.

An application that awaits each of them has a window of one confirmation (`confirm_window=1`); more of them at once are
more tasks, which is how asyncio does it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from aio_pika import Message
from aio_pika.exceptions import ChannelPreconditionFailed, DeliveryError

from loadgen.drivers.client.aio_pika_link import LOST, Link
from loadgen.drivers.client.event_loop import settled_of
from loadgen.drivers.client.pika_producers import Messages
from loadgen.drivers.wire.amqp_producer import NACK, poll_while
from loadgen.errors import TrialError

if TYPE_CHECKING:
    import asyncio

    from loadgen.driver import Int64, Settled, Target
    from loadgen.payload import Payloads

UNCONFIRMED_BATCH_MSGS = 100  # how many may wait for the socket without confirms


class AioPikaProducer:
    """See `loadgen.driver.Producer`."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        settings = target.settings
        self._messages = Messages(target, payloads)
        self._confirms: bool = settings["confirms"]
        self._window: int = settings["confirm_window"] if self._confirms else UNCONFIRMED_BATCH_MSGS
        self._mandatory: bool = settings["mandatory"]
        self._tasks: set[asyncio.Task[None]] = set()  # held, as the loop itself does not
        self._under_way = 0
        self._heard: list[tuple[int, str | None]] = []
        self._refused: str | None = None
        self._link = Link(target.endpoint, settings["heartbeat"], confirms=self._confirms)
        try:
            self._exchange: Any = self._link.channel.default_exchange
            if self._messages.exchange:
                found = self._link.channel.get_exchange(self._messages.exchange, ensure=False)
                self._exchange = self._link.loop.run(found)
        except LOST as error:
            self.close()
            raise self._link.refused(error) from None

    @property
    def room_msgs(self) -> int:
        """What the window has left."""
        return max(0, self._window - self._under_way)

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Start publishing each message; the loop does it when it turns."""
        messages = self._messages.of(first_seq, intended_ns, sent_ns)
        for seq, (key, body, properties) in enumerate(messages, first_seq):
            message = Message(
                body,
                headers=properties.headers,
                delivery_mode=properties.delivery_mode,
                priority=properties.priority,
            )
            task = self._link.loop.start(self._publish(seq, message, key))
            self._under_way += 1
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
        except ChannelPreconditionFailed as refused:  # the connection is well: what is sent is what is refused
            error = self._refused = str(self._link.refused(refused))
        except LOST as lost:  # while the connection was mended: the library repeats nothing
            error = f"lost: {type(lost).__name__}"
        self._under_way -= 1
        if self._confirms or error is not None:
            self._heard.append((seq, error))
        self._link.loop.tell()

    def poll(self, timeout_s: float) -> list[Settled]:
        """Turn the loop until something was confirmed or written; raises TrialError where the broker refuses it."""
        if not self._heard:
            self._link.loop.pump(timeout_s)
            self._link.look()
        if self._refused is not None:
            raise TrialError(self._refused)
        if not self._heard:
            return []
        at_ns = time.monotonic_ns()
        heard, self._heard = self._heard, []
        return settled_of(heard, at_ns)

    def flush(self, timeout_s: float) -> list[Settled]:
        """Wait until every publish has ended, at most `timeout_s`."""
        return poll_while(lambda: bool(self._under_way or self._heard), self.poll, timeout_s)

    def close(self) -> None:
        """Close the connection; never raises."""
        self._link.close()
