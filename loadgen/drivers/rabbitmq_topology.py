"""Exchange, queues and bindings of a trial on RabbitMQ, and the routing key of each of its messages.

Every subscriber has `queues` queues, over which its messages are spread by their routing keys. All queues of a trial
are bound to one exchange. The first binding of each is the one that routes to it; what `bindings` asks for beyond that
matches no message, so that nothing is delivered twice. A headers exchange looks through them all; a topic exchange
finds its way by words and a direct one by the key, whatever else is bound. (To a fanout exchange all bindings are
alike, and it is RabbitMQ that gives a queue one copy.)

* default: no bindings; a message's routing key is its queue's name.
* direct: the key is the partition's, which is bound in every subscriber.
* topic: the same as the second of three words, bound by a pattern.
* fanout, headers: one queue a subscriber; the first does not look at keys, the second looks at a header instead.
* consistent-hash: RabbitMQ itself chooses the queue by the key's hash. The keys are those of the messages.

With `dead_letter`, what leaves a queue otherwise than to a consumer goes through an exchange of the trial to its
subscriber's dead-letter queue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from loadgen.driver import Int64, Target, UInt8
    from loadgen.payload import Payloads

SPREAD_KEYS = 1_000
"""How many routing keys a consistent-hash exchange is given where messages have no keys, taken in turn."""
HASH_EXCHANGE = "consistent-hash"
HASH_PLUGIN = "rabbitmq_consistent_hash_exchange"
HEADER = "route"
_TYPES = {HASH_EXCHANGE: "x-consistent-hash"}
_ARGUMENTS = {
    "x-max-length": "max_length",
    "x-max-length-bytes": "max_length_bytes",
    "x-overflow": "overflow",
    "x-message-ttl": "message_ttl_ms",
    "x-expires": "expires_ms",
    "x-delivery-limit": "delivery_limit",
    "x-quorum-initial-group-size": "quorum_initial_group_size",
}
_WEIGHT = "1"  # the routing key of a binding to a consistent-hash exchange: all queues get the same share


@dataclass(frozen=True, slots=True)
class Binding:
    """What `queue.bind` is given beside the exchange."""

    queue: str
    routing_key: str
    arguments: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Routes:
    """Where a producer publishes: an exchange, and routing keys of one length (uint8[n, length]), a row each."""

    exchange: str
    keys: UInt8
    headers: Mapping[str, str] | None = None

    @classmethod
    def of(cls, exchange: str, keys: Sequence[str], headers: Mapping[str, str] | None = None) -> Routes:
        """From keys as text, all of one length in bytes."""
        encoded = [key.encode() for key in keys]
        assert len({len(each) for each in encoded}) == 1, "routing keys of one producer are of one length"
        return cls(exchange, np.frombuffer(b"".join(encoded), np.uint8).reshape(len(encoded), -1), headers)

    def rows(self, payloads: Payloads, first_seq: int, count: int) -> Int64 | None:
        """The row of `keys` for each of messages first_seq … (int64[count]); None where there is but one.

        Messages with keys go by them, others in turn.
        """
        if len(self.keys) == 1:
            return None
        indices = payloads.key_indices(first_seq, count)
        if indices is None:
            indices = np.arange(first_seq, first_seq + count) + payloads.producer
        return indices % len(self.keys)

    def text(self, row: int = 0) -> str:
        """One key as text."""
        text: str = self.keys[row].tobytes().decode()
        return text


class Topology:
    """What a target's settings ask for: its exchange, `queues_each` queues for each subscriber, their bindings."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.kind: str = target.settings.get("exchange") or "default"
        self.queues_each: int = target.settings.get("queues", 1)
        self.is_durable: bool = target.settings.get("durable", True)
        self.is_auto_deleted: bool = target.settings.get("auto_delete", False)
        self._numbers = range(self.queues_each)

    @property
    def exchange(self) -> str:
        """The exchange's name; empty is the default exchange, which is there already."""
        return "" if self.kind == "default" else self.target.name

    @property
    def exchange_type(self) -> str:
        """As `exchange.declare` has it."""
        return _TYPES.get(self.kind, self.kind)

    @property
    def is_spread(self) -> bool:
        """Whether deliveries to one consumer may differ in their routing keys or come from several queues."""
        return self.queues_each > 1 or self.kind == HASH_EXCHANGE

    def queue(self, subscriber: int, number: int) -> str:
        """The name of one of a subscriber's queues."""
        if self.target.subscribers == 1 and self.queues_each == 1:
            return self.target.name
        return f"{self.target.name}-s{subscriber:03}-q{number:03}"

    def queues_of(self, subscriber: int) -> list[str]:
        """All queues of one subscriber."""
        return [self.queue(subscriber, number) for number in self._numbers]

    def queues(self) -> list[str]:
        """All queues of all subscribers."""
        return [queue for each in range(self.target.subscribers) for queue in self.queues_of(each)]

    @property
    def dead_exchange(self) -> str:
        """The dead-letter exchange's name; empty where there is none."""
        return f"{self.target.name}-dead" if self.target.settings.get("dead_letter") else ""

    def dead_queue(self, subscriber: int) -> str:
        """The name of a subscriber's dead-letter queue, which is also its routing key."""
        return f"{self.target.name}-dead-s{subscriber:03}"

    def dead_queues(self) -> list[str]:
        """Every subscriber's dead-letter queue, if there are any."""
        return [self.dead_queue(each) for each in range(self.target.subscribers)] if self.dead_exchange else []

    def arguments(self, subscriber: int) -> dict[str, Any]:
        """What a subscriber's queues are declared with."""
        settings = self.target.settings
        arguments: dict[str, Any] = {"x-queue-type": settings["queue_type"]}
        arguments |= {name: settings[knob] for name, knob in _ARGUMENTS.items() if settings.get(knob) is not None}
        if settings.get("quorum_initial_group_size"):  # where a client is connected says nothing of who should lead
            arguments["x-queue-leader-locator"] = "balanced"
        if self.dead_exchange:
            arguments["x-dead-letter-exchange"] = self.dead_exchange
            arguments["x-dead-letter-routing-key"] = self.dead_queue(subscriber)
        if settings.get("priorities") and settings["queue_type"] == "classic":  # a quorum queue always has 32
            arguments["x-max-priority"] = settings["priorities"] - 1
        return arguments

    def read_by(self, index: int, count: int) -> dict[int, str]:
        """The queues that consumer `index` of `count` of the target's own subscriber reads, by their numbers."""
        share = [number for number in self._numbers if number % count == index % self.queues_each]
        return {number: self.queue(self.target.subscriber, number) for number in share}

    def bindings(self) -> Iterator[Binding]:
        """Every binding of every queue to the exchange; none to the default exchange, which is bound to all."""
        if self.kind == "default":
            return
        for subscriber in range(self.target.subscribers):
            for number in self._numbers:
                queue = self.queue(subscriber, number)
                yield self._binding(queue, f"q{number:03}")
                for extra in range(1, self.target.settings.get("bindings", 1)):
                    yield self._binding(queue, f"x{extra:05}")

    def _binding(self, queue: str, route: str) -> Binding:
        if self.kind == "headers":
            return Binding(queue, "", {"x-match": "all", HEADER: route})
        keys = {"topic": f"load.{route}.#", HASH_EXCHANGE: _WEIGHT}
        return Binding(queue, keys.get(self.kind, route))

    def routes(self, payloads: Payloads) -> Routes:
        """Where a producer of these payloads publishes."""
        if self.kind == "default":
            return Routes.of("", [self.queue(0, number) for number in self._numbers])
        if self.kind == "headers":
            return Routes.of(self.exchange, [""], {HEADER: "q000"})
        if self.kind == HASH_EXCHANGE:
            count = payloads.message.key_count or SPREAD_KEYS
            width = len(str(count - 1))
            return Routes.of(self.exchange, [f"{number:0{width}}" for number in range(count)])
        form = "load.q{:03}.sent" if self.kind == "topic" else "q{:03}"
        return Routes.of(self.exchange, [form.format(number) for number in self._numbers])

    def describe(self) -> dict[str, Any]:
        """What is declared, as plain data."""
        return {
            "exchange": {"name": self.exchange, "type": self.exchange_type, "durable": True},
            "queues": self.queues(),
            "bindings": sum(1 for _ in self.bindings()),
        }
