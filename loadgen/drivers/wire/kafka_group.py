"""A wire consumer that is a member of its group (KIP-848), which gives it partitions and takes them away again.

What it was given last is read by a `KafkaConsumer`, another one whenever that changes: from the offset after what was
handed out where a partition stays, from what the group has committed where one is new. A partition that goes is
committed first, and then given up by what the member says it owns.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from loadgen.drivers.wire.kafka_cluster import Cluster
from loadgen.drivers.wire.kafka_commits import Commits
from loadgen.drivers.wire.kafka_consumer import KafkaConsumer, begins_of
from loadgen.drivers.wire.kafka_group_member import GroupMember
from loadgen.drivers.wire.kafka_member import JOINED_S
from loadgen.errors import BrokerError, LoadgenError

if TYPE_CHECKING:
    from loadgen.driver import Received, Target

REBALANCE_TIMEOUT_S = 300.0  # as the Java client's max.poll.interval.ms: a batch is worked off before a partition goes
HANDOVER_S = 1.0  # how long what was processed may take to be committed before a partition goes
WAITING_BEAT_S = 0.1  # until it reads: members come at once, and what the first was given goes on to the next
_LOOK_S = 0.02


class KafkaGroupConsumer:
    """See `loadgen.driver.Consumer`; it is there when the group has given it a partition."""

    def __init__(self, target: Target) -> None:
        self._target = replace(target, group="")
        self._cluster = Cluster(target.endpoint, target.name)
        self._member = GroupMember(self._cluster, target.group, REBALANCE_TIMEOUT_S)
        self._member.most_beat_s = WAITING_BEAT_S
        self._commits = Commits(self._cluster, target.group, target.settings, self._member)
        self._commits_before: bool = target.settings["commit"] == "before"
        self._reader: KafkaConsumer | None = None
        self._reads: frozenset[int] = frozenset()
        self._positions: dict[int, int] = {}
        self._highest: dict[int, int] = {}
        self._without_ns = 0
        self._rebalances: list[tuple[int, int]] = []
        self._failed: LoadgenError | None = None
        self._joined, self._has_begun = threading.Event(), threading.Event()
        self._keeper: threading.Thread | None = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()
        self._joined.wait(JOINED_S)
        if self._failed is not None or not self._joined.is_set():
            reason = f"no partitions after {JOINED_S:g} s" if self._failed is None else str(self._failed)
            self.close()
            raise BrokerError(f"kafka at {target.endpoint.address}: group {target.group}: {reason}")

    def _keep(self) -> None:
        """Stay in the group until the first message is asked for."""
        try:
            while not self._has_begun.is_set():
                self._member.poll()
                if self._member.partitions != self._reads:
                    self._reads = self._member.partitions
                    self._member.owns(self._reads)
                if self._reads:
                    self._joined.set()
                self._has_begun.wait(_LOOK_S)
        except LoadgenError as error:
            self._failed = error
        finally:
            self._joined.set()

    def _begin(self) -> None:
        """From here on it is the caller who keeps the membership."""
        self._stop_keeping()
        self._member.most_beat_s = math.inf  # as often as the group asks for, as Kafka's own clients
        if self._failed is not None:
            raise self._failed
        self._read(self._reads)

    def _stop_keeping(self) -> None:
        self._has_begun.set()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.join()

    @property
    def failed_requests(self) -> int:
        """What was refused or lost and tried again (`loadgen.driver.Retrying`)."""
        return self._cluster.failed_requests

    @property
    def has_waiting(self) -> bool:
        """Whether more was fetched than `max_poll_records`."""
        return self._reader is not None and self._reader.has_waiting

    def receive(self, timeout_s: float) -> list[Received]:
        """Wait for the first message, then return all that has come, at most `max_poll_records`."""
        if self._keeper is not None:
            self._begin()
        self._follow()
        if self._reader is None:
            time.sleep(min(timeout_s, _LOOK_S))
            return []
        received = self._reader.receive(timeout_s)
        self._positions |= self._reader.positions
        if self._commits_before:
            self._commits.processed(self._positions)
        return received

    def settle(self, count: int | None = None) -> None:
        """What was handed out has been processed: it may be committed (with commit = before, it may have been)."""
        if count is None and not self._commits_before:
            self._commits.processed(self._positions)

    def attend(self) -> None:
        """See `loadgen.driver.Attending`."""
        self._commits.poll()

    def take_rebalances(self) -> list[tuple[int, int]]:
        """Those since the last call (`loadgen.driver.Rebalancing`)."""
        taken, self._rebalances = self._rebalances, []
        return taken

    def _follow(self) -> None:
        """Read what the group says by now, and tell it."""
        self._commits.poll()
        given = self._member.partitions
        if given == self._reads and not self._commits.has_lost:
            return
        told_ns = time.monotonic_ns()
        self._commits.end(self._reads - given, HANDOVER_S)
        if self._commits.has_lost:  # others may have read on from what was committed last
            self._positions, given = {}, self._member.partitions
        if self._reads and not given:
            self._without_ns = told_ns
        self._read(given)
        self._member.owns(given)
        if given and self._without_ns:
            self._rebalances.append((self._without_ns, time.monotonic_ns()))
            self._without_ns = 0

    def _read(self, partitions: frozenset[int]) -> None:
        """Read these from now on, those kept from where it is."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        begins = {each: at for each, at in self._positions.items() if each in partitions}
        new = partitions - begins.keys()
        begins |= self._commits.start(new)
        begins |= begins_of(self._cluster, new - begins.keys(), self._target.start)
        self._reads, self._positions = partitions, begins
        if begins:
            self._reader = KafkaConsumer(self._target, 0, 1, begins, cluster=self._cluster, highest=self._highest)

    def close(self) -> None:
        """Commit what was processed, leave the group and close; never raises."""
        self._stop_keeping()
        self._commits.close()
        self._member.leave()
        if self._reader is not None:
            self._reader.close()
