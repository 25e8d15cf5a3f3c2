"""A scenario as Locust's user classes: a producer and a consumer for each broker that it drives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from locust import User, constant, tag

from loadgen.locust.options import scenarios
from loadgen.locust.worker import Place, workers

if TYPE_CHECKING:
    from loadgen.agent import Role
    from loadgen.endpoint import BrokerName
    from loadgen.scenario import Scenario

BROKERS: dict[BrokerName, str] = {"rabbitmq": "RabbitMQ", "kafka": "Kafka"}
ROLES: tuple[Role, ...] = ("consumer", "producer")


class ScenarioUser(User):
    """A user that is one agent of a scenario: it carries its load in a process of its own while this greenlet waits.

    Its task only looks after the agent: where that has failed, it begins again.
    """

    abstract = True
    wait_time = constant(1)
    host = "--brokers"  # what Locust shows as the host: where the brokers come from is that option's to say
    scenario_name: ClassVar[str]
    broker: ClassVar[BrokerName]
    role: ClassVar[Role]
    place: Place | None = None

    def on_start(self) -> None:
        """Take a place among the clients of the scenario."""
        self.place = workers[self.environment].enter(self.scenario_name, self.broker, self.role)

    def on_stop(self) -> None:
        """Give it up: what was sent is confirmed and told first."""
        if self.place is not None:
            workers[self.environment].leave(self.place)

    def look_after(self) -> None:
        """Begin again where the agent has failed."""
        if self.place is not None:
            workers[self.environment].look_after(self.place)


def users_of(scenario: Scenario) -> dict[str, type[ScenarioUser]]:
    """The scenario's user classes by name, for a module's `globals()`; Locust's events are listened to from now on."""
    from loadgen.locust.listeners import listen  # noqa: PLC0415 - it builds on this module

    listen()
    scenarios[scenario.name] = scenario
    found: dict[str, type[ScenarioUser]] = {}
    for broker, title in BROKERS.items():
        for role in ROLES:
            if getattr(scenario, broker) is not None and (role == "producer" or scenario.consumers not in (0, [0])):
                made = _class_of(scenario, broker, role, title)
                found[made.__name__] = made
    return found


def _class_of(scenario: Scenario, broker: BrokerName, role: Role, title: str) -> type[ScenarioUser]:
    @tag(broker, role, scenario.name)
    def carry_load(user: ScenarioUser) -> None:
        user.look_after()

    name = "".join(part.capitalize() for part in scenario.name.split("-")) + title + role.capitalize()
    values: dict[str, Any] = {
        "__doc__": scenario.question,
        "__module__": __name__,
        "scenario_name": scenario.name,
        "broker": broker,
        "role": role,
        "tasks": [carry_load],
    }
    metaclass: Any = type(User)
    made: type[ScenarioUser] = metaclass(name, (ScenarioUser,), values)
    return made
