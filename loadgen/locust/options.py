"""What is chosen for a test: by options on Locust's command line and in its web UI, and by the classes picked."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from loadgen.errors import ScenarioError
from loadgen.knobs import NODES
from loadgen.load import apply_sets, parse_set
from loadgen.locust.thresholds import parse_threshold

if TYPE_CHECKING:
    from locust.env import Environment

    from loadgen.endpoint import BrokerName
    from loadgen.scenario import Scenario

ALTERNATING = "alternating"
scenarios: dict[str, Scenario] = {}
"""Those of the locustfiles that were loaded, by name."""


def add_options(parser: Any) -> None:
    """Our options beside Locust's own; they are in the web UI's form, too."""
    has_secret = any("://" in word and "@" in word for word in sys.argv)
    add = parser.add_argument  # a group's own method would keep them out of the form
    add(
        "--broker",
        choices=[ALTERNATING, "rabbitmq", "kafka"],
        default=ALTERNATING,
        help="Drive only this broker; else both take turns, one after the other",
    )
    add(
        "--brokers",
        default="local",
        is_secret=has_secret,
        help="Where the brokers come from: local (private ones in .brokers/), docker, memory (none), or URLs: "
        "amqp[s]://host:port/vhost kafka[+tls]://host:port",
    )
    add(
        "--set",
        action="append",
        dest="sets",
        metavar="KEY=VALUE",
        help="Change a knob of the scenario, such as rabbitmq.prefetch=100 (several: separated by blanks)",
    )
    add(
        "--threshold",
        action="append",
        dest="thresholds",
        metavar="METRIC<LIMIT",
        help="A limit that sets the exit status, such as p99_ms<10 (several: separated by blanks)",
    )
    add("--results", default="results", include_in_web_ui=False, help="Where runs are kept (default: results)")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a test is to do; `wanted` are the (scenario, broker) pairs, and `names` their brokers."""

    scenarios: tuple[Scenario, ...]
    wanted: tuple[tuple[str, BrokerName], ...]
    brokers: str
    results: str
    thresholds: list[str]
    run_time_s: float | None

    @property
    def names(self) -> list[BrokerName]:
        """The brokers that are needed."""
        return [name for name in ("rabbitmq", "kafka") if any(broker == name for _, broker in self.wanted)]

    @classmethod
    def of(cls, environment: Environment) -> Chosen:
        """What the options and the picked classes come to; raises ScenarioError where that is nothing."""
        options = environment.parsed_options
        broker = getattr(options, "broker", ALTERNATING)
        sets = [parse_set(text) for text in _texts(getattr(options, "sets", None))]
        picked = list(dict.fromkeys(
            (each.scenario_name, each.broker)
            for each in cast("list[Any]", environment.user_classes)
            if hasattr(each, "scenario_name") and each.tasks
        ))  # fmt: skip
        wanted = tuple(pair for pair in picked if broker in {ALTERNATING, pair[1]})
        if not wanted:
            raise ScenarioError(f"nothing to run: none of the classes picked drives {broker}")
        names = list(dict.fromkeys(name for name, _ in wanted))
        chosen = tuple(apply_sets(scenarios[name], sets) if sets else scenarios[name] for name in names)
        for scenario in chosen:
            if scenario.pattern != "one_way":
                raise ScenarioError(
                    f"{scenario.name}: Locust's users send and receive one way, not by pattern {scenario.pattern}; "
                    "expected `loadgen run`"
                )
            if (clustered := next((each for each in _classes(scenario) if each in NODES), None)) is not None:
                raise ScenarioError(
                    f"{scenario.name}: durability class {clustered} has brokers of {NODES[clustered]} nodes, which "
                    "Locust's pages do not start; use `loadgen run`, or --fleet locust with it"
                )
            if scenario.faults:
                raise ScenarioError(f"{scenario.name}: has faults, which only `loadgen run` carries out")
            if scenario.phased_by is not None:
                raise ScenarioError(
                    f"{scenario.name}: {scenario.phased_by} has phases, which users who come and go cannot keep; "
                    "expected `loadgen run`"
                )
        thresholds = _texts(getattr(options, "thresholds", None))
        for text in thresholds:
            parse_threshold(text)
        return cls(
            scenarios=chosen,
            wanted=wanted,
            brokers=getattr(options, "brokers", "local"),
            results=getattr(options, "results", "results"),
            thresholds=thresholds,
            run_time_s=getattr(options, "run_time", None) or None,
        )


def _texts(given: str | list[str] | None) -> list[str]:
    """What was given several times on the command line, or once with blanks between, as a form has it.

    The form sends a list back as one text, whose commas Locust takes for separators: those within a value are put back.
    """
    words = re.split(r"\s+", given) if isinstance(given, str) else [w for text in given or () for w in text.split()]
    texts: list[str] = []
    for word in words:
        if texts and word and not re.search(r"[=<>]", word):
            texts[-1] += f",{word}"
        elif word:
            texts.append(word)
    return texts


def _classes(scenario: Scenario) -> list[str]:
    """The durability classes of a scenario."""
    found = scenario.durability
    return [str(each) for each in (found if isinstance(found, list) else [found])]
