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
    number = directory.stat().st_dev
    disk = _disk((devices / f"{os.major(number)}:{os.minor(number)}").resolve())
    if disk is None:
        return None
    try:
        if (disk / "queue" / "write_cache").read_text(encoding="ascii").strip() != "write back":
            return None  # What has no cache, or one that survives a power cut, is not told to flush it.
        columns = (disk / "stat").read_text(encoding="ascii").split()
    except OSError:
        return None
    return int(columns[_FLUSHES]) if len(columns) > _FLUSHES else None


def _disk(device: Path) -> Path | None:
    """Return the one disk that carries *device*; flushes of its partitions and volumes are counted there, and only there."""
    while True:
        if (device / "partition").exists():
            device = device.parent
        below = list((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
        if len(below) != 1:
            return None if below else device
        device = below[0].resolve()
