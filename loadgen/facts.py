"""What is known of a trial when it is judged: its record, what the observer saw, and what follows from both."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from loadgen.flow import is_level
from loadgen.histogram import LOWEST_OF_BUCKET_NS, bucket_indices
from loadgen.record import end_to_end
from loadgen.removals import limits

if TYPE_CHECKING:
    from collections.abc import Mapping

CARRIED_SHARE = 0.01
"""An open loop carried its rate when it fell short by at most 1 %; runs vary by 5 to 13 % (measured)."""
STALL_S = 0.1
"""A stall of so long at the end of a window holds up messages for the next second, and is no rate: of a window of 2.5 s
it is 4 %. Kafka's p99 beside clients on two cores is as long at half of its capacity (measured)."""
CORE_FULL_SHARE = 0.95
"""A thread that ran 95 % of the time has no room left: the rest is the scheduler's."""
HOST_FULL_SHARE = 0.95
"""The design's limit of a used-up machine."""
RESTING_GROUP = "resting"
"""Processes of the run's brokers that are not measured now: part of how it was set up, and no program to be ended."""
PSI_CPU_LIMIT = 0.5
"""Some task waited for a CPU half of the time: cores are short even if their mean is not full."""


def carries(
    achieved_msgs_per_s: float,
    offered_msgs_per_s: float,
    window_s: float,
    *,
    is_random: bool = False,
    is_level: bool = False,
) -> bool:
    """Whether an open loop carried its rate over a window: 1 % may be missing, and what is chance.

    A message more or less at the window's edges is chance; so are three deviations of random arrivals. Of what was
    received so is what a stall at the window's end holds up for the next second, where the backlog is level: its slope
    was tested, and is not one of growth (`loadgen.flow.is_level`).
    """
    due = offered_msgs_per_s * window_s
    chance = 3 * math.sqrt(due) if is_random else 2
    held_up = STALL_S * offered_msgs_per_s if is_level else 0.0
    return due - achieved_msgs_per_s * window_s <= max(CARRIED_SHARE * due, chance, held_up)


def came_through(record: Mapping[str, Any], achieved_msgs_per_s: float, fan_out: int) -> bool:
    """Whether an open loop's record shows that its rate was carried: that all of it was sent and came through.

    Args:
        record: a complete trial's.
        achieved_msgs_per_s: what came through to each receiver (messages/s).
        fan_out: how many receivers each message has.
    """
    offered, window_s = record["offered_msgs_per_s"], record["window_s"]
    sent = record.get("sent_msgs_per_s")
    if sent is not None and not carries(sent, offered, window_s):
        return False
    level = is_level(record.get("under_way") or {}, offered * fan_out)
    return carries(achieved_msgs_per_s, offered, window_s, is_level=level)


class StoodStill(NamedTuple):
    """How often an agent's loop stood still in the window for longer than it ever waits, in all and at most (s)."""

    times: int
    total_s: float
    longest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a trial's measured window when it is judged; None is "not observed", never zero.

    Counts are messages; of what was received, lost and doubled they are sums over the subscribers, each of which gets
    every message and has so many `consumers`. `acked` is None where nothing is confirmed, `stored` where the broker
    keeps no count. `offered_msgs_per_s` is what the schedule asked for in the window (None in a closed loop),
    `achieved` what was sent and `goodput` what was received once, intact and inside the window.
    `unsettled` were neither confirmed nor refused (None: not counted) when producers gave up waiting, or had none left.
    `explained_duplicates` are those by a stated redelivery or the producer's own resend. `due` messages were
    intended in the window (None in a closed loop), of which `missing` were not sent, confirmed or received, and
    `misshared` were sent twice or left out by producers that heard late of their share. Queues that
    are `limited` may drop messages, have them expire or refuse them, which is neither lost nor missing (None: nobody
    knows how many); `dead_lettered` are those in dead-letter queues by the broker's reason, `failed_deliveries` those
    that consumers had fail on purpose.
    Shares are of the window (0 to 1), cores are CPU seconds a second. `agent_core_share_max` is the busiest thread
    of the busiest producer or consumer. `producers_held_back_share` is the share of time in which a producer had
    messages due and no room for them, `producers_stood_still` is of the one that stood still for longest,
    `producers_cpu_wait_s` how long all their threads were ready to run and had no CPU, and `consumers_busy_share`
    the share of time that consumers spent on the work that a message is to them (`think_ms`). `bucket_share_max` is
    the widest histogram bucket of the shown latency's median and p99 over its value, `resolution` the time from a
    batch's first byte to its stamp.
    `frequency_fall_share` is by how much the fastest CPU's lowest reading is below its highest, `throttles` how often
    a CPU was slowed down for its heat, `slow_share` by how much the CPU was slower on average than at its fastest.
    `little`, `steady` and `backlog` are findings of the flow over the window:
    what was found (None: cannot tell) and the reason; `is_level` is whether the slope of that backlog was tested and is
    none of growth; `steady_weighs` and `little_weighs` say whether an unknown casts doubt. `drains` is whether a
    backlog was written first, and `begun` the finding on where consumers began in it; `rebalanced` is whether one of
    them joined or left in mid-trial, `hurt` whether something was broken on purpose.
    """

    durability: str
    rate_kind: Literal["fixed", "poisson", "ramp", "burst", "saturate"]
    consumers: int
    subscribers: int = 1
    window_s: float
    sent: int
    acked: int | None
    received: int
    lost: int = 0
    confirmed_lost: int = 0
    duplicated: int = 0
    explained_duplicates: int = 0
    corrupted: int = 0
    foreign: int = 0
    unsettled: int | None = None
    gave_up_confirms: bool = False
    due: int | None = None
    missing: int | None = None
    misshared: int = 0
    limited: bool = False
    dropped_by_limit: int | None = None
    expired: int | None = None
    refused_by_limit: int | None = None
    dead_lettered: Mapping[str, int | None] = field(default_factory=dict)
    failed_deliveries: Mapping[str, int | None] = field(default_factory=dict)
    delivery_limit: int | None = None
    out_of_order: int = 0
    order_promised: bool = True
    stored: int | None = None
    depth_at_end: int | None = None
    drained: bool = True
    errors: Mapping[str, int] = field(default_factory=dict)
    out_of_range: int = 0
    offered_msgs_per_s: float | None = None
    achieved_msgs_per_s: float = 0.0
    goodput_msgs_per_s: float = 0.0
    lag_p50_ns: int | None = None
    lag_p99_ns: int | None = None
    service_p99_ns: int | None = None
    e2e_p50_ns: int | None = None
    e2e_p99_ns: int | None = None
    bucket_share_max: float | None = None
    resolution_p50_ns: int | None = None
    resolution_p99_ns: int | None = None
    clock_source: str | None = None
    clock_error_ns: int | None = None
    clock_changed: bool = False
    cpu_cores: Mapping[str, float | None] = field(default_factory=dict)
    agent_core_share_max: float | None = None
    producers_held_back_share: float | None = None
    producers_idle_share: float | None = None
    producers_stood_still: StoodStill | None = None
    producers_cpu_wait_s: float | None = None
    consumers_busy_share: float | None = None
    host_busy_share: float | None = None
    psi_cpu_some_share: float | None = None
    steal_share: float | None = None
    others_cores: float | None = None
    others_names: tuple[str, ...] = ()
    resting_cores: float | None = None
    frequency_fall_share: float | None = None
    throttles: float | None = None
    slow_share: float | None = None
    swapped_bytes: int | None = None
    alarms: tuple[str, ...] | None = None
    blocked_connections: int | None = None
    short_by_order: bool = False
    """Whether the scenario itself had a node run out of disk or memory."""
    disk_full: bool | None = None
    samples: int | None = None
    observer_defects: tuple[str, ...] = ()
    little: tuple[bool | None, str] | None = None
    little_weighs: bool = False
    steady: tuple[bool | None, str] | None = None
    steady_weighs: bool = True
    backlog: tuple[bool | None, str] | None = None
    is_level: bool = False
    drains: bool = False
    begun: tuple[bool | None, str] | None = None
    rebalanced: bool = False
    hurt: bool = False

    @property
    def removed(self) -> int:
        """Messages that the queues' limits kept from being received."""
        return (self.dropped_by_limit or 0) + (self.expired or 0) + (self.refused_by_limit or 0)

    @property
    def is_open_loop(self) -> bool:
        """Whether intended times exist."""
        return self.rate_kind != "saturate"

    @property
    def is_carried(self) -> bool | None:
        """Whether an open loop sent and delivered what its schedule asked for; None in a closed loop."""
        if not self.is_open_loop or self.offered_msgs_per_s is None:
            return None
        is_random = self.rate_kind == "poisson"
        if not carries(self.achieved_msgs_per_s, self.offered_msgs_per_s, self.window_s, is_random=is_random):
            return False
        received = self.goodput_msgs_per_s / self.subscribers
        return not self.consumers or carries(
            received, self.offered_msgs_per_s, self.window_s, is_random=is_random, is_level=self.is_level
        )

    @property
    def is_generator_full(self) -> bool:
        """Whether a producer's or consumer's busiest thread used up its core."""
        return (self.agent_core_share_max or 0) >= CORE_FULL_SHARE

    @property
    def is_host_full(self) -> bool:
        """Whether clients and broker together used up the machine's CPUs."""
        waited_share = self.psi_cpu_some_share or 0
        return (self.host_busy_share or 0) >= HOST_FULL_SHARE or waited_share >= PSI_CPU_LIMIT


def facts_of(record: Mapping[str, Any], *, drained: bool, due: int | None) -> Facts:
    """What the verdict looks at, from a complete trial's record.

    Args:
        record: as `loadgen.trial` has made it, but for the verdict.
        drained: whether consumers had counted as many messages as were sent when the drain ended.
        due: how many messages the schedule had in the window, None in a closed loop.
    """
    window_s = record["window_s"]
    settings = record["settings"]
    sources = 1 if settings.get("group") == "share" else settings.get("partitions") or settings.get("queues") or 1
    competing = record["consumers"] > max(1, sources) or _is_shuffled(settings)
    # Messages that come from several hands in the middle, or through several partitions, come together in any order.
    hands = max(record["consumers"], record.get("processors") or 1, sources)
    competing |= record.get("pattern", "one_way") != "one_way" and hands > 1
    counts = record.get("broker_counts", {})
    depth = counts.get("depth_at_end")
    observer = record.get("observer")
    return Facts(
        durability=record["durability"],
        rate_kind=record["rate"]["kind"],
        consumers=record["consumers"],
        subscribers=record.get("subscribers", 1),
        window_s=window_s,
        sent=record["sent"],
        acked=record.get("acked"),
        received=record.get("received") or 0,
        lost=record.get("lost") or 0,
        confirmed_lost=record.get("confirmed_lost") or 0,
        duplicated=record.get("duplicated") or 0,
        explained_duplicates=(record.get("dup_redelivery") or 0) + (record.get("dup_resend") or 0),
        corrupted=record.get("corrupted") or 0,
        foreign=record.get("foreign") or 0,
        due=due,
        missing=record.get("missing_msgs"),
        misshared=record.get("misshared_msgs") or 0,
        limited=limits(settings),
        dropped_by_limit=record.get("dropped_by_limit"),
        expired=record.get("expired"),
        refused_by_limit=record.get("refused_by_limit"),
        dead_lettered=record.get("dead_lettered") or {},
        failed_deliveries=record.get("failed_deliveries") or {},
        delivery_limit=settings.get("delivery_limit"),
        out_of_order=record.get("out_of_order") or 0,
        order_promised=not competing,
        stored=counts.get("stored"),
        depth_at_end=depth,
        # The broker knows best: a duplicate makes up for a missing message in a count, and what is missing from an
        # empty queue is lost, not late. Counters say only how long it was worth waiting.
        drained=drained if depth is None else depth == 0,
        errors=_faults(record),
        out_of_range=record["out_of_range"],
        offered_msgs_per_s=record["offered_msgs_per_s"],
        achieved_msgs_per_s=record["sent_msgs_per_s"],
        goodput_msgs_per_s=record["goodput_msgs_per_s"],
        **_times(record),
        cpu_cores={name: None if seconds is None else seconds / window_s for name, seconds in record["cpu_s"].items()},
        producers_held_back_share=record["blocked_share"],
        producers_stood_still=StoodStill(**record["stood_still"]) if record.get("stood_still") else None,
        consumers_busy_share=_busy_share(record),
        drains=record.get("backlog") is not None,
        rebalanced=record.get("membership") is not None,
        hurt=bool(record.get("faults")),
        short_by_order=any(each["kind"] == "full" for each in record.get("faults") or ()),
        **clock_facts(record.get("clock") or (observer or {}).get("clock")),
        **_busiest_elsewhere(record, {} if not observer else observed_facts(observer)),
    )


def _busy_share(record: Mapping[str, Any]) -> float | None:
    """The share of their time that consumers worked on messages; None where they do not, or come and go."""
    mean_ms = (record.get("think") or {}).get("mean_ms")
    if not mean_ms or not record["consumers"] or record.get("membership") is not None:
        return None
    workers = record["consumers"] * record.get("subscribers", 1)
    return float((record["goodput_msgs_per_s"] or 0.0) * mean_ms / 1e3 / workers)


def _times(record: Mapping[str, Any]) -> dict[str, Any]:
    """The times that a verdict looks at, and how finely they were read."""
    kinds = ("schedule_lag", end_to_end(record), end_to_end(record, "_service"), "ack")
    lag, e2e, service, ack = (record["latency_ns"].get(kind) for kind in kinds)
    resolution = record.get("resolution_ns") or {}
    return {
        "lag_p50_ns": lag["p50"] if lag else None,
        "lag_p99_ns": lag["p99"] if lag else None,
        "service_p99_ns": service["p99"] if service else None,
        "e2e_p50_ns": e2e["p50"] if e2e else None,
        "e2e_p99_ns": e2e["p99"] if e2e else None,
        "bucket_share_max": _bucket_share(e2e or ack),
        "resolution_p50_ns": resolution.get("p50"),
        "resolution_p99_ns": resolution.get("p99"),
    }


def _faults(record: Mapping[str, Any]) -> dict[str, int]:
    """What went wrong with single messages, and how often; a request that was given up is one of them."""
    timed_out = (record.get("requests") or {}).get("timed_out")
    return {**record.get("errors", {}), **({"requests timed out": timed_out} if timed_out else {})}


def _is_shuffled(settings: Mapping[str, Any]) -> bool:
    """Whether messages overtake each other by their priority, or on the several channels of one producer."""
    lanes = settings.get("channels_per_connection", 1) * settings.get("connections_per_process", 1)
    return lanes > 1 or settings.get("priorities") is not None


def _bucket_share(summary: Mapping[str, Any] | None) -> float | None:
    """The widest bucket of a latency's median and p99, as a share of the value that it stands for."""
    if not summary or summary["p50"] is None:
        return None
    values_ns = np.array([summary["p50"], summary["p99"]], np.int64)
    indices = bucket_indices(values_ns)
    widths_ns = LOWEST_OF_BUCKET_NS[indices + 1] - LOWEST_OF_BUCKET_NS[indices]
    return float((widths_ns / np.maximum(values_ns, 1)).max())


def _busiest_elsewhere(record: Mapping[str, Any], observed: dict[str, Any]) -> dict[str, Any]:
    """What was observed, with the CPU that agents of other machines told of themselves: no observer here sees those."""
    if not any(worker["machine"] for worker in record.get("workers") or ()):
        return observed
    return observed | {
        "agent_core_share_max": max(observed.get("agent_core_share_max", 0.0), record["agent_cpu_share_max"])
    }


def clock_facts(clock: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of `Facts` that a clock's record (`loadgen.clocks`) knows."""
    if not clock:
        return {}
    return {
        "clock_source": clock["source"],
        "clock_error_ns": clock["error_ns"],
        "clock_changed": bool(clock.get("changed")),
    }


def observed_facts(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Facts` that an observer's summary knows, to be merged with the accounting's."""
    busiest = [share for share in summary["agent_core_share_max"].values() if share is not None]
    alarms = summary["alarms"]
    facts = {
        "agent_core_share_max": max(busiest, default=None),
        "host_busy_share": summary["host_busy_share"],
        "producers_cpu_wait_s": (summary.get("cpu_wait_s") or {}).get("producers"),
        "psi_cpu_some_share": summary["psi_cpu_some_share"],
        "steal_share": summary["host_steal_share"],
        "others_cores": summary["others_cores"],
        "others_names": tuple(summary["others_names"]),
        "resting_cores": summary["cpu_cores"].get(RESTING_GROUP),
        "frequency_fall_share": summary.get("cpu_frequency_fall_share"),
        "throttles": summary.get("cpu_throttles"),
        "slow_share": summary.get("cpu_slow_share"),
        "swapped_bytes": summary.get("swapped_bytes"),
        "alarms": None if alarms is None else tuple(alarms),
        "blocked_connections": summary["blocked_connections_max"],
        "disk_full": summary["disk_full"],
        "samples": summary["samples"],
        "observer_defects": tuple(summary.get("defects") or ()),
    }
    return {name: value for name, value in facts.items() if value is not None}
