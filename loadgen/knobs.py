"""What a scenario's knobs come to: every combination of a sweep, resolved to one value each, or refused.

The order of authority: a knob that the scenario sets, then what the durability class demands, then the preset, then
the default that stands here. Class and knob may not contradict each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from loadgen.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.endpoint import BrokerName
    from loadgen.scenario import Durability, Message, Rate, Scenario

Settings = dict[str, Any]

# What each class demands of a broker (design: "durability class"); a knob may repeat it, not contradict it.
CLASS_DEMANDS: dict[str, dict[BrokerName, Settings]] = {
    "none": {
        "rabbitmq": {"queue_type": "classic", "persistent": False, "confirms": False, "ack": "automatic"},
        "kafka": {"acks": "0", "enable_idempotence": False, "flush_messages": None, "commit": "before"},
    },
    "broker": {
        "rabbitmq": {"queue_type": "classic", "persistent": True, "confirms": True, "ack": "manual"},
        "kafka": {"acks": "all", "flush_messages": None, "commit": "after"},
    },
    "flushed": {
        "rabbitmq": {"queue_type": "quorum", "persistent": True, "confirms": True, "ack": "manual"},
        "kafka": {"acks": "all", "flush_messages": 1, "commit": "after"},
    },
}

# What the brokers take as they are shipped, read from running ones (RabbitMQ 4.3 `max_message_size`, Kafka 4.3
# `message.max.bytes`). Kafka's is of a whole record batch: its header, and of a record all that is not its value.
MAX_BYTES: dict[BrokerName, int] = {"rabbitmq": 16 << 20, "kafka": 1_048_588}
_BATCH_OVERHEAD_BYTES: dict[BrokerName, int] = {"rabbitmq": 0, "kafka": 61 + 32}
_LIMIT_NAMES: dict[BrokerName, str] = {"rabbitmq": "max_message_size", "kafka": "message.max.bytes"}

# Client settings that no class demands. RabbitMQ's prefetch and windows follow its own guidance (a plateau from
# about 100 prefetched and a few hundred unconfirmed); Kafka's are the Java client's defaults, stated because
# librdkafka's differ (linger 5 ms, batches of 1 MB).
DEFAULTS: dict[BrokerName, Settings] = {
    "rabbitmq": {"confirm_window": 1_000, "prefetch": 100, "ack_every": 10, "heartbeat": 60, "mandatory": False},
    "kafka": {
        "partitions": 1,
        "enable_idempotence": True,
        "linger_ms": 0.0,
        "batch_size": 16_384,
        "max_in_flight_requests_per_connection": 5,
        "buffer_memory": 32 << 20,
        "compression_type": "none",
        "max_poll_records": 500,
        "fetch_min_bytes": 1,
        "fetch_max_wait_ms": 500,
        "max_partition_fetch_bytes": 1 << 20,
        "auto_commit_interval_ms": 5_000,
    },
}
PRESETS: dict[str, dict[BrokerName, Settings]] = {
    "default": {"rabbitmq": {}, "kafka": {}},
    "low_latency": {
        "rabbitmq": {"prefetch": 100, "ack_every": 1},
        "kafka": {"linger_ms": 0.0, "batch_size": 16_384, "max_poll_records": 500},
    },
    "throughput": {
        "rabbitmq": {"confirm_window": 1_000, "prefetch": 1_000, "ack_every": 100},
        "kafka": {
            "linger_ms": 5.0,
            "batch_size": 262_144,
            "buffer_memory": 4 << 20,  # a few batches beyond those in flight: more would only wait
            "max_poll_records": 100_000,
            "max_partition_fetch_bytes": 4 << 20,
        },
    },
}


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of a scenario's sweeps for one broker; `swept` names the values that vary."""

    broker: BrokerName
    driver: str
    durability: Durability
    message: Message
    rate: Rate
    producers: int
    consumers: int
    settings: Settings
    swept: Settings = field(default_factory=dict)


def points(scenario: Scenario) -> Iterator[Point]:
    """Every point of the scenario, RabbitMQ's first; raises ScenarioError on the first impossible one."""
    for broker in ("rabbitmq", "kafka"):
        if getattr(scenario, broker) is not None:
            yield from _points_of(scenario, broker)


def _points_of(scenario: Scenario, broker: BrokerName) -> Iterator[Point]:
    given = getattr(scenario, broker).model_dump(exclude_none=True)
    shared: dict[str, Any] = {
        "durability": scenario.durability,
        "size_bytes": scenario.message.size_bytes,
        "msgs_per_s": scenario.rate.msgs_per_s,
        "producers": scenario.producers,
        "consumers": scenario.consumers,
    }
    if scenario.rate.fractions is not None:
        shared["fraction"] = scenario.rate.fractions
    axes = {**shared, **{f"{broker}.{knob}": value for knob, value in given.items()}}
    swept_names = [name for name, value in axes.items() if isinstance(value, list)]
    for values in product(*(value if isinstance(value, list) else [value] for value in axes.values())):
        chosen = dict(zip(axes, values, strict=True))
        knobs = {name.partition(".")[2]: value for name, value in chosen.items() if name.startswith(f"{broker}.")}
        durability = chosen["durability"]
        settings = resolve(broker, knobs, str(durability), scenario.preset)
        point = Point(
            broker=broker,
            driver=settings.pop("driver"),
            durability=durability,
            message=scenario.message.model_copy(update={"size_bytes": chosen["size_bytes"]}),
            rate=_rate(scenario.rate, chosen),
            producers=chosen["producers"],
            consumers=chosen["consumers"],
            settings=settings,
            swept={name: chosen[name] for name in swept_names},
        )
        _refuse_unfit(point)
        yield point


def _rate(rate: Rate, chosen: Settings) -> Rate:
    one: Settings = {"msgs_per_s": chosen["msgs_per_s"]}
    if "fraction" in chosen:
        one["fractions"] = [chosen["fraction"]]
    return rate.model_copy(update=one)


def _refuse_unfit(point: Point) -> None:
    """Raise ScenarioError where message, consumers and settings cannot go together on the broker as it is shipped."""
    broker, settings = point.broker, point.settings
    most_bytes = MAX_BYTES[broker] - _BATCH_OVERHEAD_BYTES[broker]
    if point.message.max_size_bytes > most_bytes:
        raise ScenarioError(
            f"message.size_bytes = {point.message.max_size_bytes}: {broker} takes at most {most_bytes} bytes as it is "
            f"shipped ({_LIMIT_NAMES[broker]} = {MAX_BYTES[broker]})"
        )
    if broker == "rabbitmq":
        return
    if settings["batch_size"] > MAX_BYTES[broker] and settings["compression_type"] == "none":
        raise ScenarioError(
            f"kafka.batch_size = {settings['batch_size']}: Kafka takes batches of at most {MAX_BYTES[broker]} bytes as "
            f"it is shipped ({_LIMIT_NAMES[broker]})"
        )
    if point.consumers > settings["partitions"]:
        raise ScenarioError(
            f"kafka.partitions = {settings['partitions']}: a partition has one consumer, so that of consumers = "
            f"{point.consumers} some would stay idle; expected at least {point.consumers}"
        )


def resolve(broker: BrokerName, knobs: Settings, durability: str, preset: str) -> Settings:
    """One value for every knob of the broker; raises ScenarioError where a knob contradicts the class."""
    if durability not in CLASS_DEMANDS:
        raise ScenarioError(
            f"durability = {durability}: needs three nodes, which come with the faults work; "
            f"expected one of {', '.join(CLASS_DEMANDS)}"
        )
    demands = CLASS_DEMANDS[durability][broker]
    for knob, demanded in demands.items():
        if knob in knobs and knobs[knob] != demanded and not _allowed(broker, durability, knob, knobs[knob]):
            raise ScenarioError(
                f"{broker}.{knob} = {knobs[knob]!r} contradicts durability class `{durability}`, which has "
                f"{knob} = {demanded!r}; drop the knob or choose another class"
            )
    settings = {**DEFAULTS[broker], **PRESETS[preset][broker], **demands, **knobs}
    if broker == "kafka" and settings["acks"] != "all" and "enable_idempotence" not in knobs:
        settings["enable_idempotence"] = False
    if broker == "rabbitmq" and "ack_every" not in knobs and settings["prefetch"] > 0:
        settings["ack_every"] = min(settings["ack_every"], settings["prefetch"])
    _refuse_impossible(broker, settings)
    return settings


def _allowed(broker: BrokerName, durability: str, knob: str, value: Any) -> bool:
    """Exceptions: on one replica acks=1 and acks=all take one path; class `none` may promise less than it keeps."""
    if broker == "kafka" and durability == "broker" and knob == "acks":
        return bool(value == "1")
    return durability == "none" and knob in {"persistent", "ack", "commit"}


def _refuse_impossible(broker: BrokerName, settings: Settings) -> None:
    if broker == "rabbitmq":
        if settings["queue_type"] == "quorum" and not settings["persistent"]:
            raise ScenarioError("rabbitmq.persistent = False: a quorum queue keeps every message on disk; use classic")
        if settings["queue_type"] == "quorum" and not 1 <= settings["prefetch"] <= 2_000:
            raise ScenarioError(
                f"rabbitmq.prefetch = {settings['prefetch']}: a quorum queue allows 1 … 2000 (its default limit)"
            )
        if settings["ack"] == "manual" and 0 < settings["prefetch"] < settings["ack_every"]:
            raise ScenarioError(
                f"rabbitmq.ack_every = {settings['ack_every']}: over prefetch = {settings['prefetch']}, so that every "
                "ack would wait for an idle consumer; expected at most prefetch"
            )
        return
    if settings["batch_size"] > settings["buffer_memory"]:
        raise ScenarioError(
            f"kafka.batch_size = {settings['batch_size']}: over buffer_memory = {settings['buffer_memory']}, so that "
            "no batch would ever be full; expected at most buffer_memory"
        )
    if settings["enable_idempotence"] and settings["acks"] != "all":
        raise ScenarioError(f"kafka.enable_idempotence = True needs acks = all, not {settings['acks']}")
    if settings["enable_idempotence"] and settings["max_in_flight_requests_per_connection"] > 5:
        raise ScenarioError("kafka.max_in_flight_requests_per_connection: at most 5 with enable_idempotence = True")
