"""What to measure: a scenario, its message, its rate and both brokers' knobs; checked when it is built.

Knobs carry the broker's own names and units. Any of them may be a list, which is a sweep. A knob left at None takes
the value that the durability class and the preset give it (`loadgen.knobs`); a knob that contradicts the class is
refused, never changed in silence.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from loadgen.backlog import MAX_MSGS, StartFrom
from loadgen.faults import At, Crash, Cut, Delay, Full, Kill, Pause, Reset, Restart, Throttle
from loadgen.kafka_part import Kafka
from loadgen.knobs import MAX_PROCESSES, has_keys, points
from loadgen.part import Millis, Part, Sweep, Whole, values_of
from loadgen.patterns import PatternKind
from loadgen.payload import STAMP_BYTES
from loadgen.rabbitmq_part import RabbitMQ

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.driver import Int64

__all__ = [
    "CURVE_FRACTIONS", "MAX_MESSAGE_BYTES", "At", "Crash", "Cut", "Delay", "Durability", "FromFile", "Full", "Kafka",
    "Kill", "Knobs", "LogNormal", "Message", "Pause", "RabbitMQ", "Rate", "Reset", "Restart", "Scenario", "SizeBytes",
    "Throttle", "Uniform",
]  # fmt: skip

MAX_MESSAGE_BYTES = 512 << 20


class Durability(StrEnum):
    """What a confirmed message survives; brokers are compared only within one class."""

    NONE = "none"
    BROKER = "broker"
    FLUSHED = "flushed"
    REPLICATED = "replicated"
    REPLICATED_FLUSHED = "replicated_flushed"


class Uniform(Part):
    """Sizes drawn evenly from `min_bytes` to `max_bytes`, both included."""

    min_bytes: int = Field(ge=STAMP_BYTES, le=MAX_MESSAGE_BYTES)
    """The smallest size."""
    max_bytes: int = Field(ge=STAMP_BYTES, le=MAX_MESSAGE_BYTES)
    """The largest size."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_bytes > self.max_bytes:
            raise ValueError(f"min_bytes {self.min_bytes} is over max_bytes {self.max_bytes}")
        return self

    @property
    def mean_bytes(self) -> float:
        """The expected size in bytes."""
        return (self.min_bytes + self.max_bytes) / 2

    def draw(self, rng: np.random.Generator, count: int) -> Int64:
        """Sizes in bytes as int64[count]."""
        return rng.integers(self.min_bytes, self.max_bytes + 1, count)


class LogNormal(Part):
    """Log-normal sizes of a given median and sigma (of the logarithm), clipped to 24 … `max_bytes`."""

    median_bytes: int = Field(ge=STAMP_BYTES, le=MAX_MESSAGE_BYTES)
    """Half of all messages are smaller."""
    sigma: float = Field(gt=0, le=4)
    """Of the logarithm of sizes: with 1, a third is over e times the median or under 1/e of it."""
    max_bytes: int = Field(default=1_000_000, ge=STAMP_BYTES, le=MAX_MESSAGE_BYTES)
    """What would be larger is of this size."""

    @property
    def mean_bytes(self) -> float:
        """The expected size in bytes, before clipping at most `max_bytes`."""
        return float(min(self.max_bytes, self.median_bytes * np.exp(self.sigma**2 / 2)))

    def draw(self, rng: np.random.Generator, count: int) -> Int64:
        """Sizes in bytes as int64[count]."""
        sizes = np.rint(rng.lognormal(np.log(self.median_bytes), self.sigma, count))
        return np.clip(sizes, STAMP_BYTES, self.max_bytes).astype(np.int64)


class FromFile(Part):
    """Sizes in bytes taken at random from a text file with one whole number a line."""

    path: Path
    """The file, seen from the folder in which the command is given."""

    @model_validator(mode="after")
    def _readable(self) -> Self:
        try:
            sizes = self._sizes()
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path}: {error}; expected one size in bytes a line") from None
        if not len(sizes) or sizes.min() < STAMP_BYTES or sizes.max() > MAX_MESSAGE_BYTES:
            raise ValueError(f"{self.path}: sizes must be {STAMP_BYTES} … {MAX_MESSAGE_BYTES} bytes, one a line")
        return self

    def _sizes(self) -> Int64:
        return np.array([int(line) for line in self.path.read_text().split()], np.int64)

    @property
    def max_bytes(self) -> int:
        """The largest of the file's sizes in bytes."""
        return int(self._sizes().max())

    @property
    def mean_bytes(self) -> float:
        """The mean of the file's sizes in bytes."""
        return float(self._sizes().mean())

    def draw(self, rng: np.random.Generator, count: int) -> Int64:
        """Sizes in bytes as int64[count]."""
        return rng.choice(self._sizes(), count)


SizeBytes = Annotated[int, Field(ge=STAMP_BYTES, le=MAX_MESSAGE_BYTES)]
_Compressibility = Annotated[float, Field(ge=0, le=0.95)]
_Keys = Annotated[int, Field(ge=0, le=1_000_000)]
_KeyExponent = Annotated[float, Field(ge=0, le=4)]


class Message(Part):
    """What is sent: its size, how far a codec can compress it, and over how many keys it spreads."""

    size_bytes: SizeBytes | Sweep[SizeBytes] | Uniform | LogNormal | FromFile = 1024
    """The whole message, stamp included: a number, a list (a sweep) or a distribution."""
    compressibility: _Compressibility | Sweep[_Compressibility] = 0.0
    """The share of each body that a codec can remove; 0 is random bytes."""
    keys: _Keys | Sweep[_Keys] = 0
    """Over how many keys messages spread; 0 is no key."""
    key_exponent: _KeyExponent | Sweep[_KeyExponent] = 0.0
    """Zipf's exponent s: key number k (from 0) is as frequent as 1 / (k + 1)^s; 0 is all alike."""

    @model_validator(mode="after")
    def _keyed(self) -> Self:
        exponent, fewest = max(values_of(self.key_exponent)), min(values_of(self.keys))
        if exponent and not fewest:
            raise ValueError(f"key_exponent = {exponent:g}: there are no keys to spread; expected keys ≥ 1")
        return self

    @property
    def key_count(self) -> int:
        """Over how many keys messages spread, 0 without any; a sweep must have been resolved to one value before."""
        assert isinstance(self.keys, int), "a sweep of keys is resolved by the plan"
        return self.keys

    @property
    def mean_size_bytes(self) -> float:
        """The expected size in bytes."""
        if isinstance(self.size_bytes, list):
            return float(np.mean(self.size_bytes))
        return float(self.size_bytes) if isinstance(self.size_bytes, int) else self.size_bytes.mean_bytes

    @property
    def max_size_bytes(self) -> int:
        """The largest size in bytes that can occur."""
        if isinstance(self.size_bytes, list):
            return max(self.size_bytes)
        return self.size_bytes if isinstance(self.size_bytes, int) else self.size_bytes.max_bytes

    def draw_sizes(self, rng: np.random.Generator, count: int) -> Int64:
        """Sizes in bytes as int64[count]; a sweep must have been resolved to one value before."""
        assert not isinstance(self.size_bytes, list), "a sweep of sizes is resolved by the plan"
        if isinstance(self.size_bytes, int):
            return np.full(count, self.size_bytes, np.int64)
        return self.size_bytes.draw(rng, count)


RateMsgs = Annotated[float, Field(gt=0, le=1e9)]
_BurstTimes = Annotated[int, Field(ge=2, le=10_000)]
_BurstSeconds = Annotated[float, Field(ge=0.001, le=86_400)]


CURVE_FRACTIONS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1)
_Fraction = Annotated[float, Field(gt=0, le=2)]


class Rate(Part):
    """When messages are sent. Use `Rate.fixed`, `.poisson`, `.ramp`, `.burst`, `.saturate`, `.search` or `.curve`."""

    kind: Literal["fixed", "poisson", "ramp", "burst", "saturate", "search", "curve"]
    """Which of the ways above it was made in."""
    msgs_per_s: RateMsgs | Sweep[RateMsgs] | None = None
    """All producers together; for a ramp, where it begins; between bursts."""
    to_msgs_per_s: RateMsgs | None = None
    """Where a ramp ends."""
    burst_times: _BurstTimes | Sweep[_BurstTimes] | None = None
    """How many times `msgs_per_s` a burst has."""
    burst_s: _BurstSeconds | None = None
    """How long a burst lasts."""
    every_s: _BurstSeconds | None = None
    """From the begin of a burst to that of the next; the first begins with the trial."""
    p99_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = None
    """A search's objective: the p99 of the end-to-end response time that the rate must keep, in ms."""
    enough_msgs_per_s: RateMsgs | None = None
    """Of a search: the rate above which none is tried, where it is enough to know that so much is sustained."""
    fractions: Sweep[_Fraction] | None = None
    """Of a curve: the shares of the scenario's capacity at which latency is measured; over 1 is overload."""

    @classmethod
    def fixed(cls, msgs_per_s: float | list[float]) -> Self:
        """Evenly spaced messages, an open loop; a list is a sweep."""
        return cls(kind="fixed", msgs_per_s=msgs_per_s)

    @classmethod
    def poisson(cls, msgs_per_s: float | list[float]) -> Self:
        """Independent arrivals with exponential gaps, an open loop; a list is a sweep."""
        return cls(kind="poisson", msgs_per_s=msgs_per_s)

    @classmethod
    def ramp(cls, from_msgs_per_s: float, to_msgs_per_s: float) -> Self:
        """A rate that changes linearly over warm-up and measurement together, an open loop."""
        return cls(kind="ramp", msgs_per_s=from_msgs_per_s, to_msgs_per_s=to_msgs_per_s)

    @classmethod
    def burst(cls, msgs_per_s: float | list[float], times: int | list[int], burst_s: float, every_s: float) -> Self:
        """Evenly spaced messages, and in the first `burst_s` of each `every_s` so many times as many: an open loop.

        A list is a sweep.
        """
        return cls(kind="burst", msgs_per_s=msgs_per_s, burst_times=times, burst_s=burst_s, every_s=every_s)

    @classmethod
    def saturate(cls) -> Self:
        """As fast as it goes with a bounded number in flight (`confirm_window`, `buffer_memory`): a closed loop."""
        return cls(kind="saturate")

    @classmethod
    def search(cls, p99_ms: float | None = None, enough_msgs_per_s: float | None = None) -> Self:
        """The highest rate that is sustained, found by measuring; with `p99_ms`, the highest that keeps that too.

        No rate above `enough_msgs_per_s` is tried.
        """
        return cls(kind="search", p99_ms=p99_ms, enough_msgs_per_s=enough_msgs_per_s)

    @classmethod
    def curve(cls, fractions: Sequence[float] = CURVE_FRACTIONS, p99_ms: float | None = None) -> Self:
        """Latency against load: the capacity is searched first, then each of its fractions is an open loop."""
        return cls(kind="curve", fractions=list(fractions), p99_ms=p99_ms)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        unrated = self.kind in {"saturate", "search", "curve"}
        if unrated != (self.msgs_per_s is None):
            raise ValueError(f"Rate.{self.kind} {'takes no' if unrated else 'needs a'} rate")
        if (self.kind == "ramp") != (self.to_msgs_per_s is not None):
            raise ValueError("only Rate.ramp goes from one rate to another, and it needs both")
        bursts = (self.burst_times, self.burst_s, self.every_s)
        if {each is None for each in bursts} != {self.kind != "burst"}:
            raise ValueError("only Rate.burst has bursts, and it needs burst_times, burst_s and every_s")
        if self.burst_s is not None and self.every_s is not None and self.burst_s >= self.every_s:
            raise ValueError(f"burst_s = {self.burst_s:g}: expected less than every_s = {self.every_s:g}")
        if (self.kind == "curve") != (self.fractions is not None):
            raise ValueError("only Rate.curve takes fractions of the capacity, and it needs some")
        if self.enough_msgs_per_s is not None and self.kind != "search":
            raise ValueError(f"Rate.{self.kind} takes no enough_msgs_per_s: it ends a Rate.search")
        if self.p99_ms is not None and self.kind not in {"search", "curve"}:
            raise ValueError(f"Rate.{self.kind} takes no p99_ms: it is the objective of Rate.search and Rate.curve")
        return self

    @property
    def needs_capacity(self) -> bool:
        """Whether the rate is only known once a capacity has been searched."""
        return self.kind in {"search", "curve"}

    @property
    def peak_msgs_per_s(self) -> float | None:
        """The highest rate of its schedule; None where no scenario said any."""
        if self.msgs_per_s is None:
            return None
        highest = max(values_of(self.msgs_per_s)) * max(values_of(self.burst_times or 1))
        return max(highest, self.to_msgs_per_s or 0)

    @property
    def is_open_loop(self) -> bool:
        """Whether intended times exist, so that response times do."""
        return self.kind != "saturate"


_Think = Literal["fixed", "exponential"]
_Spread = Annotated[float, Field(ge=1, le=1_000)]
_Timeout = Annotated[float, Field(gt=0, le=60_000)]
Knobs = RabbitMQ | Kafka
_BacklogMsgs = Annotated[int, Field(ge=2, le=MAX_MSGS)]
_BacklogBytes = Annotated[int, Field(ge=1, le=1 << 50)]
_Seconds = Annotated[float, Field(ge=0, le=86_400)]
_Processes = Annotated[int, Field(ge=0, le=MAX_PROCESSES)]
_Producers = Annotated[int, Field(ge=1, le=MAX_PROCESSES)]
_Subscribers = Annotated[int, Field(ge=1, le=MAX_PROCESSES)]


PHASES = ("backlog_msgs", "backlog_bytes", "backlog_s", "joins_at_s", "leaves_at_s")


class Scenario(Part):
    """One question, asked of one or both brokers; see the class's fields for what can be varied."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Lower case, digits and hyphens: it names folders, queues and topics."""
    question: str = Field(min_length=1, max_length=300)
    """What the reader wants to know, in one sentence."""
    message: Message = Message()
    """What is sent."""
    rate: Rate
    """When it is sent."""
    producers: _Producers | Sweep[_Producers] = 1
    """Processes that send; the rate is that of all of them together."""
    consumers: _Processes | Sweep[_Processes] = 1
    """Of each subscriber; they compete for its messages."""
    subscribers: _Subscribers | Sweep[_Subscribers] = 1
    """How many receive every message: each a queue of its own in RabbitMQ, a consumer group in Kafka."""
    think_ms: Millis | Sweep[Millis] = 0.0
    """How long a consumer works on each message before it acknowledges it, on average; a batch of n takes n times."""
    think: _Think | Sweep[_Think] = "fixed"
    """Whether each message takes as long, or exponentially distributed times with that mean."""
    think_spread: _Spread | Sweep[_Spread] = 1.0
    """How many times as long the slowest consumer of a subscriber works on a message as the fastest; those between by
    equal factors, and all together as many messages a second as if each took `think_ms`. 1: all are alike."""
    backlog_msgs: _BacklogMsgs | Sweep[_BacklogMsgs] | None = None
    """Messages that are written, as fast as it goes, before consumers begin; then producers go on at the rate, or, with
    Rate.saturate(), stop: a replay."""
    backlog_bytes: _BacklogBytes | Sweep[_BacklogBytes] | None = None
    """The same by size: as many messages as come to so many bytes."""
    backlog_s: _Seconds | Sweep[_Seconds] | None = None
    """The same by time: as many messages as the rate offers while consumers are away for so many seconds."""
    start_from: StartFrom | Sweep[StartFrom] = "beginning"
    """Where in the backlog consumers begin: Kafka and streams seek to the offset or the time of its middle, or to its
    end; a queue has its beginning only."""
    joins_at_s: _Seconds | Sweep[_Seconds] | None = None
    """When the last consumer joins, in s since the measured window began; None: before it, with the others."""
    leaves_at_s: _Seconds | Sweep[_Seconds] | None = None
    """When the last consumer leaves; None: at the end, with the others."""
    pattern: PatternKind = "one_way"
    """one_way; request_reply: producers send requests, consumers reply to each after they have worked on it; process:
    processors make a result of each message, for consumers that receive these."""
    processors: _Producers | Sweep[_Producers] | None = None
    """Of process: how many consume, transform and produce; None is 1."""
    timeout_ms: _Timeout | Sweep[_Timeout] | None = None
    """Of request_reply: how long a requester waits for each reply (ms) before it gives the request up; None is 30 s."""
    requests_in_flight: Whole | Sweep[Whole] | None = None
    """Of request_reply in a closed loop: how many requests of each requester wait for replies at once; None is 100."""
    faults: list[At] = Field(default_factory=list, max_length=100)
    """What is done to local brokers in each trial, and when, such as `[At("10s", Kill("leader"))]`."""
    durability: Durability | Sweep[Durability] = Durability.BROKER
    """What a confirmed message survives; brokers are compared only within one class."""
    rabbitmq: RabbitMQ | None = None
    """RabbitMQ's knobs; left out, it is not asked."""
    kafka: Kafka | None = None
    """Kafka's knobs; left out, it is not asked."""
    preset: Literal["default", "low_latency", "throughput"] = "default"
    """Client settings of both brokers in one spirit; single knobs win over it."""
    warmup_s: float | None = Field(default=None, ge=0, le=3_600)
    """Messages intended before this are not measured; None takes the profile's."""
    duration_s: float | None = Field(default=None, gt=0, le=7 * 86_400)
    """The measured window; None takes the profile's."""
    profile_share: float = Field(default=1.0, gt=0, le=1)
    """Which share of the profile's warm-up and window is enough: suites of many scenarios have little time each."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.rabbitmq is None and self.kafka is None:
            raise ValueError("expected rabbitmq=RabbitMQ(…), kafka=Kafka(…) or both")
        if self.rate.needs_capacity and 0 in values_of(self.consumers):
            raise ValueError(f"Rate.{self.rate.kind}: expected consumers, whose rate it is")
        found = list(points(self))  # raises on the first impossible combination
        is_keyed = max(values_of(self.message.keys)) > 0
        if is_keyed and not any(has_keys(each.broker, each.settings) for each in found):
            raise ValueError(f"message.keys = {self.message.keys}: one RabbitMQ queue has no use for keys; expected 0")
        return self

    @property
    def phased_by(self) -> str | None:
        """The knob that gives its trials phases, which only our own fleet keeps; None where they have none."""
        return next((knob for knob in PHASES if getattr(self, knob) is not None), None)

    def locust_users(self) -> dict[str, type]:
        """Locust user classes for this scenario while Locust is loading the file, else nothing."""
        if "locust" not in sys.modules:
            return {}
        from loadgen.locust.files import users_of  # noqa: PLC0415 - only Locust's own process may import it

        return dict(users_of(self))
