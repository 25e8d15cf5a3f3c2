"""The command line's plan on Locust workers, real ones on real brokers, one of them on a clock of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import locusts
import pytest
from patience import PATIENCE_S, until
from verdicts import due

from loadgen import engine
from loadgen import trial as trial_module
from loadgen.brokers import mark_warmed
from loadgen.engine import Options, execute
from loadgen.errors import HostError, ScenarioError
from loadgen.load import apply_sets, fingerprint, load_scenarios
from loadgen.locust.roster import Asked, Roster, parse_bind
from loadgen.plan import Profile, make_plan
from loadgen.tracking import FIRST_TRIPS
from loadgen.versions import own_version

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.runs import Run

FILE = Path("scenarios/latency.py")
SHIFT_S = 86_400
OWN_CLOCK = ["unshare", "--time", "--monotonic", str(SHIFT_S), "--fork", "--kill-child"]
BUSY_NS = 60 * 10**9  # a machine may hold a message up for so long, and a clock is off by a day
LOST_IN = 3  # the trial in which a worker is killed


def can_shift() -> bool:
    """Whether this system gives a process a clock of its own."""
    try:
        return subprocess.run([*OWN_CLOCK, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def clocks_suffice(trial: dict[str, Any]) -> bool:
    """Whether no latency can be below zero by the clocks' error, which on a busy machine is as large as a latency."""
    return bool(trial["clock"]["error_ns"] < trial["latency_ns"]["ack"]["min"] / 2)


class Workers:
    """Workers that are started as soon as it is known where the master listens, and may be killed."""

    def __init__(self, folder: Path, *prefixes: list[str]) -> None:
        self._folder, self._prefixes = folder, prefixes
        self.lines: list[str] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.kill_in = 0

    def start(self, port: int, prefix: list[str], file: str = str(FILE)) -> None:
        """One worker, as a user starts it."""
        words = [sys.executable, "-m", "locust", "-f", file, "--worker"]
        words += ["--master-host", "127.0.0.1", "--master-port", str(port)]
        with (self._folder / f"w{len(self.processes)}.log").open("wb") as log:
            started = subprocess.Popen([*prefix, *words], stdout=log, stderr=log, start_new_session=True)
        self.processes.append(started)

    def message(self, text: str) -> None:
        """A line of the run that stays; the first one says where the master listens."""
        self.lines.append(text)
        if text.startswith("waiting for"):
            for prefix in self._prefixes:
                self.start(int(text.rpartition(":")[2]), prefix)

    def progress(self, text: str) -> None:
        """Kill the second worker, its crew and its squad, when messages flow in the trial that was chosen."""
        if self.kill_in and text.startswith(f"[{self.kill_in}/") and " 0 msg/s" not in text and "s left" in text:
            self.kill_in = 0
            os.killpg(self.processes[1].pid, signal.SIGKILL)

    def end(self, within_s: float = PATIENCE_S) -> list[int]:
        """Wait for all; their exit statuses."""
        for process in self.processes:
            try:
                process.wait(within_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        return [process.wait() for process in self.processes]


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, endpoints: dict[BrokerName, Endpoint]
) -> tuple[Run, Workers, list[int]]:
    """Both brokers, each twice, on two workers, of which one is killed in the third trial."""
    for endpoint in endpoints.values():
        mark_warmed(endpoint)
    folder = tmp_path_factory.mktemp("distributed")
    (scenario,) = load_scenarios(FILE)
    plan = make_plan([apply_sets(scenario, [("rate", 400)])], Profile("test", 1.0, 1.0, 2), repeats=2)
    workers = Workers(folder, [], OWN_CLOCK if can_shift() else [])
    workers.kill_in = LOST_IN
    asked = Asked(2, {scenario.name: fingerprint(scenario)}, port=0, wait_s=2 * PATIENCE_S, replaced_s=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "WRITTEN_SOURCES", frozenset())  # nothing here is measured: no wait for the disk
        patch.setattr(trial_module, "PROGRESS_EVERY_S", 0.1)  # by which it is known that messages flow
        try:
            run = execute(plan, Options("latency", ["loadgen"], results=folder / "results", fleet=asked), workers)
        finally:
            statuses = workers.end()
    return run, workers, statuses


def test_every_message_is_accounted_for_across_workers(ran: tuple[Run, Workers, list[int]]) -> None:
    """On each broker what one worker's producer sent is what the other one's consumer received, once and intact."""
    run, workers, _ = ran
    assert run.status == "complete", workers.lines
    assert {trial["broker"] for trial in run.records[: LOST_IN - 1]} == {"rabbitmq", "kafka"}
    for trial in run.records[: LOST_IN - 1]:
        assert trial["error"] is None
        assert due(trial) == 800
        assert trial["sent"] == trial["received"] == trial["acked"] > 0
        assert trial["lost"] == trial["duplicated"] == trial["corrupted"] == 0
        assert trial["latency_ns"]["ack"]["count"] == 400
        # The window's ends, by two clocks, and what their error took below zero.
        assert -2 - trial["out_of_range"] <= trial["latency_ns"]["e2e"]["count"] - 400 <= 2
        assert [worker["agents"] for worker in trial["workers"]] == [["consumer0"], ["producer0"]]
        assert trial["under_way"]["samples"] >= 20
        assert not any(worker["lost"] for worker in trial["workers"])


def test_a_run_on_workers_is_one_of_the_command_lines(ran: tuple[Run, Workers, list[int]]) -> None:
    """The document keeps the schema, names no host, and says who ran it; the other worker left in order."""
    run, _, statuses = ran
    document = json.loads((run.path / "run.json").read_text())
    schema = jsonschema.Draft202012Validator(json.loads(Path("loadgen/run.schema.json").read_text()))
    schema.validate(document)
    assert document["fleet"] == "locust"
    assert [worker["name"] for worker in document["workers"]] == ["w0", "w1"]
    assert statuses[0] == 0


def test_a_clock_that_is_a_day_off_is_found_and_corrected(ran: tuple[Run, Workers, list[int]]) -> None:
    """The true offset lies within the error told, and end-to-end latencies are those of the same messages' confirms."""
    if not can_shift():
        pytest.skip("this system gives no process a clock of its own (unshare --time)")
    run, workers, _ = ran
    for trial in run.records[: LOST_IN - 1]:
        own, other = sorted((worker["clock"] for worker in trial["workers"]), key=lambda clock: clock["samples"])
        assert (own["offset_ns"], own["samples"]) == (0, 0)
        assert abs(other["offset_ns"] + SHIFT_S * 10**9) <= other["error_ns"]
        # More trips were made than the first ones, and a line is drawn through at least the quicker half of all.
        assert other["samples"] > FIRST_TRIPS / 2
        assert own["error_ns"] <= trial["clock"]["error_ns"] <= other["error_ns"] + own["error_ns"]
        assert trial["out_of_range"] == 0 or not clocks_suffice(trial)
        # A confirmation is timed by one clock alone. What a message took to arrive can differ from what its
        # confirmation took by a machine's load, not by a day.
        assert trial["latency_ns"]["e2e"]["max"] < trial["latency_ns"]["ack"]["max"] + BUSY_NS
        (check,) = (each for each in trial["verdict"]["checks"] if each["name"] == "clock")
        assert (check["passed"] is False) == (trial["clock"]["error_ns"] >= trial["latency_ns"]["e2e"]["p50"])
    assert [line for line in workers.lines if "clock -86,4" in line or "clock -86,399," in line]


def test_a_worker_that_is_lost_invalidates_its_trial_and_the_plan_goes_on(ran: tuple[Run, Workers, list[int]]) -> None:
    """The trial says which worker it was; the next one runs on the worker that is left."""
    run, workers, _ = ran
    lost, after = run.records[LOST_IN - 1 :]
    assert (lost["status"], lost["verdict"]["status"]) == ("failed", "invalid")
    (gone,) = (worker["name"] for worker in lost["workers"] if worker["lost"])
    assert lost["error"] == f"worker {gone} was lost in mid-trial; its messages cannot be told"
    assert (after["status"], after["error"]) == ("complete", None)
    assert [worker["agents"] for worker in after["workers"]] == [["consumer0", "producer0"]]
    assert due(after) == 800
    assert after["sent"] == after["received"] > 0
    assert "1 of 2 workers are left, and go on" in workers.lines


@pytest.mark.long
def test_a_test_of_locusts_own_may_have_workers_on_other_clocks(tmp_path: Path) -> None:
    """Under Locust, too, the offset is found, and a message's two times are of one clock."""
    if not can_shift():
        pytest.skip("this system gives no process a clock of its own (unshare --time)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", str(port), "--headless"]
    words += ["-u", "2", "-r", "2", "--expect-workers", "2", "--brokers", "memory", "--broker", "kafka"]
    workers = Workers(tmp_path, [], OWN_CLOCK)
    master = locusts.start(locusts.command(tmp_path, *words, "--set", "rate=300"))
    try:
        workers.message(f"waiting for 2 workers at :{port}")
        said = locusts.wait_for(master, locusts.STARTED)
        series = tmp_path / "results" / "latest" / "series.jsonl"
        # Some whole seconds with everybody there: a window is made of those.
        assert until(lambda: series.exists() and series.read_text().count('"received"') >= 7, 0.1)
        locusts.interrupt(master)
        trial = locusts.end(master, tmp_path, said).trial
    finally:
        workers.end()
    assert trial["sent"] == trial["received"] > 0
    assert abs(trial["clock"]["offset_ns"] + SHIFT_S * 10**9) <= trial["clock"]["error_ns"]
    assert trial["out_of_range"] == 0
    assert trial["latency_ns"]["e2e"]["max"] < trial["latency_ns"]["ack"]["max"] + BUSY_NS


def test_too_few_workers_are_one_line() -> None:
    """Who waits in vain is told how many came, and how to start one."""
    with pytest.raises(
        HostError, match=r"--expect-workers 3: 0 came within 0.2 s; start each with `locust -f SCENARIO"
    ):
        Roster(Asked(3, {}, port=0, wait_s=0.2), lambda _: None).__enter__()


def test_a_worker_with_another_scenario_file_is_one_line(tmp_path: Path) -> None:
    """The worker says which scenarios it has loaded, and the run does not begin."""
    workers = Workers(tmp_path, [])
    asked = Asked(1, {"latency": "0"}, port=0, wait_s=2 * PATIENCE_S)
    try:
        with pytest.raises(HostError, match="has another latency than this: its scenario file differs"):
            Roster(asked, workers.message).__enter__()
    finally:
        workers.end(within_s=0.1)


def test_what_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version, another file, no Locust, no address: a line each."""
    roster = Roster(Asked(1, {"latency": "1"}), lambda _: None)
    assert "runs loadgen 0 (x), this is" in str(roster._unfit("0 (x)", {}))
    own = own_version()
    assert "has not loaded the scenario latency (its locustfile has other)" in str(roster._unfit(own, {"other": "2"}))
    assert roster._unfit(own, {"latency": "1", "other": "2"}) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(HostError, match="Locust is not installed; pip install 'loadgen"):
        roster.__enter__()
    assert parse_bind("0.0.0.0") == ("0.0.0.0", 5557)  # noqa: S104 - nothing listens
    assert parse_bind("10.0.0.1:7000") == ("10.0.0.1", 7000)
    for text in ("", ":5557", "host:x", "host:70000"):
        with pytest.raises(ScenarioError, match="expected HOST or HOST:PORT"):
            parse_bind(text)


def test_the_command_lines_process_stays_without_locust() -> None:
    """What a fleet of workers needs here imports neither Locust nor gevent."""
    code = (
        "import sys, loadgen.cli, loadgen.engine, loadgen.locust.remote; print({'locust', 'gevent'} & {*sys.modules})"
    )
    told: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"
