"""RabbitMQ over AMQP 0-9-1 with frames made and parsed in bulk: what the broker can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.driver import Capabilities, DriverInfo
from loadgen.drivers.rabbitmq_admin import RabbitMQAdmin
from loadgen.drivers.wire.amqp_consumer import AmqpConsumer
from loadgen.drivers.wire.amqp_pool import ConsumerPool, ProducerPool, is_pooled
from loadgen.drivers.wire.amqp_producer import AmqpProducer
from loadgen.drivers.wire.amqp_recovery import RecoveringConsumer, RecoveringProducer
from loadgen.drivers.wire.amqp_requests import AmqpRequester, AmqpResponder

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

    def producer(self, target: Target, payloads: Payloads) -> AmqpProducer | ProducerPool | RecoveringProducer:
        """Connect a producer."""
        if target.settings.get("recover_within_s") is not None:
            return RecoveringProducer(target, payloads)
        return ProducerPool(target, payloads) if is_pooled(target) else AmqpProducer(target, payloads)

    def consumer(self, target: Target, index: int, count: int) -> AmqpConsumer | ConsumerPool | RecoveringConsumer:
        """Connect a consumer; all `count` of them share the subscriber's queues."""
        if target.settings.get("recover_within_s") is not None:
            return RecoveringConsumer(target, index, count)
        return ConsumerPool(target, index, count) if is_pooled(target) else AmqpConsumer(target, index, count)

    def requester(self, target: Target, payloads: Payloads) -> AmqpRequester:
        """Connect a requester, which receives its replies on the channel that it publishes on."""
        return AmqpRequester(target, payloads)

    def responder(self, target: Target, index: int, count: int, payloads: Payloads) -> AmqpResponder:
        """Connect a responder; all `count` of them share the queue."""
        return AmqpResponder(target, index, count, payloads)


DRIVER = AmqpDriver("amqp", "rabbitmq", "wire", Capabilities(has_middle_roles=True, many_connections=True))
