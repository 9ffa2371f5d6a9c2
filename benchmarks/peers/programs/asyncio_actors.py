"""What actors on asyncio are asked beside asks, the same for each peer that has them: tells, spawning, memory."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

from benchmarks.peers.programs.resident import resident_bytes
from benchmarks.sample import Sample

_CALLERS = 256  # as many as ours

Touch = Callable[[str], Awaitable[object]]
"""Ask the actor of that name, which did not exist before, and get its answer."""


async def measure_tells(
    send: Callable[[], Awaitable[int]], counted: Callable[[], Awaitable[int]], senders: int, seconds: float
) -> list[Sample]:
    """Let each sender repeat *send*, which returns how many it sent, until the time is over and *counted* has them all."""
    await counted()
    gc.collect()
    sent = 0
    began = time.perf_counter()

    async def sender() -> None:
        nonlocal sent
        while True:
            sent += await send()
            if time.perf_counter() >= began + seconds:
                return
            if senders > 1:  # Where sending never waits, the first would keep all others from beginning.
                await asyncio.sleep(0)

    await asyncio.gather(*(sender() for _ in range(senders)))
    while await counted() < sent:  # An ask may overtake what was sent before it.
        pass
    return [Sample("rate", "/s", sent / (time.perf_counter() - began))]


async def measure_spawn(touch: Touch, count: int) -> list[Sample]:
    """Count an actor once it has answered."""
    await _touch_all(touch, "warm", _CALLERS)
    gc.collect()
    began = time.perf_counter()
    await _touch_all(touch, "fresh", count)
    return [Sample("rate", "/s", count / (time.perf_counter() - began))]


async def measure_memory(touch: Touch, count: int) -> list[Sample]:
    """Measure what the process grows by for each actor that has answered once."""
    await _touch_all(touch, "warm", min(count, 1_000))
    before = resident_bytes()
    await _touch_all(touch, "idle", count)
    return [Sample("in memory", "bytes", (resident_bytes() - before) / count)]


async def _touch_all(touch: Touch, name: str, count: int) -> None:
    for start in range(0, count, _CALLERS):
        await asyncio.gather(*(touch(f"{name}-{each}") for each in range(start, min(start + _CALLERS, count))))
