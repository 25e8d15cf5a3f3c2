"""RabbitMQ's limits, lifetimes, failures and priorities: as the broker tells them, and as they show in what comes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pytest
from aio_pika import IncomingMessage
from amqpwire import silenced
from patience import PATIENCE_S, until
from pika import exceptions, spec
from pika.frame import decode_frame

from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.rabbitmq_admin import RabbitMQAdmin, connect
from loadgen.drivers.rabbitmq_management import in_path, management_request
from loadgen.drivers.rabbitmq_topology import Topology
from loadgen.errors import ScenarioError
from loadgen.knobs import points, resolve
from loadgen.payload import Payloads
from loadgen.plan import Profile, make_plan
from loadgen.scenario import Message, RabbitMQ, Rate, Scenario
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Consumer, Producer
    from loadgen.endpoint import Endpoint

DRIVERS = ("amqp", "pika", "pika-blocking", "aio-pika")
PAYLOADS = Payloads(Message(size_bytes=100), seed=1, token=2)


class Bench:
    """Targets, made and removed, with the clients that use them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.closing = contextlib.ExitStack()
        self.admin = self.closing.enter_context(contextlib.closing(RabbitMQAdmin(endpoint)))

    def target(self, durability: str = "broker", *, subscribers: int = 1, **knobs: Any) -> Target:
        """A fresh one, of validated knobs."""
        settings = resolve("rabbitmq", knobs, durability, "default")
        target = Target(self.endpoint, f"knobs-{uuid4().hex[:8]}", settings, subscribers=subscribers)
        self.admin.create(target)
        self.closing.callback(self.admin.delete, target)
        return target

    def producer(self, target: Target, driver: str = "amqp") -> Producer:
        """One that is closed in the end."""
        made = load_driver(driver).producer(target, PAYLOADS)
        self.closing.callback(made.close)
        return made

    def consumer(self, target: Target, driver: str = "amqp") -> Consumer:
        """One that is closed in the end."""
        made = load_driver(driver).consumer(target, 0, 1)
        self.closing.callback(made.close)
        return made


@pytest.fixture
def bench(rabbitmq_endpoint: Endpoint) -> Iterator[Bench]:
    """What a test opens is closed in the opposite order."""
    made = Bench(rabbitmq_endpoint)
    with made.closing:
        yield made


def send(producer: Producer, count: int, first: int = 0) -> dict[int, str | None]:
    """Messages first …, each with what the broker said of it."""
    settled, at, deadline = [], first, time.monotonic() + PATIENCE_S
    while at < first + count:
        assert time.monotonic() < deadline, "the producer takes no more"
        if number := min(producer.room_msgs, first + count - at, 10):
            now = time.monotonic_ns()
            producer.send(at, np.full(number, now), now)
            at += number
        settled += producer.poll(0 if producer.room_msgs else 0.1)
    settled += producer.flush(PATIENCE_S)
    return {seq: each.error for each in settled for seq in each.seqs.tolist()}


def take(consumer: Consumer, count: int) -> list[tuple[int, bool]]:
    """At least so many deliveries, each settled: number and redelivered flag; a little longer, for one too many."""
    got: list[tuple[int, bool]] = []
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        batches = consumer.receive(0.1)
        for batch in batches:
            parsed = PAYLOADS.parse(batch.buffer, batch.starts, batch.sizes)
            assert parsed.intact.all()
            again = np.zeros(len(parsed.seq), np.bool_) if batch.redelivered is None else batch.redelivered
            got += zip(parsed.seq.tolist(), again.tolist(), strict=True)
        consumer.settle()
        if len(got) >= count and not batches:
            return got
    raise AssertionError(f"{len(got)} of {count} came")


def dead(bench: Bench, target: Target) -> dict[str, list[int]]:
    """The numbers of the messages that the dead-letter queues hold, by reason, in order."""
    found: dict[str, list[int]] = {}
    for letter in bench.admin.dead_letters(target):
        buffer = np.frombuffer(letter.body, np.uint8)
        parsed = PAYLOADS.parse(buffer, np.zeros(1, np.int64), len(buffer))
        assert parsed.intact.all()
        found.setdefault(letter.reason, []).append(int(parsed.seq[0]))
    return {reason: sorted(seqs) for reason, seqs in found.items()}


def removed(bench: Bench, target: Target) -> dict[str, int]:
    """The broker's own counts, of what it removed at all."""
    counts = bench.admin.removed(target)
    assert counts is not None
    return {reason: count for reason, count in counts.items() if count}


def test_queues_have_the_arguments_that_were_asked_for(bench: Bench) -> None:
    """By the broker's own view: each knob of a queue is an argument of it, and nothing else is."""
    knobs: dict[str, Any] = {
        "max_length": 50, "max_length_bytes": 60_000, "overflow": "reject-publish-dlx", "message_ttl_ms": 7_000,
        "expires_ms": 60_000, "dead_letter": True, "priorities": 6,
    }  # fmt: skip
    target = bench.target(**knobs)
    told = bench.admin.effective(target)
    assert told["source"] == "management API"
    assert told["arguments"] == {
        "x-queue-type": "classic", "x-max-length": 50, "x-max-length-bytes": 60_000, "x-message-ttl": 7_000,
        "x-overflow": "reject-publish-dlx", "x-expires": 60_000, "x-max-priority": 5,
        "x-dead-letter-exchange": f"{target.name}-dead", "x-dead-letter-routing-key": f"{target.name}-dead-s000",
    }  # fmt: skip
    quorum = bench.target("flushed", delivery_limit=4, max_length=9)
    assert bench.admin.effective(quorum)["arguments"] == {
        "x-queue-type": "quorum", "x-delivery-limit": 4, "x-max-length": 9,
    }  # fmt: skip
    for queue_type in ("classic", "quorum"):
        plain = bench.admin.effective(bench.target(queue_type=queue_type))
        assert (plain["type"], plain["arguments"]) == (queue_type, {"x-queue-type": queue_type})


@pytest.mark.parametrize("is_durable", [True, False])
def test_queues_are_durable_or_not(bench: Bench, is_durable: bool) -> None:
    """By the broker's own view, those for dead letters as well; what is sent comes either way."""
    target = bench.target("none", durable=is_durable, dead_letter=True)
    told = bench.admin.effective(target)
    assert (told["source"], told["durable"]) == ("management API", is_durable)
    (dead_queue,) = Topology(target).dead_queues()
    path = f"queues/{in_path(bench.endpoint.virtual_host)}/{dead_queue}"
    assert management_request(bench.endpoint, path)["durable"] is is_durable
    send(bench.producer(target), 20)
    assert len(take(bench.consumer(target), 20)) == 20


def test_an_auto_delete_queue_goes_with_its_last_consumer(bench: Bench) -> None:
    """By the broker's own view; one of two consumers keeps it. Then it holds nothing, and deleting it is no error."""
    target = bench.target(auto_delete=True)
    assert bench.admin.effective(target)["auto_delete"] is True
    assert bench.admin.effective(bench.target())["auto_delete"] is False
    send(bench.producer(target), 20)
    first, second = (load_driver("amqp").consumer(target, number, 2) for number in range(2))
    assert len(take(first, 20)) == 20  # prefetch = 100
    first.close()
    with contextlib.closing(connect(bench.endpoint, 0)) as connection:
        assert until(lambda: declared(connection, target.name) == 1)
        second.close()
        assert until(lambda: declared(connection, target.name) is None)
    assert bench.admin.depth(target) == 0


def declared(connection: Any, queue: str) -> int | None:
    """How many consumers the queue has; None where it is not there."""
    try:
        return int(connection.channel().queue_declare(queue, passive=True).method.consumer_count)
    except exceptions.ChannelClosedByBroker:
        return None


def test_a_trial_with_auto_delete_queues_is_complete(bench: Bench) -> None:
    """Queues that have gone with their subscribers hold nothing; each got all, and nothing is left behind."""
    part = RabbitMQ(exchange="fanout", auto_delete=True)
    scenario = Scenario(name="gone", question="?", rate=Rate.fixed(200), subscribers=2, rabbitmq=part)
    (trial,) = make_plan([scenario], Profile("test", 0.3, 0.7, 1), brokers=("rabbitmq",)).trials
    record, outcome = run_trial(trial, Setting(bench.endpoint, lambda _: None))
    assert outcome.error is None
    assert record["settings"]["auto_delete"] is True
    assert record["received"] == 2 * record["sent"] > 0
    assert (record["lost"], record["broker_counts"]["depth_at_end"], record.get("left_behind")) == (0, 0, None)


@pytest.mark.parametrize("durability", ["broker", "flushed"])
@pytest.mark.parametrize("limit", [{"max_length": 5}, {"max_length_bytes": 550}], ids=["messages", "bytes"])
def test_a_full_queue_drops_its_oldest(bench: Bench, durability: str, limit: dict[str, int]) -> None:
    """All are confirmed, the broker counts what it dropped, and the last five are what comes."""
    target = bench.target(durability, **limit)
    assert set(send(bench.producer(target), 30).values()) == {None}
    assert removed(bench, target) == {"maxlen": 25}
    assert [seq for seq, _ in take(bench.consumer(target), 5)] == list(range(25, 30))


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_full_queue_refuses(bench: Bench, driver: str) -> None:
    """The producer is told of each by a nack; with a dead-letter exchange the refused ones are there, and no others."""
    target = bench.target(max_length=5, overflow="reject-publish-dlx", dead_letter=True)
    said = send(bench.producer(target, driver), 30)
    refused = [seq for seq, error in said.items() if error == "nack"]
    assert len(said) == 30
    assert 0 < len(refused) <= 25
    assert bench.admin.depth(target) == 30 - len(refused)
    assert removed(bench, target) == {"maxlen": len(refused)}
    assert dead(bench, target) == {"maxlen": sorted(refused)}
    quorum = bench.target("flushed", max_length=5, overflow="reject-publish")
    publisher = bench.producer(quorum, driver)
    first = send(publisher, 20)  # it refuses once the producer has been told that it is full
    errors = Counter([*first.values(), *send(publisher, 20, first=20).values()])
    assert errors["nack"] >= 15
    assert errors[None] == bench.admin.depth(quorum) == 40 - errors["nack"]


@pytest.mark.parametrize("durability", ["broker", "flushed"])
def test_messages_expire(bench: Bench, durability: str) -> None:
    """After their time to live they are in the dead-letter queue, where they stay, and in no other."""
    target = bench.target(durability, message_ttl_ms=50, dead_letter=True)
    send(bench.producer(target), 20)
    assert until(lambda: bench.admin.depth(target) == 0 and removed(bench, target) == {"expired": 20})
    assert dead(bench, target) == {"expired": list(range(20))}
    assert dead(bench, target) == {}


def test_a_queue_expires(bench: Bench) -> None:
    """One that nobody uses is gone after its time."""
    target = bench.target()
    short = Target(target.endpoint, f"{target.name}-short", {**target.settings, "expires_ms": 100})
    bench.admin.create(short)
    with contextlib.closing(connect(bench.endpoint, 0)) as connection:

        def is_gone() -> bool:
            channel = connection.channel()
            try:
                channel.queue_declare(short.name, passive=True)
            except exceptions.ChannelClosedByBroker as error:
                return bool(error.reply_code == 404)
            channel.close()
            return False

        assert until(is_gone, every_s=0.4)  # asking for it is using it


@pytest.mark.parametrize(("ack_every", "left"), [(1, 30), (10, 0)])
def test_aio_pikas_messages_leave_their_process_where_each_is_acknowledged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ack_every: int, left: int
) -> None:
    """With `ack_every` 1 each by itself, as its documentation shows; with more, so many at once and none that way."""
    entered: list[int | None] = []
    process = IncomingMessage.process

    def noted(message: IncomingMessage, **given: Any) -> Any:
        entered.append(message.delivery_tag)
        return process(message, **given)

    monkeypatch.setattr(IncomingMessage, "process", noted)
    target = bench.target(ack_every=ack_every)
    send(bench.producer(target), 30)
    consumer = bench.consumer(target, "aio-pika")
    assert len(take(consumer, 30)) == 30
    consumer.close()
    assert len(entered) == left
    assert bench.admin.depth(target) == 0


@pytest.mark.parametrize("driver", DRIVERS)
def test_messages_fail_at_the_consumer(bench: Bench, driver: str) -> None:
    """Every 10th comes twice, marked; every 25th once and is dead-lettered; every 20th until the limit ends it."""
    target = bench.target(
        "flushed", dead_letter=True, delivery_limit=2, requeue_every=10, fail_every=20, reject_every=25
    )
    send(bench.producer(target), 100)
    rejected = [24, 49, 74, 99]
    failing = [19, 39, 59, 79]
    requeued = [9, 29, 69, 89]
    consumer = bench.consumer(target, driver)
    got = take(consumer, 100 + 2 * len(failing) + len(requeued))
    times = Counter(seq for seq, _ in got)
    assert {seq: count for seq, count in times.items() if count != 1} == (
        dict.fromkeys(failing, 3) | dict.fromkeys(requeued, 2)
    )
    assert sorted(seq for seq, again in got if again) == sorted([*requeued, *failing, *failing])
    assert consumer.failed == {"requeued": 4, "failed": 12, "rejected": 4}  # type: ignore[attr-defined]
    consumer.close()
    assert until(lambda: removed(bench, target) == {"rejected": 4, "delivery_limit": 4})
    assert dead(bench, target) == {"rejected": rejected, "delivery_limit": failing}
    assert bench.admin.depth(target) == 0


def test_each_subscriber_has_its_own_dead_letters(bench: Bench) -> None:
    """What one subscriber rejects is in its queue; both queues and the exchange go with the target."""
    target = bench.target(subscribers=2, exchange="fanout", dead_letter=True, reject_every=5)
    send(bench.producer(target), 20)
    consumer = load_driver("amqp").consumer(target.of(1), 0, 1)
    take(consumer, 20)
    consumer.close()
    letters = list(bench.admin.dead_letters(target))
    assert [(each.subscriber, each.reason) for each in letters] == [(1, "rejected")] * 4
    bench.admin.delete(target)
    with contextlib.closing(connect(bench.endpoint, 0)) as connection:
        for queue in Topology(target).dead_queues():
            with pytest.raises(exceptions.ChannelClosedByBroker, match="404"):
                connection.channel().queue_declare(queue, passive=True)
        with pytest.raises(exceptions.ChannelClosedByBroker, match="404"):
            connection.channel().exchange_declare(f"{target.name}-dead", passive=True)


@pytest.mark.parametrize("durability", ["broker", "flushed"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_higher_priorities_come_first(bench: Bench, driver: str, durability: str) -> None:
    """Of a queue that was filled before, in the order of priorities and in that of numbers within each."""
    target = bench.target(durability, priorities=4, prefetch=10)
    send(bench.producer(target, driver), 83)
    got = [seq for seq, _ in take(bench.consumer(target, driver), 83)]
    assert got == sorted(range(83), key=lambda seq: (-(seq % 4), seq))


def test_messages_of_mixed_sizes_have_priorities_too(bench: Bench) -> None:
    """The same where every message is packed by itself."""
    target = bench.target(priorities=3)
    mixed = Payloads(Message.model_validate({"size_bytes": {"min_bytes": 24, "max_bytes": 900}}), seed=1, token=2)
    producer = load_driver("amqp").producer(target, mixed)
    bench.closing.callback(producer.close)
    send(producer, 30)
    consumer = bench.consumer(target)
    seqs: list[int] = []
    while len(seqs) < 30:
        for batch in consumer.receive(PATIENCE_S):
            parsed = mixed.parse(batch.buffer, batch.starts, batch.sizes)
            assert parsed.intact.all()
            seqs += parsed.seq.tolist()
    assert seqs == sorted(range(30), key=lambda seq: (-(seq % 3), seq))


# --- how clients are: what the broker sees of them ---


def test_a_quorum_queue_knows_no_unlimited_prefetch(bench: Bench) -> None:
    """Who may have 2,001 messages is handed so many, who may have any number 2,000."""
    target = bench.target("flushed", prefetch=2_001)
    send(bench.producer(target), 2_100)
    for prefetch, handed in ((2_001, 2_001), (0, 2_000)):
        unchecked = replace(target, settings={**target.settings, "prefetch": prefetch})
        consumer = bench.consumer(unchecked)
        assert until(lambda handed=handed: bench.admin.depth(target) == 2_100 - handed), bench.admin.depth(target)
        time.sleep(0.1)
        assert bench.admin.depth(target) == 2_100 - handed
        consumer.close()
        assert until(lambda: bench.admin.depth(target) == 2_100)


@pytest.mark.parametrize("ack_every", [1, 4])
@pytest.mark.parametrize("driver", DRIVERS)
def test_acknowledgements_are_gathered(bench: Bench, driver: str, ack_every: int) -> None:
    """A consumer that has all that its prefetch allows is sent more as it acknowledges: `ack_every` at a time."""
    target = bench.target(prefetch=8, ack_every=ack_every)
    send(bench.producer(target), 24)
    consumer = bench.consumer(target, driver)
    assert handed(consumer, 8) == 8
    turn = getattr(consumer, "_pump", lambda _: None)  # pika writes when its loop turns
    for settled in range(9):
        if settled:
            consumer.settle(1)
        if settled % ack_every:
            turn(0.02)
            time.sleep(0.02)  # what was acknowledged too early would show
        left = 16 - settled // ack_every * ack_every
        assert until(lambda left=left: turn(0) or bench.admin.depth(target) == left), bench.admin.depth(target)


@pytest.mark.parametrize(
    ("ack_every", "acks"), [(1, [(n, False) for n in range(1, 13)]), (4, [(4, True), (8, True), (12, True)])]
)
@pytest.mark.parametrize("driver", DRIVERS)
def test_acknowledgements_are_for_one_or_for_several(
    bench: Bench, driver: str, ack_every: int, acks: list[tuple[int, bool]]
) -> None:
    """On the wire each message has its own basic.ack, or so many have one with `multiple`."""
    target = bench.target(ack_every=ack_every)
    send(bench.producer(target), 12)
    with silenced(bench.endpoint) as (endpoint, way):
        consumer = bench.consumer(replace(target, endpoint=endpoint), driver)
        assert handed(consumer, 12) == 12
        consumer.settle()  # all at once: between two parts the rest of the first might be acknowledged
        consumer.close()
        assert until(lambda: acknowledged(bytes(way.said)) == acks), acknowledged(bytes(way.said))


def handed(consumer: Consumer, least: int) -> int:
    """How many messages came when there were at least so many, of which none is settled."""
    count = 0
    while count < least:
        count += sum(len(each.starts) for each in consumer.receive(PATIENCE_S))
    return count


def acknowledged(said: bytes) -> list[tuple[int, bool]]:
    """The tag of each basic.ack that a client sent, and whether it was for all before it."""
    found, rest = [], said[len(b"AMQP\0\0\x09\x01") :]
    while (decoded := decode_frame(rest))[0]:
        size, frame = decoded
        if isinstance(method := getattr(frame, "method", None), spec.Basic.Ack):
            found.append((method.delivery_tag, method.multiple))
        rest = rest[size:]
    return found


@pytest.mark.parametrize("driver", DRIVERS)
def test_messages_are_persistent_or_transient(bench: Bench, driver: str) -> None:
    """Their delivery mode is what another client reads in the queue."""
    for is_persistent, mode in ((True, 2), (False, 1)):
        target = bench.target("none", persistent=is_persistent)
        send(bench.producer(target, driver), 12)
        assert until(lambda target=target: bench.admin.depth(target) == 12)
        with contextlib.closing(connect(bench.endpoint, 0)) as connection:
            channel = connection.channel()
            got = [channel.basic_get(target.name, auto_ack=True)[1] for _ in range(12)]
        assert {each.delivery_mode for each in got} == {mode}


WINDOWS = [(driver, window) for driver in DRIVERS for window in (None, 1, 7)]
WINDOWS.remove(("pika-blocking", 7))  # whose window is always of one


@pytest.mark.parametrize(("driver", "window"), WINDOWS, ids=str)
def test_a_window_is_what_the_broker_has_not_confirmed(bench: Bench, driver: str, window: int | None) -> None:
    """While confirms are kept back so many messages come to the queue, and without confirms all; then the others do."""
    target = bench.target("none") if window is None else bench.target(confirm_window=window)
    with silenced(bench.endpoint) as (by_way, way):
        producer = bench.producer(replace(target, endpoint=by_way), driver)
        way.is_silent = True
        sending = threading.Thread(target=send, args=(producer, 20))  # one client waits in it for each confirm
        sending.start()
        first = 20 if window is None else window
        assert until(lambda: bench.admin.depth(target) == first), bench.admin.depth(target)
        time.sleep(0.1)
        assert bench.admin.depth(target) == first, "more came than the window holds"
        way.is_silent = False
        sending.join(PATIENCE_S)
        assert until(lambda: bench.admin.depth(target) == 20)
        producer.close()


IMPOSSIBLE: list[tuple[dict[str, Any], str, str]] = [
    ({"durable": False}, "broker", "contradicts durability class `broker`, which has durable = True"),
    ({"auto_delete": True}, "flushed", "a quorum queue stays without consumers; use classic"),
    ({"auto_delete": True, "reconnect_every_s": 1}, "broker", "expected auto_delete = False"),
    ({"overflow": "drop-head"}, "broker", "expected max_length or max_length_bytes"),
    ({"max_length": 9, "overflow": "reject-publish"}, "none", "expected confirms = True"),
    ({"max_length": 9, "overflow": "reject-publish-dlx"}, "broker", "dead_letter = True"),
    ({"max_length": 9, "overflow": "reject-publish-dlx", "dead_letter": True}, "flushed", "queue_type = classic"),
    ({"requeue_every": 5}, "none", "expected ack = manual"),
    ({"reject_every": 5}, "none", "expected ack = manual"),
    ({"delivery_limit": 5}, "broker", "expected queue_type = quorum"),
    ({"fail_every": 5}, "broker", "expected queue_type = quorum"),
    ({"expires_ms": 100}, "broker", "expires_ms = 100: input should be greater than or equal to 10000"),
    ({"priorities": 1}, "broker", "priorities = 1"),
    ({"overflow": "drop"}, "broker", "overflow = 'drop'"),
    ({"driver": "stream", "max_length": 5}, "broker", "driver stream has no such knob"),
]


@pytest.mark.parametrize(("knobs", "durability", "text"), IMPOSSIBLE, ids=str)
def test_what_cannot_be_is_one_line(knobs: dict[str, Any], durability: str, text: str) -> None:
    """Which knob, and what was expected."""
    with pytest.raises(ScenarioError, match=text) as caught:
        Scenario(name="x", question="?", rate=Rate.saturate(), durability=durability, rabbitmq=RabbitMQ(**knobs))
    assert "\n" not in str(caught.value)


def test_failures_need_a_consumer() -> None:
    """Nobody fails where nobody consumes."""
    with pytest.raises(ScenarioError, match="expected consumers ≥ 1"):
        Scenario(name="x", question="?", rate=Rate.saturate(), consumers=0, rabbitmq=RabbitMQ(reject_every=5))


def test_limits_and_failures_are_swept() -> None:
    """A list is a sweep, of these as of all knobs."""
    knobs = RabbitMQ(max_length=[10, 20], overflow=["drop-head", "reject-publish"], priorities=[2, 4])
    scenario = Scenario(name="x", question="?", rate=Rate.saturate(), rabbitmq=knobs)
    assert len(list(points(scenario))) == 8
    either = RabbitMQ(durable=[True, False])
    scenario = Scenario(name="x", question="?", rate=Rate.saturate(), durability="none", rabbitmq=either)
    assert [point.settings["durable"] for point in points(scenario)] == [True, False]
