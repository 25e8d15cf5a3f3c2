"""A plan carried out: brokers opened, trials run in order, each written to disk as soon as it is judged."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from loadgen import host
from loadgen.brokers import is_warmed, mark_warmed, renewed
from loadgen.ceiling import measure_ceiling
from loadgen.checks.repeats import versions_changed
from loadgen.deciding import demand_plan
from loadgen.demand import Demand
from loadgen.drivers import load_driver
from loadgen.endpoint import resting_pids
from loadgen.errors import BrokerError, HostError, LoadgenError, ScenarioError
from loadgen.exposition import Exposition, exposed
from loadgen.fleet import terminate_as_interrupt
from loadgen.hands import preload
from loadgen.judging import describe
from loadgen.knobs import Site
from loadgen.pinning import Pins, wanted_pins
from loadgen.plan import Plan, Profile, Trial, make_ab_plan, make_plan
from loadgen.probes import expected_s
from loadgen.probing import run_probes
from loadgen.record import end_to_end
from loadgen.runs import Run, RunWriter, load, refuse_unwritable
from loadgen.scenario import Durability, Kafka, Message, RabbitMQ, Rate, Scenario
from loadgen.searching import find_capacity, line_of_search, tells
from loadgen.sites import Sites, disk_dir, refuse_faults, refuse_too_large
from loadgen.stats.power import EFFECT_RATIO
from loadgen.trial import Setting, run_trial
from loadgen.verdict import add_check

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.locust.roster import Asked, Roster

WRITTEN_SOURCES = frozenset({"local", "docker"})  # an external broker's disk is not ours; without one nobody writes
WARM_LOAD_S = 6.0  # each of two: the JIT compiles most of a hot path meanwhile; the last gain takes most of a minute
# Full batches warm what a message costs, and hardly what a request does: some hundred a second leave that path to be
# compiled while the first trials with small batches are measured. So there are as many requests as messages as well.
# The buffer bounds what waits: a cold cluster answers some hundred requests a second, and all that waits is drained.
WARM_LOADS = ((100, "throughput", Kafka()), (1024, "low_latency", Kafka(batch_size=1200, buffer_memory=128 << 10)))


class Listener(Protocol):
    """Who hears how the run goes on; only the command line prints."""

    def message(self, text: str) -> None:
        """A line that stays."""

    def progress(self, text: str) -> None:
        """A line that the next one replaces."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a plan is carried out."""

    name: str
    command: Sequence[str]
    results: Path = Path("results")
    brokers: str = field(default="local", repr=False)  # its URLs may hold passwords
    cpus_broker: str | None = None
    cpus_client: str | None = None
    pins: Pins | None = None  # those of an earlier run, to be kept to
    prometheus: str | None = None  # [HOST:]PORT where the run's figures are shown while it goes on
    fleet: Asked | None = None  # Locust's workers in place of processes of this machine
    probes: tuple[str, ...] = ()  # asked after the trials


def execute(plan: Plan, options: Options, listener: Listener) -> Run:
    """Carry out the plan and return the run as it stands on disk, also when it was interrupted or cut short."""
    refuse_faults(options.brokers, plan.trials)
    wanted = _wanted(options, listener)
    plan.refuse_over_half_of(host.disk_free(disk_dir(options.brokers)))
    refuse_unwritable(options.results)
    if options.fleet is None:
        preload()
    with (
        terminate_as_interrupt(),
        exposed(options.prometheus) as (exposition, url),
        _staffed(options.fleet, listener) as roster,
        Sites(options.brokers, wanted, listener) as sites,
    ):
        endpoints, pins = sites.of(plan.sites[0], plan.brokers_of(plan.sites[0]))
        refuse_too_large(endpoints, plan.of_site(plan.sites[0]))
        data_dirs = [each.data_dir for each in endpoints.values() if each.data_dir is not None]
        for data_dir in data_dirs:
            plan.refuse_over_half_of(host.disk_free(data_dir))
        header = header_of(plan, options, endpoints, pins, data_dirs[0] if data_dirs else None)
        if roster is not None:
            header |= {"fleet": "locust", "workers": roster.header()}
        writer = RunWriter(options.results, options.name, header)
        listener.message(f"{_extent(plan, options)}: {writer.path}")
        if url is not None:
            listener.message(f"metrics: {url}")
        exposition.plan(len(plan.trials))
        reason: str | None = "the run stopped on an internal error"
        try:
            bench = _Bench(plan, writer, listener, exposition, roster)
            for site in plan.sites if plan.trials else ():
                bench.endpoints, bench.pins = sites.of(site, plan.brokers_of(site))
                refuse_too_large(bench.endpoints, plan.of_site(site))
                writer.add_brokers(brokers_of(bench.endpoints, site))
                _warm(bench.endpoints, site.nodes, listener, bench.pins)
                bench.run_all(plan.of_site(site))
            reason = None
            if options.probes:
                classes = {str(trial.durability) for trial in plan.trials if trial.faults}

                def standing(nodes: int) -> Mapping[BrokerName, Endpoint]:
                    # Brokers from elsewhere are of the size that they are.
                    site = Site(nodes if options.brokers == "local" else 1)
                    asked, _ = sites.of(site, plan.brokers)
                    writer.add_brokers(brokers_of(asked, site))
                    return asked

                run_probes(options.probes, standing, plan.repeats, writer, listener, classes, plan.sites[-1].nodes)
        except KeyboardInterrupt:
            reason = "interrupted"
        except LoadgenError as error:
            reason = str(error)
            listener.message(f"loadgen: {error}")
        finally:
            run = _finish(writer, reason, listener)
    return run


def _extent(plan: Plan, options: Options) -> str:
    """How much is to be done, and how long it takes."""
    parts = [f"{len(plan.trials)} trials"] if plan.trials else []
    parts += [f"{len(options.probes)} probes"] if options.probes else []
    minutes = (plan.expected_s + expected_s(options.probes)) / 60
    return f"{' and '.join(parts)}, about {minutes:.1f} minutes"


def _finish(writer: RunWriter, reason: str | None, listener: Listener) -> Run:
    """Close the run and read it back; what a full disk does not take is told, and still shown."""
    try:
        return load(writer.finish("partial" if reason else "complete", reason))
    except HostError as error:
        listener.message(f"loadgen: {error}")
        return writer.unfinished(reason or str(error))


def _wanted(options: Options, listener: Listener) -> Pins:
    """The CPUs to be held to: an earlier run's where it is this machine's, else those asked for or the default."""
    cores = sorted(os.sched_getaffinity(0))
    if options.pins is not None:
        if {*options.pins.broker, *options.pins.client} <= set(cores):
            return options.pins
        listener.message(f"the earlier run's CPUs are not here: this process may use {', '.join(map(str, cores))}")
    if options.fleet is not None:  # the clients are other machines', whose CPUs nobody here knows
        if options.cpus_client is not None:
            raise ScenarioError("--cpus-client: with --fleet locust start each worker under `taskset -c LIST` instead")
        return wanted_pins(options.cpus_broker, None, cores, is_local=False)
    return wanted_pins(options.cpus_broker, options.cpus_client, cores, is_local=options.brokers == "local")


@contextlib.contextmanager
def _staffed(asked: Asked | None, listener: Listener) -> Iterator[Roster | None]:
    """The workers that were asked for, while the run lasts; None where agents are processes of this machine."""
    if asked is None:
        yield None
        return
    from loadgen.locust.roster import Roster  # noqa: PLC0415 - only who has such a fleet needs it

    with Roster(asked, listener.message) as roster:
        yield roster


class _Bench:
    """Runs trials one after another, keeps each record, and remembers the capacities that were found.

    `endpoints` and `pins` are those of the brokers that stand now.
    """

    def __init__(
        self,
        plan: Plan,
        writer: RunWriter,
        listener: Listener,
        exposition: Exposition,
        roster: Roster | None = None,
    ) -> None:
        self.exposition, self.roster = exposition, roster
        self.writer, self.listener = writer, listener
        self.endpoints: dict[BrokerName, Endpoint] = {}
        self.pins = Pins()
        self.begun, self.trials = 0, len(plan.trials)
        self.left_s = plan.expected_s
        self.shown = ""
        self.told: list[dict[str, Any]] = []
        self.searches: dict[str, dict[str, Any]] = {}
        self.ceilings: dict[str, dict[str, Any]] = {}

    def run_all(self, trials: Iterable[Trial]) -> None:
        """Run trials of the plan, which are all on the brokers that stand now."""
        for trial in trials:
            self.turn_to(trial)
            if trial.rate.kind == "search":
                self.search(trial)
            elif trial.rate.fractions is not None:
                self.run_fraction(trial, trial.rate.fractions[0])
            else:
                self.run(trial)

    def turn_to(self, trial: Trial) -> None:
        """The plan's next trial begins."""
        self.begun += 1
        self.left_s -= trial.expected_s
        self.shown = f"[{self.begun}/{self.trials}] "

    def setting(self, trial: Trial) -> Setting:
        """What a trial needs beside itself."""
        left_s = max(0.0, self.left_s)
        endpoint = self.endpoints[trial.broker]
        return Setting(
            endpoint,
            self.listener.progress,
            self.writer,
            self.pins.client,
            self.shown,
            left_s,
            self.exposition.begin,
            None if self.roster is None else self.roster.hands,
            resting=resting_pids(self.endpoints, trial.broker),
        )

    def run(self, trial: Trial) -> dict[str, Any]:
        """Run one trial and write its record; KeyboardInterrupt and what ends a run go on to the caller."""
        endpoint = self.endpoints[trial.broker]
        if endpoint.source == "local":  # a node that was started again has compiled nothing yet
            _warm({trial.broker: endpoint}, trial.nodes, self.listener, self.pins)
        written = None
        if endpoint.source in WRITTEN_SOURCES:
            written = asdict(host.wait_until_written(progress=self.listener.progress))
        record, outcome = run_trial(trial, self.setting(trial))
        record["written"] = written
        self._check_versions(record)
        self.keep(record)
        self.listener.message(self.shown + line_of(record))
        if trial.faults:  # nodes were started again: their processes are others now
            endpoint = self.endpoints[trial.broker] = renewed(endpoint)
        if left := record.get("left_behind"):
            self.listener.message(f"{self.shown}left behind on {trial.broker}: {left['name']}: {left['reason']}")
        if outcome.cause is not None:
            raise outcome.cause
        if outcome.interrupted:
            raise KeyboardInterrupt
        if outcome.error is not None:
            _refuse_dead(trial, endpoint)
        return record

    def _check_versions(self, record: dict[str, Any]) -> None:
        """Strike a trial that other software made than those before it: no repeat of theirs."""
        own = {name: record.get(name) for name in ("broker", "driver", "versions")}
        if record["status"] == "complete":
            found = versions_changed([*self.told, own])
            add_check(record["verdict"], found)
            if found.passed is True:
                self.told.append(own)

    def keep(self, record: dict[str, Any]) -> None:
        """Write a trial's record, and show it from now on."""
        _keep(record, self.writer)
        self.exposition.end(record)

    def search(self, trial: Trial) -> None:
        """Find a capacity and write down how; a point without one is a trial that failed."""
        answer = find_capacity(trial, self)
        if answer["capacity_msgs_per_s"] is None and trial.purpose == "measure":
            self._fail(trial, answer["reason"])

    def found(self, answer: dict[str, Any]) -> None:
        """Write a search down, and remember it for the trials of a curve."""
        self.searches[answer["key"]] = answer
        self.writer.add("searches", answer)
        self.listener.message(self.shown + line_of_search(answer))

    def run_fraction(self, trial: Trial, fraction: float) -> None:
        """Run a curve's trial at its share of the capacity that was found for it."""
        capacity = (self.searches.get(trial.capacity_key) or {}).get("capacity_msgs_per_s")
        if capacity is None:
            self._fail(trial, "no capacity was found that it could be a fraction of")
            return
        producers = self.searches[trial.capacity_key]["producers"]
        self.run(replace(trial, rate=Rate.fixed(capacity * fraction), asked=trial.rate, producers=producers))

    def ceiling_s(self, trial: Trial, needed_msgs_per_s: float | None = None) -> float:
        """How long a ceiling takes at most, in seconds; 0 where it was measured before, and tells of such a rate."""
        is_known = self.roster is not None or self._known_ceiling(trial, needed_msgs_per_s) is not None
        return 0.0 if is_known else trial.ceiling_s

    def ceiling(self, trial: Trial, needed_msgs_per_s: float) -> dict[str, Any]:
        """What the generator reaches without a broker, for each point and number of producers.

        It is measured once, and again where that does not tell of the rate that is needed.
        """
        known = self._known_ceiling(trial, needed_msgs_per_s)
        if known is None:
            alone = replace(self.setting(trial), began=None)  # no trial of the run: nobody is shown it
            known = measure_ceiling(trial, alone, needed_msgs_per_s=needed_msgs_per_s)
            self.ceilings[_ceiling_key(trial)] = known
            self.writer.add("ceilings", known)
            self.listener.message(f"{self.shown}{trial.id}: without a broker: {_ceiling_text(known)}")
        return known

    def _known_ceiling(self, trial: Trial, needed_msgs_per_s: float | None) -> dict[str, Any] | None:
        """The ceiling that was measured before, where it tells of such a rate."""
        known = self.ceilings.get(_ceiling_key(trial))
        return known if known is not None and tells(known, needed_msgs_per_s) else None

    def _fail(self, trial: Trial, reason: str) -> None:
        """A point that could not be measured stands in the run, with its reason."""
        verdict = {"status": "invalid", "bound_by": "unknown", "reasons": [reason], "checks": []}
        self.keep({**describe(trial), "status": "failed", "error": reason, "verdict": verdict})


def _keep(record: dict[str, Any], writer: RunWriter) -> None:
    """Write a trial's record, also where the disk is too full for the last of its histograms."""
    try:
        writer.add_trial(record)
    except HostError as error:
        # By now the log is given up and has freed a little; the record alone is small.
        if record["error"] is None:
            record |= {"status": "failed", "error": str(error)}
            record["verdict"] = {"status": "invalid", "bound_by": "unknown", "reasons": [str(error)], "checks": []}
        writer.add_trial(record)
        raise


def _ceiling_key(trial: Trial) -> str:
    return f"{trial.capacity_key}/{trial.producers}"


def _ceiling_text(found: dict[str, Any]) -> str:
    """A ceiling in one line: as a closed loop, as an open one, and what limits them."""
    most, paced = found["achieved_msgs_per_s"], found["paced_msgs_per_s"]
    if most is None:
        return str(found["error"])
    schedule = f"paces {paced:,.0f} msg/s" if paced else f"paces no rate that was tried ({found['paced_reason']})"
    return f"{most:,.0f} msg/s as a closed loop, {schedule}; {found['limits']}"


def _refuse_dead(trial: Trial, endpoint: Endpoint) -> None:
    """After a failed trial: raise BrokerError where its broker no longer answers, so that the rest is not tried."""
    try:
        load_driver(trial.driver).admin(endpoint).close()
    except LoadgenError as error:
        raise BrokerError(
            f"{endpoint.broker} at {endpoint.address} died during trial {trial.id}: {error}; what was measured is kept"
        ) from None


def line_of(record: dict[str, Any]) -> str:
    """A finished trial in one line."""
    latency = record["latency_ns"].get(end_to_end(record)) or record["latency_ns"].get("ack")
    rate = record["achieved_msgs_per_s"]
    text = f"{record['id']}: {'no rate' if rate is None else f'{rate:,.0f} msg/s'}"
    if record["subscribers"] > 1:
        text += f" at {record['subscribers']} subscribers together"
    if latency:
        text += f", p50 {latency['p50'] / 1e6:.2f} ms, p99 {latency['p99'] / 1e6:.2f} ms"
    verdict = record["verdict"]
    text += f" · {verdict['status']}, bound by {verdict['bound_by']}"
    if record["error"]:
        text += f" · {record['error']}"
    elif verdict["status"] != "valid" and verdict["reasons"]:
        text += f" · {verdict['reasons'][0]}"
    return text


def header_of(
    plan: Plan, options: Options, endpoints: dict[BrokerName, Endpoint], pins: Pins, data_dir: Path | None
) -> dict[str, Any]:
    """What a run's record says before its first trial: what was asked, where, on which brokers."""
    environment = host.environment(data_dir or Path.cwd())
    if data_dir is not None:
        environment["fsync_ns"] = host.fsync_latency(data_dir)
    return {
        "command": list(options.command),
        "profile": plan.profile.name,
        "repeats": plan.repeats,
        "seed": plan.seed,
        "plan": {
            "warmup_s": plan.profile.warmup_s,
            "duration_s": plan.profile.duration_s,
            "search_budget_s": plan.profile.search_budget_s,
            "brokers": plan.brokers,
            "is_ab": plan.is_ab,
            "effect_ratio": plan.effect_ratio,
            "demand": None if plan.demand is None else asdict(plan.demand),
            "probes": list(options.probes),
        },
        "pins": {"broker": pins.broker, "client": pins.client},
        "scenarios": [scenario.model_dump(mode="json", exclude_none=True) for scenario in plan.scenarios],
        "environment": environment,
        "brokers": brokers_of(endpoints, plan.sites[0]),
    }


def brokers_of(endpoints: dict[BrokerName, Endpoint], site: Site) -> dict[str, dict[str, Any]]:
    """What ran and how it was set, as a run's header has it; of a cluster the first node's settings."""
    kind = ("" if site.nodes == 1 else f" × {site.nodes}") + (", linked through a proxy" if site.is_linked else "")
    return {
        f"{name}{kind}": {
            "version": each.version,
            "source": each.source,
            "configuration": each.configuration,
            "deviations": list(each.deviations),
        }
        for name, each in endpoints.items()
    }


def plan_of(run: Run, brokers: tuple[BrokerName, ...]) -> Plan:
    """The plan that an earlier run carried out: the same scenarios, seed, repeats and times."""
    header = run.header
    try:
        scenarios = [Scenario(**document) for document in header["scenarios"]]
        kept = header["plan"]
        profile = Profile(header["profile"], kept["warmup_s"], kept["duration_s"], header["repeats"])
        if "search_budget_s" in kept:
            profile = replace(profile, search_budget_s=kept["search_budget_s"])
        wanted = tuple(name for name in kept["brokers"] if name in brokers)
        if kept.get("is_ab"):
            a, b = scenarios
            effect = kept.get("effect_ratio") or EFFECT_RATIO
            given: dict[str, Any] = {"brokers": wanted, "repeats": header["repeats"], "seed": header["seed"]}
            return make_ab_plan(a, b, profile, **given, effect_ratio=effect)
        if kept.get("demand"):
            demand = Demand(**kept["demand"])
            return demand_plan(demand, scenarios, profile, brokers=wanted, seed=header["seed"])
        if not scenarios:  # a run of probes alone
            return Plan((), (), profile, header["repeats"], header["seed"], wanted)
        return make_plan(scenarios, profile, brokers=wanted, repeats=header["repeats"], seed=header["seed"])
    except (KeyError, TypeError) as error:
        raise ScenarioError(f"{run.id}: cannot be run again, its plan was not kept ({error})") from None


def pins_of(run: Run) -> Pins:
    """The CPUs that an earlier run was held to."""
    kept = run.header.get("pins") or {}
    return Pins(tuple(kept.get("broker") or ()), tuple(kept.get("client") or ()))


def _warm(endpoints: dict[BrokerName, Endpoint], nodes: int, listener: Listener, pins: Pins) -> None:
    """Give each broker fixed loads once per start, so that the first trial does not measure its compiler."""
    for name, endpoint in endpoints.items():
        if endpoint.source == "memory" or is_warmed(endpoint):
            continue
        listener.progress(f"warming up {name} for {len(WARM_LOADS) * WARM_LOAD_S:.0f} s")
        for size_bytes, preset, kafka in WARM_LOADS:
            # With a partition on each node's lead no node is left cold.
            kafka_part = kafka.model_copy(update={"partitions": nodes}) if nodes > 1 else kafka
            part: dict[str, Any] = {"kafka": kafka_part} if name == "kafka" else {"rabbitmq": RabbitMQ()}
            scenario = Scenario(
                name="warm-up",
                question="Is the broker's code compiled?",
                message=Message(size_bytes=size_bytes),
                rate=Rate.saturate(),
                durability=Durability.BROKER if nodes == 1 else Durability.REPLICATED,
                preset=preset,
                **part,
            )
            plan = make_plan([scenario], Profile("warm-up", 0.0, WARM_LOAD_S, 1), brokers=(name,))
            record, outcome = run_trial(plan.trials[0], Setting(endpoint, listener.progress, cpus=pins.client))
            if outcome.interrupted:
                raise KeyboardInterrupt
            if outcome.cause is not None:
                raise outcome.cause
            if outcome.error is not None:
                raise BrokerError(f"{name} at {endpoint.address}: the warm-up load failed: {record['error']}")
        mark_warmed(endpoint)
