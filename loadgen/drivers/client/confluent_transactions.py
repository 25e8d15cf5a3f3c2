"""A transactional producer through confluent-kafka, as an application with one thread has it.

Messages are handed over, the transaction is ended, and that call blocks until all of them are stored and the broker
has ended it. What became of a message is what became of its transaction.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from confluent_kafka import KafkaError, KafkaException

from loadgen.driver import Settled
from loadgen.drivers.client.confluent_producer import ConfluentProducer, by_partition
from loadgen.drivers.kafka_config import ABORTED
from loadgen.errors import BrokerError, TrialError

if TYPE_CHECKING:
    from loadgen.driver import Int64, Target
    from loadgen.payload import Payloads

_INIT_S = 30.0
_LOOK_S = 0.001
_CALL_S = 5.0  # so long one call may block: the agent must be seen to live
_GIVE_UP_S = 12.0  # … and all of them together


class TransactionalProducer(ConfluentProducer):
    """See `loadgen.driver.Producer`."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        super().__init__(target, payloads)
        self._address = target.endpoint.address
        settings = target.settings
        self._most_msgs: int = settings["transaction_msgs"]
        self._most_ns = None if settings["transaction_ms"] is None else int(settings["transaction_ms"] * 1e6)
        self._abort_every: int = settings["transaction_abort_every"]
        self._number = 1
        self._first = self._next = 0
        self._began_ns = 0
        self._ended: list[Settled] = []
        self._refused: KafkaError | None = None  # why a message could not be handed over: its transaction is lost
        try:
            self._client.init_transactions(_INIT_S)
            self._client.begin_transaction()
        except KafkaException as error:
            self.close()
            raise BrokerError(f"kafka at {self._address}: no transactions: {_text(error)}") from None

    @property
    def room_msgs(self) -> int:
        """How many messages fit into `buffer_memory` and into the transaction."""
        waiting = len(self._client)
        room = self._buffer_bytes // self._mean_bytes - waiting
        room = room if room > 0 else int(waiting == 0)
        return 0 if self._unsent else min(room, self._most_msgs - (self._next - self._first))

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Hand the messages over in one call, and end the transaction if it has all of its messages."""
        if self._next == self._first:
            self._first = self._next = first_seq
            self._began_ns = sent_ns
        self._next += len(intended_ns)
        # Nothing is told of single messages: their transaction's end tells of all.
        self._hand_over(self._messages(first_seq, intended_ns, sent_ns))
        if self._next - self._first >= self._most_msgs:
            self._end()

    def _hand_over(self, messages: list[dict[str, Any]]) -> None:
        """Queue what librdkafka takes; the rest waits here, and leaves no room meanwhile."""
        for partition, placed in by_partition(messages):
            self._hand_over_to(partition, placed)

    def _hand_over_to(self, partition: int, messages: list[dict[str, Any]]) -> None:
        try:
            queued = self._client.produce_batch(self._topic, messages, partition)
        except BufferError:
            queued = 0
        if queued == len(messages):
            return
        for message in messages:
            error = message.pop("_error", None)
            if error is not None and error.code() != KafkaError._QUEUE_FULL:  # noqa: SLF001 - librdkafka names its own so
                self._refused = error
            elif error is not None or not queued:
                self._unsent.append(message)

    def _hand_over_rest(self) -> None:
        waiting = list(self._unsent)
        self._unsent.clear()
        self._hand_over(waiting)

    def poll(self, timeout_s: float) -> list[Settled]:
        """What has been ended since; ends the transaction if its time is over."""
        until_s = time.monotonic() + timeout_s
        while True:
            if self._unsent:
                self._hand_over_rest()
            due_ns = self._due_ns()
            if due_ns is not None and time.monotonic_ns() >= due_ns:
                self._end()
            left_s = until_s - time.monotonic()
            if self._ended or left_s <= 0:
                break
            if due_ns is not None:
                left_s = min(left_s, max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
            time.sleep(left_s)
        if not self._ended:
            self._watch.look(self._client)
        ended, self._ended = self._ended, []
        return ended

    def _due_ns(self) -> int | None:
        if self._most_ns is None or self._next == self._first:
            return None
        return self._began_ns + self._most_ns

    def flush(self, timeout_s: float) -> list[Settled]:
        """End the transaction, whatever it has."""
        del timeout_s
        if self._next > self._first:
            self._end()
        return self.poll(0)

    def _end(self) -> None:
        """Commit, or abort where that is this one's turn or its messages cannot be stored; then begin the next."""
        while self._unsent and self._refused is None:
            self._hand_over_rest()
            time.sleep(_LOOK_S)
        is_to_abort = self._abort_every > 0 and self._number % self._abort_every == 0
        if is_to_abort:
            self._wait_until_stored()
        error = ABORTED if is_to_abort else None
        refused = self._refused or self._try(is_commit=not is_to_abort)
        if refused is not None:
            error = refused.name()
            self._unsent.clear()
            self._try(is_commit=False)
        self._refused = None
        self._ended.append(Settled(np.arange(self._first, self._next), time.monotonic_ns(), error))
        self._watch.well()
        self._first = self._next
        self._number += 1
        self._client.begin_transaction()

    def _wait_until_stored(self) -> None:
        """An abort may not overtake what it aborts, as a commit does not.

        librdkafka (#4849) would end a transaction whose first partition the coordinator has not yet entered, which the
        broker takes for a mistake that the producer does not survive.
        """
        until_s = time.monotonic() + _GIVE_UP_S
        while len(self._client) and time.monotonic() < until_s:
            self._client.flush(_LOOK_S)

    def _try(self, *, is_commit: bool) -> KafkaError | None:
        """End it one way; the reason where it can only be aborted, TrialError where nothing helps."""
        until_s = time.monotonic() + _GIVE_UP_S
        while True:
            try:
                if is_commit:
                    self._client.commit_transaction(_CALL_S)
                else:
                    self._client.abort_transaction(_CALL_S)
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                if is_commit and reason.txn_requires_abort():
                    return reason
                if not reason.retriable() or time.monotonic() > until_s:
                    what = f"a transaction cannot be {'committed' if is_commit else 'aborted'}: {_text(error)}"
                    raise TrialError(f"kafka at {self._address}: {what}") from None
            else:
                return None


def _text(error: KafkaException) -> str:
    reason = error.args[0]
    return f"{reason.name()}: {reason.str()}"
