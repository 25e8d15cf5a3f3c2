"""A null broker as a process: whole trials through it account for every message, and it never outlives its maker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from loadgen import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.errors import BrokerError
from loadgen.knobs import resolve
from loadgen.nullbroker import null_broker
from loadgen.payload import Payloads
from loadgen.plan import Profile, make_plan
from loadgen.scenario import Durability, Uniform
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Consumer, Received
    from loadgen.endpoint import Endpoint

SHORT = Profile("test", warmup_s=0.2, duration_s=1.0, repeats=1)
LONGER = Profile("test", warmup_s=0.2, duration_s=2.0, repeats=1)  # of a library that a busy machine may hold up
PROTOCOLS = {"pika": "amqp", "pika-blocking": "amqp", "rstream": "stream"}  # of clients, by their wire drivers
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def null_endpoints() -> Iterator[dict[str, Endpoint]]:
    """One null broker of each kind, by the wire driver that speaks with it."""
    with (
        null_broker("rabbitmq") as amqp,
        null_broker("kafka") as kafka,
        null_broker("rabbitmq", streams=True) as stream,
    ):
        yield {"amqp": amqp, "kafka": kafka, "stream": stream}


def run_through(endpoint: Endpoint, driver: str, knobs: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The record of one short trial through a null broker."""
    part = (RabbitMQ if endpoint.broker == "rabbitmq" else Kafka)(driver=driver, **(knobs or {}))
    values: dict[str, Any] = {"name": "null", "question": "?", "message": Message(size_bytes=100)}
    values |= {"rate": Rate.saturate(), "preset": "throughput", endpoint.broker: part}
    profile = LONGER if driver in {"pika", "rstream"} else SHORT
    plan = make_plan([Scenario(**{**values, **changes})], profile, brokers=(endpoint.broker,))
    record, outcome = run_trial(plan.trials[0], Setting(endpoint, lambda _: None))
    assert outcome.error is None, outcome.traceback or outcome.error
    return record


def demand_perfect(record: dict[str, Any]) -> None:
    """Every message was confirmed and came once, intact and in order, and the broker's own books agree."""
    assert record["sent"] * record["subscribers"] == record["received"] > 0
    assert record["acked"] in {record["sent"], None}
    assert [record[each] for each in ("lost", "duplicated", "out_of_order", "corrupted", "foreign")] == [0] * 5
    assert record["broker_counts"]["depth_at_end"] == 0
    assert record["broker_counts"]["stored"] in {record["sent"], None}
    assert record["cpu_s"]["broker"] is not None


@pytest.mark.parametrize("driver", ["amqp", "pika", "pika-blocking", "kafka", "stream", "rstream"])
def test_one_to_one_every_message_comes_once_intact_and_in_order(
    null_endpoints: dict[str, Endpoint], driver: str
) -> None:
    """Saturated, the ledger is exact."""
    demand_perfect(run_through(null_endpoints[PROTOCOLS.get(driver, driver)], driver))


@pytest.mark.parametrize("driver", ["amqp", "pika", "kafka", "stream"])
def test_several_producers_and_consumers_share_the_messages(null_endpoints: dict[str, Endpoint], driver: str) -> None:
    """Two producers, and two consumers that compete for a queue or have partitions of their own."""
    knobs = {"partitions": 4} if driver in {"kafka", "stream"} else {}
    demand_perfect(run_through(null_endpoints[PROTOCOLS.get(driver, driver)], driver, knobs, producers=2, consumers=2))


MIXED = Message(size_bytes=Uniform(min_bytes=24, max_bytes=3_000))


@pytest.mark.parametrize(
    ("driver", "changes"),
    [
        ("amqp", {"durability": Durability.NONE}),
        ("kafka", {"durability": Durability.NONE}),
        ("amqp", {"message": MIXED}),
        ("kafka", {"message": MIXED}),
        ("amqp", {"message": Message(size_bytes=300_000)}),
        ("kafka", {"rate": Rate.fixed(500), "preset": "default"}),
        ("stream", {"message": MIXED}),
        ("stream", {"subscribers": 2}),
        ("stream", {"knobs": {"sub_entry_size": 50, "compression": "lz4"}}),
    ],
)
def test_classes_sizes_and_loops_are_all_carried(
    null_endpoints: dict[str, Endpoint], driver: str, changes: dict[str, Any]
) -> None:
    """Without confirms, mixed, larger than any frame, in an open loop, fanned out: the ledger is exact, too."""
    demand_perfect(run_through(null_endpoints[PROTOCOLS.get(driver, driver)], driver, **changes))


@pytest.mark.parametrize("driver", ["amqp", "kafka", "stream"])
def test_without_consumers_it_confirms_and_counts(null_endpoints: dict[str, Endpoint], driver: str) -> None:
    """A pure sink: everything is confirmed, and its own count is what was sent."""
    record = run_through(null_endpoints[PROTOCOLS.get(driver, driver)], driver, consumers=0)
    assert record["acked"] == record["sent"] == record["broker_counts"]["depth_at_end"] > 0
    checks = {check["name"]: check["passed"] for check in record["verdict"]["checks"]}
    # A queue that nobody reads has no count but its depth: what was stored is not looked at.
    assert checks["loss"] is True
    assert checks["broker's count"] is (True if driver == "kafka" else None)


@pytest.mark.parametrize("driver", ["amqp", "kafka", "stream"])
def test_the_control_plane_is_a_brokers(null_endpoints: dict[str, Endpoint], driver: str) -> None:
    """The drivers' own admins create, watch and delete: twice is refused, gone is gone, settings are plain data."""
    endpoint, made = null_endpoints[driver], load_driver(driver)
    settings = resolve(endpoint.broker, {"driver": driver}, "broker", "default")
    target = Target(endpoint, f"control-{driver}", settings, group="control")
    with contextlib.closing(made.admin(endpoint)) as admin:
        admin.create(target)
        with pytest.raises(BrokerError):
            admin.create(target)
        assert admin.depth(target) == 0
        payloads = Payloads(Message(size_bytes=100), seed=1, token=2)
        with contextlib.closing(made.producer(target, payloads)) as producer:
            producer.send(0, np.zeros(64, np.int64), 0)
            settled = producer.flush(PATIENCE_S)
        assert sum(len(each.seqs) for each in settled) == 64
        assert admin.depth(target) == 64
        assert admin.stored(target) in {64, None}
        json.dumps(admin.effective(target))
        admin.delete(target)
        admin.delete(target)
        with pytest.raises(BrokerError):
            admin.depth(target)


def test_what_a_consumer_has_processed_is_committed(null_endpoints: dict[str, Endpoint]) -> None:
    """A Kafka consumer that comes after another of its group goes on where that one was."""
    endpoint = null_endpoints["kafka"]
    driver = load_driver("kafka")
    settings = resolve("kafka", {"auto_commit_interval_ms": 10}, "broker", "default")
    target = Target(endpoint, "committed", settings, group="committed")
    with contextlib.ExitStack() as opened:
        admin = opened.enter_context(contextlib.closing(driver.admin(endpoint)))
        admin.create(target)
        first = opened.enter_context(contextlib.closing(driver.consumer(target, 0, 1)))
        payloads = Payloads(Message(size_bytes=100), seed=1, token=2)
        producer = opened.enter_context(contextlib.closing(driver.producer(target, payloads)))
        assert admin.depth(target) == 0  # an answer: by now it has seen the consumer's fetch, and keeps what comes
        producer.send(0, np.zeros(30, np.int64), 0)
        producer.flush(PATIENCE_S)
        assert _positions(first, 30) == 0
        assert admin.depth(target, 30) == 0
        first.close()
        assert admin.depth(target) == 0
        second = opened.enter_context(contextlib.closing(driver.consumer(target, 0, 1)))
        assert admin.depth(target) == 0
        producer.send(30, np.zeros(5, np.int64), 0)
        producer.flush(PATIENCE_S)
        assert _positions(second, 5) == 30


def _positions(consumer: Consumer, count: int) -> int | None:
    """Receive so many messages and settle them; where the first one stood."""
    batches: list[Received] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while sum(len(batch.starts) for batch in batches) < count and time.monotonic() < deadline_s:
        batches += consumer.receive(0.1)
        consumer.settle()
    assert sum(len(batch.starts) for batch in batches) == count
    return batches[0].first_position


def test_it_ends_with_the_block() -> None:
    """Its process is gone afterwards, and nobody listens any more."""
    with null_broker("rabbitmq") as endpoint:
        (pid,) = endpoint.pids
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(OSError, match="refused"), socket.create_connection(endpoint.hosts[0], 1):
        pass


def test_it_ends_when_its_maker_is_killed() -> None:
    """After kill -9 of the process that started it, it leaves by itself."""
    script = (
        "import time\nfrom loadgen.nullbroker import null_broker\n"
        "with null_broker('kafka') as endpoint:\n    print(endpoint.pids[0], flush=True)\n    time.sleep(60)\n"
    )
    maker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert maker.stdout is not None
        pid = int(maker.stdout.readline())
        os.kill(pid, 0)
    finally:
        maker.send_signal(signal.SIGKILL)
        maker.communicate()
    deadline_s = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}/exe").exists()


def test_it_keeps_to_its_cpus() -> None:
    """Pinned clients have their CPUs to themselves."""
    cpu = max(os.sched_getaffinity(0))
    with null_broker("kafka", {cpu}) as endpoint:
        assert os.sched_getaffinity(endpoint.pids[0]) == {cpu}


def test_one_that_is_gone_is_one_clear_error(null_endpoints: dict[str, Endpoint]) -> None:
    """A trial at a null broker that does not answer is a BrokerError like any other."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = replace(null_endpoints["amqp"], hosts=(("127.0.0.1", unused.getsockname()[1]),))
        with pytest.raises(BrokerError):
            run_through(nowhere, "amqp")
