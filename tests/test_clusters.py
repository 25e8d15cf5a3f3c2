"""Brokers of three nodes: they form, hold every message on each, survive the loss of one, and end without a trace."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import synthetic
from hurts import demand_kept, hurt_scenario, record_mended, record_of
from patience import PATIENCE_S

from loadgen import At, Durability, Full, Kill, Message
from loadgen.brokers import kill, mark_warmed, open_brokers, process, renewed, restart, state, status
from loadgen.cli import main
from loadgen.driver import Target
from loadgen.drivers import load_driver, rabbitmq_replicas
from loadgen.drivers.leaders import leader_of
from loadgen.drivers.rabbitmq_replicas import replicas_of
from loadgen.errors import BrokerError
from loadgen.knobs import resolve
from loadgen.payload import Payloads
from loadgen.runs import load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadgen.endpoint import BrokerName, Endpoint

COUNT = 200
AGED_S = 2.0  # a quorum queue killed within a second of its declaration loses what it confirmed (RabbitMQ 4.3)
NODES_MISSED_S = PATIENCE_S  # Kafka gives a dead broker's leadership away when its session has ended, after 9 s


@pytest.fixture(scope="module")
def clusters() -> Iterator[dict[BrokerName, Endpoint]]:
    """Three nodes of each broker, for this file alone; they and what serves them end without a trace."""
    with open_brokers("local", nodes=3, progress=print) as opened:
        for endpoint in opened.values():
            mark_warmed(endpoint)  # how fast they are is not asked
        yield opened
        for endpoint in opened.values():  # how they end in order is asked of a run's own, below
            kill(endpoint, 1, 2, 3)
    assert not list(process.find_marked(state.brokers_dir() / "cluster"))
    assert not list((state.brokers_dir() / "cluster").glob("**/state.json"))


def target_in(endpoint: Endpoint, durability: str = "replicated", **knobs: Any) -> Target:
    """A target of a class, of a fresh name."""
    driver = knobs.pop("driver", "amqp" if endpoint.broker == "rabbitmq" else "kafka")
    settings = resolve(endpoint.broker, {"driver": driver, **knobs}, durability, "default")
    if endpoint.broker == "kafka":
        settings |= {"partitioner": "sticky", "group_protocol": "static"}
    return Target(endpoint, f"clusters-{time.monotonic_ns():x}", settings, group="clusters")


def confirmed(target: Target, driver_name: str) -> None:
    """Publish `COUNT` messages, and return when each is confirmed."""
    payloads = Payloads(Message(size_bytes=100), 1, 1, producer=0)
    producer = load_driver(driver_name).producer(target, payloads)
    try:
        now = np.full(COUNT, time.monotonic_ns(), np.int64)
        sent = settled = 0
        until_s = time.monotonic() + PATIENCE_S
        while settled < COUNT:
            assert time.monotonic() < until_s, f"{settled} of {COUNT} confirmed"
            if sent < COUNT and (room := min(50, COUNT - sent)):
                producer.send(sent, now[sent : sent + room], int(now[0]))
                sent += room
            settled += sum(len(each.seqs) for each in producer.poll(0.2))
    finally:
        producer.close()


def received(target: Target, driver_name: str) -> int:
    """How many messages a fresh consumer gets until nothing more comes."""
    consumer = load_driver(driver_name).consumer(target, 0, 1)
    try:
        found, quiet_s = 0, time.monotonic()
        while time.monotonic() - quiet_s < 5 and found < COUNT:
            number = sum(len(each.starts) for each in consumer.receive(0.2))
            consumer.settle()
            found += number
            quiet_s = time.monotonic() if number else quiet_s
        return found
    finally:
        consumer.close()


def test_three_nodes_of_each_stand_and_are_told(clusters: dict[BrokerName, Endpoint]) -> None:
    """Three processes and addresses each, `status` names them beside those of one node, and warm-up is remembered."""
    for endpoint in clusters.values():
        assert len(set(endpoint.pids)) == len(set(endpoint.hosts)) == 3
    rows = [row for row in status("local") if row["running"] and len(row["nodes"]) == 3]
    assert {row["broker"] for row in rows} == {"rabbitmq", "kafka"}
    assert {each["pid"] for row in rows for each in row["nodes"]} == {
        pid for endpoint in clusters.values() for pid in endpoint.pids
    }


@pytest.mark.parametrize("driver_name", ["amqp", "stream"])
def test_a_replicated_queue_lies_on_three_nodes(clusters: dict[BrokerName, Endpoint], driver_name: str) -> None:
    """By RabbitMQ's own word: three members, all in step, of a quorum queue and of a stream."""
    endpoint = clusters["rabbitmq"]
    target = target_in(endpoint, driver=driver_name)
    admin = load_driver(driver_name).admin(endpoint)
    try:
        admin.create(target)
        found = replicas_of(endpoint, target.name)
        assert found is not None
        assert sorted(found.members) == sorted(found.online) == [f"rabbit{n}@localhost" for n in (1, 2, 3)]
        assert sorted(admin.effective(target)["members"]) == sorted(found.members)
        admin.delete(target)
    finally:
        admin.close()


def test_a_replicated_topic_has_three_replicas_and_so_many_in_step(clusters: dict[BrokerName, Endpoint]) -> None:
    """By Kafka's own word: replication factor 3, min.insync.replicas 2 or as asked, no unclean election; flushed."""
    admin = load_driver("kafka").admin(clusters["kafka"])
    try:
        for durability, knobs, flush, in_step in (
            ("replicated", {}, None, "2"),
            ("replicated_flushed", {}, "1", "2"),
            ("replicated", {"min_insync_replicas": 3}, None, "3"),
        ):
            target = target_in(clusters["kafka"], durability, **knobs)
            admin.create(target)
            told = admin.effective(target)
            assert (told["replication.factor"], told["min.insync.replicas"]) == (3, in_step)
            assert told["unclean.leader.election.enable"] == "false"
            assert flush is None or told["flush.messages"] == flush
            admin.delete(target)
    finally:
        admin.close()


@pytest.mark.parametrize(
    ("broker", "driver_name"),
    [
        ("rabbitmq", "amqp"),
        pytest.param("rabbitmq", "stream", marks=pytest.mark.long),
        pytest.param("kafka", "kafka", marks=pytest.mark.long),
    ],
)
def test_what_was_confirmed_outlives_a_node(
    clusters: dict[BrokerName, Endpoint], broker: BrokerName, driver_name: str
) -> None:
    """Its leader is killed as `kill -9` does: what was confirmed is received from the others; then it comes back.

    While it is away the others say who leads now and, to whoever had asked before, how full the topic is.
    """
    endpoint = clusters[broker]
    target = target_in(endpoint, driver=driver_name)
    admin = load_driver(driver_name).admin(endpoint)
    leader = 0
    try:
        admin.create(target)
        time.sleep(AGED_S)
        confirmed(target, driver_name)
        leader = leader_of(target)
        before = admin.gauge(target, 0) if broker == "kafka" else None
        kill(endpoint, leader)
        until_s = time.monotonic() + NODES_MISSED_S
        found = 0
        endpoint = endpoint.turned(leader)  # a client tries another node first, whatever was first in its list
        target = replace(target, endpoint=endpoint)
        while found < COUNT and time.monotonic() < until_s:
            try:
                found = max(found, received(target, driver_name))
            except BrokerError:  # the leader is not elected yet
                time.sleep(1)
        assert found == COUNT
        until_s = time.monotonic() + NODES_MISSED_S
        if driver_name == "amqp":
            assert leader_of(replace(target, endpoint=clusters[broker])) != leader, "its members know at once"
        while leader_of(replace(target, endpoint=clusters[broker])) == leader:  # RabbitMQ's management hears late
            assert time.monotonic() < until_s, "nobody says that another one leads"
            time.sleep(0.5)
        if before is not None:
            assert before.depth_msgs == COUNT
            assert admin.gauge(target, 0) == before, "at once, by what the others know"
    finally:
        admin.close()
        if leader:
            clusters[broker] = restart(clusters[broker], leader)
    assert len(set(clusters[broker].pids)) == 3


def test_a_run_of_a_replicated_class_starts_its_own_brokers(
    endpoints: dict[BrokerName, Endpoint], clusters: dict[BrokerName, Endpoint], tmp_path: Path
) -> None:
    """`loadgen run` with two classes: first on one node, then on three, each told in the header; nothing is lost."""
    del endpoints, clusters  # they are up, and used
    words = [
        "run",
        "scenarios/latency.py",
        "--broker",
        "rabbitmq",
        "--set",
        "durability=broker,replicated",
        "--set",
        "rate=200",
    ]
    words += ["--duration", "1s", "--set", "warmup_s=0.2", "--results", str(tmp_path)]
    with synthetic.undrawn():
        assert main(words) in {0, 2}
    run = load("latest", tmp_path)
    assert set(run.header["brokers"]) == {"rabbitmq", "rabbitmq × 3"}
    assert [record["durability"] for record in run.records] == ["broker", "replicated"]
    for record in run.records:
        assert (record["status"], record["lost"], record["duplicated"]) == ("complete", 0, 0)
        assert record["sent"] == record["received"] > 0


def test_a_single_node_is_refused_where_three_are_promised(
    rabbitmq_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ declares such a queue on one node without a word: the class would promise what nobody keeps."""
    monkeypatch.setattr(rabbitmq_replicas, "WITHIN_S", 6.0)  # its management tells of a queue after five
    admin = load_driver("amqp").admin(rabbitmq_endpoint)
    target = target_in(rabbitmq_endpoint)
    try:
        with pytest.raises(BrokerError, match="lies on 1 of 3 nodes; this durability class needs a cluster of 3"):
            admin.create(target)
        with pytest.raises(BrokerError, match="has no queue"):
            admin.depth(target)
    finally:
        admin.close()


# --- hurt under load ---


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_the_leader_of_three_is_killed_and_nothing_confirmed_is_lost(
    clusters: dict[BrokerName, Endpoint], broker: BrokerName
) -> None:
    """By its own word at that moment; the others take over, and it comes back while load flows."""
    other = {"rabbitmq": "kafka", "kafka": "rabbitmq"}[broker]
    # Two seconds and a half after its declaration, below one of which a quorum queue may lose what it confirmed.
    made = hurt_scenario(At(1.5, Kill("leader", back_after_s=2.0)), durability=Durability.REPLICATED, **{other: None})
    record = record_mended(renewed(clusters[broker]), made)
    demand_kept(record)
    (fault,) = record["faults"]
    assert fault["error"] is None
    assert fault["next_leader"] in {1, 2, 3} - set(fault["nodes"]), "as it was the leader, another one leads now"
    assert fault["mended_after_s"] > 2.0
    assert fault["confirm_gap_s"] > 0, "of a leader it shows; the others would have gone on"
    if broker == "kafka":
        assert record["broker_counts"]["read_again"] == record["sent"], "a client that knows nothing finds the same"
    assert record["acked"] == record["sent"], "what was not confirmed by the one was by another"
    before, after = clusters[broker].pids, renewed(clusters[broker]).pids
    assert [each != other for each, other in zip(before, after, strict=True)].count(True) == 1


@pytest.mark.long
def test_a_kafka_without_disk_ends_and_the_others_take_over(clusters: dict[BrokerName, Endpoint]) -> None:
    """It has no alarm: it gives up its only log directory; nothing confirmed is lost, and it comes back with space."""
    made = hurt_scenario(At(1, Full("disk", for_s=1.0)), durability=Durability.REPLICATED, rabbitmq=None)
    before = renewed(clusters["kafka"])
    record = record_of(before, made, 16.0)
    demand_kept(record)
    (fault,) = record["faults"]
    assert fault["error"] is None
    assert fault["nodes"] == [
        1 + [old != new for old, new in zip(before.pids, renewed(before).pids, strict=True)].index(True)
    ]
    assert record["acked"] == record["sent"]


def test_other_sizes_are_refused() -> None:
    """Before anything is started."""
    with pytest.raises(BrokerError, match="1 or 3 nodes, 2 were asked for"), open_brokers("local", nodes=2):
        pass
