"""The Kafka wire driver: record batches made and parsed in whole batches by numpy, on plain sockets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.driver import Capabilities, DriverInfo
from loadgen.drivers.wire.kafka_codecs import CODECS
from loadgen.drivers.wire.kafka_consumer import KafkaConsumer
from loadgen.drivers.wire.kafka_group import KafkaGroupConsumer
from loadgen.drivers.wire.kafka_producer import KafkaProducer
from loadgen.drivers.wire.kafka_requests import KafkaRequester, KafkaResponder
from loadgen.drivers.wire.kafka_share import KafkaShareConsumer

if TYPE_CHECKING:
    from loadgen.driver import Admin, Consumer, Producer, Target
    from loadgen.endpoint import Endpoint
    from loadgen.payload import Payloads


@dataclass(frozen=True, slots=True)
class WireKafka(DriverInfo):
    """What a Kafka broker can do, measured without a client library in the way."""

    def admin(self, endpoint: Endpoint) -> Admin:
        """Connect the control plane."""
        from loadgen.drivers.kafka_admin import KafkaAdmin  # noqa: PLC0415 - librdkafka is for the control plane alone

        return KafkaAdmin(endpoint)

    def producer(self, target: Target, payloads: Payloads) -> Producer:
        """Connect a producer."""
        return KafkaProducer(target, payloads)

    def consumer(self, target: Target, index: int, count: int) -> Consumer:
        """Connect consumer `index` of `count`, which reads every count-th partition, or join its group."""
        if target.settings["group"] == "share":
            return KafkaShareConsumer(target)
        if target.group and target.settings["group_protocol"] == "consumer":
            return KafkaGroupConsumer(target)
        return KafkaConsumer(target, index, count)

    def requester(self, target: Target, payloads: Payloads) -> KafkaRequester:
        """Connect a requester, which reads the partition of its number of the topic for replies."""
        return KafkaRequester(target, payloads)

    def responder(self, target: Target, index: int, count: int, payloads: Payloads) -> KafkaResponder:
        """Connect a responder, which reads every count-th partition of the topic for requests."""
        return KafkaResponder(target, index, count, payloads)


DRIVER = WireKafka(
    name="kafka",
    broker="kafka",
    kind="wire",
    capabilities=Capabilities(
        partitions=True,
        compression=CODECS,
        idempotence=True,
        group_protocols=("static", "consumer"),
        transactions=True,
        share_acquire_modes=("batch_optimized", "record_limit"),
        has_middle_roles=True,
    ),
    send_bytes=256 << 10,
)
