"""Who did the work: a sentence a point, where consumers are not alike or did not have like shares."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from loadgen.report import words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from loadgen.record import Record
    from loadgen.report.points import Point

UNEVEN = 0.95
"""Below this index of messages it is told of workers that are alike, too: one has over 1.6 times the others’."""
LIMIT_SHARE, IDLE_SHARE = 0.95, 0.8
"""A worker that was busy for so much of the window is the limit, where another was for at most so much."""
Worker = dict[str, Any]


def notes(points: Iterable[Point]) -> tuple[str, ...]:
    """A sentence for each point whose consumers are told apart, medians over its repeats.

    Who came or went in mid-trial had less of it, and nothing is told then.
    """
    told = []
    for point in points:
        used = [record for record in point.used if record["fairness"]["of_msgs"] is not None]
        if not used or any(record["membership"] for record in used):
            continue
        if used[0]["think"] and used[0]["think"]["spread"] > 1:
            told.append(f"{point.name}: who did the work: {_unlike(used)}")
        elif median(record["fairness"]["of_msgs"] for record in used) < UNEVEN:
            told.append(f"{point.name}: who did the work: {_alike(used)}")
    return tuple(told)


def _unlike(used: Sequence[Record]) -> str:
    """The fastest and the slowest, and whether one was waited for while another idled."""
    parts = []
    for name, choose in (("fastest", min), ("slowest", max)):
        ends = [choose(record["work"], key=lambda each: each["think_ms"]) for record in used]
        busy = median(_busy(record, worker) for record, worker in zip(used, ends, strict=True))
        parts.append(
            f"the {name} ({words.significant(ends[0]['think_ms'])} ms a message) had {_share(used, ends)} of the "
            f"messages and was busy for {words.percent(100 * busy)} of the time"
        )
    most, least = (
        median(choose(_busy(record, worker) for worker in record["work"]) for record in used) for choose in (max, min)
    )
    limit = ": one was the limit while another had time left" if most >= LIMIT_SHARE and least <= IDLE_SHARE else ""
    of_busy = median(record["fairness"]["of_busy_time"] for record in used)
    return f"of {_workers(used[0])} {' and '.join(parts)}{limit}; {_index(used)}, {of_busy:.2f} of busy time"


def _alike(used: Sequence[Record]) -> str:
    """Who had the least and who the most."""
    least, most = ([choose(record["work"], key=_part_of(record)) for record in used] for choose in (min, max))
    between = f"between {_share(used, least)} and {_share(used, most)}"
    return f"{_workers(used[0])} had {between} of the messages; {_index(used)}"


def _workers(record: Record) -> str:
    noun = "processor" if record["processors"] else "consumer"
    return words.plural(sum(each["subscriber"] == 0 for each in record["work"]), noun)


def _index(used: Sequence[Record]) -> str:
    return f"fairness (Jain’s index, 1 is even) {median(each['fairness']['of_msgs'] for each in used):.2f} of messages"


def _part_of(record: Record) -> Callable[[Worker], float]:
    """Which part of its subscriber's messages a worker had (0 … 1)."""
    totals: dict[int, int] = {}
    for each in record["work"]:
        totals[each["subscriber"]] = totals.get(each["subscriber"], 0) + each["msgs"]
    return lambda worker: worker["msgs"] / max(1, totals[worker["subscriber"]])


def _share(used: Sequence[Record], workers: Sequence[Worker]) -> str:
    """The part of one worker of each trial."""
    parts = (_part_of(record)(worker) for record, worker in zip(used, workers, strict=True))
    return words.percent(100 * median(parts))


def _busy(record: Record, worker: Worker) -> float:
    """For which part of the window it was busy; over 1 where its last message took it beyond the end."""
    return float(worker["busy_s"] / record["window_s"])
