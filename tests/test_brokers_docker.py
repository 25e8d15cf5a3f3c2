"""Brokers in containers, as far as it can be seen without an engine: a stand-in for `docker` keeps the containers."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from loadgen import brokers
from loadgen.brokers import state
from loadgen.brokers.process import ProcessId
from loadgen.errors import HostError

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
    verb, *rest = arguments[3:]
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
    return [line.partition("docker-compose.yml ")[2] for line in lines if "docker-compose.yml " in line]


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
