"""Tests of loadgen.verdict: one table a rule."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from loadgen import verdict
from loadgen.facts import Facts, StoodStill, observed_facts
from loadgen.search import is_disturbed
from loadgen.verdict import Check, bound, judge

LEFT = {"lost": 10, "confirmed_lost": 8, "drained": False}
NOT_COUNTED = {"consumers": 0, "received": 0, "stored": None}
GOOD = Facts(
    durability="broker",
    rate_kind="saturate",
    consumers=1,
    window_s=10.0,
    sent=100_000,
    acked=100_000,
    unsettled=0,
    received=100_000,
    achieved_msgs_per_s=10_000,
    goodput_msgs_per_s=10_000,
    agent_core_share_max=0.4,
    producers_held_back_share=0.6,
    host_busy_share=0.7,
    psi_cpu_some_share=0.1,
    steal_share=0.0,
    others_cores=0.02,
    samples=10,
    steady=(True, "from the start on"),
    backlog=(True, "it did not grow"),
    little=(True, "agrees"),
    stored=100_000,
    alarms=(),
    blocked_connections=0,
    disk_full=False,
    frequency_fall_share=0.0,
    throttles=0.0,
    swapped_bytes=0,
    clock_source="tsc",
    clock_error_ns=1,
)
OPEN = {"rate_kind": "fixed", "offered_msgs_per_s": 10_000, "lag_p99_ns": 200_000, "e2e_p50_ns": 300_000,
        "e2e_p99_ns": 1_000_000, "bucket_share_max": 0.001, "resolution_p50_ns": 20_000, "resolution_p99_ns": 100_000,
        "due": 100_000, "missing": 0}  # fmt: skip
UNREAD = {"resolution_p50_ns": None, "resolution_p99_ns": None}
SPREAD = {**OPEN, "service_p99_ns": 30_000_000, "producers_held_back_share": 0.0}
SHORT = {**OPEN, "achieved_msgs_per_s": 8_000, "goodput_msgs_per_s": 8_000}


def facts(**changes: Any) -> Facts:
    """The good trial with changes."""
    return dataclasses.replace(GOOD, **changes)


def found(name: str, **changes: Any) -> Check:
    """What the checker of this name says of the good trial with changes."""
    return next(each for each in judge(facts(**changes)).checks if each.name == name)


TABLE = [
    ("traffic", {}, True),
    ("traffic", {"sent": 0}, False),
    ("traffic", {"received": 0}, False),
    ("traffic", {"received": 0, "consumers": 0}, True),
    ("integrity", {}, True),
    ("integrity", {"corrupted": 1}, False),
    ("integrity", {"corrupted": 1, "durability": "none"}, False),
    ("integrity", {"consumers": 0}, None),
    ("foreign", {}, True),
    ("foreign", {"consumers": 0}, None),
    ("foreign", {"foreign": 1}, False),
    ("confirmations", {}, True),
    ("confirmations", {"acked": 99_000, "errors": {"nack": 1_000}}, True),  # refused, which the broker said
    ("confirmations", {"acked": None, "unsettled": None, "durability": "none"}, True),
    ("confirmations", {"unsettled": None}, None),
    ("confirmations", {"acked": 99_999, "unsettled": 1, "gave_up_confirms": True}, None),
    ("confirmations", {"acked": 99_999, "unsettled": 1}, False),  # nothing was awaited any more
    ("confirmations", {**OPEN, "acked": 99_999, "unsettled": 1}, False),
    ("confirmations", {"acked": 99_999, "unsettled": 1, "gave_up_confirms": True, "hurt": True}, True),
    ("loss", {}, True),
    ("loss", {"lost": 5}, True),  # never confirmed: the producer knows
    ("loss", {"lost": 5, "confirmed_lost": 1}, False),
    ("loss", {"confirmed_lost": 1, "durability": "flushed"}, False),
    ("loss", {"confirmed_lost": 1, "drained": False}, None),
    ("loss", {**LEFT, "depth_at_end": 8}, True),  # two were never confirmed, and are not there
    ("loss", {**LEFT, "depth_at_end": 7}, None),
    ("loss", {**LEFT, "depth_at_end": 11}, None),  # what came is among them
    ("loss", {**LEFT, "durability": "none", "acked": None, "confirmed_lost": 0, "depth_at_end": 4}, True),
    ("loss", {"consumers": 0, "received": 0, "stored": 100_000}, True),
    ("loss", {"consumers": 0, "received": 0, "stored": 99_999}, False),
    ("loss", {**NOT_COUNTED, "depth_at_end": 100_000}, True),
    ("loss", {**NOT_COUNTED, "depth_at_end": 99_999}, False),
    ("loss", NOT_COUNTED, None),
    ("loss", {"consumers": 0, "received": 0, "stored": 5, "durability": "none", "acked": None}, True),
    ("loss", {**NOT_COUNTED, "depth_at_end": 99_000, "dropped_by_limit": 600, "expired": 400}, True),
    ("loss", {**NOT_COUNTED, "depth_at_end": 99_000, "dropped_by_limit": 600, "expired": 399}, False),
    ("queue limits", {}, True),
    ("queue limits", {"limited": True, "dropped_by_limit": 0, "expired": 0}, True),
    ("queue limits", {"limited": True, "dropped_by_limit": 90_000, "expired": 3}, True),
    ("queue limits", {"limited": True}, None),
    ("dead letters", {}, True),
    ("dead letters", {"dead_lettered": {"rejected": 5, "maxlen": 9}, "failed_deliveries": {"rejected": 5}}, True),
    ("dead letters", {"dead_lettered": {"rejected": 4}, "failed_deliveries": {"rejected": 5}}, False),
    ("dead letters", {"dead_lettered": {"rejected": 0}, "failed_deliveries": {"rejected": 5}, "drained": False}, True),
    (
        "dead letters",
        {"dead_lettered": {"delivery_limit": 2}, "failed_deliveries": {"failed": 6}, "delivery_limit": 2},
        True,
    ),
    (
        "dead letters",
        {"dead_lettered": {"delivery_limit": 2}, "failed_deliveries": {"failed": 7}, "delivery_limit": 2},
        None,
    ),
    ("loss", {"lost": 9, "durability": "none", "acked": None}, True),
    ("loss", {"lost": 9, "durability": "none", "acked": None, "drained": False}, None),
    ("drained", {}, True),
    ("drained", {"drained": False}, None),
    ("drained", {"drained": False, "consumers": 0}, True),
    ("drained", {**LEFT, "depth_at_end": 10}, True),
    ("drained", {**LEFT, "depth_at_end": 7}, None),
    ("start", {}, True),
    ("start", {"begun": (True, "as asked")}, True),
    ("start", {"begun": (None, "not counted")}, None),
    ("start", {"begun": (False, "too early")}, False),
    ("duplicates", {}, True),
    ("duplicates", {"duplicated": 3, "rebalanced": True}, True),  # read again by whoever took over
    ("duplicates", {"consumers": 0}, None),
    ("duplicates", {"duplicated": 3, "explained_duplicates": 3}, True),
    ("duplicates", {"duplicated": 3, "explained_duplicates": 2}, False),
    ("order", {}, True),
    ("order", {"consumers": 0}, None),
    ("order", {"out_of_order": 1}, None),
    ("order", {"out_of_order": 1, "order_promised": False}, True),
    ("broker's count", {}, True),
    ("broker's count", {"stored": None}, None),
    ("broker's count", {"stored": 99_999}, False),
    ("broker's count", {"stored": 99_999, "received": 0, "consumers": 0}, False),
    ("broker's count", {"stored": 99_999, "acked": 99_999, "received": 99_998}, True),
    ("broker's count", {"stored": 99_999, "acked": None}, False),  # received more than it stored
    ("broker's count", {"stored": 99_999, "acked": None, "duplicated": 1}, True),
    ("broker's count", {"stored": 100_001}, None),
    ("errors", {}, True),
    ("errors", {"errors": {"nack": 0}}, True),
    ("errors", {"errors": {"nack": 2}}, None),
    ("errors", {"errors": {"unsent": 2}}, None),
    ("schedule lag", {}, True),  # a closed loop
    ("schedule lag", OPEN, True),
    ("schedule lag", {**OPEN, "lag_p99_ns": None}, None),
    ("schedule lag", {**OPEN, "lag_p99_ns": 999_999}, True),
    ("schedule lag", {**OPEN, "lag_p99_ns": 1_000_000, "producers_held_back_share": 0.0}, None),
    ("schedule lag", {**OPEN, "lag_p99_ns": 10_000_000, "producers_held_back_share": 0.0}, None),
    ("schedule lag", {**OPEN, "lag_p99_ns": 10_000_001, "producers_held_back_share": 0.0}, False),
    ("schedule lag", {**OPEN, "lag_p99_ns": 10_000_001, "producers_held_back_share": None}, False),
    ("schedule lag", {**OPEN, "lag_p99_ns": 4_000_000, "e2e_p50_ns": 50_000_000}, True),
    ("schedule lag", {**SPREAD, "lag_p99_ns": 2_900_000}, True),
    ("schedule lag", {**SPREAD, "lag_p99_ns": 3_100_000}, None),
    ("schedule lag", {**SPREAD, "lag_p99_ns": 31_000_000}, False),
    # In a response time the lag is part of the latency: it excuses nothing.
    (
        "schedule lag",
        {**SPREAD, "lag_p99_ns": 80_000_000, "e2e_p99_ns": 90_000_000, "service_p99_ns": 3_000_000},
        False,
    ),
    ("schedule lag", {**SPREAD, "lag_p50_ns": 1_100_000, "lag_p99_ns": 2_900_000}, None),
    ("schedule lag", {**SPREAD, "lag_p50_ns": 11_000_000, "lag_p99_ns": 20_000_000}, False),
    ("schedule lag", {**SPREAD, "lag_p50_ns": 11_000_000, "producers_held_back_share": 0.4}, False),
    ("schedule lag", {**SPREAD, "lag_p50_ns": 11_000_000, "producers_held_back_share": 0.5}, True),
    ("schedule lag", {**SHORT, "lag_p99_ns": 2 * 10**9, "producers_held_back_share": 0.2}, True),
    ("schedule lag", {**SHORT, "lag_p99_ns": 2 * 10**9, "producers_held_back_share": 0.02}, False),
    ("schedule lag", {**SHORT, "lag_p99_ns": 10**10, "agent_core_share_max": 1.0}, False),
    ("rate", {}, True),
    ("rate", OPEN, True),
    ("rate", SHORT, True),
    ("rate", {**OPEN, "offered_msgs_per_s": None}, None),
    ("latency complete", {}, True),  # a closed loop
    ("latency complete", OPEN, True),
    ("latency complete", {**OPEN, "missing": None}, None),
    ("latency complete", {**OPEN, "missing": 1}, None),
    ("latency complete", {**OPEN, "missing": 1_000}, None),
    ("latency complete", {**OPEN, "missing": 1_001}, False),
    ("latency complete", {**OPEN, "missing": 50_000, "hurt": True}, None),
    ("shares of the schedule", {}, True),  # a closed loop
    ("shares of the schedule", OPEN, True),
    ("shares of the schedule", {**OPEN, "misshared": 1}, None),
    ("shares of the schedule", {**OPEN, "misshared": 1_001}, False),
    ("histogram range", {}, True),
    ("histogram range", {"out_of_range": 1}, False),
    ("resolution", {}, True),  # a closed loop
    ("resolution", OPEN, True),
    ("resolution", {**OPEN, "bucket_share_max": None}, None),
    ("resolution", {**OPEN, "bucket_share_max": 0.01}, True),
    ("resolution", {**OPEN, "bucket_share_max": 0.011}, None),
    ("resolution", {**OPEN, "resolution_p50_ns": 60_000}, True),
    ("resolution", {**OPEN, "resolution_p50_ns": 60_001}, None),
    ("resolution", {**OPEN, "resolution_p99_ns": 200_000}, True),
    ("resolution", {**OPEN, "resolution_p99_ns": 200_001}, None),
    ("resolution", {**OPEN, **UNREAD}, None),
    ("resolution", {**OPEN, **UNREAD, "e2e_p50_ns": None, "e2e_p99_ns": None}, True),  # confirmations only
    ("clock", {}, True),
    ("clock", OPEN, True),
    ("clock", {"clock_error_ns": None}, None),
    ("clock", {"clock_source": "hpet"}, None),
    ("clock", {"clock_source": None}, None),
    ("clock", {"clock_changed": True}, None),
    ("clock", {"clock_error_ns": 10**9}, True),  # no latency between two clocks is shown
    ("clock", {**OPEN, "clock_error_ns": 30_000}, True),
    ("clock", {**OPEN, "clock_error_ns": 30_001}, None),
    ("clock", {**OPEN, "clock_error_ns": 299_999}, None),
    ("clock", {**OPEN, "clock_error_ns": 300_000}, False),
    ("steady state", {}, True),
    ("steady state", {"steady": None}, None),
    ("steady state", {"steady": (False, "still falling")}, None),
    ("steady state", {"steady": (None, "too short")}, None),
    ("steady state", {"steady": (None, "too little was sent"), "steady_weighs": False}, None),
    ("backlog", {}, True),
    ("backlog", OPEN, True),
    ("backlog", {**OPEN, "backlog": None}, None),
    ("backlog", {**OPEN, "backlog": None, "consumers": 0}, None),
    ("backlog", {"backlog": (False, "grew")}, True),  # a closed loop bounds it
    ("backlog", {**OPEN, "backlog": (True, "level")}, True),
    ("backlog", {**OPEN, "backlog": (False, "grew")}, None),
    ("backlog", {**SHORT, "backlog": (False, "grew")}, False),
    ("backlog", {**OPEN, "backlog": (None, "too few samples")}, None),
    ("backlog", {**SHORT, "backlog": (None, "too few samples")}, None),
    ("Little's law", {}, True),
    ("Little's law", {"little": None}, None),
    ("Little's law", {"little": (None, "too few")}, None),
    ("Little's law", {"little": (False, "differs")}, False),
    ("generator CPU", {}, True),
    ("generator CPU", {"agent_core_share_max": None}, None),
    ("generator CPU", {"agent_core_share_max": 0.99}, True),  # it bounds the rate, and bound_by says so
    ("generator CPU", {**OPEN, "agent_core_share_max": 0.99}, None),
    ("generator CPU", {**SHORT, "agent_core_share_max": 0.99}, True),
    ("host CPU", {}, True),
    ("host CPU", {"host_busy_share": None}, None),
    ("host CPU", {"host_busy_share": 0.99}, True),
    ("host CPU", {**OPEN, "host_busy_share": 0.99}, None),
    ("host CPU", {**OPEN, "psi_cpu_some_share": 0.5}, None),
    ("host CPU", {**OPEN, "psi_cpu_some_share": None}, True),
    ("other programs", {}, True),
    ("other programs", {"others_cores": 0.2}, True),
    ("other programs", {"others_cores": 0.21}, None),
    ("other programs", {"others_cores": None}, None),
    ("other programs", {"resting_cores": 0.5}, True),
    ("other programs", {"resting_cores": 0.51}, None),
    ("stolen CPU", {}, True),
    ("stolen CPU", {"steal_share": 0.05}, True),
    ("stolen CPU", {"steal_share": 0.051}, None),
    ("stolen CPU", {"steal_share": None}, None),
    ("CPU frequency", {}, True),
    ("CPU frequency", {"frequency_fall_share": None}, None),  # a virtual machine tells none
    ("CPU frequency", {"frequency_fall_share": 0.1, "throttles": 0}, True),
    ("CPU frequency", {"frequency_fall_share": 0.11}, None),
    ("CPU frequency", {"frequency_fall_share": 0.0, "throttles": 1}, None),
    ("swap", {}, True),
    ("swap", {"swapped_bytes": None}, None),
    ("swap", {"swapped_bytes": 4096}, None),
    ("alarms", {}, True),
    ("alarms", {"alarms": None}, None),
    ("alarms", {"alarms": ("memory",)}, False),
    ("alarms", {"alarms": (), "blocked_connections": 1}, False),
    ("disk", {}, True),
    ("disk", {"disk_full": None}, None),
    ("disk", {"disk_full": True}, False),
    ("observation", {}, True),
    ("observation", {"samples": None}, None),
    ("observation", {"samples": 1}, None),
]


@pytest.mark.parametrize(("name", "changes", "passed"), TABLE)
def test_each_checker_tells_true_false_and_unknown_apart(
    name: str, changes: dict[str, Any], passed: bool | None
) -> None:
    """A checker passes, fails or cannot tell exactly as its thresholds say, with a reason."""
    check = found(name, **changes)
    assert check.passed is passed
    assert check.reason


def test_what_limits_did_is_told_where_nothing_is_wrong() -> None:
    """A full queue that refuses or drops leaves a trial valid: the verdict says what happened, and what bounded it."""
    seen = {"limited": True, "dropped_by_limit": 700, "expired": 0, "refused_by_limit": 300, "errors": {"nack": 300}}
    judged = judge(facts(**{**OPEN, **seen, "goodput_msgs_per_s": 9_000}))
    assert judged.status == "valid"
    assert any("700 dropped by a full queue, 300 refused by a full queue" in each for each in judged.reasons)
    assert (judged.bound_by, judge(facts(**{**seen, "refused_by_limit": None})).status) == ("broker", "unknown")


def test_a_gauge_that_differs_casts_doubt_though_it_may_be_chance() -> None:
    """Where too few are under way to tell, Little's law is nothing against a trial."""
    statuses = [judge(facts(little=(None, "?"), little_weighs=weighs)).status for weighs in (False, True)]
    assert statuses == ["valid", "unknown"]


def test_every_checker_is_in_the_table() -> None:
    """No checker is without a case that passes and one that does not."""
    names = {each.name for each in judge(GOOD).checks}
    assert len(names) == len(verdict.CHECKERS)
    assert names == {name for name, _, passed in TABLE if passed is True}
    assert names == {name for name, _, passed in TABLE if passed is not True}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "broker"),
        ({"producers_held_back_share": None}, "broker"),
        ({"producers_held_back_share": 0.01}, "unknown"),
        ({"agent_core_share_max": 0.95}, "generator"),
        ({"host_busy_share": 0.95}, "host"),
        ({"psi_cpu_some_share": 0.5}, "host"),
        ({"agent_core_share_max": 0.95, "host_busy_share": 1.0}, "generator"),
        ({"agent_core_share_max": None}, "unknown"),
        ({"host_busy_share": None}, "unknown"),
        (OPEN, "offered"),
        ({**OPEN, "agent_core_share_max": 1.0, "host_busy_share": 1.0}, "offered"),
        ({**OPEN, "achieved_msgs_per_s": 9_900, "goodput_msgs_per_s": 9_900}, "offered"),
        ({**OPEN, "achieved_msgs_per_s": 9_899, "goodput_msgs_per_s": 9_899}, "broker"),
        ({**OPEN, "goodput_msgs_per_s": 8_000}, "broker"),  # accepted but not delivered in time
        ({**OPEN, "goodput_msgs_per_s": 0, "consumers": 0}, "offered"),
        (SHORT, "broker"),
        ({**SHORT, "producers_held_back_share": None}, "unknown"),
        ({**SHORT, "producers_held_back_share": 0.0}, "unknown"),
        ({**SHORT, "agent_core_share_max": 0.97}, "generator"),
        ({**SHORT, "host_busy_share": 0.97}, "host"),
        ({**OPEN, "offered_msgs_per_s": None}, "broker"),
    ],
)
def test_bound_by_follows_the_words_of_the_design(changes: dict[str, Any], expected: str) -> None:
    """Offered when carried, else a full core, a full host, or the broker if it held producers back."""
    bound_by, why = bound(facts(**changes))
    assert bound_by == expected
    assert why


@pytest.mark.parametrize(
    ("kind", "offered", "achieved", "carried"),
    [
        ("fixed", 10, 9.8, True),  # two messages of a hundred: the window's edges
        ("fixed", 10, 9.7, False),
        ("poisson", 10, 7.0, True),  # three deviations of a hundred random arrivals
        ("poisson", 10, 6.9, False),
        ("poisson", 100_000, 98_999, False),  # where one per cent is more than chance
        ("ramp", 1_000, 1_200, True),
        ("saturate", None, 1_000, None),
    ],
)
def test_a_rate_is_carried_within_one_per_cent_or_chance(
    kind: Any, offered: float | None, achieved: float, carried: bool | None
) -> None:
    """Few messages and random arrivals are given their chance; many are held to 1 %."""
    changes = {"rate_kind": kind, "offered_msgs_per_s": offered}
    seen = facts(**changes, achieved_msgs_per_s=achieved, goodput_msgs_per_s=achieved)
    assert seen.is_carried is carried


@pytest.mark.parametrize(
    ("changes", "status", "first_reason"),
    [
        ({}, "valid", "bound by broker"),
        ({"steal_share": 0.2}, "unknown", "stolen CPU"),
        ({"steal_share": 0.2, "corrupted": 1}, "invalid", "integrity"),
        ({"agent_core_share_max": 1.0}, "valid", "bound by generator"),
        (SHORT, "valid", "bound by broker"),
    ],
)
def test_the_worst_finding_is_the_verdict(changes: dict[str, Any], status: str, first_reason: str) -> None:
    """One False is invalid, else one None is unknown, else valid; the reasons begin with the worst."""
    judged = judge(facts(**changes))
    assert judged.status == status
    assert judged.reasons[0].startswith(first_reason)
    assert judged.reasons[-1].startswith("bound by")


QUIET = {"little": (None, "L = 2: below 20 it cannot tell"), "stored": None, "alarms": None, "disk_full": None,
         "steady": (None, "3 levels: at least 4 are needed"), "steady_weighs": False,
         "frequency_fall_share": None, "throttles": None, "swapped_bytes": None}  # fmt: skip
UNCONSUMED = {"consumers": 0, "received": 0, "little": None, "backlog": None}


@pytest.mark.parametrize("changes", [QUIET, {**OPEN, **QUIET}, UNCONSUMED, {**OPEN, **UNCONSUMED}])
def test_what_nobody_can_look_at_is_listed_and_casts_no_doubt(changes: dict[str, Any]) -> None:
    """A quiet trial on a virtual machine, or one that nobody consumes, is valid, and says what is not known of it."""
    judged = judge(facts(**changes))
    unknown = [each for each in judged.checks if each.passed is None]
    assert len(unknown) >= 5
    assert not any(each.weighs for each in unknown)
    assert judged.status == "valid"
    assert [reason.partition(":")[0] for reason in judged.reasons] == [f"bound by {judged.bound_by}"]
    assert {each["weighs"] for each in judged.record()["checks"] if each["passed"] is None} == {False}


@pytest.mark.parametrize(
    "changes",
    [
        {"steady": None}, {"steady": (None, "too short")}, {"steady": (False, "it rose")}, {"samples": None},
        {"others_cores": None}, {"steal_share": None}, {"clock_error_ns": None},
        {"agent_core_share_max": None}, {"host_busy_share": None}, {**OPEN, "lag_p99_ns": None},
        {**OPEN, "missing": None}, {**OPEN, "backlog": None}, {"swapped_bytes": 4096}, {"throttles": 1.0},
    ],
)  # fmt: skip
def test_what_should_have_been_looked_at_and_was_not_casts_doubt(changes: dict[str, Any]) -> None:
    """And so does what was looked at, and found in doubt."""
    assert judge(facts(**changes)).status == "unknown"


def test_a_late_finding_that_casts_no_doubt_changes_nothing() -> None:
    """It is listed."""
    record = judge(GOOD).record()
    verdict.add_check(record, Check("more", None, "not looked at", weighs=False))
    assert (record["status"], record["checks"][-1]["name"]) == ("valid", "more")
    assert not any("more" in reason for reason in record["reasons"])
    verdict.add_check(record, Check("more", None, "in doubt"))
    assert record["status"] == "unknown"


def test_a_machine_that_tells_little_disturbs_no_search() -> None:
    """That nobody knows a CPU's frequency is no sign of somebody else on it."""
    assert not is_disturbed(judge(facts(**QUIET)).record())
    assert is_disturbed(judge(facts(frequency_fall_share=0.5)).record())


@pytest.mark.parametrize(("error_ns", "is_named"), [(900_000, True), (1_000, False)])
def test_clocks_that_take_latencies_below_zero_are_named(error_ns: int, *, is_named: bool) -> None:
    """Values are out of range by a clock's error where that is as large as a latency, and for another reason else."""
    verdict = judge(facts(out_of_range=3, clock_error_ns=error_ns, e2e_p50_ns=1_000_000)).record()
    told = next(each for each in verdict["checks"] if each["name"] == "histogram range")
    assert told["passed"] is False
    assert ("the clocks' error" in told["reason"]) == is_named


def test_how_slow_a_cpu_was_is_told_where_its_frequency_is_not() -> None:
    """A virtual machine's CPU is known by what the same work took; that is shown, and casts no doubt by itself."""
    verdict = judge(facts(frequency_fall_share=None, slow_share=0.4)).record()
    told = next(each for each in verdict["checks"] if each["name"] == "CPU frequency")
    assert "40% slower than at its fastest" in told["reason"]
    assert verdict["status"] == "valid"


def test_a_verdict_can_be_written_to_disk() -> None:
    """The record is plain JSON with the design's three fields and every check."""
    record = json.loads(json.dumps(judge(GOOD).record()))
    assert record["status"] == "valid"
    assert record["bound_by"] == "broker"
    assert [each["name"] for each in record["checks"]] == [each.name for each in judge(GOOD).checks]


def test_what_was_not_observed_is_left_to_the_facts_own_default() -> None:
    """Of an observer's summary only known values become facts, and they are all fields of Facts."""
    summary: dict[str, Any] = {
        "agent_core_share_max": {"producers": 0.5, "consumers": 0.7, "broker": None},
        "cpu_cores": {"producers": 0.5, "broker": 1.0, "resting": 0.3},
        "host_busy_share": 0.5,
        "psi_cpu_some_share": None,
        "host_steal_share": 0.0,
        "others_cores": 0.1,
        "others_names": ["cc1"],
        "alarms": ["disk"],
        "blocked_connections_max": None,
        "disk_full": None,
        "samples": 9,
    }
    observed = observed_facts(summary)
    assert observed["agent_core_share_max"] == 0.7
    assert observed["alarms"] == ("disk",)
    assert not {"psi_cpu_some_share", "blocked_connections", "disk_full"} & observed.keys()
    facts = dataclasses.replace(GOOD, **observed)
    assert facts.others_names == ("cc1",)
    (told,) = [each.reason for each in judge(facts).checks if each.name == "other programs"]
    assert told == "others used 0.10 cores (cc1); the resting broker 0.30"


STILL = StoodStill(times=48, total_s=3.9, longest_s=0.09)
ONCE = StoodStill(times=2, total_s=1.1, longest_s=1.0)
SPENT = {**OPEN, "lag_p99_ns": 10**9, "producers_held_back_share": 0.0}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, ""),
        ({"producers_stood_still": STILL}, "starved"),
        ({"producers_stood_still": ONCE}, "stopped"),
        ({"producers_stood_still": ONCE, "hurt": True}, ""),  # a call that waits for a broker that was stopped
        ({"producers_stood_still": ONCE._replace(total_s=0.09)}, ""),  # a tenth of a second of ten explains no p99
        ({"producers_stood_still": STILL, "producers_cpu_wait_s": 2.5}, "starved"),  # which does not count waiting
        ({"producers_cpu_wait_s": 0.1}, "short of CPU"),
        ({"producers_cpu_wait_s": 0.09}, ""),
        ({"producers_stood_still": STILL, "agent_core_share_max": 1.0}, "busy"),
    ],
)
def test_a_late_generators_cause_is_named(changes: dict[str, Any], named: str) -> None:
    """Busy, short of CPU, starved again and again or stopped once, by what it did meanwhile; else by no name."""
    (told,) = [each for each in judge(facts(**{**SPENT, **changes})).checks if each.name == "schedule lag"]
    assert told.passed is False
    assert [name for name in ("busy", "short of CPU", "starved", "stopped") if name in told.reason] == [named] * bool(
        named
    )


@pytest.mark.parametrize(("share", "is_slow"), [(None, False), (0.79, False), (0.8, True), (0.99, True)])
@pytest.mark.parametrize("changes", [{}, {"agent_core_share_max": 1.0}, {"host_busy_share": 1.0}])
def test_slow_consumers_are_named(share: float | None, is_slow: bool, changes: dict[str, Any]) -> None:
    """They bound the rate, whatever else was full, and the backlog says whose it is."""
    grew = {**OPEN, "goodput_msgs_per_s": 1.0, "backlog": (False, "it grew"), **changes}
    verdict = judge(facts(**grew, consumers_busy_share=share))
    (told,) = [each.reason for each in verdict.checks if each.name == "backlog"]
    assert ("the consumers were slow" in told) is is_slow
    assert (verdict.bound_by == "consumers") is is_slow
    carried = judge(facts(**{**OPEN, "consumers_busy_share": share}))
    assert carried.bound_by == "offered"
