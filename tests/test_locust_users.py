"""Users written by hand: each request is told to Locust as its own clients tell theirs, and failures are failures."""

from __future__ import annotations

import csv
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.endpoint import BrokerName, Endpoint

EXAMPLE = "docs/examples/locustfile.py"
LARGE = """
import secrets
from locust import constant, events, task
from loadgen.locust import KafkaUser, RabbitMQUser

NAME, BODY = secrets.token_hex(4), secrets.token_bytes(300_000)
told = []
events.request.add_listener(lambda **request: told.append(request))


class Rabbit(RabbitMQUser):
    fixed_count, wait_time, queue = 1, constant(60), f"loadgen-test-{NAME}"

    def context(self):
        return {"who": "me"}

    @task
    def everything(self):
        assert self.client.publish(b"one", headers={"a": 1})
        assert self.client.publish_batch([b"two", b"", BODY]) == 3
        found = []
        while len(found) < 4:
            found += self.client.consume(2, timeout_s=5)
        assert [each.body for each in found] == [b"one", b"two", b"", BODY]
        assert self.client.consume(1, timeout_s=0.05) == []
        assert self.client.request(b"is anybody there?", timeout_s=0.3) is None
        self.client.close()
        (asked,) = self.client.consume(5, timeout_s=5)
        assert (asked.body, bool(asked.reply_to)) == (b"is anybody there?", True)
        assert not self.client.publish(b"to nowhere", exchange="no-such-exchange")
        assert self.client.publish(b"after all")
        request = next(each for each in told if each["context"] == {"who": "me"})
        assert (request["request_type"], request["name"]) == ("publish", f"loadgen-test-{NAME}")
        assert request["response_length"] == 3
        assert 0 < request["response_time"] < 10_000 and request["exception"] is None
        print("RABBIT DONE")


class Kafka(KafkaUser):
    fixed_count, wait_time, topic, group = 1, constant(60), f"loadgen-test-{NAME}", "readers"

    @task
    def everything(self):
        assert self.client.publish(b"one")
        assert self.client.publish_batch([b"two", b"", BODY]) == 3
        found = []
        while len(found) < 4:
            found += self.client.consume(2, timeout_s=5)
        assert [each.body for each in found] == [b"one", b"two", b"", BODY]
        assert self.client.consume(1, timeout_s=0.05) == []
        self.client.close()
        assert self.client.publish(b"later")
        assert [each.body for each in self.client.consume(9, timeout_s=5)] == [b"later"], "the group's position"
        assert self.client.request(b"is anybody there?", timeout_s=0.3) is None
        print("KAFKA DONE")
"""


def locust(
    folder: Path, file: str, *words: str
) -> tuple[subprocess.CompletedProcess[str], dict[tuple[str, str], dict[str, str]]]:
    """Run a locustfile without a web UI; what it said, and its statistics by (type, name)."""
    command = [sys.executable, "-m", "locust", "-f", file, "--headless", "--only-summary", "--csv", str(folder / "s")]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=90, check=False)
    with (folder / "s_stats.csv").open() as file_:
        return done, {(row["Type"], row["Name"]): row for row in csv.DictReader(file_)}


def test_the_example_has_all_kinds_of_requests(tmp_path: Path, endpoints: dict[BrokerName, Endpoint]) -> None:
    """Publishing, consuming, asking and answering on both brokers, without one failure, and no time is shown as 0."""
    del endpoints
    done, rows = locust(tmp_path, EXAMPLE, "-u", "6", "-r", "6", "-t", "6s")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("example-orders", "example-events"):
        for kind in ("publish", "consume", "request"):
            row = rows[kind, name]
            assert int(row["Request Count"]) > 0, (kind, name)
            assert int(row["Failure Count"]) == 0
            assert float(row["Median Response Time"]) > 0
    assert int(rows["publish", "example-events"]["Request Count"]) % 100 == 0


def test_every_request_does_what_it_says(tmp_path: Path, endpoints: dict[BrokerName, Endpoint]) -> None:
    """Bodies of any size arrive as they were; what gets no answer is a failure that says why."""
    del endpoints
    path = tmp_path / "locustfile.py"
    path.write_text(LARGE)
    done, rows = locust(tmp_path, str(path), "-u", "2", "-r", "2", "-t", "8s")
    said = done.stdout + done.stderr
    assert "RABBIT DONE" in said, said
    assert "KAFKA DONE" in said, said
    failures = {key: int(row["Failure Count"]) for key, row in rows.items() if int(row["Failure Count"])}
    assert {kind: count for (kind, _), count in failures.items()} == {"": 3, "publish": 1, "request": 2}
    text = (tmp_path / "s_failures.csv").read_text()
    assert "no reply within 0.3 s" in text
    assert "no-such-exchange" in text
    assert done.returncode == 1, "Locust's own status where there were failures"


@pytest.mark.parametrize("host", ["amqp://127.0.0.1:1", "kafka://127.0.0.1:1"])
def test_a_broker_that_is_not_there_is_a_failure_and_no_exception(tmp_path: Path, host: str) -> None:
    """A user whose broker cannot be reached goes on trying, and every try is a failed request."""
    kind, kept = ("RabbitMQUser", "queue") if host.startswith("amqp") else ("KafkaUser", "topic")
    path = tmp_path / "locustfile.py"
    path.write_text(
        f"from locust import constant, task\nfrom loadgen.locust import {kind}\n\n\nclass Lost({kind}):\n"
        f"    host, wait_time, {kept} = '{host}', constant(0.2), 'nothing'\n\n"
        "    @task\n    def publish(self):\n        assert not self.client.publish(b'x')\n"
    )
    done, rows = locust(tmp_path, str(path), "-u", "1", "-t", "4s", "--exit-code-on-error", "7")
    row = rows["publish", "nothing"]
    assert int(row["Failure Count"]) == int(row["Request Count"]) > 1
    assert "cannot be reached" in (tmp_path / "s_failures.csv").read_text()
    assert done.returncode == 7
    assert "AssertionError" not in done.stderr
