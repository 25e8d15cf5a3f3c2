"""What no load shows: limits, retention, protocols, connections, what it takes to begin. One probe a file.

A probe asks one question of each broker by a few messages, and holds the answer against the broker's own word: the
error's code, the log's first offset, the count of connections. It is no trial: there is no schedule, and of its times
only what it says itself is a measurement. What it finds goes into the run beside the trials, and the table is made from
both.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.errors import LoadgenError, ScenarioError
from loadgen.knobs import NODES
from loadgen.probes.finding import Finding, Ground, NotHereError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from loadgen.endpoint import BrokerName

__all__ = [
    "COMPARED",
    "FAULTED",
    "NAMES",
    "Finding",
    "Ground",
    "Probe",
    "asked_under_faults",
    "expected_s",
    "load_probe",
]

COMPARED = ("protocols", "ordering", "retention", "delivery", "message_size", "connections", "complexity")
"""Those that answer the table's rows, which `loadgen compare` asks."""
FAULTED = ("flushes",)
"""Those that answer in place of a fault that cannot be had here, which a run with faults asks where its classes do."""
NAMES = (*COMPARED, "security", *FAULTED)


@dataclass(frozen=True, slots=True)
class Probe:
    """One question to each broker; `look` yields what it finds on one of them, and raises LoadgenError if it cannot."""

    question: str
    look: Callable[[Ground, BrokerName], Iterator[Finding]]
    expected_s: float
    """How long it takes on both brokers, about, with three repeats."""
    classes: tuple[str, ...] = ()
    """The durability classes that it speaks of, which say of how many nodes its brokers are; none: of one."""

    def sizes(self, classes: Iterable[str] = (), standing: int = 1) -> tuple[int, ...]:
        """The numbers of nodes that it is asked at, for those of its classes that are given; first what stands."""
        asked = set(self.classes).intersection(classes) or self.classes
        nodes = {NODES.get(each, 1) for each in asked}
        return tuple(sorted(nodes, key=lambda number: (number != standing, number))) or (1,)

    def findings(self, ground: Ground) -> Generator[Finding]:
        """What is found on each of the run's brokers; that a broker could not be asked is a finding, too."""
        for broker in ground.endpoints:
            try:
                yield from self.look(ground, broker)
            except NotHereError as error:
                yield Finding(broker, "", "measured", "number", error=str(error))
            except LoadgenError as error:
                yield Finding(broker, "", "measured", "number", agrees=False, error=str(error))
            except Exception as error:  # noqa: BLE001 - clients have errors of their own, and trials went before
                said = f"{type(error).__name__}: {error}"
                yield Finding(broker, "", "measured", "number", agrees=False, error=said)


def expected_s(names: Iterable[str]) -> float:
    """How long these probes take, about."""
    return sum(load_probe(name).expected_s for name in names)


def asked_under_faults(classes: Iterable[str]) -> tuple[str, ...]:
    """The probes that a run with faults in these durability classes asks."""
    hurt = set(classes)
    return tuple(name for name in FAULTED if hurt.intersection(load_probe(name).classes))


def load_probe(name: str) -> Probe:
    """The probe of this name; ScenarioError where there is none."""
    if name.replace("-", "_") not in NAMES:
        raise ScenarioError(f"no probe {name}; expected one of {', '.join(NAMES)}")
    probe: Probe = importlib.import_module(f"loadgen.probes.{name.replace('-', '_')}").PROBE
    return probe
