"""A produce request's bytes and its answer's, in two versions: 7, and 12, which makes partitions part of a transaction.

Since version 12 (KIP-890) the partition's leader has the transaction's coordinator add what a transaction writes to;
before it the client asks for that itself. From version 9 on lengths are varints and every structure ends with tags.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Protocol

from kio.schema.produce.v12.response import ProduceResponse
from kio.serial import entity_reader

from loadgen.drivers.kafka_config import CLIENT_ID
from loadgen.drivers.wire.framed import LinkError
from loadgen.drivers.wire.kafka_batch import uvarint
from loadgen.drivers.wire.kafka_protocol import API_PRODUCE, PRODUCE_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUEST_TIMEOUT_MS = 30_000  # the Java client's request.timeout.ms
TRANSACTIONAL_VERSION = 12
_HEAD = struct.Struct(">ihhi")  # size, request, version, correlation
_PART = struct.Struct(">ii")
_INT32 = struct.Struct(">i")
_ANSWER = struct.Struct(">ihqqq")  # partition, error, base offset, append time, log start
_NO_TAGS = b"\0"
_NOTHING_SAID = b"\1\0\0"  # behind a partition's answer: no record's errors, no text, no tags


class ProduceFormat(Protocol):
    """How requests for one topic are laid out."""

    def request(self, correlation: int, batches: Sequence[tuple[int, memoryview]]) -> list[bytes | memoryview]:
        """The request's parts, in the order in which they are written: of each batch its partition and its bytes."""
        ...

    def answered(self, frame: memoryview) -> list[tuple[int, int]]:
        """Partition and error code of each batch.

        LinkError where the answer is not what it should be; struct.error or IndexError where it is cut short.
        """
        ...


def produce_format(topic: str, transactional_id: str | None, acks: int, version: int) -> ProduceFormat:
    """The layout of a version."""
    if version == TRANSACTIONAL_VERSION:
        return _Flexible(topic, transactional_id, acks)
    return _Fixed(topic, transactional_id, acks)


class _Fixed:
    """Version 7: the last one whose answers have no parts that may be absent."""

    def __init__(self, topic: str, transactional_id: str | None, acks: int) -> None:
        client, name, own = CLIENT_ID.encode(), topic.encode(), (transactional_id or "").encode()
        self._middle = struct.pack(
            f">h{len(client)}sh{len(own)}shiih{len(name)}s", len(client), client, len(own) or -1, own,
            acks, REQUEST_TIMEOUT_MS, 1, len(name), name,
        )  # fmt: skip
        # An answer's fixed part: correlation, one topic, its name.
        self._count_at = 4 + 4 + 2 + len(name)

    def request(self, correlation: int, batches: Sequence[tuple[int, memoryview]]) -> list[bytes | memoryview]:
        parts: list[bytes | memoryview] = [b""]
        for partition, sealed in batches:
            parts += [_PART.pack(partition, len(sealed)), sealed]
        size_bytes = 8 + len(self._middle) + 4 + sum(map(len, parts))
        head = _HEAD.pack(size_bytes, API_PRODUCE, PRODUCE_VERSION, correlation)
        parts[:2] = [head + self._middle + _INT32.pack(len(batches)) + bytes(parts[1])]
        return parts

    def answered(self, frame: memoryview) -> list[tuple[int, int]]:
        (count,) = _INT32.unpack_from(frame, self._count_at)
        at = self._count_at + 4
        return [_ANSWER.unpack_from(frame, at + index * _ANSWER.size)[:2] for index in range(count)]


class _Flexible:
    """Version 12, of transactions that the broker adds partitions to."""

    def __init__(self, topic: str, transactional_id: str | None, acks: int) -> None:
        client, name, own = CLIENT_ID.encode(), topic.encode(), (transactional_id or "").encode()
        self._middle = struct.pack(f">h{len(client)}s", len(client), client) + _NO_TAGS
        self._middle += (uvarint(len(own) + 1) + own) if own else uvarint(0)
        self._middle += struct.pack(">hi", acks, REQUEST_TIMEOUT_MS) + uvarint(1 + 1) + uvarint(len(name) + 1) + name
        # An answer's fixed part: correlation, no tags, one topic, its name.
        self._count_at = 4 + 1 + 1 + len(uvarint(len(name) + 1)) + len(name)

    def request(self, correlation: int, batches: Sequence[tuple[int, memoryview]]) -> list[bytes | memoryview]:
        parts: list[bytes | memoryview] = [b"", self._middle + uvarint(len(batches) + 1)]
        for partition, sealed in batches:
            parts += [_INT32.pack(partition) + uvarint(len(sealed) + 1), sealed, _NO_TAGS]
        parts.append(_NO_TAGS * 2)  # the topic's, and the request's
        parts[0] = _HEAD.pack(8 + sum(map(len, parts)), API_PRODUCE, TRANSACTIONAL_VERSION, correlation)
        return parts

    def answered(self, frame: memoryview) -> list[tuple[int, int]]:
        more, at = _uvarint_at(frame, self._count_at)
        found: list[tuple[int, int]] = []
        for _ in range(more - 1):
            found.append(_ANSWER.unpack_from(frame, at)[:2])
            at += _ANSWER.size
            if frame[at : at + len(_NOTHING_SAID)] != _NOTHING_SAID:
                return self._in_full(bytes(frame))
            at += len(_NOTHING_SAID)
        return found

    @staticmethod
    def _in_full(frame: bytes) -> list[tuple[int, int]]:
        """The same by the protocol's own schema, where more is said of an error."""
        try:
            _, at = entity_reader(ProduceResponse.__header_schema__)(frame, 0)
            answer, _ = entity_reader(ProduceResponse)(frame, at)
        except Exception as error:  # noqa: BLE001 - kio has no common base for what a damaged frame raises
            raise LinkError(f"its ProduceResponse cannot be read: {error}") from None
        return [(int(each.index), int(each.error_code)) for each in answer.responses[0].partition_responses]


def _uvarint_at(frame: memoryview, at: int) -> tuple[int, int]:
    """The unsigned varint that begins there, and where it ends."""
    value = shift = 0
    while True:
        byte = frame[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte <= 0x7F:
            return value, at
