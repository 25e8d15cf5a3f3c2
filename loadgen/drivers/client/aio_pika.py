"""RabbitMQ through aio-pika, as an asyncio application uses it: a robust connection, publish, a queue's iterator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.driver import DriverInfo
from loadgen.drivers.client.aio_pika_consumer import AioPikaConsumer
from loadgen.drivers.client.aio_pika_producer import AioPikaProducer
from loadgen.drivers.rabbitmq_admin import RabbitMQAdmin

if TYPE_CHECKING:
    from loadgen.driver import Target
    from loadgen.endpoint import Endpoint
    from loadgen.payload import Payloads


@dataclass(frozen=True, slots=True)
class AioPikaDriver(DriverInfo):
    """Drives RabbitMQ through aio-pika."""

    def admin(self, endpoint: Endpoint) -> RabbitMQAdmin:
        """Connect the control plane."""
        return RabbitMQAdmin(endpoint)

    def producer(self, target: Target, payloads: Payloads) -> AioPikaProducer:
        """Connect a producer."""
        return AioPikaProducer(target, payloads)

    def consumer(self, target: Target, index: int, count: int) -> AioPikaConsumer:
        """Connect a consumer; all `count` of them share the subscriber's queues."""
        return AioPikaConsumer(target, index, count)


DRIVER = AioPikaDriver("aio-pika", "rabbitmq", "client")
