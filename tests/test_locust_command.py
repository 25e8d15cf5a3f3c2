"""`locust -f scenarios` before any load: what it lists, what it imports, and mistakes in one line."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import locusts
import pytest
from patience import PATIENCE_S

from loadgen.load import load_scenarios, scenario_files

if TYPE_CHECKING:
    from pathlib import Path


def test_every_scenario_is_a_locustfile() -> None:
    """`locust -f scenarios --list` names two classes for each broker of every scenario."""
    words = [sys.executable, "-m", "locust", "-f", "scenarios", "--list"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout.split()
    for path in scenario_files():
        for scenario in load_scenarios(path):
            name = "".join(part.capitalize() for part in scenario.name.split("-"))
            for broker, title in (("rabbitmq", "RabbitMQ"), ("kafka", "Kafka")):
                for role in ("Producer", "Consumer"):
                    assert (f"{name}{title}{role}" in listed) == (getattr(scenario, broker) is not None)


def test_importing_a_scenario_imports_neither_locust_nor_gevent() -> None:
    """The command line and notebooks stay unpatched, also with Locust installed."""
    code = (
        "import sys; from pathlib import Path; from loadgen.load import load_scenarios, scenario_files;"
        "[load_scenarios(path) for path in scenario_files()];"
        "import loadgen.cli, loadgen.engine, loadgen.locust.crew, loadgen.locust.keeper;"
        "print([name for name in sys.modules if name.split('.')[0] in ('locust', 'gevent')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "text", "status"),
    [
        (("--set", "prefetch"), "--set prefetch", 64),
        (("--threshold", "p98<1"), "--threshold p98<1", 64),
        (("--set", "backlog_msgs=1000"), "backlog_msgs has phases", 64),
        (("--broker", "kafka", "LatencyRabbitMQProducer"), "none of the classes picked", 64),
        (("--brokers", "kafka://127.0.0.1:1", "--broker", "kafka"), "cannot be reached", 69),
    ],
)
def test_what_cannot_be_run_is_one_line_and_a_status(
    tmp_path: Path, words: tuple[str, ...], text: str, status: int
) -> None:
    """A mistake is told before any load, without a traceback."""
    command = locusts.command(tmp_path, "--headless", "-t", "2s", *words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == status
