"""Which CPUs brokers and clients are held to, and that it took effect."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from loadgen.endpoint import BrokerName, Endpoint

PIN_FROM_CORES = 4


@dataclass(frozen=True, slots=True)
class Pins:
    """Which CPUs the brokers and the clients may use; empty is all of them."""

    broker: tuple[int, ...] = ()
    client: tuple[int, ...] = ()


def wanted_pins(broker: str | None, client: str | None, cores: Sequence[int], *, is_local: bool) -> Pins:
    """The CPUs asked for; from four cores on, by default half for each side where the brokers are our own."""
    if broker is None and client is None and is_local and len(cores) >= PIN_FROM_CORES:
        half = len(cores) // 2
        return Pins(tuple(cores[:half]), tuple(cores[half:]))
    return Pins(_cpus(broker, cores), _cpus(client, cores))


def _cpus(text: str | None, cores: Sequence[int]) -> tuple[int, ...]:
    if text is None:
        return ()
    found: set[int] = set()
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            found |= set(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        raise ScenarioError(f"--cpus {text}: expected a list such as 0,2-3") from None
    if not found or not found <= set(cores):
        raise ScenarioError(f"--cpus {text}: this process may use {', '.join(map(str, cores))}")
    return tuple(sorted(found))


@contextlib.contextmanager
def pinned(endpoints: Mapping[BrokerName, Endpoint], wanted: Pins, tell: Callable[[str], None]) -> Iterator[Pins]:
    """Keep the brokers on their CPUs while the run lasts; the value is what took effect, read back.

    All of them or none: one that is held and one that is not would be no comparison. The clients pin themselves, and
    one that cannot fails its trial.
    """
    if not wanted.broker:
        yield wanted
        return
    before: dict[int, set[int]] = {}
    try:
        free = sorted(name for name, each in endpoints.items() if not _hold(each.pids, wanted.broker, before))
        if free:
            tell(f"--cpus-broker: {' and '.join(free)} cannot be pinned from here; no broker is")
            _let_go(before)
        yield Pins((), wanted.client) if free else wanted
    finally:
        _let_go(before)


def _hold(pids: Sequence[int], cpus: Sequence[int], before: dict[int, set[int]]) -> bool:
    """Pin all threads of these processes; True where they are known, and stayed on no other CPU."""
    for thread in _threads(pids):
        with contextlib.suppress(OSError):
            earlier = os.sched_getaffinity(thread)
            os.sched_setaffinity(thread, cpus)
            before.setdefault(thread, earlier)
    held: list[bool] = []
    for thread in _threads(pids):
        with contextlib.suppress(ProcessLookupError):  # threads come and go
            held.append(os.sched_getaffinity(thread) <= set(cpus))
    return bool(held) and all(held)


def _threads(pids: Sequence[int]) -> list[int]:
    found: list[int] = []
    for pid in pids:
        with contextlib.suppress(OSError):
            found += [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]
    return found


def _let_go(before: dict[int, set[int]]) -> None:
    while before:
        thread, cpus = before.popitem()
        with contextlib.suppress(OSError):
            os.sched_setaffinity(thread, cpus)
