"""The loop of a null broker: clients on non-blocking sockets, served in turns for as long as its maker lives.

A turn reads once from every client that has sent something, lets the protocol relay what came, and writes. So what
several clients sent in the meantime travels on together, and nothing is done for a message alone.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from itertools import islice
from typing import Protocol

IDLE_S = 0.5  # how often a broker with nothing to do looks whether its maker is still there
_SENDMSG_BUFFERS = 64
_READ, _WRITE, _ENDED = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR


class Session(Protocol):
    """One client's side of the protocol."""

    def readable(self) -> None:
        """Bytes have come: read once and do what they say; raises OSError or EOFError where the client is gone."""
        ...

    def closed(self) -> None:
        """The client is gone."""
        ...


class Relay(Protocol):
    """What all sessions share: the queues or topics."""

    def session(self, peer: Peer) -> Session:
        """A client has connected."""
        ...

    def turn(self) -> None:
        """All that came in this turn has been read: relay it."""
        ...

    def wait_s(self) -> float | None:
        """In how many seconds `turn` has something to do even if nothing comes; None is never."""
        ...


class Peer:
    """A client's socket: what waits to be written to it, and whether it is read from."""

    def __init__(self, stream: socket.socket, server: Server) -> None:
        stream.setblocking(False)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = stream
        self.backlog_bytes = 0
        self._out: deque[memoryview] = deque()
        self._server = server
        self._is_held = False
        self._waits_for_room = False

    def read_into(self, view: memoryview) -> int:
        """Take what has come, once: how many bytes, 0 where nothing has; raises EOFError at the end."""
        try:
            count = self.stream.recv_into(view)
        except BlockingIOError:
            return 0
        if not count:
            raise EOFError
        return count

    def write(self, *parts: bytes | memoryview) -> None:
        """Have buffers written in order at the end of the turn; they must stay as they are until then."""
        if not self._out:
            self._server.writing.append(self)
        for part in parts:
            view = memoryview(part)
            self._out.append(view)
            self.backlog_bytes += view.nbytes

    def push(self) -> None:
        """Write as much as the socket takes now."""
        out = self._out
        while out:
            try:
                count = self.stream.sendmsg(islice(out, _SENDMSG_BUFFERS))
            except BlockingIOError:
                break
            self.backlog_bytes -= count
            while out and count >= len(out[0]):
                count -= len(out.popleft())
            if count:
                out[0] = out[0][count:]
        if bool(out) != self._waits_for_room:
            self._waits_for_room = bool(out)
            self._watch()

    def hold(self, is_held: bool) -> None:
        """Read nothing from this client until further notice, so that it has to wait (or go on reading)."""
        if is_held != self._is_held:
            self._is_held = is_held
            self._watch()

    def _watch(self) -> None:
        events = (0 if self._is_held else _READ) | (_WRITE if self._waits_for_room else 0)
        self._server.watch(self, events)


class Server:
    """Serves clients from an inherited listening socket until its maker is gone."""

    def __init__(self, listener: socket.socket, relay: Relay, maker_pid: int) -> None:
        listener.setblocking(False)
        self.writing: list[Peer] = []
        self._listener = listener
        self._relay = relay
        self._maker_pid = maker_pid
        self._clients: dict[int, tuple[Peer, Session]] = {}
        self._epoll = select.epoll()
        self._epoll.register(listener.fileno(), _READ)

    def watch(self, peer: Peer, events: int) -> None:
        """Wait for these events of a client from now on."""
        if peer.stream.fileno() in self._clients:
            self._epoll.modify(peer.stream.fileno(), events)

    def run(self) -> None:
        """Serve until the maker has gone."""
        while os.getppid() == self._maker_pid:
            wait_s = self._relay.wait_s()
            self.turn(IDLE_S if wait_s is None else min(IDLE_S, wait_s))

    def turn(self, wait_s: float) -> None:
        """Wait up to so long for clients, and serve what has come."""
        for number, events in self._epoll.poll(wait_s):
            if number == self._listener.fileno():
                self._accept()
            elif number in self._clients:
                self._serve(number, events)
        self._relay.turn()
        writing, self.writing = self.writing, []
        for peer in writing:
            try:
                peer.push()
            except OSError:
                self._drop(peer.stream.fileno())

    def _accept(self) -> None:
        stream, _ = self._listener.accept()
        peer = Peer(stream, self)
        self._clients[stream.fileno()] = (peer, self._relay.session(peer))
        self._epoll.register(stream.fileno(), _READ)

    def _serve(self, number: int, events: int) -> None:
        peer, session = self._clients[number]
        try:
            if events & _WRITE:
                peer.push()
            if events & (_READ | _ENDED):
                session.readable()
        except (OSError, EOFError):
            self._drop(number)

    def _drop(self, number: int) -> None:
        if number in self._clients:
            peer, session = self._clients.pop(number)
            self._epoll.unregister(number)
            peer.stream.close()
            session.closed()


def in_seconds(deadline_ns: int) -> float:
    """How long it is until this moment of CLOCK_MONOTONIC, in seconds, at least 0."""
    return max(0, deadline_ns - time.monotonic_ns()) / 1e9
