"""Producers through pika: every message is one basic_publish."""

from __future__ import annotations

import contextlib
import time
from itertools import cycle, islice, pairwise, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import pika
from pika import exceptions

from loadgen.driver import Settled
from loadgen.drivers.client.pika_loop import LOST, SelectLoop
from loadgen.drivers.rabbitmq_admin import connect, describe
from loadgen.drivers.rabbitmq_topology import Topology
from loadgen.drivers.wire.amqp_frames import Unconfirmed, settle_confirms
from loadgen.drivers.wire.amqp_producer import MAX_BATCH_BYTES, NACK, poll_while, seq_of
from loadgen.errors import BrokerError, TrialError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Int64, Target
    from loadgen.payload import Payloads

UNCONFIRMED_BATCH_MSGS = 100  # how many a producer without confirms is given at once


class Messages:
    """A producer's messages as pika wants them: exchange and properties, routing keys and bodies as objects."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        self._payloads = payloads
        self._routes = Topology(target).routes(payloads)
        self.exchange = self._routes.exchange
        headers = self._routes.headers
        self._properties = [
            pika.BasicProperties(
                delivery_mode=2 if target.settings["persistent"] else 1,
                headers=None if headers is None else dict(headers),
                priority=priority,
            )
            for priority in (range(target.settings["priorities"]) if target.settings.get("priorities") else [None])
        ]

    def of(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> Iterator[tuple[str, bytes, Any]]:
        """Routing key, body and properties of messages first_seq …."""
        flat, offsets = self._payloads.pack(first_seq, intended_ns, sent_ns)
        whole, bounds = flat.tobytes(), offsets.tolist()
        bodies = (whole[begin:end] for begin, end in pairwise(bounds))
        rows = self._routes.rows(self._payloads, first_seq, len(intended_ns))
        keys = repeat(self._routes.text()) if rows is None else map(self._routes.text, rows.tolist())
        first = first_seq % len(self._properties)
        properties = islice(cycle(self._properties), first, None)
        return zip(keys, bodies, properties, strict=False)  # only the bodies end


class SelectProducer:
    """Publishes through SelectConnection; confirms come by callback."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        settings = target.settings
        self._messages = Messages(target, payloads)
        self._mandatory = settings["mandatory"]
        self._unconfirmed = Unconfirmed(settings["confirm_window"]) if settings["confirms"] else None
        self._batch_msgs = max(1, min(UNCONFIRMED_BATCH_MSGS, int(MAX_BATCH_BYTES / payloads.mean_size_bytes)))
        self._seq_of_tag_0: int | None = None
        self._confirms: list[tuple[int, bool, bool]] = []
        self._returns: list[tuple[int, str]] = []
        self._loop = SelectLoop(target.endpoint, settings["heartbeat"], settings.get("blocked_connection_timeout_s"))
        self._loop.channel.add_on_return_callback(self._on_return)
        if self._unconfirmed is not None:
            ready: list[Any] = []
            self._loop.channel.confirm_delivery(self._on_confirm, ready.append)
            try:
                self._loop.wait_for(lambda: bool(ready), "confirms")
            except TrialError as error:
                self._loop.close()
                raise BrokerError(str(error)) from None

    @property
    def blocked(self) -> bool:
        """Whether the broker has asked to publish no more for now."""
        return self._loop.blocked

    @property
    def room_msgs(self) -> int:
        """What the window allows; 0 while pika still holds bytes or the broker holds back."""
        if self._loop.blocked or self._loop.unsent_bytes:
            return 0
        return self._batch_msgs if self._unconfirmed is None else max(0, self._unconfirmed.room)

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Publish each message; pika writes them at once as far as the socket takes them."""
        if self._seq_of_tag_0 is None:
            self._seq_of_tag_0 = first_seq - 1
        publish, messages = self._loop.channel.basic_publish, self._messages
        exchange = messages.exchange
        try:
            for key, body, properties in messages.of(first_seq, intended_ns, sent_ns):
                publish(exchange, key, body, properties, mandatory=self._mandatory)
        except LOST as error:
            self._loop.pump(0, lambda: True)  # tells the broker's reason, if there is one
            raise TrialError(describe(self._loop.endpoint, error)) from None
        if self._unconfirmed is not None:
            self._unconfirmed.sent(len(intended_ns))

    def poll(self, timeout_s: float) -> list[Settled]:
        """Turn pika's loop until something was confirmed, or there is room again."""
        had_room = self.room_msgs > 0
        self._loop.pump(
            timeout_s, lambda: bool(self._confirms or self._returns or (not had_room and self.room_msgs > 0))
        )
        at_ns = time.monotonic_ns()
        return self._settle_returns(at_ns) + self._settle_confirms(at_ns)

    def flush(self, timeout_s: float) -> list[Settled]:
        """Wait until all is written and, with confirms, settled, at most `timeout_s`."""
        unconfirmed = self._unconfirmed
        return poll_while(
            lambda: self._loop.unsent_bytes > 0 or (unconfirmed is not None and unconfirmed.count > 0),
            self.poll,
            timeout_s,
        )

    def close(self) -> None:
        """Close the connection; never raises."""
        self._loop.close()

    def _settle_confirms(self, at_ns: int) -> list[Settled]:
        if not self._confirms or self._unconfirmed is None or self._seq_of_tag_0 is None:
            return []
        tags, multiple, refused = (np.array(column) for column in zip(*self._confirms, strict=True))
        self._confirms.clear()
        settled = settle_confirms(tags, multiple, refused, self._unconfirmed)
        return [Settled(new + self._seq_of_tag_0, at_ns, NACK if nack else None) for new, nack in settled]

    def _settle_returns(self, at_ns: int) -> list[Settled]:
        settled: list[Settled] = []
        for seq, reason in self._returns:
            fresh = True
            if self._unconfirmed is not None and self._seq_of_tag_0 is not None:
                fresh = len(self._unconfirmed.each(np.array([seq - self._seq_of_tag_0]))) > 0
            if fresh:
                settled.append(Settled(np.array([seq]), at_ns, f"return: {reason}"))
        self._returns.clear()
        return settled

    def _on_confirm(self, confirm: Any) -> None:
        method = confirm.method
        self._confirms.append((method.delivery_tag, method.multiple, isinstance(method, pika.spec.Basic.Nack)))

    def _on_return(self, _channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        self._returns.append((seq_of(body), method.reply_text))


class BlockingProducer:
    """Publishes through BlockingConnection, whose basic_publish waits for each message's confirm: room for one."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        settings = target.settings
        self._endpoint = target.endpoint
        self._messages = Messages(target, payloads)
        self._mandatory = settings["mandatory"]
        self._confirms = settings["confirms"]
        self._batch_msgs = 1 if self._confirms else UNCONFIRMED_BATCH_MSGS
        self._settled: list[Settled] = []
        self.blocked = False
        self._connection = connect(target.endpoint, settings["heartbeat"], settings.get("blocked_connection_timeout_s"))
        try:
            self._connection.add_on_connection_blocked_callback(self._on_blocked)
            self._connection.add_on_connection_unblocked_callback(self._on_unblocked)
            self._channel = self._connection.channel()
            if self._confirms:
                self._channel.confirm_delivery()
        except LOST as error:
            self.close()
            raise BrokerError(describe(target.endpoint, error)) from None

    @property
    def room_msgs(self) -> int:
        """One message at a time with confirms."""
        return 0 if self.blocked else self._batch_msgs

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Publish each message; with confirms this waits for the broker's answer."""
        messages = self._messages
        for seq, (key, body, properties) in enumerate(messages.of(first_seq, intended_ns, sent_ns), first_seq):
            failure = None
            try:
                self._channel.basic_publish(messages.exchange, key, body, properties, mandatory=self._mandatory)
            except exceptions.NackError:
                failure = NACK
            except exceptions.UnroutableError as error:
                failure = f"return: {error.messages[0].method.reply_text}"
            except LOST as error:
                raise TrialError(describe(self._endpoint, error)) from None
            if self._confirms:
                self._settled.append(Settled(np.array([seq]), time.monotonic_ns(), failure))

    def poll(self, timeout_s: float) -> list[Settled]:
        """What `send` has seen confirmed; with nothing of that, let pika serve the connection for so long."""
        if not self._settled:
            try:
                self._connection.process_data_events(timeout_s)
            except LOST as error:
                raise TrialError(describe(self._endpoint, error)) from None
        settled, self._settled = self._settled, []
        return settled

    def flush(self, timeout_s: float) -> list[Settled]:
        """Everything was settled, or written, when `send` returned."""
        del timeout_s
        return self.poll(0)

    def close(self) -> None:
        """Close the connection; never raises."""
        with contextlib.suppress(*LOST):
            self._connection.close()

    def _on_blocked(self, _connection: Any, _method: Any) -> None:
        self.blocked = True

    def _on_unblocked(self, _connection: Any, _method: Any) -> None:
        self.blocked = False
