"""The queues and topics of a trial: one leg, or two where a role is in the middle; made, watched and told together."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from loadgen.driver import Target
from loadgen.patterns import COMMIT_MODE, RESULTS_ISOLATION, RESULTS_PARTITIONER

if TYPE_CHECKING:
    from loadgen.driver import Admin, Gauge
    from loadgen.endpoint import Endpoint
    from loadgen.plan import Trial

MOST_MSGS = 1_000_000  # of one transaction that is ended by time


def target_of(trial: Trial, endpoint: Endpoint, name: str) -> Target:
    """Where the trial's messages go, and where to from there."""
    target = Target(endpoint, name, trial.settings, group=name, subscribers=trial.subscribers)
    if trial.pattern.kind == "process":
        return _with_results(target)
    if not trial.pattern.is_request_reply or trial.broker == "rabbitmq":  # whose reply queues are the requesters' own
        return target
    # Each requester has a partition of the topic for replies; knobs are those of the topic for requests.
    settings = {**trial.settings, "partitions": trial.producers, "partitioner": "explicit"}
    return replace(target, onward=replace(target, name=f"{name}-replies", group=f"{name}-replies", settings=settings))


def _with_results(target: Target) -> Target:
    """From the messages' queue or topic to the results'; processors themselves say when offsets are committed."""
    settings = dict(target.settings)
    results = {**settings, "partitioner": RESULTS_PARTITIONER} if "partitioner" in settings else settings
    if settings.get("processing_guarantee") == "exactly_once":  # which ends transactions by what it commits
        results |= {"transaction_msgs": MOST_MSGS, "isolation_level": RESULTS_ISOLATION}
    if "commit_mode" in settings:
        settings["commit_mode"] = COMMIT_MODE
    name = f"{target.name}-results"
    onward = replace(target, name=name, group=name, settings=results)
    return replace(target, settings=settings, onward=onward)


def depth_of(admin: Admin, target: Target) -> int:
    """How many messages wait on all legs."""
    return admin.depth(target) + (0 if target.onward is None else admin.depth(target.onward))


def gauge_of(admin: Admin, target: Target, received: int, handled: int | None) -> Gauge:
    """The trial's queues or topics at once; `received` is what came out at the end, `handled` what the middle took."""
    first = admin.gauge(target, received if handled is None else handled)
    if target.onward is None:
        return first
    return replace(first, depth_msgs=first.depth_msgs + admin.gauge(target.onward, received).depth_msgs)
