"""What a trial costs before anybody has run it: bytes on the broker's disk, and time beside its window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen import stream_knobs
from loadgen.retention import kept_bytes_max

if TYPE_CHECKING:
    from loadgen.plan import Plan, Trial
    from loadgen.scenario import Rate

# Starting and stopping agents, a fresh queue or topic, the drain and the wait for dirty pages (measured: 0.9 to 3 s).
OVERHEAD_S = 1.5
# How fast a backlog is written, at the least that was seen on two shared cores with messages of 1 KiB.
WRITTEN_MSGS_PER_S = {"rabbitmq": 15_000, "stream": 150_000, "kafka": 200_000}
BINDING_S = 0.001  # each is one entry in RabbitMQ's log of metadata (measured)
# A closed loop's rate is not known beforehand; these are over what either broker did on any machine we tried, so that
# the plan's bytes are an upper bound.
MAX_RATE_MSGS_PER_S: dict[str, float] = {"rabbitmq": 150_000, "stream": 4_000_000, "kafka": 6_000_000}
MAX_RATE_BYTES_PER_S: dict[str, float] = {"rabbitmq": 400e6, "stream": 800e6, "kafka": 800e6}
FRAMING_BYTES = 40  # what either broker stores beside a message's own bytes, roughly


def stored_bytes_max(trial: Trial) -> float:
    """Upper bound of what the broker keeps for this trial, in bytes: in RabbitMQ each subscriber's queue stores."""
    size = trial.message.mean_size_bytes + FRAMING_BYTES
    kept = "stream" if trial.driver in stream_knobs.DRIVERS else trial.broker
    copies = trial.subscribers if kept == "rabbitmq" else 1
    peak, length_s = trial.rate.peak_msgs_per_s, trial.warmup_s + trial.duration_s
    if trial.is_replay:
        stored = 0.0
    elif peak is None:
        stored = min(copies * MAX_RATE_MSGS_PER_S[kept], MAX_RATE_BYTES_PER_S[kept] / size)
    else:
        stored = copies * peak
    sent_msgs = stored * (length_s if trial.rate.kind != "burst" else _peak_seconds(trial.rate, length_s))
    all_bytes = (sent_msgs + copies * trial.backlog.msgs) * size
    limit_bytes = kept_bytes_max(kept, trial.settings, copies, size, stored * size)
    return trial.nodes * (all_bytes if limit_bytes is None else min(all_bytes, limit_bytes))


def _peak_seconds(rate: Rate, length_s: float) -> float:
    """How long a schedule of bursts would send as much at its highest rate (s): at the most, with one burst more."""
    assert rate.burst_s is not None
    assert rate.every_s is not None
    assert isinstance(rate.burst_times, int | float), "a sweep is resolved by the plan"
    bursts_s = min(length_s, rate.burst_s * (length_s // rate.every_s + 1))
    return bursts_s + (length_s - bursts_s) / rate.burst_times


def overhead_s(trial: Trial) -> float:
    """Roughly how long it takes beside its warm-up and its window, in seconds."""
    bindings: int = trial.subscribers * trial.settings.get("queues", 1) * trial.settings.get("bindings", 1)
    kept = "stream" if trial.driver in stream_knobs.DRIVERS else trial.broker
    return OVERHEAD_S + BINDING_S * bindings + trial.backlog.msgs / WRITTEN_MSGS_PER_S[kept]


def in_words(plan: Plan) -> str:
    """`24 trials, about 5.3 minutes (at most 9.0), at most 0.4 GB on disk at once`."""
    most = f" (at most {plan.longest_s / 60:.1f})" if plan.longest_s > plan.expected_s else ""
    return (
        f"{len(plan.trials)} trials, about {plan.expected_s / 60:.1f} minutes{most}, "
        f"at most {plan.peak_bytes_max / 1e9:.1f} GB on disk at once"
    )
