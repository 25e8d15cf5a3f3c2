"""A way to RabbitMQ on which its answers can be kept back, so that its queues tell what came without any."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.endpoint import Endpoint


class _Way(threading.Thread):
    """Passes on every byte, but while `is_silent` nothing of what the broker says."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.ended = threading.Event()
        self.is_silent = False
        self.said = bytearray()  # by clients
        self._upstream = upstream
        self._others: dict[socket.socket, socket.socket] = {}
        self._brokers: set[socket.socket] = set()

    def run(self) -> None:
        while not self.ended.is_set():
            heard = [each for each in self._others if not (self.is_silent and each in self._brokers)]
            for each in select.select([self.listener, *heard], [], [], 0.02)[0]:
                if each is self.listener:
                    self._accept()
                elif each in self._others and not (self.is_silent and each in self._brokers):
                    self._pass_on(each)
        for each in [self.listener, *self._others]:
            each.close()

    def _accept(self) -> None:
        client, broker = self.listener.accept()[0], socket.create_connection(self._upstream)
        self._others |= {client: broker, broker: client}
        self._brokers.add(broker)

    def _pass_on(self, source: socket.socket) -> None:
        sink = self._others[source]
        data = b""
        with contextlib.suppress(OSError):
            data = source.recv(1 << 16)
            if sink in self._brokers:
                self.said += data
            sink.sendall(data)
        if not data:
            for each in (source, sink):
                del self._others[each]
                each.close()


@contextlib.contextmanager
def silenced(endpoint: Endpoint) -> Iterator[tuple[Endpoint, _Way]]:
    """The same broker by such a way."""
    way = _Way(endpoint.hosts[0])
    way.start()
    try:
        yield replace(endpoint, hosts=(way.listener.getsockname()[:2],)), way
    finally:
        way.ended.set()
        way.join(60)
