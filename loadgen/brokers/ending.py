"""The folders that local brokers live in, and how what lives there is ended: also what a killed loadgen has left."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from loadgen.brokers import process, state
from loadgen.brokers.kinds import kind_of
from loadgen.brokers.state import BROKER_NAMES, SIZES, Cluster
from loadgen.errors import BrokerError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from loadgen.brokers.state import Progress
    from loadgen.endpoint import BrokerName

CLUSTER = "cluster"  # where brokers of three nodes live, beside those of one
LINKED = "linked"  # … and those whose nodes reach each other through a proxy
PRIVATE = "private"  # where brokers of one program alone live, each start in a folder of its own
ORPHANED_S = 1_800.0  # nobody takes so long from making a folder to starting a broker in it


def home_of(nodes: int, *, linked: bool = False) -> Path:
    """Where brokers of so many nodes live, or those whose nodes reach each other through a proxy."""
    if nodes not in SIZES:
        raise BrokerError(f"local brokers have {' or '.join(map(str, SIZES))} nodes, {nodes} were asked for")
    root = state.brokers_dir()
    if linked:
        return root / LINKED
    return root if nodes == 1 else root / CLUSTER


def homes() -> list[Path]:
    """Where there are brokers, or have been."""
    return [home for home in (*map(home_of, SIZES), home_of(SIZES[-1], linked=True)) if home.exists()]


def lock(root: Path, progress: Progress, *, wait: bool = True) -> AbstractContextManager[None]:
    """Held by whoever starts or ends brokers in a folder; BusyError where somebody does and one is not to wait."""
    return state.locked(root / "lock", what="starting or ending brokers", wait=wait, progress=progress)


def end(cluster: Cluster, *, at_once: bool = False) -> list[dict[str, Any]]:
    """Ends a cluster's processes and forgets it; a second Ctrl-C while it waits makes it kill instead."""
    known = cluster.processes()
    timeout_s = 0.0 if at_once else kind_of(cluster.broker).STOP_TIMEOUT_S
    try:
        if not at_once:
            process.signal_all(known[: len(cluster.nodes)])
        endings = process.end_all(known, timeout_s=timeout_s)
    except BaseException:
        process.end_all(known, timeout_s=0)
        _end_marked(cluster.broker, cluster.folder)
        state.forget(cluster)
        raise
    ended = [{"broker": cluster.broker, "pid": pid, "how": how} for pid, how in endings if how != "gone"]
    ended += _end_marked(cluster.broker, cluster.folder)
    state.forget(cluster)
    return ended


def end_abandoned(root: Path, progress: Progress) -> list[dict[str, Any]]:
    """Ends what a killed loadgen left behind, recorded or not; call it with the lock held."""
    ended = []
    for home in (root / PRIVATE).glob("*"):
        ended += _end_private(home, progress)
    for broker in BROKER_NAMES:
        cluster = state.load(broker, root)
        if cluster is not None and cluster.is_abandoned():
            progress(f"{broker}: ending what a loadgen that was killed had left running")
            ended += end(cluster, at_once=True)
        elif cluster is None:
            ended += _end_marked(broker, state.cluster_dir(broker, root))
    return ended


def sweep(own: Path, progress: Progress) -> None:
    """The same in all other folders than one's own, but for those that somebody is busy in now."""
    for home in homes():
        try:
            if home != own:
                with lock(home, progress, wait=False):
                    end_abandoned(home, progress)
        except state.BusyError:
            continue
        except BrokerError as error:  # told, and no reason not to work here
            progress(str(error))


def end_left_behind(root: Path, progress: Progress) -> None:
    """The same in one folder, also a private one, which goes with it."""
    if root.parent.name == PRIVATE:
        _end_private(root, progress)
    else:
        with lock(root, progress):
            end_abandoned(root, progress)


def _end_private(home: Path, progress: Progress) -> list[dict[str, Any]]:
    try:
        with lock(home, progress, wait=False):
            before = _remembered(home)
            ended = end_abandoned(home, progress)
    except state.BusyError:  # who is starting or ending brokers there sees to it
        return []
    with suppress(FileNotFoundError):  # whoever else ends what is left removes it, too
        if not _remembered(home) and (before or time.time() - home.stat().st_mtime > ORPHANED_S):
            shutil.rmtree(home, ignore_errors=True)
    return ended


def _remembered(root: Path) -> bool:
    return any(state.load(broker, root) is not None for broker in BROKER_NAMES)


def _end_marked(broker: BrokerName, folder: Path) -> list[dict[str, Any]]:
    endings: list[tuple[int, process.Ending]] = []
    while found := list(process.find_marked(folder)):  # one may have begun another while it was looked for
        endings += process.end_all(found, timeout_s=0)
    return [{"broker": broker, "pid": pid, "how": how} for pid, how in endings if how != "gone"]
