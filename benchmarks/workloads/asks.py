"""Durable asks: callers that each ask an actor of their own and get the reply once its turn is on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Literal

from benchmarks.actors import Counter
from benchmarks.case import FLUSHED, KERNEL, MEMORY, OURS, PROCESS, Case, Contender, Place, Sample, Scale, Task
from benchmarks.floors import group_commits, request_reply, single_commits
from benchmarks.load import measure as measure_load
from understudy import System

NAME = "asks"
_WEAKER = frozenset({1, 256})  # callers: that durability costs little says itself in two cases


def cases(scale: Scale) -> Iterator[Case]:
    """One case for each number of callers."""
    for callers in scale.callers:
        contenders = {
            OURS: Contender(partial(measure, callers=callers), FLUSHED),
            group_commits.NAME: Contender(partial(group_commits.measure, callers=callers), FLUSHED),
            single_commits.NAME: Contender(partial(single_commits.measure, callers=callers), FLUSHED),
            request_reply.NAME: Contender(partial(request_reply.measure, callers=callers), MEMORY),
        }
        if callers in _WEAKER:
            weaker = Contender(partial(measure, callers=callers, durability="process"), KERNEL)
            contenders = {OURS: contenders.pop(OURS), PROCESS: weaker, **contenders}
        yield Case(NAME, case_name(callers), contenders, Task(name="asks", callers=callers))


def case_name(callers: int) -> str:
    """Name the case of so many callers."""
    return "1 caller" if callers == 1 else f"{callers:,} callers"


def measure(place: Place, callers: int, durability: Literal["full", "process"] = "full") -> list[Sample]:
    """Measure *callers* over as many actors."""
    return asyncio.run(_measure(place, callers, durability))


async def _measure(place: Place, callers: int, durability: Literal["full", "process"]) -> list[Sample]:
    async with System(place.own / "asks.db", [Counter], durability=durability) as system:
        counters = [system.actor(Counter, f"counter-{number}") for number in range(callers)]
        return await measure_load(lambda number: counters[number].add(1), callers, place.scale.seconds, place.own)
