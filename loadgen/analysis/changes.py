"""Since when is it slower? The change points of a point's history, with what was changed there.

A run is one value, the geometric mean of its repeats; levels are compared by logarithms (`loadgen.stats.changes`). A
change names the first run of a new level, the revision that it ran, and what was set otherwise since the run before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from loadgen.stats.changes import changes, fewest

if TYPE_CHECKING:
    from loadgen.analysis.history import History, Moment

SEED = 1
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class ChangePoint:
    """A new level: its first run, the levels before and after (geometric means), and how likely that is by chance."""

    moment: Moment
    before: float
    after: float
    p_value: float

    @property
    def ratio(self) -> float:
        """The new level over the old one."""
        return self.after / self.before


def runs_least(points: int = 1) -> int:
    """With how many runs a change can be shown, where so many points are looked at."""
    return fewest(ALPHA / points)


def change_points(found: History, points: int = 1) -> list[ChangePoint]:
    """Where a point's level changed, the oldest first; none with fewer runs than could show it.

    `points` histories are looked at: in 5 of 100 cases chance shows a change in any of them (Bonferroni).
    """
    moments = [moment for moment in found.moments if moment.estimate.n]
    logs = [fmean(map(math.log, moment.estimate.values)) for moment in moments]
    places = changes(logs, seed=SEED, alpha=ALPHA / points)
    ends = [0, *(each.at for each in places), len(logs)]
    return [
        ChangePoint(
            moments[each.at],
            math.exp(fmean(logs[ends[number] : each.at])),
            math.exp(fmean(logs[each.at : ends[number + 2]])),
            each.p_value,
        )
        for number, each in enumerate(places)
    ]
