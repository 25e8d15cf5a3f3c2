"""Which worker runs which agents: all of them, each once, and the two roles apart where there are two machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from loadgen import Message, Rate
from loadgen.agent import AgentSpec
from loadgen.driver import Target
from loadgen.drivers.memory import memory_endpoint
from loadgen.locust.messages import pack, unpack
from loadgen.locust.spread import Place, spread
from loadgen.think import Think

if TYPE_CHECKING:
    from loadgen.agent import Role

SETTINGS = {"confirms": True}


def spec(role: Role, number: int, rate: Rate | None = None, settings: dict[str, bool] | None = None) -> AgentSpec:
    """One agent."""
    return AgentSpec(
        role=role,
        name=f"{role}{number}",
        row=number + 1,
        index=number,
        count=1,
        driver="memory",
        target=Target(memory_endpoint(), "loadgen-test", settings or SETTINGS),
        message=Message(size_bytes=100),
        rate=rate or Rate.fixed(10),
        seed=1,
        token=1,
        warmup_s=0.0,
        duration_s=1.0,
        consumers=1,
        board=Path("/dev/shm/x"),  # noqa: S108 - nothing is opened
        rows=9,
    )


PLACES = st.lists(st.integers(0, 3), min_size=1, max_size=9).map(
    lambda machines: [Place(f"w{number}", machine) for number, machine in enumerate(machines)]
)


@given(st.integers(0, 6), st.integers(1, 6), PLACES)
def test_every_agent_runs_once_and_roles_share_nothing_that_they_need_not(
    consumers: int, producers: int, places: list[Place]
) -> None:
    """Nobody is left out or doubled; no worker has both roles where there are two, no machine where there are two."""
    specs = [*(spec("consumer", k) for k in range(consumers)), *(spec("producer", k) for k in range(producers))]
    given_out = spread(specs, places)
    assert sorted(each.name for part in given_out.values() for each in part) == sorted(each.name for each in specs)
    machines = {place.worker: place.machine for place in places}
    of_worker = {worker: {each.role for each in part} for worker, part in given_out.items()}
    if len(places) > 1 and consumers:
        assert all(len(roles) == 1 for roles in of_worker.values())
    if len(set(machines.values())) > 1:
        for machine in machines.values():
            assert (
                len({role for worker, roles in of_worker.items() if machines[worker] == machine for role in roles}) < 2
            )


def test_a_closed_loop_that_consumers_bound_stays_on_one_worker() -> None:
    """Without confirms, and with think time, producers read what consumers have received from the worker's board."""
    places = [Place("w0", 0), Place("w1", 1)]
    loop = Rate.saturate()
    unconfirmed = [spec(role, 0, loop, {"confirms": False}) for role in ("consumer", "producer")]
    assert spread(unconfirmed, places).keys() == {"w0"}
    confirmed = [spec(role, 0, loop) for role in ("consumer", "producer")]
    assert spread(confirmed, places).keys() == {"w0", "w1"}
    thinking = [replace(each, think=Think(mean_ms=1.0)) for each in confirmed]
    assert spread(thinking, places).keys() == {"w0"}


def test_an_agents_specification_travels_whole() -> None:
    """What a worker is told of an agent is what the fleet was given."""
    given_out = [spec("consumer", 0), spec("producer", 1, Rate.poisson(5.0))]
    assert unpack(pack(given_out)) == given_out
