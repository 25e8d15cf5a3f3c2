"""What each durability class promised under faults, and whether the broker kept it: data for all three formats.

Of a class with confirmations the promise is that no confirmed message is lost; class `none` promises nothing, and shows
what that costs. Kafka's committed transactions promise each confirmed message once. What a trial cannot show is said:
`kill -9` leaves the system's page cache whole, so that no promise about a power cut is tested by it, and a promise
about the loss of a node is not tested where all nodes fall at once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from loadgen.analysis.outages import GAP_WORDS, PERCENTS
from loadgen.probes.quantities import OWN
from loadgen.record import surely_lost
from loadgen.report import timeouts, words
from loadgen.report.points import broker_rank, class_rank

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from loadgen.analysis.outages import Cost, Percentiles
    from loadgen.record import Record
    from loadgen.runs import Run

State = Literal["held", "broken", "nothing promised", "not known"]
PROMISE_HEADS = (
    "fault", "class", "broker", "promise", "", "sent", "confirmed", "confirmed and lost", "unconfirmed, never came",
    "sent again", "redelivered", "longest gap",
)  # fmt: skip
PROMISE_NOTE = (
    "A promise is held where the ledger of every message shows no exception. Not testable here: a power cut, of which "
    "the flushed classes speak, since a killed process leaves the system’s page cache whole. Messages sent again or "
    "redelivered came more than once; nobody promised otherwise, but for committed transactions. In class none "
    "whatever was sent and never came stands as unconfirmed."
)
COST_HEADS = (
    "fault", "class", "broker", "lasted", "p50 under", "p99 under", "p99.9 under",
    "p50 apart", "p99 apart", "p99.9 apart",
)  # fmt: skip
COST_NOTE = (
    "What faults cost: end-to-end response times of messages intended under one, from its begin until the rate was "
    "back, in whole seconds, since the histograms are by the second; and apart from it, those of all others, of which "
    "the next ones may still have waited behind what had piled up. A message that never came has none."
)
COUNTED = ("sent", "acked", "confirmed_lost", "unconfirmed_lost", "dup_resend", "dup_redelivery")
FLUSHES = "flushes"  # the probe's name
FLUSHED = ("flushed", "replicated_flushed")
NOT_HERE = "not testable here"  # how a probe says that this machine does not let it look
NOTHING, KEPT, EXACTLY = "nothing", "no confirmed one is lost", "each confirmed one once"


@dataclass(frozen=True)
class Promise:
    """One trial's line."""

    trial_id: str
    state: State
    cells: tuple[str, ...]
    """As `PROMISE_HEADS` has them."""
    cost: tuple[str, ...]
    """As `COST_HEADS` has them."""


def promises(run: Run, costs: Mapping[str, Cost]) -> list[Promise]:
    """One for each trial with faults, by fault, then class, then broker; several repeats stay apart.

    `costs` are those of `loadgen.analysis.outages`.
    """
    hurt = [record for record in run.records if record["faults"]]
    return [_line(record, costs[record["id"]]) for record in sorted(hurt, key=_place)]


def note(run: Run) -> str:
    """What stands beside the table: what no kill can show, and what was counted of this run's brokers in its place."""
    return " ".join([PROMISE_NOTE, *timeouts.meanings(run), *_flushes(run)])


def _flushes(run: Run) -> Iterator[str]:
    """For each broker and flushed class, how many confirms had a flush before them; or why nobody knows."""
    found = [each for each in run.header["findings"] if each["probe"] == FLUSHES]
    for each in filter(_is_of_flushed, found):
        where = f"{words.broker_name(each['broker'])}, class {_class_in(each)}"
        doubt = "; the broker’s own count says otherwise" if each["agrees"] is False else ""
        yield f"{where}: confirms that came after a flush of their own: {each['said']}{doubt}."
    for each in found:
        if each["error"]:
            yield f"{words.broker_name(each['broker'])}, flushes before confirms: {each['error']}."


def unflushed(run: Run) -> Iterator[str]:
    """Flushed classes in which a confirm came without a flush before it, a line each: what a power cut would take.

    And what was counted and is contradicted by the broker, or failed; and classes that were hurt of which nothing was
    found, nor why that cannot be: nobody knows then.
    """
    found = [each for each in run.header["findings"] if each["probe"] == FLUSHES]
    for each in found:
        if _is_of_flushed(each) and any(value < 100 for value in each["values"]):
            yield f"{each['id']}: {each['point']}: confirms without a flush before them: {each['said']}"
        elif each["agrees"] is False:
            yield f"{each['id']}: {each['point']}: {each['error'] or 'the broker counts otherwise: ' + each['said']}"
    hurt = {(each["broker"], str(each["durability"])) for each in run.records if each["faults"]}
    for broker, durability in sorted(each for each in hurt if each[1] in FLUSHED):
        if not any(each["broker"] == broker and _settles(each, durability) for each in found):
            yield f"{broker}: {durability}: whether confirms come after a flush was not found out, nor why it cannot be"


def _settles(finding: Record, durability: str) -> bool:
    """Whether it tells of a class's confirms, or why nothing can be told of any here."""
    if _is_of_flushed(finding) and finding["values"]:
        return _class_in(finding) == durability
    return str(finding["error"] or "").startswith(NOT_HERE)


def _class_in(finding: Record) -> str:
    """The durability class that a finding about flushes is of: its point begins with it."""
    return str(finding["point"].split(",")[0])


def _is_of_flushed(finding: Record) -> bool:
    """Whether it tells of confirms in a class that promises a flush before each."""
    return finding["what"] == OWN and _class_in(finding) in FLUSHED


def _place(record: Record) -> tuple[str, int, int]:
    return (in_words([record]), class_rank(record["durability"]), broker_rank(record["broker"]))


def judged(record: Record) -> tuple[str, State]:
    """What was promised, and whether it was kept."""
    # A consumer that crashed reads on from its last commit of offsets, which is no part of the producer's transaction.
    is_read_again = any(each["hurts"] == "consumers" for each in record["faults"] or ())
    is_committed = record["settings"].get("isolation_level") == "read_committed" and _is_transactional(record)
    is_exact = is_committed and not is_read_again
    promise = EXACTLY if is_exact else NOTHING if record["durability"] == "none" else KEPT
    lost, twice = surely_lost(record), record["duplicated"]
    if record["status"] != "complete" or lost is None or twice is None:
        return promise, "not known"
    if promise == NOTHING:
        return promise, "nothing promised"
    return promise, "broken" if lost > 0 or (is_exact and twice > 0) else "held"


def _is_transactional(record: Record) -> bool:
    settings = record["settings"]
    return bool(settings.get("transaction_ms") or settings.get("transaction_msgs"))


def _line(record: Record, cost: Cost) -> Promise:
    promise, state = judged(record)
    if fell_together(record):
        promise += ", which this class does not promise here" if state == "broken" else " (all nodes at once)"
    if record["durability"] in FLUSHED:
        promise += " (a power cut: not testable here)"
    gaps = [each[f"{kind}_gap_s"] or 0.0 for each in record["faults"] for kind in GAP_WORDS]
    cells = (
        in_words([record]),
        class_of(record),
        words.broker_name(record["broker"]),
        promise,
        state,
        *(words.number(record[name]) for name in COUNTED),
        f"{max(gaps):.1f} s",
    )
    lasted = words.seconds(len(cost.intervals) * cost.interval_s) if cost.intervals else words.NOTHING
    return Promise(record["id"], state, cells, (*cells[:3], lasted, *_latencies(cost.under), *_latencies(cost.apart)))


def _latencies(percentiles: Percentiles | None) -> tuple[str, ...]:
    return tuple(map(words.duration, percentiles or (None,) * len(PERCENTS)))


def fell_together(record: Record) -> bool:
    """Whether more was broken than a class of replicas speaks of; where the network is hurt, nodes are whole."""
    return record["durability"].startswith("replicated") and any(
        len(each["nodes"]) > 1 and each["hurts"] == "nodes" for each in record["faults"]
    )


def class_of(record: Record) -> str:
    """A trial's durability class, of transactions with what is read of them."""
    isolation = f", {record['settings']['isolation_level']}" if _is_transactional(record) else ""
    return f"{record['durability']}{isolation}"


def in_words(records: Iterable[Record]) -> str:
    """The faults of trials, each once with its number."""
    told = Counter(each["what"] for record in records for each in record["faults"])
    return ", ".join(f"{number} × {what}" if number > 1 else what for what, number in told.items())
