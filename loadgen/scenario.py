"""What to measure: a scenario, its message, its rate and both brokers' knobs; checked when it is built.

Knobs carry the broker's own names and units. Any of them may be a list, which is a sweep. A knob left at None takes
the value that the durability class and the preset give it (`loadgen.knobs`); a knob that contradicts the class is
refused, never changed in silence.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from loadgen.knobs import MAX_PROCESSES, has_keys, points
from loadgen.part import Part
from loadgen.part import Sweep as _Sweep
from loadgen.payload import STAMP_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.driver import Int64

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
    max_bytes: int = Field(ge=STAMP_BYTES, le=MAX_MESSAGE_BYTES)

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
    sigma: float = Field(gt=0, le=4)
    max_bytes: int = Field(default=1_000_000, ge=STAMP_BYTES, le=MAX_MESSAGE_BYTES)

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


class Message(Part):
    """What is sent: its size, how far a codec can compress it, and over how many keys it spreads."""

    size_bytes: SizeBytes | _Sweep[SizeBytes] | Uniform | LogNormal | FromFile = 1024
    """The whole message, stamp included: a number, a list (a sweep) or a distribution."""
    compressibility: float = Field(default=0.0, ge=0, le=0.95)
    """The share of each body that a codec can remove; 0 is random bytes."""
    keys: int = Field(default=0, ge=0, le=1_000_000)
    """Over how many keys messages spread; 0 is no key."""
    key_exponent: float = Field(default=0.0, ge=0, le=4)
    """Zipf's exponent s: key number k (from 0) is as frequent as 1 / (k + 1)^s; 0 is all alike."""

    @model_validator(mode="after")
    def _keyed(self) -> Self:
        if self.key_exponent and not self.keys:
            raise ValueError(f"key_exponent = {self.key_exponent:g}: there are no keys to spread; expected keys ≥ 1")
        return self

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


CURVE_FRACTIONS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1)
_Fraction = Annotated[float, Field(gt=0, le=2)]


class Rate(Part):
    """When messages are sent. Use `Rate.fixed`, `.poisson`, `.ramp`, `.saturate`, `.search` or `.curve`."""

    kind: Literal["fixed", "poisson", "ramp", "saturate", "search", "curve"]
    msgs_per_s: RateMsgs | _Sweep[RateMsgs] | None = None
    """All producers together; for a ramp, where it begins."""
    to_msgs_per_s: RateMsgs | None = None
    """Where a ramp ends."""
    p99_ms: Annotated[float, Field(gt=0, le=3_600_000)] | None = None
    """A search's objective: the p99 of the end-to-end response time that the rate must keep, in ms."""
    fractions: _Sweep[_Fraction] | None = None
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
    def saturate(cls) -> Self:
        """As fast as it goes with a bounded number in flight (`confirm_window`, `buffer_memory`): a closed loop."""
        return cls(kind="saturate")

    @classmethod
    def search(cls, p99_ms: float | None = None) -> Self:
        """The highest rate that is sustained, found by measuring; with `p99_ms`, the highest that keeps that too."""
        return cls(kind="search", p99_ms=p99_ms)

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
        if (self.kind == "curve") != (self.fractions is not None):
            raise ValueError("only Rate.curve takes fractions of the capacity, and it needs some")
        if self.p99_ms is not None and self.kind not in {"search", "curve"}:
            raise ValueError(f"Rate.{self.kind} takes no p99_ms: it is the objective of Rate.search and Rate.curve")
        return self

    @property
    def needs_capacity(self) -> bool:
        """Whether the rate is only known once a capacity has been searched."""
        return self.kind in {"search", "curve"}

    @property
    def is_open_loop(self) -> bool:
        """Whether intended times exist, so that response times do."""
        return self.kind != "saturate"


def _acks_word(value: Any) -> Any:
    """Kafka's other ways of writing `acks`, as the one that is kept."""
    return {0: "0", 1: "1", -1: "all", "-1": "all"}.get(value, value) if isinstance(value, str | int) else value


_Whole = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Counted = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Millis = Annotated[float, Field(ge=0, le=3_600_000)]
_Flag = Annotated[bool, Field(strict=True)]
_Prefetch = Annotated[int, Field(ge=0, le=65_535)]
_Acks = Annotated[Literal["0", "1", "all"], BeforeValidator(_acks_word)]
_Commit = Literal["before", "after"]
_CommitMode = Literal["auto", "sync", "async"]
_Partitioner = Literal["murmur2", "sticky", "round_robin", "explicit"]
_Isolation = Literal["read_uncommitted", "read_committed"]
_GroupProtocol = Literal["static", "classic", "consumer"]
_Replicas = Annotated[int, Field(ge=1, le=100)]
_Limit = Annotated[int, Field(ge=-1, le=2**63 - 1)]
_SegmentBytes = Annotated[int, Field(ge=1 << 20, le=2**31 - 1)]
_TopicMessageBytes = Annotated[int, Field(ge=1_024, le=64 << 20)]
_TransactionMsgs = Annotated[int, Field(ge=1, le=1_000_000)]
_TransactionMillis = Annotated[float, Field(gt=0, le=400_000)]
_Group = Literal["partitions", "share"]
_AcquireMode = Literal["batch_optimized", "record_limit"]
_Deliveries = Annotated[int, Field(ge=2, le=10)]
_Locks = Annotated[int, Field(ge=100, le=4_000)]  # these three: what a broker as it is shipped allows a group
_LockMillis = Annotated[int, Field(ge=15_000, le=60_000)]
_Think = Literal["fixed", "exponential"]
_Codec = Literal["none", "gzip", "snappy", "lz4", "zstd"]
_QueueType = Literal["classic", "quorum", "stream"]
_Exchange = Literal["default", "direct", "fanout", "topic", "headers", "consistent-hash"]
_Bindings = Annotated[int, Field(ge=1, le=10_000)]
_Queues = Annotated[int, Field(ge=1, le=256)]
_RabbitMQDriver = Literal["amqp", "stream", "pika", "pika-blocking"]
_StreamPartitions = Annotated[int, Field(ge=1, le=200)]
_SubEntry = Annotated[int, Field(ge=1, le=65_535)]
_Credits = Annotated[int, Field(ge=2, le=65_535)]
_Age = Annotated[str, Field(pattern=r"^[1-9][0-9]*[YMDhms]$")]
_KafkaDriver = Literal["kafka", "confluent"]
_Ack = Literal["automatic", "manual"]
_InFlight = Annotated[int, Field(ge=1, le=1_000)]
_Partitions = Annotated[int, Field(ge=1, le=10_000)]


class RabbitMQ(Part):
    """RabbitMQ's knobs; a list is a sweep, None is what class and preset give."""

    driver: _RabbitMQDriver | _Sweep[_RabbitMQDriver] = "amqp"
    """amqp: frames made by numpy, what the broker can do; stream: the same with RabbitMQ's stream protocol. pika,
    pika-blocking: what an application gets."""
    queue_type: _QueueType | _Sweep[_QueueType] | None = None
    """x-queue-type; classes `none` and `broker` are classic, `flushed` is quorum; driver stream has streams."""
    exchange: _Exchange | _Sweep[_Exchange] | None = None
    """The type of the exchange that messages are published to; None is the default exchange for one subscriber, fanout
    for more of them (direct where each has several queues)."""
    bindings: _Bindings | _Sweep[_Bindings] | None = None
    """Bindings of each queue to the exchange: the first one routes, the others are what it has to look through."""
    queues: _Queues | _Sweep[_Queues] | None = None
    """Over how many queues one subscriber's messages are spread by their routing keys, in order within each."""
    persistent: _Flag | _Sweep[_Flag] | None = None
    """delivery_mode 2; only class `none` may be transient."""
    confirms: _Flag | _Sweep[_Flag] | None = None
    """Publisher confirms; every class but `none` has them."""
    confirm_window: _Whole | _Sweep[_Whole] | None = None
    """How many messages may be unconfirmed at once, per producer (without confirms: sent and not received)."""
    prefetch: _Prefetch | _Sweep[_Prefetch] | None = None
    """basic.qos prefetch count per consumer; 0 is unlimited."""
    ack: _Ack | _Sweep[_Ack] | None = None
    """Automatic acknowledges on delivery; manual after processing (every class but `none`)."""
    ack_every: _Whole | _Sweep[_Whole] | None = None
    """Manual: one basic.ack with `multiple` for each so many messages (and whenever the consumer is idle)."""
    heartbeat: _Prefetch | _Sweep[_Prefetch] | None = None
    """Heartbeat in seconds; 0 is off."""
    mandatory: _Flag | _Sweep[_Flag] | None = None
    """Whether the broker returns a message that no queue takes, instead of dropping it."""
    partitions: _StreamPartitions | _Sweep[_StreamPartitions] | None = None
    """Driver stream, as all that follow: partitions of a super stream; 1 is a plain stream."""
    credits: _Credits | _Sweep[_Credits] | None = None
    """How many chunks of messages may be on their way to a consumer, for each partition."""
    sub_entry_size: _SubEntry | _Sweep[_SubEntry] | None = None
    """Messages in a sub-entry, which is stored, confirmed and compressed as one; 1 is none."""
    compression: _Codec | _Sweep[_Codec] | None = None
    """The codec of sub-entries."""
    deduplication: _Flag | _Sweep[_Flag] | None = None
    """Whether producers have names, so that the broker stores each publishing id once."""
    single_active_consumer: _Flag | _Sweep[_Flag] | None = None
    """Whether the broker lets one consumer of each partition be active, and another if that one leaves."""
    store_offset_interval_ms: _Whole | _Sweep[_Whole] | None = None
    """How often consumers have the broker keep the offset of what they have processed."""
    max_length_bytes: _Whole | _Sweep[_Whole] | None = None
    """max-length-bytes: how much of a stream is kept, in whole segments; None is all."""
    max_age: _Age | _Sweep[_Age] | None = None
    """max-age: how long a whole segment is kept, such as 1h; None is for ever."""
    max_segment_size_bytes: _SegmentBytes | _Sweep[_SegmentBytes] | None = None
    """stream-max-segment-size-bytes: the size at which a stream begins a new file; None is 500 MB."""


class Kafka(Part):
    """Apache Kafka's knobs; a list is a sweep, None is what class and preset give."""

    driver: _KafkaDriver | _Sweep[_KafkaDriver] = "kafka"
    """kafka: record batches made by numpy, what the broker can do. confluent: what an application gets."""
    partitions: _Partitions | _Sweep[_Partitions] | None = None
    """Partitions of the topic."""
    partitioner: _Partitioner | _Sweep[_Partitioner] | None = None
    """murmur2: by key. sticky: one partition until its batch leaves. round_robin: message by message. explicit: named
    by the application, key (without keys: producer) modulo partitions. None is murmur2 with keys, else sticky."""
    replication_factor: _Replicas | _Sweep[_Replicas] | None = None
    """Copies of each partition, at most one on a broker."""
    min_insync_replicas: _Replicas | _Sweep[_Replicas] | None = None
    """The topic's min.insync.replicas: how many copies must be up to date for acks=all."""
    acks: _Acks | _Sweep[_Acks] | None = None
    """0, 1 or all; only class `none` has 0."""
    enable_idempotence: _Flag | _Sweep[_Flag] | None = None
    """No duplicates by the producer's own retries; needs acks=all and at most 5 requests in flight."""
    linger_ms: _Millis | _Sweep[_Millis] | None = None
    """How long a batch may wait for more messages."""
    batch_size: _Whole | _Sweep[_Whole] | None = None
    """Upper bound of a batch, in bytes."""
    max_in_flight_requests_per_connection: _InFlight | _Sweep[_InFlight] | None = None
    """Produce requests in flight at once."""
    buffer_memory: _Whole | _Sweep[_Whole] | None = None
    """Upper bound of what a producer holds unsent and unconfirmed, in bytes."""
    compression_type: _Codec | _Sweep[_Codec] | None = None
    """The producer's codec."""
    max_poll_records: _Whole | _Sweep[_Whole] | None = None
    """How many records a consumer processes at most before it stores their offsets."""
    fetch_min_bytes: _Whole | _Sweep[_Whole] | None = None
    """How much the broker gathers before it answers a fetch."""
    fetch_max_wait_ms: _Counted | _Sweep[_Counted] | None = None
    """How long the broker waits for `fetch_min_bytes`."""
    max_partition_fetch_bytes: _Whole | _Sweep[_Whole] | None = None
    """Upper bound of one partition's share of a fetch."""
    auto_commit_interval_ms: _Whole | _Sweep[_Whole] | None = None
    """How often the offsets of processed records are committed."""
    commit: _Commit | _Sweep[_Commit] | None = None
    """When a record's offset may be committed: before it is handed out (class `none`) or after it was processed."""
    commit_mode: _CommitMode | _Sweep[_CommitMode] | None = None
    """auto: each `auto_commit_interval_ms`. sync, async: each batch of at most `max_poll_records`, awaited or not."""
    isolation_level: _Isolation | _Sweep[_Isolation] | None = None
    """read_committed skips the records of aborted transactions, and waits for the end of open ones."""
    group_protocol: _GroupProtocol | _Sweep[_GroupProtocol] | None = None
    """Who shares out the partitions: nobody (static: partition p is read by consumer p modulo consumers, as driver
    `kafka` does), or the group by its old (classic) or new protocol (consumer), which driver `confluent` speaks."""
    group: _Group | _Sweep[_Group] | None = None
    """partitions: a consumer group, of whose members one reads a partition. share: a share group (queues for Kafka), in
    which all of them may, each record is acknowledged by itself, and `commit_mode` says how that is sent."""
    share_acquire_mode: _AcquireMode | _Sweep[_AcquireMode] | None = None
    """Of a share group: whole record batches are handed to a consumer, or at most `max_poll_records`."""
    release_every: _Counted | _Sweep[_Counted] | None = None
    """Of so many records of a share group the last is released when it first comes, to come again; 0 is none."""
    reject_every: _Counted | _Sweep[_Counted] | None = None
    """Of so many records of a share group the last is rejected, never to be delivered again; 0 is none."""
    share_delivery_count_limit: _Deliveries | _Sweep[_Deliveries] | None = None
    """The share group's share.delivery.count.limit: how often a record is delivered before it is given up."""
    share_partition_max_record_locks: _Locks | _Sweep[_Locks] | None = None
    """The share group's share.partition.max.record.locks: how many records of a partition are under way at once."""
    share_record_lock_duration_ms: _LockMillis | _Sweep[_LockMillis] | None = None
    """The share group's share.record.lock.duration.ms: how long a consumer may work on what it was handed."""
    retention_ms: _Limit | _Sweep[_Limit] | None = None
    """The topic's retention.ms: how long a whole segment is kept; -1 is for ever."""
    retention_bytes: _Limit | _Sweep[_Limit] | None = None
    """The topic's retention.bytes: how much of a partition is kept, in whole segments; -1 is all."""
    segment_bytes: _SegmentBytes | _Sweep[_SegmentBytes] | None = None
    """The topic's segment.bytes: the size at which a partition begins a new file."""
    max_message_bytes: _TopicMessageBytes | _Sweep[_TopicMessageBytes] | None = None
    """The topic's max.message.bytes: the largest record batch that it takes."""
    transaction_msgs: _TransactionMsgs | _Sweep[_TransactionMsgs] | None = None
    """Messages of a transaction; each producer has its own transactional.id, and a message counts as acknowledged once
    its transaction is committed. None, with `transaction_ms` too: no transactions."""
    transaction_ms: _TransactionMillis | _Sweep[_TransactionMillis] | None = None
    """After how long a transaction ends that has not had all of its messages."""
    transaction_abort_every: _Counted | _Sweep[_Counted] | None = None
    """Of so many transactions the last is aborted, whose messages then count as failed; 0 is none."""
    flush_messages: _Whole | _Sweep[_Whole] | None = None
    """The topic's flush.messages; class `flushed` sets 1, the others leave it unset."""


Knobs = RabbitMQ | Kafka
_Processes = Annotated[int, Field(ge=0, le=MAX_PROCESSES)]
_Producers = Annotated[int, Field(ge=1, le=MAX_PROCESSES)]
_Subscribers = Annotated[int, Field(ge=1, le=MAX_PROCESSES)]


class Scenario(Part):
    """One question, asked of one or both brokers; see the class's fields for what can be varied."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Lower case, digits and hyphens: it names folders, queues and topics."""
    question: str = Field(min_length=1, max_length=300)
    """What the reader wants to know, in one sentence."""
    message: Message = Message()
    rate: Rate
    producers: _Producers | _Sweep[_Producers] = 1
    consumers: _Processes | _Sweep[_Processes] = 1
    """Of each subscriber; they compete for its messages."""
    subscribers: _Subscribers | _Sweep[_Subscribers] = 1
    """How many receive every message: each a queue of its own in RabbitMQ, a consumer group in Kafka."""
    think_ms: _Millis | _Sweep[_Millis] = 0.0
    """How long a consumer works on each message before it acknowledges it, on average; a batch of n takes n times."""
    think: _Think | _Sweep[_Think] = "fixed"
    """Whether each message takes as long, or exponentially distributed times with that mean."""
    durability: Durability | _Sweep[Durability] = Durability.BROKER
    rabbitmq: RabbitMQ | None = None
    kafka: Kafka | None = None
    preset: Literal["default", "low_latency", "throughput"] = "default"
    """Client settings of both brokers in one spirit; single knobs win over it."""
    warmup_s: float | None = Field(default=None, ge=0, le=3_600)
    """Messages intended before this are not measured; None takes the profile's."""
    duration_s: float | None = Field(default=None, gt=0, le=86_400)
    """The measured window; None takes the profile's."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.rabbitmq is None and self.kafka is None:
            raise ValueError("expected rabbitmq=RabbitMQ(…), kafka=Kafka(…) or both")
        if self.rate.needs_capacity and 0 in ([self.consumers] if isinstance(self.consumers, int) else self.consumers):
            raise ValueError(f"Rate.{self.rate.kind}: expected consumers, whose rate it is")
        found = list(points(self))  # raises on the first impossible combination
        if self.message.keys and not any(has_keys(each.broker, each.settings) for each in found):
            raise ValueError(f"message.keys = {self.message.keys}: one RabbitMQ queue has no use for keys; expected 0")
        return self

    def locust_users(self) -> dict[str, type]:
        """Locust user classes for this scenario while Locust is loading the file, else nothing."""
        if "locust" not in sys.modules:
            return {}
        from loadgen.locust.files import users_of  # noqa: PLC0415 - only Locust's own process may import it

        return dict(users_of(self))
