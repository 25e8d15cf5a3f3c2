"""The Kafka client driver: what an application gets from confluent-kafka, every setting stated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loadgen.driver import Capabilities, DriverInfo
from loadgen.drivers.client.confluent_consumer import ConfluentConsumer
from loadgen.drivers.client.confluent_producer import ConfluentProducer
from loadgen.drivers.client.confluent_share import ConfluentShareConsumer
from loadgen.drivers.client.confluent_sync import SyncProducer
from loadgen.drivers.client.confluent_transactions import TransactionalProducer
from loadgen.drivers.kafka_admin import KafkaAdmin
from loadgen.drivers.kafka_config import is_transactional

if TYPE_CHECKING:
    from loadgen.driver import Admin, Consumer, Producer, Target
    from loadgen.endpoint import Endpoint
    from loadgen.payload import Payloads


@dataclass(frozen=True, slots=True)
class ClientKafka(DriverInfo):
    """librdkafka through confluent-kafka: a Python object for each message, as applications have it."""

    def admin(self, endpoint: Endpoint) -> Admin:
        """Connect the control plane."""
        return KafkaAdmin(endpoint)

    def producer(self, target: Target, payloads: Payloads) -> Producer:
        """Connect a producer."""
        if is_transactional(target.settings):
            return TransactionalProducer(target, payloads)
        return ConfluentProducer(target, payloads)

    def consumer(self, target: Target, index: int, count: int) -> Consumer:
        """Join the group (partitions are the group's to share out) or, without one, read every count-th partition."""
        if target.settings["group"] == "share":
            return ConfluentShareConsumer(target)
        return ConfluentConsumer(target, index, count)


@dataclass(frozen=True, slots=True)
class SyncKafka(ClientKafka):
    """The same where an application waits for each message's result before it sends the next one."""

    def producer(self, target: Target, payloads: Payloads) -> Producer:
        """Connect a producer."""
        return SyncProducer(target, payloads)


CAPABILITIES = Capabilities(
    partitions=True,
    compression=("none", "gzip", "snappy", "lz4", "zstd"),
    idempotence=True,
    group_protocols=("static", "classic", "consumer"),
    transactions=True,
    share_acquire_modes=("batch_optimized",),
)
DRIVER = ClientKafka("confluent", "kafka", "client", CAPABILITIES, send_bytes=256 << 10)
# A message has no result before its transaction has ended.
SYNC_DRIVER = SyncKafka("confluent-sync", "kafka", "client", replace(CAPABILITIES, transactions=False))
