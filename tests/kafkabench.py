"""What the tests of Kafka's knobs share: topics of their own, a way to send and to receive, the group as it is told."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from patience import PATIENCE_S

from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.knobs import resolve
from loadgen.payload import Payloads

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.driver import Consumer, Producer, Received, Settled
    from loadgen.endpoint import Endpoint
    from loadgen.scenario import Message

WIRE, CLIENT = load_driver("kafka"), load_driver("confluent")


@dataclass
class Bench:
    """A broker, and the topics that a module's tests have made on it."""

    endpoint: Endpoint
    made: list[Target] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.admin = WIRE.admin(self.endpoint)

    def target(self, *, grouped: bool = True, **knobs: Any) -> Target:
        """A fresh topic with these knobs."""
        name = f"knobs-{secrets.token_hex(6)}"
        durability = "none" if knobs.get("acks") == "0" else "broker"
        settings = resolve("kafka", knobs, durability, "default")
        target = Target(self.endpoint, name, settings, group=f"group-{name}" if grouped else "")
        self.admin.create(target)
        self.made.append(target)
        return target

    @staticmethod
    def by(target: Target, endpoint: Endpoint | None = None, **knobs: Any) -> Target:
        """The same topic, reached by another endpoint or with other settings of the client."""
        settings = {**target.settings, **knobs}
        return Target(endpoint or target.endpoint, target.name, settings, group=target.group)

    def close(self) -> None:
        """Remove what was made."""
        for each in self.made:
            self.admin.delete(each)
        self.admin.close()


def payloads_of(message: Message, producer: int = 0) -> Payloads:
    """The payloads of these tests."""
    return Payloads(message, seed=3, token=4, producer=producer)


def send(producer: Producer, count: int, first: int = 0, step: int = 500) -> list[Settled]:
    """Send `count` messages and wait for what becomes of all."""
    settled: list[Settled] = []
    at, deadline_s = first, time.monotonic() + PATIENCE_S
    while at < first + count and time.monotonic() < deadline_s:
        number = min(step, first + count - at, producer.room_msgs)
        if number:
            now = time.monotonic_ns()
            producer.send(at, np.full(number, now), now)
            at += number
        settled += producer.poll(0 if number else 0.05)
    return settled + producer.flush(PATIENCE_S)


def seqs_of(settled: list[Settled], error: str | None = None) -> list[int]:
    """The messages that had this fate, sorted."""
    return sorted(seq for each in settled if each.error == error for seq in each.seqs.tolist())


@dataclass
class Got:
    """What consumers received: sequence numbers by partition, in order, and which came marked as seen before."""

    by_partition: dict[int, list[int]] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    largest: int = 0

    @property
    def seqs(self) -> list[int]:
        """Of all partitions, sorted."""
        return sorted(seq for each in self.by_partition.values() for seq in each)

    def take(self, batches: list[Received], payloads: Payloads) -> None:
        """Check and note what one call handed out."""
        self.largest = max(self.largest, sum(len(each.starts) for each in batches))
        for batch in batches:
            parsed = payloads.parse(batch.buffer, batch.starts, batch.sizes)
            assert parsed.intact.all()
            self.by_partition.setdefault(batch.source, []).extend(parsed.seq.tolist())
            if batch.redelivered is not None:
                self.again += parsed.seq[batch.redelivered].tolist()


def receive(consumers: list[Consumer], payloads: Payloads, is_done: Callable[[Got], bool]) -> Got:
    """Receive and settle, one consumer after another, until it is done."""
    got, deadline_s = Got(), time.monotonic() + PATIENCE_S
    while not is_done(got) and time.monotonic() < deadline_s:
        for consumer in consumers:
            got.take(consumer.receive(0.05), payloads)
            consumer.settle()
    return got
