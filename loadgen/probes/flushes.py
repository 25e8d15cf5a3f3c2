"""Is there a flush before each confirm? What a power cut would ask of the flushed classes, asked of the broker itself.

No process can cut the power, and `kill -9` leaves the system's page cache whole: whether a confirmed message was on the
disk is told by the calls that put it there. Messages are published one at a time, each confirm awaited, by the wire
driver and with the settings that the class has in any scenario; strace writes down each flush of the files that hold
the messages (RabbitMQ: a quorum queue's write-ahead log, a classic queue's files; Kafka: the partition's log), on every
node. A confirm has a flush of its own where one began after its message was sent and ended before the confirm was
read: with three nodes, on two of them. With a window of messages under way it is seen how many share one.

Held against it is the broker's own count: RabbitMQ's batches of the write-ahead log, each of which it flushes, and
Kafka's timer of its log's flushes (JMX), where the machine has a JDK to ask it by.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.endpoint import OWN_DRIVERS
from loadgen.errors import BrokerError
from loadgen.knobs import resolve
from loadgen.payload import Payloads
from loadgen.probes import Probe
from loadgen.probes.finding import Finding, NotHereError
from loadgen.probes.flush_counts import Count, agreed, count, is_counted
from loadgen.probes.places import TIMEOUT_S, fresh_name
from loadgen.probes.quantities import OWN, SHARE
from loadgen.scenario import Message
from loadgen.tracing import UntraceableError, traced

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loadgen.driver import Producer
    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.probes.finding import Ground
    from loadgen.tracing import Flush

CLASSES = {1: ("broker", "flushed"), 3: ("replicated", "replicated_flushed")}
WINDOWS = ((1, 100), (100, 10))  # messages under way at once, and how often so many are published
MESSAGE = Message(size_bytes=100)
_NODE = re.compile(r"/node(\d+)/data/")


def look(ground: Ground, broker: BrokerName) -> Iterator[Finding]:
    """Each class that brokers of so many nodes have, message by message and a window at a time."""
    endpoint = ground.endpoints[broker]
    nodes = len(endpoint.pids)
    if endpoint.source != "local" or nodes not in CLASSES:
        raise NotHereError(
            f"not testable here: takes {broker}'s own processes here, and the run's is of {endpoint.source} brokers"
        )
    ground.progress(f"{broker}: flushes before confirms, {nodes} node{'s' * (nodes > 1)}")
    try:
        with traced(endpoint.pids) as trace:
            tried = [each for durability in CLASSES[nodes] for each in _tries(endpoint, durability)]
    except UntraceableError as error:
        raise NotHereError(f"not testable here: {error}") from None
    for each in tried:
        yield from _findings(each, trace.flushes)


@dataclass(frozen=True, slots=True)
class Tried:
    """Windows of messages, published one after another: when (ns of CLOCK_REALTIME), and what the broker counted."""

    endpoint: Endpoint
    durability: str
    name: str
    queue_type: str | None
    window: int
    spans: tuple[tuple[int, int], ...]
    """Of each window: just before it was sent, and when the last of its confirms had been read."""
    counts: tuple[Count, Count]
    """The broker's own, before and after."""

    @property
    def messages(self) -> int:
        """How many were confirmed."""
        return self.window * len(self.spans)

    def holds(self, path: str) -> bool:
        """Whether a file is one that the messages are written to, and not the broker's own records."""
        if self.endpoint.broker == "kafka":
            return f"/{self.name}-0/" in path and path.endswith(".log")
        is_ours = _NODE.search(path) is not None and "/coordination/" not in path
        return is_ours and (self.queue_type != "quorum" or path.endswith(".wal"))


def _tries(endpoint: Endpoint, durability: str) -> Iterator[Tried]:
    with _fresh(endpoint, durability) as target:
        producer = load_driver(OWN_DRIVERS[endpoint.broker]).producer(target, Payloads(MESSAGE, 1, 1))
        queue_type = target.settings.get("queue_type")
        try:
            sent, before = 0, count(endpoint)
            for window, times in WINDOWS:
                spans = tuple(_published(producer, sent + window * each, window) for each in range(times))
                after = count(endpoint)
                yield Tried(endpoint, durability, target.name, queue_type, window, spans, (before, after))
                sent, before = sent + window * times, after
        finally:
            producer.close()


@contextmanager
def _fresh(endpoint: Endpoint, durability: str) -> Iterator[Target]:
    """A queue or topic of a class, with the settings that the class has in any scenario."""
    driver = OWN_DRIVERS[endpoint.broker]
    settings = resolve(endpoint.broker, {"driver": driver}, durability, "default")
    if endpoint.broker == "kafka":
        settings |= {"partitioner": "sticky"}
    target = Target(endpoint, fresh_name(), settings)
    admin = load_driver(driver).admin(endpoint)
    try:
        admin.create(target)
        try:
            yield target
        finally:
            admin.delete(target)
    finally:
        admin.close()


def _published(producer: Producer, first_seq: int, count: int) -> tuple[int, int]:
    """Publish so many messages and await their confirms; when it began and ended (ns of CLOCK_REALTIME)."""
    until_s = time.monotonic() + TIMEOUT_S
    began_ns, now_ns, confirmed = time.time_ns(), time.monotonic_ns(), 0
    producer.send(first_seq, np.full(count, now_ns), now_ns)
    while confirmed < count:
        for each in producer.poll(0.1):
            if each.error is not None:
                raise BrokerError(f"a message of {count} was refused: {each.error}")
            confirmed += len(each.seqs)
        if time.monotonic() > until_s:
            raise BrokerError(f"{confirmed} of {count} messages were confirmed within {TIMEOUT_S:g} s")
    return began_ns, time.time_ns()


def _findings(tried: Tried, flushes: Sequence[Flush]) -> Iterator[Finding]:
    """Of messages one at a time, how many confirms have a flush of their own; and how many confirms share one."""
    broker, nodes = tried.endpoint.broker, len(tried.endpoint.pids)
    begin_ns, end_ns = tried.spans[0][0], tried.spans[-1][1]
    seen = [
        each for each in flushes if each.began_ns >= begin_ns and each.ended_ns <= end_ns and tried.holds(each.path)
    ]
    by_node = Counter(node_of(each.path) for each in seen)
    said = f"strace: {' + '.join(str(by_node[node]) for node in range(1, nodes + 1))} flushes"
    own_count, agrees = agreed(*tried.counts, (each for each in flushes if is_counted(tried.endpoint, each.path)))
    said += own_count
    point = f"{tried.durability}, {tried.window} at a time, {tried.messages} messages"
    if tried.window == 1:
        own = sum(has_own(span, seen, needed=nodes // 2 + 1) for span in tried.spans)
        share = 100 * own / tried.messages
        yield Finding(broker, point, OWN, "percent", (share,), f"{own} of {tried.messages}; {said}", agrees)
    each_node = len(seen) / nodes / tried.messages
    yield Finding(broker, point, SHARE, "number", (each_node,), said, agrees)


def node_of(path: str) -> int:
    """The number of the node whose file it is."""
    found = _NODE.search(path)
    return int(found[1]) if found else 0


def has_own(span: tuple[int, int], flushes: Sequence[Flush], needed: int) -> bool:
    """Whether flushes on so many nodes began and ended between a message's sending and its confirm."""
    begin_ns, end_ns = span
    inside = [each for each in flushes if begin_ns <= each.began_ns and each.ended_ns <= end_ns]
    return len({node_of(each.path) for each in inside}) >= needed


PROBE = Probe("Is there a flush before each confirm?", look, 40.0, ("flushed", "replicated_flushed"))
