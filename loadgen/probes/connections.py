"""What a connection costs: how long it takes to be usable, and what memory a broker holds for each, up to thousands.

Memory is told by its growth from the first level of connections to the last: what the first few made a broker reserve
is not theirs. Connections are opened one after another by the wire drivers, each as far as a client needs it: AMQP's
with a channel, Kafka's with its versions asked. Their number is the broker's own: RabbitMQ's management counts them,
and either broker's sockets are counted in the kernel's table, at the broker's end.
"""

from __future__ import annotations

import gc
import resource
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import psutil

from loadgen.connections import ConnectionCounter
from loadgen.errors import HostError
from loadgen.probes import Probe
from loadgen.probes.finding import Finding
from loadgen.probes.places import asked_of_management

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.probes.finding import Ground

LEVELS = (250, 500, 1_000, 2_000)
SPARE_FILES = 200  # what this process has open besides
SETTLE_S = 1.0
COUNTED_S = 15.0  # RabbitMQ's management gathers its counts every five seconds


def look(ground: Ground, broker: BrokerName) -> Iterator[Finding]:
    """Time and memory of each of many connections, and that the broker counts as many."""
    endpoint, most = ground.endpoints[broker], LEVELS[-1]
    _allow_files(most + SPARE_FILES)
    counter = ConnectionCounter(endpoint, Path("/proc"))
    others, managed_before = _own_ports(), _managed(endpoint)
    opened: list[tuple[int, list[int], int, int | None]] = []  # connections, how long each took, sockets seen, memory
    with ExitStack() as held:
        for begun, level in pairwise((0, *LEVELS)):
            took_ns = [_opened_ns(held, broker, endpoint) for _ in range(begun, level)]
            time.sleep(SETTLE_S)
            opened.append((level, took_ns, counter.read(_own_ports() - others) or 0, _rss(endpoint)))
        own = None if managed_before is None else _managed_until(endpoint, managed_before + most) - managed_before
    gc.collect()
    for level, took_ns, seen, _ in opened:
        told = own if level == most else None  # its management counts too rarely to be asked at each level
        said = f"{seen:,} sockets at the broker's end" + ("" if told is None else f", {told:,} by its management")
        # Of brokers elsewhere the kernel's table here has our own ends only, which say nothing of theirs.
        agrees = (seen == level and told in {None, level}) if endpoint.source == "local" else None
        point = f"{level:,} connections, {USABLE[broker]}"
        yield Finding(broker, point, "time to a usable connection", "ns", (float(median(took_ns)),), said, agrees)
    what, point = "resident memory a connection", f"{LEVELS[0]:,} to {most:,} connections, {USABLE[broker]}"
    first, last = opened[0][-1], opened[-1][-1]
    if first is None or last is None:
        yield Finding(broker, point, what, "bytes", error="the broker's processes are not on this machine")
    elif broker == "kafka":
        why = "a JVM's heap is resident beforehand: what connections take of it cannot be seen from outside"
        yield Finding(broker, point, what, "bytes", error=why)
    else:
        yield Finding(broker, point, what, "bytes", ((last - first) / (most - LEVELS[0]),), said, agrees)


def _opened_ns(held: ExitStack, broker: BrokerName, endpoint: Endpoint) -> int:
    """Open one more connection; how long that took."""
    begin_ns = time.perf_counter_ns()
    held.callback(OPENERS[broker](endpoint))
    return time.perf_counter_ns() - begin_ns


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise HostError(f"{count:,} connections need as many open files; the limit is {hard:,}: raise `ulimit -Hn`")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _amqp(endpoint: Endpoint) -> Callable[[], None]:
    from loadgen.drivers.wire.amqp_connection import Connection  # noqa: PLC0415 - the other broker's is not needed

    return Connection(endpoint, heartbeat_s=60).close


def _kafka(endpoint: Endpoint) -> Callable[[], None]:
    from loadgen.drivers.wire.kafka_protocol import Connection, check_versions  # noqa: PLC0415

    connection = Connection(endpoint, *endpoint.hosts[0])
    check_versions(connection)
    return connection.close


USABLE = {"rabbitmq": "each logged in, with a channel", "kafka": "each with its versions asked"}
OPENERS = {"rabbitmq": _amqp, "kafka": _kafka}


def _own_ports() -> set[int]:
    """The ports of this process's connections: a broker has others, too, some of them to itself."""
    return {
        each.laddr.port for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED
    }


def _rss(endpoint: Endpoint) -> int | None:
    """The resident memory of the broker's processes; None where they are not on this machine."""
    if not endpoint.pids:
        return None
    return sum(psutil.Process(pid).memory_info().rss for pid in endpoint.pids)


def _managed(endpoint: Endpoint) -> int | None:
    """How many connections RabbitMQ's management counts; None where there is none, or the broker is another."""
    told = asked_of_management(endpoint, "overview") if endpoint.broker == "rabbitmq" else None
    return None if told is None else int(told["object_totals"]["connections"])


def _managed_until(endpoint: Endpoint, wanted: int) -> int:
    """The same, as soon as it counts as many as there should be."""
    until_s = time.monotonic() + COUNTED_S
    while (count := _managed(endpoint) or 0) != wanted and time.monotonic() < until_s:
        time.sleep(SETTLE_S)
    return count


PROBE = Probe(
    "What does a connection cost, in time and in the broker's memory, and does it count as many as there are?",
    look,
    24.0,
)
