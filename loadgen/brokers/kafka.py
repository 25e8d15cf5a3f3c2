"""One Kafka of our own on the loopback interface (KRaft, combined mode): its settings, start and account."""

from __future__ import annotations

import base64
import os
import shlex
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.brokers import host, install_kafka, java, links, ports, process
from loadgen.brokers.kafka_admin import describe_broker
from loadgen.drivers.kafka_config import OF_TRIALS
from loadgen.endpoint import Endpoint
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.brokers.install import Installation
    from loadgen.brokers.state import Cluster, Node, Progress

NODE_PORTS = ("kafka", "controller", "through", "proxy")  # on the last a trial's proxy listens, while there is one
LINK_PORTS = ("replication", "replication_gate", "controller_gate")
CLUSTER_PORTS: tuple[str, ...] = ()
FORMAT_TIMEOUT_S = 60.0
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.05

# What bin/kafka-server-start.sh and bin/kafka-run-class.sh give the JVM. A bare `java` is another Kafka:
# another heap, on one CPU even another garbage collector.
HEAP_FLAGS = ("-Xmx1g", "-Xms1g")
JVM_FLAGS = (
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-Djava.awt.headless=true",
)

# Of a JVM that lives shortly: what makes a server fast would only make it start later.
LIGHT_FLAGS = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
JVM_VARIABLE = "KAFKA_JVM_PERFORMANCE_OPTS"

# The levels of the shipped config/log4j2.yaml, in one file.
LOG4J = """\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = {log}/server.log
appender.file.filePattern = {log}/server.log.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = [%d] %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 100MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = file
logger.request.name = kafka.request.logger
logger.request.level = WARN
logger.channel.name = kafka.network.RequestChannel$
logger.channel.level = WARN
"""

# Clients follow the addresses that the listener advertises by which they came in: this one's are the proxy's.
THROUGH = "THROUGH"
# Where nodes reach each other through a proxy, its gates are what they advertise to each other. So with the quorum of
# controllers: its leader tells the others the address that it advertises.
REPLICATION = "REPLICATION"
LOOPBACK = "on the loopback interface only, on ports of its own"
AS_SHIPPED = "the shipped server.properties has it so"
FOR_FAULTS = f"listener {THROUGH} is for clients that reach this node through a proxy, where the network is hurt"
FOR_LINKS = "nodes reach each other through a proxy, where the network between them is hurt"
ONE_NODE = "a single node cannot hold more replicas"


def install(cache: Path, progress: Progress) -> Installation:
    """Finds or installs Kafka, and a Java for it."""
    java.find_java(cache, progress)
    return install_kafka.ensure(cache, progress)


def launch(cluster: Cluster, node: Node) -> None:
    """Writes a node's configuration, formats its storage on the first start, and starts it."""
    folder = cluster.node_dir(node)
    for name in ("data", "log"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    cluster.java = str(java.find_java(cluster.installation.parent, lambda _: None))
    cluster.cluster_id = cluster.cluster_id or _fresh_id()
    lines = [f"{key}={value}" for key, (value, _) in _settings(cluster, node).items()]
    (folder / "server.properties").touch(0o600)  # a password may be among what was asked for
    (folder / "server.properties").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "log4j2.properties").write_text(LOG4J.format(log=folder / "log"), encoding="utf-8")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": str(folder)}
    logging = f"-Dlog4j2.configurationFile={folder / 'log4j2.properties'}"
    common = (logging, "-cp", class_path(cluster))
    if not (folder / "data/meta.properties").exists():
        tool = ("kafka.tools.StorageTool", "format", "-t", cluster.cluster_id)
        cluster.commands.append("kafka-storage format")
        process.run(
            [cluster.java, *LIGHT_FLAGS, *common, *tool, "-c", folder / "server.properties"],
            what="formatting Kafka's storage",
            timeout_s=FORMAT_TIMEOUT_S,
            environment=environment,
            cwd=folder,
        )
    process.put_aside(folder / "log/server.log")  # readiness is read from it: only this start's lines count
    logs = (
        f"-Xlog:gc*:file={folder / 'log'}/kafkaServer-gc.log:time,tags:filecount=10,filesize=100M",
        f"-Dkafka.logs.dir={folder / 'log'}",
    )
    flags = (*HEAP_FLAGS, *_jvm_flags(), *logs)
    cluster.commands.append("kafka-server-start")
    node.server = process.spawn(
        [cluster.java, *flags, *common, "kafka.Kafka", folder / "server.properties"],
        environment=environment,
        node_dir=folder,
        output=folder / "log/server.out",
        cpus=frozenset(cluster.cpus),
    )
    cluster.save()


def class_path(cluster: Cluster) -> str:
    """Where a JVM finds Kafka and its tools."""
    return f"{cluster.installation / 'libs'}/*"


def _jvm_flags() -> Sequence[str]:
    """As Kafka's own scripts: what its variable asks for in place of what it ships."""
    return shlex.split(os.environ.get(JVM_VARIABLE, "")) or JVM_FLAGS


def way_in(node: Node) -> tuple[int, int]:
    """Where a proxy for clients has to listen, since the node advertises that, and where it leads."""
    return node.ports["proxy"], node.ports["through"]


def gates(node: Node) -> list[tuple[int, int]]:
    """Where the proxy between nodes listens in place of this one, and where each of these leads."""
    own = node.ports
    return [(own["replication_gate"], own["replication"]), (own["controller_gate"], own["controller"])]


def _fresh_id() -> str:
    """A cluster's id as Kafka makes them: one that began with a dash would be taken for an option."""
    while (made := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return made


def wait_ready(cluster: Cluster, node: Node) -> None:
    """Waits until the node says that it has started."""
    folder = cluster.node_dir(node) / "log"
    log = folder / "server.log"
    until_s = time.monotonic() + START_TIMEOUT_S
    while not log.exists() or b"Kafka Server started" not in log.read_bytes():
        if node.server is None or not node.server.is_alive():
            said = log if log.exists() else folder / "server.out"
            raise BrokerError(f"Kafka ended while it started: {process.tail(said)} (see {folder})")
        if time.monotonic() > until_s:
            raise BrokerError(f"Kafka was not ready after {START_TIMEOUT_S:.0f} s: see {folder}")
        time.sleep(POLL_S)


def endpoint(cluster: Cluster) -> Endpoint:
    """The running cluster as drivers and observer see it, its configuration read back from it."""
    first = cluster.nodes[0]
    hosts = tuple((ports.HOST, node.ports["kafka"]) for node in cluster.nodes)
    described = describe_broker({"bootstrap.servers": ",".join(f"{name}:{port}" for name, port in hosts)}, first.index)
    command_line = process.command_line(first.server.pid) if first.server is not None else []
    return Endpoint(
        broker="kafka",
        hosts=hosts,
        through_ports=tuple(node.ports["through"] for node in cluster.nodes),
        version=cluster.version,
        pids=tuple(node.server.pid for node in cluster.nodes if node.server is not None),
        data_dir=cluster.node_dir(first) / "data",
        log_dir=cluster.node_dir(first) / "log",
        configuration={
            "broker": described.values,
            "broker_not_default": described.changed,
            "command_line": command_line,
            "java": java.version_line(Path(cluster.java)),
            "host": host.settings(),
        },
        deviations=tuple(_deviations(cluster, first, described.changed)),
        source="local",
    )


SYSTEM_BUFFERS = "102400 as shipped: both brokers' socket buffers are left to the system"


def _settings(cluster: Cluster, node: Node) -> dict[str, tuple[str, str]]:
    # Everything else, among it all of log.flush.*, is left as it comes.
    plain = f"PLAINTEXT://{ports.HOST}:{node.ports['kafka']}"
    through = f"{THROUGH}://{ports.HOST}:{node.ports['through']}"
    listeners = f"{plain},{through},CONTROLLER://{ports.HOST}:{node.ports['controller']}"
    advertised = f"{plain},{THROUGH}://{ports.HOST}:{node.ports['proxy']}"
    security, way = f"PLAINTEXT:PLAINTEXT,{THROUGH}:PLAINTEXT,CONTROLLER:PLAINTEXT", "controller"
    linked: dict[str, tuple[str, str]] = {}
    if cluster.is_linked:
        way, security = "controller_gate", f"{security},{REPLICATION}:PLAINTEXT"
        listeners += f",{REPLICATION}://{ports.HOST}:{node.ports['replication']}"
        advertised += f",{REPLICATION}://{ports.HOST}:{node.ports['replication_gate']}"
        advertised += f",CONTROLLER://{ports.HOST}:{node.ports['controller_gate']}"
        linked = {"inter.broker.listener.name": (REPLICATION, FOR_LINKS)}
    voters = ",".join(f"{other.index}@{ports.HOST}:{other.ports[way]}" for other in cluster.nodes)
    replicas = str(min(3, len(cluster.nodes)))
    in_sync = str(max(1, int(replicas) - 1))
    return {
        "process.roles": ("broker,controller", AS_SHIPPED),
        "node.id": (str(node.index), AS_SHIPPED),
        "controller.quorum.voters": (voters, LOOPBACK),
        "listeners": (listeners, f"{LOOPBACK}; {FOR_FAULTS}"),
        "advertised.listeners": (advertised, f"{LOOPBACK}; {FOR_FAULTS}"),
        "listener.security.protocol.map": (security, FOR_FAULTS),
        "controller.listener.names": ("CONTROLLER", AS_SHIPPED),
        "inter.broker.listener.name": ("PLAINTEXT", AS_SHIPPED),
        **linked,
        "log.dirs": (str(cluster.node_dir(node) / "data"), "the project's own folder"),
        "offsets.topic.replication.factor": (replicas, ONE_NODE),
        "transaction.state.log.replication.factor": (replicas, ONE_NODE),
        "transaction.state.log.min.isr": (in_sync, ONE_NODE),
        "share.coordinator.state.topic.replication.factor": (replicas, ONE_NODE),
        "share.coordinator.state.topic.min.isr": (in_sync, ONE_NODE),
        "socket.send.buffer.bytes": ("-1", SYSTEM_BUFFERS),
        "socket.receive.buffer.bytes": ("-1", SYSTEM_BUFFERS),
        "group.initial.rebalance.delay.ms": (
            "0",
            "3000 as shipped: a consumer's first assignment waits that long",
        ),
        **{key: (value, "asked for") for key, value in cluster.settings.items()},
    }


# Not set by us, and yet not called a default by the broker.
FOUND = {
    "broker.id": "follows node.id",
    "min.insync.replicas": "Kafka sets it itself when it formats a cluster; equal to the default",
}


def _deviations(cluster: Cluster, node: Node, changed: dict[str, str]) -> list[str]:
    reasons = FOUND | {key: why for key, (_, why) in _settings(cluster, node).items()}
    lines = [
        f"{key} = {value} ({reasons.get(key, 'found so on the running broker')})"
        for key, value in changed.items()
        if reasons.get(key) != AS_SHIPPED
    ]
    lines += [
        "com.sun.management.jmxremote = unset (true as shipped: its local agent listens on all interfaces)",
        "log4j2 = one rolling file at the shipped levels (several files as shipped)",
        *OF_TRIALS,
    ]
    if _jvm_flags() is not JVM_FLAGS:
        lines.append(f"{JVM_VARIABLE} = {' '.join(_jvm_flags())} (found in the environment)")
    if cluster.is_linked:
        lines.append(links.DEVIATION)
    if cluster.cpus:
        lines.append(f"cpus = {host.cpu_list(cluster.cpus)} (kept apart from the clients)")
    return lines
