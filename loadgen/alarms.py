"""RabbitMQ's resource alarms, blocked connections and memory, asked of the broker over HTTP at little cost to it.

The health check of the management plugin answers from memory in a few bytes; its connection list lags by
seconds but holds only ours. Without the management plugin, the Prometheus page tells of alarms only.
"""

from __future__ import annotations

import base64
import json
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

    from loadgen.endpoint import Endpoint, Tls

TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 4 << 20
CHECK_FAILED = 503  # the status of a health check that found alarms
PROMETHEUS_ALARMS = {
    "rabbitmq_alarms_memory_used_watermark": "memory",
    "rabbitmq_alarms_free_disk_space_watermark": "disk",
    "rabbitmq_alarms_file_descriptor_limit": "file_descriptor_limit",
}
MEMORY_FAMILY = "node_coarse_metrics"
MEMORY_METRIC = "rabbitmq_detailed_process_resident_memory_bytes"


@dataclass(frozen=True, slots=True)
class AlarmReading:
    """Which resources are alarmed, and how many connections the broker has blocked (None: not told)."""

    alarms: tuple[str, ...]
    blocked_connections: int | None


class MemoryReader:
    """Asks one broker how much memory it says it uses; raises OSError or ValueError as `AlarmReader` does.

    It counts that itself every few seconds only; one family of metrics costs it 0.9 ms of CPU, all of them 5.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        assert endpoint.prometheus_url is not None, "only the Prometheus page tells"
        self._url = detailed_url(endpoint.prometheus_url, MEMORY_FAMILY)
        self._pages = Pages(endpoint)

    def read(self) -> int:
        """Resident memory in bytes."""
        return parse_memory_bytes(self._pages.get(self._url)[1])


class AlarmReader:
    """Asks one broker; raises OSError or ValueError when it does not answer as expected."""

    def __init__(self, endpoint: Endpoint) -> None:
        management, prometheus = endpoint.management_url, endpoint.prometheus_url
        self._management = management.rstrip("/").removesuffix("/api") if management else None
        self._prometheus = _metrics_url(prometheus) if prometheus else None
        self._get = Pages(endpoint).get

    @property
    def can_ask(self) -> bool:
        """Whether the endpoint tells where to ask."""
        return bool(self._management or self._prometheus)

    def read(self) -> AlarmReading:
        """Ask now."""
        if self._management is None:
            assert self._prometheus is not None, "can_ask is checked first"
            return AlarmReading(parse_metrics(self._get(self._prometheus)[1]), None)
        status, body = self._get(f"{self._management}/api/health/checks/alarms", authorized=True)
        alarms = () if status != CHECK_FAILED else parse_alarms(body)
        connections = self._get(f"{self._management}/api/connections?columns=state", authorized=True)[1]
        return AlarmReading(alarms, count_blocked(connections))


class Pages:
    """A broker's pages over HTTP."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._opener = _opener(endpoint.tls)
        self._authorization: str | None = None
        if endpoint.credentials is not None:
            pair = f"{endpoint.credentials.username}:{endpoint.credentials.password}"
            self._authorization = "Basic " + base64.b64encode(pair.encode()).decode()

    def get(self, url: str, *, authorized: bool = False) -> tuple[int, bytes]:
        """A page's status and bytes."""
        request = Request(url)  # noqa: S310 - the opener knows http and https only
        if authorized and self._authorization:
            request.add_unredirected_header("Authorization", self._authorization)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                return answer.status, answer.read(ANSWER_BYTES_MAX)
        except HTTPError as error:
            with error:
                if error.code != CHECK_FAILED:
                    raise OSError(f"HTTP status {error.code}") from None
                return error.code, error.read(ANSWER_BYTES_MAX)


def parse_alarms(body: bytes) -> tuple[str, ...]:
    """The alarmed resources in a failed health check's answer; any other 503 is an error."""
    answer: Any = json.loads(body)
    alarms = answer.get("alarms") if isinstance(answer, dict) else None
    if not alarms:
        raise ValueError("a failed health check that names no alarm")
    return tuple(sorted({str(each.get("resource", each)) if isinstance(each, dict) else str(each) for each in alarms}))


def count_blocked(body: bytes) -> int:
    """Connections that may not publish now, or that will not be allowed to when they try."""
    return sum(each.get("state") in {"blocked", "blocking"} for each in json.loads(body))


def parse_metrics(body: bytes) -> tuple[str, ...]:
    """The alarmed resources on a Prometheus page; a page without those metrics is an error."""
    values: dict[str, float] = {}
    for line in body.decode(errors="replace").splitlines():
        name, _, value = line.rpartition(" ")
        resource = PROMETHEUS_ALARMS.get(name.partition("{")[0])
        if resource is not None and not line.startswith("#"):
            values[resource] = max(values.get(resource, 0), float(value))
    if not values:
        raise ValueError("no alarm metrics on the Prometheus page")
    return tuple(sorted(resource for resource, value in values.items() if value))


def parse_memory_bytes(body: bytes) -> int:
    """The resident memory on a page of one family of metrics; a page without it is an error."""
    for line in body.decode(errors="replace").splitlines():
        if line.startswith(MEMORY_METRIC):
            return int(float(line.rpartition(" ")[2]))
    raise ValueError("no resident memory on the Prometheus page")


def _metrics_url(url: str) -> str:
    """The page of all metrics, where the endpoint names the listener alone."""
    return url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/metrics"


def detailed_url(url: str, family: str) -> str:
    """The page of one family of metrics, object by object."""
    return f"{_metrics_url(url).rstrip('/')}/detailed?family={family}"


class _NoRedirect(HTTPRedirectHandler):
    """The broker's own address answers or nobody does."""

    def redirect_request(self, *_arguments: Any, **_keywords: Any) -> None:
        return None


def _opener(tls: Tls | None) -> OpenerDirector:
    """No proxy (the broker is here or named), no redirects, and the endpoint's own idea of TLS."""
    context: ssl.SSLContext | None = None
    if tls is not None:
        context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
        if not tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if tls.cert_file:
            context.load_cert_chain(tls.cert_file, tls.key_file)
    return build_opener(ProxyHandler({}), _NoRedirect, HTTPSHandler(context=context))
