"""The generator's ceiling: what the same scenario carries where no broker bounds it, measured on the same machine.

A trial's clients run against a null broker (`loadgen.nullbroker`) as a closed loop: same driver, messages, processes
and settings. For `confluent`, producing and consuming are measured apart, and the ceiling is the smaller of the two:
producers against librdkafka's mock cluster, consumers at a topic of the real broker that was filled before.

On one host whatever stands in for the broker takes CPU too, and a closed loop waits (for its window of
acknowledgements, and where a consumer naps between small reads). So a ceiling is a lower bound of what the
generator can do: a broker's rate well below it is the broker's, one near it may be the generator's. With several
subscribers it is the rate of producing, of which each of them received all.

A capacity is the rate of an open loop, which sends small batches by the clock and carries less than a closed one. So a
few offered rates are tried as well, from above, until one is paced: carried by the rules that a capacity is held to,
that for the schedule among them, which refuses a rate where the lag makes the trial invalid (of a search with an
objective: where that is missed). That is the ceiling of open loops, again a lower bound: the next rate tried was too
much, and what lies between them is not known.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loadgen import stream_knobs
from loadgen.agent import SECOND_NS, AgentSpec
from loadgen.checks import milliseconds
from loadgen.driver import Gauge, Target, confirms
from loadgen.drivers import load_driver
from loadgen.errors import BrokerError, LoadgenError
from loadgen.facts import Facts, observed_facts
from loadgen.fleet import Fleet
from loadgen.ledger import settle
from loadgen.nullbroker import null_broker
from loadgen.scenario import Rate
from loadgen.search import LATE, Objection, against, is_disturbed
from loadgen.think import Think
from loadgen.trial import Live, run_trial
from loadgen.verdict import bound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadgen.agent import Role
    from loadgen.board import Board
    from loadgen.fleet import Outcome
    from loadgen.ledger import SentBook
    from loadgen.observer import Observations
    from loadgen.plan import Trial
    from loadgen.trial import Setting

WARMUP_S = 1.0
SECONDS = 3.0
OPEN_SECONDS = 2.0
OPEN_SHARES = (0.85, 0.6)  # of the closed loop's rate; an open loop in small batches carries less
FILL_S = 3.0  # how long a topic is filled; a wire producer is several times as fast as librdkafka reads
CORE_FULL_SHARE = 0.9  # of the null broker's one thread: from here on it may be the limit itself
NULL_BROKER, MOCK_CLUSTER, FILLED_TOPIC = "null broker", "mock cluster", "pre-filled topic"
MOCK_BROKERS = "test.mock.num.brokers"  # librdkafka's name of it, which its driver looks for in the endpoint
Record = dict[str, Any]


def measure_ceiling(
    trial: Trial, setting: Setting, seconds: float = SECONDS, needed_msgs_per_s: float | None = None
) -> Record:
    """What the trial's clients carry without a broker: a record of `ceilings` (run.schema.json).

    Args:
        trial: any trial of the point; its rate is replaced by a closed loop, its lengths by the ceiling's own.
        setting: as for `run_trial`; its endpoint is used for `confluent` only, whose consumers need a real Kafka.
        seconds: how long to measure the closed loop, after a warm-up of 1 s.
        needed_msgs_per_s: a rate that is among those tried as an open loop, as somebody wants to know just that.

    Returns:
        A record whose `achieved_msgs_per_s` is null and whose `error` says why where it could not be measured.

    Raises:
        KeyboardInterrupt: it was interrupted.
        LoadgenError: what ends a whole run, such as a disk that is full.
    """
    point = {name: getattr(value, "value", value) for name, value in trial.point.items() if name != "fraction"}
    record: Record = {
        "key": trial.capacity_key,
        "scenario": trial.scenario,
        "broker": trial.broker,
        "driver": trial.driver,
        "durability": str(trial.durability),
        "point": point,
        "producers": trial.producers,
        "consumers": trial.consumers,
        "subscribers": trial.subscribers,
    }
    closed = replace(
        trial,
        id=f"{trial.id}/ceiling",
        rate=Rate.saturate(),
        asked=None,
        think=Think(),
        warmup_s=WARMUP_S,
        duration_s=seconds,
    )
    setting = replace(setting, writer=None)
    why = (
        _unknown(trial) if setting.hands is None else "no ceiling is known: it would be this machine's, not the fleet's"
    )
    if why is not None and (setting.hands is not None or setting.endpoint.source != "memory"):
        return record | _unmeasured(NULL_BROKER, why) | _tried(None, None, None, why) | {"parts": []}
    with _stand_in(closed, setting) as (alone, without, how):
        parts = [_ran(alone, without, how)]
        if how == MOCK_CLUSTER and trial.consumers:
            try:
                parts.append(_by_filled_topic(closed, setting))
            except BrokerError as failure:
                parts.append(_unmeasured(FILLED_TOPIC, str(failure)))
        failed = [part for part in parts if part["achieved_msgs_per_s"] is None]
        least = failed[0] if failed else min(parts, key=lambda part: float(part["achieved_msgs_per_s"]))
        most = least["achieved_msgs_per_s"]
        paced = _open_loop(alone, without, how, most, needed_msgs_per_s, trial.rate.p99_ms)
    return record | least | paced | {"parts": parts if how == MOCK_CLUSTER else []}


def _unknown(trial: Trial) -> str | None:
    """Why no null broker can stand in, if none can."""
    if trial.pattern.has_middle:
        return f"no ceiling is known: a null broker has no counterpart of pattern {trial.pattern.kind}"
    if trial.settings.get("single_active_consumer"):
        return "no ceiling is known: a null broker does not choose an active consumer"
    if trial.settings.get("group") == "share":
        return "no ceiling is known: a null broker has no share groups"
    if trial.driver == "kafka" and trial.settings["group_protocol"] != "static":
        return "no ceiling is known: a null broker gives no partitions out"
    if trial.settings.get("queues", 1) > 1 or trial.settings.get("exchange") == "consistent-hash":
        return "no ceiling is known: a null broker does not spread messages over queues"
    return None


@contextlib.contextmanager
def _stand_in(trial: Trial, setting: Setting) -> Iterator[tuple[Trial, Setting, str]]:
    """The trial as it runs without a broker, where it runs, and what stands in for the broker there.

    Producers of `confluent` run alone, each with a mock cluster within its own process, while a null broker serves the
    control plane.
    """
    if setting.endpoint.source == "memory":  # a queue in memory is no broker already
        yield trial, setting, NULL_BROKER
        return
    resting = (*setting.resting, *setting.endpoint.pids)  # the real one is not measured meanwhile
    streams = trial.driver in stream_knobs.DRIVERS
    with null_broker(trial.broker, _free_cpus(setting), streams=streams) as endpoint:
        if trial.driver in {"confluent", "confluent-sync"}:
            mocked = replace(endpoint, configuration={MOCK_BROKERS: 1})
            yield (
                replace(trial, consumers=0, subscribers=1),
                replace(setting, endpoint=mocked, resting=resting),
                MOCK_CLUSTER,
            )
        else:
            yield trial, replace(setting, endpoint=endpoint, resting=resting), NULL_BROKER


def _open_loop(
    trial: Trial, setting: Setting, how: str, most: float | None, needed: float | None, p99_ms: float | None = None
) -> Record:
    """The highest of a few offered rates that is paced, and the lowest above it that is not (messages/s)."""
    if not most:
        return _tried(None, None, None, "without a closed loop's rate none was tried")
    rates = {share * most for share in OPEN_SHARES} | ({needed} if needed and needed < most else set())
    high, bound_by, why = None, None, None
    for number, rate in enumerate(sorted(rates, reverse=True), 1):
        paced = replace(trial, id=f"{trial.id}-open-{number}", rate=Rate.fixed(rate), duration_s=OPEN_SECONDS)
        failing = _unpaced(paced, setting, how, p99_ms)
        if failing is None:
            return _tried(rate, high, bound_by, why)
        high, (bound_by, why) = rate, failing
    return _tried(None, high, bound_by, why)


def _tried(paced: float | None, unpaced: float | None, bound_by: str | None, why: str | None) -> Record:
    known = {"paced_msgs_per_s": paced, "unpaced_msgs_per_s": unpaced}
    return {**known, "unpaced_bound_by": bound_by, "paced_reason": why}


def _unpaced(trial: Trial, setting: Setting, how: str, p99_ms: float | None = None) -> tuple[str, str] | None:
    """What kept the clients from pacing the trial's rate, and what was seen of it, in words; None where they did."""
    try:
        record, outcome = run_trial(trial, setting)
    except BrokerError as failure:
        return "unknown", str(failure)
    _refuse_interrupted(outcome)
    if outcome.error is not None:
        return "unknown", outcome.error
    offered = float(record["offered_msgs_per_s"])
    found = against(record, _came_through(trial, record), offered, trial.subscribers) or _late(record, offered, p99_ms)
    if found is None:
        return None
    if is_disturbed(record["verdict"]) or found.is_untested:
        return "unknown", found.text
    # A rate that was carried, but late, or that fell short with CPU left, is for the clients to answer for.
    return {"host": "host", "broker": how}.get(record["verdict"]["bound_by"], "generator"), found.text


def _late(record: Record, offered: float, p99_ms: float | None) -> Objection | None:
    """By how much the schedule lagged, where that is what a verdict refuses; with an objective, if that is missed.

    Without a broker latencies are small, and a lag that is in doubt beside them says nothing of the rate.
    Where a latency was asked for, it is what clients must be able to show: a lag far below it moves nothing.
    """
    e2e = record["latency_ns"]["e2e"]
    if p99_ms is not None and e2e and e2e["p99"] is not None:
        missed = f"at {offered:,.0f} msg/s the p99 was {milliseconds(e2e['p99'])}, over {p99_ms:g} ms"
        return Objection(missed) if e2e["p99"] > p99_ms * 1e6 else None
    lag = next((each for each in record["verdict"].get("checks", ()) if each["name"] == LATE), None)
    if lag is None or lag["passed"] is not False:
        return None
    return Objection(f"at {offered:,.0f} msg/s the schedule lagged: {lag['reason']}", is_late=True)


def _came_through(trial: Trial, record: Record) -> float:
    """How much of what was produced came through (messages/s); where nothing comes back, what was handed over."""
    counts = trial.consumers or confirms(trial.settings)
    return float(record["achieved_msgs_per_s"] / trial.subscribers if counts else record["sent_msgs_per_s"])


def _free_cpus(setting: Setting) -> set[int]:
    """The CPUs that clients are not held to; empty where they may use all."""
    return os.sched_getaffinity(0) - set(setting.cpus) if setting.cpus else set()


def _ran(trial: Trial, setting: Setting, how: str) -> Record:
    """An ordinary trial's figures as a ceiling's."""
    try:
        record, outcome = run_trial(trial, setting)
    except BrokerError as failure:
        return _unmeasured(how, str(failure))
    _refuse_interrupted(outcome)
    if outcome.error is not None:
        return _unmeasured(how, outcome.error)
    if how == MOCK_CLUSTER and record["broker_counts"]["stored"]:
        return _unmeasured(how, "the producers sent to the null broker: librdkafka made no mock cluster")
    rate = _came_through(trial, record)
    cores = (record["cpu_s"].get("broker") or 0.0) / record["window_s"]
    return _measured(
        how, rate, record["cpu_s"], record["window_s"], _bound_by(record["verdict"]["bound_by"], how, cores)
    )


def _bound_by(bound_by: str, how: str, cores: float) -> str:
    """What set the limit where there is no broker: what stood in for it, the machine, or the clients by themselves."""
    if bound_by in {"host", "generator"}:
        return bound_by
    return how if how == FILLED_TOPIC or cores >= CORE_FULL_SHARE else "generator"


def _measured(how: str, rate: float, cpu_s: Record, window_s: float, bound_by: str) -> Record:
    return {
        "achieved_msgs_per_s": rate,
        "cpu_s": {name: cpu_s.get(name) for name in ("producers", "consumers", "broker")},
        "window_s": window_s,
        "how": how,
        "bound_by": bound_by,
        "limits": _limits(how, cpu_s, window_s, bound_by),
        "error": None,
    }


def _unmeasured(how: str, error: str) -> Record:
    unknown = dict.fromkeys(("achieved_msgs_per_s", "window_s", "bound_by", "limits"))
    return {**unknown, "cpu_s": dict.fromkeys(("producers", "consumers", "broker")), "how": how, "error": error}


def _limits(how: str, cpu_s: Record, window_s: float, bound_by: str) -> str:
    """In words, what keeps this ceiling from being higher."""
    cores = (cpu_s.get("broker") or 0.0) / window_s
    what = {
        NULL_BROKER: f"the null broker took {cores:.2f} of a core beside the clients",
        MOCK_CLUSTER: "for producing only, and librdkafka's mock cluster has its share of the producers' CPU",
        FILLED_TOPIC: f"for consuming only, and the real broker took {cores:.2f} of a core",
    }[how]
    why = {
        "generator": "the clients' own code, or what they wait for, set the rate",
        "host": "together they used up the machine",
    }.get(bound_by, f"the clients waited for the {how}")
    return f"{what}; {why}: a lower bound of what the generator can do"


def _refuse_interrupted(outcome: Outcome) -> None:
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.cause is not None:
        raise outcome.cause


# --- consumers at a topic that was filled before ---


def _by_filled_topic(trial: Trial, setting: Setting) -> Record:
    """Fill a topic of the real broker by the wire driver, then let the trial's consumers read it."""
    admin = load_driver(trial.driver).admin(setting.endpoint)
    name = f"loadgen-{trial.scenario}-{secrets.token_hex(4)}"
    target = Target(setting.endpoint, name, trial.settings, group=name, subscribers=trial.subscribers)
    token = secrets.randbits(32)  # of both, so that consumers know the messages as this run's and check every byte
    left_behind = None
    try:
        admin.create(target)
        try:
            books, error = _fill(trial, setting, target, token)
            part = _read(trial, setting, target, token, books) if error is None else _unmeasured(FILLED_TOPIC, error)
        finally:
            try:
                admin.delete(target)
            except LoadgenError as failure:
                left_behind = {"name": name, "reason": str(failure)}
    finally:
        admin.close()
    return part | {"left_behind": left_behind}


def _fill(trial: Trial, setting: Setting, target: Target, token: int) -> tuple[list[SentBook], str | None]:
    """What the trial's producers put there through the wire driver, and what went wrong, if anything did."""
    name = f"{trial.id}: filling a topic"
    fill = replace(trial, id=name, driver="kafka", consumers=0, subscribers=1, warmup_s=0.0, duration_s=FILL_S)

    def specs(board: Board) -> list[AgentSpec]:
        return [_spec(fill, setting, target, token, board, "producer", index) for index in range(fill.producers)]

    outcome, _ = _run(_live(fill, setting, lambda _: Gauge(0)), fill.producers, specs)
    return [result.sent_book for result in outcome.results if result.sent_book is not None], outcome.error


def _read(trial: Trial, setting: Setting, target: Target, token: int, books: list[SentBook]) -> Record:
    """The rate at which the trial's consumers read the topic, from when they are warm until its end or the window's."""
    filled = sum(book.sent_count for book in books) * trial.subscribers
    # Producers give a trial its length: this one is due to send its first message after the end.
    keeper = replace(trial, driver="kafka", rate=Rate.fixed(1.0 / (trial.warmup_s + trial.duration_s)))

    def specs(board: Board) -> list[AgentSpec]:
        readers = [
            _spec(trial, setting, target.of(subscriber), token, board, "consumer", index)
            for subscriber in range(trial.subscribers)
            for index in range(trial.consumers)
        ]
        readers = [replace(each, row=row, name=f"consumer{row - 1}") for row, each in enumerate(readers, 1)]
        timer = _spec(keeper, setting, target, token, board, "producer", trial.producers)
        return [*readers, replace(timer, row=len(readers) + 1, count=trial.producers + 1)]

    live = _live(trial, setting, lambda received: Gauge(max(0, filled - received)))
    outcome, observations = _run(live, trial.all_consumers + 1, specs)
    if outcome.error is not None or observations is None:
        return _unmeasured(FILLED_TOPIC, outcome.error or "nothing was observed")
    if damage := _damage(outcome, books):
        return _unmeasured(FILLED_TOPIC, damage)
    warm_ns = live.start_ns + round(trial.warmup_s * SECOND_NS)
    span = _span(live, warm_ns, filled) or _span(live, live.start_ns, filled)
    if span is None:
        seen = f"{live.received:,} of {filled:,} messages received"
        return _unmeasured(FILLED_TOPIC, f"consumers were not seen reading for long enough to be timed: {seen}")
    begin_ns, end_ns, rate = span
    summary = observations.summary(begin_ns, end_ns)
    window_s = (end_ns - begin_ns) / SECOND_NS
    known = Facts(
        durability=str(trial.durability),
        rate_kind="saturate",
        consumers=trial.consumers,
        window_s=window_s,
        sent=filled,
        acked=None,
        received=filled,
        **observed_facts(summary),
    )
    cpu_s = {**summary["cpu_s"], "producers": None}
    bound_by = _bound_by(bound(known)[0], FILLED_TOPIC, (cpu_s.get("broker") or 0.0) / window_s)
    return _measured(FILLED_TOPIC, rate / trial.subscribers, cpu_s, window_s, bound_by)


def _damage(outcome: Outcome, books: list[SentBook]) -> str | None:
    """What the ledger has against the messages that were read; what nobody had the time to read is not lost."""
    sent = [*books, *(result.sent_book for result in outcome.results if result.sent_book is not None)]
    account = settle(sent, outcome.books("received_book"))
    if not account.corrupted and not account.foreign:
        return None
    return f"{account.corrupted:,} messages of the topic were damaged, {account.foreign:,} were nobody's"


def _span(live: Live, begin_ns: int, filled: int) -> tuple[int, int, float] | None:
    """The first and last moment (ns) from `begin_ns` on when messages were left to read, and the rate between them."""
    end_ns = live.start_ns + round((live.trial.warmup_s + live.trial.duration_s) * SECOND_NS)
    at_s, _, received = live.flow.between(begin_ns, end_ns)
    reading = (received > 0) & (received < filled)
    at_s, received = at_s[reading], received[reading]
    if len(at_s) < 2 or received[-1] == received[0]:
        return None
    first_ns, last_ns = (begin_ns + round(float(each) * SECOND_NS) for each in (at_s[0], at_s[-1]))
    return first_ns, last_ns, float((received[-1] - received[0]) / (at_s[-1] - at_s[0]))


def _live(trial: Trial, setting: Setting, gauge: Callable[[int], Gauge]) -> Live:
    return Live(
        trial, setting.endpoint, None, setting.progress, gauge, left_s=setting.left_s, shown=setting.shown,
        resting=setting.resting,
    )  # fmt: skip


def _run(
    live: Live, agents: int, make_specs: Callable[[Board], list[AgentSpec]]
) -> tuple[Outcome, Observations | None]:
    try:
        outcome = Fleet(live).run(make_specs, agents)
    finally:
        observations = live.observer.stop() if live.observer is not None else None
    _refuse_interrupted(outcome)
    return outcome, observations


def _spec(
    trial: Trial, setting: Setting, target: Target, token: int, board: Board, role: Role, index: int
) -> AgentSpec:
    """One agent of a trial where all are of one role."""
    return AgentSpec(
        role=role,
        name=f"{role}{index}",
        row=index + 1,
        index=index,
        count=trial.producers if role == "producer" else trial.consumers,
        driver=trial.driver,
        target=target,
        message=trial.message,
        rate=trial.rate,
        seed=trial.seed,
        token=token,
        warmup_s=trial.warmup_s,
        duration_s=trial.duration_s,
        consumers=trial.consumers,
        board=board.path,
        rows=board.rows,
        cpus=setting.cpus,
    )
