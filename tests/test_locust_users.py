"""Users written by hand: each request is told to Locust as its own clients tell theirs, and failures are failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S

from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.knobs import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadgen.endpoint import BrokerName, Endpoint

EXAMPLE = "docs/examples/locustfile.py"
QUITTING = """
import gevent
from locust import events

WANTED = {WANTED}
seen = []


@events.init.add_listener
def begin(environment, **_):
    def told(request_type, name, exception, **_):
        seen.append((request_type, name))
        if all(seen.count(each) >= number for each, number in WANTED.items()):
            gevent.spawn(environment.runner.quit)
    environment.events.request.add_listener(told)
"""
LARGE = """
import secrets
import gevent
from locust import constant, events, task
from loadgen.locust import KafkaUser, RabbitMQUser
from loadgen.locust.client_kafka import KafkaClient
from loadgen.locust.client_rabbitmq import RabbitMQClient

NAME, BODY = secrets.token_hex(4), secrets.token_bytes(300_000)
told = []
events.request.add_listener(lambda **request: told.append(request))
events.request.add_listener(lambda exception, **_: print(exception))


class Ending:
    said = []

    def done(self, text):
        print(text)
        self.said.append(text)
        if len(self.said) == 2:
            gevent.spawn(self.environment.runner.quit)


class Rabbit(Ending, RabbitMQUser):
    fixed_count, wait_time, queue = 1, constant(60), f"loadgen-test-{NAME}"

    def context(self):
        return {"who": "me"}

    @task
    def everything(self):
        assert self.client.publish(b"one", headers={"a": 1})
        assert self.client.publish_batch([b"two", b"", BODY]) == 3
        found = []
        while len(found) < 4:
            found += self.client.consume(2, timeout_s=60)
        assert [each.body for each in found] == [b"one", b"two", b"", BODY]
        assert self.client.consume(1, timeout_s=0.05) == []
        assert self.client.request(b"is anybody there?", timeout_s=0.3) is None
        self.client.close()
        (asked,) = self.client.consume(5, timeout_s=60)
        assert (asked.body, bool(asked.reply_to)) == (b"is anybody there?", True)
        assert not self.client.publish(b"to nowhere", exchange="no-such-exchange")
        missing = f"loadgen-missing-{NAME}"
        assert not self.client.publish(b"lost", missing)
        assert self.client.publish_batch([b"lost", b"lost", b"too"], missing) == 0
        assert self.client.publish(b"nobody minds", missing, mandatory=False)
        assert self.client.request(b"is anybody there?", missing, timeout_s=9) is None
        self.other()
        assert self.client.publish(b"after all")
        request = next(each for each in told if each["context"] == {"who": "me"})
        assert (request["request_type"], request["name"]) == ("publish", f"loadgen-test-{NAME}")
        assert request["response_length"] == 3
        assert 0 < request["response_time"] < 10_000 and request["exception"] is None
        self.done("RABBIT DONE")

    def other(self):
        # Two queues' messages, consumed by one client, are each handed out by their own queue's call.
        here, there = f"loadgen-here-{NAME}", f"loadgen-there-{NAME}"
        RabbitMQClient(self.endpoint, there, "classic", 9, lambda **_: None, dict).publish(b"there")
        fired = []
        client = RabbitMQClient(self.endpoint, here, "classic", 9, lambda **told: fired.append(told), dict)
        assert client.publish(b"here")
        assert [each.body for each in client.consume(9, 60)] == [b"here"]
        assert [each.body for each in client.consume(9, 60, there)] == [b"there"]
        assert client.publish(b"here again")
        assert client.publish(b"there again", there)
        assert [each.body for each in client.consume(9, 60, there)] == [b"there again"]
        assert [each.body for each in client.consume(9, 60)] == [b"here again"]
        assert client.consume(9, 5, f"loadgen-missing-{NAME}") == []
        assert "404" in str(fired[-1]["exception"])
        client.close()


class Kafka(Ending, KafkaUser):
    fixed_count, wait_time, topic, group = 1, constant(60), f"loadgen-test-{NAME}", "readers"

    @task
    def everything(self):
        assert self.client.publish(b"one")
        assert self.client.publish_batch([b"two", b"", BODY]) == 3
        found = []
        while len(found) < 4:
            found += self.client.consume(2, timeout_s=60)
        assert [each.body for each in found] == [b"one", b"two", b"", BODY]
        assert self.client.consume(1, timeout_s=0.05) == []
        self.client.close()
        assert self.client.publish(b"later")
        assert [each.body for each in self.client.consume(9, timeout_s=60)] == [b"later"], "the group's position"
        assert self.client.request(b"is anybody there?", timeout_s=0.3) is None
        self.share_out()
        self.done("KAFKA DONE")

    def member(self):
        return KafkaClient(self.endpoint, "{SHARED}", "sharers", {}, lambda **_: None, dict)

    def publish(self, numbers):
        for number in numbers:  # so large that two of them are a partition's share, and another one's turn comes
            assert self.client.publish(b"%d" % number + b" " * 9_000, "{SHARED}")

    def share_out(self):
        # Two of a group get each message once, wherever they run; when one leaves, the other gets all.
        members, got, ended = [self.member(), self.member()], [[], []], [False, False]

        def read(which):
            while not ended[which]:
                got[which] += [int(each.body) for each in members[which].consume(7, 0.3)]
            members[which].close()

        def wait(is_so):
            for _ in range(2_400):
                if is_so():
                    return
                gevent.sleep(0.05)
            raise AssertionError(got)

        readers = [gevent.spawn(read, which) for which in (0, 1)]
        reads = lambda which: members[which]._readers["{SHARED}"]._reads
        wait(lambda: all(member._readers for member in members))
        wait(lambda: len(reads(0)) == len(reads(1)) == 2 and not reads(0) & reads(1))
        self.publish(range(80))
        wait(lambda: sorted(got[0] + got[1]) == list(range(80)) and all(got))
        ended[1] = True
        readers[1].join()
        first = len(got[1])
        self.publish(range(80, 120))
        wait(lambda: sorted(got[0] + got[1]) == list(range(120)))
        assert len(got[1]) == first
        ended[0] = True
        readers[0].join()
        again = self.member()
        assert again.consume(7, 3) == [], "all was committed"
        assert len(again._readers["{SHARED}"]._reads) == 4
        again.close()
"""


MOST = "120s"  # each ends itself once it has done what it is for


def locust(
    folder: Path, file: str, *words: str
) -> tuple[subprocess.CompletedProcess[str], dict[tuple[str, str], dict[str, Any]]]:
    """Run a locustfile without a web UI; what it said, and its statistics by (type, name)."""
    command = [sys.executable, "-m", "locust", "-f", file, "--headless", "--json-file", str(folder / "s")]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
    rows = json.loads((folder / "s.json").read_text())
    return done, {(row["method"], row["name"]): row for row in rows}


def test_the_example_has_all_kinds_of_requests(tmp_path: Path, endpoints: dict[BrokerName, Endpoint]) -> None:
    """Publishing, consuming, asking and answering on both brokers, without one failure, and no time is shown as 0."""
    del endpoints
    wanted = {
        (kind, f"example-{name}"): 2 for kind in ("publish", "consume", "request") for name in ("orders", "events")
    }
    quitting = tmp_path / "quitting.py"
    quitting.write_text(QUITTING.replace("{WANTED}", repr(wanted)))
    done, rows = locust(tmp_path, f"{EXAMPLE},{quitting}", "-u", "6", "-r", "6", "-t", MOST)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("example-orders", "example-events"):
        for kind in ("publish", "consume", "request"):
            row = rows[kind, name]
            assert row["num_requests"] > 0, (kind, name)
            assert row["num_failures"] == 0
            assert row["min_response_time"] > 0
    assert rows["publish", "example-events"]["num_requests"] % 100 == 0


@pytest.fixture
def shared(kafka_endpoint: Endpoint) -> Iterator[str]:
    """A topic of four partitions."""
    target = Target(
        kafka_endpoint, f"loadgen-shared-{os.getpid()}", resolve("kafka", {"partitions": 4}, "broker", "low_latency")
    )
    admin = load_driver("kafka").admin(kafka_endpoint)
    admin.create(target)
    yield target.name
    admin.delete(target)
    admin.close()


def test_every_request_does_what_it_says(tmp_path: Path, endpoints: dict[BrokerName, Endpoint], shared: str) -> None:
    """Bodies of any size arrive as they were; groups share; what gets no answer is a failure that says why."""
    del endpoints
    path = tmp_path / "locustfile.py"
    path.write_text(LARGE.replace("{SHARED}", shared))
    done, rows = locust(tmp_path, str(path), "-u", "2", "-r", "2", "-t", MOST)
    said = done.stdout + done.stderr
    assert "RABBIT DONE" in said, said
    assert "KAFKA DONE" in said, said
    failures: Counter[str] = Counter()
    for (kind, _), row in rows.items():
        failures[kind] += row["num_failures"]
    assert failures == Counter(publish=5, request=3)
    assert "no reply within 0.3 s" in said
    assert "no-such-exchange" in said
    assert "no queue took the message: 312 NO_ROUTE" in said
    assert done.returncode == 1, "Locust's own status where there were failures"


LOST = """
import ctypes
import gevent
from locust import User, constant, events, task
from loadgen.locust import KafkaUser, RabbitMQUser

told = []


@events.init.add_listener
def begin(environment, **_):
    def failed(name, exception, **_):
        print(exception)
        told.append(name)
        if min(map(told.count, ("a-queue", "a-topic"))) > 1:
            gevent.spawn(environment.runner.quit)
    environment.events.request.add_listener(failed)


class Lost(User):
    abstract, wait_time, fixed_count = True, constant(0.2), 1

    @task
    def publish(self):
        assert not self.client.publish(b"x")


class Rabbit(Lost, RabbitMQUser):
    abstract, host, queue = False, "amqp://127.0.0.1:1", "a-queue"


class Kafka(Lost, KafkaUser):
    abstract, host, topic = False, "kafka://127.0.0.1:1", "a-topic"


ctypes.CDLL(None).sleep({SLOW_S})  # nothing else runs meanwhile, gevent's clock neither
"""
SLOW_S = 10


def test_a_broker_that_is_not_there_is_a_failure_and_no_exception(tmp_path: Path) -> None:
    """A user whose broker cannot be reached goes on trying, and every try is a failed request.

    The slow start of the locustfile, as long as the run may last, takes nothing of its time.
    """
    path = tmp_path / "locustfile.py"
    path.write_text(LOST.replace("{SLOW_S}", str(SLOW_S)))
    done, rows = locust(tmp_path, str(path), "-u", "2", "-r", "2", "-t", f"{SLOW_S}s", "--exit-code-on-error", "7")
    for name in ("a-queue", "a-topic"):
        row = rows["publish", name]
        assert row["num_failures"] == row["num_requests"] > 1
    for whom in ("rabbitmq at amqp", "kafka at kafka"):
        assert f"{whom}://127.0.0.1:1 cannot be reached" in done.stdout + done.stderr
    assert done.returncode == 7
    assert "AssertionError" not in done.stderr
