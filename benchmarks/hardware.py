"""What a machine is made of, as far as the system tells; what it does not tell is "unknown" or 0."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

UNKNOWN = "unknown"
_CPUS = Path("/proc/cpuinfo")
_MOUNTS = Path("/proc/self/mountinfo")


def cpu() -> str:
    """Return the model of the processor."""
    try:
        lines = _CPUS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return _asked("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or UNKNOWN
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model"}:
            return " ".join(value.split())
    return platform.processor() or UNKNOWN


def memory_bytes() -> int:
    """Return how much memory the machine has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


def file_system(directory: Path) -> str:
    """Return the type of the file system under *directory*; where it is mounted is nobody's business."""
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return UNKNOWN
    resolved = directory.resolve()
    found, depth = UNKNOWN, -1
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        # Of two mounts on one another the later one is seen.
        if resolved.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = after.split()[0], len(point.parts)
    return found


def _asked(*command: str) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
