"""Trials whose broker was hurt, a sentence each: how long it stood still, what that cost, whether it kept its word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadgen.analysis.outages import BEFORE_S, GAP_WORDS
from loadgen.record import surely_lost, waiting
from loadgen.report import timeouts, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from loadgen.analysis.outages import Cost
    from loadgen.record import Record
    from loadgen.runs import Run

SHORTEST_S = 0.1
SENT_SHARE = 0.9
"""Of an open loop’s messages: with fewer sent in the window, what waited was not only what the fault held up."""
SEVERAL = 3
"""So many faults of one kind are told together."""


def sentences(run: Run, costs: Mapping[str, Cost]) -> list[str]:
    """One for each trial with faults, in their order; `costs` are those of `loadgen.analysis.outages`."""
    return [_told(run, record, costs[record["id"]]) for record in run.records if record["faults"]]


def _told(run: Run, record: Record, cost: Cost) -> str:
    """Its faults, and the account of its messages."""
    name = words.broker_name(record["broker"])
    faults = "; ".join(_faults(run, record))
    passed = "".join(f" {_passed(whose, record[name])}" for name, whose in _PROXIES.items() if record[name])
    told = f"{faults}. {_latency(cost)}{_overload(record)}{_account(record)}{passed}"
    return f"{name} ({record['driver']}), class {record['durability']}: {told}"


_PROXIES = {"proxy": "Clients reached it", "links": "Its nodes reached each other"}


def _passed(whose: str, proxy: Record) -> str:
    if proxy["bytes"] is None:
        return f"{whose} through a proxy, which died."
    return (
        f"{whose} through a proxy ({proxy['bytes']:,} bytes, {proxy['cpu_s']:.1f} s of CPU): its own time "
        "is in every latency."
    )


def _overload(record: Record) -> str:
    """That the load was too much with the faults or without, where a good part of it was never sent."""
    due, sent = record["offered_msgs_per_s"], record["sent_msgs_per_s"]
    if not due or sent is None or sent >= SENT_SHARE * due:
        return ""
    told = f"Only {words.rate(sent)} of the {words.offered(due)} that were due was sent"
    return f"{told}: its latencies are of overload, too. "


def _latency(cost: Cost) -> str:
    """The slowest thousandth of the messages that were intended under faults; nothing where they have no latency."""
    if cost.under is None:
        return ""
    under, apart = (words.NOTHING if each is None else words.duration(each[-1]) for each in (cost.under, cost.apart))
    seconds = words.plural(round(len(cost.intervals) * cost.interval_s), "second")
    return f"The p99.9 of messages intended in these {seconds} was {under}, of all others {apart}. "


def _faults(run: Run, record: Record) -> Iterator[str]:
    """Each by itself, but the same again and again as one, by its ranges."""
    alike: dict[tuple[str, float | None], list[Record]] = {}
    for each in record["faults"]:
        alike.setdefault((each["what"], each["at_s"] if each["error"] else None), []).append(each)
    for found in alike.values():
        if len(found) >= SEVERAL:
            yield _several(found, timeouts.beside(run, record, found[0]))
        else:
            yield from (_fault(each, timeouts.beside(run, record, each)) for each in found)


def _several(faults: Sequence[Record], waited: str) -> str:
    """What was done several times: from the shortest to the longest time that nothing came."""
    nodes = sorted({node for each in faults for node in each["nodes"]})
    whom = f"node {', '.join(map(str, nodes))}, " if nodes else ""
    text = f"{len(faults)} × {faults[0]['what']} ({whom}at {_range([each['at_s'] for each in faults], 0)} s)"
    gaps = {verb: [each[f"{kind}_gap_s"] for each in faults] for kind, verb in GAP_WORDS.items()}
    known = [f"nothing was {verb} for {_range(found)} s" for verb, found in gaps.items() if None not in found]
    back = [each["back_after_s"] for each in faults if each["back_after_s"] is not None]
    returned = f", the rate was back after {_range(back)} s" if back else ""
    if known and back and (missing := len(faults) - len(back)):
        returned += f", {words.plural(missing, 'time')} not before the next one or the end"
    return f"{text}{_stood_still(' and '.join(known), waited)}{returned}{_mended(faults)}"


def _stood_still(gaps: str, waited: str) -> str:
    """How long nothing came, and beside it the timeouts that others waited for."""
    return (f": {gaps}" + f" ({waited})" * bool(waited)) if gaps else ""


def _mended(faults: Sequence[Record]) -> str:
    """After how long what was broken served again; of what is over at once nothing."""
    is_over = faults[0]["kind"] in _MOMENTS
    return "" if is_over else f"; mended after {_range([each['mended_after_s'] for each in faults])} s"


def _range(values_s: Sequence[float], digits: int = 1) -> str:
    low, high = (f"{each:.{digits}f}" for each in (min(values_s), max(values_s)))
    return low if low == high else f"{low} to {high}"


def _fault(fault: Record, waited: str) -> str:
    """What was done, how long nothing came, and when it was over."""
    nodes = "" if fault["kind"] == "crash" else f" (node {', '.join(map(str, fault['nodes'])) or 'none'})"
    text = f"{fault['what']}{nodes} at {fault['at_s']:.0f} s"
    if fault["error"]:
        return f"{text}: {fault['error']}"
    text += _stood_still(gaps_text(fault), waited)
    back = fault["back_after_s"]
    if back is not None:
        text += f", the rate was back after {back:.1f} s"
    elif fault["delivery_gap_s"] is not None and fault["at_s"] >= BEFORE_S:
        text += ", the rate was not back before the end"
    return f"{text}{_mended([fault])}"


_MOMENTS = frozenset({"crash", "reset"})  # over as soon as they are done


def gaps_text(fault: Record) -> str:
    """`nothing was confirmed for 1.2 s and nothing was delivered for 1.3 s`; empty where neither is known."""
    gaps = [(verb, fault[f"{kind}_gap_s"]) for kind, verb in GAP_WORDS.items() if fault[f"{kind}_gap_s"] is not None]
    return " and ".join(f"nothing was {verb} for {_gap(seconds)}" for verb, seconds in gaps)


def _gap(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= SHORTEST_S else f"under {SHORTEST_S:g} s"


def _account(record: Record) -> str:
    """Whether the broker kept its word."""
    if record["confirmed_lost"] is None:
        return "What was lost is not known: nobody consumed, or the trial was cut short."
    confirmed = "nothing is confirmed in this class" if record["acked"] is None else f"{record['acked']:,} confirmed"
    sure = surely_lost(record)
    kept = (
        "none of them lost" if sure == 0 else f"{sure:,} of them LOST" if sure else "whether any is lost is not known"
    )
    if left := waiting(record):
        missing = f"{record['confirmed_lost']:,} of them did not come before the drain was given up"
        kept += f": {missing}, with {left:,} messages at the broker yet"
    lost = f"{confirmed}, {kept}" if record["acked"] is not None else confirmed
    doubled = record["duplicated"] or 0
    explained = (record["dup_resend"] or 0) + (record["dup_redelivery"] or 0)
    return (
        f"Of {record['sent']:,} messages {lost}; {record['unconfirmed_lost']:,} unconfirmed ones never came, "
        f"{doubled:,} came more than once ({explained:,} of these copies sent again or redelivered)."
    )
