"""Publishes batches to a stream, or to the partitions of a super stream, and settles them by the broker's confirms."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

import numpy as np

from loadgen.driver import Settled
from loadgen.drivers.stream_settings import Streams
from loadgen.drivers.wire.amqp_producer import poll_while
from loadgen.drivers.wire.framed import wait
from loadgen.drivers.wire.stream_connection import close_all, open_any, open_leaders
from loadgen.drivers.wire.stream_frames import PublishPacker
from loadgen.drivers.wire.stream_protocol import KEY, Key, code_name, text
from loadgen.errors import TrialError

if TYPE_CHECKING:
    from loadgen.driver import Int64, Target
    from loadgen.drivers.wire.stream_connection import StreamConnection
    from loadgen.endpoint import Endpoint
    from loadgen.payload import Payloads

_SETTLED = struct.Struct(">BI")  # publisher, how many
_ERROR = np.dtype([("id", ">u8"), ("code", ">u2")])


class StreamProducer:
    """One producer: message s has the publishing id s + 1 (in sub-entries, the last message's of its group).

    With `deduplication` it has a name on the broker, which then stores each publishing id once, also when another
    producer of that name sends it again.
    """

    def __init__(self, target: Target, payloads: Payloads) -> None:
        settings = target.settings
        streams = Streams(target)
        self._payloads = payloads
        self._links = open_leaders(target.endpoint, streams.names, settings["heartbeat"])
        self._connections = list(dict.fromkeys(self._links.values()))
        try:
            reference = publisher_name(target, payloads.producer) if settings["deduplication"] else ""
            for number, (stream, connection) in enumerate(self._links.items()):
                connection.call(Key.DECLARE_PUBLISHER, struct.pack(">B", number) + text(reference) + text(stream))
        except BaseException:
            close_all(self._connections)
            raise
        self._by_publisher = list(self._links.values())
        self._packer = PublishPacker(
            payloads,
            min(each.frame_max for each in self._connections),
            partitions=len(streams.names),
            group_msgs=settings["sub_entry_size"],
            codec=settings["compression"],
        )
        self._window: int = settings["confirm_window"]
        self._rows: int = min(self._packer.rows, self._window)
        self._groups: dict[tuple[int, int], Int64] = {}
        self._is_grouped = settings["sub_entry_size"] > 1 or settings["compression"] != "none"
        self._unconfirmed = 0

    @property
    def room_msgs(self) -> int:
        """What window and frame allow; 0 while a socket holds back."""
        for each in self._connections:
            if each.has_output:
                return 0
        return min(self._rows, self._window - self._unconfirmed)

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Write the frames of a batch; what the socket does not take at once is left to `poll`."""
        frames, groups = self._packer.pack(first_seq, intended_ns, sent_ns)
        self._unconfirmed += len(intended_ns)
        for publisher, identity, seqs in groups:
            self._groups[publisher, identity] = seqs
        for frame in frames:
            self._by_publisher[frame[KEY.size + 4]].queue([frame])
        for each in self._connections:
            each.write()

    def poll(self, timeout_s: float) -> list[Settled]:
        """Move bytes in both directions; also returns early when there is room again."""
        had_room = self.room_msgs > 0
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        while True:
            settled = [each for connection in self._connections for each in self._take(connection)]
            now_ns = time.monotonic_ns()
            left_ns = deadline_ns - now_ns if timeout_s > 0 else 0
            if settled or left_ns <= 0 or (not had_room and self.room_msgs > 0):
                return settled
            beat_ns = min(each.beat_due_ns for each in self._connections)
            wait(self._connections, max(0, min(left_ns, beat_ns - now_ns)) / 1e9)

    def flush(self, timeout_s: float) -> list[Settled]:
        """Wait until all is written and settled, at most `timeout_s`."""
        return poll_while(lambda: self._unconfirmed > 0, self.poll, timeout_s)

    def close(self) -> None:
        """Write what is unsent and close; never raises."""
        close_all(self._connections)

    def _take(self, connection: StreamConnection) -> list[Settled]:
        """What one connection brought, and what waits for it written."""
        settled: list[Settled] = []
        confirmed: list[Int64] = []
        at_ns = 0
        while connection.read():
            at_ns = at_ns or time.monotonic_ns()
            while (found := connection.frame()) is not None:
                self._settle(connection, *found, confirmed, settled, at_ns)
        if connection.has_output:
            connection.write()
        if at_ns or time.monotonic_ns() > connection.beat_due_ns:
            connection.beat(at_ns or time.monotonic_ns(), has_heard=at_ns > 0)
        if confirmed:
            settled.append(Settled(confirmed[0] if len(confirmed) == 1 else np.concatenate(confirmed), at_ns))
        return settled

    def _settle(
        self,
        connection: StreamConnection,
        begin: int,
        end: int,
        confirmed: list[Int64],
        settled: list[Settled],
        at_ns: int,
    ) -> None:
        """Read one frame."""
        view = connection.buffer.data
        key, _ = KEY.unpack_from(view, begin)
        at = begin + KEY.size + _SETTLED.size
        if key == Key.PUBLISH_CONFIRM:
            publisher, count = _SETTLED.unpack_from(view, begin + KEY.size)
            ids = np.frombuffer(view, ">u8", count, at)
            confirmed.append(self._seqs(connection, publisher, ids))
        elif key == Key.PUBLISH_ERROR:
            publisher, count = _SETTLED.unpack_from(view, begin + KEY.size)
            errors = np.frombuffer(view, _ERROR, count, at)
            for code in np.unique(errors["code"]).tolist():
                seqs = self._seqs(connection, publisher, errors["id"][errors["code"] == code])
                settled.append(Settled(seqs, at_ns, f"publish error: {code_name(code)}"))
        else:
            connection.handle(bytes(view[begin:end]))

    def _seqs(self, connection: StreamConnection, publisher: int, ids: np.ndarray) -> Int64:
        """The sequence numbers behind publishing ids, which are settled now."""
        if self._is_grouped:
            groups = [self._groups.pop((publisher, identity), None) for identity in ids.tolist()]
            if any(group is None for group in groups):
                raise TrialError(f"rabbitmq at {connection.address} confirmed a sub-entry that was not sent")
            seqs: Int64 = np.concatenate([group for group in groups if group is not None])
        else:
            seqs = ids.astype(np.int64)
            seqs -= 1
        self._unconfirmed -= len(seqs)
        if self._unconfirmed < 0:
            raise TrialError(f"rabbitmq at {connection.address} confirmed more messages than were sent")
        return seqs


def publisher_name(target: Target, producer: int) -> str:
    """What the broker knows a deduplicated producer by."""
    return f"{target.name}-{producer}"


def last_publishing_id(endpoint: Endpoint, publisher: str, stream: str) -> int:
    """The highest publishing id that the broker has stored of a named publisher; 0 if none."""
    connection = open_any(endpoint)
    try:
        return connection.call(Key.QUERY_PUBLISHER_SEQUENCE, text(publisher) + text(stream)).number("Q")
    finally:
        connection.leave()
