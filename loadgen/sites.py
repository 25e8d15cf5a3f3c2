"""Which brokers stand while trials run: those of one node first, then, where a class demands it, those of three.

Where the network between nodes is hurt, these are others: they reach each other through a proxy.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from loadgen import stream_knobs
from loadgen.brokers import open_brokers, status
from loadgen.brokers.state import brokers_dir
from loadgen.drivers.memory import memory_endpoint
from loadgen.errors import HostError, ScenarioError
from loadgen.faults import Crash
from loadgen.knobs import Site
from loadgen.pinning import Pins, pinned

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Protocol

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.plan import Trial

    class Listener(Protocol):
        """Who is told what is done."""

        def message(self, text: str) -> None:
            """A line that stays."""


class Sites:
    """The brokers of a spec, of one kind at a time: others would take part of the machine, and are ended before."""

    def __init__(self, spec: str, wanted: Pins, listener: Listener) -> None:
        self._spec, self._wanted, self._listener = spec, wanted, listener
        self._held = contextlib.ExitStack()
        self._now: tuple[Site, dict[BrokerName, Endpoint], Pins] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def of(self, site: Site, names: Sequence[BrokerName]) -> tuple[dict[BrokerName, Endpoint], Pins]:
        """Brokers of a kind, and the CPUs that they are held to; those that stand already are kept."""
        if site.nodes > 1 and self._spec == "local" and _running(self._spec, Site()):
            self._listener.message("brokers of one node are up as well, and take part of the machine: `loadgen down`")
        if self._now is None or self._now[0] != site or not set(names) <= set(self._now[1]):
            self._held.close()
            self._now = None
            endpoints = self._held.enter_context(_opened(self._spec, names, site, self._wanted, self._listener))
            pins = self._held.enter_context(pinned(endpoints, self._wanted, self._listener.message))
            self._now = (site, endpoints, pins)
        return self._now[1], self._now[2]


def refuse_faults(spec: str, trials: Sequence[Trial]) -> None:
    """Raise ScenarioError where brokers would be hurt that this program did not start."""
    hurt = next((trial for trial in trials if any(not isinstance(each.fault, Crash) for each in trial.faults)), None)
    if hurt is not None and spec != "local":
        raise ScenarioError(
            f"{hurt.scenario}: has faults, and only brokers that loadgen itself starts are hurt; use --brokers local"
        )


def refuse_too_large(endpoints: Mapping[BrokerName, Endpoint], trials: Sequence[Trial]) -> None:
    """Raise ScenarioError where a message is larger than its broker says that it takes.

    One that does not say, as it is somebody else's, refuses it by itself. Frames of streams have a limit of their own.
    """
    for trial in trials:
        limit_bytes = endpoints[trial.broker].max_message_bytes
        size_bytes = trial.message.max_size_bytes
        if limit_bytes is not None and size_bytes > limit_bytes and trial.driver not in stream_knobs.DRIVERS:
            raise ScenarioError(
                f"message.size_bytes = {size_bytes}: this {trial.broker} takes at most {limit_bytes} bytes by its own "
                "configuration (max_message_size); expected no more, or a broker that is told otherwise"
            )


@contextlib.contextmanager
def _opened(
    spec: str, names: Sequence[BrokerName], site: Site, pins: Pins, listener: Listener
) -> Iterator[dict[BrokerName, Endpoint]]:
    """The brokers of the spec; `memory` is none at all, to see a plan run through without one."""
    if spec == "memory":
        yield {name: memory_endpoint(name) for name in names}
        return
    # A broker sizes its pools when it starts: pinned from then on, it has as many threads as it has CPUs. One that is
    # up already is used as it is, and held to its CPUs while the run lasts.
    up = [name for name in names if pins.broker and name in _running(spec, site)]
    new = [name for name in names if name not in up]
    opened = partial(open_brokers, spec, nodes=site.nodes, linked=site.is_linked, progress=listener.message)
    with contextlib.ExitStack() as stack:
        found: dict[BrokerName, Endpoint] = {}
        if up:
            listener.message(f"{' and '.join(up)}: up already, with pools for the CPUs that it was started with")
            found |= stack.enter_context(opened(up))
        if new:
            found |= stack.enter_context(opened(new, cpus=pins.broker))
        yield {name: found[name] for name in names}


def _running(spec: str, site: Site) -> set[str]:
    if spec != "local":
        return set()
    return {row["broker"] for row in status(spec) if row["running"] and (len(row["nodes"]), row["linked"]) == site}


def disk_dir(spec: str) -> Path:
    """The nearest folder there is to where the brokers of this spec keep their data; unknown, it is the current one.

    Raises HostError where that is on no disk.
    """
    if spec != "local":
        return Path.cwd()
    folder = brokers_dir()
    found = next(each for each in (folder, *folder.parents) if each.exists())
    if not found.is_dir() or not os.statvfs(found).f_blocks:  # /proc and the like hold no files of ours
        raise HostError(f"{folder} cannot hold the brokers' data; set LOADGEN_BROKERS_DIR to a folder on a disk")
    return found
