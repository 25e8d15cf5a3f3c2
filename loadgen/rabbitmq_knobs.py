"""Which of RabbitMQ's knobs for queues go together: what they come to where nobody chose, and what is impossible."""

from __future__ import annotations

from typing import Any

from loadgen.errors import ScenarioError

Settings = dict[str, Any]

# Client settings that no class demands; prefetch and windows follow RabbitMQ's own guidance (a plateau from about 100
# prefetched and a few hundred unconfirmed).
DEFAULTS: Settings = {
    "exchange": None,
    "bindings": 1,
    "queues": 1,
    "durable": True,
    "auto_delete": False,
    "confirm_window": 1_000,
    "prefetch": 100,
    "ack_every": 10,
    "heartbeat": 60,
    "blocked_connection_timeout_s": None,
    "mandatory": False,
    "max_length": None,
    "max_length_bytes": None,
    "overflow": None,
    "message_ttl_ms": None,
    "expires_ms": None,
    "dead_letter": False,
    "delivery_limit": None,
    "quorum_initial_group_size": None,
    "requeue_every": 0,
    "fail_every": 0,
    "reject_every": 0,
    "priorities": None,
    "reply_to": None,
    "channels_per_connection": 1,
    "connections_per_process": 1,
    "reconnect_every_s": None,
    "recover_within_s": None,
}
FAILING = ("requeue_every", "fail_every", "reject_every")


def derive(settings: Settings, knobs: Settings) -> None:
    """What follows from the other knobs where nobody chose; `knobs` are those that somebody did."""
    if "ack_every" not in knobs and settings["prefetch"] > 0:
        settings["ack_every"] = min(settings["ack_every"], settings["prefetch"])


def complete(settings: Settings, subscribers: int) -> None:
    """The exchange that nobody chose; raises ScenarioError where the one that was chosen cannot do what is wanted."""
    queues, bindings = settings["queues"], settings["bindings"]
    if settings["exchange"] is None:
        settings["exchange"] = "default" if subscribers == 1 else "fanout" if queues == 1 else "direct"
    exchange = settings["exchange"]
    if subscribers > 1 and exchange in {"default", "consistent-hash"}:
        raise ScenarioError(
            f"rabbitmq.exchange = {exchange}: hands each message to one queue, and subscribers = {subscribers} need a "
            f"copy each; expected {'fanout, direct, topic or headers' if queues == 1 else 'direct or topic'}"
        )
    if queues > 1 and exchange in {"fanout", "headers"}:
        raise ScenarioError(
            f"rabbitmq.queues = {queues}: a {exchange} exchange does not look at routing keys, which spread messages "
            f"over queues; expected exchange = direct or topic{', or consistent-hash' if subscribers == 1 else ''}"
        )
    if bindings > 1 and exchange == "default":
        raise ScenarioError(
            f"rabbitmq.bindings = {bindings}: the default exchange has one binding for each queue, its name; expected "
            "exchange = direct, fanout, topic or headers"
        )
    if bindings > 1 and exchange == "consistent-hash":
        raise ScenarioError(
            f"rabbitmq.bindings = {bindings}: a binding to a consistent-hash exchange is a queue's weight; expected 1"
        )


def refuse_impossible(settings: Settings, nodes: int) -> None:
    """Raise ScenarioError where knobs contradict each other, whatever is sent; the class has so many `nodes`."""
    members = settings["quorum_initial_group_size"]
    if members is not None and (settings["queue_type"] != "quorum" or members > nodes):
        what = f"this class has {nodes} node{'s' * (nodes > 1)}" if members > nodes else "is a knob of quorum queues"
        raise ScenarioError(f"rabbitmq.quorum_initial_group_size = {members}: {what}; drop it or choose another class")
    if settings["auto_delete"] and settings["queue_type"] != "classic":
        raise ScenarioError(
            f"rabbitmq.auto_delete = True: a {settings['queue_type']} queue stays without consumers; use classic"
        )
    if settings["queue_type"] == "quorum" and not settings["persistent"]:
        raise ScenarioError("rabbitmq.persistent = False: a quorum queue keeps every message on disk; use classic")
    if settings["queue_type"] == "quorum" and not settings["prefetch"]:
        raise ScenarioError(
            "rabbitmq.prefetch = 0: a quorum queue does not know unlimited, it takes 0 for 2000; expected 1 … 65535"
        )
    if settings["ack"] == "manual" and 0 < settings["prefetch"] < settings["ack_every"]:
        raise ScenarioError(
            f"rabbitmq.ack_every = {settings['ack_every']}: over prefetch = {settings['prefetch']}, so that every "
            "ack would wait for an idle consumer; expected at most prefetch"
        )
    _refuse_limits(settings)
    _refuse_failures(settings)
    _refuse_connections(settings)


def refuse_idle(settings: Settings, knobs: Settings) -> None:
    """Raise ScenarioError where a knob was chosen (`knobs`) that does nothing beside the others."""
    idle = next((knob for knob in ("prefetch", "ack_every") if knob in knobs), None)
    if settings["ack"] == "automatic" and idle is not None:
        raise ScenarioError(
            f"rabbitmq.{idle} = {knobs[idle]}: with automatic acknowledgement (as class `none` has it) nothing waits "
            f"for one; expected ack = manual (--set rabbitmq.ack=manual), or no {idle} in the scenario"
        )


def _refuse_connections(settings: Settings) -> None:
    channels = settings["channels_per_connection"] * settings["connections_per_process"]
    if settings["confirms"] and settings["confirm_window"] < channels:
        raise ScenarioError(
            f"rabbitmq.confirm_window = {settings['confirm_window']}: is shared by a producer's channels; expected at "
            f"least {channels}, as many as there are"
        )
    if settings["recover_within_s"] is not None and (channels > 1 or settings["reconnect_every_s"] is not None):
        raise ScenarioError(
            "rabbitmq.recover_within_s: a producer that recovers has one connection with one channel; expected "
            "channels_per_connection = connections_per_process = 1 and no reconnect_every_s"
        )
    if settings["reconnect_every_s"] is not None and settings["auto_delete"]:
        raise ScenarioError(
            f"rabbitmq.reconnect_every_s = {settings['reconnect_every_s']:g}: an auto-delete queue goes with its last "
            "consumer's connection; expected auto_delete = False"
        )
    if settings["reconnect_every_s"] is not None and settings["ack"] != "manual":
        raise ScenarioError(
            f"rabbitmq.reconnect_every_s = {settings['reconnect_every_s']:g}: with automatic acknowledgement a closed "
            "connection loses what is on its way; expected ack = manual"
        )


def _refuse_limits(settings: Settings) -> None:
    overflow, queue_type = settings["overflow"], settings["queue_type"]
    if overflow is None:
        return
    if settings["max_length"] is None and settings["max_length_bytes"] is None:
        raise ScenarioError(
            f"rabbitmq.overflow = {overflow}: nothing is ever full; expected max_length or max_length_bytes"
        )
    if overflow.startswith("reject-publish") and not settings["confirms"]:
        raise ScenarioError(
            f"rabbitmq.overflow = {overflow}: a producer hears of it by a nack; expected confirms = True, or drop-head"
        )
    if overflow == "reject-publish-dlx" and (queue_type != "classic" or not settings["dead_letter"]):
        raise ScenarioError(
            "rabbitmq.overflow = reject-publish-dlx: a classic queue dead-letters what it refuses; expected queue_type "
            "= classic and dead_letter = True"
        )


def _refuse_failures(settings: Settings) -> None:
    failing = next((knob for knob in FAILING if settings[knob]), None)
    if failing is not None and settings["ack"] != "manual":
        raise ScenarioError(
            f"rabbitmq.{failing} = {settings[failing]}: with automatic acknowledgement a message is gone when it is "
            "delivered; expected ack = manual"
        )
    for knob in ("delivery_limit", "fail_every"):
        if settings[knob] and settings["queue_type"] != "quorum":
            raise ScenarioError(
                f"rabbitmq.{knob} = {settings[knob]}: only a quorum queue counts deliveries; expected queue_type = "
                "quorum (durability class `broker` or `flushed`)"
            )


def refuse_unfit(settings: Settings, consumers: int) -> None:
    """Raise ScenarioError where nobody is there for a knob."""
    needing = next((knob for knob in ("expires_ms", *FAILING) if settings[knob]), None)
    if needing is not None and not consumers:
        raise ScenarioError(f"rabbitmq.{needing} = {settings[needing]}: nobody consumes; expected consumers ≥ 1")
