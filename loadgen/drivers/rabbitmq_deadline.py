"""The moment by which pika's blocking calls come back: it sets none itself once a connection is open.

A broker that is stopped, or whose machine is gone, keeps its connections and says nothing more.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pika import exceptions

if TYPE_CHECKING:
    from collections.abc import Iterator


class NoAnswerError(exceptions.AMQPConnectionError):  # type: ignore[misc]
    """The broker has not answered in time; the connection was dropped."""


class _Watch:
    """Drops a connection on which nothing has come for so long; while something comes, the broker is at work."""

    def __init__(self, connection: Any, timeout_s: float) -> None:
        self._impl = connection._impl  # noqa: SLF001 - pika's own timers, which run while it waits; users' do not
        self._timeout_s = timeout_s
        self._arm()

    def _arm(self) -> None:
        self._received_bytes = self._impl.bytes_received
        self._timer = self._impl._adapter_call_later(self._timeout_s, self._look)  # noqa: SLF001

    def _look(self) -> None:
        if self._impl.bytes_received != self._received_bytes:
            self._arm()
        else:
            self._timer = None
            _drop(self._impl, NoAnswerError(f"no answer within {self._timeout_s:g} s"))

    def end(self) -> None:
        """All has come in time."""
        if self._timer is not None:
            self._impl._adapter_remove_timeout(self._timer)  # noqa: SLF001


@contextmanager
def within(connection: Any, timeout_s: float) -> Iterator[None]:
    """Calls of a BlockingConnection raise NoAnswerError where nothing comes for so long; Ctrl-C drops it, too.

    An answer that nobody awaits any more, as after Ctrl-C, would be taken for that to the next call.
    """
    watch = _Watch(connection, timeout_s)
    try:
        yield
    except exceptions.AMQPError:
        raise
    except BaseException:
        if connection.is_open:
            _drop(connection._impl, exceptions.StreamLostError("the call was given up"))  # noqa: SLF001
        raise
    finally:
        watch.end()


def _drop(impl: Any, error: Exception) -> None:
    """End a connection without a word to the broker; who waits for it gets the error."""
    if not impl.is_closed:
        impl._terminate_stream(error)  # noqa: SLF001
