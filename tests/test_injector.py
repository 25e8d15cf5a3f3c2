"""What hurts brokers tells what it really did: who was there to be hurt, for how long, and whether anybody was."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from loadgen.board import Board, Cell
from loadgen.brokers import faults as injecting
from loadgen.brokers.faults import Injector
from loadgen.brokers.process import ProcessId
from loadgen.faults import At, Crash, Cut, Kill, Pause, Reset
from loadgen.hurting import Hurting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadgen.brokers.faults import Done, Fault

ENDPOINT: Any = SimpleNamespace(broker="kafka")


class Cluster:
    """A broker of two processes that only sleep."""

    def __init__(self) -> None:
        self.processes = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
        servers = [ProcessId.of(each.pid) for each in self.processes]
        self.nodes = [SimpleNamespace(index=index, server=server) for index, server in enumerate(servers, 1)]
        self.owners = {"me": ProcessId.current()}

    def live_owners(self) -> dict[str, ProcessId]:
        """Who uses it."""
        return self.owners

    def state(self, index: int) -> str:
        """What the system says of a node's process: S sleeps, T stands still."""
        with open(f"/proc/{self.nodes[index - 1].server.pid}/stat") as file:  # noqa: PTH123 - a file of the system
            return file.read().rpartition(")")[2].split()[0]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes, which end with the test."""
    made = Cluster()
    monkeypatch.setattr(injecting.local, "cluster_of", lambda _: made)
    monkeypatch.setattr(injecting.local, "start_again", lambda *_, **__: None)
    yield made
    for each in made.processes:
        each.kill()
        each.wait()


def carried_out(schedule: list[tuple[float, Fault]], **given: Any) -> list[Done]:
    """What an injector says of faults at these seconds, once all are over."""
    injector = Injector(ENDPOINT, lambda: 1, lambda _: None, lambda _: None, **given)
    now_ns = time.monotonic_ns()
    injector.start([(now_ns + round(at_s * 1e9), fault) for at_s, fault in schedule], now_ns + 10**12)
    until(lambda: len(injector.done) == len(schedule))
    return injector.stop()


def until(is_so: Callable[[], bool]) -> None:
    """Wait for what comes in a moment, however busy the machine is."""
    deadline_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.01)


def test_who_is_down_already_is_not_killed_again(cluster: Cluster) -> None:
    """A leader that died is still told as the leader for a while: a second kill of it is none, and says so."""
    dead = "kafka: node 1 is down already"
    kill, again, pause = carried_out(
        [(0.0, Kill("leader", back_after_s="never")), (0.1, Kill("leader")), (0.2, Pause(1, for_s=1))]
    )
    assert (kill.error, again.error, pause.error) == (None, dead, dead)
    assert again.mended_ns - again.began_ns < 10**9, "it has hurt nobody, and so is over"
    assert cluster.state(2) == "S"


def test_a_node_that_is_paused_twice_goes_on_after_the_last_pause(cluster: Cluster) -> None:
    """The end of a short pause does not end the long one around it, nor does a slow question who leads."""
    asked = threading.Event()

    def slow_leader() -> int:
        asked.wait(30)
        return 2

    schedule: list[tuple[float, Fault]] = [(0.0, Pause(1, for_s=6)), (0.1, Pause(1, for_s=0.2))]
    schedule.append((0.2, Pause("leader", for_s=0.1)))
    injector = Injector(ENDPOINT, slow_leader, lambda _: None, lambda _: None)
    now_ns = time.monotonic_ns()
    injector.start([(now_ns + round(at_s * 1e9), fault) for at_s, fault in schedule], now_ns + 10**12)
    try:
        until(lambda: len(injector.done) == len(schedule) and injector.done[1].mended_ns > 0)
        assert cluster.state(1) == "T", "the short pause is over, the long one not"
        until(lambda: cluster.state(1) == "S")
        assert not asked.is_set(), "whoever is asked meanwhile"
    finally:
        asked.set()
        injector.stop()


def test_a_broker_that_others_use_is_not_hurt(cluster: Cluster) -> None:
    """Another loadgen's trial would tell of an outage that nobody planned."""
    cluster.owners["other"] = SimpleNamespace(pid=os.getppid())  # type: ignore[assignment]
    (kill,) = carried_out([(0.0, Kill(1))])
    assert f"is used by another loadgen, too (pid {os.getppid()})" in str(kill.error)
    assert cluster.state(1) == "S"


def test_a_network_fault_that_meets_no_client_says_so(cluster: Cluster) -> None:
    """Where no client is connected to the node, nobody was hurt."""
    del cluster
    way: Any = SimpleNamespace(
        begin=lambda *_: 0, reset=lambda nodes: 2 if 2 in nodes else 0, end=lambda *_: None, mend=lambda: None
    )
    cut, reset, hit = carried_out([(0.0, Cut(1, for_s=0.2)), (0.0, Reset(1)), (0.1, Reset(2))], through=way)
    assert cut.error == reset.error == "no client is connected to node 1: nobody was hurt"
    assert hit.error is None


def test_a_crash_that_nobody_carried_out_says_so() -> None:
    """Overtaken by the next one of its role, or by the end; one of the other role at once is another matter."""
    board = Board.create(2)
    hurting = Hurting((At(1, Crash()),), SimpleNamespace(settings={}, endpoint=ENDPOINT), consumes=True)  # type: ignore[arg-type]
    producers, overtaken, carried, last = (SimpleNamespace(error=None) for _ in range(4))
    done: list[Any] = []
    hurting._injector = SimpleNamespace(done=done)  # type: ignore[assignment]
    hurting._board = board
    crashes = ((producers, Crash("producers")), (overtaken, Crash()), (carried, Crash()), (last, Crash()))
    try:
        for each, fault in crashes:
            done.append(each)
            hurting._crash(fault)
            if each is carried:
                board.cells[1, Cell.CRASHED_CONSUMERS] += 1
        board.cells[2, Cell.CRASHED_PRODUCERS] += 1
        for role in (Cell.CRASHED_PRODUCERS, Cell.CRASHED_CONSUMERS):
            hurting._see_crash(role)
    finally:
        board.remove()
    assert [each.error is None for each in (producers, overtaken, carried, last)] == [True, False, True, False]
    assert "nobody crashed" in str(last.error)
