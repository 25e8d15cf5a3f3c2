"""What a processor makes of a message: the same bytes with a trailer, by which whoever receives it knows it as made.

The stamp stays, so that latencies end to end count from the source. Trailer (little-endian): when it was processed i64
(monotonic ns) · identity u64 of the message that it belongs to.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from loadgen.payload import SEQUENCE_BITS, STAMP_BYTES, Payloads, Relayed

if TYPE_CHECKING:
    from loadgen.driver import Int64, Received, UInt8, UInt64
    from loadgen.payload import Parsed
    from loadgen.scenario import Message

TRAILER = np.dtype([("processed_ns", "<i8"), ("identity", "<u8")])
TRAILER_BYTES = TRAILER.itemsize


class Results(Relayed):
    """Received messages that are sent on as results: with a trailer behind each."""

    def __init__(self, message: Message, seed: int, token: int, producer: int = 0) -> None:
        super().__init__(message, seed, token, producer)
        self.size_bytes = None if self.size_bytes is None else self.size_bytes + TRAILER_BYTES
        self.mean_size_bytes += TRAILER_BYTES

    def process(self, first_seq: int, batch: Received, rows: Int64, now_ns: int) -> None:
        """Make the results of these rows (int64[n]) of a batch: what the next `send` is of."""
        self.stage(first_seq, batch, rows)
        trailers = np.empty(len(rows), TRAILER)
        trailers["processed_ns"], trailers["identity"] = now_ns, self._identities
        behind = trailers.view(np.uint8).reshape(len(rows), TRAILER_BYTES)
        sizes = self._sizes + TRAILER_BYTES
        starts = np.cumsum(sizes) - sizes
        buffer = np.empty(int(sizes.sum()), np.uint8)
        if (sizes == sizes[0]).all():
            wide = buffer.reshape(len(rows), int(sizes[0]))
            self._copy(wide[:, :-TRAILER_BYTES], first_seq, 0)
            wide[:, -TRAILER_BYTES:] = behind
        else:
            flat, _ = self.pack(first_seq, np.empty(len(rows), np.int64), 0)
            is_body = np.ones(len(buffer), np.bool_)
            is_body[(starts + self._sizes)[:, None] + np.arange(TRAILER_BYTES)] = False
            buffer[is_body], buffer[~is_body] = flat, behind.reshape(-1)
        made = replace(batch, buffer=buffer, starts=starts, sizes=sizes)
        self.stage(first_seq, made, np.arange(len(rows)), self._identities)


class Processed(Payloads):
    """Reads results: a message is intact where its own bytes are, and its trailer is of the same message."""

    def parse(self, buffer: UInt8, starts: Int64, sizes: Int64 | int) -> Parsed:
        """As for a message that was not processed; what is too short for a trailer is not intact."""
        each = np.broadcast_to(np.asarray(sizes), len(starts))
        inner: Int64 = each - TRAILER_BYTES
        own = super().parse(buffer, starts, int(inner[0]) if isinstance(sizes, int) and len(inner) else inner)
        whole = np.flatnonzero(own.intact & (inner >= STAMP_BYTES))
        places = (starts + inner)[whole, None] + np.arange(TRAILER_BYTES)
        trailers = buffer[places].view(TRAILER).reshape(len(whole))
        identity: UInt64 = (own.producer[whole].astype(np.uint64) << np.uint64(SEQUENCE_BITS)) | own.seq[whole].astype(
            np.uint64
        )
        own.intact[whole] = trailers["identity"] == identity
        return own
