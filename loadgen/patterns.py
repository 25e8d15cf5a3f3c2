"""Patterns with a role in the middle: which there are, what each is told, and what cannot be.

* one_way: producers send, consumers receive.
* request_reply: producers are requesters, which send requests and receive their replies; consumers are responders,
  which receive requests, work on each as long as they think, and reply.
* process: processors receive what producers send, and produce a result of each message, which consumers receive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from loadgen import rabbitmq_knobs, stream_knobs
from loadgen.errors import ScenarioError

if TYPE_CHECKING:
    from loadgen.agent import Role
    from loadgen.knobs import Point
    from loadgen.scenario import Scenario

PatternKind = Literal["one_way", "request_reply", "process"]
TIMEOUT_MS = 30_000.0
REQUESTS_IN_FLIGHT = 100
REQUESTS: dict[str, Any] = {"timeout_ms": TIMEOUT_MS, "requests_in_flight": REQUESTS_IN_FLIGHT}
"""What requesters are told, by the knobs' names, where nobody chose."""
# What only one pattern is told; of every other it is refused.
_OWN = {"timeout_ms": "request_reply", "requests_in_flight": "request_reply", "processors": "process"}
COMMIT_INTERVAL_MS = 100.0  # Kafka Streams' with exactly-once
# What a trial with processors needs of Kafka's knobs (`loadgen.legs`): whoever asks for anything else is refused.
COMMIT_MODE = "sync"  # processors say themselves when, each `commit_interval_ms`
RESULTS_PARTITIONER = "sticky"  # results carry no keys
RESULTS_ISOLATION = "read_committed"  # with exactly_once: what was undone is no result
# Knobs by which messages go, come back, are overtaken or wait: with a role in the middle nobody says what that does.
_ONE_WAY = {
    **{
        knob: rabbitmq_knobs.DEFAULTS[knob]
        for knob in (
            "priorities", "max_length", "max_length_bytes", "overflow", "message_ttl_ms", "expires_ms", "dead_letter",
            "delivery_limit", "requeue_every", "fail_every", "reject_every", "channels_per_connection",
            "connections_per_process", "reconnect_every_s", "recover_within_s",
        )
    },
    "transaction_msgs": None,
    "group": "partitions",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pattern:
    """How a trial's roles are joined, and what only some patterns need."""

    kind: PatternKind = "one_way"
    timeout_ms: float = TIMEOUT_MS
    """How long a requester waits for each reply before it gives the request up."""
    requests_in_flight: int = REQUESTS_IN_FLIGHT
    """In a closed loop, how many of a requester's requests wait for their replies at once."""

    processors: int = 0
    """How many consume, transform and produce."""

    @property
    def is_request_reply(self) -> bool:
        """Whether those who send receive replies."""
        return self.kind == "request_reply"

    @property
    def has_middle(self) -> bool:
        """Whether messages pass through a role in the middle on their way from end to end."""
        return self.kind != "one_way"

    @property
    def sending_role(self) -> Role:
        """What those are that a trial counts as producers."""
        return "requester" if self.is_request_reply else "producer"

    @property
    def receiving_role(self) -> Role:
        """What those are that a trial counts as consumers."""
        return "responder" if self.is_request_reply else "consumer"


def own_axes(scenario: Scenario) -> dict[str, Any]:
    """What the scenario's pattern is told and may be swept; raises ScenarioError where another's is given."""
    for name, kind in _OWN.items():
        if getattr(scenario, name) is not None and scenario.pattern != kind:
            raise ScenarioError(
                f"{name} = {getattr(scenario, name)}: is of pattern {kind}, not {scenario.pattern}; expected pattern = "
                f"{kind}, or no {name}"
            )
    if scenario.pattern == "process":
        return {"processors": scenario.processors or 1}
    if scenario.pattern != "request_reply":
        return {}
    given = {name: getattr(scenario, name) for name in REQUESTS}
    return {name: REQUESTS[name] if value is None else value for name, value in given.items()}


def pattern_of(scenario: Scenario, chosen: dict[str, Any]) -> Pattern:
    """The pattern with one value each."""
    if scenario.pattern == "process":
        return Pattern(scenario.pattern, processors=chosen["processors"])
    if scenario.pattern != "request_reply":
        return Pattern()
    return Pattern(scenario.pattern, chosen["timeout_ms"], chosen["requests_in_flight"])


def complete(settings: dict[str, Any], pattern: Pattern, given: dict[str, Any]) -> None:
    """What only one pattern has of a broker's knobs; raises ScenarioError where it is given for another.

    `given` are the knobs that somebody chose; one that the pattern decides by itself is refused, too.
    """
    own: tuple[tuple[str, PatternKind, Any], ...] = (
        ("reply_to", "request_reply", "direct"),
        ("processing_guarantee", "process", "at_least_once"),
        ("commit_interval_ms", "process", COMMIT_INTERVAL_MS),
    )
    for knob, kind, default in own:
        if knob not in settings:
            continue
        if pattern.kind == kind:
            settings[knob] = default if settings[knob] is None else settings[knob]
        elif settings.pop(knob) is not None:
            raise ScenarioError(
                f"{knob}: is of pattern {kind}, not {pattern.kind}; expected pattern = {kind}, or no {knob}"
            )
    if pattern.kind == "process":
        _refuse_overruled(settings, given)


def _refuse_overruled(settings: dict[str, Any], given: dict[str, Any]) -> None:
    ruled = {"commit_mode": COMMIT_MODE}  # the partitioner is of the messages that go in: results have their own
    if settings.get("processing_guarantee") == "exactly_once":
        ruled["isolation_level"] = RESULTS_ISOLATION
    for knob, needed in ruled.items():
        if given.get(knob, needed) != needed:
            whose = "exactly_once" if knob == "isolation_level" else "process"
            raise ScenarioError(
                f"kafka.{knob} = {given[knob]}: processors and their results have {needed} with {whose}; expected "
                f"{needed}, or no {knob}"
            )


def refuse_unfit(point: Point) -> None:
    """Raise ScenarioError where a pattern cannot be carried out as it is asked for."""
    if not point.pattern.has_middle:
        return
    asked, settings = f"pattern = {point.pattern.kind}", point.settings
    if not point.consumers:
        needed = "responders" if point.pattern.is_request_reply else "consumers of results"
        raise ScenarioError(f"consumers = 0: {asked} needs {needed}; expected consumers ≥ 1")
    if point.subscribers > 1:
        raise ScenarioError(
            f"subscribers = {point.subscribers}: with {asked} each message goes one way; expected subscribers = 1"
        )
    if point.driver in stream_knobs.DRIVERS:
        raise ScenarioError(f"rabbitmq.driver = {point.driver}: with {asked}, expected driver = amqp")
    if settings.get("exchange", "default") != "default" or settings.get("queues", 1) > 1:
        raise ScenarioError(
            f"rabbitmq.exchange, queues: with {asked} messages go to one queue by the default exchange; drop the knobs"
        )
    if point.backlog.msgs or point.membership.changes:
        raise ScenarioError(f"backlog, joins_at_s, leaves_at_s: with {asked} a trial has no phases; drop them")
    given = next((knob for knob in _ONE_WAY if settings.get(knob) not in {None, _ONE_WAY[knob]}), None)
    if given is not None:
        raise ScenarioError(f"{point.broker}.{given} = {settings[given]}: is not for {asked}; drop the knob")
    if not point.pattern.is_request_reply:
        _refuse_unfit_process(point)


def _refuse_unfit_process(point: Point) -> None:
    settings, processors = point.settings, point.pattern.processors
    if point.think.mean_ms:
        raise ScenarioError("think_ms: processors and their consumers do not think; expected think_ms = 0")
    if str(point.durability) == "none":
        raise ScenarioError("durability = none: a processor has to know that its results are kept; expected broker")
    if settings.get("partitions", processors) < processors:
        raise ScenarioError(
            f"kafka.partitions = {settings['partitions']}: a partition has one processor, so that of processors = "
            f"{processors} some would stay idle; expected at least {processors}"
        )
    if settings.get("processing_guarantee") == "exactly_once" and not settings["enable_idempotence"]:
        raise ScenarioError(
            "kafka.processing_guarantee = exactly_once: transactions need enable_idempotence = True; expected that"
        )
