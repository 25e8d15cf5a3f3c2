"""The fleet's care for its agents: what is stuck, stopped or dead is named, what was measured is kept."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from verdicts import due

from loadgen import (
    Message,
    RabbitMQ,
    Rate,
    Scenario,
    board,
    engine,
    fleet,
    hands,
    host,
    pinning,
    process,
    producing,
    sites,
    trial,
)
from loadgen.board import Board, Cell
from loadgen.consuming import ConsumerAgent
from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.memory import memory_endpoint
from loadgen.engine import Options, execute
from loadgen.errors import HostError, TrialError
from loadgen.fleet import Fleet, terminate_as_interrupt
from loadgen.host import Written
from loadgen.knobs import Site
from loadgen.observer import Observer
from loadgen.pinning import Pins
from loadgen.plan import Plan, Profile, make_plan
from loadgen.producing import ProducerAgent
from loadgen.roster import roster
from loadgen.runs import RunWriter, load
from loadgen.trial import Setting, run_trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

    from loadgen.agent import AgentSpec
    from loadgen.driver import Consumer, Int64, Producer
    from loadgen.endpoint import BrokerName


class Quiet:
    """A listener that only keeps what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        """A line that stays."""
        self.lines.append(text)

    def progress(self, text: str) -> None:
        """A line that the next one replaces."""


def short_plan(duration_s: float = 1.0, repeats: int = 1, **changes: Any) -> Plan:
    """Trials of a small open loop."""
    values: dict[str, Any] = {
        "name": "short",
        "question": "?",
        "rate": Rate.fixed(500),
        "message": Message(size_bytes=200),
        "rabbitmq": RabbitMQ(),
        **changes,
    }
    profile = Profile("test", warmup_s=0.0, duration_s=duration_s, repeats=repeats)
    return make_plan([Scenario(**values)], profile, brokers=("rabbitmq",))


def run_once(plan: Plan, **faults: Any) -> tuple[dict[str, Any], fleet.Outcome]:
    """The plan's first trial on no broker."""
    return run_trial(plan.trials[0], Setting(memory_endpoint("rabbitmq", **faults), lambda _: None))


def agents() -> dict[str, int]:
    """The agents that live, by name."""
    return {each.name: each.pid for each in multiprocessing.active_children() if each.pid is not None}


def once_it_flows(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Do something as soon as messages arrive."""
    done: list[bool] = []

    def turned(self: trial.Live, seen: Board) -> None:
        del self
        if seen.total(Cell.RECEIVED) and not done:
            done.append(True)
            act()

    monkeypatch.setattr(trial.Live, "turned", turned)


def test_an_agent_that_is_stopped_is_named_and_fails_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that no longer turns ends the trial after STUCK_S, and its process with it; the others report."""
    monkeypatch.setattr(fleet, "STUCK_S", 1.0)
    once_it_flows(monkeypatch, lambda: os.kill(agents()["consumer0"], signal.SIGSTOP))
    record, outcome = run_once(short_plan(duration_s=60.0))
    assert outcome.error == "agent consumer0 is stuck: its loop has not turned for 1 s"
    assert record["verdict"]["status"] == "invalid"
    assert [result.agent for result in outcome.results] == ["producer0"]
    assert not agents()


class Hanging(ConsumerAgent):
    """A consumer that connects, and then sits in a call that never returns."""

    def _receive_all(self, consumer: Consumer) -> None:
        del consumer
        self.heartbeat(time.monotonic_ns())
        threading.Event().wait()


def hang(spec: AgentSpec, pipe: Connection) -> None:
    """What a spawned process runs: consumers hang."""
    process.ROLES["consumer"] = Hanging
    process.main(spec, pipe)


class Compressing:
    """A driver that works on a batch for 20 ms before it goes on its way."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Late."""
        time.sleep(0.02)
        self._producer.send(first_seq, intended_ns, sent_ns)


class Handing(ProducerAgent):
    """A producer with such a driver."""

    def hand_over(self, producer: Producer, number: int) -> None:
        """As it does, through it."""
        super().hand_over(Compressing(producer), number)  # type: ignore[arg-type]


def compress(spec: AgentSpec, pipe: Connection) -> None:
    """What a spawned process runs: drivers take their time."""
    process.ROLES["producer"] = Handing
    process.main(spec, pipe)


def test_what_a_driver_has_in_its_hands_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gauge counts a message from the moment that its stamp tells, as its latency does: L is λ·W."""
    monkeypatch.setattr(hands, "agent_main", compress)
    record, outcome = run_once(short_plan(duration_s=2.0, rate=Rate.saturate()))
    assert outcome.error is None
    mean_ns = record["latency_ns"]["e2e_service"]["mean"]
    assert mean_ns > 20e6
    assert record["under_way"]["mean_msgs"] > 0.7 * record["achieved_msgs_per_s"] * mean_ns / 1e9


def test_a_stuck_agent_tells_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack of the loop that hangs is in the trial's record."""
    monkeypatch.setattr(fleet, "STUCK_S", 1.0)
    monkeypatch.setattr(hands, "agent_main", hang)
    record, outcome = run_once(short_plan(duration_s=60.0))
    assert outcome.error is not None
    assert outcome.error.startswith("agent consumer0 is stuck")
    assert "consumer0:" in record["traceback"]
    assert "_receive_all" in record["traceback"]


def test_a_drain_does_not_end_while_a_consumer_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing arrives at one that does not run: what it finds when it goes on is not lost."""
    monkeypatch.setattr(fleet, "QUIET_S", 0.3)

    def pause() -> None:
        pid = agents()["consumer0"]
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(2.0, os.kill, (pid, signal.SIGCONT)).start()

    once_it_flows(monkeypatch, pause)
    record, outcome = run_once(short_plan(duration_s=0.5))
    assert outcome.error is None
    assert outcome.drain_s > 1, "it stood still when all had been sent"
    assert (due(record), record["received"], record["lost"]) == (250, record["sent"], 0)


@pytest.mark.parametrize(
    ("came", "left", "spent_s", "hopeless"),
    [
        (0, 1, 4.9, False),  # too soon to tell
        (0, 1, 5.0, True),
        (500, 11_000, 5.0, False),  # 100 a second, of which 55 s at twice the pace are 11,000
        (500, 11_001, 5.0, True),
        (500, 11_001, 59.0, True),
        (5_900, 200, 59.0, False),
    ],
)
def test_a_drain_without_hope_is_known_by_its_pace(came: int, left: int, spent_s: float, hopeless: bool) -> None:
    """What would not come in time at twice the pace is not waited for."""
    assert fleet.is_hopeless(came, left, spent_s) is hopeless


def test_a_queue_that_cannot_be_emptied_in_time_is_not_waited_for() -> None:
    """A consumer that thinks for too long: the trial ends soon after its window, and the queue's count is told."""
    record, outcome = run_once(short_plan(duration_s=0.5, rate=Rate.fixed(2_000), think_ms=500))
    assert outcome.error is None
    assert not outcome.drained
    assert fleet.HOPELESS_S <= outcome.drain_s < fleet.DRAIN_S / 2
    assert record["sent"] - record["received"] > 500
    found = {each["name"]: (each["passed"], each["reason"]) for each in record["verdict"]["checks"]}
    left = record["sent"] - record["received"]
    held = record["broker_counts"]["depth_at_end"]
    assert held >= left
    if held > left:  # what was under work when the trial ended is back: then nobody knows which they are
        assert found["drained"] == (None, "the queue was not emptied in time: counts are not final")
        assert found["loss"] == (None, f"{left:,} confirmed messages missing when the drain was given up")
        return
    assert found["drained"] == (True, "the queue was not emptied in time, and holds what is missing")
    told = f"of {left:,} messages that did not come the queue still holds {left:,} by the broker's own count"
    assert found["loss"] == (True, told)


def test_a_producer_that_waits_for_its_last_confirmations_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush longer than the limit is none of a dead loop's."""
    monkeypatch.setattr(fleet, "STUCK_S", 1.5)
    record, outcome = run_once(short_plan(rate=Rate.fixed(100)), confirm_delay_ms=4000)
    assert outcome.error is None
    assert record["acked"] == record["sent"] > 0


def give_up_soon(spec: AgentSpec, pipe: Connection) -> None:
    """What a spawned process runs: nobody waits long for the last confirmations."""
    producing.FLUSH_S = 0.3
    process.main(spec, pipe)


def test_confirmations_that_were_given_up_leave_a_closed_loops_counts_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that confirms after a minute: all has arrived, nothing is confirmed, and the verdict says so."""
    monkeypatch.setattr(hands, "agent_main", give_up_soon)
    record, outcome = run_once(short_plan(duration_s=0.2, rate=Rate.saturate()), confirm_delay_ms=60_000)
    assert outcome.error is None
    assert (record["acked"], record["lost"]) == (0, 0)
    (found,) = [each for each in record["verdict"]["checks"] if each["name"] == "confirmations"]
    assert (found["passed"], found["weighs"]) == (None, True)
    assert f"{record['sent']:,} of {record['sent']:,} sent were neither confirmed nor refused" in found["reason"]


def test_the_agents_that_are_missing_are_named_by_phase() -> None:
    """Neither those that are there already nor other roles are blamed."""
    crew = Fleet(None)  # type: ignore[arg-type]
    crew.hands.stacks = lambda *_: ""  # type: ignore[method-assign]
    with pytest.raises(TrialError, match=r"agent producer1 did not connect within 60 s \(and 1 more: producer2\)"):
        crew._give_up(["producer1", "producer2"], "did not connect within 60 s", None)  # type: ignore[arg-type]
    assert crew._lost == {"producer1", "producer2"}


def test_a_message_larger_than_a_pipe_is_taken_while_the_fleet_is_busy() -> None:
    """An agent's report never waits for the fleet's main thread."""
    here, there = multiprocessing.Pipe(duplex=False)
    crew = Fleet(None)  # type: ignore[arg-type]
    threading.Thread(target=hands.read_on, args=(here, "producer0", crew._inbox), daemon=True).start()
    for _ in range(8):
        there.send(b"x" * (1 << 20))  # would block for ever, as this thread alone would read it
    there.close()
    heard = [crew._inbox.get(timeout=30) for _ in range(9)]
    assert [None if each is None else len(pickle.loads(each)) for _, each in heard] == [1 << 20] * 8 + [None]  # noqa: S301


def test_a_full_disk_keeps_the_record_and_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the agents said is in the record, the run says why it ended, and no further trial is tried."""
    kept = RunWriter.add_series

    def refuse(self: RunWriter, rows: Any) -> None:
        rows = list(rows)
        if rows[0]["elapsed_s"] > 1.5:
            raise HostError("disk: full")
        kept(self, rows)

    monkeypatch.setattr(RunWriter, "add_series", refuse)
    options = Options("short", ["loadgen"], results=tmp_path, brokers="memory")
    run = execute(short_plan(duration_s=20.0, repeats=3), options, Quiet())
    assert (run.status, run.reason) == ("partial", "disk: full")
    (record,) = run.records
    assert (record["status"], record["error"]) == ("failed", "disk: full")
    assert record["sent"] > 0
    assert record["latency_ns"]["e2e"]["count"] > 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("observer")]


def test_a_record_is_kept_where_its_histograms_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk that fills at the very end costs the log's last lines, and the trial says so."""
    writer = RunWriter(tmp_path, "short", {})

    def refuse(trial_id: str, upto: int | None = None) -> None:
        del trial_id, upto
        monkeypatch.setattr(writer, "_flush_intervals", lambda *_: None)  # it has given its log up
        raise HostError("disk: full")

    monkeypatch.setattr(writer, "_flush_intervals", refuse)
    with pytest.raises(HostError):
        engine._keep({"id": "a/1", "status": "complete", "error": None}, writer)
    (record,) = load(writer.path).records
    assert (record["status"], record["error"]) == ("failed", "disk: full")
    assert record["verdict"]["status"] == "invalid"


def test_a_defect_of_the_observer_leaves_the_figures_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement stands, and nobody calls it valid."""
    monkeypatch.setattr(Observer, "_sample", lambda _: 1 // 0)
    record, outcome = run_once(short_plan())
    assert outcome.error is None
    assert due(record) == 500
    assert record["sent"] == record["received"]
    assert record["verdict"]["status"] != "valid"
    assert {check["name"]: check["passed"] for check in record["verdict"]["checks"]}["observation"] is None


RUN = """
import sys
from loadgen.cli import main
sys.exit(main(["run", "scenarios/latency.py", "--brokers", "memory", "--broker", "kafka", "--set", "producers=4",
               "--set", "duration_s=60", "--set", "rate=200", "--repeats", "1", "--results", sys.argv[1]]))
"""


def children(pid: int) -> list[int]:
    """The processes that a process of one thread has started; none of one that has ended."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ending_it_while_agents_connect_prints_no_traceback(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and a closed terminal, which reach every process of the group, end a run of agents that still import."""
    command = [sys.executable, "-c", "if __name__ == '__main__':\n" + RUN.replace("\n", "\n "), str(tmp_path)]
    tool = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    # The resource tracker and the fork server, and of that three agents, of which none has connected.
    while not any(len(children(each)) == 3 for each in children(tool.pid)):
        time.sleep(0.001)
    os.killpg(tool.pid, number)
    _, errors = tool.communicate(timeout=60)
    assert tool.returncode == 130
    assert "Traceback" not in errors
    (path,) = (each for each in tmp_path.iterdir() if each.is_dir() and not each.is_symlink())
    assert load(path).reason == "interrupted"


def test_agents_that_wait_for_the_start_leave_when_told() -> None:
    """An agent in `begin` obeys the order to stop, and nothing has to be killed."""

    class Leaving:
        def reported(self, report: Any) -> None:
            """Nothing is reported."""

        def started(self, start_ns: int, pids: Any) -> None:
            """Refuse to start."""
            del start_ns, pids
            raise HostError("not now")

        def turned(self, seen: Board) -> None:
            """Nothing to do."""

    endpoint = memory_endpoint("rabbitmq")
    each = replace(short_plan().trials[0], driver="memory")
    target = Target(endpoint, "loadgen-test", each.settings, group="g")
    admin = load_driver("memory").admin(endpoint)
    admin.create(target)
    crew = Fleet(Leaving())
    outcome = crew.run(lambda seen: roster(each, target, 1, seen, ()), 2)
    admin.delete(target)
    admin.close()
    assert outcome.error == "not now"
    assert isinstance(crew.hands, hands.Processes)
    assert [each.exitcode for each in crew.hands._processes.values()] == [0, 0]


def test_a_closed_terminal_interrupts_and_nohup_is_respected() -> None:
    """SIGHUP is Ctrl-C, unless it is ignored already."""
    with pytest.raises(KeyboardInterrupt), terminate_as_interrupt():
        os.kill(os.getpid(), signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminate_as_interrupt():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_killed_runs_left_in_memory_is_removed() -> None:
    """A board of a process that is gone goes when the next is made; those of the living stay."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    alive = Board.create(1)
    try:
        stale = alive.path.with_name(f"{board.PREFIX}{gone.pid}-x")
        stale.touch()
        dump = stale.with_name(f"{stale.name}.consumer0")
        dump.touch()
        alive.dump_path("producer0").touch()
        Board.create(1).remove()
        assert [path.exists() for path in (stale, dump, alive.path, alive.dump_path("producer0"))] == [
            False, False, True, True,
        ]  # fmt: skip
    finally:
        alive.remove()
    assert not alive.dump_path("producer0").exists()


def test_pins_are_what_took_effect() -> None:
    """A broker that cannot be pinned from here is said so, and the header claims nothing."""
    quiet = Quiet()
    own = os.sched_getaffinity(0)
    elsewhere = replace(memory_endpoint("kafka"), pids=())
    with pinning.pinned({"kafka": elsewhere}, Pins((0,), (0,)), quiet.message) as held:
        assert held == Pins((), (0,))
    assert "kafka cannot be pinned" in quiet.lines[0]
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        first = min(own)
        before: dict[int, set[int]] = {}
        assert pinning._hold([sleeper.pid], [first], before)
        assert os.sched_getaffinity(sleeper.pid) == {first}
        pinning._let_go(before)
        assert os.sched_getaffinity(sleeper.pid) == own
    finally:
        sleeper.kill()
        sleeper.wait()


def test_the_wait_for_the_disk_is_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long it took and whether it was over is known of each trial on this machine's disk."""
    seen = Written(waited_s=30.0, reached=False, left_bytes=1 << 30)
    monkeypatch.setattr(host, "wait_until_written", lambda **_: seen)
    monkeypatch.setattr(engine, "WRITTEN_SOURCES", {"memory"})
    options = Options("short", ["loadgen"], results=tmp_path, brokers="memory")
    run = execute(short_plan(), options, Quiet())
    assert run.records[0]["written"] == {"waited_s": 30.0, "reached": False, "left_bytes": 1 << 30}


def test_only_brokers_that_start_now_are_sized_for_their_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is up keeps its pools, and is said to; one that starts is given its CPUs from the beginning."""
    asked: dict[str, tuple[int, ...]] = {}

    @contextlib.contextmanager
    def opened(spec: str, names: Sequence[BrokerName], *, cpus: Sequence[int] = (), **_: Any) -> Iterator[Any]:
        assert spec == "local"
        asked.update(dict.fromkeys(names, tuple(cpus)))
        yield {name: memory_endpoint(name) for name in names}

    monkeypatch.setattr(sites, "open_brokers", opened)
    rows = [
        {"broker": "rabbitmq", "running": True, "linked": False, "nodes": [1]},
        {"broker": "kafka", "running": True, "linked": False, "nodes": [1, 2, 3]},
    ]
    monkeypatch.setattr(sites, "status", lambda _: rows)
    quiet = Quiet()
    with sites._opened("local", ("kafka", "rabbitmq"), Site(1), Pins((0,), (1,)), quiet) as endpoints:
        assert list(endpoints) == ["kafka", "rabbitmq"]
    assert asked == {"rabbitmq": (), "kafka": (0,)}
    assert "rabbitmq: up already" in quiet.lines[0]


def test_the_disk_that_is_looked_at_is_the_brokers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local brokers may be kept elsewhere, in a folder that is yet to be made."""
    monkeypatch.setenv("LOADGEN_BROKERS_DIR", str(tmp_path / "not" / "yet"))
    assert sites.disk_dir("local") == tmp_path
    assert sites.disk_dir("docker") == Path.cwd()
