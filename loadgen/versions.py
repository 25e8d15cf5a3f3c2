"""Which versions ran: packages, the revision of this tree, and what tells one trial's software from another's."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "loadgen",
    "numpy",
    "hdrhistogram",
    "pandas",
    "pyarrow",
    "pydantic",
    "psutil",
    "crc32c",
    "pika",
    "aio-pika",
    "rstream",
    "kio",
    "confluent-kafka",
    "locust",
    "gevent",
)
SUBJECT_VARIABLES = ("GITHUB_SHA", "CI_COMMIT_SHA")
"""Where GitHub's and GitLab's runners say which commit they were started for."""
CLIENT_PACKAGES = {
    "pika": "pika",
    "pika-blocking": "pika",
    "aio-pika": "aio-pika",
    "rstream": "rstream",
    "confluent": "confluent-kafka",
    "confluent-sync": "confluent-kafka",
}


def versions(driver: str, broker_version: str) -> dict[str, str | None]:
    """What ran in one trial, to tell repeats of one thing from repeats of two: broker, client, python, loadgen.

    A wire driver's client is loadgen itself. loadgen's version is its revision, and with changes in the working tree
    also a digest of its sources, since agents load them anew in every trial; of an installed package its number.
    """
    root = Path(__file__).resolve().parent
    git = git_state(root.parent)
    own = package_version("loadgen")
    if git is not None and git["revision"]:
        own = str(git["revision"])[:12] + (f"+{_digest(root)}" if git["dirty"] else "")
    package = CLIENT_PACKAGES.get(driver)
    return {
        "broker": None if broker_version == "unknown" else broker_version,
        "client": f"loadgen {own}" if package is None else f"{package} {package_version(package)}",
        "python": platform.python_version(),
        "loadgen": own,
    }


def own_version() -> str:
    """This package's number and a digest of its sources: processes of one version understand each other."""
    return f"{package_version('loadgen')} ({_digest(Path(__file__).resolve().parent)})"


def _digest(root: Path) -> str:
    """Eight hexadecimal digits of all Python sources below a folder."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def package_version(name: str) -> str | None:
    """An installed package's version."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def git_state(root: Path) -> dict[str, Any] | None:
    """Revision and dirty flag of the working tree this package lies in; None for an installed package."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    revision = _git_output(root, "rev-parse", "HEAD")
    changes = _git_output(root, "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": None if changes is None else bool(changes)}


def subject_revision(folder: Path) -> str | None:
    """The commit that a run is about: the one a CI was started for, else that of the tree that is worked in."""
    told = next((os.environ[name] for name in SUBJECT_VARIABLES if os.environ.get(name)), None)
    if told is not None or shutil.which("git") is None:
        return told
    return _git_output(folder, "rev-parse", "HEAD")


def _git_output(root: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, check=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
