"""Connections of a broker as the kernel has them: counted at once, on real brokers, and on this machine's side only."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from loadgen.connections import ConnectionCounter
from loadgen.endpoint import Endpoint
from loadgen.host import PROC

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.endpoint import BrokerName

HEAD = "sl local_address rem_address st rest"
V6_LOOPBACK = "00000000000000000000000001000000"
V4_IN_V6 = "0000000000000000FFFF00000100007F"


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
@pytest.mark.parametrize("source", ["local", "external"])
def test_connections_of_real_brokers_are_counted_as_they_come_and_go(
    endpoints: dict[BrokerName, Endpoint], broker: BrokerName, source: str
) -> None:
    """Three after three were opened, seen from the broker's end or ours, and none of them once closed."""
    endpoint = replace(endpoints[broker], source=source)
    counter = ConnectionCounter(endpoint, PROC)
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_connection(endpoint.hosts[0], 5)) for _ in range(3)]
        # A broker has others, too, which come and go: some are its own, to itself.
        ports = {each.getsockname()[1] for each in sockets}
        reaches(counter, ports, 3)  # the broker's end is there when it accepts
        assert (counter.read() or 0) >= 3
    reaches(counter, ports, 0)


def reaches(counter: ConnectionCounter, ports: set[int], wanted: int) -> None:
    """Wait until so many are counted that have these ports."""
    deadline_s = time.monotonic() + 60
    while (seen := counter.read(ports)) != wanted:
        assert time.monotonic() < deadline_s, f"{seen} connections, {wanted} expected"
        time.sleep(0.01)


def test_ends_states_and_addresses_are_told_apart(tmp_path: Path) -> None:
    """Only established sockets count: at the broker's port here, or from here to its address and port elsewhere."""
    (tmp_path / "net").mkdir()
    local, other = "0100007F:1628", "0200007F:1628"  # 127.0.0.1:5672 and 127.0.0.2:5672
    lines = [
        f"0: {local} 00000000:0000 0A x",  # listens
        f"1: {local} 0100007F:9999 01 x",  # the broker's end
        f"2: 0100007F:9999 {local} 01 x",  # ours
        f"3: 0100007F:9998 {local} 06 x",  # closed
        f"4: 0100007F:9997 {other} 01 x",  # another broker's
        f"1: {local} 0100007F:9999 01 x",  # once more: the kernel lists some again while others come and go
    ]
    (tmp_path / "net/tcp").write_text("\n".join([HEAD, *lines]))
    six = [f"0: {V4_IN_V6}:1628 {V4_IN_V6}:9996 01 x", f"1: {V6_LOOPBACK}:9995 {V6_LOOPBACK}:1628 01 x"]
    (tmp_path / "net/tcp6").write_text("\n".join([HEAD, *six]))
    here = Endpoint("rabbitmq", (("127.0.0.1", 5672),))
    assert ConnectionCounter(here, tmp_path).read() == 2
    assert ConnectionCounter(replace(here, source="external"), tmp_path).read() == 1
    assert ConnectionCounter(replace(here, hosts=(("::1", 5672),), source="docker"), tmp_path).read() == 1
    assert ConnectionCounter(here, tmp_path / "none").read() is None
    assert ConnectionCounter(here, tmp_path).read({0x9999, 0x1628}) == 1
    assert ConnectionCounter(replace(here, source="external"), tmp_path).read({0x9998, 0x1628}) == 0
