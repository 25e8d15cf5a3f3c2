"""Requests to RabbitMQ's management API."""

from __future__ import annotations

import base64
import json
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

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
    """One request for a path of the management API, by no proxy; None where the answer has no body.

    A cluster's nodes are asked in turn until one answers, be it by an error of HTTP; OSError where none does.
    """
    failure: OSError = ConnectionError("no address")
    for url in (str(endpoint.management_url), *endpoint.management_urls):
        try:
            return _asked(endpoint, f"{url.rstrip('/').removesuffix('/api')}/api/{path}", method, body)
        except HTTPError:
            raise
        except OSError as error:  # this node has gone, or stands still
            failure = error
    raise failure


def _asked(endpoint: Endpoint, url: str, method: str, body: Mapping[str, Any] | None) -> Any:
    """One request to one node."""
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
