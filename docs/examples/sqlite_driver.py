"""A whole driver, for a broker that everybody has: queues in SQLite files (docs/howto/add-a-broker-driver.md).

A queue is a file with a row for each message that waits. A consumer claims rows, and an acknowledged one is deleted;
what it had claimed and not acknowledged when it leaves is free again, marked as redelivered. (What a real broker does
and this one does not: notice that a consumer was killed.)
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.driver import Capabilities, DriverInfo, Gauge, Received, Settled, confirms
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from loadgen.driver import Int64, Target
    from loadgen.endpoint import Endpoint
    from loadgen.payload import Payloads

# Which broker's knobs it is given, and what kind of figures it makes: "client", since Python touches each message.
INFO = DriverInfo("sqlite", "rabbitmq", "client", Capabilities())
BUSY_S = 60.0  # for how long SQLite waits where somebody else writes
NAP_S = 0.001
TABLES = """
    CREATE TABLE messages (
        number INTEGER PRIMARY KEY AUTOINCREMENT, subscriber INTEGER, body BLOB, consumer TEXT,
        redelivered INTEGER DEFAULT 0
    );
    CREATE INDEX waiting ON messages (subscriber, consumer, number);
    CREATE TABLE consumers (name TEXT PRIMARY KEY);
"""


def path_of(target: Target) -> Path:
    """Where a queue is: the broker's folder, if its endpoint has one."""
    return (target.endpoint.data_dir or Path(tempfile.gettempdir())) / f"{target.name}.sqlite"


def connect(target: Target) -> sqlite3.Connection:
    """A connection to a queue that exists; each statement is a transaction of its own unless one is begun."""
    path = path_of(target)
    if not path.exists():
        raise BrokerError(f"queue {target.name}: no such file {path}; Admin.create makes it")
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


class SqliteAdmin:
    """The control plane: makes, watches and removes a trial's queue. It may be slow; it may not be wrong."""

    def create(self, target: Target) -> None:
        """A new file; one that exists is an error."""
        path = path_of(target)
        if path.exists():
            raise BrokerError(f"queue {target.name}: {path} exists already; delete it first")
        with contextlib.closing(sqlite3.connect(path)) as made:
            made.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
            made.executescript(TABLES)

    def delete(self, target: Target) -> None:
        """Remove it; one that is gone already is no error."""
        path = path_of(target)
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def depth(self, target: Target, received: int | None = None) -> int:
        """Messages that wait or are with a consumer, of all subscribers."""
        del received  # of use where only positions are known, as in a log
        return int(self._one(target, "SELECT count(*) FROM messages"))

    def stored(self, target: Target) -> int | None:
        """How many messages it took: rows are numbered for ever."""
        return int(self._one(target, "SELECT coalesce(max(seq), 0) FROM sqlite_sequence"))

    def gauge(self, target: Target, received: int | None = None) -> Gauge:
        """All of it at once, for the observer who asks each second."""
        consumers = int(self._one(target, "SELECT count(*) FROM consumers"))
        return Gauge(self.depth(target, received), self.stored(target), consumers)

    def effective(self, target: Target) -> dict[str, Any]:
        """How the queue is configured, as SQLite itself tells it."""
        return {"sqlite": sqlite3.sqlite_version, "journal_mode": self._one(target, "PRAGMA journal_mode")}

    def close(self) -> None:
        """Nothing is held."""

    def _one(self, target: Target, query: str) -> Any:
        with contextlib.closing(connect(target)) as asked:
            return asked.execute(query).fetchone()[0]


class SqliteProducer:
    """Sends whole batches: a transaction each, whose end is the confirmation."""

    def __init__(self, target: Target, payloads: Payloads) -> None:
        self._payloads = payloads
        self._subscribers = target.subscribers
        self._confirms = confirms(target.settings)
        self._window = int(target.settings["confirm_window"])
        self._settled: list[Settled] = []
        self._connection = connect(target)

    @property
    def room_msgs(self) -> int:
        """What the window leaves; a batch counts until `poll` has told of it."""
        return self._window - sum(len(each.seqs) for each in self._settled)

    def send(self, first_seq: int, intended_ns: Int64, sent_ns: int) -> None:
        """Messages first_seq … as `payloads` makes them: stamp and body in one buffer, cut at `offsets`."""
        data, offsets = self._payloads.pack(first_seq, intended_ns, sent_ns)
        bodies = [data[begin:end].tobytes() for begin, end in pairwise(offsets)]
        rows = [(subscriber, body) for body in bodies for subscriber in range(self._subscribers)]
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO messages (subscriber, body) VALUES (?, ?)", rows)
        self._connection.execute("COMMIT")
        if self._confirms:
            seqs = np.arange(first_seq, first_seq + len(bodies))
            self._settled.append(Settled(seqs, time.monotonic_ns()))

    def poll(self, timeout_s: float) -> list[Settled]:
        """What was settled since the last call. Nothing comes later here, so that there is nothing to wait for."""
        settled, self._settled = self._settled, []
        if not settled and timeout_s:
            time.sleep(min(timeout_s, NAP_S))
        return settled

    def flush(self, timeout_s: float) -> list[Settled]:
        """All is written when `send` returns."""
        del timeout_s
        return self.poll(0)

    def close(self) -> None:
        """Leave; never raises, whatever became of the file."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()


class SqliteConsumer:
    """Claims rows up to its prefetch, and deletes them when they have been processed."""

    has_waiting = False  # all that was claimed is handed out at once

    def __init__(self, target: Target, index: int) -> None:
        self._name = f"{target.subscriber}/{index}/{time.monotonic_ns()}"
        self._subscriber = target.subscriber
        self._prefetch = int(target.settings["prefetch"]) or -1  # 0 is unlimited, which SQLite writes so
        self._automatic = target.settings["ack"] == "automatic"
        self._handed: list[int] = []
        self._connection = connect(target)
        self._connection.execute("INSERT INTO consumers VALUES (?)", (self._name,))

    def receive(self, timeout_s: float) -> list[Received]:
        """Wait for the first message, then hand out what there is."""
        deadline_s = time.monotonic() + timeout_s
        while not (rows := self._claim()) and time.monotonic() < deadline_s:
            time.sleep(NAP_S)
        if not rows:
            return []
        read_ns = time.monotonic_ns()
        self._handed += [number for number, _, _ in rows]
        bodies = [body for _, body, _ in rows]
        sizes = np.array([len(body) for body in bodies])
        buffer = np.frombuffer(b"".join(bodies), np.uint8)
        again = np.array([redelivered for _, _, redelivered in rows], np.bool_)
        if self._automatic:
            self.settle()
        return [Received(buffer, np.cumsum(sizes) - sizes, sizes, 0, read_ns, time.monotonic_ns(), again)]

    def settle(self, count: int | None = None) -> None:
        """All that was handed out has been processed, or `count` more of it."""
        done, self._handed = self._handed[:count], [] if count is None else self._handed[count:]
        if done:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("DELETE FROM messages WHERE number = ?", [(number,) for number in done])
            self._connection.execute("COMMIT")

    def close(self) -> None:
        """What was not settled goes to another consumer; never raises."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute(
                "UPDATE messages SET consumer = NULL, redelivered = 1 WHERE consumer = ?", (self._name,)
            )
            self._connection.execute("DELETE FROM consumers WHERE name = ?", (self._name,))
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def _claim(self) -> list[tuple[int, bytes, int]]:
        room = self._prefetch - len(self._handed) if self._prefetch > 0 else -1
        rows = self._connection.execute(
            "UPDATE messages SET consumer = ? WHERE number IN (SELECT number FROM messages WHERE subscriber = ? AND "
            "consumer IS NULL ORDER BY number LIMIT ?) RETURNING number, body, redelivered",
            (self._name, self._subscriber, room),
        ).fetchall()
        return sorted(rows)


class SqliteDriver:
    """What the entry point names: it says what it can do, and connects the roles."""

    name, broker, kind = INFO.name, INFO.broker, INFO.kind
    capabilities, send_bytes = INFO.capabilities, INFO.send_bytes

    def admin(self, endpoint: Endpoint) -> SqliteAdmin:
        """The control plane; a real one connects here, and raises BrokerError where nobody answers."""
        del endpoint
        return SqliteAdmin()

    def producer(self, target: Target, payloads: Payloads) -> SqliteProducer:
        """Connect a producer."""
        return SqliteProducer(target, payloads)

    def consumer(self, target: Target, index: int, count: int) -> SqliteConsumer:
        """Connect consumer `index`; all `count` of them claim from the one queue."""
        del count
        return SqliteConsumer(target, index)


DRIVER = SqliteDriver()
