"""A broker that hangs: it keeps its connections and answers nothing, and nobody waits for it for ever."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from loadgen.brokers import process, state
from loadgen.driver import Target
from loadgen.drivers import kafka_admin, load_driver, rabbitmq_admin
from loadgen.drivers.wire.kafka_protocol import Connection
from loadgen.endpoint import OWN_DRIVERS
from loadgen.errors import BrokerError
from loadgen.knobs import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.endpoint import BrokerName, Endpoint

WAIT_S = 100.0  # the whole tool and a broker start within it, however busy the machine
PATIENCE_S = 1.0


def stands_still(thread: Path) -> bool:
    """Whether it is stopped, or has ended."""
    try:
        return "T (stopped)" in (thread / "status").read_text()
    except OSError:
        return True


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that hangs for as long as the block lasts."""
    os.kill(pid, signal.SIGSTOP)
    try:
        # One thread has to take the signal before any of them stops, and on a busy machine others run on until then.
        deadline_s = time.monotonic() + WAIT_S
        while not all(map(stands_still, Path(f"/proc/{pid}/task").iterdir())):
            assert time.monotonic() < deadline_s, "does not stop"
            time.sleep(0.01)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_every_call_of_the_control_plane_ends(
    broker: BrokerName, endpoints: dict[BrokerName, Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Depth and delete raise BrokerError in one line, close returns; once the broker goes on, so does the admin."""
    endpoint = endpoints[broker]
    settings = resolve(broker, {}, "broker", "default")
    target = Target(endpoint, f"hung-{uuid4().hex[:8]}", settings)
    admin, other = (load_driver(OWN_DRIVERS[broker]).admin(endpoint) for _ in range(2))
    admin.create(target)
    monkeypatch.setattr(rabbitmq_admin, "CALL_S", PATIENCE_S)
    monkeypatch.setattr(rabbitmq_admin, "CONNECT_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr(kafka_admin, "CALL_S", PATIENCE_S)
    monkeypatch.setattr(Connection.call, "__defaults__", (PATIENCE_S,))
    try:
        with stopped(endpoint.pids[0]):
            for call in (admin.depth, admin.delete):
                with pytest.raises(BrokerError, match=f"^{broker} at .*(no answer|says nothing|TIMED_OUT).*$"):
                    call(target)
            other.close()
    finally:
        monkeypatch.undo()
        admin.delete(target)
        admin.close()


@pytest.mark.long
def test_ctrl_c_ends_a_run_on_a_broker_that_hangs_and_the_broker_with_it(tmp_path: Path) -> None:
    """However often it is pressed: exit status 130, no traceback, and no process is left."""
    home = tmp_path / "brokers"
    own = {"LOADGEN_BROKERS_DIR": str(home), "LOADGEN_CACHE_DIR": str(state.cache_dir().resolve())}
    command = [sys.executable, "-m", "loadgen.cli", "run", "scenarios/latency.py", "--broker", "rabbitmq"]
    tool = subprocess.Popen(
        [*command, "--results", str(tmp_path / "results")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **own},
    )  # fmt: skip
    try:
        deadline_s = time.monotonic() + WAIT_S
        while not list(tmp_path.glob("results/*/run.json")):
            assert tool.poll() is None, tool.communicate()[1]
            assert time.monotonic() < deadline_s, "never began"
            time.sleep(0.1)
        cluster = state.load("rabbitmq", home)
        assert cluster is not None
        server = cluster.nodes[0].server
        assert server is not None
        os.kill(server.pid, signal.SIGSTOP)
        while tool.poll() is None and time.monotonic() < deadline_s + WAIT_S:
            tool.send_signal(signal.SIGINT)
            time.sleep(0.4)
        _, errors = tool.communicate(timeout=1)
        assert tool.returncode == 130, errors
        assert "Traceback" not in errors
        assert not list(process.find_marked(home))
    finally:
        tool.kill()
        process.end_all(list(process.find_marked(home)), timeout_s=0)
