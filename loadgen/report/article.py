"""The article's ten rows: its words for each broker, the evidence that answers them, and the rules that judge.

This is the one place to read or to change what is claimed. A claim is a rule with the article's own numbers or names in
it (`rules`, `probe_rules`); what a rule is given are the figures of `scenarios` or of a `probe`, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.probes.quantities import AGED, SIZED
from loadgen.report import evidence, fault_evidence
from loadgen.report.pattern_rules import ScalingClaim, UseClaim
from loadgen.report.probe_rules import DeliveryClaim, EffortClaim, LimitedClaim, SizeClaim, SpokenClaim
from loadgen.report.rules import MS, CeilingClaim, LatencyClaim, OrderClaim, ReachClaim

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.record import Record
    from loadgen.report import points as pt
    from loadgen.report.probe_rules import FoundClaim
    from loadgen.report.rules import Claim, Figure

    Rule = Claim | FoundClaim | ScalingClaim | UseClaim

MB = 1 << 20  # both brokers' makers count a megabyte so
# What a beginner meets; processes, threads and data on disk are shown beside them, and say the same things again.
EFFORTS = (
    "time",
    "commands",
    "memory",
    "installed on disk",
    "calls to declare 2 subscribers",
    "settings that must differ from default",
)


@dataclass(frozen=True)
class Claimed:
    """A row of the article: its words for each broker, the rules that stand for those words, and what they judge.

    `measure` gathers figures from trials, `faults` from those with faults; `probe` names the probe whose findings are
    figures.
    """

    feature: str
    rabbitmq: str
    kafka: str
    rules: tuple[Rule, Rule]
    measure: Callable[[Sequence[pt.Comparison], str], list[Figure]] | None = None
    probe: str | None = None
    faults: Callable[[Sequence[Record]], list[Figure]] | None = None


ARTICLE = (
    Claimed(
        "Protocol",
        "AMQP, STOMP, MQTT",
        "Kafka protocol",
        (SpokenClaim(("AMQP", "STOMP", "MQTT")), SpokenClaim(("Kafka",))),
        probe="protocols",
    ),
    Claimed(
        "Message ordering",
        "per queue",
        "per partition",
        (OrderClaim(), OrderClaim()),
        evidence.order_figures,
        probe="ordering",
        faults=fault_evidence.order_figures,
    ),
    Claimed(
        "Message retention",
        "per queue (memory/disk)",
        "configurable (days/size)",
        (
            LimitedClaim((AGED, SIZED), untried="whether messages lie in memory or on disk"),
            LimitedClaim((AGED, SIZED)),
        ),
        probe="retention",
    ),
    Claimed(
        "Delivery semantics",
        "at-least-once, at-most-once",
        "at-least-once, exactly-once",
        (DeliveryClaim(("at least once", "at most once")), DeliveryClaim(("at least once", "exactly once"))),
        probe="delivery",
        faults=fault_evidence.delivery_figures,
    ),
    Claimed(
        "Latency",
        "low (< 1 ms)",
        "low (1–5 ms)",
        (LatencyClaim(0, MS), LatencyClaim(MS, 5 * MS)),
        evidence.latency_figures,
    ),
    Claimed(
        "Throughput",
        "up to 100K msg/s",
        "up to millions msg/s",
        (CeilingClaim(100e3), ReachClaim(1e6)),
        evidence.throughput_figures,
    ),
    Claimed(
        "Message size",
        "up to 128 MB (default 64 MB)",
        "up to 10 MB (default 1 MB)",
        (SizeClaim(default_bytes=64 * MB, most_bytes=128 * MB), SizeClaim(default_bytes=MB, most_bytes=10 * MB)),
        probe="message_size",
    ),
    Claimed(
        "Scaling",
        "queue partitioning",
        "partition scaling",
        (ScalingClaim("queues"), ScalingClaim("partitions")),
        evidence.scaling_figures,
    ),
    Claimed(
        "Use case",
        "task queues, RPC",
        "event streaming, log aggregation",
        (UseClaim(("task queue", "RPC")), UseClaim(("event streaming", "log aggregation"))),
        evidence.use_figures,
    ),
    Claimed(
        "Complexity",
        "lower",
        "higher",
        (EffortClaim("lower", EFFORTS), EffortClaim("higher", EFFORTS)),
        probe="complexity",
    ),
)
