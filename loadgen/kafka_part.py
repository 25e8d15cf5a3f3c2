"""What can be chosen of Apache Kafka: its knobs by their own names, each with the values that it may have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from loadgen.part import Codec, Counted, Flag, Millis, Part, SegmentBytes, Sweep, Unit, Whole, WholeBytes, WholeMsgs


def _acks_word(value: Any) -> Any:
    """Kafka's other ways of writing `acks`, as the one that is kept."""
    return {0: "0", 1: "1", -1: "all", "-1": "all"}.get(value, value) if isinstance(value, str | int) else value


_Acks = Annotated[Literal["0", "1", "all"], BeforeValidator(_acks_word)]
_Commit = Literal["before", "after"]
_CommitMode = Literal["auto", "sync", "async"]
_Partitioner = Literal["murmur2", "sticky", "round_robin", "explicit"]
_Guarantee = Literal["at_least_once", "exactly_once"]
_Isolation = Literal["read_uncommitted", "read_committed"]
_GroupProtocol = Literal["static", "classic", "consumer"]
_Replicas = Annotated[int, Field(ge=1, le=100)]
_Limit = Annotated[int, Field(ge=-1, le=2**63 - 1)]
_TopicMessageBytes = Annotated[int, Field(ge=1_024, le=64 << 20)]
_TransactionMsgs = Annotated[int, Field(ge=1, le=1_000_000)]
_TransactionMillis = Annotated[float, Field(gt=0, le=400_000)]
_Group = Literal["partitions", "share"]
_AcquireMode = Literal["batch_optimized", "record_limit"]
# These three: what a broker as it is shipped allows a group.
_Deliveries = Annotated[int, Field(ge=2, le=10), Unit("deliveries")]
_Locks = Annotated[int, Field(ge=100, le=4_000), Unit("messages")]
_LockMillis = Annotated[int, Field(ge=15_000, le=60_000)]
_KafkaDriver = Literal["kafka", "confluent", "confluent-sync"]
_InFlight = Annotated[int, Field(ge=1, le=1_000), Unit("requests")]
_Partitions = Annotated[int, Field(ge=1, le=10_000)]
_Transactions = Annotated[Counted, Unit("transactions")]
_Retries = Annotated[Counted, Unit("times")]


class Kafka(Part):
    """Apache Kafka's knobs; a list is a sweep, None is what class and preset give."""

    driver: _KafkaDriver | Sweep[_KafkaDriver] = "kafka"
    """kafka: record batches made by numpy, what the broker can do. confluent: what an application
    gets; confluent-sync: the same where it waits for each message's result, at most 10 s, before it sends the next."""
    partitions: _Partitions | Sweep[_Partitions] | None = None
    """Partitions of the topic."""
    partitioner: _Partitioner | Sweep[_Partitioner] | None = None
    """murmur2: by key. sticky: one partition for batch_size bytes (confluent: 10 ms). round_robin: message by message.
    explicit: named by the application, key (without keys: producer) modulo partitions. None is murmur2 with keys, else
    sticky. The results of pattern process are sticky."""
    replication_factor: _Replicas | Sweep[_Replicas] | None = None
    """Copies of each partition, at most one on a broker."""
    min_insync_replicas: _Replicas | Sweep[_Replicas] | None = None
    """The topic's min.insync.replicas: how many copies must be up to date for acks=all. The replicated classes have 2;
    with 3 nothing is written while a node is missing."""
    acks: _Acks | Sweep[_Acks] | None = None
    """0, 1 or all; only class `none` has 0."""
    enable_idempotence: Flag | Sweep[Flag] | None = None
    """No duplicates by the producer's own retries; needs acks=all and at most 5 requests in flight."""
    linger_ms: Millis | Sweep[Millis] | None = None
    """How long a batch may wait for more messages."""
    batch_size: WholeBytes | Sweep[WholeBytes] | None = None
    """Upper bound of a batch, in bytes."""
    max_in_flight_requests_per_connection: _InFlight | Sweep[_InFlight] | None = None
    """Produce requests in flight at once."""
    retries: _Retries | Sweep[_Retries] | None = None
    """How often a batch is sent again whose connection was lost or whose refusal may pass, before its messages fail; at
    most for 120 s (delivery.timeout.ms), and at least once with idempotence."""
    buffer_memory: WholeBytes | Sweep[WholeBytes] | None = None
    """Upper bound of what a producer holds unsent and unconfirmed, in bytes."""
    compression_type: Codec | Sweep[Codec] | None = None
    """The producer's codec."""
    max_poll_records: WholeMsgs | Sweep[WholeMsgs] | None = None
    """How many records a consumer processes at most before it stores their offsets."""
    fetch_min_bytes: WholeBytes | Sweep[WholeBytes] | None = None
    """How much the broker gathers before it answers a fetch."""
    fetch_max_wait_ms: Counted | Sweep[Counted] | None = None
    """How long the broker waits for `fetch_min_bytes`."""
    max_partition_fetch_bytes: WholeBytes | Sweep[WholeBytes] | None = None
    """Upper bound of one partition's share of a fetch."""
    auto_commit_interval_ms: Whole | Sweep[Whole] | None = None
    """How often the offsets of processed records are committed."""
    commit: _Commit | Sweep[_Commit] | None = None
    """When a record's offset may be committed: before it is handed out (class `none`) or after it was processed."""
    commit_mode: _CommitMode | Sweep[_CommitMode] | None = None
    """auto: each `auto_commit_interval_ms`. sync, async: each batch of at most `max_poll_records`, awaited or not. The
    processors of pattern process commit in sync, each `commit_interval_ms`."""
    processing_guarantee: _Guarantee | Sweep[_Guarantee] | None = None
    """Of pattern process: at_least_once commits offsets after the results of their messages were acknowledged (what
    None is); exactly_once has both in one transaction, and consumers of the results read what is committed."""
    commit_interval_ms: Millis | Sweep[Millis] | None = None
    """Of pattern process: how often a processor commits; None is 100 ms, 0 after each batch."""
    isolation_level: _Isolation | Sweep[_Isolation] | None = None
    """read_committed skips the records of aborted transactions, and waits for the end of open ones."""
    group_protocol: _GroupProtocol | Sweep[_GroupProtocol] | None = None
    """Who shares out the partitions: nobody (static: partition p is read by consumer p modulo consumers), or the group
    by its new protocol (consumer) or its old one (classic), which only driver `confluent` speaks. None is static with
    driver `kafka`, classic with the others."""
    group: _Group | Sweep[_Group] | None = None
    """partitions: a consumer group, of whose members one reads a partition. share: a share group (queues for Kafka), in
    which all of them may, each record is acknowledged by itself, and `commit_mode` says how that is sent."""
    share_acquire_mode: _AcquireMode | Sweep[_AcquireMode] | None = None
    """Of a share group: whole record batches are handed to a consumer, or at most `max_poll_records`."""
    release_every: Counted | Sweep[Counted] | None = None
    """Of so many records of a share group the last is released when it first comes, to come again; 0 is none."""
    fail_every: Counted | Sweep[Counted] | None = None
    """Of so many records of a share group the last is released whenever it comes, until `share_delivery_count_limit`
    ends it; 0 is none."""
    reject_every: Counted | Sweep[Counted] | None = None
    """Of so many records of a share group the last is rejected, never to be delivered again; 0 is none."""
    share_delivery_count_limit: _Deliveries | Sweep[_Deliveries] | None = None
    """The share group's share.delivery.count.limit: how often a record is delivered before it is given up."""
    share_partition_max_record_locks: _Locks | Sweep[_Locks] | None = None
    """The share group's share.partition.max.record.locks: how many records of a partition are under way at once."""
    share_record_lock_duration_ms: _LockMillis | Sweep[_LockMillis] | None = None
    """The share group's share.record.lock.duration.ms: how long a consumer may work on what it was handed."""
    retention_ms: _Limit | Sweep[_Limit] | None = None
    """The topic's retention.ms: how long a whole segment is kept; -1 is for ever."""
    retention_bytes: _Limit | Sweep[_Limit] | None = None
    """The topic's retention.bytes: how much of a partition is kept, in whole segments; -1 is all."""
    segment_bytes: SegmentBytes | Sweep[SegmentBytes] | None = None
    """The topic's segment.bytes: the size at which a partition begins a new file."""
    max_message_bytes: _TopicMessageBytes | Sweep[_TopicMessageBytes] | None = None
    """The topic's max.message.bytes: the largest record batch that it takes."""
    transaction_msgs: _TransactionMsgs | Sweep[_TransactionMsgs] | None = None
    """Messages of a transaction; each producer has its own transactional.id, and a message counts as acknowledged once
    its transaction is committed. None, with `transaction_ms` too: no transactions."""
    transaction_ms: _TransactionMillis | Sweep[_TransactionMillis] | None = None
    """After how long a transaction ends that has not had all of its messages."""
    transaction_abort_every: _Transactions | Sweep[_Transactions] | None = None
    """Of so many transactions the last is aborted, whose messages then count as failed; 0 is none."""
    flush_messages: WholeMsgs | Sweep[WholeMsgs] | None = None
    """The topic's flush.messages; class `flushed` sets 1, the others leave it unset."""
