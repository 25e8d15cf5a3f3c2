"""A node of ours runs out of disk or memory, and has it again, without the machine running out of either.

RabbitMQ is told that less is free than it wants, through its own limits: its alarm blocks who publishes, in the whole
cluster. Kafka has no alarm. The system lets its process make no file longer (RLIMIT_FSIZE), so that each write fails as
on a full disk; Kafka gives a log directory up that it cannot write to, and with the last one it ends.
"""

from __future__ import annotations

import resource
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from loadgen.brokers import local
from loadgen.brokers.ports import HOST
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from loadgen.brokers.process import ProcessId
    from loadgen.brokers.state import Cluster, Node
    from loadgen.endpoint import Endpoint

Resource = Literal["disk", "memory"]

FREE_WANTED_BYTES = 1 << 60
"""More than any disk has free."""
MEMORY_ALLOWED_BYTES = 1 << 20
"""Less than an Erlang needs to exist."""
ALARMED_S, POLL_S = 5.0, 0.1
"""RabbitMQ looks when it is told of a limit, and every few seconds otherwise."""


def begin(endpoint: Endpoint, node_index: int, what: Resource) -> None:
    """Have a node run out of it; BrokerError where that cannot be, or RabbitMQ raises no alarm."""
    cluster = local.cluster_of(endpoint)
    node = local.node_of(cluster, node_index)
    local.left_short(cluster, node).touch()  # whoever finds it after this process was killed starts the broker anew
    if endpoint.broker == "kafka":
        assert what == "disk", "a scenario with anything else is refused"
        if node.server is None or not node.server.is_alive():
            raise BrokerError(f"kafka: node {node_index} does not run")
        _limit_files(node, 0)
        return
    if what == "disk":
        _control(cluster, node, "set_disk_free_limit", str(FREE_WANTED_BYTES))
    else:
        _control(cluster, node, "set_vm_memory_high_watermark", "absolute", str(MEMORY_ALLOWED_BYTES))
    _await_alarm(endpoint, node, what)


def _await_alarm(endpoint: Endpoint, node: Node, what: Resource) -> None:
    """Return once the node tells of an alarm for it; BrokerError where it does not."""
    from loadgen.alarms import AlarmReader  # noqa: PLC0415  # imported when needed: `import loadgen` stays cheap

    reader = AlarmReader(replace(endpoint, management_url=f"http://{HOST}:{node.ports['management']}"))
    until_s = time.monotonic() + ALARMED_S
    while True:
        with suppress(OSError, ValueError):  # it may be busy
            if any(what in alarm for alarm in reader.read().alarms):
                return
        if time.monotonic() > until_s:
            raise BrokerError(f"rabbitmq: node {node.index} raised no alarm for its {what}: nobody was hurt")
        time.sleep(POLL_S)


def end(endpoint: Endpoint, node_index: int, what: Resource, of: ProcessId | None) -> bool:
    """Give it back to the process that ran out of it; whether the node runs, or ended and is to be started again.

    A process that was started since has all it wants.
    """
    cluster = local.cluster_of(endpoint)
    node = local.node_of(cluster, node_index)
    is_up = node.server is not None and node.server.is_alive()
    if is_up and of is not None and node.server == of:
        _give_back(endpoint, cluster, node, what)
    local.left_short(cluster, node).unlink(missing_ok=True)
    return is_up


def _give_back(endpoint: Endpoint, cluster: Cluster, node: Node, what: Resource) -> None:
    if endpoint.broker == "kafka":
        _limit_files(node, resource.RLIM_INFINITY)
        return
    status: dict[str, Any] = endpoint.configuration["status"]
    if what == "disk":
        _control(cluster, node, "set_disk_free_limit", str(int(status["disk_free_limit"])))
        return
    ((kind, value),) = dict(status["vm_memory_high_watermark_setting"]).items()
    _control(cluster, node, "set_vm_memory_high_watermark", *(("absolute",) if kind == "absolute" else ()), str(value))


def _control(cluster: Cluster, node: Node, *words: str) -> None:
    from loadgen.brokers import rabbitmq  # noqa: PLC0415  # imported when needed: `import loadgen` stays cheap

    rabbitmq.control(cluster, node, "rabbitmqctl", *words)


def _limit_files(node: Node, size_bytes: int) -> None:
    """How long files may become that a node's process writes; the hard limit stays, so that it can be taken back."""
    if node.server is None:
        return
    with suppress(ProcessLookupError):  # it may end at any moment: that is what it is done for
        _, hard_bytes = resource.prlimit(node.server.pid, resource.RLIMIT_FSIZE)
        soft_bytes = hard_bytes if size_bytes == resource.RLIM_INFINITY else size_bytes
        resource.prlimit(node.server.pid, resource.RLIMIT_FSIZE, (soft_bytes, hard_bytes))
