"""Three capacity searches of one point on each broker: how far they lie apart, and how long each took.

    python bench/searches.py [rabbitmq] [kafka] [--repeats 3] [--results FOLDER]

The point is that of `loadgen run scenarios/latency.py --set rate=search --repeats 3`: 1 KiB, class broker, profile
quick, one producer and one consumer. Bars: the interval over the searches reaches no more than 15 % from their median,
and each search takes at most 90 s. The searches of one broker follow each other, so that what the machine does to them
shows. The exit status is 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.analysis.capacity import capacities
from loadgen.console import Console
from loadgen.engine import Options, execute
from loadgen.load import apply_sets, load_scenarios
from loadgen.plan import PROFILES, make_plan
from loadgen.report.words import broker_name, rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.analysis.capacity import PointCapacity
    from loadgen.endpoint import BrokerName

SCENARIO = Path("scenarios/latency.py")
BROKERS: tuple[BrokerName, ...] = ("rabbitmq", "kafka")
REPEATS = 3
REACH_MOST = 0.15
PROFILE = PROFILES["quick"]


def measure(broker: BrokerName, repeats: int, results: Path) -> PointCapacity:
    """The capacity of the point by so many searches."""
    (scenario,) = load_scenarios(SCENARIO)
    plan = make_plan([apply_sets(scenario, [("rate", "search")])], PROFILE, brokers=(broker,), repeats=repeats)
    run = execute(plan, Options(f"searches-{broker}", ["bench/searches.py", broker], results), Console())
    (found,) = capacities(run)
    return found


def told(found: PointCapacity, repeats: int) -> tuple[list[str], bool]:
    """What is printed of a point, and whether both bars were kept."""
    seconds = [each["elapsed_s"] for each in found.searches]
    in_time = max(seconds) <= PROFILE.search_budget_s
    reach = found.estimate.reach
    # A search that found nothing is one that does not agree with the others.
    agrees = reach is not None and found.estimate.n == repeats and reach <= REACH_MOST
    low, high = found.limits
    lines = [
        f"  {each['id']}: {rate(each['capacity_msgs_per_s'])} in {each['elapsed_s']:.0f} s, "
        f"{len(each['trials'])} trials, bound by {each['bound_by']}: {each['reason']}"
        for each in found.searches
    ]
    wide = "no interval" if reach is None else f"{rate(low)} … {rate(high)}, ± {reach:.1%} of the median"
    lines.append(
        f"  {broker_name(found.broker)}: {rate(found.msgs_per_s)}, {wide}, {found.estimate.n} of {repeats} searches "
        f"(bar: ± {REACH_MOST:.0%}): {_kept(agrees)}; the longest took {max(seconds):.0f} s "
        f"(bar: {PROFILE.search_budget_s:.0f} s): {_kept(in_time)}"
    )
    return lines, agrees and in_time


def _kept(is_kept: bool) -> str:
    return "kept" if is_kept else "missed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Search on each broker that is named, or on both; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("brokers", nargs="*", metavar="|".join(BROKERS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--results", type=Path, help="where to keep the runs (default: nowhere)")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.brokers) - set(BROKERS):
        parser.error(f"no such broker: {', '.join(sorted(unknown))}")
    is_good = True
    with tempfile.TemporaryDirectory() as folder:
        for broker in chosen.brokers or BROKERS:
            found = measure(broker, chosen.repeats, chosen.results or Path(folder))
            lines, is_kept = told(found, chosen.repeats)
            print("\n".join(lines), flush=True)
            is_good &= is_kept
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
