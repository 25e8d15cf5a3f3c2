"""What is to be wrong with a network, told to its proxy (`loadgen.brokers.proxy`): faults begin, end and overlap."""

from __future__ import annotations

import json
import os
import select
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from loadgen.brokers.proxy import order_of
from loadgen.brokers.way import NS_PER_S, Condition
from loadgen.errors import BrokerError
from loadgen.faults import Cut, Delay, Throttle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.brokers.proxy import Parties
    from loadgen.faults import NetworkFault

ANSWER_S = 10.0


class Orders(ABC):
    """Gives a proxy orders; who inherits from it says which links it has and how it is reached."""

    ACCOUNT: tuple[str, ...] = ("connections", "bytes", "cpu_s")

    def __init__(self) -> None:
        self._lock = threading.RLock()  # faults begin and end in threads of their own: each order is of all that holds
        self._faults: list[tuple[NetworkFault, tuple[int, ...]]] = []
        self._ever: set[int] = set()  # nodes that were hurt

    def begin(self, fault: NetworkFault, nodes: Sequence[int]) -> dict[Parties, int]:
        """Break these nodes' links, beside what is broken already, until `end`; how many connections each has."""
        with self._lock:
            self._faults.append((fault, tuple(nodes)))
            self._ever |= set(nodes)
            return self._tell(self._links_of(nodes))

    def end(self, fault: NetworkFault, nodes: Sequence[int]) -> None:
        """Mend what was begun."""
        with self._lock:
            if (fault, tuple(nodes)) in self._faults:
                self._faults.remove((fault, tuple(nodes)))
                self._tell(self._links_of(nodes))

    def mend(self) -> None:
        """Mend all of it, also what could not be mended when it was to end."""
        with self._lock:
            self._faults.clear()
            self._tell(self._links_of(sorted(self._ever)))

    def reset(self, nodes: Sequence[int]) -> dict[Parties, int]:
        """Close every connection of these nodes' links by RST, on both sides; how many each had."""
        links = self._links_of(nodes)
        return dict(zip(links, self._ask({"reset": links})["hits"], strict=True))

    def account(self) -> dict[str, Any]:
        """What has passed so far: connections, bytes of both directions, its CPU time in seconds; null if it died."""
        try:
            told = self._ask({})
        except BrokerError:
            return dict.fromkeys(self.ACCOUNT)
        return {name: told[name] for name in self.ACCOUNT}

    @abstractmethod
    def _links_of(self, nodes: Sequence[int]) -> list[Parties]:
        """The links that are hurt where these nodes are."""

    @abstractmethod
    def _descriptors(self) -> tuple[int, int]:
        """Where orders are written to, and answers read from; ValueError where that was closed."""

    @abstractmethod
    def _silent(self) -> str:
        """What is said where it does not answer."""

    def _tell(self, links: Sequence[Parties]) -> dict[Parties, int]:
        hits: dict[Parties, int] = {}
        for link in links:
            hurt = [fault for fault, nodes in self._faults if not set(link).isdisjoint(nodes)]
            (hits[link],) = self._ask(order_of(link, _condition(hurt)))["hits"]
        return hits

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Give an order, and wait until it is carried out."""
        with self._lock:
            try:
                orders, answers = self._descriptors()
                os.write(orders, json.dumps(order).encode() + b"\n")  # at once: it is less than a pipe takes
                answer = _line_of(answers)
            except (OSError, ValueError):
                answer = b""
        if not answer:
            raise BrokerError(self._silent())
        told: dict[str, Any] = json.loads(answer)
        return told


def _line_of(number: int) -> bytes:
    """A line of the proxy's; empty where it has ended or says nothing."""
    line, until_s = b"", time.monotonic() + ANSWER_S
    while not line.endswith(b"\n"):
        if not select.select([number], [], [], max(0.0, until_s - time.monotonic()))[0]:
            return b""
        data = os.read(number, 1 << 16)
        if not data:
            return b""
        line += data
    return line


def _condition(faults: Sequence[NetworkFault]) -> Condition:
    """What several faults at once come to: delays add up, the lowest rate holds."""
    delay_ms = sum(each.delay_ms for each in faults if isinstance(each, Delay))
    return Condition(
        is_cut=any(isinstance(each, Cut) for each in faults),
        late_ns=round(delay_ms / 1_000 * NS_PER_S / 2),  # half on the way there, half on the way back
        rate_bytes_per_s=min((each.rate_bytes_per_s for each in faults if isinstance(each, Throttle)), default=None),
    )
