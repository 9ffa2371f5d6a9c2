"""Bring actors to life and say what each takes of this process's memory: `fill_memory idle|passivated FILE COUNT`."""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc

from benchmarks.actors import Counter
from benchmarks.machine import rss_bytes
from understudy import Limits, System

_CALLERS = 256


async def idle_bytes(path: str, count: int) -> float:
    """Return how much the process grew per actor that stays in memory."""
    async with System(path, [Counter], limits=Limits(active_max=2 * count, idle_s=3_600.0)) as system:
        await _touch(system, "warm", min(count, 1_000))
        gc.collect()
        before = rss_bytes()
        await _touch(system, "idle", count)
        gc.collect()
        return (rss_bytes() - before) / count


async def passivated_bytes(path: str, count: int) -> float:
    """Return how many bytes of Python objects an actor leaves behind that has come and gone.

    Not the size of the process: SQLite's page cache fills up to its limit meanwhile, whatever we do.
    """
    active_max = max(1, count // 20)
    async with System(path, [Counter], limits=Limits(active_max=active_max)) as system:
        tracemalloc.start()
        # Before and after, the same number is alive: what the limit lets in.
        await _touch(system, "warm", count)
        before = _allocated_bytes()
        await _touch(system, "gone", count)
        left = _allocated_bytes() - before
        tracemalloc.stop()
        return left / count


def _allocated_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def _touch(system: System, name: str, count: int) -> None:
    for start in range(0, count, _CALLERS):
        numbers = range(start, min(start + _CALLERS, count))
        await asyncio.gather(*(system.actor(Counter, f"{name}-{number}").add(1) for number in numbers))


if __name__ == "__main__":
    measure = {"idle": idle_bytes, "passivated": passivated_bytes}[sys.argv[1]]
    print(asyncio.run(measure(sys.argv[2], int(sys.argv[3]))), flush=True)
