"""Which node of a broker leads a trial's queue, stream or topic now, by the broker's own word."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from loadgen.drivers.kafka_topics import Topics
from loadgen.drivers.rabbitmq_replicas import replicas_of
from loadgen.drivers.rabbitmq_topology import Topology
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from loadgen.driver import Target


def leader_of(target: Target) -> int:
    """The leader's number, of the first queue or partition; BrokerError where no node of the broker tells.

    Local nodes are named by their numbers: `rabbit2@localhost`, and `node.id` 2.
    """
    endpoint = target.endpoint
    if len(endpoint.hosts) == 1:
        return 1
    if endpoint.broker == "kafka":
        return Topics(endpoint).leaders(target.name)[0]
    queue = Topology(target).queue(0, 0) if "queues" in target.settings else target.name
    found = replicas_of(endpoint, queue)
    number = None if found is None else re.fullmatch(r"rabbit(\d+)@.*", found.leader)
    if number is None:
        raise BrokerError(f"rabbitmq at {endpoint.address}: who leads {queue} is not told")
    return int(number[1])
