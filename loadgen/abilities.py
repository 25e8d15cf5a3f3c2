"""What some admins can do beside `loadgen.driver.Admin`: begin anywhere, read again, tell what was taken out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Target


@runtime_checkable
class Seekable(Protocol):
    """What an admin has beside `Admin` if consumers may begin anywhere: topics and streams."""

    def ends(self, target: Target) -> dict[int, int]:
        """The offset behind the last message of each partition."""
        ...


@runtime_checkable
class Rereadable(Protocol):
    """What an admin has beside `Admin` if all that was stored can be read once more: topics."""

    def reread(self, target: Target) -> Iterator[bytes]:
        """Every message that is stored, by a client that knows nothing of the trial; raises BrokerError."""
        ...


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that left a subscriber's queue for a reason of `REMOVALS`, and came to its dead-letter queue."""

    subscriber: int
    reason: str
    body: bytes


REMOVALS = ("maxlen", "expired", "rejected", "delivery_limit")
"""Why a broker takes messages out of a queue, other than to a consumer, in RabbitMQ's own words."""


@runtime_checkable
class Removing(Protocol):
    """What an admin has beside `Admin` if its broker may take messages out of queues by itself."""

    def removed(self, target: Target) -> dict[str, int] | None:
        """How many since the target was created, for each reason of `REMOVALS`; None where the broker does not tell.

        The count is of all that the broker has, so that nobody else should use it meanwhile.
        """
        ...

    def dead_letters(self, target: Target) -> Iterator[DeadLetter]:
        """Empty the target's dead-letter queues, if it has any, once its own queues are not used any more."""
        ...
