"""The generator's ceiling: measured through the ordinary trial, complete in its record, honest where it cannot be."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario, ceiling
from loadgen.ceiling import measure_ceiling
from loadgen.drivers.kafka_admin import KafkaAdmin
from loadgen.drivers.memory import memory_endpoint
from loadgen.endpoint import Endpoint
from loadgen.plan import Profile, Trial, make_plan
from loadgen.trial import Setting

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName

PROFILE = Profile("test", warmup_s=5.0, duration_s=30.0, repeats=1)  # a ceiling has lengths of its own
NOWHERE: dict[BrokerName, Endpoint] = {
    "rabbitmq": Endpoint("rabbitmq", (("127.0.0.1", 9),)),
    "kafka": Endpoint("kafka", (("127.0.0.1", 9),)),
}
READING_S = 2.5  # librdkafka takes a second until it fetches from partitions that were paused
FIELDS = {
    "key", "scenario", "broker", "driver", "durability", "point", "producers", "consumers", "achieved_msgs_per_s",
    "cpu_s", "window_s", "how", "bound_by", "limits", "error", "parts",
}  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured here is too short for a figure."""
    monkeypatch.setattr(ceiling, "WARMUP_S", 0.2)
    monkeypatch.setattr(ceiling, "FILL_S", 2.0)  # less would be read between two looks at the counters


def trial_of(driver: str, knobs: dict[str, Any] | None = None, **changes: Any) -> Trial:
    """The first trial of a scenario for this driver, whose size is swept."""
    part = (Kafka if driver in {"kafka", "confluent"} else RabbitMQ)(driver=driver, **(knobs or {}))
    broker: BrokerName = "kafka" if isinstance(part, Kafka) else "rabbitmq"
    values: dict[str, Any] = {"name": "ceiling", "question": "?", "message": Message(size_bytes=[100, 200])}
    values |= {"rate": Rate.fixed(10), "preset": "throughput", broker: part}
    return make_plan([Scenario(**{**values, **changes})], PROFILE, brokers=(broker,)).trials[0]


def measured(trial: Trial, endpoint: Endpoint | None = None, seconds: float = 0.5) -> dict[str, Any]:
    """A short ceiling's record, which is plain data with every field."""
    setting = Setting(endpoint or NOWHERE[trial.broker], lambda _: None)
    record = measure_ceiling(trial, setting, seconds)
    assert set(record) >= FIELDS
    assert json.loads(json.dumps(record)) == record
    assert (record["scenario"], record["broker"], record["driver"]) == ("ceiling", trial.broker, trial.driver)
    assert record["key"] == trial.capacity_key
    assert record["point"] == trial.point
    return record


@pytest.mark.parametrize("driver", ["amqp", "pika", "kafka"])
def test_a_ceiling_is_a_closed_loop_at_a_null_broker(driver: str) -> None:
    """Whatever the trial's own rate and length; no broker is needed; what bounded it and what it cost are told."""
    record = measured(trial_of(driver))
    assert record["error"] is None
    assert record["how"] == "null broker"
    assert record["achieved_msgs_per_s"] > 10, "the trial's own rate"
    assert record["bound_by"] in {"generator", "host", "null broker"}
    assert 0 < record["window_s"] <= 0.5
    assert all(record["cpu_s"][name] >= 0 for name in ("producers", "consumers", "broker"))
    assert "lower bound" in record["limits"]
    assert (record["producers"], record["consumers"], record["parts"]) == (1, 1, [])


def test_where_nothing_is_confirmed_or_received_what_was_sent_counts() -> None:
    """Class none without consumers has a ceiling too."""
    record = measured(trial_of("kafka", durability=Durability.NONE, consumers=0))
    assert record["achieved_msgs_per_s"] > 10


def test_a_queue_in_memory_is_its_own_ceiling() -> None:
    """Where the whole flow runs without a broker, so does this."""
    record = measured(trial_of("confluent"), memory_endpoint("kafka"))
    assert record["how"] == "null broker"
    assert record["achieved_msgs_per_s"] > 10


def test_one_that_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A null broker that does not answer is a reason in the record and no end of a run."""

    class Gone:
        def __init__(self, broker: BrokerName, _: object) -> None:
            self.endpoint = NOWHERE[broker]

        def __enter__(self) -> Endpoint:
            return self.endpoint

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(ceiling, "null_broker", Gone)
    record = measured(trial_of("amqp"))
    assert record["achieved_msgs_per_s"] is record["window_s"] is None
    assert "127.0.0.1:9" in record["error"]


def test_ctrl_c_ends_it() -> None:
    """An interruption goes on to whoever runs the trials."""

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_ceiling(trial_of("amqp"), Setting(NOWHERE["rabbitmq"], interrupt), seconds=5.0)


def test_confluent_produces_into_its_own_mock_cluster() -> None:
    """Without consumers a mock cluster within the producers is all, and no message reaches a broker."""
    record = measured(trial_of("confluent", consumers=0))
    assert record["error"] is None
    assert record["how"] == "mock cluster"
    assert record["achieved_msgs_per_s"] > 10
    assert [part["how"] for part in record["parts"]] == ["mock cluster"]


def test_confluent_consumes_what_was_filled_before(kafka_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Producing and consuming apart, the smaller one counts; the topic that was filled is gone afterwards."""
    deleted: list[str] = []
    delete = KafkaAdmin.delete

    def noted(self: KafkaAdmin, target: Any) -> None:
        delete(self, target)
        deleted.append(target.name)

    monkeypatch.setattr(KafkaAdmin, "delete", noted)
    record = measured(trial_of("confluent", {"partitions": 2}, consumers=2), kafka_endpoint, READING_S)
    assert record["error"] is None
    producing, consuming = record["parts"]
    assert (producing["how"], consuming["how"]) == ("mock cluster", "pre-filled topic")
    assert record["achieved_msgs_per_s"] == min(part["achieved_msgs_per_s"] for part in record["parts"])
    assert consuming["achieved_msgs_per_s"] > 10
    assert consuming["left_behind"] is None
    assert len(set(deleted)) == 2
    admin = KafkaAdmin(kafka_endpoint)
    assert not set(deleted) & set(admin._client.list_topics(timeout=10).topics)


def test_damage_in_a_topic_that_was_filled_is_found(kafka_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers check every byte of what was filled: messages of another run make no ceiling."""
    fill = ceiling._fill

    def other(trial: Trial, setting: Setting, target: Any, token: int) -> Any:
        return fill(trial, setting, target, token ^ 1)

    monkeypatch.setattr(ceiling, "_fill", other)
    record = measured(trial_of("confluent"), kafka_endpoint, READING_S)
    assert record["how"] == "pre-filled topic"
    assert "damaged" in record["error"]
