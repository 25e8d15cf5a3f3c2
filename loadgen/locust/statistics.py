"""Locust's own statistics, fed a second at a time, and made to show what is faster than a millisecond.

Locust keeps whole milliseconds below 100 and shows them as such, which turns 0.4 ms into 0. Its bucketing may be
replaced (its documentation says how); the few places that print or export numbers round again and are replaced too.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from locust import stats as locust_stats
from locust.stats import RequestStats, StatsCSV, StatsEntry, StatsError

if TYPE_CHECKING:
    from collections.abc import Mapping


def feed(stats: RequestStats, name: str, row: Mapping[str, Any], now_s: float | None = None) -> None:
    """Add what one kind of request gained in the last second (`loadgen.locust.rows.Row.plain`)."""
    now_s = time.time() if now_s is None else now_s
    second = int(now_s) - 1
    method, failed = row["method"], sum(row["failures"].values())
    for entry in (stats.entries[name, method], stats.total):
        gained = StatsEntry(stats, name, method)
        gained.start_time = now_s
        gained.last_request_timestamp = now_s
        gained.num_requests = row["requests"]
        gained.num_none_requests = row["untimed"]
        gained.num_failures = failed
        gained.total_response_time = row["total_ms"]
        gained.min_response_time = row["min_ms"]
        gained.max_response_time = row["max_ms"]
        gained.total_content_length = row["size_bytes"]
        gained.response_times = row["times"]
        gained.num_reqs_per_sec = defaultdict(int, {second: row["requests"]})
        gained.num_fail_per_sec = defaultdict(int, {second: failed} if failed else {})
        entry.extend(gained)
    for message, number in row["failures"].items():
        key = StatsError.create_key(method, name, message)
        error = stats.errors.setdefault(key, StatsError(method, name, message))
        error.occurrences += number - 1
        error.occurred()


def bucket(response_time_ms: float) -> float:
    """Locust's key for a response time in ms: three digits of it, whatever its size."""
    return float(f"{response_time_ms:.3g}")


def shown(value_ms: float | None) -> str:
    """A time in ms in at most seven characters: three digits where it is small, whole milliseconds where large."""
    value_ms = value_ms or 0.0
    return f"{value_ms:.3g}" if value_ms < 100 else f"{value_ms:.0f}"


def show_sub_milliseconds() -> None:
    """Let Locust's console, CSV, web UI and report show times below a millisecond; for all requests of the process."""
    if locust_stats.bucket_response_time.__module__ == __name__:
        return
    replaced: list[tuple[Any, str, Any]] = [
        (locust_stats, "bucket_response_time", bucket),
        (StatsEntry, "to_string", _to_string),
        (StatsEntry, "percentile", _percentile),
        (StatsEntry, "to_dict", _to_dict(StatsEntry.to_dict)),
        (StatsCSV, "_percentile_fields", _percentile_fields),
    ]
    for owner, name, ours in replaced:
        setattr(owner, name, ours)


def _to_string(entry: StatsEntry, current: bool = True) -> str:
    """Locust's line of the console's table, with times of three digits."""
    per_s = entry.current_rps if current else entry.total_rps
    failing = entry.current_fail_per_sec if current else entry.total_fail_per_sec
    width = locust_stats.STATS_NAME_WIDTH - locust_stats.STATS_TYPE_WIDTH + 4
    failures = f"{entry.num_failures}({entry.fail_ratio:.2%})"
    times = (entry.avg_response_time, entry.min_response_time, entry.max_response_time, entry.median_response_time)
    average, least, most, median = (shown(each) for each in times)
    return (
        f"{entry.method or '':<{locust_stats.STATS_TYPE_WIDTH}} {entry.name:<{width}} {entry.num_requests:>7} "
        f"{failures:>12} |{average:>7} {least:>7} {most:>7}{median:>7} | {per_s or 0:>7.2f} {failing or 0:>11.2f}"
    )


def _percentile(entry: StatsEntry) -> str:
    """Locust's line of the percentiles' table, the same way."""
    if not entry.num_requests:
        raise ValueError("Can't calculate percentile on url with no successful requests")
    values = [f"{shown(entry.get_response_time_percentile(each)):>6}" for each in locust_stats.PERCENTILES_TO_REPORT]
    kind, name = locust_stats.STATS_TYPE_WIDTH, locust_stats.STATS_NAME_WIDTH
    return f"{entry.method or '':<{kind}} {entry.name:<{name}} {entry.num_requests:>8} {' '.join(values)}"


def _to_dict(original: Any) -> Any:
    def to_dict(entry: StatsEntry, escape_string_values: bool = False) -> dict[str, Any]:
        """What the web UI and the report show of an entry; the extremes are not rounded to whole milliseconds."""
        told: dict[str, Any] = original(entry, escape_string_values)
        least, most = entry.min_response_time, entry.max_response_time
        return told | {"min_response_time": bucket(least or 0.0), "max_response_time": bucket(most)}

    return to_dict


def _percentile_fields(csv: StatsCSV, entry: StatsEntry, use_current: bool = False) -> list[Any]:
    """The percentiles' columns of the CSV files, in ms with their digits."""
    if not entry.num_requests:
        return list(csv.percentiles_na)
    if use_current and entry.use_response_times_cache:
        return [entry.get_current_response_time_percentile(each) or 0 for each in csv.percentiles_to_report]
    return [entry.get_response_time_percentile(each) or 0 for each in csv.percentiles_to_report]
