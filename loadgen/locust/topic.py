"""A Kafka topic for hand-written users, made by the broker itself where it may be, on a cooperative socket."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kio.schema.metadata.v5.request import MetadataRequest, MetadataRequestTopic
from kio.schema.types import TopicName

from loadgen.drivers.wire.framed import LinkError
from loadgen.drivers.wire.kafka_protocol import error_name, open_any
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from loadgen.endpoint import Endpoint

MADE_S = 5.0
LOOK_S = 0.1


def ensure_topic(endpoint: Endpoint, name: str) -> None:
    """Have the topic exist; raises BrokerError where the broker does not make it (auto.create.topics.enable)."""
    deadline_s = time.monotonic() + MADE_S
    while (problem := _problem(endpoint, name)) is not None:
        if time.monotonic() > deadline_s:
            raise BrokerError(f"kafka at {endpoint.address}: topic {name}: {problem}; create it first")
        time.sleep(LOOK_S)


def _problem(endpoint: Endpoint, name: str) -> str | None:
    """Ask for the topic, which makes it; what it still lacks, or None."""
    try:
        connection = open_any(endpoint, endpoint.hosts)
        try:
            topics = (MetadataRequestTopic(name=TopicName(name)),)
            answer = connection.call(MetadataRequest(topics=topics, allow_auto_topic_creation=True))
        finally:
            connection.close()
    except LinkError as error:
        raise BrokerError(f"kafka at {endpoint.address}: {error}") from None
    (topic,) = answer.topics
    if topic.error_code:
        return error_name(topic.error_code)
    return None if all(int(each.leader_id) >= 0 for each in topic.partitions) else "no leader yet"
