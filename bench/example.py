"""The runs that come with the project, measured anew: results/example, example-history and example-decision.

    python bench/example.py [example] [history] [decision]

Takes about eighteen minutes of a quiet machine. `example` is `notebooks/example.py`, `history` one point of Kafka in
four runs, in the third of which a knob was turned on purpose, `decision` an answer of `loadgen decide`. What a run says
of folders of this machine is replaced by what they are (`<checkout>`, `<installed>`); nothing else is changed. Reports
are left out, as they can be made again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from loadgen.runs import load, load_runs
from loadgen.store import portable

EXAMPLE, HISTORY = Path("results/example"), Path("results/example-history")
DECISION = Path("results/example-decision")
KEPT = ("run.json", "histograms.hlog", "series.parquet")
CHANGED = (), (), ("--set", "kafka.linger_ms=20"), ()
LATENCY = ("scenarios/latency.py", "--broker", "kafka", "--set", "rate=500", "--repeats", "3")
ASKED = ("--rate", "20000", "--size", "1024", "--p99", "10ms", "--survive", "node")
TOLD = {"run": {0}, "decide": {0, 3}}  # statuses of a run as it should be: a decision may leave its question open


def measure(root: Path, *words: str, command: str = "run") -> None:
    """Carry out a run under `root`."""
    done = subprocess.run([sys.executable, "-m", "loadgen.cli", command, *words, "--results", str(root)], check=False)
    if done.returncode not in TOLD[command]:
        sys.exit(f"loadgen {command} {' '.join(words)}: exit status {done.returncode}")


def ship(run: Path, target: Path, results: str, kept: tuple[str, ...] = KEPT) -> None:
    """Copy a run's own files, without the folders of this machine; `results` is where it was measured."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in kept:
        shutil.copyfile(run / name, target / name)
    text = (target / "run.json").read_text(encoding="utf-8")
    text = portable(text.replace(results, "<results>"))
    (target / "run.json").write_text(text, encoding="utf-8")
    size_bytes = sum(each.stat().st_size for each in target.iterdir())
    print(f"{target}: {load(target)!r}, {size_bytes / 1e3:.0f} kB")


def main() -> None:
    """Measure what is named, or all, and put it where the notebooks and the docs look."""
    parser = argparse.ArgumentParser(description=__doc__)
    everything = ["example", "history", "decision"]
    parser.add_argument("parts", nargs="*", default=everything, metavar="|".join(everything))
    parts = parser.parse_args().parts
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        results = os.path.realpath(root)
        if "example" in parts:
            measure(root / "example", "notebooks/example.py", "--repeats", "2")
            ship(root / "example" / "latest", EXAMPLE, results)
        if "decision" in parts:
            measure(root / "decision", *ASKED, command="decide")
            ship(root / "decision" / "latest", DECISION, results, KEPT[:1])  # its histograms are megabytes
        if "history" in parts:
            for words in CHANGED:
                measure(root / "history", *LATENCY, *words)
            shutil.rmtree(HISTORY, ignore_errors=True)
            for number, run in enumerate(load_runs(root / "history" / "*"), 1):
                ship(run.path, HISTORY / str(number), results)


if __name__ == "__main__":
    main()
