"""Probes carried out on a run's brokers, each finding written down as soon as it is known."""

from __future__ import annotations

from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING, Any

from loadgen.probes import Ground, load_probe

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.engine import Listener
    from loadgen.runs import RunWriter


def run_probes(
    names: Sequence[str],
    brokers: Callable[[int], Mapping[BrokerName, Endpoint]],
    repeats: int,
    writer: RunWriter,
    listener: Listener,
    classes: Collection[str] = (),
    standing: int = 1,
) -> None:
    """Ask each of the probes, one after another; LoadgenError goes into the finding that could not be had.

    Args:
        names: Which ones.
        brokers: Brokers of so many nodes.
        repeats: How often what is repeated is.
        writer: Takes the findings.
        listener: Is told them.
        classes: The durability classes that the run has faults in; of none, a probe is asked of all that it speaks of.
        standing: Of how many nodes the brokers are that stand already.
    """
    for name in names:
        numbers, probe = count(1), load_probe(name)
        asked: list[Mapping[BrokerName, Endpoint]] = []
        for nodes in probe.sizes(classes, standing):
            if (endpoints := brokers(nodes)) in asked:
                continue  # brokers from elsewhere are of the size that they are
            asked.append(endpoints)
            ground = Ground(endpoints, repeats, listener.progress)
            # Closed at once where it is cut short: what it started is ended then, not whenever it is collected.
            with closing(probe.findings(ground)) as findings:
                for finding in findings:
                    record = finding.record(name, next(numbers))
                    writer.add("findings", record)
                    listener.message(f"[probe] {line_of_finding(record)}")


def line_of_finding(finding: Mapping[str, Any]) -> str:
    """A finding in one line: `message_size/kafka/2, as it comes: largest message 1048508 bytes · the broker's word`."""
    where = ": ".join(part for part in (finding["id"], finding["point"]) if part)
    if finding["error"]:
        return f"{where}: {finding['what']}: {finding['error']}"
    values = ", ".join(f"{value:,.6g}" for value in finding["values"])
    doubt = " · THE BROKER SAYS OTHERWISE" if finding["agrees"] is False else ""
    said = f" · {finding['said']}" if finding["said"] else ""
    return f"{where}: {finding['what']} {values} {finding['unit']}{said}{doubt}"
