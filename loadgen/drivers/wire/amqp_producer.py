"""Publishes batches to one exchange and settles them by the broker's confirms."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from pika import frame, spec

from loadgen.driver import Settled
from loadgen.drivers.rabbitmq_topology import Topology
from loadgen.drivers.wire.amqp_connection import Connection
from loadgen.drivers.wire.amqp_frames import (
    PublishHead,
    PublishPacker,
    PublishTemplate,
    Unconfirmed,
    parse_confirms,
)
from loadgen.payload import SEQUENCE_BITS, STAMP, STAMP_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.driver import Int64, Target
    from loadgen.drivers.wire.amqp_frames import Frame
    from loadgen.payload import Payloads

MAX_BATCH_BYTES = 1 << 20  # one call's frames: beyond it, larger batches gain nothing and cost cache

NACK = "nack"


class AmqpProducer:
    """One producer: sequence number s has the delivery tag s - (first sequence number) + 1.

    The knob `mandatory` (off unless set) has the broker return what it cannot route; a returned message is known by
    the stamp in its own body.
    """

    def __init__(self, target: Target, payloads: Payloads, reply_to: str | None = None) -> None:
        settings = target.settings
        self._payloads = payloads
        self._connection = Connection(target.endpoint, settings["heartbeat"])
        try:
            if settings["confirms"]:
                self._connection.call(spec.Confirm.Select(), spec.Confirm.SelectOk)
        except BaseException:
            self._connection.close()
            raise
        self._unconfirmed = Unconfirmed(settings["confirm_window"]) if settings["confirms"] else None
        self._need_bytes = self._connection.frame_max
        self._next_seq: int | None = None
        self._seq_of_tag_0 = 0
        self._returned: list[Settled] = []
        self._return: _Return | None = None
        routes = Topology(target).routes(payloads)
        head = PublishHead(
            routes,
            persistent=settings["persistent"],
            mandatory=settings["mandatory"],
            priorities=settings.get("priorities"),
            reply_to=reply_to,
        )
        frame_max = self._connection.frame_max
        self._frames: PublishTemplate | PublishPacker
        if payloads.size_bytes is None:
            self._frames = PublishPacker(head, frame_max)
            self._rows = max(1, int(MAX_BATCH_BYTES / payloads.mean_size_bytes))
        else:
            self._rows = max(1, MAX_BATCH_BYTES // (len(head.frames(0)) + payloads.size_bytes))
            if self._unconfirmed is not None:
                self._rows = min(self._rows, settings["confirm_window"])
            self._frames = PublishTemplate(head, payloads.size_bytes, frame_max, self._rows)

    @property
    def blocked(self) -> bool:
        """Whether the broker has asked to publish no more for now."""
        return self._connection.blocked

    @property
    def room_msgs(self) -> int:
        """What window and batch allow; 0 while the socket or the broker holds back."""
        connection = self._connection
        if connection.has_unsent or connection.blocked:
            return 0
        return self._rows if self._unconfirmed is None else min(self._rows, self._unconfirmed.room)

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Write the frames of a batch; what the socket does not take at once is left to `poll`."""
        count = len(intended_ns)
        if first_seq != self._next_seq:
            assert self._next_seq is None, f"expected message {self._next_seq}, got {first_seq}"
            self._seq_of_tag_0 = first_seq - 1
        frames = self._frames.fill(self._payloads, first_seq, intended_ns, sent_ns)
        self._next_seq = first_seq + count
        if self._unconfirmed is not None:
            self._unconfirmed.sent(count)
        self._connection.write(frames)

    def poll(self, timeout_s: float) -> list[Settled]:
        """Move bytes in both directions; also returns early when there is room again."""
        connection = self._connection
        had_room = self.room_msgs > 0
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        while True:
            settled = self._take(time.monotonic_ns()) if connection.read_within(timeout_s) else []
            if connection.has_unsent:
                connection.write_on()
            now_ns = time.monotonic_ns()
            connection.beat(now_ns)
            if settled or self._has_news or (not had_room and self.room_msgs > 0):
                return settled
            timeout_s = (deadline_ns - now_ns) / 1e9
            if timeout_s <= 0:
                return settled

    @property
    def _has_news(self) -> bool:
        """Whether something else than a confirm came that whoever polls waits for."""
        return False

    def flush(self, timeout_s: float) -> list[Settled]:
        """Wait until all is written and, with confirms, settled, at most `timeout_s`."""
        unconfirmed = self._unconfirmed
        return poll_while(
            lambda: self._connection.has_unsent or (unconfirmed is not None and unconfirmed.count > 0),
            self.poll,
            timeout_s,
        )

    def close(self) -> None:
        """Write what is unsent and close; never raises."""
        self._connection.close()

    def _take(self, at_ns: int) -> list[Settled]:
        """Parse what was read at `at_ns`."""
        settled: list[Settled] = []
        while self._take_some(at_ns, settled):
            pass
        self._connection.make_room(self._need_bytes)
        return settled

    def _take_some(self, at_ns: int, settled: list[Settled]) -> bool:
        """Take the confirms that come next, and one other frame; whether there may be more."""
        self._take_confirms(at_ns, settled)
        connection = self._connection
        if connection.begin == connection.end or (other := connection.take_frame()) is None:
            return False
        self._other(other, at_ns, settled)
        return True

    def _take_confirms(self, at_ns: int, settled: list[Settled]) -> None:
        if self._unconfirmed is None:
            return
        connection = self._connection
        connection.begin, found = parse_confirms(connection.buffer, connection.begin, connection.end, self._unconfirmed)
        settled += [Settled(tags + self._seq_of_tag_0, at_ns, NACK if refused else None) for tags, refused in found]

    def _other(self, found: Frame, at_ns: int, settled: list[Settled]) -> None:
        """A frame that is no confirm: a part of a returned message, or the connection's."""
        if isinstance(found, frame.Method) and isinstance(found.method, spec.Basic.Return):
            self._return = _Return(found.method.reply_text)
        elif self._return is not None and isinstance(found, frame.Header | frame.Body):
            if self._return.is_complete_with(found):
                settled += self._settle_return(self._return, at_ns)
                self._return = None
        else:
            self._connection.handle(found)

    def _settle_return(self, returned: _Return, at_ns: int) -> list[Settled]:
        """The broker returns before it confirms: settled here, the confirm that follows finds nothing to settle."""
        seq = returned.seq()
        tags: Int64 = np.array([seq - self._seq_of_tag_0])
        if self._unconfirmed is not None:
            tags = self._unconfirmed.each(tags)
        if not len(tags):
            return []
        return [Settled(tags + self._seq_of_tag_0, at_ns, f"return: {returned.reason}")]


class _Return:
    """A message on its way back, gathered frame by frame."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self._size_bytes = -1
        self._body = bytearray()

    def is_complete_with(self, found: Frame) -> bool:
        """Add a header or body frame; whether that was the last."""
        if isinstance(found, frame.Header):
            self._size_bytes = found.body_size
        else:
            self._body += found.fragment
        return len(self._body) >= self._size_bytes >= 0

    def seq(self) -> int:
        """The sequence number in the stamp."""
        return seq_of(self._body)


def poll_while(is_busy: Callable[[], bool], poll: Callable[[float], list[Settled]], timeout_s: float) -> list[Settled]:
    """Poll at least once and while there is something to wait for, at most `timeout_s`; what was settled."""
    deadline_s = time.monotonic() + timeout_s
    settled = poll(0)
    while is_busy() and (left_s := deadline_s - time.monotonic()) > 0:
        settled += poll(left_s)
    return settled


def seq_of(body: bytes | bytearray) -> int:
    """The sequence number in the stamp of a message that came back."""
    stamp = np.frombuffer(body[:STAMP_BYTES], STAMP)
    return int(stamp["identity"][0]) & ((1 << SEQUENCE_BITS) - 1)
