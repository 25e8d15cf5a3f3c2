"""Does RabbitMQ's quorum queue keep what it confirmed when its node is killed soon after its declaration?

    python bench/faults.py --young 10

Each try is on a fresh node of its own: a quorum queue is declared, left alone for its age, and sent messages one at a
time, each confirm awaited; then the node is killed (`kill -9`) and started again, and what the queue still holds is
taken out, one by one. RabbitMQ flushes each of these messages before it confirms it. But which queue a log belongs to
stands in a table of names (`names.dets`), which Ra saves once nobody has touched it for 500 ms (rabbitmq/ra,
ra_directory.erl): killed before that, the node knows its queue and not the queue's log, and says that it starts the
member as a new one.

A queue that has aged must keep everything, and one try at least must be of a young one, or the exit status is 1. What
young ones lose is reported; where they lose nothing RabbitMQ has changed, and the other trials need not wait any more.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.brokers import kill, private_brokers, restart
from loadgen.errors import BrokerError
from loadgen.probes.places import confirming, connected, depth_of, fresh_name, publish_to

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.endpoint import Endpoint

AGES_S = (0.0, 2.0)
YOUNG_S = 0.5  # from the declaration to the kill, or the try was none of a young queue
MESSAGES = 50
BACK_S, LOST_S, LOOK_S = 20.0, 3.0, 0.25  # until all must be back; until nothing more is awaited of a queue begun anew
QUORUM = {"x-queue-type": "quorum"}
AS_NEW = b"Starting member as a new one"


@dataclass(frozen=True, slots=True)
class Tried:
    """One queue: how old it was when its node was killed, what it had confirmed, and what was there again."""

    age_s: float
    confirmed: int
    found: int
    began_anew: bool
    """Whether the node said that it started the queue as a new one."""
    version: str

    @property
    def lost(self) -> int:
        """Confirmed messages that are gone."""
        return self.confirmed - self.found


def kill_aged(endpoint: Endpoint, age_s: float) -> Tried:
    """Declare, wait, publish, kill, start again and count, on one node."""
    queue = fresh_name()
    with connected(endpoint) as connection:
        channel = confirming(connection)
        channel.queue_declare(queue, durable=True, arguments=QUORUM)
        declared_s = time.monotonic()
        time.sleep(age_s)
        publish_to(channel, queue, [b"%06d" % number for number in range(MESSAGES)])
        lived_s = time.monotonic() - declared_s
        kill(endpoint)
    endpoint = restart(endpoint)
    assert endpoint.log_dir is not None, "it was started here"
    began_anew = _began_anew(endpoint.log_dir, queue)
    found = _taken(endpoint, queue, LOST_S if began_anew else BACK_S)
    return Tried(lived_s, MESSAGES, found, began_anew, endpoint.version)


def _began_anew(log_dir: Path, queue: str) -> bool:
    """Whether the node's log says that it knew the queue, and not its log."""
    lines = (line for path in log_dir.glob("*") for line in path.read_bytes().splitlines())
    return any(AS_NEW in line and queue.encode() in line for line in lines)


def _taken(endpoint: Endpoint, queue: str, patience_s: float) -> int:
    """Take out what the queue holds, each message once; as soon as it has all, or nothing more is awaited."""
    until_s = time.monotonic() + patience_s
    while True:
        is_late = time.monotonic() > until_s
        try:
            with connected(endpoint) as connection:
                channel = connection.channel()
                if depth_of(channel, queue) == MESSAGES or is_late:
                    bodies = set()
                    while (got := channel.basic_get(queue, auto_ack=True))[0] is not None:
                        bodies.add(got[2])
                    return len(bodies)
        except BrokerError:
            if is_late:
                raise
        time.sleep(LOOK_S)


def tried(times: int) -> dict[float, list[Tried]]:
    """By age, so many tries of each, each on a node that nobody has used."""
    found: dict[float, list[Tried]] = {age_s: [] for age_s in AGES_S}
    for _ in range(times):
        for age_s, each in found.items():
            with private_brokers({"rabbitmq": {}}) as endpoints:
                each.append(kill_aged(endpoints["rabbitmq"], age_s))
    return found


def line(tries: list[Tried]) -> str:
    """The figures of tries of one age."""
    gone, anew = sum(each.lost > 0 for each in tries), sum(each.began_anew for each in tries)
    lost, confirmed = sum(each.lost for each in tries), sum(each.confirmed for each in tries)
    oldest_s = max(each.age_s for each in tries)
    return (
        f"RabbitMQ {tries[0].version}, quorum queue killed within {oldest_s:.2f} s of its declaration: {gone} of "
        f"{len(tries)} tries lost confirmed messages, {lost:,} of {confirmed:,} messages; in {anew} the node said that "
        "it starts the queue as a new one"
    )


def report(times: int) -> int:
    """Try it and print a line for each age; the exit status."""
    by_age, young = tried(times), list[Tried]()
    for age_s, tries in by_age.items():
        in_time = [each for each in tries if age_s or each.age_s < YOUNG_S]
        young += in_time if not age_s else []
        if in_time:
            print(line(in_time))
        if len(in_time) < len(tries):
            print(f"{len(tries) - len(in_time)} tries were too slow to be of a young queue, and are not counted")
    if not young:
        print("NOTHING IS KNOWN of young queues: no try was in time")
    elif not any(each.lost for each in young):
        print("NO YOUNG QUEUE LOST ANYTHING: what is said of them, and waited for in other trials, holds no more")
    aged_lost = any(each.lost for age_s, tries in by_age.items() if age_s for each in tries)
    return 1 if aged_lost or not young else 0
