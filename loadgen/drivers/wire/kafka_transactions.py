"""A wire producer's transactions: begun, ended by count or by time, committed or, every so often, aborted.

As an application does with one thread: messages are sent, the transaction is ended, and nothing of the next one is
sent before that is answered. What is asked of the coordinator (AddPartitionsToTxn, EndTxn) is never waited for in a
call. As Kafka's own clients: where the cluster has transaction.version 2 (KIP-890, from 4.0 on), what is written to is
added by the brokers, and each transaction has an epoch of its own, which EndTxn's answer tells; else by request.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from kio.schema.add_partitions_to_txn.v2.request import AddPartitionsToTxnRequest, AddPartitionsToTxnTopic
from kio.schema.end_txn.v2.request import EndTxnRequest
from kio.schema.end_txn.v5.request import EndTxnRequest as EndTxnBumpingRequest
from kio.schema.init_producer_id.v1.request import InitProducerIdRequest
from kio.schema.types import ProducerId, TopicName, TransactionalId
from kio.static.primitive import i16, i32, i32Timedelta

from loadgen.driver import Settled
from loadgen.drivers.kafka_config import ABORTED, transaction_timeout_ms
from loadgen.drivers.wire.framed import LinkError
from loadgen.drivers.wire.kafka_cluster import BACKOFF_S
from loadgen.drivers.wire.kafka_offsets import Offsets
from loadgen.drivers.wire.kafka_produce import TRANSACTIONAL_VERSION
from loadgen.drivers.wire.kafka_protocol import PRODUCE_VERSION, error_name, is_retriable
from loadgen.errors import LoadgenError, TrialError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kio.static.protocol import RequestPayload

    from loadgen.driver import Int64
    from loadgen.drivers.wire.kafka_cluster import Cluster
    from loadgen.drivers.wire.kafka_protocol import Connection

CONCURRENT_TRANSACTIONS = 51
FEATURE, SERVER_SIDE = "transaction.version", 2  # from which level on the brokers add partitions themselves
# While the transaction before is still being written down; Java's 20 ms would be most of a short transaction.
_AGAIN_NS = 1_000_000
# The broker answers EndTxn before its marks are written. What comes sooner is held there for 20 ms (its
# add.partitions.to.txn.retry.backoff.ms); docs/performance.md tells how often, and what Kafka's own client meets.
PAUSE_NS = 1_000_000
_BACKOFF_NS = int(BACKOFF_S * 1e9)
_CLOSE_S = 2.0


class Transactions:
    """The transactions of one transactional id, one after another."""

    def __init__(self, cluster: Cluster, transactional_id: str, settings: Mapping[str, Any]) -> None:
        self._cluster = cluster
        self.transactional_id = transactional_id
        self._most_msgs: int = settings["transaction_msgs"]
        self._most_ns = None if settings["transaction_ms"] is None else int(settings["transaction_ms"] * 1e6)
        self._abort_every: int = settings["transaction_abort_every"]
        self._timeout_ms = transaction_timeout_ms(settings)
        self._is_server_side = cluster.feature_level(FEATURE) >= SERVER_SIDE
        self._connection: Connection | None = None
        self._under_way: tuple[Connection, RequestPayload, int, Callable[[Any], None]] | None = None
        self._group_connection: Connection | None = None
        self._offsets: Offsets | None = None  # still to be made part of the transaction
        self._not_before_ns = 0
        self._paused_until_ns = 0
        self._number = 1
        self.msgs = 0
        self._began_ns = 0
        self._is_ending = False
        self._added: set[int] = set()
        self._wanted: set[int] = set()
        self._stored: list[Int64] = []
        self._told: list[Settled] = []
        self.identity = cluster.until(f"transactional id {transactional_id}", self._ask_identity)

    @property
    def produce_version(self) -> int:
        """The version of produce requests that belongs to it."""
        return TRANSACTIONAL_VERSION if self._is_server_side else PRODUCE_VERSION

    @property
    def room_msgs(self) -> int:
        """How many more messages the transaction takes; none while it ends."""
        return 0 if self._is_ending else self._most_msgs - self.msgs

    @property
    def is_ending(self) -> bool:
        """Whether all that was taken must leave now, for the transaction to end."""
        return self._is_ending

    @property
    def connections(self) -> list[Connection]:
        """What answers may come from."""
        return [each for each in (self._connection, self._group_connection) if each is not None]

    def next_event_ns(self) -> int | None:
        """When there is something to be done that no socket tells."""
        if self._paused_until_ns:
            return self._paused_until_ns
        if self._under_way is None and (self._wanted or self._is_ending):
            return self._not_before_ns or None
        if self.msgs and self._most_ns is not None and not self._is_ending:
            return self._began_ns + self._most_ns
        return None

    def taken(self, count: int, now_ns: int) -> None:
        """So many messages more are part of it."""
        self._began_ns = self._began_ns if self.msgs else now_ns
        self.msgs += count
        self._is_ending = self.msgs >= self._most_msgs

    def end(self) -> None:
        """End it now, if anything was sent in it."""
        self._is_ending = self.msgs > 0

    def end_with(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """End it now, with these offsets of a group in it: they are committed with its messages, or not at all."""
        self._offsets = Offsets(group, topic, dict(offsets), adds_itself=self._is_server_side)
        self.end()

    def may_send(self, partition: int) -> bool:
        """Whether the coordinator knows that this partition is part of it, or the broker tells it; else it will be."""
        if self._is_server_side and not self._paused_until_ns:
            self._added.add(partition)
        if partition not in self._added and not self._is_server_side:
            self._wanted.add(partition)
        return partition in self._added

    def heard(self, settled: list[Settled]) -> list[Settled]:
        """Keep what the broker stored until its transaction has ended; what became of those that have."""
        self._stored += [each.seqs for each in settled if each.error is None]
        told, self._told = self._told, []
        # What was refused has failed by itself, and its transaction with it (`restart`).
        return [each for each in settled if each.error is not None] + told

    def turn(self, now_ns: int, *, is_drained: bool) -> None:
        """Hear the coordinator, or end what is due; `is_drained`: nothing sent waits for its answer."""
        if self.msgs and self._most_ns is not None and now_ns - self._began_ns >= self._most_ns:
            self._is_ending = True
        if now_ns >= self._paused_until_ns:
            self._paused_until_ns = 0
        try:
            if self._under_way is not None:
                self._hear()
            if self._under_way is not None or now_ns < self._not_before_ns or self._wanted:
                return
            self._not_before_ns = 0
            if self._is_ending and is_drained and not self._added:
                self._tell(None)  # nothing of it was left to be stored
            elif self._is_ending and is_drained and self._offsets is not None:
                self._post_offsets(self._offsets)
            elif self._is_ending and is_drained:
                self._post(self._end_request(committed=not self._is_to_abort), self._on_ended)
        except LinkError as error:
            self._lose(error)

    def ask(self, now_ns: int) -> None:
        """Have the partitions added that `may_send` was asked for; their answer is heard by the next `turn`."""
        if self._under_way is not None or now_ns < self._not_before_ns or not self._wanted:
            return
        self._not_before_ns = 0
        try:
            self._post(self._add_partitions(), self._on_added)
        except LinkError as error:
            self._lose(error)

    @property
    def _is_to_abort(self) -> bool:
        return self._abort_every > 0 and self._number % self._abort_every == 0

    def _post(self, request: RequestPayload, then: Callable[[Any], None]) -> None:
        if self._connection is None:
            self._connection = self._cluster.ask_coordinator(self.transactional_id, "transaction")
        self._under_way = (self._connection, request, self._connection.post(request), then)

    def _post_offsets(self, offsets: Offsets) -> None:
        """First the transaction's coordinator is told of the group, then the group's of the offsets."""
        if not (offsets.is_added or offsets.adds_itself):
            self._post(offsets.adding(self.transactional_id, self.identity), self._on_offsets_added)
            return
        if self._group_connection is None:
            self._group_connection = self._cluster.ask_coordinator(offsets.group)
        request = offsets.committing(self.transactional_id, self.identity)
        self._under_way = (
            self._group_connection, request, self._group_connection.post(request), self._on_offsets_committed,
        )  # fmt: skip

    def _on_offsets_added(self, answer: Any) -> None:
        assert self._offsets is not None, "asked for these"
        self._offsets.is_added = not self._is_refused("offsets cannot be added", [int(answer.error_code)])

    def _on_offsets_committed(self, answer: Any) -> None:
        codes = [int(each.error_code) for topic in answer.topics for each in topic.partitions]
        if not self._is_refused("offsets cannot be committed", codes):
            self._offsets = None

    def _hear(self) -> None:
        assert self._under_way is not None
        connection, request, correlation, then = self._under_way
        answer = connection.heard(request, correlation)
        if answer is not None:
            self._under_way = None
            then(answer)

    def _lose(self, error: LinkError) -> None:
        """Ask again, over another connection: all that is asked may be said twice."""
        for each in self.connections:
            each.close()
        self._connection = self._group_connection = self._under_way = None
        # A broker that is down is asked as seldom as by all else: it needs the CPU to come back.
        self._not_before_ns = time.monotonic_ns() + _BACKOFF_NS
        self._cluster.trouble(str(error))

    def _add_partitions(self) -> AddPartitionsToTxnRequest:
        partitions = tuple(i32(each) for each in sorted(self._wanted))
        producer_id, epoch = self.identity
        return AddPartitionsToTxnRequest(
            v3_and_below_transactional_id=TransactionalId(self.transactional_id),
            v3_and_below_producer_id=ProducerId(producer_id),
            v3_and_below_producer_epoch=i16(epoch),
            v3_and_below_topics=(AddPartitionsToTxnTopic(name=TopicName(self._cluster.topic), partitions=partitions),),
        )

    def _on_added(self, answer: Any) -> None:
        results = answer.results_by_topic_v3_and_below[0].results_by_partition
        if self._is_refused("partitions cannot be added", [int(each.partition_error_code) for each in results]):
            return
        added = {int(each.partition_index) for each in results}
        self._added |= added
        self._wanted -= added
        self._cluster.well()

    def _end_request(self, *, committed: bool) -> RequestPayload:
        producer_id, epoch = self.identity
        return (EndTxnBumpingRequest if self._is_server_side else EndTxnRequest)(
            transactional_id=TransactionalId(self.transactional_id),
            producer_id=ProducerId(producer_id),
            producer_epoch=i16(epoch),
            committed=committed,
        )

    def _on_ended(self, answer: Any) -> None:
        if self._is_refused("the transaction cannot be ended", [int(answer.error_code)]):
            return
        if self._is_server_side:
            self.identity = int(answer.producer_id), int(answer.producer_epoch)
            self._paused_until_ns = time.monotonic_ns() + PAUSE_NS
        self._tell(ABORTED if self._is_to_abort else None)
        self._cluster.well()

    def _is_refused(self, what: str, codes: list[int]) -> bool:
        """Whether it must be asked again; TrialError where that cannot help."""
        code = next((each for each in codes if each), 0)
        if code == CONCURRENT_TRANSACTIONS:
            self._not_before_ns = time.monotonic_ns() + _AGAIN_NS
            return True
        if code and is_retriable(code):
            raise LinkError(f"{what}: {error_name(code)}")
        if code:
            where = f"kafka at {self._cluster.endpoint.address}: transactional id {self.transactional_id}"
            raise TrialError(f"{where}: {what}: {error_name(code)}")
        return False

    def _tell(self, error: str | None) -> None:
        """All of the transaction's messages have this fate; the next one begins."""
        if self._stored:
            self._told.append(Settled(np.concatenate(self._stored), time.monotonic_ns(), error))
        self._stored = []
        self._added, self._wanted = set(), set()
        self.msgs, self._is_ending, self._offsets = 0, False, None
        self._number += 1

    def restart(self) -> tuple[int, int]:
        """Give the transaction up and begin with another epoch; LinkError if that cannot be now."""
        self.identity = self._ask_identity()
        self._tell(ABORTED)
        return self.identity

    def _ask_identity(self) -> tuple[int, int]:
        """Producer id and epoch; the coordinator aborts what an earlier epoch has left open."""
        timeout = i32Timedelta.parse(timedelta(milliseconds=self._timeout_ms))
        request = InitProducerIdRequest(
            transactional_id=TransactionalId(self.transactional_id), transaction_timeout=timeout
        )
        if self._under_way is not None or self._connection is None:
            for each in self.connections:
                each.close()
            self._connection, self._group_connection, self._under_way = None, None, None
            self._connection = self._cluster.ask_coordinator(self.transactional_id, "transaction")
        answer = self._connection.call(request)
        self._cluster.demand(f"transactional id {self.transactional_id}", answer.error_code)
        return int(answer.producer_id), int(answer.producer_epoch)

    def crash(self) -> None:
        """Leave what is open as it is: the broker aborts it when its time is over, or for who begins next."""
        for each in (self._group_connection, self._connection):
            if each is not None:
                each.close()
        self._connection = None

    def close(self) -> None:
        """Abort what is open, so that nobody waits for its timeout; never raises."""
        connection, self._connection = self._connection, None
        if self._group_connection is not None:
            self._group_connection.close()
        if connection is None:
            return
        if self._added and self._under_way is None:
            with suppress(LinkError, LoadgenError):
                connection.call(self._end_request(committed=False), _CLOSE_S)
        connection.close()
