"""The report's first sentences and its caveats, computed from the run: none is written by hand."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from loadgen import clocks
from loadgen.analysis import COMPARED_KINDS
from loadgen.checks.repeats import versions_changed
from loadgen.record import enters
from loadgen.report import capacity, curve, words
from loadgen.report import points as pt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadgen.analysis.curve import Curve
    from loadgen.record import Record
    from loadgen.report.table import Table
    from loadgen.runs import Run

FEW_REPEATS = 5
FEW_VALID_SHARE = 0.25
ONE_EACH = "one repeat each, which cannot tell"
LEADING_CLASSES = ("broker", "flushed", "none", "replicated", "replicated_flushed")


def sentences(table: Table) -> list[str]:
    """Capacity, the knee, throughput and latency, a sentence each, as far as the run compares the brokers in them."""
    asked = (_capacity(table), _knee(table), _throughput(table), _latency(table), _claims(table))
    said = [sentence for sentence in asked if sentence]
    if said:
        return [*_doubt(table), *said]
    if table.trials and len(table.struck) == len(table.trials):
        count = words.plural(len(table.trials), "trial")
        return [f"No number of this run is to be used: none of its {count} is valid and complete, as told below."]
    return [_uncompared(table)]


def _uncompared(table: Table) -> str:
    """Why the brokers are not compared: nobody asked both for the same, or no trial of one of them counts."""
    sides = [[each.one(broker, "wire") for broker in pt.BROKER_ORDER] for each in table.comparisons]
    lacking = [
        [words.broker_name(point.broker) for point in each if point is not None and not point.used]
        for each in sides
        if None not in each
    ]
    if not lacking:
        return "This run does not compare the two brokers at one load in one durability class; its points stand below."
    names = " and ".join(dict.fromkeys(name for each in lacking for name in each))
    return f"Both brokers had the same to do, but no trial of {names} counts, so that nothing is compared."


def _claims(table: Table) -> str | None:
    """How many of the article's claims hold here, where a run is about most of them."""
    cells = [(row.feature, cell) for row in table.rows for cell in row.cells if cell.judgement != "not measured"]
    if len(cells) <= len(table.rows):
        return None
    counted = Counter(cell.judgement for _, cell in cells)
    wrong = [
        f"{words.broker_name(cell.broker)}’s {feature.lower()}"
        for feature, cell in cells
        if cell.judgement == "contradicts"
    ]
    contradicted = f"contradicts {len(wrong)} ({', '.join(wrong)})" if wrong else "contradicts none"
    return (
        f"Of {len(cells)} claims of the article that were measured, this run supports {counted['supports']}, "
        f"{contradicted}, and cannot tell {counted['cannot tell here']}."
    )


def _doubt(table: Table) -> list[str]:
    """What must be read before any figure, where few of the trials passed all checks."""
    statuses = [record["verdict"]["status"] if enters(record) else "invalid" for record in table.trials]
    valid = statuses.count("valid")
    if valid >= FEW_VALID_SHARE * len(statuses):
        return []
    why = Counter(
        check["name"]
        for record in table.trials
        for check in record["verdict"].get("checks", ())
        if check["passed"] is False
        or (check["passed"] is None and check.get("weighs", True) and record["verdict"]["status"] != "valid")
    )
    most = f", most often for “{why.most_common(1)[0][0]}”" if why else ""
    return [f"Read with care: only {valid} of {words.plural(len(statuses), 'trial')} passed every check{most}."]


def _leading(comparisons: Sequence[pt.Comparison]) -> pt.Comparison | None:
    """The comparison that answers first: both brokers there, the everyday class before the others."""
    both = [each for each in comparisons if _has(each, "kafka") and _has(each, "rabbitmq")]
    return min(both, key=lambda each: (LEADING_CLASSES.index(each.durability), -_rounds(each)), default=None)


def _rounds(comparison: pt.Comparison) -> int:
    """In how many repeats both brokers' trials count."""
    repeats = [
        {record["repeat"] for record in point.used}
        for broker in ("kafka", "rabbitmq")
        if (point := comparison.one(broker, "wire")) is not None
    ]
    return len(set.intersection(*repeats))


def _has(comparison: pt.Comparison, broker: str) -> bool:
    point = comparison.one(broker, "wire")
    return point is not None and bool(point.used)


def _capacity(table: Table) -> str | None:
    pairs = [pair for group in capacity.grouped(table.capacities) if (pair := capacity.pair(group))]
    if not pairs:
        return None
    kafka, rabbitmq = min(pairs, key=lambda pair: LEADING_CLASSES.index(pair[0].durability))
    theirs, ours = capacity.rate_text(kafka), capacity.rate_text(rabbitmq)
    what = f"{capacity.load_text(kafka, kafka.p99_ms)}, class {kafka.durability}"
    where = _limited([(each.broker, each.bound_by) for each in (kafka, rabbitmq)])
    up, down = capacity.ratio(kafka, rabbitmq), capacity.ratio(rabbitmq, kafka)
    if kafka.is_lower_bound and rabbitmq.is_lower_bound:
        return f"Neither broker's capacity was reached: Kafka sustained {theirs}, RabbitMQ {ours} ({what}){where}."
    if up.low is None:
        return f"Kafka sustained {theirs}, RabbitMQ {ours} ({what}; one search each, so no interval){where}."
    if up.direction == "no difference shown":
        few = _few(up.pairs)
        return f"No difference in capacity is shown: Kafka sustained {theirs}, RabbitMQ {ours} ({what}){few}{where}."
    first, second, ratio = ("Kafka", "RabbitMQ", up) if up.direction == "higher" else ("RabbitMQ", "Kafka", down)
    figures = f"{theirs} against {ours}" if first == "Kafka" else f"{ours} against {theirs}"
    return f"{first} sustained {words.times(ratio)} the rate of {second} ({figures}, {what}){where}."


def _knee(table: Table) -> str | None:
    """Where latency turns up, by wire drivers, in the class that leads."""
    wire = [[each for each in group if each.driver_kind == "wire"] for group in curve.grouped(table.curves)]
    bent = [[each for each in group if each.knee_point] for group in wire if _is_one_each(group)]
    leading = min(filter(None, bent), key=lambda group: LEADING_CLASSES.index(group[0].durability), default=[])
    parts = [
        f"{words.rate(point.offered_msgs_per_s)} for {words.broker_name(each.broker)} "
        f"({pt.fraction_label(point.fraction)} of its capacity, with 99 % within {words.duration(point.p99.median)})"
        for each in leading
        if (point := each.knee_point) is not None
    ]
    return f"From the knee on, latency grows faster than load: {' and '.join(parts)}." if parts else None


def _is_one_each(group: Sequence[Curve]) -> bool:
    return len({each.broker for each in group}) == len(group)


def _throughput(table: Table) -> str | None:
    closed = [each for each in table.comparisons if each.shared["rate"].get("kind") == "saturate"]
    leading = _leading([each for each in closed if each.scenario == "throughput"] or closed)
    if leading is None:
        return None
    kafka, rabbitmq = leading.one("kafka", "wire"), leading.one("rabbitmq", "wire")
    assert kafka is not None
    assert rabbitmq is not None
    ratio = leading.ratio(pt.goodput)
    theirs, ours = (words.rate(point.estimate(pt.goodput).median) for point in (kafka, rabbitmq))
    what = f"{words.message(leading.shared['message'])}, class {leading.durability}"
    where = _limits(kafka, rabbitmq)
    if ratio.pairs == 1:
        return f"Kafka carried {theirs}, RabbitMQ {ours} ({what}): {ONE_EACH}{where}."
    if ratio.direction == "no difference shown":
        return (
            f"No difference in throughput is shown between Kafka and RabbitMQ "
            f"({theirs} against {ours}, {what}){_few(ratio.pairs)}{where}."
        )
    if ratio.direction == "lower":
        inverse = leading.ratio(lambda record: _inverse(pt.goodput(record)))
        said, pair = (
            f"RabbitMQ carried {words.times(inverse)} the messages of Kafka",
            f"{ours} against {theirs}",
        )
    else:
        said, pair = (
            f"Kafka carried {words.times(ratio)} the messages of RabbitMQ",
            f"{theirs} against {ours}",
        )
    return f"{said} ({pair}, {what}){where}."


def _latency(table: Table) -> str | None:
    opened = [
        each for each in table.comparisons
        if each.shared["rate"].get("kind") in COMPARED_KINDS
        and all(_measured(each.one(broker, "wire")) for broker in ("kafka", "rabbitmq"))
    ]  # fmt: skip
    leading = _leading([each for each in opened if each.scenario == "latency"] or opened)
    if leading is None:
        return None
    kafka, rabbitmq = leading.one("kafka", "wire"), leading.one("rabbitmq", "wire")
    assert kafka is not None
    assert rabbitmq is not None
    parts = []
    for percentile, name in (("p50", "half of the messages"), ("p99", "99 %")):
        measure = pt.latency("e2e", percentile)
        ratio = leading.ratio(measure)
        figures = [words.duration(point.estimate(measure).median) for point in (rabbitmq, kafka)]
        shown = {
            "higher": "RabbitMQ is faster",
            "lower": "Kafka is faster",
            "no difference shown": "no difference shown" + _few(ratio.pairs) if ratio.pairs > 1 else ONE_EACH,
        }[ratio.direction]
        parts.append(f"{name} within {figures[0]} from RabbitMQ and {figures[1]} from Kafka ({shown})")
    shared = leading.shared
    load = f"{pt.rate_label(shared['rate'])} of {words.message(shared['message'])}"
    first = parts[0].replace(" within", " arrived within", 1)
    return f"At {load}, class {leading.durability}, {first}, and {parts[1]}{_limits(kafka, rabbitmq)}."


def _measured(point: pt.Point | None) -> bool:
    return point is not None and point.estimate(pt.latency("e2e", "p50")).n > 0


def _inverse(value: float | None) -> float | None:
    return 1 / value if value else None


def _few(pairs: int) -> str:
    return f" with {words.plural(pairs, 'repeat')}" if pairs < FEW_REPEATS else ""


def _limits(*points: pt.Point) -> str:
    return _limited([(point.broker, point.bound_by) for point in points])


def _limited(bounds: Sequence[tuple[str, str]]) -> str:
    """What else than the brokers set their rates; `bounds` are pairs of a broker and what bounded it."""
    host = [words.broker_name(broker) for broker, bound_by in bounds if "host" in bound_by]
    client = [words.broker_name(broker) for broker, bound_by in bounds if "generator" in bound_by]
    workers = [words.broker_name(broker) for broker, bound_by in bounds if "consumers" in bound_by]
    said = ""
    if host:
        said += f"; {' and '.join(host)} with this client on this host, whose CPUs were used up"
    if client:
        said += f"; the client, not the broker, limited {' and '.join(client)}"
    if workers:
        said += f"; the consumers' own work, not the broker, limited {' and '.join(workers)}"
    return said


def caveats(run: Run, table: Table) -> list[str]:
    """What a careful reader would ask: machine, guarantees, repeats, limits, what was left out."""
    checks: tuple[Callable[[Run, Table], str | None], ...] = (
        _incomplete, _classes, _machine, _same_machine, _versions, _repeats, _bound, _left_out, _unknown, _deviating,
    )  # fmt: skip
    return [said for said in (check(run, table) for check in checks) if said]


def _incomplete(run: Run, table: Table) -> str | None:
    del table
    return None if run.status == "complete" else f"The run is {run.status}: {run.reason or 'it has not ended'}."


def _classes(run: Run, table: Table) -> str | None:
    del run
    found = {record["durability"] for record in table.trials if record["durability"] in words.CLASS_PROMISES}
    told = [f"in class {name} {words.CLASS_PROMISES[name]}" for name in sorted(found, key=pt.class_rank)]
    return f"What is promised: {'; '.join(told)}." if told else None


def _machine(run: Run, table: Table) -> str | None:
    del table
    facts = dict(machine(run))
    said = f"One machine: {facts.get('CPU', 'CPU unknown')}, {facts.get('Memory', 'memory unknown')}."
    if (run.environment.get("virtualisation") or {}).get("hypervisor"):
        said += " It is a virtual machine: its neighbours are part of every figure."
    governor = facts.get("Governor")
    if governor and governor != "performance":
        said += f" The CPU frequency governor is “{governor}”, not “performance”."
    return f"{said} Ratios carry over to other machines better than absolute figures do."


def _same_machine(run: Run, table: Table) -> str | None:
    del table
    sources = {broker.get("source") for broker in run.header["brokers"].values()}
    if not sources & {"local", "docker"}:
        return None
    pins = run.header.get("pins") or {}
    shared = "each kept to its own CPUs" if pins.get("broker") and pins.get("client") else "sharing its CPUs"
    return f"Brokers and clients ran on one machine, {shared}, over its loopback: no network is in the figures."


def _versions(run: Run, table: Table) -> str | None:
    del run
    check = versions_changed(table.trials)
    return f"These are no repeats of one thing: versions {check.reason}." if check.passed is False else None


def _repeats(run: Run, table: Table) -> str | None:
    del run
    counts = [len(point.used) for comparison in table.comparisons for point in comparison.points if point.used]
    if not counts or min(counts) >= FEW_REPEATS:
        return None
    said = "their intervals are wide" if min(counts) > 1 else "one has no interval, and few have a wide one"
    return (
        f"Some points have only {words.plural(min(counts), 'repeat')}: {said}, and tails "
        "beyond p99 vary up to tenfold from one repeat to the next."
    )


def _bound(run: Run, table: Table) -> str | None:
    del run
    counted = {
        bound: sum(record["verdict"]["bound_by"] == bound for record in table.trials)
        for bound in ("host", "generator", "consumers")
    }
    parts = []
    if counted["host"]:
        parts.append(
            f"{words.plural(counted['host'], 'trial')} used up the machine: such a rate is what this client "
            "on this host gets, and the CPU a message says more about the broker"
        )
    if counted["generator"]:
        parts.append(
            f"in {words.plural(counted['generator'], 'trial')} the client was the limit, and the rate is not "
            "the broker's"
        )
    if counted["consumers"]:
        parts.append(f"in {words.plural(counted['consumers'], 'trial')} the consumers’ own work set the rate")
    return "; ".join(parts) + "." if parts else None


def _left_out(run: Run, table: Table) -> str | None:
    del run
    if not table.struck:
        return None
    count = f"{len(table.struck)} of {words.plural(len(table.trials), 'trial')}"
    struck = {record["id"] for record in table.struck}
    overloaded = sum(
        each.trial_id in struck for found in table.curves for point in found.points for each in point.repeats
    )
    but = f"; {overloaded} of them are a curve's overload, and shown as such" if overloaded else ""
    hurt = sum(bool(record["faults"]) for record in table.struck)
    but += f"; of {hurt} with faults it is told all the same what became of their messages" if hurt else ""
    return f"Struck out below, and in no figure: {count}, invalid or incomplete{but}."


def _unknown(run: Run, table: Table) -> str | None:
    del run
    unknown = [each for each in table.trials if enters(each) and each["verdict"]["status"] == "unknown"]
    if not unknown:
        return None
    count = words.plural(len(unknown), "trial")
    return f"{count} could not be checked in every respect (verdict unknown); their figures are used."


def _deviating(run: Run, table: Table) -> str | None:
    del table
    counts = [
        f"{words.broker_name(name)} {len(broker['deviations'])}"
        for name, broker in run.header["brokers"].items()
        if broker.get("deviations")
    ]
    return f"Settings that differ from what is shipped: {', '.join(counts)}; listed below." if counts else None


def machine(run: Run) -> list[tuple[str, str]]:
    """The environment in a few lines, as far as it was recorded."""
    environment = run.environment
    given = environment.get("cpu")
    cpu: Record = given if isinstance(given, dict) else {"model": given or environment.get("cpu_model")}
    memory_bytes, disk = environment.get("memory_bytes"), environment.get("disk") or {}
    facts: list[tuple[str, Any]] = [
        ("CPU", _cpu(cpu, environment)),
        ("Memory", f"{memory_bytes / (1 << 30):.1f} GiB" if memory_bytes else environment.get("memory")),
        ("Kernel", environment.get("kernel")),
        ("System", environment.get("os")),
        ("Disk", _disk(disk) if isinstance(disk, dict) else disk),
        ("Python", environment.get("python")),
        ("Governor", cpu.get("governor") or environment.get("governor")),
        ("Clock source", environment.get("clocksource")),
        ("Workers' clocks", _clocks(run.records)),
        ("Packages", _pairs(environment.get("packages"))),
        ("Kernel settings", _pairs(environment.get("sysctl"))),
        ("Revision", _git(environment.get("git"))),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _cpu(cpu: Record, environment: Record) -> str | None:
    cores = cpu.get("cores") or environment.get("cores")
    model = cpu.get("model")
    return (
        None if not model and not cores else f"{model or 'unknown CPU'}, {words.plural(cores, 'core') if cores else ''}"
    )


def _clocks(records: Sequence[Record]) -> str | None:
    """How far other hosts' clocks were off, and how exactly that is known, in the worst trial; None: one host."""
    known = [clock for record in records if (clock := record.get("clock") or {}).get("samples")]
    if not known:
        return None
    worst = max(known, key=lambda clock: clock["error_ns"])
    told = clocks.in_words(worst, "the deciding machine's")
    return f"{told} (by {worst['samples']} round trips, in the worst trial)"


def _disk(disk: Record) -> str:
    kind = {True: "spinning", False: "solid state"}.get(disk.get("rotational"))  # type: ignore[arg-type]
    return ", ".join(str(part) for part in (disk.get("device"), disk.get("filesystem"), kind) if part)


def _git(git: Any) -> str | None:
    if not isinstance(git, dict):
        return git or None
    text = str(git.get("revision") or git.get("commit") or "")
    return (text + (" with local changes" if git.get("dirty") else "")) or None


def _pairs(values: Any) -> str | None:
    return ", ".join(f"{name} {value}" for name, value in values.items()) if isinstance(values, dict) else values
