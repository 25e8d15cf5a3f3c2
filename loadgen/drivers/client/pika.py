"""RabbitMQ through pika, as an application uses it: SelectConnection (asynchronous) and BlockingConnection.

What is measured with these is the client: pika makes objects for each message, so these drivers work message by
message too, and only the bookkeeping around them is done in bulk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.driver import Capabilities, DriverInfo
from loadgen.drivers.client.pika_consumers import BlockingConsumer, SelectConsumer
from loadgen.drivers.client.pika_producers import BlockingProducer, SelectProducer
from loadgen.drivers.rabbitmq_admin import RabbitMQAdmin

if TYPE_CHECKING:
    from loadgen.driver import Target
    from loadgen.endpoint import Endpoint
    from loadgen.payload import Payloads


@dataclass(frozen=True, slots=True)
class SelectDriver(DriverInfo):
    """Drives RabbitMQ through SelectConnection."""

    def admin(self, endpoint: Endpoint) -> RabbitMQAdmin:
        """Connect the control plane."""
        return RabbitMQAdmin(endpoint)

    def producer(self, target: Target, payloads: Payloads) -> SelectProducer:
        """Connect a producer."""
        return SelectProducer(target, payloads)

    def consumer(self, target: Target, index: int, count: int) -> SelectConsumer:
        """Connect a consumer; all `count` of them share the subscriber's queues."""
        return SelectConsumer(target, index, count)


@dataclass(frozen=True, slots=True)
class BlockingDriver(DriverInfo):
    """Drives RabbitMQ through BlockingConnection."""

    def admin(self, endpoint: Endpoint) -> RabbitMQAdmin:
        """Connect the control plane."""
        return RabbitMQAdmin(endpoint)

    def producer(self, target: Target, payloads: Payloads) -> BlockingProducer:
        """Connect a producer."""
        return BlockingProducer(target, payloads)

    def consumer(self, target: Target, index: int, count: int) -> BlockingConsumer:
        """Connect a consumer; all `count` of them share the subscriber's queues."""
        return BlockingConsumer(target, index, count)


SELECT_DRIVER = SelectDriver("pika", "rabbitmq", "client", Capabilities(blocked_timeout=True))
BLOCKING_DRIVER = BlockingDriver("pika-blocking", "rabbitmq", "client", Capabilities(blocked_timeout=True))
