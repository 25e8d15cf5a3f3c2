"""A run as a reader has it: its records, and as frames and histograms what a notebook asks for.

Everything is made of the run's files when it is asked for. **Which trials count** is one rule for reports, frames and
plots: those that came to their end and that nothing is known against (`loadgen.record.enters`), and of these the
answers of their scenarios, not a capacity search's way to one. What a `where` names is any column of `Run.trials`:

    run.histogram("e2e", broker="kafka", offered_msgs_per_s=1_000)

Naming a trial by its id takes it as it is, whatever its verdict.
"""

from __future__ import annotations

import html
import math
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from loadgen.errors import ScenarioError
from loadgen.files import as_host_error, write_atomically
from loadgen.record import Record, enters, flat, point_label
from loadgen.series import SERIES_FILE, live_series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd

    from loadgen import hlog
    from loadgen.frames import Second
    from loadgen.histogram import Counts, Histogram

RunStatus = Literal["running", "complete", "partial"]
WHOLES_KEPT = 16
"""Of a quarter of a megabyte each."""
PERCENTS = (50.0, 90.0, 99.0, 99.9, 99.99)


@dataclass(frozen=True, slots=True)
class Interval:
    """One line of the histogram log; `start_s` counts from the measured window's beginning."""

    trial_id: str
    kind: str
    agent: str
    start_s: float
    length_s: float
    line: hlog.Interval = field(repr=False)

    @property
    def histogram(self) -> Histogram:
        """Its latencies, read anew whenever they are asked for."""
        return self.line.histogram()

    @property
    def counts(self) -> Counts:
        """The same without its empty buckets, which is quicker."""
        return self.line.counts()


@dataclass(repr=False)
class Run:
    """A run as it was recorded; histograms and series are read when they are asked for.

    `records` are the trials as run.json has them (docs/results.md); `trials` has the same as a frame.
    """

    path: Path
    header: Record
    records: list[Record]
    status: RunStatus
    reason: str | None = None
    _lines: dict[tuple[str, str], list[hlog.Interval]] = field(default_factory=dict)
    _seconds: dict[tuple[str, str], dict[int, Second]] = field(default_factory=dict)
    _wholes: dict[tuple[str, str], Histogram] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The name of the run's folder when it was written."""
        return str(self.header["id"])

    @property
    def environment(self) -> Record:
        """Host, CPU, kernel, packages and what else the figures depend on."""
        environment: Record = self.header["environment"]
        return environment

    @property
    def revision(self) -> str | None:
        """The commit that it is about: the CI's or the working folder's, else loadgen's own."""
        git = self.environment.get("git") or {}
        found: str | None = self.environment.get("subject") or git.get("revision")
        return found

    def trial(self, trial_id: str) -> Record:
        """One trial's record; raises ScenarioError for an id that is not here."""
        for record in self.records:
            if record["id"] == trial_id:
                return record
        raise ScenarioError(f"{self.id}: no trial {trial_id}; there are {len(self.records)}, see run.json")

    # --- frames ---

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row a trial: what was asked, its verdict, rates, counts, percentiles (`e2e_p99_ns`) and costs.

        `counts` says whether it enters figures; invalid and unfinished trials are there, and do not. The broker's knobs
        are columns by the names that `--set` knows (`kafka.linger_ms`), empty for the other broker. Units stand in the
        names; what a trial does not have is missing.
        """
        import pandas as pd  # noqa: PLC0415 - half a second of import, for who asks for frames

        own = {"run": self.id, "created_utc": self.header.get("created_utc")}
        frame = pd.DataFrame([own | flat(record) for record in self.records])
        for name in {"created_utc", "started_utc"} & set(frame.columns):
            frame[name] = pd.to_datetime(frame[name], format="ISO8601", utc=True)
        return frame

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The series as it was recorded: one row an interval and agent; empty where none were recorded."""
        import pandas as pd  # noqa: PLC0415

        if (self.path / SERIES_FILE).exists():
            return pd.read_parquet(self.path / SERIES_FILE)
        table = live_series(self.path)
        return pd.DataFrame() if table is None else table.to_pandas()

    @cached_property
    def series(self) -> pd.DataFrame:
        """One row a second of each trial's window (an interval, where trials are long): latencies, and what was seen.

        `at_s` counts from the window's beginning; `<kind>_count`, `_p50_ns`, `_p99_ns` and `_max_ns` are of the
        messages intended in that second; the other columns are the observer's (docs/results.md), such as `depth_msgs`.
        """
        from loadgen.frames import series_frame  # noqa: PLC0415

        return series_frame(self)

    def percentiles(
        self, kind: str = "e2e", percents: Sequence[float] = PERCENTS, *, struck: bool = False, **where: Any
    ) -> pd.DataFrame:
        """One row a point: its repeats merged, message by message, and the percentiles of that in ns.

        Args:
            kind: which latency, as in `trial.latency_ns`; points that do not have it are left out.
            percents: 0 … 100; each is a column, such as `p99_ns` and `p99_9_ns`.
            struck: whether trials count that are struck out.
            where: columns of `trials` and their values.

        Raises:
            ScenarioError: no trial fits, or none of them has this kind; the line lists what there is.
        """
        import pandas as pd  # noqa: PLC0415

        points: dict[str, list[Record]] = {}
        for record in self.having(kind, self.select(struck=struck, **where)):
            points.setdefault(point_label(record), []).append(record)
        rows = []
        for point, records in points.items():
            merged = self.merged(kind, records)
            values = dict(zip(map(column_of, percents), merged.percentiles(percents), strict=True))
            one = flat(records[0])
            named = {name: one[name] for name in ("scenario", "broker", "driver", "durability", "offered_msgs_per_s")}
            rows.append({"point": point, **named, "repeats": len(records), "count": merged.count,
                         "mean_ns": merged.mean, **values, "max_ns": merged.max})  # fmt: skip
        return pd.DataFrame(rows).set_index("point")

    # --- which trials ---

    def select(self, *, struck: bool = False, **where: Any) -> list[Record]:
        """The records that fit: `where` names columns of `trials`, each with a value or a list of them.

        Raises:
            ScenarioError: in one line, an unknown column, a value that no trial has, or trials that are all struck out.
        """
        rows = [(record, flat(record)) for record in self.records]
        left = rows
        for name, wanted in where.items():
            values = wanted if isinstance(wanted, (list, tuple, set, frozenset)) else [wanted]
            found = [(record, row) for record, row in left if row.get(name) in values]
            if not found:
                raise ScenarioError(f"{self.id}: {_nothing_fits(name, wanted, [row for _, row in left], rows)}")
            left = found
        if "trial" in where:
            return [record for record, _ in left]
        if "purpose" not in where:
            left = [(record, row) for record, row in left if row["purpose"] == "measure"]
        used = [record for record, row in left if struck or row["counts"]]
        if not used:
            asked = ", ".join(f"{name} {value}" for name, value in where.items()) or "all"
            raise ScenarioError(f"{self.id}: {_none_counts(asked, [record for record, _ in left])}")
        return used

    def having(self, kind: str, records: Sequence[Record]) -> list[Record]:
        """Those of these trials that recorded latencies of this kind; ScenarioError where none did."""
        found = [record for record in records if (self._summary(record, kind) or {}).get("count")]
        if found:
            return found
        kinds = {name for record in records for name in record["latency_ns"] if self._summary(record, name)}
        closed = all((record["rate"] or {}).get("kind") == "saturate" for record in records)
        why = " (a closed loop has no response times)" if closed and not kind.endswith("_service") else ""
        told = ", ".join(sorted(kinds)) or "none"
        raise ScenarioError(f"{self.id}: no latency of kind {kind!r} in these trials{why}; there are {told}")

    @staticmethod
    def _summary(record: Record, kind: str) -> Record | None:
        summary: Record | None = record["latency_ns"].get(kind)
        return summary

    # --- histograms ---

    def histogram(self, kind: str = "e2e", *, struck: bool = False, **where: Any) -> Histogram:
        """The exact histogram of the measured windows of all trials that fit, merged count by count.

        Percentiles of it are those of all their messages together. Trials of different points are merged, too, with
        a warning that says which: few questions have that as their answer.

        Args:
            kind: which latency, as in `trial.latency_ns`.
            struck: whether trials count that are struck out.
            where: columns of `trials` and their values; `trial=<id>` is one trial, whatever its verdict.

        Raises:
            ScenarioError: no trial fits, or none of them has this kind; the line lists what there is.
        """
        records = self.select(struck=struck, **where)
        if "trial" in where and len(records) == 1:
            return self.merged(kind, records)
        records = self.having(kind, records)
        points = dict.fromkeys(point_label(record) for record in records)
        if len(points) > 1:
            named = "; ".join(list(points)[:4]) + ("; …" if len(points) > 4 else "")
            warnings.warn(f"merged over {len(points)} points ({named}): name one of them", stacklevel=2)
        return self.merged(kind, records)

    def merged(self, kind: str, records: Sequence[Record]) -> Histogram:
        """One histogram of all these trials' windows; empty where none was recorded."""
        from loadgen.histogram import Histogram  # noqa: PLC0415 - reading run.json alone needs no numpy

        merged = Histogram()
        for record in records:
            merged.merge(self._whole(record["id"], kind))
        return merged

    def _whole(self, trial_id: str, kind: str) -> Histogram:
        """A trial's window as one histogram; the last few are kept, since a report asks for each several times."""
        from loadgen.histogram import Histogram, together  # noqa: PLC0415

        whole = self._wholes.pop((trial_id, kind), None)
        if whole is None:
            whole = Histogram.of(together(interval.counts for interval in self.within(trial_id, kind)))
        self._keep(trial_id, kind, whole)
        return whole

    def _keep(self, trial_id: str, kind: str, whole: Histogram) -> None:
        if len(self._wholes) >= WHOLES_KEPT:
            del self._wholes[next(iter(self._wholes))]
        self._wholes[trial_id, kind] = whole

    def intervals(self, trial_id: str | None = None, kind: str | None = None) -> Iterator[Interval]:
        """The histogram log's lines, warm-up and drain included."""
        records = {record["id"]: record for record in self.records}
        for (owner, line_kind), lines in self._lines.items():
            if trial_id not in {None, owner} or kind not in {None, line_kind}:
                continue
            offset_s = (records.get(owner) or {}).get("hlog_start_s") or 0.0
            for line in lines:
                agent = line.tag.rpartition("/")[2]
                yield Interval(owner, line_kind, agent, line.start_s - offset_s, line.length_s, line)

    def within(self, trial_id: str, kind: str) -> Iterator[Interval]:
        """The log's lines of one kind that are of the trial's measured window."""
        window_s = self.trial(trial_id)["window_s"]
        for interval in self.intervals(trial_id, kind):
            # The window begins with an interval and may end within one; a millisecond absorbs the log's rounding.
            if -0.001 <= interval.start_s < (math.inf if window_s is None else window_s) - 0.001:
                yield interval

    def seconds(self, trial_id: str, kind: str) -> dict[int, Second]:
        """The intervals of a trial's window that have messages, by number; decoded once."""
        if (trial_id, kind) not in self._seconds:
            from loadgen.frames import seconds_of  # noqa: PLC0415

            self._seconds[trial_id, kind], whole = seconds_of(self, self.trial(trial_id), kind)
            self._keep(trial_id, kind, whole)
        return self._seconds[trial_id, kind]

    def save(self, name: str, content: str | bytes) -> Path:
        """Put a file that was made from the run (a report, a chart) into its folder, whole or not at all."""
        path = self.path / name
        with as_host_error(path):
            path.parent.mkdir(exist_ok=True)
        write_atomically(path, content.encode() if isinstance(content, str) else content)
        return path

    # --- how it shows itself ---

    def __repr__(self) -> str:
        return f"<Run {'; '.join(text for _, text in self._told())}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in self._told()
        )
        return f"<table>{rows}</table>"

    def _told(self) -> list[tuple[str, str]]:
        """The run in a few lines: what a reader needs before any figure."""
        measured = [record for record in self.records if record["purpose"] == "measure"]
        probes = len(self.records) - len(measured)
        verdicts = Counter(
            record["verdict"]["status"] if record["status"] == "complete" else record["status"] for record in measured
        )
        counted = ", ".join(f"{count} {name}" for name, count in verdicts.most_common())
        trials = f"{len(measured)} trials" + (f" ({counted})" if counted else "")
        trials += f", {probes} of capacity searches" if probes else ""
        brokers = [f"{name} {broker.get('version') or '?'}" for name, broker in (self.header["brokers"] or {}).items()]
        cpu = self.environment.get("cpu") or {}
        state = self.status + (f": {self.reason}" if self.reason else "")
        machine = [str(cpu["model"])] if cpu.get("model") else []
        machine += [f"{cpu['cores']} cores"] if cpu.get("cores") else []
        points = len({point_label(record) for record in measured})
        told = [
            ("run", self.id),
            ("state", state),
            ("trials", trials),
            ("points", f"{points} points"),
            ("brokers", ", ".join(brokers)),
            ("machine", ", ".join(machine)),
        ]
        return [(name, text) for name, text in told if text]


def column_of(percent: float) -> str:
    """A percentile's column: `p50_ns`, `p99_9_ns`."""
    return f"p{percent:g}_ns".replace(".", "_")


def _nothing_fits(name: str, wanted: Any, left: Sequence[Record], rows: Sequence[tuple[Record, Record]]) -> str:
    """Why a choice leaves nothing, and what could be chosen."""
    if not rows:
        return "has no trials"
    columns = dict.fromkeys(column for _, row in rows for column in row)
    if name not in columns:
        from difflib import get_close_matches  # noqa: PLC0415

        near = get_close_matches(name, columns, 3) or list(columns)[:8]
        return f"{name}: no column of trials; expected one such as {', '.join(near)} (see run.trials.columns)"
    there = sorted({str(row[name]) for row in left if row.get(name) is not None})
    shown = ", ".join(there[:12]) + (f", … ({len(there)} in all)" if len(there) > 12 else "")
    return f"no trial has {name} {wanted!r}; there {'is' if len(there) == 1 else 'are'} {shown or 'none with any'}"


def _none_counts(asked: str, records: Sequence[Record]) -> str:
    """Why nothing is left of what was asked for."""
    if not records:
        return f"{asked}: nothing but a capacity search's own trials; purpose='probe' has them"
    reasons = Counter(
        reason
        for record in records
        if not enters(record)
        for reason in ([record["error"]] if record["error"] else record["verdict"]["reasons"][:1])
    )
    most = f" ({reasons.most_common(1)[0][0]})" if reasons else ""
    return f"{asked}: {len(records)} trials, every one struck out{most}; struck=True has them nevertheless"
