"""How a queue in memory behaves, what harm it did, and its single server where it has one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loadgen.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.driver import Int64, UInt8

PREFIX = "memory."
NS_PER_MS = 1_000_000
_WHOLE = {
    "loss_every", "duplicate_every", "reorder_every", "corrupt_every", "refuse_every", "max_bytes", "seed",
}  # fmt: skip
_DISTRIBUTIONS = ("fixed", "exponential")
_HARMS = ("loss_every", "duplicate_every", "reorder_every", "corrupt_every", "refuse_every")
_IDENTITY_AT, _IDENTITY_BYTES = 8, 8  # where a message's stamp says whose it is, and which (`loadgen.payload`)

Distribution = Literal["fixed", "exponential"]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the broker behaves; each field is the setting `memory.<field>`. 0 is never.

    The harm of "every n-th" message counts the messages that the broker took, from 1 on.
    """

    delay_ms: float = 0.0
    """From taking a message to its delivery."""
    delay_distribution: Distribution = "fixed"
    """Exponential: `delay_ms` is the mean, and the queue keeps its order."""
    confirm_delay_ms: float = 0.0
    """From taking a message to its confirmation."""
    service_ms: float = 0.0
    """How long one server works on each message, in order of arrival, before it may be delivered.

    A message is confirmed when that work begins: its confirmation has waited as long as it did itself.
    """
    service_distribution: Distribution = "fixed"
    """Exponential: `service_ms` is the mean."""
    loss_every: int = 0
    """Confirmed and never delivered."""
    duplicate_every: int = 0
    """Delivered twice."""
    reorder_every: int = 0
    """Swapped with the message before it, where both came in one batch."""
    corrupt_every: int = 0
    """Delivered with its last byte changed."""
    refuse_every: int = 0
    """Not taken, and the producer is told so."""
    harm_log: str = ""
    """The path of a file that gets a line for each harmed message: what was done, and the identity in its stamp."""
    pause_every_ms: float = 0.0
    """The length of a cycle, at whose end the broker does nothing for `pause_ms`."""
    pause_ms: float = 0.0
    """How long it does nothing."""
    max_bytes: int = 256 << 20
    """How much it holds before it stops reading from producers."""
    seed: int = 0
    """Of the exponential delays and service times."""

    @property
    def is_harmless(self) -> bool:
        """Whether every message is taken, and delivered once, intact and in order."""
        return not any(getattr(self, harm) for harm in _HARMS)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Behaviour:
        """From a trial's settings; raises ScenarioError for an unknown or impossible one."""
        given = {name.removeprefix(PREFIX): value for name, value in settings.items() if name.startswith(PREFIX)}
        known = {each.name for each in fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise ScenarioError(f"{PREFIX}{name}: no such setting; expected {', '.join(sorted(known))}")
            _demand_value(name, value)
        behaviour = cls(**given)
        if behaviour.reorder_every == 1:
            raise ScenarioError(f"{PREFIX}reorder_every = 1: expected 0 or at least 2, since two messages are swapped")
        if behaviour.pause_ms and behaviour.pause_every_ms <= behaviour.pause_ms:
            raise ScenarioError(f"{PREFIX}pause_every_ms = {behaviour.pause_every_ms}: must be longer than pause_ms")
        if behaviour.service_ms and not behaviour.is_harmless:
            raise ScenarioError(f"{PREFIX}service_ms = {behaviour.service_ms}: goes with no {', '.join(_HARMS)}")
        return behaviour


def _demand_value(name: str, value: Any) -> None:
    """Raise ScenarioError where a setting is of the wrong kind."""
    if name.endswith("_distribution"):
        if value not in _DISTRIBUTIONS:
            raise ScenarioError(f"{PREFIX}{name} = {value}: expected {' or '.join(_DISTRIBUTIONS)}")
    elif name == "harm_log":
        if not isinstance(value, str):
            raise ScenarioError(f"{PREFIX}{name} = {value!r}: expected the path of a file")
    elif not (isinstance(value, int if name in _WHOLE else int | float) and value >= 0):
        kind = "whole number" if name in _WHOLE else "number"
        raise ScenarioError(f"{PREFIX}{name} = {value!r}: expected a {kind} of at least 0")


class Harm:
    """What the broker did to messages, exactly; duplicates and damage are counted in copies delivered.

    `counts` has the number of each of lost, duplicated, reordered, corrupted and refused messages. Of two that
    were swapped, the one that comes later than it should is the reordered one.
    """

    def __init__(self, log: str = "") -> None:
        self.counts: Counter[str] = Counter(lost=0, duplicated=0, reordered=0, corrupted=0, refused=0)
        self._log = Path(log) if log else None

    def note(self, what: str, rows: Int64, data: UInt8, offsets: Int64) -> None:
        """Count messages `rows` of a batch, as it came (`Frame.split`), and write down which they are."""
        self.counts[what] += len(rows)
        if self._log is None or not len(rows):
            return
        places = offsets[rows][:, None] + np.arange(_IDENTITY_AT, _IDENTITY_AT + _IDENTITY_BYTES)
        identities = data[places].view("<u8").ravel()
        with self._log.open("a", encoding="ascii") as file:
            file.writelines(f"{what} {identity}\n" for identity in identities.tolist())


class Service:
    """One server that works on one message at a time, in order of arrival: the queue is M/M/1 or M/D/1 by its arrivals.

    With `service_ms` 0 there is none, and work begins and ends at once.
    """

    def __init__(self, behaviour: Behaviour, rng: np.random.Generator) -> None:
        self._mean_ns = behaviour.service_ms * NS_PER_MS
        self._is_random = behaviour.service_distribution == "exponential"
        self._rng = rng
        self._free_ns = 0

    @property
    def exists(self) -> bool:
        """Whether there is a server at all."""
        return self._mean_ns > 0

    def serve(self, count: int, now_ns: int) -> tuple[Int64, Int64]:
        """When work on each of `count` messages that arrive now begins and ends: int64[count] each."""
        draws = self._rng.standard_exponential(count) if self._is_random else np.ones(count)
        lengths = np.rint(draws * self._mean_ns).astype(np.int64)
        ends = max(now_ns, self._free_ns) + np.cumsum(lengths)
        self._free_ns = int(ends[-1])
        return ends - lengths, ends
