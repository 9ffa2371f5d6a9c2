"""What must be said of a run as a whole before anybody believes a figure of it."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.case import FLUSHED, FULL
from benchmarks.machine import FLUSH_US_MIN, Machine
from benchmarks.report import Report
from benchmarks.reporting.comparison import FLUSHES, P50
from benchmarks.reporting.numbers import number

# Above it a median of a few samples tells of the other programs as much as of us.
OTHERS_CORES_MAX = 0.2


def warnings(report: Report) -> Iterator[str]:
    """Yield what makes the figures worse than they look."""
    if not report.machine.has_disk:
        yield f"A flush takes less than {FLUSH_US_MIN:g} µs: this is no disk, and nothing here was durable."
    timed = [figure for figure in report.figures if figure.durability == FLUSHED and figure.key.figure == P50]
    if timed and not any(figure.key.figure == FLUSHES for figure in report.figures):
        yield "This system does not count flushes of the disk: that answers were on it was not checked."
    if report.others_cores is not None and report.others_cores > OTHERS_CORES_MAX:
        yield (
            f"Other programs kept {report.others_cores:.2f} cores busy meanwhile. The figures are worse than this "
            "machine's: run again when it is quiet."
        )
    if report.scale.repeats == 1:
        yield "One sample of each figure: how far another run would differ is unknown."
    if report.scale.seconds < FULL.seconds:
        yield f"Samples of {report.scale.seconds:g} s with smaller numbers show that all works; quote none of them."


def machine(report: Report) -> str:
    """Return the machine in a sentence."""
    here: Machine = report.machine
    memory = f", {here.memory_bytes / 2**30:.0f} GiB" if here.memory_bytes else ""
    return (
        f"{here.cores} cores of {here.cpu}{memory}, {here.file_system} (write cache: {here.write_cache}), {here.system}, "
        f"{here.python}, SQLite {here.sqlite}; fdatasync p50 {number(here.fdatasync_p50_us)} µs, p99 "
        f"{number(here.fdatasync_p99_us)} µs"
    )


def source(report: Report) -> str:
    """Return which understudy was measured."""
    here = report.machine
    return f"understudy {here.understudy}{f', commit {here.commit}' if here.commit else ''}"
