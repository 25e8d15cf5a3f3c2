"""A broker in memory, a driver like any other: the whole flow, and every fault, without a broker.

`Admin.create` starts the queue of a trial as a small process of its own behind a Unix socket
(`loadgen.drivers.memory_hub`); producers and consumers may be any processes of the same user. With a
`SimulatedClock` everything happens in one process instead, and time moves only while somebody waits.

Settings beside the brokers' own (`confirm_window`, `confirms` or `acks`, `prefetch`, `ack`, and
`buffer_memory` where there is no window) are those of `memory_behaviour.Behaviour`, each under the name
`memory.<field>`, in the trial's settings or, where those do not say, in the endpoint's configuration.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.driver import DriverInfo, Gauge, Received, Settled, confirms
from loadgen.drivers.memory_behaviour import PREFIX, Behaviour
from loadgen.drivers.memory_hub import Hub
from loadgen.drivers.memory_link import (
    NS_PER_S,
    Frame,
    Kind,
    SimulatedClock,
    SimulatedLink,
    SocketLink,
    batch,
)
from loadgen.endpoint import Endpoint
from loadgen.errors import BrokerError, TrialError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.driver import Int64, Target
    from loadgen.drivers.memory_link import Link
    from loadgen.endpoint import BrokerName
    from loadgen.payload import Payloads

INFO = DriverInfo("memory", "memory", "memory")
DEFAULT_WINDOW_MSGS = 1_000
STOP_S = 5.0
REFUSED = "refused"

_hubs: dict[tuple[int, str], subprocess.Popen[bytes]] = {}  # by the process that started them and by socket


def memory_endpoint(broker: BrokerName = "rabbitmq", **behaviour: Any) -> Endpoint:
    """An endpoint in memory that stands for `broker`; `behaviour` as in `memory_behaviour.Behaviour`."""
    settings = {f"{PREFIX}{name}": value for name, value in behaviour.items()}
    Behaviour.of(settings)
    return Endpoint(
        broker,
        (("memory", 0),),
        version="memory",
        configuration=settings,
        source="memory",
        pids=(os.getpid(),),
    )


def _behaviour(target: Target) -> Behaviour:
    return Behaviour.of({**target.endpoint.configuration, **target.settings})


def _socket_path(target: Target) -> Path:
    """Where the queue listens: in a folder that only this user can enter."""
    folder = Path(tempfile.gettempdir()) / f"loadgen-memory-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = folder.lstat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o077:
        raise BrokerError(f"{folder}: belongs to somebody else; set TMPDIR to a folder of your own")
    name = f"{target.endpoint.address}/{target.name}".encode()
    return folder / f"{zlib.crc32(name):08x}-{target.name[:40]}"


def _start_hub(target: Target, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(str(path))
        except OSError as error:
            raise BrokerError(f"queue {target.name}: cannot listen at {path}: {error}") from None
        listener.listen(256)
        listener.set_inheritable(True)
        command = [sys.executable, "-m", "loadgen.drivers.memory_hub"]
        command += [str(listener.fileno()), json.dumps(asdict(_behaviour(target))), str(os.getpid())]
        command += [str(target.subscribers)]
        # The socket listens already, so that nobody has to wait for the process; it ends when this one does.
        _hubs[os.getpid(), str(path)] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=[listener.fileno()]
        )


def _end_hub(path: Path) -> None:
    """End a queue's process, wherever it was started, and forget its socket."""
    with contextlib.suppress(OSError, TrialError):
        link = SocketLink(str(path))
        try:
            link.send(Frame(Kind.STOP))
            deadline = time.monotonic() + STOP_S
            while time.monotonic() < deadline:  # until the queue closes the connection, which raises
                link.receive(STOP_S)
        finally:
            link.close()
    hub = _hubs.pop((os.getpid(), str(path)), None)
    if hub is not None:
        try:
            hub.wait(STOP_S)
        except subprocess.TimeoutExpired:
            hub.kill()
            hub.wait()
    path.unlink(missing_ok=True)


@atexit.register
def _end_all_hubs() -> None:
    for maker_pid, path in list(_hubs):
        if maker_pid == os.getpid():  # a forked child inherits the table, not the queues
            _end_hub(Path(path))


class _Queues:
    """Where queues are: behind sockets, or in this process on a simulated clock."""

    def __init__(self, clock: SimulatedClock | None) -> None:
        self._clock = clock
        self._simulated: dict[str, Hub] = {}

    def open(self, target: Target) -> None:
        """Make the queue; one that exists is an error."""
        if self._clock is not None:
            if target.name in self._simulated:
                raise BrokerError(f"queue {target.name} exists already; delete it first")
            self._simulated[target.name] = Hub(_behaviour(target), self._clock.now_ns, target.subscribers)
            return
        path = _socket_path(target)
        if path.exists():
            try:
                SocketLink(str(path)).close()
            except OSError:
                path.unlink()  # left behind by a process that was killed
            else:
                raise BrokerError(f"queue {target.name} exists already; delete it first")
        _start_hub(target, path)

    def close(self, target: Target) -> None:
        """Remove the queue; one that is gone already is no error."""
        if self._clock is not None:
            self._simulated.pop(target.name, None)
        else:
            _end_hub(_socket_path(target))

    def link(self, target: Target) -> Link:
        """Connect to the queue; raises BrokerError where there is none."""
        try:
            if self._clock is not None:
                return SimulatedLink(self._simulated[target.name], self._clock)
            return SocketLink(str(_socket_path(target)))
        except (KeyError, OSError):
            raise BrokerError(f"queue {target.name}: no such queue in memory; Admin.create makes it") from None


class MemoryAdmin:
    """The control plane of the queues in memory."""

    def __init__(self, queues: _Queues) -> None:
        self._queues = queues

    def create(self, target: Target) -> None:
        """Start a queue."""
        self._queues.open(target)

    def delete(self, target: Target) -> None:
        """End it."""
        self._queues.close(target)

    def depth(self, target: Target, received: int | None = None) -> int:
        """Messages that wait for delivery or for their acknowledgement, of all subscribers."""
        del received  # the queue knows by itself
        return int(self._ask(target)["depth"])

    def stored(self, target: Target) -> int | None:
        """How many messages the queue took."""
        return int(self._ask(target)["stored"])

    def gauge(self, target: Target, received: int | None = None) -> Gauge:
        """Both, of one moment."""
        del received
        told = self._ask(target)
        return Gauge(int(told["depth"]), int(told["stored"]))

    def effective(self, target: Target) -> dict[str, Any]:
        """The queue's behaviour, and under "harm" what it did to messages so far (`memory_behaviour.Harm`)."""
        return self._ask(target)

    def close(self) -> None:
        """Nothing is held; the queues live on until they are deleted or this process ends."""

    def _ask(self, target: Target) -> dict[str, Any]:
        link = self._queues.link(target)
        try:
            link.send(Frame(Kind.ASK))
            for frame in link.receive(STOP_S):
                told: dict[str, Any] = json.loads(frame.body.tobytes())
                return told
        finally:
            link.close()
        raise BrokerError(f"queue {target.name}: no answer in {STOP_S:.0f} s")


class MemoryProducer:
    """Sends batches and learns of their confirmations."""

    def __init__(self, target: Target, payloads: Payloads, link: Link) -> None:
        settings = target.settings
        self._confirms = confirms(settings)
        window = settings.get("confirm_window")
        if window is None and "buffer_memory" in settings:
            window = max(1, int(settings["buffer_memory"] / payloads.mean_size_bytes))
        self._window = int(window or DEFAULT_WINDOW_MSGS)
        self._payloads = payloads
        self._link = link
        self._unsettled = 0
        link.send(Frame(Kind.PRODUCE, flags=not self._confirms))

    @property
    def room_msgs(self) -> int:
        """How many messages `send` takes now; 0 means poll first."""
        if not self._confirms:
            return 0 if self._link.backlog_bytes else self._window
        return self._window - self._unsettled

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Send messages first_seq …; at most `room_msgs` of them."""
        count = len(intended_ns)
        assert count <= self.room_msgs, f"{count} messages into room for {self.room_msgs}"
        data, offsets = self._payloads.pack(first_seq, intended_ns, sent_ns)
        self._link.send(batch(Kind.PUBLISH, first_seq, data, offsets, self._payloads.size_bytes or 0))
        if self._confirms:
            self._unsettled += count

    def poll(self, timeout_s: float) -> list[Settled]:
        """What was settled, waiting up to `timeout_s` for the first."""
        settled = []
        for frame in self._link.receive(timeout_s):
            assert frame.kind in {Kind.CONFIRM, Kind.REFUSE}, f"a producer does not expect {frame.kind.name}"
            error = None if frame.kind is Kind.CONFIRM else REFUSED
            settled.append(Settled(np.arange(frame.first, frame.first + frame.count), frame.read_ns, error))
            self._unsettled -= frame.count
        return settled

    def flush(self, timeout_s: float) -> list[Settled]:
        """Wait until all is settled (without confirms: written)."""
        return _until(self._link, timeout_s, lambda: not self._unsettled and not self._link.backlog_bytes, self.poll)

    def close(self) -> None:
        """Leave."""
        self._link.close()


def _until(
    link: Link, timeout_s: float, is_done: Callable[[], bool], poll: Callable[[float], list[Settled]]
) -> list[Settled]:
    deadline_ns = link.now_ns() + int(timeout_s * NS_PER_S)
    settled = poll(0)
    while not is_done() and link.now_ns() < deadline_ns:
        # Short waits: without confirms nothing comes that would end a wait when all has been written.
        settled += poll(min(0.01, (deadline_ns - link.now_ns()) / NS_PER_S))
    return settled


class MemoryConsumer:
    """Receives batches and acknowledges them."""

    def __init__(self, target: Target, link: Link) -> None:
        self._link = link
        self._automatic = target.settings.get("ack") == "automatic"
        self._handed_out = 0
        prefetch = int(target.settings.get("prefetch") or 0)
        link.send(Frame(Kind.CONSUME, flags=self._automatic, count=target.subscriber, first=prefetch))

    @property
    def has_waiting(self) -> bool:
        """Never: all that has arrived is handed out."""
        return False

    def receive(self, timeout_s: float) -> list[Received]:
        """All that has arrived, waiting up to `timeout_s` for the first."""
        batches = []
        for frame in self._link.receive(timeout_s):
            assert frame.kind is Kind.DELIVER, f"a consumer does not expect {frame.kind.name}"
            data, offsets = frame.split()
            batches.append(
                Received(
                    buffer=data,
                    starts=offsets[:-1],
                    sizes=frame.size_bytes or np.diff(offsets),
                    source=0,
                    read_ns=frame.read_ns,
                    parsed_ns=self._link.now_ns(),
                    redelivered=np.ones(frame.count, np.bool_) if frame.flags else None,
                )
            )
            self._handed_out += frame.count
        return batches

    def settle(self, count: int | None = None) -> None:
        """Acknowledge all that was handed out, or `count` more of it."""
        settled = self._handed_out if count is None else min(count, self._handed_out)
        if settled and not self._automatic:
            self._link.send(Frame(Kind.ACK, first=settled))
        self._handed_out -= settled

    def close(self) -> None:
        """Leave; what was not settled goes to another consumer."""
        self._link.close()


class MemoryDriver:
    """The driver; with a clock, a simulation in one process."""

    def __init__(self, clock: SimulatedClock | None = None) -> None:
        self._queues = _Queues(clock)
        self.name, self.broker, self.kind = INFO.name, INFO.broker, INFO.kind
        self.capabilities = INFO.capabilities
        self.send_bytes = INFO.send_bytes

    def admin(self, endpoint: Endpoint) -> MemoryAdmin:
        """The control plane; there is nothing to connect to."""
        del endpoint
        return MemoryAdmin(self._queues)

    def producer(self, target: Target, payloads: Payloads) -> MemoryProducer:
        """Connect a producer."""
        return MemoryProducer(target, payloads, self._queues.link(target))

    def consumer(self, target: Target, index: int, count: int) -> MemoryConsumer:
        """Connect a consumer; all consumers of a subscriber share its one queue, whatever number was asked for."""
        del index, count
        return MemoryConsumer(target, self._queues.link(target))


DRIVER = MemoryDriver()
