"""One point over runs: has it become slower since, and what was changed in between?

A run's value is the median of its repeats with the interval of `loadgen.stats.confidence`, whose unit is the repeat,
and a step is the ratio to the run before (`unpaired_ratio`: repeats of different runs are no pairs). It is any quantity
of any number of runs, where `loadgen.analysis.across` holds runs against one of them. **Runs are not interleaved.**
What the machine did on either day lies in a step, and no interval knows of it. So a step is a reason to look, and to
ask with both sides in turn (`loadgen ab`); what was set otherwise in between is listed beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadgen.errors import ScenarioError
from loadgen.record import number_of, point_label
from loadgen.stats.confidence import Estimate, Ratio, estimate, unpaired_ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from loadgen.record import Record
    from loadgen.run import Run


@dataclass(frozen=True, slots=True)
class Moment:
    """What one run says of a point: its repeats; over the run before, the step, and what was set otherwise.

    `step` is None in the first run, `changed` empty; a change is `name: before → now`. `revision` is the
    commit that the run is about (`Run.revision`).
    """

    run_id: str
    created_utc: str
    estimate: Estimate
    step: Ratio | None
    changed: tuple[str, ...]
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class History:
    """A point of a scenario (`record.point_label`) in every run that has usable trials of it, the oldest first."""

    point: str
    broker: str
    measure: str
    moments: tuple[Moment, ...]


def histories(runs: Sequence[Run], measure: str = "e2e_p99_ns", **where: Any) -> list[History]:
    """The history of every point that has this quantity.

    Args:
        runs: in the order of time, as `loadgen.load_runs` gives them.
        measure: a column of `Run.trials` that holds numbers, such as `goodput_msgs_per_s`.
        where: columns of `Run.trials` and their values.

    Raises:
        ScenarioError: no run has a usable trial that fits, or none has this quantity.
    """
    gathered: dict[str, dict[str, list[Record]]] = {}
    refused: ScenarioError | None = None
    by_id = {run.id: run for run in runs}
    for run in runs:
        try:
            records = run.select(**where)
        except ScenarioError as error:
            refused = error
            continue
        for record in records:
            if number_of(record, measure) is not None:
                gathered.setdefault(point_label(record), {}).setdefault(run.id, []).append(record)
    if not gathered:
        raise refused or ScenarioError(f"{measure}: no trial of these runs has it as a number; see run.trials.columns")
    found = []
    for point, by_run in gathered.items():
        moments: list[Moment] = []
        before: dict[str, Any] | None = None
        for run_id, records in by_run.items():
            run = by_id[run_id]
            now = _setting(run, records[0])
            changed = () if before is None else _changes(before, now)
            values = estimate(number_of(record, measure) for record in records)
            step = unpaired_ratio(values.values, moments[-1].estimate.values) if moments else None
            moments.append(Moment(run_id, str(run.header.get("created_utc")), values, step, changed, run.revision))
            before = now
        found.append(History(point, str(next(iter(by_run.values()))[0]["broker"]), measure, tuple(moments)))
    return found


def history(runs: Sequence[Run], measure: str = "e2e_p99_ns", **where: Any) -> pd.DataFrame:
    """`histories` as a frame: one row a point and run, `low` and `high` missing where a run has but one repeat.

    `step` is the ratio of geometric means to the run before with its 95 % interval, and `is_shown` whether that
    excludes 1; each step by itself: among many some are shown by chance.
    """
    import pandas as pd  # noqa: PLC0415 - half a second of import, for who asks for frames

    rows = [
        {
            "point": each.point,
            "created_utc": moment.created_utc,
            "run": moment.run_id,
            "median": moment.estimate.median,
            "low": moment.estimate.low,
            "high": moment.estimate.high,
            "repeats": moment.estimate.n,
            **_step(moment.step),
            "changed": "; ".join(moment.changed),
        }
        for each in histories(runs, measure, **where)
        for moment in each.moments
    ]
    frame = pd.DataFrame(rows)
    frame["created_utc"] = pd.to_datetime(frame["created_utc"], format="ISO8601", utc=True)
    return frame


def _step(step: Ratio | None) -> dict[str, Any]:
    if step is None:
        return {"step": None, "step_low": None, "step_high": None, "is_shown": False}
    is_shown = step.direction != "no difference shown"
    return {"step": step.ratio, "step_low": step.low, "step_high": step.high, "is_shown": is_shown}


def _setting(run: Run, record: Record) -> dict[str, Any]:
    """All that a history would be read wrong without: the broker's knobs, what ran, and where."""
    broker = (run.header["brokers"] or {}).get(record["broker"]) or {}
    cpu = run.environment.get("cpu") or {}
    return {
        **{f"{record['broker']}.{name}": value for name, value in record["settings"].items()},
        "producers": record["producers"],
        "consumers": record["consumers"],
        "window_s": record["window_s"],
        "broker version": broker.get("version"),
        "loadgen": (run.environment.get("git") or {}).get("revision"),
        "CPU": cpu.get("model"),
        "cores": cpu.get("cores"),
        "kernel": run.environment.get("kernel"),
    }


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"{name}: {before.get(name)} → {now.get(name)}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    )
