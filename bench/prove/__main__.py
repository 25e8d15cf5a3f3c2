"""Run the proofs, one line each, and write the page: `make prove`, or `python -m prove [name…] [--scale small]`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen import host
from loadgen.brokers import open_brokers
from loadgen.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_THRESHOLD, LoadgenError
from prove import PROOFS, page
from prove.proof import Proof, Row, Scale

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = Path(__file__).parents[2] / "docs/method.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all passed, 1 some failed."""
    parser = argparse.ArgumentParser(prog="prove", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="|".join(PROOFS), help="which proofs (default: all)")
    parser.add_argument("--scale", type=Scale, default=Scale.FULL, choices=list(Scale))
    parser.add_argument("--page", type=Path, help="where to write the page (default: docs/method.md for all, in full)")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.names) - set(PROOFS):
        parser.error(f"no such proof: {', '.join(sorted(unknown))}; there are {', '.join(PROOFS)}")
    names = [name for name in PROOFS if name in chosen.names or not chosen.names]
    path = chosen.page or (PAGE if len(names) == len(PROOFS) and chosen.scale is Scale.FULL else None)
    began, before = datetime.now(UTC), host.read_cpu_s(host.allowed_cpus())
    try:
        proofs, seconds = _run(names, chosen.scale)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    if path is not None:
        command = "make prove" if path == PAGE else f"python -m prove {' '.join(names)}"
        page.write(path, proofs, page.Session(began, command, chosen.scale, seconds, _steal_share(before)))
    failed = [proof.name for proof in proofs if not proof.passed]
    print(f"{len(proofs) - len(failed)} of {len(proofs)} proofs passed{': ' + str(path) if path else ''}")
    return EXIT_THRESHOLD if failed else EXIT_OK


def _run(names: Sequence[str], scale: Scale) -> tuple[list[Proof], dict[str, float]]:
    proofs: list[Proof] = []
    seconds: dict[str, float] = {}
    with contextlib.ExitStack() as held:
        if len(names) == len(PROOFS):
            held.enter_context(open_brokers("local"))  # started once; each proof that needs one finds it up
        for name in names:
            begin_s = time.monotonic()
            proof = _proved(name, scale)
            seconds[proof.name] = time.monotonic() - begin_s
            proofs.append(proof)
            _tell(proof, seconds[proof.name])
    return proofs, seconds


def _proved(name: str, scale: Scale) -> Proof:
    """The proof, or that it could not be had: the others are measured all the same."""
    try:
        proof: Proof = importlib.import_module(f"prove.{name}").prove(scale)
    except Exception as error:  # noqa: BLE001 - half an hour of other proofs must not be lost to one
        if not isinstance(error, LoadgenError):
            traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        return Proof(name, "It could not be measured.", (Row("measured", "yes", reason, "", ok=False),))
    return proof


def _tell(proof: Proof, took_s: float) -> None:
    kept = sum(row.ok for row in proof.rows)
    print(f"{proof.name}: {'passed' if proof.passed else 'FAILED'}, {kept} of {len(proof.rows)} checks, {took_s:.0f} s")
    for row in proof.rows:
        if not row.ok:
            print(f"  {row.name}: expected {row.expected} {row.tolerance}, seen {row.seen}".rstrip(), flush=True)
    sys.stdout.flush()


def _steal_share(before: dict[str, float]) -> float:
    """The share of all CPU time since then that the hypervisor gave to others."""
    now = host.read_cpu_s(host.allowed_cpus())
    spent = {name: now[name] - before[name] for name in now}
    return spent["steal"] / max(1e-9, sum(spent.values()))


if __name__ == "__main__":
    sys.exit(main())
