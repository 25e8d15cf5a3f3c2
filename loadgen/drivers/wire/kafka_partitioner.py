"""Which partition each message goes to, chosen for whole batches; both Kafka drivers ask here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadgen.drivers.wire.kafka_batch import key_partitions

if TYPE_CHECKING:
    from loadgen.driver import Int64, UInt8
    from loadgen.payload import Payloads


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
