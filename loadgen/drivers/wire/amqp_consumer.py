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
from loadgen.drivers.wire.amqp_frames import encode
from loadgen.errors import LoadgenError, TrialError
from loadgen.payload import sequence_numbers

if TYPE_CHECKING:
    from loadgen.driver import Bool, Target
    from loadgen.drivers.wire.amqp_deliveries import Deliveries

_ACK_END = struct.Struct(">QBB")
# basic.nack says that a message was not worked on, basic.reject that it failed: a quorum queue counts the second only.
_METHODS = {
    REQUEUE: spec.Basic.Nack(0, requeue=True),
    FAIL: spec.Basic.Reject(0, requeue=True),
    REJECT: spec.Basic.Reject(0, requeue=False),
}


class Lane:
    """One channel's consumers: `tags` with their queues, the parser of its deliveries, what it acknowledges."""

    def __init__(
        self,
        connection: Connection,
        target: Target,
        share: tuple[int, int],
        channels: range,
        at: int,
        *,
        is_correlated: bool,
    ) -> None:
        index, count = share
        settings = target.settings
        topology = Topology(target)
        self.channel = channels[at]
        self.acks = Acks(target)
        self.parser = DeliveryParser(
            connection.handle,
            is_spread=topology.is_spread,
            has_priorities=bool(settings.get("priorities")),
            is_correlated=is_correlated,
            channel=self.channel,
            others=[number for number in channels if number != self.channel],
        )
        # To the queues every channel is a consumer like any other.
        queues = topology.read_by(index * len(channels) + at, count * len(channels))
        tag = f"loadgen-{index}" + (f"-{at}" if len(channels) > 1 else "")
        tags = {number: numbered_tag(tag, number) if topology.is_spread else tag for number in queues}
        self.tags = {tags[number]: queue for number, queue in queues.items()}
        methods = {**_METHODS, ACCEPT: spec.Basic.Ack(0, multiple=self.acks.is_multiple)}
        rendered = {verdict: encode(method, self.channel) for verdict, method in methods.items()}
        self._heads = {verdict: each[: -_ACK_END.size] for verdict, each in rendered.items()}
        self._bits = {verdict: each[-2] for verdict, each in rendered.items()}

    def frames(self, said: list[Said]) -> bytes:
        """What is to be said, as frames."""
        heads, bits, end = self._heads, self._bits, spec.FRAME_END
        return b"".join([heads[verdict] + _ACK_END.pack(tag, bits[verdict], end) for tag, verdict in said])


class AmqpConsumer:
    """Consumer `index` of `count`; acknowledges after processing, or has the broker do so on delivery.

    It has a connection with one or more channels, to the queues each a consumer of its own with its own prefetch. Of
    several queues a channel reads its share. An ack is sent for each `ack_every` settled messages (with `multiple`, if
    they are several), and for the rest when idle.
    """

    def __init__(self, target: Target, index: int, count: int, *, is_correlated: bool = False) -> None:
        settings = target.settings
        self._need_bytes = 1
        self._connection = Connection(target.endpoint, settings["heartbeat"])
        try:
            channels = self._connection.open_channels(settings.get("channels_per_connection", 1))
            lanes = [
                Lane(self._connection, target, (index, count), channels, at, is_correlated=is_correlated)
                for at in range(len(channels))
            ]
            self._lanes = {lane.channel: lane for lane in lanes}
            self._last = lanes[0]  # which handed out the last batch
            qos = spec.Basic.Qos(prefetch_count=settings["prefetch"])
            has_several = sum(len(lane.tags) for lane in lanes) > 1
            # All that is answered comes before the first consumer: an answer may come behind its deliveries.
            for lane in lanes:
                self._connection.call(qos, spec.Basic.QosOk, lane.channel)
                if has_several:
                    self._demand_queues(lane)
            for lane in lanes:
                self._consume(lane, has_several=has_several)
        except BaseException:
            self._connection.close()
            raise

    def _demand_queues(self, lane: Lane) -> None:
        """Raises BrokerError where a queue is not there, which consuming without an answer would not tell."""
        for queue in lane.tags.values():
            declare = spec.Queue.Declare(queue=queue, passive=True)
            self._connection.call(declare, spec.Queue.DeclareOk, lane.channel)

    def _consume(self, lane: Lane, *, has_several: bool) -> None:
        """Begin with each queue under its tag; those of several queues are not waited for."""
        connection, channel = self._connection, lane.channel
        for tag, queue in lane.tags.items():
            consume = spec.Basic.Consume(
                queue=queue, consumer_tag=tag, no_ack=not lane.acks.is_manual, nowait=has_several
            )
            if has_several:
                connection.write_small(encode(consume, channel))
            else:
                connection.call(consume, spec.Basic.ConsumeOk, channel)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._connection.fileno()

    @property
    def owes(self) -> bool:
        """Whether messages have been handed out and are not settled and acknowledged yet."""
        return any(lane.acks.owes for lane in self._lanes.values())

    @property
    def has_rest(self) -> bool:
        """Whether settled messages wait for their acknowledgement."""
        return any(lane.acks.has_rest for lane in self._lanes.values())

    @property
    def failed(self) -> dict[str, int]:
        """How many deliveries it has requeued, failed or rejected."""
        return {how: sum(lane.acks.failed[how] for lane in self._lanes.values()) for how in self._last.acks.failed}

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
            has_rest = self.has_rest
            if has_new or connection.read_within(min(timeout_s, IDLE_S) if has_rest else timeout_s):
                read_ns = read_ns or time.monotonic_ns()
                if read_ns > connection.beat_due_ns:
                    connection.beat(read_ns)
                if connection.end - connection.begin >= self._need_bytes:
                    if received := self._parse(read_ns):
                        return received
                    connection.make_room(self._need_bytes)
                has_new = False
            elif has_rest:
                self.acknowledge_rest()
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
        if count is not None:
            self._say(self._last, self._last.acks.settle(count))
            return
        for lane in self._lanes.values():
            self._say(lane, lane.acks.settle())

    def crash(self) -> None:
        """See `loadgen.driver.Crashing`."""
        self._connection.crash()

    def close(self) -> None:
        """Acknowledge what was settled and close: what was not goes back to the queue; never raises."""
        with contextlib.suppress(LoadgenError):
            self.acknowledge_rest()
        self._connection.close()

    def _parse(self, read_ns: int) -> list[Received]:
        """All whole deliveries in the buffer, of one channel after the other."""
        connection = self._connection
        received: list[Received] = []
        while (lane := self._lane_at_begin()) is not None:
            begin = connection.begin
            found = lane.parser.parse(connection.raw, begin, connection.end)
            connection.begin, self._need_bytes = lane.parser.begin, lane.parser.need_bytes
            if found is not None:
                received += self._hand_out(lane, found, read_ns)
            if len(self._lanes) == 1 or connection.begin == begin:
                break
        return received

    def _lane_at_begin(self) -> Lane | None:
        """The channel whose frame is next, any for the connection's own; None where there is no whole head."""
        if len(self._lanes) == 1:
            return self._last
        channel = self._connection.channel_at_begin()
        return None if channel < 0 else self._lanes.get(channel, self._last)

    def _hand_out(self, lane: Lane, found: Deliveries, read_ns: int) -> list[Received]:
        """What was found, as one batch of each queue."""
        acks, self._last = lane.acks, lane
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

    def _say(self, lane: Lane, said: list[Said]) -> None:
        """Say all of it, in one write."""
        if said:
            self._connection.write_small(lane.frames(said))

    def acknowledge_rest(self) -> None:
        """Acknowledge what is settled, without waiting for `ack_every`."""
        for lane in self._lanes.values():
            self._say(lane, lane.acks.rest())


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
