"""How often the disk was told to flush: the check that what calls itself durable reached it."""

from __future__ import annotations

import os
from pathlib import Path

_DEVICES = Path("/sys/dev/block")
_FLUSHES = 15  # the column of a disk's `stat`, from Linux 5.5 on


def flushes(directory: Path, devices: Path = _DEVICES) -> int | None:
    """Return how many flush requests the disk under *directory* has completed; None where the system does not tell.

    The disk's own count, so it holds for every process, in whatever language, and for those of other programs too.
    """
    disk = _disk_under(directory, devices)
    # What has no cache, or one that survives a power cut, is not told to flush it.
    if disk is None or write_cache(directory, devices) != "write back":
        return None
    try:
        columns = (disk / "stat").read_text(encoding="ascii").split()
    except OSError:
        return None
    return int(columns[_FLUSHES]) if len(columns) > _FLUSHES else None


def write_cache(directory: Path, devices: Path = _DEVICES) -> str | None:
    """Return what the kernel believes of the disk's cache: it sends no flushes to one that it takes for "write through".

    None where the system does not tell.
    """
    disk = _disk_under(directory, devices)
    try:
        return disk and (disk / "queue" / "write_cache").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _disk_under(directory: Path, devices: Path) -> Path | None:
    """Return the one disk that carries *directory*; flushes of its partitions and volumes are counted there, and only there."""
    number = directory.stat().st_dev
    device = (devices / f"{os.major(number)}:{os.minor(number)}").resolve()
    while True:
        if (device / "partition").exists():
            device = device.parent
        below = list((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
        if len(below) != 1:
            return None if below else device
        device = below[0].resolve()
