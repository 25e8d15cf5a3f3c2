"""What tests of faults share: a small load on both brokers, one trial of it and its promise, a run of records alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadgen import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.plan import Profile, make_plan
from loadgen.record import completed
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from loadgen import At
    from loadgen.endpoint import Endpoint
    from loadgen.runs import Run


def hurt_scenario(*faults: At, **given: Any) -> Scenario:
    """A small load on both brokers, with faults."""
    known: dict[str, Any] = {
        "name": "hurt", "question": "What does it cost?", "message": Message(size_bytes=200), "rate": Rate.fixed(400),
        "rabbitmq": RabbitMQ(), "kafka": Kafka(), "faults": list(faults),
    }  # fmt: skip
    return Scenario(**{**known, **given})


def bare_run(*records: dict[str, Any], findings: Any = ()) -> Run:
    """A run of these trials and findings, without histograms."""
    asked = {record.get("scenario"): record.get("faults") for record in records}
    scenarios = [{"name": name, "faults": faults} for name, faults in asked.items()]
    known = {
        "id": "r", "status": "complete", "reason": None, "within": lambda *_: iter(()),
        "header": {"findings": list(findings), "scenarios": scenarios, "brokers": {}},
    }  # fmt: skip
    return type("Run", (), {**known, "records": list(records)})  # type: ignore[return-value]


def record_of(endpoint: Endpoint, made: Scenario, window_s: float, warmup_s: float = 1.0) -> dict[str, Any]:
    """One trial of a scenario on this broker."""
    (trial,) = make_plan([made], Profile("hurt", warmup_s, window_s, 1), brokers=(endpoint.broker,)).trials
    record, _ = run_trial(trial, Setting(endpoint, print))
    return completed(record)


def demand_kept(record: dict[str, Any]) -> None:
    """The trial came to its end, every confirmed message was received, and each copy too many is explained."""
    assert record["status"] == "complete", record["error"]
    assert (record["confirmed_lost"], record["corrupted"], record["foreign"]) == (0, 0, 0)
    assert record["duplicated"] == record["dup_resend"] + record["dup_redelivery"]
    assert record["sent"] > 0
