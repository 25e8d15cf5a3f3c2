"""A demand made into trials: nothing measures here but what measures everywhere.

It becomes three scenarios:

* the demand itself: trials of full length at the demanded rate, both brokers in turns;
* the edge: a capacity search with the p99 as its objective, which tries no rate above `ENOUGH` times the demand: who
  has that much room need not be measured further;
* the loss, where a node's or the broker's own is to be survived and the brokers are ours to hurt: one trial at the
  demanded rate in which the leader is killed.

**The settings.** Preset `throughput`, whose windows and batches leave room for the rate; Kafka's `linger_ms` is a fifth
of the objective, at most the preset's 5 ms: a request costs more than the messages in it, and this much waiting the
objective allows. RabbitMQ's consumers acknowledge a hundred deliveries at once, or what they have when they are idle.
None of it touches the guarantees, which are the class's. There is one queue, and one partition for each consumer.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING

from loadgen.demand import DEMAND, EDGE, LOSS, SHOWN_BY_KILL
from loadgen.errors import ScenarioError
from loadgen.faults import At, Kill
from loadgen.load import apply_sets
from loadgen.plan import make_plan
from loadgen.scenario import Kafka, Message, RabbitMQ, Rate, Scenario

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from loadgen.demand import Demand
    from loadgen.endpoint import BrokerName
    from loadgen.plan import Plan, Profile

P99_MSGS = 2_000
"""In a trial's window, so that its p99 stands on twenty messages beyond it."""
LONGEST_S = 60.0
"""A window is no longer than this to have as many, where nobody asked for it."""
PRODUCER_MSGS_PER_S = 40_000
"""A process of the slower wire driver sends so much (docs/performance.md); a search adds more where one is full."""
LINGER_SHARE, LINGER_MOST_MS = 0.2, 5.0
"""Kafka's linger_ms as a share of the objective."""
PRODUCERS_MOST = 8
KILL_AT_S, KILLED_S = 5.0, 30.0
"""When the leader is killed, and the window: it comes back after 5 s, and Kafka takes as long to notice."""
OWN = {
    "rate": "--rate", "durability": "--survive", "size_bytes": "--size", "message.size_bytes": "--size",
    "subscribers": "--subscribers", "duration_s": "--duration",
}  # fmt: skip
"""What the demand says and no `--set` may."""


def demand_scenarios(
    demand: Demand,
    profile: Profile,
    *,
    producers: int | None = None,
    consumers: int = 1,
    duration_s: float | None = None,
    is_hurt: bool = True,
) -> list[Scenario]:
    """The demand, the edge, and where a kill can show anything, the loss; raises ScenarioError for what cannot be."""
    shared: dict[str, Any] = {
        "message": Message(size_bytes=demand.size_bytes),
        "producers": producers or min(PRODUCERS_MOST, math.ceil(demand.msgs_per_s / PRODUCER_MSGS_PER_S)),
        "consumers": consumers,
        "subscribers": demand.subscribers,
        "durability": demand.durability,
        "preset": "throughput",
        "rabbitmq": RabbitMQ(),
        "kafka": Kafka(linger_ms=min(LINGER_MOST_MS, LINGER_SHARE * demand.p99_ms), partitions=consumers),
    }
    needed_s = min(LONGEST_S, P99_MSGS / demand.msgs_per_s)
    window_s = duration_s or (needed_s if needed_s > profile.duration_s else None)
    load = f"{demand.msgs_per_s:,.10g} messages a second with a p99 of {demand.p99_ms:g} ms"
    scenarios = [
        Scenario(
            name=DEMAND,
            question=f"Does each broker carry {load}?",
            rate=Rate.fixed(demand.msgs_per_s),
            duration_s=window_s,
            **shared,
        ),
        Scenario(
            name=EDGE,
            question=f"How far above {load} does each broker still keep it?",
            rate=Rate.search(demand.p99_ms, min(1e9, demand.enough_msgs_per_s)),
            duration_s=window_s,
            **shared,
        ),
    ]
    if is_hurt and demand.survive in SHOWN_BY_KILL:
        scenarios.append(
            Scenario(
                name=LOSS,
                question="What becomes of confirmed messages when the leader is killed under this load?",
                rate=Rate.fixed(demand.msgs_per_s),
                duration_s=KILLED_S,
                faults=[At(KILL_AT_S, Kill("leader"))],
                **shared,
            )
        )
    return scenarios


def demand_plan(
    demand: Demand,
    scenarios: Sequence[Scenario],
    profile: Profile,
    *,
    brokers: Sequence[BrokerName] = ("rabbitmq", "kafka"),
    repeats: int | None = None,
    seed: int = 1,
) -> Plan:
    """The trials of a demand: all repeats of demand and edge, then one loss of a leader each."""
    measured = [each for each in scenarios if each.name != LOSS]
    plan = make_plan(measured, profile, brokers=brokers, repeats=repeats, seed=seed)
    trials = plan.trials
    hurt = [each for each in scenarios if each.name == LOSS]
    if hurt:
        trials += make_plan(hurt, profile, brokers=brokers, repeats=1, seed=seed).trials
    ordered = tuple(sorted(trials, key=attrgetter("nodes")))
    return replace(plan, trials=ordered, scenarios=tuple(scenarios), demand=demand)


def with_sets(scenarios: Sequence[Scenario], sets: Sequence[tuple[str, Any]]) -> list[Scenario]:
    """The scenarios with knobs replaced; the loss is left out where they are of clients that do not outlive one.

    Raises ScenarioError for a knob that the demand itself says, or that cannot be.
    """
    for key, _ in sets:
        if key in OWN:
            raise ScenarioError(f"--set {key}: is what {OWN[key]} says; expected another knob")
    changed = [apply_sets(each, sets) for each in scenarios if each.name != LOSS]
    for loss in (each for each in scenarios if each.name == LOSS):
        with suppress(ScenarioError):  # all else about these knobs was refused above
            changed.append(apply_sets(loss, sets))
    return changed
