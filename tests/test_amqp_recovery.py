"""Producers and consumers that outlive their connection: nothing confirmed is lost, and duplicates are explained."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from patience import PATIENCE_S, until

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.board import Cell
from loadgen.brokers import kill, private_brokers, restart
from loadgen.drivers.rabbitmq_management import management_request
from loadgen.errors import ScenarioError
from loadgen.plan import Profile, make_plan
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadgen.agent import Report
    from loadgen.endpoint import Endpoint
    from loadgen.trial import Live

RATE_MSGS_PER_S = 500
LONG_S = 300.0  # of a window that ends before
FLOWS_MSGS = 250  # that are received and confirmed before load is said to flow


@pytest.fixture(scope="module")
def own() -> Iterator[Endpoint]:
    """A RabbitMQ that may be killed."""
    with private_brokers({"rabbitmq": {}}, progress=print) as endpoints:
        yield endpoints["rabbitmq"]


def scenario(**knobs: Any) -> Scenario:
    """Messages at a rate, by clients that recover."""
    knobs = {"recover_within_s": 60.0, **knobs}
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


class Hurt:
    """A trial under way, in whose middle something happens to the broker or to connections."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self.ended = threading.Event()
        self.lost: set[str] = set()
        """Whose outages were told."""
        reported = live.reported

        def note(report: Report) -> None:
            self.lost |= {text.partition(" ")[0] for kind, _, _, text in report.events if kind == "outage"}
            reported(report)

        live.reported = note  # type: ignore[method-assign]

    @property
    def is_over(self) -> bool:
        """Whether the trial has ended, or nobody hears any of its agents any more."""
        return self.ended.is_set() or not any(each.name.startswith("reads-") for each in threading.enumerate())

    def counts(self) -> tuple[int, int]:
        """Received and confirmed so far."""
        board = self._live.board
        return (0, 0) if board is None else (board.total(Cell.RECEIVED), board.total(Cell.ACKED))

    def flows(self, before: tuple[int, int] = (0, 0)) -> bool:
        """Wait until messages flow that have not done before; whether the trial goes on."""

        def has_grown() -> bool:
            return all(now - then >= FLOWS_MSGS for now, then in zip(self.counts(), before, strict=True))

        return until(lambda: has_grown() or self.ended.is_set() or (any(before) and self.is_over)) and has_grown()

    def end(self) -> None:
        """Have the producers end: nothing more is to be seen."""
        assert self._live.board is not None
        self._live.board.order(Cell.STOP_PRODUCING)


def record_of(endpoint: Endpoint, hurt: Callable[[Hurt], None], **knobs: Any) -> dict[str, Any]:
    """A trial in which something happens once load flows, and that ends when load flows again."""
    (trial,) = make_plan([scenario(**knobs)], Profile("hurt", 0.5, LONG_S, 1), brokers=("rabbitmq",)).trials
    begun: list[tuple[Hurt, threading.Thread]] = []

    def began(live: Live) -> None:
        under_way = Hurt(live)

        def work() -> None:
            if under_way.flows():
                hurt(under_way)
                if under_way.flows(under_way.counts()):
                    under_way.end()

        begun.append((under_way, threading.Thread(target=work, daemon=True)))
        begun[0][1].start()

    record, _ = run_trial(trial, Setting(endpoint, print, began=began))
    begun[0][0].ended.set()
    begun[0][1].join(PATIENCE_S)
    return record


def cut_all(endpoint: Endpoint, under_way: Hurt) -> None:
    """Have RabbitMQ close every connection, again and again, until a producer and a consumer have told of it."""

    def is_cut() -> bool:
        found: Any = []
        with contextlib.suppress(OSError):  # it is busy
            found = management_request(endpoint, "connections") or []
        for each in found:
            try:
                management_request(endpoint, f"connections/{quote(each['name'], safe='')}", "DELETE")
            except OSError:  # it has gone by itself
                continue
        return under_way.is_over or {"producer0", "consumer0"} <= under_way.lost

    until(is_cut, 0.2)  # its management learns of a connection some seconds late


def demand_explained(record: dict[str, Any]) -> None:
    """Nothing that was confirmed is lost, and every copy too many was sent again or redelivered."""
    assert record["status"] == "complete", record["error"]
    assert record["sent"] > 0
    assert record["acked"] == record["sent"]
    assert (record["lost"], record["confirmed_lost"], record["corrupted"], record["foreign"]) == (0, 0, 0, 0)
    assert record["duplicated"] == record["dup_resend"] + record["dup_redelivery"]


def test_connections_that_the_broker_closes_are_opened_anew(own: Endpoint) -> None:
    """RabbitMQ closes each of them, by hand: load goes on, and the times without a connection are on the timeline."""
    record = record_of(own, lambda under_way: cut_all(own, under_way))
    demand_explained(record)
    outages = [each for each in record["observer"]["events"] if each["kind"] == "outage"]
    assert {each["text"].partition(" ")[0] for each in outages} >= {"producer0", "consumer0"}
    assert all(each["duration_s"] > 0 for each in outages)


def test_a_broker_that_is_killed_and_comes_back_costs_no_confirmed_message(own: Endpoint) -> None:
    """After `kill -9` and a start on the same data, in the middle of the load, all that was confirmed is received."""

    def hurt(under_way: Hurt) -> None:
        kill(own)
        restart(own)
        until(lambda: under_way.lost)

    record = record_of(own, hurt)
    demand_explained(record)
    assert any(each["kind"] == "outage" for each in record["observer"]["events"])


def test_a_broker_that_stays_away_ends_the_trial_in_bounded_time(own: Endpoint) -> None:
    """After the knob's time the trial fails with what it has, in one line that says for how long nobody was there."""
    try:
        record = record_of(own, lambda _: kill(own), recover_within_s=2.0)
    finally:
        restart(own)
    assert record["status"] == "failed"
    assert "no connection for 2 s" in record["error"]
    assert (record["window_s"] or 0) < LONG_S / 2


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
    record = record_of(own, lambda under_way: cut_all(own, under_way), recover_within_s=None)
    assert record["status"] == "failed"
    assert "closed the connection" in record["error"] or "hung up" in record["error"]


def test_kafka_recovers_by_itself() -> None:
    """Its wire driver always did: there is no such knob."""
    with pytest.raises(ScenarioError, match="recover_within_s: no such knob"):
        Kafka(recover_within_s=5)  # type: ignore[call-arg]
