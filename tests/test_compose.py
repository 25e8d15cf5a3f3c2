"""docker-compose.yml: valid by the official schema, fair to both brokers, and closed to other machines."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from loadgen.brokers import host, install_kafka, kafka, rabbitmq

FILE = Path(__file__).parents[1] / "docker-compose.yml"
BROKERS = ("rabbitmq", "kafka")
NODES = (1, 2, 3)
SERVICES = [*BROKERS, *(f"{broker}{node}" for broker in BROKERS for node in NODES)]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file as a YAML parser reads it, merge keys resolved."""
    parsed: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return parsed


def test_it_is_valid_by_the_official_schema(compose: dict[str, Any]) -> None:
    """The compose-spec's own JSON schema, as the package check-jsonschema carries it, has no complaint."""
    text = resources.files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text()
    schema = json.loads(text)
    assert schema["title"] == "Compose Specification"
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(compose)] == []
    wrong = {**compose, "services": {"rabbitmq": {"image": 5}}}
    assert not validator.is_valid(wrong)  # the schema does look at the services


def test_docker_itself_reads_it() -> None:
    """Where Docker's compose plugin is there (no engine is needed), it resolves the file without complaint."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], check=False, capture_output=True).returncode:
        pytest.skip("no docker compose plugin on this machine: the official JSON schema alone judged the file")
    subprocess.run([docker, "compose", "--file", FILE, "config", "--quiet"], check=True, timeout=60)


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_official_and_pinned_to_one_release(name: str, compose: dict[str, Any]) -> None:
    """A tag names a whole version: 4.3 or newer for RabbitMQ, for Kafka the one of the local brokers."""
    image, _, tag = compose["services"][name]["image"].partition(":")
    version = tuple(int(part) for part in tag.partition("-")[0].split("."))
    assert len(version) == 3
    if name.startswith("rabbitmq"):
        assert (image, tag.partition("-")[2]) == ("rabbitmq", "management")
        assert version >= (4, 3)
    else:
        assert (image, tag) == ("apache/kafka", install_kafka.VERSION)


def test_both_have_the_same_limits(compose: dict[str, Any]) -> None:
    """CPUs, memory, swap and files are one setting for both, and the memory is that of the local brokers."""
    limits = [
        {key: compose["services"][name][key] for key in ("cpus", "mem_limit", "memswap_limit", "ulimits")}
        for name in SERVICES
    ]
    assert all(each == limits[0] for each in limits)
    assert limits[0]["mem_limit"] == limits[0]["memswap_limit"] == f"{host.MEMORY_CEILING_BYTES // 1024**3}g"


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_the_loopback_interface_alone(name: str, compose: dict[str, Any]) -> None:
    """Each published port begins with 127.0.0.1."""
    assert compose["services"][name]["ports"]
    assert all(port.startswith("127.0.0.1:") for port in compose["services"][name]["ports"])
    assert "network_mode" not in compose["services"][name]


@pytest.mark.parametrize("name", SERVICES)
def test_health_is_checked_often_at_the_start_and_never_during_a_run(name: str, compose: dict[str, Any]) -> None:
    """A check is work beside the broker: once healthy, the next one is a day away."""
    check = compose["services"][name]["healthcheck"]
    assert check["test"]
    assert (check["start_interval"], check["interval"]) == ("2s", "24h")


@pytest.mark.parametrize("name", SERVICES)
def test_data_are_on_a_volume(name: str, compose: dict[str, Any]) -> None:
    """Neither broker writes its messages through a container's layered file system."""
    (volume,) = compose["services"][name]["volumes"]
    source, _, target = volume.partition(":")
    assert source in compose["volumes"]
    if name.startswith("kafka"):
        assert compose["services"][name]["environment"]["KAFKA_LOG_DIRS"] == target


@pytest.mark.parametrize("name", ["kafka", "kafka1", "kafka2", "kafka3"])
def test_kafka_has_the_full_set_of_kraft_settings(name: str, compose: dict[str, Any]) -> None:
    """The image drops its defaults once one KAFKA_ setting is given: all that a KRaft node needs is there."""
    environment = compose["services"][name]["environment"]
    needed = {
        "KAFKA_NODE_ID",
        "KAFKA_PROCESS_ROLES",
        "KAFKA_CONTROLLER_QUORUM_VOTERS",
        "KAFKA_CONTROLLER_LISTENER_NAMES",
        "KAFKA_LISTENERS",
        "KAFKA_ADVERTISED_LISTENERS",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP",
        "KAFKA_INTER_BROKER_LISTENER_NAME",
        "KAFKA_LOG_DIRS",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR",
        "CLUSTER_ID",
    }
    assert needed <= set(environment)
    assert not [key for key in environment if key.startswith("KAFKA_LOG_FLUSH")]
    names = [listener.partition("://")[0] for listener in environment["KAFKA_LISTENERS"].split(",")]
    mapped = [pair.partition(":")[0] for pair in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")]
    assert sorted(names) == sorted(mapped)


@pytest.mark.parametrize("name", ["kafka", "kafka1", "kafka2", "kafka3"])
def test_kafka_runs_as_the_local_one(name: str, compose: dict[str, Any]) -> None:
    """Heap, garbage collector and socket buffers are stated, and those of the local broker."""
    environment = compose["services"][name]["environment"]
    assert environment["KAFKA_HEAP_OPTS"].split() == list(kafka.HEAP_FLAGS)
    assert environment["KAFKA_JVM_PERFORMANCE_OPTS"].split() == list(kafka.JVM_FLAGS)
    assert environment["KAFKA_SOCKET_SEND_BUFFER_BYTES"] == environment["KAFKA_SOCKET_RECEIVE_BUFFER_BYTES"] == "-1"


def test_rabbitmq_has_the_plugins_of_the_local_one(compose: dict[str, Any]) -> None:
    """What the observer and the stream driver need is enabled in both places alike."""
    content = compose["configs"]["rabbitmq-plugins"]["content"]
    assert content == f"[{','.join(rabbitmq.PLUGINS)}]."


def test_a_cluster_is_a_profile_of_three_nodes_each(compose: dict[str, Any]) -> None:
    """Only its services are of the profile; volumes and published ports are each node's own."""
    of_profile = {name for name, service in compose["services"].items() if service.get("profiles") == ["cluster"]}
    assert of_profile == set(SERVICES) - set(BROKERS)
    published = [port.rpartition(":")[0] for name in SERVICES for port in compose["services"][name]["ports"]]
    assert len(set(published)) == len(published)
    volumes = [volume for name in SERVICES for volume in compose["services"][name]["volumes"]]
    assert len(set(volumes)) == len(volumes)


@pytest.mark.parametrize("node", NODES)
def test_a_kafka_node_is_one_of_its_cluster(node: int, compose: dict[str, Any]) -> None:
    """Numbered, a voter by its own name, advertised to clients by its published port and to nodes by its name."""
    service = compose["services"][f"kafka{node}"]
    environment = service["environment"]
    assert environment["KAFKA_NODE_ID"] == str(node)
    voters = environment["KAFKA_CONTROLLER_QUORUM_VOTERS"].split(",")
    assert voters == [f"{each}@kafka{each}:9093" for each in NODES]
    assert service["hostname"] == f"kafka{node}"
    (port,) = service["ports"]
    published = re.fullmatch(r"127\.0\.0\.1:(.+):\1", port)
    assert published, "one number inside and outside"
    inner = published[1]
    assert environment["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://127.0.0.1:{inner},NODES://kafka{node}:9094"
    assert f"PLAINTEXT://0.0.0.0:{inner}," in environment["KAFKA_LISTENERS"]
    assert environment["KAFKA_INTER_BROKER_LISTENER_NAME"] == "NODES"


@pytest.mark.parametrize("node", NODES)
def test_a_rabbitmq_node_finds_the_others(node: int, compose: dict[str, Any]) -> None:
    """One secret and the names of all three; streams are told by the port that is published."""
    service = compose["services"][f"rabbitmq{node}"]
    assert service["environment"] == compose["services"]["rabbitmq1"]["environment"]
    assert "-setcookie" in service["environment"]["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
    lines = compose["configs"][f"rabbitmq{node}-conf"]["content"].splitlines()
    for each in NODES:
        assert f"cluster_formation.classic_config.nodes.{each} = rabbit@rabbitmq{each}" in lines
        assert compose["services"][f"rabbitmq{each}"]["hostname"] == f"rabbitmq{each}"
    (advertised,) = [line.partition(" = ")[2] for line in lines if line.startswith("stream.advertised_port")]
    assert f"127.0.0.1:{advertised}:5552" in service["ports"]
