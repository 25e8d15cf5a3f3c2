"""What a scenario's knobs come to: every combination of a sweep, resolved to one value each, or refused.

The order of authority: a knob that the scenario sets, then what the durability class demands, then the preset, then
the default that stands here. Class and knob may not contradict each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from loadgen import backlog, faults, kafka_knobs, membership, patterns, rabbitmq_knobs, stream_knobs
from loadgen.backlog import Backlog
from loadgen.errors import ScenarioError
from loadgen.membership import Membership
from loadgen.patterns import Pattern
from loadgen.think import Think

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loadgen.endpoint import BrokerName
    from loadgen.faults import At
    from loadgen.scenario import Durability, Message, Rate, Scenario

Settings = dict[str, Any]

MAX_PROCESSES = 256  # of one role in a trial

CONFIRMED: Settings = {"durable": True, "persistent": True, "confirms": True, "ack": "manual"}
# A quorum queue flushes before it confirms, on most of its members: in class `replicated` it keeps more than it must.
REPLICATED_QUEUE: Settings = {**CONFIRMED, "queue_type": "quorum", "quorum_initial_group_size": 3}
REPLICATED_TOPIC: Settings = {
    "acks": "all", "enable_idempotence": True, "replication_factor": 3, "min_insync_replicas": 2, "commit": "after",
}  # fmt: skip

# What each class demands of a broker (design: "durability class"); a knob may repeat it, not contradict it.
CLASS_DEMANDS: dict[str, dict[BrokerName, Settings]] = {
    "none": {
        "rabbitmq": {"queue_type": "classic", "persistent": False, "confirms": False, "ack": "automatic"},
        "kafka": {"acks": "0", "enable_idempotence": False, "flush_messages": None, "commit": "before"},
    },
    "broker": {
        "rabbitmq": {**CONFIRMED, "queue_type": "classic"},
        "kafka": {"acks": "all", "flush_messages": None, "commit": "after"},
    },
    "flushed": {
        "rabbitmq": {**CONFIRMED, "queue_type": "quorum"},
        "kafka": {"acks": "all", "flush_messages": 1, "commit": "after"},
    },
    "replicated": {"rabbitmq": REPLICATED_QUEUE, "kafka": {**REPLICATED_TOPIC, "flush_messages": None}},
    "replicated_flushed": {"rabbitmq": REPLICATED_QUEUE, "kafka": {**REPLICATED_TOPIC, "flush_messages": 1}},
}
NODES = {"replicated": 3, "replicated_flushed": 3}
"""How many nodes the brokers of a class have, where it is not one."""

# Client settings that no class demands.
DEFAULTS: dict[BrokerName, Settings] = {"rabbitmq": rabbitmq_knobs.DEFAULTS, "kafka": kafka_knobs.DEFAULTS}
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


class Site(NamedTuple):
    """Which brokers a trial runs on: their number of nodes, and whether these reach each other through a proxy."""

    nodes: int = 1
    is_linked: bool = False

    @classmethod
    def of(cls, durability: str, hurt: tuple[At, ...]) -> Site:
        """As a class demands, and faults between nodes."""
        return cls(NODES.get(str(durability), 1), faults.needs_links(hurt))


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
    subscribers: int = 1
    think: Think = field(default_factory=Think)
    backlog: Backlog = field(default_factory=Backlog)
    membership: Membership = field(default_factory=Membership)
    faults: tuple[At, ...] = ()
    pattern: Pattern = field(default_factory=Pattern)


def points(scenario: Scenario) -> Iterator[Point]:
    """Every point of the scenario, RabbitMQ's first; raises ScenarioError on the first impossible one."""
    for broker in ("rabbitmq", "kafka"):
        if getattr(scenario, broker) is not None:
            yield from _points_of(scenario, broker)


def _points_of(scenario: Scenario, broker: BrokerName) -> Iterator[Point]:
    given = getattr(scenario, broker).model_dump(exclude_none=True)
    body = {name: getattr(scenario.message, name) for name in type(scenario.message).model_fields}
    shared: dict[str, Any] = {
        "durability": scenario.durability,
        **body,
        "msgs_per_s": scenario.rate.msgs_per_s,
        "producers": scenario.producers,
        "consumers": scenario.consumers,
        "subscribers": scenario.subscribers,
        "think_ms": scenario.think_ms,
        "think": scenario.think,
        "think_spread": scenario.think_spread,
        **{name: getattr(scenario, name) for name in (*backlog.SIZES, "start_from", "joins_at_s", "leaves_at_s")},
        **patterns.own_axes(scenario),
    }
    if scenario.rate.burst_times is not None:
        shared["burst_times"] = scenario.rate.burst_times
    if scenario.rate.fractions is not None:
        shared["fraction"] = scenario.rate.fractions
    axes = {**shared, **{f"{broker}.{knob}": value for knob, value in given.items()}}
    swept_names = [name for name, value in axes.items() if isinstance(value, list)]
    for values in product(*(value if isinstance(value, list) else [value] for value in axes.values())):
        chosen = dict(zip(axes, values, strict=True))
        knobs = {name.partition(".")[2]: value for name, value in chosen.items() if name.startswith(f"{broker}.")}
        durability = chosen["durability"]
        message = scenario.message.model_copy(update={name: chosen[name] for name in body})
        if scenario.faults and knobs["driver"] == "amqp":
            knobs.setdefault("recover_within_s", faults.RECOVER_WITHIN_S)
        settings = resolve(broker, knobs, str(durability), scenario.preset)
        pattern = patterns.pattern_of(scenario, chosen)
        if "exchange" in settings:
            rabbitmq_knobs.complete(settings, chosen["subscribers"])
        elif broker == "kafka":
            kafka_knobs.complete(settings, message)
        patterns.complete(settings, pattern, knobs)
        point = Point(
            broker=broker,
            driver=settings.pop("driver"),
            durability=durability,
            message=message,
            rate=_rate(scenario.rate, chosen),
            producers=chosen["producers"],
            consumers=chosen["consumers"],
            settings=settings,
            swept={name: chosen[name] for name in swept_names},
            subscribers=chosen["subscribers"],
            think=Think(chosen["think"], chosen["think_ms"], chosen["think_spread"]),
            membership=membership.membership_of(chosen),
            faults=tuple(scenario.faults),
            pattern=pattern,
        )
        point = replace(point, backlog=backlog.backlog_of(chosen, point.rate, point.message))
        _refuse_unfit(point)
        yield point


def has_keys(broker: BrokerName, settings: Settings) -> bool:
    """Whether a message's key decides where it goes."""
    return broker == "kafka" or settings.get("queues", 1) > 1 or settings.get("partitions", 1) > 1


def _rate(rate: Rate, chosen: Settings) -> Rate:
    one: Settings = {"msgs_per_s": chosen["msgs_per_s"], "burst_times": chosen.get("burst_times")}
    if "fraction" in chosen:
        one["fractions"] = [chosen["fraction"]]
    return rate.model_copy(update=one)


def _refuse_unfit(point: Point) -> None:
    """Raise ScenarioError where message, consumers and settings cannot go together on the broker as it is shipped."""
    if point.subscribers > 1 and not point.consumers:
        raise ScenarioError(f"subscribers = {point.subscribers}: nobody consumes for them; expected consumers ≥ 1")
    if point.subscribers * point.consumers > MAX_PROCESSES:
        raise ScenarioError(
            f"subscribers = {point.subscribers}: with consumers = {point.consumers} each, more than {MAX_PROCESSES} "
            "processes; expected fewer"
        )
    if point.think.spread > 1 and (not point.think.mean_ms or point.consumers < 2):
        why = f"consumers = {point.consumers}" if point.think.mean_ms else "think_ms = 0"
        raise ScenarioError(
            f"think_spread = {point.think.spread:g}: with {why} nobody is slower than another; expected think_ms > 0 "
            "and consumers ≥ 2, or think_spread = 1"
        )
    backlog.refuse_unseekable(point.broker, point.driver, point.settings, point.backlog)
    membership.refuse_ungrouped(point.broker, point.driver, point.settings, point.membership)
    faults.refuse_unfit(point.faults, point, NODES.get(str(point.durability), 1))
    patterns.refuse_unfit(point)
    if point.broker == "kafka":
        kafka_knobs.refuse_unfit(point.settings, point.message, point.consumers)
    elif point.driver in stream_knobs.DRIVERS:
        stream_knobs.refuse_unfit(point.settings, point.message, point.consumers)
    else:
        rabbitmq_knobs.refuse_unfit(point.settings, point.consumers)


def refuse_sites(a: Sequence[Point], b: Sequence[Point]) -> None:
    """Raise ScenarioError where a pair needs brokers that do not stand side by side."""
    for one, other in zip(a, b, strict=True):
        sites = [Site.of(each.durability, each.faults) for each in (one, other)]
        if sites[0].nodes != sites[1].nodes:
            raise ScenarioError(
                f"A has durability {one.durability} and B {other.durability}: brokers of one node and of three do not "
                "stand side by side, so that such trials cannot be interleaved; expected classes of one size"
            )
        if sites[0] != sites[1]:
            raise ScenarioError(
                "faults: of A and B one has faults between nodes, which need brokers of their own, so that such trials "
                "cannot be interleaved; expected such faults in both or in none"
            )


def resolve(broker: BrokerName, knobs: Settings, durability: str, preset: str) -> Settings:
    """One value for every knob of the broker; raises ScenarioError where a knob contradicts the class."""
    if durability not in CLASS_DEMANDS:
        raise ScenarioError(f"durability = {durability}: is no class; expected one of {', '.join(CLASS_DEMANDS)}")
    if broker == "rabbitmq" and knobs.get("driver") in stream_knobs.DRIVERS:
        return stream_knobs.resolve(knobs, durability, preset)
    if broker == "rabbitmq":
        stream_knobs.refuse_elsewhere(knobs)
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
    if broker == "kafka":
        kafka_knobs.derive(settings)
        kafka_knobs.refuse_impossible(settings, NODES.get(durability, 1))
        kafka_knobs.refuse_idle(settings, knobs)
    else:
        rabbitmq_knobs.derive(settings, knobs)
        rabbitmq_knobs.refuse_impossible(settings, NODES.get(durability, 1))
        rabbitmq_knobs.refuse_idle(settings, knobs)
    return settings


def _allowed(broker: BrokerName, durability: str, knob: str, value: Any) -> bool:
    """Exceptions: on one replica acks=1 and acks=all take one path; a class may promise less than it keeps."""
    if durability == "broker" and broker == "kafka":
        return knob == "flush_messages" or (knob == "acks" and value == "1")
    if durability == "broker":
        return knob == "queue_type" and value == "quorum"
    if durability in NODES:  # with all copies in step more is kept, and nothing written while one is missing
        return knob == "min_insync_replicas" and int(value) >= REPLICATED_TOPIC[knob]
    return durability == "none" and knob in {"persistent", "confirms", "ack", "acks", "commit"}
