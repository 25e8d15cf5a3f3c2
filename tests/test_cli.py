"""The command line as a person meets it: what it prints, and what it exits with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import synthetic
from commandline import loadgen as loadgen_here
from patience import PATIENCE_S, until

from loadgen.brokers import state
from loadgen.cli import main

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName, Endpoint


def loadgen(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tool to its end."""
    return subprocess.run(
        [sys.executable, "-m", "loadgen.cli", *arguments],
        check=False, capture_output=True, text=True, timeout=2 * PATIENCE_S, env={**os.environ, **environment},
    )  # fmt: skip


def only_line(text: str) -> str:
    """The one line that an error is."""
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    """`--help` needs neither numpy nor pydantic nor a client library."""
    done = loadgen("--help")
    assert done.returncode == 0
    commands = "up down status list run plan compare ab decide probe rerun report doctor"
    for command in commands.split():
        assert command in done.stdout
    heavy = "('numpy', 'pydantic', 'pika', 'confluent_kafka')"
    probe = f"import sys, loadgen.cli as c; c.make_parser(c._Parser); print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stdout.strip() == "[]"
    )


USAGE_ERRORS = [
    (["frobnicate"], "frobnicate"),
    (["run"], "SCENARIO"),
    (["run", "scenarios/nope.py"], "scenarios/nope.py: no such file"),
    (["run", "throughput.py"], "did you mean scenarios/throughput.py?"),
    (["run", "scenarios/latency.py", "--set", "bogus=1"], "bogus: no such knob; there are producers, "),
    (["run", "scenarios/latency.py", "--set", "lingr_ms=5"], "no such knob; did you mean kafka.linger_ms?"),
    (["run", "scenarios/latency.py", "--set", "kafka.lingr_ms=5"], "no such knob; did you mean linger_ms?"),
    (["plan", "scenarios/latency.py", "--set", "durability=foo"], "expected one of none, broker, flushed"),
    (["run", "scenarios/latency.py", "--brokers", "amqp://127.0.0.1"], "ask for --broker rabbitmq"),
    (["run", "scenarios/latency.py", "--set", "kafka.acks=7"], "acks = 7"),
    (["run", "scenarios/latency.py", "--set", "durability=flushed", "--set", "kafka.acks=1"], "class `flushed`"),
    (["plan", "scenarios/latency.py", "--repeats", "0"], "expected 1"),
    (["plan", "scenarios/latency.py", "--profile", "hasty"], "hasty"),
    (["report", "no-such-run"], "no run there"),
    (["run", "scenarios/latency.py", "--cpus-client", "77"], "--cpus 77"),
    (["status", "--brokers", "http://127.0.0.1"], "http"),
    (["up", "--brokers", "memory"], "expected local"),
    (["up", "--nodes", "2"], "choose from 1, 3"),
    (["down", "--brokers", "amqp://127.0.0.1"], "--brokers local or docker"),
]


@pytest.mark.parametrize(("arguments", "words"), USAGE_ERRORS, ids=str)
def test_a_usage_error_is_one_line_and_64(arguments: list[str], words: str) -> None:
    """A mistake on the command line names itself and exits with 64, before any broker is touched."""
    done = loadgen_here(*arguments, folder=Path.cwd())
    assert done.returncode == 64, done.stderr
    assert words in only_line(done.stderr)


def test_an_unreachable_broker_is_one_line_and_69(tmp_path: Path) -> None:
    """Nobody listens on the port: the error names broker and address."""
    for url in ("amqp://127.0.0.1:1/", "kafka://127.0.0.1:1"):
        broker = "kafka" if url.startswith("kafka") else "rabbitmq"
        done = loadgen("run", "scenarios/latency.py", "--brokers", url, "--broker", broker, "--results", str(tmp_path))
        assert done.returncode == 69, done.stderr
        assert "127.0.0.1:1" in only_line(done.stderr)


def test_a_wrong_password_is_one_line_without_the_password(rabbitmq_endpoint: Endpoint, tmp_path: Path) -> None:
    """Refused credentials name the user, and the password appears nowhere."""
    url = f"amqp://guest:s3cr3t-wrong@{rabbitmq_endpoint.address}/"
    done = loadgen("run", "scenarios/latency.py", "--brokers", url, "--broker", "rabbitmq", "--results", str(tmp_path))
    assert done.returncode == 69, done.stderr
    assert "guest" in only_line(done.stderr)
    assert "s3cr3t" not in done.stdout + done.stderr
    assert not [path for path in tmp_path.rglob("*.json") if "s3cr3t" in path.read_text()]
    status = loadgen("status", "--brokers", url)
    assert (status.returncode, status.stderr) == (69, "")
    assert "refused user 'guest'" in only_line(status.stdout)
    assert "s3cr3t" not in status.stdout
    good = loadgen("status", "--brokers", f"amqp://{rabbitmq_endpoint.address}/")
    assert good.stdout == (f"rabbitmq {rabbitmq_endpoint.version}: running, amqp://{rabbitmq_endpoint.address}\n"), (
        good.stderr
    )


def test_results_that_cannot_be_written_are_refused_before_anything_runs(tmp_path: Path) -> None:
    """A results folder that is a file is refused with what to do."""
    blocked = tmp_path / "file"
    blocked.touch()
    done = loadgen("run", "scenarios/latency.py", "--results", str(blocked))
    assert done.returncode == 71
    assert "file: is a file; choose another folder" in only_line(done.stderr)


def test_a_folder_that_cannot_hold_brokers_is_told_with_its_variable() -> None:
    """One line, which names the variable that is wrong."""
    for variable in ("LOADGEN_BROKERS_DIR", "LOADGEN_CACHE_DIR"):
        for command in ("up", "run scenarios/latency.py") if variable == "LOADGEN_BROKERS_DIR" else ("up",):
            done = loadgen(*command.split(), **{variable: "/proc/nope"})
            assert done.returncode == 71
            assert f"set {variable} to a folder" in only_line(done.stderr)


def test_make_test_without_a_browser_is_one_line_and_69() -> None:
    """Said before the first test runs, and not where one fails late."""
    done = subprocess.run(
        [sys.executable, "-c", "import browser; browser.need()"], check=False, capture_output=True, text=True,
        env={**os.environ, "PATH": "/nonexistent", "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    assert done.returncode == 69
    assert "apt-get install chromium" in only_line(done.stderr)


def test_a_plan_says_what_a_run_will_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Trials, minutes and bytes, for people and for machines."""
    assert main(["plan", "scenarios/task_queue.py"]) == 0
    said = capsys.readouterr().out
    assert "9 trials, about" in said
    assert "GB on disk" in said
    assert main(["plan", "scenarios/task_queue.py", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["trials"]) == 9
    assert plan["trials"][0]["settings"]["prefetch"] in {1, 100}


def test_list_shows_each_scenario_with_its_question(capsys: pytest.CaptureFixture[str]) -> None:
    """One line a scenario."""
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"throughput", "latency", "task-queue"} <= {row["name"] for row in rows}
    assert all(row["question"].endswith("?") for row in rows)


def test_list_elsewhere_says_that_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a checkout it says so."""
    monkeypatch.chdir(tmp_path)
    done = loadgen("list")
    assert done.returncode == 64
    assert "no scenarios in ./scenarios" in only_line(done.stderr)


def test_status_tells_versions_and_ports(endpoints: dict[BrokerName, Endpoint]) -> None:
    """Both running brokers, with what a person needs to reach them."""
    rows = {row["broker"]: row for row in json.loads(loadgen("status", "--json").stdout)}
    for name, endpoint in endpoints.items():
        assert rows[name]["running"]
        assert rows[name]["version"] == endpoint.version


SHORT = ("--set", "duration_s=1", "--set", "warmup_s=0", "--set", "rate=300", "--repeats", "1")


def test_a_run_prints_its_result_and_writes_its_report(endpoints: dict[BrokerName, Endpoint], tmp_path: Path) -> None:
    """`run` ends with 0, JSON on stdout where asked, and a report that `report` can write again."""
    del endpoints
    done = loadgen("run", "scenarios/latency.py", *SHORT, "--results", str(tmp_path), "--json")
    assert done.returncode in {0, 2}, done.stderr
    result = json.loads(done.stdout)
    assert {trial["broker"] for trial in result["trials"]} == {"rabbitmq", "kafka"}
    report = Path(result["path"]) / "report.html"
    assert "RabbitMQ" in report.read_text()
    report.unlink()
    with synthetic.undrawn():
        assert main(["report", "latest", "--results", str(tmp_path)]) == 0
    assert report.exists()


def test_a_run_without_a_report_has_its_figures_alone(tmp_path: Path) -> None:
    """`--no-report` leaves out what can be made later."""
    words = ("scenarios/latency.py", *SHORT, "--brokers", "memory", "--results", str(tmp_path))
    done = loadgen("run", *words, "--no-report")
    assert done.returncode in {0, 2}, done.stderr
    assert (tmp_path / "latest" / "run.json").exists()
    assert not (tmp_path / "latest" / "report.html").exists()
    assert "report:" not in done.stderr


def test_a_message_over_the_brokers_own_limit_is_refused_before_any_trial(
    rabbitmq_endpoint: Endpoint, tmp_path: Path
) -> None:
    """The limit is what the running broker tells, and the line says whose it is."""
    limit_bytes = rabbitmq_endpoint.max_message_bytes
    assert limit_bytes is not None
    sizes = f"message.size_bytes=100,{limit_bytes + 1}"
    words = ("run", "scenarios/priorities.py", *SHORT, "--set", sizes, "--results", str(tmp_path))
    done = loadgen(*words)
    assert done.returncode == 64
    said = done.stderr.strip().splitlines()[-1]  # before it, who else uses the broker
    refused = f"message.size_bytes = {limit_bytes + 1}: this rabbitmq takes at most {limit_bytes} bytes"
    assert said.startswith(f"loadgen: {refused}")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_a_run_in_order(endpoints: dict[BrokerName, Endpoint], tmp_path: Path) -> None:
    """SIGINT to the whole group: exit status 130, no traceback, the partial run kept."""
    del endpoints
    tool = subprocess.Popen(
        [sys.executable, "-m", "loadgen.cli", "run", "scenarios/latency.py", *SHORT, "--set", "duration_s=60",
         "--results", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert until(lambda: list(tmp_path.glob("*/series.jsonl")), 0.1)
    os.killpg(tool.pid, signal.SIGINT)
    _, errors = tool.communicate(timeout=PATIENCE_S)
    assert tool.returncode == 130, errors
    assert "Traceback" not in errors
    document = json.loads(next(tmp_path.glob("*/run.json")).read_text())
    assert document["status"] == "partial"
    assert document["trials"][0]["sent"] > 0


def test_ctrl_c_while_a_class_is_being_made_exits_with_130(tmp_path: Path) -> None:
    """CPython ends itself by SIGINT, whatever is returned, where Ctrl-C met code given as text: not this tool."""
    (tmp_path / "interrupted.py").write_text(
        "import sys\nfrom loadgen import cli\n"
        "cli._COMMANDS['list'] = lambda *_: exec('raise KeyboardInterrupt')\nsys.exit(cli.main(['list']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        check=False, capture_output=True, text=True, timeout=PATIENCE_S,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 130
    assert only_line(done.stderr) == "loadgen: interrupted"


@pytest.mark.long
def test_a_broker_that_dies_in_mid_run_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    """Kill -9 of the broker under load: one line naming it, exit status 2, the measured seconds kept."""
    private = {"LOADGEN_BROKERS_DIR": str(tmp_path / "brokers"), "LOADGEN_CACHE_DIR": _cache()}
    up = loadgen("up", "--broker", "rabbitmq", "--json", **private)
    assert up.returncode == 0, up.stderr
    cluster = state.load("rabbitmq", Path(private["LOADGEN_BROKERS_DIR"]))
    assert cluster is not None
    cluster.warmed = True  # its load before the first run would only be waited for
    cluster.save()
    try:
        results = tmp_path / "results"
        tool = subprocess.Popen(
            [sys.executable, "-m", "loadgen.cli", "run", "scenarios/latency.py", *SHORT, "--set", "duration_s=60",
             "--broker", "rabbitmq", "--results", str(results)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **private},
        )  # fmt: skip
        assert until(lambda: list(results.glob("*/histograms.hlog")), 0.1)
        row = next(row for row in json.loads(up.stdout) if row["broker"] == "rabbitmq")
        os.kill(row["pid"], signal.SIGKILL)
        _, errors = tool.communicate(timeout=PATIENCE_S)
        assert tool.returncode == 2, errors
        assert "Traceback" not in errors
        assert "rabbitmq at 127.0.0.1" in errors
        record = json.loads(next(results.glob("*/run.json")).read_text())["trials"][0]
        assert record["status"] == "failed"
        assert next(iter(results.glob("*/histograms.hlog"))).stat().st_size > 0
    finally:
        loadgen("down", **private)


def _cache() -> str:
    return str(state.cache_dir().resolve())
