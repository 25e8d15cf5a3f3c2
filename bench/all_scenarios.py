"""Every scenario under scenarios/ that hurts no broker, on both brokers in profile quick: is each verdict valid?

    python bench/all_scenarios.py [FILE …] [--minutes 24.6] [--looks 3] [--strict] [--set key=value …] [--results DIR]

One line a scenario: its name, how long it took, and each broker's verdict, with the reason where it is not valid. A
broker's verdict is that of its worst point, a point's that of its best repeat: one repeat that a neighbour disturbed is
struck out, and the point stands on the others. Points at a broker's capacity and above are left out, as whether they
are carried is what they find out.

Each point is measured once. What is in doubt then is measured again, invalid verdicts first and then what takes least,
as long as there is time and at most as often as profile quick repeats a point; of a scenario's sweeps only the values
in doubt are. The brokers stay up, and are warm from one scenario to the next: half of the profile's warm-up is enough.

The exit status is 1 where a verdict stays invalid, a run did not come to its end, or time ran out; an unknown verdict
is told and passes, as it does for `loadgen run`, but with `--strict`.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen.errors import EXIT_INVALID, EXIT_OK, LoadgenError
from loadgen.load import apply_sets, load_scenarios, parse_set, scenario_files
from loadgen.plan import PROFILES, make_plan
from loadgen.record import is_required
from loadgen.report.words import broker_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadgen.endpoint import BrokerName
    from loadgen.scenario import Scenario

PROFILE = PROFILES["quick"]
MINUTES = 24.6
WARMUP_S = PROFILE.warmup_s / 2
RUN_S = 3.0  # what a run takes beside its trials: its start and its end (measured)
BROKERS: tuple[BrokerName, ...] = ("rabbitmq", "kafka")
ORDER = {"valid": 0, "unknown": 1, "invalid": 2}
WIND_UP_S, DOWN_S = 30.0, 120.0
RATE_KINDS = ("fixed", "poisson")  # those of which a sweep can be set by its values alone
RATE_SWEEPS = ("burst_times", "fraction")  # are a part of the rate, which is set as a whole


@dataclass(frozen=True)
class Look:
    """What is run of a scenario (with all that was set for it): its file, and what is set beside for this look."""

    path: Path
    scenario: Scenario
    sets: tuple[str, ...] = ()
    brokers: tuple[BrokerName, ...] = BROKERS
    repeats: int = 1

    @property
    def words(self) -> list[str]:
        """Behind `loadgen run FILE`."""
        words = ["--repeats", str(self.repeats), *(word for text in self.sets for word in ("--set", text))]
        return [*words, "--broker", *self.brokers] if len(self.brokers) == 1 else words

    @property
    def planned_s(self) -> float:
        """How long it takes by its plan, with all that a run takes beside; raises LoadgenError where it cannot be."""
        scenario = apply_sets(self.scenario, map(parse_set, self.sets))
        return make_plan([scenario], PROFILE, brokers=self.brokers, repeats=self.repeats).expected_s + RUN_S


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
    is_out_of_time: bool = False

    @property
    def is_good(self) -> bool:
        """Whether it came to its end and nothing is invalid."""
        return not self.failure and all(each.status != "invalid" for each in self.verdicts.values())

    @property
    def is_valid(self) -> bool:
        """Whether nothing is in doubt, either."""
        return not self.failure and all(each.status == "valid" for each in self.verdicts.values())

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


def run(look: Look, arguments: Sequence[str], timeout_s: float) -> Result:
    """Run one scenario file through the command line, and read what it says."""
    began_s = time.monotonic()
    words = ["run", str(look.path), "--profile", PROFILE.name, "--json", "--no-report", *arguments, *look.words]
    done = loadgen(words, timeout_s)
    seconds = time.monotonic() - began_s
    is_late = seconds >= timeout_s
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    why = "out of time" if is_late else last
    failure = "" if done.returncode in {EXIT_OK, EXIT_INVALID} else f"exit status {done.returncode}: {why}"
    try:
        document = json.loads(done.stdout)
    except ValueError:
        return Result(look.scenario.name, seconds, {}, failure or f"no result: {last}", is_out_of_time=is_late)
    if document["status"] != "complete" and not failure:
        failure = f"the run is {document['status']}: {why}"
    trials = tuple(document["trials"])
    return Result(look.scenario.name, seconds, verdicts(look.scenario, trials), failure, trials, is_late)


def first_look(path: Path, scenario: Scenario, sets: tuple[str, ...], repeats: int) -> Look:
    """All of a scenario, with half of the profile's warm-up where it has that much, and still has sense with less."""
    plain = Look(path, scenario, sets, repeats=repeats)
    short = replace(plain, sets=(f"warmup_s={WARMUP_S:g}", *sets))
    if scenario.warmup_s is not None or PROFILE.warmup_s * scenario.profile_share <= WARMUP_S:
        return plain
    try:
        return short if short.planned_s < plain.planned_s else plain
    except LoadgenError:  # a backlog has none, a burst may need it
        return plain


def second_look(first: Look, found: Result) -> Look:
    """What of a scenario is not valid yet, and as little beside it as the values of its sweeps leave.

    Where something is invalid, only that: what is unknown has the next look.
    """
    points = best_of_points(found.trials)
    invalid, unknown = ([each for each in points if _verdict(each).status == name] for name in ("invalid", "unknown"))
    doubtful = invalid or unknown
    brokers = tuple(name for name in BROKERS if any(trial["broker"] == name for trial in doubtful))
    reached = {trial["broker"] for trial in points}
    missed = [name for name, verdict in found.verdicts.items() if verdict.status != "valid" and name not in reached]
    if found.failure or missed:  # points that were not reached are none of those in doubt
        return replace(first, repeats=1)
    swept: dict[str, list[Any]] = {}
    for trial in doubtful:
        for name, value in trial["point"].items():
            if name == "msgs_per_s" and trial["rate"]["kind"] not in RATE_KINDS:
                continue
            values = swept.setdefault("rate" if name == "msgs_per_s" else name, [])
            values += [value] * (value not in values)
    sets = [f"{name}={json.dumps(values)}" for name, values in swept.items() if name not in RATE_SWEEPS]
    return replace(first, sets=(*first.sets, *sets), brokers=brokers, repeats=1)


def run_again(first: Result, look: Look, arguments: Sequence[str], timeout_s: float) -> Result:
    """A second look at what was not good: as with repeats, a point stands on the better of both.

    One that there was no time for to its end takes nothing from the first.
    """
    second = run(look, arguments, timeout_s)
    trials = (*first.trials, *second.trials)
    found = verdicts(look.scenario, trials)
    failure = first.failure if second.is_out_of_time else second.failure
    return Result(f"{look.scenario.name} (again)", second.seconds, found, failure, trials)


def expected_s(look: Look, first: Look, took_s: float) -> float:
    """How long a second look takes: by its plan, and by what the first one took beside its own.

    No plan knows how long a queue takes that is drained at a prefetch of 1.
    """
    return look.planned_s * took_s / first.planned_s


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
    parser.add_argument("--repeats", type=int, default=1, help="of each point at the first look (default: 1)")
    parser.add_argument("--looks", type=int, default=PROFILE.repeats, help="at a point in doubt, at most (default: 3)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where runs are kept")
    parser.add_argument("--strict", action="store_true", help="an unknown verdict fails as well")
    arguments = parser.parse_args(argv)
    began_s = time.monotonic()
    sets = [parse_set(text) for text in arguments.sets]
    found, results = _loaded(arguments.files or scenario_files(), sets)
    looks = [first_look(path, scenario, tuple(arguments.sets), arguments.repeats) for path, scenario in found]
    was_up = is_up()
    try:
        if not was_up and (done := loadgen(["up"], arguments.minutes * 60)).returncode:
            print(done.stderr.strip())
            return done.returncode
        end_s = began_s + arguments.minutes * 60
        results += _all(looks, ["--results", str(arguments.results)], end_s, arguments.looks)
    finally:
        if not was_up:
            loadgen(["down"], DOWN_S)
    good = sum(each.is_good for each in results)
    taken = (time.monotonic() - began_s) / 60
    print(
        f"{good} of {len(results)} scenarios came to their end without an invalid verdict; "
        f"{taken:.1f} minutes; {doubts(results)}"
    )
    passed = sum(each.is_valid for each in results) if arguments.strict else good
    return 0 if passed == len(results) else 1


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


def _all(looks: Sequence[Look], arguments: Sequence[str], end_s: float, most: int = PROFILE.repeats) -> list[Result]:
    """Every scenario once, and what is in doubt again, as long as there is time."""
    results: list[Result] = []
    for look in looks:
        left_s = end_s - time.monotonic()
        left_out = Result(look.scenario.name, 0.0, {}, "left out: the time is over")
        results.append(run(look, arguments, left_s) if left_s > 0 else left_out)
        print(results[-1].line(), flush=True)
    took_s = [result.seconds for result in results]
    for _ in range(1, most):
        doubtful = [number for number, result in enumerate(results) if result.trials and not result.is_valid]
        again = {number: second_look(looks[number], results[number]) for number in doubtful}
        needed_s = {number: expected_s(look, looks[number], took_s[number]) for number, look in again.items()}
        for number in sorted(again, key=lambda each: (results[each].is_good, needed_s[each])):
            left_s = end_s - time.monotonic()
            if left_s >= needed_s[number]:
                results[number] = run_again(results[number], again[number], arguments, left_s)
                print(results[number].line(), flush=True)
    return results


if __name__ == "__main__":
    raise SystemExit(main())
