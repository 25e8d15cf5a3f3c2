"""What each class promised under faults, by the ledger: held, broken or not known, and never more than was tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import faults as bench_faults
import pytest
import young_queue
from hurts import bare_run

from loadgen.analysis.outages import costs
from loadgen.load import load_scenarios
from loadgen.plan import PROFILES, make_plan
from loadgen.probes import asked_under_faults, load_probe
from loadgen.probes.quantities import OWN, SHARE
from loadgen.report import hurt
from loadgen.report.promises import (
    COST_HEADS,
    EXACTLY,
    KEPT,
    NOTHING,
    PROMISE_HEADS,
    PROMISE_NOTE,
    judged,
    note,
    promises,
)

if TYPE_CHECKING:
    from loadgen.runs import Run

KILL = {
    "what": "kill of the leader", "kind": "kill", "hurts": "nodes", "nodes": [2], "at_s": 4.0, "mended_after_s": 7.0,
    "confirm_gap_s": 9.5, "delivery_gap_s": 9.6, "back_after_s": 9.7, "next_leader": 3, "error": None,
}  # fmt: skip

CRASH = KILL | {"what": "crash of the consumers after the work", "kind": "crash", "hurts": "consumers", "nodes": []}


def record(**given: Any) -> dict[str, Any]:
    """A trial under one kill in which all went well."""
    return {
        "id": "t1", "scenario": "kills",
        "status": "complete", "error": None, "broker": "kafka", "durability": "replicated", "settings": {},
        "window_s": 25.0, "interval_s": 1.0, "faults": [KILL], "sent": 1_000, "acked": 990, "confirmed_lost": 0,
        "unconfirmed_lost": 3, "dup_resend": 7, "dup_redelivery": 0, "duplicated": 7, "lost": 3,
        "offered_msgs_per_s": 300.0, "sent_msgs_per_s": 300.0,
        "links": None, "broker_counts": {"stored": 997, "depth_at_end": 0, "read_again": 997},
    } | given  # fmt: skip


def is_good(run: Run) -> bool:
    """Whether the bench has nothing against it."""
    return not any(bench_faults.told(run))


def finding(point: str, own: float, **given: Any) -> dict[str, Any]:
    """What the probe of flushes found of messages one at a time."""
    return {
        "id": "flushes/kafka/1", "probe": "flushes", "broker": "kafka", "point": f"{point}, 1 at a time", "what": OWN,
        "values": [own], "said": f"{own:.0f} of 100", "agrees": None, "error": None,
    } | given  # fmt: skip


@pytest.mark.parametrize(
    ("given", "promise", "state"),
    [
        ({}, KEPT, "held"),
        ({"confirmed_lost": 1}, KEPT, "broken"),
        ({"durability": "none", "confirmed_lost": 0, "duplicated": 9}, NOTHING, "nothing promised"),
        ({"durability": "none", "status": "failed"}, NOTHING, "not known"),
        ({"status": "failed"}, KEPT, "not known"),
        ({"confirmed_lost": None}, KEPT, "not known"),
        ({"settings": {"transaction_ms": 20, "isolation_level": "read_committed"}}, EXACTLY, "broken"),
        ({"settings": {"transaction_ms": 20, "isolation_level": "read_committed"}, "duplicated": 0}, EXACTLY, "held"),
        ({"settings": {"transaction_ms": 20, "isolation_level": "read_uncommitted"}}, KEPT, "held"),
        ({"settings": {"transaction_ms": 20, "isolation_level": "read_committed"}, "faults": [CRASH]}, KEPT, "held"),
    ],
)
def test_a_promise_is_held_where_the_ledger_shows_no_exception(given: Any, promise: str, state: str) -> None:
    """By class: nothing confirmed lost, or each once; class none promises nothing."""
    assert judged(record(**given)) == (promise, state)


def test_the_table_names_fault_class_and_every_category() -> None:
    """A cell for each head; trials without faults have none; all nodes at once are more than replicas promise."""
    fell = {**KILL, "what": "kill of all nodes", "nodes": [1, 2, 3]}
    found = promises(run := bare_run(record(), record(faults=None), record(id="t2", faults=[fell, fell])), costs(run))
    assert [each.trial_id for each in found] == ["t2", "t1"]
    assert all(len(each.cells) == len(PROMISE_HEADS) for each in found)
    assert found[0].cells[0] == "2 × kill of all nodes"
    assert found[0].cells[3] == f"{KEPT} (all nodes at once)"
    cut = {**fell, "what": "cut of all nodes from the clients", "kind": "cut", "hurts": "clients_network"}
    (whole,) = promises(run := bare_run(record(faults=[cut])), costs(run))
    assert whole.cells[3] == KEPT, "no node has fallen"
    assert found[1].cells[5:] == ("1,000", "990", "0", "3", "7", "0", "9.6 s")
    assert all(len(each.cost) == len(COST_HEADS) for each in found)
    assert found[1].cost[3:] == ("10 s", *["–"] * 6), "from second 4 to 13.7, and nobody knows of latency"
    (cut,) = promises(run := bare_run(record(status="failed", window_s=None)), costs(run))
    assert cut.cost[3:] == ("–",) * 7


def test_the_ledger_is_held_against_the_brokers_own_count() -> None:
    """A queue that is not empty, or offsets that do not cover what was confirmed, are told and fail the bench."""
    assert is_good(bare_run(record()))
    short = record(broker_counts={"stored": 900, "depth_at_end": 0, "read_again": 997})
    assert not is_good(bare_run(short))
    assert "offsets tell 900 messages, 990 were confirmed" in "\n".join(bench_faults.told(bare_run(short)))
    unread = record(broker_counts={"stored": 997, "depth_at_end": 0, "read_again": 996})
    assert "a fresh consumer found 996 messages" in "\n".join(bench_faults.told(bare_run(unread)))
    cut = bare_run()
    cut.status = "partial"
    assert not is_good(cut), "a run without a trial proves nothing"
    assert not is_good(bare_run(record(broker="rabbitmq", broker_counts={"depth_at_end": 4})))
    assert not is_good(bare_run(record(faults=[{**KILL, "error": "it did not come back"}])))


def test_what_was_to_hurt_has_to() -> None:
    """A leader after whom nobody leads was none; class none that loses nothing under any kill proves nothing."""
    same = {**KILL, "next_leader": None}
    assert list(bench_faults.told(bare_run(record(faults=[same])))) == [
        "t1: kill of the leader: nobody else was told to lead after it"
    ]
    assert is_good(bare_run(record(faults=[same], durability="broker"))), "one node is its own leader"
    none = record(durability="none", unconfirmed_lost=0, lost=0, broker_counts={"read_again": 1_000, "stored": 1_000})
    assert list(bench_faults.told(bare_run(none))) == [
        "kafka: none: lost nothing under any kill: neither kills nor ledger prove anything"
    ]
    assert is_good(bare_run(none, record(durability="none"))), "one of them is enough"
    paused = {**none, "faults": [{**KILL, "kind": "pause", "what": "pause of the leader"}]}
    assert is_good(bare_run(paused)), "nobody lost anything by a pause"


def test_a_run_that_is_not_the_matrix_proves_nothing() -> None:
    """Without a fault, or with fewer than were planned, the bench fails: it may be another run, or a half one."""
    assert "has no faults at all" in "\n".join(bench_faults.told(bare_run(record(faults=None))))
    fewer = bare_run(record())
    fewer.header["scenarios"][0]["faults"] = [KILL, KILL]
    assert "1 of 2 planned faults were carried out" in "\n".join(bench_faults.told(fewer))


def test_what_waits_in_the_queue_is_not_lost() -> None:
    """Where a drain was given up with messages in the queue, nobody knows whether the promise was held."""
    counts = {"stored": None, "depth_at_end": 40, "read_again": None}
    waiting = record(broker="rabbitmq", confirmed_lost=40, broker_counts=counts)
    assert judged(waiting) == (KEPT, "not known")
    (told,) = hurt.sentences(run := bare_run({**waiting, "driver": "amqp", "proxy": None, "links": None}), costs(run))
    assert "40 of them did not come before the drain was given up, with 40 messages at the broker yet" in told
    assert "LOST" not in told
    assert judged({**waiting, "broker": "rabbitmq", "confirmed_lost": 41}) == (KEPT, "broken"), "one more than waits"
    kafka = record(confirmed_lost=40, lost=40, broker_counts={"stored": 1_000, "depth_at_end": 0, "read_again": 1_000})
    assert judged(kafka) == (KEPT, "not known"), "a fresh consumer finds them"


def test_the_longest_gap_is_the_longest_of_both_kinds() -> None:
    """Confirms that went on do not hide that nothing was delivered."""
    fault = {**KILL, "confirm_gap_s": 0.1, "delivery_gap_s": 9.0}
    (line,) = promises(run := bare_run(record(faults=[fault], durability="flushed")), costs(run))
    assert line.cells[-1] == "9.0 s"
    assert line.cells[3] == f"{KEPT} (a power cut: not testable here)"


def test_flushes_are_told_in_place_of_a_power_cut() -> None:
    """Of flushed classes alone, by what the run found; a confirm without a flush fails the bench."""
    good = [finding("flushed", 100), finding("broker", 0), finding("flushed", 1.1, what=SHARE)]
    assert note(bare_run(record(), findings=good)) == (
        f"{PROMISE_NOTE} Kafka, class flushed: confirms that came after a flush of their own: 100 of 100."
    )
    assert is_good(bare_run(record(), findings=good))
    assert note(bare_run(record())) == PROMISE_NOTE
    bad = bare_run(record(), findings=[finding("replicated_flushed", 99, agrees=False)])
    assert note(bad).endswith("99 of 100; the broker’s own count says otherwise.")
    assert list(bench_faults.told(bad)) == [
        "flushes/kafka/1: replicated_flushed, 1 at a time: confirms without a flush before them: 99 of 100"
    ]
    contradicted = bare_run(record(), findings=[finding("flushed", 100, agrees=False)])
    assert "the broker counts otherwise: 100 of 100" in "\n".join(bench_faults.told(contradicted))
    flushed = record(durability="flushed")
    assert is_good(bare_run(flushed, findings=good))
    for unknown in ([], [finding("replicated_flushed", 100)], [finding("flushed", 100, broker="rabbitmq")]):
        assert "kafka: flushed: whether confirms come after a flush was not found out" in "\n".join(
            bench_faults.told(bare_run(flushed, findings=unknown))
        )
    absent = finding("", 0, what="measured", values=[], error="not testable here: there is no strace on this machine")
    assert is_good(bare_run(flushed, findings=[absent]))
    assert note(bare_run(record(), findings=[absent])).endswith(
        " Kafka, flushes before confirms: not testable here: there is no strace on this machine."
    )


def test_flushes_are_asked_where_faults_hit_a_class_that_speaks_of_them() -> None:
    """And on brokers of the size that the class has; `loadgen probe` asks both."""
    assert asked_under_faults(["broker", "flushed"]) == asked_under_faults(["replicated_flushed"]) == ("flushes",)
    assert asked_under_faults(["none", "broker", "replicated"]) == ()
    sizes = load_probe("flushes").sizes
    assert (sizes(["flushed", "replicated"]), sizes(["replicated_flushed"])) == ((1,), (3,))
    assert (sizes(), sizes(standing=3)) == ((1, 3), (3, 1))
    assert load_probe("ordering").sizes(["replicated"]) == (1,)


@pytest.mark.parametrize(("aged_found", "status"), [(50, 0), (49, 1)])
def test_a_young_queue_may_lose_and_an_old_one_not(
    aged_found: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the young one loses is told and is no failure; one that lived too long is no try of a young one."""
    young = [young_queue.Tried(0.2, 50, 0, True, "4.3.6"), young_queue.Tried(0.9, 50, 50, False, "4.3.6")]
    aged = [young_queue.Tried(2.2, 50, aged_found, False, "4.3.6")]
    monkeypatch.setattr(young_queue, "tried", lambda _: {0.0: young, 2.0: aged})
    assert bench_faults.main(["--young", "1"]) == status
    told = capsys.readouterr().out
    assert "killed within 0.20 s of its declaration: 1 of 1 tries lost confirmed messages, 50 of 50 messages" in told
    assert "1 tries were too slow" in told
    assert f"within 2.20 s of its declaration: {status} of 1 tries lost" in told
    assert "NO YOUNG QUEUE" not in told


@pytest.mark.parametrize(("age_s", "status", "words"), [(0.9, 1, "NOTHING IS KNOWN"), (0.2, 0, "NO YOUNG QUEUE LOST")])
def test_young_queues_that_are_none_or_lose_nothing_are_told(
    age_s: float, status: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a try in time nothing was tried; where none loses anything, RabbitMQ has changed."""
    tries = {0.0: [young_queue.Tried(age_s, 50, 50, False, "4.3.6")], 2.0: [young_queue.Tried(2.2, 50, 50, False, "4")]}
    monkeypatch.setattr(young_queue, "tried", lambda _: tries)
    assert young_queue.report(1) == status
    assert words in capsys.readouterr().out


def test_the_matrix_and_the_kills_can_be_planned() -> None:
    """Every class the issue of delivery names, under every fault; fifty kills fit into ninety minutes."""
    matrix = load_scenarios(bench_faults.MATRIX)
    plan = make_plan(matrix, PROFILES["quick"], repeats=1)
    assert {trial.scenario for trial in plan.trials} >= {
        "delivery-kill-leader", "delivery-kill-all", "delivery-pause-leader", "delivery-crash-consumers",
        "delivery-crash-producers", "delivery-transactions",
    }  # fmt: skip
    assert {str(trial.durability) for trial in plan.trials} == {"none", "broker", "flushed", "replicated"}
    assert plan.expected_s < 30 * 60
    assert make_plan([bench_faults.kills()], PROFILES["quick"], repeats=4).expected_s < 90 * 60
