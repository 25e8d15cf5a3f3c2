"""Requests to RabbitMQ's management API."""

from __future__ import annotations

import base64
import json
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from loadgen.endpoint import Credentials
from loadgen.tls import client_context

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadgen.endpoint import Endpoint

TIMEOUT_S = 5.0


def in_path(name: str) -> str:
    """A name, such as a queue's or a virtual host's, as one part of a path."""
    return urllib.parse.quote(name, safe="")


def management_request(
    endpoint: Endpoint, path: str, method: str = "GET", body: Mapping[str, Any] | None = None
) -> Any:
    """One request for a path of the management API, by no proxy; None where the answer has no body."""
    url = f"{str(endpoint.management_url).rstrip('/').removesuffix('/api')}/api/{path}"
    given = endpoint.credentials or Credentials("guest", "guest")  # the broker's own default user
    login = base64.b64encode(f"{given.username}:{given.password}".encode()).decode()
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if url.startswith("https:") and endpoint.tls is not None:
        handlers.append(urllib.request.HTTPSHandler(context=client_context(endpoint.tls)))
    request = urllib.request.Request(url, method=method, headers={"Authorization": f"Basic {login}"})  # noqa: S310
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S) as answer:
        said = answer.read()
    return json.loads(said) if said else None
