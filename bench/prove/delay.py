"""A delay that is known for every message, put between a real broker and its consumer, and measured.

A proxy (`proxy`) passes on what the broker sends after a delay, and writes down of each message when it came from the
broker, when it left for the consumer, and when the consumer answered it. Without the delay, message i would have taken

    undelayedᵢ = (arrivedᵢ − intendedᵢ) + (answeredᵢ − releasedᵢ)

The answer stands for the receipt: an AMQP consumer acknowledges the message right after it has read its clock; a Kafka
consumer asks for more before it hands out what it has, and of a larger answer before it has parsed it. What lies
between is its own time and part of the response time, and no witness sees how long it is. The consumer says from when
to when it read (`readingᵢ`, up to 1 ms of it counts): by so much Kafka's may be more, and not less. So

    Rᵢ − undelayedᵢ     is compared, message by message, with     delayᵢ = releasedᵢ − arrivedᵢ

of which the measured response time Rᵢ is all that the consumer contributes. The percentiles of both, up to p99, may
differ by 2 % + 0.2 ms, and so may the two values of nearly all single messages. Since the proxy's times are the
kernel's, it does not matter how long a busy machine lets the consumer wait for a CPU: that delays both the receipt
and the answer.

Rᵢ is read in two ways that must agree: from the production's histogram, and from a log of its own of what the consumer
was handed (`trials.TappedConsumer`), which alone can be paired.

That comparison has the intended time on both sides, where it falls out. So it is held against what knows nothing of
it: the schedule, which is arithmetic (message j of a fixed rate λ is due at the trial's begin + j/λ, to a nanosecond),
and the proxy, past which no message may come before it is due. And every second message is not delayed:

    Rᵢ of a delayed message     is compared with     delayᵢ by the log  +  Rⱼ − holdⱼ of those that are not

at the median, p90 and p99, and message by message with the neighbour before it. Of the sum on the right the percentiles
are those of all pairs (i, j): a percentile of a sum is not the sum of percentiles. The allowed difference is 2 % +
0.2 ms, and what nobody can know of the undelayed path from so many messages: √2 of its percentile's own exact binomial
interval, since both sides have a sample of it; all of these intervals hold together at 99 % (Bonferroni), as one that
misses fails the proof. A tail of few messages is no better known than that.

"Not delayed" is held for 2 ms, and the delay comes on top. Without any hold the consumer wakes up in the same moment as
the broker and the producer, with whom it shares the CPUs, and the path is another one (seen: up to 0.5 ms longer),
which would be told as a delay that is too short. Delayed ones and others take turns in one trial, so that whatever the
machine does in the meantime is done to both.

Delays are independent of each other only where one message is in flight: TCP keeps the order, and a message that comes
while another is held back waits for that one too. Rates are so low that this is rare, and what counts for a message is
when it was really released, not what was drawn for it.

A trial in which the proxy itself overslept by half a millisecond more often than once in a hundred is repeated, twice
at most, and the least disturbed one counts, whatever its figures are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from loadgen.brokers import open_brokers
from loadgen.report.words import broker_name
from loadgen.scenario import Rate
from loadgen.stats.order import percentile_ranks
from prove.charts import KNOWN_COLOUR, SEEN_COLOUR, draw
from prove.proof import Proof, Row, Scale, at_least, near, same, within
from prove.proxy import SEQUENCE_MASK, Delay, Passage, proxied
from prove.trials import Measured, measure, trial_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from matplotlib.axes import Axes

    from loadgen.driver import Bool, Int64
    from loadgen.endpoint import BrokerName, Endpoint

TOLERANCE_SHARE, TOLERANCE_NS = 0.02, 200_000.0
# Between the two readings of the clock for one message, the driver's and the log's: Kafka's consumer asks for its next
# fetch there (0.08 to 0.09 ms, measured).
READING_NS: Mapping[BrokerName, float] = {"rabbitmq": 50_000.0, "kafka": 150_000.0}
LATE_NS, DISTURBED, ATTEMPTS = 500_000, 0.01, 3
PARSING_MOST_NS = 1_000_000  # of what a consumer says that it was reading, so much counts
ANSWERS_FIRST: frozenset[BrokerName] = frozenset({"kafka"})  # whose consumer answers before it reads its clock
HOLD_MS = 2.0
CONFIDENCE = 0.99  # of all percentiles of the undelayed path together
NS_PER_MS = 1e6
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Case:
    """One delay on one broker: fixed messages a second, so few that one is in flight."""

    broker: BrokerName
    name: str
    delay: Delay
    rate_msgs_per_s: float
    duration_s: float

    @property
    def title(self) -> str:
        """The case as rows name it."""
        return f"{broker_name(self.broker)}, {self.name}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Up to which percentile the two must agree, and how many of a hundred messages singly.

    `recorded` are the percentiles of all messages at which recorder and log must agree: none lies between those that
    were delayed and those that were not, where there is nothing to agree on.
    """

    percentiles: tuple[float, ...]
    recorded: tuple[float, ...]
    agreeing_percent: Mapping[BrokerName, float]


BOUNDS = {
    # A Kafka consumer that is interrupted between its answer and its clock is late by that, and nobody else knows.
    Scale.FULL: Bounds((50.0, 90.0, 99.0), (25.0, 75.0, 99.0), {"rabbitmq": 99.0, "kafka": 95.0}),
    # Of a few hundred messages on a machine that others take away for milliseconds, a p99 is one such moment.
    Scale.SMALL: Bounds((50.0,), (25.0,), {"rabbitmq": 80.0}),
}


@dataclass(frozen=True, slots=True)
class Paired:
    """The messages of one trial by all logs, paired by identity: int64[n] each, in ns.

    They are in the order in which they were due. `is_delayed` (bool[n]) tells those that the proxy was to delay from
    those that it only held, as it held all. `late_ns` is by how much the proxy itself overslept, `unpaired` how many
    messages only some of the logs have, `off_schedule` how many were due at another time than the schedule's, `early`
    how many came to the proxy before they were due, and `recorded_ns` are the recorder's response times at the
    percentiles asked for. `reading_ns` is for how long the consumer had been reading when it read its clock, where it
    had answered before that, else 0.
    """

    response_ns: Int64
    undelayed_ns: Int64
    delay_ns: Int64
    late_ns: Int64
    is_delayed: Bool
    unpaired: int
    recorded_ns: tuple[int, ...]
    reading_ns: Int64
    off_schedule: int = 0
    early: int = 0

    @property
    def measured_ns(self) -> Int64:
        """What each message was delayed according to its response time."""
        return self.response_ns - self.undelayed_ns

    @property
    def path_ns(self) -> Int64:
        """What the messages that were not delayed took beside their hold: the undelayed path."""
        return (self.response_ns - self.delay_ns)[~self.is_delayed]

    @property
    def beside_neighbours_ns(self) -> Int64:
        """Of each delayed message what it took beside its delay by the log, less what the one before it took so."""
        took_ns = self.response_ns - self.delay_ns
        follows = np.flatnonzero(self.is_delayed[1:] & ~self.is_delayed[:-1]) + 1
        return took_ns[follows] - took_ns[follows - 1]

    @property
    def disturbance(self) -> float:
        """The share of messages for which the proxy was late itself: what others do to the machine."""
        return float((self.late_ns > LATE_NS).mean())

    @property
    def agreeing_percent(self) -> float:
        """Of how many of a hundred messages the two delays agree singly."""
        off, allowed = self.measured_ns - self.delay_ns, TOLERANCE_SHARE * self.delay_ns + TOLERANCE_NS
        return float(((off >= -allowed) & (off <= allowed + self.reading_ns)).mean() * 100)


def cases(scale: Scale) -> list[Case]:
    """Both delays on both brokers; at small scale the fixed one on RabbitMQ."""
    fixed = Delay(5.0, hold_ms=HOLD_MS, every=2)
    random = replace(fixed, distribution="exponential", seed=7)
    if scale is Scale.SMALL:
        return [Case("rabbitmq", "fixed 5 ms on 2", fixed, 100, 3.0)]
    brokers: tuple[BrokerName, ...] = ("rabbitmq", "kafka")
    return [
        case
        for broker in brokers
        for case in (
            Case(broker, "fixed 5 ms on 2", fixed, 100, 20.0),
            Case(broker, "exponential, mean 5 ms on 2", random, 40, 40.0),
        )
    ]


def prove(scale: Scale) -> Proof:
    """Run every case."""
    chosen = cases(scale)
    with open_brokers("local", tuple(dict.fromkeys(case.broker for case in chosen))) as endpoints:
        found = {case: _least_disturbed(case, endpoints[case.broker], BOUNDS[scale]) for case in chosen}
    return compare(found, BOUNDS[scale])


def _least_disturbed(case: Case, endpoint: Endpoint, bounds: Bounds) -> Paired:
    """A trial in which the proxy, which only sleeps and wakes, was seldom kept from the CPU."""
    tried: list[Paired] = []
    while not tried or (tried[-1].disturbance > DISTURBED and len(tried) < ATTEMPTS):
        tried.append(measure_case(case, endpoint, bounds.recorded))
    return min(tried, key=lambda paired: paired.disturbance)


def measure_case(case: Case, endpoint: Endpoint, percentiles: tuple[float, ...]) -> Paired:
    """One trial through a proxy."""
    trial = trial_of(case.broker, Rate.fixed(case.rate_msgs_per_s), warmup_s=1.0, duration_s=case.duration_s)
    with proxied(endpoint.hosts[0], case.delay) as proxy:
        measured = measure(trial, replace(endpoint, hosts=(("127.0.0.1", proxy.port),)))
        passage = proxy.end()
    return pair(case, measured, passage, percentiles)


def pair(case: Case, measured: Measured, passage: Passage, percentiles: tuple[float, ...]) -> Paired:
    """Lay the logs side by side, for the messages of the measured window."""
    tapped = measured.tapped.intended_between(*measured.window_ns)
    answered = passage.answered_ns > 0
    both, ours, theirs = np.intersect1d(tapped.identity, passage.identity[answered], return_indices=True)
    intended_ns, arrived_ns = tapped.intended_ns[ours], passage.arrived_ns[answered][theirs]
    released_ns, answered_ns = passage.released_ns[answered][theirs], passage.answered_ns[answered][theirs]
    recorded = measured.histogram("e2e")
    reading_ns = np.clip(tapped.received_ns[ours] - tapped.read_ns[ours], 0, PARSING_MOST_NS)
    # One producer: sorted identities are in the order of the schedule.
    due_ns = measured.outcome.start_ns + schedule_ns(both & SEQUENCE_MASK, case.rate_msgs_per_s)
    return Paired(
        response_ns=tapped.received_ns[ours] - intended_ns,
        undelayed_ns=(arrived_ns - intended_ns) + (answered_ns - released_ns),
        delay_ns=released_ns - arrived_ns,
        late_ns=released_ns - passage.due_ns[answered][theirs],
        is_delayed=np.asarray(case.delay.delays(both), np.bool_),
        off_schedule=int(np.count_nonzero(intended_ns != due_ns)),
        early=int(np.count_nonzero(arrived_ns < intended_ns)),
        unpaired=max(len(tapped.identity), recorded.count) - len(both),
        recorded_ns=tuple(recorded.percentiles(percentiles)),
        reading_ns=reading_ns * (case.broker in ANSWERS_FIRST),
    )


def schedule_ns(numbers: Int64, rate_msgs_per_s: float) -> Int64:
    """When these messages of a fixed rate are due, in ns after the trial's begin: by arithmetic, and by no clock."""
    return np.array([int(each * NS_PER_S // Fraction(rate_msgs_per_s)) for each in numbers.tolist()], np.int64)


def percentiles_of(values: Int64, percents: tuple[float, ...]) -> Int64:
    """By the rule of the histograms: the smallest value that so many percent of all are not over."""
    ranks = [max(1, int(np.ceil(percent / 100 * len(values)))) - 1 for percent in percents]
    return np.sort(values)[ranks]


def expected_ns(paired: Paired, percent: float, confidence: float) -> tuple[float, float, float]:
    """The delayed messages' response by the log and the undelayed path, where it may begin, and where end."""
    delay_ns, path_ns = paired.delay_ns[paired.is_delayed], paired.path_ns
    (known_ns,) = percentiles_of(np.add.outer(delay_ns, path_ns).ravel(), (percent,)).tolist()
    (logged_ns,) = percentiles_of(delay_ns, (percent,)).tolist()
    allowed_ns = TOLERANCE_SHARE * logged_ns + TOLERANCE_NS
    below_ns, above_ns = unsure_ns(path_ns, percent, confidence)
    return known_ns, known_ns - allowed_ns - below_ns, known_ns + allowed_ns + above_ns


def unsure_ns(values: Int64, percent: float, confidence: float) -> tuple[float, float]:
    """How far two samples' percentile may lie below and above this one's: √2 of its exact binomial interval."""
    ordered, ranks = np.sort(values), percentile_ranks(len(values), percent, confidence)
    (value,) = percentiles_of(values, (percent,)).tolist()
    low = ordered[0 if ranks.low is None else ranks.low - 1]
    high = ordered[-1 if ranks.high is None else ranks.high - 1]
    return math.sqrt(2) * float(value - low), math.sqrt(2) * float(high - value)


def compare(found: dict[Case, Paired], bounds: Bounds) -> Proof:
    """The proof of what was seen."""
    compared = len(found) * (len(bounds.percentiles) + 1)
    confidence = 1 - (1 - CONFIDENCE) / compared  # Bonferroni
    title = "Distribution of the delays of deliveries: by the proxy's log, and as measured"
    messages = sum(len(paired.delay_ns) for paired in found.values())
    method = (
        f"{messages:,} messages, one in flight, of which every second was delayed and all were held for {HOLD_MS:g} "
        "ms. A row of a delay compares the proxy's log with the measured response time less the undelayed path, both "
        "known of each message: that path is what the proxy saw before and after the delay, by the kernel's clock. A "
        "consumer of Kafka answers before it parses and reads its clock: by what it says that this took (at most 1 ms "
        "of a message) its row may be more."
    )
    beside = (
        "A row of a response beside the undelayed ones knows nothing of that: it is the response time of the delayed "
        "messages, held against the undelayed messages' response time and the delays by the log. It may differ by 2 % "
        "+ 0.2 ms, and by as much as the undelayed path's own percentile is not known from so many messages (√2 of the "
        f"exact binomial interval; all {compared} hold together at {CONFIDENCE:.0%}, each at {confidence:.2%}). "
        "Messages are let go while broker and producer sleep: without any hold the consumer wakes up together with "
        "them, and the path is another one."
    )
    recorder = (
        "A row of a response compares the production's histogram, which is what reports show, with a log of every "
        "message that the consumer was handed: a bucket of the histogram is 1/1024 wide, and the log reads the clock "
        f"later, by at most {READING_NS['rabbitmq'] / NS_PER_MS:g} ms, and {READING_NS['kafka'] / NS_PER_MS:g} ms of a "
        "consumer of Kafka, which asks for its next fetch between the two."
    )
    disturbed = ", ".join(f"{case.title} {paired.disturbance:.1%}" for case, paired in found.items())
    late = f"How often the proxy itself woke up over {LATE_NS / NS_PER_MS:g} ms late: {disturbed}."
    return Proof(
        name="delay",
        claim="A delay between a real broker and its consumer, known for each message from the log of a proxy, is in "
        "the measured response times up to p99 within 2 % + 0.2 ms, by what the proxy saw of each message and beside "
        "messages that were not delayed. Kafka's may be later by what its consumer says that it was reading, 1 ms at "
        "the most, as that answers before it reads its clock.",
        rows=tuple(row for case, paired in found.items() for row in _rows(case, paired, bounds, confidence)),
        notes=(method, beside, recorder, late),
        charts=(draw("delay", title, [partial(_panel, case=case, paired=paired) for case, paired in found.items()]),),
    )


def _rows(case: Case, paired: Paired, bounds: Bounds, confidence: float) -> Iterator[Row]:
    percents = bounds.percentiles
    yield same(f"{case.title}: messages that are not in every log", 0, paired.unpaired)
    yield same(f"{case.title}: messages that were not due by the schedule", 0, paired.off_schedule)
    yield same(f"{case.title}: messages that came to the proxy before they were due", 0, paired.early)
    delayed = paired.is_delayed
    logged, measured, latest = (
        percentiles_of(each[delayed], percents).tolist()
        for each in (paired.delay_ns, paired.measured_ns, paired.delay_ns + paired.reading_ns)
    )
    for percent, known_ns, seen_ns, latest_ns in zip(percents, logged, measured, latest, strict=True):
        allowed_ns = TOLERANCE_SHARE * known_ns + TOLERANCE_NS
        name = f"{case.title}: p{percent:g} of the delay"
        yield _between(name, known_ns, seen_ns, known_ns - allowed_ns, latest_ns + allowed_ns)
    name = f"{case.title}: messages whose own delay agrees so"
    yield at_least(name, bounds.agreeing_percent[case.broker], paired.agreeing_percent, "%")
    yield from _beside(case, paired, percents, confidence)
    for percent, seen_ns in zip(bounds.recorded, paired.recorded_ns, strict=True):
        name = f"{case.title}: p{percent:g} of the response"
        yield _recorded(name, percent, paired.response_ns, seen_ns, READING_NS[case.broker])


def _beside(case: Case, paired: Paired, percents: tuple[float, ...], confidence: float) -> Iterator[Row]:
    """Responses with the delay against responses without it and the log, as a whole and message by message."""
    response_ns = paired.response_ns[paired.is_delayed]
    for percent, seen_ns in zip(percents, percentiles_of(response_ns, percents).tolist(), strict=True):
        known_ns, low_ns, high_ns = expected_ns(paired, percent, confidence)
        name = f"{case.title}: p{percent:g} of the response, beside the undelayed ones"
        yield _between(name, known_ns, seen_ns, low_ns, high_ns)
    beside_ns = paired.beside_neighbours_ns
    (seen_ns,), (logged_ns,) = (
        percentiles_of(each, (50.0,)).tolist() for each in (beside_ns, paired.delay_ns[paired.is_delayed])
    )
    unsure = max(unsure_ns(beside_ns, 50.0, confidence))
    name = f"{case.title}: median of a response less its neighbour's and the log's delay"
    yield _row(name, 0.0, seen_ns, TOLERANCE_SHARE * logged_ns + TOLERANCE_NS + unsure)


def _row(name: str, known_ns: float, seen_ns: float, allowed_ns: float) -> Row:
    return near(name, known_ns / NS_PER_MS, seen_ns / NS_PER_MS, allowed_ns / NS_PER_MS, "ms")


def _recorded(name: str, percent: float, logged_ns: Int64, seen_ns: int, reading_ns: float) -> Row:
    """A percentile by the histogram lies where the log has it, give or take a bucket, a clock, and a few messages.

    The log reads its clock up to `reading_ns` after the driver did. A message whose two readings are further apart, as
    something came between, changes places with others.
    """
    interrupted = min(1.0, (100 - percent) / 2)
    low, known, high = percentiles_of(logged_ns, (percent - interrupted, percent, percent + interrupted)).tolist()
    low, high = low * (1 - 1 / 1024) - reading_ns, high * (1 + 1 / 1024) + reading_ns
    return _between(name, known, seen_ns, low, high)


def _between(name: str, known_ns: float, seen_ns: float, low_ns: float, high_ns: float) -> Row:
    known, seen, low, high = (each / NS_PER_MS for each in (known_ns, seen_ns, low_ns, high_ns))
    return within(name, known, seen, low, high, unit="ms")


def _panel(axes: Axes, *, case: Case, paired: Paired) -> None:
    shares = np.linspace(0, 1, 300)
    logged, measured = (each[paired.is_delayed] / NS_PER_MS for each in (paired.delay_ns, paired.measured_ns))
    axes.plot(
        np.quantile(logged, shares), shares * 100, color=KNOWN_COLOUR, linewidth=4, alpha=0.4, label="proxy's log"
    )
    axes.plot(np.quantile(measured, shares), shares * 100, color=SEEN_COLOUR, linewidth=1, label="measured")
    axes.set_xlim(0, float(np.quantile(logged, 0.995)) * 1.1)
    axes.set_title(case.title)
    axes.set_xlabel("delay, ms")
    axes.set_ylabel("messages at or below, %")
    axes.legend(frameon=False, loc="best")
