"""The driver protocol: how messages reach a broker and come back, in whole batches.

A driver is a `Driver` object found by entry point (group `loadgen.drivers`). The data plane has two small roles:

* a `Producer` takes batches (`send`) and tells, whenever it is polled, what the broker said about them (`poll`);
* a `Consumer` hands out batches (`receive`) and settles them once they are processed (`settle`).

Times are nanoseconds of CLOCK_MONOTONIC, one clock for all processes of a host. Arrays are one-dimensional.
Neither role is thread-safe; a producer or consumer is made, used and closed in one process (clients do not survive
a fork). Errors that a person can mend are raised as `BrokerError`; a broker that goes away while a trial runs
raises `TrialError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.payload import Payloads

Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
UInt64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]
DriverKind = Literal["wire", "client", "memory"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver can do; a plan that needs more is refused before any broker is touched (`loadgen.plan`)."""

    confirms: bool = True
    partitions: bool = False
    compression: tuple[str, ...] = ("none",)
    idempotence: bool = False
    group_protocols: tuple[str, ...] = ()
    transactions: bool = False
    share_acquire_modes: tuple[str, ...] = ()
    has_middle_roles: bool = False
    """Whether it is a `Replying` driver, too, and its producers send what was received (`loadgen.payload.Relayed`)."""
    many_connections: bool = False
    """Whether a process may have several connections and channels, and open them anew."""
    blocked_timeout: bool = False
    """Whether a producer gives up a connection that the broker has blocked for too long."""

    def lacking(self, settings: Mapping[str, Any]) -> str | None:
        """The first setting that needs what the driver cannot do, as `knob = value`; None where there is none."""
        needs = {
            "confirms": not settings.get("confirms", False) or self.confirms,
            "acks": settings.get("acks", "0") == "0" or self.confirms,
            "partitions": settings.get("partitions", 1) == 1 or self.partitions,
            "compression_type": settings.get("compression_type", "none") in self.compression,
            "enable_idempotence": not settings.get("enable_idempotence", False) or self.idempotence,
            "channels_per_connection": settings.get("channels_per_connection", 1) == 1 or self.many_connections,
            "connections_per_process": settings.get("connections_per_process", 1) == 1 or self.many_connections,
            "reconnect_every_s": settings.get("reconnect_every_s") is None or self.many_connections,
            "recover_within_s": settings.get("recover_within_s") is None or self.many_connections,
            "blocked_connection_timeout_s": settings.get("blocked_connection_timeout_s") is None
            or self.blocked_timeout,
            "share_acquire_mode": settings.get("share_acquire_mode") in {None, *self.share_acquire_modes},
            "transaction_msgs": settings.get("transaction_msgs") is None or self.transactions,
            "group_protocol": settings.get("group_protocol") in {None, *self.group_protocols},
        }
        return next((f"{knob} = {settings[knob]}" for knob, is_met in needs.items() if not is_met), None)


@dataclass(frozen=True, slots=True)
class Start:
    """Where consumers of a log begin: at `offsets`, by partition, or at the first message of `time_ms` or later."""

    offsets: Mapping[int, int] | None = None
    time_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Where one trial's messages go: a queue or topic of its own on one broker, and the settings of the trial.

    `settings` holds every knob of the broker, resolved to one value each, under the broker's own names
    (`loadgen.RabbitMQ` and `loadgen.Kafka` list and explain them). `group` is the Kafka consumer group.

    Each of `subscribers` gets every message. Producers and the control plane are given the target of all of them, a
    consumer that of its own one (`of`).
    """

    endpoint: Endpoint
    name: str
    settings: Mapping[str, Any]
    group: str = ""
    subscribers: int = 1
    subscriber: int = 0
    start: Start | None = None
    """Where consumers begin that have nothing committed or stored yet; None is the beginning."""
    onward: Target | None = None
    """Where a role in the middle sends to, if that has to be made: Kafka's topic for replies, or results' own."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The consumer group of each subscriber; none where there is no group."""
        if not self.group:
            return ()
        return (self.group,) if self.subscribers == 1 else tuple(f"{self.group}-{n}" for n in range(self.subscribers))

    def of(self, subscriber: int) -> Target:
        """What the consumers of one subscriber (from 0) are given."""
        assert 0 <= subscriber < self.subscribers, f"no subscriber {subscriber} of {self.subscribers}"
        group = self.groups[subscriber] if self.group else ""
        return replace(self, group=group, subscriber=subscriber)


def start_of(told: Mapping[str, Any]) -> Start:
    """A `Start` from its fields as JSON has them."""
    offsets = told.get("offsets")
    known = None if offsets is None else {int(partition): int(offset) for partition, offset in offsets.items()}
    return Start(known, told.get("time_ms"))


def confirms(settings: Mapping[str, Any]) -> bool:
    """Whether the broker confirms messages under these settings, whichever broker's they are."""
    return bool(settings.get("confirms", settings.get("acks") != "0"))


def redelivers(settings: Mapping[str, Any]) -> bool:
    """Whether consumers hand messages back under these settings, to come again, whichever broker's they are."""
    return any(settings.get(knob) for knob in ("requeue_every", "fail_every", "release_every"))


@dataclass(slots=True)
class Settled:
    """What the broker said about messages sent earlier: confirmed (`error` None) or refused.

    `seqs` are the producer's own sequence numbers, each settled once; `at_ns` is when the client learned of it.
    """

    seqs: Int64
    at_ns: int
    error: str | None = None


@dataclass(slots=True)
class Received:
    """A batch of n messages of one queue or partition, as bytes in one buffer; valid until the next `receive`.

    Message i is `buffer[starts[i] : starts[i] + sizes[i]]`; `sizes` is one int where all are of one size.
    `source` numbers the queue or partition, of those that the subscriber has. `read_ns` is when the first byte of the
    batch was read from the socket and `parsed_ns` when the batch had been parsed: their difference is the resolution of
    its latencies.
    `redelivered` is the broker's flag (or, for Kafka, an offset seen before), None where none is set.
    `first_position` is the offset of the first message where positions are consecutive, else None.
    `answers` are the identities (as in stamps, uint64[n]) of the requests that these are said to be replies to, by
    their correlation ids; None where the protocol has none.
    """

    buffer: UInt8
    starts: Int64
    sizes: Int64 | int
    source: int
    read_ns: int
    parsed_ns: int
    redelivered: Bool | None = None
    first_position: int | None = None
    answers: UInt64 | None = None


class Producer(Protocol):
    """Sends one producer's messages and observes their confirmations."""

    @property
    def room_msgs(self) -> int:
        """How many messages `send` takes now without blocking; 0 means poll first (back-pressure)."""
        ...

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Hand over messages first_seq, first_seq+1, … with these intended times; at most `room_msgs` of them.

        `sent_ns` is the moment of handing over, at or after the last intended time, and goes into each stamp.
        """
        ...

    def poll(self, timeout_s: float) -> list[Settled]:
        """Move bytes in both directions; return as soon as something was settled, or after `timeout_s`.

        Lingering batches whose time has come are sent here too. `timeout_s` 0 never waits.
        """
        ...

    def flush(self, timeout_s: float) -> list[Settled]:
        """Send what lingers and wait until all is settled (without confirms: written); return what was."""
        ...

    def close(self) -> None:
        """Close the connection in order; never raises."""
        ...


@runtime_checkable
class Resending(Protocol):
    """What a producer has beside `Producer` if it, or its client library, may send a message a second time.

    One without it never does (AMQP has no retries: what is unconfirmed when a connection goes stays so).
    """

    def resent_seqs(self) -> Int64 | None:
        """Every message sent again so far in a way that may store it twice, once for each time (int64[n]).

        Repetitions that the broker tells apart by an idempotent producer's sequence numbers cannot double a
        message and are not among them. None: the client library repeats by itself and does not tell which.
        """
        ...


class Consumer(Protocol):
    """Receives messages and settles them after they were processed."""

    @property
    def has_waiting(self) -> bool:
        """Whether `receive` would return messages that have come already and were too many for the last call."""
        ...

    def receive(self, timeout_s: float) -> list[Received]:
        """Wait up to `timeout_s` for the first message, then return all that has already arrived."""
        ...

    def settle(self, count: int | None = None) -> None:
        """All that `receive` handed out has been processed: acknowledge, or let its offsets be committed.

        With `count` it is so many messages more, of one that handed out a single batch. Where positions and not
        messages are acknowledged, as in Kafka, only the whole counts.
        """
        ...

    def close(self) -> None:
        """Settle what is pending, leave in order; never raises."""
        ...


@runtime_checkable
class Positioned(Protocol):
    """What a consumer has beside `Consumer` where positions are what is committed."""

    @property
    def positions(self) -> dict[int, int]:
        """By partition: the offset after the last message that was handed out."""
        ...

    @property
    def topic(self) -> str:
        """What it reads."""
        ...


@runtime_checkable
class Committing(Protocol):
    """What a producer has beside `Producer` if its transactions can take a consumer's positions in."""

    def commit(self, group: str, consumer: Consumer) -> None:
        """End the transaction, with what this consumer has handed out as processed by its group; `poll` tells more."""
        ...


class Requester(Producer, Protocol):
    """A producer whose messages are requests; `poll` returns early where replies have come, too."""

    def take_replies(self) -> list[Received]:
        """What came since the last call; valid until the next `poll` or `flush`."""
        ...


class Responder(Consumer, Protocol):
    """A consumer of requests, which it replies to with the request's own bytes, the stamp among them."""

    def reply(self, batch: Received, begin: int, end: int) -> None:
        """Reply to messages begin … end of a batch that `receive` handed out last; before they are settled.

        A reply that cannot be delivered is dropped, as its requester may be gone.
        """
        ...


@runtime_checkable
class Rebalancing(Protocol):
    """What a consumer has beside `Consumer` if a group shares the partitions out, and may do so again in mid-trial."""

    def take_rebalances(self) -> list[tuple[int, int]]:
        """Those since the last call: (begin, end) in monotonic ns, between which it had no partitions."""
        ...


@runtime_checkable
class Attending(Protocol):
    """What a consumer has beside `Consumer` if it is in its group only for as long as it is called."""

    def attend(self) -> None:
        """Stay in the group while what was handed out is worked on."""
        ...


@runtime_checkable
class Retrying(Protocol):
    """What a producer or consumer has beside its role if it tries failed requests again and can tell how many."""

    @property
    def failed_requests(self) -> int:
        """Fetches or produce requests that were refused, or whose connection was lost, since it was made."""
        ...


@runtime_checkable
class Crashing(Protocol):
    """What a producer or consumer has beside its role if it can leave as a killed process does."""

    def crash(self) -> None:
        """Close the sockets with nothing said, sent or settled; never raises. It is not used after that."""
        ...


@dataclass(frozen=True, slots=True)
class Gauge:
    """A trial's queues or topic at one moment, as the broker itself tells it.

    `depth_msgs` and `stored_msgs` are what `Admin.depth` and `Admin.stored` return; `consumers` is how many consumers
    the queues have, or members the groups. `retained_msgs` is how many can still be read, be they received or not: what
    lies between a log's first offset and its end, or waits in a queue; `forgotten_msgs` is how many a log's limit has
    removed since it was first looked at, by its first offset. None: the broker does not tell.
    """

    depth_msgs: int
    stored_msgs: int | None = None
    consumers: int | None = None
    retained_msgs: int | None = None
    forgotten_msgs: int | None = None


class Admin(Protocol):
    """Makes, watches and removes the queue or topic of a trial (control plane: slow is fine, wrong is not).

    With several subscribers or queues it is all of them, with the exchange that they are bound to.
    """

    def create(self, target: Target) -> None:
        """Declare a fresh queue or topic; an existing one of that name is an error."""
        ...

    def delete(self, target: Target) -> None:
        """Remove it; one that is gone already is no error."""
        ...

    def depth(self, target: Target, received: int | None = None) -> int:
        """Messages waiting, added up over subscribers: queues by passive declare; end offsets − consumers' position.

        Consumers commit their position now and then only, so a lag by committed offsets would be a saw-tooth of their
        commit interval. Where `received` is given (all messages that the topic's consumers have been handed so
        far, of a topic that they read from its beginning) it is their position; else the group's committed
        offsets are. A queue's own depth needs neither.
        """
        ...

    def stored(self, target: Target) -> int | None:
        """The broker's own count of the messages it accepted (end offsets); None where it keeps none."""
        ...

    def gauge(self, target: Target, received: int | None = None) -> Gauge:
        """Depth and what else the broker tells at once, for the observer who asks each second."""
        ...

    def effective(self, target: Target) -> dict[str, Any]:
        """The queue's or topic's configuration as the broker itself tells it."""
        ...

    def close(self) -> None:
        """Close; never raises."""
        ...


@runtime_checkable
class Reconnecting(Protocol):
    """What a producer or consumer has beside its role if it may close connections and open them anew."""

    def take_connects(self) -> list[tuple[int, int]]:
        """Those since the last call: (begin, end) in monotonic ns of opening one, until it could be used."""
        ...


@runtime_checkable
class Recovering(Protocol):
    """What a producer or consumer has beside its role if it opens another connection where one was lost."""

    def take_outages(self) -> list[tuple[int, int]]:
        """Those that have ended since the last call: (begin, end) in monotonic ns of being without a connection."""
        ...


@runtime_checkable
class Failing(Protocol):
    """What a consumer has beside `Consumer` if it can have messages fail, as the settings say."""

    @property
    def failed(self) -> dict[str, int]:
        """How many deliveries it has `requeued`, `failed` (of messages that fail whenever they come) or `rejected`."""
        ...


class Driver(Protocol):
    """One way of talking to one broker."""

    @property
    def name(self) -> str:
        """The entry point's name, as in results and `--set driver=…`."""
        ...

    @property
    def broker(self) -> BrokerName | Literal["memory"]:
        """Which broker it drives."""
        ...

    @property
    def kind(self) -> DriverKind:
        """Wire (what the broker can do), client (what an application gets) or memory (neither)."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    @property
    def send_bytes(self) -> int:
        """How much a closed loop best hands over in one call: its cost is spread, and all of it stays in caches."""
        ...

    def admin(self, endpoint: Endpoint) -> Admin:
        """Connect the control plane."""
        ...

    def producer(self, target: Target, payloads: Payloads) -> Producer:
        """Connect a producer that fills its messages from `payloads` (which knows the producer's number)."""
        ...

    def consumer(self, target: Target, index: int, count: int) -> Consumer:
        """Connect consumer `index` of the `count` that `target`'s subscriber has.

        Without a group protocol, queue or partition p is read by p % count == index.
        """
        ...


@runtime_checkable
class Replying(Protocol):
    """What a driver has beside `Driver` if it can do request-reply."""

    def requester(self, target: Target, payloads: Payloads) -> Requester:
        """Connect a requester that fills its requests from `payloads`."""
        ...

    def responder(self, target: Target, index: int, count: int, payloads: Payloads) -> Responder:
        """Connect responder `index` of `count`; `payloads` tell what messages of this trial look like."""
        ...


@dataclass(frozen=True, slots=True)
class DriverInfo:
    """The constant half of a driver, for implementations to embed."""

    name: str
    broker: BrokerName | Literal["memory"]
    kind: DriverKind
    capabilities: Capabilities = field(default_factory=Capabilities)
    send_bytes: int = 16 << 10
