"""Producers and consumers that outlive their connection: nothing confirmed is lost, and duplicates are explained."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.brokers import kill, private_brokers, restart
from loadgen.drivers.rabbitmq_management import management_request
from loadgen.errors import ScenarioError
from loadgen.plan import Profile, make_plan
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadgen.endpoint import Endpoint
    from loadgen.trial import Live

RATE_MSGS_PER_S = 500
WINDOW_S = 6.0


@pytest.fixture(scope="module")
def own() -> Iterator[Endpoint]:
    """A RabbitMQ that may be killed."""
    with private_brokers({"rabbitmq": {}}, progress=print) as endpoints:
        yield endpoints["rabbitmq"]


def scenario(**knobs: Any) -> Scenario:
    """Messages at a rate, by clients that recover."""
    knobs = {"recover_within_s": 30.0, **knobs}
    return Scenario(
        name="recovery",
        question="Does it go on?",
        message=Message(size_bytes=200),
        rate=Rate.fixed(RATE_MSGS_PER_S),
        producers=2,
        consumers=2,
        durability=Durability.BROKER,
        rabbitmq=RabbitMQ(**knobs),
    )


def record_of(endpoint: Endpoint, hurt: Callable[[], None], **knobs: Any) -> dict[str, Any]:
    """A trial in whose middle something happens to the broker or to connections."""
    (trial,) = make_plan([scenario(**knobs)], Profile("hurt", 1.0, WINDOW_S, 1), brokers=("rabbitmq",)).trials
    threads: list[threading.Thread] = []

    def began(live: Live) -> None:
        def work() -> None:
            while not live.start_ns:
                time.sleep(0.02)
            time.sleep(max(0.0, (live.start_ns - time.monotonic_ns()) / 1e9) + 2.5)
            hurt()

        threads.append(threading.Thread(target=work, daemon=True))
        threads[0].start()

    record, _ = run_trial(trial, Setting(endpoint, print, began=began))
    threads[0].join(60)
    return record


def cut_all(endpoint: Endpoint) -> None:
    """Have RabbitMQ close every connection, again and again for a second."""
    until_s = time.monotonic() + 6.0  # its management learns of a connection up to five seconds late
    while time.monotonic() < until_s:
        for each in management_request(endpoint, "connections") or []:
            try:
                management_request(endpoint, f"connections/{quote(each['name'], safe='')}", "DELETE")
            except OSError:  # it has gone by itself
                continue
        time.sleep(0.2)


def demand_explained(record: dict[str, Any]) -> None:
    """Nothing that was confirmed is lost, and every copy too many was sent again or redelivered."""
    assert record["status"] == "complete", record["error"]
    assert record["sent"] > 0
    assert record["acked"] == record["sent"]
    assert (record["lost"], record["confirmed_lost"], record["corrupted"], record["foreign"]) == (0, 0, 0, 0)
    assert record["duplicated"] == record["dup_resend"] + record["dup_redelivery"]


def test_connections_that_the_broker_closes_are_opened_anew(own: Endpoint) -> None:
    """RabbitMQ closes each of them, by hand: load goes on, and the times without a connection are on the timeline."""
    record = record_of(own, lambda: cut_all(own))
    demand_explained(record)
    outages = [each for each in record["observer"]["events"] if each["kind"] == "outage"]
    assert {each["text"].partition(" ")[0] for each in outages} >= {"producer0", "consumer0"}
    assert all(each["duration_s"] < 5 for each in outages)


def test_a_broker_that_is_killed_and_comes_back_costs_no_confirmed_message(own: Endpoint) -> None:
    """After `kill -9` and a start on the same data, in the middle of the load, all that was confirmed is received."""

    def hurt() -> None:
        kill(own)
        time.sleep(0.5)
        restart(own)

    record = record_of(own, hurt)
    demand_explained(record)
    assert any(each["kind"] == "outage" for each in record["observer"]["events"])


def test_a_broker_that_stays_away_ends_the_trial_in_bounded_time(own: Endpoint) -> None:
    """After the knob's time the trial fails with what it has, in one line that says for how long nobody was there."""
    began_s = time.monotonic()
    try:
        record = record_of(own, lambda: kill(own), recover_within_s=2.0)
    finally:
        restart(own)
    assert record["status"] == "failed"
    assert "no connection for 2 s" in record["error"]
    assert time.monotonic() - began_s < 60


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"channels_per_connection": 2}, "one connection with one channel"),
        ({"reconnect_every_s": 5.0}, "one connection with one channel"),
        ({"driver": "pika"}, "recover_within_s"),
    ],
)
def test_recovery_that_cannot_be_is_one_line(knobs: dict[str, Any], words: str) -> None:
    """Which knob, and what was expected."""
    with pytest.raises(ScenarioError, match=words):
        make_plan([scenario(**knobs)], Profile("x", 1.0, 1.0, 1), brokers=("rabbitmq",))


def test_without_the_knob_a_lost_connection_ends_the_trial(own: Endpoint) -> None:
    """As it was: whoever did not ask for recovery hears at once."""
    record = record_of(own, lambda: cut_all(own), recover_within_s=None)
    assert record["status"] == "failed"
    assert "closed the connection" in record["error"] or "hung up" in record["error"]


def test_kafka_recovers_by_itself() -> None:
    """Its wire driver always did: there is no such knob."""
    with pytest.raises(ScenarioError, match="recover_within_s: no such knob"):
        Kafka(recover_within_s=5)  # type: ignore[call-arg]
