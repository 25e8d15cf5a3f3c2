"""The picture of our page in Locust's web UI, under load on both brokers, for the README.

    python bench/web_page.py [FILE] [--rate N]

Both brokers take turns; when each has been judged once and is under load again, a headless Chromium takes the picture.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

PICTURE = Path("docs/images/locust.png")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--virtual-time-budget=4000",
)  # fmt: skip
START_S = 120.0


def asked(address: str, path: str, **form: str) -> Any:
    """What Locust's web UI answers."""
    data = urllib.parse.urlencode(form).encode() if form else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{address}/{path}", data, timeout=20) as answer:
        return json.loads(answer.read())


def photograph(url: str, path: Path, size: tuple[int, int], scale: float) -> None:
    """Take the picture of a page in a window of this size (width, height), with so many dots to its pixels."""
    program = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    if program is None:
        sys.exit("no browser: expected chromium (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        words = [program, *FLAGS, f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}"]
        words += [f"--force-device-scale-factor={scale:g}", f"--screenshot={path.absolute()}", url]
        subprocess.run(words, check=True, capture_output=True, timeout=120)


def wait_for_both(address: str, most_s: float) -> None:
    """Until both brokers have been judged, and one is under load again."""
    end_s = time.monotonic() + most_s
    while time.monotonic() < end_s:
        told = asked(address, "loadgen/state")
        judged = {each["id"].split("/")[1] for each in told["verdicts"]}
        if judged == {"rabbitmq", "kafka"} and any(each["verdict"] == "running" for each in told["now"]):
            time.sleep(8)  # for a line in the chart
            return
        time.sleep(1)
    sys.exit(f"not both brokers were judged within {most_s:.0f} s: {told['verdicts']}")


def main() -> None:
    """Start Locust, load it, take the picture, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("--rate", default="2000")
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as results:
        words = [sys.executable, "-m", "locust", "-f", "scenarios/latency.py", "--web-host", "127.0.0.1"]
        words += ["--web-port", str(port), "--set", f"rate={arguments.rate}", "--results", results]
        locust = subprocess.Popen(words, start_new_session=True)
        try:
            end_s = time.monotonic() + START_S
            while time.monotonic() < end_s:
                try:
                    asked(address, "swarm", user_count="2", spawn_rate="2")
                    break
                except OSError:
                    time.sleep(1)
            wait_for_both(address, 3 * START_S)
            arguments.file.parent.mkdir(parents=True, exist_ok=True)
            photograph(f"{address}/loadgen", arguments.file, (1280, 660), 2.0)
        finally:
            os.killpg(locust.pid, signal.SIGINT)
            locust.wait(START_S)
    print(arguments.file)


if __name__ == "__main__":
    main()
