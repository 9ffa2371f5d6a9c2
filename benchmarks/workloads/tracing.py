"""Tracing: the same asks with the least and with the most that the trace can keep."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Literal

from benchmarks.actors import Counter
from benchmarks.case import FLUSHED, OURS, Case, Contender, Place, Sample, Scale
from benchmarks.load import measure as measure_load
from understudy import System

NAME = "tracing"
CALLERS = 256
ALL = f'{OURS}, trace="all"'

_Trace = Literal["steps", "all"]


def cases(_scale: Scale) -> Iterator[Case]:
    """Callers on as many actors, whose turns are counted only, or kept."""
    contenders = {
        OURS: Contender(partial(_measure, trace="steps"), FLUSHED),
        ALL: Contender(partial(_measure, trace="all"), FLUSHED),
    }
    yield Case(NAME, CASE, contenders)


CASE = f"{CALLERS} callers"


def _measure(place: Place, trace: _Trace) -> list[Sample]:
    return asyncio.run(_work(place, trace))


async def _work(place: Place, trace: _Trace) -> list[Sample]:
    async with System(place.own / "asks.db", [Counter], trace=trace) as system:
        counters = [system.actor(Counter, f"counter-{number}") for number in range(CALLERS)]
        return await measure_load(lambda number: counters[number].add(1), CALLERS, place.scale.seconds, place.own)
