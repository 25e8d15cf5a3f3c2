"""The command line's words: commands, their options, and what they take. Nothing here does anything."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.times import seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BROKER_NAMES = ("rabbitmq", "kafka")
SURVIVE = ("nothing", "broker", "power", "node", "node+power")
"""What a confirmed message is to survive, in the words of `loadgen decide`; one for each durability class."""

EXAMPLES = {
    "up": "loadgen up",
    "down": "loadgen down",
    "status": "loadgen status",
    "list": "loadgen list",
    "run": "loadgen run scenarios/latency.py --broker kafka --set kafka.linger_ms=0,5,20 --set rate=2000",
    "plan": "loadgen plan scenarios/task_queue.py",
    "compare": "loadgen compare --profile standard",
    "ab": "loadgen ab scenarios/latency.py --broker kafka --set kafka.linger_ms=0 --set kafka.linger_ms=5",
    "decide": "loadgen decide --rate 2000 --size 1024 --p99 50ms --survive broker",
    "probe": "loadgen probe message-size delivery",
    "rerun": "loadgen rerun latest",
    "report": "loadgen report latest",
    "check": "loadgen check latest --baseline main",
    "baseline save": "loadgen baseline save main",
    "baseline list": "loadgen baseline list",
    "runs list": "loadgen runs list",
    "runs tag": "loadgen runs tag release-1 latest",
    "runs untag": "loadgen runs untag release-1 latest",
    "runs prune": "loadgen runs prune --keep 20",
    "history": "loadgen history 'results/*-latency' --metric e2e_p50_ns",
    "doctor": "loadgen doctor",
}
"""A line for each command that does something, as a person types it."""


def make_parser(kind: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """All commands, by a parser that tells mistakes in its own way."""
    parser = kind(
        prog="loadgen",
        description="Measure and load-test RabbitMQ and Apache Kafka side by side.",
        epilog="Exit status: 0 good, 1 `check` found a limit missed, 2 a run was cut short or some point of it has no "
        "valid trial or finding, 3 `ab`, `decide` or `check` cannot tell, 64 a usage error, 69 a broker cannot be had, "
        "71 the machine lacks something, 130 interrupted.",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=kind)
    for name, sources, text in (
        ("up", ("local", "docker", "URL…"), "install on first use, start, and leave running"),
        ("down", ("local", "docker"), "stop what runs, and whatever a killed run left"),
        ("status", ("local", "docker", "URL…"), "what runs, where, since when"),
    ):
        command = commands.add_parser(name, help=f"brokers: {text}")
        _add_brokers(command, sources)
        command.add_argument("--json", action="store_true", help="for machines")
        if name == "up":
            nodes = "of each broker: 3 is a cluster, for classes that survive the loss of a node (default: 1)"
            command.add_argument("--nodes", type=int, choices=(1, 3), default=1, help=nodes)
    command = commands.add_parser("list", help="scenarios and probes, with the question that each one asks")
    command.add_argument("--json", action="store_true", help="for machines")
    for name, text in (
        ("run", "run scenarios and write a run to results/"),
        ("plan", "what a run would do: trials, minutes, bytes on disk"),
        ("compare", "the suite behind the RabbitMQ-vs-Kafka table, and its report"),
    ):
        command = commands.add_parser(name, help=text)
        _add_run(command, scenarios=name != "compare")
        if name == "compare":
            _add_faults(command)
        if name != "plan":
            _add_prometheus(command)
            _add_fleet(command)
        if name == "run":
            command.add_argument(
                "--no-report", action="store_true", help="figures alone: `loadgen report RUN` writes the report later"
            )
    command = commands.add_parser(
        "ab",
        help="two configurations interleaved: the effect, with its interval",
        description="A against B: two scenario files (each --set holds for both), or one file with one --set (B's; A "
        "is the file as it is) or two (A's, then B's). A --set may hold several: 'kafka.linger_ms=5 producers=2'.",
    )
    _add_run(command, scenarios=True)
    _add_prometheus(command)
    command.add_argument("--effect", type=_effect, metavar="PERCENT", help="effect worth finding (default: 10)")
    _add_decide(commands)
    _add_probe(commands)
    command = commands.add_parser("rerun", help="the same trials again, exactly")
    command.add_argument("run", help="a run's folder or id, or `latest`")
    _add_brokers(command)
    _add_prometheus(command)
    _add_output(command)
    _add_report(commands)
    _add_gate(commands)
    _add_store(commands)
    command = commands.add_parser("doctor", help="is this machine ready, and fit to measure on?")
    command.add_argument("--json", action="store_true", help="for machines")
    _add_examples(parser)
    return parser


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A command's parser, and those of the commands below it."""
    yield parser
    for action in parser._actions:  # noqa: SLF001 - argparse tells its options in no other way
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for each in action.choices.values():
                yield from parsers(each)


def _add_examples(parser: argparse.ArgumentParser) -> None:
    for each in parsers(parser):
        if example := EXAMPLES.get(each.prog.partition(" ")[2]):
            each.epilog = f"Example: {example}"


SOURCES = {
    "local": "private ones in .brokers/ (default)",
    "docker": "docker compose",
    "memory": "none",
    "URL…": "amqp[s]://host:port/vhost and kafka[+tls]://host:port, separated by blanks or commas",
}


def _add_brokers(command: argparse.ArgumentParser, sources: Sequence[str] = tuple(SOURCES)) -> None:
    command.add_argument(
        "--brokers",
        default="local",
        metavar="|".join(sources),
        help="where the brokers come from: " + "; ".join(f"{name}: {SOURCES[name]}" for name in sources),
    )
    command.add_argument("--broker", choices=BROKER_NAMES, help="only this one")


def _add_probe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "probe",
        help="ask what no load shows: limits, retention, protocols, connections, what it takes to begin",
        description="Ask each broker by a few messages, and hold the answer against the broker's own word "
        "(`loadgen list` names the probes); `loadgen compare` asks all of them after its trials.",
    )
    command.add_argument("probes", nargs="*", metavar="PROBE", help="which ones (default: all)")
    _add_brokers(command)
    command.add_argument(
        "--repeats", type=_positive, default=3, metavar="N", help="of what varies from start to start (default: 3)"
    )
    _add_output(command)


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="where runs are kept (default: results)"
    )
    command.add_argument("--json", action="store_true", help="results for machines, on stdout")


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("report", help="write a run's report again and print its table, or compare runs")
    command.add_argument(
        "runs", nargs="*", metavar="RUN", help="a run's folder or id (default: latest); several: their points beside "
        "each other, against the first one's",
    )  # fmt: skip
    _add_faults(command)
    _add_output(command)


ALLOWED = ("machine", "versions", "scenario", "invalid")


def _add_gate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "check",
        help="hold a run against limits and a baseline: 1 missed, 2 the run is invalid, 3 cannot tell",
        description="Absolute limits and ones against a baseline, from a TOML file (docs/gate.md); without one, that "
        "nothing is lost or corrupted, and rates and latencies are no worse than the baseline's.",
    )
    _add_which(command)
    command.add_argument("--baseline", metavar="NAME|RUN|DIR", help="saved by `loadgen baseline save`, a run, or the "
                         "newest earlier one of the same points in a folder of runs")  # fmt: skip
    command.add_argument("--thresholds", type=Path, metavar="FILE", help="limits, in TOML")
    command.add_argument("--allow", type=_allowed, default=(), metavar="|".join(ALLOWED), help="compare although these "
                         "differ from the baseline, or the run is invalid; commas between several")  # fmt: skip
    for name, text in (
        ("junit", "JUnit XML"),
        ("summary", "Markdown, appended, such as $GITHUB_STEP_SUMMARY"),
        ("bencher", "Bencher's Metric Format"),
        ("benchmark-action", "github-action-benchmark's JSON: FILE-smaller-is-better.json and -bigger-is-better"),
    ):
        command.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write {text}")
    _add_baselines(command)
    _add_output(command)
    parent = commands.add_parser("baseline", help="keep runs that others are held against, by name")
    actions = parent.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=type(parent))
    command = actions.add_parser("save", help="keep a run's figures in baselines/NAME")
    command.add_argument("name", metavar="NAME", help="what it is to be called")
    _add_which(command)
    command.add_argument("--replace", action="store_true", help="in place of the one of that name")
    _add_baselines(command)
    _add_output(command)
    command = actions.add_parser("list", help="the baselines that there are")
    _add_baselines(command)
    command.add_argument("--json", action="store_true", help="for machines")


def _add_store(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parent = commands.add_parser("runs", help="list, tag and remove runs")
    actions = parent.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=type(parent))
    command = actions.add_parser("list", help="every run, the oldest first")
    _add_output(command)
    for name, text in (("tag", "give a run a name, and keep it when others are pruned"), ("untag", "take it away")):
        command = actions.add_parser(name, help=text)
        command.add_argument("name", metavar="TAG", help="the name")
        _add_which(command)
        _add_output(command)
    command = actions.add_parser("prune", help="remove all but the newest runs, and those that are tagged")
    command.add_argument("--keep", type=_positive, required=True, metavar="N", help="so many of the newest")
    command.add_argument("--yes", action="store_true", help="remove them; without it they are only named")
    _add_output(command)
    command = commands.add_parser("history", help="points over runs: since when is it slower, and what was changed?")
    command.add_argument(
        "pattern", nargs="?", default="results/*", metavar="PATTERN", help="run folders (default: results/*)"
    )
    command.add_argument(
        "--metric", default="e2e_p99_ns", metavar="COLUMN", help="of Run.trials (default: e2e_p99_ns; docs/jupyter.md)"
    )
    command.add_argument("--json", action="store_true", help="for machines")


def _add_which(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", nargs="?", default="latest", metavar="RUN", help="a folder or id (default: latest)")


def _add_baselines(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--baselines", type=Path, default=Path("baselines"), metavar="DIR", help="where they are (default: baselines)"
    )


def _allowed(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(","))
    if stray := next((part for part in found if part not in ALLOWED), None):
        raise argparse.ArgumentTypeError(f"{stray}: expected {', '.join(ALLOWED)}")
    return found


def _add_faults(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--faults",
        metavar="RUN|latest",
        help="cite in the table, by name, the trials with faults of another complete run of this machine and these "
        "brokers' versions: its folder or id, or the newest there is",
    )


def _add_run(command: argparse.ArgumentParser, *, scenarios: bool, has_duration: bool = False) -> None:
    if scenarios:
        command.add_argument("scenarios", nargs="+", type=Path, metavar="SCENARIO", help="scenario files")
    _add_brokers(command)
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="KEY=VALUE",
        help="change a knob; commas sweep; a rate's kind stands before it (rate=poisson:2000)",
    )
    command.add_argument(
        "--profile", choices=("quick", "standard", "full"), default="quick", help="how long, how often"
    )
    if scenarios or has_duration:
        command.add_argument(
            "--duration", type=_seconds, metavar="TIME", help="measured window of each trial, such as 90s, 20m, 4h or "
            "2d, in place of the profile's (docs/soak.md)",
        )  # fmt: skip
    command.add_argument("--repeats", type=_positive, metavar="N", help="in place of the profile's")
    command.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of messages, arrivals and the order of trials"
    )
    command.add_argument("--cpus-broker", metavar="LIST", help="pin the brokers' processes, such as 0-3")
    command.add_argument("--cpus-client", metavar="LIST", help="pin producers and consumers, such as 4-7")
    _add_output(command)


def _add_decide(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "decide",
        help="which broker carries this load with this p99, with what headroom, and how sure is that?",
        description="Both brokers at the demanded rate, in turns, and a search for the rate beyond which each of them "
        "misses the objective; the answer in words (docs/decide.md). Each --set holds for all of its trials.",
    )
    command.add_argument("--rate", type=_rate, required=True, metavar="MSGS", help="messages a second to be carried")
    command.add_argument("--size", type=_bytes, required=True, metavar="BYTES", help="of each message, such as 1024")
    command.add_argument(
        "--p99", type=_milliseconds, required=True, metavar="TIME", help="within which 99 of 100 messages are to "
        "arrive, from when they were due until they are received, such as 10ms",
    )  # fmt: skip
    command.add_argument(
        "--survive", choices=SURVIVE, required=True, help="what a confirmed message survives: nothing promised, kill "
        "-9 of the broker, a power cut of one node, the loss of one node of three, or of one and a power cut of all",
    )  # fmt: skip
    command.add_argument(
        "--subscribers", type=_positive, default=1, metavar="N", help="how many receive every message (default: 1)"
    )
    command.add_argument(
        "--producers", type=_positive, metavar="N", help="processes that send (default: as many as the rate needs)"
    )
    command.add_argument("--consumers", type=_positive, default=1, metavar="N", help="of each subscriber (default: 1)")
    _add_run(command, scenarios=False, has_duration=True)
    _add_prometheus(command)
    command.set_defaults(repeats=3)


def _add_prometheus(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--prometheus",
        metavar="[HOST:]PORT",
        help="show the run's figures to Prometheus while it goes on; on 127.0.0.1 unless a host is given",
    )


def _add_fleet(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--fleet", choices=("local", "locust"), default="local", help="who produces and consumes: processes of this "
        "machine (default), or Locust workers: `locust -f SCENARIO --worker --master-host HOST` (docs/distributed.md)"
    )  # fmt: skip
    command.add_argument(
        "--expect-workers", type=_positive, metavar="N", help="Locust workers to wait for (default: 1)"
    )
    command.add_argument(
        "--expect-workers-max-wait", type=_positive, metavar="SECONDS", help="for how long (default: 60)"
    )
    command.add_argument(
        "--bind", metavar="HOST[:PORT]", help="where workers find this process (default: 127.0.0.1:5557)"
    )


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= 1000:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 … 1000")
    return number


LONGEST_S = 7 * 86_400


def _within(text: str, parse: Callable[[str], float], most: float, expected: str) -> float:
    """A number over 0 and at most so large; anything else is refused with what was expected."""
    try:
        value = parse(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"{text}: expected {expected}")
    return value


def _seconds(text: str) -> float:
    return _within(text, seconds_of, LONGEST_S, "a time such as 90s, 20m, 4h or 2d, of a week at the most")


def _rate(text: str) -> float:
    return _within(text, float, 1e9, "messages a second, more than 0, such as 20000")


def _bytes(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: expected a size in bytes, such as 1024")
    return int(text)


def _milliseconds(text: str) -> float:
    """A time with its unit in ms: 10 alone could be of seconds as well."""

    def parse(text: str) -> float:
        return seconds_of(text) if text[-1:].isalpha() else 0.0

    return round(1e3 * _within(text, parse, 3_600, "a time with its unit, such as 10ms or 0.5s, at most 1h"), 6)


def _effect(text: str) -> float:
    return 1 + _within(text, float, 1_000, "a percentage over 0, such as 10") / 100
