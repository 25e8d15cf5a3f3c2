"""Tests of loadgen.disks: on a sysfs laid for the purpose, and on the real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loadgen import disks
from loadgen.disks import DiskCounts, Mount, disks_of, mount_of, read_disks

STAT = "10 0 0 0 {writes} 0 0 {write_ms} 0 0 0 0 0 0 0 {flushes} {flush_ms}\n"


class Sys:
    """A sysfs in which a folder's file system is given a device."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "dev/block").mkdir(parents=True)

    def lay(self, name: str, *, above: str = "", partition: bool = False, stat: str = "") -> Path:
        """A device, below another one if it is stacked, or a partition of `above`."""
        folder = self.root / "devices" / (f"{above}/{name}" if partition else name)
        (folder / "slaves").mkdir(parents=True)
        if partition:
            (folder / "partition").write_text("1")
        elif above:
            (self.root / "devices" / above / "slaves" / name).symlink_to(folder)
        (folder / "stat").write_text(stat)
        return folder

    def number(self, device: Path, number: int) -> None:
        """Give a device its number."""
        (self.root / "dev/block" / f"{os.major(number)}:{os.minor(number)}").symlink_to(device)


@pytest.fixture
def laid(tmp_path: Path) -> Sys:
    """An empty sysfs."""
    return Sys(tmp_path / "sys")


def test_a_partitions_disk_is_the_whole_one(laid: Sys, tmp_path: Path) -> None:
    """The kernel counts flushes for whole disks only."""
    disk = laid.lay("vda")
    laid.number(laid.lay("vda1", above="vda", partition=True), tmp_path.stat().st_dev)
    assert disks_of(tmp_path, laid.root) == (disk,)


def test_a_stacked_devices_disks_are_those_below(laid: Sys, tmp_path: Path) -> None:
    """A logical volume on two disks has both; one disk that is below twice counts once."""
    laid.number(laid.lay("dm-0"), tmp_path.stat().st_dev)
    first, second = laid.lay("sda", above="dm-0"), laid.lay("sdb", above="dm-0")
    assert disks_of(tmp_path, laid.root) == (first, second)
    part = laid.lay("sda1", above="sda", partition=True)
    (laid.root / "devices/dm-0/slaves/sda1").symlink_to(part)
    assert disks_of(tmp_path, laid.root) == (first, second)


def test_a_file_system_without_a_device_number_is_found_by_its_mount(
    laid: Sys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the number says nothing (btrfs), the mounted device does; an overlay has none."""
    disk = laid.lay("sda")
    null = Path("/dev/null").stat().st_rdev
    laid.number(disk, null)
    monkeypatch.setattr(disks, "mount_of", lambda _: Mount("/dev/null", "btrfs", ()))
    assert disks_of(tmp_path, laid.root) == (disk,)
    for device in ("overlay", "tmpfs", "/dev/not-there"):
        monkeypatch.setattr(disks, "mount_of", lambda _, device=device: Mount(device, "overlay", ()))
        assert disks_of(tmp_path, laid.root) == ()


def test_a_folder_that_is_not_there_has_no_disk(laid: Sys, tmp_path: Path) -> None:
    """Nothing is raised: an observer goes on without."""
    assert disks_of(tmp_path / "none", laid.root) == ()


def test_counts_of_all_disks_are_added_up_in_seconds(laid: Sys) -> None:
    """Milliseconds become seconds; a disk that is gone makes all of it unknown, and no disk is no count."""
    one = laid.lay("sda", stat=STAT.format(writes=5, write_ms=1500, flushes=2, flush_ms=40))
    two = laid.lay("sdb", stat=STAT.format(writes=1, write_ms=500, flushes=3, flush_ms=10))
    assert read_disks([one, two]) == DiskCounts(6, 2.0, 5, 0.05)
    assert read_disks([one, laid.root / "gone"]) is None
    assert read_disks([]) is None


def test_a_kernel_that_does_not_count_flushes_leaves_them_unknown(laid: Sys) -> None:
    """Before Linux 5.5 a disk has eleven or fifteen fields."""
    old = laid.lay("sda", stat="10 0 0 0 5 0 0 1500 0 0 0\n")
    assert read_disks([old]) == DiskCounts(5, 1.5, None, None)


def test_the_real_mount_of_a_folder_is_the_nearest(tmp_path: Path) -> None:
    """/proc has a file system of its own, whatever lies above it."""
    proc, here = mount_of(Path("/proc/self")), mount_of(tmp_path)
    assert proc is not None
    assert proc.filesystem == "proc"
    assert here is not None


def test_writing_to_a_real_disk_is_counted() -> None:
    """Where this folder lies on a disk, an fdatasync adds to its writes; where it does not, nothing is made up."""
    here = Path.cwd()
    found = disks_of(here)
    before = read_disks(found)
    if before is None:
        assert found == ()
        return
    probe = here / ".pytest_cache" / f"disk-{os.getpid()}"
    probe.parent.mkdir(exist_ok=True)
    try:
        with probe.open("wb") as file:
            file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)
    after = read_disks(found)
    assert after is not None
    assert after.writes > before.writes
