"""Probes on the real brokers: what they find is what the broker itself says, and what its makers document."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S

from loadgen.brokers import kill, private_brokers
from loadgen.brokers.process import find_marked
from loadgen.brokers.state import brokers_dir
from loadgen.cli import main
from loadgen.driver import Target
from loadgen.drivers.rabbitmq_admin import RabbitMQAdmin
from loadgen.endpoint import Endpoint
from loadgen.errors import BrokerError, ScenarioError
from loadgen.knobs import resolve
from loadgen.plan import Profile
from loadgen.probes import (
    NAMES,
    Finding,
    Ground,
    connections,
    delivery,
    flushes,
    load_probe,
    message_size,
    ordering,
    places,
    protocols,
    quantities,
    security,
)
from loadgen.probes.finding import NotHereError
from loadgen.probing import line_of_finding, run_probes
from loadgen.runs import RunWriter, load
from loadgen.tracing import UntraceableError, traced

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from loadgen.endpoint import BrokerName


@pytest.fixture(scope="module")
def ground(endpoints: Mapping[BrokerName, Endpoint]) -> Ground:
    """The session's brokers, one repeat."""
    return Ground(endpoints, 1, print)


def found(ground: Ground, name: str, *unknown: tuple[str, str]) -> dict[tuple[str, str, str], Finding]:
    """A probe's findings by broker, point and quantity; each is there, and none is contradicted by its broker.

    `unknown` are those (broker, quantity) that cannot be measured there.
    """
    findings = list(load_probe(name).findings(ground))
    for each in [each for each in findings if (each.broker, each.what) in unknown]:
        assert each.error
        findings.remove(each)
    for each in findings:
        assert each.error is None, each
        assert each.agrees is not False, each
        assert each.values, each
    return {(each.broker, each.point, each.what): each for each in findings}


def value(findings: Mapping[tuple[str, str, str], Finding], broker: str, point: str, what: str) -> float:
    """The one value of a broker's quantity at the point that begins so."""
    (finding,) = (
        each for key, each in findings.items() if (key[0], key[2]) == (broker, what) and key[1].startswith(point)
    )
    return finding.values[0]


# --- on the brokers ---


@pytest.mark.long
def test_the_largest_message_is_the_one_that_the_limit_names(ground: Ground) -> None:
    """A byte more than what was found is refused with the documented error, by default and with a raised limit."""
    findings = found(ground, "message_size")
    assert value(findings, "rabbitmq", "as it comes", "largest message") == 16 << 20
    assert value(findings, "rabbitmq", "limit raised", "largest message") == 256 << 20
    # Kafka's limit is that of the whole batch: what is left for one value is less by its own head.
    assert 1_048_588 - 128 <= value(findings, "kafka", "as it comes", "largest message") < 1_048_588
    assert (64 << 20) - 128 <= value(findings, "kafka", "limit raised", "largest message") < 64 << 20
    for each in findings.values():
        assert each.said.startswith("406 PRECONDITION_FAILED" if each.broker == "rabbitmq" else "10 MSG_SIZE_TOO_LARGE")
        assert each.broker == "rabbitmq" or "max.message.bytes is " in each.said


@pytest.mark.long
def test_what_was_consumed_stays_in_logs_and_limits_take_it_away(ground: Ground) -> None:
    """A queue is empty after consumption, a log is as it was; limits of age and size remove messages in either."""
    findings = found(ground, "retention")
    consumed = "still there after consumption"
    assert value(findings, "rabbitmq", "classic queue", consumed) == 0
    assert value(findings, "rabbitmq", "stream", consumed) == 100
    assert value(findings, "kafka", "topic", consumed) == 100
    for broker in ("rabbitmq", "kafka"):
        aged = [each for key, each in findings.items() if key[0] == broker and key[2] == "taken away by age"]
        sized = [each for key, each in findings.items() if key[0] == broker and key[2] == "taken away by size"]
        whole = [each.values for each in aged if not each.point.startswith("stream")]
        assert whole == [(100.0,)] * (2 if broker == "rabbitmq" else 1), (
            "a queue's, by argument and by policy; a topic's"
        )
        young = [each.values[0] for each in aged if each.point.startswith("stream")]
        assert len(young) == (broker == "rabbitmq")
        assert all(0 < each < 100 for each in young), "what a stream is given after the pause stays"
        assert sized
        assert all(0 < each.values[0] < 100 for each in sized)


@pytest.mark.long
def test_consumers_that_are_killed_break_only_what_is_not_promised(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most once loses and never repeats, at least once the other way round, a transaction does neither."""
    monkeypatch.setattr(delivery, "CRASHES", 1)
    findings = found(ground, "delivery")
    half = delivery.CRASHES * delivery.BATCH // 2  # each is killed in the middle of a batch
    for broker in ("rabbitmq", "kafka"):
        assert value(findings, broker, "at most once", quantities.LOST) == half
        assert value(findings, broker, "at most once", quantities.TWICE) == 0
        assert value(findings, broker, "at least once", quantities.LOST) == 0
        assert value(findings, broker, "at least once", quantities.TWICE) == half
        assert value(findings, broker, "exactly once", quantities.LOST) == 0
        assert value(findings, broker, "exactly once", quantities.TWICE) == 0
    assert value(findings, "rabbitmq", delivery.AUTOMATIC, quantities.LOST) > half  # all that was on its way
    assert value(findings, "rabbitmq", delivery.AUTOMATIC, quantities.TWICE) == 0
    assert value(findings, "rabbitmq", delivery.CONFIRMED, quantities.LOST) == 0
    assert value(findings, "rabbitmq", delivery.CONFIRMED, quantities.TWICE) == delivery.CRASHES
    exact = next(each for key, each in findings.items() if key[0] == "kafka" and key[1].startswith("exactly"))
    assert "of aborted transactions" in exact.said
    assert " 0 of aborted" not in exact.said


def test_a_consumer_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Its own error in one line, and no traceback of a process that nobody knows of."""
    nowhere = Endpoint("rabbitmq", (("127.0.0.1", 1),))
    monkeypatch.setattr(delivery, "CRASHES", 1)
    with pytest.raises(BrokerError, match=r"a consumer failed: BrokerError: .*127\.0\.0\.1:1"):
        delivery._crash_and_finish(delivery._consume_queue, nowhere, "at least once", "queue", "results")
    assert "Traceback" not in capfd.readouterr().err


def test_a_group_that_no_broker_has_yet_is_asked_for_again() -> None:
    """An error of librdkafka about a coordinator that is being found is none; another one is."""
    answers: list[Any] = [KafkaException(KafkaError(KafkaError.NOT_COORDINATOR)), [TopicPartition("t", 0, 7)]]

    class Asked:
        def committed(self, *_: Any, **__: Any) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    asked: Any = Asked()
    assert places.committed_of(asked, "t") == 7
    answers.append(KafkaException(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED)))
    with pytest.raises(KafkaException, match="GROUP_AUTHORIZATION_FAILED"):
        places.committed_of(asked, "t")


@pytest.mark.long
def test_order_breaks_where_it_is_not_promised(ground: Ground) -> None:
    """One consumer of one queue or partition sees none inverted; competing, handing back and resending invert some."""
    findings = found(ground, "ordering")
    assert value(findings, "rabbitmq", "one queue, one consumer", ordering.INVERTED) == 0
    assert value(findings, "rabbitmq", "one queue, two consumers", ordering.INVERTED) > 0
    assert value(findings, "rabbitmq", "one queue, every", ordering.INVERTED) > 0
    assert value(findings, "kafka", "one partition, one consumer", ordering.INVERTED) == 0
    assert value(findings, "kafka", "5 requests in flight, idempotent,", ordering.INVERTED) == 0
    assert value(findings, "kafka", "5 requests in flight, not idempotent", ordering.INVERTED) > 0


def test_connections_are_as_many_as_the_broker_counts(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of some hundred connections is seen at the broker's end, RabbitMQ's management counts all of them."""
    monkeypatch.setattr(connections, "LEVELS", (40, 300))  # whose memory is more than what a broker frees meanwhile
    monkeypatch.setattr(connections, "COUNTED_S", PATIENCE_S)
    unknown = ("kafka", "resident memory a connection")
    findings = found(ground, "connections", unknown)
    timed = [each for key, each in findings.items() if key[2] == "time to a usable connection"]
    assert [(each.broker, each.said.partition(" ")[0]) for each in timed] == [
        (broker, level) for broker in ("rabbitmq", "kafka") for level in ("40", "300")
    ]
    for each in findings.values():
        assert each.values[0] > 0
        is_last = each.point.startswith(("300 ", "40 to 300 "))
        assert ("300 by its management" in each.said) == (each.broker == "rabbitmq" and is_last)


def test_a_message_goes_there_and_back_by_every_protocol(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its management lists a connection of each protocol that was spoken; Kafka's log holds all that was sent."""
    for name, count in (("TRIPS", 5), ("WARM_TRIPS", 1), ("BURST", 50)):
        monkeypatch.setattr(protocols, name, count)
    findings = found(ground, "protocols")
    assert {key[1].partition(",")[0] for key in findings} == {
        "AMQP 0-9-1", "AMQP 1.0", "STOMP", "MQTT", "RabbitMQ streams", "Kafka protocol",
    }  # fmt: skip
    assert len(findings) == 12
    said = " ".join(each.said for each in findings.values())
    for listed in ("AMQP 0-9-1", "AMQP 1-0", "STOMP", "MQTT", "stream"):
        assert f"a connection of {listed}" in said
    assert "the log holds 56 messages" in said


@pytest.mark.long
def test_what_a_start_takes_is_counted(ground: Ground) -> None:
    """A fresh broker of each kind is started and gives its first message back, and holds more than nothing."""
    findings = found(ground, "complexity")
    mine, theirs = (
        {key[1:]: each for key, each in findings.items() if key[0] == name} for name in ("rabbitmq", "kafka")
    )
    assert mine.keys() == theirs.keys()
    assert all(each.values[0] > 0 for each in findings.values())
    assert value(findings, "kafka", "from nothing", "commands") == 2  # storage is formatted first
    assert value(findings, "rabbitmq", "from nothing", "calls to declare 2 subscribers") == 5
    assert not list((brokers_dir() / "private").glob("*"))


@pytest.mark.long
def test_every_kind_of_listener_carries_the_same_load(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without login and TLS all is confirmed and received, and each kind's listener is the broker's own."""
    monkeypatch.setattr(security, "LENGTHS", Profile("security", 0.2, 0.5, 1))
    monkeypatch.setattr(security, "WARM_TRIALS", 0)
    findings = list(load_probe("security").findings(ground))
    assert all(each.error is None for each in findings), findings
    goodput = {(each.broker, each.point.removesuffix(", 1,024 B")): each for each in findings if each.what == "goodput"}
    kinds = [("rabbitmq", "login"), ("rabbitmq", "login, TLS")]
    kinds += [("kafka", name) for name in ("plain", "login", "TLS", "login, TLS")]
    assert list(goodput) == kinds
    assert all(each.values[0] > 0 for each in goodput.values())
    said = " ".join(each.said for each in findings)
    assert "amqp/ssl" in said
    assert "SASL_SSL:SASL_SSL" in said


def test_a_flush_comes_before_each_confirm_where_a_class_says_so(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Class flushed: every confirm has its own, as the broker counts them, too; class broker: Kafka flushes nothing."""
    monkeypatch.setattr(flushes, "WINDOWS", ((1, 20), (50, 2)))
    try:
        with traced(ground.endpoints["rabbitmq"].pids):
            pass
    except UntraceableError:  # no strace, or no leave to attach: said, and never taken for an answer
        told = list(load_probe("flushes").findings(ground))
        assert {each.broker for each in told} == {"rabbitmq", "kafka"}
        assert all(each.error and each.error.startswith("not testable here: ") for each in told)
        return
    findings = found(ground, "flushes")
    for broker in ("rabbitmq", "kafka"):
        assert value(findings, broker, "flushed, 1 at a time", quantities.OWN) == 100
        assert value(findings, broker, "flushed, 1 at a time", quantities.SHARE) >= 1
        assert 0 < value(findings, broker, "flushed, 50 at a time", quantities.SHARE) < 1
    assert value(findings, "kafka", "broker, 1 at a time", quantities.OWN) == 0
    counted = [each for each in findings.values() if each.broker == "rabbitmq" and each.point.startswith("flushed")]
    assert all(each.agrees for each in counted)


def test_private_brokers_leave_nothing_and_have_their_settings() -> None:
    """A fresh broker has the settings that were asked for, lists them as deviations, and is gone after the block.

    One of them denies queues that are not durable, of which `durable` = False tells in one line.
    """
    wanted = {"channel_max": "77", "deprecated_features.permit.transient_nonexcl_queues": "false"}
    with private_brokers({"rabbitmq": wanted}) as opened:
        endpoint = opened["rabbitmq"]
        assert any("channel_max = 77 (asked for)" in line for line in endpoint.deviations)
        settings = resolve("rabbitmq", {"durable": False}, "none", "default")
        with (
            contextlib.closing(RabbitMQAdmin(endpoint)) as admin,
            pytest.raises(BrokerError, match=r"rabbitmq\.durable = False.*permit\.transient_nonexcl_queues") as caught,
        ):
            admin.create(Target(endpoint, "transient", settings))
        assert "\n" not in str(caught.value)
        assert endpoint.data_dir is not None
        folder = endpoint.data_dir.parents[1]
        assert list(find_marked(folder))
    assert not list(find_marked(folder))
    assert not folder.exists()


# --- by themselves ---


@given(st.integers(0, 5_000), st.integers(1, 300))
def test_the_largest_size_is_found_whatever_it_is(limit: int, first: int) -> None:
    """Doubling and halving end at the very limit, and with what was said to one byte more."""

    def refusal(size_bytes: int) -> str | None:
        return None if size_bytes <= limit else f"no, {size_bytes}"

    low, high = message_size.bracket(refusal, first, 1 << 20)
    assert message_size.largest(refusal, low, high) == (limit, f"no, {limit + 1}")


def test_a_limit_that_is_not_found_is_told() -> None:
    """Where even the most is taken nobody knows the limit."""
    with pytest.raises(BrokerError, match="no size was refused up to 1,000 bytes"):
        message_size.bracket(lambda _: None, 10, 1_000)


@given(st.lists(st.integers(0, 50)))
def test_inversions_are_those_behind_a_larger_number(numbers: list[int]) -> None:
    """As counted by looking at all pairs."""
    expected = sum(any(before > number for before in numbers[:at]) for at, number in enumerate(numbers))
    assert ordering.inversions(numbers) == expected


def test_brokers_of_others_are_not_asked_for_other_settings(ground: Ground) -> None:
    """What needs a broker of its own is told to be missing, and is no failure."""
    from dataclasses import replace  # noqa: PLC0415

    elsewhere = {name: replace(each, source="external") for name, each in ground.endpoints.items()}
    ground = Ground(elsewhere, 1, print)
    with pytest.raises(NotHereError, match="needs a kafka of its own"), ground.fresh("kafka"):
        pass
    findings = list(load_probe("complexity").findings(ground))
    assert [(each.broker, each.values, each.agrees) for each in findings] == [
        ("rabbitmq", (), None),
        ("kafka", (), None),
    ]


def test_a_probe_that_fails_is_a_finding_that_strikes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the broker's goes into the run, is told, and the probes after it are asked all the same."""
    from loadgen.probes import Probe, retention  # noqa: PLC0415

    def look(_: Ground, broker: BrokerName) -> Iterator[Finding]:
        yield Finding(broker, "p", "w", "number", (1.0,), "it says so", agrees=True)
        raise BrokerError("gone")

    monkeypatch.setattr(retention, "PROBE", Probe("?", look, 1.0))
    monkeypatch.setattr(ordering, "PROBE", Probe("?", look, 1.0))
    told: list[str] = []

    class Listener:
        message = staticmethod(told.append)
        progress = staticmethod(told.append)

    writer = RunWriter(tmp_path, "probe", {})
    endpoints: Any = {"kafka": None}
    run_probes(["retention", "ordering"], lambda _: endpoints, 1, writer, Listener())
    findings = load(writer.finish("complete")).header["findings"]
    assert [(each["id"], each["agrees"], each["error"]) for each in findings] == [
        ("retention/kafka/1", True, None),
        ("retention/kafka/2", False, "gone"),
        ("ordering/kafka/1", True, None),
        ("ordering/kafka/2", False, "gone"),
    ]
    assert told[0] == "[probe] retention/kafka/1: p: w 1 number · it says so"
    assert told[1] == "[probe] retention/kafka/2: measured: gone"


def test_an_error_of_a_clients_own_costs_no_more_than_its_finding(ground: Ground) -> None:
    """What is no error of ours is a finding that failed, with its type; what was found before stays."""
    from loadgen.probes import Probe  # noqa: PLC0415

    def look(_: Ground, broker: BrokerName) -> Iterator[Finding]:
        yield Finding(broker, "p", "w", "number", (1.0,))
        raise RuntimeError("a client's own")

    findings = list(Probe("?", look, 1.0).findings(ground))
    assert [each.error for each in findings] == [None, "RuntimeError: a client's own"] * 2
    assert [each.agrees for each in findings] == [None, False] * 2


def test_a_broker_that_dies_under_a_probe_is_told() -> None:
    """A killed broker ends the probe with a line, within its time limits, and nothing is left of what it began."""
    with private_brokers({"rabbitmq": {}}) as opened:
        kill(opened["rabbitmq"])
        (finding,) = load_probe("retention").findings(Ground(opened, 1, print))
    assert finding.agrees is False
    assert finding.error is not None
    assert "cannot be reached" in finding.error


def test_a_finding_that_its_broker_contradicts_says_so() -> None:
    """In the line that a person reads while the run goes on."""
    finding = Finding("kafka", "p", "w", "bytes", (5.0,), "six", agrees=False).record("x", 3)
    assert line_of_finding(finding) == "x/kafka/3: p: w 5 bytes · six · THE BROKER SAYS OTHERWISE"


def test_probes_have_names_and_questions(capsys: pytest.CaptureFixture[str]) -> None:
    """`list` shows each with its question, a wrong name is one line, and queues in memory are no broker to ask."""
    assert main(["list", "--json"]) == 0
    rows = {row["probe"]: row["question"] for row in json.loads(capsys.readouterr().out) if "probe" in row}
    assert tuple(rows) == NAMES
    assert all(question.endswith("?") for question in rows.values())
    with pytest.raises(ScenarioError, match="no probe nonsense; expected one of protocols, "):
        load_probe("nonsense")
    assert main(["probe", "nonsense"]) == 64
    assert main(["probe", "--brokers", "memory"]) == 64
    assert "is no broker that could be asked" in capsys.readouterr().err


@pytest.mark.long
def test_the_command_writes_a_run_of_findings(
    ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`loadgen probe` ends with a run, a report and the rows that it answers; `report` makes the same again."""
    del ground  # the session's brokers are up, and are used
    monkeypatch.setattr(connections, "LEVELS", (10, 20))
    monkeypatch.setattr(connections, "COUNTED_S", PATIENCE_S)
    monkeypatch.setitem(message_size.RAISED_BYTES, "rabbitmq", 32 << 20)  # with more it takes seconds a message
    arguments = ["probe", "message-size", "connections", "--broker", "rabbitmq", "--results", str(tmp_path)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "Message size · RabbitMQ: claimed “up to 128 MB (default 64 MB)” → contradicts" in printed
    run = load("latest", tmp_path)
    assert {finding["probe"] for finding in run.header["findings"]} == {"message_size", "connections"}
    assert run.header["plan"]["probes"] == ["message_size", "connections"]
    page = (run.path / "report.html").read_text()
    assert "Every finding of the probes" in page
    assert "406 PRECONDITION_FAILED" in page
    assert main(["report", "latest", "--results", str(tmp_path)]) == 0
    assert (run.path / "report.html").read_text() == page
