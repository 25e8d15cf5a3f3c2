"""What tests of faults share: a small load with faults on both brokers, and a run of records alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadgen import Kafka, Message, RabbitMQ, Rate, Scenario

if TYPE_CHECKING:
    from loadgen import At
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
        "header": {"findings": list(findings), "scenarios": scenarios},
    }  # fmt: skip
    return type("Run", (), {**known, "records": list(records)})  # type: ignore[return-value]
