"""Local brokers, on real ones: alone on the loopback interface, side by side, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pika
import pytest
import young_queue
from patience import PATIENCE_S, until

from loadgen import brokers
from loadgen.brokers import ending, host, local, process, rabbitmq, state
from loadgen.brokers.guard import Guard
from loadgen.brokers.process import ProcessId
from loadgen.driver import Target
from loadgen.drivers.stream_admin import StreamAdmin
from loadgen.drivers.wire.stream_producer import StreamProducer
from loadgen.errors import BrokerError, HostError
from loadgen.knobs import resolve
from loadgen.payload import Payloads
from loadgen.redaction import BLANK
from loadgen.scenario import Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.endpoint import BrokerName, Endpoint

PROJECT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("LOADGEN_CACHE_DIR", PROJECT / ".brokers/install")).absolute()
LISTEN = "0A"  # in /proc/net/tcp


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """Brokers of their own in a folder, with the session's installations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOADGEN_BROKERS_DIR", str(path))
        patch.setenv("LOADGEN_CACHE_DIR", str(CACHE))
        yield path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which both brokers are up, as after `loadgen up`; after the module nothing of it runs."""
    path = tmp_path_factory.mktemp("home")
    with folder(path):
        brokers.up()
    yield path
    with folder(path):
        brokers.down()
    assert not list(process.find_marked(path))


@pytest.fixture(scope="module")
def pair(home: Path) -> dict[BrokerName, Endpoint]:
    """The two endpoints of `home`, found by a second `up`."""
    with folder(home):
        return brokers.up()


@pytest.fixture(autouse=True)
def _here(home: Path) -> Iterator[None]:
    """Every test of this module works in `home` unless it says otherwise."""
    with folder(home):
        yield


def listening_sockets(processes: list[ProcessId]) -> set[tuple[str, int]]:
    """Address (hexadecimal, as the kernel writes it) and port of all that these processes listen on."""
    inodes = set()
    for found in processes:
        for link in Path(f"/proc/{found.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                inodes.update(re.findall(r"socket:\[(\d+)\]", str(link.readlink())))
    sockets = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and fields[9] in inodes:
                address, _, port = fields[1].rpartition(":")
                sockets.add((address, int(port, 16)))
    return sockets


def is_loopback(address: str) -> bool:
    """Whether an address of /proc/net/tcp or tcp6 is 127.0.0.1, that mapped into IPv6 (Java's), or ::1 (epmd's)."""
    return address in {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_all_sockets_listen_on_the_loopback_interface_alone(home: Path, pair: dict[BrokerName, Endpoint]) -> None:
    """Clients, controller, distribution, epmd and all else: nothing can be reached from another machine."""
    sockets = listening_sockets(list(process.find_marked(home)))
    # On the port `proxy` a trial's proxy listens, while there is one.
    named = [item for record in brokers.status() for item in record["ports"].items()]
    expected = {port for name, port in named if name != "proxy"}
    assert {port for _, port in sockets} == expected
    assert all(is_loopback(address) for address, _ in sockets), sockets
    assert pair["rabbitmq"].hosts[0][1] in expected
    assert pair["kafka"].hosts[0][1] in expected


def test_both_brokers_are_recent_enough_and_their_versions_are_recorded(
    pair: dict[BrokerName, Endpoint],
) -> None:
    """RabbitMQ is at least 4.3 and Kafka at least 4.3.1, and each installation lists what it consists of."""
    versions = {name: tuple(map(int, endpoint.version.split("."))) for name, endpoint in pair.items()}
    assert versions["rabbitmq"] >= (4, 3)
    assert versions["kafka"] >= (4, 3, 1)
    records = {path.parent.name: json.loads(path.read_text()) for path in CACHE.glob("*/installed.json")}
    assert records["kafka-4.3.1"]["versions"]["kafka"] == pair["kafka"].version
    assert "erlang-base" in records["rabbitmq-forky"]["versions"]


def test_the_configuration_is_read_back_and_every_deviation_holds_in_it(
    pair: dict[BrokerName, Endpoint],
) -> None:
    """What a broker says of itself agrees with the list of what was changed; no flush setting is among it."""
    kafka = pair["kafka"].configuration
    assert not [key for key in kafka["broker_not_default"] if key.startswith("log.flush")]
    assert kafka["broker"]["group.initial.rebalance.delay.ms"] == "0"
    assert any(line.startswith("group.initial.rebalance.delay.ms = 0 (") for line in pair["kafka"].deviations)
    assert {"-Xmx1g", "-Xms1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"} <= set(kafka["command_line"])
    asked = next(line for line in pair["kafka"].deviations if line.startswith("KAFKA_JVM_PERFORMANCE_OPTS"))
    assert "-XX:TieredStopAtLevel=1" in asked
    assert "-XX:TieredStopAtLevel=1" in kafka["command_line"], "what was asked for is what runs, and is told"
    rabbitmq = pair["rabbitmq"].configuration
    ceiling = host.memory_ceiling_bytes()
    assert rabbitmq["environment"]["rabbit"]["total_memory_available_override_value"] == ceiling
    assert rabbitmq["status"]["vm_memory_high_watermark_limit"] == int(ceiling * 0.6)
    assert "net.core.rmem_max" in rabbitmq["host"]
    assert all(re.fullmatch(r"[\w.]+ = .+ \(.+\)", line) for end in pair.values() for line in end.deviations)


def test_no_secret_is_in_a_configuration(pair: dict[BrokerName, Endpoint]) -> None:
    """Neither the Erlang cookie nor a password can be found in what is recorded of the brokers."""
    written = json.dumps([endpoint.configuration for endpoint in pair.values()])
    cookie = (pair["rabbitmq"].log_dir or Path()).parent / "home/.erlang.cookie"
    assert cookie.read_text() not in written
    environment = pair["rabbitmq"].configuration["environment"]["rabbit"]
    assert environment["credentials_obfuscation_fallback_secret"] == BLANK


def test_a_broker_is_asked_for_its_settings_once_a_start(
    pair: dict[BrokerName, Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same is told again without its programs, and nothing that another process said; no secret is kept."""
    asked: list[str] = []

    def control(cluster: state.Cluster, node: state.Node, tool: str, *words: str) -> str:
        asked.append(tool)
        return rabbitmq_control(cluster, node, tool, *words)

    rabbitmq_control = rabbitmq.control
    monkeypatch.setattr(rabbitmq, "control", control)
    assert brokers.up()["rabbitmq"].configuration == pair["rabbitmq"].configuration
    assert not asked
    path = (pair["rabbitmq"].data_dir or Path()).parent / "said.json"
    kept = json.loads(path.read_text())
    assert kept["environment"]["rabbit"]["credentials_obfuscation_fallback_secret"] == BLANK
    path.write_text(json.dumps({**kept, "server": {**kept["server"], "start_ticks": 0}, "status": {}}))
    assert brokers.up()["rabbitmq"].configuration == pair["rabbitmq"].configuration
    assert sorted(asked) == ["rabbitmq-diagnostics", "rabbitmqctl"]


def test_status_is_plain_data(pair: dict[BrokerName, Endpoint]) -> None:
    """`status` says of each broker what runs where, in a form that JSON can carry."""
    records = {record["broker"]: record for record in json.loads(json.dumps(brokers.status()))}
    for name, endpoint in pair.items():
        record = records[name]
        assert record["running"]
        assert record["kept"]
        assert record["installed_version"] == endpoint.version
        assert (record["pid"],) == endpoint.pids
        assert record["uptime_s"] > 0
        assert Path(record["data_dir"]) == endpoint.data_dir


def test_brokers_that_are_up_are_used_and_left_up(pair: dict[BrokerName, Endpoint]) -> None:
    """`open_brokers` after `loadgen up` neither starts nor ends anything."""
    with brokers.open_brokers() as opened:
        assert {name: endpoint.pids for name, endpoint in opened.items()} == {
            name: endpoint.pids for name, endpoint in pair.items()
        }
    assert all(record["running"] for record in brokers.status())


def test_two_folders_run_side_by_side_without_sharing_a_port(home: Path, tmp_path: Path) -> None:
    """A second checkout starts its own broker beside the first, and ends it alone, also with its disk full."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with folder(tmp_path), brokers.open_brokers(brokers=["rabbitmq"]) as opened:
            other = listening_sockets(list(process.find_marked(tmp_path)))
            assert opened["rabbitmq"].stream_port in {port for _, port in other}
            assert not other & listening_sockets(list(process.find_marked(home)))
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
            with pytest.raises(HostError, match=r"state.json cannot be written: .*; free space"):
                brokers.mark_warmed(opened["rabbitmq"])
            assert not list(tmp_path.rglob("*.partial"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(process.find_marked(tmp_path))
    assert all(record["running"] for record in brokers.status())


def test_nested_users_share_a_broker_and_the_last_one_ends_it(tmp_path: Path) -> None:
    """A broker that two runs use ends with the second of them."""
    with folder(tmp_path):
        with brokers.open_brokers(brokers=["kafka"]) as outer:
            with brokers.open_brokers(brokers=["kafka"]) as inner:
                assert inner["kafka"].pids == outer["kafka"].pids
            assert brokers.status()[1]["running"]
        assert not brokers.status()[1]["running"]
    assert not list(process.find_marked(tmp_path))


def test_a_broker_that_a_killed_run_left_standing_still_goes_on(pair: dict[BrokerName, Endpoint]) -> None:
    """A run killed amid a pause cannot mend it: whoever uses the broker next does."""
    for endpoint in pair.values():
        for pid in endpoint.pids:
            os.kill(pid, signal.SIGSTOP)
    with brokers.open_brokers() as opened:
        states = [
            Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            for each in opened.values()
            for pid in each.pids
        ]
    assert len(states) >= 2
    assert not {"T", "t"} & set(states)


def test_warmth_is_remembered_until_the_broker_is_started_anew(pair: dict[BrokerName, Endpoint]) -> None:
    """`mark_warmed` holds for other commands too."""
    assert not brokers.is_warmed(pair["rabbitmq"])
    brokers.mark_warmed(pair["rabbitmq"])
    assert brokers.is_warmed(pair["rabbitmq"])
    assert not brokers.is_warmed(pair["kafka"])


def test_a_killed_rabbitmq_comes_back_with_its_data(pair: dict[BrokerName, Endpoint]) -> None:
    """After kill -9 and `restart` confirmed messages of queue and stream are there, at the same address."""
    parameters = pika.ConnectionParameters(*pair["rabbitmq"].hosts[0])
    connection = pika.BlockingConnection(parameters)
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare("survives", durable=True)
    channel.basic_publish("", "survives", b"kill -9", pika.BasicProperties(delivery_mode=2))
    connection.close()
    streams = Target(pair["rabbitmq"], "survives-too", resolve("rabbitmq", {"driver": "stream"}, "broker", "default"))
    with contextlib.closing(StreamAdmin(pair["rabbitmq"])) as admin:
        admin.create(streams)
    producer = StreamProducer(streams, Payloads(Message(size_bytes=24), seed=1, token=1))
    producer.send(0, np.full(100, 1), 1)
    assert sum(len(each.seqs) for each in producer.flush(10) if each.error is None) == 100
    time.sleep(2)  # of what is younger, RabbitMQ may lose the name, and with it all the rest
    before = pair["rabbitmq"].pids
    brokers.kill(pair["rabbitmq"])
    assert not brokers.status()[0]["running"]
    after = brokers.restart(pair["rabbitmq"])
    assert after.hosts == pair["rabbitmq"].hosts
    assert after.pids != before
    assert not brokers.is_warmed(after)
    with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
        assert connection.channel().basic_get("survives", auto_ack=True)[2] == b"kill -9"
    with contextlib.closing(StreamAdmin(after)) as admin:
        assert admin.depth(streams) == 100
    producer.close()


@pytest.mark.long
def test_a_killed_rabbitmq_keeps_a_quorum_queue_that_has_aged(pair: dict[BrokerName, Endpoint]) -> None:
    """Two seconds old, it is found again with its log: each confirmed message is there (`bench/young_queue.py`)."""
    tried = young_queue.kill_aged(pair["rabbitmq"], 2.0)
    assert (tried.found, tried.began_anew) == (young_queue.MESSAGES, False)


OWNER = """
import sys, time
from loadgen import brokers
with brokers.open_brokers(brokers=[sys.argv[1]]) as opened:
    print("open", flush=True)
    time.sleep(600)
"""


def start_owner(path: Path, broker: str) -> subprocess.Popen[str]:
    """Another program that opens a broker and would hold it for ten minutes."""
    environment = {**os.environ, "LOADGEN_BROKERS_DIR": str(path), "LOADGEN_CACHE_DIR": str(CACHE)}
    return subprocess.Popen(
        [sys.executable, "-c", OWNER, broker], env=environment, cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )


def left_behind(root: Path) -> ProcessId:
    """What a loadgen that was killed has left in a folder of brokers: a process that stands for one, and its record."""
    cluster = state.Cluster("rabbitmq", state.cluster_dir("rabbitmq", root), CACHE, "4.3.6", ready=True)
    node = state.Node(1, {})
    cluster.node_dir(node).mkdir(parents=True)
    node.server = process.spawn(
        ["sleep", "600"], environment=dict(os.environ), node_dir=cluster.node_dir(node), output=root / "out"
    )
    cluster.nodes, cluster.owners = [node], {"run": ProcessId(1, 0, "another-boot")}
    cluster.save()
    return node.server


@pytest.mark.usefixtures("pair")
def test_whoever_opens_brokers_ends_what_a_killed_run_left_elsewhere(home: Path) -> None:
    """Brokers of three nodes, linked ones and private ones that nobody wants any more, while one node is opened."""
    left = [left_behind(home / name) for name in (ending.CLUSTER, ending.LINKED, f"{ending.PRIVATE}/old")]
    with ending.lock(home / ending.LINKED, print), brokers.open_brokers(brokers=["kafka"]):
        assert [each.is_alive() for each in left] == [False, True, False], "somebody is busy there"
    told: list[str] = []
    with brokers.open_brokers(brokers=["kafka"], progress=told.append):
        assert not any(each.is_alive() for each in left)
    assert any("killed" in line for line in told)
    assert not (home / ending.PRIVATE / "old").exists()
    assert all(record["running"] for record in brokers.status())


def guards(root: Path) -> list[int]:
    """The processes that are to end what is left in a folder of brokers."""
    lines = {int(path.name): process.command_line(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    return [pid for pid, words in lines.items() if "loadgen.brokers.guard" in words and str(root) in words]


def test_a_killed_run_leaves_nothing_for_long(tmp_path: Path) -> None:
    """A run that is killed with SIGKILL leaves a process that ends its broker, without any further command."""
    with start_owner(tmp_path, "rabbitmq") as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "open\n"
        (guard,) = guards(tmp_path)
        assert os.getsid(guard) == guard, "no signal to its owner's terminal is for it"
        owner.kill()
    assert until(lambda: not list(process.find_marked(tmp_path)))
    assert until(lambda: not guards(tmp_path))
    assert not (tmp_path / "run/rabbitmq/state.json").exists()


def test_a_run_killed_while_it_starts_a_broker_leaves_nothing_for_long(tmp_path: Path) -> None:
    """Killed in the middle of a start, whether or not the state names a process yet: all of it is ended, too."""
    with start_owner(tmp_path, "rabbitmq") as owner:
        assert until(lambda: list(process.find_marked(tmp_path)))
        owner.kill()
    assert until(lambda: not guards(tmp_path))
    assert not list(process.find_marked(tmp_path))
    assert not (tmp_path / "run/rabbitmq/state.json").exists()


def test_who_leaves_in_order_needs_no_guard(home: Path, pair: dict[BrokerName, Endpoint]) -> None:
    """It ends with its owner's last broker; of brokers that are to stay there is none."""
    del pair
    with brokers.open_brokers(brokers=["kafka"]):
        assert not guards(home)
    root = home / "nothing"
    with Guard(root) as guard:
        guard.start()
        assert until(lambda: guards(root))
        guard.dismiss()
        assert not guards(root)
    assert not root.exists()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_a_signal_ends_a_run_with_its_brokers(tmp_path: Path, number: signal.Signals) -> None:
    """After Ctrl-C, or when it is asked to terminate, a run ends its brokers itself."""
    with start_owner(tmp_path, "rabbitmq") as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "open\n"
        owner.send_signal(number)
        assert owner.wait(PATIENCE_S) != 0
    assert not list(process.find_marked(tmp_path))


def test_a_later_process_with_a_recorded_pid_is_not_touched(tmp_path: Path) -> None:
    """A state file that names a pid which now belongs to somebody else does that process no harm."""
    with subprocess.Popen(["sleep", "600"]) as stranger:
        now = ProcessId.of(stranger.pid)
        assert now is not None
        for earlier in (
            ProcessId(now.pid, now.start_ticks - 1, now.boot_id),
            ProcessId(now.pid, now.start_ticks, "another-boot"),
        ):
            cluster = state.Cluster("kafka", state.cluster_dir("kafka", tmp_path), CACHE, "4.3.1", ready=True)
            cluster.folder.mkdir(parents=True, exist_ok=True)
            cluster.nodes = [state.Node(1, {"kafka": 1}, earlier)]
            cluster.save()
            with folder(tmp_path):
                assert brokers.down() == []
            assert stranger.poll() is None
        stranger.kill()


def test_a_node_that_does_not_end_in_order_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ignores SIGTERM is killed when its time is over: whoever restarts it hears of that."""

    def launch(cluster: state.Cluster, node: state.Node) -> None:
        stubborn = f"trap '' TERM; touch {ignores}; while :; do sleep 0.1; done"
        words = ["sh", "-c", stubborn] if node.index == 1 else ["sleep", "600"]
        folder = cluster.node_dir(node)
        folder.mkdir(parents=True, exist_ok=True)
        node.server = process.spawn(words, environment=dict(os.environ), node_dir=folder, output=tmp_path / "out")
        cluster.save()

    ignores = tmp_path / "ignores"
    kind = SimpleNamespace(STOP_TIMEOUT_S=2.0, launch=launch, wait_ready=lambda *_: None)
    monkeypatch.setattr(local, "kind_of", lambda _: kind)
    nodes = [state.Node(1, {}), state.Node(2, {})]
    cluster = state.Cluster("rabbitmq", state.cluster_dir("rabbitmq", tmp_path), CACHE, "4.3.6", nodes=nodes)
    endpoint: Any = SimpleNamespace(broker="rabbitmq", source="local", data_dir=cluster.node_dir(nodes[0]) / "data")
    for node in nodes:
        launch(cluster, node)
    assert until(ignores.exists)
    try:
        assert local.start_again(endpoint, 1, 2, progress=print) == (1,)
    finally:
        process.end_all(list(process.find_marked(tmp_path)), timeout_s=0)


def test_down_ends_everything_and_says_what(tmp_path: Path) -> None:
    """After `down` no process, no state and no data are left; a second `down` has nothing to do."""
    with folder(tmp_path):
        server = brokers.up(brokers=["rabbitmq"])["rabbitmq"].pids[0]
        ended = brokers.down()
        assert {"broker": "rabbitmq", "pid": server, "how": "ended"} in ended
        assert brokers.down() == []
    assert not list(process.find_marked(tmp_path))
    assert not list(tmp_path.glob("run/*/state.json"))
    assert not list(tmp_path.glob("run/*/node*/data"))


def test_an_endpoint_that_is_gone_is_told(pair: dict[BrokerName, Endpoint], tmp_path: Path) -> None:
    """Asking for the warmth of a broker that was ended says that it was."""
    gone = type(pair["kafka"])("kafka", pair["kafka"].hosts, data_dir=tmp_path / "run/kafka/node1/data", source="local")
    with pytest.raises(BrokerError, match="no longer up"):
        local.mark_warmed(gone)
