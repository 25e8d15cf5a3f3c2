"""Trials whose queues drop, refuse, expire or dead-letter: every message is told, and nothing of it is a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from loadgen.plan import Profile, make_plan
from loadgen.scenario import Durability, Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName, Endpoint

ACCOUNTING = (
    "integrity",
    "foreign",
    "loss",
    "queue limits",
    "dead letters",
    "drained",
    "duplicates",
    "order",
    "errors",
)

SHORT = Profile("short", warmup_s=0.0, duration_s=1.0, repeats=1)


def run_once(endpoint: Endpoint, **changes: Any) -> dict[str, Any]:
    """The record of one short trial."""
    given: dict[str, Any] = {
        "name": "removals", "question": "?", "message": Message(size_bytes=100), "rate": Rate.fixed(1_000),
    }  # fmt: skip
    scenario = Scenario(**{**given, **changes})
    (trial,) = make_plan([scenario], SHORT).trials
    record, outcome = run_trial(trial, Setting(endpoint, lambda _: None))
    assert outcome.error is None
    return record


def demand_accounted(record: dict[str, Any]) -> None:
    """No check of the account finds anything, whatever the machine was doing meanwhile."""
    checks = {each["name"]: each for each in record["verdict"]["checks"]}
    found = {name: checks[name]["reason"] for name in (*ACCOUNTING, "latency complete") if not checks[name]["passed"]}
    assert not found
    assert (record["lost"], record["confirmed_lost"], record["missing_msgs"]) == (0, 0, 0)


@pytest.mark.parametrize("dead_letter", [False, True])
def test_what_is_dropped_or_expires_is_told(rabbitmq_endpoint: Endpoint, dead_letter: bool) -> None:
    """Sent is received, dropped or expired, by the broker's count or by its dead letters; the verdict says so."""
    knobs = RabbitMQ(max_length=20, message_ttl_ms=35, prefetch=5, ack_every=1, dead_letter=dead_letter)
    record = run_once(rabbitmq_endpoint, rabbitmq=knobs, think_ms=3)
    demand_accounted(record)
    dropped, expired = record["dropped_by_limit"], record["expired"]
    assert min(dropped, expired) > 0
    assert record["sent"] == record["acked"] == record["received"] + dropped + expired
    assert record.get("refused_by_limit") is None
    told = f"{dropped:,} dropped by a full queue, {expired:,} expired"
    assert any(told in each for each in record["verdict"]["reasons"])
    if dead_letter:
        wanted = {"maxlen": dropped, "expired": expired, "rejected": 0, "delivery_limit": 0}
        assert record["dead_lettered"] == wanted


def test_what_a_full_queue_refuses_is_told(rabbitmq_endpoint: Endpoint) -> None:
    """Refused messages are nacks of their producer, not errors of the trial; also where nobody consumes."""
    knobs = RabbitMQ(max_length=20, overflow="reject-publish", prefetch=5, ack_every=1)
    record = run_once(rabbitmq_endpoint, rabbitmq=knobs, think_ms=3)
    demand_accounted(record)
    assert record["refused_by_limit"] == record["errors"]["nack"] > 300
    assert record["sent"] == record["received"] + record["refused_by_limit"]
    alone = run_once(rabbitmq_endpoint, rabbitmq=RabbitMQ(max_length=20), consumers=0)
    loss = next(each for each in alone["verdict"]["checks"] if each["name"] == "loss")
    assert loss["passed"], loss
    depth = alone["broker_counts"]["depth_at_end"]
    assert alone["dropped_by_limit"] + depth == alone["acked"] == alone["sent"]


def test_failing_tasks_end_on_both_brokers(endpoints: dict[BrokerName, Endpoint]) -> None:
    """Each failing message is delivered as often as its broker allows, each rejected one once; all is explained."""
    knobs = RabbitMQ(fail_every=50, reject_every=40, requeue_every=20, delivery_limit=2, dead_letter=True, prefetch=20)
    record = run_once(endpoints["rabbitmq"], rabbitmq=knobs, durability=Durability.FLUSHED, consumers=2)
    demand_accounted(record)
    sent = record["sent"]
    rejected = sent // 40
    failing = sent // 50 - sent // 200
    requeued = sent // 20 - sent // 40 - (sent // 100 - sent // 200)
    assert record["dead_lettered"] == {"maxlen": 0, "expired": 0, "rejected": rejected, "delivery_limit": failing}
    assert record["failed_deliveries"] == {"requeued": requeued, "failed": 3 * failing, "rejected": rejected}
    assert record["received"] == sent + 2 * failing + requeued
    assert record["dup_redelivery"] == record["duplicated"] == 2 * failing + requeued
    shared = Kafka(group="share", fail_every=50, reject_every=40, share_delivery_count_limit=3, max_poll_records=50)
    record = run_once(endpoints["kafka"], kafka=shared, consumers=2)
    demand_accounted(record)
    sent = record["sent"]
    assert record["dup_redelivery"] == record["duplicated"] == 2 * (sent // 50 - sent // 200)


def test_response_times_are_told_by_priority(rabbitmq_endpoint: Endpoint) -> None:
    """The highest and the lowest of four priorities have a quarter of the messages each, and times of their own."""
    record = run_once(rabbitmq_endpoint, rabbitmq=RabbitMQ(priorities=4, prefetch=1, ack_every=1), rate=Rate.fixed(200))
    demand_accounted(record)
    latency = record["latency_ns"]
    assert [latency[kind]["count"] for kind in ("e2e", "e2e_high_priority", "e2e_low_priority")] == [200, 50, 50]
    assert latency["connect"] is None
