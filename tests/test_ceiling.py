"""The generator's ceiling: measured through the ordinary trial, complete in its record, honest where it cannot be."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from loadgen import Durability, Kafka, Message, RabbitMQ, Rate, Scenario, ceiling
from loadgen.board import Cell
from loadgen.ceiling import measure_ceiling
from loadgen.drivers.kafka_admin import KafkaAdmin
from loadgen.drivers.memory import memory_endpoint
from loadgen.endpoint import Endpoint
from loadgen.fleet import Outcome
from loadgen.plan import Profile, Trial, make_plan
from loadgen.trial import Live, Setting

if TYPE_CHECKING:
    from loadgen.board import Board
    from loadgen.endpoint import BrokerName

PROFILE = Profile("test", warmup_s=5.0, duration_s=30.0, repeats=1)  # a ceiling has lengths of its own
NOWHERE: dict[BrokerName, Endpoint] = {
    "rabbitmq": Endpoint("rabbitmq", (("127.0.0.1", 9),)),
    "kafka": Endpoint("kafka", (("127.0.0.1", 9),)),
}
LONG_S = 120.0  # librdkafka takes a second until it fetches from partitions that were paused, a busy machine several
WINDOW_S = 2.0  # in 0.5 s, after a warm-up of 0.2, a busy machine has carried nothing
READ_S = 0.5  # so long nothing more comes: all has been read
FIELDS = {
    "key", "scenario", "broker", "driver", "durability", "point", "producers", "consumers", "achieved_msgs_per_s",
    "paced_msgs_per_s", "unpaced_msgs_per_s", "unpaced_bound_by", "paced_reason", "cpu_s", "window_s", "how",
    "bound_by", "limits", "error", "parts",
}  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured here is too short for a figure."""
    monkeypatch.setattr(ceiling, "WARMUP_S", 0.2)
    monkeypatch.setattr(ceiling, "OPEN_SECONDS", 0.4)
    monkeypatch.setattr(ceiling, "OPEN_SHARES", (0.3,))
    monkeypatch.setattr(ceiling, "FILL_S", 2.0)  # less would be read between two looks at the counters


def trial_of(driver: str, knobs: dict[str, Any] | None = None, **changes: Any) -> Trial:
    """The first trial of a scenario for this driver, whose size is swept."""
    part = (Kafka if driver in {"kafka", "confluent"} else RabbitMQ)(driver=driver, **(knobs or {}))
    broker: BrokerName = "kafka" if isinstance(part, Kafka) else "rabbitmq"
    values: dict[str, Any] = {"name": "ceiling", "question": "?", "message": Message(size_bytes=[100, 200])}
    values |= {"rate": Rate.fixed(10), "preset": "throughput", broker: part}
    return make_plan([Scenario(**{**values, **changes})], PROFILE, brokers=(broker,)).trials[0]


def measured(trial: Trial, endpoint: Endpoint | None = None, seconds: float = WINDOW_S) -> dict[str, Any]:
    """A short ceiling's record, which is plain data with every field."""
    setting = Setting(endpoint or NOWHERE[trial.broker], lambda _: None)
    record = measure_ceiling(trial, setting, seconds)
    assert set(record) >= FIELDS
    assert json.loads(json.dumps(record)) == record
    assert (record["scenario"], record["broker"], record["driver"]) == ("ceiling", trial.broker, trial.driver)
    assert record["key"] == trial.capacity_key
    assert record["point"] == trial.point
    return record


def reading_ends(monkeypatch: pytest.MonkeyPatch, after_s: float) -> None:
    """Consumers have as long as they need to read a topic, which ends so long after the last message came."""
    by, turned = ceiling._by_filled_topic, Live.turned
    seen = (0, 0.0)

    def watched(self: Live, board: Board) -> None:
        nonlocal seen
        turned(self, board)
        received = board.total(Cell.RECEIVED)
        if received != seen[0]:
            seen = received, time.monotonic()
        if received and time.monotonic() - seen[1] >= after_s:
            board.order(Cell.STOP_PRODUCING)

    monkeypatch.setattr(Live, "turned", watched)
    monkeypatch.setattr(
        ceiling, "_by_filled_topic", lambda trial, setting: by(replace(trial, duration_s=LONG_S), setting)
    )


@pytest.mark.parametrize("driver", ["amqp", "pika", "kafka", "stream"])
def test_a_ceiling_is_a_closed_loop_at_a_null_broker(driver: str) -> None:
    """Whatever the trial's own rate and length; no broker is needed; what bounded it and what it cost are told."""
    record = measured(trial_of(driver))
    assert record["error"] is None
    assert record["how"] == "null broker"
    assert record["achieved_msgs_per_s"] > 10, "the trial's own rate"
    assert record["bound_by"] in {"generator", "host", "null broker"}
    # Whether a rate is paced is the machine's affair; one of the two is always known.
    assert (record["paced_msgs_per_s"] is None) != (record["unpaced_msgs_per_s"] is None)
    assert 0 < record["window_s"] <= WINDOW_S
    assert all(record["cpu_s"][name] >= 0 for name in ("producers", "consumers", "broker"))
    assert "lower bound" in record["limits"]
    assert (record["producers"], record["consumers"], record["parts"]) == (1, 1, [])


@pytest.mark.parametrize(
    ("limit", "needed", "paced", "unpaced", "tried"),
    [
        (900.0, None, 850.0, None, 1),
        (700.0, None, 600.0, 850.0, 2),
        (700.0, 650.0, 650.0, 850.0, 2),
        (300.0, 250.0, 250.0, 600.0, 3),
        (200.0, 250.0, None, 250.0, 3),
        (700.0, 2_000.0, 600.0, 850.0, 2),  # more than a closed loop carries need not be tried
    ],
)
def test_rates_are_tried_from_above_until_one_is_paced(
    monkeypatch: pytest.MonkeyPatch,
    limit: float,
    needed: float | None,
    paced: float | None,
    unpaced: float | None,
    tried: int,
) -> None:
    """The ceiling of an open loop is a rate that was offered; the one that somebody needs to know is among them."""
    offered: list[float] = []

    def fake(trial: Trial, _: Setting, how: str, p99_ms: float | None) -> tuple[str, str] | None:
        assert p99_ms is None
        assert isinstance(trial.rate.msgs_per_s, float)
        offered.append(trial.rate.msgs_per_s)
        return None if offered[-1] <= limit else (how, f"at {offered[-1]:g} late")

    monkeypatch.setattr(ceiling, "OPEN_SHARES", (0.85, 0.6))
    monkeypatch.setattr(ceiling, "_unpaced", fake)
    nowhere = Setting(NOWHERE["kafka"], lambda _: None)
    found = ceiling._open_loop(trial_of("kafka"), nowhere, "null broker", 1_000.0, needed)
    assert (found["paced_msgs_per_s"], found["unpaced_msgs_per_s"]) == (paced, unpaced)
    assert found["unpaced_bound_by"] == (None if unpaced is None else "null broker")
    assert found["paced_reason"] == (None if unpaced is None else f"at {unpaced:g} late")
    assert len(offered) == tried
    assert offered == sorted(offered, reverse=True)


LATENCY = {"e2e": {"p50": 900_000, "p99": 7_000_000}}
LAGGED = {"name": "schedule lag", "passed": False, "reason": "p99 50.00 ms, allowed 1.00 ms"}
GROWN = {"slope_msgs_per_s": {"estimate": 50.0, "low": 40.0, "high": 60.0}}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"achieved_msgs_per_s": 985.0}, "only 985 msg/s came through"),
        ({"verdict": {"bound_by": "offered", "checks": [LAGGED]}}, "the schedule lagged: p99 50.00 ms, allowed 1.00"),
        ({"verdict": {"bound_by": "offered", "checks": [{**LAGGED, "passed": None}]}}, None),  # of the rate no doubt
        ({"errors": {"nacked": 2}}, "2 nacked"),
        ({"under_way": GROWN}, "the backlog grew by 50 msg/s"),
    ],
)
def test_a_rate_is_paced_when_it_is_carried_on_time(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], why: str | None
) -> None:
    """By the rules that a capacity is held to, of which one refuses what its schedule's lag makes invalid."""
    record = {
        "offered_msgs_per_s": 1_000.0, "achieved_msgs_per_s": 1_000.0, "window_s": 5.0, "errors": {}, "under_way": {},
        "latency_ns": LATENCY, "verdict": {"bound_by": "offered", "checks": []}, **changes,
    }  # fmt: skip
    monkeypatch.setattr(ceiling, "run_trial", lambda *_: (record, Outcome()))
    seen = ceiling._unpaced(trial_of("kafka"), Setting(NOWHERE["kafka"], lambda _: None), "null broker")
    assert (seen is None) if why is None else (seen is not None and why in seen[1])


@pytest.mark.parametrize(("p99_ms", "why"), [(None, "lagged: p99"), (10.0, None), (6.0, "p99 was 7.00 ms, over 6 ms")])
def test_with_an_objective_a_rate_is_paced_when_it_keeps_that(
    monkeypatch: pytest.MonkeyPatch, p99_ms: float | None, why: str | None
) -> None:
    """A lag far below the latency that was asked for is no limit; clients that miss it without a broker are."""
    record = {
        "offered_msgs_per_s": 1_000.0, "achieved_msgs_per_s": 1_000.0, "window_s": 5.0, "errors": {}, "under_way": {},
        "latency_ns": LATENCY, "verdict": {"bound_by": "offered", "checks": [LAGGED]},
    }  # fmt: skip
    monkeypatch.setattr(ceiling, "run_trial", lambda *_: (record, Outcome()))
    seen = ceiling._unpaced(trial_of("kafka"), Setting(NOWHERE["kafka"], lambda _: None), "null broker", p99_ms)
    assert (seen is None) if why is None else (seen is not None and why in seen[1])


STOLEN = {"name": "stolen CPU", "passed": None, "reason": "9 %"}


@pytest.mark.parametrize(
    ("verdict", "bound_by"),
    [
        ({"bound_by": "offered"}, "generator"), ({"bound_by": "generator"}, "generator"),
        ({"bound_by": "unknown"}, "generator"), ({"bound_by": "host"}, "host"), ({"bound_by": "broker"}, "null broker"),
        ({"bound_by": "generator", "checks": [STOLEN]}, "unknown"),
    ],
)  # fmt: skip
def test_what_kept_a_rate_from_being_paced_is_told(
    monkeypatch: pytest.MonkeyPatch, verdict: dict[str, Any], bound_by: str
) -> None:
    """The clients themselves, the machine, what stood in for the broker; unknown where something else disturbed it."""
    record = {
        "offered_msgs_per_s": 1_000.0, "achieved_msgs_per_s": 900.0, "window_s": 5.0, "errors": {}, "under_way": {},
        "verdict": verdict,
    }  # fmt: skip
    monkeypatch.setattr(ceiling, "run_trial", lambda *_: (record, Outcome()))
    seen = ceiling._unpaced(trial_of("kafka"), Setting(NOWHERE["kafka"], lambda _: None), "null broker")
    assert seen is not None
    assert seen[0] == bound_by


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
        def __init__(self, broker: BrokerName, _: object, **__: object) -> None:
            self.endpoint = NOWHERE[broker]

        def __enter__(self) -> Endpoint:
            return self.endpoint

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(ceiling, "null_broker", Gone)
    record = measured(trial_of("amqp"))
    assert record["achieved_msgs_per_s"] is record["paced_msgs_per_s"] is record["window_s"] is None
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
        if self._endpoint == kafka_endpoint:  # and not the null broker's, where producing is measured
            deleted.append(target.name)

    monkeypatch.setattr(KafkaAdmin, "delete", noted)
    reading_ends(monkeypatch, READ_S)
    record = measured(trial_of("confluent", {"partitions": 2}, consumers=2), kafka_endpoint)
    assert record["error"] is None
    producing, consuming = record["parts"]
    assert (producing["how"], consuming["how"]) == ("mock cluster", "pre-filled topic")
    assert record["achieved_msgs_per_s"] == min(part["achieved_msgs_per_s"] for part in record["parts"])
    assert consuming["achieved_msgs_per_s"] > 10
    assert consuming["left_behind"] is None
    assert (record["paced_msgs_per_s"] is None) != (record["unpaced_msgs_per_s"] is None)
    (filled,) = deleted
    admin = KafkaAdmin(kafka_endpoint)
    assert filled not in admin._client.list_topics(timeout=60).topics


def test_damage_in_a_topic_that_was_filled_is_found(kafka_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers check every byte of what was filled: messages of another run make no ceiling."""
    fill = ceiling._fill

    def other(trial: Trial, setting: Setting, target: Any, token: int) -> Any:
        return fill(trial, setting, target, token ^ 1)

    monkeypatch.setattr(ceiling, "_fill", other)
    reading_ends(monkeypatch, 0.0)
    record = measured(trial_of("confluent"), kafka_endpoint)
    assert record["how"] == "pre-filled topic"
    assert "damaged" in record["error"]
