"""A locustfile beside a scenario's: how long Locust's loop was held, while the scenario ran.

Two figures: how late a greenlet wakes that asks for 5 ms, which is the kernel's scheduling, too; and the longest that
any one greenlet ran before it let others run, in CPU time and by the clock.
"""

from __future__ import annotations

import time
from typing import Any

import gevent
import greenlet
from locust import events

ASKED_S = 0.005
late_s: list[float] = []
held: dict[str, tuple[float, float]] = {"cpu": (0.0, 0.0), "clock": (0.0, 0.0)}
since = [0.0, 0.0]


def beat() -> None:
    """Sleep, and note by how much longer it was."""
    while True:
        began = time.perf_counter()
        gevent.sleep(ASKED_S)
        late_s.append(time.perf_counter() - began - ASKED_S)


def switched(event: str, between: tuple[Any, Any]) -> None:
    """Note how long the greenlet ran that now lets another one run; the loop's own waiting is not counted."""
    del event
    cpu, clock = time.thread_time(), time.perf_counter()
    if between[0] is not gevent.get_hub():
        ran = (cpu - since[0], clock - since[1])
        held["cpu"] = max(held["cpu"], ran)
        held["clock"] = max(held["clock"], ran, key=lambda each: each[1])
    since[:] = cpu, clock


@events.spawning_complete.add_listener
def begin(**_: Any) -> None:
    """From when all users are there."""
    if not late_s:
        late_s.append(0.0)
        since[:] = time.thread_time(), time.perf_counter()
        greenlet.settrace(switched)
        gevent.spawn(beat)


@events.test_stop.add_listener
def tell(**_: Any) -> None:
    """When the test has been stopped and judged."""
    greenlet.settrace(None)
    found = sorted(late_s)
    p99, most = found[int(len(found) * 0.99)] * 1000, found[-1] * 1000
    cpu, clock = held["cpu"][0] * 1000, held["clock"][1] * 1000
    print(
        f"{len(found)} heartbeats, late by p99 {p99:.1f} ms, at most {most:.1f} ms; "
        f"one greenlet ran at most {cpu:.1f} ms of CPU, {clock:.1f} ms by the clock",
        flush=True,
    )
