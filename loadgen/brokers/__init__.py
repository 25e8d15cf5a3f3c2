"""Where brokers come from: installed and run by this project, in Docker, or anywhere by their URL.

Nothing here prints: what takes time is told to a `progress` callback. A spec is `local` (the default), `docker`, or the
URLs of running brokers (`amqp[s]://host:port/vhost`, `rabbitmq-stream[+tls]://host:port/vhost`,
`kafka[+tls]://host:port,host2:port`), separated by blanks. Heavy modules are imported where they are needed, so
importing this one costs nothing.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

    from loadgen.endpoint import BrokerName, Endpoint

    Progress = Callable[[str], None]

__all__ = [
    "down",
    "in_words",
    "is_warmed",
    "kill",
    "mark_warmed",
    "open_brokers",
    "private_brokers",
    "public_spec",
    "renewed",
    "restart",
    "status",
    "up",
]

BOTH: tuple[BrokerName, ...] = ("rabbitmq", "kafka")


def _silent(_: str) -> None:
    pass


@contextmanager
def open_brokers(
    spec: str = "local",
    brokers: Sequence[BrokerName] = BOTH,
    *,
    nodes: int = 1,
    linked: bool = False,
    cpus: Sequence[int] = (),
    progress: Progress = _silent,
) -> Iterator[dict[BrokerName, Endpoint]]:
    """Brokers to work with for as long as the block lasts.

    Those that are up already (`loadgen up`) are used and left up. Those that it starts itself it ends: also
    after an exception, Ctrl-C, SIGTERM or a closed terminal. After SIGKILL a process that it has left for that purpose
    ends them (`loadgen.brokers.guard`), and so does the next command that opens brokers, or asks which are up.

    Args:
        spec: Where they come from.
        brokers: Which ones.
        nodes: The cluster's size.
        linked: Whether its nodes are to reach each other through a proxy, so that the network between them can be hurt;
            such are brokers of their own, and only local ones.
        cpus: The CPUs that brokers started here may use; none means all.
        progress: Told each step.
    """
    if linked and spec != "local":
        raise LoadgenError("only local brokers can be linked through a proxy: use --brokers local")
    with _signals_unwind(), _opened(spec, brokers, nodes, linked=linked, cpus=cpus, progress=progress) as endpoints:
        yield endpoints


@contextmanager
def private_brokers(
    settings: Mapping[BrokerName, Mapping[str, str]], *, ports: Sequence[str] = (), progress: Progress = _silent
) -> Iterator[dict[BrokerName, Endpoint]]:
    """Fresh local brokers that nobody else is given, for as long as the block lasts; nothing of them stays.

    Args:
        settings: Which ones, and of each what is to be set beside what every local broker is started with, in its own
            words (`rabbitmq.conf`, `server.properties`); the name of a port in braces stands for its number.
        ports: The names of further ports that are to be free for each.
        progress: Told each step.
    """
    from loadgen.brokers import local  # noqa: PLC0415

    with _signals_unwind(), local.private(settings, ports=ports, progress=progress) as endpoints:
        yield endpoints


def up(
    spec: str = "local",
    brokers: Sequence[BrokerName] = BOTH,
    *,
    nodes: int = 1,
    cpus: Sequence[int] = (),
    progress: Progress = _silent,
) -> dict[BrokerName, Endpoint]:
    """Starts brokers that stay up when this program ends, or finds them up."""
    from loadgen.brokers import docker, external, local  # noqa: PLC0415

    with _signals_unwind():
        if spec == "local":
            return local.up(brokers, nodes=nodes, cpus=cpus, progress=progress)
        if spec == "docker":
            return docker.up(brokers, nodes=nodes, progress=progress)
        return external.connect(spec, brokers)


def down(
    spec: str = "local", brokers: Sequence[BrokerName] = BOTH, *, progress: Progress = _silent
) -> list[dict[str, Any]]:
    """Ends brokers and returns what was ended; external ones are never touched."""
    from loadgen.brokers import docker, local  # noqa: PLC0415

    if spec == "local":
        return local.down(brokers, progress=progress)
    if spec == "docker":
        return docker.down(brokers, progress=progress)
    raise LoadgenError("loadgen only ends brokers that it started: `down` takes --brokers local or docker, no URL")


def status(spec: str = "local", *, progress: Progress = _silent) -> list[dict[str, Any]]:
    """What runs where, one plain record a broker."""
    from loadgen.brokers import docker, external, local  # noqa: PLC0415

    if spec == "local":
        return local.status(progress=progress)
    if spec == "docker":
        return docker.status(progress=progress)
    return external.status(spec)


def in_words(row: dict[str, Any]) -> str:
    """A broker in one line, as far as it is known: of somebody else's there are neither pid nor log."""
    if "error" in row:
        return f"{row['broker']} {row['url']}: {row['error']}"
    if not row["running"]:
        return f"{row['broker']}: not running"
    known = {"pid": row.get("pid"), **(row.get("ports") or {}), "log": row.get("log_dir")}
    nodes = len(row.get("nodes") or ())
    size = [f"{nodes} nodes"] if nodes > 1 else []
    parts = [
        "running",
        *size,
        *filter(None, [row.get("url")]),
        *(f"{name} {value}" for name, value in known.items() if value),
    ]
    return " ".join(filter(None, [row["broker"], row["version"]])) + ": " + ", ".join(parts)


def public_spec(spec: str) -> str:
    """A spec as it may be shown and recorded: its URLs without user and password."""
    from loadgen.brokers import external  # noqa: PLC0415

    return external.public_spec(spec)


def kill(endpoint: Endpoint, *node_indices: int) -> None:
    """Kills a local broker's process as `kill -9` does; its data stays for `restart`."""
    from loadgen.brokers import local  # noqa: PLC0415

    local.kill(endpoint, *node_indices)


def restart(endpoint: Endpoint, *node_indices: int, progress: Progress = _silent) -> Endpoint:
    """Starts a killed local broker again on the same data and ports; its new endpoint has its new pid."""
    from loadgen.brokers import local  # noqa: PLC0415

    return local.restart(endpoint, *node_indices, progress=progress)


def renewed(endpoint: Endpoint) -> Endpoint:
    """A local broker's endpoint with the processes that it has now: nodes may have been started again."""
    from loadgen.brokers import local  # noqa: PLC0415

    return local.renewed(endpoint)


def mark_warmed(endpoint: Endpoint) -> None:
    """Remembers that a local broker has had its warm-up load; others are warmed once a run."""
    if endpoint.source == "local":
        from loadgen.brokers import local  # noqa: PLC0415

        local.mark_warmed(endpoint)


def is_warmed(endpoint: Endpoint) -> bool:
    """Whether a local broker has had its warm-up load since its start; of others that is not known."""
    if endpoint.source != "local":
        return False
    from loadgen.brokers import local  # noqa: PLC0415

    return local.cluster_of(endpoint).warmed


@contextmanager
def _opened(
    spec: str, brokers: Sequence[BrokerName], nodes: int, *, linked: bool, cpus: Sequence[int], progress: Progress
) -> Iterator[dict[BrokerName, Endpoint]]:
    from loadgen.brokers import docker, external, local  # noqa: PLC0415

    if spec == "local":
        with local.opened(brokers, nodes=nodes, linked=linked, cpus=cpus, progress=progress) as endpoints:
            yield endpoints
    elif spec == "docker":
        with docker.opened(brokers, nodes=nodes, progress=progress) as endpoints:
            yield endpoints
    else:
        yield external.connect(spec, brokers)


@contextmanager
def _signals_unwind() -> Iterator[None]:
    """Lets SIGTERM and a closed terminal end this program as Ctrl-C does, through its `finally` blocks."""
    replaced = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # who has a handler of his own keeps it
                signal.signal(number, _unwind)
                replaced.append(number)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)


def _unwind(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
