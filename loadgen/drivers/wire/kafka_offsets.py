"""A group's offsets as part of a transaction: how its coordinator is told, and then the group's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kio.schema.add_offsets_to_txn.v2.request import AddOffsetsToTxnRequest
from kio.schema.txn_offset_commit.v2 import request as by_coordinator
from kio.schema.txn_offset_commit.v5 import request as by_broker
from kio.schema.types import GroupId, ProducerId, TopicName, TransactionalId
from kio.static.primitive import i16, i32, i64

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kio.static.protocol import RequestPayload


@dataclass(slots=True)
class Offsets:
    """What one group has processed of one topic, by partition, since the transaction before.

    `is_added`: the transaction's coordinator knows of them; with `adds_itself` (KIP-890) the group's one tells it.
    """

    group: str
    topic: str
    by_partition: Mapping[int, int]
    adds_itself: bool = False
    is_added: bool = False

    def adding(self, transactional_id: str, identity: tuple[int, int]) -> AddOffsetsToTxnRequest:
        """For the transaction's coordinator: the group's offsets are part of it."""
        return AddOffsetsToTxnRequest(
            transactional_id=TransactionalId(transactional_id),
            producer_id=ProducerId(identity[0]),
            producer_epoch=i16(identity[1]),
            group_id=GroupId(self.group),
        )

    def committing(self, transactional_id: str, identity: tuple[int, int]) -> RequestPayload:
        """For the group's coordinator: the offsets, pending until the transaction ends."""
        make: Any = by_broker if self.adds_itself else by_coordinator
        partitions = tuple(
            make.TxnOffsetCommitRequestPartition(
                partition_index=i32(each), committed_offset=i64(offset), committed_metadata=None
            )
            for each, offset in sorted(self.by_partition.items())
        )
        request: RequestPayload = make.TxnOffsetCommitRequest(
            transactional_id=TransactionalId(transactional_id),
            group_id=GroupId(self.group),
            producer_id=ProducerId(identity[0]),
            producer_epoch=i16(identity[1]),
            topics=(make.TxnOffsetCommitRequestTopic(name=TopicName(self.topic), partitions=partitions),),
        )
        return request
