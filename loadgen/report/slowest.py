"""The slowest seconds of each trial with a schedule, and what coincides with them, as data for all three formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.analysis.tail import SECONDS_MIN, explain
from loadgen.record import enters
from loadgen.report import points as pt
from loadgen.report import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadgen.analysis.tail import Tail
    from loadgen.record import Record
    from loadgen.runs import Run

SLOWEST_NOTE = (
    "A second is slow when its p99 lies far above that of the trial's median second. What coincides with slow seconds "
    "and is rare in the others explains them where chance is unlikely; that is no proof of a cause. Seconds are those "
    "of the measured window; trials in overload are left out, as each of their seconds is slower than the one before."
)


def tails(run: Run, trials: Iterable[Record]) -> list[Tail]:
    """Those trials' seconds that have response times, are long enough to tell, and did not run in overload."""
    asked = [each for each in trials if enters(each) and _has_times(each)]
    found = [explain(run, record["id"]) for record in asked]
    return [tail for tail in found if tail is not None and tail.limit_ns is not None]


def _has_times(record: Record) -> bool:
    fractions = (record["rate"] or {}).get("fractions") or [0.0]
    return (record["window_s"] or 0) >= SECONDS_MIN * (record["interval_s"] or 1.0) and fractions[0] <= 1


def worst(run: Run, found: Iterable[Tail]) -> list[Tail]:
    """Of each broker the trial whose slowest second stands out most from its usual one; none where no second does."""
    by_broker: dict[str, Tail] = {}
    for tail in found:
        broker = run.trial(tail.trial_id)["broker"]
        if tail.slow and (broker not in by_broker or _excess(tail) > _excess(by_broker[broker])):
            by_broker[broker] = tail
    return [by_broker[broker] for broker in sorted(by_broker, key=pt.broker_rank)]


def _excess(tail: Tail) -> float:
    """The slowest second's p99 over the median second's."""
    return tail.slow[0].second.p99_ns / (tail.median_p99_ns or 1.0)


def summary(tail: Tail) -> str:
    """One line a trial: `3 of 60 seconds are slow, 2 explained; the slowest has a p99 of 41.2 ms (usual 1.30 ms)`."""
    if not tail.slow:
        return f"none of {len(tail.seconds)} seconds stands out (usual p99 {words.duration(tail.median_p99_ns)})"
    slowest = words.duration(tail.slow[0].second.p99_ns)
    return (
        f"{len(tail.slow)} of {len(tail.seconds)} seconds are slow, {tail.explained} explained; "
        f"the slowest has a p99 of {slowest} (usual {words.duration(tail.median_p99_ns)})"
    )


def lead(found: Sequence[Tail]) -> str:
    """All trials in one sentence."""
    slow = [tail for tail in found if tail.slow]
    trials = words.plural(len(found), "trial")
    if not slow:
        return f"No second stands out in {trials}."
    seconds = sum(len(tail.slow) for tail in slow)
    explained = sum(tail.explained for tail in slow)
    return (
        f"{len(slow)} of {trials} {'has' if len(slow) == 1 else 'have'} slow seconds: "
        f"{words.plural(seconds, 'second')} of {sum(len(tail.seconds) for tail in found):,}, {explained} explained."
    )
