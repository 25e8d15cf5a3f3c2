"""Receives from one queue and acknowledges by the batch."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

from pika import spec

from loadgen.driver import Received
from loadgen.drivers.wire.amqp_connection import Connection
from loadgen.drivers.wire.amqp_deliveries import DeliveryParser
from loadgen.drivers.wire.amqp_frames import CHANNEL, encode
from loadgen.errors import LoadgenError, TrialError

if TYPE_CHECKING:
    from loadgen.driver import Target
    from loadgen.drivers.wire.amqp_deliveries import Deliveries

IDLE_S = 0.001  # nothing to read for so long is idle: under load, acks keep to `ack_every`

_ACK_END = struct.Struct(">QBB")
_ACK_HEAD = encode(spec.Basic.Ack(), CHANNEL)[: -_ACK_END.size]


class AmqpConsumer:
    """One consumer of the target's queue; acknowledges after processing, or has the broker do so on delivery.

    An ack with `multiple` is sent for each `ack_every` settled messages, and for the rest when idle.
    """

    def __init__(self, target: Target, index: int) -> None:
        settings = target.settings
        self._is_manual = settings["ack"] == "manual"
        self._ack_every = settings["ack_every"]
        self._handed_tag = self._settled_tag = self._acked_tag = 0
        self._need_bytes = 1
        self._connection = Connection(target.endpoint, settings["heartbeat"])
        self._parser = DeliveryParser(self._connection.handle)
        consume = spec.Basic.Consume(
            queue=target.name, consumer_tag=f"loadgen-{index}", no_ack=not self._is_manual
        )
        try:
            self._connection.call(spec.Basic.Qos(prefetch_count=settings["prefetch"]), spec.Basic.QosOk)
            self._connection.call(consume, spec.Basic.ConsumeOk)
        except BaseException:
            self._connection.close()
            raise

    def receive(self, timeout_s: float) -> list[Received]:
        """Wait for the first message and return all that one read brought; what is left over stays for the next."""
        connection = self._connection
        read_ns = 0
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        connection.make_room(self._need_bytes)
        # Deliveries may have come with the answer to basic.consume: then there is enough before the first read.
        count = connection.end - connection.begin >= self._need_bytes
        while True:
            unacked = self._is_manual and self._settled_tag > self._acked_tag
            if count or (count := connection.read_within(min(timeout_s, IDLE_S) if unacked else timeout_s)):
                read_ns = read_ns or time.monotonic_ns()
                if read_ns > connection.beat_due_ns:
                    connection.beat(read_ns)
                if connection.end - connection.begin >= self._need_bytes:
                    found = self._parser.parse(connection.raw, connection.begin, connection.end)
                    connection.begin, self._need_bytes = self._parser.begin, self._parser.need_bytes
                    if found is not None:
                        return [self._hand_out(found, read_ns)]
                    connection.make_room(self._need_bytes)
                count = 0
            elif unacked:
                self._acknowledge(self._settled_tag)
            now_ns = time.monotonic_ns()
            connection.beat(now_ns)
            timeout_s = (deadline_ns - now_ns) / 1e9
            if timeout_s <= 0:
                return []

    def settle(self) -> None:
        """Acknowledge every whole `ack_every` of what has been processed; the rest when idle."""
        self._settled_tag = self._handed_tag
        if self._is_manual and self._settled_tag - self._acked_tag >= self._ack_every:
            rest = (self._settled_tag - self._acked_tag) % self._ack_every
            self._acknowledge(self._settled_tag - rest)

    def close(self) -> None:
        """Acknowledge what was settled and close: what was not goes back to the queue; never raises."""
        try:
            self._acknowledge(self._settled_tag)
        except LoadgenError:
            pass
        finally:
            self._connection.close()

    def _hand_out(self, found: Deliveries, read_ns: int) -> Received:
        count = len(found.starts)
        self._handed_tag += count
        if self._handed_tag != found.last_tag:
            raise TrialError(
                f"rabbitmq gave delivery tag {found.last_tag} to delivery number {self._handed_tag}"
            )
        return Received(
            buffer=self._connection.buffer,
            starts=found.starts,
            sizes=found.sizes,
            source=0,
            read_ns=read_ns,
            parsed_ns=time.monotonic_ns(),
            redelivered=found.redelivered,
        )

    def _acknowledge(self, through_tag: int) -> None:
        """One ack for each `ack_every` messages up to this tag, and one for the rest; all in one write."""
        if not self._is_manual or through_tag <= self._acked_tag:
            return
        tags = [*range(self._acked_tag + self._ack_every, through_tag, self._ack_every), through_tag]
        self._acked_tag = through_tag
        end = spec.FRAME_END
        self._connection.write_small(b"".join([_ACK_HEAD + _ACK_END.pack(tag, 1, end) for tag in tags]))
