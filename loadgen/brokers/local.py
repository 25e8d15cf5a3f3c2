"""Brokers that this project installs, starts and ends by itself, in its own folder."""

from __future__ import annotations

import shutil
import signal
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from loadgen.brokers import ending, install, install_kafka, install_rabbitmq, links, ports, process, state
from loadgen.brokers.guard import Guard
from loadgen.brokers.kinds import kind_of
from loadgen.brokers.process import ProcessId
from loadgen.brokers.state import BROKER_NAMES, Cluster, Node
from loadgen.errors import BrokerError, HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from loadgen.brokers.install import Installation
    from loadgen.brokers.state import Progress
    from loadgen.endpoint import BrokerName, Endpoint

    Settings = Mapping[str, str]

INSTALLATIONS: dict[BrokerName, str] = {"rabbitmq": install_rabbitmq.NAME, "kafka": install_kafka.NAME}
STARTER = "starter"  # stands for a run's token while brokers are started that are to stay


@dataclass(frozen=True)
class Wanted:
    """What brokers are to have beside the usual: settings, in which a port's name in braces is its number, and ports.

    With several nodes a port's number would be the first one's: only for one. `is_linked`: nodes reach each other
    through a proxy.
    """

    settings: Mapping[BrokerName, Settings] = field(default_factory=dict)
    ports: tuple[str, ...] = ()
    is_linked: bool = False


@contextmanager
def opened(
    brokers: Sequence[BrokerName],
    *,
    nodes: int = 1,
    linked: bool = False,
    cpus: Sequence[int] = (),
    progress: Progress,
) -> Iterator[dict[BrokerName, Endpoint]]:
    """Running brokers for as long as the block lasts; those that nobody else wants are ended after it."""
    home = ending.home_of(nodes, linked=linked)  # now: the block may change the current folder
    wanted = Wanted(is_linked=linked)
    with _opened(home, brokers, nodes=nodes, cpus=cpus, wanted=wanted, progress=progress) as endpoints:
        yield endpoints


@contextmanager
def private(
    settings: Mapping[BrokerName, Settings], *, ports: Sequence[str] = (), progress: Progress
) -> Iterator[dict[BrokerName, Endpoint]]:
    """Fresh brokers that nobody else is given, with these further settings and ports; removed after the block."""
    root = state.brokers_dir() / ending.PRIVATE / uuid.uuid4().hex[:8]
    try:
        with _opened(root, tuple(settings), wanted=Wanted(settings, tuple(ports)), progress=progress) as endpoints:
            yield endpoints
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def _opened(
    root: Path,
    brokers: Sequence[BrokerName],
    *,
    nodes: int = 1,
    cpus: Sequence[int] = (),
    wanted: Wanted | None = None,
    progress: Progress,
) -> Iterator[dict[BrokerName, Endpoint]]:
    token, wanted = uuid.uuid4().hex, wanted or Wanted()
    with Guard(root) as guard:
        endpoints = _acquire(
            root, brokers, token, nodes=nodes, cpus=cpus, wanted=wanted, guard=guard, progress=progress
        )
        try:
            yield endpoints
        finally:
            _release(brokers, root, token, progress=progress)
            guard.dismiss()


def up(
    brokers: Sequence[BrokerName], *, nodes: int = 1, cpus: Sequence[int] = (), progress: Progress
) -> dict[BrokerName, Endpoint]:
    """Starts brokers that stay up after this program has ended."""
    return _acquire(ending.home_of(nodes), brokers, None, nodes=nodes, cpus=cpus, wanted=Wanted(), progress=progress)


def down(brokers: Sequence[BrokerName], *, progress: Progress) -> list[dict[str, Any]]:
    """Ends brokers, whoever started them, and returns what was ended."""
    ended = []
    for home in ending.homes():
        with ending.lock(home, progress):
            ended += ending.end_abandoned(home, progress)
            for broker in brokers:
                cluster = state.load(broker, home)
                if cluster is not None:
                    progress(f"{_named(cluster)}: ending")
                    ended += ending.end(cluster)
    return ended


def status(*, progress: Progress) -> list[dict[str, Any]]:
    """What runs and what is installed, as plain data."""
    found: list[dict[str, Any]] = []
    for home in ending.homes():
        with ending.lock(home, progress):
            ending.end_abandoned(home, progress)
            known = [(broker, state.load(broker, home)) for broker in BROKER_NAMES]
            # Of brokers of three nodes only those that are there: who has none need not hear of them.
            found += [
                _describe(broker, each) for broker, each in known if each is not None or home == ending.home_of(1)
            ]
    return found or [_describe(broker, None) for broker in BROKER_NAMES]


def left_short(cluster: Cluster, node: Node) -> Path:
    """A file that is there while a node is kept short of disk or memory (`loadgen.brokers.shortage`)."""
    return cluster.node_dir(node) / "short"


def kill(endpoint: Endpoint, *node_indices: int) -> None:
    """Kills nodes' servers as `kill -9` does, all at once: no flush, no goodbye. Their data stays."""
    cluster = cluster_of(endpoint)
    servers = [node_of(cluster, index).server for index in node_indices or (1,)]
    known = [server for server in servers if server is not None]
    process.signal_all(known, signal.SIGKILL)
    process.end_all(known, timeout_s=0)


def restart(endpoint: Endpoint, *node_indices: int, progress: Progress) -> Endpoint:
    """Starts killed nodes again, on the same data and ports (running ones are ended first, in order)."""
    start_again(endpoint, *node_indices, progress=progress)
    cluster = cluster_of(endpoint)
    return kind_of(cluster.broker).endpoint(cluster)


def start_again(
    endpoint: Endpoint, *node_indices: int, launched: Callable[[int], None] = lambda _: None, progress: Progress
) -> tuple[int, ...]:
    """The same without asking the broker for its settings, which takes programs; `launched` is told each pid.

    Several nodes are ended and started together: each may wait for the others before it serves. Those are returned
    that did not end in order within their time, and were killed.
    """
    with ending.lock(_root_of(endpoint), progress):
        cluster = cluster_of(endpoint)
        nodes, kind = [node_of(cluster, index) for index in node_indices or (1,)], kind_of(cluster.broker)
        running = {node.index: node.server for node in nodes if node.server is not None and node.server.is_alive()}
        process.signal_all(running.values())
        endings = process.end_all(running.values(), timeout_s=kind.STOP_TIMEOUT_S)
        cluster.warmed = False
        for node in nodes:
            kind.launch(cluster, node)
            if node.server is not None:
                launched(node.server.pid)
        for node in nodes:
            kind.wait_ready(cluster, node)
        cluster.save()
    return tuple(index for index, (_, how) in zip(running, endings, strict=True) if how == "killed")


def renewed(endpoint: Endpoint) -> Endpoint:
    """The endpoint with the pids that its nodes have now."""
    pids = tuple(node.server.pid for node in cluster_of(endpoint).nodes if node.server is not None)
    return replace(endpoint, pids=pids)


def mark_warmed(endpoint: Endpoint) -> None:
    """Remembers that a broker has had its warm-up load since it was started."""
    with ending.lock(_root_of(endpoint), lambda _: None):
        cluster = cluster_of(endpoint)
        cluster.warmed = True
        cluster.save()


def cluster_of(endpoint: Endpoint) -> Cluster:
    """The remembered cluster behind a local endpoint."""
    cluster = state.load(endpoint.broker, _root_of(endpoint))
    if cluster is None:
        raise BrokerError(f"{endpoint.broker} at {endpoint.address} is no longer up: it was ended by another command")
    return cluster


def _named(cluster: Cluster) -> str:
    """A cluster for people."""
    return cluster.broker if len(cluster.nodes) == 1 else f"{cluster.broker} ({len(cluster.nodes)} nodes)"


def _root_of(endpoint: Endpoint) -> Path:
    if endpoint.source != "local" or endpoint.data_dir is None:
        raise BrokerError(f"{endpoint.broker} at {endpoint.address} was not started by loadgen: it is left alone")
    return endpoint.data_dir.parents[3]  # <root>/run/<broker>/node1/data


def node_of(cluster: Cluster, node_index: int) -> Node:
    """The node of this number; BrokerError where there is none."""
    for node in cluster.nodes:
        if node.index == node_index:
            return node
    raise BrokerError(f"{cluster.broker} has {len(cluster.nodes)} node(s), there is no node {node_index}")


def _acquire(
    root: Path,
    brokers: Sequence[BrokerName],
    token: str | None,
    *,
    nodes: int,
    cpus: Sequence[int],
    wanted: Wanted,
    guard: Guard | None = None,
    progress: Progress,
) -> dict[BrokerName, Endpoint]:
    # token: the run that wants them; None: they are to stay. guard: ends those that are not, should this one be killed.
    state.make_dir(root)
    installations = {broker: kind_of(broker).install(state.cache_dir(), progress) for broker in brokers}
    ending.sweep(root, progress)
    taken: list[Cluster] = []
    begun: list[Cluster] = []
    with ending.lock(root, progress), ExitStack() as held_ports:
        ending.end_abandoned(root, progress)
        try:
            for broker in brokers:
                earlier = state.load(broker, root)
                cluster = _running(broker, root, nodes=nodes, cpus=cpus, progress=progress)
                if cluster is None:
                    cluster = _planned(
                        broker, root, installations[broker], nodes=nodes, cpus=cpus, wanted=wanted, held=held_ports
                    )
                    # One that was to stay and has died meanwhile is to stay again, whoever starts it anew.
                    cluster.kept = earlier is not None and earlier.kept
                    begun.append(cluster)
                taken.append(cluster)
                _own(cluster, token)
            if guard is not None and not all(cluster.kept for cluster in taken):
                guard.start()  # before the first process of a broker
            for cluster in begun:
                progress(f"{_named(cluster)} {cluster.version}: starting")
                links.start(cluster)
                for node in cluster.nodes:
                    kind_of(cluster.broker).launch(cluster, node)
            endpoints = {cluster.broker: _serving(cluster, progress) for cluster in taken}
        except BaseException:
            _give_back(taken, begun, token or STARTER)
            if guard is not None:
                guard.dismiss()
            raise
        for cluster in taken:
            _disown(cluster, STARTER)
    return endpoints


def _give_back(taken: Sequence[Cluster], begun: Sequence[Cluster], token: str) -> None:
    for cluster in begun:
        ending.end(cluster, at_once=True)
    for cluster in taken:
        if cluster not in begun:
            with suppress(HostError):  # what went wrong first is told; this owner is gone soon anyway
                _disown(cluster, token)


def _own(cluster: Cluster, token: str | None) -> None:
    # While it starts, even one that is to stay belongs to this process: killed now, it leaves nothing behind.
    cluster.kept = cluster.kept or token is None
    cluster.owners = {**cluster.live_owners(), token or STARTER: ProcessId.current()}
    cluster.save()


def _serving(cluster: Cluster, progress: Progress) -> Endpoint:
    kind = kind_of(cluster.broker)
    if not cluster.ready:
        for node in cluster.nodes:
            kind.wait_ready(cluster, node)
        cluster.ready = True
        cluster.ready_after_s = time.time() - cluster.started_unix_s
        cluster.save()
        progress(f"{_named(cluster)} {cluster.version}: ready after {cluster.ready_after_s:.1f} s")
    return kind.endpoint(cluster)


def _running(broker: BrokerName, root: Path, *, nodes: int, cpus: Sequence[int], progress: Progress) -> Cluster | None:
    cluster = state.load(broker, root)
    if cluster is None:
        return None
    owners = sorted({owner.pid for owner in cluster.live_owners().values()})
    if not cluster.is_serving():
        if owners:
            raise BrokerError(
                f"{broker} is used by another loadgen (pid {owners[0]}) and down at this moment: "
                "wait until that has ended"
            )
        progress(f"{broker}: was up, but its process is gone; starting it anew")
        ending.end(cluster, at_once=True)
        return None
    if len(cluster.nodes) != nodes or (cpus and sorted(cpus) != cluster.cpus):
        raise BrokerError(f"{broker} is up with other nodes or CPUs than asked for: run `loadgen down` first")
    if owners:
        progress(f"{broker}: also used by pid {', '.join(map(str, owners))}; the two disturb each other's figures")
    elif any(left_short(cluster, node).exists() for node in cluster.nodes):
        progress(f"{broker}: a run that was killed has left it short of disk or memory; starting it anew")
        ending.end(cluster, at_once=True)
        return None
    else:  # a run that was killed amid a fault may have left one standing still
        process.signal_all([node.server for node in cluster.nodes if node.server is not None], signal.SIGCONT)
    return cluster


def _planned(
    broker: BrokerName,
    root: Path,
    installation: Installation,
    *,
    nodes: int,
    cpus: Sequence[int],
    wanted: Wanted,
    held: ExitStack,
) -> Cluster:
    kind = kind_of(broker)
    folder = state.cluster_dir(broker, root)
    shutil.rmtree(folder, ignore_errors=True)  # an earlier start's data and logs
    state.make_dir(folder)
    names = (*kind.NODE_PORTS, *wanted.ports, *(kind.LINK_PORTS if wanted.is_linked else ()))
    shared = (*kind.CLUSTER_PORTS, *([links.NAME] if wanted.is_linked else []))
    planned = [Node(index, held.enter_context(ports.reserve(names))) for index in range(1, nodes + 1)]
    own = wanted.settings.get(broker, {})
    return Cluster(
        broker=broker,
        folder=folder,
        installation=installation.folder,
        version=installation.versions[broker],
        ports=held.enter_context(ports.reserve(shared)),
        nodes=planned,
        cpus=sorted(cpus),
        settings={key: value.format_map(planned[0].ports) for key, value in own.items()},
        is_linked=wanted.is_linked,
        started_unix_s=time.time(),
    )


def _disown(cluster: Cluster, token: str) -> None:
    if cluster.owners.pop(token, None) is not None:
        cluster.save()


def _release(brokers: Sequence[BrokerName], root: Path, token: str, *, progress: Progress) -> None:
    """Ends what nobody else wants; where one cannot be ended in order, the others are, at once, before that is told."""
    failure: BaseException | None = None
    with ending.lock(root, progress):
        for broker in brokers:
            try:
                _release_one(broker, root, token, at_once=failure is not None, progress=progress)
            except BaseException as error:  # noqa: BLE001 - a further Ctrl-C, too: told when nothing is left running
                failure = failure or error
    if failure is not None:
        raise failure


def _release_one(broker: BrokerName, root: Path, token: str, *, at_once: bool, progress: Progress) -> None:
    cluster = state.load(broker, root)
    if cluster is None or cluster.owners.pop(token, None) is None:
        return
    if cluster.is_abandoned():  # not saved before: the disk may be full, which ending it mends
        if not at_once:
            progress(f"{broker}: ending")
        ending.end(cluster, at_once=at_once)
    else:
        cluster.save()


def _describe(broker: BrokerName, cluster: Cluster | None) -> dict[str, Any]:
    installed = install.find(INSTALLATIONS[broker], state.cache_dir())
    record = {
        "broker": broker,
        "source": "local",
        "running": cluster is not None and cluster.is_serving(),
        "installed_version": installed.versions[broker] if installed else None,
    }
    if cluster is None:
        return record
    first = cluster.nodes[0]
    return {
        **record,
        "version": cluster.version,
        "pid": first.server.pid if first.server else None,
        "ports": {**cluster.ports, **first.ports},
        "uptime_s": round(first.server.uptime_s(), 1) if first.server and first.server.is_alive() else None,
        "data_dir": str(cluster.node_dir(first) / "data"),
        "log_dir": str(cluster.node_dir(first) / "log"),
        "kept": cluster.kept,
        "used_by_pids": sorted({owner.pid for owner in cluster.live_owners().values()}),
        "warmed": cluster.warmed,
        "linked": cluster.is_linked,
        "nodes": [
            {"index": node.index, "pid": node.server.pid if node.server else None, "ports": node.ports}
            for node in cluster.nodes
        ],
    }
