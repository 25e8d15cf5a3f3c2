"""What can be chosen of RabbitMQ: its knobs by their own names, each with the values that it may have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from loadgen.part import Codec, Flag, Part, SegmentBytes, Sweep, Whole

_Prefetch = Annotated[int, Field(ge=0, le=65_535)]
_QueueType = Literal["classic", "quorum", "stream"]
_Exchange = Literal["default", "direct", "fanout", "topic", "headers", "consistent-hash"]
_Bindings = Annotated[int, Field(ge=1, le=10_000)]
_Queues = Annotated[int, Field(ge=1, le=256)]
_RabbitMQDriver = Literal["amqp", "stream", "pika", "pika-blocking"]
_StreamPartitions = Annotated[int, Field(ge=1, le=200)]
_SubEntry = Annotated[int, Field(ge=1, le=65_535)]
_Credits = Annotated[int, Field(ge=2, le=65_535)]
_Age = Annotated[str, Field(pattern=r"^[1-9][0-9]*[YMDhms]$")]
_Ack = Literal["automatic", "manual"]


class RabbitMQ(Part):
    """RabbitMQ's knobs; a list is a sweep, None is what class and preset give."""

    driver: _RabbitMQDriver | Sweep[_RabbitMQDriver] = "amqp"
    """amqp: frames made by numpy, what the broker can do; stream: the same with RabbitMQ's stream protocol. pika,
    pika-blocking: what an application gets."""
    queue_type: _QueueType | Sweep[_QueueType] | None = None
    """x-queue-type; classes `none` and `broker` are classic, `flushed` is quorum; driver stream has streams."""
    exchange: _Exchange | Sweep[_Exchange] | None = None
    """The type of the exchange that messages are published to; None is the default exchange for one subscriber, fanout
    for more of them (direct where each has several queues)."""
    bindings: _Bindings | Sweep[_Bindings] | None = None
    """Bindings of each queue to the exchange: the first one routes, the others are what it has to look through."""
    queues: _Queues | Sweep[_Queues] | None = None
    """Over how many queues one subscriber's messages are spread by their routing keys, in order within each."""
    persistent: Flag | Sweep[Flag] | None = None
    """delivery_mode 2; only class `none` may be transient."""
    confirms: Flag | Sweep[Flag] | None = None
    """Publisher confirms; every class but `none` has them."""
    confirm_window: Whole | Sweep[Whole] | None = None
    """How many messages may be unconfirmed at once, per producer (without confirms: sent and not received)."""
    prefetch: _Prefetch | Sweep[_Prefetch] | None = None
    """basic.qos prefetch count per consumer; 0 is unlimited."""
    ack: _Ack | Sweep[_Ack] | None = None
    """Automatic acknowledges on delivery; manual after processing (every class but `none`)."""
    ack_every: Whole | Sweep[Whole] | None = None
    """Manual: one basic.ack with `multiple` for each so many messages (and whenever the consumer is idle)."""
    heartbeat: _Prefetch | Sweep[_Prefetch] | None = None
    """Heartbeat in seconds; 0 is off."""
    mandatory: Flag | Sweep[Flag] | None = None
    """Whether the broker returns a message that no queue takes, instead of dropping it."""
    partitions: _StreamPartitions | Sweep[_StreamPartitions] | None = None
    """Driver stream, as all that follow: partitions of a super stream; 1 is a plain stream."""
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
    max_length_bytes: Whole | Sweep[Whole] | None = None
    """max-length-bytes: how much of a stream is kept, in whole segments; None is all."""
    max_age: _Age | Sweep[_Age] | None = None
    """max-age: how long a whole segment is kept, such as 1h; None is for ever."""
    max_segment_size_bytes: SegmentBytes | Sweep[SegmentBytes] | None = None
    """stream-max-segment-size-bytes: the size at which a stream begins a new file; None is 500 MB."""
