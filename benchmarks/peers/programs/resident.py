"""How much memory a process holds: what peers with an equivalent of an idle actor measure."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from benchmarks.sample import NotMeasured


def resident_bytes() -> int:
    """Return how much this process holds, after a collection of what it no longer needs."""
    gc.collect()
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except FileNotFoundError as error:
        raise NotMeasured("this system does not tell a process its size in /proc") from error
    return pages * os.sysconf("SC_PAGE_SIZE")


def own_bytes(pid: int) -> int:
    """Return how much memory the process *pid* holds that it shares with no other."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except FileNotFoundError as error:
        raise NotMeasured("this system does not tell what a process has for itself in /proc") from error
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
