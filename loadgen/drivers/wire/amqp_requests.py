"""Request-reply on RabbitMQ: who asks, on one channel, and who answers, by reply-to and correlation id.

A requester is a producer whose channel also consumes its replies: from the pseudo-queue amq.rabbitmq.reply-to, whose
messages pass through no queue, or from an exclusive queue of its own. A responder is a consumer that publishes, on the
channel that it consumes from, to whatever queue each request names.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from pika import spec

from loadgen.driver import Received
from loadgen.drivers.rabbitmq_topology import Routes
from loadgen.drivers.wire.amqp_consumer import AmqpConsumer
from loadgen.drivers.wire.amqp_deliveries import DeliveryParser
from loadgen.drivers.wire.amqp_frames import CORRELATION_BYTES, PublishHead, PublishPacker, PublishTemplate
from loadgen.drivers.wire.amqp_producer import AmqpProducer
from loadgen.payload import Payloads, Relayed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Int64, Settled, Target, UInt8, UInt64
    from loadgen.drivers.wire.amqp_consumer import Lane
    from loadgen.drivers.wire.amqp_deliveries import Deliveries
    from loadgen.drivers.wire.amqp_frames import Frame

DIRECT = "amq.rabbitmq.reply-to"
_TEMPLATE_ROWS = 64
_TEMPLATES = 256  # requesters whose reply's frames are kept: as many as a trial has
_DIGITS = np.full(256, 16, np.uint8)  # what is no hexadecimal digit makes an identity that nobody has
_DIGITS[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_SHIFTS = np.arange(60, -1, -4, dtype=np.uint64)
NOBODY = (1 << 64) - 1


def reply_queue(target: Target, producer: int) -> str:
    """Where the replies to one requester go."""
    return DIRECT if target.settings["reply_to"] == "direct" else f"{target.name}-replies-{producer:03}"


def identities(buffer: UInt8, spans: Int64) -> UInt64:
    """The identities (uint64[n]) that correlation ids at these places (int64[n, 2]) tell; `NOBODY` where none does."""
    found = np.full(len(spans), NOBODY, np.uint64)
    rows = np.flatnonzero(spans[:, 1] - spans[:, 0] == CORRELATION_BYTES)
    digits = _DIGITS[buffer[spans[rows, :1] + np.arange(CORRELATION_BYTES)]]
    good = (digits < 16).all(axis=1)
    found[rows[good]] = (digits[good].astype(np.uint64) << _SHIFTS).sum(axis=1, dtype=np.uint64)
    return found


class AmqpRequester(AmqpProducer):
    """Publishes requests and receives what is said to be their replies (see `loadgen.driver.Requester`)."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        queue = reply_queue(target, payloads.producer)
        super().__init__(target, payloads, reply_to=queue)
        self._parser = DeliveryParser(self._hear, is_correlated=True)
        self._frames_of: tuple[int, list[Settled]] = (0, [])
        self._replies: list[Received] = []
        try:
            if queue != DIRECT:
                declare = spec.Queue.Declare(queue=queue, exclusive=True, auto_delete=True)
                self._connection.call(declare, spec.Queue.DeclareOk)
            # Of the pseudo-queue only automatic acknowledgement is allowed; a reply is of use to nobody else anyway.
            consume = spec.Basic.Consume(queue=queue, consumer_tag="replies", no_ack=True)
            self._connection.call(consume, spec.Basic.ConsumeOk)
        except BaseException:
            self._connection.close()
            raise

    def take_replies(self) -> list[Received]:
        """What came since the last call."""
        taken, self._replies = self._replies, []
        return taken

    @property
    def _has_news(self) -> bool:
        return bool(self._replies)

    def _take_some(self, at_ns: int, settled: list[Settled]) -> bool:
        """Confirms, then deliveries as far as there is no confirm between them; these are copied out of the buffer."""
        self._take_confirms(at_ns, settled)
        connection, first = self._connection, self._connection.begin
        self._frames_of = (at_ns, settled)
        found = self._parser.parse(connection.raw, first, connection.end)
        connection.begin = self._parser.begin
        self._need_bytes = max(connection.frame_max, self._parser.need_bytes)
        if found is not None:
            assert found.ids_at is not None, "the parser was asked for them"
            reply = Received(
                buffer=connection.buffer[first : connection.begin].copy(),
                starts=found.starts - first,
                sizes=found.sizes,
                source=0,
                read_ns=at_ns,
                parsed_ns=time.monotonic_ns(),
                redelivered=found.redelivered,
                answers=identities(connection.buffer, found.ids_at),
            )
            self._replies.append(reply)
        return connection.begin != first

    def _hear(self, found: Frame) -> None:
        """A frame that is neither a confirm nor of a delivery."""
        self._other(found, *self._frames_of)


class AmqpResponder(AmqpConsumer):
    """Receives requests and publishes each one's reply (see `loadgen.driver.Responder`): the request's own bytes."""

    def __init__(self, target: Target, index: int, count: int, payloads: Payloads) -> None:
        super().__init__(target, index, count, is_correlated=True)
        self._relayed = Relayed(payloads.message, payloads.seed, payloads.token)
        self._templates: dict[bytes, PublishTemplate | PublishPacker] = {}
        self._found: Deliveries | None = None

    def _hand_out(self, lane: Lane, found: Deliveries, read_ns: int) -> list[Received]:
        self._found = found
        return super()._hand_out(lane, found, read_ns)

    def reply(self, batch: Received, begin: int, end: int) -> None:
        """Answer messages begin … end of the batch that `receive` handed out last; who cannot be answered is left."""
        found = self._found
        assert found is not None, "nothing was received"
        assert found.ids_at is not None, "the parser was asked for them"
        assert found.reply_to_at is not None, "the parser was asked for them"
        ids, names = found.ids_at[begin:end], found.reply_to_at[begin:end]
        for name, rows in _by_name(batch.buffer, names):
            for at in range(0, len(rows), _TEMPLATE_ROWS):
                part = rows[at : at + _TEMPLATE_ROWS]
                self._relayed.stage(0, batch, part + begin, identities(batch.buffer, ids[part]))
                nothing = np.zeros(len(part), np.int64)
                frames = self._template(name).fill(self._relayed, 0, nothing, 0)
                self._connection.write_small(bytes(frames))  # the template is used again before all is written

    def _template(self, name: bytes) -> PublishTemplate | PublishPacker:
        if name not in self._templates:
            if len(self._templates) == _TEMPLATES:
                self._templates.clear()
            head = PublishHead(Routes.of("", [name.decode()]), persistent=False, mandatory=False, is_reply=True)
            size_bytes, frame_max = self._relayed.size_bytes, self._connection.frame_max
            if size_bytes is None:
                self._templates[name] = PublishPacker(head, frame_max)
            else:
                self._templates[name] = PublishTemplate(head, size_bytes, frame_max, _TEMPLATE_ROWS)
        return self._templates[name]


def _by_name(buffer: UInt8, names: Int64) -> Iterator[tuple[bytes, Int64]]:
    """The reply-to names at these places (int64[n, 2]), and the rows of each; rows without one are of no name."""
    lengths = names[:, 1] - names[:, 0]
    for length in np.unique(lengths[lengths > 0]).tolist():
        rows = np.flatnonzero(lengths == length)
        texts = buffer[names[rows, :1] + np.arange(length)].view(f"S{length}")[:, 0]
        for text in np.unique(texts):
            yield bytes(text), rows[texts == text]
