"""What the kernel tells about this machine: readings for the observer, and the environment of a run.

Every reading comes from `/proc` or `/sys` (their roots are arguments, so that tests lay their own) and is
None where this kernel or container does not offer it: unknown is never written as zero. The environment holds
no host name, no paths, no environment variables and nothing secret: runs are made to be shown.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from loadgen.disks import disks_of, mount_of
from loadgen.errors import HostError
from loadgen.versions import PACKAGES, git_state, package_version, subject_revision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PROC = Path("/proc")
SYS = Path("/sys")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
PF_KTHREAD = 0x00200000  # include/linux/sched.h
WORK_ROUNDS = 400  # 20 µs: what a hundred times a second would still be nothing
WRITE_BYTES = 4096  # the smallest write that a file system gives to a disk

SYSCTLS = (
    "net/core/rmem_default",
    "net/core/rmem_max",
    "net/core/wmem_default",
    "net/core/wmem_max",
    "net/core/somaxconn",
    "net/core/netdev_max_backlog",
    "net/core/busy_poll",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/tcp_congestion_control",
    "vm/dirty_ratio",
    "vm/dirty_background_ratio",
    "vm/dirty_expire_centisecs",
    "vm/dirty_writeback_centisecs",
    "vm/swappiness",
)


# --- readings for the observer ---


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """One process at one moment; `started_ticks` tells it from a later one that got the same pid."""

    started_ticks: int
    cpu_s: float
    rss_bytes: int
    name: str
    is_kernel: bool


def read_text(path: Path) -> str | None:
    """A file's text without surrounding white space; None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_cpu_s(cpus: Iterable[int], proc: Path = PROC) -> dict[str, float]:
    """Seconds since boot that `cpus` together spent in user, system, irq, iowait, idle and steal."""
    wanted = {f"cpu{number}" for number in cpus}
    seconds = dict.fromkeys(("user", "system", "irq", "iowait", "idle", "steal"), 0.0)
    for line in (read_text(proc / "stat") or "").splitlines():
        label, _, rest = line.partition(" ")
        if not label.startswith("cpu"):
            break
        if label not in wanted:
            continue
        user, nice, system, idle, iowait, irq, softirq, steal = (int(field) for field in rest.split()[:8])
        # Guest time is part of user already.
        for name, ticks in (
            ("user", user + nice),
            ("system", system),
            ("irq", irq + softirq),
            ("iowait", iowait),
            ("idle", idle),
            ("steal", steal),
        ):
            seconds[name] += ticks / TICKS_PER_S
    return seconds


def read_pressure_s(proc: Path = PROC) -> dict[str, float]:
    """Seconds since boot in which tasks stalled, as `cpu_some`, `io_full`, …; {} without /proc/pressure."""
    stalled: dict[str, float] = {}
    for resource in ("cpu", "io", "memory"):
        for line in (read_text(proc / "pressure" / resource) or "").splitlines():
            kind, _, rest = line.partition(" ")
            total_us = dict(pair.split("=") for pair in rest.split()).get("total")
            if total_us is not None:
                stalled[f"{resource}_{kind}"] = int(total_us) / 1e6
    return stalled


def read_memory_bytes(proc: Path = PROC) -> dict[str, int]:
    """Bytes by the names of /proc/meminfo (`Dirty`, `Writeback`, `MemAvailable`, `SwapFree`, …)."""
    found: dict[str, int] = {}
    for line in (read_text(proc / "meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if unit == "kB":
            found[name] = int(number) * 1024
    return found


def read_swapped_pages(proc: Path = PROC) -> tuple[int, int] | None:
    """Pages swapped in and out since boot; None where the kernel does not count them."""
    counts = dict(line.split(" ", 1) for line in (read_text(proc / "vmstat") or "").splitlines() if "pswp" in line)
    if "pswpin" not in counts or "pswpout" not in counts:
        return None
    return int(counts["pswpin"]), int(counts["pswpout"])


def read_frequency_hz(cpus: Iterable[int], sys_root: Path = SYS) -> float | None:
    """What the fastest of `cpus` runs at now; None on most virtual machines. An idle CPU may read low by right."""
    paths = (sys_root / f"devices/system/cpu/cpu{number}/cpufreq/scaling_cur_freq" for number in cpus)
    read = (read_text(path) for path in paths)
    return max((int(text) * 1e3 for text in read if text and text.isdigit() and int(text)), default=None)


def work_ns() -> int:
    """How much CPU time the same small work takes now (ns): the better of two turns, as the first finds cold caches.

    A CPU slows down when it clocks lower, and when another machine's work runs on the same core: neither does a virtual
    machine tell, nor is the latter counted as stolen. Waiting for the CPU is not in it.
    """
    took_ns = []
    for _ in range(2):
        began_ns = time.thread_time_ns()
        found = 0
        for number in range(WORK_ROUNDS):
            found += number * number
        took_ns.append(time.thread_time_ns() - began_ns)
    return min(took_ns)


def read_throttles(cpus: Iterable[int], sys_root: Path = SYS) -> int | None:
    """How often since boot `cpus` were slowed down because they were hot; None where the kernel does not tell."""
    paths = (sys_root / f"devices/system/cpu/cpu{number}/thermal_throttle/core_throttle_count" for number in cpus)
    counts = [int(text) for path in paths if (text := read_text(path))]
    return sum(counts) if counts else None


def clock_source(sys_root: Path = SYS) -> str | None:
    """What the kernel reads the time from: tsc, kvm-clock, arch_sys_counter or another."""
    return read_text(sys_root / "devices/system/clocksource/clocksource0/current_clocksource")


def read_load_1m(proc: Path = PROC) -> float | None:
    """The load average over one minute."""
    text = read_text(proc / "loadavg")
    return float(text.split()[0]) if text else None


def read_process(pid: int, proc: Path = PROC) -> ProcessReading | None:
    """CPU time of all threads (ended ones too) and resident memory of a process; None when it is gone."""
    try:
        text = (proc / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    opened, closed = text.index(b"("), text.rindex(b")")  # a name may itself hold parentheses and spaces
    fields = text[closed + 2 :].split()  # fields[0] is the state, field 3 of proc(5)
    cpu_s = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    if proc == PROC:
        cpu_s = _cpu_clock_s(pid, cpu_s)
    return ProcessReading(
        started_ticks=int(fields[19]),
        cpu_s=cpu_s,
        rss_bytes=int(fields[21]) * PAGE_BYTES,
        name=text[opened + 1 : closed].decode(errors="replace"),
        is_kernel=bool(int(fields[6]) & PF_KTHREAD),
    )


def _cpu_clock_s(pid: int, otherwise_s: float) -> float:
    """A process's CPU clock: nanoseconds, where /proc has hundredths (a wire driver uses 2 % of a core)."""
    try:
        return time.clock_gettime_ns(~pid << 3 | 2) / 1e9  # the clock that clock_getcpuclockid(3) names
    except (OSError, OverflowError):
        return otherwise_s


def read_threads_s(pid: int, proc: Path = PROC) -> dict[int, tuple[float, float]]:
    """For each thread of a process: seconds on a CPU, and seconds that it was ready and waited for one."""
    threads: dict[int, tuple[float, float]] = {}
    try:
        names = os.listdir(proc / str(pid) / "task")  # noqa: PTH208 - once a second for each agent
    except OSError:
        return threads
    for name in names:
        text = read_text(proc / str(pid) / "task" / name / "schedstat")
        if text:
            run_ns, wait_ns = text.split()[:2]
            threads[int(name)] = (int(run_ns) / 1e9, int(wait_ns) / 1e9)
    return threads


def read_processes(proc: Path = PROC) -> dict[int, ProcessReading]:
    """Every process that can be seen, kernel threads included; about 20 µs each."""
    found: dict[int, ProcessReading] = {}
    for name in os.listdir(proc):  # noqa: PTH208 - the paths are not needed
        if name.isdigit() and (reading := read_process(int(name), proc)) is not None:
            found[int(name)] = reading
    return found


def allowed_cpus() -> list[int]:
    """The CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def cpu_limit_cores(proc: Path = PROC, sys_root: Path = SYS) -> float | None:
    """The CPU quota of this process's control groups (version 1 or 2) in cores; None when there is none."""
    limits: list[float] = []
    for line in (read_text(proc / "self" / "cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = sys_root / "fs/cgroup" / ("cpu" if controllers else "")
        folder = root / path.lstrip("/")
        while True:  # an outer group's quota holds for the inner ones
            limits += _quota_cores(folder)
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent
    return min(limits, default=None)


def _quota_cores(folder: Path) -> list[float]:
    words = (read_text(folder / "cpu.max") or "").split()
    if not words:
        words = [read_text(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
        return [int(words[0]) / int(words[1])]
    return []


# --- the broker's disk ---


def disk_free(path: Path) -> int:
    """Bytes that an ordinary user can still write on the file system of `path`."""
    return shutil.disk_usage(path).free


def tree_bytes(folder: Path) -> int:
    """Bytes of disk that the files below a folder take up; what goes away meanwhile is left out."""
    found = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found += os.lstat(os.path.join(where, name)).st_blocks * 512  # noqa: PTH118 - thousands of files
    return found


def fsync_latency(folder: Path, count: int = 50) -> dict[str, int]:
    """How long 4 KiB appended and fdatasync take on the disk of `folder`: the least a flushed confirm costs.

    Percentiles are nearest ranks (rounded up), so that with 50 writes p99 is the slowest one.
    """
    assert count >= 1
    body = os.urandom(WRITE_BYTES)
    took_ns: list[int] = []
    try:
        with tempfile.TemporaryFile(dir=folder, prefix="loadgen-fsync-", buffering=0) as file:
            for _ in range(count):
                started_ns = time.monotonic_ns()
                file.write(body)
                os.fdatasync(file.fileno())
                took_ns.append(time.monotonic_ns() - started_ns)
    except OSError as error:
        raise HostError(
            f"cannot time fdatasync in the broker's data folder: {error.strerror}; is it writable?"
        ) from None
    took_ns.sort()
    return {"p50_ns": _rank(took_ns, 50), "p99_ns": _rank(took_ns, 99), "max_ns": took_ns[-1]}


def _rank(ordered: list[int], percent: int) -> int:
    return ordered[-(-len(ordered) * percent // 100) - 1]


@dataclass(frozen=True, slots=True)
class Written:
    """How long a wait for the disk took, whether it got to the limit, and what was left to write."""

    waited_s: float
    reached: bool
    left_bytes: int


def wait_until_written(
    limit_bytes: int = 16 << 20,
    timeout_s: float = 30.0,
    progress: Callable[[str], None] | None = None,
    *,
    proc: Path = PROC,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    sync: Callable[[], None] = os.sync,
) -> Written:
    """Wait until at most `limit_bytes` of the page cache are unwritten, so that trials do not share a disk.

    Writeback of 800 MB takes the next trial's fdatasync p99 from 1.4 to 6.8 ms (measured). sync(2) may itself
    block for longer than `timeout_s`, hence it runs beside the wait; it is not called below the limit.
    """
    started_s = clock()
    left_bytes = _unwritten_bytes(proc)
    if left_bytes > limit_bytes:
        threading.Thread(target=sync, name="sync", daemon=True).start()
    told_s = started_s
    while left_bytes > limit_bytes:
        now_s = clock()
        if now_s - started_s >= timeout_s:
            return Written(now_s - started_s, reached=False, left_bytes=left_bytes)
        if progress is not None and now_s - told_s >= 1:
            progress(f"waiting for the disk: {left_bytes / 1e6:.0f} MB unwritten")
            told_s = now_s
        sleep(0.05)
        left_bytes = _unwritten_bytes(proc)
    return Written(clock() - started_s, reached=True, left_bytes=left_bytes)


def _unwritten_bytes(proc: Path) -> int:
    memory = read_memory_bytes(proc)
    return memory.get("Dirty", 0) + memory.get("Writeback", 0)


# --- the environment of a run ---


def environment(data_dir: Path | None = None, *, proc: Path = PROC, sys_root: Path = SYS) -> dict[str, Any]:
    """What a reader needs to judge or repeat a run: machine, kernel, broker's disk, versions, revision."""
    memory = read_memory_bytes(proc)
    return {
        "cpu": _cpu(proc, sys_root),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "os": _os_name(),
        "memory_bytes": memory.get("MemTotal"),
        "swap_bytes": memory.get("SwapTotal"),
        "clocksource": clock_source(sys_root),
        "disk": None if data_dir is None else _disk(data_dir, sys_root),
        "sysctl": {name.replace("/", "."): read_text(proc / "sys" / name) for name in SYSCTLS},
        "transparent_hugepages": _chosen(read_text(sys_root / "kernel/mm/transparent_hugepage/enabled")),
        "virtualisation": _virtualisation(proc, sys_root),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: version for name in PACKAGES if (version := package_version(name)) is not None},
        "git": git_state(Path(__file__).resolve().parent.parent),
        "subject": subject_revision(Path.cwd()),
    }


def _cpu(proc: Path, sys_root: Path) -> dict[str, Any]:
    info: dict[str, str] = {}
    for line in (read_text(proc / "cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        info.setdefault(name.strip(), value.strip())
    cpus = allowed_cpus()
    frequency = sys_root / f"devices/system/cpu/cpu{cpus[0]}/cpufreq"
    smt = read_text(sys_root / "devices/system/cpu/smt/active")
    return {
        "model": info.get("model name") or info.get("Hardware") or platform.processor() or None,
        "cores": os.cpu_count(),
        "cores_physical": psutil.cpu_count(logical=False),
        "allowed": cpus,
        "limit_cores": cpu_limit_cores(proc, sys_root),
        "governor": read_text(frequency / "scaling_governor"),
        "smt": None if smt is None else smt == "1",
    }


def _os_name() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _disk(folder: Path, sys_root: Path) -> dict[str, Any]:
    folder = folder.resolve()
    while not folder.exists():  # a broker that has not written yet
        folder = folder.parent
    disk = next(iter(disks_of(folder, sys_root)), None)
    queue = None if disk is None else disk / "queue"
    rotational = None if queue is None else read_text(queue / "rotational")
    mount = mount_of(folder)
    # Devices of network and overlay file systems are host names and paths, and so are some options.
    return {
        "device": mount.device if mount and mount.device.startswith("/dev/") else None,
        "filesystem": mount.filesystem if mount else None,
        "options": [each for each in mount.options if "/" not in each] if mount else None,
        "rotational": None if rotational is None else rotational == "1",
        "write_cache": None if queue is None else read_text(queue / "write_cache"),
        "scheduler": None if queue is None else _chosen(read_text(queue / "scheduler")),
        "free_bytes": disk_free(folder),
    }


def _chosen(text: str | None) -> str | None:
    """The bracketed word of a sysfs choice such as `none [mq-deadline]`."""
    return text.partition("[")[2].partition("]")[0] if text and "[" in text else text


def _virtualisation(proc: Path, sys_root: Path) -> dict[str, Any]:
    flags = (read_text(proc / "cpuinfo") or "").split()
    return {
        "hypervisor": "hypervisor" in flags,
        "vendor": read_text(sys_root / "class/dmi/id/sys_vendor"),
        "product": read_text(sys_root / "class/dmi/id/product_name"),
        "container": any(path.exists() for path in (Path("/.dockerenv"), Path("/run/.containerenv"))),
    }


assert sys.platform == "linux", "loadgen reads /proc: it runs on Linux"
