"""What the whole session shares: one RabbitMQ and one Kafka, started once and ended at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loadgen.brokers import open_brokers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.endpoint import BrokerName, Endpoint


@pytest.fixture(scope="session")
def endpoints() -> Iterator[dict[BrokerName, Endpoint]]:
    """Both brokers, real ones, private to this checkout."""
    with open_brokers("local", progress=print) as opened:
        yield opened


@pytest.fixture(scope="session")
def rabbitmq_endpoint(endpoints: dict[BrokerName, Endpoint]) -> Endpoint:
    """The session's RabbitMQ."""
    return endpoints["rabbitmq"]


@pytest.fixture(scope="session")
def kafka_endpoint(endpoints: dict[BrokerName, Endpoint]) -> Endpoint:
    """The session's Kafka."""
    return endpoints["kafka"]
