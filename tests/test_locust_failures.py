"""What goes wrong under Locust: a broker or a worker dies, users come and go. No hang, and true counts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import locusts
import psutil
import pytest
from patience import PATIENCE_S, until

from loadgen.brokers import open_brokers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.endpoint import BrokerName, Endpoint


ALL_THERE_S = 9  # with all its users, of which a trial's warm-up takes two
FAILED_OFTEN = re.compile(r"^(PUBLISH|CONSUME) .*? \d+ +([3-9]|\d\d+)\(")  # in the table that Locust prints every 2 s


class Proxy:
    """A port that leads to a broker, until it is cut."""

    def __init__(self, to: tuple[str, int]) -> None:
        self._to = to
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listening.accept()
                there = socket.create_connection(self._to)
                self._ends += [here, there]
                for source, sink in ((here, there), (there, here)):
                    thread = threading.Thread(target=self._pass, args=(source, sink), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Nothing leads anywhere from now on."""
        for end in (self._listening, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for end in (self._listening, *self._ends):
            end.close()


@pytest.fixture
def proxy(rabbitmq_endpoint: Endpoint) -> Iterator[Proxy]:
    """A way to the session's RabbitMQ that can be cut."""
    made = Proxy(rabbitmq_endpoint.hosts[0])
    yield made
    made.cut()


@pytest.fixture(scope="module", autouse=True)
def gradual(
    tmp_path_factory: pytest.TempPathFactory, endpoints: dict[BrokerName, Endpoint]
) -> Iterator[locusts.Together]:
    """A test whose users come one a second; it needs nobody, and runs beside the others.

    It ends when it is told to: how long a busy machine takes until they are all there nobody can say.
    """
    del endpoints
    made = locusts.Together(tmp_path_factory.mktemp("gradual"))
    made.start("gradual", "--headless", "-u", "6", "-r", "1", "--broker", "rabbitmq", "--set", "rate=300")
    yield made
    made.close()


def test_a_broker_that_dies_shows_as_failures_and_not_as_a_hang(
    tmp_path: Path, proxy: Proxy, rabbitmq_endpoint: Endpoint
) -> None:
    """Users fail and try again, the test ends when it should, the trial says why it failed, and the status is 2."""
    login = rabbitmq_endpoint.credentials
    assert login is not None
    url = f"amqp://{login.username}:{login.password}@127.0.0.1:{proxy.port}/"
    words = ("--headless", "-u", "2", "-r", "2", "--broker", "rabbitmq", "--brokers", url)
    process = locusts.start(locusts.command(tmp_path, *words, "--set", "rate=200"))
    said = locusts.wait_for(process, locusts.STARTED)
    assert until(lambda: seconds_of(tmp_path) >= 2), "load flows"
    proxy.cut()
    said += locusts.wait_for(process, FAILED_OFTEN)
    locusts.interrupt(process)
    ended = locusts.end(process, tmp_path, said)
    assert ended.status == 2, ended.text
    failures = (tmp_path / "stats_failures.csv").read_text()
    assert "rabbitmq at 127.0.0.1" in failures
    trial = ended.trial
    assert (trial["status"], trial["verdict"]["status"]) == ("failed", "invalid")
    assert "rabbitmq at 127.0.0.1" in trial["error"]
    if login.password != "guest":  # noqa: S105 - what RabbitMQ is shipped with, and no secret
        assert login.password not in ended.text + (ended.run.path / "run.json").read_text()


def seconds_of(folder: Path) -> int:
    """Of how many seconds of producers a run under way has told."""
    path = folder / "results" / "latest" / "series.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be under way
    return len({round(row["elapsed_s"]) for row in rows if row.get("sent")})


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[BrokerName, Endpoint]]:
    """Brokers that nobody else uses, to be frozen and killed."""
    cache = os.environ.get("LOADGEN_CACHE_DIR", str(Path(".brokers/install").absolute()))
    with monkeypatch.context() as patch:
        patch.setenv("LOADGEN_BROKERS_DIR", str(tmp_path / "brokers"))
        patch.setenv("LOADGEN_CACHE_DIR", cache)
        with open_brokers("local", progress=print) as opened:
            yield opened
            for pid in opened["rabbitmq"].pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@pytest.mark.long
def test_a_frozen_broker_and_a_killed_one_fail_their_trials_and_hold_nobody_up(
    tmp_path: Path, own: dict[BrokerName, Endpoint]
) -> None:
    """RabbitMQ stops and answers nothing, Kafka dies: each trial says so, and Locust ends when it is told to."""
    login = own["rabbitmq"].credentials
    assert login is not None
    hosts = {name: "{}:{}".format(*endpoint.hosts[0]) for name, endpoint in own.items()}
    together = locusts.Together(tmp_path)
    for name, url in (
        ("rabbitmq", f"amqp://{login.username}:{login.password}@{hosts['rabbitmq']}/"),
        ("kafka", f"kafka://{hosts['kafka']}"),
    ):
        words = ("--headless", "-u", "2", "-r", "2", "-t", "5m", "--broker", name, "--brokers", url)
        together.start(name, *words, "--set", "rate=200")
    try:
        for name, number in (("rabbitmq", signal.SIGSTOP), ("kafka", signal.SIGKILL)):
            folder = together.folder(name)
            assert until(lambda folder=folder: seconds_of(folder) >= 2), f"no load reached {name}"
            for pid in own[name].pids:
                os.kill(pid, number)
        for name, host in hosts.items():
            locusts.interrupt(together.process(name))
            ended = together.ended(name)
            assert ended.status, ended.text
            assert ended.trial["verdict"]["status"] == "invalid"
            assert f"{name} at {host}" in ended.trial["error"]
            assert "Traceback" not in ended.text
    finally:
        together.close()


def test_ctrl_c_ends_locust_whoever_runs_at_that_moment() -> None:
    """Some of its greenlets take an interrupt that comes while they run for themselves: the main one gets it."""
    code = (
        "import os, signal, gevent\nfrom loadgen.locust.listeners import heed_interrupts\nheed_interrupts()\n"
        "def prints():\n    try:\n        gevent.sleep(0.1)\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "        [None for _ in range(100_000)]\n        gevent.sleep(99)\n"
        "    except KeyboardInterrupt:\n        print('taken', flush=True)\n"
        "gevent.spawn(prints)\ntry:\n    gevent.sleep(90)\nexcept KeyboardInterrupt:\n    print('ended')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=2 * PATIENCE_S
    )
    assert done.stdout == "ended\n", done.stdout + done.stderr


def test_a_keeper_that_does_not_answer_is_told_and_ended() -> None:
    """A call of a process that is stuck fails in its time, the next at once, and closing it waits no longer either."""
    code = (
        "from loadgen.locust import helper, users\nimport os, signal, time\n"
        "helper.UP_S = 200.0\nhelper.CALL_S = helper.END_S = 0.5\n"
        "keeper = helper.Helper('keeper', lambda *_: None, lambda: None)\nkeeper.wait_up()\n"
        "os.kill(keeper.pid, signal.SIGSTOP)\n"
        "print([keeper.call('close', partial=None, thresholds=[])['status'] for _ in range(2)])\n"
        "helper.CALL_S = 1000\nassert 'does not answer' in keeper.call('close')['error']\n"
        "keeper.close()\ntry:\n    os.kill(keeper.pid, 0)\nexcept ProcessLookupError:\n    print('gone')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=2 * PATIENCE_S
    )
    assert done.stdout == "[70, 70]\ngone\n", done.stderr


@pytest.mark.long
def test_a_worker_that_dies_invalidates_the_trial_and_the_rest_goes_on(
    tmp_path: Path, endpoints: dict[BrokerName, Endpoint]
) -> None:
    """One of two workers is killed: its agents end with it, the others share the rate, and the trial is struck out."""
    del endpoints
    words = ("--processes", "2", "--headless", "-u", "4", "-r", "4", "-t", "24s", "--broker", "rabbitmq")
    process = locusts.start(locusts.command(tmp_path, *words, "--set", "rate=200", "--logfile", str(tmp_path / "log")))
    assert until(lambda: (tmp_path / "log").exists() and "begins" in (tmp_path / "log").read_text())
    assert until(lambda: seconds_of(tmp_path) >= 2), "load flows"
    workers = [each for each in psutil.Process(process.pid).children() if "locust" in " ".join(each.cmdline())]
    forked = [each for each in workers if each.children()]
    theirs = [crew for each in forked[:1] for crew in each.children(recursive=True)]
    os.kill(forked[0].pid, signal.SIGKILL)
    gone, alive = psutil.wait_procs(theirs, timeout=PATIENCE_S)
    assert gone
    assert not alive, "a crew and its agents end with their worker"
    ended = locusts.end(process, tmp_path)
    assert ended.trial["verdict"]["status"] == "invalid"
    assert "was lost in mid-trial" in ended.trial["error"]
    assert ended.status != 0


def test_users_who_come_and_go_leave_no_message_unaccounted(gradual: locusts.Together) -> None:
    """While users are spawned one a second the rate is the scenario's all along, and every message is counted once."""
    process = gradual.process("gradual")
    said = locusts.wait_for(process, locusts.STARTED)
    there = seconds_of(gradual.folder("gradual"))
    assert until(lambda: seconds_of(gradual.folder("gradual")) >= there + ALL_THERE_S, 0.2)
    locusts.interrupt(process)
    ended = gradual.ended("gradual", said)
    assert ended.run.status == "complete", ended.text
    trial = ended.trial
    assert (trial["producers"], trial["consumers"]) == (3, 3)
    assert trial["sent"] == trial["received"] == trial["acked"] == ended.carried("CONSUME")
    assert trial["lost"] == trial["duplicated"] == 0
    # By the second in which they were intended; an order that comes late on a busy machine costs some, which are told
    # (the schedules themselves are exact: test_shares.py).
    late = [each["text"] for each in trial["observer"]["events"] if each["kind"] == "late share"]
    costs = sum(int(re.search(r"([\d,]+) messages", text)[1].replace(",", "")) for text in late)  # type: ignore[index]
    seconds: dict[int, int] = {}
    for each in ended.run.intervals(trial["id"], "schedule_lag"):
        second = round(each.start_s)
        seconds[second] = seconds.get(second, 0) + each.histogram.count
    whole = [count for _, count in sorted(seconds.items())][1:-1]
    assert len(whole) > 4, ended.text
    assert abs(sum(whole) - 300 * len(whole)) < 0.03 * 300 * len(whole) + 10 + costs, whole
