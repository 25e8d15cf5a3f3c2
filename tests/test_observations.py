"""Tests of loadgen.observations: a window's figures and the rows, from counters laid by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from loadgen.alarms import AlarmReading
from loadgen.events import Event
from loadgen.gclog import Pause
from loadgen.host import PAGE_BYTES
from loadgen.observations import Columns, Observations, Series

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SECOND_NS = 1_000_000_000


def columns(times_s: list[float], **values: Sequence[float | None]) -> Columns:
    """Columns of these values at these times."""
    made = Columns()
    for index, at_s in enumerate(times_s):
        made.append(round(at_s * SECOND_NS), {name: each[index] for name, each in values.items()})
    return made


def observations(samples: Columns, **changes: Any) -> Observations:
    """What an observer of producers and a broker saw."""
    given: dict[str, Any] = {
        "origin_ns": 0,
        "interval_ns": SECOND_NS,
        "watch_interval_ns": 5 * SECOND_NS,
        "groups": ("producers", "broker"),
        "samples": Series.of(samples),
        "watches": Series.of(Columns()),
        "depths": Series.of(Columns()),
    }
    return Observations(**given | changes)


def host_counters(user: list[float], idle: list[float]) -> Mapping[str, Sequence[float]]:
    """Counters of a host that is in user mode or idle."""
    still = [0.0] * len(user)
    others = {f"host_{name}_s": still for name in ("system", "irq", "iowait", "steal")}
    return {"host_user_s": user, "host_idle_s": idle, **others}


def test_a_counter_is_interpolated_at_a_windows_edges() -> None:
    """Half an interval has used half of what the whole one did."""
    series = Series.of(columns([0, 1, 2], cpu=[0, 1, 3]))
    assert series.used("cpu", SECOND_NS // 2, 3 * SECOND_NS // 2) == pytest.approx(1.5)
    assert series.used("cpu", 0, 2 * SECOND_NS) == pytest.approx(3)


def test_a_counter_stands_still_where_it_was_not_read() -> None:
    """Before the first and after the last reading nothing is made up, and an unknown counter is None."""
    series = Series.of(columns([0, 1, 2, 3], late=[None, None, 5, 7], never=[None] * 4))
    assert series.used("late", 0, 2 * SECOND_NS) == 0
    assert series.used("late", 0, 9 * SECOND_NS) == pytest.approx(2)
    assert series.used("never", 0, SECOND_NS) is None
    assert series.used("no such", 0, SECOND_NS) is None


def test_a_column_that_comes_later_was_unknown_before() -> None:
    """A broker that is added in mid-run has no earlier values."""
    made = Columns()
    made.append(0, {"a": 1})
    made.append(1, {"a": 2, "b": 3})
    made.append(2, {"b": None})
    series = Series.of(made)
    assert np.array_equal(series.columns["a"], [1, 2, np.nan], equal_nan=True)
    assert np.array_equal(series.columns["b"], [np.nan, 3, np.nan], equal_nan=True)


def test_a_gauge_of_a_window_includes_the_last_value_before_it() -> None:
    """What was true when the window began belongs to it; what came after its end does not."""
    series = Series.of(columns([0, 1, 2, 3], rss=[1, 9, None, 4]))
    assert list(series.seen("rss", 3 * SECOND_NS // 2, 2 * SECOND_NS)) == [9]
    assert list(series.seen("rss", SECOND_NS // 2, 3 * SECOND_NS)) == [1, 9, 4]
    assert series.last("rss", 5 * SECOND_NS // 2, SECOND_NS) is None
    assert series.last("rss", 3 * SECOND_NS, 0) == 4


def test_a_windows_figures_are_of_that_window_only() -> None:
    """CPU, shares, memory and other programs' cores are counted between the window's edges."""
    samples = columns(
        [0, 1, 2, 3],
        **host_counters(user=[0, 2, 3.5, 5], idle=[0, 0, 0.5, 1]),
        producers_cpu_s=[0, 0.9, 1.7, 2.5],
        **{"producers_busiest_s:7": [0, 0.5, 1.0, 1.5], "producers_busiest_s:8": [0, 0.9, 1.2, 1.5]},
        producers_rss_bytes=[10, 30, 20, 5],
        psi_cpu_some_s=[0, 1, 1.25, 1.5],
        dirty_bytes=[9e9, 1e6, 3e6, 2e6],
    )
    watches = columns([0, 3], kernel_cpu_s=[0, 0.3], disk_free_bytes=[5e9, 4e9])
    summary = observations(samples, watches=Series.of(watches)).summary(SECOND_NS, 3 * SECOND_NS)
    assert summary["cpu_s"] == {"producers": pytest.approx(1.6), "broker": None}
    assert summary["cpu_cores"] == {"producers": pytest.approx(0.8), "broker": None}
    assert summary["agent_core_share_max"] == {"producers": pytest.approx(0.5), "broker": None}
    assert summary["rss_bytes"] == {"producers": 30, "broker": None}
    assert summary["host_busy_share"] == pytest.approx(0.75)
    assert summary["host_idle_share"] == pytest.approx(0.25)
    assert summary["psi_cpu_some_share"] == pytest.approx(0.25)
    assert summary["psi_io_full_share"] is None
    assert summary["others_cores"] == pytest.approx((3 - 1.6 - 0.2) / 2)
    assert summary["dirty_bytes_max"] == 3_000_000
    assert summary["disk_free_bytes_min"] == 4_000_000_000
    assert summary["disk_full"] is False
    assert summary["samples"] == 3


def test_time_that_the_hypervisor_took_is_not_idle() -> None:
    """A machine whose whole remaining time is used is full."""
    counters = {**host_counters([0, 1.6], [0, 0]), "host_steal_s": [0.0, 0.4]}
    samples = columns([0, 1], **counters)
    summary = observations(samples).summary(0, SECOND_NS)
    assert summary["host_busy_share"] == pytest.approx(1)
    assert summary["host_steal_share"] == pytest.approx(0.2)


def test_a_quota_that_is_used_up_is_a_full_host() -> None:
    """In a container of half a core, half a core is everything."""
    samples = columns([0, 1], **host_counters([0, 0.5], [0, 1.5]), producers_cpu_s=[0, 0.5])
    assert observations(samples, cpu_limit_cores=0.5).summary(0, SECOND_NS)["host_busy_share"] == 1
    assert observations(samples).summary(0, SECOND_NS)["host_busy_share"] == pytest.approx(0.25)


def test_pauses_count_where_they_overlap_the_window() -> None:
    """Of four pauses those that touch the window are counted whole; without a log nothing is known."""
    pauses = tuple(Pause(round(at_s * SECOND_NS), SECOND_NS // 10, "Pause Young") for at_s in (0.9, 1.05, 1.5, 2.2))
    seen = observations(columns([0, 1, 2, 3], a=[0, 0, 0, 0]), pauses=pauses)
    expected = {"count": 2, "total_ns": SECOND_NS // 5, "max_ns": SECOND_NS // 10}
    assert seen.summary(SECOND_NS, 2 * SECOND_NS)["gc"] == expected
    assert [row["gc_pauses"] for row in seen.rows] == [1, 2, 1]
    assert observations(columns([0, 1], a=[0, 0])).summary(0, SECOND_NS)["gc"] is None


def test_alarms_near_the_window_are_its_own() -> None:
    """They are looked at every five seconds: the looks beside the window count, far ones do not."""
    looks = ((2, ("memory",), 0), (8, (), None), (14, ("disk",), 3), (40, ("late",), 9))
    alarms = tuple((at_s * SECOND_NS, AlarmReading(names, blocked)) for at_s, names, blocked in looks)
    seen = observations(columns([9, 10, 11], a=[0, 0, 0]), alarms=alarms)
    summary = seen.summary(9 * SECOND_NS, 11 * SECOND_NS)
    assert summary["alarms"] == ["disk"]
    assert summary["blocked_connections_max"] == 3
    assert [row["alarms"] for row in seen.rows] == [0, 0]
    assert observations(columns([0, 1], a=[0, 0])).summary(0, SECOND_NS)["alarms"] is None


def test_pauses_alarms_and_notes_stand_on_one_timeline() -> None:
    """In order of time and in seconds from the window's beginning; what is far away is left out."""
    seen = observations(
        columns([0, 1, 2, 3], a=[0, 0, 0, 0]),
        pauses=(Pause(2 * SECOND_NS, SECOND_NS // 2, "Pause Full"),),
        alarms=tuple((at_s * SECOND_NS, AlarmReading(names, 0)) for at_s, names in ((0, ()), (1, ("disk",)), (3, ()))),
        noted=(Event("rebalance", 5 * SECOND_NS // 2, 5 * SECOND_NS // 2, "c0"), Event("far", 9 * 10**9, 10**10, "")),
    )
    told = seen.summary(SECOND_NS, 3 * SECOND_NS)["events"]
    assert [(each["kind"], each["at_s"], each["duration_s"], each["text"]) for each in told] == [
        ("alarm", -1, 3, "disk"),
        ("gc pause", 0.5, 0.5, "Pause Full"),
        ("rebalance", 1.5, 0, "c0"),
    ]


def test_a_disks_times_are_means_of_the_window_and_of_each_interval() -> None:
    """A flush of 40 ms in one second is not hidden by quick ones in another; no flush is no duration."""
    samples = columns(
        [0, 1, 2, 3, 4],
        disk_writes=[0, 10, 20, 20, 90],
        disk_write_s=[0, 0.1, 0.1, 0.1, 9],
        disk_flushes=[0, 1, 11, 11, 99],
        disk_flush_s=[0, 0.04, 0.05, 0.05, 9],
    )
    seen = observations(samples)
    assert seen.summary(0, 3 * SECOND_NS)["disk"] == {
        "writes": 20,
        "write_mean_ns": pytest.approx(5e6),
        "write_interval_mean_ns_max": pytest.approx(10e6),
        "flushes": 11,
        "flush_mean_ns": pytest.approx(50e6 / 11),
        "flush_interval_mean_ns_max": pytest.approx(40e6),
    }
    assert [row["disk_flush_ns"] for row in seen.rows[:3]] == [pytest.approx(40e6), pytest.approx(1e6), None]
    assert seen.rows[0]["disk_writes_per_s"] == 10
    assert observations(columns([0, 1], a=[0, 0])).summary(0, SECOND_NS)["disk"] is None


def test_swap_and_frequency_are_those_of_the_window() -> None:
    """What was swapped before it is not its own; a frequency that nobody told is unknown."""
    samples = columns([0, 1, 2, 3], swapped_in_pages=[0, 5, 6, 6], swapped_out_pages=[0, 0, 0, 2])
    watches = columns([0, 1, 2, 3], cpu_frequency_hz=[9e9, 2e9, 1e9, 2e9], cpu_throttles=[4, 4, 5, 5])
    seen = observations(samples, watches=Series.of(watches))
    summary = seen.summary(SECOND_NS, 3 * SECOND_NS)
    assert summary["swapped_bytes"] == 3 * PAGE_BYTES
    assert summary["cpu_frequency_fall_share"] == pytest.approx(0.5)
    assert summary["cpu_throttles"] == 1
    assert [row["swapped_bytes_per_s"] for row in seen.rows] == [5 * PAGE_BYTES, PAGE_BYTES, 2 * PAGE_BYTES]
    unknown = observations(columns([0, 1], a=[0, 0])).summary(0, SECOND_NS)
    assert {unknown[name] for name in ("swapped_bytes", "cpu_frequency_fall_share", "cpu_throttles")} == {None}


def test_a_slow_cpu_is_told_by_the_same_work_taking_longer() -> None:
    """Work of 20 µs at its fastest that takes 40 on average was done half as fast; without any nothing is told."""
    samples = columns([0, 1, 2, 3], works=[0, 10, 20, 30], work_s=[0, 200e-6, 600e-6, 1000e-6])
    seen = observations(samples, work_ns_min=20_000)
    assert [row["cpu_slow_share"] for row in seen.rows] == [pytest.approx(each) for each in (0, 0.5, 0.5)]
    assert seen.summary(0, 2 * SECOND_NS)["cpu_slow_share"] == pytest.approx(1 / 3)
    assert observations(columns([0, 1], a=[0, 0])).summary(0, SECOND_NS)["cpu_slow_share"] is None


def test_rows_tell_of_their_own_interval() -> None:
    """A row's cores are those between two samples, its depth the newest that is not stale."""
    samples = columns([0, 1, 3], **host_counters([0, 1, 2], [0, 1, 4]), producers_cpu_s=[0, 1, 2], load_1m=[1, 2, 3])
    depths = Series.of(columns([0.5], depth_msgs=[70]))
    first, second = observations(samples, depths=depths, origin_ns=SECOND_NS).rows
    assert (first["elapsed_s"], second["elapsed_s"]) == (0, 2)
    assert (first["producers_cpu_cores"], second["producers_cpu_cores"]) == (1, 0.5)
    assert (first["host_busy_share"], second["host_busy_share"]) == (0.5, 0.25)
    assert (first["depth_msgs"], second["depth_msgs"]) == (70, 70)
    assert second["load_1m"] == 3
    assert second["broker_cpu_cores"] is None
    assert first.keys() == second.keys()


def test_nothing_seen_is_no_rows() -> None:
    """An observer that was stopped before its second sample has nothing to tell."""
    assert observations(Columns()).rows == []
    assert observations(columns([0], a=[1])).rows == []
