"""From scenarios to an ordered list of trials: sweep × repeats, interleaved between the brokers, with their cost.

Repeats are the outermost loop and the brokers alternate within each point, so that a drift of the machine falls on
both alike; which broker goes first changes from repeat to repeat, and the order of points within a repeat is shuffled
by the plan's seed, which is recorded.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

from loadgen import cost
from loadgen.backlog import PLACES, Backlog
from loadgen.bursts import refuse_unseen
from loadgen.drivers import load_driver
from loadgen.errors import HostError, ScenarioError
from loadgen.faults import refuse_late
from loadgen.knobs import Point, Site, has_keys, points, refuse_sites
from loadgen.membership import Membership
from loadgen.patterns import Pattern
from loadgen.scenario import Rate
from loadgen.stats.power import EFFECT_RATIO
from loadgen.think import Think

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.demand import Demand
    from loadgen.endpoint import BrokerName
    from loadgen.faults import At
    from loadgen.scenario import Durability, Message, Scenario


@dataclass(frozen=True, slots=True)
class Profile:
    """How long and how often each point is measured; a capacity search ends within `search_budget_s`."""

    name: str
    warmup_s: float
    duration_s: float
    repeats: int
    search_budget_s: float = 90.0

    def budget_s(self, warmup_s: float, duration_s: float) -> float:
        """The budget of a search whose full trials have these lengths: what they are longer by is granted to each."""
        longer_s = warmup_s + duration_s - self.warmup_s - self.duration_s
        return self.search_budget_s + SEARCH_CONFIRMS * max(0.0, longer_s)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", warmup_s=2.0, duration_s=4.0, repeats=3, search_budget_s=90.0),
        Profile("standard", warmup_s=5.0, duration_s=20.0, repeats=7, search_budget_s=180.0),
        Profile("full", warmup_s=10.0, duration_s=60.0, repeats=10, search_budget_s=300.0),
    )
}

# A capacity search: about so many short trials before the one of full length (docs/method.md).
SEARCH_PROBES = 8
SEARCH_WARMUP_S = 1.0
SEARCH_DURATION_S = 2.5
SEARCH_CONFIRMS = 2  # trials of full length that its time budget has room for: the first one may fail
# What the tool carries without a broker, as a closed and as an open loop, at the most; consumers of `confluent` are
# measured apart.
CEILING_S = 24.0
CEILING_FILLED_S = 12.0
INTERVALS_MAX = 720
INTERVALS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200)


Purpose = Literal["measure", "burst", "probe"]
"""Why a trial was run: its figures are the scenario's answer, or they were a search's way to it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One measurement: one point of one scenario on one broker, once."""

    id: str
    scenario: str
    broker: BrokerName
    driver: str
    durability: Durability
    settings: dict[str, Any]
    point: dict[str, Any]
    message: Message
    rate: Rate
    producers: int
    consumers: int
    repeat: int
    seed: int
    warmup_s: float
    duration_s: float
    purpose: Purpose = "measure"
    asked: Rate | None = None
    """What the scenario asked for, where the rate had to be found by a search first."""
    search_budget_s: float = 90.0
    """Within which a search ends with what it has, in seconds; without meaning for any other rate."""
    subscribers: int = 1
    """How many receive every message; `consumers` is the number of each of them."""
    think: Think = field(default_factory=Think)
    backlog: Backlog = field(default_factory=Backlog)
    """What is written before consumers begin and the window with them; there is no warm-up then."""
    membership: Membership = field(default_factory=Membership)
    """When the last consumer of each subscriber joins and leaves."""
    faults: tuple[At, ...] = ()
    """What is done to the broker meanwhile."""
    pattern: Pattern = field(default_factory=Pattern)

    @property
    def all_consumers(self) -> int:
        """The consumer processes of all subscribers."""
        return self.subscribers * self.consumers

    @property
    def is_replay(self) -> bool:
        """Whether a backlog is all there is: producers stop when it is written."""
        return self.backlog.msgs > 0 and not self.rate.is_open_loop

    @property
    def agents(self) -> int:
        """How many processes there are, of all roles."""
        return self.producers + self.pattern.processors + self.all_consumers

    @property
    def receivers(self) -> int:
        """How many processes receive what comes out at the end: of request-reply, those who sent it."""
        return self.producers if self.pattern.is_request_reply else self.all_consumers

    @property
    def capacity_key(self) -> str:
        """Which capacity this trial looks for or builds on: its point but for the fraction of it."""
        rest = {name: str(value) for name, value in self.point.items() if name != "fraction"}
        return "/".join((self.scenario, self.broker, self.driver, *(f"{name}={rest[name]}" for name in sorted(rest))))

    @property
    def stored_bytes_max(self) -> float:
        """Upper bound of what the broker keeps for this trial, in bytes: in RabbitMQ each subscriber's queue stores."""
        return cost.stored_bytes_max(self)

    @property
    def site(self) -> Site:
        """Which brokers it runs on."""
        return Site.of(self.durability, self.faults)

    @property
    def nodes(self) -> int:
        """How many nodes its broker has."""
        return self.site.nodes

    @property
    def interval_s(self) -> int:
        """Length of the intervals of its series and histogram log: a day has no more of them than ten minutes."""
        length_s = self.warmup_s + self.duration_s
        return next((step_s for step_s in INTERVALS_S if length_s <= step_s * INTERVALS_MAX), INTERVALS_S[-1])

    @property
    def overhead_s(self) -> float:
        """Roughly how long it takes beside its warm-up and its window, in seconds."""
        return cost.overhead_s(self)

    @property
    def ceiling_s(self) -> float:
        """How long it takes at most to measure what the tool carries without a broker, in seconds."""
        return CEILING_S + (CEILING_FILLED_S if self.driver in {"confluent", "confluent-sync"} else 0.0)

    @property
    def expected_s(self) -> float:
        """Roughly how long it takes, in seconds; a search does not take longer than its budget."""
        once_s = self.warmup_s + self.duration_s + self.overhead_s
        if self.rate.kind != "search":
            return once_s
        ceiling_s = self.ceiling_s / 2 if self.repeat == 1 else 0.0  # it is kept for the other repeats
        search_s = once_s + SEARCH_PROBES * (search_length_s(self) + self.overhead_s) + ceiling_s
        return min(search_s, self.search_budget_s)

    @property
    def longest_s(self) -> float:
        """How long it takes at most, as far as that can be said: a search until its budget is used up, in seconds."""
        return self.search_budget_s if self.rate.kind == "search" else self.expected_s

    @property
    def _unused_keys(self) -> str:
        is_unused = self.message.keys and not has_keys(self.broker, self.settings)
        return " (one queue: keys are not used)" if is_unused else ""

    @property
    def _roles(self) -> str:
        consumers = f"{self.consumers}" if self.subscribers == 1 else f"{self.subscribers} × {self.consumers}"
        if self.pattern.processors:
            return f"{self.producers} → {self.pattern.processors} → {consumers}"
        return f"{self.producers} {'⇄' if self.pattern.is_request_reply else '→'} {consumers}"

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.id}: {_described(self)}, {self.message.mean_size_bytes:g} B, class {self.durability}, "
            f"{self._roles}{self._unused_keys}, {self.warmup_s:g} + {self.duration_s:g} s, "
            f"at most {self.stored_bytes_max / 1e9:.2f} GB"
        )


def search_length_s(trial: Trial) -> float:
    """Warm-up and window of one probe in seconds; longer where the profile has more time than the quick one."""
    return min(trial.warmup_s, SEARCH_WARMUP_S) + min(trial.duration_s, SEARCH_DURATION_S)


def _described(trial: Trial) -> str:
    rate = trial.rate
    if rate.kind == "search":
        objective = f" (p99 at most {rate.p99_ms:g} ms)" if rate.p99_ms else ""
        return f"capacity search{objective} within {trial.search_budget_s:g} s"
    if rate.fractions is not None:
        return f"{rate.fractions[0]:.0%} of its capacity"
    rated = "as fast as it goes" if rate.msgs_per_s is None else f"{rate.kind} {rate.msgs_per_s:g}/s"
    if rate.burst_times is not None:
        rated += f", {rate.burst_times} times that for {rate.burst_s:g} s every {rate.every_s:g} s"
    if not trial.backlog.msgs:
        return rated
    backlog = f"a backlog of {trial.backlog.msgs:,} from its {PLACES[trial.backlog.start_from]}"
    return backlog if trial.is_replay else f"{backlog}, {rated}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Trials in the order they run, and the seed that gave the order."""

    trials: tuple[Trial, ...]
    scenarios: tuple[Scenario, ...]
    profile: Profile
    repeats: int
    seed: int
    brokers: tuple[BrokerName, ...] = field(default=("rabbitmq", "kafka"))
    effect_ratio: float | None = None
    """Of A against B: the effect of interest as a ratio, such as 1.1; None where there are no variants."""
    demand: Demand | None = None
    """What was asked of `loadgen decide`; None for every other plan."""

    @property
    def is_ab(self) -> bool:
        """Whether its trials are of two variants, in pairs."""
        return self.effect_ratio is not None

    @property
    def expected_s(self) -> float:
        """Roughly how long all trials take, in seconds."""
        return sum(trial.expected_s for trial in self.trials)

    @property
    def longest_s(self) -> float:
        """As `expected_s`, with every capacity search as long as its time budget."""
        return sum(trial.longest_s for trial in self.trials)

    @property
    def peak_bytes_max(self) -> float:
        """Upper bound of the disk in use at once, in bytes: a trial's messages, and its forerunner's being removed."""
        stored = [trial.stored_bytes_max for trial in self.trials]
        return max((a + b for a, b in zip_longest(stored, stored[1:], fillvalue=0.0)), default=0.0)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The brokers that its trials need, in the order in which they stand: one kind after the other."""
        return tuple(sorted({trial.site for trial in self.trials})) or (Site(),)

    def brokers_of(self, site: Site) -> tuple[BrokerName, ...]:
        """Those whose trials need such brokers; all of them where there are no trials."""
        needed = {trial.broker for trial in self.of_site(site)}
        return tuple(name for name in self.brokers if name in needed) or self.brokers

    def of_site(self, site: Site) -> list[Trial]:
        """The trials on such brokers, in their order."""
        return [trial for trial in self.trials if trial.site == site]

    def describe(self) -> dict[str, Any]:
        """Plain data for machines."""
        return {
            "trials": [{**asdict(trial), "message": trial.message.model_dump(), "rate": trial.rate.model_dump()}
                       for trial in self.trials],
            "expected_s": self.expected_s,
            "longest_s": self.longest_s,
            "peak_bytes_max": self.peak_bytes_max,
            "profile": self.profile.name,
            "repeats": self.repeats,
            "seed": self.seed,
        }  # fmt: skip

    def refuse_over_half_of(self, free_bytes: int) -> None:
        """Raise HostError when the trials could fill more than half of the free disk."""
        if self.peak_bytes_max > free_bytes / 2:
            worst = max(self.trials, key=lambda trial: trial.stored_bytes_max)
            raise HostError(
                f"disk: trial {worst.id} may store up to {self.peak_bytes_max / 1e9:.1f} GB, over half of the "
                f"{free_bytes / 1e9:.1f} GB free; shorten it (--profile quick, --duration …), bound what is kept "
                "(kafka.retention_bytes, rabbitmq.max_length_bytes) or free space"
            )


def make_plan(
    scenarios: Sequence[Scenario],
    profile: Profile,
    *,
    brokers: Sequence[BrokerName] = ("rabbitmq", "kafka"),
    repeats: int | None = None,
    seed: int = 1,
) -> Plan:
    """Order the trials of all scenarios; raises ScenarioError where nothing is left to run."""
    count = profile.repeats if repeats is None else repeats
    trials: list[Trial] = []
    pairs = [pair for scenario in scenarios for pair in _pairs(scenario, brokers)]
    if not pairs:
        raise ScenarioError(f"nothing to run: no scenario here drives {' or '.join(brokers)}")
    for repeat in range(1, count + 1):
        shuffled = pairs.copy()
        random.Random(f"{seed}/{repeat}").shuffle(shuffled)  # noqa: S311 - an order, not a secret
        for scenario, pair in shuffled:
            order = pair if repeat % 2 else tuple(reversed(pair))
            trials += [_trial(scenario, point, profile, repeat, seed) for point in order]
    trials = sorted([*_searches(trials), *trials], key=attrgetter("site"))  # brokers of one kind stand at a time
    _refuse_beyond_drivers(trials)
    names = [trial.id for trial in trials]
    assert len(set(names)) == len(names), "trial ids are unique"
    return Plan(tuple(trials), tuple(scenarios), profile, count, seed, tuple(brokers))


def make_ab_plan(
    a: Scenario,
    b: Scenario,
    profile: Profile,
    *,
    brokers: Sequence[BrokerName] = ("rabbitmq", "kafka"),
    repeats: int | None = None,
    seed: int = 1,
    effect_ratio: float = EFFECT_RATIO,
) -> Plan:
    """Two variants of a scenario, point by point in pairs; which one goes first is drawn for each pair by the seed.

    Raises ScenarioError where they do not have the same number of points on the same brokers.
    """
    for variant in (a, b):
        if variant.rate.kind == "curve":
            raise ScenarioError(
                f"{variant.name}: each variant's curve has rates of its own, which cannot be compared; expected a "
                "fixed rate, Rate.saturate() or Rate.search()"
            )
    found = [[point for point in points(variant) if point.broker in brokers] for variant in (a, b)]
    if [each.broker for each in found[0]] != [each.broker for each in found[1]]:
        counts = " and ".join(str(len(each)) for each in found)
        raise ScenarioError(f"A and B have {counts} points: expected the same number on the same brokers")
    if not found[0]:
        raise ScenarioError(f"nothing to run: no scenario here drives {' or '.join(brokers)}")
    refuse_sites(*found)
    count = profile.repeats if repeats is None else repeats
    trials: list[Trial] = []
    for repeat in range(1, count + 1):
        drawn = random.Random(f"{seed}/{repeat}")  # noqa: S311 - an order, not a secret
        pairs = [
            (number, [(a, one, "A"), (b, other, "B")])
            for number, (one, other) in enumerate(zip(*found, strict=True), 1)
        ]
        drawn.shuffle(pairs)
        for number, pair in pairs:
            drawn.shuffle(pair)
            for variant, point, letter in pair:
                named = replace(point, swept={**point.swept, "variant": letter, "pair": number})
                # Both get the same messages: seeds come from the first scenario's name.
                trials.append(replace(_trial(variant, named, profile, repeat, seed), seed=_seed(a, repeat, seed)))
    trials = [*_searches(trials), *trials]
    _refuse_beyond_drivers(trials)
    names = [trial.id for trial in trials]
    if len(set(names)) < len(names):
        raise ScenarioError(f"{a.name}: its sweeps make two points that cannot be told apart; sweep fewer values")
    return Plan(tuple(trials), (a, b), profile, count, seed, tuple(brokers), effect_ratio)


def _seed(scenario: Scenario, repeat: int, seed: int) -> int:
    """Both brokers get the same messages at the same times; repeats get others."""
    return zlib.crc32(f"{seed}/{scenario.name}/{repeat}".encode())


def _searches(trials: Sequence[Trial]) -> list[Trial]:
    """A capacity search for each curve, before all of its trials: every repeat is then measured at the same rates."""
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.rate.kind == "curve" and trial.capacity_key not in found:
            rest = {name: value for name, value in trial.point.items() if name != "fraction"}
            found[trial.capacity_key] = replace(
                trial,
                id=f"{_identity(trial.scenario, trial.broker, trial.driver, rest)}/capacity/{trial.repeat}",
                point=rest,
                rate=Rate.search(trial.rate.p99_ms),
                purpose="probe",
            )
    return list(found.values())


def _refuse_beyond_drivers(trials: Sequence[Trial]) -> None:
    """Raise ScenarioError where a trial needs what its driver cannot do: here, before any broker is touched."""
    for trial in trials:
        capabilities = load_driver(trial.driver).capabilities
        lacking = capabilities.lacking(trial.settings)
        if trial.pattern.has_middle and not capabilities.has_middle_roles:
            raise ScenarioError(
                f"{trial.broker}.driver = {trial.driver}: cannot do pattern = {trial.pattern.kind}; expected driver = "
                f"{'amqp' if trial.broker == 'rabbitmq' else 'kafka'}"
            )
        protocol = trial.settings.get("group_protocol") or "static"
        if trial.pattern.has_middle and protocol != "static":
            raise ScenarioError(
                f"kafka.group_protocol = {protocol}: is not for pattern = {trial.pattern.kind}; drop the knob"
            )
        if lacking is not None:
            raise ScenarioError(
                f"{trial.broker}.{lacking}: driver {trial.driver} cannot do that; choose another driver"
            )


def _pairs(scenario: Scenario, brokers: Sequence[BrokerName]) -> list[tuple[Scenario, tuple[Point, ...]]]:
    """The scenario's points, RabbitMQ's beside the Kafka point of the same shared values where there is one."""
    by_broker = {broker: [p for p in points(scenario) if p.broker == broker] for broker in brokers}
    waiting = {broker: list(found) for broker, found in by_broker.items()}
    pairs: list[tuple[Scenario, tuple[Point, ...]]] = []
    for first in by_broker.get("rabbitmq", []):
        twin = next((p for p in waiting.get("kafka", []) if _shared(p) == _shared(first)), None)
        if twin is not None:
            waiting["kafka"].remove(twin)
        pairs.append((scenario, (first,) if twin is None else (first, twin)))
    pairs += [(scenario, (point,)) for point in waiting.get("kafka", [])]
    return pairs


def _shared(point: Point) -> tuple[Any, ...]:
    return (
        point.durability,
        point.message,
        point.rate,
        point.producers,
        point.consumers,
        point.subscribers,
        point.think,
        point.backlog,
        point.membership,
        point.pattern,
    )


def _trial(scenario: Scenario, point: Point, profile: Profile, repeat: int, seed: int) -> Trial:
    share = scenario.profile_share
    warmup_s = profile.warmup_s * share if scenario.warmup_s is None else scenario.warmup_s
    duration_s = profile.duration_s * share if scenario.duration_s is None else scenario.duration_s
    point.membership.refuse_unfit(duration_s)
    refuse_late(point.faults, duration_s)
    refuse_unseen(point.rate, 0.0 if point.backlog.msgs else warmup_s, duration_s)
    if point.backlog.msgs:
        if scenario.warmup_s:
            raise ScenarioError(
                f"warmup_s = {scenario.warmup_s:g}: with a backlog the window begins when its consumers do; expected 0"
            )
        warmup_s = 0.0
    return Trial(
        id=f"{_identity(scenario.name, point.broker, point.driver, point.swept)}/{repeat}",
        scenario=scenario.name,
        broker=point.broker,
        driver=point.driver,
        durability=point.durability,
        settings=point.settings,
        point=point.swept,
        message=point.message,
        rate=point.rate,
        producers=point.producers,
        consumers=point.consumers,
        subscribers=point.subscribers,
        think=point.think,
        backlog=point.backlog,
        membership=point.membership,
        faults=point.faults,
        pattern=point.pattern,
        repeat=repeat,
        seed=_seed(scenario, repeat, seed),
        warmup_s=warmup_s,
        duration_s=duration_s,
        search_budget_s=profile.budget_s(warmup_s, duration_s),
    )


def _identity(scenario: str, broker: str, driver: str, swept: dict[str, Any]) -> str:
    values = "-".join(f"{name.rpartition('.')[2]}={_plain(value)}" for name, value in swept.items())
    return "/".join(part for part in (scenario, broker, driver, values) if part)


def _plain(value: Any) -> str:
    """A swept value in a trial's id."""
    if isinstance(value, float):  # in full: two rates that look alike would make one id
        return str(int(value)) if value.is_integer() else repr(value)
    return str(getattr(value, "value", value))
