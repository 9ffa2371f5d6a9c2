"""Spawning: actors that nobody has named before, each counted once it has answered its first ask, durably."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from functools import partial

from benchmarks.actors import Counter
from benchmarks.case import FLUSHED, OURS, Case, Contender, Place, Sample, Scale, Task
from benchmarks.floors import group_commits
from understudy import System

NAME = "spawn"
CALLERS = 256


def cases(scale: Scale) -> Iterator[Case]:
    """One case."""
    contenders = {
        OURS: Contender(_measure, FLUSHED),
        # A fresh actor is a row of state; an old one that is asked again costs the floor the same.
        group_commits.NAME: Contender(partial(group_commits.measure, callers=CALLERS), FLUSHED),
    }
    yield Case(NAME, case_name(scale), contenders, Task(name="spawn", count=scale.spawn_actors))


def case_name(scale: Scale) -> str:
    """Name the one case of *scale*."""
    return f"{scale.spawn_actors:,} fresh actors"


def _measure(place: Place) -> list[Sample]:
    return asyncio.run(_spawn(place))


async def _spawn(place: Place) -> list[Sample]:
    count = place.scale.spawn_actors
    async with System(place.own / "spawn.db", [Counter]) as system:
        await _ask_each(system, "warm", min(count, CALLERS))
        gc.collect()
        began = time.perf_counter()
        await _ask_each(system, "fresh", count)
        return [Sample("rate", "/s", count / (time.perf_counter() - began))]


async def _ask_each(system: System, name: str, count: int) -> None:
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await system.actor(Counter, f"{name}-{number}").add(1)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
