"""Tests of loadgen.alarms against a small HTTP server that answers as RabbitMQ 4.3 does."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from loadgen.alarms import AlarmReader, AlarmReading, count_blocked, parse_alarms, parse_metrics
from loadgen.endpoint import Credentials, Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

FAILED = b'{"reason":"alarms in effect","status":"failed","alarms":[{"node":"a@x","resource":"memory"}]}'


@contextmanager
def serving(answers: dict[str, tuple[int, bytes]], seen: list[Any]) -> Iterator[str]:
    """A management API that gives these answers and notes what it was asked with."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers.get("Authorization")))
            status, body = answers[self.path.partition("?")[0]]
            self.send_response(status)
            if status == 302:
                self.send_header("Location", body.decode())
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def rabbitmq(management: str | None = None, prometheus: str | None = None, **more: Any) -> Endpoint:
    """A RabbitMQ that is asked there."""
    return Endpoint(
        "rabbitmq",
        (("127.0.0.1", 1),),
        credentials=Credentials("u", "p"),
        management_url=management,
        prometheus_url=prometheus,
        **more,
    )


def test_alarms_and_blocked_connections_are_asked_of_the_management_api(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A failed health check names the resource; no proxy of the environment is used."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    states = b'[{"state":"running"},{"state":"blocked"},{"state":"blocking"},{}]'
    answers = {"/api/health/checks/alarms": (503, FAILED), "/api/connections": (200, states)}
    seen: list[Any] = []
    with serving(answers, seen) as url:
        assert AlarmReader(rabbitmq(url + "/api/")).read() == AlarmReading(("memory",), 2)
        answers["/api/health/checks/alarms"] = (200, b'{"status":"ok"}')
        assert AlarmReader(rabbitmq(url)).read() == AlarmReading((), 2)
    assert {authorization for _, authorization in seen} == {"Basic dTpw"}


@pytest.mark.parametrize(
    ("status", "body"), [(401, b"{}"), (503, b"starting"), (503, b'{"status":"failed"}'), (302, b"/x")]
)
def test_any_other_answer_is_an_error_and_no_alarm(status: int, body: bytes) -> None:
    """A wrong password, a node that starts and a redirect are not taken for an alarm or its absence."""
    with (
        serving({"/api/health/checks/alarms": (status, body)}, []) as url,
        pytest.raises((OSError, ValueError)),
    ):
        AlarmReader(rabbitmq(url)).read()


def test_prometheus_tells_alarms_where_management_is_missing() -> None:
    """The page's path is added when the address has none, and its password is not sent."""
    page = b"# HELP rabbitmq_alarms_memory_used_watermark is 1 if VM memory watermark is in effect\n"
    page += b'rabbitmq_alarms_memory_used_watermark 0\nrabbitmq_alarms_free_disk_space_watermark{node="x"} 1\n'
    seen: list[Any] = []
    with serving({"/metrics": (200, page)}, seen) as url:
        assert AlarmReader(rabbitmq(None, url)).read() == AlarmReading(("disk",), None)
    assert seen == [("/metrics", None)]
    assert not AlarmReader(rabbitmq()).can_ask
    with pytest.raises(ValueError, match="no alarm metrics"):
        parse_metrics(b"up 1\n")


def test_alarms_of_two_nodes_are_named_once() -> None:
    """The resource counts, not how many nodes lack it."""
    alarms = [{"node": node, "resource": resource} for node in "ab" for resource in ("memory", "disk")]
    assert parse_alarms(json.dumps({"alarms": alarms}).encode()) == ("disk", "memory")
    assert count_blocked(b"[]") == 0
