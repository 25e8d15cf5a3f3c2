"""Faults in a scenario: refused where they cannot be, carried out on real brokers, and told with what they cost."""

from __future__ import annotations

import json
import re
import secrets
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import synthetic
from hurts import bare_run, demand_kept, record_mended
from hurts import hurt_scenario as scenario
from patience import PATIENCE_S, until

from loadgen import (
    At,
    Crash,
    Cut,
    Delay,
    Durability,
    Full,
    Kafka,
    Kill,
    Message,
    Pause,
    RabbitMQ,
    Rate,
    Reset,
    Restart,
    Scenario,
    Throttle,
)
from loadgen.alarms import AlarmReader
from loadgen.analysis.outages import costs
from loadgen.brokers import local, private_brokers, renewed, shortage
from loadgen.brokers.rabbitmq import control
from loadgen.cli import main
from loadgen.driver import Target
from loadgen.drivers import load_driver
from loadgen.drivers.wire.kafka_cluster import GIVE_UP_S
from loadgen.errors import BrokerError, ScenarioError, TrialError
from loadgen.gaps import Gaps
from loadgen.knobs import resolve
from loadgen.payload import Payloads
from loadgen.plan import Profile, make_plan
from loadgen.record import completed
from loadgen.report import hurt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadgen.endpoint import BrokerName, Endpoint

MS_NS = 1_000_000


@pytest.mark.parametrize("who", ["leader", "all", 2])
@pytest.mark.parametrize(
    "fault",
    [
        Kill(), Restart(), Pause(), Full("disk"), Crash("consumers"), Crash("producers"), Cut(), Cut(between="nodes"),
        Delay(delay_ms=5), Delay(delay_ms=5, between="nodes"), Throttle(rate_bytes_per_s=10_000), Reset(),
        Throttle(rate_bytes_per_s=10_000, between="nodes"), Reset(between="nodes"),
    ],
)  # fmt: skip
def test_records_of_older_runs_are_told_what_was_hurt_by_the_faults_words(fault: Any, who: Any) -> None:
    """What a fault says that it hurts is also what is read from its words, where its record does not say so."""
    fault = fault if isinstance(fault, Crash) else fault.model_copy(update={"who": who})
    older = completed({"id": "t", "faults": [{"kind": fault.kind, "what": fault.described()}]})
    assert older["faults"][0]["hurts"] == fault.hurts


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: At("soon", Kill()), "at_s = 'soon': expected a time such as 10s"),
        (lambda: At("1s", Kill("everybody")), "who"),
        (lambda: At("1s", Kill(0)), "who"),
        (lambda: At("1s", Pause(for_s=-1)), "for_s"),
        (lambda: At("1s", Full("tape")), "resource"),
        (lambda: scenario(At("1s", Full("memory"))), "Kafka has no alarm for memory; expected Full('disk')"),
        (
            lambda: scenario(At("1s", Kill()), rabbitmq=RabbitMQ(driver="pika")),
            "driver pika does not open another",
        ),
        (
            lambda: scenario(At("1s", Crash("consumers")), rabbitmq=None, kafka=Kafka(group_protocol="consumer")),
            "no share group and no group_protocol",
        ),
        (lambda: scenario(At("1s", Kill(2))), "there is no node 2: expected 1 to 1 in class broker"),
        (lambda: scenario(At("1s", Kill()), rate=Rate.search()), "Rate.search has trials of its own lengths"),
        (
            lambda: scenario(At("1s", Kill()), pattern="request_reply"),
            "clients of pattern request_reply do not outlive",
        ),
        (
            lambda: scenario(At("1s", Kill()), rabbitmq=RabbitMQ(channels_per_connection=2)),
            "one connection with one",
        ),
        (
            lambda: scenario(At("1s", Kill()), rabbitmq=RabbitMQ(driver="stream")),
            "expected rabbitmq.driver = amqp",
        ),
        (
            lambda: make_plan([scenario(At("9s", Kill()))], Profile("x", 1.0, 5.0, 1)),
            "At(9) is after the window of duration_s = 5",
        ),
    ],
)
def test_a_fault_that_cannot_be_is_one_line(make: Any, words: str) -> None:
    """What was given, and what was expected."""
    with pytest.raises(ScenarioError) as refused:
        make()
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_brokers_of_others_are_never_hurt(capsys: pytest.CaptureFixture[str]) -> None:
    """Queues in memory, Docker's containers and URLs: refused before anything is touched."""
    for spec in ("memory", "docker", "amqp://127.0.0.1:1 kafka://127.0.0.1:1"):
        assert main(["run", "scenarios/faults/failover.py", "--brokers", spec]) == 64
        assert "use --brokers local" in capsys.readouterr().err


def test_a_scenario_with_faults_can_be_written_down_and_read_again() -> None:
    """As run.json keeps it, for `loadgen rerun`; a client that recovers is what AMQP has then."""
    faults = (
        At("2s", Kill("leader", back_after_s="never")),
        At(3, Pause(2, for_s=0.5)),
        At(4, Restart("all")),
        At(4.5, Full("disk", who=1)),
    )
    made = scenario(*faults, durability=Durability.REPLICATED)
    again = Scenario(**made.model_dump(mode="json", exclude_none=True))
    assert again.faults == made.faults == list(faults)
    (rabbitmq, kafka) = make_plan([again], Profile("x", 1.0, 5.0, 1)).trials
    assert rabbitmq.settings["recover_within_s"] == GIVE_UP_S == 60, "both brokers have as long"
    assert "recover_within_s" not in kafka.settings
    described = [each.fault.described() for each in kafka.faults]
    assert described == ["kill of the leader", "pause of node 2", "restart of all nodes", "full disk of node 1"]


def test_gaps_are_those_in_which_a_counter_stood_still() -> None:
    """The longest that reaches into a span; one that has not ended counts until the last look; short ones are none."""
    gaps = Gaps()
    for at_ms, confirmed, received in [
        (0, 1, 1), (50, 2, 1), (100, 2, 1), (400, 3, 1), (450, 4, 2), (500, 5, 3), (2_500, 6, 3), (2_550, 7, 3)
    ]:  # fmt: skip
        gaps.sample((1_000 + at_ms) * MS_NS, confirmed, received)
    at = lambda begin, end: ((1_000 + begin) * MS_NS, (1_000 + end) * MS_NS)  # noqa: E731 - short, here only
    assert gaps.longest("confirm", *at(0, 450)) == at(50, 400)
    assert gaps.longest("confirm", *at(0, 3_000)) == at(500, 2_500)
    assert gaps.longest("delivery", *at(460, 2_000)) == at(500, 2_000), "the span's end is the window's: no more comes"
    assert gaps.longest("delivery", *at(0, 440)) == at(0, 450)
    assert gaps.longest("confirm", *at(401, 499)) is None


@pytest.fixture(scope="module")
def single() -> Iterator[Endpoint]:
    """A RabbitMQ of one node that may be hurt."""
    with private_brokers({"rabbitmq": {}}, progress=print) as endpoints:
        yield endpoints["rabbitmq"]


def test_a_single_node_is_killed_paused_and_restarted_under_load(single: Endpoint) -> None:
    """Each fault has its gap, and is mended; the account names no loss of anything confirmed."""
    faults = (At(1, Kill("leader", back_after_s=0.5)), At(1.5, Pause(1, for_s=1.5)), At(2, Restart("all")))
    record = record_mended(single, scenario(*faults, kafka=None))
    demand_kept(record)
    kill, pause, restarted = record["faults"]
    assert (kill["error"], pause["error"], restarted["error"]) == (None, None, None)
    assert restarted["delivery_gap_s"] > 0.2
    assert kill["nodes"] == pause["nodes"] == [1]
    assert kill["confirm_gap_s"] > 0.5
    assert kill["at_s"] - 0.5 < kill["confirm_gap_at_s"] < kill["at_s"] + kill["mended_after_s"], (
        "it begins with the kill"
    )
    assert kill["mended_after_s"] > 0.5
    assert pause["confirm_gap_s"] > 1.0
    assert pause["mended_after_s"] > 1.4
    assert {each["kind"] for each in record["observer"]["events"]} >= {"fault", "outage"}
    (told,) = hurt.sentences(run := bare_run(record), costs(run))
    assert "kill of the leader (node 1)" in told
    assert "none of them lost" in told
    assert renewed(single).pids != single.pids


def test_a_rabbitmq_without_memory_blocks_who_publishes(single: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its alarm stops confirms until it is taken back; nothing is lost, and the alarm is no doubt: it was ordered."""
    monkeypatch.setattr(shortage, "ALARMED_S", PATIENCE_S)
    record = record_mended(renewed(single), scenario(At(0.5, Full("memory", for_s=0.5)), kafka=None))
    demand_kept(record)
    (fault,) = record["faults"]
    assert (fault["error"], fault["nodes"]) == (None, [1])
    assert fault["confirm_gap_s"] > 0.3
    assert not [each for each in record["verdict"]["checks"] if each["name"] == "alarms" and not each["passed"]]


@pytest.mark.parametrize("driver", ["pika", "pika-blocking"])
def test_pika_leaves_a_broker_that_blocks_it_for_too_long(
    single: Endpoint, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    """Without the knob the connection outlives the alarm; with it the client closes it, and says why in one line."""
    monkeypatch.setattr(shortage, "ALARMED_S", PATIENCE_S)
    endpoint = renewed(single)
    stays, leaves = (
        publisher(endpoint, driver, blocked_connection_timeout_s=given, confirms=False) for given in (None, 0.5)
    )
    server = local.cluster_of(endpoint).nodes[0].server
    shortage.begin(endpoint, 1, "memory")
    try:
        for each in (stays, leaves):
            each.send(0, np.ones(1, np.int64), 1)  # only who publishes is blocked
        with pytest.raises(TrialError, match=r"blocked the connection for longer than blocked_connection_timeout_s$"):
            until(lambda: bool(leaves.poll(0.1)))
        assert until(lambda: bool(stays.poll(0.1)) or stays.blocked)
    finally:
        assert shortage.end(endpoint, 1, "memory", server)
    assert until(lambda: bool(stays.poll(0.1)) or not stays.blocked)
    for each in (stays, leaves):
        each.close()


def publisher(endpoint: Endpoint, driver: str, **knobs: Any) -> Any:
    """A producer with a queue of its own."""
    settings = resolve("rabbitmq", {"driver": driver, **knobs}, "none", "default")
    target = Target(endpoint, f"blocked-{secrets.token_hex(6)}", settings)
    loaded = load_driver(driver)
    admin = loaded.admin(endpoint)
    admin.create(target)
    admin.close()
    return loaded.producer(target, Payloads(Message(size_bytes=100), seed=1, token=2, producer=0))


def test_a_shortage_is_an_alarm_and_leaves_the_limits_of_before(
    single: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By RabbitMQ's own word, without which there is none; who was started since has nothing to be given back."""
    endpoint = renewed(single)
    server = local.cluster_of(endpoint).nodes[0].server
    with monkeypatch.context() as patched:
        patched.setattr(shortage, "_control", lambda *_: None)
        patched.setattr(shortage, "ALARMED_S", 0.2)
        with pytest.raises(BrokerError, match="node 1 raised no alarm for its memory"):
            shortage.begin(endpoint, 1, "memory")
    monkeypatch.setattr(shortage, "ALARMED_S", PATIENCE_S)
    shortage.begin(endpoint, 1, "disk")
    assert AlarmReader(endpoint).read().alarms == ("disk space",)
    assert shortage.end(endpoint, 1, "disk", None), "whoever ran out of it is gone"
    assert shortage.end(endpoint, 1, "disk", server)
    assert until(lambda: AlarmReader(endpoint).read().alarms == ())
    cluster = local.cluster_of(endpoint)
    said = json.loads(
        control(cluster, cluster.nodes[0], "rabbitmq-diagnostics", "status", "--quiet", "--formatter", "json")
    )
    names = ("disk_free_limit", "vm_memory_high_watermark_setting")
    assert [said[name] for name in names] == [single.configuration["status"][name] for name in names]


def test_a_run_with_faults_is_told_in_its_report(
    endpoints: dict[BrokerName, Endpoint], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`loadgen run` of a scenario file with a fault: what it cost is the answer, and the brokers stand afterwards."""
    del endpoints  # they are up, and used
    file = tmp_path / "pause.py"
    file.write_text(
        "from loadgen import *\n"
        "scenario = Scenario(name='pause', question='?', rate=Rate.fixed(200), duration_s=5, warmup_s=0.5,\n"
        "    faults=[At('1s', Pause('all', for_s=1.0))], rabbitmq=RabbitMQ())\n"
    )
    with synthetic.undrawn():
        assert main(["run", str(file), "--repeats", "1", "--results", str(tmp_path)]) in {0, 2}
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"pause of all nodes \(node 1\) at \d+ s: nothing was confirmed for", said)
