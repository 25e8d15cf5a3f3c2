"""RabbitMQ over AMQP 0-9-1 with frames made and parsed in bulk: what the broker can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.driver import DriverInfo
from loadgen.drivers.rabbitmq_admin import RabbitMQAdmin
from loadgen.drivers.wire.amqp_consumer import AmqpConsumer
from loadgen.drivers.wire.amqp_producer import AmqpProducer

if TYPE_CHECKING:
    from loadgen.driver import Target
    from loadgen.endpoint import Endpoint
    from loadgen.payload import Payloads


@dataclass(frozen=True, slots=True)
class AmqpDriver(DriverInfo):
    """Drives RabbitMQ through sockets of its own."""

    def admin(self, endpoint: Endpoint) -> RabbitMQAdmin:
        """Connect the control plane."""
        return RabbitMQAdmin(endpoint)

    def producer(self, target: Target, payloads: Payloads) -> AmqpProducer:
        """Connect a producer."""
        return AmqpProducer(target, payloads)

    def consumer(self, target: Target, index: int, count: int) -> AmqpConsumer:
        """Connect a consumer; all `count` of them share the subscriber's queues."""
        return AmqpConsumer(target, index, count)


DRIVER = AmqpDriver("amqp", "rabbitmq", "wire")
