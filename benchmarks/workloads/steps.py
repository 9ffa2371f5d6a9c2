"""Steps: workflows of five, each step journaled before the next one begins."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator
from functools import partial

from benchmarks.actors import STEPS, Workflow
from benchmarks.case import OURS, Case, Measure, Place, Sample, Scale
from benchmarks.floors import group_commits
from benchmarks.load import per_second, times_alone
from understudy import System

NAME = "steps"
CALLERS = 64


def cases(_scale: Scale) -> Iterator[Case]:
    """Many workflows side by side, and one alone."""
    contenders: dict[str, Measure] = {
        OURS: _measure_many,
        group_commits.NAME: partial(group_commits.measure, callers=CALLERS),
    }
    yield Case(NAME, f"{CALLERS} workflows", contenders)
    yield Case(NAME, "1 workflow", {OURS: _measure_alone, group_commits.NAME: _measure_floor_alone})


def _measure_many(place: Place) -> list[Sample]:
    return asyncio.run(_many(place))


async def _many(place: Place) -> list[Sample]:
    async with System(place.own / "steps.db", [Workflow]) as system:
        workflows = [system.actor(Workflow, f"workflow-{number}") for number in range(CALLERS)]
        rate = await per_second(lambda number: workflows[number].run(number), CALLERS, place.scale.seconds)
    return [Sample("rate", "/s", rate * STEPS)]


def _measure_alone(place: Place) -> list[Sample]:
    return asyncio.run(_alone(place))


async def _alone(place: Place) -> list[Sample]:
    async with System(place.own / "steps.db", [Workflow]) as system:
        workflow = system.actor(Workflow, "workflow")
        times = await times_alone(workflow.run, place.scale.seconds)
    return [Sample(f"p50 of {STEPS} steps", "µs", statistics.median(times))]


def _measure_floor_alone(place: Place) -> list[Sample]:
    return asyncio.run(_floor_alone(place))


async def _floor_alone(place: Place) -> list[Sample]:
    writer = group_commits.GroupWriter(place.own / "group.db")

    async def run(_number: int) -> None:
        for _ in range(STEPS):
            await writer.write("workflow")

    try:
        times = await times_alone(run, place.scale.seconds)
    finally:
        writer.close()
    return [Sample(f"p50 of {STEPS} steps", "µs", statistics.median(times))]
