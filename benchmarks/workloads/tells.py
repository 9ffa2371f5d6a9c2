"""Tells: messages without a reply, counted until the last one's turn is on disk."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from functools import partial

from benchmarks.actors import Counter
from benchmarks.case import FLUSHED, OURS, Case, Contender, Place, Sample, Scale, Task
from benchmarks.floors import group_commits
from understudy import Limits, System

NAME = "tells"

IN_FLIGHT = 200  # fewer than `Limits.window_messages`: the mailbox stays in memory
IN_FLIGHT_DEEP = 5_000  # more: most of the mailbox waits on disk
SENDERS = 100


def cases(_scale: Scale) -> Iterator[Case]:
    """One sender that does not wait for each tell, and many that do, to one actor."""
    for in_flight in (IN_FLIGHT, IN_FLIGHT_DEEP):
        contenders = {
            OURS: Contender(partial(_measure_pipelined, in_flight=in_flight), FLUSHED),
            group_commits.NAME: Contender(partial(group_commits.measure, callers=in_flight), FLUSHED),
        }
        task = Task(name="tells") if in_flight == IN_FLIGHT else None
        yield Case(NAME, one_to_one_name(in_flight), contenders, task)
    contenders = {
        OURS: Contender(_measure_fan_in, FLUSHED),
        group_commits.NAME: Contender(partial(group_commits.measure, callers=SENDERS), FLUSHED),
    }
    yield Case(NAME, f"{SENDERS} to 1", contenders, Task(name="fan-in", callers=SENDERS))


def one_to_one_name(in_flight: int = IN_FLIGHT) -> str:
    """Name the case of one sender that has so many tells under way."""
    return f"1 to 1, {in_flight:,} in flight"


def _measure_pipelined(place: Place, in_flight: int) -> list[Sample]:
    return asyncio.run(_pipelined(place, in_flight))


async def _pipelined(place: Place, in_flight: int) -> list[Sample]:
    async with System(place.own / "tells.db", [Counter], limits=_LIMITS) as system:
        counter = system.actor(Counter, "counter")
        await counter.add(0)
        gc.collect()
        sent = 0
        began = time.perf_counter()
        while sent == 0 or time.perf_counter() < began + place.scale.seconds:
            await asyncio.gather(*(counter.add.tell(1) for _ in range(in_flight)))
            sent += in_flight
        return await _rate(counter, sent, began)


def _measure_fan_in(place: Place) -> list[Sample]:
    return asyncio.run(_fan_in(place))


async def _fan_in(place: Place) -> list[Sample]:
    async with System(place.own / "tells.db", [Counter], limits=_LIMITS) as system:
        counter = system.actor(Counter, "counter")
        await counter.add(0)
        gc.collect()
        sent = 0
        began = time.perf_counter()

        async def sender() -> None:
            nonlocal sent
            while True:
                await counter.add.tell(1)
                sent += 1
                if time.perf_counter() >= began + place.scale.seconds:
                    return

        await asyncio.gather(*(sender() for _ in range(SENDERS)))
        return await _rate(counter, sent, began)


# Senders may be faster than one actor; what they gain is paid back before the clock is read.
_LIMITS = Limits(mailbox_messages=10_000_000)


async def _rate(counter: Counter, sent: int, began: float) -> list[Sample]:
    counted = await counter.add(0)
    took_s = time.perf_counter() - began
    if counted != sent:
        raise AssertionError(f"{sent} tells were stored, {counted} were counted")
    return [Sample("rate", "/s", sent / took_s)]
