"""The decision in words: who carries the demand, with what headroom, how sure that is, and what would change it.

Every sentence is made by a rule from `loadgen.analysis.decision`; none is written for a run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadgen.analysis.decision import p99_ratio
from loadgen.demand import DEMAND, EDGE, ENOUGH, LOSS, SHOWN_BY_KILL
from loadgen.facts import carries
from loadgen.record import enters
from loadgen.report import chosen, hurt, words
from loadgen.report import points as pt
from loadgen.report.capacity import ratio as capacity_ratio

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadgen.analysis.decision import Candidate, Decision
    from loadgen.stats.confidence import Ratio

STRONGER = {"nothing": "broker", "broker": "power or node", "power": "node+power", "node": "node+power"}
WEAKER = {"broker": "nothing", "power": "broker", "node": "broker", "node+power": "node"}
P99_MSGS_LEAST = 1_000  # with fewer in a window ten messages and less are beyond its p99
REPEATS_MOST = 100  # more, nobody makes


@dataclass(frozen=True)
class DecisionText:
    """The answer, and the parts in which it is explained: (heading, sentences)."""

    headline: str
    parts: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def lines(self) -> list[str]:
        """All of it, a sentence a line."""
        return [self.headline, *(line for _, said in self.parts for line in said)]


def decision_text(decision: Decision) -> DecisionText:
    """The decision in words."""
    each = decision.candidates
    parts = (
        ("The answer for each", (*map(answer, each), *between(decision))),
        ("How sure that is", tuple(sure(decision))),
        ("What would change the answer", tuple(line for one in each for line in changes(one)) + unasked(decision)),
        ("Settings", (*(settings(one, decision) for one in each), *presets(decision))),
        ("What this answer leaves open", tuple(said for rule in UNSAID if (said := rule(decision)))),
    )
    return DecisionText(headline(decision), tuple((head, said) for head, said in parts if said))


def load(decision: Decision) -> str:
    """What is demanded: `20,000 msg/s of 1 KiB with a p99 of at most 10 ms, class replicated (…)`."""
    demand = decision.demand
    copies = f" to each of {demand.subscribers} subscribers" if demand.subscribers > 1 else ""
    return (
        f"{words.offered(demand.msgs_per_s)} of {words.size(demand.size_bytes)}{copies} with a p99 of at most "
        f"{demand.p99_ms:g} ms, class {demand.durability} ({words.CLASS_PROMISES[str(demand.durability)]})"
    )


def headline(decision: Decision) -> str:
    """Which brokers carry it, in one sentence."""
    answers = {name: decision.answer_of(name) for name in pt.BROKER_ORDER}
    asked = {words.broker_name(name): found for name, found in answers.items() if found is not None}
    by_answer = {found: [name for name, own in asked.items() if own == found] for found in asked.values()}
    carry, fail = by_answer.get("carries", []), by_answer.get("does not carry", [])
    open_ = by_answer.get("cannot tell", [])
    if not asked:
        return f"No trial at the demanded rate was begun: nothing is known of {load(decision)}."
    if len(carry) == 2:
        who = "RabbitMQ and Kafka both carry"
    elif len(fail) == 2:
        who = "Neither RabbitMQ nor Kafka carries"
    elif len(open_) == 2:
        who = "It cannot be told whether RabbitMQ or Kafka carries"
    else:
        clauses = [f"{name} carries it" for name in carry] + [f"{name} does not" for name in fail]
        clauses += [f"of {name} it cannot be told" for name in open_]
        return f"{'; '.join(clauses)}: {load(decision)}, on this machine{_untried(decision)}."
    return f"{who} {load(decision)}, on this machine{_untried(decision)}."


def _untried(decision: Decision) -> str:
    """That the promise is one of settings alone, where nobody killed a leader although a kill would show it."""
    untried = decision.demand.survive in SHOWN_BY_KILL and any(each.loss is None for each in decision.candidates)
    return "; what survives is so by the settings, as no leader was killed" if untried else ""


def name_of(candidate: Candidate) -> str:
    """`RabbitMQ (amqp, quorum queue)`, with what tells it from other candidates."""
    queue = candidate.settings.get("queue_type")
    kind = f", {queue} queue" if queue in {"classic", "quorum"} else ""
    own = pt.own_label(candidate.broker, candidate.point, None)
    return f"{words.broker_name(candidate.broker)} ({candidate.driver}{kind}{f', {own}' * bool(own)})"


def answer(candidate: Candidate) -> str:
    """Whether it carries the demand, by which figures."""
    name, seen = name_of(candidate), _seen(candidate)
    if candidate.answer == "carries":
        return f"{name} carries it: {seen}."
    if candidate.answer == "does not carry":
        return f"{name} does not carry it: {'; '.join(candidate.why)} ({seen})."
    return f"Of {name} it cannot be told: {'; '.join(candidate.why)} ({seen})."


def _seen(candidate: Candidate) -> str:
    return "; ".join(part for part in (p99_text(candidate), edge_text(candidate), loss_text(candidate)) if part)


def p99_text(candidate: Candidate) -> str:
    """`p99 3.10 ms (2.80–3.50 ms, 3 trials) at 20,000 msg/s`."""
    found, at = candidate.p99, words.offered(candidate.demand.msgs_per_s)
    if not found.n:
        return f"no p99 that may be used at {at}"
    interval = words.interval(found, "ns")
    return f"p99 {words.duration(found.median)} ({interval}, {words.plural(found.n, 'trial')}) at {at}"


def edge_text(candidate: Candidate) -> str:
    """`its edge here is 34.0 k msg/s (31.0–38.0 k msg/s, 3 searches), bound by host: headroom 1.70× (1.55–1.90)`."""
    edge = candidate.edge
    if edge is None:
        return ""
    found, all_ = edge.estimate.n, len(edge.searches)
    count = f"{f'{found} of ' * (found < all_)}{all_} search{'es' * (all_ != 1)}"
    if edge.msgs_per_s is None:
        last = f"in {all_} searches, of which the last says" if all_ > 1 else "in one search"
        return f"no rate was found that it sustains, {last}: {edge.searches[-1]['reason']}"
    middle, low, high = candidate.headroom
    assert middle is not None
    if edge.is_lower_bound and edge.msgs_per_s >= candidate.demand.enough_msgs_per_s * 0.999:
        return f"{count} found no edge up to {words.rate(edge.msgs_per_s)}: headroom at least {ENOUGH:g}×"
    if edge.is_lower_bound and middle < 1:  # where clients or the machine stopped a search, that is no edge
        came, why = words.rate(edge.msgs_per_s), edge.used[0]["reason"]
        return f"{count} came to {came}, where the {edge.bound_by} was the limit ({why}): no edge of its own"
    ends = words.span(*edge.limits, edge.msgs_per_s, "msgs_per_s") or "no interval"
    least = "at least " * edge.is_lower_bound
    scale, unit = (1.0, "×") if middle >= 1 else (100.0, " %")
    factor = f"{least}{words.significant(scale * middle)}{unit}"
    if low is not None and high is not None:
        factor += f" ({words.significant(scale * low)}–{words.significant(scale * high)})"
    factor = f"headroom {factor}" if middle >= 1 else f"{factor} of the demand"
    bound = f", bound by {edge.bound_by}" if edge.bound_by else ""
    return f"its edge here is {least}{words.rate(edge.msgs_per_s)} ({ends}, {count}){bound}: {factor}"


def loss_text(candidate: Candidate) -> str:
    """What became of confirmed messages when the leader was killed."""
    if candidate.loss is None or not candidate.loss["faults"]:
        return ""
    fault = candidate.loss["faults"][0]
    if fault["error"]:
        return f"the kill of its leader failed: {fault['error']}"
    gaps = hurt.gaps_text(fault)
    lost, acked = candidate.loss["confirmed_lost"], candidate.loss["acked"]
    kept = "what was lost is not known" if lost is None or acked is None else (
        f"{'none' if not lost else f'{lost:,}'} of {acked:,} confirmed messages lost"
    )  # fmt: skip
    came, window_s = candidate.loss["achieved_msgs_per_s"], candidate.loss["window_s"]
    is_carried = came is not None and carries(came, candidate.demand.msgs_per_s, window_s)
    load = "under this load" if is_carried else f"while {words.rate(came)} of it came through"
    struck = "" if enters(candidate.loss) else ", in a trial that is struck out"
    return f"its leader was killed {load}: {f'{gaps}, ' if gaps else ''}{kept}{struck}"


def between(decision: Decision) -> list[str]:
    """How the brokers compare where both carry it: p99 at the demanded rate, and edges."""
    each = [[one for one in decision.candidates if one.broker == name] for name in ("kafka", "rabbitmq")]
    if any(len(found) != 1 for found in each):
        return []
    kafka, rabbitmq = each[0][0], each[1][0]
    said = []
    if kafka.of("kept") and rabbitmq.of("kept"):
        said.append(_compared("p99 at this load", p99_ratio(kafka, rabbitmq), p99_ratio(rabbitmq, kafka)))
    if kafka.edge and rabbitmq.edge and kafka.has_edge and rabbitmq.has_edge:
        if kafka.edge.is_lower_bound or rabbitmq.edge.is_lower_bound:
            said.append("Their edges are not compared: one of them at least was not reached.")
        else:
            found = capacity_ratio(kafka.edge, rabbitmq.edge), capacity_ratio(rabbitmq.edge, kafka.edge)
            said.append(_compared("edge", *found))
    return said


def _compared(what: str, up: Ratio, down: Ratio) -> str:
    if up.low is None:
        return f"Kafka’s and RabbitMQ’s {what} are not compared: fewer than two pairs."
    if up.direction == "no difference shown":
        return f"Kafka’s {what} over RabbitMQ’s is {words.times(up)}: no difference shown."
    top, bottom, found = ("Kafka", "RabbitMQ", up) if up.direction == "higher" else ("RabbitMQ", "Kafka", down)
    return f"{top}’s {what} is {words.times(found)} {bottom}’s."


def sure(decision: Decision) -> list[str]:
    """On how much the answer stands."""
    trials = [tried for each in decision.candidates for tried in each.trials]
    if not trials:
        return []
    counted = Counter(each.outcome for each in trials)
    most = max(len(each.trials) for each in decision.candidates)
    outcomes = ", ".join(f"{counted[name]} {name}" for name in ("kept", "missed", "unclear") if counted[name])
    count = words.plural(most, "trial")
    said = [
        f"{count} at the demanded rate each, the brokers in turns ({outcomes}).",
        "Intervals are 95 % Student t intervals over trials or searches, never over messages.",
        "The p99 counts from when a message was due until it was received.",
    ]
    if counted["unclear"]:
        said.append("A trial is unclear that failed where clients, the machine or something else may have been why.")
    tried_records = [record for record in decision.run.records if _is_tried(decision, record)]
    windows, counts = {record["window_s"] for record in tried_records}, [each["received"] for each in tried_records]
    for each in decision.candidates:
        tails = [words.duration(tried.p99_ns) for tried in each.trials if enters(decision.run.trial(tried.trial_id))]
        if tails:
            said.append(f"{name_of(each)}, p99 of each trial that is used: {', '.join(tails)}.")
    known = [count for count in counts if count]
    if known and None not in windows:
        said.append(
            f"A trial measured {words.seconds(max(windows))} and {min(known):,} messages at the least; it checked "
            "itself and every message that it received."
        )
    parts = {DEMAND: "the trials at this rate", EDGE: "the searches", LOSS: "those under a kill"}
    names = {record["scenario"] for record in decision.run.records}
    told = [f"{name} are {what}" for name, what in parts.items() if name in names]
    return [*said, f"Wherever trials are listed, {', '.join(told)}."]


def _is_tried(decision: Decision, record: dict[str, Any]) -> bool:
    return any(record["id"] == tried.trial_id for each in decision.candidates for tried in each.trials)


def changes(candidate: Candidate) -> list[str]:
    """The objective and the rate at which a candidate's answer turns, and what would tell where it is open."""
    name, p99, edge = words.broker_name(candidate.broker), candidate.p99, candidate.edge
    low = edge.limits[0] if edge is not None and edge.msgs_per_s is not None else None
    if candidate.answer == "carries":
        said = [f"a p99 bound below {words.duration(p99.high)}"] if p99.high is not None else []
        if low is not None:
            said.append(f"a rate above {words.rate(low)}")
        return [f"{name}: {' or '.join(said)} is no longer shown to be carried."] if said else []
    if candidate.answer == "does not carry":
        said = []
        by_objective = all(each.limit == "objective" for each in candidate.of("missed"))
        if candidate.of("missed") and by_objective and p99.high is not None:
            said.append(f"a p99 bound above {words.duration(p99.high)}")
        if low is not None:
            said.append(f"a rate of at most {words.rate(low)}")
        return [f"{name}: {' or '.join(said)} would be carried."] if said else []
    return _telling(candidate, name)


def _telling(candidate: Candidate, name: str) -> list[str]:
    """What would tell where it is open."""
    said = []
    if any(each.limit == "consumers" for each in candidate.of("unclear")):
        said.append(f"{name}: more consumers (--consumers), or less work on each message (think_ms), would tell.")
    if {each.limit for each in candidate.of("unclear")} & {"host", "generator"}:
        elsewhere = "clients on other machines (docs/distributed.md), brokers of your own (--brokers URL) or more cores"
        said.append(f"{name}: {elsewhere} would tell the broker from its clients.")
    if any(each.disturbed for each in candidate.of("unclear")):
        said.append(f"{name}: a machine that nothing else uses meanwhile (`loadgen doctor`) may tell.")
    if said:
        return said
    needed = candidate.repeats_needed
    many = f"about {max(needed, len(candidate.trials) + 1)}" if needed and needed <= REPEATS_MOST else "more"
    return [f"{name}: {many} repeats (--repeats) may tell."]


def unasked(decision: Decision) -> tuple[str, ...]:
    """Which classes and kinds of queue were not asked about."""
    demand, said = decision.demand, []
    if demand.survive in STRONGER:
        said.append(f"A stronger promise (--survive {STRONGER[demand.survive]}) costs more, and was not measured.")
    if demand.survive in WEAKER and any(each.answer != "carries" for each in decision.candidates):
        said.append(f"A weaker promise (--survive {WEAKER[demand.survive]}) costs less, and was not measured.")
    rabbitmq = [each for each in decision.candidates if each.broker == "rabbitmq"]
    has_stream = any(each.settings.get("queue_type") == "stream" for each in rabbitmq)
    if rabbitmq and not has_stream and demand.survive in {"broker", "node"}:
        flushes = ", as it does not flush" if demand.survive == "node" else ""
        said.append(
            f"RabbitMQ’s streams, a log as Kafka’s topics are, may carry more{flushes}: --set rabbitmq.driver=stream, "
            "not measured."
        )
    return tuple(said)


def settings(candidate: Candidate, decision: Decision) -> str:
    """The knobs that differ from our defaults, apart from what the class demands."""
    broker, durability, given = candidate.broker, str(candidate.demand.durability), candidate.settings
    named = {name for each in decision.run.header["scenarios"] for name in each.get(broker) or {}}
    for_class = chosen.promised(broker, durability, given)
    changed = chosen.changed(broker, candidate.driver, durability, given, named)
    roles = f"{words.plural(candidate.producers, 'producer')}, {words.plural(candidate.consumers, 'consumer')}"
    own = ", ".join(changed) or "none"
    return f"{name_of(candidate)}: {roles}; for the class {', '.join(for_class) or 'none'}; for the load {own}."


def presets(decision: Decision) -> list[str]:
    """Why the settings for the load are as they are, where nobody chose others."""
    kept = {each.get("preset") for each in decision.run.header["scenarios"]}
    if kept != {"throughput"} or not decision.candidates:
        return []
    why = "Those for the load are preset throughput, with room for the rate; Kafka’s linger_ms is at most a fifth of"
    return [f"{why} the p99 demanded, unless it was set. None of them touches what the class promises."]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


# --- what cannot be said ---


def unsaid_machine(decision: Decision) -> str | None:
    """Brokers that shared the machine with their clients."""
    sources = {each.get("source") for each in decision.run.header["brokers"].values()}
    if "memory" in sources:
        return "Nothing of a broker: queues in memory stood in for both."
    if not sources & {"local", "docker"}:
        return "Nothing is known of other machines and networks than those that these brokers and clients ran on."
    nodes = ", all three nodes" if decision.demand.survive.startswith("node") else ""
    return (
        f"Nothing is known of other machines: brokers{nodes} and clients shared this one and its disk, and no network "
        "was between them."
    )


def unsaid_clients(decision: Decision) -> str | None:
    """Whose clients these were."""
    if not any(each.driver_kind == "wire" for each in decision.candidates):
        return None
    return (
        "Clients were this tool’s own, which do next to nothing with a message: a client library and your own work on "
        "each message come on top (--set rabbitmq.driver=pika, --set kafka.driver=confluent, --set think_ms=…)."
    )


def unsaid_load(decision: Decision) -> str | None:
    """What the load was not."""
    if not decision.candidates:
        return None
    return (
        "Messages came evenly spaced, into queues that were new: bursts, and what hours bring (full disks, long "
        "backlogs), are not in these figures (--duration, docs/soak.md)."
    )


def unsaid_few(decision: Decision) -> str | None:
    """A p99 of few messages."""
    counts = [record["received"] or 0 for record in decision.run.records if _is_tried(decision, record)]
    if not counts or min(counts) >= P99_MSGS_LEAST * decision.demand.subscribers:
        return None
    return (
        f"A window held as few as {min(counts):,} messages, so that its p99 stands on {max(1, min(counts) // 100)} of "
        "them: --duration has more."
    )


def unsaid_unknown(decision: Decision) -> str | None:
    """Trials that could not be checked in every respect."""
    tried = [record for record in decision.run.records if _is_tried(decision, record)]
    unknown = [record for record in tried if record["verdict"]["status"] == "unknown"]
    if not unknown:
        return None
    why = unknown[0]["verdict"]["reasons"][0] if unknown[0]["verdict"]["reasons"] else "no reason is told"
    return f"{len(unknown)} of {words.plural(len(tried), 'trial')} could not be checked in every respect: {why}."


def unsaid_loss(decision: Decision) -> str | None:
    """Whether what is to be survived was tried."""
    if decision.demand.survive == "nothing" or not decision.candidates:
        return None
    without = [words.broker_name(each.broker) for each in decision.candidates if not _was_hurt(each)]
    if without:
        return (
            f"What is to be survived was not tried on {' and '.join(dict.fromkeys(without))}: it is what the settings "
            "promise."
        )
    power = " A power cut was not tried: a killed process leaves the page cache whole." * (
        decision.demand.survive == "node+power"
    )
    return (
        "The p99 is of brokers that nobody hurt: while a leader is gone, messages wait for as long as is told above. "
        f"One was killed once each, which is no proof that none is ever lost.{power}"
    )


def _was_hurt(candidate: Candidate) -> bool:
    """Whether its leader was killed, and the account after it is known."""
    loss = candidate.loss
    if loss is None or not loss["faults"] or loss["confirmed_lost"] is None:
        return False
    return all(not each["error"] for each in loss["faults"])


def unsaid_edge(decision: Decision) -> str | None:
    """Edges that are not the broker's."""
    bound = {
        words.broker_name(each.broker): each.edge.bound_by
        for each in decision.candidates
        if each.edge is not None and each.edge.msgs_per_s is not None
        and pt.has_others_limit(each.edge.bound_by)
    }  # fmt: skip
    if not bound:
        return None
    limits = ", ".join(f"{name}’s by the {limit}" for name, limit in bound.items())
    return f"An edge that clients or machine set is not the broker’s, which may carry more: {limits}."


UNSAID: tuple[Callable[[Decision], str | None], ...] = (
    unsaid_machine, unsaid_clients, unsaid_load, unsaid_few, unsaid_unknown, unsaid_loss, unsaid_edge,
)  # fmt: skip
