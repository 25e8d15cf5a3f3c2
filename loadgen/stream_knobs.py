"""The knobs of RabbitMQ's streams (driver `stream`), resolved to one value each or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadgen.errors import ScenarioError

if TYPE_CHECKING:
    from loadgen.scenario import Message

Settings = dict[str, Any]

DRIVERS = frozenset({"stream", "rstream"})
PLAIN_KNOBS: Settings = {"sub_entry_size": 1, "single_active_consumer": False}  # of rstream's driver

# A stream's broker writes a message before it confirms it and never flushes: what was confirmed survives kill -9. Its
# protocol has no publishing without confirms.
_DEMANDS: Settings = {"queue_type": "stream", "persistent": True, "confirms": True}
DEMANDS: dict[str, Settings] = {"broker": _DEMANDS, "replicated": {**_DEMANDS, "initial_cluster_size": 3}}
# The Java client's: as many unconfirmed, chunks of credit, and time between two stored offsets.
DEFAULTS: Settings = {
    "confirm_window": 10_000,
    "credits": 10,
    "partitions": 1,
    "sub_entry_size": 1,
    "compression": "none",
    "deduplication": False,
    "single_active_consumer": False,
    "store_offset_interval_ms": 5_000,
    "max_length_bytes": None,
    "max_age": None,
    "max_segment_size_bytes": None,
    "initial_cluster_size": None,
    "heartbeat": 60,
}
PRESETS: dict[str, Settings] = {"default": {}, "low_latency": {}, "throughput": {"confirm_window": 20_000}}
MAX_FRAME_BYTES = 1 << 20  # stream.frame_max as shipped: of one publish, with all that stands around its message
FRAMING_BYTES = 64


def resolve(knobs: Settings, durability: str, preset: str) -> Settings:
    """One value for every knob; raises ScenarioError where one does not apply or contradicts the class."""
    if durability not in DEMANDS:
        raise ScenarioError(
            f"rabbitmq.driver = {knobs['driver']}: a stream confirms what it has written and never flushes, which "
            f"durability class `{durability}` is not; expected {' or '.join(DEMANDS)}"
        )
    demands = DEMANDS[durability]
    for knob, value in knobs.items():
        if knob in demands and value != demands[knob]:
            raise ScenarioError(f"rabbitmq.{knob} = {value!r}: a stream has {knob} = {demands[knob]!r}; drop the knob")
        if knob not in {"driver", *DEFAULTS, *demands}:
            raise ScenarioError(f"rabbitmq.{knob}: driver stream has no such knob; there are {', '.join(DEFAULTS)}")
    settings = {**DEFAULTS, **PRESETS[preset], **demands, **knobs}
    for knob, only in PLAIN_KNOBS.items() if knobs["driver"] == "rstream" else ():
        if settings[knob] != only:
            raise ScenarioError(f"rabbitmq.{knob} = {settings[knob]}: needs driver = stream; expected {only}")
    if settings["sub_entry_size"] == 1 and settings["compression"] != "none":
        raise ScenarioError(
            f"rabbitmq.compression = {settings['compression']}: sub-entries are what is compressed; expected "
            "sub_entry_size > 1"
        )
    if settings["sub_entry_size"] > 1 and settings["deduplication"]:
        raise ScenarioError(
            "rabbitmq.sub_entry_size: a publishing id stands for a whole sub-entry, by which resent messages cannot be "
            "told apart; expected deduplication = False"
        )
    return settings


def refuse_elsewhere(knobs: Settings) -> None:
    """Raise ScenarioError where a driver of queues is given a knob of streams."""
    own = sorted(set(knobs) & (set(DEFAULTS) - {"confirm_window", "heartbeat", "max_length_bytes"}))
    if own:
        raise ScenarioError(f"rabbitmq.{own[0]}: a knob of streams; expected driver = stream or rstream")


def refuse_unfit(settings: Settings, message: Message, consumers: int) -> None:
    """Raise ScenarioError where message, consumers and settings cannot go together."""
    if message.max_size_bytes > MAX_FRAME_BYTES - FRAMING_BYTES:
        raise ScenarioError(
            f"message.size_bytes = {message.max_size_bytes}: a stream takes at most {MAX_FRAME_BYTES - FRAMING_BYTES} "
            f"bytes as it is shipped (stream.frame_max = {MAX_FRAME_BYTES})"
        )
    if consumers > settings["partitions"] and not settings["single_active_consumer"]:
        raise ScenarioError(
            f"rabbitmq.partitions = {settings['partitions']}: each consumer of a stream gets all of it, so a partition "
            f"has one consumer, and of consumers = {consumers} some would stay idle; expected at least {consumers} "
            "(or single_active_consumer = True)"
        )
