"""Receives from its queues and acknowledges by the batch."""

from __future__ import annotations

import contextlib
import struct
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pika import spec

from loadgen.driver import Received
from loadgen.drivers.failures import ACCEPT, FAIL, REJECT, REQUEUE
from loadgen.drivers.rabbitmq_topology import Topology
from loadgen.drivers.wire.amqp_acks import IDLE_S, Acks, Said
from loadgen.drivers.wire.amqp_connection import Connection
from loadgen.drivers.wire.amqp_deliveries import DeliveryParser, numbered_tag
from loadgen.drivers.wire.amqp_frames import CHANNEL, encode
from loadgen.errors import LoadgenError, TrialError
from loadgen.payload import sequence_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.driver import Bool, Target
    from loadgen.drivers.wire.amqp_deliveries import Deliveries

_ACK_END = struct.Struct(">QBB")
# basic.nack says that a message was not worked on, basic.reject that it failed: a quorum queue counts the second only.
_METHODS = {
    ACCEPT: spec.Basic.Ack(0, multiple=True),
    REQUEUE: spec.Basic.Nack(0, requeue=True),
    FAIL: spec.Basic.Reject(0, requeue=True),
    REJECT: spec.Basic.Reject(0, requeue=False),
}
_RENDERED = {verdict: encode(method, CHANNEL) for verdict, method in _METHODS.items()}
_HEADS = {verdict: rendered[: -_ACK_END.size] for verdict, rendered in _RENDERED.items()}
_BITS = {verdict: rendered[-2] for verdict, rendered in _RENDERED.items()}


class AmqpConsumer:
    """Consumer `index` of `count`; acknowledges after processing, or has the broker do so on delivery.

    Of several queues it reads its share on one channel, each with a prefetch of its own. An ack with `multiple` is
    sent for each `ack_every` settled messages, and for the rest when idle.
    """

    def __init__(self, target: Target, index: int, count: int, *, is_correlated: bool = False) -> None:
        settings = target.settings
        topology = Topology(target)
        self._acks = Acks(target)
        self._need_bytes = 1
        self._connection = Connection(target.endpoint, settings["heartbeat"])
        self._parser = DeliveryParser(
            self._connection.handle,
            is_spread=topology.is_spread,
            has_priorities=bool(settings.get("priorities")),
            is_correlated=is_correlated,
        )
        queues = topology.read_by(index, count)
        tag = f"loadgen-{index}"
        tags = {number: numbered_tag(tag, number) if topology.is_spread else tag for number in queues}
        try:
            self._connection.call(spec.Basic.Qos(prefetch_count=settings["prefetch"]), spec.Basic.QosOk)
            self._consume([(tags[number], queue) for number, queue in queues.items()])
        except BaseException:
            self._connection.close()
            raise

    def _consume(self, queues: Sequence[tuple[str, str]]) -> None:
        """Begin with each queue under its tag; raises BrokerError where one is not there.

        The answer for the last may come behind deliveries of the first: those of several queues are not waited for.
        """
        has_several = len(queues) > 1
        for _, queue in queues if has_several else ():
            self._connection.call(spec.Queue.Declare(queue=queue, passive=True), spec.Queue.DeclareOk)
        for tag, queue in queues:
            consume = spec.Basic.Consume(
                queue=queue, consumer_tag=tag, no_ack=not self._acks.is_manual, nowait=has_several
            )
            if has_several:
                self._connection.write_small(encode(consume))
            else:
                self._connection.call(consume, spec.Basic.ConsumeOk)

    @property
    def failed(self) -> dict[str, int]:
        """How many deliveries it has requeued, failed or rejected."""
        return self._acks.failed

    @property
    def has_waiting(self) -> bool:
        """Whether whole deliveries were left of the last read."""
        return self._connection.end - self._connection.begin >= self._need_bytes

    def receive(self, timeout_s: float) -> list[Received]:
        """Wait for the first message and return all that one read brought; what is left over stays for the next."""
        connection = self._connection
        read_ns = 0
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        connection.make_room(self._need_bytes)
        # Deliveries may have come with the answer to basic.consume: then there is enough before the first read.
        has_new = connection.end - connection.begin >= self._need_bytes
        while True:
            has_rest = self._acks.has_rest
            if has_new or connection.read_within(min(timeout_s, IDLE_S) if has_rest else timeout_s):
                read_ns = read_ns or time.monotonic_ns()
                if read_ns > connection.beat_due_ns:
                    connection.beat(read_ns)
                if connection.end - connection.begin >= self._need_bytes:
                    found = self._parser.parse(connection.raw, connection.begin, connection.end)
                    connection.begin, self._need_bytes = self._parser.begin, self._parser.need_bytes
                    if found is not None:
                        return self._hand_out(found, read_ns)
                    connection.make_room(self._need_bytes)
                has_new = False
            elif has_rest:
                self._acknowledge(self._acks.rest())
            if connection.has_unsent:
                connection.write_on()
            now_ns = time.monotonic_ns()
            if now_ns > connection.beat_due_ns:
                connection.beat(now_ns)
            timeout_s = (deadline_ns - now_ns) / 1e9
            if timeout_s <= 0:
                return []

    def settle(self, count: int | None = None) -> None:
        """Acknowledge every whole `ack_every` of what has been processed; the rest when idle."""
        self._acknowledge(self._acks.settle(count))

    def close(self) -> None:
        """Acknowledge what was settled and close: what was not goes back to the queue; never raises."""
        with contextlib.suppress(LoadgenError):
            self._acknowledge(self._acks.rest())
        self._connection.close()

    def _hand_out(self, found: Deliveries, read_ns: int) -> list[Received]:
        """What was found, as one batch of each queue."""
        acks = self._acks
        if acks.failures:
            acks.note(sequence_numbers(self._connection.buffer, found.starts), found.redelivered)
        acks.handed += len(found.starts)
        if acks.handed != found.last_tag:
            raise TrialError(f"rabbitmq gave delivery tag {found.last_tag} to delivery {acks.handed}")
        source = 0 if found.sources is None else int(found.sources[0])
        whole = Received(
            buffer=self._connection.buffer,
            starts=found.starts,
            sizes=found.sizes,
            source=source,
            read_ns=read_ns,
            parsed_ns=time.monotonic_ns(),
            redelivered=found.redelivered,
        )
        if found.sources is None or (found.sources == source).all():
            return [whole]
        return [_of_queue(whole, number, found.sources == number) for number in np.unique(found.sources).tolist()]

    def _acknowledge(self, said: list[Said]) -> None:
        """Say all of it, in one write."""
        if not said:
            return
        end = spec.FRAME_END
        self._connection.write_small(
            b"".join([_HEADS[verdict] + _ACK_END.pack(tag, _BITS[verdict], end) for tag, verdict in said])
        )


def _of_queue(whole: Received, number: int, which: Bool) -> Received:
    """The messages of one queue, of a batch of several."""
    redelivered = None if whole.redelivered is None else whole.redelivered[which]
    return replace(
        whole,
        starts=whole.starts[which],
        sizes=whole.sizes if isinstance(whole.sizes, int) else whole.sizes[which],
        source=number,
        redelivered=redelivered if redelivered is not None and redelivered.any() else None,
    )
