"""Installations: made beside their place and renamed into it, so that a partial one never looks complete."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadgen.brokers.state import locked, make_dir, write_json
from loadgen.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadgen.brokers.state import Progress

RECORD = "installed.json"


@dataclass(frozen=True, slots=True)
class Installation:
    """A finished installation: where it is and the version of each part."""

    folder: Path
    versions: dict[str, str]


def find(name: str, cache: Path) -> Installation | None:
    """An installation that was finished, or None."""
    try:
        record = json.loads((cache / name / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Installation(cache / name, record["versions"])


def ensure(
    name: str, cache: Path, build: Callable[[Path, Progress], dict[str, str]], progress: Progress
) -> Installation:
    """Finds an installation or makes it; two programs that want it at once make it once.

    Args:
        name: The folder's name below the cache.
        cache: The folder of all installations.
        build: Fills the folder it is given and returns the versions of what it put there.
        progress: Told each step.
    """
    if found := find(name, cache):
        return found
    make_dir(cache, "LOADGEN_CACHE_DIR")
    with locked(cache / f"{name}.lock", what=f"installing {name}", progress=progress):
        if found := find(name, cache):
            return found
        began_s = time.monotonic()
        for leftover in cache.glob(f"{name}.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        # A name of its own: a child of a killed installation may still be writing into the old one.
        partial = cache / f"{name}.partial-{os.getpid()}"
        partial.mkdir()
        try:
            versions = build(partial, progress)
            write_json(partial / RECORD, {"versions": versions, "install_s": round(time.monotonic() - began_s, 1)})
            shutil.rmtree(cache / name, ignore_errors=True)
            os.sync()  # the record must not reach the disk before what it vouches for
            partial.rename(cache / name)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        progress(f"{name}: installed in {time.monotonic() - began_s:.0f} s")
    return Installation(cache / name, versions)


def need_program(name: str, *, what: str, package: str) -> str:
    """The path of a program that an installation needs, or one line that says how to get it."""
    path = shutil.which(name)
    if path is None:
        raise HostError(
            f"{what} needs the program {name}, which is not on PATH: install it "
            f"(Debian: apt-get install {package}), or use --brokers docker, or the URL of a running broker"
        )
    return path
