"""A RabbitMQ client for hand-written Locust users: publish, consume, request and reply by the wire connection."""

from __future__ import annotations

import time
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any

from pika import frame, spec

from loadgen.drivers.wire.amqp_connection import Connection
from loadgen.drivers.wire.amqp_frames import encode
from loadgen.errors import BrokerError, TrialError
from loadgen.locust.client import CONFIRM_S, BrokerClient, Delivery, RequestTimeoutError, Timed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.endpoint import Endpoint

CHANNEL = 1
REPLIES = "amq.rabbitmq.reply-to"
PERSISTENT = 2


class RabbitMQClient(BrokerClient):
    """One connection with one channel, publisher confirms, and manual acknowledgements.

    Args:
        endpoint: gives the broker; asked when the first request is made.
        queue: the queue that is published to and consumed from unless a call says otherwise; declared durable.
        queue_type: its x-queue-type.
        prefetch: how many messages may be delivered and not yet acknowledged.
        fire: Locust's request event.
        context: what the user adds to each event.
    """

    def __init__(
        self, endpoint: Callable[[], Endpoint], queue: str, queue_type: str, prefetch: int,
        fire: Callable[..., None], context: Callable[[], dict[str, Any]],
    ) -> None:  # fmt: skip
        super().__init__(fire, context)
        self._endpoint, self._queue, self._queue_type, self._prefetch = endpoint, queue, queue_type, prefetch
        self._connection: Connection | None = None
        self._published = 0
        self._unsettled: dict[int, bytes] = {}
        self._returned: dict[int, Exception] = {}
        self._settled: dict[int, Exception | None] = {}
        self._deliveries: dict[str, deque[tuple[int, Delivery]]] = {}
        self._replies: dict[bytes, bytes] = {}
        self._open: tuple[Any, Any, bytearray] | None = None

    # Requests.

    def publish(self, body: bytes, queue: str | None = None, *, mandatory: bool = True, **properties: Any) -> bool:
        """Publish a persistent message and wait until the broker has confirmed it; whether it has.

        Args:
            body: what is sent.
            queue: another queue than the user's; only the user's is declared.
            mandatory: a message that no queue takes is a failure, though the broker confirms it.
            properties: of AMQP, such as `headers`, `priority`, `content_type`; `exchange` and `routing_key` route it.
        """
        return self.publish_batch([body], queue, mandatory=mandatory, **properties) == 1

    def publish_batch(
        self, bodies: Sequence[bytes], queue: str | None = None, *, mandatory: bool = True, **properties: Any
    ) -> int:
        """Publish messages at once and wait for all confirmations; how many were confirmed (and not returned).

        Each message is a request of its own, timed until its confirmation.
        """
        exchange = properties.pop("exchange", "")
        key = properties.pop("routing_key", queue or self._queue)
        timed, told, confirmed = Timed(), 0, 0
        with self._failing("publish", key, timed):
            connection = self._connected()
            publish = spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
            left = {self._send(connection, publish, body, properties): len(body) for body in bodies}
            deadline_s = time.monotonic() + CONFIRM_S
            while left:
                self._turn(connection, deadline_s, "the broker did not confirm")
                for tag in left.keys() & self._settled.keys():
                    error = self._settled.pop(tag)
                    confirmed, told = confirmed + (error is None), told + 1
                    self._tell("publish", key, timed, left.pop(tag), error)
            return confirmed
        for _ in range(len(bodies) - told - 1):  # one was told with the failure
            self._tell("publish", key, timed, 0, timed.error)
        return confirmed

    def consume(self, count: int = 1, timeout_s: float = 1.0, queue: str | None = None) -> list[Delivery]:
        """Wait for a message, then return what has come, at most `count`, acknowledged; nothing if none comes in time.

        Each message is a request, timed from the call on.
        """
        name, timed = queue or self._queue, Timed()
        with self._failing("consume", name, timed):
            connection = self._connected()
            waiting = self._consume(connection, name)
            deadline_s = time.monotonic() + timeout_s
            while not waiting and self._read(connection, deadline_s):
                pass
            taken = [waiting.popleft() for _ in range(min(count, len(waiting)))]
            for tag, delivery in taken:
                connection.write_small(encode(spec.Basic.Ack(tag)))
                self._tell("consume", name, timed, len(delivery.body), None, delivery)
            return [delivery for _, delivery in taken]
        return []

    def request(self, body: bytes, queue: str | None = None, timeout_s: float = 5.0) -> bytes | None:
        """Send a request and wait for its reply (direct reply-to); None where none comes in time."""
        name, timed, correlation = queue or self._queue, Timed(), uuid.uuid4().hex.encode()
        with self._failing("request", name, timed):
            connection = self._connected()
            self._consume(connection, REPLIES)
            properties = {"reply_to": REPLIES, "correlation_id": correlation.decode()}
            publish = spec.Basic.Publish(routing_key=name, mandatory=True)
            tag = self._send(connection, publish, body, properties)
            deadline_s = time.monotonic() + timeout_s
            while correlation not in self._replies:
                self._turn(connection, deadline_s, f"no reply within {timeout_s:g} s")
                if (error := self._settled.pop(tag, None)) is not None:
                    raise error
            self._unsettled.pop(tag, None)
            reply = self._replies.pop(correlation)
            self._tell("request", name, timed, len(reply), None, reply)
            return reply
        return None

    def reply(self, delivery: Delivery, body: bytes) -> bool:
        """Answer a message that somebody waits on (`request`); whether it could be sent."""
        timed = Timed()
        with self._failing("reply", "reply", timed):
            connection = self._connected()
            properties = {"correlation_id": delivery.correlation_id.decode()}
            publish = spec.Basic.Publish(routing_key=delivery.reply_to)
            self._unsettled.pop(self._send(connection, publish, body, properties))  # nobody waits for this one
            self._tell("reply", "reply", timed, len(body), None)
            return True
        return False

    def close(self) -> None:
        """Leave in order."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # The connection.

    def _connected(self) -> Connection:
        if self._connection is None:
            connection = Connection(self._endpoint(), heartbeat_s=0)
            try:
                arguments = {"x-queue-type": self._queue_type}
                declare = spec.Queue.Declare(queue=self._queue, durable=True, arguments=arguments)
                connection.call(declare, spec.Queue.DeclareOk)
                connection.call(spec.Confirm.Select(), spec.Confirm.SelectOk)
                connection.call(spec.Basic.Qos(0, self._prefetch, False), spec.Basic.QosOk)
            except BrokerError:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _drop(self) -> None:
        self.close()
        self._published, self._open = 0, None
        for each in (self._unsettled, self._returned, self._settled, self._deliveries, self._replies):
            each.clear()

    def _consume(self, connection: Connection, queue: str) -> deque[tuple[int, Delivery]]:
        """Have a consumer of this queue; what it was given and nobody has taken yet."""
        if queue not in self._deliveries:
            self._deliveries[queue] = deque()
            consume = spec.Basic.Consume(queue=queue, consumer_tag=queue, no_ack=queue == REPLIES, nowait=True)
            connection.write_small(encode(consume))
        return self._deliveries[queue]

    def _send(self, connection: Connection, publish: spec.Basic.Publish, body: bytes, given: dict[str, Any]) -> int:
        """Write a message's frames, made by pika's codec; its delivery tag."""
        properties = spec.BasicProperties(**{"delivery_mode": PERSISTENT, **given})
        most = connection.frame_max - 8
        frames = [
            frame.Method(CHANNEL, publish).marshal(),
            frame.Header(CHANNEL, len(body), properties).marshal(),
            *(frame.Body(CHANNEL, body[at : at + most]).marshal() for at in range(0, len(body), most)),
        ]
        connection.write_small(b"".join(frames))
        self._published += 1
        self._unsettled[self._published] = body
        return self._published

    def _turn(self, connection: Connection, deadline_s: float, failing: str) -> None:
        if not self._read(connection, deadline_s):
            raise RequestTimeoutError(failing)

    def _read(self, connection: Connection, deadline_s: float) -> bool:
        """Take what comes until the deadline; whether something came."""
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return False
        connection.make_room(1)
        if connection.has_unsent:
            connection.wait(left_s)
            connection.write_on()
            connection.read()
        else:
            connection.read_within(left_s)
        while (found := connection.take_frame()) is not None:
            self._hear(connection, found)
        return True

    def _hear(self, connection: Connection, found: Any) -> None:
        method = getattr(found, "method", None)
        if isinstance(method, spec.Basic.Ack | spec.Basic.Nack):
            error = None if isinstance(method, spec.Basic.Ack) else TrialError("the broker refused the message (nack)")
            upto = method.delivery_tag
            for tag in [each for each in self._unsettled if each == upto or (method.multiple and each < upto)]:
                del self._unsettled[tag]
                self._settled[tag] = self._returned.pop(tag, error)
        elif isinstance(method, spec.Basic.Deliver | spec.Basic.Return):
            self._open = (method, None, bytearray())
        elif isinstance(found, frame.Header) and self._open is not None:
            self._open = (self._open[0], found, self._open[2])
            self._complete()
        elif isinstance(found, frame.Body) and self._open is not None:
            self._open[2].extend(found.fragment)
            self._complete()
        else:
            connection.handle(found)

    def _complete(self) -> None:
        """Hand out the message whose frames have all come."""
        assert self._open is not None
        method, header, body = self._open
        if len(body) < header.body_size:
            return
        self._open = None
        if isinstance(method, spec.Basic.Return):
            self._note_return(method, bytes(body))
            return
        correlation = (header.properties.correlation_id or "").encode()
        if method.consumer_tag == REPLIES:
            self._replies[correlation] = bytes(body)
        else:
            delivery = Delivery(bytes(body), header.properties.reply_to or "", correlation)
            self._deliveries[method.consumer_tag].append((method.delivery_tag, delivery))

    def _note_return(self, method: spec.Basic.Return, body: bytes) -> None:
        """A message comes back, and its confirmation after it; it has no number, but its body is one that was sent."""
        text = f"no queue took the message: {method.reply_code} {method.reply_text}"
        text += f" (exchange {method.exchange!r}, routing key {method.routing_key!r})"
        tag = next((tag for tag, sent in self._unsettled.items() if sent == body and tag not in self._returned), None)
        if tag is not None:
            self._returned[tag] = TrialError(text)
