"""Floor: pages of a file that has its full size already, each flushed, as the log of a database is."""

from __future__ import annotations

import os
import time

from benchmarks.case import Place
from benchmarks.flushes import flushes
from benchmarks.load import summary
from benchmarks.sample import Sample

NAME = "fdatasync"
_PAGE = 4_096
_PAGES = 1_000


def measure(place: Place) -> list[Sample]:
    """Overwrite one page after the other for `scale.seconds`."""
    path = place.own / "pages"
    flush = getattr(os, "fdatasync", os.fsync)
    page = os.urandom(_PAGE)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        os.pwrite(fd, bytes(_PAGE * _PAGES), 0)
        os.fsync(fd)
        before = flushes(place.own)
        times: list[float] = []
        began = ended = time.perf_counter()
        while ended - began < place.scale.seconds:
            started = ended
            os.pwrite(fd, page, len(times) % _PAGES * _PAGE)
            flush(fd)
            ended = time.perf_counter()
            times.append(ended - started)
        after = flushes(place.own)
    finally:
        os.close(fd)
    return summary(times, len(times) / (ended - began), before, after)
