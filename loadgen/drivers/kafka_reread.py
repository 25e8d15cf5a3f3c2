"""A topic read once more from begin to end by a client that knows nothing of the trial: librdkafka's consumer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from loadgen.drivers.kafka_config import client_settings
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from loadgen.driver import Target
    from loadgen.endpoint import Endpoint

WITHIN_S = 60.0
POLL_S = 1.0
BATCH_MSGS = 1_000


def reread(endpoint: Endpoint, target: Target, begins: Mapping[int, int]) -> Iterator[bytes]:
    """Every message that the topic holds, by partition from these offsets on; BrokerError where it does not end.

    As its consumers are told by their isolation level, it sees what was aborted or does not. Its group is never joined,
    and commits nothing.
    """
    consumer = Consumer(
        client_settings(endpoint)
        | {
            "group.id": f"{target.name}-reread",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": target.settings.get("isolation_level") or "read_uncommitted",
        }
    )
    try:
        consumer.assign([TopicPartition(target.name, partition, begin) for partition, begin in begins.items()])
        left = set(begins)
        until_s = time.monotonic() + WITHIN_S
        while left:
            if time.monotonic() > until_s:
                raise BrokerError(f"kafka at {endpoint.address}: {target.name} was not read again in {WITHIN_S:g} s")
            for message in consumer.consume(BATCH_MSGS, POLL_S):
                error = message.error()
                if error is None:
                    yield message.value() or b""
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the library's own name for it
                    left.discard(message.partition())
                elif not error.retriable():
                    raise BrokerError(f"kafka at {endpoint.address}: {target.name} cannot be read again: {error.str()}")
    except KafkaException as error:
        raise BrokerError(f"kafka at {endpoint.address}: {target.name} cannot be read again: {error}") from None
    finally:
        consumer.close()
