"""Callers: what puts load on whatever is measured, the same for us, for the floors and for the peers."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from benchmarks.flushes import flushes
from benchmarks.sample import NotMeasured, Sample, quantiles

Call = Callable[[int], Awaitable[object]]
BlockingCall = Callable[[int], object]
_WARM_CALLS = 20
_POLL_S = 0.005


async def measure(call: Call, callers: int, seconds: float, directory: Path | None = None) -> list[Sample]:
    """Let each caller repeat `call(its number)` for *seconds*, one call at a time.

    Returns the calls per second and how long they took; with *directory*, how often the disk under it was flushed.
    """
    await _warm(call, callers)
    before = flushes(directory) if directory is not None else None
    times, took_s = await _load(call, callers, seconds)
    after = flushes(directory) if directory is not None else None
    return summary(times, len(times) / took_s, before, after)


def measure_blocking(call: BlockingCall, callers: int, seconds: float) -> list[Sample]:
    """Do the same with a thread per caller, for calls that block theirs.

    Many threads take long to begin, each waiting for its turn on the interpreter. So what counts for the rate is what
    ends in a window of *seconds* that opens when every caller has had its first answers, and for the times every call
    that was under way in it: one that gets no turn before it closes is among the slowest.
    """
    now = time.perf_counter
    ends: list[list[float]] = [[] for _ in range(callers)]
    firsts = max(1, _WARM_CALLS // callers)
    closes = float("inf")

    def caller(number: int) -> None:
        mine = ends[number]
        mine.append(now())
        while mine[-1] < closes:
            call(number)
            mine.append(now())

    with ThreadPoolExecutor(callers) as threads:
        callings = [threads.submit(caller, number) for number in range(callers)]
        while not all(len(each) > firsts for each in ends) and not any(calling.done() for calling in callings):
            time.sleep(_POLL_S)
        gc.collect()
        opens = now()
        closes = opens + seconds
    for calling in callings:
        calling.result()
    calls = [(began, end) for each in ends for began, end in pairwise(each)]
    ended = sum(opens <= end < closes for _, end in calls)
    return summary([end - began for began, end in calls if end >= opens and began < closes], ended / seconds)


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


def summary(times: list[float], rate: float, before: int | None = None, after: int | None = None) -> list[Sample]:
    """Return what calls that took these *times*, in seconds, come to; *before* and *after* are counts of flushes.

    Raises:
        NotMeasured: There were none.
    """
    if not times:
        raise NotMeasured("no call began and ended in the time of a sample")
    micros = sorted(each * 1e6 for each in times)
    samples = [
        Sample("rate", "/s", rate),
        Sample("p50", "µs", micros[len(micros) // 2], quantiles(micros)),
        Sample("p99", "µs", micros[int(len(micros) * 0.99)]),
    ]
    if before is not None and after is not None:
        samples.append(Sample("flushes per call", "", (after - before) / len(times)))
    return samples
