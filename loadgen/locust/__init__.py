"""Locust: scenario files as locustfiles, users written by hand, and Locust's workers as a fleet.

Nothing here imports Locust or gevent until it is asked for: the processes that carry the load and keep the books are
native ones, without either. For locustfiles: `from loadgen.locust import KafkaUser, RabbitMQUser`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loadgen.locust.users import KafkaUser, RabbitMQUser

__all__ = ["KafkaUser", "RabbitMQUser"]


def __getattr__(name: str) -> Any:
    """The user classes, which need Locust, when a locustfile asks for them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from loadgen.locust import users  # noqa: PLC0415 - it imports Locust, which patches the process

    return getattr(users, name)
