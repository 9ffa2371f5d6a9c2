"""Callers: what puts load on whatever is measured, the same for us and for the floors."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable

from benchmarks.case import Sample

Call = Callable[[int], Awaitable[object]]


async def per_second(call: Call, callers: int, seconds: float) -> float:
    """Let each caller repeat `call(its number)` for *seconds*, one call at a time; return calls per second."""
    await asyncio.gather(*(call(number) for number in range(callers)))  # Everything exists and is warm.
    gc.collect()
    done = 0
    until = 0.0
    start = asyncio.Event()

    async def caller(number: int) -> None:
        nonlocal done
        await start.wait()
        while True:
            await call(number)
            done += 1
            if time.perf_counter() >= until:
                return

    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(caller(number))
        await asyncio.sleep(0)  # All of them wait for the start: making a thousand tasks is not what is measured.
        began = time.perf_counter()
        until = began + seconds
        start.set()
    return done / (time.perf_counter() - began)


async def times_alone(call: Call, seconds: float) -> list[float]:
    """Repeat `call(0)` for *seconds*; return how long each took, in microseconds, shortest first."""
    for _ in range(20):
        await call(0)
    gc.collect()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        await call(0)
        times.append((time.perf_counter() - began) * 1e6)
    times.sort()
    return times


async def measure(call: Call, callers: int, seconds: float) -> list[Sample]:
    """Return the rate; of a caller that is alone the times as well."""
    if callers > 1:
        return [Sample("rate", "/s", await per_second(call, callers, seconds))]
    times = await times_alone(call, seconds)
    return [
        Sample("rate", "/s", len(times) / sum(times) * 1e6),
        Sample("p50", "µs", statistics.median(times)),
        Sample("p99", "µs", times[int(len(times) * 0.99)]),
    ]
