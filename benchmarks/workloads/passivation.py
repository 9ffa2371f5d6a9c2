"""Passivation: actors that leave memory for others and come back, more of them than there is room for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import cycle

from benchmarks.actors import Counter
from benchmarks.case import FLUSHED, OURS, Case, Contender, Place, Sample, Scale
from understudy import Limits, System

NAME = "passivation"
CALLERS = 256
_ROOM = 1_000  # actors in memory at a time
_TIMES_MORE = 5


def cases(_scale: Scale) -> Iterator[Case]:
    """One case."""
    yield Case(NAME, f"{_ROOM * _TIMES_MORE:,} actors, room for {_ROOM:,}", {OURS: Contender(measure, FLUSHED)})


def measure(place: Place) -> list[Sample]:
    """Ask one actor after the other, so that each has left before it is asked again."""
    return asyncio.run(_measure(place))


async def _measure(place: Place) -> list[Sample]:
    count = _ROOM * _TIMES_MORE
    async with System(place.own / "actors.db", [Counter], limits=Limits(active_max=_ROOM)) as system:
        numbers = cycle(range(count))
        asked = 0

        async def caller(until: float) -> None:
            nonlocal asked
            for number in numbers:
                await system.actor(Counter, f"counter-{number}").add(1)
                asked += 1
                if time.perf_counter() >= until and asked >= count:
                    return

        for round_ in ("made", "measured"):
            asked, began = 0, time.perf_counter()
            until = began + (place.scale.seconds if round_ == "measured" else 0.0)
            await asyncio.gather(*(caller(until) for _ in range(CALLERS)))
        took_s = time.perf_counter() - began
    return [Sample("left and came back", "/s", asked / took_s)]
