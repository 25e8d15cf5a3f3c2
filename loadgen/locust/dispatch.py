"""Which user Locust starts or stops next: consumers first, and of each role as many as the scenario's proportion says.

Locust spreads users over its classes by weight, in an order of its own; a producer without a consumer would fill a
queue that nobody reads. So the order is the master's (`loadgen.locust.seats`), while Locust spreads them over workers.

`Environment.dispatcher_class` is the hook for this, but what a dispatcher is made of is private. It is used here
and nowhere else; tests/test_locust_internals.py names each such attribute, and pyproject.toml bounds Locust's version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from locust.dispatch import UsersDispatcher

from loadgen.locust.files import ScenarioUser

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.locust.master import Master


class Dispatcher(UsersDispatcher):
    """Locust's own, but for the choice among a scenario's classes."""

    master: Master
    _placed: dict[str, int] | None = None  # while Locust lays all users out anew

    def new_dispatch(self, target_user_count: int, spawn_rate: float, user_classes: Any = None) -> None:
        """So many users are wanted: plan their roles, and let those leave first that are too many of theirs."""
        self.master.dispatcher = self
        self.master.plan(target_user_count)
        super().new_dispatch(target_user_count, spawn_rate, user_classes)
        kept = {each.__name__: 0 for each in self._user_classes}
        staying, leaving = [], []
        for active in self._active_users:
            named = active[1] in self._scenario_names()
            if not named or kept[active[1]] < self.master.wanted_of(active[1]):
                staying.append(active)
            else:
                leaving.append(active)
            kept[active[1]] += 1
        self._active_users = staying + leaving  # Locust stops them from the end on

    def _user_gen(self) -> Iterator[str | None]:
        for name in super()._user_gen():
            if name not in self._scenario_names():
                yield name
                continue
            counts = self._placed
            if counts is None:
                counts = {each: self._get_user_current_count(each) for each in self._scenario_names()}
            chosen = self.master.next_class(counts)
            if self._placed is not None and chosen is not None:
                self._placed[chosen] = self._placed.get(chosen, 0) + 1
            yield chosen

    def _prepare_rebalance(self) -> None:
        self._placed = {}
        super()._prepare_rebalance()
        self._placed = None

    def _scenario_names(self) -> set[str]:
        return {each.__name__ for each in self._user_classes if issubclass(each, ScenarioUser)}

    def swap(self, names: dict[str, str]) -> None:
        """Let the next dispatch have other classes in the place of these: Locust then stops and starts users."""
        for users in self._users_on_workers.values():
            for before, after in names.items():
                if before != after:
                    users[after] = users.get(after, 0) + users.get(before, 0)
                    users[before] = 0
        self._active_users = [(node, names.get(name, name)) for node, name in self._active_users]
        self._rebalance = True
