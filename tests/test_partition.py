"""A leader that is cut off from its followers, on real brokers: another one leads, and nothing confirmed is lost."""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from hurts import bare_run, demand_kept, hurt_scenario, record_of

from loadgen import At, Cut, Durability
from loadgen import hurting as hurting_module
from loadgen.analysis.outages import costs
from loadgen.brokers import local, open_brokers, status
from loadgen.brokers.rabbitmq import control
from loadgen.drivers.kafka_topics import Topics
from loadgen.drivers.leaders import leader_of
from loadgen.drivers.rabbitmq_topology import Topology
from loadgen.errors import BrokerError, LoadgenError
from loadgen.load import load_scenarios
from loadgen.plan import PROFILES, make_plan
from loadgen.report import hurt
from loadgen.report.promises import judged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadgen.driver import Target
    from loadgen.endpoint import BrokerName, Endpoint

ASKED_EVERY_S = 1.0
# Kafka misses a broker when its session has ended, after 9 s: where the active controller is cut off itself, 9 s after
# the next one has come.
CUT_S = 18.0
MISSED_S = 90.0  # Erlang misses a node after 45 to 75 s (its net tick time of 60 s, give or take a quarter)


@pytest.fixture(scope="module")
def linked() -> Iterator[dict[BrokerName, Endpoint]]:
    """Three nodes of each broker, which reach each other through a proxy."""
    with open_brokers("local", nodes=3, linked=True, progress=print) as opened:
        yield opened


class Witness:
    """Asks each node who leads while a trial runs, by ways on which nothing is hurt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: dict[int, list[int]] = defaultdict(list)
        """What each node said, in turn."""
        self._begun, self._over = threading.Event(), threading.Event()
        self._target: Target | None = None
        self._thread = threading.Thread(target=self._ask, daemon=True)
        monkeypatch.setattr(hurting_module, "leader_of", self._leader_of)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._begun.set()
        self._thread.join()

    def _leader_of(self, target: Target) -> int:
        """As the fault asks when it begins: from then on all nodes are asked."""
        self._target = target
        self._begun.set()
        return leader_of(target)

    def _ask(self) -> None:
        self._begun.wait()
        while not self._over.wait(ASKED_EVERY_S):
            assert self._target is not None
            for node in (1, 2, 3):
                with suppress(LoadgenError):
                    self.told[node].append(_told_by(self._target, node))


def _told_by(target: Target, node: int) -> int:
    """Who leads by the word of one node; BrokerError where it says nothing."""
    endpoint = target.endpoint
    if endpoint.broker == "kafka":
        return Topics(replace(endpoint, hosts=(endpoint.hosts[node - 1],))).leaders(target.name, 0)[0]
    cluster = local.cluster_of(endpoint)
    question = f"ra_leaderboard:lookup_leader('%2F_{Topology(target).queue(0, 0)}')."
    said = control(cluster, local.node_of(cluster, node), "rabbitmqctl", "eval", question)
    found = re.search(r"rabbit(\d)@", said)
    if found is None:
        raise BrokerError(said)
    return int(found[1])


@pytest.mark.long
@pytest.mark.parametrize("broker", ["kafka", "rabbitmq"])
def test_a_leader_that_is_cut_off_keeps_what_was_confirmed(
    linked: dict[BrokerName, Endpoint], broker: BrokerName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others say that one of them leads now, while it says that it does itself; nothing confirmed is lost."""
    made = hurt_scenario(At(1, Cut(for_s=CUT_S, between="nodes")), name="split", durability=Durability.REPLICATED)
    with Witness(monkeypatch) as witness:
        record = record_of(linked[broker], made, CUT_S + 4, warmup_s=2.0)
    demand_kept(record)
    assert record["acked"] == record["sent"]
    assert judged(record)[1] == "held"
    (fault,) = record["faults"]
    (cut_off,) = fault["nodes"]
    assert fault["error"] is None
    assert fault["confirm_gap_s"] > 0, "what is sent to it no majority has"
    others = {node for node in (1, 2, 3) if node != cut_off}
    assert any(led in others for node in others for led in witness.told[node]), "they have another leader"
    assert cut_off in witness.told[cut_off], "who asks it itself reaches it: clients and tools are not cut off"
    assert record["proxy"] is None, "clients reach the broker directly"
    assert record["links"]["bytes"] > 200 * record["sent"]
    (told,) = hurt.sentences(run := bare_run(record), costs(run))
    assert f"cut between the leader and the other nodes (node {cut_off}) at 1 s" in told
    assert "Its nodes reached each other through a proxy" in told


@pytest.mark.long
def test_nodes_that_miss_each_other_come_back_by_themselves(linked: dict[BrokerName, Endpoint]) -> None:
    """A cut that outlasts Erlang's net ticks: RabbitMQ's nodes give each other up, and join again; nothing is lost."""
    endpoint = linked["rabbitmq"]
    settings = endpoint.configuration["environment"]["rabbit"]
    assert "cluster_partition_handling" not in settings, "RabbitMQ 4.3 has no such thing any more (docs/faults.md)"
    fault = At(1, Cut(for_s=MISSED_S, between="nodes"))
    made = hurt_scenario(fault, name="missed", durability=Durability.REPLICATED, kafka=None)
    record = record_of(endpoint, made, MISSED_S + 15, warmup_s=2.0)
    assert record["status"] == "complete", record["error"]
    assert judged(record)[1] == "held"
    (fault_told,) = record["faults"]
    assert fault_told["error"] is None
    (cut_off,) = fault_told["nodes"]
    missed = f"node rabbit{cut_off}@localhost down: net_tick_timeout"
    cluster = local.cluster_of(endpoint)
    for node in cluster.nodes:
        if node.index != cut_off:
            paths = (cluster.node_dir(node) / "log").glob("*.log")
            later = [path.read_text(errors="replace").partition(missed)[2] for path in paths]
            assert any(f"node rabbit{cut_off}@localhost up" in each for each in later)


@pytest.mark.long
def test_such_brokers_are_others_and_say_so(linked: dict[BrokerName, Endpoint]) -> None:
    """In their deviations, and as long as they are up in the list of what runs."""
    for endpoint in linked.values():
        assert any("through a proxy of loadgen's" in line for line in endpoint.deviations)
    rows = [row for row in status("local") if row["running"] and row["linked"]]
    assert {(row["broker"], len(row["nodes"])) for row in rows} == {("rabbitmq", 3), ("kafka", 3)}
    with pytest.raises(LoadgenError, match="only local brokers"), open_brokers("docker", nodes=3, linked=True):
        pass


def test_the_scenario_of_a_partition_can_be_planned() -> None:
    """On both brokers, on nodes that reach each other through a proxy."""
    plan = make_plan(load_scenarios(Path("scenarios/faults/partition.py")), PROFILES["quick"], repeats=1)
    assert {(trial.broker, trial.site) for trial in plan.trials} == {("rabbitmq", (3, True)), ("kafka", (3, True))}
    faults: list[Any] = [each.fault for trial in plan.trials for each in trial.faults]
    assert {(fault.kind, fault.between) for fault in faults} == {("cut", "nodes")}
