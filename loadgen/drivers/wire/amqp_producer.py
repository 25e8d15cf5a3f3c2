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


class _Seqs:
    """Which sequence number each delivery tag of a channel stands for: runs, as a channel need not get all messages."""

    def __init__(self) -> None:
        self._tags: list[int] = []  # the first of each run …
        self._seqs: list[int] = []  # … and its message
        self._next_tag, self._next_seq = 1, -1

    def sent(self, first_seq: int, count: int, low: int) -> None:
        """The next tags are of messages first_seq …; those below `low` are settled and need not be known any more."""
        if first_seq != self._next_seq:
            while len(self._tags) > 1 and self._tags[1] <= low:
                del self._tags[0], self._seqs[0]
            self._tags.append(self._next_tag)
            self._seqs.append(first_seq)
        self._next_tag += count
        self._next_seq = first_seq + count

    def of(self, tags: Int64) -> Int64:
        """The messages of these tags (int64[n])."""
        if len(self._tags) == 1:
            return tags + (self._seqs[0] - self._tags[0])
        runs = np.searchsorted(self._tags, tags, side="right") - 1
        seqs: Int64 = np.array(self._seqs)[runs] + tags - np.array(self._tags)[runs]
        return seqs

    def tag_of(self, seq: int) -> int:
        """The tag of a message that was sent here."""
        run = int(np.searchsorted(self._seqs, seq, side="right")) - 1
        return seq - self._seqs[run] + self._tags[run]


class _Lane:
    """One channel of a producer: its frames, and which of its messages are unconfirmed."""

    def __init__(
        self,
        connection: Connection,
        target: Target,
        payloads: Payloads,
        channel: int,
        window: int,
        reply_to: str | None,
    ) -> None:
        settings = target.settings
        self.unconfirmed = Unconfirmed(window, channel) if settings["confirms"] else None
        self.channel = channel
        self.seqs = _Seqs()
        self.returning: _Return | None = None
        if settings["confirms"]:
            connection.call(spec.Confirm.Select(), spec.Confirm.SelectOk, channel)
        head = PublishHead(
            Topology(target).routes(payloads),
            persistent=settings["persistent"],
            mandatory=settings["mandatory"],
            priorities=settings.get("priorities"),
            reply_to=reply_to,
            channel=channel,
        )
        frame_max = connection.frame_max
        self.frames: PublishTemplate | PublishPacker
        if payloads.size_bytes is None:
            self.frames = PublishPacker(head, frame_max)
            self._rows = max(1, int(MAX_BATCH_BYTES / payloads.mean_size_bytes))
        else:
            self._rows = max(1, MAX_BATCH_BYTES // (len(head.frames(0)) + payloads.size_bytes))
            if self.unconfirmed is not None:
                self._rows = min(self._rows, window)
            self.frames = PublishTemplate(head, payloads.size_bytes, frame_max, self._rows)

    @property
    def room_msgs(self) -> int:
        """What window and batch allow."""
        return self._rows if self.unconfirmed is None else min(self._rows, self.unconfirmed.room)

    def sent(self, first_seq: int, count: int) -> None:
        """So many have been published."""
        self.seqs.sent(first_seq, count, 0 if self.unconfirmed is None else self.unconfirmed.low)
        if self.unconfirmed is not None:
            self.unconfirmed.sent(count)

    def settle_return(self, at_ns: int) -> list[Settled]:
        """The broker returns before it confirms: settled here, the confirm that follows finds nothing to settle."""
        assert self.returning is not None, "a returned message is complete"
        seq, reason, self.returning = self.returning.seq(), self.returning.reason, None
        if self.unconfirmed is not None and not len(self.unconfirmed.each(np.array([self.seqs.tag_of(seq)]))):
            return []
        return [Settled(np.array([seq]), at_ns, f"return: {reason}")]


class AmqpProducer:
    """One producer on a connection of its own, whose channels take its batches in turn and share its window.

    The knob `mandatory` (off unless set) has the broker return what it cannot route; a returned message is known by
    the stamp in its own body.

    Args:
        share: how many producers share the scenario's window.
        reply_to: the queue that each message asks to be answered by.
    """

    def __init__(self, target: Target, payloads: Payloads, share: int = 1, reply_to: str | None = None) -> None:
        settings = target.settings
        self._payloads = payloads
        self._connection = Connection(target.endpoint, settings["heartbeat"])
        try:
            channels = self._connection.open_channels(settings.get("channels_per_connection", 1))
            window = max(1, settings["confirm_window"] // (len(channels) * share))
            self._lanes = {each: _Lane(self._connection, target, payloads, each, window, reply_to) for each in channels}
        except BaseException:
            self._connection.close()
            raise
        self._need_bytes = self._connection.frame_max
        self._next = self._lanes[channels[0]]

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._connection.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether bytes wait for the socket."""
        return self._connection.has_unsent

    @property
    def owes(self) -> bool:
        """Whether anything is unsent or unconfirmed."""
        return self.has_unsent or any(each.unconfirmed and each.unconfirmed.count for each in self._lanes.values())

    @property
    def blocked(self) -> bool:
        """Whether the broker has asked to publish no more for now."""
        return self._connection.blocked

    @property
    def room_msgs(self) -> int:
        """What window and batch of the next channel allow; 0 while the socket or the broker holds back."""
        connection = self._connection
        if connection.has_unsent or connection.blocked:
            return 0
        if len(self._lanes) > 1:
            self._next = max(self._lanes.values(), key=lambda lane: lane.room_msgs)
        return self._next.room_msgs

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Write the frames of a batch; what the socket does not take at once is left to `poll`."""
        lane = self._next
        frames = lane.frames.fill(self._payloads, first_seq, intended_ns, sent_ns)
        lane.sent(first_seq, len(intended_ns))
        if len(self._lanes) > 1:  # of those with the same room, this one is the last from now on
            self._lanes[lane.channel] = self._lanes.pop(lane.channel)
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
        return poll_while(lambda: self.owes, self.poll, timeout_s)

    def crash(self) -> None:
        """See `loadgen.driver.Crashing`."""
        self._connection.crash()

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
        """Confirms, of one channel after the other."""
        connection = self._connection
        while (lane := self._lane_at_begin()) is not None and lane.unconfirmed is not None:
            begin = connection.begin
            connection.begin, found = parse_confirms(connection.buffer, begin, connection.end, lane.unconfirmed)
            settled += [Settled(lane.seqs.of(tags), at_ns, NACK if refused else None) for tags, refused in found]
            if len(self._lanes) == 1 or connection.begin == begin:
                return

    def _lane_at_begin(self) -> _Lane | None:
        """The channel whose frame is next; None for the connection's own."""
        return self._next if len(self._lanes) == 1 else self._lanes.get(self._connection.channel_at_begin())

    def _other(self, found: Frame, at_ns: int, settled: list[Settled]) -> None:
        """A frame that is no confirm: a part of a returned message, or the connection's."""
        lane = self._lanes.get(found.channel_number)
        if lane is not None and isinstance(found, frame.Method) and isinstance(found.method, spec.Basic.Return):
            lane.returning = _Return(found.method.reply_text)
        elif lane is not None and lane.returning is not None and isinstance(found, frame.Header | frame.Body):
            if lane.returning.is_complete_with(found):
                settled += lane.settle_return(at_ns)
        else:
            self._connection.handle(found)


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
