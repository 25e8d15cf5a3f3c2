"""Who takes part in a trial: how many of each role, who comes next, and whose share of the rate is which. Pure.

Consumers come first, so that two users are a consumer and a producer, and that whatever is sent is consumed from the
first message on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection

    from loadgen.agent import Role

Key = tuple[str, int]
"""A worker's name, and its own number of the user."""
BOTH: tuple[Role, ...] = ("consumer", "producer")


@dataclass(frozen=True, slots=True)
class Split:
    """How many of each role so many users are; `consumers` are those of all `subscribers`, the same number of each."""

    producers: int
    consumers: int
    subscribers: int = 1


def split(users: int, producers: int, consumers: int, subscribers: int = 1, roles: Collection[str] = BOTH) -> Split:
    """Users in the scenario's proportion of producers and consumers, at least one of each.

    A single user produces: a consumer alone would have nothing to do. Where there are fewer users than one producer and
    a consumer for each subscriber need, there are fewer subscribers.

    Args:
        users: how many there are to be.
        producers: of the scenario, at least one.
        consumers: of the scenario, those of all subscribers.
        subscribers: of the scenario.
        roles: those that may be taken; the user may have picked classes.
    """
    if "consumer" not in roles or not consumers:
        return Split(users if "producer" in roles else 0, 0)
    if "producer" not in roles:
        return Split(0, users)
    if users < 2:
        return Split(users, 0)
    subscribers = min(subscribers, users - 1)
    wanted = (2 * users * consumers + producers + consumers) // (2 * (producers + consumers))  # rounded half up
    each = max(1, min(wanted, users - 1) // subscribers)
    return Split(users - each * subscribers, each * subscribers, subscribers)


def next_role(producing: int, consuming: int, planned: Split) -> Role:
    """The role that the next user takes, where so many are there already: consumers first."""
    if consuming < planned.consumers:
        return "consumer"
    return "producer" if producing < planned.producers or not planned.consumers else "consumer"


@dataclass(slots=True)
class Seat:
    """One user's place in a trial: its number among those of its role, and how far it has come."""

    key: Key
    role: Role
    index: int
    state: Literal["joining", "ready", "leaving"] = "joining"


@dataclass
class Seats:
    """The places of one trial. A producer's number is never given twice, since the ledger knows producers by it."""

    planned: Split
    seats: dict[Key, Seat] = field(default_factory=dict)
    pids: dict[int, Role] = field(default_factory=dict)
    """The agents on the master's own machine."""
    _producers: int = 0
    told: dict[str, int] = field(default_factory=lambda: {"producer": 0, "consumer": 0})
    """How many of each role have ever been ready, which is how many books there must be."""

    def join(self, key: Key, role: Role) -> Seat:
        """Give a place; a consumer takes the lowest number that is free."""
        if role == "producer":
            index, self._producers = self._producers, self._producers + 1
        else:
            taken = {seat.index for seat in self._of("consumer")}
            index = next(number for number in range(len(taken) + 1) if number not in taken)
        self.seats[key] = Seat(key, role, index)
        return self.seats[key]

    def ready(self, key: Key) -> bool:
        """The agent of this place is connected; False where the place has been given up meanwhile."""
        seat = self.seats.get(key)
        if seat is None:
            return False
        if seat.state == "joining":
            seat.state = "ready"
            self.told[seat.role] += 1
        return True

    def leave(self, key: Key) -> bool:
        """This one is about to end: from now on it has no share. False where it is not here."""
        seat = self.seats.get(key)
        if seat is None:
            return False
        seat.state = "leaving"
        return True

    def end(self, key: Key) -> Seat | None:
        """Its agent has ended."""
        return self.seats.pop(key, None)

    def of_worker(self, worker: str) -> list[Key]:
        """The places of one worker."""
        return [key for key in self.seats if key[0] == worker]

    def _of(self, role: Role) -> list[Seat]:
        return [seat for seat in self.seats.values() if seat.role == role]

    @property
    def may_start(self) -> bool:
        """Whether load can begin: somebody to produce, and every consumer that was to come is there."""
        consumers = self._of("consumer")
        if sum(seat.state == "ready" for seat in consumers) < max(len(consumers), self.planned.consumers):
            return False
        return any(seat.state == "ready" for seat in self._of("producer"))

    @property
    def all_ready(self) -> bool:
        """Whether everybody who was planned is there and connected."""
        ready = [seat for seat in self.seats.values() if seat.state == "ready"]
        return len(ready) == len(self.seats) >= self.planned.producers + self.planned.consumers

    def shares(self) -> dict[str, dict[int, tuple[int, int]]]:
        """By worker and user: (place, producers) among those that are ready; (0, 0) is no share."""
        ready = sorted((s for s in self._of("producer") if s.state == "ready"), key=lambda seat: seat.index)
        found: dict[str, dict[int, tuple[int, int]]] = {}
        for seat in self._of("producer"):
            found.setdefault(seat.key[0], {})[seat.key[1]] = (0, 0)
        for place, seat in enumerate(ready):
            found[seat.key[0]][seat.key[1]] = (place, len(ready))
        return found
