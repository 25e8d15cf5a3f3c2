"""Consumers through pika: every message is one callback."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.driver import Received
from loadgen.drivers.client.pika_loop import LOST, SelectLoop
from loadgen.drivers.failures import ACCEPT, FAIL, REQUEUE
from loadgen.drivers.rabbitmq_admin import connect, describe
from loadgen.drivers.rabbitmq_topology import Topology
from loadgen.drivers.wire.amqp_acks import IDLE_S, Acks, Said
from loadgen.drivers.wire.amqp_producer import seq_of
from loadgen.errors import BrokerError, LoadgenError, TrialError
from loadgen.payload import STAMP_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.driver import Target


class Inbox:
    """The messages that callbacks have brought and `receive` has not handed out yet, of each queue in its order.

    Args:
        numbers: the number of each queue by the tag of its consumer.
        acks: where each message is noted whose settlement depends on its number.
    """

    def __init__(self, numbers: Mapping[str, int], acks: Acks) -> None:
        self._numbers = numbers
        self._acks = acks
        self._arrived: list[tuple[int, bool]] = []
        self._waiting: dict[int, list[tuple[bytes, bool]]] = {}
        self._read_ns = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def on_message(self, _channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        """Pika's callback for each message."""
        if not self._waiting:
            self._read_ns = time.monotonic_ns()
        number = self._numbers[method.consumer_tag]
        self._waiting.setdefault(number, []).append((body, method.redelivered))
        if self._acks.failures:
            self._arrived.append((seq_of(body) if len(body) >= STAMP_BYTES else 0, method.redelivered))

    def hand_out(self) -> list[Received]:
        """All messages, as one batch of each queue; the inbox is empty afterwards."""
        waiting, self._waiting = self._waiting, {}
        if self._arrived:
            seqs, redelivered = zip(*self._arrived, strict=True)
            self._acks.note(np.array(seqs), np.array(redelivered))
            self._arrived.clear()
        self._acks.handed += sum(map(len, waiting.values()))
        return [self._received(number, messages) for number, messages in waiting.items()]

    def _received(self, number: int, messages: list[tuple[bytes, bool]]) -> Received:
        bodies, redelivered = zip(*messages, strict=True)
        sizes = np.array([len(body) for body in bodies])
        return Received(
            buffer=np.frombuffer(b"".join(bodies), np.uint8),
            starts=np.cumsum(sizes) - sizes,
            sizes=int(sizes[0]) if (sizes == sizes[0]).all() else sizes,
            source=number,
            read_ns=self._read_ns,
            parsed_ns=time.monotonic_ns(),
            redelivered=np.array(redelivered) if any(redelivered) else None,
        )


class _PikaConsumer(ABC):
    """What both consumers share: the inbox, and acks when they are due."""

    def __init__(self, target: Target, index: int, count: int) -> None:
        self._endpoint = target.endpoint
        self._target = target
        queues = Topology(target).read_by(index, count)
        self._queues = {f"loadgen-{index}-{number}": queue for number, queue in queues.items()}
        self._acks = Acks(target)
        self._inbox = Inbox(dict(zip(self._queues, queues, strict=True)), self._acks)
        self._channel: Any = None

    @property
    def failed(self) -> dict[str, int]:
        """How many deliveries it has requeued, failed or rejected."""
        return self._acks.failed

    @property
    def has_waiting(self) -> bool:
        """Whether deliveries are left in the inbox, which hands out all."""
        return bool(self._inbox)

    def receive(self, timeout_s: float) -> list[Received]:
        """Turn pika's loop until there is a message; all that came with it."""
        if self._acks.has_rest:
            first_s = min(IDLE_S, timeout_s)
            self._pump(first_s)
            timeout_s -= first_s
            if not self._inbox:
                self._acknowledge(self._acks.rest())
        if not self._inbox:
            self._pump(timeout_s)
        if not self._inbox:
            return []
        return self._inbox.hand_out()

    def settle(self, count: int | None = None) -> None:
        """Acknowledge every whole `ack_every` of what has been processed; the rest when idle."""
        self._acknowledge(self._acks.settle(count))

    def close(self) -> None:
        """Acknowledge what was settled and close: what was not goes back to the queue; never raises."""
        with contextlib.suppress(LoadgenError):
            self._acknowledge(self._acks.rest())
        self._close()

    def _acknowledge(self, said: list[Said]) -> None:
        try:
            for tag, verdict in said:
                if verdict == ACCEPT:
                    self._channel.basic_ack(tag, multiple=self._acks.is_multiple)
                elif verdict == REQUEUE:
                    self._channel.basic_nack(tag, requeue=True)
                else:
                    self._channel.basic_reject(tag, requeue=verdict == FAIL)
        except LOST as error:
            self._pump(0)  # raises with the broker's reason, if there is one
            raise TrialError(describe(self._endpoint, error)) from None

    @abstractmethod
    def _pump(self, timeout_s: float) -> None:
        """Let pika serve the connection until there is a message, or for so long."""

    @abstractmethod
    def _close(self) -> None:
        """Close the connection; never raises."""

    def _cancelled_text(self) -> str:
        return (
            f"rabbitmq at {self._endpoint.address} cancelled the consumer: its queue was deleted or its node went away"
        )


class SelectConsumer(_PikaConsumer):
    """Consumes through SelectConnection."""

    def __init__(self, target: Target, index: int, count: int) -> None:
        super().__init__(target, index, count)
        self._loop = SelectLoop(target.endpoint, target.settings["heartbeat"])
        self._channel = self._loop.channel
        self._channel.add_on_cancel_callback(lambda _frame: self._loop.fail(self._cancelled_text()))
        limited: list[Any] = []
        started: list[Any] = []
        try:
            self._channel.basic_qos(prefetch_count=target.settings["prefetch"], callback=limited.append)
            self._loop.wait_for(lambda: bool(limited), "a prefetch limit")
            for tag, queue in self._queues.items():
                self._channel.basic_consume(
                    queue,
                    self._inbox.on_message,
                    auto_ack=not self._acks.is_manual,
                    consumer_tag=tag,
                    callback=started.append,
                )
            self._loop.wait_for(lambda: len(started) == len(self._queues), "a consumer")
        except TrialError as error:
            self._loop.close()
            raise BrokerError(str(error)) from None

    def _pump(self, timeout_s: float) -> None:
        self._loop.pump(timeout_s, lambda: bool(self._inbox))

    def _close(self) -> None:
        self._loop.close()


class BlockingConsumer(_PikaConsumer):
    """Consumes through BlockingConnection."""

    def __init__(self, target: Target, index: int, count: int) -> None:
        super().__init__(target, index, count)
        self._cancelled = False
        self._connection = connect(target.endpoint, target.settings["heartbeat"])
        try:
            self._channel = self._connection.channel()
            self._channel.add_on_cancel_callback(self._on_cancelled)
            self._channel.basic_qos(prefetch_count=target.settings["prefetch"])
            for tag, queue in self._queues.items():
                self._channel.basic_consume(
                    queue, self._inbox.on_message, auto_ack=not self._acks.is_manual, consumer_tag=tag
                )
        except LOST as error:
            self._close()
            raise BrokerError(describe(target.endpoint, error)) from None

    def _on_cancelled(self, _frame: Any) -> None:
        self._cancelled = True

    def _pump(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        try:
            self._connection.process_data_events(timeout_s)
            while not self._inbox and not self._cancelled and (left_s := deadline - time.monotonic()) > 0:
                self._connection.process_data_events(left_s)
        except LOST as error:
            raise TrialError(describe(self._endpoint, error)) from None
        if self._cancelled:
            raise TrialError(self._cancelled_text())

    def _close(self) -> None:
        with contextlib.suppress(*LOST):
            self._connection.close()
