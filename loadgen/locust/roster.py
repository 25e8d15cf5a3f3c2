"""The command line's workers: who has joined, whether it fits, how far its clock is off; and a trial's agents on them.

The command line keeps this in its own process, which neither imports Locust nor is patched: a child process is
Locust's master (`loadgen.locust.relay`) and only passes on. What workers run is `loadgen.locust.squad`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from loadgen.clocks import ClockServer, in_words
from loadgen.errors import HostError, LoadgenError, ScenarioError
from loadgen.locust.line import Line
from loadgen.locust.spread import Place
from loadgen.tracking import clock_id
from loadgen.versions import own_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from loadgen.hands import Hands
    from loadgen.locust.remote import RemoteHands

PORT = 5557  # Locust's own
UP_S = 120.0
END_S = 15.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks of a fleet; `prints` are the fingerprints of its scenarios by name."""

    workers: int
    prints: Mapping[str, str]
    host: str = "127.0.0.1"
    port: int = PORT
    wait_s: float = 60.0
    replaced_s: float = 10.0
    """How long a trial waits for another worker in the place of one that was lost."""


def parse_bind(text: str) -> tuple[str, int]:
    """HOST[:PORT] as host and port; raises ScenarioError for anything else."""
    host, _, port = text.rpartition(":") if text.count(":") == 1 else (text, "", str(PORT))
    if not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise ScenarioError(f"--bind {text}: expected HOST or HOST:PORT, such as 0.0.0.0:{PORT}")
    return host, int(port)


@dataclass
class Member:
    """One worker that fits."""

    id: str
    name: str
    host: str
    clock: str
    pids: list[int]
    machine: int
    """Which one, by number: 0 is this process's. Names of hosts are in no run."""
    told: dict[str, Any] | None = None
    """What its squad said of its clock; until then it takes part in nothing."""

    @property
    def place(self) -> Place:
        """Where its agents would run."""
        return Place(self.id, self.machine)

    @property
    def label(self) -> str:
        """As people are told of it."""
        return f"{self.name} ({self.host})"


@dataclass
class _Seen:
    """Who is there, as the thread that listens keeps it."""

    joined: set[str] = field(default_factory=set)
    members: dict[str, Member] = field(default_factory=dict)
    refused: str | None = None
    port: int | None = None
    has_ended: bool = False


class Roster:
    """The workers of one run; use it as a context manager, within which they are there.

    Raises:
        HostError: Locust is missing, the port is taken, too few workers came, or one does not fit.
    """

    def __init__(self, asked: Asked, say: Callable[[str], None]) -> None:
        self._asked, self._say = asked, say
        self._changed = threading.Condition()
        self._seen = _Seen()
        self._names = 0
        self._machines = {clock_id().partition(" ")[0]: 0}
        self.trial: RemoteHands | None = None
        """The trial that is being run, which hears what workers say."""
        self.trials = 0
        self._has_begun = False

    def __enter__(self) -> Self:
        if importlib.util.find_spec("locust") is None:
            raise HostError("--fleet locust: Locust is not installed; pip install 'loadgen[locust]'")
        here, there = socket.socketpair()
        words = [self._asked.host, str(self._asked.port), str(there.fileno())]
        command = [sys.executable, "-c", "from loadgen.locust.relay import main; main()", *words]
        # A session of its own: Ctrl-C in the terminal is the command line's to hear.
        self._process = subprocess.Popen(command, pass_fds=[there.fileno()], start_new_session=True)
        there.close()
        self._line = Line(here)
        self._clocks: ClockServer | None = None
        self._thread = threading.Thread(target=self._listen, name="hears-workers", daemon=True)
        self._thread.start()
        try:
            self._open()
            self._gather()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _open(self) -> None:
        """Wait until Locust's master listens, and tell the time beside it."""
        with self._changed:
            self._changed.wait_for(lambda: self._seen.port or self._seen.refused or self._seen.has_ended, UP_S)
            if self._seen.port is None:
                why = self._seen.refused or "it did not start"
                raise HostError(f"--bind {self._asked.host}:{self._asked.port}: cannot be listened on: {why}")
        listens = "" if self._asked.host == "*" else self._asked.host
        self._clocks = ClockServer(listens or "0.0.0.0", self._seen.port)  # noqa: S104 - asked for
        with self._changed:
            for member in self._seen.members.values():  # who was faster than this thread
                self._greet(member)

    @property
    def port(self) -> int:
        """Where workers find the master, and by UDP the time."""
        assert self._seen.port is not None
        return self._seen.port

    @property
    def pid(self) -> int:
        """Of the process that is Locust's master."""
        return self._process.pid

    def _gather(self) -> None:
        wanted, wait_s = self._asked.workers, self._asked.wait_s
        where = f"{self._asked.host}:{self.port}"
        self._say(f"waiting for {wanted} Locust worker{'s' * (wanted > 1)} at {where}")
        with self._changed:
            self._changed.wait_for(lambda: self._is_settled(wanted), wait_s)
            if self._seen.refused is not None:
                raise HostError(self._seen.refused)
            there = len(self._ready())
            if there < wanted:
                silent = len(self._seen.joined - self._seen.members.keys())
                hint = f"; {silent} more joined with a locustfile that is no scenario of loadgen's" * bool(silent)
                raise HostError(
                    f"--expect-workers {wanted}: {there} came within {wait_s:g} s{hint}; start each with `locust -f "
                    f"SCENARIO --worker --master-host HOST --master-port {self.port}` (--bind {self._asked.host} is "
                    "what they must reach)"
                )
        self._has_begun = True
        for member in self.members():
            self._say(f"worker {member.label}: {clock_text(member.told or {})}")

    def _is_settled(self, wanted: int) -> bool:
        return self._seen.refused is not None or self._seen.has_ended or len(self._ready()) >= wanted

    def _ready(self) -> list[Member]:
        return [each for each in self._seen.members.values() if each.told is not None]

    def members(self) -> list[Member]:
        """The workers that can take part now."""
        with self._changed:
            return self._ready()

    def crew(self) -> list[Member]:
        """Those for a trial; where one was lost another one is waited for a little. HostError where none is left."""
        wanted = self._asked.workers
        with self._changed:
            if len(self._ready()) < wanted:
                self._changed.wait_for(
                    lambda: self._seen.has_ended or len(self._ready()) >= wanted, self._asked.replaced_s
                )
            found = self._ready()
        if not found:
            raise HostError("no Locust worker is left; the rest of the plan cannot be run")
        if len(found) < wanted:
            self._say(f"{len(found)} of {wanted} workers are left, and go on")
        return found

    def hands(self) -> Hands:
        """What moves the agents of the next trial."""
        from loadgen.locust.remote import RemoteHands  # noqa: PLC0415 - it builds on this module

        return RemoteHands(self)

    def header(self) -> list[dict[str, Any]]:
        """The workers as they stand in a run's document."""
        return [{"name": each.name, "machine": each.machine, "clock": each.told} for each in self.members()]

    # What is said.

    def order(self, worker: str, order: str, **data: Any) -> None:
        """Tell a worker's squad something; one that is gone does not hear it, and is told of as lost."""
        with contextlib.suppress(OSError):
            self._line.send("to", worker=worker, data={"kind": "fleet", "order": order, "data": data})

    def _greet(self, member: Member) -> None:
        if self._clocks is not None:
            self.order(member.id, "clock", reference=clock_id(), port=self._seen.port)

    def _listen(self) -> None:
        while (message := self._line.receive()) is not None:
            kind = message.pop("kind")
            with self._changed:
                try:
                    getattr(self, f"_on_{kind}")(**message)
                except (KeyError, TypeError, ValueError) as error:  # a stranger's, or damaged: not one of ours
                    self._refuse(f"a worker's message {kind} cannot be understood: {type(error).__name__}: {error}")
                self._changed.notify_all()
        with self._changed:
            self._seen.has_ended = True
            for worker in list(self._seen.members):
                self._on_lost(worker)
            self._changed.notify_all()

    def _on_up(self, port: int, pid: int) -> None:
        del pid
        self._seen.port = port

    def _on_failed(self, error: str) -> None:
        self._seen.refused = error

    def _on_joined(self, worker: str) -> None:
        self._seen.joined.add(worker)
        if worker not in self._seen.members:  # its greeting came before this, or it comes back after a pause
            self.order(worker, "hello")

    def _on_lost(self, worker: str) -> None:
        self._seen.joined.discard(worker)
        member = self._seen.members.pop(worker, None)
        if member is not None and self.trial is not None:
            self.trial.lost(member)

    def _on_said(self, worker: str, data: dict[str, Any]) -> None:
        kind = data.pop("kind")
        if kind == "hello":
            self._on_hello(worker, **data)
        elif kind == "fleet" and worker in self._seen.members:
            what = data.pop("what")
            member = self._seen.members[worker]
            if what == "here":
                member.told, member.pids = data["clock"], [*member.pids, data["pid"]]
            elif what == "refused":
                self._refuse(f"worker {member.label}: {data['error']}")
            elif what == "died":
                self._on_lost(worker)
            elif self.trial is not None:
                self.trial.hear(member, what, data)

    def _on_hello(
        self, worker: str, pids: list[int], host: str = "", version: str = "",
        scenarios: dict[str, str] | None = None, boot: str = "",
    ) -> None:  # fmt: skip
        if worker in self._seen.members:
            return
        machine = self._machines.setdefault(boot.partition(" ")[0], len(self._machines))
        member = Member(worker, f"w{self._names}", host or worker.rpartition("_")[0], boot, pids, machine)
        why = self._unfit(version, scenarios or {})
        if why is not None:
            self._refuse(f"worker {member.label} {why}")
            return
        self._names += 1
        self._seen.members[worker] = member
        self._greet(member)

    def _unfit(self, version: str, prints: Mapping[str, str]) -> str | None:
        """Why a worker cannot take part, if so."""
        if version != own_version():
            return f"runs loadgen {version or 'of another version'}, this is {own_version()}; install one on both"
        for name, wanted in self._asked.prints.items():
            if name not in prints:
                had = ", ".join(sorted(prints)) or "none"
                return f"has not loaded the scenario {name} (its locustfile has {had}); start it with the same -f"
            if prints[name] != wanted:
                return f"has another {name} than this: its scenario file differs; copy the same file to all machines"
        return None

    def _refuse(self, text: str) -> None:
        if self._has_begun:
            self._say(text)
        self._seen.refused = self._seen.refused or text

    def _close(self) -> None:
        """End the master, and with it all workers."""
        self._line.close_sending()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._thread.join(5)
        self._line.close()
        if self._clocks is not None:
            self._clocks.close()


def clock_text(clock: Mapping[str, Any]) -> str:
    """A worker's clock, for people."""
    if not clock["samples"]:
        return "the same clock as this process"
    return f"clock {in_words(clock, 'ours')}"


def refuse_loopback(member: Member, address: str) -> None:
    """Raise LoadgenError where a worker elsewhere is to reach a broker that listens for this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    if member.machine and (host in {"localhost", "::1"} or host.startswith("127.")):
        raise LoadgenError(
            f"worker {member.label} runs on another machine and cannot reach the broker at {address}; give --brokers "
            "URLs that all machines reach"
        )
