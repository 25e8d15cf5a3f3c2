"""Tests of loadgen.events: what happened when, on one timeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen import events
from loadgen.alarms import AlarmReading
from loadgen.events import Event, alarm_events, in_window, pause_events
from loadgen.gclog import Pause

if TYPE_CHECKING:
    import pytest

SECOND_NS = 1_000_000_000


def looks(*readings: tuple[int, tuple[str, ...], int | None]) -> list[tuple[int, AlarmReading]]:
    """Readings at these seconds."""
    return [(at_s * SECOND_NS, AlarmReading(names, blocked)) for at_s, names, blocked in readings]


def spans(found: list[Event]) -> list[tuple[str, float, float]]:
    """Texts with begin and end in seconds."""
    return [(each.text, each.began_ns / SECOND_NS, each.ended_ns / SECOND_NS) for each in found]


def test_a_pause_is_an_event_from_its_beginning_if_it_is_long_enough() -> None:
    """A millisecond is; less is counted elsewhere."""
    pauses = [Pause(5 * SECOND_NS, 1_000_000, "Pause Young"), Pause(6 * SECOND_NS, 999_999, "Pause Remark")]
    assert pause_events(pauses) == [Event("gc pause", 5 * SECOND_NS - 1_000_000, 5 * SECOND_NS, "Pause Young")]


def test_an_alarm_lasts_from_the_look_before_it_to_the_look_after() -> None:
    """It may have begun and ended anywhere between two looks; one that never ended lasts to the last look."""
    readings = looks((0, (), 0), (5, ("disk",), 0), (10, ("disk", "memory"), 2), (15, ("memory",), None))
    assert spans(alarm_events(readings)) == [
        ("connections blocked", 5, 15),
        ("disk", 0, 15),
        ("memory", 5, 15),
    ]
    assert alarm_events([]) == []
    assert spans(alarm_events(looks((3, ("disk",), None)))) == [("disk", 3, 3)]


def test_an_alarm_that_comes_again_is_two_events() -> None:
    """Between them it was seen to be gone."""
    readings = looks((0, ("disk",), 0), (5, (), 0), (10, ("disk",), 0), (15, (), 0))
    assert spans(alarm_events(readings)) == [("disk", 0, 5), ("disk", 5, 15)]


def test_a_windows_events_are_those_that_touch_it_or_the_second_before() -> None:
    """Times count from the window's beginning and are negative before it."""
    given = [
        Event("rebalance", at * SECOND_NS // 10, end * SECOND_NS // 10, str(at))
        for at, end in ((80, 89), (85, 90), (95, 96), (150, 151), (199, 300), (200, 201))
    ]
    found = in_window(reversed(given), 10 * SECOND_NS, 20 * SECOND_NS)
    assert [each.text for each in found] == ["85", "95", "150", "199"]
    assert found[0].record(10 * SECOND_NS) == {
        "kind": "rebalance",
        "at_s": -1.5,
        "duration_s": 0.5,
        "text": "85",
    }


def test_of_too_many_events_the_longest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order of time."""
    monkeypatch.setattr(events, "EVENTS_MAX", 2)
    given = [Event("gc pause", begin, begin + took, str(begin)) for begin, took in ((1, 5), (2, 1), (3, 9))]
    assert [each.text for each in in_window(given, 0, SECOND_NS)] == ["1", "3"]
