"""Which of Kafka's knobs go together: what they come to where nobody chose, and one line for what is impossible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadgen.errors import ScenarioError

if TYPE_CHECKING:
    from loadgen.scenario import Message

Settings = dict[str, Any]

# Kafka 4.3 as it is shipped, `message.max.bytes`, read from a running one. It is of a whole record batch: its header,
# and of a record all that is not its value.
MAX_BATCH_BYTES = 1_048_588
BATCH_OVERHEAD_BYTES = 61 + 32
GROUP_PROTOCOLS = {
    "kafka": "static",
    "confluent": "classic",
    "confluent-sync": "classic",
}  # where nobody chose, by driver

# Client settings that no class demands: the Java client's defaults, stated because librdkafka's differ (linger 5 ms,
# batches of 1 MB); None is unset: the broker's own default, or `complete`'s choice.
DEFAULTS: Settings = {
    "partitions": 1,
    "partitioner": None,
    "replication_factor": 1,
    "min_insync_replicas": None,
    "enable_idempotence": True,
    "linger_ms": 0.0,
    "batch_size": 16_384,
    "max_in_flight_requests_per_connection": 5,
    "retries": 2**31 - 1,
    "buffer_memory": 32 << 20,
    "compression_type": "none",
    "max_poll_records": 500,
    "fetch_min_bytes": 1,
    "fetch_max_wait_ms": 500,
    "max_partition_fetch_bytes": 1 << 20,
    "commit_mode": "auto",
    "auto_commit_interval_ms": 5_000,
    "processing_guarantee": None,
    "commit_interval_ms": None,
    "isolation_level": "read_uncommitted",
    "group_protocol": None,
    "group": "partitions",
    "share_acquire_mode": None,
    "release_every": 0,
    "fail_every": 0,
    "reject_every": 0,
    "share_delivery_count_limit": None,
    "share_partition_max_record_locks": None,
    "share_record_lock_duration_ms": None,
    "retention_ms": None,
    "retention_bytes": None,
    "segment_bytes": None,
    "max_message_bytes": None,
    "transaction_msgs": None,
    "transaction_ms": None,
    "transaction_abort_every": 0,
}
SHARE_KNOBS = (
    "share_acquire_mode", "release_every", "fail_every", "reject_every", "share_delivery_count_limit",
    "share_partition_max_record_locks", "share_record_lock_duration_ms",
)  # fmt: skip
TIMED_TRANSACTION_MSGS = 1_000_000  # a transaction that is ended by time has at most so many messages


def complete(settings: Settings, message: Message) -> None:
    """Choose what depends on messages and driver, and nobody chose; raises ScenarioError where a choice cannot be."""
    if settings["group_protocol"] is None and settings["group"] == "partitions":
        settings["group_protocol"] = GROUP_PROTOCOLS[settings["driver"]]
    if settings["partitioner"] is None:
        settings["partitioner"] = "murmur2" if message.keys else "sticky"
    if settings["partitioner"] == "murmur2" and not message.keys:
        raise ScenarioError("kafka.partitioner = murmur2: messages have no keys to go by; expected message.keys ≥ 1")
    if settings["partitioner"] == "sticky" and message.keys and settings["driver"] != "kafka":
        raise ScenarioError(
            "kafka.partitioner = sticky: librdkafka sticks to a partition only without keys; expected keys = 0, "
            f"not {message.keys}, or driver = kafka"
        )


def derive(settings: Settings) -> None:
    """What follows from the knobs alone."""
    if settings["transaction_ms"] is not None and settings["transaction_msgs"] is None:
        settings["transaction_msgs"] = TIMED_TRANSACTION_MSGS
    if settings["share_acquire_mode"] is None and settings["group"] == "share":
        settings["share_acquire_mode"] = "batch_optimized"  # as the Java client's


def refuse_impossible(settings: Settings, nodes: int) -> None:
    """Raise ScenarioError where knobs contradict each other, whatever is sent; the class has so many `nodes`."""
    if settings["batch_size"] > settings["buffer_memory"]:
        raise ScenarioError(
            f"kafka.batch_size = {settings['batch_size']}: over buffer_memory = {settings['buffer_memory']}, so that "
            "no batch would ever be full; expected at most buffer_memory"
        )
    if settings["enable_idempotence"] and settings["acks"] != "all":
        raise ScenarioError(f"kafka.enable_idempotence = True needs acks = all, not {settings['acks']}")
    if settings["enable_idempotence"] and settings["max_in_flight_requests_per_connection"] > 5:
        raise ScenarioError("kafka.max_in_flight_requests_per_connection: at most 5 with enable_idempotence = True")
    if settings["enable_idempotence"] and not settings["retries"]:
        raise ScenarioError(
            "kafka.retries = 0: an idempotent producer sends again; expected at least 1, or enable_idempotence = False"
        )
    _refuse_transactions(settings)
    _refuse_groups(settings)
    replicas, in_sync = settings["replication_factor"], settings["min_insync_replicas"]
    if replicas > nodes:
        raise ScenarioError(
            f"kafka.replication_factor = {replicas}: a broker holds one copy of a partition, and this class has "
            f"{nodes} broker{'s' * (nodes > 1)}; expected at most {nodes}"
        )
    if in_sync is not None and in_sync > replicas:
        raise ScenarioError(
            f"kafka.min_insync_replicas = {in_sync}: over replication_factor = {replicas}, so that nothing could be "
            "written with acks = all; expected at most replication_factor"
        )


def refuse_idle(settings: Settings, knobs: Settings) -> None:
    """Raise ScenarioError where a knob was chosen (`knobs`) that does nothing beside the others."""
    if settings["acks"] == "0" and "retries" in knobs:
        raise ScenarioError(
            f"kafka.retries = {knobs['retries']}: without acknowledgements nothing is sent again; expected acks = 1 or "
            "all, or no retries"
        )
    if settings["group"] == "share" and "max_partition_fetch_bytes" in knobs:
        raise ScenarioError(
            f"kafka.max_partition_fetch_bytes = {knobs['max_partition_fetch_bytes']}: a share group is handed records "
            "by their number; expected max_poll_records instead, or group = partitions"
        )


def _refuse_transactions(settings: Settings) -> None:
    if settings["transaction_msgs"] is None:
        if settings["transaction_abort_every"]:
            raise ScenarioError(
                f"kafka.transaction_abort_every = {settings['transaction_abort_every']}: there are no transactions to "
                "abort; expected transaction_msgs or transaction_ms"
            )
        return
    if not settings["enable_idempotence"]:
        raise ScenarioError(
            "kafka.transaction_msgs, transaction_ms: transactions need enable_idempotence = True and acks = all"
        )


def _refuse_groups(settings: Settings) -> None:
    if settings["group"] == "share":
        if settings["group_protocol"] is not None:
            raise ScenarioError(
                f"kafka.group_protocol = {settings['group_protocol']}: a share group has one of its own; expected no "
                "group_protocol, or group = partitions"
            )
        return
    given = next((knob for knob in SHARE_KNOBS if settings[knob]), None)
    if given is not None:
        raise ScenarioError(f"kafka.{given} = {settings[given]}: is of share groups; expected group = share")


def refuse_unfit(settings: Settings, message: Message, consumers: int) -> None:
    """Raise ScenarioError where messages and consumers do not fit the topic."""
    limit_bytes = settings["max_message_bytes"] or MAX_BATCH_BYTES
    is_shipped = settings["max_message_bytes"] is None
    limit = f"{'message.max.bytes' if is_shipped else 'max_message_bytes'} = {limit_bytes}" + " as shipped" * is_shipped
    if message.max_size_bytes > limit_bytes - BATCH_OVERHEAD_BYTES:
        raise ScenarioError(
            f"message.size_bytes = {message.max_size_bytes}: kafka takes at most {limit_bytes - BATCH_OVERHEAD_BYTES} "
            f"bytes ({limit}); a larger kafka.max_message_bytes takes more"
        )
    if settings["batch_size"] > limit_bytes and settings["compression_type"] == "none":
        raise ScenarioError(
            f"kafka.batch_size = {settings['batch_size']}: Kafka takes batches of at most that size ({limit})"
        )
    if consumers > settings["partitions"] and settings["group"] == "partitions":
        raise ScenarioError(
            f"kafka.partitions = {settings['partitions']}: a partition has one consumer, so that of consumers = "
            f"{consumers} some would stay idle; expected at least {consumers}, or group = share"
        )
