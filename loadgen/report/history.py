"""Points over runs, in words: how many runs, the last values, and where the level changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadgen.report import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.analysis.changes import ChangePoint
    from loadgen.analysis.history import History

    Told = Sequence[tuple[History, Sequence[ChangePoint]]]

NOTE = (
    "Levels are geometric means of runs; p: how often as large a difference arises by chance (E-divisive). Runs of "
    "different days are not interleaved: what the machine did lies in them."
)


def lines(told: Told, runs_least: int) -> list[str]:
    """For a terminal; points with fewer than `runs_least` runs can show no two levels."""
    said: list[str] = []
    for found, changes in told:
        count = words.plural(len(found.moments), "run")
        few = f", fewer than the {runs_least} that two levels need" if len(found.moments) < runs_least else ""
        said.append(f"{found.point}: {found.measure} in {count}{few}: {_last(found)}")
        said += [f"  {_change(found, each)}" for each in changes]
        if not changes and not few:
            said.append("  no change of level is shown")
    return [*said, NOTE]


def rows(told: Told) -> list[dict[str, Any]]:
    """For machines."""
    return [
        {
            "point": found.point,
            "measure": found.measure,
            "runs": [{"run": each.run_id, "median": each.estimate.median} for each in found.moments],
            "changes": [
                {"run": each.moment.run_id, "before": each.before, "after": each.after, "ratio": each.ratio,
                 "p_value": each.p_value, "revision": each.moment.revision, "changed": list(each.moment.changed)}
                for each in changes
            ],
        }
        for found, changes in told
    ]  # fmt: skip


def _last(found: History) -> str:
    values = [words.shown(each.estimate.median, words.unit_of(found.measure)) for each in found.moments[-5:]]
    return f"{'… ' * (len(found.moments) > len(values))}{', '.join(values)}"


def _change(found: History, change: ChangePoint) -> str:
    unit, moment = words.unit_of(found.measure), change.moment
    levels = f"{words.shown(change.before, unit)} → {words.shown(change.after, unit)} ({change.ratio - 1:+.1%})"
    what = f"; set otherwise: {'; '.join(moment.changed)}" if moment.changed else ""
    where = f"{moment.run_id} (revision {moment.revision or 'unknown'})"
    return f"changed with {where}: {levels}, p {change.p_value:.3f}{what}"
