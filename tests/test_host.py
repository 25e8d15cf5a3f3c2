"""Tests of loadgen.host: on a /proc and /sys laid for the purpose, and on the real ones."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from loadgen import host
from loadgen.errors import HostError

STAT = """\
cpu  300 20 60 700 40 3 7 9 5 0
cpu0 100 10 20 400 30 1 2 4 5 0
cpu1 200 10 40 300 10 2 5 5 0 0
intr 12345 0 0
"""
MEMINFO = """\
MemTotal:       24684092 kB
MemAvailable:   24258256 kB
SwapTotal:          2000 kB
SwapFree:           1500 kB
HugePages_Total:       0
Dirty:             {dirty} kB
Writeback:             4 kB
"""


def lay(root: Path, files: dict[str, str]) -> Path:
    """Write files under a root and return it."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def process_stat(pid: int, name: str, *, ticks: int, started: int, pages: int = 10, flags: int = 0) -> str:
    """One process's line in /proc: user and system ticks in two halves."""
    fields = ["S", "1", "1", "1", "0", "-1", str(flags), *["0"] * 4, str(ticks - ticks // 2), str(ticks // 2)]
    fields += [*["0"] * 6, str(started), "999", str(pages), "0"]
    return f"{pid} ({name}) {' '.join(fields)}\n"


def test_cpu_seconds_are_those_of_the_wanted_cpus(tmp_path: Path) -> None:
    """Nice time is user time, both kinds of interrupt are irq, and other CPUs are left out."""
    proc = lay(tmp_path, {"stat": STAT})
    ticks = host.TICKS_PER_S
    expected = {"user": 210, "system": 40, "irq": 7, "iowait": 10, "idle": 300, "steal": 5}
    assert host.read_cpu_s([1], proc) == {name: each / ticks for name, each in expected.items()}
    assert sum(host.read_cpu_s([0, 1], proc).values()) == pytest.approx(1139 / ticks)


def test_pressure_is_read_in_seconds_and_absent_where_the_kernel_has_none(tmp_path: Path) -> None:
    """A container without /proc/pressure gives no pressure, not zero."""
    assert host.read_pressure_s(tmp_path) == {}
    line = "avg10=0.00 avg60=0.00 avg300=0.00 total="
    proc = lay(tmp_path, {"pressure/cpu": f"some {line}1500000\nfull {line}0\n", "pressure/io": f"some {line}2\n"})
    assert host.read_pressure_s(proc) == {"cpu_some": 1.5, "cpu_full": 0.0, "io_some": 2e-6}


def test_memory_is_in_bytes(tmp_path: Path) -> None:
    """Kibibytes become bytes, and lines without a unit are no bytes."""
    memory = host.read_memory_bytes(lay(tmp_path, {"meminfo": MEMINFO.format(dirty=7)}))
    assert memory["Dirty"] == 7168
    assert "HugePages_Total" not in memory


def test_a_process_with_any_name_is_read(tmp_path: Path) -> None:
    """Parentheses and spaces in a program's name do not shift the fields."""
    text = process_stat(7, "a) (b c", ticks=250, started=42, pages=3, flags=host.PF_KTHREAD)
    reading = host.read_process(7, lay(tmp_path, {"7/stat": text}))
    assert reading == host.ProcessReading(42, 250 / host.TICKS_PER_S, 3 * host.PAGE_BYTES, "a) (b c", is_kernel=True)
    assert host.read_process(8, tmp_path) is None
    assert host.read_processes(tmp_path) == {7: reading}


def test_threads_tell_what_they_ran_and_waited(tmp_path: Path) -> None:
    """Nanoseconds of the scheduler become seconds; a process that is gone has no threads."""
    proc = lay(tmp_path, {"7/task/7/schedstat": "2000000000 500000000 9\n", "7/task/8/schedstat": "0 0 0\n"})
    assert host.read_threads_s(7, proc) == {7: (2.0, 0.5), 8: (0.0, 0.0)}
    assert host.read_threads_s(9, proc) == {}


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "150000 100000"}, 0.5),
        ("0::/a\n", {"a/cpu.max": "max 100000"}, None),
        ("0::/\n", {}, None),
        (
            "4:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"},
            2.0,
        ),
        ("4:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
        ("4:memory:/a\n3:cpuset:/\n", {"a/cpu.max": "1 1"}, None),
    ],
)
def test_the_narrowest_quota_of_the_control_groups_counts(
    tmp_path: Path, cgroup: str, files: dict[str, str], cores: float | None
) -> None:
    """Both versions of control groups are understood, and no quota is None."""
    lay(tmp_path, {"self/cgroup": cgroup, **{f"fs/cgroup/{name}": text for name, text in files.items()}})
    assert host.cpu_limit_cores(tmp_path, tmp_path) == cores


class Cache:
    """A page cache that shrinks with every sleep, under a clock of its own."""

    def __init__(self, proc: Path, dirty_kb: int, step_kb: int) -> None:
        self.proc, self.dirty_kb, self.step_kb = proc, dirty_kb, step_kb
        self.now_s = 0.0
        self.syncs = 0
        self.lay()

    def lay(self) -> None:
        """Write what is dirty now."""
        lay(self.proc, {"meminfo": MEMINFO.format(dirty=self.dirty_kb)})

    def sleep(self, seconds: float) -> None:
        """Let time pass and data be written."""
        self.now_s += seconds
        self.dirty_kb = max(0, self.dirty_kb - self.step_kb)
        self.lay()

    def sync(self) -> None:
        """Count the call."""
        self.syncs += 1

    def wait(self, said: list[str] | None = None) -> host.Written:
        """Wait until 1 MiB is left, for at most 30 s of this clock."""
        return host.wait_until_written(
            1 << 20,
            30.0,
            None if said is None else said.append,
            proc=self.proc,
            clock=lambda: self.now_s,
            sleep=self.sleep,
            sync=self.sync,
        )


def test_a_clean_page_cache_is_not_waited_for(tmp_path: Path) -> None:
    """Below the limit neither sync nor sleep is called."""
    cache = Cache(tmp_path, dirty_kb=100, step_kb=0)
    assert cache.wait() == host.Written(0.0, reached=True, left_bytes=104 * 1024)
    assert cache.syncs == 0


def test_a_dirty_page_cache_is_synced_once_and_waited_for(tmp_path: Path) -> None:
    """The wait ends at the limit, and tells about itself meanwhile."""
    said: list[str] = []
    cache = Cache(tmp_path, dirty_kb=100_000, step_kb=1_000)
    written = cache.wait(said)
    assert written.reached
    assert written.left_bytes <= 1 << 20
    assert written.waited_s == pytest.approx(cache.now_s)
    assert cache.syncs == 1
    assert said
    assert all("MB unwritten" in each for each in said)


def test_a_page_cache_that_stays_dirty_is_given_up(tmp_path: Path) -> None:
    """After the timeout the wait ends and says that the limit was not reached."""
    cache = Cache(tmp_path, dirty_kb=100_000, step_kb=0)
    written = cache.wait()
    assert not written.reached
    assert written.left_bytes == 100_004 * 1024


def test_fsync_latency_is_ordered_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """p50 ≤ p99 ≤ max, all positive, and the folder is empty again."""
    latency = host.fsync_latency(tmp_path, count=5)
    assert 0 < latency["p50_ns"] <= latency["p99_ns"] <= latency["max_ns"]
    assert list(tmp_path.iterdir()) == []


def test_fsync_latency_of_a_missing_folder_is_an_error_for_people(tmp_path: Path) -> None:
    """One line, without a traceback."""
    with pytest.raises(HostError, match="cannot time fdatasync"):
        host.fsync_latency(tmp_path / "none")


@pytest.mark.parametrize(("count", "percent", "value"), [(1, 50, 1), (50, 50, 25), (50, 99, 50), (100, 99, 99)])
def test_percentiles_are_nearest_ranks_rounded_up(count: int, percent: int, value: int) -> None:
    """Of 1 … count, the percentile is its own rank."""
    assert host._rank(list(range(1, count + 1)), percent) == value


def test_the_environment_is_plain_json_without_names_or_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the host's name nor a folder nor any environment variable gets into a run."""
    monkeypatch.setenv("LOADGEN_TEST_TOKEN", "swordfish-4711")
    text = json.dumps(host.environment(tmp_path / "not-yet-there"))
    assert json.loads(text)["disk"]["free_bytes"] > 0
    assert "swordfish-4711" not in text
    assert os.uname().nodename not in json.loads(text).values()
    assert str(tmp_path) not in text
    assert str(Path(__file__).parent.parent) not in text


def test_the_environment_names_what_a_rerun_must_match() -> None:
    """The real machine is described: CPU, kernel, memory, versions and the revision of this tree."""
    seen = host.environment(None)
    assert seen["cpu"]["cores"] == os.cpu_count()
    assert seen["cpu"]["allowed"] == host.allowed_cpus()
    assert seen["memory_bytes"] > 0
    assert seen["python"].endswith(".".join(str(each) for each in sys.version_info[:3]))
    assert "numpy" in seen["packages"]
    assert seen["disk"] is None
    assert "net.core.rmem_max" in seen["sysctl"]


def test_a_machine_that_tells_nothing_is_unknown_not_zero(tmp_path: Path) -> None:
    """Without /proc and /sys the record is still made, of Nones."""
    seen = host.environment(None, proc=tmp_path, sys_root=tmp_path)
    assert seen["memory_bytes"] is None
    assert seen["clocksource"] is None
    assert set(seen["sysctl"].values()) == {None}
    assert host.read_load_1m(tmp_path) is None


def test_swapped_pages_are_counted_where_the_kernel_counts_them(tmp_path: Path) -> None:
    """Pages in and out, whatever else begins alike; without them it is unknown."""
    assert host.read_swapped_pages(tmp_path) is None
    proc = lay(tmp_path, {"vmstat": "nr_free_pages 5\npswpin 3\npswpout 4\nzswpin 9\n"})
    assert host.read_swapped_pages(proc) == (3, 4)


def test_the_fastest_cpu_tells_the_frequency_and_all_of_them_their_heat(tmp_path: Path) -> None:
    """Only the wanted CPUs count, and a machine that tells neither is unknown."""
    assert host.read_frequency_hz([0], tmp_path) is None
    assert host.read_throttles([0], tmp_path) is None
    cpu = "devices/system/cpu/cpu"
    files = {f"{cpu}{n}/cpufreq/scaling_cur_freq": f"{khz}\n" for n, khz in enumerate((800_000, 2_500_000, 9_000_000))}
    files |= {f"{cpu}{n}/thermal_throttle/core_throttle_count": f"{n + 1}\n" for n in range(3)}
    root = lay(tmp_path, files)
    assert host.read_frequency_hz([0, 1], root) == 2.5e9
    assert host.read_throttles([0, 1], root) == 3


def test_work_takes_the_cpu_time_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's pace is that of a fixed piece of work: ten times the rounds take several times as long."""
    few_ns = min(host.work_ns() for _ in range(20))
    monkeypatch.setattr(host, "WORK_ROUNDS", 10 * host.WORK_ROUNDS)
    assert min(host.work_ns() for _ in range(20)) > 3 * few_ns > 0


def test_the_real_process_is_read() -> None:
    """This process has used CPU time, holds memory, and is found among all others."""
    reading = host.read_process(os.getpid())
    assert reading is not None
    assert reading.cpu_s > 0
    assert reading.rss_bytes > 1 << 20
    assert os.getpid() in host.read_processes()
    assert sum(host.read_cpu_s(host.allowed_cpus()).values()) > 0
    assert host.disk_free(Path.cwd()) > 0
