"""A scenario whose network is hurt, on real brokers: clients recover, nothing confirmed is lost, and it is told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hurts import bare_run, demand_kept, hurt_scenario, record_mended
from pydantic import ValidationError

from loadgen import At, Crash, Cut, Delay, Kill, RabbitMQ, Reset, Scenario, Throttle
from loadgen.analysis.outages import costs
from loadgen.errors import ScenarioError
from loadgen.faults import needs_links, needs_proxy
from loadgen.load import load_scenarios
from loadgen.plan import PROFILES, make_plan
from loadgen.report import hurt
from loadgen.report.promises import judged

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName, Endpoint


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_a_network_that_resets_and_cuts_loses_nothing_confirmed(
    endpoints: dict[BrokerName, Endpoint], broker: BrokerName
) -> None:
    """Each fault is carried out, mended and told with its gap, and so is that clients came through a proxy."""
    faults = (At(0.2, Reset()), At(0.4, Cut(for_s=1.0)))
    record = record_mended(endpoints[broker], hurt_scenario(*faults, name="network"), warmup_s=0.5)
    demand_kept(record)
    assert record["acked"] == record["sent"]
    assert judged(record)[1] == "held"
    reset, cut = record["faults"]
    assert (reset["error"], cut["error"], reset["nodes"], cut["nodes"]) == (None, None, [1], [1])
    assert reset["mended_after_s"] < 1.0 <= cut["mended_after_s"]
    assert cut["confirm_gap_s"] > 0.9
    assert cut["delivery_gap_s"] > 0.9
    assert record["proxy"]["connections"] >= 4, "each client's, and again after the reset"
    assert record["proxy"]["bytes"] > 2 * 200 * record["sent"]
    (told,) = hurt.sentences(run := bare_run(record), costs(run))
    assert "reset of the connections to the leader (node 1) at" in told
    assert "cut of the leader from the clients (node 1) at" in told
    assert "Clients reached it through a proxy" in told


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cut(for_s=-1), "for_s"),
        (lambda: Delay("leader"), "delay_ms"),
        (lambda: Delay("leader", delay_ms=0), "delay_ms"),
        (lambda: Throttle("all", rate_bytes_per_s=10), "rate_bytes_per_s"),
        (lambda: Reset("everybody"), "who"),
        (lambda: Reset("leader", for_s=1), "for_s"),
        (lambda: hurt_scenario(At("1s", Cut(2))), "there is no node 2: expected 1 to 1 in class broker"),
        (lambda: Cut(between="racks"), "between"),
        (
            lambda: hurt_scenario(At("1s", Cut(between="nodes"))),
            "class broker has one node; expected durability = replicated or replicated_flushed",
        ),
        (
            lambda: hurt_scenario(At("1s", Reset()), rabbitmq=RabbitMQ(driver="pika")),
            "driver pika does not open another",
        ),
    ],
)
def test_a_fault_that_cannot_be_is_one_line(make: Any, words: str) -> None:
    """What was given, and what was expected."""
    with pytest.raises((ScenarioError, ValidationError)) as refused:
        make()
    assert words in str(refused.value)


def test_only_who_asks_for_it_pays_for_a_proxy() -> None:
    """Faults of nodes and of clients need none; a scenario remembers all of them, and describes them to people."""
    faults = [At(1, Cut(2, for_s=3)), At(2, Delay("all", delay_ms=0.5)), At(3, Reset(1)),
              At(4, Throttle("leader", rate_bytes_per_s=20_000))]  # fmt: skip
    made = hurt_scenario(*faults, durability="replicated")
    assert Scenario(**made.model_dump(mode="json", exclude_none=True)).faults == faults
    assert [each.fault.described() for each in faults] == [
        "cut of node 2 from the clients", "delay of 0.5 ms to all nodes", "reset of the connections to node 1",
        "throttle of the leader to 20,000 bytes/s",
    ]  # fmt: skip
    assert all(needs_proxy((each,)) and not needs_links((each,)) for each in faults)
    assert not needs_proxy((At(1, Kill()), At(2, Crash())))


def test_faults_between_nodes_are_described_as_such_and_need_no_proxy_for_clients() -> None:
    """Each of the four; the scenario remembers between whom."""
    faults = [At(1, Cut(2, between="nodes")), At(2, Delay("all", delay_ms=0.5, between="nodes")),
              At(3, Reset(1, between="nodes")), At(4, Throttle(rate_bytes_per_s=20_000, between="nodes"))]  # fmt: skip
    made = hurt_scenario(*faults, durability="replicated")
    assert Scenario(**made.model_dump(mode="json", exclude_none=True)).faults == faults
    assert [each.fault.described() for each in faults] == [
        "cut between node 2 and the other nodes", "delay of 0.5 ms between all nodes",
        "reset of the connections between node 1 and the other nodes",
        "throttle between the leader and the other nodes to 20,000 bytes/s",
    ]  # fmt: skip
    assert all(needs_links((each,)) and not needs_proxy((each,)) for each in faults)


def test_the_scenario_of_networks_can_be_planned() -> None:
    """Every fault of the network, on both brokers, in a class of one node and one of three."""
    plan = make_plan(load_scenarios(Path("scenarios/faults/network.py")), PROFILES["quick"], repeats=1)
    assert {each.fault.kind for trial in plan.trials for each in trial.faults} == {"cut", "delay", "throttle", "reset"}
    assert {(trial.broker, trial.nodes) for trial in plan.trials} == {
        ("rabbitmq", 1), ("rabbitmq", 3), ("kafka", 1), ("kafka", 3)
    }  # fmt: skip
