"""One RabbitMQ of our own on the loopback interface: its settings, its start, and what it says of itself."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from loadgen.brokers import host, install_rabbitmq, links, ports, process
from loadgen.brokers.state import write_json
from loadgen.endpoint import Credentials, Endpoint
from loadgen.errors import BrokerError
from loadgen.redaction import redacted

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.brokers.install import Installation
    from loadgen.brokers.state import Cluster, Node, Progress

NODE_PORTS = ("amqp", "management", "prometheus", "stream", "stomp", "mqtt", "distribution")
LINK_PORTS = ("distribution_gate",)
CLUSTER_PORTS = ("epmd",)
PLUGINS = (
    "rabbitmq_management",
    "rabbitmq_prometheus",
    "rabbitmq_stream",
    "rabbitmq_stream_management",
    "rabbitmq_consistent_hash_exchange",
    "rabbitmq_stomp",
    "rabbitmq_mqtt",
)
CREDENTIALS = Credentials("guest", "guest")  # as shipped: valid from the loopback interface only
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.05
# Without it Erlang's distribution port listens on all interfaces.
MEMORY = (
    "the memory both brokers are sized for, as in docker-compose.yml: the shipped watermark takes 0.6 of it, "
    "Kafka's shipped heap is 1 GiB"
)
LOOPBACK_ARGUMENTS = "-kernel inet_dist_use_interface {127,0,0,1}"


def install(cache: Path, progress: Progress) -> Installation:
    """Finds or installs RabbitMQ."""
    return install_rabbitmq.ensure(cache, progress)


def launch(cluster: Cluster, node: Node) -> None:
    """Writes a node's configuration and starts it; the state is saved after each process."""
    install_rabbitmq.check_path(cluster.folder)
    folder = cluster.node_dir(node)
    for name in ("home", "data", "log", "tmp", "conf.d", "generated"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write_cookie(cluster.folder / "cookie", folder / "home/.erlang.cookie")
    (folder / "enabled_plugins").write_text(f"[{','.join(PLUGINS)}].\n", encoding="ascii")
    lines = [f"{key} = {value}" for key, value, _ in _settings(cluster, node)]
    (folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n", encoding="ascii")
    environment = _environment(cluster, node)
    epmd = cluster.helpers.get("epmd")
    if epmd is None or not epmd.is_alive():
        # In the foreground and first, so that it is ours by pid; the node would start a daemon that outlives
        # it.
        cluster.helpers["epmd"] = process.spawn(
            _port_mapper(cluster),
            environment=links.environment() if cluster.is_linked else environment,
            node_dir=folder,
            output=folder / "log/epmd.out",
        )
        cluster.save()
        _wait_for_epmd(cluster, folder)
    process.put_aside(folder / "log/server.out")  # what it says is waited for: only this start's counts
    cluster.commands.append("rabbitmq-server")
    node.server = process.spawn(
        [install_rabbitmq.home(cluster.installation) / "sbin/rabbitmq-server"],
        environment=environment,
        node_dir=folder,
        output=folder / "log/server.out",
        cpus=frozenset(cluster.cpus),
    )
    cluster.save()


def way_in(node: Node) -> tuple[int, int]:
    """Where a proxy for clients listens (0: anywhere, as clients stay with the address they are given), and leads."""
    return 0, node.ports["amqp"]


def gates(node: Node) -> list[tuple[int, int]]:
    """Where the proxy between nodes listens in place of this one, and where that leads."""
    return [(node.ports["distribution_gate"], node.ports["distribution"])]


def _port_mapper(cluster: Cluster) -> list[str | Path]:
    """Erlang's own, or the one that sends nodes to each other's gates."""
    if not cluster.is_linked:
        return [install_rabbitmq.erlang_bin(cluster.installation) / "epmd"]
    named = {_node_name(node).partition("@")[0]: node.ports["distribution_gate"] for node in cluster.nodes}
    return [sys.executable, "-m", "loadgen.brokers.epmd", str(cluster.ports["epmd"]), json.dumps(named)]


def wait_ready(cluster: Cluster, node: Node) -> None:
    """Waits until the node has finished booting: its listeners answer a little before."""
    log = cluster.node_dir(node) / "log/server.out"
    until_s = time.monotonic() + START_TIMEOUT_S
    while b"completed with" not in log.read_bytes():
        if node.server is None or not node.server.is_alive():
            raise BrokerError(f"RabbitMQ ended while it started: {process.tail(log)} (see {log.parent})")
        if time.monotonic() > until_s:
            raise BrokerError(f"RabbitMQ was not ready after {START_TIMEOUT_S:.0f} s: see {log.parent}")
        time.sleep(POLL_S)
    closed = [name for name in NODE_PORTS if not ports.is_listening(node.ports[name])]
    if closed:
        raise BrokerError(f"RabbitMQ started without listening for {', '.join(closed)}: see {log.parent}")


def endpoint(cluster: Cluster) -> Endpoint:
    """The running cluster as drivers and observer see it, its configuration read back from it."""
    first = cluster.nodes[0]
    management = tuple(f"http://{ports.HOST}:{node.ports['management']}" for node in cluster.nodes)
    configuration = _configuration(cluster)
    return Endpoint(
        broker="rabbitmq",
        hosts=tuple((ports.HOST, node.ports["amqp"]) for node in cluster.nodes),
        credentials=CREDENTIALS,
        management_url=management[0],
        management_urls=management[1:],
        prometheus_url=f"http://{ports.HOST}:{first.ports['prometheus']}/metrics",
        stream_port=first.ports["stream"],
        stream_hosts=tuple((ports.HOST, node.ports["stream"]) for node in cluster.nodes)
        if len(cluster.nodes) > 1
        else (),
        stomp_port=first.ports["stomp"],
        mqtt_port=first.ports["mqtt"],
        max_message_bytes=configuration["environment"]["rabbit"].get("max_message_size"),
        version=configuration["status"]["rabbitmq_version"],
        pids=tuple(node.server.pid for node in cluster.nodes if node.server is not None),
        data_dir=cluster.node_dir(first) / "data",
        log_dir=cluster.node_dir(first) / "log",
        configuration=configuration,
        deviations=tuple(_deviations(cluster, first)),
        source="local",
    )


def _settings(cluster: Cluster, node: Node) -> list[tuple[str, str, str]]:
    here = ports.HOST
    loopback = "listens on the loopback interface only, on a port of its own"
    return [
        ("listeners.tcp.1", f"{here}:{node.ports['amqp']}", loopback),
        ("management.tcp.ip", here, loopback),
        ("management.tcp.port", str(node.ports["management"]), loopback),
        ("prometheus.tcp.ip", here, loopback),
        ("prometheus.tcp.port", str(node.ports["prometheus"]), loopback),
        ("stream.listeners.tcp.1", f"{here}:{node.ports['stream']}", loopback),
        ("stomp.listeners.tcp.1", f"{here}:{node.ports['stomp']}", loopback),
        ("mqtt.listeners.tcp.1", f"{here}:{node.ports['mqtt']}", loopback),
        ("stream.advertised_host", here, "stream clients are sent to the same listener"),
        ("stream.advertised_port", str(node.ports["stream"]), "stream clients are sent to the same listener"),
        (
            "total_memory_available_override_value",
            str(host.memory_ceiling_bytes()),
            MEMORY,
        ),
        *_formation(cluster),
        *((key, value, "asked for") for key, value in cluster.settings.items()),
    ]


def _formation(cluster: Cluster) -> list[tuple[str, str, str]]:
    """How nodes find each other when they start together."""
    if len(cluster.nodes) == 1:
        return []
    backend, why = "cluster_formation.peer_discovery_backend", "the nodes of this cluster, all on this host"
    named = "cluster_formation.classic_config.nodes"
    peers = [(f"{named}.{node.index}", _node_name(node), why) for node in cluster.nodes]
    return [(backend, "classic_config", why), *peers]


def _node_name(node: Node) -> str:
    return f"rabbit{node.index}@localhost"


def _deviations(cluster: Cluster, node: Node) -> list[str]:
    lines = [f"{key} = {redacted(value, key)} ({why})" for key, value, why in _settings(cluster, node)]
    lines += [
        f"enabled_plugins = {','.join(PLUGINS)} (none as shipped; for the observer, streams, partitioning, protocols)",
        "RABBITMQ_SCHEDULER_BIND_TYPE = u (db as shipped: bound schedulers of two nodes on one host collide)",
        f"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS = {LOOPBACK_ARGUMENTS} (the distribution port)",
        f"ERL_EPMD_ADDRESS = {ports.HOST} (epmd on loopback only, on a port of its own)",
    ]
    if cluster.is_linked:
        lines += [links.DEVIATION, "epmd = one of loadgen's (Erlang's as shipped; it names that proxy's ports)"]
    if cluster.cpus:
        lines.append(f"cpus = {host.cpu_list(cluster.cpus)} (kept apart from the clients)")
    return lines


def _configuration(cluster: Cluster) -> dict[str, Any]:
    said = _said(cluster)
    return described(
        environment=said["environment"],
        status=said["status"],
        command_lines=[process.command_line(node.server.pid) for node in cluster.nodes if node.server is not None],
    )


def _said(cluster: Cluster) -> dict[str, Any]:
    """The first node's answers about itself, asked for once a start of it and kept beside it, without secrets.

    Each question starts an Erlang of its own: seconds of the CPU that a run is about to measure on.
    """
    node = cluster.nodes[0]
    assert node.server is not None
    path, server = cluster.node_dir(node) / "said.json", asdict(node.server)
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        kept = {}
    if kept.get("server") == server:
        return kept

    def ask(question: tuple[str, str]) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(control(cluster, node, *question, "--quiet", "--formatter", "json"))
        return answer

    questions = (("rabbitmqctl", "environment"), ("rabbitmq-diagnostics", "status"))
    with ThreadPoolExecutor(len(questions)) as pool:
        environment, status = pool.map(ask, questions)
    said: dict[str, Any] = redacted({"server": server, "environment": environment, "status": status})
    write_json(path, said)
    return said


def described(*, environment: dict[str, Any], status: dict[str, Any], command_lines: list[list[str]]) -> dict[str, Any]:
    """What a running node says of its settings, without what changes by the moment and without secrets."""
    names = (
        "rabbitmq_version",
        "erlang_version",
        "crypto_lib_version",
        "active_plugins",
        "config_files",
        "listeners",
        "vm_memory_calculation_strategy",
        "vm_memory_high_watermark_setting",
        "vm_memory_high_watermark_limit",
        "disk_free_limit",
        "release_series_support_status",
    )
    settings: dict[str, Any] = redacted(
        {
            "status": {name: status[name] for name in names if name in status},
            "environment": environment,
            "command_lines": command_lines,
            "host": host.settings(),
        }
    )
    return settings


def control(cluster: Cluster, node: Node, tool: str, *arguments: str, timeout_s: float = 120.0) -> str:
    """Runs one of RabbitMQ's own tools (rabbitmqctl, rabbitmq-queues ...) against a node."""
    return process.run(
        [install_rabbitmq.home(cluster.installation) / "sbin" / tool, *arguments],
        what=f"{tool} {arguments[0]}",
        timeout_s=timeout_s,
        environment=_environment(cluster, node),
        cwd=cluster.node_dir(node),
    )


def _environment(cluster: Cluster, node: Node) -> dict[str, str]:
    folder, home = cluster.node_dir(node), install_rabbitmq.home(cluster.installation)
    return {
        "PATH": f"{install_rabbitmq.erlang_bin(cluster.installation)}:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(folder / "tmp"),
        "HOME": str(folder / "home"),  # where the cookie is
        "ERL_EPMD_PORT": str(cluster.ports["epmd"]),
        "ERL_EPMD_ADDRESS": ports.HOST,
        "ERL_CRASH_DUMP": str(folder / "log/erl_crash.dump"),
        "RABBITMQ_HOME": str(home),
        "RABBITMQ_SCRIPTS_DIR": str(home / "sbin"),
        "RABBITMQ_PLUGINS_DIR": str(home / "plugins"),
        "RABBITMQ_NODENAME": _node_name(node),
        "RABBITMQ_DIST_PORT": str(node.ports["distribution"]),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",  # not the machine's own
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(folder / "conf.d/*.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "server.pid"),
        "RABBITMQ_SCHEDULER_BIND_TYPE": "u",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": LOOPBACK_ARGUMENTS,
        "RABBITMQ_CTL_ERL_ARGS": LOOPBACK_ARGUMENTS,
        # Only this makes its script exec Erlang, so that the process we start is the server.
        "RUNNING_UNDER_SYSTEMD": "true",
    }


def _write_cookie(common: Path, own: Path) -> None:
    """The secret by which nodes know each other, one for all, into a node's home."""
    for path, secret in ((common, secrets.token_hex(16)), (own, None)):
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
            os.write(descriptor, (secret or common.read_text()).encode())
            os.close(descriptor)


def _wait_for_epmd(cluster: Cluster, folder: Path) -> None:
    until_s = time.monotonic() + 10
    while not ports.is_listening(cluster.ports["epmd"]):
        if not cluster.helpers["epmd"].is_alive() or time.monotonic() > until_s:
            raise BrokerError(f"Erlang's port mapper did not start: {process.tail(folder / 'log/epmd.out')}")
        time.sleep(POLL_S)
