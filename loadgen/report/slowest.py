"""The slowest seconds of each trial with a schedule, and what coincides with them, as data for all three formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.analysis.tail import SECONDS_MIN, explain
from loadgen.record import RESPONSE_KINDS, enters
from loadgen.report import points as pt
from loadgen.report import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadgen.analysis.tail import Tail
    from loadgen.record import Record
    from loadgen.runs import Run

SLOWEST_NOTE = (
    "A second is slow when its p99 lies far above that of the trial's median second. What coincides with slow seconds "
    "and is rare in the others explains them where chance is unlikely (5\N{NO-BREAK SPACE}%, corrected for the number "
    "of causes that were seen); that is no proof of a cause. Seconds are those of the measured window (intervals of "
    "some seconds in trials of over twelve minutes); trials in overload are left out, as each of their seconds is "
    "slower than the one before."
)


def tails(run: Run, trials: Iterable[Record]) -> tuple[list[Tail], list[Record]]:
    """Of trials that have response times and did not run in overload: their seconds, and those too short to tell."""
    found: list[Tail] = []
    short: list[Record] = []
    for record in trials:
        if not enters(record) or not _has_times(record):
            continue
        tail = explain(run, record["id"]) if is_long_enough(record) else None
        if tail is None or tail.limit_ns is None:
            short.append(record)
        else:
            found.append(tail)
    return found, short


def _has_times(record: Record) -> bool:
    fractions = (record["rate"] or {}).get("fractions") or [0.0]
    return fractions[0] <= 1 and any((record["latency_ns"].get(kind) or {}).get("count") for kind in RESPONSE_KINDS)


def is_long_enough(record: Record) -> bool:
    """Whether a trial has seconds enough to tell a usual one from others."""
    return bool((record["window_s"] or 0) >= SECONDS_MIN * (record["interval_s"] or 1.0))


def worst(run: Run, found: Iterable[Tail]) -> list[Tail]:
    """Of each broker the trial whose slowest second stands out most from its usual one; none where no second does.

    Trials with faults, whose slow seconds are no riddle, have a drawing of their own (`fault_chart`).
    """
    by_broker: dict[str, Tail] = {}
    for tail in found:
        record = run.trial(tail.trial_id)
        broker = record["broker"]
        if record["faults"]:
            continue
        if tail.slow and (broker not in by_broker or excess(tail) > excess(by_broker[broker])):
            by_broker[broker] = tail
    return [by_broker[broker] for broker in sorted(by_broker, key=pt.broker_rank)]


def excess(tail: Tail) -> float:
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


def lead(found: Sequence[Tail], short: Sequence[Record]) -> str:
    """All trials in a sentence or two; empty where none has response times."""
    return " ".join(said for said in (_lead(found) if found else "", _short(short)) if said)


def _short(short: Sequence[Record]) -> str:
    """Which trials nobody can tell slow seconds of, and what would help."""
    if not short:
        return ""
    windows = sorted({f"{record['window_s']:.3g}" for record in short if record["window_s"]}, key=float)
    lengths = windows[0] if len(windows) == 1 else f"{windows[0]} to {windows[-1]}" if windows else "unknown"
    return (
        f"Slow seconds cannot be told in {words.plural(len(short), 'trial')} with a window of {lengths} s: fewer than "
        f"{SECONDS_MIN} seconds with messages have no usual one to stand out from "
        "(--profile standard has windows of 20 s, --set duration_s=… any other)."
    )


def _lead(found: Sequence[Tail]) -> str:
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
