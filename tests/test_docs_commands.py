"""Every command and every Python block of the README and the docs is run, in the order of its page.

Commands are given to a shell as they stand on the page, in a folder with links to the project's, on the session's
brokers. What is changed, and nothing else:

* profiles are short (`ready_loadgen.py`), and commands in `docpages.SHORT` are run in the form that stands there;
* of those in `docpages.PLANNED`, which need a cluster of three or many minutes, the plan is made;
* what stands in `docpages.ELSEWHERE` another file of the suite runs with the same words;
* of `make TARGET` it is looked at what it would run, and that this takes the words that it is given (`make docs` is run
  by test_docs.py; the targets that prove something take half an hour).

A command that stands on several pages is run once. What reads `latest` reads an example that comes with the project,
whatever a busy machine made of a short run before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docpages
import pytest
import ready_loadgen
from docpages import ELSEWHERE, PLANNED, ROOT, SHORT, Command, blocks, commands

from loadgen import cli
from loadgen.arguments import make_parser
from loadgen.brokers import mark_warmed, state
from loadgen.cost import in_words
from loadgen.errors import EXIT_THRESHOLD
from loadgen.load import scenario_files
from loadgen.probes import load_probe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.plan import Plan

PAGES = docpages.pages()
EXAMPLE, SLOWER, LATER = "1-latency", "3-latency", "4-latency"
# Pages whose commands measure: minutes on a machine that does other things meanwhile.
LONG_PAGES = {"README.md"} | {
    f"docs/{name}.md" for name in ("distributed", "locust", "metrics", "reference/cli", "soak", "tutorial")
}
PATIENCE_S = 150.0
MEASURING = {"run", "ab", "decide", "rerun", "locust"}
# Commands that measure, which mostly wait; where other tests run beside them, they have their processors already.
AT_ONCE = 1 if "PYTEST_XDIST_WORKER" in os.environ else 3
# Half a second of load, and three of a search, may be too little: what a trial without a figure says then.
TOO_SHORT = ("no capacity was found", "budget used up", "no whole second was measured", "no load: the test was stopped")
# 2 and 3: of trials that last half a second some are invalid on a busy machine, and few are told apart.
STATUSES = {**{name: {0, 2, 3} for name in MEASURING}, "check": {0, 1, 3}, "locust": {0, 1, 2}}


@dataclass
class Sandbox:
    """A folder in which commands are given, and what is known of those that were."""

    folder: Path
    urls: str
    environment: dict[str, str]
    done: set[str] = field(default_factory=set)
    port: int = 0

    def form_of(self, command: Command) -> str:
        """What is given to the shell."""
        text = SHORT.get(command.text, command.text)
        if "{port}" in text and "--bind" not in text:  # which is where the workers before it look
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        known = {"urls": self.urls, "port": self.port, "empty": self.folder / "no-brokers", "smallest": self.smallest}
        return text.format(**known) if command.text in SHORT else text

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        """The runs that commands have written, by id."""
        found = self.folder.glob("results/20*/run.json")
        return {path.parent.name: json.loads(path.read_text()) for path in found}

    @property
    def smallest(self) -> str:
        """Of the complete ones that with the fewest trials."""
        found = {name: len(run["trials"]) for name, run in self.runs.items() if run["status"] == "complete"}
        return min(found, key=lambda name: found[name], default="")

    def start(self, text: str) -> subprocess.Popen[str]:
        """Give a command to a shell."""
        return subprocess.Popen(
            ["bash", "-c", text], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def show(self, name: str = EXAMPLE) -> None:
        """Make an example the latest run."""
        latest = self.folder / "results/latest"
        latest.unlink(missing_ok=True)
        latest.symlink_to(name)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, endpoints: dict[BrokerName, Endpoint]) -> Iterator[Sandbox]:
    """The project by links, results of its own, short profiles, and the session's brokers as if they were its own."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("scenarios", "docs", "notebooks", "loadgen", "bench", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    for each in sorted((ROOT / "results/example-history").iterdir()):
        if each.is_dir():
            shutil.copytree(each, folder / "results" / f"{each.name}-latency")
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    path = str(folder / "asked")
    for name, text in (
        ("loadgen", ready_loadgen.CLIENT.format(python=sys.executable, path=path)),
        ("locust", f'#!/bin/sh\nexec {sys.executable} -m locust "$@"\n'),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    amqp, kafka = endpoints["rabbitmq"], endpoints["kafka"]
    environment = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "LOADGEN_BROKERS_DIR": str(state.brokers_dir()),
        "LOADGEN_CACHE_DIR": str(state.cache_dir()),
    }  # fmt: skip
    for endpoint in endpoints.values():
        mark_warmed(endpoint)
    made = Sandbox(folder, f"amqp://{amqp.address}/ kafka://{kafka.address}", environment)
    with not_kept(), ready(path):
        yield made


@contextlib.contextmanager
def ready(path: str) -> Iterator[None]:
    """The process that runs `loadgen`; whatever it has started ends with it."""
    process = subprocess.Popen([sys.executable, ready_loadgen.__file__, path], start_new_session=True)
    deadline_s = time.monotonic() + PATIENCE_S
    while not Path(path).exists() and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.05)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@contextlib.contextmanager
def not_kept() -> Iterator[None]:
    """`loadgen up` has brokers stay; these are the session's, which ends them, unless they stayed before."""
    root = state.brokers_dir()
    before = {name: cluster.kept for name in state.BROKER_NAMES if (cluster := state.load(name, root))}
    yield
    for name, kept in before.items():
        if cluster := state.load(name, root):
            cluster.kept = kept
            cluster.save()


def program(text: str) -> str:
    """Which command it is: a word of `loadgen`, else the program."""
    words = [word for word in shlex.split(text) if "=" not in word or word.startswith("-")]
    return words[1] if words[0] == "loadgen" else words[0]


def judge(command: Command, process: subprocess.Popen[str]) -> None:
    """It exits as it may, without a traceback."""
    try:
        said, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"{command.text}: not done after {PATIENCE_S:.0f} s:\n{process.communicate()[0]}")
    allowed = STATUSES.get(program(command.text), {0}) if command.status is None else {command.status}
    assert process.returncode in allowed, f"{command.text}: status {process.returncode}\n{said}"
    assert "Traceback" not in said, said


def demand_runs(sandbox: Sandbox, before: set[str], count: int) -> None:
    """So many runs were written, each complete, with messages sent."""
    new = [run for name, run in sandbox.runs.items() if name not in before]
    assert len(new) == count
    for run in new:
        assert run["status"] == "complete", run["reason"]
        for trial in run["trials"]:
            told = str(trial["error"]).startswith(TOO_SHORT)
            assert trial["status"] == "complete" or told, f"{trial['id']}: {trial['error']}"
        assert any(trial["sent"] or str(trial["error"]).startswith(TOO_SHORT) for trial in run["trials"]), run["name"]


def look_at_make(command: Command) -> None:
    """What the target would run takes the words that it is given."""
    # As if the project had just changed, so that it would be installed anew.
    asked = command.text.replace("make", "make -n -W pyproject.toml", 1)
    shown = subprocess.run(["bash", "-c", asked], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert "pip install" in shown
    lines = [line for line in shown.splitlines() if line.startswith(".venv/bin/") or "=bench .venv" in line]
    assert lines or command.text == "make install", shown
    for line in lines:
        words = shlex.split(line)[1 + line.startswith("PYTHONPATH") :]
        if ".venv/bin/loadgen" in line:
            assert make_parser(argparse.ArgumentParser).parse_args(words).command
        elif words[0].startswith("bench/") or words[:2] == ["-m", "prove"]:
            script = words[: 1 + (words[0] == "-m")]
            told = help_of(*script)
            assert all(word.partition("=")[0] in told for word in words[len(script) :] if not word.isdecimal()), line


@cache
def help_of(*script: str) -> str:
    """What a script of bench/ says that it takes."""
    return subprocess.run(
        [sys.executable, *script, "--help"], check=True, capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "bench"},
    ).stdout  # fmt: skip


def make_plan(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would run trials, in so many minutes, and the file that runs the like is there."""
    plans: list[Plan] = []
    with monkeypatch.context() as patch:
        patch.setattr(cli, "_execute", lambda plan, *_, **__: plans.append(plan) or 0)
        assert cli.main(shlex.split(command.text)[1:]) == 0
    (plan,) = plans
    assert len(plan.trials) > 1
    assert "minutes" in in_words(plan)
    assert (ROOT / PLANNED[command.text]).is_file()


def look_elsewhere(command: Command) -> None:
    """The file that runs the like names what is asked; an extra that is installed is one; notebooks are there."""
    where = ROOT / ELSEWHERE[command.text]
    words = shlex.split(command.text)
    text = where.read_text()
    if words[0] == "loadgen":
        for probe in make_parser(argparse.ArgumentParser).parse_args(words[1:]).probes:
            assert load_probe(probe.replace("-", "_")).question
            assert probe.replace("-", "_") in text
    elif words[0] == "locust":
        text += (where.parent / "locusts.py").read_text()  # which starts what that file asks for
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in text] == []
    elif extra := re.search(r"\[(\w+)\]", command.text):
        assert extra[1] in tomllib.loads(text)["project"]["optional-dependencies"]
    else:
        assert list((ROOT / words[-1]).glob("*.ipynb"))


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.long if page in LONG_PAGES else ()) for page in PAGES]
)
def test_every_command_is_run(page: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, each to an exit status that it may have; those that measure, some at once."""
    monkeypatch.chdir(sandbox.folder)
    before, measured = set(sandbox.runs), 0
    running: list[tuple[Command, subprocess.Popen[str]]] = []
    with ended_together(running):
        for command in commands(PAGES[page]):
            if command.text in sandbox.done:
                continue
            sandbox.done.add(command.text)
            measures = program(command.text) in MEASURING and command.text not in {**PLANNED, **ELSEWHERE}
            ending = [each for each in running if "--worker" not in each[0].text]  # a worker waits for a run to come
            while ending and len(ending) >= (AT_ONCE if measures else 1):
                running.remove(ending[0])
                judge(*ending.pop(0))
            if measures:
                running.append((command, sandbox.start(sandbox.form_of(command))))
                measured += "--worker" not in command.text
            else:
                look_at(command, sandbox, monkeypatch)
        while running:
            judge(*running.pop(0))
    demand_runs(sandbox, before, measured)


def look_at(command: Command, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what does not measure; of all else what can be seen without running it."""
    if command.text.startswith("make "):
        look_at_make(command)
    elif command.text in PLANNED:
        make_plan(command, monkeypatch)
    elif command.text in ELSEWHERE:
        look_elsewhere(command)
    else:
        later = SLOWER if command.status == EXIT_THRESHOLD else LATER  # in the third run linger_ms was 20, on purpose
        sandbox.show(later if program(command.text) == "check" else EXAMPLE)
        judge(command, sandbox.start(sandbox.form_of(command)))


@contextlib.contextmanager
def ended_together(running: list[tuple[Command, subprocess.Popen[str]]]) -> Iterator[None]:
    """Where one fails the others are ended."""
    try:
        yield
    finally:
        for _, process in running:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text, "python")])
def test_every_python_block_runs(page: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, in one namespace."""
    monkeypatch.chdir(sandbox.folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sandbox.show()
    namespace: dict[str, Any] = {}
    for number, block in enumerate(blocks(PAGES[page], "python"), start=1):
        exec(compile(block, f"{page}, block {number}", "exec"), namespace)  # noqa: S102 - the project's own pages


def test_no_form_is_of_a_command_that_nobody_gives() -> None:
    """The tables name commands of the pages, each once."""
    given = {command.text for text in PAGES.values() for command in commands(text)}
    tables = [*SHORT, *PLANNED, *ELSEWHERE]
    assert len(tables) == len(set(tables))
    assert set(tables) <= given


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_ours_takes_its_words(page: str) -> None:
    """Whether or not it is run in this session: its options and files are there."""
    for part in (part for command in commands(PAGES[page]) for part in re.split(r";|&&|\|", command.text)):
        words = shlex.split(part)
        if words and words[0] == "loadgen":
            asked = make_parser(argparse.ArgumentParser).parse_args(words[1:])
            for path in getattr(asked, "scenarios", None) or ():
                assert (ROOT / path).exists() or "*" in str(path), part


def test_commands_are_marked_as_such() -> None:
    """No block without a language holds a command, nor one of another language: it would not be run."""
    for page, text in PAGES.items():
        for language, block in re.findall(r"^ *```(\S*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
            assert language, f"{page}: a block without a language:\n{block}"
            if language != "console":
                assert not re.search(r"^\s*\$ ", block, re.MULTILINE), f"{page}: commands in a block of {language}"


def test_every_scenario_that_a_page_names_is_there() -> None:
    """In commands and in words."""
    known = {str(path) for path in scenario_files(Path("scenarios"))}
    for page, text in PAGES.items():
        named = set(re.findall(r"scenarios/[\w/]+\.py", text))
        assert named <= known, page
