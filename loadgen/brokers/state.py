"""What is remembered of running brokers between commands: one JSON file a cluster, written under a lock."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from loadgen.brokers.process import ProcessId
from loadgen.endpoint import BrokerName
from loadgen.errors import BrokerError, HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Progress = Callable[[str], None]

SCHEMA = 1
LOCK_WAIT_S = 900.0
LOCK_POLL_S = 0.1
BROKER_NAMES: tuple[BrokerName, ...] = get_args(BrokerName)
SIZES = (1, 3)
"""Of how many nodes a broker of ours may be."""


class BusyError(BrokerError):
    """Somebody else holds a lock."""


def project_dir() -> Path | None:
    """The checkout that is worked in: the one around the current folder, else this package's own."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).absolute().parents[2]):
        project = folder / "pyproject.toml"
        if project.is_file() and 'name = "loadgen"' in project.read_text(encoding="utf-8", errors="replace"):
            return folder
    return None


def brokers_dir() -> Path:
    """Where this project's brokers live: `LOADGEN_BROKERS_DIR`, or `.brokers` in its root, or here."""
    chosen = os.environ.get("LOADGEN_BROKERS_DIR")
    return Path(chosen).absolute() if chosen else (project_dir() or Path.cwd()) / ".brokers"


def cache_dir() -> Path:
    """Where installations live: `LOADGEN_CACHE_DIR`, which checkouts may share, or beside the state."""
    chosen = os.environ.get("LOADGEN_CACHE_DIR")
    return Path(chosen).absolute() if chosen else brokers_dir() / "install"


@dataclass(slots=True)
class Node:
    """One broker process of a cluster, with its ports and whatever runs beside it."""

    index: int
    ports: dict[str, int]
    server: ProcessId | None = None


@dataclass(slots=True)
class Cluster:
    """The brokers of one kind that run from one folder; `save` after every change.

    A cluster is `kept` when `loadgen up` started it. Otherwise it belongs to its `owners`, the runs that use
    it, by token, and is ended when the last of them has gone, however it went. Until it is `ready` it belongs
    to the one process that starts it. `settings` are the broker's own, set on every node after ours. The nodes of one
    that `is_linked` reach each other through a proxy, which is one of its `helpers`.
    """

    broker: BrokerName
    folder: Path
    installation: Path
    version: str
    java: str = ""
    cluster_id: str = ""
    ports: dict[str, int] = field(default_factory=dict)
    helpers: dict[str, ProcessId] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    owners: dict[str, ProcessId] = field(default_factory=dict)
    cpus: list[int] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    is_linked: bool = False
    started_unix_s: float = 0.0
    ready_after_s: float = 0.0
    commands: list[str] = field(default_factory=list)
    ready: bool = False
    kept: bool = False
    warmed: bool = False

    def node_dir(self, node: Node) -> Path:
        """Where one node keeps its configuration, data and logs."""
        return self.folder / f"node{node.index}"

    def processes(self) -> list[ProcessId]:
        """Every recorded process, servers before helpers: the order to end them in."""
        servers = [node.server for node in self.nodes if node.server is not None]
        return [*servers, *self.helpers.values()]

    def live_owners(self) -> dict[str, ProcessId]:
        """Those owners that still run."""
        return {token: owner for token, owner in self.owners.items() if owner.is_alive()}

    def is_serving(self) -> bool:
        """Whether every node's process runs, and what they reach each other through."""
        helpers = self.helpers.values() if self.is_linked else ()
        needed = [*(node.server for node in self.nodes), *helpers]
        return self.ready and all(each is not None and each.is_alive() for each in needed)

    def is_abandoned(self) -> bool:
        """Whether nobody wants it any more: what started or used it was killed before it could clean up."""
        return not (self.kept and self.ready) and not self.live_owners()

    def save(self) -> None:
        """Writes the state whole or not at all."""
        record = {"schema": SCHEMA, **asdict(self)}
        for name in ("folder", "installation"):
            record[name] = str(record[name])
        write_json(self.folder / "state.json", record)


def load(broker: BrokerName, root: Path) -> Cluster | None:
    """The remembered cluster of one kind, or None."""
    path = cluster_dir(broker, root) / "state.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise BrokerError(f"{path} is damaged ({error}): delete it and run `loadgen down`") from error
    if record.pop("schema") != SCHEMA:
        raise BrokerError(f"{path} was written by another version of loadgen: run `loadgen down` with that one")
    record["folder"] = path.parent  # the project may have been moved
    record["installation"] = Path(record["installation"])
    record["nodes"] = [
        Node(node["index"], node["ports"], _process(node["server"])) for node in cast("list[Any]", record["nodes"])
    ]
    for name in ("helpers", "owners"):
        record[name] = {key: ProcessId(**value) for key, value in record[name].items()}
    return Cluster(**record)


def forget(cluster: Cluster) -> None:
    """Drops the state of an ended cluster, with its data; the logs stay until the next start."""
    for node in cluster.nodes:
        shutil.rmtree(cluster.node_dir(node) / "data", ignore_errors=True)
    (cluster.folder / "state.json").unlink(missing_ok=True)


def cluster_dir(broker: BrokerName, root: Path) -> Path:
    """Where the state of one kind of broker lives."""
    return root / "run" / broker


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes a file that only its owner reads, whole or not at all; HostError where the disk does not take it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
        partial.chmod(0o600)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise HostError(f"{path} cannot be written: {error.strerror}; free space there") from error


def make_dir(folder: Path, variable: str = "LOADGEN_BROKERS_DIR") -> Path:
    """Makes a folder, or says in one line why it cannot be made, and which variable names another."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"cannot make {folder}: {error.strerror}; set {variable} to a folder that can be written"
        ) from error
    return folder


@contextmanager
def locked(path: Path, *, what: str, wait: bool = True, progress: Progress) -> Iterator[None]:
    """Holds a lock that dies with this process; says so once when it must wait for another's.

    Raises BusyError where it had to wait too long, or at all where it is not to `wait`.
    """
    make_dir(path.parent)
    with path.open("a+", encoding="ascii") as file:
        until_s = time.monotonic() + LOCK_WAIT_S
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait:
                    raise BusyError(f"{what} is under way in another loadgen ({path})") from None
                if time.monotonic() > until_s:
                    raise BusyError(
                        f"{what} has been under way elsewhere for {LOCK_WAIT_S:.0f} s ({path}): end that loadgen first"
                    ) from None
            if not told:
                told = True
                progress(f"{what} is under way in another loadgen: waiting for it")
            time.sleep(LOCK_POLL_S)
        yield  # closing the file gives the lock back


def _process(record: dict[str, Any] | None) -> ProcessId | None:
    return None if record is None else ProcessId(**record)
