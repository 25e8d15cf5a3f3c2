"""Runs on disk: `results/<UTC time>-<name>/`, written while measuring, read by all that judges or reports.

Only this module and `run.py` touch `results/`. A run is four files, each readable by itself:

* `run.json`: what was asked, where it ran, one record a trial (`run.schema.json`, docs/results.md); replaced
  as a whole, so that at any moment it is a valid document;
* `histograms.hlog`: HdrHistogram interval log, one line for each trial, kind, agent and interval;
* `series.parquet`: one row an interval and agent; while the run lasts, `series.jsonl`;
* of a trial whose intervals are longer than a second, `seconds.hlog` and `seconds.hlog.1`: its last minutes;
* the report's files, which can be made again from the others.

A writer that is killed leaves `status: running` and its process id: loaded, such a run is partial.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from contextlib import suppress
from datetime import UTC, datetime
from glob import glob
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Literal

from loadgen.errors import HostError, ScenarioError
from loadgen.files import appending, as_host_error, fresh_folder, write_atomically
from loadgen.record import Record, completed, make_partial, plain
from loadgen.redaction import refuse_secrets
from loadgen.run import Run
from loadgen.series import SERIES_FILE, SERIES_LIVE_FILE, to_parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from loadgen import hlog
    from loadgen.histogram import Histogram
    from loadgen.recorder import IntervalDelta
    from loadgen.seconds import SecondsLog

__all__ = ["Run", "RunWriter", "load", "load_runs", "refuse_unwritable"]

SCHEMA_VERSION = 1
RUN_FILE, HLOG_FILE = "run.json", "histograms.hlog"
# Deltas of one interval come again with late messages; by then nearly all have come. A straggler gets a line
# of its own, which a reader adds up just the same.
HOLD_INTERVAL_S = 3.0
WRITER_START_TOLERANCE_S = 2.0
RESERVE_FILE, RESERVE_BYTES = ".reserve", 256 << 10  # freed when the disk is full: room for the run's last words
NAME_CHARS_MAX = 80  # many scenarios make a long name, and folders have a limit


class RunWriter:
    """Writes one run; used by one thread of one process.

    What it returns from is on disk as a valid run. When the disk is full or gone it raises HostError, and
    what was there stays readable.
    """

    def __init__(self, root: Path, name: str, header: Mapping[str, Any]) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
            raise ScenarioError(f"run name {name!r}: expected lower case letters, digits and hyphens")
        refuse_secrets(header, "header")
        self._created_s = time.time()
        created = datetime.fromtimestamp(self._created_s, UTC)
        self.root = root
        self.path = fresh_folder(root, f"{created:%Y%m%dT%H%M%SZ}-{name[:NAME_CHARS_MAX]}")
        self.id = self.path.name
        self._header: Record = {
            "schema_version": SCHEMA_VERSION,
            "id": self.id,
            "name": name,
            "created_utc": _utc(created),
            "finished_utc": None,
            "status": "running",
            "reason": None,
            "writer": _writer_identity(),
            **dict.fromkeys(("command", "profile", "repeats", "plan", "pins", "seed")),
            "fleet": "local",
            "scenarios": [],
            "environment": {},
            "brokers": {},
            "searches": [],
            "findings": [],
            "ceilings": [],
            **header,
        }
        self._trials: dict[str, Record] = {}
        self._pending: dict[tuple[str, str, str], dict[int, Histogram]] = {}
        self._newest: dict[str, int] = {}
        self._placed: dict[str, Record] = {}
        self._hlog: hlog.HlogWriter | None = None
        self._is_log_lost = False
        self._seconds: SecondsLog | None = None
        with as_host_error(self.path):
            (self.path / RESERVE_FILE).write_bytes(os.urandom(RESERVE_BYTES))  # random: some disks store no zeros
        self._write()
        self._point_latest()

    def begin_trial(self, record: Mapping[str, Any], started_s: float, interval_s: float = 1.0) -> float:
        """Announce a trial before its first interval, so that a kill leaves its name and settings behind.

        `started_s` (UNIX time) is where interval 0 and the measured window begin; the value is the log's time of it.
        """
        self._placed[record["id"]] = {"hlog_start_s": started_s - self._created_s, "interval_s": interval_s}
        self._keep({"started_utc": _utc(datetime.now(UTC)), **record, "status": "running"})
        return started_s - self._created_s

    def add_trial(self, record: Mapping[str, Any]) -> None:
        """Add a trial's final record (or replace the one begun), after its buffered intervals."""
        trial_id = str(record["id"])
        self._flush_intervals(trial_id)
        self._newest.pop(trial_id, None)
        begun = self._trials.get(trial_id) or {}
        given = {key: value for key, value in record.items() if value is not None}
        self._keep({"started_utc": begun.get("started_utc"), "status": "complete", **given})

    def _keep(self, record: Mapping[str, Any]) -> None:
        trial_id = str(record["id"])
        assert not re.search(r"[,\s]", trial_id), f"trial id {trial_id!r}: the log's tags hold no comma or space"
        refuse_secrets(record, f"trial {trial_id}")
        self._trials[trial_id] = completed({**self._placed.get(trial_id, {}), **record})
        self._write()

    def add_intervals(self, trial_id: str, deltas: Iterable[IntervalDelta], agent: str = "all") -> None:
        """Take an agent's histograms of seconds; an interval is written once it is 3 s old, or with `add_trial`."""
        from loadgen.histogram import Histogram  # noqa: PLC0415 - reading run.json alone needs no numpy

        assert "/" not in agent, f"agent {agent!r}: the slash separates the parts of the log's tags"
        deltas = list(deltas)
        for delta in deltas:  # before a trial is placed: where it has no place, its newest second is just past
            self._newest[trial_id] = max(self._newest.get(trial_id, delta.interval), delta.interval)
        if not deltas:
            return
        place = self._place(trial_id)
        for delta in deltas:
            waiting = self._pending.setdefault((trial_id, delta.kind, agent), {})
            index = math.floor(delta.interval / place["interval_s"])
            if index not in waiting:
                waiting[index] = Histogram()
            delta.add_to(waiting[index])
        over_s = self._newest[trial_id] + 1 - HOLD_INTERVAL_S
        self._flush_intervals(trial_id, math.floor(over_s / place["interval_s"]) - 1)
        if place["interval_s"] > 1:
            self._keep_seconds(trial_id, agent, deltas)

    def _keep_seconds(self, trial_id: str, agent: str, deltas: Iterable[IntervalDelta]) -> None:
        """The last minutes of a long trial by the second, as long as the disk takes them: no figure needs them."""
        from loadgen.seconds import SecondsLog  # noqa: PLC0415

        if self._seconds is None:
            self._seconds = SecondsLog(self.path, self._created_s)
        with suppress(OSError):
            self._seconds.add(f"{trial_id}/{{kind}}/{agent}", self._place(trial_id)["hlog_start_s"], deltas)

    def _place(self, trial_id: str) -> Record:
        """Where the trial's interval 0 lies in the log; unannounced, its newest interval is just past."""
        if trial_id not in self._placed:
            start_s = time.time() - self._created_s - (self._newest.get(trial_id, 0) + 1)
            self._placed[trial_id] = {"hlog_start_s": start_s, "interval_s": 1.0}
        return self._placed[trial_id]

    def _flush_intervals(self, trial_id: str, upto: int | None = None) -> None:
        """Write the trial's buffered intervals (those up to index `upto`, included) and forget them."""
        due = sorted(
            (index, key)
            for key, waiting in self._pending.items()
            if key[0] == trial_id
            for index in waiting
            if upto is None or index <= upto
        )
        if not due:
            return
        place = self._place(trial_id)
        log = self._hlog_writer()
        with appending(self.path / HLOG_FILE, undo=self._give_up_log):
            for index, key in due:
                start_s = max(0.0, place["hlog_start_s"] + index * place["interval_s"])
                log.append("/".join(key), start_s, place["interval_s"], self._pending[key][index])
        for index, key in due:
            del self._pending[key][index]

    def _hlog_writer(self) -> hlog.HlogWriter:
        if self._hlog is None:
            from loadgen.hlog import HlogWriter  # noqa: PLC0415 - only a run with latencies needs it

            if self._is_log_lost:
                raise HostError(f"{self.path / HLOG_FILE}: no longer written, since an earlier write failed")
            with as_host_error(self.path / HLOG_FILE):
                self._hlog = HlogWriter(self.path / HLOG_FILE, self._created_s, f"loadgen {self.id}")
        return self._hlog

    def _give_up_log(self) -> None:
        """After a failed write: close the log before it is cut back, so that no buffer follows later."""
        self._is_log_lost = True
        self._pending.clear()
        if self._hlog is not None:
            with suppress(OSError):
                self._hlog.close()
            self._hlog = None

    def add(self, part: Literal["searches", "ceilings", "findings"], record: Mapping[str, Any]) -> None:
        """Add what was found over several trials, or by a probe."""
        refuse_secrets(record, part)
        self._header[part].append(dict(record))
        self._write()

    def add_brokers(self, brokers: Mapping[str, Any]) -> None:
        """Add brokers that stand from now on to those that the header knows."""
        refuse_secrets(brokers, "brokers")
        self._header["brokers"] |= dict(brokers)
        self._write()

    def add_series(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows (one an interval and agent); numbers, strings, booleans or None by column."""
        lines = "".join(json.dumps(plain(row), allow_nan=False) + "\n" for row in rows)
        with appending(self.path / SERIES_LIVE_FILE), (self.path / SERIES_LIVE_FILE).open("a") as file:
            file.write(lines)

    def finish(self, status: Literal["complete", "partial"], reason: str | None = None) -> Path:
        """Close the run: remaining intervals, the parquet file, the status.

        What a full disk does not take makes the run partial; HostError only where not even that can be written.
        """
        self._free_reserve()
        for close in (self._close_log, self._close_series):
            try:
                close()
            except HostError as error:
                status, reason = "partial", reason or str(error)
        self._end(status, reason)
        self._write()
        return self.path

    def unfinished(self, reason: str) -> Run:
        """The run as it is known here, where `finish` could not write it."""
        self._end("partial", reason)
        trials = [completed(record) for record in self._trials.values()]
        return Run(self.path, self._header, trials, "partial", reason, _index(self.path / HLOG_FILE))

    def _end(self, status: str, reason: str | None) -> None:
        for record in self._trials.values():
            if record["status"] == "running":
                make_partial(record, reason or "the run ended before this trial did")
        self._header |= {"status": status, "reason": reason, "finished_utc": _utc(datetime.now(UTC))}

    def _close_log(self) -> None:
        for trial_id in {key[0] for key in self._pending}:
            self._flush_intervals(trial_id)
        if self._hlog is not None:
            with as_host_error(self.path / HLOG_FILE):
                self._hlog.close()
        if self._seconds is not None:
            with suppress(OSError):
                self._seconds.close()

    def _close_series(self) -> None:
        with as_host_error(self.path / SERIES_FILE):
            to_parquet(self.path)

    def _free_reserve(self) -> bool:
        """Whether there still was one."""
        reserve = self.path / RESERVE_FILE
        there = reserve.exists()
        reserve.unlink(missing_ok=True)
        return there

    def _write(self) -> None:
        document = plain({**self._header, "trials": list(self._trials.values())})
        text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
        try:
            write_atomically(self.path / RUN_FILE, text.encode())
        except HostError:
            if not self._free_reserve():
                raise
            write_atomically(self.path / RUN_FILE, text.encode())

    def _point_latest(self) -> None:
        link, fresh = self.root / "latest", self.root / f".latest-{os.getpid()}"
        with as_host_error(link):
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(self.id)
            fresh.replace(link)


def load(path: str | Path = "latest", root: Path = Path("results"), *, is_mended: bool = True) -> Run:
    """Load a run by its folder, by its id under `root`, or `latest`; ScenarioError where there is none.

    Of a run whose writer was killed what it left is put in order, unless `is_mended` is false.
    """
    folder = _locate(Path(path), root)
    try:
        document = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScenarioError(f"{folder / RUN_FILE}: cannot be read as a run: {error}") from None
    version = _version_of(document)
    if version is None:
        raise ScenarioError(f"{folder / RUN_FILE}: no schema_version; expected a run written by loadgen")
    if version > SCHEMA_VERSION:
        newer = f"schema version {version} is newer than this loadgen's {SCHEMA_VERSION}; upgrade loadgen"
        raise ScenarioError(f"{folder / RUN_FILE}: {newer}")
    if lacking := [name for name in ("status", "reason", "trials", "writer", "environment") if name not in document]:
        raise ScenarioError(f"{folder / RUN_FILE}: has no {lacking[0]}; expected a run written by loadgen")
    trials = [completed(record) for record in document.pop("trials")]
    document = {"searches": [], "ceilings": [], "findings": [], **document}
    run = Run(folder, document, trials, document["status"], document["reason"], _index(folder / HLOG_FILE))
    if is_mended and run.status == "running" and not _is_alive(document["writer"]):
        _recover(run)
    return run


def _version_of(document: Any) -> int | None:
    """The schema version of what run.json holds; None where that is no run."""
    version = document.get("schema_version") if isinstance(document, dict) else None
    return version if isinstance(version, int) else None


def newest(root: Path, fits: Callable[[Mapping[str, Any]], bool]) -> Run | None:
    """The newest run under `root` of which this holds for run.json's document; None where there is none."""
    for path in sorted(root.glob(f"[0-9]*/{RUN_FILE}"), reverse=True):  # folders are named by their time
        if path.parent.is_symlink():
            continue
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        version = _version_of(document)
        if version is not None and version <= SCHEMA_VERSION and fits(document):
            return load(path.parent, root)
    return None


def load_runs(pattern: str | Path = "results/*") -> list[Run]:
    """Every run whose folder fits a pattern such as `results/*-latency`, the oldest first, each once.

    What fits and is no run (a report, `latest` beside the run that it points to) is passed over.

    Raises:
        ScenarioError: no folder that fits holds a run, or one of the runs cannot be read.
    """
    folders = {Path(found).resolve() for found in glob(str(pattern))}  # noqa: PTH207 - a pattern may be absolute
    runs = [load(folder) for folder in folders if (folder / RUN_FILE).is_file()]
    if not runs:
        raise ScenarioError(f"{pattern}: no run there; expected a pattern of run folders, such as results/*-latency")
    return sorted(runs, key=lambda run: (str(run.header.get("created_utc")), run.id))


def refuse_unwritable(root: Path) -> None:
    """Raise HostError, before any broker is touched, where no run could be written."""
    if root.exists() and not root.is_dir():
        raise HostError(f"{root}: is a file; choose another folder (--results)")
    with as_host_error(root):
        root.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=root, prefix=".loadgen-").close()


def _recover(run: Run) -> None:
    """A killed writer's run: partial, with the trial in hand known by what it had written."""
    why = "the run was killed before this trial ended"
    run.status, run.reason = "partial", "the writer ended without closing the run"
    run.header |= {"status": run.status, "reason": run.reason}
    known = {record["id"] for record in run.records}
    strays = dict.fromkeys(owner for owner, _ in run._lines if owner not in known)  # noqa: SLF001 - own module
    run.records += [completed({"id": owner, "status": "running"}) for owner in strays]
    for record in run.records:
        if record["status"] != "running":
            continue
        make_partial(record, why)
        for owner, kind in run._lines:  # noqa: SLF001
            if owner == record["id"] and record["latency_ns"].get(kind) is None:
                histogram = run.merged(kind, [record])
                record["latency_ns"][kind] = histogram.summary() if histogram.count else None
    try:
        (run.path / RESERVE_FILE).unlink(missing_ok=True)
        to_parquet(run.path)
    except OSError:
        return  # a run on a read-only disk: `series` reads the lines instead


def _locate(path: Path, root: Path) -> Path:
    for candidate in (path, root / path):
        if (candidate / RUN_FILE).is_file():
            return candidate.resolve()
    if path.name == RUN_FILE and path.is_file():
        return path.parent.resolve()
    where = root / path if len(path.parts) == 1 else path
    hint = "run `loadgen run` or `loadgen compare` first" if str(path) == "latest" else f"see `ls {root}`"
    raise ScenarioError(f"{where}: no run there; {hint}")


def _index(path: Path) -> dict[tuple[str, str], list[hlog.Interval]]:
    """The log's lines by trial and kind, still encoded: a run has thousands, and a reader wants a few."""
    found: dict[tuple[str, str], list[hlog.Interval]] = {}
    if not path.exists():
        return found
    from loadgen.hlog import read_hlog  # noqa: PLC0415 - a run without latencies needs no numpy

    try:
        for line in read_hlog(path):
            trial_id, kind, _ = line.tag.rsplit("/", 2)
            found.setdefault((trial_id, kind), []).append(line)
    except ValueError as error:
        raise ScenarioError(f"{error}; the log was changed after the run") from None
    return found


def _writer_identity() -> Record:
    """This process, told from a later one of its number by its start and the machine's boot."""
    import psutil  # noqa: PLC0415 - not needed by readers of finished runs

    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return {
        "pid": os.getpid(),
        "started_s": psutil.Process().create_time(),
        "boot_id": boot_id.read_text().strip() if boot_id.exists() else None,
    }


def _is_alive(writer: Mapping[str, Any]) -> bool:
    """Whether that very process still runs, on this machine and since this boot."""
    import psutil  # noqa: PLC0415

    if writer["boot_id"] != _writer_identity()["boot_id"]:
        return False
    try:
        started_s = psutil.Process(writer["pid"]).create_time()
    except psutil.Error:
        return False
    return abs(float(started_s) - float(writer["started_s"])) < WRITER_START_TOLERANCE_S


def _utc(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
