"""Which disk a folder is on, and what the kernel counts of that disk: flushes and writes, and how long they took.

The counts are those of whole disks, since the kernel counts flushes for no partition, and of the disks below a stacked
device (LVM, dm-crypt, md), which issues none of its own. Fields: Linux, Documentation/block/stat.rst; flushes are
counted since Linux 5.5. A file system that lies on no block device (overlay, tmpfs, a network's) has no disk here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

SYS = Path("/sys")


@dataclass(frozen=True, slots=True)
class DiskCounts:
    """Since boot: completed writes and flushes, and the seconds that they took together; None: not counted."""

    writes: int
    write_s: float
    flushes: int | None
    flush_s: float | None


@dataclass(frozen=True, slots=True)
class Mount:
    """The file system that a folder is on; `device` is a path only where it lies on a block device."""

    device: str
    filesystem: str
    options: tuple[str, ...]


def mount_of(folder: Path) -> Mount | None:
    """The longest mount point above a folder is its file system; of two on one point the later one is seen."""
    folder = folder.resolve()
    mounts = [each for each in psutil.disk_partitions(all=True) if folder.is_relative_to(each.mountpoint)]
    if not mounts:
        return None
    longest = max(len(each.mountpoint) for each in mounts)
    mount = next(each for each in reversed(mounts) if len(each.mountpoint) == longest)
    return Mount(mount.device, mount.fstype, tuple(mount.opts.split(",")))


def disks_of(folder: Path, sys_root: Path = SYS) -> tuple[Path, ...]:
    """The whole disks that a folder's file system lies on, as folders of sysfs; () where there is none to be found."""
    try:
        block = _block(sys_root, folder.stat().st_dev)
        if block is None:  # btrfs gives its folders numbers of their own; its mount names the device
            mount = mount_of(folder)
            if mount is None or not mount.device.startswith("/"):
                return ()
            block = _block(sys_root, Path(mount.device).stat().st_rdev)
        return () if block is None else tuple(dict.fromkeys(_whole_disks(block)))
    except OSError:
        return ()


def _block(sys_root: Path, number: int) -> Path | None:
    link = sys_root / "dev/block" / f"{os.major(number)}:{os.minor(number)}"
    return link.resolve() if link.exists() else None


def _whole_disks(block: Path) -> Iterable[Path]:
    if (block / "partition").exists():
        block = block.parent
    below = sorted((block / "slaves").iterdir()) if (block / "slaves").is_dir() else []
    if not below:
        yield block
    for each in below:
        yield from _whole_disks(each.resolve())


def read_disks(disks: Iterable[Path]) -> DiskCounts | None:
    """The counts of all these disks together; None where there are none, or one cannot be read."""
    fields: list[list[int]] = []
    for disk in disks:
        try:
            fields.append([int(word) for word in (disk / "stat").read_text(encoding="ascii").split()])
        except (OSError, ValueError):
            return None
    if not fields:
        return None
    counts_flushes = all(len(each) >= 17 for each in fields)
    return DiskCounts(
        writes=sum(each[4] for each in fields),
        write_s=sum(each[7] for each in fields) / 1e3,
        flushes=sum(each[15] for each in fields) if counts_flushes else None,
        flush_s=sum(each[16] for each in fields) / 1e3 if counts_flushes else None,
    )
