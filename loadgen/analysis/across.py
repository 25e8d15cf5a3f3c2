"""The same points over several runs: what changed from one to the next, as a ratio with its interval.

Repeats of different runs are no pairs: they were not interleaved, and what happened to the machine between the runs is
in the ratio. So intervals are those of independent samples (`loadgen.stats.confidence.unpaired_ratio`), corrected for
being several as those of A against B are (`loadgen.analysis.ab`). What differs beside the run itself is listed: another
machine, other versions, other settings or lengths.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loadgen.analysis import FOUND_KINDS, TOLD_KINDS, is_answer
from loadgen.analysis.ab import corrected_confidence
from loadgen.analysis.capacity import response_ns
from loadgen.errors import ScenarioError
from loadgen.record import enters
from loadgen.stats.confidence import Estimate, Ratio, estimate, unpaired_ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.record import Record
    from loadgen.runs import Run

SHARED = (
    "scenario", "broker", "driver", "durability", "message", "rate", "consumers", "subscribers", "think", "backlog",
    "membership", "pattern", "processors", "point",
)  # fmt: skip
"""What makes two trials trials of one point; of a backlog what was asked for."""
MACHINE = ("memory_bytes", "kernel", "os")
CPU = ("model", "cores", "limit_cores", "governor")
DISK = ("filesystem", "rotational")
Change = Literal["better", "worse", "no difference shown", "cannot tell"]
PLACES = re.compile(r"(?<=:)\d{2,5}\b|(?<![\w:/>])(?:<\w+>)?/[^\s,;)]+")
"""Ports and folders in a setting's text: `127.0.0.1:9092`, `/var/kafka`, `<checkout>/data`."""
QUANTITIES: tuple[tuple[str, str], ...] = (("rate", "msgs_per_s"), ("p50", "ns"), ("p99", "ns"))


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity of one point in every run, and each later run's over the first one's.

    `estimates` and `ratios` are in the order of the runs; the first ratio is None, and so is that of a run without the
    point.
    """

    point: dict[str, Any]
    measure: str
    unit: str
    estimates: tuple[Estimate | None, ...]
    ratios: tuple[Ratio | None, ...]
    settings: tuple[str, ...] = ()
    """Settings that are not the same in all runs: `prefetch 100, 1000`."""
    trials: tuple[tuple[str, ...], ...] = ()
    """The trials behind each run's estimate, by their ids."""

    def change(self, number: int) -> Change:
        """What is shown of a later run against the first one: a higher rate is better, a higher latency worse."""
        ratio = self.ratios[number]
        if ratio is None or ratio.low is None:
            return "cannot tell"
        if ratio.direction == "no difference shown":
            return "no difference shown"
        return "better" if (ratio.direction == "higher") == (self.unit == "msgs_per_s") else "worse"


@dataclass(frozen=True, slots=True)
class Across:
    """Several runs beside each other; `warnings` are what else differs, `alone` points that only one run has."""

    runs: tuple[str, ...]
    warnings: tuple[str, ...]
    rows: tuple[Row, ...]
    alone: int
    confidence: float


def compare_runs(runs: Sequence[Run]) -> Across:
    """The points that the first run and another one have; raises ScenarioError without any, or a run twice."""
    names = [run.id for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ScenarioError(f"{twice}: is given twice; expected different runs")
    gathered = [_points(run) for run in runs]
    keys = [key for key in gathered[0] if any(key in other for other in gathered[1:])]
    if not keys:
        raise ScenarioError(
            f"{names[0]}: has no point in common with {' or '.join(names[1:])}; expected runs of one scenario"
        )
    told = [row for key in keys for row in _rows([each.get(key, []) for each in gathered])]
    compared = [ratio for row in told for ratio in row.ratios if ratio is not None and ratio.low is not None]
    confidence = corrected_confidence(len(compared))
    rows = [row for key in keys for row in _rows([each.get(key, []) for each in gathered], confidence)]
    alone = sum(sum(key in each for each in gathered) == 1 for key in {key for each in gathered for key in each})
    return Across(tuple(names), tuple(_warnings(runs)), tuple(rows), alone, confidence)


def _points(run: Run) -> dict[str, list[Record]]:
    """A run's trials that are answers, by point."""
    found: dict[str, list[Record]] = {}
    for record in run.records:
        if is_answer(record):
            found.setdefault(json.dumps(asked(record), sort_keys=True, default=str), []).append(record)
    return found


def asked(record: Record) -> dict[str, Any]:
    """What a trial was asked for, beside its broker's settings and its lengths: the same for all of a point."""
    point = {name: record.get(name) for name in SHARED}
    if record["rate"].get("kind") not in FOUND_KINDS:  # a search has as many as it takes
        point["producers"] = record["producers"]
    if point["backlog"]:
        point["backlog"] = {name: point["backlog"][name] for name in ("msgs", "start_from")}
    # A field that came into records later says nothing in older ones.
    point["rate"] = {name: value for name, value in record["rate"].items() if value is not None}
    return point


def _rows(by_run: Sequence[Sequence[Record]], confidence: float = 0.95) -> list[Row]:
    """The quantities of a point, as far as it has them in more than one run."""
    first = next(record for records in by_run for record in records)
    rows = []
    for measure, unit in QUANTITIES:
        of = _MEASURES[measure]
        counted = [[record for record in records if enters(record)] for records in by_run]
        values = [[of(record) for record in records] for records in counted]
        estimates = [estimate(each) if any(value for value in each) else None for each in values]
        if sum(each is not None for each in estimates) < 2 or estimates[0] is None:
            continue
        ratios = [
            None if number == 0 or estimates[number] is None else unpaired_ratio(each, values[0], confidence)
            for number, each in enumerate(values)
        ]
        trials = tuple(tuple(record["id"] for record in records) for records in counted)
        settings = tuple(changed_settings(by_run))
        rows.append(Row(asked(first), measure, unit, tuple(estimates), tuple(ratios), settings, trials))
    return rows


def _rate(record: Record) -> float | None:
    """What came through; of an open loop that was told its rate that is no finding, and there is none."""
    if record["rate"].get("kind") in TOLD_KINDS:
        return None
    value: float | None = record["goodput_msgs_per_s" if record["consumers"] else "achieved_msgs_per_s"]
    return value


def _latency(percentile: str) -> Callable[[Record], float | None]:
    def measure(record: Record) -> float | None:
        # At a rate that each run found for itself, latencies are not of one load.
        return None if record["rate"].get("kind") in FOUND_KINDS else response_ns(record, percentile)

    return measure


_MEASURES: dict[str, Callable[[Record], float | None]] = {"rate": _rate, "p50": _latency("p50"), "p99": _latency("p99")}


def changed_settings(by_run: Sequence[Sequence[Record]]) -> list[str]:
    """Settings that are not one value in all trials of the point."""
    names = dict.fromkeys(name for records in by_run for record in records for name in record["settings"])
    found = []
    for name in names:
        # A run of before a knob existed says nothing of it.
        known = (record["settings"] for records in by_run for record in records if name in record["settings"])
        values = dict.fromkeys(str(settings[name]) for settings in known)
        if len(values) > 1:
            found.append(f"{name} {', '.join(values)}")
    return found


def _warnings(runs: Sequence[Run]) -> list[str]:
    """What else than the run differs: machines, versions, lengths, and runs that are not complete."""
    said = [f"{run.id} is {run.status}: {run.reason or 'it has not ended'}" for run in runs if run.status != "complete"]
    return said + [f"{what} differ: {text}" for what, text in differences(runs).items()]


def differences(runs: Sequence[Run]) -> dict[str, str]:
    """What is not the same in all runs beside their points, each in words: `{"machine": "kernel 6.1 / 6.8"}`."""
    found = {}
    for what, of in (
        ("machine", _machine), ("broker versions", _versions), ("clients", _clients), ("loadgen", _tools),
        ("brokers’ settings", _set), ("lengths of trials", _lengths),
    ):  # fmt: skip
        told = [of(run) for run in runs]
        if len({json.dumps(each, sort_keys=True, default=str) for each in told}) > 1:
            found[what] = _differences(told)
    return found


def _differences(told: Sequence[dict[str, Any]]) -> str:
    """`kernel 6.1, 6.8; cores 2, 8`."""
    parts = []
    for name in dict.fromkeys(name for each in told for name in each):
        values = dict.fromkeys(str(each.get(name, "unknown")) for each in told)
        if len(values) > 1:
            parts.append(f"{name} {' / '.join(values)}")
    return "; ".join(parts)


def _machine(run: Run) -> dict[str, Any]:
    facts = {name: run.environment.get(name) for name in MACHINE}
    for part, names in (("cpu", CPU), ("disk", DISK)):
        facts |= {f"{part} {name}": (run.environment.get(part) or {}).get(name) for name in names}
    return facts


def _versions(run: Run) -> dict[str, Any]:
    return {name: broker.get("version") for name, broker in run.header["brokers"].items()}


def _set(run: Run) -> dict[str, Any]:
    """What is not as shipped, by its name; ports and folders are each start's own, and no setting that matters."""
    found = {}
    for name, broker in run.header["brokers"].items():
        for line in broker.get("deviations") or ():
            setting, _, value = line.partition(" = ")
            found[f"{name} {setting}"] = PLACES.sub("…", value.partition(" (")[0])
    return found


def _clients(run: Run) -> dict[str, Any]:
    """The client libraries; a wire driver's client is loadgen itself."""
    return _seen(run, lambda name, value: name == "client" and not value.startswith("loadgen "))


def _tools(run: Run) -> dict[str, Any]:
    return _seen(run, lambda name, _: name in {"loadgen", "python"})


def _seen(run: Run, fits: Callable[[str, str], bool]) -> dict[str, Any]:
    seen: dict[str, dict[str, None]] = {}
    for record in run.records:
        for name, value in (record["versions"] or {}).items():
            if value is not None and fits(name, str(value)):
                whose = f"{name} of {record['driver']}" if name == "client" else name
                seen.setdefault(whose, {})[str(value)] = None
    return {name: " and ".join(values) for name, values in sorted(seen.items())}


def _lengths(run: Run) -> dict[str, Any]:
    plan = run.header.get("plan") or {}
    return {name: plan.get(name) for name in ("warmup_s", "duration_s")}
