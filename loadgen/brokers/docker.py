"""Brokers in containers: `docker-compose.yml` started, watched and ended through Docker's own client."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen.brokers import ports, process, rabbitmq, state
from loadgen.brokers.kafka_admin import describe_broker
from loadgen.brokers.process import ProcessId
from loadgen.drivers.kafka_config import OF_TRIALS
from loadgen.endpoint import Endpoint
from loadgen.errors import BrokerError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loadgen.brokers.state import Progress
    from loadgen.endpoint import BrokerName

FILE = "docker-compose.yml"
PROFILE = "cluster"  # of the services that are clusters of three
PULL_TIMEOUT_S = 1200.0
COMMAND_TIMEOUT_S = 120.0
RABBITMQ_DEVIATIONS = (
    "enabled_plugins = management, prometheus, streams, consistent_hash_exchange, stomp, mqtt (none as shipped)",
    "RABBITMQ_SCHEDULER_BIND_TYPE = u (db as shipped: the same as the local brokers)",
    "stream.advertised_host = 127.0.0.1 (stream clients are sent to the published port)",
)
SAME_LIMITS = "cpus, mem_limit = the same for both brokers, see docker-compose.yml (no limit as shipped)"


def up(brokers: Sequence[BrokerName], *, nodes: int = 1, progress: Progress) -> dict[BrokerName, Endpoint]:
    """Starts containers that stay up, or finds them up."""
    with _lock(progress):
        _start(brokers, owner=None, nodes=nodes, progress=progress)
    return _endpoints(brokers, nodes)


@contextmanager
def opened(
    brokers: Sequence[BrokerName], *, nodes: int = 1, progress: Progress
) -> Iterator[dict[BrokerName, Endpoint]]:
    """Containers for as long as the block lasts; those that were up before are left up."""
    with _lock(progress):
        started = _start(brokers, owner=ProcessId.current(), nodes=nodes, progress=progress)
    try:
        yield _endpoints(brokers, nodes)
    finally:
        if started:
            with _lock(progress):
                _remove(started)


def down(brokers: Sequence[BrokerName], *, progress: Progress) -> list[dict[str, Any]]:
    """Ends and removes containers with their data, of single brokers and of clusters."""
    with _lock(progress):
        containers = _running()
        every = {broker: [name for nodes in state.SIZES for name in services(broker, nodes)] for broker in brokers}
        running = [broker for broker, names in every.items() if any(name in containers for name in names)]
        if running:
            progress(f"docker: ending {' and '.join(running)}")
        _remove([name for names in every.values() for name in names])
    return [{"broker": broker, "source": "docker", "how": "ended"} for broker in running]


def status(*, progress: Progress) -> list[dict[str, Any]]:
    """What runs in containers, as plain data; of clusters only those that are there."""
    with _lock(progress):
        containers = _running()
    return [_described(broker, 1, containers) for broker in state.BROKER_NAMES] + [
        _described(broker, nodes, containers)
        for nodes in state.SIZES[1:]
        for broker in state.BROKER_NAMES
        if any(name in containers for name in services(broker, nodes))
    ]


def _described(broker: BrokerName, nodes: int, containers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found = [containers[name] for name in services(broker, nodes) if name in containers]
    record = {"broker": broker, "source": "docker", "running": len(found) == nodes}
    if not found:
        return record
    published = {inner: outer for each in found for inner, outer in _published(each).items()}
    return record | {"ports": published, "image": found[0].get("Image")} | ({"nodes": len(found)} if nodes > 1 else {})


def services(broker: BrokerName, nodes: int) -> tuple[str, ...]:
    """The names of the services that are a broker of so many nodes."""
    if nodes not in state.SIZES:
        raise BrokerError(f"brokers in Docker have {' or '.join(map(str, state.SIZES))} nodes, {nodes} were asked for")
    return (broker,) if nodes == 1 else tuple(f"{broker}{index + 1}" for index in range(nodes))


@contextmanager
def _lock(progress: Progress) -> Iterator[None]:
    # Under it, what a killed run left behind is ended first, whatever the command.
    _check_docker()
    folder = state.make_dir(state.brokers_dir())
    with state.locked(folder / "docker.lock", what="starting or ending containers", progress=progress):
        abandoned = [name for name, owner in _owners().items() if not owner.is_alive()]
        if abandoned:
            progress(f"docker: ending {' and '.join(abandoned)}, left by a loadgen that was killed")
            _remove(abandoned)
        yield


def _start(brokers: Sequence[BrokerName], *, owner: ProcessId | None, nodes: int, progress: Progress) -> list[str]:
    running = _running()
    wanted = [name for broker in brokers for name in services(broker, nodes)]
    missing = [name for name in wanted if name not in running]
    owners = _owners()
    if owner is None:
        owners = {name: held for name, held in owners.items() if name not in wanted}
    else:
        owners |= dict.fromkeys(missing, owner)
    _save_owners(owners)  # before the start: whatever happens then, the containers have an owner
    if missing:
        progress(f"docker: starting {' and '.join(missing)} (the first time, their images are pulled)")
        try:
            _compose("up", "--detach", "--wait", "--wait-timeout", "180", *missing, timeout_s=PULL_TIMEOUT_S)
        except BaseException:
            _remove(missing)
            raise
    return missing


def _remove(names: Sequence[str]) -> None:
    _compose("rm", "--stop", "--force", "--volumes", *names)
    left = {name: owner for name, owner in _owners().items() if name not in names}
    _save_owners(left)
    if not _running():
        _compose("down", "--volumes")  # the named volumes and the network too


def _endpoints(brokers: Sequence[BrokerName], nodes: int) -> dict[BrokerName, Endpoint]:
    containers = _running()
    return {
        broker: (_rabbitmq if broker == "rabbitmq" else _kafka)([containers[name] for name in services(broker, nodes)])
        for broker in brokers
    }


def _rabbitmq(containers: list[dict[str, Any]]) -> Endpoint:
    published = [_published(each) for each in containers]
    first = published[0]

    def ask(*command: str) -> dict[str, Any]:
        printed = _compose("exec", "-T", containers[0]["Service"], *command, "--quiet", "--formatter", "json")
        answer: dict[str, Any] = json.loads(printed)
        return answer

    pids = _pids(containers)
    configuration = rabbitmq.described(
        environment=ask("rabbitmqctl", "environment"),
        status=ask("rabbitmq-diagnostics", "status"),
        command_lines=[process.command_line(pid) for pid in pids],
    )
    return Endpoint(
        broker="rabbitmq",
        hosts=tuple((ports.HOST, each[5672]) for each in published),
        credentials=rabbitmq.CREDENTIALS,
        management_url=f"http://{ports.HOST}:{first[15672]}",
        management_urls=tuple(f"http://{ports.HOST}:{each[15672]}" for each in published[1:]),
        prometheus_url=f"http://{ports.HOST}:{first[15692]}/metrics",
        stream_port=first[5552],
        stream_hosts=tuple((ports.HOST, each[5552]) for each in published) if len(published) > 1 else (),
        stomp_port=first.get(61613),
        mqtt_port=first.get(1883),
        max_message_bytes=configuration["environment"]["rabbit"].get("max_message_size"),
        version=configuration["status"]["rabbitmq_version"],
        pids=pids,
        configuration={**configuration, "image": containers[0].get("Image")},
        deviations=(*RABBITMQ_DEVIATIONS, SAME_LIMITS),
        source="docker",
    )


def _kafka(containers: list[dict[str, Any]]) -> Endpoint:
    hosts = tuple((ports.HOST, next(iter(_published(each).values()))) for each in containers)
    described = describe_broker({"bootstrap.servers": ",".join(f"{name}:{port}" for name, port in hosts)}, 1)
    image, pids = str(containers[0].get("Image")), _pids(containers)
    changed = [f"{key} = {value} (see docker-compose.yml)" for key, value in described.changed.items()]
    return Endpoint(
        broker="kafka",
        hosts=hosts,
        version=image.partition(":")[2] or "unknown",
        pids=pids,
        configuration={
            "broker": described.values,
            "broker_not_default": described.changed,
            "command_line": process.command_line(pids[0]) if pids else [],
            "image": image,
        },
        deviations=(*changed, *OF_TRIALS, SAME_LIMITS),
        source="docker",
    )


def _running() -> dict[str, dict[str, Any]]:
    # Compose prints one JSON object a line; before 2.21 it was one list.
    printed = _compose("ps", "--format", "json").strip()
    records = json.loads(printed) if printed.startswith("[") else [json.loads(line) for line in printed.splitlines()]
    return {record["Service"]: record for record in records if record.get("State") == "running"}


def _published(container: dict[str, Any]) -> dict[int, int]:
    return {
        publisher["TargetPort"]: publisher["PublishedPort"]
        for publisher in container.get("Publishers") or []
        if publisher["PublishedPort"]
    }


def _pids(containers: list[dict[str, Any]]) -> tuple[int, ...]:
    """The containers' processes as this machine sees them; none where the engine runs in a virtual machine."""
    printed = process.run(
        ["docker", "inspect", "--format", "{{.State.Pid}}", *(each["ID"] for each in containers)],
        what="docker inspect",
        timeout_s=COMMAND_TIMEOUT_S,
    )
    return tuple(pid for pid in map(int, printed.split()) if pid > 0 and process.command_line(pid))


def _check_docker() -> None:
    if shutil.which("docker") is None:
        raise HostError("--brokers docker needs the program docker, which is not on PATH: install it or use local")
    for command, problem in (
        (
            ["docker", "version", "--format", "{{.Server.Version}}"],
            "no Docker engine answers: start it, or use local",
        ),
        (
            ["docker", "compose", "version"],
            "docker has no compose plugin: install docker-compose-plugin, or use local",
        ),
    ):
        try:
            process.run(command, what=" ".join(command[:2]), timeout_s=20)
        except BrokerError as error:
            raise HostError(f"{problem} ({error})") from error


def _compose(*arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    return process.run(
        ["docker", "compose", "--file", compose_file(), "--profile", PROFILE, *arguments],
        what=f"docker compose {arguments[0]}",
        timeout_s=timeout_s,
    )


def compose_file() -> Path:
    """The project's docker-compose.yml."""
    for folder in (state.project_dir(), Path.cwd()):
        if folder is not None and (folder / FILE).is_file():
            return folder / FILE
    raise HostError(f"--brokers docker needs the project's {FILE}: run loadgen inside its checkout")


def _owners_path() -> Path:
    return state.brokers_dir() / "docker.json"


def _owners() -> dict[str, ProcessId]:
    try:
        record = json.loads(_owners_path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {name: ProcessId(**owner) for name, owner in record.items()}


def _save_owners(owners: dict[str, ProcessId]) -> None:
    state.write_json(_owners_path(), {name: asdict(owner) for name, owner in owners.items()})
