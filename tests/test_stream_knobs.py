"""The knobs of streams: what they come to, what is refused, and where keys are of use."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.errors import ScenarioError
from loadgen.knobs import points
from loadgen.plan import PROFILES, make_plan
from loadgen.scenario import Durability, Kafka, Message, RabbitMQ, Rate, Scenario


def scenario(durability: Durability = Durability.BROKER, message: Message | None = None, **more: Any) -> Scenario:
    """A scenario for a stream; what is not the scenario's own is a knob of RabbitMQ's."""
    own = {key: more.pop(key) for key in ("consumers", "subscribers", "kafka", "preset") if key in more}
    return Scenario(
        name="streams",
        question="Does it resolve?",
        message=message or Message(size_bytes=100),
        rate=Rate.saturate(),
        durability=durability,
        rabbitmq=RabbitMQ(**{"driver": "stream", **more}),
        **own,
    )


def test_a_stream_has_its_own_knobs_and_none_of_a_queues() -> None:
    """What class, preset and defaults come to; nothing of exchanges, prefetch or acks."""
    (point,) = points(scenario(preset="throughput", credits=20))
    assert point.driver == "stream"
    wanted = {"queue_type": "stream", "confirms": True, "persistent": True, "confirm_window": 20_000, "credits": 20}
    assert wanted.items() <= point.settings.items()
    assert not {"exchange", "prefetch", "ack", "ack_every", "mandatory", "driver"} & point.settings.keys()


def test_streams_are_swept_beside_queues() -> None:
    """One scenario may sweep the driver, and any knob of streams alone."""
    assert [point.driver for point in points(scenario(driver=["amqp", "stream"]))] == ["amqp", "stream"]
    found = points(scenario(sub_entry_size=[10, 100], compression=["gzip", "zstd"]))
    assert [(p.settings["sub_entry_size"], p.settings["compression"]) for p in found] == [
        (10, "gzip"), (10, "zstd"), (100, "gzip"), (100, "zstd"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"durability": Durability.NONE}, "class `none`"),
        ({"durability": Durability.FLUSHED}, "class `flushed`"),
        ({"queue_type": "classic"}, "drop the knob"),
        ({"confirms": False}, "drop the knob"),
        ({"prefetch": 10}, "rabbitmq.prefetch: driver stream has no such knob"),
        ({"exchange": "topic"}, "rabbitmq.exchange: driver stream has no such knob"),
        ({"compression": "lz4"}, "expected sub_entry_size > 1"),
        ({"sub_entry_size": 10, "deduplication": True}, "expected deduplication = False"),
        ({"consumers": 2}, "at least 2 (or single_active_consumer = True)"),
        ({"message": Message(size_bytes=1 << 20)}, "stream.frame_max"),
        ({"partitions": 0}, "partitions = 0"),
        ({"credits": 1}, "credits = 1"),
        ({"max_age": "soon"}, "max_age = 'soon'"),
        ({"driver": "amqp", "partitions": 2}, "rabbitmq.partitions: a knob of streams"),
        ({"driver": "pika", "compression": "gzip"}, "rabbitmq.compression: a knob of streams"),
        ({"driver": "amqp", "queue_type": "stream"}, "contradicts durability class"),
        ({"message": Message(size_bytes=100, keys=5)}, "no use for keys"),
    ],
)
def test_what_is_impossible_is_one_line(given: dict[str, Any], words: str) -> None:
    """It names the knob and what was expected."""
    with pytest.raises(ScenarioError) as caught:
        scenario(**given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_possible_only_together() -> None:
    """Several consumers with partitions or one active, keys with partitions, subscribers without an exchange."""
    for given in (
        {"consumers": 2, "partitions": 2},
        {"consumers": 3, "single_active_consumer": True},
        {"partitions": 3, "message": Message(size_bytes=100, keys=5)},
        {"subscribers": 3},
    ):
        (point,) = points(scenario(**given))
        assert point.driver == "stream"


def test_a_plan_expects_more_of_a_stream_than_of_a_queue() -> None:
    """Its bytes are an upper bound for a log, of which all subscribers read the same copy; Kafka runs beside it."""
    bytes_of = {}
    for driver, subscribers in (("stream", 1), ("stream", 3), ("amqp", 1)):
        made = make_plan([scenario(driver=driver, subscribers=subscribers, kafka=Kafka())], PROFILES["quick"])
        trials = {trial.broker: trial for trial in made.trials}
        assert set(trials) == {"rabbitmq", "kafka"}
        bytes_of[driver, subscribers] = trials["rabbitmq"].stored_bytes_max
    assert bytes_of["stream", 1] == bytes_of["stream", 3] > 5 * bytes_of["amqp", 1]
