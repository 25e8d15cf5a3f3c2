"""The gate as who maintains a CI uses it: a baseline saved, something made worse, the check fails, restored, it passes.

Every step is a command of the command line, on a real broker that is up. Of each broker:

    a pace      a closed loop whose producer is held to half of what it reached: measured, saved, measured again
                (must not be missed), and held to 0.9 × that (must be missed: -10 %, and nothing but noise beside it)
    a setting   measured, saved, measured with the setting made worse (must be missed, in one line with the metric, the
                effect and its interval), and restored (must pass)

The pace is imposed inside the producer, and nothing that the gate reads says so. A fixed rate of 0.9 × would be another
point, which the gate refuses to compare. JUnit and the step's summary are read again by each check, and have to hold
the verdicts that were printed.
"""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass, field
from functools import partial
from statistics import geometric_mean
from typing import TYPE_CHECKING, ClassVar
from unittest import mock
from xml.etree import ElementTree as ET

from prove import pairs
from prove.proof import Row
from prove.trials import own_broker

from loadgen import hands, process
from loadgen.cli import main as loadgen
from loadgen.errors import EXIT_CANNOT_TELL, EXIT_OK, EXIT_THRESHOLD, TrialError
from loadgen.gate.formats import MARKS
from loadgen.pacer import Fixed
from loadgen.producing import ProducerAgent
from loadgen.report.words import broker_name
from loadgen.runs import load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from loadgen.agent import AgentSpec
    from loadgen.endpoint import BrokerName

SHORT = ("warmup_s=1", "duration_s=2")
REPEATS, FEW = 6, 3
TRIES = 2
HELD_SHARE, SLOWED = 0.5, 0.9
HELD_WAIT_S = 0.002
LIMITS = """effect = "{effect}"
neglect = "{neglect}"

[[limit]]
metric = "confirmed_lost"
at_most = 0

[[relative]]
metric = "{metric}"
"""
EFFECT = r"[+-][\d,.]+%"
LINE = re.compile(rf"missed: \S+: (\w+) ({EFFECT}) \(({EFFECT}) … ({EFFECT}) at [\d.]+, \S.* → \S.*\)")
"""A breach as it is printed: the metric, the effect, and the ends of its interval."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A scenario, and what makes it worse: the metric that must be missed, and whether a lower value is worse.

    The effect is what so few and short repeats can tell.
    """

    scenario: str
    worse: str
    metric: str
    is_lower_worse: bool = True
    also: tuple[str, ...] = ()
    effect: str = "25%"
    neglect: str = "3%"

    @property
    def limits(self) -> str:
        """The file of limits."""
        return LIMITS.format(effect=self.effect, neglect=self.neglect, metric=self.metric)


SETTINGS: dict[BrokerName, tuple[Setting, ...]] = {
    "rabbitmq": (Setting("throughput", "rabbitmq.prefetch=1", "goodput_msgs_per_s"),),
    "kafka": (
        Setting("throughput", "kafka.batch_size=512", "goodput_msgs_per_s"),
        Setting(
            "latency",
            "kafka.linger_ms=20",
            "e2e_p50_ms",
            is_lower_worse=False,
            also=("rate=500",),
            effect="30%",
            neglect="10%",
        ),
    ),
}


class HeldProducer(ProducerAgent):
    """A closed loop's producer that is held to a pace, which nothing in its trial says."""

    msgs_per_s: ClassVar[float] = 0.0

    def __init__(self, spec: AgentSpec, pipe: Connection) -> None:
        super().__init__(spec, pipe)
        self.pace = Fixed(self.msgs_per_s, spec.index, spec.count)
        self.takes_parts = True

    def _allowed(self, now_ns: int) -> int:
        due = self.pace.due(now_ns - self.clock.start_ns) - self.sent
        return max(0, min(super()._allowed(now_ns), due))

    def _wait_s(self, due: int, now_ns: int) -> float:
        return min(HELD_WAIT_S, super()._wait_s(due, now_ns))


def _held_main(msgs_per_s: float, spec: AgentSpec, pipe: Connection) -> None:
    """What an agent's process runs instead of `loadgen.process.main`."""
    HeldProducer.msgs_per_s = msgs_per_s
    process.ROLES["producer"] = HeldProducer
    process.main(spec, pipe)


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check printed and wrote; verdicts are (outcome, point, what was found), in the order of the limits."""

    status: int
    lines: tuple[str, ...]
    printed: tuple[tuple[str, str, str], ...]
    junit: tuple[tuple[str, str, str], ...]
    summary: tuple[tuple[str, str, str], ...]

    @property
    def disagreement(self) -> str:
        """How JUnit or the summary differ from what was printed; nothing where they do not."""
        for name, told in (("JUnit", self.junit), ("summary", self.summary)):
            if sorted(told) != sorted(self.printed):
                return f"{name}: {told} for {self.printed}"
        return ""

    def line(self, outcome: str) -> str:
        """The first line of this outcome; nothing without one."""
        return next((line for line in self.lines if line.startswith(f"{outcome}: ")), "")


@dataclass(slots=True)
class Ci:
    """One CI: where its runs and baselines are, and what it measures; every check is kept."""

    folder: Path
    broker: BrokerName
    scenario: str
    sets: tuple[str, ...] = ()
    limits: str = ""
    short: tuple[str, ...] = SHORT
    is_alone: bool = True
    checks: list[Checked] = field(default_factory=list)

    def run(self, *worse: str, repeats: int = REPEATS) -> None:
        """Measure; TrialError where the run is not good.

        Where figures count it waits for an idle machine, and a run in which others used the CPU, by its own verdict, is
        measured again before anybody looks at its figures.
        """
        for _ in range(TRIES if self.is_alone else 1):
            if self.is_alone:
                pairs.wait_until_idle()
            self._measure(worse, repeats)
            if all(map(pairs.is_undisturbed, load("latest", self.folder / "results").records)):
                return

    def _measure(self, worse: Sequence[str], repeats: int) -> None:
        sets = [word for text in (*self.short, "durability=broker", *self.sets, *worse) for word in ("--set", text)]
        words = ["run", f"scenarios/{self.scenario}.py", "--broker", self.broker, "--repeats", str(repeats), *sets]
        self._demand([*words, "--results", str(self.folder / "results")])

    def save(self) -> None:
        """Keep the last run as the baseline."""
        self._demand(["baseline", "save", "main", *self._places()])

    def check(self) -> Checked:
        """Hold the last run against the baseline, and read what CI would read."""
        junit, summary, limits = (self.folder / name for name in ("junit.xml", "summary.md", "limits.toml"))
        summary.unlink(missing_ok=True)
        words = ["check", "latest", "--baseline", "main", "--junit", str(junit), "--summary", str(summary)]
        if self.limits:
            limits.write_text(self.limits, encoding="utf-8")
            words += ["--thresholds", str(limits)]
        status, text = _loadgen([*words, *self._places()])
        if status not in {EXIT_OK, EXIT_THRESHOLD, EXIT_CANNOT_TELL}:
            raise TrialError(f"loadgen {' '.join(words)}: exit status {status}")
        lines = tuple(text.splitlines())
        told = Checked(status, lines, *map(tuple, (_printed(lines), _in_junit(junit), _in_summary(summary))))
        self.checks.append(told)
        return told

    def _places(self) -> list[str]:
        return ["--results", str(self.folder / "results"), "--baselines", str(self.folder / "baselines")]

    def _demand(self, words: Sequence[str]) -> None:
        status, _ = _loadgen(words)
        if status != EXIT_OK:
            raise TrialError(f"loadgen {' '.join(words)}: exit status {status}")


def _loadgen(words: Sequence[str]) -> tuple[int, str]:
    """The exit status, and what it printed on stdout."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = loadgen(list(words))
    return status, printed.getvalue()


def _printed(lines: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    for line in lines:
        outcome, _, rest = line.partition(": ")
        if outcome in MARKS:
            point, _, said = rest.partition(": ")
            yield outcome, point, said


def _in_junit(path: Path) -> Iterator[tuple[str, str, str]]:
    for case in ET.parse(path).getroot().iter("testcase"):  # noqa: S314 - our own
        (told,) = case
        outcome = {"failure": "missed", "skipped": "cannot tell"}.get(told.tag, "kept")
        yield outcome, case.attrib["classname"], told.attrib.get("message") or told.text or ""


def _in_summary(path: Path) -> Iterator[tuple[str, str, str]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("|") and cells[0].partition(" ")[0] in MARKS.values():
            yield cells[0].partition(" ")[2], cells[1].strip("`"), cells[3]


def rows(broker: BrokerName, folder: Path) -> Iterator[Row]:
    """Every case of a broker, one after the other."""
    with own_broker(broker):  # which the first run warms
        yield from paced(broker, folder / "pace")
        for setting in SETTINGS[broker]:
            yield from made_worse(broker, setting, folder / setting.scenario)


def paced(broker: BrokerName, folder: Path) -> Iterator[Row]:
    """Held to half of its own speed, held to the same again, and to nine tenths of that."""
    ci = Ci(folder, broker, "throughput")
    ci.run(repeats=FEW)
    reached = geometric_mean(trial["goodput_msgs_per_s"] for trial in load("latest", folder / "results").records)
    pace = round(HELD_SHARE * reached)
    name = f"{broker_name(broker)} held to {pace:,} msg/s"
    with _held(pace):
        ci.run()
        ci.save()
        ci.run()
        yield not_missed(f"{name}, again", ci.check())
    with _held(SLOWED * pace):
        ci.run()
        yield is_missed(f"{name} × {SLOWED}", ci.check(), "goodput_msgs_per_s", is_lower_worse=True)
    yield agreed(name, ci.checks)


def made_worse(
    broker: BrokerName,
    setting: Setting,
    folder: Path,
    *,
    repeats: int = REPEATS,
    short: tuple[str, ...] = SHORT,
    is_alone: bool = True,
) -> Iterator[Row]:
    """As it is, with the setting made worse, and restored: as it was."""
    ci = Ci(folder, broker, setting.scenario, setting.also, setting.limits, short, is_alone)
    name = f"{broker_name(broker)}, {' '.join((setting.scenario, *setting.also))}"
    ci.run(repeats=repeats)
    ci.save()
    ci.run(setting.worse, repeats=FEW)
    yield is_missed(f"{name}, {setting.worse}", ci.check(), setting.metric, is_lower_worse=setting.is_lower_worse)
    ci.run(repeats=repeats)
    yield passes(f"{name}, restored", ci.check())
    yield agreed(name, ci.checks)


def _held(msgs_per_s: float) -> mock._patch[partial[None]]:
    return mock.patch.object(hands, "agent_main", partial(_held_main, msgs_per_s))


def not_missed(name: str, told: Checked) -> Row:
    """Alike is no breach; that it cannot be told is said, and is no pass."""
    said = told.line("missed") or told.line("cannot tell") or told.lines[-1]
    return Row(f"{name}: not missed", "status 0, or 3", f"status {told.status}, {said}", "",
               told.status in {EXIT_OK, EXIT_CANNOT_TELL})  # fmt: skip


def passes(name: str, told: Checked) -> Row:
    """Every limit is kept."""
    said = told.line("missed") or told.line("cannot tell") or told.lines[-1]
    return Row(f"{name}: passes", "status 0", f"status {told.status}, {said}", "", told.status == EXIT_OK)


def is_missed(name: str, told: Checked, metric: str, *, is_lower_worse: bool) -> Row:
    """The metric is missed, in one line that has the effect and its interval, on the worse side."""
    line = told.line("missed")
    found = LINE.fullmatch(line)
    signs = {text[0] for text in found.groups()[1:]} if found else set()
    ok = told.status == EXIT_THRESHOLD and found is not None and found[1] == metric
    ok = ok and signs == ({"-"} if is_lower_worse else {"+"})
    return Row(f"{name}: missed", f"status 1, {metric}", f"status {told.status}, {line or told.lines[-1]}", "", ok)


def agreed(name: str, checks: Sequence[Checked]) -> Row:
    """JUnit and the summary hold what was printed, of each check."""
    wrong = next(filter(None, (each.disagreement for each in checks)), "")
    verdicts = sum(len(each.printed) for each in checks)
    seen = wrong or f"{verdicts} verdicts of {len(checks)} checks"
    return Row(f"{name}: JUnit and summary as printed", "the same", seen, "", bool(verdicts) and not wrong)
