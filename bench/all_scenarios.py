"""Every scenario under scenarios/ that hurts no broker, on both brokers in profile quick: is each verdict valid?

    python bench/all_scenarios.py [FILE …] [--minutes 25] [--repeats N] [--set key=value …] [--results FOLDER]

One line a scenario: its name, how long it took, and each broker's verdict, with the reason where it is not valid. A
broker's verdict is that of its worst point, a point's that of its best repeat: one repeat that a neighbour disturbed is
struck out, and the point stands on the others. Points at a broker's capacity and above are left out, as whether they
are carried is what they find out.

Each point is repeated as often as the time allows, at most as profile quick has it, and a scenario with an invalid
verdict is run once more where there is time left. The exit status is 1 where a verdict stays invalid, a run did not
come to its end, or time ran out; an unknown verdict is told and passes, as it does for `loadgen run`.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen.errors import EXIT_INVALID, EXIT_OK, LoadgenError
from loadgen.load import apply_sets, load_scenarios, parse_set, scenario_files
from loadgen.plan import PROFILES, make_plan
from loadgen.record import is_required
from loadgen.report.words import broker_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadgen.scenario import Scenario

PROFILE = PROFILES["quick"]
MINUTES = 25.0
PLANNED_SHARE = 0.8  # of the time, by the plans' own reckoning; the rest is for what they do not foresee
BROKERS = ("rabbitmq", "kafka")
ORDER = {"valid": 0, "unknown": 1, "invalid": 2}
WIND_UP_S, DOWN_S = 30.0, 120.0


@dataclass(frozen=True)
class Verdict:
    """A broker's in one scenario, with the reason where it is not valid."""

    status: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}" if self.reason else self.status


@dataclass(frozen=True)
class Result:
    """One scenario's run: verdicts by broker, and what ended it where it did not come to its end."""

    name: str
    seconds: float
    verdicts: dict[str, Verdict]
    failure: str = ""
    trials: tuple[dict[str, Any], ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether it came to its end and nothing is invalid."""
        return not self.failure and all(each.status != "invalid" for each in self.verdicts.values())

    def line(self) -> str:
        """For people."""
        told = [f"{broker_name(broker)} {self.verdicts.get(broker, 'not driven')}" for broker in BROKERS]
        if self.failure:
            told.append(self.failure)
        return f"{self.name:24} {self.seconds:4.0f} s  {' · '.join(told)}"


def verdicts(scenario: Scenario, trials: Iterable[dict[str, Any]]) -> dict[str, Verdict]:
    """Each driven broker's verdict over its points."""
    found: dict[str, list[Verdict]] = {broker: [] for broker in BROKERS if getattr(scenario, broker) is not None}
    for best in best_of_points(trials):
        found[best["broker"]].append(_verdict(best))
    return {broker: _worst(each) for broker, each in found.items()}


def best_of_points(trials: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each point the trial with the best verdict."""
    by_point: dict[str, list[dict[str, Any]]] = {}
    for trial in trials:
        if is_required(trial):
            parts = [trial["scenario"], trial["broker"], trial["driver"], trial["durability"], trial["point"]]
            by_point.setdefault(json.dumps(parts, default=str), []).append(trial)
    return [min(each, key=lambda trial: ORDER[_verdict(trial).status]) for each in by_point.values()]


def doubts(results: Iterable[Result]) -> str:
    """How many points are valid, and what cast doubt on the others, most frequent first."""
    points = [trial for each in results for trial in best_of_points(each.trials)]
    counted = Counter(_verdict(trial).status for trial in points)
    why = Counter(
        check["name"]
        for trial in points
        for check in trial["verdict"].get("checks", ())
        if check["passed"] is None and check.get("weighs", True) and _verdict(trial).status == "unknown"
    )
    told = ", ".join(f"{name} {count}" for name, count in why.most_common())
    return (
        f"of {len(points)} points {counted['valid']} are valid, {counted['unknown']} unknown"
        f"{f' ({told})' if told else ''}, {counted['invalid']} invalid"
    )


def _worst(found: Sequence[Verdict]) -> Verdict:
    return max(found, key=lambda each: ORDER[each.status], default=Verdict("invalid", "nothing was measured"))


def _verdict(trial: dict[str, Any]) -> Verdict:
    if trial["status"] != "complete":
        return Verdict("invalid", trial["error"] or f"the trial is {trial['status']}")
    verdict = trial["verdict"]
    reasons = verdict["reasons"] or ["no reason given"]
    return Verdict(verdict["status"], "" if verdict["status"] == "valid" else f"{reasons[0]} ({trial['id']})")


def loadgen(arguments: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run the tool; where it takes too long it is interrupted, and keeps what it has."""
    command = [sys.executable, "-m", "loadgen.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=WIND_UP_S)
    except BaseException:  # Ctrl-C reaches the tool as well, which ends in order
        process.communicate(timeout=WIND_UP_S)
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def run(path: Path, scenario: Scenario, arguments: Sequence[str], timeout_s: float) -> Result:
    """Run one scenario file through the command line, and read what it says."""
    began_s = time.monotonic()
    done = loadgen(["run", str(path), "--profile", PROFILE.name, "--json", *arguments], timeout_s)
    seconds = time.monotonic() - began_s
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    why = "out of time" if seconds >= timeout_s else last
    failure = "" if done.returncode in {EXIT_OK, EXIT_INVALID} else f"exit status {done.returncode}: {why}"
    try:
        document = json.loads(done.stdout)
    except ValueError:
        return Result(scenario.name, seconds, {}, failure or f"no result: {last}")
    if document["status"] != "complete" and not failure:
        failure = f"the run is {document['status']}: {why}"
    return Result(scenario.name, seconds, verdicts(scenario, document["trials"]), failure, tuple(document["trials"]))


def run_again(first: Result, path: Path, scenario: Scenario, arguments: Sequence[str], timeout_s: float) -> Result:
    """A second look at what was not good: as with repeats, a point stands on the better of both."""
    second = run(path, scenario, arguments, timeout_s)
    trials = (*first.trials, *second.trials)
    found = verdicts(scenario, trials)
    return Result(f"{scenario.name} (again)", second.seconds, found, second.failure, trials)


def repeats(scenarios: Sequence[Scenario], minutes: float) -> int:
    """How often each point can be repeated in so many minutes: at most as the profile has it, at least once."""
    for count in range(PROFILE.repeats, 1, -1):
        if sum(_planned_s(each, count) for each in scenarios) <= PLANNED_SHARE * minutes * 60:
            return count
    return 1


def _planned_s(scenario: Scenario, count: int) -> float:
    try:
        return make_plan([scenario], PROFILE, repeats=count).expected_s
    except LoadgenError:  # it says so by itself when it is run
        return 0.0


def is_up() -> bool:
    """Whether both brokers run already, so that they are left running."""
    rows = json.loads(loadgen(["status", "--json"], 60).stdout)
    return all(row["running"] for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run them all; the value is the exit status."""
    parser = argparse.ArgumentParser(description="Run every scenario in profile quick and look at the verdicts.")
    parser.add_argument("files", nargs="*", type=Path, help="scenario files (default: all)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all together")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE", help="for each of them")
    parser.add_argument("--repeats", type=int, help="of each point (default: as many as there is time for)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where runs are kept")
    arguments = parser.parse_args(argv)
    began_s = time.monotonic()
    sets = [parse_set(text) for text in arguments.sets]
    found, results = _loaded(arguments.files or scenario_files(), sets)
    count = arguments.repeats or repeats([scenario for _, scenario in found], arguments.minutes)
    shared = ["--repeats", str(count), "--results", str(arguments.results)]
    shared += [word for text in arguments.sets for word in ("--set", text)]
    was_up = is_up()
    try:
        if not was_up and (done := loadgen(["up"], arguments.minutes * 60)).returncode:
            print(done.stderr.strip())
            return done.returncode
        results += _all(found, shared, began_s + arguments.minutes * 60)
    finally:
        if not was_up:
            loadgen(["down"], DOWN_S)
    good = sum(each.is_good for each in results)
    taken = (time.monotonic() - began_s) / 60
    print(
        f"{good} of {len(results)} scenarios came to their end without an invalid verdict; "
        f"{count} × each point, {taken:.1f} minutes; {doubts(results)}"
    )
    return 0 if good == len(results) else 1


def _loaded(files: Iterable[Path], sets: Sequence[tuple[str, Any]]) -> tuple[list[tuple[Path, Scenario]], list[Result]]:
    """The scenarios, and a line for each file that cannot be used."""
    found: list[tuple[Path, Scenario]] = []
    broken: list[Result] = []
    for path in files:
        try:
            # What hurts brokers is no matter of verdicts, and takes minutes of its own.
            found += [(path, apply_sets(each, sets)) for each in load_scenarios(path) if not each.faults]
        except LoadgenError as error:
            broken.append(Result(path.stem, 0.0, {}, str(error)))
            print(broken[-1].line(), flush=True)
    return found, broken


def _all(found: Sequence[tuple[Path, Scenario]], shared: Sequence[str], end_s: float) -> list[Result]:
    """Every scenario once, and those that were not good once more, as long as there is time."""
    results: list[Result] = []
    for path, scenario in found:
        left_s = end_s - time.monotonic()
        left_out = Result(scenario.name, 0.0, {}, "left out: the time is over")
        results.append(run(path, scenario, shared, left_s) if left_s > 0 else left_out)
        print(results[-1].line(), flush=True)
    for number, (path, scenario) in enumerate(found):
        left_s = end_s - time.monotonic()
        if results[number].is_good or left_s < results[number].seconds or not results[number].trials:
            continue
        results[number] = run_again(results[number], path, scenario, shared, left_s)
        print(results[number].line(), flush=True)
    return results


if __name__ == "__main__":
    raise SystemExit(main())
