"""How many flushes a broker has made by its own count: the other witness beside strace.

RabbitMQ tells on its Prometheus page how many batches its write-ahead log of quorum queues has written, and it flushes
each once. Kafka times every flush of any partition's log, its metadata's among them, which JMX tells over the JVM's own
local connector, by the tools of the JDK that the broker runs on (`jcmd`) and of Kafka (`JmxTool`). A JRE has no `jcmd`:
then Kafka tells nothing.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.alarms import Pages, detailed_url
from loadgen.brokers import process
from loadgen.brokers.kafka import LIGHT_FLAGS, class_path
from loadgen.brokers.local import cluster_of
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadgen.endpoint import Endpoint
    from loadgen.tracing import Flush

TOOL_S = 30.0
FAMILY = "ra_metrics"
BATCHES = re.compile(r'^rabbitmq_detailed_raft_batches\{[^}]*ra_system="quorum_queues"[^}]*\} (\S+)$', re.MULTILINE)
CONNECTOR = re.compile(r'sun\.management\.JMXConnectorServer\.(?:\d+\.)?address="?(service:jmx:\S+?)"?$', re.MULTILINE)
FLUSHES = "kafka.log:type=LogFlushStats,name=LogFlushRateAndTimeMs"
COUNT = re.compile(r"^\d+,(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Count:
    """What a broker said, if it told anything, and between which moments (ns of CLOCK_REALTIME) it was asked."""

    flushes: int | None
    began_ns: int
    ended_ns: int


def count(endpoint: Endpoint) -> Count:
    """Ask the first node how many flushes it has made."""
    began_ns = time.time_ns()
    flushes = {"rabbitmq": _rabbitmq, "kafka": _kafka}[endpoint.broker](endpoint)
    return Count(flushes, began_ns, time.time_ns())


def agreed(before: Count, after: Count, seen: Iterable[Flush]) -> tuple[str, bool | None]:
    """What a broker counted between two questions, and whether it is what was `seen` of the same files meanwhile.

    When exactly it looked is not known: what ended while it was asked may be counted or not.
    """
    if before.flushes is None or after.flushes is None:
        return "", None
    counted, ends = after.flushes - before.flushes, [each.ended_ns for each in seen]
    least = sum(before.ended_ns <= end <= after.began_ns for end in ends)
    most = sum(before.began_ns <= end <= after.ended_ns for end in ends)
    between = f"{least}" if least == most else f"{least} … {most}"
    return f"; by its own count {counted}, by strace {between} of the same files", least <= counted <= most


def is_counted(endpoint: Endpoint, path: str) -> bool:
    """Whether flushes of this file are among those that the first node counts."""
    if f"/{endpoint.broker}/node1/data/" not in path:
        return False
    return (
        path.endswith(".log") if endpoint.broker == "kafka" else path.endswith(".wal") and "/coordination/" not in path
    )


def _rabbitmq(endpoint: Endpoint) -> int | None:
    """Batches of the first node's write-ahead log since it was started."""
    if endpoint.prometheus_url is None:
        return None
    try:
        page = Pages(endpoint).get(detailed_url(endpoint.prometheus_url, FAMILY))[1].decode()
    except (OSError, ValueError) as error:
        raise BrokerError(f"rabbitmq's metrics at {endpoint.prometheus_url} do not answer: {error}") from None
    if (found := BATCHES.search(page)) is not None:
        return int(float(found[1]))
    return 0 if "rabbitmq_detailed_raft_batches" in page else None  # that log is begun with the first quorum queue


def _kafka(endpoint: Endpoint) -> int | None:
    """Flushes of the first node's logs since it was started."""
    cluster = cluster_of(endpoint)
    java = Path(cluster.java).resolve()
    if (url := _connector(java.with_name("jcmd"), endpoint.pids[0])) is None:
        return None
    tool: list[str | Path] = [java, *LIGHT_FLAGS, "-cp", class_path(cluster)]
    tool += ["org.apache.kafka.tools.JmxTool", "--one-time", "--jmx-url", url, "--object-name", FLUSHES]
    said = process.run([*tool, "--attributes", "Count"], what="asking Kafka by JMX", timeout_s=TOOL_S)
    counted = COUNT.search(said)
    return int(counted[1]) if counted else None


@lru_cache(maxsize=8)
def _connector(jcmd: Path, pid: int) -> str | None:
    """Where a JVM's own JMX listens, on this machine alone; it stays open from now on. None where there is no jcmd."""
    if not jcmd.exists():
        return None
    process.run([jcmd, str(pid), "ManagementAgent.start_local"], what="opening Kafka's JMX", timeout_s=TOOL_S)
    told = process.run([jcmd, str(pid), "PerfCounter.print"], what="asking Kafka's JVM", timeout_s=TOOL_S)
    found = CONNECTOR.search(told)
    return None if found is None else found[1]
