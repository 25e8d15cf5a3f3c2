"""What RabbitMQ took out of queues by itself: its own count, and the messages where a dead-letter queue has them."""

from __future__ import annotations

import re
import time
import urllib.request
from typing import TYPE_CHECKING, Any

from loadgen.abilities import REMOVALS, DeadLetter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.endpoint import Endpoint

PREFETCH_MSGS = 1_000
QUIET_S = 0.3  # dead-lettering is asynchronous: nothing more came for so long
_TIMEOUT_S = 5.0
_COUNT = re.compile(
    rf"^rabbitmq_global_messages_dead_lettered_({'|'.join(REMOVALS)})_total\{{[^}}]*\}} (\S+)$", re.MULTILINE
)


def removed_counts(endpoint: Endpoint) -> dict[str, int] | None:
    """How many messages the node has ever removed for each reason, dead-lettered or not; None where it does not tell.

    These counters are read when they are asked for, unlike those of single queues.
    """
    if endpoint.prometheus_url is None:
        return None
    url = endpoint.prometheus_url.rstrip("/")
    url = url if url.endswith("/metrics") else f"{url}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            page = answer.read().decode(errors="replace")
    except (OSError, ValueError):
        return None
    counts = dict.fromkeys(REMOVALS, 0)
    for reason, count in _COUNT.findall(page):
        counts[reason] += int(float(count))
    return counts


def drain(connection: Any, queue: str, subscriber: int) -> Iterator[DeadLetter]:
    """All messages of a dead-letter queue; they are gone afterwards."""
    channel = connection.channel()
    channel.basic_qos(prefetch_count=PREFETCH_MSGS)
    came_s = time.monotonic()
    for method, properties, body in channel.consume(queue, inactivity_timeout=QUIET_S / 3):
        if method is not None:
            came_s = time.monotonic()
            yield DeadLetter(subscriber, properties.headers["x-first-death-reason"], body)
            channel.basic_ack(method.delivery_tag)
        elif time.monotonic() - came_s > QUIET_S:
            break
    channel.cancel()
    channel.close()
