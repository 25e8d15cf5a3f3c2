"""Every scenario under scenarios/published/, measured, as the table in docs/performance.md.

    python bench/published.py [RUN] [--repeats 3] [--results FOLDER]

A row is one broker's curve: the figure that the scenario answers to, as its file tells it, the rates that were seen at
each value of its knob (medians over the repeats), and whether the published shape is reproduced, by the rules of
`loadgen.analysis.shapes`; a rule that does not hold, or that these repeats cannot tell, is told with what was seen.
With RUN, a run's folder, its rows are printed and nothing is measured.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from loadgen.analysis import is_measured, shapes
from loadgen.console import Console
from loadgen.engine import Options, execute
from loadgen.load import load_scenarios
from loadgen.plan import PROFILES, make_plan
from loadgen.record import enters
from loadgen.report import words
from loadgen.runs import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loadgen.analysis.shapes import Verdict
    from loadgen.record import Record
    from loadgen.runs import Run

FOLDER = Path("scenarios/published")
PROFILE = PROFILES["quick"]
_ANSWERS = re.compile(r"Answers to: (.*?)\n\"\"\"", re.DOTALL)
_LINK = re.compile(r"\(?(https?://[^\s)]+[^\s):.,])\)?")


def figure(scenario: str) -> str:
    """What a scenario answers to, as its file says it, on one line with its address as a link."""
    text = (FOLDER / f"{scenario.removeprefix('published-').replace('-', '_')}.py").read_text(encoding="utf-8")
    found = _ANSWERS.search(text)
    assert found is not None, f"{scenario}: its file does not say what it answers to"
    return _LINK.sub(r"(<\1>)", " ".join(found[1].split()))


def seen(run: Run, verdict: Verdict) -> str:
    """The median rate at each value of the knob that the shape is about, in the order of the values."""
    records = [each for each in run.records if each["scenario"] == verdict.scenario and is_measured(each)]
    rates: dict[tuple[Any, ...], list[float]] = {}
    for record in filter(enters, records):
        if verdict.broker in {record["broker"], "both"} and record["goodput_msgs_per_s"]:
            rates.setdefault(_at(record, verdict), []).append(record["goodput_msgs_per_s"])
    told = sorted((at, median(values)) for at, values in rates.items())
    return ", ".join(f"{' '.join(map(str, at))}: {words.rate(rate)}" for at, rate in told)


def _at(record: Record, verdict: Verdict) -> tuple[Any, ...]:
    """Where on its curve a record lies: the value of the knob, or its class and broker where both are compared."""
    if verdict.broker == "both":
        return str(record["durability"]), words.broker_name(str(record["broker"]))
    point, knob = record["point"], shapes.SHAPES[verdict.scenario].knob
    return (point.get(knob, point.get(knob.rpartition(".")[2])),)


def rows(run: Run) -> Iterator[str]:
    """The table of a run."""
    yield "| scenario | the figure that it answers to | seen here | shape |"
    yield "| --- | --- | --- | --- |"
    for verdict in shapes.judged(run):
        who = (
            verdict.scenario if verdict.broker == "both" else f"{verdict.scenario}, {words.broker_name(verdict.broker)}"
        )
        told = f": {'; '.join(verdict.against)}" if verdict.against else ""
        yield f"| {who} | {figure(verdict.scenario)} | {seen(run, verdict)} | {verdict.outcome}{told} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or read what was measured, and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=PROFILE.repeats)
    parser.add_argument("--results", type=Path, help="where to keep the run (default: nowhere)")
    chosen = parser.parse_args(arguments)
    if chosen.run is not None:
        print("\n".join(rows(load(chosen.run))))
        return 0
    scenarios = [each for path in sorted(FOLDER.glob("*.py")) for each in load_scenarios(path)]
    plan = make_plan(scenarios, PROFILE, repeats=chosen.repeats)
    with tempfile.TemporaryDirectory() as folder:
        options = Options("published", ["bench/published.py"], chosen.results or Path(folder))
        print("\n".join(rows(execute(plan, options, Console()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
