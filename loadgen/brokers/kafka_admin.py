"""What a running Kafka broker says of its own configuration."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadgen.errors import BrokerError
from loadgen.redaction import BLANK, is_secret

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Described:
    """A broker's effective configuration, and of it what is not the default that it was shipped with."""

    values: dict[str, str | None]
    changed: dict[str, str]


def describe_broker(settings: Mapping[str, Any], broker_id: int, timeout_s: float = TIMEOUT_S) -> Described:
    """Asks one broker for all of its settings; nothing that it calls sensitive is kept.

    Args:
        settings: How to reach it, in librdkafka's words.
        broker_id: Which broker of the cluster.
        timeout_s: For how long a broker that has just started may be asked again.
    """
    from confluent_kafka import KafkaException  # noqa: PLC0415  # a heavy import, for those who need it
    from confluent_kafka.admin import AdminClient, ConfigResource, ConfigSource  # type: ignore[attr-defined]  # noqa: PLC0415

    # The client is kept in a name until its future is done: a future that outlives it fails.
    admin = AdminClient({**settings, "socket.timeout.ms": 5000, "log_level": 2})
    resource = ConfigResource(ConfigResource.Type.BROKER, str(broker_id))
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            future = admin.describe_configs([resource], request_timeout=timeout_s)[resource]
            entries = future.result(timeout=timeout_s)
            break
        except KafkaException as error:
            if time.monotonic() > until_s:
                raise BrokerError(
                    f"Kafka at {settings['bootstrap.servers']} did not describe itself: {error.args[0].str()}"
                ) from error
            time.sleep(0.1)
    values, changed = {}, {}
    for name, entry in sorted(entries.items()):
        secret = entry.is_sensitive or is_secret(name)
        values[name] = BLANK if secret and entry.value else entry.value
        if entry.source != ConfigSource.DEFAULT_CONFIG.value:
            changed[name] = str(values[name])
    return Described(values, changed)
