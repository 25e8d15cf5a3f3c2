"""Consume, transform, produce: a chain's books agree, and what a processor that dies leaves behind is as promised."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import crashed_transactions
import numpy as np
import pytest
from kafkawire import OFFSET_COMMIT, watched
from verdicts import BUSY, against, due

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.driver import Received
from loadgen.drivers import load_driver
from loadgen.drivers.memory import memory_endpoint
from loadgen.errors import ScenarioError
from loadgen.hands import forkserver
from loadgen.ledger import ReceivedBook, SentBook, settle
from loadgen.legs import target_of
from loadgen.payload import Payloads
from loadgen.plan import Profile, make_plan
from loadgen.processed import TRAILER_BYTES, Processed, Results
from loadgen.processing import Processor
from loadgen.scenario import Uniform
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from loadgen.driver import Target
    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.ledger import Account

SHORT = Profile("test", warmup_s=0.3, duration_s=1.4, repeats=1)
SMALL = Message(size_bytes=100)
WAIT_S = 60.0
END_TRANSACTION = 26
COUNT, COMMITTED, DONE = 300, 100, 200  # messages; those that a processor has committed when it dies, and processed
WAYS: list[dict[str, Any]] = [
    {},
    {"processing_guarantee": "at_least_once", "commit_interval_ms": 50},
    {"processing_guarantee": "exactly_once", "commit_interval_ms": 50},
]


def scenario_of(broker: BrokerName, knobs: dict[str, Any], **changes: Any) -> Scenario:
    """A scenario of processing on one broker."""
    values: dict[str, Any] = {"name": "processed", "question": "?", "pattern": "process", "message": SMALL}
    part = {"rabbitmq": RabbitMQ, "kafka": Kafka}[broker](**knobs)
    return Scenario(**{**values, "rate": Rate.fixed(300), broker: part, **changes})


def test_a_result_is_known_as_made_of_its_message() -> None:
    """In every size it is intact as it was made; with another's trailer, without one or changed it is not."""
    for size in (24, 100, Uniform(min_bytes=24, max_bytes=500)):
        message = Message(size_bytes=size)
        source, results, reader = Payloads(message, 1, 2, 3), Results(message, 1, 2), Processed(message, 1, 2)
        flat, offsets = source.pack(5, np.arange(4), 9)
        batch = Received(flat, offsets[:-1], np.diff(offsets), 0, 0, 0)
        results.process(70, batch, np.array([1, 3]), 11)
        made, bounds = results.pack(70, np.zeros(2, np.int64), 0)
        assert np.diff(bounds).tolist() == (np.diff(offsets)[[1, 3]] + TRAILER_BYTES).tolist()
        parsed = reader.parse(made, bounds[:-1], np.diff(bounds))
        assert parsed.intact.all()
        assert (parsed.seq.tolist(), parsed.producer.tolist(), parsed.intended_ns.tolist()) == ([6, 8], [3, 3], [1, 3])
        swapped = made.copy()
        swapped[bounds[1] - 16 : bounds[1]] = made[bounds[2] - 16 :]
        assert reader.parse(swapped, bounds[:-1], np.diff(bounds)).intact.tolist() == [False, True]
        assert not reader.parse(flat, offsets[:-1], np.diff(offsets)).intact.any()


@pytest.mark.parametrize(
    ("broker", "knobs", "changes", "text"),
    [
        ("kafka", {"processing_guarantee": "exactly_once"}, {"pattern": "one_way"}, "processing_guarantee: is of"),
        ("kafka", {"driver": "confluent"}, {}, "cannot do pattern = process"),
        ("kafka", {}, {"processors": 2}, "some would stay idle"),
        ("kafka", {"transaction_msgs": 5}, {}, "kafka.transaction_msgs = 5: is not for"),
        ("kafka", {"commit_mode": "auto"}, {}, "kafka.commit_mode = auto: .* have sync .* or no commit_mode"),
        (
            "kafka",
            {"isolation_level": "read_uncommitted", "processing_guarantee": ["at_least_once", "exactly_once"]},
            {},
            "kafka.isolation_level = read_uncommitted: .* read_committed with exactly_once",
        ),
        ("rabbitmq", {}, {"pattern": "one_way", "processors": 2}, "processors = 2: is of pattern process"),
        ("rabbitmq", {}, {"think_ms": 2}, "do not think"),
        ("rabbitmq", {}, {"durability": Durability.NONE}, "durability = none"),
    ],
)
def test_what_cannot_be_is_one_line(broker: BrokerName, knobs: dict[str, Any], changes: Any, text: str) -> None:
    """Before any broker is touched."""
    with pytest.raises(ScenarioError, match=text):
        make_plan([scenario_of(broker, knobs, **changes)], SHORT)


def test_what_the_pattern_decides_may_be_said_and_is_what_runs() -> None:
    """Asked for or not, both legs have the same; with at_least_once consumers of results read what they were told."""
    said = {"commit_mode": "sync", "partitioner": "sticky", "isolation_level": "read_committed"}
    once = {"processing_guarantee": "exactly_once"}
    for knobs in (once, once | said):
        (trial,) = make_plan([scenario_of("kafka", knobs)], SHORT, brokers=("kafka",)).trials
        target = target_of(trial, memory_endpoint("kafka"), "x")
        assert target.onward is not None
        assert target.settings["commit_mode"] == "sync"
        assert {"partitioner": "sticky", "isolation_level": "read_committed"}.items() <= target.onward.settings.items()
    loose = {"processing_guarantee": "at_least_once", "isolation_level": "read_uncommitted"}
    (trial,) = make_plan([scenario_of("kafka", loose)], SHORT, brokers=("kafka",)).trials
    onward = target_of(trial, memory_endpoint("kafka"), "x").onward
    assert onward is not None
    assert onward.settings["isolation_level"] == "read_uncommitted"


@pytest.mark.parametrize("knobs", WAYS, ids=str)
def test_a_chain_loses_and_doubles_nothing(
    rabbitmq_endpoint: Endpoint, kafka_endpoint: Endpoint, knobs: dict[str, Any]
) -> None:
    """Consumers receive a result of each message once, counted from its source; both legs are empty at the end."""
    endpoint = kafka_endpoint if knobs else rabbitmq_endpoint
    chained = {**knobs, "partitions": 2} if knobs else {"prefetch": 50, "ack_every": 1}
    plan = make_plan([scenario_of(endpoint.broker, chained, processors=2)], SHORT, brokers=(endpoint.broker,))
    record, outcome = run_trial(plan.trials[0], Setting(endpoint, lambda _: None))
    assert outcome.error is None, outcome.traceback or outcome.error
    sent = record["sent"]
    assert due(record) == 510
    assert [record[name] for name in ("received", "lost", "duplicated", "corrupted", "foreign")] == [sent, 0, 0, 0, 0]
    assert (record["handled"]["received"], record["handled"]["lost"], record["processors"]) == (sent, 0, 2)
    assert record["latency_ns"]["e2e"]["p50"] > record["latency_ns"]["hop"]["p50"] > 0
    failed = against(record, BUSY)
    assert not failed, failed


# --- a processor that dies ---


def process(target: Target, until: int, processor: Processor) -> None:
    """Process until so many results have been sent by this one."""
    end = time.monotonic() + WAIT_S
    while processor.sent < until and time.monotonic() < end:
        for batch in processor.receive():
            processor.forward(batch)
    assert processor.sent == until, target.name


def die_in_the_middle(target: Target, told: Connection) -> None:
    """A processor that commits some, has the results of more stored, and then waits to be killed."""
    processor = Processor(_driver(target), target, 0, 1, Payloads(SMALL, 3, 4))
    process(target, COMMITTED, processor)
    processor.commit()
    process(target, DONE, processor)
    if target.settings.get("processing_guarantee") == "exactly_once":  # nothing of them is confirmed before all are
        while processor.producer._sender.held_bytes:  # type: ignore[attr-defined]
            processor.producer.poll(0.01)
    else:
        processor.producer.flush(WAIT_S)
    told.send(processor.sent)
    time.sleep(WAIT_S)


def _driver(target: Target) -> Any:
    return load_driver("amqp" if target.endpoint.broker == "rabbitmq" else "kafka")


def run_and_kill(target: Target) -> None:
    """Run a processor in a process of its own, until it has done what it is to do, and kill it."""
    context = forkserver()  # it has imported most of what is needed
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=die_in_the_middle, args=(target, there), daemon=True)
    child.start()
    try:
        assert here.poll(WAIT_S)
        assert here.recv() == DONE
    finally:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join(WAIT_S)


def finish(target: Target) -> Account:
    """Process the rest by another processor, receive all results, and lay the books side by side."""
    assert target.onward is not None
    payloads, sent, received = Processed(SMALL, 3, 4), SentBook(0), ReceivedBook()
    sent.sent(COUNT)
    sent.confirmed(np.arange(COUNT))
    with contextlib.ExitStack() as stack:
        processor = Processor(_driver(target), target, 0, 1, Payloads(SMALL, 3, 4))
        stack.callback(processor.close)
        consumer = _driver(target).consumer(target.onward, 0, 1)
        stack.callback(consumer.close)
        end = time.monotonic() + WAIT_S
        while settle([sent], [received]).distinct < COUNT and time.monotonic() < end:
            for batch in processor.receive():
                processor.forward(batch)
            processor.turn()
            for batch in consumer.receive(0.01):
                received.receive(
                    payloads.parse(batch.buffer, batch.starts, batch.sizes), batch.source, batch.redelivered
                )
            consumer.settle()
        processor.commit()
    return settle([sent], [received])


@contextlib.contextmanager
def filled(target: Target) -> Iterator[None]:
    """Both legs of a chain, with COUNT messages in the first, removed in the end."""
    assert target.onward is not None
    with contextlib.ExitStack() as stack:
        admin = _driver(target).admin(target.endpoint)
        stack.callback(admin.close)
        for each in (target, target.onward):
            admin.create(each)
            stack.callback(admin.delete, each)
        source = _driver(target).producer(target, Payloads(SMALL, 3, 4))
        source.send(0, np.full(COUNT, 1), 2)
        assert sum(len(each.seqs) for each in source.flush(WAIT_S)) == COUNT
        source.close()
        yield


@pytest.mark.parametrize("interval_ms", [1, 3_600_000])
@pytest.mark.parametrize("knobs", WAYS[1:], ids=lambda knobs: knobs["processing_guarantee"])
def test_commits_are_an_interval_apart(kafka_endpoint: Endpoint, knobs: dict[str, Any], interval_ms: int) -> None:
    """A proxy sees one for each batch where the interval is over by then, where it never is one for all at the end."""
    chained = {**knobs, "commit_interval_ms": interval_ms, "max_poll_records": 50}
    (trial,) = make_plan([scenario_of("kafka", chained)], SHORT, brokers=("kafka",)).trials
    target = target_of(trial, kafka_endpoint, f"processed-{uuid4().hex[:12]}")
    assert target.onward is not None
    api = END_TRANSACTION if knobs["processing_guarantee"] == "exactly_once" else OFFSET_COMMIT
    with filled(target), watched(kafka_endpoint) as (by_proxy, seen):
        way = replace(target, endpoint=by_proxy, onward=replace(target.onward, endpoint=by_proxy))
        processor = Processor(_driver(target), way, 0, 1, Payloads(SMALL, 3, 4))
        turns, end = 0, time.monotonic() + WAIT_S
        while processor.sent < COUNT and time.monotonic() < end:
            batches = processor.receive()
            for batch in batches:
                processor.forward(batch)
            time.sleep(0.002)
            processor.turn()
            turns += bool(batches)
        assert processor.sent == COUNT
        assert turns >= COUNT / 50
        before = sum(each.api == api for each in seen.requests)
        processor.commit()
        processor.close()
        commits = sum(each.api == api for each in seen.requests)
    assert (before, commits) == ((turns, turns) if interval_ms == 1 else (0, 1))


@pytest.mark.parametrize("knobs", WAYS, ids=str)
def test_a_processor_killed_in_the_middle(
    rabbitmq_endpoint: Endpoint, kafka_endpoint: Endpoint, knobs: dict[str, Any]
) -> None:
    """Exactly once: no result is lost or comes twice. At least once: those not committed come twice, none is lost."""
    endpoint = kafka_endpoint if knobs else rabbitmq_endpoint
    chained = {**knobs, "max_poll_records": 50} if knobs else {"prefetch": DONE - COMMITTED, "ack_every": 1}
    plan = make_plan([scenario_of(endpoint.broker, chained)], SHORT, brokers=(endpoint.broker,))
    target = target_of(plan.trials[0], endpoint, f"processed-{uuid4().hex[:12]}")
    with filled(target):
        run_and_kill(target)
        account = finish(target)
    assert (account.distinct, account.lost, account.corrupted, account.foreign) == (COUNT, 0, 0, 0)
    is_exact = knobs.get("processing_guarantee") == "exactly_once"
    assert account.duplicated == (0 if is_exact else DONE - COMMITTED)


def test_a_processor_that_dies_at_every_point_of_its_transaction(kafka_endpoint: Endpoint) -> None:
    """Each result is there once, whatever was left open; aborted ones were written, and offsets tell the same."""
    audit = crashed_transactions.crash_often(kafka_endpoint, len(crashed_transactions.POINTS))
    assert audit.told() == []
    assert audit.committed == dict.fromkeys(range(audit.messages), 1)
    assert audit.aborted >= 3 * crashed_transactions.BATCH, "but for a commit that was asked for, nothing can be kept"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"committed": Counter(dict.fromkeys(range(59), 1))}, "1 of 60 messages have no committed result"),
        ({"committed": Counter({**dict.fromkeys(range(60), 1), 7: 2})}, "1 messages have several committed results"),
        ({"strangers": 2}, "2 committed results are damaged"),
        ({"processed": 40}, "offset 40 of 60 is committed"),
        ({"end": 86}, "the offsets tell 6 marks of ended transactions, there were 4"),
    ],
)
def test_an_audit_tells_what_is_wrong(changed: dict[str, Any], text: str) -> None:
    """A result that is missing, double or strange, and offsets that tell another story; nothing where all is well."""
    known: dict[str, Any] = {
        "messages": 60, "crashes": 1, "committed": Counter(dict.fromkeys(range(60), 1)), "strangers": 0, "stored": 80,
        "end": 84, "processed": 60, "commits": 3, "took_s": 1.0,
    }  # fmt: skip
    assert crashed_transactions.Audit(**known).told() == []
    (line,) = crashed_transactions.Audit(**known | changed).told()
    assert text in line
