"""Durable asks: callers that each ask an actor of their own and get the reply once its turn is on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

from benchmarks.actors import Counter
from benchmarks.case import OURS, Case, Measure, Place, Sample, Scale
from benchmarks.floors import group_commits, request_reply, single_commits
from benchmarks.load import measure as measure_load
from understudy import System

NAME = "asks"


def cases(scale: Scale) -> Iterator[Case]:
    """One case for each number of callers."""
    for callers in scale.callers:
        contenders: dict[str, Measure] = {
            OURS: partial(measure, callers=callers),
            group_commits.NAME: partial(group_commits.measure, callers=callers),
            single_commits.NAME: partial(single_commits.measure, callers=callers),
            request_reply.NAME: partial(request_reply.measure, callers=callers),
        }
        yield Case(NAME, case_name(callers), contenders)


def case_name(callers: int) -> str:
    """Name the case of so many callers."""
    return "1 caller" if callers == 1 else f"{callers:,} callers"


def measure(place: Place, callers: int) -> list[Sample]:
    """Measure *callers* over as many actors."""
    return asyncio.run(_measure(place, callers))


async def _measure(place: Place, callers: int) -> list[Sample]:
    async with System(place.own / "asks.db", [Counter]) as system:
        counters = [system.actor(Counter, f"counter-{number}") for number in range(callers)]
        return await measure_load(lambda number: counters[number].add(1), callers, place.scale.seconds)
