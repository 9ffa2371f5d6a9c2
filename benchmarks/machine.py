"""Facts about the machine that every figure depends on, and what a process takes of it."""

from __future__ import annotations

import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import msgspec

from benchmarks import hardware, versions
from benchmarks.flushes import write_cache

_FLUSHES = 500
_PAGE = 4096
# A disk, even one with a cache that survives a power cut, takes longer than this to say that it has the data.
FLUSH_US_MIN = 10.0


class Machine(msgspec.Struct, frozen=True):
    """What the figures of one run were measured on."""

    cores: int
    system: str
    python: str
    sqlite: str
    understudy: str
    fdatasync_p50_us: float
    fdatasync_p99_us: float
    cpu: str = hardware.UNKNOWN
    memory_bytes: int = 0
    file_system: str = hardware.UNKNOWN
    write_cache: str = hardware.UNKNOWN
    libraries: dict[str, str] = {}
    commit: str = ""

    @property
    def has_disk(self) -> bool:
        """Whether a flush does anything here; in a file system in memory nothing durable can be measured."""
        return self.fdatasync_p50_us >= FLUSH_US_MIN


def look(directory: Path) -> Machine:
    """Return the facts; flushes are measured in *directory*."""
    flushes = sorted(_flush_times_us(directory))
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        sqlite=sqlite3.sqlite_version,
        understudy=version("understudy"),
        fdatasync_p50_us=statistics.median(flushes),
        fdatasync_p99_us=flushes[int(len(flushes) * 0.99)],
        cpu=hardware.cpu(),
        memory_bytes=hardware.memory_bytes(),
        file_system=hardware.file_system(directory),
        write_cache=write_cache(directory) or hardware.UNKNOWN,
        libraries=versions.libraries(),
        commit=versions.commit(),
    )


def _flush_times_us(directory: Path) -> list[float]:
    """Overwrite pages of a file that has its full size already, as a write-ahead log does, and flush each."""
    flush = getattr(os, "fdatasync", os.fsync)
    path = directory / "flush"
    times: list[float] = []
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        os.pwrite(fd, b"\0" * _PAGE * _FLUSHES, 0)
        os.fsync(fd)
        page = os.urandom(_PAGE)
        for number in range(_FLUSHES):
            began = time.perf_counter()
            os.pwrite(fd, page, number * _PAGE)
            flush(fd)
            times.append((time.perf_counter() - began) * 1e6)
    finally:
        os.close(fd)
        path.unlink()
    return times


def rss_bytes() -> int:
    """Return how much memory this process holds."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except FileNotFoundError:
        listed = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(os.getpid())], check=True, capture_output=True, text=True
        )
        return int(listed.stdout) * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_rss_bytes() -> int:
    """Return the most memory that this process has ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Others:
    """How much of the machine other programs took since this was made: they make every figure worse."""

    def __init__(self) -> None:
        self._began = (time.monotonic(), _busy_s(), _own_s())

    def cores(self) -> float | None:
        """Return how many cores they kept busy on average; None where the system does not tell."""
        at, busy, own = self._began
        now = _busy_s()
        if now is None or busy is None:
            return None
        return max(0.0, (now - busy) - (_own_s() - own)) / (time.monotonic() - at)


def _busy_s() -> float | None:
    """Return how long all cores together have worked since the system started."""
    try:
        total = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    except FileNotFoundError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq = map(int, total[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    """Return how long this process and its ended children have worked."""
    return sum(os.times()[:4])
