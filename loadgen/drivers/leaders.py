"""Which node of a broker leads a trial's queue, stream or topic now, by the broker's own word."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from loadgen.drivers.kafka_topics import Topics
from loadgen.drivers.rabbitmq_replicas import raft_leader_of, replicas_of
from loadgen.drivers.rabbitmq_topology import Topology
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.driver import Target

ELECTED_S, PAUSE_S = 5.0, 0.2  # so long an election is waited for


def leader_of(target: Target) -> int:
    """The leader's number, of the first queue or partition; BrokerError where no node of the broker tells.

    Local nodes are named by their numbers: `rabbit2@localhost`, and `node.id` 2. Of a quorum queue its members are
    asked, which know at once; of a stream RabbitMQ's management, which learns of another leader seconds later.
    """
    endpoint = target.endpoint
    if len(endpoint.hosts) == 1:
        return 1
    if endpoint.broker == "kafka":
        return Topics(endpoint).leaders(target.name)[0]
    if "queues" in target.settings:
        queue = Topology(target).queue(0, 0)
        leader = _patiently(lambda: raft_leader_of(endpoint, queue))
    else:
        queue, found = target.name, replicas_of(endpoint, target.name)
        leader = None if found is None else found.leader
    number = re.fullmatch(r"rabbit(\d+)@.*", leader or "")
    if number is None:
        raise BrokerError(f"rabbitmq at {endpoint.address}: who leads {queue} is not told")
    return int(number[1])


def _patiently(ask: Callable[[], str | None]) -> str | None:
    until_s = time.monotonic() + ELECTED_S
    while (told := ask()) is None and time.monotonic() < until_s:
        time.sleep(PAUSE_S)
    return told
