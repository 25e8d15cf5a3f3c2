"""Is what each durability class promises kept when something breaks? The whole matrix, or many kills of leaders.

    python bench/faults.py                  every class under every fault of scenarios/faults/delivery.py (make faults)
    python bench/faults.py --matrix FILE    the scenarios of another file, such as scenarios/faults/exactly_once.py
    python bench/faults.py --kills 50       so many kills of the leader on each broker, half of them in class flushed
                                            and half in replicated (make prove-faults)
    python bench/faults.py --transactions 200   so many crashes of a processor inside its transaction (Kafka)
    python bench/faults.py --young 10       so many quorum queues killed soon after their declaration (RabbitMQ)

The run prints one line a trial: the fault, the class, the promise and whether it was held, with the counts of every
category. The ledger is held against the broker's own word: a RabbitMQ queue ends empty; a Kafka topic's offsets cover
all that was confirmed, and a fresh consumer that reads it all finds each message that came, and no other. The exit
status is 1 where a promise is broken, a trial did not come to its end, counts disagree, or what was to hurt did not: a
leader was killed and none came after it, class none lost nothing under any kill.

Intervals between kills are longer than the brokers' own time-outs, which stay as they are shipped: Kafka's session of
a broker ends after 9 s.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import crashed_transactions
import young_queue

from loadgen import At, Durability, Kafka, Kill, Message, RabbitMQ, Rate, Scenario
from loadgen.analysis.outages import costs
from loadgen.brokers import open_brokers
from loadgen.cli import main as loadgen
from loadgen.errors import EXIT_INVALID, EXIT_OK
from loadgen.report.promises import PROMISE_HEADS, note, promises, unflushed
from loadgen.runs import load_runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadgen.runs import Run

MATRIX = Path("scenarios/faults/delivery.py")
KILLS_A_TRIAL = 5
FIRST_S, EVERY_S = 5.0, 30.0  # Kafka: 9 s until it is noticed, some seconds until the node is back and in step
AGES_S = 5.0  # a quorum queue killed within a second of its declaration may lose what it confirmed (RabbitMQ 4.3)
CLASSES = (Durability.FLUSHED, Durability.REPLICATED)


def kills() -> Scenario:
    """Leaders killed one after another under load, in the class of replicas and in the flushed one of one node."""
    faults = [At(FIRST_S + EVERY_S * each, Kill("leader", back_after_s=3)) for each in range(KILLS_A_TRIAL)]
    return Scenario(
        name="kills",
        question="Does a broker keep what it confirmed, however often the node that leads is killed?",
        message=Message(size_bytes=512),
        rate=Rate.fixed(300),
        warmup_s=AGES_S,
        duration_s=FIRST_S + EVERY_S * KILLS_A_TRIAL,
        faults=faults,
        durability=list(CLASSES),
        rabbitmq=RabbitMQ(),
        kafka=Kafka(),
    )


def _disagreement(record: dict[str, Any]) -> str:
    """How a trial's ledger and its broker's own count do not fit each other; nothing where they do."""
    counts, name = record["broker_counts"] or {}, record["id"]
    if record["broker"] == "rabbitmq" and counts.get("depth_at_end"):
        return f"{name}: {counts['depth_at_end']:,} messages left in a queue that was to be drained"
    read, lost = counts.get("read_again"), record["lost"]
    if record["broker"] == "kafka" and (read is None or lost is None or read != record["sent"] - lost):
        return f"{name}: a fresh consumer found {read} messages, {record['sent']:,} were sent and {lost} never came"
    stored, acked = counts.get("stored"), record["acked"]
    if record["broker"] == "kafka" and stored is not None and acked is not None and stored < acked:
        return f"{name}: the topic's offsets tell {stored:,} messages, {acked:,} were confirmed"
    return ""


def told(run: Run) -> Iterable[str]:
    """What is wrong, a line each: trials, faults, promises and counts."""
    if run.status != "complete":
        yield f"{run.id}: the run was cut short: {run.reason or run.status}"
    planned = {each["name"]: len(each.get("faults") or ()) for each in run.header["scenarios"]}
    if not any(planned.values()):
        yield f"{run.id}: has no faults at all"
    for record in run.records:
        if len(record["faults"] or ()) != planned[record["scenario"]]:
            done = len(record["faults"] or ())
            yield f"{record['id']}: {done} of {planned[record['scenario']]} planned faults were carried out"
        if record["status"] != "complete":
            yield f"{record['id']}: {record['error'] or record['status']}"
        for each in record["faults"] or ():
            if wrong := each["error"] or _idle(record, each):
                yield f"{record['id']}: {each['what']}: {wrong}"
    for line in promises(run, costs(run)):
        if line.state not in {"held", "nothing promised"}:
            yield f"{line.trial_id}: {line.cells[PROMISE_HEADS.index('promise')]}: {line.state}"
    yield from unflushed(run)
    yield from _harmless(run)
    yield from filter(None, map(_disagreement, run.records))


def _idle(record: dict[str, Any], fault: dict[str, Any]) -> str:
    """Why a kill of the leader was none: of several nodes nobody else has led since; nothing where that is not so."""
    is_kill = fault["what"] == Kill("leader").described() and str(record["durability"]).startswith("replicated")
    return "nobody else was told to lead after it" if is_kill and fault["next_leader"] is None else ""


def _harmless(run: Run) -> Iterable[str]:
    """Brokers that lost nothing in class none, however often they were killed: kills or ledger may do nothing."""
    lost: dict[str, int] = {}
    for record in run.records:
        if record["durability"] == "none" and any(each["kind"] == "kill" for each in record["faults"] or ()):
            lost[record["broker"]] = lost.get(record["broker"], 0) + (record["unconfirmed_lost"] or 0)
    for broker in sorted(each for each, count in lost.items() if not count):
        yield f"{broker}: none: lost nothing under any kill: neither kills nor ledger prove anything"


def _own(results: Path, began_utc: str) -> Run:
    """The run that this process made: whoever else measures here meanwhile may have begun another one."""
    own = [run for run in load_runs(results / "*") if run.header["writer"]["pid"] == os.getpid()]
    (run,) = [run for run in own if str(run.header["created_utc"]) >= began_utc]
    return run


def transactions(crashes: int) -> int:
    """So many crashes of a processor inside its transaction; the exit status."""
    with open_brokers("local", ("kafka",)) as endpoints:
        audit = crashed_transactions.crash_often(endpoints["kafka"], crashes)
    wrong = audit.told()
    print("\n".join([*wrong, audit.line()]))
    return 1 if wrong else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; the value is the exit status."""
    parser = argparse.ArgumentParser(description="Break brokers and clients under load, and look at what was promised.")
    parser.add_argument(
        "--matrix",
        type=Path,
        default=MATRIX,
        metavar="FILE",
        help="a file of scenarios with faults: scenarios/faults/exactly_once.py",
    )
    parser.add_argument("--kills", type=int, help="kill the leader so often on each broker, in place of the matrix")
    parser.add_argument("--transactions", type=int, metavar="N", help="crash a Kafka processor in N transactions")
    parser.add_argument("--young", type=int, metavar="N", help="kill N quorum queues soon after their declaration")
    parser.add_argument("--broker", choices=("rabbitmq", "kafka"), help="one of them alone")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where runs are kept")
    arguments = parser.parse_args(argv)
    if arguments.transactions:
        return transactions(arguments.transactions)
    if arguments.young:
        return young_queue.report(arguments.young)
    began_s, began_utc = time.monotonic(), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    words = ["--repeats", "1", "--results", str(arguments.results)]
    words += [word for text in arguments.sets for word in ("--set", text)]
    words += ["--broker", arguments.broker] if arguments.broker else []
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.matrix
        if arguments.kills:
            path = Path(folder) / "kills.py"
            words[1] = str(-(-arguments.kills // (KILLS_A_TRIAL * len(CLASSES))))
            said = kills().model_dump(mode="json", exclude_none=True)
            path.write_text(f"from loadgen import Scenario\nscenario = Scenario(**{said!r})\n")
        status = loadgen(["run", str(path), *words])
    if status not in {EXIT_OK, EXIT_INVALID}:
        return status
    run = _own(arguments.results, began_utc)
    wrong = list(told(run))
    print("\n".join([note(run), *wrong]))  # the table itself is in what `loadgen run` has just printed
    hurt = sum(len(record["faults"] or ()) for record in run.records)
    print(f"{len(run.records)} trials, {hurt} faults, {(time.monotonic() - began_s) / 60:.1f} minutes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
