"""RabbitMQ's streams through rstream, as an asyncio application uses them: batches with confirms, callbacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.driver import Capabilities, DriverInfo
from loadgen.drivers.client.rstream_consumer import RstreamConsumer
from loadgen.drivers.client.rstream_producer import RstreamProducer
from loadgen.drivers.stream_admin import StreamAdmin

if TYPE_CHECKING:
    from loadgen.driver import Target
    from loadgen.endpoint import Endpoint
    from loadgen.payload import Payloads


@dataclass(frozen=True, slots=True)
class RstreamDriver(DriverInfo):
    """Drives RabbitMQ's streams through rstream."""

    def admin(self, endpoint: Endpoint) -> StreamAdmin:
        """Connect the control plane."""
        return StreamAdmin(endpoint)

    def producer(self, target: Target, payloads: Payloads) -> RstreamProducer:
        """Connect a producer."""
        return RstreamProducer(target, payloads)

    def consumer(self, target: Target, index: int, count: int) -> RstreamConsumer:
        """Connect consumer `index` of `count`, which reads every count-th partition."""
        return RstreamConsumer(target, index, count)


DRIVER = RstreamDriver("rstream", "rabbitmq", "client", Capabilities(partitions=True))
