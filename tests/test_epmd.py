"""Our port mapper beside Erlang's own: the same answers to the same requests, but for the ports that are gates."""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

import pytest

from loadgen.brokers import install_rabbitmq, links, ports, process
from loadgen.brokers.state import cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 60.0
GATE = 4_711
RESULT_BYTES = 2  # and then a creation, which differs by each registration


@pytest.fixture(scope="module")
def mappers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The ports of Erlang's epmd and of ours, which has a gate for `gated`."""
    folder = tmp_path_factory.mktemp("epmd")
    with ExitStack() as held:
        yield _erlangs(folder, held), _ours(folder, held)


def _erlangs(folder: Path, held: ExitStack) -> int:
    installation = install_rabbitmq.ensure(cache_dir(), print).folder
    with ports.reserve(("epmd",)) as reserved:
        own = {"ERL_EPMD_PORT": str(reserved["epmd"]), "ERL_EPMD_ADDRESS": ports.HOST}
        _start(folder, held, [install_rabbitmq.erlang_bin(installation) / "epmd"], reserved["epmd"], own)
    return reserved["epmd"]


def _ours(folder: Path, held: ExitStack) -> int:
    with ports.reserve(("epmd",)) as reserved:
        words = [sys.executable, "-m", "loadgen.brokers.epmd", str(reserved["epmd"]), f'{{"gated": {GATE}}}']
        _start(folder, held, words, reserved["epmd"], links.environment())
    return reserved["epmd"]


def _start(folder: Path, held: ExitStack, words: list[str | Path], port: int, environment: dict[str, str]) -> None:
    started = process.spawn(words, environment=environment, node_dir=folder, output=folder / "out")
    held.callback(lambda: process.end(started, timeout_s=0))
    while not ports.is_listening(port):
        assert started.is_alive(), process.tail(folder / "out")


def request(port: int, data: bytes) -> socket.socket:
    """A connection by which this was asked."""
    stream = socket.create_connection((ports.HOST, port), PATIENCE_S)
    stream.sendall(struct.pack(">H", len(data)) + data)
    return stream


def answer(port: int, data: bytes) -> bytes:
    """All that is answered before the mapper closes the connection."""
    with closing(request(port, data)) as stream:
        return b"".join(iter(lambda: stream.recv(4_096), b""))


def registration(name: bytes, port: int, extra: bytes = b"") -> bytes:
    """As a node of OTP 25 or later asks for it."""
    fixed = struct.pack(">BHBBHHH", 120, port, 77, 0, 6, 6, len(name))
    return fixed + name + struct.pack(">H", len(extra)) + extra


def registered(port: int, data: bytes) -> tuple[bytes, socket.socket]:
    """How a registration is answered, without its creation; and the connection, which keeps it."""
    stream = request(port, data)
    answered = stream.recv(6)
    assert len(answered) == 6
    assert int.from_bytes(answered[2:], "big") > 3
    return answered[:RESULT_BYTES], stream


def test_a_node_is_found_by_its_name_as_erlangs_own_mapper_says(mappers: tuple[int, int]) -> None:
    """Registered, asked for, refused twice under one name, listed, and forgotten with its connection."""
    said: list[list[bytes]] = []
    for port in mappers:
        result, stream = registered(port, registration("größer".encode(), 1_234, b"more"))
        found = [result, answer(port, b"\x7a" + "größer".encode()), answer(port, b"\x7anobody"), answer(port, b"n")[4:]]
        refused, other = registered(port, registration("größer".encode(), 4_321))
        other.close()
        stream.close()
        gone = b""
        while gone != b"\x77\x01":  # it hears a little later that the connection has ended
            gone = answer(port, b"\x7a" + "größer".encode())
        said.append([*found, refused, answer(port, b"n")[4:]])
    assert said[0] == said[1]
    assert said[1][1][:4] == b"\x77\x00" + (1_234).to_bytes(2, "big")
    assert answer(mappers[1], b"n")[:4] == mappers[1].to_bytes(4, "big")


def test_who_looks_for_a_node_behind_a_gate_is_sent_to_it(mappers: tuple[int, int]) -> None:
    """In place of the port that the node listens on; all else is as Erlang's own mapper says."""
    said: list[bytes] = []
    for port in mappers:
        _, stream = registered(port, registration(b"gated", 1_234))
        with closing(stream):
            said.append(answer(port, b"\x7agated"))
            assert answer(port, b"n")[4:] == b"name gated at port %d\n" % (GATE if port == mappers[1] else 1_234)
    assert said[1] == said[0].replace((1_234).to_bytes(2, "big"), GATE.to_bytes(2, "big"), 1)


@pytest.mark.parametrize("data", [b"", b"\x78", b"\x78\x00", b"?what"])
def test_who_says_something_else_is_let_go(mappers: tuple[int, int], data: bytes) -> None:
    """Without an answer; the next one is served."""
    assert answer(mappers[1], data) == b""
    assert answer(mappers[1], b"n")[4:] == b""
