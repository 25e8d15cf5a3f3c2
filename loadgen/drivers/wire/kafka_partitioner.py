"""Which partition each message goes to, chosen for whole batches; both Kafka drivers ask here."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from loadgen.drivers.wire.kafka_batch import key_partitions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.driver import Int64, UInt8
    from loadgen.drivers.wire.kafka_sender import Queue
    from loadgen.payload import Payloads

_STICKY_SEED = 0x57DC


class Partitioner:
    """One producer's partitioner.

    Args:
        name: the knob `partitioner`; None is by key where there are keys, else sticky.
        payloads: of this producer.
        keys: the bytes of every key, uint8[keys, length]; None where messages have none.
        partitions: how many the topic has.
    """

    def __init__(self, name: str | None, payloads: Payloads, keys: UInt8 | None, partitions: int) -> None:
        self._name = name or ("sticky" if keys is None else "murmur2")
        assert keys is not None or self._name != "murmur2", "murmur2 goes by keys, and messages have none"
        self._payloads = payloads
        self._partitions = partitions
        self._of_key: Int64 | None = None
        if keys is not None and self._name == "murmur2":
            self._of_key = key_partitions(keys, partitions)
        elif keys is not None and self._name == "explicit":
            self._of_key = np.arange(len(keys)) % partitions

    @property
    def is_sticky(self) -> bool:
        """Whether messages stay with whatever partition has an open batch: then `places` knows none."""
        return self._name == "sticky"

    def places(self, first_seq: int, count: int, key_indices: Int64 | None) -> Int64 | None:
        """The partitions of messages first_seq … (int64[count]) with these keys, or None where it is sticky."""
        if self.is_sticky:
            return None
        if self._of_key is not None:
            assert key_indices is not None, "a partitioner by key was given messages without"
            return self._of_key[key_indices]
        if self._name == "explicit":
            return self._payloads.origins(first_seq, count) % self._partitions
        return (np.arange(first_seq, first_seq + count) + self._payloads.producer) % self._partitions


class Sticky:
    """The partition that messages without one go to, as the Java client chooses it since Kafka 3.3 (KIP-794).

    They stay with a partition until `batch_bytes` were produced to it (batches' headers among them) and its batches are
    full or have left, or until it is twice as much. The next one is drawn, the same among them, those with fewer
    batches waiting more often: as likely as there are waiting in the fullest and one more, less their own.
    """

    def __init__(self, queues: Sequence[Queue], batch_bytes: int, payloads: Payloads) -> None:
        self._queues = queues
        self._batch_bytes = batch_bytes
        self._rng = np.random.default_rng([payloads.seed, payloads.producer, _STICKY_SEED])
        self._at = payloads.producer % len(queues)  # producers begin apart
        self._produced_bytes = 0

    @property
    def room_bytes(self) -> int:
        """How much more goes to this partition at the most."""
        return 2 * self._batch_bytes - self._produced_bytes

    def produced(self, size_bytes: int) -> None:
        """So much was added to the partition's batches."""
        self._produced_bytes += size_bytes

    def queue(self) -> Queue:
        """Where the next message goes."""
        is_whole = self._queues[self._at].open is None
        if self._produced_bytes >= self._batch_bytes * (1 if is_whole else 2):
            self._at, self._produced_bytes = self._drawn(), 0
        return self._queues[self._at]

    def _drawn(self) -> int:
        waiting = [len(each.ready) + (each.open is not None) for each in self._queues]
        shares = list(accumulate(max(waiting) + 1 - each for each in waiting))
        return bisect_right(shares, float(self._rng.random()) * shares[-1])
