"""The figures that trials with faults put into the table's cells: what the ledger of every message says of each class.

A ledger is exact however busy the machine was, so a trial counts that came to its end with all of its faults carried
out, whatever its verdict: one that lost what it had confirmed is invalid for rates, and the evidence here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loadgen.report.points import class_rank
from loadgen.report.probe_rules import CAME_TWICE, CONFIRMED_LOST
from loadgen.report.promises import EXACTLY, NOTHING, class_of, fell_together, in_words, judged
from loadgen.report.rules import LATE_AGAIN, OUT_OF_ORDER, RECEIVED, Figure
from loadgen.stats.confidence import Estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.record import Record
    from loadgen.runs import Run

    Count = Callable[[Record], int]

UNPROMISED = "not promised: all nodes at once"
MODES = {NOTHING: "at most once", EXACTLY: "exactly once"}
REDELIVERED: tuple[str, Count] = ("came again by redelivery", lambda record: record["dup_redelivery"] or 0)
AGAIN: tuple[str, Count] = ("sent again", lambda record: record["dup_resend"] or 0)
CONFIRMED: tuple[str, Count] = ("confirmed", lambda record: record["acked"] or 0)
LOST: tuple[str, Count] = (CONFIRMED_LOST, lambda record: record["confirmed_lost"])
COUNTS: dict[str, tuple[tuple[str, Count], ...]] = {
    # What a producer itself sent twice is no delivery that was repeated.
    "at most once": (
        ("sent", lambda record: record["sent"]),
        (CAME_TWICE, lambda record: record["duplicated"] - (record["dup_resend"] or 0)),
    ),
    "exactly once": (CONFIRMED, LOST, (CAME_TWICE, lambda record: record["duplicated"])),
    "at least once": (CONFIRMED, LOST, REDELIVERED, AGAIN),
    UNPROMISED: (CONFIRMED, LOST, REDELIVERED, AGAIN),
}
ORDER: tuple[tuple[str, Count], ...] = (
    (RECEIVED, lambda record: record["received"]),
    (OUT_OF_ORDER, lambda record: record["out_of_order"]),
    (LATE_AGAIN, lambda record: record["reordered_redelivery"] or 0),
)


@dataclass(frozen=True)
class Hurt:
    """The trials with faults that a table may cite: its run's own, and those of another run, which is named."""

    run: Run
    other: Run | None = None

    def figures(self, of: Callable[[Sequence[Record]], list[Figure]], broker: str) -> list[Figure]:
        """What a row makes of one broker's trials of each run, never of both together."""
        found = of(_hurt(self.run, broker))
        if self.other is None:
            return found
        named = f"run {self.other.id} of {str(self.other.header['created_utc'])[:10]}"
        return found + [
            replace(each, point=f"{each.point} ({named})", run_id=self.other.id)
            for each in of(_hurt(self.other, broker))
        ]


def _hurt(run: Run, broker: str) -> list[Record]:
    return [record for record in run.records if record["faults"] and record["broker"] == broker]


def delivery_figures(records: Sequence[Record]) -> list[Figure]:
    """By mode and class: what was confirmed and lost, and what came again."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=lambda record: class_rank(record["durability"])):
        groups.setdefault((_mode(record), class_of(record)), []).append(record)
    return [
        figure
        for (mode, durability), found in groups.items()
        for figure in _figures(f"{mode}, class {durability}", found, COUNTS[mode])
    ]


def order_figures(records: Sequence[Record]) -> list[Figure]:
    """Of trials in which one consumer read alone: what came, and what came late."""
    alone = [record for record in records if record["consumers"] == 1 and record["subscribers"] == 1]
    return _figures("one consumer", alone, ORDER)


def _mode(record: Record) -> str:
    """Which mode of delivery a trial tries; replicas promise nothing where all of them fall at once."""
    if fell_together(record):
        return UNPROMISED
    return MODES.get(judged(record)[0], "at least once")


def _figures(point: str, records: Sequence[Record], counts: Sequence[tuple[str, Count]]) -> list[Figure]:
    """Sums over the trials whose account is known; the others are struck out."""
    used = [record for record in records if _is_known(record)]
    struck = tuple(record["id"] for record in records if not _is_known(record))
    if not used:
        return []
    under = in_words(used)
    point = f"{point}, under {under}"
    classes = ", ".join(dict.fromkeys(record["durability"] for record in used))
    ids = tuple(record["id"] for record in used)
    sums = [(what, float(sum(count(record) for record in used))) for what, count in counts]
    return [
        Figure(what, "count", point, classes, Estimate((total,), total, None, None), ids, struck, "", under=under)
        for what, total in sums
    ]


def _is_known(record: Record) -> bool:
    has_order = record["received"] is not None and record["out_of_order"] is not None
    return has_order and judged(record)[1] != "not known" and not any(each["error"] for each in record["faults"])
