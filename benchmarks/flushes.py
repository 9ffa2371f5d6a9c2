"""How often the disk was told to flush: the check that what calls itself durable reached it."""

from __future__ import annotations

import os
from pathlib import Path

_DISKS = Path("/proc/diskstats")
_FLUSHES = 18  # the column, from Linux 5.5 on


def flushes(directory: Path) -> int | None:
    """Return how many flush requests the disk under *directory* has completed; None where the system does not tell.

    The disk's own count, so it holds for every process, in whatever language, and for those of other programs too.
    """
    device = directory.stat().st_dev
    try:
        disks = _DISKS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for disk in disks:
        columns = disk.split()
        if (int(columns[0]), int(columns[1])) == (os.major(device), os.minor(device)) and len(columns) > _FLUSHES:
            return int(columns[_FLUSHES])
    return None
