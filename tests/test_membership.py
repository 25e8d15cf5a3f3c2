"""Consumers that join and leave in mid-trial: they do so on the broker, nothing is lost, and the pause is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pika
import pytest
from confluent_kafka.admin import AdminClient
from verdicts import due

from loadgen import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen import trial as trial_module
from loadgen.board import Board, Cell
from loadgen.drivers.kafka_config import client_settings
from loadgen.errors import ScenarioError
from loadgen.membership import MS_NS, Deliveries, Membership, pauses
from loadgen.plan import Profile, make_plan
from loadgen.record import completed
from loadgen.report.phases import load_label, notes
from loadgen.report.points import comparisons
from loadgen.trial import Live, Setting, run_trial

if TYPE_CHECKING:
    from loadgen.agent import AgentSpec
    from loadgen.driver import Target
    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.plan import Trial


def noted(membership: Membership, moments_ms: dict[int, list[int]]) -> dict[int, Any]:
    """One consumer's deliveries, in ms since the window's begin, by source."""
    watched_ms = membership.watched_ms()
    assert watched_ms is not None
    deliveries = Deliveries(1_000 * MS_NS, watched_ms)
    for source, at_ms in moments_ms.items():
        deliveries.note(source, 1_000 * MS_NS + at_ms[0] * MS_NS)
        deliveries.note(source, 1_000 * MS_NS + np.array(at_ms[1:], np.int64) * MS_NS)
    return deliveries.by_source


def test_a_pause_is_what_no_consumer_filled() -> None:
    """The first consumer's deliveries of source 1 end at 2,000 ms, the other's begin at 2,300: 300 ms without any."""
    membership = Membership(joins_at_s=2.0, leaves_at_s=5.0)
    steady = list(range(0, 9_000, 10))
    first = {0: steady, 1: [ms for ms in steady if ms <= 2_000 or ms >= 5_500]}
    second = {1: [ms for ms in steady if 2_300 <= ms < 5_000]}
    both = [noted(membership, first), noted(membership, second)]
    found = pauses(both, both[1], membership, window_s=9.0)
    assert found["joins"] == {
        "pause_ms": 299, "usual_ms": 9, "first_after_ms": 300, "pause_ms_by_source": {"0": 9, "1": 299},
    }  # fmt: skip
    assert found["leaves"]["pause_ms"] == 500
    assert found["leaves"]["pause_ms_by_source"] == {"0": 9, "1": 500}


def test_nobody_takes_over() -> None:
    """A source that nobody reads any more pauses until the window ends, and a newcomer without messages says so."""
    membership = Membership(joins_at_s=1.0)
    found = pauses([noted(membership, {0: [100, 900]})], {}, membership, window_s=3.0)
    assert (found["joins"]["pause_ms"], found["joins"]["first_after_ms"], found["leaves"]) == (2_000, None, None)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rabbitmq": RabbitMQ(), "joins_at_s": 1, "consumers": 1}, "expected consumers ≥ 2"),
    ({"rabbitmq": RabbitMQ(), "joins_at_s": 2, "leaves_at_s": 2}, "is not after joins_at_s"),
    ({"kafka": Kafka(partitions=2), "joins_at_s": 1}, "group_protocol = static"),
    ({"rabbitmq": RabbitMQ(driver="stream", partitions=2), "leaves_at_s": 1}, "single_active_consumer"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED)
def test_what_cannot_be_is_one_line(changes: dict[str, Any], said: str) -> None:
    """Each impossible coming and going is refused by its knob."""
    with pytest.raises(ScenarioError, match=said) as caught:
        Scenario(**{"name": "a", "question": "?", "rate": Rate.fixed(100), "consumers": 2, **changes})
    assert "\n" not in str(caught.value)


def test_a_change_after_the_window_is_refused() -> None:
    """Nobody would see it."""
    scenario = Scenario(
        name="a", question="?", rate=Rate.fixed(100), consumers=2, joins_at_s=5, duration_s=4, rabbitmq=RabbitMQ()
    )
    with pytest.raises(ScenarioError, match="joins_at_s = 5: is after the window"):
        make_plan([scenario], Profile("test", 0, 4, 1))


def members(target: Target) -> int:
    """How many consumers the broker itself knows of."""
    endpoint = target.endpoint
    if endpoint.broker == "kafka":
        asking = AdminClient(client_settings(endpoint))
        group = asking.describe_consumer_groups([target.group], request_timeout=60)[target.group].result(60)
        return len(group.members)
    host, port = endpoint.hosts[0]
    login = pika.PlainCredentials(endpoint.credentials.username, endpoint.credentials.password)
    with pika.BlockingConnection(pika.ConnectionParameters(host, port, credentials=login)) as connection:
        told = connection.channel().queue_declare(target.name, passive=True)
        return int(told.method.consumer_count)


CHANGES = [
    ("rabbitmq", RabbitMQ(prefetch=10), {"joins_at_s": 0.5, "duration_s": 1.5}, [1, 2]),
    ("rabbitmq", RabbitMQ(prefetch=10), {"leaves_at_s": 0.5, "duration_s": 1.5}, [2, 1]),
    ("kafka", Kafka(driver="confluent", partitions=4), {"joins_at_s": 0.2, "duration_s": 5.0}, [1, 2]),
    ("kafka", Kafka(driver="confluent", partitions=4), {"leaves_at_s": 0.5, "duration_s": 4.0}, [2, 1]),
    ("kafka", Kafka(group_protocol="consumer", partitions=4), {"joins_at_s": 0.2, "duration_s": 8.0}, [1, 2]),
    ("kafka", Kafka(group_protocol="consumer", partitions=4), {"leaves_at_s": 0.5, "duration_s": 8.0}, [2, 1]),
]
NAMES = ["queue joins", "queue leaves", "group joins", "group leaves", "new group joins", "new group leaves"]


@pytest.mark.parametrize(("broker", "part", "changes", "expected"), CHANGES, ids=NAMES)
def test_consumers_come_and_go(
    endpoints: dict[BrokerName, Endpoint],
    monkeypatch: pytest.MonkeyPatch,
    broker: BrokerName,
    part: Any,
    changes: dict[str, Any],
    expected: list[int],
) -> None:
    """The broker knows of one consumer more or less; who came or went has its part only, and nothing is lost."""
    targets: list[Target] = []
    seen: list[int] = []
    make_specs, turned = trial_module.roster, Live.turned

    def specs(trial: Trial, target: Target, *others: Any) -> list[AgentSpec]:
        targets.append(target)
        return make_specs(trial, target, *others)

    def watch(self: Live, board: Board) -> None:
        turned(self, board)
        if self.start_ns and not board.ordered(Cell.STOP_CONSUMING) and (count := members(targets[0])) not in seen[-1:]:
            seen.append(count)

    monkeypatch.setattr(trial_module, "roster", specs)
    monkeypatch.setattr(Live, "turned", watch)
    scenario = Scenario(
        name="rebalance", question="?", rate=Rate.fixed(400), message=Message(size_bytes=100), consumers=2, warmup_s=0,
        **{broker: part}, **changes,
    )  # fmt: skip
    record, outcome = run_trial(
        make_plan([scenario], Profile("test", 0, 1, 1), brokers=(broker,)).trials[0],
        Setting(endpoints[broker], lambda _: None),
    )
    assert outcome.error is None, outcome.traceback
    assert seen in (expected, expected[1:]), "on a busy machine nobody may have looked before the change"
    assert (due(record), record["lost"]) == (400 * changes["duration_s"], 0)
    assert record["received"] >= record["sent"]
    planned = {each["name"]: each["passed"] for each in record["verdict"]["checks"]}
    assert planned["steady state"] is planned["duplicates"] is True
    ((kind, change),) = [(kind, change) for kind, change in record["rebalances"].items() if change is not None]
    assert len(change["pause_ms_by_source"]) == (4 if broker == "kafka" else 1)
    at_ms = round(changes[f"{kind}_at_s"] * 1000)
    noted = {result.agent: result.deliveries for result in outcome.results if result.deliveries is not None}
    moments = [ms + at_ms - 1_000 for source in noted["consumer1"].values() for ms in np.flatnonzero(source).tolist()]
    if kind == "joins":
        assert min(moments, default=at_ms) >= at_ms
        assert not moments or change["first_after_ms"] == min(moments) - at_ms
    (comparison,) = comparisons([completed(record)])  # as a report reads it
    assert f"a consumer {kind}" in load_label(comparison.shared)
    assert all("deliveries paused for" in each for each in notes(comparison.points))
