"""What hurts brokers tells what it really did: who was there to be hurt, for how long, and whether anybody was."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from patience import until

from loadgen.board import Board, Cell
from loadgen.brokers import faults as injecting
from loadgen.brokers.faults import Injector
from loadgen.brokers.process import ProcessId
from loadgen.errors import BrokerError
from loadgen.faults import At, Crash, Cut, Full, Kill, Pause, Reset, Restart
from loadgen.hurting import Hurting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadgen.brokers.faults import Done, Fault

ENDPOINT: Any = SimpleNamespace(broker="kafka")


class Cluster:
    """A broker of three processes that only sleep."""

    def __init__(self) -> None:
        self.processes = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
        servers = [ProcessId.of(each.pid) for each in self.processes]
        self.nodes = [SimpleNamespace(index=index, server=server) for index, server in enumerate(servers, 1)]
        self.owners = {"me": ProcessId.current()}
        self.started: list[tuple[int, ...]] = []
        self.serves = threading.Event()
        self.serves.set()
        self.failures = 0
        """Of so many starts the next ones are."""
        self.killed: tuple[int, ...] = ()
        """Who does not end in order."""

    def live_owners(self) -> dict[str, ProcessId]:
        """Who uses it."""
        return self.owners

    def start_again(self, _: Any, *nodes: int, **__: Any) -> tuple[int, ...]:
        """As `local.start_again`: all of them together, and they take their time."""
        self.started.append(nodes)
        if self.failures:
            self.failures -= 1
            raise BrokerError("no room")
        self.serves.wait(120)
        for index in nodes:
            self.processes.append(subprocess.Popen(["sleep", "600"]))
            self.nodes[index - 1].server = ProcessId.of(self.processes[-1].pid)
        return self.killed

    def kill(self, index: int) -> None:
        """A node dies."""
        os.kill(self.nodes[index - 1].server.pid, signal.SIGKILL)

    def lives(self, index: int) -> bool:
        """Whether a node's process runs."""
        server = self.nodes[index - 1].server
        return server is not None and server.is_alive()

    def state(self, index: int) -> str:
        """What the system says of a node's process: S sleeps, T stands still."""
        with open(f"/proc/{self.nodes[index - 1].server.pid}/stat") as file:  # noqa: PTH123 - a file of the system
            return file.read().rpartition(")")[2].split()[0]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three nodes, which end with the test."""
    made = Cluster()
    monkeypatch.setattr(injecting.local, "cluster_of", lambda _: made)
    monkeypatch.setattr(injecting.local, "start_again", made.start_again)
    yield made
    for each in made.processes:
        each.kill()
        each.wait()


def begun(schedule: list[tuple[float, Fault]], leader: Callable[[], int] = lambda: 1, **given: Any) -> Injector:
    """An injector that is to carry out faults at these seconds."""
    injector = Injector(ENDPOINT, leader, lambda _: None, lambda _: None, **given)
    now_ns = time.monotonic_ns()
    injector.start([(now_ns + round(at_s * 1e9), fault) for at_s, fault in schedule], now_ns + 10**12)
    return injector


def carried_out(schedule: list[tuple[float, Fault]], **given: Any) -> list[Done]:
    """What an injector says of faults at these seconds, once all are over."""
    injector = begun(schedule, **given)
    assert until(lambda: len(injector.done) == len(schedule) and all(map(is_decided, injector.done)))
    return injector.stop()


def is_decided(done: Done) -> bool:
    """Whether a fault has hit, or failed to."""
    return bool(done.nodes or done.error or done.mended_ns)


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
        asked.wait(120)
        return 2

    schedule: list[tuple[float, Fault]] = [(0.0, Pause(1, for_s=6)), (0.1, Pause(1, for_s=0.2))]
    schedule.append((0.2, Pause("leader", for_s=0.1)))
    injector = begun(schedule, leader=slow_leader)
    try:
        assert until(lambda: len(injector.done) == len(schedule) and injector.done[1].mended_ns > 0)
        assert cluster.state(1) == "T", "the short pause is over, the long one not"
        assert until(lambda: cluster.state(1) == "S")
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


def test_nodes_that_are_due_together_start_together_and_no_fault_is_over_before(cluster: Cluster) -> None:
    """Neither mend is noted while its node boots, whichever of both started it; and none waits for who leads."""
    cluster.serves.clear()
    asked = threading.Event()
    schedule: list[tuple[float, Fault]] = [(0.0, Kill(1, back_after_s=1)), (0.05, Kill(2, back_after_s=1))]
    injector = begun([*schedule, (0.1, Pause("leader"))], leader=lambda: 3 if asked.wait(120) else 0)
    try:
        assert until(lambda: cluster.started == [(1, 2)])
        time.sleep(0.2)
        assert [each.mended_ns for each in injector.done[:2]] == [0, 0]
        cluster.serves.set()
        assert until(lambda: all(each.mended_ns for each in injector.done[:2]))
        assert cluster.started == [(1, 2)]
    finally:
        cluster.serves.set()
        asked.set()
        done = injector.stop()
    assert [each.error for each in done[:2]] == [None, None]


def test_a_start_that_went_wrong_is_tried_again_at_the_end(cluster: Cluster) -> None:
    """Both are told; who was to stay down until then is started without a word."""
    cluster.failures = 1
    injector = begun([(0.0, Kill(1, back_after_s=0.1)), (0.0, Kill(2, back_after_s="never"))])
    assert until(lambda: cluster.started == [(1,)])
    kill, never = injector.stop()
    assert cluster.started == [(1,), (1, 2)]
    assert kill.error == "no room"
    assert never.error == "kafka: node 1 was down when the trial had ended, and was started again"
    assert cluster.lives(1)
    assert cluster.lives(2)
    assert kill.mended_ns > 0


def test_a_node_that_dies_unplanned_is_started_at_the_end(cluster: Cluster) -> None:
    """And the last fault says so; in a trial that had none it is nobody's business."""
    cluster.kill(2)
    assert carried_out([]) == []
    assert cluster.started == []
    (pause,) = carried_out([(0.0, Pause(1, for_s=0.0))])
    assert pause.error == "kafka: node 2 was down when the trial had ended, and was started again"
    assert cluster.lives(2)


@pytest.mark.parametrize("dies", [True, False])
def test_a_kafka_that_goes_on_without_disk_was_not_hurt(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """One that ends a moment after it has space again is started, and one that does not has written nothing."""
    monkeypatch.setattr(injecting, "DYING_S", 60.0 if dies else 0.3)
    monkeypatch.setattr(injecting.shortage, "begin", lambda *_: None)
    ended = threading.Event()
    monkeypatch.setattr(injecting.shortage, "end", lambda *_: ended.set())
    injector = begun([(0.0, Full("disk", who=1, for_s=0.1))])
    assert until(ended.is_set)
    if dies:
        time.sleep(0.3)
        cluster.kill(1)
    assert until(lambda: injector.done[0].mended_ns > 0)
    (full,) = injector.stop()
    assert full.error == (None if dies else "kafka: node 1 wrote nothing meanwhile: nobody was hurt")
    assert cluster.started == ([(1,)] if dies else [])


def test_a_shortage_that_comes_to_nothing_is_given_back_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a node cannot be had to run short, or does not say that it did, no node stays so until the end."""
    given_back: list[int] = []

    def begin(_: Any, node: int, __: str) -> None:
        if node == 2:
            raise BrokerError("no alarm")

    monkeypatch.setattr(injecting.shortage, "begin", begin)
    monkeypatch.setattr(injecting.shortage, "end", lambda _, node, *__: given_back.append(node))
    injector = begun([(0.0, Full("disk", who="all", for_s=60))])
    assert until(lambda: bool(injector.done and injector.done[0].mended_ns))
    assert given_back == [1, 2]
    (full,) = injector.stop()
    assert (full.error, given_back, cluster.started) == ("no alarm", [1, 2], [])


@pytest.mark.parametrize("late", ["window", "stop"])
def test_no_fault_hits_once_the_window_is_over(cluster: Cluster, late: str) -> None:
    """Also where that ended while the broker was asked who leads, or all is to stop."""
    asking, told = threading.Event(), threading.Event()

    def slow_leader() -> int:
        asking.set()
        told.wait(120)
        return 1

    injector = Injector(ENDPOINT, slow_leader, lambda _: None, lambda _: None)
    now_ns = time.monotonic_ns()
    injector.start([(now_ns, Kill("leader"))], now_ns + (2 * 10**9 if late == "window" else 10**12))
    assert until(asking.is_set)
    if late == "window":
        time.sleep(max(0.0, (now_ns + 2 * 10**9 - time.monotonic_ns()) / 1e9) + 0.1)
    else:
        threading.Timer(0.2, told.set).start()
        injector.stop()
    told.set()
    assert until(lambda: injector.done[0].error is not None)
    assert injector.done[0].error == "not carried out: the window had ended"
    assert cluster.state(1) == "S"
    injector.stop()


def test_a_restart_that_took_a_kill_says_so(cluster: Cluster) -> None:
    """It is started again, and was not restarted in order."""
    cluster.killed = (2,)
    injector = begun([(0.0, Restart(2))])
    assert until(lambda: bool(injector.done and injector.done[0].mended_ns))
    (restart,) = injector.stop()
    assert restart.error == "kafka: node 2 did not end in order in time, and was killed"


def test_of_all_nodes_those_are_hurt_that_are_there(cluster: Cluster) -> None:
    """The others are told apart, and come back when they were to."""
    one, every = carried_out([(0.0, Kill(2, back_after_s="never")), (0.1, Kill("all", back_after_s="never"))])
    assert (one.nodes, one.error) == ((2,), None)
    assert (every.nodes, every.error) == ((1, 3), "kafka: node 2 was down already, and not hurt")
    assert cluster.started == [(1, 2, 3)]


def test_who_leads_after_a_leader_that_was_killed_is_asked(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until somebody else does, whatever the answers are before."""
    monkeypatch.setattr(injecting, "ASKED_EVERY_S", 0.01)
    answers = iter([1, 1, BrokerError("nobody"), 3])

    def leader() -> int:
        answer = next(answers)
        if isinstance(answer, BrokerError):
            raise answer
        return answer

    injector = begun([(0.0, Kill("leader", back_after_s="never"))], leader=leader)
    assert until(lambda: bool(injector.done and injector.done[0].next_leader))
    (kill,) = injector.stop()
    assert (kill.nodes, kill.next_leader, kill.error) == ((1,), 3, None)
    assert cluster.lives(1)


def test_a_link_between_nodes_that_is_not_hit_is_told(cluster: Cluster) -> None:
    """Unless the other node is down: then nobody is there to be connected."""
    way: Any = SimpleNamespace(
        begin=lambda *_: {(1, 2): 1, (1, 3): 0}, reset=lambda _: {(1, 2): 0, (1, 3): 0}, end=lambda *_: None,
        mend=lambda: None,
    )  # fmt: skip
    faults: list[Fault] = [Cut(1, between="nodes"), Reset(1, between="nodes"), Kill(3, back_after_s="never")]
    schedule = [(0.1 * number, fault) for number, fault in enumerate([*faults, Cut(1, between="nodes")])]
    cut, reset, _, again = carried_out(schedule, links=way)
    assert cut.error == "nodes 1 and 3 are not connected: nothing between them was hurt"
    assert reset.error == "no other node is connected to node 1: nobody was hurt"
    assert again.error is None
    assert cluster.lives(3)


def test_a_network_fault_that_meets_no_client_says_so(cluster: Cluster) -> None:
    """Where no client is connected to the node, nobody was hurt."""
    del cluster
    way: Any = SimpleNamespace(
        begin=lambda *_: {(0, 1): 0}, reset=lambda nodes: {(0, nodes[0]): 2 * (nodes[0] == 2)}, end=lambda *_: None,
        mend=lambda: None,
    )  # fmt: skip
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
