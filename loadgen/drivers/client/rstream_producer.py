"""A producer through rstream: `send_batch` with what is due, and its callback for every message confirmed.

`Producer.send` would gather messages for half a second; a batch leaves at once, and has the library's cost for each
message: an AMQP 1.0 message made and encoded, an entry of a set, a callback.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

from rstream import AMQPMessage, Producer

from loadgen.drivers.client.event_loop import EventLoop, settled_of
from loadgen.drivers.client.rstream_login import LOST, login, refused
from loadgen.drivers.stream_settings import Streams
from loadgen.drivers.wire.amqp_producer import poll_while
from loadgen.drivers.wire.stream_frames import key_partitions
from loadgen.drivers.wire.stream_producer import publisher_name
from loadgen.drivers.wire.stream_protocol import MAX_FRAME_BYTES, code_name

if TYPE_CHECKING:
    from rstream import ConfirmationStatus

    from loadgen.driver import Int64, Settled, Target
    from loadgen.payload import Payloads

FRAMING_BYTES = 32  # of a message in a publish frame: its id, lengths, the head of its data section
CONNECTION_LOST = 0  # no code of the broker's: the library gives up what was under way when a connection broke


class RstreamProducer:
    """See `loadgen.driver.Producer`. Message s has the publishing id s + 1, as with the wire driver."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        settings = target.settings
        self._payloads = payloads
        self._streams = Streams(target).names
        self._window: int = settings["confirm_window"]
        each_bytes = payloads.message.max_size_bytes + FRAMING_BYTES
        self._rows: int = max(1, min(self._window, (MAX_FRAME_BYTES - FRAMING_BYTES) // each_bytes))
        keys = payloads.message.key_count
        self._partition_of = key_partitions(keys, len(self._streams)) if keys and len(self._streams) > 1 else None
        self._turn = payloads.producer % len(self._streams)
        self._name = publisher_name(target, payloads.producer) if settings["deduplication"] else None
        self._unconfirmed = 0
        self._heard: list[tuple[int, str | None]] = []
        self._address = target.endpoint.address
        self._loop = EventLoop()
        self._producer: Producer | None = None
        try:
            self._producer = self._loop.run(self._open(login(target.endpoint, settings["heartbeat"])))
        except LOST as error:
            self.close()
            raise refused(target.endpoint, error) from None

    async def _open(self, where: dict[str, object]) -> Producer:
        producer = Producer(**where, on_close_handler=self._loop.lost)  # type: ignore[arg-type]
        await producer.start()
        for stream in self._streams:  # else the first message would wait for it
            await producer._get_or_create_publisher(stream, self._name)  # noqa: SLF001
        return producer

    @property
    def room_msgs(self) -> int:
        """What the window has left, at most what fits a frame."""
        return max(0, min(self._rows, self._window - self._unconfirmed))

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Hand the messages over, those of each partition as a batch, and wait until the socket has taken them."""
        flat, offsets = self._payloads.pack(first_seq, intended_ns, sent_ns)
        whole = flat.tobytes()
        batches: dict[int, list[AMQPMessage]] = {}
        places = self._places(first_seq, len(intended_ns))
        bounds = pairwise(offsets.tolist())
        for seq, ((begin, end), place) in enumerate(zip(bounds, places, strict=True), first_seq):
            message = AMQPMessage(body=whole[begin:end])
            message.publishing_id = seq + 1
            batches.setdefault(place, []).append(message)
        self._unconfirmed += len(intended_ns)
        for place, batch in batches.items():
            self._hand_over(place, batch)

    def _places(self, first_seq: int, count: int) -> list[int]:
        """The partition of each message: by its key, without keys one for the batch, in turn."""
        if self._partition_of is not None:
            indices = self._payloads.key_indices(first_seq, count)
            assert indices is not None
            places: list[int] = self._partition_of[indices].tolist()
            return places
        self._turn = (self._turn + 1) % len(self._streams)
        return [self._turn] * count

    def _hand_over(self, place: int, batch: list[AMQPMessage]) -> None:
        assert self._producer is not None
        sending = self._producer.send_batch(
            self._streams[place], batch, publisher_name=self._name, on_publish_confirm=self._on_confirm
        )
        try:
            self._loop.run(sending)
            self._loop.well()
        except LOST as error:
            self._loop.lost()
            known = {seq for seq, _ in self._heard}
            lost = [(message.publishing_id or 0) - 1 for message in batch]
            self._heard += [(seq, f"lost: {type(error).__name__}") for seq in lost if seq not in known]

    def _on_confirm(self, status: ConfirmationStatus) -> None:
        """The library's callback, once for each message."""
        error = None
        if not status.is_confirmed:
            code = status.response_code
            error = f"publish error: {code_name(code)}" if code > CONNECTION_LOST else "lost: its connection broke"
        self._heard.append((status.message_id - 1, error))
        self._loop.tell()

    def poll(self, timeout_s: float) -> list[Settled]:
        """Turn the loop until something was confirmed."""
        if not self._heard:
            self._loop.pump(timeout_s)
            self._loop.look(self._address)
        if not self._heard:
            return []
        at_ns = time.monotonic_ns()
        heard, self._heard = self._heard, []
        self._unconfirmed -= len(heard)
        return settled_of(heard, at_ns)

    def flush(self, timeout_s: float) -> list[Settled]:
        """Wait until all is settled, at most `timeout_s`."""
        return poll_while(lambda: self._unconfirmed > 0, self.poll, timeout_s)

    def close(self) -> None:
        """Close the connection; never raises."""
        self._loop.close(None if self._producer is None else self._producer.close)
