"""Which worker runs which agents: producers and consumers on different machines where there are two. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.agent import SIDES
from loadgen.driver import confirms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.agent import AgentSpec


@dataclass(frozen=True, slots=True)
class Place:
    """A worker and the number of the machine it runs on."""

    worker: str
    machine: int


def shares_board(specs: Sequence[AgentSpec]) -> bool:
    """Whether producers read what consumers have received, as in a closed loop that nothing else bounds.

    Such a trial stays on one worker: of another one's counters a producer would hear too late.
    """
    spec = specs[0]
    if spec.rate.is_open_loop or not spec.consumers:
        return False
    return not confirms(spec.target.settings) or spec.think.mean_ms > 0


def spread(specs: Sequence[AgentSpec], places: Sequence[Place]) -> dict[str, list[AgentSpec]]:
    """The agents of each worker that gets any, consumers first; those of one role are dealt out in turn.

    The workers, as they came on each machine, are cut in two in the proportion of consumers to producers: between two
    machines where there are several, else between two workers. A single worker runs all.
    """
    assert places, "nobody to run the agents"
    ordered = sorted(places, key=lambda place: place.machine)
    consumers = [spec for spec in specs if SIDES[spec.role] == "consumers"]
    producers = [spec for spec in specs if SIDES[spec.role] == "producers"]
    if len(ordered) == 1 or shares_board(specs):
        return {ordered[0].worker: [*consumers, *producers]}
    if not consumers or not producers:
        return _dealt(consumers or producers, ordered)
    cut = _cut(ordered, len(consumers) / len(specs))
    return _dealt(consumers, ordered[:cut]) | _dealt(producers, ordered[cut:])


def _cut(ordered: Sequence[Place], share: float) -> int:
    """How many workers are the consumers': the nearest to their share, between machines where there are several."""
    cuts = range(1, len(ordered))
    between = [cut for cut in cuts if ordered[cut - 1].machine != ordered[cut].machine]
    return min(between or cuts, key=lambda cut: abs(cut / len(ordered) - share))


def _dealt(specs: Sequence[AgentSpec], places: Sequence[Place]) -> dict[str, list[AgentSpec]]:
    dealt: dict[str, list[AgentSpec]] = {}
    for number, spec in enumerate(specs):
        dealt.setdefault(places[number % len(places)].worker, []).append(spec)
    return dealt
