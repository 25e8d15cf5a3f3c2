"""Request-reply: every request is replied to once or given up, by the correlation id that it was sent with."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pika
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verdicts import BUSY, against, due

from loadgen import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.driver import Received, Replying, Target
from loadgen.drivers import load_driver
from loadgen.drivers.rabbitmq_admin import parameters_of
from loadgen.drivers.wire.amqp_frames import correlation_ids
from loadgen.drivers.wire.amqp_requests import NOBODY, identities, reply_queue
from loadgen.errors import ScenarioError
from loadgen.legs import target_of
from loadgen.load import load_scenarios
from loadgen.payload import Payloads
from loadgen.plan import Profile, make_plan
from loadgen.requests import OpenRequests
from loadgen.scenario import Uniform
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadgen.driver import Requester, Responder
    from loadgen.endpoint import BrokerName, Endpoint

SHORT = Profile("test", warmup_s=0.3, duration_s=0.7, repeats=1)
WAIT_S = 60.0
MIXED = Message(size_bytes=Uniform(min_bytes=24, max_bytes=300_000))  # up to three frames of AMQP
SMALL = Message(size_bytes=100)


def scenario_of(broker: BrokerName, knobs: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    """A scenario of requests and replies on one broker."""
    values: dict[str, Any] = {"name": "asked", "question": "?", "pattern": "request_reply", "message": SMALL}
    part = {"rabbitmq": RabbitMQ, "kafka": Kafka}[broker](**(knobs or {}))
    return Scenario(**{**values, "rate": Rate.fixed(400), broker: part, **changes})


def run(endpoint: Endpoint, knobs: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The record of one short trial."""
    plan = make_plan([scenario_of(endpoint.broker, knobs, **changes)], SHORT, brokers=(endpoint.broker,))
    record, outcome = run_trial(plan.trials[0], Setting(endpoint, lambda _: None))
    assert outcome.error is None, outcome.traceback or outcome.error
    return record


@pytest.fixture
def make_target(rabbitmq_endpoint: Endpoint, kafka_endpoint: Endpoint) -> Iterator[Callable[..., Target]]:
    """Makes where requests of two requesters go, and their replies; all of it is deleted after the test."""
    with contextlib.ExitStack() as stack:

        def make(broker: BrokerName, **knobs: Any) -> Target:
            endpoint = rabbitmq_endpoint if broker == "rabbitmq" else kafka_endpoint
            plan = make_plan([scenario_of(broker, knobs, producers=2)], SHORT, brokers=(broker,))
            target = target_of(plan.trials[0], endpoint, f"asked-{uuid4().hex[:12]}")
            admin = load_driver(plan.trials[0].driver).admin(endpoint)
            stack.callback(admin.close)
            for each in (target, target.onward):
                if each is not None:
                    admin.create(each)
                    stack.callback(admin.delete, each)
            return target

        yield make


def connect(target: Target, message: Message, stack: contextlib.ExitStack) -> tuple[list[Requester], Responder]:
    """Two requesters and a responder."""
    driver = load_driver("amqp" if target.endpoint.broker == "rabbitmq" else "kafka")
    assert isinstance(driver, Replying)
    payloads = [Payloads(message, 3, 4, producer=number) for number in range(2)]
    requesters = [driver.requester(target, each) for each in payloads]
    responder = driver.responder(target, 0, 1, payloads[0])
    for each in (*requesters, responder):
        stack.callback(each.close)
    return requesters, responder


def hear(requester: Requester, wanted: int, message: Message, number: int, turn: Callable[[], None]) -> list[int]:
    """The sequence numbers of replies to one requester in the order of arrival, each intact and its own."""
    payloads, heard = Payloads(message, 3, 4, producer=number), []
    end = time.monotonic() + WAIT_S
    while len(heard) < wanted and time.monotonic() < end:
        turn()
        requester.poll(0.01)
        for batch in requester.take_replies():
            parsed = payloads.parse(batch.buffer, batch.starts, batch.sizes)
            assert parsed.intact.all()
            assert set(parsed.producer.tolist()) == {number}
            if batch.answers is not None:
                assert (batch.answers == payloads.identities(0, 1)[0] + parsed.seq.astype(np.uint64)).all()
            heard += parsed.seq.tolist()
    return heard


def answer(responder: Responder) -> None:
    """Reply to whatever has come."""
    for batch in responder.receive(0.01):
        half = len(batch.starts) // 2
        responder.reply(batch, 0, half)
        responder.reply(batch, half, len(batch.starts))
    responder.settle()


# --- pure ---


@given(st.lists(st.integers(0, NOBODY - 1), min_size=1, max_size=50))
def test_a_correlation_id_tells_the_stamp_of_its_request(numbers: list[int]) -> None:
    """Written as text and read again it is the same; what is no such text is nobody's."""
    texts = correlation_ids(np.array(numbers, np.uint64))
    assert [bytes(each).decode() for each in texts] == [f"{number:016x}" for number in numbers]
    buffer = np.concatenate([np.frombuffer(b"zzzz", np.uint8), texts.reshape(-1)])
    spans = np.array([(4 + 16 * row, 20 + 16 * row) for row in range(len(numbers))] + [(0, 0), (0, 16)], np.int64)
    assert identities(buffer, spans).tolist() == [*numbers, NOBODY, NOBODY]


@settings(max_examples=50)
@given(st.data())
def test_each_request_is_replied_to_or_given_up_once(data: st.DataObject) -> None:
    """Whatever the order of replies, of repeated ones and of time passing: it agrees with a table of all requests."""
    requests, timeout_ns, now = OpenRequests(50), 50, 0
    opened: dict[int, int] = {}  # by number, when it was sent
    sent = 0
    for _ in range(data.draw(st.integers(1, 12))):
        now += data.draw(st.integers(0, 40))
        number = data.draw(st.sampled_from([0, 1, 3, 5_000]))
        if number:
            requests.sent(np.arange(sent, sent + number), now)
            opened |= dict.fromkeys(range(sent, sent + number), now)
            sent += number
        seqs = data.draw(st.lists(st.integers(0, sent + 2), max_size=8))
        seen: set[int] = set()
        expected = []
        for seq in seqs:
            in_time = now - opened.get(seq, now) < timeout_ns  # given up or not: nobody may have looked
            expected.append(seq in opened and in_time and seq not in seen)
            seen |= {seq} if in_time else set()
        waited = np.array([now - opened.get(seq, now) for seq in seqs], np.int64)
        assert requests.answered(np.array(seqs, np.int64), waited).tolist() == expected
        for seq in seen:
            opened.pop(seq, None)
        over = sorted(seq for seq, at in opened.items() if now - at >= timeout_ns)
        assert requests.expire(now).tolist() == over  # intended when they have their own number
        for seq in over:
            del opened[seq]
        assert requests.count == len(opened) == sent - requests.replied - requests.timed_out


@pytest.mark.parametrize(
    ("broker", "knobs", "changes", "text"),
    [
        ("rabbitmq", {"driver": "stream"}, {}, "stream: with pattern = request_reply"),
        ("rabbitmq", {"driver": "pika"}, {}, "rabbitmq.driver = pika: cannot do pattern = request_reply"),
        ("rabbitmq", {"queues": 2}, {}, "rabbitmq.exchange, queues"),
        ("rabbitmq", {"reply_to": "direct"}, {"pattern": "one_way"}, "reply_to: is of pattern request_reply"),
        ("rabbitmq", {}, {"pattern": "one_way", "timeout_ms": 5}, "timeout_ms = 5.0: is of pattern request_reply"),
        ("rabbitmq", {}, {"consumers": 0}, "needs responders"),
        ("rabbitmq", {}, {"subscribers": 2}, "each message goes one way"),
        ("kafka", {"group": "share"}, {}, "kafka.group = share"),
        ("kafka", {"group_protocol": "consumer"}, {}, "kafka.group_protocol = consumer: is not for pattern"),
        ("kafka", {"transaction_msgs": 5}, {}, "is not for pattern = request_reply"),
    ],
)
def test_what_cannot_be_is_one_line(
    broker: BrokerName, knobs: dict[str, Any], changes: dict[str, Any], text: str
) -> None:
    """Before any broker is touched, with what was expected."""
    with pytest.raises(ScenarioError, match=text) as caught:
        make_plan([scenario_of(broker, knobs, **changes)], SHORT)
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value) or "drop" in str(caught.value)


# --- on real brokers ---


@pytest.mark.parametrize("message", [SMALL, MIXED], ids=["small", "mixed"])
@pytest.mark.parametrize("knobs", [{"reply_to": "direct"}, {"reply_to": "exclusive"}, {}], ids=str)
def test_replies_find_their_requesters(
    make_target: Callable[..., Target], knobs: dict[str, Any], message: Message
) -> None:
    """Of two requesters each gets the replies to its own requests, once and intact, in any size."""
    target = make_target("rabbitmq" if knobs else "kafka", **knobs)
    count = 300 if message is SMALL else 12
    with contextlib.ExitStack() as stack:
        requesters, responder = connect(target, message, stack)
        for requester in requesters:
            now = time.monotonic_ns()
            requester.send(0, np.full(count, now), now)
        for number, requester in enumerate(requesters):
            heard = hear(requester, count, message, number, lambda: answer(responder))
            assert heard == list(range(count))
            # A reply may come before its request is confirmed; what is waited for is no refusal, and then nothing is.
            assert all(each.error is None for each in requester.flush(5))
            assert not requester.flush(5)


def test_replies_of_kafka_have_a_partition_for_each_requester(make_target: Callable[..., Target]) -> None:
    """The topic for replies has as many partitions as there are requesters, and in each are one's own alone."""
    target = make_target("kafka")
    assert target.onward is not None
    with contextlib.ExitStack() as stack:
        requesters, responder = connect(target, SMALL, stack)
        for number, requester in enumerate(requesters):
            requester.send(0, np.full(20, 1), 2)
            assert len(hear(requester, 20, SMALL, number, lambda: answer(responder))) == 20
        for number in range(2):  # by somebody who is in no group
            reader = load_driver("kafka").consumer(replace(target.onward, group=""), number, 2)
            stack.callback(reader.close)
            found: list[Received] = []
            end = time.monotonic() + WAIT_S
            while not found and time.monotonic() < end:
                found = reader.receive(0.1)
            parsed = [Payloads(SMALL, 3, 4).parse(each.buffer, each.starts, each.sizes) for each in found]
            assert [each.source for each in found] == [number] * len(found)
            assert {origin for each in parsed for origin in each.producer.tolist()} == {number}


@pytest.mark.parametrize("reply_to", ["direct", "exclusive"])
def test_a_client_library_sees_reply_to_and_correlation_id(make_target: Callable[..., Target], reply_to: str) -> None:
    """Pika answers our requests, and asks our responder: both know each other's properties."""
    target = make_target("rabbitmq", reply_to=reply_to)
    with contextlib.ExitStack() as stack:
        (requester, _), responder = connect(target, SMALL, stack)
        (parameters,) = parameters_of(target.endpoint, 0)
        connection = pika.BlockingConnection(parameters)
        stack.callback(connection.close)
        channel = connection.channel()
        responder.close()
        requester.send(0, np.full(3, 1), 2)
        assert [seq for each in requester.flush(WAIT_S) for seq in each.seqs.tolist()] == [0, 1, 2]
        for seq in range(3):
            _, properties, body = channel.basic_get(target.name, auto_ack=True)
            assert properties.correlation_id == f"{seq:016x}"
            prefix = "amq.rabbitmq.reply-to." if reply_to == "direct" else reply_queue(target, 0)
            assert properties.reply_to.startswith(prefix)
            known = pika.BasicProperties(correlation_id=properties.correlation_id)
            channel.basic_publish("", properties.reply_to, body, known)
        assert hear(requester, 3, SMALL, 0, lambda: None) == [0, 1, 2]
        if reply_to == "exclusive":
            with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="exclusive"):
                channel.queue_declare(reply_queue(target, 0), passive=True)
            return
        _, responder = connect(target, SMALL, stack)
        got: list[tuple[str, bytes]] = []
        channel.basic_consume(
            "amq.rabbitmq.reply-to", lambda *told: got.append((told[2].correlation_id, told[3])), auto_ack=True
        )
        asked = pika.BasicProperties(correlation_id=f"{7:016x}", reply_to="amq.rabbitmq.reply-to")
        channel.basic_publish("", target.name, b"x" * 100, asked)
        channel.basic_publish("", target.name, b"nobody is to answer this")
        end = time.monotonic() + WAIT_S
        while not got and time.monotonic() < end:
            answer(responder)
            connection.process_data_events(0.01)
        assert got == [(f"{7:016x}", b"x" * 100)]


@pytest.mark.parametrize("knobs", [{"reply_to": "direct"}, {"reply_to": "exclusive"}, {}], ids=str)
def test_a_trial_accounts_for_every_request(
    rabbitmq_endpoint: Endpoint, kafka_endpoint: Endpoint, knobs: dict[str, Any]
) -> None:
    """Sent is replied to; the round trip has a response time for each request of the window, and a first leg."""
    endpoint = rabbitmq_endpoint if knobs else kafka_endpoint
    record = run(endpoint, knobs or {"partitions": 2}, producers=2, consumers=2, duration_s=2)
    sent, unsent = record["sent"], 920 - record["sent"]  # of a machine that is too busy
    assert due(record) == 920
    assert sent > 0
    assert record["requests"] == {
        "timeout_ms": 30_000, "replied": sent, "timed_out": 0, "unanswered": 0, "late_replies": 0,
    }  # fmt: skip
    assert [record[name] for name in ("received", "lost", "duplicated", "corrupted", "foreign")] == [sent, 0, 0, 0, 0]
    assert (record["handled"]["received"], record["handled"]["lost"]) == (sent, 0)
    told = record["latency_ns"]
    assert told["rtt"]["count"] == told["ack"]["count"] == 400 * record["window_s"]
    assert told["rtt_service"]["count"] == told["hop"]["count"] == told["rtt"]["count"] - unsent
    assert told["e2e"] is None
    assert told["rtt"]["min"] >= told["rtt_service"]["min"] > 0
    assert told["hop"]["p50"] < told["rtt"]["p50"]
    assert record["broker_counts"]["depth_at_end"] == 0
    failed = against(record, BUSY)
    assert not failed, failed


def test_in_a_closed_loop_so_many_requests_are_open(rabbitmq_endpoint: Endpoint) -> None:
    """With one request in flight a requester waits for each reply before it asks again."""
    record = run(rabbitmq_endpoint, rate=Rate.saturate(), requests_in_flight=1, producers=2, warmup_s=0, duration_s=3)
    assert record["sent"] == record["requests"]["replied"] == record["received"] > 0
    # Sent is read after received: a watcher that is held back between the two sees more now and then.
    assert record["under_way"]["mean_msgs"] <= 2
    assert (record["latency_ns"]["rtt"], record["latency_ns"]["ack"]) == (None, None)
    assert 0 < record["latency_ns"]["rtt_service"]["count"] <= record["sent"]
    assert record["goodput_msgs_per_s"] == record["achieved_msgs_per_s"] > 0


def test_requests_that_wait_too_long_are_given_up(rabbitmq_endpoint: Endpoint) -> None:
    """A responder works longer than requesters wait: each request counts as timed out, and its reply as late."""
    record = run(rabbitmq_endpoint, rate=Rate.fixed(10), think_ms=80, timeout_ms=20, duration_s=2)
    requests = record["requests"]
    assert due(record) == 23
    assert requests["timed_out"] == record["sent"] > 0
    assert requests["replied"] + requests["timed_out"] + requests["unanswered"] == record["sent"]
    assert record["received"] == requests["late_replies"] > 0
    assert record["goodput_msgs_per_s"] == 0
    assert record["latency_ns"]["rtt"]["min"] >= 20e6  # so long they have waited at least
    assert any(f"{record['sent']} requests timed out" in each for each in record["verdict"]["reasons"])


def test_the_scenario_asks_both_brokers() -> None:
    """Both ways of RabbitMQ and Kafka's, at each rate, with 30 s of patience."""
    (scenario,) = load_scenarios(Path("scenarios/request_reply.py"))
    plan = make_plan([scenario], SHORT)
    ways = {(each.broker, each.settings.get("reply_to"), each.pattern.timeout_ms) for each in plan.trials}
    assert ways == {("rabbitmq", "direct", 30_000), ("rabbitmq", "exclusive", 30_000), ("kafka", None, 30_000)}
    assert "2 ⇄ 1" in plan.trials[0].describe()
