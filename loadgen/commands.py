"""Commands that only read: what there is, and what runs on disk say. None of them touches a broker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from loadgen.errors import EXIT_HOST, EXIT_OK, LoadgenError, ScenarioError

if TYPE_CHECKING:
    import argparse

    from loadgen.console import Console


def list_scenarios(arguments: argparse.Namespace, _: Console) -> int:
    """Scenarios and probes, with the question that each one asks."""
    from loadgen.load import load_scenarios, scenario_files
    from loadgen.probes import NAMES, load_probe

    rows = [
        {"file": str(path), "name": scenario.name, "question": scenario.question}
        for path in scenario_files()
        for scenario in load_scenarios(path)
    ]
    if not rows:
        raise ScenarioError("no scenarios in ./scenarios: run it in loadgen's checkout")
    rows += [{"probe": name, "name": name, "question": load_probe(name).question} for name in NAMES]
    if arguments.json:
        print(json.dumps(rows, indent=1))
    for row in [] if arguments.json else rows:
        print(f"{row.get('file') or 'probe ' + row['name']:38} {row['question']}")
    return 0


def check_run(arguments: argparse.Namespace, _: Console) -> int:
    """A run held against limits and a baseline."""
    from loadgen.gate.baselines import find
    from loadgen.gate.checking import check, write, write_refusal
    from loadgen.gate.limits import read_limits
    from loadgen.outcome import exit_status
    from loadgen.runs import load

    files = {name: getattr(arguments, name) for name in ("junit", "summary", "bencher", "benchmark_action")}
    try:
        limits, run = read_limits(arguments.thresholds), load(arguments.run, arguments.results)
        places = arguments.baselines, arguments.results
        baseline = find(arguments.baseline, *places, but=run) if arguments.baseline else None
        found = check(run, baseline, limits, is_invalid=exit_status(run) != EXIT_OK, allowed=arguments.allow)
    except LoadgenError as error:
        write_refusal(str(arguments.run), str(error), files)
        raise
    print(json.dumps(found.described(), indent=1) if arguments.json else "\n".join(found.lines))
    write(found, files)
    return found.exit_status


def baseline(arguments: argparse.Namespace, console: Console) -> int:
    """Keep a run by a name, or list those that are kept."""
    from loadgen.gate.baselines import in_words, save, saved
    from loadgen.gate.checking import INVALID, RefusedError
    from loadgen.outcome import exit_status
    from loadgen.runs import load

    if arguments.action == "save":
        run = load(arguments.run, arguments.results)
        if exit_status(run) != EXIT_OK:
            raise RefusedError(f"{run.id}: {INVALID}: not kept; measure it again")
        console.message(f"kept as {save(run, arguments.name, arguments.baselines, replaces=arguments.replace)}")
        return EXIT_OK
    rows = saved(arguments.baselines)
    print(json.dumps(rows, indent=1) if arguments.json else "\n".join(map(in_words, rows)) or "none is saved")
    return EXIT_OK


def runs(arguments: argparse.Namespace, console: Console) -> int:
    """List, tag and remove runs."""
    from loadgen import store
    from loadgen.runs import load

    if arguments.action in {"tag", "untag"}:
        run = load(arguments.run, arguments.results)
        now = store.tag(run, arguments.name, is_on=arguments.action == "tag")
        console.message(f"{run.id}: {', '.join(now) or 'no tag'}")
        return EXIT_OK
    found = store.stored(arguments.results)
    if arguments.action == "prune":
        gone = store.superfluous(found, arguments.keep)
        for run in gone:
            print(f"{'removed' if arguments.yes else 'would be removed'}: {store.in_words(store.described(run))}")
        if arguments.yes:
            store.remove(gone)
        elif gone:
            console.message("nothing was removed: --yes does")
        return EXIT_OK
    rows = [store.described(run) for run in found]
    print(json.dumps(rows, indent=1) if arguments.json else "\n".join(map(store.in_words, rows)) or "no runs")
    return EXIT_OK


def history(arguments: argparse.Namespace, _: Console) -> int:
    """Each point over runs, and where its level changed."""
    from loadgen.analysis.changes import change_points, runs_least
    from loadgen.analysis.history import histories
    from loadgen.report.history import lines, rows
    from loadgen.runs import load_runs

    found = histories(load_runs(arguments.pattern), arguments.metric)
    tested = max(1, sum(len(each.moments) >= runs_least() for each in found))
    told = [(each, change_points(each, tested)) for each in found]
    if arguments.json:
        print(json.dumps(rows(told), indent=1))
    else:
        print("\n".join(lines(told, runs_least(tested))))
    return EXIT_OK


def doctor(arguments: argparse.Namespace, _: Console) -> int:
    """Is this machine ready?"""
    from loadgen.doctor import examine

    findings = examine()
    if arguments.json:
        print(json.dumps(findings, indent=1))
    for each in [] if arguments.json else findings:
        print(f"{each['status']:8} {each['what']}: {each['text']}")
    return 0 if all(each["status"] != "missing" for each in findings) else EXIT_HOST
