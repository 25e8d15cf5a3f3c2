"""What can be chosen of RabbitMQ: its knobs by their own names, each with the values that it may have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from loadgen.part import Codec, Counted, Flag, Part, SegmentBytes, Sweep, Unit, Whole, WholeMsgs

_Prefetch = Annotated[int, Field(ge=0, le=65_535), Unit("messages")]
_Heartbeat = Annotated[int, Field(ge=0, le=65_535), Unit("s")]
_QueueType = Literal["classic", "quorum", "stream"]
_Exchange = Literal["default", "direct", "fanout", "topic", "headers", "consistent-hash"]
_Bindings = Annotated[int, Field(ge=1, le=10_000)]
_Queues = Annotated[int, Field(ge=1, le=256)]
_RabbitMQDriver = Literal["amqp", "stream", "pika", "pika-blocking", "aio-pika", "rstream"]
_StreamPartitions = Annotated[int, Field(ge=1, le=200)]
_SubEntry = Annotated[int, Field(ge=1, le=65_535), Unit("messages")]
_Members = Annotated[int, Field(ge=1, le=7), Unit("nodes")]
_Credits = Annotated[int, Field(ge=2, le=65_535), Unit("chunks")]
_Age = Annotated[str, Field(pattern=r"^[1-9][0-9]*[YMDhms]$")]
_Ack = Literal["automatic", "manual"]
_Lanes = Annotated[int, Field(ge=1, le=64)]
_ReconnectSeconds = Annotated[float, Field(ge=0.05, le=3_600)]
_BlockedSeconds = Annotated[float, Field(gt=0, le=3_600)]
_Overflow = Literal["drop-head", "reject-publish", "reject-publish-dlx"]
_ExpiresMillis = Annotated[int, Field(ge=10_000, le=2**32 - 1)]  # shorter, it would be gone before it is accounted for
_Priorities = Annotated[int, Field(ge=2, le=32)]  # all that a quorum queue has; each costs a classic queue a queue
_ReplyTo = Literal["direct", "exclusive"]
_Failures = Annotated[Whole, Unit("failed deliveries")]


class RabbitMQ(Part):
    """RabbitMQ's knobs; a list is a sweep, None is what class and preset give."""

    driver: _RabbitMQDriver | Sweep[_RabbitMQDriver] = "amqp"
    """amqp: frames made by numpy, what the broker can do; stream: the same with RabbitMQ's stream protocol. pika,
    pika-blocking, aio-pika and, on streams, rstream: what an application gets."""
    queue_type: _QueueType | Sweep[_QueueType] | None = None
    """x-queue-type; classes `none` and `broker` are classic (`broker` may be quorum, too), `flushed` is quorum; driver
    stream has streams."""
    exchange: _Exchange | Sweep[_Exchange] | None = None
    """The type of the exchange that messages are published to; None is the default exchange for one subscriber, fanout
    for more of them (direct where each has several queues)."""
    bindings: _Bindings | Sweep[_Bindings] | None = None
    """Bindings of each queue to the exchange: the first one routes. A headers exchange looks through the others as
    well; a direct one finds it by its key, a topic one by its words."""
    queues: _Queues | Sweep[_Queues] | None = None
    """Over how many queues one subscriber's messages are spread by their routing keys, in order within each."""
    durable: Flag | Sweep[Flag] | None = None
    """Whether queues outlive a restart of the broker. Only class `none` may have others, which are a deprecated feature
    of RabbitMQ (transient_nonexcl_queues): 4.3.6 permits it as it is shipped, a broker's settings may deny it."""
    auto_delete: Flag | Sweep[Flag] | None = None
    """Whether a queue goes with its last consumer, as those of subscribers that come and go; classic queues only."""
    persistent: Flag | Sweep[Flag] | None = None
    """delivery_mode 2; only class `none` may be transient."""
    confirms: Flag | Sweep[Flag] | None = None
    """Publisher confirms; every class has them but `none`, which may."""
    confirm_window: WholeMsgs | Sweep[WholeMsgs] | None = None
    """How many messages may be unconfirmed at once, per producer (without confirms: sent and not received)."""
    prefetch: _Prefetch | Sweep[_Prefetch] | None = None
    """basic.qos prefetch count per consumer; 0 is unlimited, but to a quorum queue, which would take it for 2,000 and
    so is to be told a number."""
    ack: _Ack | Sweep[_Ack] | None = None
    """Automatic acknowledges on delivery; manual after processing (every class but `none`)."""
    ack_every: Whole | Sweep[Whole] | None = None
    """Manual: one basic.ack with `multiple` for each so many messages (and whenever the consumer is idle); 1 is one for
    each message, without."""
    heartbeat: _Heartbeat | Sweep[_Heartbeat] | None = None
    """Heartbeat in seconds; 0 is off."""
    blocked_connection_timeout_s: _BlockedSeconds | Sweep[_BlockedSeconds] | None = None
    """Drivers pika and pika-blocking: for how long the broker may block a producer's connection (an alarm), before the
    client closes it and the trial ends; None is for ever."""
    mandatory: Flag | Sweep[Flag] | None = None
    """Whether the broker returns a message that no queue takes, instead of dropping it."""
    max_length: WholeMsgs | Sweep[WholeMsgs] | None = None
    """x-max-length: how many messages a queue holds; None is any number."""
    max_length_bytes: Whole | Sweep[Whole] | None = None
    """x-max-length-bytes: how many bytes of messages a queue holds, or how much of a stream is kept, in whole segments;
    None is all."""
    overflow: _Overflow | Sweep[_Overflow] | None = None
    """x-overflow: whether a full queue drops its oldest message or refuses new ones (and dead-letters them); None is
    drop-head."""
    message_ttl_ms: Counted | Sweep[Counted] | None = None
    """x-message-ttl: how long a message may wait in a queue; None is for ever."""
    expires_ms: _ExpiresMillis | Sweep[_ExpiresMillis] | None = None
    """x-expires: after how long without consumers a queue is deleted; None is never."""
    dead_letter: Flag | Sweep[Flag] | None = None
    """Whether queues have a dead-letter exchange, and each subscriber a queue behind it for what was rejected, expired,
    dropped or delivered too often."""
    delivery_limit: _Failures | Sweep[_Failures] | None = None
    """x-delivery-limit: how often a message of a quorum queue may have failed when it is delivered; None is 20."""
    quorum_initial_group_size: _Members | Sweep[_Members] | None = None
    """x-quorum-initial-group-size: how many nodes hold a quorum queue; the replicated classes have 3, None is all."""
    requeue_every: Counted | Sweep[Counted] | None = None
    """Of so many messages the last is handed back (basic.nack with requeue) when it first comes, to come again; 0 is
    none."""
    fail_every: Counted | Sweep[Counted] | None = None
    """Of so many messages the last fails (basic.reject with requeue) whenever it comes, until `delivery_limit` ends it;
    0 is none."""
    reject_every: Counted | Sweep[Counted] | None = None
    """Of so many messages the last is rejected (basic.reject without requeue), never to come again; 0 is none."""
    priorities: _Priorities | Sweep[_Priorities] | None = None
    """How many priorities messages have, taken in turn: message n has priority n modulo that. None is no priority."""
    reply_to: _ReplyTo | Sweep[_ReplyTo] | None = None
    """Of pattern request_reply: direct is amq.rabbitmq.reply-to, whose replies pass through no queue (and what None
    is); exclusive is a queue of its own for each requester."""
    channels_per_connection: _Lanes | Sweep[_Lanes] | None = None
    """Driver amqp: how many channels each connection has, each of which publishes or consumes; a producer's window is
    theirs together, a prefetch each one's."""
    connections_per_process: _Lanes | Sweep[_Lanes] | None = None
    """Driver amqp: how many connections each producer and each consumer has, among which it shares its messages."""
    reconnect_every_s: _ReconnectSeconds | Sweep[_ReconnectSeconds] | None = None
    """Driver amqp: after how long each connection is closed, once nothing is unconfirmed or unacknowledged on it, and
    opened anew; None is never."""
    recover_within_s: _ReconnectSeconds | Sweep[_ReconnectSeconds] | None = None
    """Driver amqp: for how long another connection is looked for where one was lost; producers then send again what was
    not confirmed. None: a lost connection ends the trial."""
    partitions: _StreamPartitions | Sweep[_StreamPartitions] | None = None
    """Driver stream, as all that follow (and `max_length_bytes`): partitions of a super stream; 1 is a plain stream."""
    credits: _Credits | Sweep[_Credits] | None = None
    """How many chunks of messages may be on their way to a consumer, for each partition."""
    sub_entry_size: _SubEntry | Sweep[_SubEntry] | None = None
    """Messages in a sub-entry, which is stored, confirmed and compressed as one; 1 is none."""
    compression: Codec | Sweep[Codec] | None = None
    """The codec of sub-entries."""
    deduplication: Flag | Sweep[Flag] | None = None
    """Whether producers have names, so that the broker stores each publishing id once."""
    single_active_consumer: Flag | Sweep[Flag] | None = None
    """Whether the broker lets one consumer of each partition be active, and another if that one leaves."""
    store_offset_interval_ms: Whole | Sweep[Whole] | None = None
    """How often consumers have the broker keep the offset of what they have processed."""
    max_age: _Age | Sweep[_Age] | None = None
    """max-age: how long a whole segment is kept, such as 1h; None is for ever."""
    initial_cluster_size: _Members | Sweep[_Members] | None = None
    """initial-cluster-size: how many nodes hold a stream; class `replicated` has 3, None is all."""
    max_segment_size_bytes: SegmentBytes | Sweep[SegmentBytes] | None = None
    """stream-max-segment-size-bytes: the size at which a stream begins a new file; None is 500 MB."""
