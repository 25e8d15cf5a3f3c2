"""How far apart two hosts' clocks are, by round trips, with an error that is a bound and not a guess.

One request gives four times: sent and returned by the client's clock, received and answered by the reference's. Half
the difference of the two ways is the offset, and however uneven the ways were, it errs by at most half of the time
spent on them (F. Cristian, "Probabilistic clock synchronization", Distributed Computing 3, 1989; D. Mills et al.,
RFC 5905, 2010, section 8). So the quickest of many round trips are the best ones, as in NTP's clock filter (Mills,
"Internet time synchronization: the Network Time Protocol", IEEE Trans. Communications 39, 1991).

Clocks drift apart by microseconds a second. Take samples before a run, during it and after it: a line through the best
of each time follows the drift, its slope the median of all pairs' slopes (P. Sen, "Estimates of the regression
coefficient based on Kendall's tau", JASA 63, 1968). At each best sample the line errs by no more than its distance from
the sample and the sample's own bound; between samples a steady drift errs by no more than at the worse of the two.
All times are CLOCK_MONOTONIC in ns: `to_reference` turns one host's into the reference's.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import threading
import time
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING, Any, Self

from loadgen.errors import HostError
from loadgen.host import SYS, clock_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from types import TracebackType

BEST_OF = 16
"""The time from the first to the last sample is cut into so many parts; of each the quickest round trip is used."""
RATE_ERROR_MAX = 1e-3
"""Two clocks run at rates that differ by less: the kernel slews each by at most 500 ppm (include/linux/timex.h)."""
READING_NS = 2
"""Rounding of the halves, and of readings to whole nanoseconds."""
TIMEOUT_S = 0.5
SPACING_S = 0.002
"""Between the round trips of a burst, so that a queue in the network has time to empty."""

_MAGIC = b"lgclock1"
_MESSAGE = struct.Struct(
    "!8sQqq"
)  # magic, number of the request, received, answered; an answer is as long as a request


@dataclass(frozen=True, slots=True)
class Sample:
    """One round trip: sent and returned by the client's clock, received and answered by the reference's."""

    sent_ns: int
    received_ns: int
    answered_ns: int
    returned_ns: int

    @property
    def at_ns(self) -> int:
        """The client's time that the offset belongs to."""
        return (self.sent_ns + self.returned_ns) // 2

    @property
    def offset_ns(self) -> int:
        """The reference's clock minus the client's."""
        return (self.received_ns - self.sent_ns + self.answered_ns - self.returned_ns) // 2

    @property
    def error_ns(self) -> float:
        """The offset errs by no more, whatever the two ways took: half of both, and what the clocks drift meanwhile."""
        took_ns = self.returned_ns - self.sent_ns
        on_the_way_ns = max(0, took_ns - (self.answered_ns - self.received_ns))
        return on_the_way_ns / 2 + RATE_ERROR_MAX * took_ns + READING_NS


@dataclass(frozen=True, slots=True)
class ClockFit:
    """The reference's clock minus this host's, as a line over time: `offset_ns` at `at_ns`, changing by `drift_ppm`.

    `error_ns` bounds the offset's error between the first and the last sample, where the drift is steady; it is no
    bound outside. `drift_ppm` is None, and taken for 0, where the samples are too close in time to tell.
    """

    at_ns: int
    offset_ns: int
    drift_ppm: float | None
    error_ns: int
    samples: int

    def offset_ns_at(self, ns: int) -> int:
        """What to add to this host's time `ns`."""
        return self.offset_ns + round((self.drift_ppm or 0.0) * 1e-6 * (ns - self.at_ns))

    def to_reference(self, ns: int) -> int:
        """This host's time on the reference's clock."""
        return ns + self.offset_ns_at(ns)

    def from_reference(self, ns: int) -> int:
        """The reference's time on this host's clock."""
        since_ns = ns - self.offset_ns - self.at_ns
        return self.at_ns + since_ns - round(since_ns * (1 - 1 / (1 + (self.drift_ppm or 0.0) * 1e-6)))

    def record(self, sys_root: Path = SYS) -> dict[str, Any]:
        """As it stands in run.json; `offset_ns` is that of the middle of the samples."""
        return {
            "source": clock_source(sys_root),
            "offset_ns": self.offset_ns,
            "error_ns": self.error_ns,
            "drift_ppm": self.drift_ppm,
            "samples": self.samples,
            "changed": None,
        }


def local_clock(source_before: str | None = None, sys_root: Path = SYS) -> dict[str, Any]:
    """The record of a clock that is its own reference: no offset, and the error is its resolution.

    Args:
        source_before: the kernel's clock source when the run began, to tell whether it was changed since.
        sys_root: where the kernel's readings are.
    """
    source = clock_source(sys_root)
    return {
        "source": source,
        "offset_ns": 0,
        "error_ns": max(1, round(time.clock_getres(time.CLOCK_MONOTONIC) * 1e9)),
        "drift_ppm": 0.0,
        "samples": 0,
        "changed": None if None in {source, source_before} else source != source_before,
    }


def fit(samples: Iterable[Sample]) -> ClockFit:
    """The line through the best samples of each part of the time; raises ValueError where there is no sample."""
    given = sorted(samples, key=lambda each: each.at_ns)
    if not given:
        raise ValueError("no round trip to estimate a clock's offset from")
    best = _best(given)
    at_ns, zero_ns = (best[0].at_ns + best[-1].at_ns) // 2, best[0].offset_ns
    # Differences first, as integers: nanoseconds since two boots have more digits than a float.
    points = [(each.at_ns - at_ns, each.offset_ns - zero_ns) for each in best]
    slope = 0.0
    if len(best) > 1:
        slope = median((y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in combinations(points, 2))
        slope = max(-RATE_ERROR_MAX, min(RATE_ERROR_MAX, slope))
    level = median(y - slope * x for x, y in points)
    errors_ns = [abs(y - level - slope * x) + each.error_ns for (x, y), each in zip(points, best, strict=True)]
    first_ns, last_ns = given[0].at_ns - at_ns, given[-1].at_ns - at_ns
    reach_ns = _reach_ns(first_ns, last_ns, points, errors_ns)
    return ClockFit(
        at_ns=at_ns,
        offset_ns=zero_ns + round(level),
        drift_ppm=slope * 1e6 if len(best) > 1 else None,
        error_ns=round(max(*errors_ns, reach_ns) + READING_NS),
        samples=len(given),
    )


def _best(given: list[Sample]) -> list[Sample]:
    """Of each part of the time the sample with the smallest bound, in order of time."""
    begin_ns, length_ns = given[0].at_ns, given[-1].at_ns - given[0].at_ns
    parts: dict[int, Sample] = {}
    for each in given:
        part = (each.at_ns - begin_ns) * BEST_OF // (length_ns + 1)
        if part not in parts or each.error_ns < parts[part].error_ns:
            parts[part] = each
    best = sorted(parts.values(), key=lambda each: each.at_ns)
    return [each for index, each in enumerate(best) if not index or each.at_ns > best[index - 1].at_ns]


def _reach_ns(first_ns: int, last_ns: int, points: list[tuple[int, int]], errors_ns: list[float]) -> float:
    """The bound at the first and the last sample, which need not be among the best.

    The line minus the truth is itself a line, whose values at the first and last of the best samples are bounded; of
    a single sample only the difference of the rates is known.
    """
    (x0, _), (x1, _) = points[0], points[-1]
    if x0 == x1:
        return errors_ns[0] + RATE_ERROR_MAX * max(x0 - first_ns, last_ns - x0)
    shares = [(x - x0) / (x1 - x0) for x in (first_ns, last_ns)]
    return max(abs(1 - share) * errors_ns[0] + abs(share) * errors_ns[-1] for share in shares)


class ClockServer:
    """Tells its clock to whoever asks, from a thread of its own: the reference; use it as a context manager.

    Args:
        host: the address to listen on; other hosts need one that they reach.
        port: a UDP port; 0 takes a free one (`address` tells which).
        clock: what it tells.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._socket = _socket(host, port, listening=True)
        self._socket.settimeout(0.1)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="clock-server", daemon=True)
        self._thread.start()

    def _answer(self) -> None:
        while not self._stopping.is_set():
            try:
                request, sender = self._socket.recvfrom(_MESSAGE.size + 1)
            except OSError:  # nothing for a while, or an answer that found nobody
                continue
            received_ns = self._clock()
            if len(request) != _MESSAGE.size or not request.startswith(_MAGIC):
                continue
            number = _MESSAGE.unpack(request)[1]
            with contextlib.suppress(OSError):
                self._socket.sendto(_MESSAGE.pack(_MAGIC, number, received_ns, self._clock()), sender)

    def close(self) -> None:
        """Stop answering."""
        self._stopping.set()
        self._thread.join()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ClockClient:
    """Asks a `ClockServer`; `clock` is this host's. Keep it for a run: `samples` are all that were taken so far."""

    def __init__(self, address: tuple[str, int], clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.samples: list[Sample] = []
        self._address = address
        self._clock = clock
        self._socket = _socket(*address, listening=False)

    def sample(self, n: int, timeout_s: float = TIMEOUT_S) -> list[Sample]:
        """Take n round trips and return those that were answered; HostError where none was."""
        taken = [sample for _ in range(n) if (sample := self._round_trip(timeout_s)) is not None]
        if not taken:
            host, port = self._address
            raise HostError(
                f"clock of {host}, UDP port {port}: no answer to {n} requests; expected one within {timeout_s:g} s: "
                "does it run, and does a firewall let it through?"
            )
        self.samples += taken
        return taken

    def fit(self) -> ClockFit:
        """The line through all samples so far."""
        return fit(self.samples)

    def _round_trip(self, timeout_s: float) -> Sample | None:
        number = secrets.randbits(64)
        request = _MESSAGE.pack(_MAGIC, number, 0, 0)
        give_up_s = time.monotonic() + timeout_s
        try:
            sent_ns = self._clock()
            self._socket.send(request)
            while (left_s := give_up_s - time.monotonic()) > 0:
                self._socket.settimeout(left_s)
                answer = self._socket.recv(_MESSAGE.size + 1)
                returned_ns = self._clock()
                if len(answer) != _MESSAGE.size or not answer.startswith(_MAGIC):
                    continue
                _, answered, received_ns, answered_ns = _MESSAGE.unpack(answer)
                if answered == number:  # else a late answer to an earlier request
                    time.sleep(SPACING_S)
                    return Sample(sent_ns, received_ns, answered_ns, returned_ns)
        except OSError:  # no answer in time, or nobody listens
            time.sleep(SPACING_S)
        return None

    def close(self) -> None:
        """Ask no more."""
        self._socket.close()


def _socket(host: str, port: int, *, listening: bool) -> socket.socket:
    with contextlib.ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            made = stack.enter_context(socket.socket(family, kind, protocol))
            if listening:
                made.bind(address)
            else:
                made.connect(address)
        except OSError as error:
            what = "listened on" if listening else "asked"
            raise HostError(f"clock at {host}, UDP port {port}: cannot be {what}: {error.strerror or error}") from None
        stack.pop_all()
    return made


def in_words(clock: Mapping[str, Any], whose: str) -> str:
    """Another host's clock (a record as of `Tracker.record`) for people: how far it is from `whose`, how exactly."""
    drift = "" if clock["drift_ppm"] is None else f", drifts by {clock['drift_ppm']:+.1f} ppm"
    return f"{clock['offset_ns'] / 1e6:+,.3f} ms from {whose}, ± {clock['error_ns'] / 1e6:.3f} ms{drift}"
