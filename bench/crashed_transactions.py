"""Is each result there exactly once, however often Kafka's processor dies inside its transaction?

    python bench/faults.py --transactions 200

A processor (`loadgen.processing`, wire driver) reads a topic, writes a result of each message and commits offsets, in
one transaction. It dies in the midst of one, at one of four points in turn: its sockets are closed and nothing more is
said, as when a process is killed. A successor with the same transactional id takes over: the broker aborts what was
left open, and the successor goes on from the committed offset, commits one transaction and dies in its next.

In the end the results are read anew by librdkafka, which had no part in it: by a `read_committed` consumer, which must
see a result of each message once, and by a `read_uncommitted` one, which sees also what was aborted. Both are held
against the broker's own offsets: a topic's end is what was written, and one mark for each transaction that ended.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from loadgen import Kafka, Message, Rate, Scenario
from loadgen.driver import Positioned
from loadgen.drivers import load_driver
from loadgen.drivers.wire.kafka_protocol import Connection
from loadgen.errors import TrialError
from loadgen.legs import target_of
from loadgen.payload import Payloads
from loadgen.plan import Profile, make_plan
from loadgen.probes.places import committed_of, extent_of, log_of, reading
from loadgen.processed import Processed
from loadgen.processing import Processor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from loadgen.driver import Target
    from loadgen.endpoint import Endpoint

END, COMMIT_OFFSETS = 26, 28  # Kafka's numbers of the requests
POINTS = {  # where it dies: at which request, and whether that has left
    "between results and offsets": (COMMIT_OFFSETS, False),
    "after the offsets were sent, unheard": (COMMIT_OFFSETS, True),
    "between offsets and commit": (END, False),
    "after the commit was asked for, unheard": (END, True),
}
BATCH = 20  # messages of one transaction
MESSAGE = Message(size_bytes=100)
SEED, TOKEN = 3, 4
WAIT_S = 60.0
SETTLED_S = 10.0


class _Died(Exception):  # noqa: N818 - no error: what is meant to happen
    """The processor is dead from here on."""


@contextmanager
def dying_at(api: int, *, sent: bool) -> Iterator[None]:
    """Whoever posts a request of this kind dies: before it leaves, or as soon as it has."""
    post = Connection.post

    def dies(connection: Connection, request: Any) -> int:
        if request.__api_key__ != api:
            return post(connection, request)
        if sent:
            post(connection, request)
        raise _Died

    with patch.object(Connection, "post", dies):
        yield


def process(processor: Processor, until: Callable[[], bool]) -> None:
    """Make results of what comes until it is enough; TrialError where it does not come."""
    end_s = time.monotonic() + WAIT_S
    while not until():
        if time.monotonic() > end_s:
            raise TrialError(f"the processor made {processor.sent:,} results and then none for {WAIT_S:g} s")
        for batch in processor.receive():
            processor.forward(batch)
        processor.hear(0)


@dataclass(frozen=True, slots=True)
class Audit:
    """What became of the messages, by readers that had no part in it and by the broker's offsets."""

    messages: int
    crashes: int
    committed: Counter[int]
    """How often a committed result of each message was read."""
    strangers: int
    """Results that are none: damaged, or of no message of this run."""
    stored: int
    """All results that were written, aborted ones among them."""
    end: int
    """The offset behind the results' topic's last."""
    processed: int
    """The group's committed offset in the messages' topic."""
    commits: int
    """Transactions that a processor heard to be committed."""
    took_s: float

    @property
    def lost(self) -> int:
        """Messages without a committed result."""
        return self.messages - len(self.committed)

    @property
    def doubled(self) -> int:
        """Messages with several."""
        return sum(1 for times in self.committed.values() if times > 1)

    @property
    def aborted(self) -> int:
        """Results that were written and taken back."""
        return self.stored - self.committed.total() - self.strangers

    def told(self) -> list[str]:
        """What is wrong, a line each."""
        marks, ended = self.end - self.stored, self.commits + self.crashes
        found = {
            f"{self.lost:,} of {self.messages:,} messages have no committed result": self.lost,
            f"{self.doubled:,} messages have several committed results": self.doubled,
            f"{self.strangers:,} committed results are damaged or of no message of this run": self.strangers,
            f"offset {self.processed:,} of {self.messages:,} is committed": self.processed != self.messages,
            f"the offsets tell {marks:,} marks of ended transactions, there were {ended:,}": marks != ended,
            "nothing was ever aborted: no crash was inside a transaction": self.crashes >= len(POINTS)
            and not self.aborted,
        }
        return [line for line, is_so in found.items() if is_so]

    def line(self) -> str:
        """The figures."""
        return (
            f"{self.crashes:,} crashes inside a transaction, {self.messages:,} messages: {self.committed.total():,} "
            f"committed results read, {self.lost:,} lost, {self.doubled:,} doubled; {self.aborted:,} results aborted; "
            f"end offset {self.end:,} = {self.stored:,} results and {self.end - self.stored:,} marks of "
            f"{self.commits:,} commits heard and {self.crashes:,} crashes; {self.took_s:.0f} s"
        )


def crash_often(endpoint: Endpoint, crashes: int) -> Audit:
    """So many processors die, one after another; a last one finishes."""
    began_s = time.monotonic()
    messages = (2 * crashes + 1) * BATCH  # whichever way each crash goes, its successors have enough
    target = _target(endpoint)
    driver = load_driver("kafka")
    points: Sequence[tuple[int, bool]] = tuple(POINTS.values())
    commits = 0
    with ExitStack() as held:
        admin = driver.admin(endpoint)
        held.callback(admin.close)
        assert target.onward is not None, "results have a topic"
        for each in (target, target.onward):
            admin.create(each)
            held.callback(admin.delete, each)
        _fill(target, messages)
        for number in range(crashes):
            _live_and_die(target, *points[number % len(points)])
            commits += 1
        commits += _finish(target, messages)
        return _audit(target, messages, crashes, commits, began_s)


def _target(endpoint: Endpoint) -> Target:
    """As a scenario of pattern process has it, in batches of `BATCH`."""
    knobs = Kafka(processing_guarantee="exactly_once", max_poll_records=BATCH)
    made = Scenario(name="crashed", question="?", pattern="process", message=MESSAGE, rate=Rate.fixed(1), kafka=knobs)
    plan = make_plan([made], Profile("crashed", 0.0, 1.0, 1), brokers=("kafka",))
    return target_of(plan.trials[0], endpoint, f"crashed-{uuid.uuid4().hex[:12]}")


def _payloads() -> Payloads:
    return Payloads(MESSAGE, SEED, TOKEN)


def _fill(target: Target, messages: int) -> None:
    """In record batches of `BATCH`, so that a consumer is handed so many at once."""
    source = load_driver("kafka").producer(target, _payloads())
    try:
        confirmed = 0
        for first in range(0, messages, BATCH):
            source.send(first, np.full(BATCH, 1), 2)
            confirmed += sum(len(each.seqs) for each in source.flush(WAIT_S) if each.error is None)
    finally:
        source.close()
    if confirmed != messages:
        raise TrialError(f"{confirmed:,} of {messages:,} messages were confirmed before the first crash")


def _live_and_die(target: Target, api: int, sent: bool) -> None:
    """Take over, commit one transaction, and die in the next."""
    processor = Processor(load_driver("kafka"), target, 0, 1, _payloads())
    try:
        process(processor, lambda: processor.sent >= BATCH)
        processor.commit()
        with dying_at(api, sent=sent), suppress(_Died):
            begun = processor.sent
            process(processor, lambda: processor.sent >= begun + BATCH)
            processor.commit()
            raise TrialError("the processor outlived its crash")
    finally:
        processor.crash()


def _finish(target: Target, messages: int) -> int:
    """A last processor goes on to the end; how many transactions it took."""
    processor = Processor(load_driver("kafka"), target, 0, 1, _payloads())
    assert isinstance(processor.consumer, Positioned), "offsets tell how far it has come"
    consumer, commits = processor.consumer, 0
    try:
        while consumer.positions.get(0, 0) < messages:
            begun = processor.sent
            process(processor, lambda: processor.sent > begun)  # noqa: B023 - called before it changes
            processor.commit()
            commits += 1
    finally:
        processor.close()
    return commits


def _audit(target: Target, messages: int, crashes: int, commits: int, began_s: float) -> Audit:
    assert target.onward is not None, "results have a topic"
    endpoint, results = target.endpoint, target.onward.name
    committed, strangers = _read(endpoint, results, messages)
    stored = sum(1 for _ in log_of(endpoint, results, "read_uncommitted"))
    with reading(endpoint, group__id=target.group) as member:
        offset = committed_of(member, target.name)
        end = extent_of(member, results)[1]
    took_s = time.monotonic() - began_s
    return Audit(messages, crashes, committed, strangers, stored, end, offset, commits, took_s)


def _read(endpoint: Endpoint, topic: str, messages: int) -> tuple[Counter[int], int]:
    """How often each message's result is read by a committed reader, and what is none; once all can be read."""
    until_s = time.monotonic() + SETTLED_S
    reader = Processed(MESSAGE, SEED, TOKEN)
    while True:
        bodies = list(log_of(endpoint, topic, "read_committed"))
        sizes = np.array([len(body) for body in bodies], np.int64)
        parsed = reader.parse(np.frombuffer(b"".join(bodies), np.uint8), np.cumsum(sizes) - sizes, sizes)
        found = Counter(parsed.seq[parsed.intact].tolist())
        if len(found) >= messages or time.monotonic() > until_s:
            strangers = len(bodies) - sum(times for seq, times in found.items() if 0 <= seq < messages)
            return Counter({seq: times for seq, times in found.items() if 0 <= seq < messages}), strangers
