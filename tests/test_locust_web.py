"""Locust's web UI as a person uses it, in a real browser: options, start, more users, our page, stop."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import TYPE_CHECKING, Any

import locusts
import pytest
from browser import Browser

from loadgen.runs import load

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from loadgen.endpoint import Endpoint


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture
def web(
    tmp_path: Path, rabbitmq_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, subprocess.Popen[str], Path]]:
    """A Locust with its web UI: address, process, folder. It knows a user of RabbitMQ, not where that is."""
    assert rabbitmq_endpoint.credentials is not None
    monkeypatch.setenv("LOADGEN_RABBITMQ_USERNAME", rabbitmq_endpoint.credentials.username)
    monkeypatch.setenv("LOADGEN_RABBITMQ_PASSWORD", rabbitmq_endpoint.credentials.password)
    port = free_port()
    words = ["--web-host", "127.0.0.1", "--web-port", str(port), "--set", "rate=400", "--class-picker"]
    process = locusts.start(locusts.command(tmp_path, *words))
    locusts.wait_for(process, "Starting web interface")
    yield f"http://127.0.0.1:{port}", process, tmp_path
    if process.poll() is None:
        locusts.interrupt(process)
        process.communicate(timeout=locusts.STOP_S)


def told(address: str, path: str) -> dict[str, Any]:
    """A JSON document of the web UI."""
    host = address.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", f"/{path}")
    found: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def unpick(browser: Browser, text: str) -> int:
    """Take the ticks off the class picker's rows that show this text; how many there were."""
    rows = f"[...document.querySelectorAll('tr')].filter((e) => e.innerText.includes({json.dumps(text)}))"
    browser.wait(f"{rows}.length > 0")
    return int(browser.run(f"{rows}.map((e) => e.querySelector('input[type=checkbox]').click()).length"))


def test_a_person_starts_watches_changes_and_stops_a_test(
    web: tuple[str, subprocess.Popen[str], Path], tmp_path: Path, rabbitmq_endpoint: Endpoint
) -> None:
    """Form, class picker, statistics, our tab and page are one truth; users are added in mid-test; a run is left."""
    address, process, folder = web
    with Browser(tmp_path / "browser") as browser:
        browser.open(address)
        at = "amqp://{}:{}/".format(*rabbitmq_endpoint.hosts[0])
        for name, value in (("userCount", "2"), ("spawnRate", "2"), ("brokers", at), ("sets", "rate=500")):
            browser.fill(name, value)
        assert unpick(browser, "LatencyKafka") == 2  # what is left drives RabbitMQ, the only broker with an address
        browser.click("start")
        browser.wait("document.body.innerText.includes('latency rabbitmq')")
        browser.click("loadgen", "[role=tab]")
        browser.wait("document.body.innerText.includes('Received msg/s')")
        browser.open(f"{address}/loadgen")
        browser.wait("!!document.querySelector('section[data-broker=rabbitmq]')")
        browser.wait("document.querySelectorAll('#rates path').length > 0")
        assert "RabbitMQ" in browser.text()
        browser.run("fetch('./swarm', {method: 'POST', body: new URLSearchParams({user_count: 4, spawn_rate: 4})})")
        browser.wait("fetch('./loadgen/state').then((r) => r.json()).then((s) => s.users === 4)")
        browser.photograph(tmp_path / "page.png")
        browser.run("fetch('./stop', {method: 'POST'}).then((r) => r.text())")
        browser.wait("fetch('./loadgen/state').then((r) => r.json()).then((s) => s.verdicts.length > 0)")
        browser.wait("/valid|unknown/.test(document.querySelector('.badge')?.innerText ?? '')")
    assert (tmp_path / "page.png").stat().st_size > 20_000
    run = load(folder / "results" / "latest")
    (trial,) = run.records
    counts, end = {}, time.monotonic() + 60
    while counts.get("PUBLISH") != trial["sent"] and time.monotonic() < end:  # Locust answers from a cache of 2 s
        stats = {row["method"]: row for row in told(address, "stats/requests")["stats"]}
        # What was due and could not be sent any more, where the machine was busy, is a failed request.
        counts = {
            method: stats[method]["num_requests"] - stats[method]["num_failures"] for method in ("PUBLISH", "CONSUME")
        }
        time.sleep(0.2)
    assert counts == {"PUBLISH": trial["sent"], "CONSUME": trial["received"]}
    assert stats["PUBLISH"]["median_response_time"] > 0
    assert run.status == "complete"
    assert process.poll() is None
