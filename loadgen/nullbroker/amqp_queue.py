"""A queue of a null broker: what consumers have room for goes to them at once, the rest waits, and that is bounded."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from loadgen.drivers.wire.amqp_frames import Unconfirmed
from loadgen.nullbroker.amqp_publishes import Chunk, DeliveryTemplate

if TYPE_CHECKING:
    from loadgen.nullbroker.server import Peer

WAITING_MAX_BYTES = 1 << 20  # what waits in a queue beyond this holds its publishers back …
WAITING_MAX_MSGS = 2_000  # … and so does this: a slow consumer has to empty it when the trial ends
BACKLOG_MAX_BYTES = 1 << 20  # what waits for a consumer's socket before it is given more
UNLIMITED_MSGS = 1 << 17  # unacknowledged at most where the consumer sets no limit


class Consumer:
    """One consumer: its prefetch limit, and what it has not acknowledged."""

    def __init__(self, peer: Peer, tag: str, queue: str, prefetch: int, *, is_automatic: bool) -> None:
        self.tag = tag
        # A delivery is to an acknowledgement what a publish is to a confirm: the same frames settle it.
        self.unacked = None if is_automatic else Unconfirmed(prefetch or UNLIMITED_MSGS)
        self._peer = peer
        self._template = DeliveryTemplate(tag, queue)
        self._next_tag = 1

    @property
    def room(self) -> int:
        """How many messages it may be given now."""
        if self._peer.backlog_bytes >= BACKLOG_MAX_BYTES:
            return 0
        return UNLIMITED_MSGS if self.unacked is None else self.unacked.room

    def deliver(self, chunk: Chunk) -> None:
        """Give it all that is left of a chunk."""
        self._peer.write(self._template.render(chunk, self._next_tag))
        self._next_tag += chunk.count
        if self.unacked is not None:
            self.unacked.sent(chunk.count)


class Queue:
    """Messages in the order they came; `taken` and `delivered` count them from the queue's beginning."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken = self.delivered = 0
        self.consumers: list[Consumer] = []
        self._chunks: deque[Chunk] = deque()
        self._waiting_bytes = self._waiting_msgs = 0
        self._held: set[Peer] = set()
        self._turn = 0

    @property
    def depth(self) -> int:
        """What was taken and not delivered: waiting, or dropped because nobody consumed."""
        return self.taken - self.delivered

    @property
    def _is_full(self) -> bool:
        return self._waiting_bytes >= WAITING_MAX_BYTES or self._waiting_msgs >= WAITING_MAX_MSGS

    def publish(self, chunk: Chunk, publisher: Peer) -> None:
        """Take what a publisher has sent, and let it wait where that is too much."""
        self.taken += chunk.count
        if not self.consumers:
            return
        if self._chunks or not self._hand_out(chunk):
            chunk.keep()
            self._chunks.append(chunk)
            self._waiting_bytes += chunk.bytes
            self._waiting_msgs += chunk.count
            if self._is_full:
                self._held.add(publisher)
                publisher.hold(is_held=True)

    def deliver(self) -> None:
        """Hand out what waits, as far as consumers have room."""
        while self._chunks:
            chunk = self._chunks[0]
            had_bytes, had_msgs = chunk.bytes, chunk.count
            is_gone = self._hand_out(chunk)
            self._waiting_bytes -= had_bytes - chunk.bytes
            self._waiting_msgs -= had_msgs - chunk.count
            if not is_gone:
                break
            self._chunks.popleft()
        if self._held and not self._is_full:
            self._release()

    def _hand_out(self, chunk: Chunk) -> bool:
        """Give a chunk to the consumers in turn, as far as they have room; whether nothing is left of it."""
        idle = 0
        while chunk.count and idle < len(self.consumers):
            self._turn = (self._turn + 1) % len(self.consumers)
            consumer = self.consumers[self._turn]
            count = min(chunk.count, consumer.room)
            if count:
                consumer.deliver(chunk.take(count))
                self.delivered += count
                idle = 0
            else:
                idle += 1
        return not chunk.count

    def _release(self) -> None:
        for publisher in self._held:
            publisher.hold(is_held=False)
        self._held.clear()

    def leave(self, consumer: Consumer) -> None:
        """A consumer has gone; after the last one, what waits is dropped."""
        self.consumers.remove(consumer)
        if not self.consumers:
            self.clear()

    def clear(self) -> None:
        """Drop what waits, and let publishers go on."""
        self._chunks.clear()
        self._waiting_bytes = self._waiting_msgs = 0
        self._release()
