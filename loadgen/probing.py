"""Probes carried out on a run's brokers, each finding written down as soon as it is known."""

from __future__ import annotations

from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING, Any

from loadgen.probes import Ground, load_probe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadgen.endpoint import BrokerName, Endpoint
    from loadgen.engine import Listener
    from loadgen.runs import RunWriter


def run_probes(
    names: Sequence[str],
    endpoints: Mapping[BrokerName, Endpoint],
    repeats: int,
    writer: RunWriter,
    listener: Listener,
) -> None:
    """Ask each of the probes, one after another; LoadgenError goes into the finding that could not be had."""
    for name in names:
        numbers = count(1)
        # Closed at once where it is cut short: what it started is ended then, not whenever it is collected.
        with closing(load_probe(name).findings(Ground(endpoints, repeats, listener.progress))) as findings:
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
