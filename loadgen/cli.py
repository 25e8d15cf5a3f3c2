"""The command line: thin. It parses, calls, prints, and turns errors into one line and an exit status."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from loadgen import commands
from loadgen.arguments import BROKER_NAMES, make_parser
from loadgen.console import Console, forget_interrupt
from loadgen.errors import (
    EXIT_CANNOT_TELL,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    HostError,
    LoadgenError,
    ScenarioError,
)
from loadgen.redaction import without_userinfo

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from loadgen.endpoint import BrokerName

COMPARE_SCENARIOS = (
    "throughput",
    "clients",
    "latency",
    "scaling",  # several producers and places at once: the evidence for order, too
    "uses/use_task_queue",
    "uses/use_rpc",
    "event_stream",
    "uses/use_log_aggregation",
)


class _Parser(argparse.ArgumentParser):
    """Argparse with the design's exit status for usage errors, and one line."""

    def error(self, message: str) -> Any:  # argparse gives NoReturn
        print(f"loadgen: {without_userinfo(message)}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def _names(arguments: argparse.Namespace) -> tuple[BrokerName, ...]:
    return cast("tuple[BrokerName, ...]", (arguments.broker,) if arguments.broker else BROKER_NAMES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the value is the exit status."""
    arguments = make_parser(_Parser).parse_args(argv)
    arguments.words = sys.argv[1:] if argv is None else argv
    console = Console()
    try:
        return _COMMANDS[arguments.command](arguments, console)
    except LoadgenError as error:
        console.clear()
        if arguments.debug:
            raise
        print(f"loadgen: {without_userinfo(str(error))}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more would end the interpreter's own end, with a traceback
        forget_interrupt()
        console.clear()
        print("loadgen: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `loadgen list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _up(arguments: argparse.Namespace, console: Console) -> int:
    from loadgen import brokers

    brokers.up(arguments.brokers, _names(arguments), nodes=arguments.nodes, progress=console.message)
    return _status(arguments, console)


def _down(arguments: argparse.Namespace, console: Console) -> int:
    from loadgen import brokers

    ended = brokers.down(arguments.brokers, _names(arguments), progress=console.message)
    if arguments.json:
        print(json.dumps(ended, indent=1))
    else:
        for broker in dict.fromkeys(each["broker"] for each in ended):  # a broker may be several processes
            print(f"{broker}: stopped")
        if not ended:
            print("nothing was running")
    return 0


def _status(arguments: argparse.Namespace, console: Console) -> int:
    from loadgen import brokers

    told = brokers.status(arguments.brokers, progress=console.message)
    rows = [row for row in told if row["broker"] in _names(arguments)]
    if arguments.json:
        print(json.dumps(rows, indent=1))
    for row in [] if arguments.json else rows:
        print(brokers.in_words(row))
    return EXIT_UNAVAILABLE if any("error" in row for row in rows) else 0


def _probe(arguments: argparse.Namespace, console: Console) -> int:
    from loadgen.outcome import exit_status
    from loadgen.plan import Plan, Profile
    from loadgen.probes import NAMES, load_probe
    from loadgen.report import render_run

    names = tuple(name.replace("-", "_") for name in arguments.probes) or NAMES
    for name in names:
        load_probe(name)
    if arguments.brokers == "memory":
        raise ScenarioError("--brokers memory: is no broker that could be asked; expected local, docker or URLs")
    plan = Plan((), (), Profile("probe", 0.0, 0.0, arguments.repeats), arguments.repeats, 1, _names(arguments))
    run = _carry_out(plan, "probe", arguments, console, probes=names)
    findings = run.header["findings"]
    if arguments.json:
        print(json.dumps({"path": str(run.path), "status": run.status, "findings": findings}, indent=1))
    else:
        print(render_run(run))
    return max(exit_status(run), _write_report(run, console))


def _make_plan(arguments: argparse.Namespace) -> Any:
    from loadgen.load import apply_sets, load_scenarios, parse_set
    from loadgen.plan import PROFILES, make_plan

    paths = _paths(arguments)
    sets = [parse_set(text) for text in arguments.sets]
    scenarios = [
        apply_sets(scenario, sets) if sets else scenario for path in paths for scenario in load_scenarios(path)
    ]
    once = 1 if getattr(arguments, "duration", None) else None  # hours three times over nobody asked for
    return make_plan(
        [_lasting(scenario, arguments) for scenario in scenarios],
        PROFILES[arguments.profile],
        brokers=_names(arguments),
        repeats=arguments.repeats or once,
        seed=arguments.seed,
    )


def _lasting(scenario: Any, arguments: argparse.Namespace) -> Any:
    """The scenario with the window that was asked for."""
    from loadgen.load import apply_sets

    duration_s = getattr(arguments, "duration", None)
    return scenario if duration_s is None else apply_sets(scenario, [("duration_s", duration_s)])


def _fleet(arguments: argparse.Namespace) -> Any:
    """The fleet that was asked for; None is one of this machine's processes."""
    given = {
        "--expect-workers": getattr(arguments, "expect_workers", None),
        "--expect-workers-max-wait": getattr(arguments, "expect_workers_max_wait", None),
        "--bind": getattr(arguments, "bind", None),
    }
    if getattr(arguments, "fleet", "local") != "locust":
        if stray := next((name for name, value in given.items() if value is not None), None):
            raise ScenarioError(f"{stray}: is of --fleet locust, which was not given")
        return None
    from loadgen.load import fingerprint, load_scenarios
    from loadgen.locust.roster import Asked, parse_bind

    workers, wait_s, bind = given.values()
    prints = {each.name: fingerprint(each) for path in _paths(arguments) for each in load_scenarios(path)}
    host, port = parse_bind(bind or "127.0.0.1")
    return Asked(workers or 1, prints, host, port, float(wait_s or 60))


def _paths(arguments: argparse.Namespace) -> list[Path]:
    """The scenario files that are to be run."""
    from loadgen.load import scenario_file

    return getattr(arguments, "scenarios", None) or [scenario_file(name) for name in COMPARE_SCENARIOS]


def _plan(arguments: argparse.Namespace, console: Console) -> int:
    from loadgen.cost import in_words
    from loadgen.host import disk_free
    from loadgen.sites import disk_dir

    del console
    plan = _make_plan(arguments)
    if arguments.json:
        print(json.dumps(plan.describe(), indent=1, default=str))
        return 0
    for trial in plan.trials:
        print(trial.describe())
    print(in_words(plan))
    plan.refuse_over_half_of(disk_free(disk_dir(arguments.brokers)))
    return 0


def _run(arguments: argparse.Namespace, console: Console) -> int:
    plan = _make_plan(arguments)
    is_compared = arguments.command == "compare"
    if is_compared and arguments.faults is not None:
        from loadgen.analysis.faulted import refuse_absent

        refuse_absent(arguments.faults, arguments.results)
    from loadgen.probes import COMPARED, asked_under_faults

    name = "compare" if is_compared else "-".join(each.name for each in plan.scenarios)
    # A power cut cannot be had here: where faults hit a class that speaks of one, its flushes are counted.
    hurt = asked_under_faults(str(trial.durability) for trial in plan.trials if trial.faults)
    probes = (*(COMPARED if is_compared else ()), *hurt)
    # Queues in memory are no broker that could be asked.
    return _execute(plan, name, arguments, console, probes=probes if arguments.brokers != "memory" else ())


def _ab(arguments: argparse.Namespace, console: Console) -> int:
    from loadgen.load import load_variants
    from loadgen.outcome import exit_status
    from loadgen.plan import PROFILES, make_ab_plan
    from loadgen.stats.power import EFFECT_RATIO

    a, b = load_variants(arguments.scenarios, arguments.sets)
    plan = make_ab_plan(
        _lasting(a, arguments),
        _lasting(b, arguments),
        PROFILES[arguments.profile],
        brokers=_names(arguments),
        repeats=arguments.repeats,
        seed=arguments.seed,
        effect_ratio=arguments.effect or EFFECT_RATIO,
    )
    run = _carry_out(plan, f"ab-{a.name}", arguments, console)
    told = _print_ab(run, arguments.json)
    return max(exit_status(run), EXIT_OK if told else EXIT_CANNOT_TELL, _write_report(run, console))


def _print_ab(run: Any, as_json: bool) -> bool:
    """Print what an A/B run found; the value is whether every point's first question is answered."""
    from loadgen.analysis.ab import compare_variants, effect_of, multiplicity, sentences
    from loadgen.record import plain

    effect = effect_of(run)
    compared = compare_variants(run, effect)
    if as_json:
        rows = [{**asdict(each), "sentences": sentences(each, effect)} for each in compared]
        print(json.dumps({"path": str(run.path), "compared": plain(rows)}, indent=1))
    for each in [] if as_json else compared:
        where = "".join(f", {name} {value}" for name, value in each.point.items())
        print(f"{each.broker} ({each.driver}){where}")
        for sentence in sentences(each, effect):
            print(f"  {sentence}")
        if each.struck:
            print(f"  {each.struck} trials were struck out: see the report")
    if not as_json:
        print(f"The first line of each answers the question. {multiplicity(compared)}")
    return all(each.effects[0].is_told for each in compared)


def _decide(arguments: argparse.Namespace, console: Console) -> int:
    from loadgen.cost import in_words
    from loadgen.deciding import demand_plan, demand_scenarios, with_sets
    from loadgen.demand import Demand
    from loadgen.load import parse_set
    from loadgen.plan import PROFILES

    demand = Demand(arguments.rate, arguments.size, arguments.p99, arguments.survive, arguments.subscribers)
    profile = PROFILES[arguments.profile]
    scenarios = demand_scenarios(
        demand,
        profile,
        producers=arguments.producers,
        consumers=arguments.consumers,
        duration_s=arguments.duration,
        is_hurt=arguments.brokers == "local",
    )
    plan = demand_plan(
        demand,
        with_sets(scenarios, [parse_set(text) for text in arguments.sets]),
        profile,
        brokers=_names(arguments),
        repeats=arguments.repeats,
        seed=arguments.seed,
    )
    console.message(in_words(plan))
    return _execute(plan, "decide", arguments, console)


def _rerun(arguments: argparse.Namespace, console: Console) -> int:
    from loadgen.engine import pins_of, plan_of
    from loadgen.runs import load

    earlier = load(arguments.run, arguments.results)
    plan = plan_of(earlier, _names(arguments))
    probes = tuple(earlier.header["plan"].get("probes") or ())
    return _execute(plan, earlier.header["name"], arguments, console, pins_of(earlier), probes)


def _execute(
    plan: Any,
    name: str,
    arguments: argparse.Namespace,
    console: Console,
    pins: Any = None,
    probes: tuple[str, ...] = (),
) -> int:
    from loadgen.outcome import exit_status

    run = _carry_out(plan, name, arguments, console, pins, probes)
    status, other = exit_status(run), None
    try:
        other = _faulted(run, arguments)
    except ScenarioError as error:  # what was measured is reported all the same
        console.message(f"loadgen: {error}")
        status = max(status, error.exit_status)
    is_told = _print_run(run, arguments.json, other)
    written = EXIT_OK if getattr(arguments, "no_report", False) else _write_report(run, console, other)
    return max(status, EXIT_OK if is_told else EXIT_CANNOT_TELL, written)


def _faulted(run: Any, arguments: argparse.Namespace) -> Any:
    """Another run whose trials with faults are to be cited; None where nobody asked for one."""
    from loadgen.analysis.faulted import faulted_run

    wanted = getattr(arguments, "faults", None)
    return None if wanted is None else faulted_run(run, wanted, arguments.results)


def _carry_out(
    plan: Any,
    name: str,
    arguments: argparse.Namespace,
    console: Console,
    pins: Any = None,
    probes: tuple[str, ...] = (),
) -> Any:
    """Run a plan, and after it the probes; the value is the run."""
    from loadgen.engine import Options, execute

    options = Options(
        name=name,
        command=_public_command(arguments),
        results=arguments.results,
        brokers=arguments.brokers,
        cpus_broker=getattr(arguments, "cpus_broker", None),
        cpus_client=getattr(arguments, "cpus_client", None),
        pins=pins,
        prometheus=getattr(arguments, "prometheus", None),
        fleet=_fleet(arguments),
        probes=probes,
    )
    run = execute(plan, options, console)
    console.clear()
    return run


def _write_report(run: Any, console: Console, other: Any = None) -> int:
    """Write the report beside what was printed already."""
    from loadgen.report import write_report

    return _written(lambda: write_report(run, other), console)


def _written(write: Callable[[], dict[str, Path]], console: Console) -> int:
    """Tell where a page was written; where the disk refuses it, that is a warning and a status."""
    try:
        console.message(f"report: {write()['html']}")
    except HostError as error:
        console.message(f"loadgen: no report was written: {error}")
        return error.exit_status
    return 0


def _public_command(arguments: argparse.Namespace) -> list[str]:
    """The command line as it may be recorded: its URLs without user and password."""
    from loadgen.brokers import public_spec

    public = public_spec(arguments.brokers)
    return ["loadgen", *(without_userinfo(word.replace(arguments.brokers, public)) for word in arguments.words)]


def _print_run(run: Any, as_json: bool, other: Any = None) -> bool:
    """Print what a run found; the value is whether it tells what it was asked, where that was one thing."""
    from loadgen.analysis.decision import decide
    from loadgen.record import plain
    from loadgen.report import render_decision, render_run

    if (run.header.get("plan") or {}).get("is_ab"):
        return _print_ab(run, as_json)
    decision = decide(run)
    told = {} if decision is None else {"decision": plain({**decision.described(), "said": render_decision(decision)})}
    if as_json:
        print(json.dumps({"path": str(run.path), "status": run.status, **told, "trials": run.records}, indent=1))
    else:
        print(render_run(run, other))
    return decision is None or decision.is_told


def _report(arguments: argparse.Namespace, console: Console) -> int:
    from loadgen.runs import load

    runs = [load(name, arguments.results) for name in arguments.runs or ["latest"]]
    if len(runs) > 1:
        return _compare_runs(runs, arguments.json, console)
    other = _faulted(runs[0], arguments)
    _print_run(runs[0], arguments.json, other)
    return _write_report(runs[0], console, other)


def _compare_runs(runs: list[Any], as_json: bool, console: Console) -> int:
    from loadgen.analysis.across import compare_runs
    from loadgen.record import plain
    from loadgen.report import render_across, write_comparison

    found = compare_runs(runs)
    print(json.dumps(plain(asdict(found)), indent=1) if as_json else render_across(found))
    return _written(lambda: write_comparison(runs, found), console)


_COMMANDS = {
    "up": _up,
    "down": _down,
    "status": _status,
    "list": commands.list_scenarios,
    "run": _run,
    "plan": _plan,
    "compare": _run,
    "ab": _ab,
    "decide": _decide,
    "probe": _probe,
    "rerun": _rerun,
    "report": _report,
    "check": commands.check_run,
    "baseline": commands.baseline,
    "runs": commands.runs,
    "history": commands.history,
    "doctor": commands.doctor,
}

if __name__ == "__main__":
    raise SystemExit(main())
