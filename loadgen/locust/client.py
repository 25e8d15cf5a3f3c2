"""What both brokers' clients for hand-written users share: requests are timed, told to Locust, and never raise.

As with Locust's HttpSession a request that fails is a failure in the statistics, with its message, and the task goes
on; the next request connects again. All waiting is on sockets that gevent has made cooperative.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

CONFIRM_S = 10.0  # how long a confirmation is waited for


class RequestTimeoutError(LoadgenError):
    """No answer came in time."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that was consumed; `reply_to` and `correlation_id` are there where somebody waits for a reply."""

    body: bytes
    reply_to: str = ""
    correlation_id: bytes = b""


@dataclass(slots=True)
class Timed:
    """One request while it runs."""

    began: float = field(default_factory=time.perf_counter)
    began_s: float = field(default_factory=time.time)
    error: Exception | None = None

    def elapsed_ms(self) -> float:
        """Until now."""
        return (time.perf_counter() - self.began) * 1000


class Connected(Protocol):
    """What a client is connected by."""

    def close(self) -> None:
        """Leave in order; never raises."""


class BrokerClient:
    """The part of a client that tells Locust about requests.

    Args:
        fire: Locust's request event (`environment.events.request.fire`).
        context: what the user adds to each event.
    """

    def __init__(self, fire: Callable[..., None], context: Callable[[], dict[str, Any]]) -> None:
        self._fire = fire
        self._context = context

    def _tell(
        self, kind: str, name: str, timed: Timed, size_bytes: int, error: Exception | None, response: Any = None
    ) -> None:
        self._fire(
            request_type=kind,
            name=name,
            response_time=timed.elapsed_ms(),
            response_length=size_bytes,
            response=response,
            exception=error,
            context=self._context(),
            start_time=timed.began_s,
            url=name,
        )

    def _failing(self, kind: str, name: str, timed: Timed) -> Failing:
        """Tell Locust what goes wrong within, and leave the connection for a new one."""
        return Failing(self, kind, name, timed)

    def failed(self, kind: str, name: str, timed: Timed, error: Exception) -> None:
        """A request came to nothing."""
        self._drop()
        timed.error = error
        self._tell(kind, name, timed, 0, error)

    def _drop(self) -> None:
        """Forget the connection."""


@dataclass(frozen=True, slots=True)
class Failing:
    """What is done within may fail: then that is told, and what follows goes on."""

    client: BrokerClient
    kind: str
    name: str
    timed: Timed

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, LoadgenError | OSError):
            return False
        self.client.failed(self.kind, self.name, self.timed, error)
        return True
