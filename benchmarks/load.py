"""Callers: what puts load on whatever is measured, the same for us, for the floors and for the peers."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.flushes import flushes
from benchmarks.sample import Sample, quantiles

Call = Callable[[int], Awaitable[object]]
BlockingCall = Callable[[int], object]
_WARM_CALLS = 20


async def measure(call: Call, callers: int, seconds: float, directory: Path | None = None) -> list[Sample]:
    """Let each caller repeat `call(its number)` for *seconds*, one call at a time.

    Returns the calls per second and how long they took; with *directory*, how often the disk under it was flushed.
    """
    await _warm(call, callers)
    before = flushes(directory) if directory is not None else None
    times, took_s = await _load(call, callers, seconds)
    after = flushes(directory) if directory is not None else None
    return summary(times, took_s, before, after)


def measure_blocking(call: BlockingCall, callers: int, seconds: float) -> list[Sample]:
    """Do the same with a thread per caller, for calls that block theirs."""
    now = time.perf_counter
    times: list[list[float]] = [[] for _ in range(callers)]
    until = 0.0
    warm = threading.Barrier(callers + 1)
    start = threading.Event()

    def caller(number: int) -> None:
        try:
            for _ in range(max(1, _WARM_CALLS // callers)):
                call(number)
        finally:
            warm.wait()
        start.wait()
        began = now()
        while True:
            call(number)
            ended = now()
            times[number].append(ended - began)
            if ended >= until:
                return
            began = ended

    with ThreadPoolExecutor(callers) as threads:
        ends = [threads.submit(caller, number) for number in range(callers)]
        warm.wait()
        gc.collect()
        began = now()
        until = began + seconds
        start.set()
    took_s = now() - began
    for end in ends:
        end.result()
    every = [each for of_one in times for each in of_one]
    return summary(every, took_s)


async def per_second(call: Call, callers: int, seconds: float) -> float:
    """Return the calls per second."""
    await _warm(call, callers)
    times, took_s = await _load(call, callers, seconds)
    return len(times) / took_s


async def _warm(call: Call, callers: int) -> None:
    """Make sure that everything exists and is warm."""
    for _ in range(max(1, _WARM_CALLS // callers)):
        await asyncio.gather(*(call(number) for number in range(callers)))
    gc.collect()


async def _load(call: Call, callers: int, seconds: float) -> tuple[list[float], float]:
    """Return how long each call took, and all of them together, in seconds."""
    now = time.perf_counter
    times: list[float] = []
    until = 0.0
    start = asyncio.Event()

    async def caller(number: int) -> None:
        await start.wait()
        began = now()
        while True:
            await call(number)
            ended = now()
            times.append(ended - began)
            if ended >= until:
                return
            began = ended

    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(caller(number))
        await asyncio.sleep(0)  # All of them wait for the start: making a thousand tasks is not what is measured.
        began = now()
        until = began + seconds
        start.set()
    return times, now() - began


def summary(times: list[float], took_s: float, before: int | None = None, after: int | None = None) -> list[Sample]:
    """Return what calls that took these *times*, in seconds, come to; *before* and *after* are counts of flushes."""
    micros = sorted(each * 1e6 for each in times)
    samples = [
        Sample("rate", "/s", len(times) / took_s),
        Sample("p50", "µs", micros[len(micros) // 2], quantiles(micros)),
        Sample("p99", "µs", micros[int(len(micros) * 0.99)]),
    ]
    if before is not None and after is not None:
        samples.append(Sample("flushes per call", "", (after - before) / len(times)))
    return samples
