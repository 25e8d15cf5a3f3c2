"""How many messages were under way, seen from outside: the shared counters read some twenty times a second.

A message is under way once for each subscriber that is to have it.

No agent takes part in it, and no latency: what it says of a trial's backlog, of Little's law and of whether a trial
was steady is independent of what the histograms say. (Where few messages were under way, response times must tell the
last.) A message is under way from the moment it was handed to the client until the consumer's code has it.
"""

from __future__ import annotations

import math
import random
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.agent import SECOND_NS
from loadgen.board import Cell
from loadgen.record import end_to_end
from loadgen.stats.queueing import little
from loadgen.stats.steady import DRIFT_SHARE, shift, steady_state
from loadgen.stats.trend import slope

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from loadgen.board import Board

    Float64 = npt.NDArray[np.float64]

SAMPLES_MAX = 200_000  # a window of days is sampled less often, so that no trial needs more memory than that
TURN_S = (0.027, 0.067)  # the shortest and the longest that the counters are left alone
SAMPLE_NS = 25_000_000  # who reads the counters turns more often while agents report
GRID_NS = 50_000_000  # several workers' counters are laid over each other at such steps
CUT_SHARE = 0.05  # what is measured too early is left out where it differs by more than repeats do
CUT_LATENCY_SHARE = 0.5  # … of a number under way, which varies far more than a rate
CAUGHT_UP_S = 0.1  # two readings of the counters
FEW_MSGS = 20  # of so few under way every change is chance, and none is a backlog
GAUGE_SHARE = 0.02  # of the time in the system: as far as counters that batches move may be off (seen: 0.8 %)
GROWTH_SHARE = 0.01  # a backlog that grows by less than 1 % of the rate is one that the rate's own test allows
RANDOM = random.Random()  # noqa: S311 - when to look is no secret


def turn_s() -> float:
    """How long to wait until the counters are read again, in s: 47 ms on average, and never the same.

    What goes round in a time of its own (a window of confirms in 45 ms, commits and linger in 10, 50 or 100) would be
    read in step by regular readings, at one height for seconds on end. Random ones see each phase as often as it is
    there (H. Shapiro and R. Silverman, "Alias-free sampling of random noise", Journal of SIAM 8, 1960).
    """
    return RANDOM.uniform(*TURN_S)


@dataclass(frozen=True, slots=True)
class Settled:
    """What the flow says of a finished trial.

    `cut_s` whole seconds of the planned window come before it was steady; `steady` is None where the data cannot tell.
    That `weighs`, but where so little was sent that no such trial could tell.
    """

    cut_s: int
    steady: bool | None
    reason: str
    weighs: bool = True


class Flow:
    """Samples of (monotonic ns, messages sent to all subscribers, messages received), and what follows from them."""

    def __init__(self, subscribers: int = 1, skipped: int = 0, length_s: float = 0.0) -> None:
        self._step_ns = max(SAMPLE_NS, round(length_s * SECOND_NS / SAMPLES_MAX))
        self._subscribers, self._skipped = subscribers, skipped  # so many of those sent nobody is to receive
        self._at_ns, self._sent, self._received = array("q"), array("q"), array("q")

    def sample(self, board: Board, now_ns: int) -> None:
        """Note the counters, unless they were noted just before."""
        if self._at_ns and now_ns - self._at_ns[-1] < self._step_ns:
            return
        # Received first: what arrives between the two readings would make the number under way negative.
        received = board.total(Cell.RECEIVED)
        self.enter(now_ns, board.total(Cell.SENT), received)

    def enter(self, at_ns: int, sent: int, received: int) -> None:
        """Note the counters as they were read at this moment."""
        self._sent.append((sent - self._skipped) * self._subscribers)
        self._received.append(received)
        self._at_ns.append(at_ns)

    def overlay(self, flows: Mapping[str, npt.NDArray[np.int64]]) -> None:
        """Note the sum of several workers' counters: as they are where there is one, else read at common moments.

        Args:
            flows: of each worker (monotonic ns, sent, received) as int64[n, 3], n ≥ 1.
        """
        whole = list(flows.values())
        if len(whole) == 1:
            for at_ns, sent, received in whole[0].tolist():
                self.enter(at_ns, sent, received)
        if len(whole) < 2:
            return
        begin_ns, end_ns = min(int(each[0, 0]) for each in whole), max(int(each[-1, 0]) for each in whole)
        grid = np.arange(begin_ns, end_ns, GRID_NS)
        sums = [
            sum(np.interp(grid - begin_ns, each[:, 0] - begin_ns, each[:, column], left=0) for each in whole)
            for column in (1, 2)
        ]
        for at_ns, sent, received in zip(
            grid.tolist(), *(np.rint(each).astype(int).tolist() for each in sums), strict=True
        ):
            self.enter(at_ns, sent, received)

    def between(self, begin_ns: int, end_ns: int) -> tuple[Float64, Float64, Float64]:
        """The samples in [begin, end): seconds since `begin_ns`, sent, received, each float64[n]."""
        at_ns = np.array(self._at_ns, np.int64)
        inside = (at_ns >= begin_ns) & (at_ns < end_ns)
        at_s = (at_ns[inside] - begin_ns) / SECOND_NS
        return at_s, np.array(self._sent, np.float64)[inside], np.array(self._received, np.float64)[inside]

    def settled(
        self, start_ns: int, warmup_s: float, duration_s: float, *, consumed: bool, is_open: bool, levels_ns: Float64
    ) -> Settled:  # fmt: skip
        """Where the trial became steady: by its rate in a closed loop, by the number under way in an open one.

        The scenario's warm-up is the floor. At most the first half of the measured window is given up, in whole
        seconds, and only where what happened in it really differs from the rest.
        Of few messages under way every change is chance: there response times are looked at (`levels_ns`, float[n], of
        parts of the measured window in their order).
        """
        at_s, sent, received = self.between(start_ns, start_ns + round((warmup_s + duration_s) * SECOND_NS))
        if len(at_s) < 3 or (is_open and not consumed):
            return Settled(0, None, "too little was seen to tell" if consumed else "nobody consumed")
        if is_open:
            times_s, values = at_s, sent - received
            if values[times_s >= warmup_s].mean() < FEW_MSGS:
                return _by_response_times(levels_ns)
        else:
            times_s, values = at_s[1:], np.diff(received if consumed else sent) / np.diff(at_s)
        limit = CUT_LATENCY_SHARE if is_open else CUT_SHARE
        found = steady_state(times_s, values, warmup_s, share=max(limit, DRIFT_SHARE))
        cut_s = math.ceil(found.warmup_s - warmup_s - 1e-9)
        if cut_s <= 0 or found.steady is False:
            return Settled(0, found.steady, found.reason)
        early = values[(times_s >= warmup_s) & (times_s < warmup_s + cut_s)]
        rest = values[times_s >= warmup_s + cut_s]
        differs = len(early) and len(rest) and abs(early.mean() - rest.mean()) > limit * max(1.0, rest.mean())
        if not differs:
            return Settled(0, found.steady, found.reason)
        if cut_s > duration_s / 2:
            left_in = f"what comes before differs, and {cut_s} s of it are over half of the window"
            return Settled(0, False, f"{found.reason}; {left_in}")
        return Settled(cut_s, found.steady, f"{found.reason}; {cut_s} s more than planned were left out")

    def summary(self, begin_ns: int, window_s: float) -> dict[str, Any]:
        """The number under way in the measured window: mean, largest, and its slope with a 95 % interval."""
        at_s, sent, received = self.between(begin_ns, begin_ns + round(window_s * SECOND_NS))
        if len(at_s) < 3:
            return {}
        under_way = sent - received
        trend = slope(at_s, under_way)
        assert trend.per_s is not None, "two samples have a slope"
        return {
            "mean_msgs": float(under_way.mean()),
            "max_msgs": int(under_way.max()),
            "slope_msgs_per_s": {"estimate": trend.per_s, "low": trend.low, "high": trend.high},
            "samples": len(at_s),
        }

    def caught_up_ns(self, begin_ns: int, end_ns: int, offered_msgs_per_s: float) -> int | None:
        """The first moment at which no more was under way than comes in `CAUGHT_UP_S`; None: never before the end."""
        at_s, sent, received = self.between(begin_ns, end_ns)
        few = max(FEW_MSGS, CAUGHT_UP_S * offered_msgs_per_s) * self._subscribers
        reached = np.flatnonzero((sent - received <= few) & (received > 0))
        return begin_ns + round(float(at_s[reached[0]]) * SECOND_NS) if len(reached) else None

    def received_by(self, begin_ns: int, end_ns: int) -> int:
        """How many messages had been received when the counters were last read before the end."""
        received = self.between(begin_ns, end_ns + 1)[2]
        return int(received[-1]) if len(received) else 0

    def little(self, record: Mapping[str, Any], begin_ns: int) -> tuple[bool | None, str, bool]:
        """Whether Little's law holds between this gauge, the rate and the mean service time; None: cannot tell.

        Beside it what was seen, and whether that casts doubt where it cannot tell: they differ, perhaps by chance.
        """
        service = record["latency_ns"][end_to_end(record, "_service")]
        rate, window_s = record["achieved_msgs_per_s"], record["window_s"]
        if not service or not rate:
            return None, "no end-to-end service times", False
        if record.get("lost") or record.get("duplicated") or (record.get("requests") or {}).get("timed_out"):
            return None, "lost or duplicated messages never leave the gauge, or leave it twice", False
        at_s, sent, received = self.between(begin_ns, begin_ns + round(window_s * SECOND_NS))
        if len(at_s) < 3:
            return None, "too little was seen to tell", False
        # A batch is counted when all of it has been taken, its latencies end where it was parsed.
        skew_s = max((record["resolution_ns"]["p50"] or 0) / SECOND_NS, GAUGE_SHARE * service["mean"] / SECOND_NS)
        found = little(rate, service["mean"] / SECOND_NS, at_s, sent - received, skew_s=skew_s)
        return found.agrees, found.reason, found.is_doubted


def _by_response_times(levels_ns: Float64) -> Settled:
    """Whether a trial with few messages under way was steady: whether the halves of its window were as slow."""
    found = shift(levels_ns, CUT_LATENCY_SHARE)
    steady = None if found.drifted is None else not found.drifted
    reason = f"fewer than {FEW_MSGS} messages under way on average; of response times, {found.reason}"
    return Settled(0, steady, reason, weighs=found.change is not None)


def is_growing(summary: Mapping[str, Any], offered_msgs_per_s: float) -> bool | None:
    """Whether a backlog grew: the interval of its slope lies above 0, and the slope above a share of the rate.

    None where its samples are too few for an interval: windows of under a second have no more. Where nothing was
    gauged (an empty summary), nothing grew.
    """
    trend = summary.get("slope_msgs_per_s")
    if not trend:
        return False
    if trend["low"] is None:
        return None
    return bool(trend["low"] > 0 and trend["estimate"] > GROWTH_SHARE * offered_msgs_per_s)


def is_level(summary: Mapping[str, Any], offered_msgs_per_s: float) -> bool:
    """Whether a backlog's slope was tested (`is_growing`) and is not one of growth; what nobody gauged is not level."""
    return bool(summary.get("slope_msgs_per_s")) and is_growing(summary, offered_msgs_per_s) is False
