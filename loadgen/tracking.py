"""Another host's clock followed while load flows: what to add to this one's now, and afterwards how far that was off.

An estimate that is used at once knows only what came before. So round trips go on for as long as the load, a line
through the last of them says what holds until the next, and when all is over a line through all of them tells by how
much what was used had erred: that, and the line's own error, bound every time that was corrected.
"""

from __future__ import annotations

import contextlib
import threading
import time
from array import array
from bisect import bisect_left
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Self

from loadgen.agent import Report, Result
from loadgen.clocks import RATE_ERROR_MAX, READING_NS, ClockClient, fit, local_clock
from loadgen.errors import HostError
from loadgen.host import clock_source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from loadgen.clocks import Sample

FIRST_TRIPS = 32
TRIPS = 4
EVERY_S = 1.0
RECENT_TRIPS = 20 * TRIPS
STEADY_NS = 3_000_000_000
"""A line through less time than this would extend its noise; until then the best of the last trips alone holds."""
STALE_NS = 100_000_000
"""Who uses what `ahead_ns` said may do so for this long: until the next time, and a loop's own turn."""
KEPT_TRIPS = 20_000

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_TIME = Path("/proc/self/ns/time")


def clock_id() -> str:
    """Which CLOCK_MONOTONIC this process reads: of which boot of which machine, and in which time namespace."""
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    with contextlib.suppress(OSError):
        return f"{boot} {_TIME.readlink()}"
    return boot


class Tracker:
    """Follows the clock of a `ClockServer` from a thread of its own; use it as a context manager, or close it.

    Args:
        address: where the server is.
        clock: this host's clock.
        every_s: between bursts of round trips.

    Raises:
        HostError: nobody answers there.
    """

    def __init__(
        self, address: tuple[str, int], clock: Callable[[], int] = time.monotonic_ns, every_s: float = EVERY_S
    ) -> None:
        self._source = clock_source()
        self._client = ClockClient(address, clock)
        try:
            self._client.sample(FIRST_TRIPS)
        except HostError:
            self._client.close()
            raise
        self._fit = fit([_best(self._client.samples)])
        self._used_at, self._used = array("q"), array("q")
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="clock-tracker", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._stopping.wait(self._every_s):
            # A burst that is lost is made up for by the next; what that costs is in the bound.
            with contextlib.suppress(HostError):
                self._take()

    def _take(self) -> None:
        newest = self._client.sample(TRIPS)
        recent = self._client.samples[-RECENT_TRIPS:]
        is_steady = recent[-1].at_ns - recent[0].at_ns >= STEADY_NS
        self._fit = fit(_quick(recent) if is_steady else [_best(newest)])
        if len(self._client.samples) > KEPT_TRIPS:
            del self._client.samples[: KEPT_TRIPS // 2]

    def begin(self) -> None:
        """What is used from now on is what `record` will tell of."""
        del self._used_at[:], self._used[:]

    def ahead_ns(self, now_ns: int) -> int:
        """What to add to this host's time until `STALE_NS` from now; noted, so that `record` can tell its error."""
        ahead_ns = self._fit.offset_ns_at(now_ns) or 1  # 0 says that the clocks are one
        self._used_at.append(now_ns)
        self._used.append(ahead_ns)
        return ahead_ns

    def record(self) -> dict[str, Any]:
        """As it stands in run.json; `error_ns` bounds the error of all that was used since `begin`.

        Before anything was used it is the first estimate's.
        """
        with contextlib.suppress(HostError):
            self._client.sample(TRIPS)
        if not self._used_at:
            return {**self._fit.record(), "samples": len(self._client.samples)}
        begin_ns = self._used_at[0]
        taken = self._client.samples
        # The trips of the seconds before: without them the first moments would lie outside the line.
        first = max(0, bisect_left(taken, begin_ns, key=lambda each: each.at_ns) - RECENT_TRIPS)
        during = _quick(taken[first:])
        found = fit(during)
        first_ns, last_ns = min(each.at_ns for each in during), max(each.at_ns for each in during)
        error_ns = 0.0
        for at_ns, used_ns in zip(self._used_at, self._used, strict=True):
            outside_ns = max(0, first_ns - at_ns, at_ns - last_ns)
            error_ns = max(error_ns, abs(used_ns - found.offset_ns_at(at_ns)) + RATE_ERROR_MAX * outside_ns)
        drift_ns = abs(found.drift_ppm or 0.0) * 1e-6 * STALE_NS
        return {
            **found.record(),
            "error_ns": found.error_ns + round(error_ns + drift_ns),
            "changed": local_clock(self._source)["changed"],
        }

    def close(self) -> None:
        """Ask no more."""
        self._stopping.set()
        self._thread.join()
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class HostClock:
    """This host's clock beside the one that all times are told by, which may be the same."""

    def __init__(self) -> None:
        self._source = clock_source()
        self._tracker: Tracker | None = None

    def follow(self, reference: str, address: tuple[str, int]) -> None:
        """From now on times are told by the clock of this name, which a `ClockServer` there tells.

        Raises:
            HostError: it is not this host's, and nobody answers there.
        """
        if reference != clock_id() and self._tracker is None:
            self._tracker = Tracker(address)

    def begin(self) -> None:
        """A trial begins: `record` is to tell of what is used from now on."""
        if self._tracker is not None:
            self._tracker.begin()

    def ahead_ns(self) -> int:
        """What to add to this host's time now; 0 where it is the reference's."""
        return 0 if self._tracker is None else self._tracker.ahead_ns(time.monotonic_ns())

    def record(self) -> dict[str, Any]:
        """As it stands in run.json."""
        return local_clock(self._source) if self._tracker is None else self._tracker.record()

    def close(self) -> None:
        """Follow no more."""
        if self._tracker is not None:
            self._tracker.close()


def tell_by_reference(what: Any, ahead_ns: int) -> None:
    """Put the moments in what an agent said, which are its host's, on the reference's clock."""
    if isinstance(what, Report):
        what.events = [(kind, begin + ahead_ns, end + ahead_ns, text) for kind, begin, end, text in what.events]
    elif isinstance(what, Result) and what.drained is not None:
        for name in ("opened_ns", "first_ns", "last_ns", "backlog_ns"):
            if moment_ns := getattr(what.drained, name):
                setattr(what.drained, name, moment_ns + ahead_ns)


def _best(samples: list[Sample]) -> Sample:
    return min(samples, key=lambda each: each.error_ns)


def _quick(samples: list[Sample]) -> list[Sample]:
    """Those that were about as quick as the better half: a line through them is bounded as well, and more closely."""
    limit_ns = 2 * median(each.error_ns for each in samples)
    return [each for each in samples if each.error_ns <= limit_ns]


def together(clocks: Mapping[str, dict[str, Any]], senders: set[str], receivers: set[str]) -> dict[str, Any]:
    """The clocks that the two ends of a latency were read from, as one record: that of the worst pair of ends.

    Args:
        clocks: the record of each worker's clock, all against one reference.
        senders: the workers that had producers; what they wrote is the latency's begin.
        receivers: those that had consumers. Between two workers both errors add up, within one there is none.
    """
    error_ns = READING_NS
    for sender, receiver in product(senders, receivers):
        ends = [clocks[sender], clocks[receiver]]
        if sender != receiver and any(each["samples"] for each in ends):
            error_ns = max(error_ns, sum(each["error_ns"] for each in ends))
    changed = [each["changed"] for each in clocks.values()]
    return {
        "source": ", ".join(sorted({each["source"] or "unknown" for each in clocks.values()})),
        "offset_ns": max((each["offset_ns"] for each in clocks.values()), key=abs),
        "error_ns": error_ns,
        "drift_ppm": max((each["drift_ppm"] or 0.0 for each in clocks.values()), key=abs),
        "samples": sum(each["samples"] for each in clocks.values()),
        "changed": True if True in changed else None if None in changed else False,
    }
