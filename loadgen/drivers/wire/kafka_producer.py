"""The wire producer: messages go to partitions and into batches here; `kafka_sender` sends them."""

from __future__ import annotations

import time
from itertools import count, pairwise
from typing import TYPE_CHECKING

import numpy as np

from loadgen.driver import Positioned
from loadgen.drivers.wire.framed import wait
from loadgen.drivers.wire.kafka_batch import (
    HEADER_BYTES,
    KEY_BYTES,
    MAX_RECORDS,
    Layout,
    key_table,
    pack_record,
)
from loadgen.drivers.wire.kafka_partitioner import Partitioner, Sticky
from loadgen.drivers.wire.kafka_sender import Batch, Queue, Sender
from loadgen.payload import STAMP_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.driver import Consumer, Int64, Settled, Target, UInt8
    from loadgen.drivers.wire.kafka_protocol import Connection
    from loadgen.payload import Payloads

_RECORD_OVERHEAD_BYTES = 12  # lengths, deltas and counts of a record, give or take a byte
_LOOK_S = 0.002
_NOTHING = memoryview(b"")


class KafkaProducer:
    """Fills record batches and sends them (see `loadgen.driver.Producer`).

    Which partition a message goes to is `partitioner`'s choice.
    """

    def __init__(self, target: Target, payloads: Payloads) -> None:
        settings = target.settings
        self._payloads = payloads
        self._batch_bytes: int = settings["batch_size"]
        self._buffer_bytes: int = settings["buffer_memory"]
        keys = payloads.message.key_count
        self._keys = key_table(keys) if keys else None
        size_bytes = payloads.size_bytes
        self._layout = None if size_bytes is None else Layout(size_bytes, self._batch_bytes, keyed=bool(keys))
        self._overhead_bytes = _RECORD_OVERHEAD_BYTES + (KEY_BYTES if keys else 0)
        self._record_bytes = int(payloads.mean_size_bytes) + self._overhead_bytes
        self._orders = count()
        self._sender = Sender(target, payloads.producer)
        self._queues = self._sender.queues
        self._partitioner = Partitioner(settings["partitioner"], payloads, self._keys, len(self._queues))
        self._sticky = Sticky(self._queues, self._batch_bytes, payloads)
        self._settled: list[Settled] = []

    @property
    def room_msgs(self) -> int:
        """How many messages fit into `buffer_memory`, one at least when it is empty, and into the transaction."""
        held_bytes = self._sender.held_bytes
        room = (self._buffer_bytes - held_bytes) // self._record_bytes
        room = room if room > 0 else int(held_bytes == 0)
        transactions = self._sender.transactions
        return room if transactions is None else min(room, transactions.room_msgs)

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Write messages into batches; full ones are offered to the sockets at once."""
        if self._layout is None:
            self._send_mixed(first_seq, intended_ns, sent_ns)
        else:
            stamps = self._payloads.stamps(first_seq, intended_ns, sent_ns)
            if self._keys is None and self._partitioner.is_sticky:
                self._fill_sticky(first_seq, stamps, self._layout)
            else:
                self._fill_placed(first_seq, stamps, self._layout)
        if self._sender.transactions is not None:
            self._sender.transactions.taken(len(intended_ns), sent_ns)

    def _fill_sticky(self, first_seq: int, stamps: UInt8, layout: Layout) -> None:
        done = 0
        while done < len(stamps):
            queue = self._sticky.queue()
            batch = queue.open or self._open(queue)
            part = stamps[done : done + min(layout.capacity - batch.count, self._sticky_room_msgs)]
            assert batch.rows is not None
            batch.rows.fill(batch.count, part, self._payloads, first_seq + done)
            self._sticky.produced(self._filled(queue, batch, range(first_seq + done, first_seq + done + len(part))))
            done += len(part)

    @property
    def _sticky_room_msgs(self) -> int:
        """How many messages go to the sticky partition at the most before another one has its turn."""
        return max(1, -(-self._sticky.room_bytes // self._record_bytes))

    def _fill_placed(self, first_seq: int, stamps: UInt8, layout: Layout) -> None:
        """Messages that have keys, or a partition each."""
        messages = np.empty((len(stamps), layout.value_bytes), np.uint8)
        messages[:, :STAMP_BYTES] = stamps
        self._payloads.write_bodies(messages[:, STAMP_BYTES:], first_seq)
        indices = self._payloads.key_indices(first_seq, len(stamps))
        keys = None if self._keys is None or indices is None else self._keys[indices]
        places = self._partitioner.places(first_seq, len(stamps), indices)
        # A sticky partition changes as batches are filled, so it is asked for anew for each of them.
        shares = [(None, np.arange(len(stamps)))] if places is None else self._by_partition(places)
        for placed, rows in shares:
            done = 0
            while done < len(rows):
                queue = placed or self._sticky.queue()
                batch = queue.open or self._open(queue)
                room = layout.capacity - batch.count
                part = rows[done : done + (room if placed else min(room, self._sticky_room_msgs))]
                assert batch.rows is not None
                batch.rows.fill_whole(batch.count, messages[part], None if keys is None else keys[part])
                grown = self._filled(queue, batch, part + first_seq)
                if placed is None:
                    self._sticky.produced(grown)
                done += len(part)

    def _by_partition(self, partitions: Int64) -> Sequence[tuple[Queue | None, Int64]]:
        """Which rows go to which partition, each partition's in order."""
        if len(self._queues) == 1:
            return [(self._queues[0], np.arange(len(partitions)))]
        by_partition = np.argsort(partitions, kind="stable")
        ordered = partitions[by_partition]
        cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
        return [(self._queues[int(partitions[rows[0]])], rows) for rows in np.split(by_partition, cuts)]

    def _open(self, queue: Queue) -> Batch:
        created_ns = time.monotonic_ns()
        if self._layout is None:
            batch = Batch(next(self._orders), created_ns, _NOTHING, HEADER_BYTES, loose=bytearray(HEADER_BYTES))
        else:
            rows = self._layout.take()
            batch = Batch(next(self._orders), created_ns, rows.view, HEADER_BYTES, rows=rows)
        queue.open = batch
        self._sender.active[queue.partition] = queue
        return batch

    def _filled(self, queue: Queue, batch: Batch, seqs: Int64 | range) -> int:
        """Note which messages went into a batch, and let it go if it is full; by how many bytes it grew."""
        assert self._layout is not None
        had_bytes = batch.size_bytes
        batch.add(seqs)
        batch.end = self._layout.bytes_of(batch.count)
        self._hold(batch, len(seqs) * self._record_bytes)
        grown = batch.size_bytes - had_bytes
        if batch.count == self._layout.capacity:
            self._full(queue, batch)
        return grown

    def _hold(self, batch: Batch, held_bytes: int) -> None:
        batch.held_bytes += held_bytes
        self._sender.held_bytes += held_bytes

    def _full(self, queue: Queue, batch: Batch) -> None:
        """Let a batch go while the next one is filled, and hear meanwhile what became of others."""
        queue.ready.append(batch)
        queue.open = None
        self._settled += self._sender.receive()
        self._sender.pump()

    def _send_mixed(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Messages of any sizes, record by record."""
        flat, offsets = self._payloads.pack(first_seq, intended_ns, sent_ns)
        values, bounds = flat.data, offsets.tolist()
        indices = self._payloads.key_indices(first_seq, len(intended_ns))
        places = self._partitioner.places(first_seq, len(intended_ns), indices)
        for row, (begin, end) in enumerate(pairwise(bounds)):
            key = None if indices is None or self._keys is None else self._keys[indices[row]].tobytes()
            placed = None if places is None else self._queues[int(places[row])]
            self._append(placed, key, values[begin:end], first_seq + row)

    def _append(self, placed: Queue | None, key: bytes | None, value: memoryview, seq: int) -> None:
        queue = placed or self._sticky.queue()
        record_bytes = len(value) + self._overhead_bytes
        batch = queue.open
        if batch is not None and (batch.end + record_bytes > self._batch_bytes or batch.count == MAX_RECORDS):
            self._full(queue, batch)
            queue = placed or self._sticky.queue()
            batch = queue.open
        if batch is None:
            batch = self._open(queue)
        assert batch.loose is not None
        had_bytes = batch.size_bytes
        pack_record(batch.loose, batch.count, key, value)
        batch.add(range(seq, seq + 1))
        batch.end = len(batch.loose)
        self._hold(batch, record_bytes)
        if placed is None:
            self._sticky.produced(batch.size_bytes - had_bytes)

    def poll(self, timeout_s: float) -> list[Settled]:
        """Send what is due and hear what the broker said."""
        return self._poll(timeout_s, flushing=False)

    def _poll(self, timeout_s: float, *, flushing: bool) -> list[Settled]:
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        is_starved = self.room_msgs == 0
        while True:
            self._settled += self._sender.receive()
            self._sender.pump(flushing=flushing)
            if self._sender.transactions is not None:
                self._settled += self._sender.transactions.heard([])
            left_ns = deadline_ns - time.monotonic_ns() if timeout_s > 0 else 0
            if self._settled or left_ns <= 0 or (is_starved and self.room_msgs):
                settled, self._settled = self._settled, []
                return settled
            event_ns = self._sender.next_event_ns()
            if event_ns is not None:
                left_ns = max(0, min(left_ns, event_ns - time.monotonic_ns()))
            wait(self._sender.connections, left_ns / 1e9)

    @property
    def connections(self) -> list[Connection]:
        """What answers may come from, for whoever waits for more than this producer."""
        return self._sender.connections

    def next_event_ns(self) -> int | None:
        """When something becomes due that no socket tells, in monotonic ns."""
        return self._sender.next_event_ns()

    def flush(self, timeout_s: float) -> list[Settled]:
        """Send everything, linger or not, and wait for all answers."""
        deadline_s = time.monotonic() + timeout_s
        if self._sender.transactions is not None:
            self._sender.transactions.end()
        settled = self._poll(0, flushing=True)
        while self._sender.is_busy and (left_s := deadline_s - time.monotonic()) > 0:
            # Without acknowledgements nothing is ever settled: look often whether all is written.
            settled += self._poll(left_s if self._sender.acks else min(left_s, _LOOK_S), flushing=True)
        return settled

    @property
    def failed_requests(self) -> int:
        """What was refused or lost and tried again (`loadgen.driver.Retrying`)."""
        return self._sender.cluster.failed_requests

    def commit(self, group: str, consumer: Consumer) -> None:
        """End the transaction with what the consumer has handed out (`loadgen.driver.Committing`)."""
        assert self._sender.transactions is not None, "only a transaction is committed"
        assert isinstance(consumer, Positioned), "offsets are what Kafka's consumers commit"
        self._sender.transactions.end_with(group, consumer.topic, consumer.positions)

    def resent_seqs(self) -> Int64:
        """Messages of batches sent again that the broker could not tell from new ones (`loadgen.driver.Resending`)."""
        return np.concatenate([np.zeros(0, np.int64), *(np.asarray(each) for each in self._sender.resent)])

    def crash(self) -> None:
        """See `loadgen.driver.Crashing`."""
        self._sender.crash()

    def close(self) -> None:
        """Close the connections."""
        self._sender.close()
