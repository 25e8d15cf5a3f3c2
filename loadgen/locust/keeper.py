"""What a Locust master's control plane runs in: brokers, trials, the observer, the verdict, the run on disk.

A native process beside Locust's own: whatever takes time here (a broker's start, a sync of the disk, a verdict) keeps
no greenlet waiting, and all of it is the code that the command line runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
import traceback
import zlib
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadgen import host
from loadgen.brokers import open_brokers, public_spec
from loadgen.clocks import ClockServer
from loadgen.driver import Target, confirms
from loadgen.drivers import load_driver
from loadgen.drivers.memory import memory_endpoint
from loadgen.endpoint import resting_pids
from loadgen.engine import WRITTEN_SOURCES, Options, header_of, line_of
from loadgen.errors import EXIT_OK, LoadgenError, TrialError
from loadgen.fleet import Outcome
from loadgen.judging import describe, judged
from loadgen.locust.gathering import Gathering
from loadgen.locust.line import Line
from loadgen.locust.messages import pack, unpack
from loadgen.locust.thresholds import missed, parse_threshold
from loadgen.outcome import exit_status
from loadgen.pinning import Pins
from loadgen.plan import Plan, Profile, Trial, make_plan
from loadgen.runs import RunWriter, load, refuse_unwritable
from loadgen.scenario import Rate, Scenario
from loadgen.tracking import together
from loadgen.trial import MIN_FREE_BYTES
from loadgen.versions import versions

if TYPE_CHECKING:
    from loadgen.driver import Admin
    from loadgen.endpoint import BrokerName, Endpoint

EXIT_MISSED = 1
WARMUP_MOST_S = 2.0  # after everybody is there …
WARMUP_SHARE = 0.2  # … and at most this share of a test whose length is known
SHOWN = ("sent", "acked", "received", "errors")
SHORTEST_S = 0.2  # a report of less tells no rate
STATE_S = 0.9  # how often Locust's page hears what is going on
FOREVER_S = 86_400.0  # what a trial without a run time is planned for
SEED = 1
WRITTEN_S = 2.0  # how long a trial's forerunner may take to reach the disk


@dataclass
class Running:
    """The trial that is being run."""

    trial: Trial
    target: Target
    admin: Admin
    gauge: Admin
    live: Gathering
    about: dict[str, Any]
    token: int
    results: dict[tuple[str, int], list[bytes]] = field(default_factory=dict)
    outcome: Outcome = field(default_factory=Outcome)
    told_s: float = 0.0


class Keeper:
    """Serves one Locust master (or a Locust that runs alone)."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._opened, self._opened_for_good = ExitStack(), ExitStack()
        self._time: ClockServer | None = None
        self._spec = ""
        self._endpoints: dict[BrokerName, Endpoint] = {}
        self._trials: list[Trial] = []
        self._writer: RunWriter | None = None
        self._running: Running | None = None
        self._repeats: dict[str, int] = {}
        self._rates: dict[str, dict[str, float]] = {}
        self._elapsed_s: dict[str, float] = {}

    def run(self) -> None:
        """Serve until the line ends; then keep what was measured, and end the brokers that were started here."""
        self._line.send("up", pid=os.getpid())
        try:
            while (message := self._line.receive()) is not None:
                self._serve(message)
        finally:
            if self._writer is not None:
                self._writer.finish("partial", "Locust ended before its test did")
            self._opened.close()
            self._opened_for_good.close()

    def _serve(self, message: dict[str, Any]) -> None:
        """Do what is asked; a question is answered, also where it fails."""
        kind, number = message.pop("kind"), message.pop("call", None)
        try:
            answer = getattr(self, f"_on_{kind}")(**message) or {}
        except LoadgenError as error:
            answer = {"error": str(error), "status": error.exit_status}
        except Exception as error:  # noqa: BLE001 - whoever asked must hear of it, or would wait for ever
            answer = {"error": f"{type(error).__name__}: {error}", "status": 70}
            logging.error("the keeper of the run failed:\n%s", traceback.format_exc())  # noqa: LOG015, TRY400
        if number is not None:
            self._line.send("answer", call=number, **answer)
        elif "error" in answer:
            self._line.send("failed", error=answer["error"])

    # Brokers and plan.

    def _on_open(
        self, scenarios: list[dict[str, Any]], wanted: list[list[str]], brokers: str, results: str,
        command: list[str], length_s: float | None,
    ) -> dict[str, Any]:  # fmt: skip
        """Open the brokers and begin a run; the answer tells the trials that there will be, each of one point."""
        found = [Scenario(**document) for document in scenarios]
        names: list[BrokerName] = [name for name in ("rabbitmq", "kafka") if any(pair[1] == name for pair in wanted)]
        profile = Profile("locust", WARMUP_MOST_S, length_s or FOREVER_S, 1)
        trials = [
            _runnable(trial)
            for trial in make_plan(found, profile, brokers=names, repeats=1, seed=SEED).trials
            if [trial.scenario, trial.broker] in wanted
        ]
        self._trials = list({trial.id: trial for trial in trials if trial.purpose == "measure"}.values())
        self._trials.sort(key=lambda trial: found.index(next(each for each in found if each.name == trial.scenario)))
        refuse_unwritable(Path(results))
        self._open_brokers(brokers, names)
        plan = Plan(tuple(self._trials), tuple(found), profile, 1, SEED, tuple(names))
        used = {name: self._endpoints[name] for name in names}
        data_dir = next((each.data_dir for each in used.values() if each.data_dir is not None), None)
        name = "-".join(scenario.name for scenario in found)
        public = [word.replace(brokers, public_spec(brokers)) for word in command]
        header = header_of(plan, Options(name, public), used, Pins(), data_dir)
        self._writer = RunWriter(Path(results), name, {**header, "fleet": "locust"})
        self._repeats.clear()
        return {"path": str(self._writer.path), "trials": [_told_of(trial) for trial in self._trials]}

    def _on_prepare(self, brokers: str, names: list[BrokerName]) -> None:
        """Open the brokers before the test, so that its run time is all load."""
        self._open_brokers(brokers, names)

    def _on_endpoints(self, brokers: str, names: list[BrokerName]) -> dict[str, Any]:
        """Where brokers are, for users written by hand."""
        self._open_brokers(brokers, names)
        return {"endpoints": pack({name: self._endpoints[name] for name in names})}

    def _on_clock(self, host: str, port: int) -> dict[str, Any]:
        """Tell the time to workers on other machines, by UDP at the port where they found the master."""
        if self._time is None:
            self._time = self._opened_for_good.enter_context(ClockServer("0.0.0.0" if host == "*" else host, port))  # noqa: S104 - as Locust itself listens
        return {"port": self._time.address[1]}

    def _open_brokers(self, spec: str, names: list[BrokerName]) -> None:
        if spec != self._spec:
            self._opened.close()
            self._endpoints, self._spec = {}, spec
        new = [name for name in names if name not in self._endpoints]
        if spec == "memory":
            self._endpoints |= {name: memory_endpoint(name) for name in new}
        elif new:
            opening = open_brokers(spec, new, progress=lambda text: self._line.send("says", text=text))
            self._endpoints |= self._opened.enter_context(opening)

    # One trial.

    def _on_begin(
        self, number: int, producers: int, consumers: int, subscribers: int, pids: list[int]
    ) -> dict[str, Any]:
        """Make a fresh queue or topic; the answer holds what every agent has to know."""
        assert self._writer is not None
        trial = self._repeated(self._trials[number], producers, consumers, subscribers)
        endpoint = self._endpoints[trial.broker]
        if endpoint.source in WRITTEN_SOURCES and sum(self._repeats.values()) > 1:
            host.wait_until_written(timeout_s=WRITTEN_S)
        if endpoint.source == "memory":
            trial = replace(trial, driver="memory")
        driver = load_driver(trial.driver)
        name = f"loadgen-{trial.scenario}-{secrets.token_hex(4)}"
        target = Target(endpoint, name, trial.settings, group=name, subscribers=trial.subscribers)
        admin = driver.admin(endpoint)
        admin.create(target)
        gauge = driver.admin(endpoint)
        live = Gathering(
            trial=trial,
            endpoint=endpoint,
            writer=self._writer,
            progress=lambda _: None,
            gauge=lambda received: gauge.gauge(target, received),
            token=secrets.randbits(32),
            resting=resting_pids(self._endpoints, trial.broker),
        )
        about = {
            "versions": versions(trial.driver, endpoint.version),
            "started_utc": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "broker_configuration": admin.effective(target),
        }
        running = Running(trial, target, admin, gauge, live, about, live.token)
        self._rates.clear()
        self._elapsed_s.clear()
        self._running, self._pids = running, pids
        return {"id": trial.id, "common": self._common(running)}

    def _repeated(self, planned: Trial, producers: int, consumers: int, subscribers: int) -> Trial:
        """The trial as it will be run: with the clients that there are, under a name that no earlier one has."""
        repeat = self._repeats[planned.id] = self._repeats.get(planned.id, 0) + 1
        settings = dict(planned.settings)
        if settings.get("partitions", consumers) < consumers // subscribers:
            settings["partitions"] = consumers // subscribers  # or some consumers would stay idle
        return replace(
            planned,
            id=f"{planned.id.rpartition('/')[0]}/{repeat}",
            repeat=repeat,
            seed=planned.seed if repeat == 1 else zlib.crc32(f"{planned.seed}/{repeat}".encode()),
            settings=settings,
            producers=producers,
            consumers=consumers // subscribers,
            subscribers=subscribers,
            warmup_s=0.0,
        )

    def _common(self, running: Running) -> bytes:
        trial = running.trial
        return pack({
            "driver": trial.driver,
            "target": running.target,
            "message": trial.message,
            "rate": trial.rate,
            "think": trial.think,
            "seed": trial.seed,
            "token": running.token,
            "consumers": trial.consumers,
            "ramp_s": trial.duration_s,
        })  # fmt: skip

    def _on_started(self, origin_ns: int) -> None:
        """The first producer is ready: load begins at this moment."""
        running = self._demand_running()
        running.outcome.start_ns = origin_ns
        running.live.begin(origin_ns)
        for pid in self._pids:
            assert running.live.observer is not None
            running.live.observer.add("loadgen", pid)

    def _on_pid(self, role: str, pid: int) -> None:
        """An agent on this machine: it is watched from now on."""
        if self._running is not None and self._running.live.observer is not None:
            self._running.live.observer.add(f"{role}s", pid)

    def _on_reached(self, at_ns: int) -> None:
        """Everybody who was asked for is there: the window may begin."""
        live = self._demand_running().live
        live.open_window(-(-max(0, at_ns - live.start_ns) // 1_000_000_000))

    def _on_report(self, worker: str, blob: bytes) -> None:
        """What a worker's agents gained in a second."""
        running = self._demand_running()
        told = unpack(blob)
        running.outcome.handed.join(told["handed"])
        if running.live.start_ns:
            running.live.take(worker, told)
        for role, series in told["series"].items():
            who, elapsed_s = f"{worker}/{role}", series["elapsed_s"]
            # The first report of a trial is of more than a second, its last one of less.
            took_s = max(SHORTEST_S, elapsed_s - self._elapsed_s.get(who, 0.0))
            self._elapsed_s[who] = elapsed_s
            self._rates[who] = {name: series.get(name, 0) / took_s for name in SHOWN}
        if time.monotonic() - running.told_s >= STATE_S:
            running.told_s = time.monotonic()
            self._tell(running)
            self._refuse_full(running)

    def _tell(self, running: Running) -> None:
        """What Locust's page shows."""
        rates = {name: round(sum(each[name] for each in self._rates.values())) for name in SHOWN} if self._rates else {}
        self._rates.clear()
        live, trial = running.live, running.trial
        self._line.send(
            "state",
            trial=trial.id,
            scenario=trial.scenario,
            broker=trial.broker,
            subscribers=trial.subscribers,
            elapsed_s=(time.monotonic_ns() - live.start_ns) / 1e9,
            rates=rates,
            totals=live.totals,
            latency_ms=live.shown_now(),
        )

    def _refuse_full(self, running: Running) -> None:
        data_dir = running.live.endpoint.data_dir
        if data_dir is not None and host.disk_free(data_dir) < MIN_FREE_BYTES:
            raise TrialError(
                f"disk: under {MIN_FREE_BYTES / 1e9:.0f} GB free where {running.trial.broker} keeps its data"
            )

    def _on_result(self, worker: str, uid: int, part: int, parts: int, blob: bytes) -> None:
        """A piece of what an agent says at its end."""
        running = self._demand_running()
        pieces = running.results.setdefault((worker, uid), [])
        pieces.append(blob)
        if part == parts:
            del running.results[worker, uid]
            running.outcome.results.append(unpack(b"".join(pieces)))

    def _on_trouble(self, error: str, trace: str) -> None:
        """Something went wrong with a trial; the first such thing is what it failed of."""
        running = self._demand_running()
        running.outcome.error = running.outcome.error or error
        running.outcome.traceback = running.outcome.traceback or trace or None

    def _on_finish(
        self, stopped_ns: int, drained: bool, drain_s: float, told: dict[str, int], length_s: float | None,
        interrupted: bool, clocks: dict[str, Any], ends: dict[str, list[str]],
    ) -> dict[str, Any]:  # fmt: skip
        """Judge the trial that has ended, write it down, and remove its queue or topic."""
        running, self._running = self._demand_running(), None
        assert self._writer is not None
        outcome, live = running.outcome, running.live
        outcome.drained, outcome.drain_s, outcome.interrupted = drained, drain_s, interrupted
        if clocks and all(clocks.values()):
            outcome.clock = together(clocks, set(ends["producer"]), set(ends["consumer"]))
        observations = live.observer.stop() if live.observer is not None else None
        running.gauge.close()
        try:
            if outcome.start_ns:
                # What was cut short is not judged: then all that was measured is kept.
                warmup_s = 0.0 if interrupted else self._warmup_s(running.trial, length_s)
                trial = live.close(outcome, warmup_s, stopped_ns)
                if not trial.duration_s:
                    outcome.error = outcome.error or (
                        "no whole second was measured once all users were there and warmed up; give a longer --run-time"
                    )
                # Books are counted: of every client that ever took part.
                everyone = replace(trial, producers=told["producer"], consumers=told["consumer"] // trial.subscribers)
                record = judged(everyone, live, outcome, observations, running.admin, running.target) | running.about
                record |= {"producers": trial.producers, "consumers": trial.consumers}
            else:
                record = _unstarted(running)
        finally:
            with contextlib.suppress(LoadgenError):
                running.admin.delete(running.target)
            running.admin.close()
        self._writer.add_trial(record)
        verdict = record["verdict"]
        told_of = {"verdict": verdict["status"], "reasons": verdict["reasons"], "bound_by": verdict["bound_by"]}
        return {"id": record["id"], "line": line_of(record), **told_of}

    def _warmup_s(self, trial: Trial, length_s: float | None) -> float:
        planned = next(each for each in self._trials if each.point == trial.point and each.broker == trial.broker)
        return min(planned.warmup_s, WARMUP_SHARE * length_s) if length_s else planned.warmup_s

    def _demand_running(self) -> Running:
        if self._running is None:
            raise TrialError("no trial is running")
        return self._running

    # The run's end.

    def _on_close(self, partial: str | None, thresholds: list[str]) -> dict[str, Any]:
        """Close the run; the answer holds the exit status and the limits that were missed."""
        if self._writer is None:
            return {"status": EXIT_OK, "missed": [], "path": None}
        writer, self._writer = self._writer, None
        writer.finish("partial" if partial else "complete", partial)
        run = load(writer.path)
        lines = missed([parse_threshold(text) for text in thresholds], run.records)
        status = exit_status(run) or (EXIT_MISSED if lines else EXIT_OK)
        return {"status": status, "missed": lines, "path": str(writer.path)}


def _runnable(trial: Trial) -> Trial:
    """A capacity is the command line's to search; here the scenario's point is driven as fast as it goes."""
    if not trial.rate.needs_capacity:
        return trial
    point = {name: value for name, value in trial.point.items() if name != "fraction"}
    head = "/".join(part for part in trial.id.split("/") if not part.startswith("fraction="))
    return replace(trial, rate=Rate.saturate(), asked=trial.rate, point=point, id=head)


def _told_of(trial: Trial) -> dict[str, Any]:
    return {
        "id": trial.id,
        "scenario": trial.scenario,
        "broker": trial.broker,
        "producers": trial.producers,
        "consumers": trial.all_consumers,
        "subscribers": trial.subscribers,
        "is_open_loop": trial.rate.is_open_loop,
        "searches": trial.asked is not None,
        "confirms": confirms(trial.settings),
        "text": trial.describe(),
    }


def _unstarted(running: Running) -> dict[str, Any]:
    """The record of a trial in which no load ever flowed."""
    why = running.outcome.error or "no load: the test was stopped before a producer was ready"
    verdict = {"status": "invalid", "bound_by": "unknown", "reasons": [why], "checks": []}
    empty: dict[str, Any] = {"latency_ns": {}, "achieved_msgs_per_s": None}
    return {**describe(running.trial), **running.about, **empty, "status": "failed", "error": why, "verdict": verdict}


def main() -> None:
    """Serve Locust's process, at the other end of the socket whose descriptor is the last argument."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[-1]))
    end.setblocking(True)  # gevent made it, non-blocking
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Keeper(Line(end)).run()
