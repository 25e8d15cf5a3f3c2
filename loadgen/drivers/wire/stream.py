"""RabbitMQ over its stream protocol with frames made and parsed in bulk: Kafka's real counterpart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.driver import Capabilities, DriverInfo
from loadgen.drivers.stream_admin import StreamAdmin
from loadgen.drivers.wire.kafka_codecs import CODECS
from loadgen.drivers.wire.stream_consumer import StreamConsumer
from loadgen.drivers.wire.stream_producer import StreamProducer

if TYPE_CHECKING:
    from loadgen.driver import Target
    from loadgen.endpoint import Endpoint
    from loadgen.payload import Payloads


@dataclass(frozen=True, slots=True)
class StreamDriver(DriverInfo):
    """Drives RabbitMQ's streams through sockets of its own."""

    def admin(self, endpoint: Endpoint) -> StreamAdmin:
        """Connect the control plane."""
        return StreamAdmin(endpoint)

    def producer(self, target: Target, payloads: Payloads) -> StreamProducer:
        """Connect a producer."""
        return StreamProducer(target, payloads)

    def consumer(self, target: Target, index: int, count: int) -> StreamConsumer:
        """Connect consumer `index` of `count`, which reads every count-th partition."""
        return StreamConsumer(target, index, count)


DRIVER = StreamDriver(
    name="stream",
    broker="rabbitmq",
    kind="wire",
    capabilities=Capabilities(partitions=True, compression=CODECS),
    send_bytes=64 << 10,
)
