"""AMQP 0-9-1 for a null broker: the handshake and rare methods by pika's codec, publishes and acks in runs."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pika import frame, spec

from loadgen.drivers.wire.amqp_deliveries import decode
from loadgen.drivers.wire.amqp_frames import FRAME_END, FRAME_HEAD, encode, parse_confirms
from loadgen.errors import TrialError
from loadgen.nullbroker.amqp_publishes import PublishParser
from loadgen.nullbroker.amqp_queue import Consumer, Queue

if TYPE_CHECKING:
    from loadgen.nullbroker.amqp_publishes import Chunk, Route
    from loadgen.nullbroker.server import Peer

BUFFER_BYTES = 512 << 10
FRAME_MAX = 131_072  # these two as RabbitMQ ships them
CHANNEL_MAX = 2_047
_PROTOCOL = frame.ProtocolHeader().marshal()
_HEARTBEAT: bytes = frame.Heartbeat().marshal()
_ACK_TAIL = struct.Struct(">QBB")  # delivery tag, multiple, frame end
_ACK_HEAD = encode(spec.Basic.Ack())[: -_ACK_TAIL.size]
_NOT_FOUND, _UNEXPECTED, _NOT_IMPLEMENTED = 404, 505, 540
SERVER_PROPERTIES = {
    "product": "null broker",
    "capabilities": {
        "basic.nack": True,
        "connection.blocked": True,
        "consumer_cancel_notify": True,
        "publisher_confirms": True,
    },
}


class AmqpRelay:
    """All queues of a null broker, and those that are bound to each exchange.

    A message to an exchange goes to all of them, whatever their bindings say: for subscribers with one queue each that
    is what every type of exchange does.
    """

    def __init__(self) -> None:
        self.queues: dict[str, Queue] = {}
        self.exchanges: dict[str, dict[str, Queue]] = {}

    def session(self, peer: Peer) -> AmqpSession:
        """A client has connected."""
        return AmqpSession(self, peer)

    def bound(self, exchange: str, routing_key: str) -> list[Queue]:
        """Where a message goes."""
        if exchange:
            return list(self.exchanges.get(exchange, {}).values())
        return [self.queues[routing_key]] if routing_key in self.queues else []

    def turn(self) -> None:
        """Hand out what waits: acknowledgements or room in a socket may have come."""
        for queue in self.queues.values():
            queue.deliver()

    def wait_s(self) -> float | None:
        """Nothing happens by itself."""
        return None


class AmqpSession:
    """One connection with one channel, on which its client publishes, consumes or asks."""

    def __init__(self, relay: AmqpRelay, peer: Peer) -> None:
        self._relay = relay
        self._peer = peer
        self._own(bytearray(BUFFER_BYTES))
        self._begin = self._end = 0
        self._publishes = PublishParser()
        self._has_protocol = self._is_closing = self._confirms = False
        self._published = 0
        self._prefetch = 0
        self._consumer: Consumer | None = None
        self._queue: Queue | None = None  # the consumer's

    def _own(self, raw: bytearray) -> None:
        self._raw = raw
        self._array = np.frombuffer(raw, np.uint8)
        self._view = memoryview(raw)

    def readable(self) -> None:
        """Take what has come; what cannot be understood closes the connection with the reason."""
        self._end += self._peer.read_into(self._view[self._end :])
        before = self._published
        try:
            self._publishes.need_end = 0
            self._parse()
        except (TrialError, struct.error) as error:
            self._close(_UNEXPECTED, str(error))
        if self._confirms and self._published > before:
            self._peer.write(_ACK_HEAD + _ACK_TAIL.pack(self._published, 1, FRAME_END))
        self._make_room(self._publishes.need_end - self._begin)

    def _parse(self) -> None:
        if not self._has_protocol and not self._greet():
            return
        while self._end > self._begin:
            if self._is_closing:
                self._begin = self._end
                return
            if self._consumer is not None and self._consumer.unacked is not None:
                self._begin, _ = parse_confirms(self._array, self._begin, self._end, self._consumer.unacked)
            found = self._publishes.run(self._raw, self._begin, self._end)
            if found is None:
                frame_end = self._publishes.frame_end(self._raw, self._begin, self._end)
                if frame_end < 0:
                    return
                if not self._publishes.is_publish(self._raw, self._begin):
                    encoded = self._raw[self._begin : frame_end]
                    self._begin = frame_end
                    self._handle(FRAME_HEAD.unpack_from(encoded)[1], decode(encoded))
                    continue
                found = self._publishes.one(self._raw, self._begin, self._end)
                if found is None:
                    return
            self._publish(*found)

    def _publish(self, route: Route, chunk: Chunk) -> None:
        self._begin += chunk.bytes
        self._published += chunk.count
        # To a queue that is not there a message is dropped and confirmed, as the default exchange does.
        for queue in self._relay.bound(*route):
            queue.publish(replace(chunk), self._peer)  # each takes from its own, of the same bytes

    def _greet(self) -> bool:
        """Answer the protocol header; whether it has come whole."""
        if self._end - self._begin < len(_PROTOCOL):
            return False
        if self._raw[self._begin : self._begin + len(_PROTOCOL)] != _PROTOCOL:
            raise EOFError  # another protocol: what we would say would not be understood
        self._begin += len(_PROTOCOL)
        self._has_protocol = True
        start = spec.Connection.Start(0, 9, SERVER_PROPERTIES, "PLAIN", "en_US")
        self._peer.write(encode(start, 0))
        return True

    def _make_room(self, need_bytes: int) -> None:
        """Move what is not parsed to the front, into a larger buffer where a message needs one."""
        rest = bytes(self._view[self._begin : self._end])
        if need_bytes > len(self._raw):
            self._own(bytearray(2 * need_bytes))
        self._raw[: len(rest)] = rest
        self._begin, self._end = 0, len(rest)

    def _handle(self, channel: int, found: Any) -> None:
        """Answer a frame that is no publish: a heartbeat by another, a method by its own answer."""
        if isinstance(found, frame.Heartbeat):
            self._peer.write(_HEARTBEAT)
            return
        if not isinstance(found, frame.Method):
            raise TrialError("a content frame without its method")
        method = found.method
        answer = getattr(self, f"_on_{type(method).__qualname__.replace('.', '_').lower()}", None)
        if answer is None:
            self._close(_NOT_IMPLEMENTED, f"a null broker does not know {method.NAME}")
            return
        for each in answer(method):
            self._peer.write(encode(each, channel))

    def _close(self, code: int, reason: str) -> None:
        self._is_closing = True  # nothing more of it is looked at
        self._peer.write(encode(spec.Connection.Close(code, reason[:200], 0, 0), 0))

    def closed(self) -> None:
        """The client is gone, and so is its consumer; what that one had not acknowledged is dropped."""
        if self._consumer is not None and self._queue is not None:
            self._queue.leave(self._consumer)
        self._consumer = self._queue = None

    # --- methods, by their names: each gives its answers ---

    def _on_connection_startok(self, _: Any) -> list[Any]:
        return [spec.Connection.Tune(CHANNEL_MAX, FRAME_MAX, 0)]

    def _on_connection_tuneok(self, _: Any) -> list[Any]:
        return []

    def _on_connection_open(self, _: Any) -> list[Any]:
        return [spec.Connection.OpenOk()]

    def _on_connection_close(self, _: Any) -> list[Any]:
        self.closed()
        return [spec.Connection.CloseOk()]

    def _on_connection_closeok(self, _: Any) -> list[Any]:
        return []

    def _on_channel_open(self, _: Any) -> list[Any]:
        return [spec.Channel.OpenOk()]

    def _on_channel_close(self, _: Any) -> list[Any]:
        self.closed()
        return [spec.Channel.CloseOk()]

    def _on_channel_closeok(self, _: Any) -> list[Any]:
        return []

    def _on_confirm_select(self, _: Any) -> list[Any]:
        self._confirms, self._published = True, 0
        return [spec.Confirm.SelectOk()]

    def _on_queue_declare(self, method: Any) -> list[Any]:
        queue = self._relay.queues.get(method.queue)
        if queue is None and method.passive:
            return self._not_found(method)
        if queue is None:
            queue = self._relay.queues[method.queue] = Queue(method.queue)
        return [spec.Queue.DeclareOk(queue.name, queue.depth, len(queue.consumers))]

    def _on_exchange_declare(self, method: Any) -> list[Any]:
        self._relay.exchanges.setdefault(method.exchange, {})
        return [spec.Exchange.DeclareOk()]

    def _on_exchange_delete(self, method: Any) -> list[Any]:
        self._relay.exchanges.pop(method.exchange, None)
        return [spec.Exchange.DeleteOk()]

    def _on_queue_bind(self, method: Any) -> list[Any]:
        queue, bound = self._relay.queues.get(method.queue), self._relay.exchanges.get(method.exchange)
        if queue is None or bound is None:
            return self._not_found(method)
        bound[queue.name] = queue
        return [spec.Queue.BindOk()]

    def _on_queue_delete(self, method: Any) -> list[Any]:
        queue = self._relay.queues.pop(method.queue, None)
        for bound in self._relay.exchanges.values():
            bound.pop(method.queue, None)
        if queue is None:
            return [spec.Queue.DeleteOk(0)]
        queue.clear()
        return [spec.Queue.DeleteOk(queue.depth)]

    def _on_basic_qos(self, method: Any) -> list[Any]:
        self._prefetch = method.prefetch_count
        return [spec.Basic.QosOk()]

    def _on_basic_consume(self, method: Any) -> list[Any]:
        queue = self._relay.queues.get(method.queue)
        if queue is None:
            return self._not_found(method)
        if self._consumer is not None:
            raise TrialError("a second consumer on one connection: a null broker serves one")
        tag, is_automatic = method.consumer_tag or "null-0", bool(method.no_ack)
        self._consumer = Consumer(self._peer, tag, queue.name, self._prefetch, is_automatic=is_automatic)
        self._queue = queue
        queue.consumers.append(self._consumer)
        return [spec.Basic.ConsumeOk(tag)]

    def _on_basic_cancel(self, method: Any) -> list[Any]:
        self.closed()
        return [spec.Basic.CancelOk(method.consumer_tag)]

    @staticmethod
    def _not_found(method: Any) -> list[Any]:
        class_id, method_id = divmod(method.INDEX, 1 << 16)
        return [spec.Channel.Close(_NOT_FOUND, f"NOT_FOUND - no queue '{method.queue}'", class_id, method_id)]
