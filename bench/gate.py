"""Does the gate keep its promise? On resamples of recorded trials, and on the brokers as CI would use it.

    python bench/gate.py recorded                 records trials on both brokers, and resamples them
        --folder FOLDER                           those that are recorded there; where none are, records them into it
        --pairs 20                                pairs of neighbours of each broker and load: twice as many trials
    python bench/gate.py broker                   baseline, check, a pace or a setting made worse, and restored

Bars: 5 ± 1.5 % false alarms; rates slower by a tenth, and latencies by what matters, found in 90 % at the recommended
repeats (`gate_resampled`); on the brokers what is worse is missed and what is alike is not, and JUnit and summary say
the same (`gate_tried`). The exit status is 1 where one is not kept. `make prove-gate` runs both.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import gate_resampled
import gate_tried
from prove import pairs

from loadgen.brokers import BOTH
from loadgen.errors import LoadgenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prove.proof import Row


def recorded(folder: Path, count: int, resamples: int) -> int:
    """Resample what is recorded in a folder, and record first what is not, rates or latencies; the exit status."""
    has_rates, has_latencies = ((folder / each.name).exists() for each in (pairs.KEPT, pairs.KEPT_LATENCIES))
    if not (has_rates and has_latencies):
        folder.mkdir(parents=True, exist_ok=True)
        pairs.record_all(count, folder, is_latencies_only=has_rates)
    drawn = gate_resampled.pools(folder)
    return told(list(gate_resampled.rows(drawn, resamples)), list(gate_resampled.notes(drawn)))


def told(rows: Sequence[Row], notes: Sequence[str] = ()) -> int:
    """Print what was held, a line each; the exit status."""
    for row in rows:
        print(f"{'kept  ' if row.ok else 'MISSED'}  {row.name}: {row.seen} [{row.expected}]")
    print("".join(f"{note}\n" for note in notes), end="")
    return 0 if all(row.ok for row in rows) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; the value is the exit status."""
    parser = argparse.ArgumentParser(description="Does the gate keep its promise?")
    parser.add_argument("what", choices=("recorded", "broker"))
    parser.add_argument("--folder", type=Path, help="recorded: where the trials are, or are to be kept")
    parser.add_argument("--pairs", type=int, default=20, help="recorded: of each broker and load (default: 20)")
    parser.add_argument("--resamples", type=int, default=gate_resampled.RESAMPLES, help="recorded: of each line")
    parser.add_argument("--broker", choices=BOTH, help="broker: one of them alone")
    arguments = parser.parse_args(argv)
    began_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="gate-") as fresh:
            if arguments.what == "recorded":
                status = recorded(arguments.folder or Path(fresh), arguments.pairs, arguments.resamples)
            else:
                brokers = (arguments.broker,) if arguments.broker else BOTH
                status = told([row for broker in brokers for row in gate_tried.rows(broker, Path(fresh) / broker)])
    except LoadgenError as error:
        print(f"gate: {error}", file=sys.stderr)
        return error.exit_status
    print(f"{(time.monotonic() - began_s) / 60:.1f} minutes")
    return status


if __name__ == "__main__":
    sys.exit(main())
