"""A run that never was: figures with all the oddities that real ones have."""

from __future__ import annotations

from benchmarks.aims import Aim
from benchmarks.case import FLUSHED, KERNEL, MEMORY, OURS, PROCESS, Figure, Key, Missing, Scale
from benchmarks.machine import Machine
from benchmarks.report import Report, Told
from benchmarks.sample import QUANTILES

FLOOR = "group commits"
SERVER = "A server, sync always"
ACTORS = "actors_in|memory"  # what has a meaning in a page must not have it there
ODD = "never finished"
_DURABILITY = {OURS: FLUSHED, PROCESS: KERNEL, FLOOR: FLUSHED, SERVER: FLUSHED, ACTORS: MEMORY}

MACHINE = Machine(
    cores=2,
    system="Linux 6 x86_64",
    python="CPython 3",
    sqlite="3",
    understudy="0",
    fdatasync_p50_us=100.0,
    fdatasync_p99_us=200.0,
    cpu="A processor",
    memory_bytes=8 << 30,
    file_system="ext4",
    write_cache="write back",
    libraries={"msgspec": "1"},
    commit="0123456789ab",
)


def figure(workload: str, case: str, name: str, contender: str, *samples: float, unit: str = "/s") -> Figure:
    micros = [[samples[0] * (1 + at) for at in QUANTILES] for _ in samples] if name == "p50" else []
    return Figure(
        key=Key(workload, case, name, contender),
        unit=unit,
        durability=_DURABILITY[contender],
        samples=list(samples),
        quantiles=micros,
    )


def calls(workload: str, case: str, contender: str, *rates: float) -> list[Figure]:
    return [
        figure(workload, case, "rate", contender, *rates),
        figure(workload, case, "p50", contender, *(1e6 / rate for rate in rates), unit="µs"),
        figure(workload, case, "p99", contender, *(3e6 / rate for rate in rates), unit="µs"),
        figure(workload, case, "flushes per call", contender, *(0.0 for _ in rates), unit=""),
    ]


def report(**changes: object) -> Report:
    figures = [
        # Floors come before peers, as in a run; one peer answers fewer callers than the others.
        *(each for name, rate in ((FLOOR, 2_000.0), (OURS, 1_000.0), (PROCESS, 1_990.0), (SERVER, 1_005.0), (ACTORS, 40_000.0))
          for each in calls("asks", "1 caller", name, rate, rate * 1.02, rate * 0.98)),
        *(each for name, rate in ((OURS, 30_000.0), (FLOOR, 120_000.0), (SERVER, 100.0))
          for each in calls("asks", "256 callers", name, rate)),
        # A rate alone, of one sample; nothing at all; less than nothing.
        figure("tells", "1 to 1", "rate", OURS, 20_000.0),
        figure("tells", "1 to 1", "rate", ACTORS, 0.0, 0.0, 0.0),
        figure("tells", "1 to 1", "rate", FLOOR, 90_000.0),
        figure("memory", "idle actor", "in memory", OURS, 1_500.0, 1_501.0, 1_502.0, unit="bytes"),
        figure("memory", "idle actor", "in memory", ACTORS, 43e6, unit="bytes"),
        figure("memory", "idle actor", "passivated", OURS, -3.0, -2.0, 0.0, unit="bytes"),
        *(figure("growth", f"{size:,} actors, {spread}", "rate", contender, rate * factor)
          for size, factor in ((1_000, 1.0), (30_000, 0.9), (1_000_000, 0.7))
          for spread in ("neighbouring", "scattered")
          for contender, rate in ((OURS, 30_000.0), (FLOOR, 200_000.0))),
        *(figure("agent history", f"{size:,} items", "written per run", OURS, 9e4 + size, unit="bytes") for size in (10, 200)),
        # Of a workload that is measured no longer.
        figure("forgotten", "1 way", "took", OURS, 0.002, unit="s"),
    ]  # fmt: skip
    whole = {
        "started_at": "2026-01-02T03:04:05+00:00",
        "took_s": 61.0,
        "others_cores": 0.01,
        "machine": MACHINE,
        "scale": Scale(),
        "figures": figures,
        "missing": [
            Missing("asks", "256 callers", ACTORS, "ended with 1: No such file: '/home/somebody/place/hosts.json'"),
            Missing("all", "all", ODD, "not installed: pip ended with 1: <no> word"),
        ],
        "peers": [
            Told(SERVER, FLUSHED, "Its data in /var/lib/server/data, one connection.", {"server": "1.2"}, "A word."),
            Told(ACTORS, MEMORY, "As it comes.", {}),
            Told(ODD, MEMORY, "Installed, and never heard of again.", {}),
        ],
        "aims": [
            Aim("asks, 256 callers", "30,000", "≥ 25,000", True),
            Aim("asks, 1 caller", "1.0", "≥ 2", False, "why"),
        ],
        "seeds": {"growth": 1},
    }
    return Report(**{**whole, **changes})
