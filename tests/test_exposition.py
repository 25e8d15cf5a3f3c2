"""A run as Prometheus sees it: scraped over HTTP while real brokers are driven, and held against what is on disk."""

from __future__ import annotations

import re
import socket
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from reference import prometheus_metrics
from verdicts import due

from loadgen import Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.cli import main
from loadgen.driver import Gauge
from loadgen.drivers.memory import memory_endpoint
from loadgen.engine import Options, execute
from loadgen.errors import ScenarioError
from loadgen.exposition import BOUNDS, EDGES_NS, TRIALS_KEPT, Exposition, _cumulated, exposed, parse_address
from loadgen.histogram import Histogram
from loadgen.plan import Profile, make_plan
from loadgen.trial import Live

if TYPE_CHECKING:
    from pathlib import Path

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.runs import Run

SAMPLES = dict[tuple[str, frozenset[tuple[str, str]]], float]
SENT, RECEIVED = "messaging_client_sent_messages_total", "messaging_client_consumed_messages_total"


def scraped(url: str) -> SAMPLES:
    """What the page shows: values by sample name and labels."""
    with urlopen(url, timeout=60) as answer:  # noqa: S310 - our own page
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def picked(page: SAMPLES, name: str, **labels: str) -> float | None:
    """The one sample of that name with these labels; None where there is none."""
    found = [value for (of, has), value in page.items() if of == name and labels.items() <= dict(has).items()]
    assert len(found) <= 1, (name, labels)
    return found[0] if found else None


class Scraping:
    """A listener that scrapes whenever it hears something: in mid-trial at each progress, and once a trial is kept."""

    def __init__(self) -> None:
        self.url = ""
        self.during: list[SAMPLES] = []
        self.after: list[SAMPLES] = []
        self.pages: list[SAMPLES] = []  # all of them, in order

    def message(self, text: str) -> None:
        """Learn where the page is; see each trial as it was kept."""
        if text.startswith("metrics: "):
            self.url = text.removeprefix("metrics: ")
        elif text.startswith("["):
            self.after.append(self.scrape())

    def scrape(self) -> SAMPLES:
        """The page as it is now."""
        self.pages.append(scraped(self.url))
        return self.pages[-1]

    def progress(self, text: str) -> None:
        """See the trial under way."""
        if "backlog" in text and text.startswith("["):
            self.during.append(self.scrape())


@pytest.fixture(scope="module")
def seen(endpoints: dict[BrokerName, Endpoint], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Scraping]:
    """A run of one short trial on each broker, and all pages of it."""
    del endpoints  # they run, so `local` finds them
    scenario = Scenario(
        name="scraped", question="?", rate=Rate.fixed(500), message=Message(size_bytes=100),
        rabbitmq=RabbitMQ(), kafka=Kafka(),
    )  # fmt: skip
    plan = make_plan([scenario], Profile("test", warmup_s=0.5, duration_s=2.0, repeats=1))
    listener = Scraping()
    options = Options("scraped", ["loadgen"], results=tmp_path_factory.mktemp("runs"), prometheus="0")
    return execute(plan, options, listener), listener


def test_at_its_end_a_trials_counts_are_its_records(seen: tuple[Run, Scraping]) -> None:
    """Messages, errors and latencies on the page are those of run.json and of the histogram log."""
    run, listener = seen
    assert len(listener.after) == len(run.records) == 2
    page = listener.after[-1]  # the first trial is still there
    for record in run.records:
        of = {"trial": record["id"]}
        assert due(record) == 1_250
        assert picked(page, SENT, messaging_operation_name="send", **of) == record["sent"] > 0
        assert picked(page, RECEIVED, messaging_system=record["broker"], **of) == record["received"]
        assert picked(page, "loadgen_confirmed_messages_total", **of) == record["acked"]
        assert picked(page, "loadgen_errors_total", **of) is None
        assert set(record["errors"]) <= {"unsent"}
        assert picked(page, "loadgen_trial_lost_messages", **of) == record["lost"]
        for kind in ("e2e", "ack", "e2e_service", "schedule_lag"):
            counted = picked(page, "loadgen_latency_seconds_count", kind=kind, **of)
            assert counted == logged(run, record, kind)
            check_quantiles(page, record, kind)
        operation = "messaging_client_operation_duration_seconds"
        assert picked(page, f"{operation}_count", **of) == logged(run, record, "ack_service")
        assert picked(page, f"{operation}_sum", **of) > 0  # type: ignore[operator]
    assert picked(page, "loadgen_trials_planned") == 2
    assert sum(value for (name, _), value in page.items() if name == "loadgen_trials_ended_total") == 2


def logged(run: Run, record: dict[str, Any], kind: str) -> int:
    """Values of the planned window in the histogram log; those of run.json where nothing was cut off as not steady."""
    cut_s = record["steady"]["cut_s"]
    lines = [each for each in run.intervals(record["id"], kind) if each.start_s > -cut_s - 0.001]
    number = sum(each.histogram.count for each in lines)
    assert cut_s or number == record["latency_ns"][kind]["count"]
    return number


def check_quantiles(page: SAMPLES, record: dict[str, Any], kind: str) -> None:
    """The median that run.json tells lies in the bucket in which the page has it."""
    if record["steady"]["cut_s"]:
        return
    labels = {"trial": record["id"], "kind": kind}
    counts = [picked(page, "loadgen_latency_seconds_bucket", le=bound, **labels) for bound in [*BOUNDS, "+Inf"]]
    assert counts == sorted(counts)  # type: ignore[type-var]
    at = next(index for index, count in enumerate(counts) if count >= counts[-1] / 2)  # type: ignore[operator]
    below = 0 if at == 0 else EDGES_NS[at - 1]
    # A percentile is told as the top of its own bucket, a thousandth wide at most.
    assert below <= record["latency_ns"][kind]["p50"] <= EDGES_NS[at]


def test_while_it_runs_counts_grow_and_the_broker_is_seen(seen: tuple[Run, Scraping]) -> None:
    """No counter ever falls from scrape to scrape, and the five metrics are there in mid-trial."""
    run, listener = seen
    for earlier, later in pairwise(listener.pages):
        for key, value in earlier.items():
            if key[0].endswith(("_total", "_count", "_bucket")) and key in later:
                assert later[key] >= value, key
    for record in run.records:
        of = {"trial": record["id"]}
        mine = [page for page in listener.during if picked(page, SENT, **of)]
        assert 0 < max(picked(page, SENT, **of) or 0 for page in mine) <= record["sent"]
        for name in ("depth_messages", "connections", "resident_memory_bytes"):
            assert any(picked(page, f"loadgen_broker_{name}", **of) is not None for page in mine), name
        assert max(picked(page, "loadgen_broker_connections", **of) or 0 for page in mine) >= 3
        assert any(picked(page, "loadgen_cpu_seconds_total", role="broker", **of) for page in mine)
    assert any((picked(page, "loadgen_latency_seconds_count", kind="e2e", trial=run.records[1]["id"]) or 0) > 0
               for page in listener.during)  # fmt: skip


def test_every_name_on_the_page_is_documented(seen: tuple[Run, Scraping]) -> None:
    """The reference tells of each metric, and of no other."""
    _, listener = seen
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for page in listener.during for name, _ in page}
    shown |= {re.sub(r"_(bucket|sum|count)$", "", name) for page in listener.after for name, _ in page}
    told = {each.name + "_total" * (each.type == "counter") for each in prometheus_metrics()}
    # Only of what goes wrong, and of consumers in a group that is joined.
    assert told == shown | {"loadgen_errors_total", "loadgen_broker_consumers", "loadgen_broker_reported_memory_bytes"}


def test_buckets_are_exact() -> None:
    """A value at an edge is above its bound, one below it is not."""
    histogram = Histogram()
    histogram.add(np.array([EDGES_NS[0] - 1, EDGES_NS[0], EDGES_NS[5] - 1, EDGES_NS[5], EDGES_NS[-1] * 2]))
    counts, _ = _cumulated(histogram)
    assert [counts[0], counts[1], counts[4], counts[5], counts[6], counts[-2], counts[-1]] == [1, 2, 2, 3, 4, 4, 5]


def test_a_record_ends_its_own_trial_only() -> None:
    """A point that failed without a trial of its own takes no other's place."""
    scenario = Scenario(name="shown", question="?", rate=Rate.fixed(5), kafka=Kafka())
    (trial,) = make_plan([scenario], Profile("test", 0.0, 1.0, 1), brokers=("kafka",)).trials
    live = Live(trial, memory_endpoint("kafka"), None, lambda _: None, lambda _: Gauge(0))
    exposition = Exposition()
    exposition.begin(live)
    exposition.end({"id": "another", "verdict": {"status": "invalid"}})
    assert exposition._live is live
    exposition.end({"id": trial.id, "verdict": {"status": "valid"}})
    assert exposition._live is None


def test_a_run_with_many_trials_keeps_its_page_small() -> None:
    """Searches without a trial of their own are counted, and only the last trials stand on the page."""
    exposition = Exposition()
    for number in range(TRIALS_KEPT + 5):
        exposition.end({"verdict": {"status": "valid"}, "id": str(number)})
    page = {each.name: each for each in exposition.collect()}
    assert [sample.value for sample in page["loadgen_trials_ended"].samples] == [TRIALS_KEPT + 5]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("[::1]:9", ("::1", 9)),
        ("host:1", ("host", 1)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    """A port alone is of this machine only."""
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "x", ":9464", "1.2.3.4:", "70000", "-1", "host:x"])
def test_other_addresses_are_refused_in_one_line(text: str) -> None:
    """What is no address is told with an example of one."""
    with pytest.raises(ScenarioError, match="expected PORT or HOST:PORT, such as 9464"):
        parse_address(text)


def test_only_this_machine_is_answered_unless_told_otherwise() -> None:
    """Another address of this host is refused by default, and answered where all are asked for."""
    for address, is_answered in (("0", False), ("0.0.0.0:0", True)):
        with exposed(address) as (_, url):
            assert url is not None
            elsewhere = f"http://127.0.0.2:{urlsplit(url).port}/metrics"
            if is_answered:
                assert picked(scraped(elsewhere), "loadgen_trials_planned") == 0
            else:
                with pytest.raises(URLError):
                    urlopen(elsewhere, timeout=60)


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Nothing is measured: the option is named, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = ["run", "scenarios/latency.py", "--brokers", "memory", "--results", str(tmp_path)]
        assert main([*command, "--prometheus", port]) == 71
    told = capsys.readouterr().err.splitlines()
    assert told == [f"loadgen: --prometheus {port}: the port is taken by another program; choose another one"]
    assert not list(tmp_path.iterdir())
