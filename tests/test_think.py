"""Think time: a batch of n messages is n pieces of work, on every broker alike, and what is done is acknowledged."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S
from verdicts import due

from loadgen import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.knobs import resolve
from loadgen.payload import Payloads
from loadgen.plan import Profile, make_plan
from loadgen.think import MS_NS, Think, Worker
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Consumer
    from loadgen.endpoint import BrokerName, Endpoint

SHORT = Profile("test", warmup_s=0.25, duration_s=0.5, repeats=1)
THINKS = st.sampled_from([Think("fixed", 2.5), Think("exponential", 2.5)])


@given(THINKS, st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20 * MS_NS)), min_size=1, max_size=20))
def test_work_begins_when_it_came_or_the_one_before_ended(think: Think, batches: list[tuple[int, int]]) -> None:
    """One message at a time, none before it came, and no pause while one waits."""
    worker, came_ns, free_ns = Worker(think, [1, 2]), 0, 0
    for count, gap_ns in batches:
        came_ns += gap_ns
        begins, ends = worker.take(count, came_ns)
        assert begins[0] == max(came_ns, free_ns)
        assert (begins[1:] == ends[:-1]).all()
        assert (ends >= begins).all()
        free_ns = int(ends[-1])


@given(THINKS, st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_batches_do_not_change_the_work(think: Think, counts: list[int]) -> None:
    """However the same messages are cut into batches, each takes as long and ends at the same time."""
    together = Worker(think, [7]).take(sum(counts), 1_000)[1]
    apart = Worker(think, [7])
    ends = np.concatenate([apart.take(count, 1_000)[1] for count in counts])
    assert np.abs(ends - together).max() <= len(counts)  # each batch rounds to whole ns


def test_thinking_takes_what_was_asked_for() -> None:
    """Fixed is always the same, exponential has that mean and its deviation, and a seed repeats it."""
    times = {
        kind: np.diff(Worker(Think(kind, 3.0), [5]).take(50_000, 0)[1]) / MS_NS for kind in ("fixed", "exponential")
    }
    assert set(times["fixed"]) == {3.0}
    assert abs(times["exponential"].mean() / 3 - 1) < 0.03
    assert abs(times["exponential"].std() / 3 - 1) < 0.03
    again = np.diff(Worker(Think("exponential", 3.0), [5]).take(50_000, 0)[1]) / MS_NS
    assert (again == times["exponential"]).all()


@pytest.mark.parametrize(
    ("broker", "part"),
    [
        ("rabbitmq", RabbitMQ(prefetch=10, ack_every=1)),
        ("kafka", Kafka(max_poll_records=500)),
        ("kafka", Kafka(driver="confluent", max_poll_records=7)),
        ("kafka", Kafka(group="share", max_poll_records=50)),
    ],
    ids=["amqp", "kafka", "confluent", "share"],
)
def test_no_consumer_is_faster_than_its_work(
    endpoints: dict[BrokerName, Endpoint], broker: BrokerName, part: Any
) -> None:
    """At 500 messages a second and 5 ms each a message waits for all before it, whatever batches a broker hands out.

    Message i of 375 arrives at 2 ms · i and its turn comes at 5 ms · i at the earliest: these are bounds, and hold on
    any machine.
    """
    scenario = Scenario(
        name="slow", question="?", rate=Rate.fixed(500), message=Message(size_bytes=200), think_ms=5, **{broker: part}
    )
    trial = make_plan([scenario], SHORT, brokers=(broker,)).trials[0]
    record, outcome = run_trial(trial, Setting(endpoints[broker], lambda _: None))
    assert outcome.error is None, outcome.traceback
    assert record["think"] == {"kind": "fixed", "mean_ms": 5.0, "spread": 1.0}
    assert due(record) == 375
    assert (record["received"], record["lost"], record["duplicated"]) == (record["sent"], 0, 0)
    (received,) = [result.per_second.get("received", [0]) for result in outcome.results if result.role == "consumer"]
    assert max(received) <= 201
    assert record["latency_ns"]["e2e"]["p50"] >= 700 * MS_NS
    assert record["latency_ns"]["e2e"]["max"] >= 1_100 * MS_NS
    assert record["broker_counts"]["depth_at_end"] == 0


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_a_closed_loop_waits_for_the_work(endpoints: dict[BrokerName, Endpoint], broker: BrokerName) -> None:
    """Saturated producers keep to what consumers get done: no backlog builds up that takes long to end."""
    part: Any = {"rabbitmq": RabbitMQ(prefetch=10, ack_every=1), "kafka": Kafka(partitions=2)}[broker]
    scenario = Scenario(
        name="busy", question="?", rate=Rate.saturate(), consumers=2, think_ms=1, think="exponential", **{broker: part}
    )
    record, outcome = run_trial(
        make_plan([scenario], SHORT, brokers=(broker,)).trials[0], Setting(endpoints[broker], lambda _: None)
    )
    assert outcome.error is None, outcome.traceback
    assert record["received"] == record["sent"] > 0
    assert record["under_way"]["max_msgs"] <= 1_000


@pytest.fixture
def queue(rabbitmq_endpoint: Endpoint) -> Iterator[Target]:
    """A queue of ten messages, of which a consumer may have five at once."""
    settings = resolve("rabbitmq", {"prefetch": 5, "ack_every": 1}, "broker", "default") | {"exchange": "default"}
    target = Target(rabbitmq_endpoint, f"think-{secrets.token_hex(6)}", settings)
    driver = load_driver("amqp")
    admin = driver.admin(rabbitmq_endpoint)
    admin.create(target)
    producer = driver.producer(target, Payloads(Message(size_bytes=100), 1, 2))
    producer.send(0, np.full(10, 1), 2)
    producer.flush(10)
    producer.close()
    yield target
    admin.delete(target)
    admin.close()


@pytest.mark.parametrize("name", ["amqp", "pika", "pika-blocking", "aio-pika"])
def test_what_is_done_of_a_batch_is_acknowledged(queue: Target, name: str) -> None:
    """The broker hands out as many more as were settled, while the rest of the batch is still being worked on."""
    driver = load_driver(name)
    admin, consumer = driver.admin(queue.endpoint), driver.consumer(queue, 0, 1)
    assert taken(consumer, 5) == 5
    assert admin.depth(queue) == 5
    consumer.settle(2)
    assert taken(consumer, 2) == 2
    assert admin.depth(queue) == 3
    consumer.close()
    deadline_s = time.monotonic() + PATIENCE_S
    while admin.depth(queue) < 8 and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert admin.depth(queue) == 8
    admin.close()


def taken(consumer: Consumer, count: int) -> int:
    """Receive until so many have come."""
    got, deadline_s = 0, time.monotonic() + PATIENCE_S
    while got < count and time.monotonic() < deadline_s:
        got += sum(len(batch.starts) for batch in consumer.receive(0.1))
    return got
