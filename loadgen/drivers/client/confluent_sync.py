"""A producer through confluent-kafka that waits for each message's result before it sends the next one.

`produce`, then `flush`: librdkafka lets nothing linger, the callback runs in this thread, and one message is under
way at a time. What an application pays for that is what this driver shows.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from confluent_kafka import KafkaException

from loadgen.driver import Settled
from loadgen.drivers.client.confluent_producer import ConfluentProducer

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

    from loadgen.driver import Int64, Target
    from loadgen.payload import Payloads

RESULT_S = 10.0  # after which librdkafka gives a message up, and tells so
_SLACK_S = 2.0


class SyncProducer(ConfluentProducer):
    """See `loadgen.driver.Producer`: there is room for one message, and `send` returns with its result."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        self._results: list[Settled] = []
        super().__init__(target, payloads)

    def _begin(self) -> None:
        """No thread polls: `flush` does."""
        self._stopped = threading.Event()
        self._stopped.set()

    def _settings(self, target: Target, payloads: Payloads) -> dict[str, Any]:
        return {**super()._settings(target, payloads), "message.timeout.ms": round(RESULT_S * 1000)}

    @property
    def room_msgs(self) -> int:
        """One message at a time."""
        return 1

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Send each message and wait for what became of it."""
        for seq, message in enumerate(self._messages(first_seq, intended_ns, sent_ns), first_seq):
            self._result(seq, message)

    def _result(self, seq: int, message: dict[str, Any]) -> None:
        told: list[str | None] = []

        def hear(error: KafkaError | None, _message: Message) -> None:
            told.append(None if error is None else error.name())

        where = {name: message[name] for name in ("key", "partition") if name in message}
        try:
            self._client.produce(self._topic, message["value"], **where, on_delivery=hear)
            self._client.flush(RESULT_S + _SLACK_S)
        except KafkaException as error:
            told.append(error.args[0].name())
        if self._has_acks or told[:1] not in ([None], []):
            error_name = told[0] if told else "no result"
            self._results.append(Settled(np.array([seq]), time.monotonic_ns(), error_name))

    def poll(self, timeout_s: float) -> list[Settled]:
        """What `send` has waited for; with nothing of that, let librdkafka serve its events for so long."""
        if not self._results:
            self._client.poll(timeout_s)
            self._watch.look(self._client)
        else:
            self._watch.well()
        results, self._results = self._results, []
        return results

    def flush(self, timeout_s: float) -> list[Settled]:
        """Every message had its result when `send` returned."""
        del timeout_s
        results, self._results = self._results, []
        return results
