"""The README and the pages of docs/ as a reader has them: their commands and their Python, and what is run of each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import reference

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMMENT = re.compile(r"\s+#\s.*$|\s*#$")
STATUS = re.compile(r"# exit status (\d+)")

# Only lengths, repeats, ports and places are changed, and where another command does the same on both brokers or along
# a whole sweep, one of them is enough. `{urls}` are the session's brokers, `{port}` is a free one. (The profiles' own
# lengths are short in all commands: `ready_loadgen.py`.)
SHORT = {
    "loadgen up; loadgen status; loadgen down": "loadgen up; loadgen status; LOADGEN_BROKERS_DIR={empty} loadgen down",
    "loadgen down": "LOADGEN_BROKERS_DIR={empty} loadgen down",
    'loadgen run scenarios/latency.py --brokers "amqps://mq.example:5671/ kafka+tls://k1.example:9093"':
        "loadgen run scenarios/latency.py --brokers '{urls}' --set rate=500",
    "loadgen run scenarios/task_queue.py":
        "loadgen run scenarios/task_queue.py --set prefetch=1",
    "loadgen run scenarios/capacity.py": "loadgen run scenarios/capacity.py --broker kafka",
    "loadgen run scenarios/latency.py --set rate=search":
        "loadgen run scenarios/latency.py --set rate=search --broker kafka",
    "loadgen run scenarios/latency.py --prometheus 9464":
        "loadgen run scenarios/latency.py --prometheus 0 --broker rabbitmq",
    "loadgen run scenarios/latency.py --repeats 5":
        "loadgen run scenarios/latency.py --repeats 1 --broker kafka",
    "loadgen ab scenarios/latency.py --broker kafka --set kafka.linger_ms=0 --set kafka.linger_ms=5":
        "loadgen ab scenarios/latency.py --broker kafka --set 'kafka.linger_ms=0 rate=500' "
        "--set 'kafka.linger_ms=5 rate=500'",
    "loadgen run scenarios/soak.py --duration 4h": "loadgen run scenarios/soak.py --duration 1s --broker kafka",
    "loadgen run scenarios/soak.py --duration 4h --broker rabbitmq --set rabbitmq.driver=stream "
    "--set rabbitmq.max_length_bytes=64000000 --set rabbitmq.max_segment_size_bytes=16000000":
        "loadgen run scenarios/soak.py --duration 1s --broker rabbitmq --set rabbitmq.driver=stream "
        "--set rabbitmq.max_length_bytes=64000000 --set rabbitmq.max_segment_size_bytes=16000000",
    "loadgen decide --rate 2000 --size 1024 --p99 50ms --survive broker":  # by URL nobody kills the session's brokers
        "loadgen decide --rate 2000 --size 1024 --p99 50ms --survive broker --repeats 1 --brokers '{urls}'",
    "loadgen rerun latest": "loadgen rerun {smallest}",
    "loadgen report RUN RUN": "loadgen report results/1-latency results/2-latency",
    "loadgen runs tag release-1 RUN": "loadgen runs tag release-1 1-latency",
    "locust -f scenarios/task_queue.py":
        "locust -f scenarios/task_queue.py --web-host 127.0.0.1 --web-port {port} --autostart --autoquit 0 -u 2 -r 2 "
        "-t 6s --tags kafka",
    "locust -f scenarios/latency.py --headless -u 2 -r 2 -t 30s --broker kafka":
        "locust -f scenarios/latency.py --headless -u 2 -r 2 -t 6s --broker kafka",
    "locust -f scenarios/throughput.py --worker --master-host 10.0.0.5":
        "locust -f scenarios/throughput.py --worker --master-host 127.0.0.1 --master-port {port}",
    "loadgen run scenarios/throughput.py --fleet locust --expect-workers 4 --bind 10.0.0.5 "
    "--brokers 'amqp://user:password@10.0.0.9 kafka://10.0.0.8:9092'":
        "loadgen run scenarios/throughput.py --fleet locust --expect-workers 1 --bind 127.0.0.1:{port} "
        "--brokers '{urls}' --set durability=broker",
}  # fmt: skip
"""By command as it is written: what is run in its place."""

PLANNED = {
    "loadgen compare --profile standard": "tests/test_all_scenarios.py",
    "loadgen compare --prometheus 0.0.0.0:9464": "tests/test_exposition.py",
    "loadgen run scenarios/latency.py --set durability=broker,replicated": "tests/test_clusters.py",
    "loadgen run scenarios/faults/failover.py": "tests/test_clusters.py",
    "loadgen decide --rate 20000 --size 1024 --p99 10ms --survive node": "tests/test_decide.py",
}
"""Commands that need a cluster of three or many minutes: their plan is made, and the file named runs the like."""

ELSEWHERE = {
    "loadgen probe message-size delivery": "tests/test_probes.py",
    "locust -f scenarios/throughput.py --headless -u 8 -t 1m --processes 4 --set durability=broker":
        "tests/test_locust_headless.py",
    "locust -f scenarios/latency.py --headless -u 2 -t 30s --set rate=2000 --threshold 'kafka.p99_ms<10' --csv out "
    "--html out.html": "tests/test_locust_headless.py",
    "pip install -e '.[notebooks]'": "pyproject.toml",
    "LOADGEN_RUN=results/latest jupyter lab notebooks/": "tests/test_notebooks.py",
}  # fmt: skip
"""What another file runs with the same words, or (programs that are none of ours) knows to be there."""


@dataclass(frozen=True)
class Command:
    """A line that begins with `$`, as it is written but for where `loadgen` lies and its comment."""

    text: str
    status: int | None
    """What it is said to exit with."""


def pages() -> dict[str, str]:
    """Markdown by name, the README first; pages that are made from the code, too."""
    made = DOCS / "reference"
    written = [ROOT / "README.md", DOCS / "tutorial.md", *sorted(DOCS.rglob("*.md"))]
    found = {str(path.relative_to(ROOT)): path.read_text() for path in written if made not in path.parents}
    return found | {f"docs/reference/{name}.md": page() for name, page in reference.PAGES.items() if name != "overview"}


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, without what indents them in a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def commands(text: str) -> list[Command]:
    """A page's commands, those that go on in the next line as one."""
    found = []
    for block in blocks(text, "console"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if line.startswith("$ "):
                said = STATUS.search(line)
                bare = COMMENT.sub("", line.removeprefix("$ ")).replace(".venv/bin/", "").strip()
                found.append(Command(bare, int(said[1]) if said else None))
    return found
