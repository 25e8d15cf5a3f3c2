"""Brokers in containers, as far as it can be seen without an engine: a stand-in for `docker` keeps the containers."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from loadgen import brokers
from loadgen.brokers import state
from loadgen.brokers.process import ProcessId
from loadgen.errors import BrokerError, HostError

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.endpoint import Endpoint

STAND_IN = """#!{python}
import json, pathlib, sys
folder = pathlib.Path({folder!r})
arguments = sys.argv[1:]
with (folder / "calls").open("a") as calls:
    print(*arguments, file=calls)
running = folder / "running"
names = running.read_text().split() if running.exists() else []
ports = {ports!r}
if arguments[0] == "version" and (folder / "no-engine").exists():
    sys.exit("Cannot connect to the Docker daemon. Is the docker daemon running?")
if arguments[0] == "inspect":
    print(0)
if arguments[:1] == ["compose"] and "--file" in arguments:
    verb, *rest = arguments[5:]
    services = [word for word in rest if word in ports]
    if verb == "ps":
        for name in names:
            publishers = [{{"TargetPort": t, "PublishedPort": p}} for t, p in ports[name].items()]
            record = {{"Service": name, "State": "running", "ID": name, "Image": f"{{name}}:4.3.1"}}
            print(json.dumps({{**record, "Publishers": publishers}}))
    elif verb == "up":
        running.write_text(" ".join(sorted({{*names, *services}})))
    elif verb == "rm":
        running.write_text(" ".join(set(names) - set(services)))
    elif verb == "exec" and "environment" in rest:
        print(json.dumps({{"rabbit": {{"default_pass": "guest"}}}}))
    elif verb == "exec":
        print(json.dumps({{"rabbitmq_version": "4.3.5"}}))
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kafka_endpoint: Endpoint) -> Path:
    """The folder of a `docker` on PATH that only pretends; its Kafka is the session's."""
    ports = {
        "rabbitmq": {5672: 1001, 5552: 1002, 15672: 1003, 15692: 1004, 61613: 1005, 1883: 1006},
        "kafka": {9092: kafka_endpoint.hosts[0][1]},
    }
    for index in (1, 2, 3):
        ports[f"rabbitmq{index}"] = {inner: outer + 100 * index for inner, outer in ports["rabbitmq"].items()}
        ports[f"kafka{index}"] = ports["kafka"]
    program = tmp_path / "bin/docker"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(python=sys.executable, folder=str(tmp_path), ports=ports))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setenv("LOADGEN_BROKERS_DIR", str(tmp_path / "brokers"))
    return tmp_path


def calls(docker: Path) -> list[str]:
    """What was asked of docker compose, without the ever-same beginning."""
    lines = (docker / "calls").read_text().splitlines()
    return [
        line.partition("docker-compose.yml --profile cluster ")[2] for line in lines if "docker-compose.yml " in line
    ]


def test_containers_are_started_waited_for_and_ended(docker: Path) -> None:
    """A run starts what is missing with `up --wait`, reads both back, and removes it with its data."""
    with brokers.open_brokers("docker") as opened:
        rabbitmq, kafka = opened["rabbitmq"], opened["kafka"]
        assert rabbitmq.hosts == (("127.0.0.1", 1001),)
        assert (rabbitmq.stream_port, rabbitmq.stomp_port, rabbitmq.mqtt_port) == (1002, 1005, 1006)
        assert rabbitmq.management_url == "http://127.0.0.1:1003"
        assert rabbitmq.version == "4.3.5"
        assert rabbitmq.configuration["environment"]["rabbit"]["default_pass"] != "guest"  # noqa: S105
        assert kafka.version == "4.3.1"
        assert kafka.configuration["broker"]["num.io.threads"] == "8"
        assert (rabbitmq.source, kafka.source, rabbitmq.pids) == ("docker", "docker", ())
    assert any(line.startswith("up --detach --wait") and line.endswith("rabbitmq kafka") for line in calls(docker))
    assert calls(docker)[-1] == "down --volumes"
    assert not any(record["running"] for record in brokers.status("docker"))


def test_a_cluster_is_three_services_of_each(docker: Path) -> None:
    """Classes that survive a node's loss get the profile's nodes, each by its own port; `down` ends them, too."""
    with brokers.open_brokers("docker", ["rabbitmq"], nodes=3) as opened:
        assert opened["rabbitmq"].hosts == tuple(("127.0.0.1", 1001 + 100 * index) for index in (1, 2, 3))
        assert opened["rabbitmq"].stream_hosts == tuple(("127.0.0.1", 1002 + 100 * index) for index in (1, 2, 3))
        assert opened["rabbitmq"].management_url == "http://127.0.0.1:1103"
        assert [each["running"] for each in brokers.status("docker")] == [False, False, True]
    assert any(line.endswith("rabbitmq1 rabbitmq2 rabbitmq3") for line in calls(docker) if line.startswith("up "))
    assert len(brokers.up("docker", ["kafka"], nodes=3)["kafka"].hosts) == 3
    assert [each["broker"] for each in brokers.down("docker")] == ["kafka"]
    with pytest.raises(BrokerError, match="have 1 or 3 nodes, 2 were asked for"):
        brokers.up("docker", nodes=2)


def test_containers_that_are_up_are_left_up(docker: Path) -> None:
    """After `loadgen up` a run neither starts nor ends a container; `down` does, and says what."""
    brokers.up("docker", ["kafka"])
    with brokers.open_brokers("docker", ["kafka"]):
        pass
    assert brokers.status("docker")[1]["running"]
    assert sum(line.startswith("up ") for line in calls(docker)) == 1
    assert brokers.down("docker") == [{"broker": "kafka", "source": "docker", "how": "ended"}]
    assert not brokers.status("docker")[1]["running"]


def test_containers_of_a_killed_run_are_ended_by_the_next_command(docker: Path) -> None:
    """Containers whose owner is gone are removed, whatever was asked for."""
    (docker / "running").write_text("kafka rabbitmq")
    gone: dict[str, Any] = {"pid": 1, "start_ticks": 1, "boot_id": "another"}
    assert not ProcessId(**gone).is_alive()
    state.make_dir(docker / "brokers")
    (docker / "brokers/docker.json").write_text(json.dumps({"kafka": gone}))
    records = {record["broker"]: record["running"] for record in brokers.status("docker")}
    assert records == {"rabbitmq": True, "kafka": False}


def test_a_missing_engine_or_docker_is_one_line(docker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an engine, and without the program, the line says which is missing and what to do."""
    (docker / "no-engine").touch()
    with pytest.raises(HostError, match="no Docker engine answers: start it, or use local"):
        brokers.up("docker")
    monkeypatch.setenv("PATH", str(docker))
    with pytest.raises(HostError, match="not on PATH"):
        brokers.up("docker")
