"""What it takes to begin: from nothing to the first message, and on to a setting that survives the loss of a node.

Each repeat starts a broker that has never run, from the installation that is there already, and sends it one message as
a newcomer does, with the ordinary client: declare, publish, receive. Counted is what that start really did: the
commands that it ran, the lines of configuration that it was given, the processes and the memory that it holds, the disk
that its installation and its data take. The calls of a topology are the calls that were made here to have it.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from loadgen.brokers.local import cluster_of
from loadgen.brokers.process import find_marked
from loadgen.drivers.kafka_config import client_settings
from loadgen.errors import BrokerError
from loadgen.probes import Probe
from loadgen.probes.finding import Finding
from loadgen.probes.places import (
    PERSISTENT,
    TIMEOUT_S,
    confirming,
    connected,
    fresh_name,
    producer_of,
    publish,
    reading,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from loadgen.brokers.state import Cluster
    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.probes.finding import Ground, Unit

FIRST = "from nothing to the first message"
LOSS = "to survive the loss of a node"
SUBSCRIBERS = 2
ONE, SEVERAL = "calls to declare a work queue", f"calls to declare {SUBSCRIBERS} subscribers"
BODY = b"the first message"


def look(ground: Ground, broker: BrokerName) -> Iterator[Finding]:
    """Start it as often as points are repeated, and count."""
    starts: list[dict[tuple[str, Unit], float]] = []
    for _ in range(ground.repeats):
        with ground.fresh(broker) as endpoint:
            starts.append(_begun(endpoint))
    for what, unit in starts[0]:
        yield Finding(broker, FIRST, what, unit, tuple(start[what, unit] for start in starts))
    for what, count in CALLS[broker](ground.endpoints[broker]).items():
        yield Finding(broker, FIRST, what, "number", (float(count),))
    needed, said = _needed(ground.endpoints[broker])
    yield Finding(broker, LOSS, "settings that must differ from default", "number", (float(needed),), said)


def _begun(endpoint: Endpoint) -> dict[tuple[str, Unit], float]:
    """One start and its first message: how long, and what it holds then."""
    cluster = cluster_of(endpoint)
    begin_s = time.monotonic()
    FIRST_MESSAGES[endpoint.broker](endpoint)
    first_s = cluster.ready_after_s + time.monotonic() - begin_s
    processes = [psutil.Process(each.pid) for each in find_marked(cluster.folder)]
    node = cluster.node_dir(cluster.nodes[0])
    return {
        ("time", "s"): first_s,
        ("commands", "number"): float(len(cluster.commands)),
        ("processes", "number"): float(len(processes)),
        ("threads", "number"): float(sum(each.num_threads() for each in processes)),
        ("memory", "bytes"): float(sum(each.memory_info().rss for each in processes)),
        ("installed on disk", "bytes"): float(_disk(cluster.installation) + _runtime(cluster)),
        ("data on disk", "bytes"): float(_disk(node / "data")),
        ("lines of configuration", "number"): float(_lines(cluster, node)),
    }


def _disk(folder: Path) -> int:
    """What a folder takes, in blocks; what is sparse or linked twice counts once."""
    seen: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            told = os.lstat(os.path.join(place, name))  # noqa: PTH118 - a walk over thousands of files
            seen[told.st_dev, told.st_ino] = told.st_blocks * 512
    return sum(seen.values())


def _runtime(cluster: Cluster) -> int:
    """What the program runs on: Kafka's Java; RabbitMQ's Erlang is in its own folder."""
    return _disk(Path(cluster.java).resolve().parents[1]) if cluster.java else 0


def _lines(cluster: Cluster, node: Path) -> int:
    path = node / {"rabbitmq": "rabbitmq.conf", "kafka": "server.properties"}[cluster.broker]
    lines = path.read_text(encoding="utf-8").splitlines()
    # What serves this project's faults alone (a proxy's listener) is nothing that a newcomer writes.
    own = ("listener.security.protocol.map",)
    return sum(1 for line in lines if line.strip() and not line.lstrip().startswith(("#", *own)))


# --- the first message ---


def _first_rabbitmq(endpoint: Endpoint) -> None:
    queue = fresh_name()
    with connected(endpoint) as connection:
        channel = confirming(connection)
        channel.queue_declare(queue, durable=True)
        channel.basic_publish("", queue, BODY, PERSISTENT, mandatory=True)
        _, _, body = channel.basic_get(queue, auto_ack=True)
    _demand(body)


def _first_kafka(endpoint: Endpoint) -> None:
    topic = fresh_name()
    admin = AdminClient(client_settings(endpoint))
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(TIMEOUT_S)
    publish(producer_of(endpoint), topic, [BODY])
    with reading(endpoint) as consumer:
        consumer.assign([TopicPartition(topic, 0, 0)])
        message = consumer.poll(TIMEOUT_S)
    _demand(None if message is None else message.value())


def _demand(body: Any) -> None:
    if body != BODY:
        raise BrokerError("the first message did not come back")


FIRST_MESSAGES = {"rabbitmq": _first_rabbitmq, "kafka": _first_kafka}

# --- the calls of a topology ---


def _calls_rabbitmq(endpoint: Endpoint) -> dict[str, int]:
    names = [fresh_name() for _ in range(SUBSCRIBERS)]
    with connected(endpoint) as connection:
        channel = connection.channel()
        one = [partial(channel.queue_declare, names[0], durable=True)]
        several = [partial(channel.exchange_declare, names[0], "fanout", durable=True)]
        for name in names:
            several += [
                partial(channel.queue_declare, name, durable=True),
                partial(channel.queue_bind, name, names[0]),
            ]
        try:
            return {ONE: _made(one), SEVERAL: _made(several)}
        finally:
            channel.exchange_delete(names[0])
            for name in names:
                channel.queue_delete(name)


def _calls_kafka(endpoint: Endpoint) -> dict[str, int]:
    names = [fresh_name() for _ in (ONE, SEVERAL)]
    admin = AdminClient(client_settings(endpoint))

    def create(name: str) -> None:
        admin.create_topics([NewTopic(name, 1, 1)])[name].result(TIMEOUT_S)

    try:
        # Each subscriber reads as a group of its own, which nobody declares.
        return {ONE: _made([partial(create, names[0])]), SEVERAL: _made([partial(create, names[1])])}
    finally:
        for future in admin.delete_topics(names).values():
            future.result(TIMEOUT_S)


def _made(calls: Sequence[Callable[[], Any]]) -> int:
    """Make the calls, one after another, and say how many they were."""
    return len([call() for call in calls])


CALLS = {"rabbitmq": _calls_rabbitmq, "kafka": _calls_kafka}

# --- the loss of a node ---

# What has to be otherwise for a confirmed message to survive it, on three nodes; by the settings that the running
# broker tells as its own, and what a client does unless it is told.
WANTED = {
    "rabbitmq": {"default_queue_type": "quorum"},
    "kafka": {
        "default.replication.factor": "3",
        "min.insync.replicas": "2",
        "unclean.leader.election.enable": "false",
    },
}
CLIENTS = {"rabbitmq": ("confirm.select",), "kafka": ()}  # acks=all is what Kafka's clients begin with


def _needed(endpoint: Endpoint) -> tuple[int, str]:
    """How many settings must be changed, and which."""
    told = endpoint.configuration
    own = told.get("broker") or (told.get("environment") or {}).get("rabbit")
    if not own:
        raise BrokerError(f"{endpoint.broker} at {endpoint.address} does not tell its settings")
    changed = [
        f"{name} {value} (now {own.get(name) or 'not set'})"
        for name, value in WANTED[endpoint.broker].items()
        if str(own.get(name)).lower() != value
    ]
    changed += [f"{name} (not unless asked)" for name in CLIENTS[endpoint.broker]]
    return len(changed), ", ".join(changed)


PROBE = Probe("What does it take to begin, and how much of it is more with the other broker?", look, 25.0)
