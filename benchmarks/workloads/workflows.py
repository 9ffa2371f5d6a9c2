"""Workflows of five steps, each journaled before the next one begins; alone, and many side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

from benchmarks.actors import STEPS, Workflow
from benchmarks.case import FLUSHED, OURS, Case, Contender, Place, Sample, Scale, Task
from benchmarks.floors import group_commits, single_commits
from benchmarks.load import measure as measure_load
from understudy import System

NAME = "workflows"
CALLERS = 64


def cases(_scale: Scale) -> Iterator[Case]:
    """One alone, and many; the floors write a row for each step."""
    for callers in (1, CALLERS):
        contenders = {
            OURS: Contender(partial(_measure, callers=callers), FLUSHED),
            group_commits.NAME: Contender(partial(group_commits.measure, callers=callers, rows=STEPS), FLUSHED),
            single_commits.NAME: Contender(partial(single_commits.measure, callers=callers, rows=STEPS), FLUSHED),
        }
        yield Case(NAME, case_name(callers), contenders, Task(name="workflow", callers=callers))


def case_name(callers: int) -> str:
    """Name the case of so many workflows at a time."""
    return f"{STEPS} steps, alone" if callers == 1 else f"{STEPS} steps, {callers} at a time"


def _measure(place: Place, callers: int) -> list[Sample]:
    return asyncio.run(_work(place, callers))


async def _work(place: Place, callers: int) -> list[Sample]:
    async with System(place.own / "workflows.db", [Workflow]) as system:
        workflows = [system.actor(Workflow, f"workflow-{number}") for number in range(callers)]
        return await measure_load(lambda number: workflows[number].run(number), callers, place.scale.seconds, place.own)
