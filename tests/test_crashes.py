"""Clients that crash in mid-trial, on real brokers: each class keeps its word, and the ledger explains every copy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hurts import bare_run, hurt_scenario, record_mended, record_of
from verdicts import BUSY, against, due

from loadgen import At, Crash, Durability, Kafka, Kill, RabbitMQ, Rate, Scenario
from loadgen.analysis.outages import costs
from loadgen.errors import ScenarioError
from loadgen.report import hurt

if TYPE_CHECKING:
    from loadgen.endpoint import BrokerName, Endpoint

BOTH = pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])


def crashed(endpoint: Endpoint, *faults: At, window_s: float | None = None, **given: Any) -> dict[str, Any]:
    """One trial on a shared broker, which crashes of clients do not hurt: as long as they take, or as it is said."""
    made = hurt_scenario(*faults, **{"name": "crashes", **given})
    asked = endpoint, made
    record = record_mended(*asked, warmup_s=0.5) if window_s is None else record_of(*asked, window_s, warmup_s=0.5)
    assert record["status"] == "complete", record["error"]
    assert [each["error"] for each in record["faults"]] == [None] * len(faults)
    assert (record["corrupted"], record["foreign"]) == (0, 0)
    return record


@BOTH
def test_who_crashes_after_the_work_has_it_done_twice(
    endpoints: dict[BrokerName, Endpoint], broker: BrokerName
) -> None:
    """Nothing was settled: all of it comes again to the successor, marked, and nothing is lost."""
    record = crashed(endpoints[broker], At(0.5, Crash()), At(1, Crash()))
    assert record["lost"] == 0
    assert record["duplicated"] == record["dup_redelivery"] > 0
    assert not against(record, BUSY), "all but what a busy machine does"
    (told,) = hurt.sentences(run := bare_run(record), costs(run))
    assert re.search(r"crash of the consumers after the work at \d+ s", told)
    assert "mended" not in told


@BOTH
def test_who_crashes_before_the_work_loses_none_of_it(
    endpoints: dict[BrokerName, Endpoint], broker: BrokerName
) -> None:
    """What the dead consumer held comes to its successor."""
    record = crashed(endpoints[broker], At(0.5, Crash(when="before")))
    assert record["lost"] == 0
    assert record["duplicated"] == record["dup_redelivery"]


@pytest.mark.long
def test_without_acknowledgements_what_a_dead_consumer_held_is_gone(endpoints: dict[BrokerName, Endpoint]) -> None:
    """Class none: sent and never worked on, since the broker counts as received what it has written to the socket."""
    faults = [At(1 + 0.1 * number, Crash(when="before")) for number in range(7)]
    record = crashed(endpoints["rabbitmq"], *faults, durability=Durability.NONE)
    assert record["lost"] > 0
    assert record["duplicated"] == 0


@BOTH
def test_producers_that_crash_lose_nothing_that_was_confirmed(
    endpoints: dict[BrokerName, Endpoint], broker: BrokerName
) -> None:
    """Their successors go on with the schedule, and know of nothing that was not confirmed."""
    record = crashed(endpoints[broker], At(0.5, Crash("producers")), At(1.5, Crash("producers")), window_s=3.5)
    assert record["confirmed_lost"] == record["duplicated"] == 0
    assert due(record) == 4 * 400
    assert record["sent"] > 2 * 400, "who came last goes on with the schedule, too"
    assert record["received"] >= record["acked"] > 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rabbitmq": RabbitMQ(driver="pika")}, "driver pika cannot crash in the midst of a process"),
        ({"kafka": Kafka(driver="confluent")}, "driver confluent cannot crash"),
        ({"faults": lambda: [At("1s", Crash("brokers"))]}, "role = 'brokers'"),
    ],
)
def test_a_crash_that_cannot_be_is_one_line(given: dict[str, Any], words: str) -> None:
    """What was given, and what was expected."""
    known: dict[str, Any] = {
        "name": "a", "question": "?", "rate": Rate.fixed(10), "rabbitmq": RabbitMQ(), "kafka": Kafka(),
        "faults": lambda: [At("1s", Crash())],
    }  # fmt: skip
    with pytest.raises(ScenarioError) as refused:
        Scenario(**{name: value() if callable(value) else value for name, value in (known | given).items()})
    assert words in str(refused.value)


def test_crashes_alone_need_no_brokers_of_ones_own() -> None:
    """A scenario remembers them; beside a kill of the broker they are described by their role."""
    faults = [At(1, Crash("producers")), At(2, Crash(when="before")), At(3, Kill())]
    made = Scenario(name="a", question="?", rate=Rate.fixed(10), rabbitmq=RabbitMQ(), faults=faults)
    assert Scenario(**made.model_dump(mode="json", exclude_none=True)).faults == faults
    assert [each.fault.described() for each in faults] == [
        "crash of the producers", "crash of the consumers before the work", "kill of the leader"
    ]  # fmt: skip
