"""Growth: whether asks become slower as the file fills up with actors, beside the same writes in plain SQL."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.actors import Counter
from benchmarks.case import FLUSHED, OURS, Case, Contender, Place, Sample, Scale
from benchmarks.floors import upserts
from benchmarks.load import per_second
from benchmarks.stored_counters import counter_id, counters_file
from understudy import System

NAME = "growth"
CALLERS = 256
NEIGHBOURS = "neighbouring"
SCATTERED = "scattered"
_SEED = 1
_WOKEN_MAX = 200_000  # more than anybody wakes in one sample


def cases(scale: Scale) -> Iterator[Case]:
    """Callers on neighbouring and on scattered actors of smaller and larger files."""
    for spread in (NEIGHBOURS, SCATTERED):
        for count in scale.growth_actors:
            chosen = _choose(count, spread)
            contenders = {OURS: Contender(partial(_measure, count=count, chosen=chosen), FLUSHED)}
            if count in {scale.growth_actors[0], scale.growth_actors[-1]}:
                contenders[upserts.NAME] = Contender(partial(upserts.measure, count=count, chosen=chosen), FLUSHED)
            yield Case(NAME, case_name(count, spread), contenders)
    for count in (scale.growth_actors[0], scale.growth_actors[-1]):
        yield Case(NAME, case_name(count, "waking"), {OURS: Contender(partial(_measure_waking, count=count), FLUSHED)})


def case_name(count: int, spread: str) -> str:
    """Name the case of so many actors on disk."""
    return f"{count:,} actors, {spread}"


def _choose(count: int, spread: str) -> Sequence[int]:
    callers = min(CALLERS, count)
    if spread == NEIGHBOURS:
        return range(count // 2, min(count // 2 + callers, count))
    return random.Random(_SEED).sample(range(count), callers)


def _measure(place: Place, count: int, chosen: Sequence[int]) -> list[Sample]:
    path = counters_file(place.shared, count)

    async def ask() -> float:
        async with System(path, [Counter]) as system:
            counters = [system.actor(Counter, counter_id(number)) for number in chosen]
            return await per_second(lambda number: counters[number].add(1), len(chosen), place.scale.seconds)

    return [Sample("rate", "/s", asyncio.run(ask()))]


def _measure_waking(place: Place, count: int) -> list[Sample]:
    """Ask another sleeping actor each time."""
    path = counters_file(place.shared, count)
    sleeping = iter(random.Random(_SEED).sample(range(count), min(count, _WOKEN_MAX)))

    async def ask() -> float:
        woken = 0
        async with System(path, [Counter]) as system:

            async def caller(until: float) -> None:
                nonlocal woken
                for number in sleeping:
                    await system.actor(Counter, counter_id(number)).add(1)
                    woken += 1
                    if system.loop.time() >= until:
                        return

            began = system.loop.time()
            await asyncio.gather(*(caller(began + place.scale.seconds) for _ in range(CALLERS)))
            return woken / (system.loop.time() - began)

    return [Sample("rate", "/s", asyncio.run(ask()))]
