"""A client of a null broker, as its sessions see it, for tests that cut its bytes themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Line:
    """What a session has of its client: bytes to be read, bytes written, and whether it is held back."""

    waiting: bytes = b""
    written: bytearray = field(default_factory=bytearray)
    backlog_bytes: int = 0
    is_held: bool = False

    def read_into(self, view: memoryview) -> int:
        """Whatever waits."""
        count = min(len(view), len(self.waiting))
        view[:count] = self.waiting[:count]
        self.waiting = self.waiting[count:]
        return count

    def write(self, *parts: bytes | memoryview) -> None:
        """Keep it."""
        self.written += b"".join(parts)

    def hold(self, is_held: bool) -> None:
        """Note it."""
        self.is_held = is_held


class Client:
    """One session of a relay, driven by hand."""

    def __init__(self, relay: Any) -> None:
        self.line, self.relay = Line(), relay
        self.session = relay.session(self.line)

    def say(self, *pieces: bytes) -> None:
        """Send pieces, each read by itself, and let the relay turn."""
        for piece in pieces:
            self.line.waiting = piece
            while self.line.waiting:
                self.session.readable()
            self.relay.turn()
