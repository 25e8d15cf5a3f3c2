"""Capacity search: which rate to try next, told by what the last one showed. Pure: it never touches a broker.

The capacity of a scenario is the highest offered rate that is *sustained*: carried within 1 % (what a stall at the
window's end counts for, `loadgen.facts.carries` says), with a backlog that does not grow, without errors, with the
objective kept, and with a generator that could have done more. It is found by

1. a short closed-loop burst, warmed like a trial of full length, which says where to look;
2. short open-loop probes, each at the rate that is as likely too much as not (`loadgen.stats.edge`): where chance
   decides, no single probe does, and one that does not fit the others is repeated by itself. A failure says less than a
   pass: a stall, a neighbour or a collection of garbage fails a rate that is carried otherwise;
3. one trial of full length, a little below the edge that they found, which alone is reported; where it fails, that
   is one more answer, and a little less is tried.

Probes and the trial of full length are held to the same rules. A probe that failed while something else used the
machine is tried once more, and so is one that did not run at all (an agent died, the broker was not there) or was too
short for a test of its backlog: that says nothing about the rate, and where it happens again the search cannot tell.
Where the generator was the limit, it gets more producers; where it cannot have them, the answer says so, and the
capacity is "at least".

A search has a time budget. When a further probe would leave no room for a trial of full length (and for another, should
it fail), the search goes on to that trial with what it knows: its bracket is as wide as it is, and `ended_by` says why.
Where all of those failed, one more takes the time that was kept for the tool's own ceiling, at the rate that came
through.

Who only wants to know whether there is room above a demand says which rate is `enough`: none above it is tried, and a
capacity of that rate is "at least".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loadgen.checks.timing import HELD_BACK_P99_SHARE
from loadgen.facts import CARRIED_SHARE, CORE_FULL_SHARE, came_through
from loadgen.flow import is_growing
from loadgen.record import end_to_end
from loadgen.stats.edge import Edge
from loadgen.verdict import BoundBy

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

START_SHARE = 0.85  # of the burst's rate: an open loop in small batches carries less than a closed one
START_SHARE_OBJECTIVE = 0.6  # … and a latency objective is met well below saturation
SPREAD = 1.12  # how much may stay open: 80 % of the belief about the edge within so much
PROBES_MOST = 14
CONFIRM_SHARE = 0.97  # of the edge, where half of all trials fail
CONFIRMS_MOST = 4
RETRIES = 2
FAILURES = 1  # how often a trial that told nothing is tried again
LATE = "schedule lag"
DISTURBANCES = frozenset({"stolen CPU", "other programs", "CPU frequency", "swap"})

Step = Literal["burst", "probe", "confirm"]
Room = Literal[Step, "last"]
"""What there is to be time for; `last`: one more trial of full length, at the ceiling's expense."""
Limit = BoundBy | Literal["objective"]
End = Literal["resolution", "probes", "budget", "failed", "enough"]
"""Why a search looked no further: it knows the edge well enough, it has probed enough, its time is up, trials did not
run, or the rate that is enough was sustained."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What to measure next; a burst has no rate."""

    step: Step
    rate_msgs_per_s: float | None
    producers: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What a probe showed: `limit` is what bounded it where it was not sustained, `why` says how one knows."""

    rate_msgs_per_s: float
    sustained: bool
    why: str
    limit: Limit = "unknown"
    disturbed: bool = False
    is_client_full: bool = False
    """A client's thread used up its core: it may not have been able to do more."""
    is_producer_full: bool = False
    """… a producer's, so that more producers would help."""
    has_run: bool = True
    """Whether the trial came to its end and could be judged: one that could not says nothing about the rate."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The answer. `rate_msgs_per_s` was sustained over a full trial, `high_msgs_per_s` was not (None: never reached).

    `is_lower_bound` says that no rate above was shown to be too much for the broker. `ended_by` is "budget" where there
    was no time to look more closely.
    """

    rate_msgs_per_s: float | None
    high_msgs_per_s: float | None
    producers: int
    bound_by: Limit
    is_lower_bound: bool
    reason: str
    ended_by: End = "resolution"


def search(
    producers: int,
    producers_most: int,
    *,
    has_objective: bool,
    has_time: Callable[[Room], bool] = lambda _: True,
    enough_msgs_per_s: float | None = None,
) -> Generator[Probe, Seen, Capacity]:
    """Yield what to measure, take what was seen, return the capacity (rates in messages/s, all producers together).

    `has_time` tells whether the budget has room for a step and for those that must come after it. No rate above
    `enough_msgs_per_s` is tried.
    """
    state = _Search(producers, producers_most, has_time, enough_msgs_per_s or math.inf)
    try:
        burst = yield from state.measured("burst", None)
        while burst.is_producer_full and state.has_more_producers and has_time("burst"):
            state.add_producers()
            burst = yield from state.measured("burst", None)
        if burst.rate_msgs_per_s <= 0:
            return Capacity(None, None, state.producers, burst.limit, False, f"nothing came through: {burst.why}")
        state.begin(burst.rate_msgs_per_s * (START_SHARE_OBJECTIVE if has_objective else START_SHARE), burst)
        yield from state.bracket()
        if not state.passed and state.ended_by != "budget":
            why = f"no rate was sustained: {state.failed.why}"
            return Capacity(None, state.high, state.producers, state.failed.limit, False, why, state.ended_by)
        return (yield from state.confirm())
    except _CannotTellError as failure:
        why = f"cannot tell: {failure}"
        return Capacity(None, None, state.producers, "unknown", False, why, "failed")


class _CannotTellError(Exception):
    """A trial told nothing, nor did its repetition: nothing is known of its rate."""


class _Search:
    """What a search knows so far: which rates passed, which failed and why, and where the edge is believed to be."""

    def __init__(self, producers: int, most: int, has_time: Callable[[Room], bool], enough: float) -> None:
        self.producers, self._most, self._has_time, self._enough = producers, most, has_time, enough
        self.passed: list[float] = []
        self._fails: list[tuple[float, Seen]] = []
        self.ended_by: End = "probes"
        self._disturbances = RETRIES

    def begin(self, guess: float, burst: Seen) -> None:
        """Where to look first; of what limits it, a burst says all that is known."""
        self._edge, self.failed = Edge(guess), burst

    @property
    def has_more_producers(self) -> bool:
        """Whether the generator may be given more."""
        return self.producers < self._most

    def add_producers(self) -> None:
        """Twice as many."""
        self.producers = min(self._most, 2 * self.producers)

    @property
    def high(self) -> float | None:
        """The lowest rate that failed; None where none did."""
        return min((rate for rate, _ in self._fails), default=None)

    def measured(self, step: Step, rate: float | None) -> Generator[Probe, Seen, Seen]:
        """Measure; what told nothing is tried again, once and where there is time."""
        for _ in range(FAILURES):
            seen = yield Probe(step, rate, self.producers)
            if seen.has_run:
                return seen
            if not self._has_time(step):
                raise _CannotTellError(f"there was no time to repeat the {step} that told nothing: {seen.why}")
        seen = yield Probe(step, rate, self.producers)
        if not seen.has_run:
            raise _CannotTellError(f"a {step} told nothing, nor did its repetition: {seen.why}")
        return seen

    def bracket(self) -> Generator[Probe, Seen, None]:
        """Probe until the edge is known well enough, or for as long as there is time."""
        for _ in range(PROBES_MOST):
            if not self._has_time("probe"):
                self.ended_by = "budget"
                return
            rate = min(self._edge.at(0.5), self._enough)
            seen = yield from self.measured("probe", rate)
            if self._is_chance(seen):
                continue
            if not seen.sustained and seen.is_producer_full and self.has_more_producers:
                self.add_producers()
                self._edge, self._fails = Edge(rate), []
                for each in self.passed:
                    self._edge.saw(each, passed=True)
                continue
            self._enter(rate, seen)
            if seen.sustained and rate == self._enough:
                self.ended_by = "enough"
                return
            if self.passed and self._fails and self._edge.spread <= SPREAD:
                self.ended_by = "resolution"
                return

    def confirm(self) -> Generator[Probe, Seen, Capacity]:
        """A trial of full length a little below the edge, or a little below that."""
        rate, carried, attempt = self._edge.at(0.5) * CONFIRM_SHARE, 0.0, 0
        rate = self._enough if self.ended_by == "enough" else min(rate, self._enough)
        while attempt < CONFIRMS_MOST:
            if not self._has_time("confirm"):
                self.ended_by = "budget"
                if not carried or not self._has_time("last"):
                    break
                # Full trials met what no probe is long enough to meet: what came through of the best one is possible.
                rate, attempt = CONFIRM_SHARE**2 * min(rate, carried), CONFIRMS_MOST
            seen = yield from self.measured("confirm", rate)
            if seen.sustained:
                return self._answer(rate, seen)
            if self._is_chance(seen):
                continue
            attempt += 1
            self._enter(rate, seen)
            # One that failed may have met a bad moment: little less at first, and more each time.
            rate = CONFIRM_SHARE**attempt * min(rate, self._edge.at(0.5))
            carried = max(carried, seen.rate_msgs_per_s)
        return self._answer(None, self.failed)

    def _is_chance(self, seen: Seen) -> bool:
        """Whether it failed while something else used the machine, which is forgiven now and then."""
        if seen.sustained or not seen.disturbed or not self._disturbances:
            return False
        self._disturbances -= 1
        return True

    def _enter(self, rate: float, seen: Seen) -> None:
        self._edge.saw(rate, passed=seen.sustained)
        if seen.sustained:
            self.passed.append(rate)
        else:
            self._fails.append((rate, seen))
            self.failed = seen

    def _answer(self, rate: float | None, confirming: Seen) -> Capacity:
        """The capacity, where a trial of full length sustained it; without one there is none."""
        above = min((each for each in self._fails if each[0] > (rate or 0.0)), key=lambda each: each[0], default=None)
        if above is not None:
            self.failed = above[1]
        failed = self.failed
        if rate is None:
            reason = f"no full trial sustained it: {failed.why}"
        else:
            reason = "no higher rate failed" if above is None else failed.why
        if self.ended_by == "budget":
            reason = f"budget used up; {reason}"
        is_lower = rate is not None and (above is None or failed.limit == "generator" or confirming.is_client_full)
        high = None if above is None else above[0]
        if rate == self._enough:
            reason = f"it carried {rate:,.0f} msg/s, and no more was asked about"
            return Capacity(rate, high, self.producers, "offered", True, reason, "enough")
        if self.ended_by == "enough":  # a probe carried as much, and the trial of full length did not
            self.ended_by = "resolution"
        return Capacity(rate, high, self.producers, failed.limit, is_lower, reason, self.ended_by)


@dataclass(frozen=True, slots=True)
class Objection:
    """What speaks against an offered rate having been sustained, in words, which may be of another thing than the rate.

    `is_late`: that messages left late. `is_untested`: that too little was seen to tell.
    """

    text: str
    is_late: bool = False
    is_untested: bool = False


def seen_in(
    record: Mapping[str, Any], p99_ms: float | None = None, fan_out: int = 1, *, is_confirming: bool = False
) -> Seen:
    """What a finished trial's record says to the search.

    Args:
        record: a complete trial's, judged.
        p99_ms: the objective on the end-to-end response time.
        fan_out: how often each message is to be received. Rates are those of producing, `fan_out` times as many come.
        is_confirming: whether the trial is the one that is reported, which must not be invalid for anything.
    """
    achieved = (record["goodput_msgs_per_s"] or 0.0) / fan_out
    verdict = record["verdict"]
    limit: Limit = verdict["bound_by"] if verdict["bound_by"] != "offered" else "unknown"
    shares = (record.get("observer") or {}).get("agent_core_share_max") or {}
    full = {role for role in ("producers", "consumers") if (shares.get(role) or 0.0) >= CORE_FULL_SHARE}
    offered = record["offered_msgs_per_s"]
    if offered is None:
        found: Objection | None = Objection("a closed loop")
    else:
        found = against(record, achieved, offered, fan_out)
        if found is None:
            found = _invalid(verdict, is_catching_up=not is_confirming and achieved > (1 + CARRIED_SHARE) * offered)
            limit = _limit_of_late(verdict) if found and found.is_late else limit
        if found is None and p99_ms is not None:
            found = _missed(record, offered, p99_ms)
            limit = _limit_of_missed(record, p99_ms) if found else limit
    if found is not None and found.is_untested:
        return Seen(achieved, False, found.text, has_run=False)
    why = found.text if found else f"carried {achieved:,.0f} of {offered or 0:,.0f} msg/s"
    return Seen(achieved, found is None, why, limit, is_disturbed(verdict), bool(full), "producers" in full)


def latency_limit(record: Mapping[str, Any]) -> Literal["host", "generator"] | None:
    """Who else than the broker had a part in a trial's response times; None where nobody is known to.

    The machine where all of its CPU was used up, the clients where they were late or had a core full.
    """
    found = {each["name"]: each["passed"] for each in record["verdict"].get("checks", ())}
    if found.get("host CPU", True) is not True:
        return "host"
    if found.get("generator CPU", True) is not True or found.get(LATE, True) is not True:
        return "generator"
    return None


def is_disturbed(verdict: Mapping[str, Any]) -> bool:
    """Whether something else than the trial used the machine meanwhile."""
    return any(
        each["passed"] is None and each.get("weighs", True) and each["name"] in DISTURBANCES
        for each in verdict.get("checks", ())
    )


def against(record: Mapping[str, Any], achieved: float, offered: float, fan_out: int) -> Objection | None:
    """What the counters say against an offered rate (messages/s) having been sustained, or None.

    `achieved` is what came through of it, `fan_out` how often each message was to be received.
    """
    at = f"at {offered:,.0f} msg/s"
    errors = {name: count for name, count in record["errors"].items() if name != "unsent"}
    if errors:
        return Objection(f"{at}: {', '.join(f'{count:,} {name}' for name, count in errors.items())}")
    if not came_through(record, achieved, fan_out):
        least = min(achieved, record.get("sent_msgs_per_s") or achieved)
        return Objection(f"{at} only {least:,.0f} msg/s came through")
    growth = record.get("under_way") or {}
    grown = is_growing(growth, offered * fan_out)
    if grown is None:
        few = f"{at} there were {growth['samples']} samples of the backlog, too few to test its slope"
        return Objection(few, is_untested=True)
    if grown:
        return Objection(f"{at} the backlog grew by {growth['slope_msgs_per_s']['estimate']:,.0f} msg/s")
    return None


def _missed(record: Mapping[str, Any], offered: float, p99_ms: float) -> Objection | None:
    """How the objective was missed, or None."""
    p99_ns = (record["latency_ns"][end_to_end(record)] or {}).get("p99")
    if p99_ns is not None and p99_ns <= p99_ms * 1e6:
        return None
    seen = "not known" if p99_ns is None else f"{p99_ns / 1e6:.2f} ms"
    text = f"at {offered:,.0f} msg/s the p99 was {seen}, over {p99_ms:g} ms"
    limit = _limit_of_missed(record, p99_ms)
    lag_ns = (record["latency_ns"].get("schedule_lag") or {}).get("p99")
    if limit == "objective" or lag_ns is None:
        return Objection(text)
    return Objection(f"{text}, with messages sent {lag_ns / 1e6:.2f} ms late (p99)")


def _limit_of_missed(record: Mapping[str, Any], p99_ms: float) -> Limit:
    """Whose limit a missed objective is: the broker's (`objective`) only where neither clients nor host had a part.

    The generator has one where it was late, where one of its threads had its core full, and where messages kept the
    objective from the moment when they were really sent. It is not late where the broker held it back.
    """
    others = latency_limit(record)
    if others is not None:
        return others
    service_ns = (record["latency_ns"].get("e2e_service") or {}).get("p99")
    is_held_back = (record.get("blocked_share") or 0.0) >= HELD_BACK_P99_SHARE
    return "generator" if service_ns is not None and service_ns <= p99_ms * 1e6 and not is_held_back else "objective"


def _limit_of_late(verdict: Mapping[str, Any]) -> Limit:
    """Whose limit a late schedule is: the machine's where all of it was used up, else the generator's."""
    host = [each["passed"] for each in verdict.get("checks", ()) if each["name"] == "host CPU"]
    return "host" if None in host else "generator"


def _invalid(verdict: Mapping[str, Any], *, is_catching_up: bool) -> Objection | None:
    """What the verdict has against the trial, or None.

    A probe may be late where more came through than was due: it is making up for its own start, which a longer
    warm-up would have hidden, and so has carried more than its rate.
    """
    failed = [each for each in verdict.get("checks", ()) if each["passed"] is False]
    for each in failed:
        if not is_catching_up or each["name"] != LATE:
            return Objection(f"{each['name']}: {each['reason']}", is_late=each["name"] == LATE)
    return None
