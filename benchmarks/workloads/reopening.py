"""Reopening after `kill -9`: actors that had work when the process died, until their turns are on disk."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from benchmarks.actors import Gate, Worker
from benchmarks.case import FLUSHED, OURS, Case, Contender, Place, Sample, Scale, Task
from benchmarks.children.process import first_line, start
from understudy import System

NAME = "reopening"


def cases(scale: Scale) -> Iterator[Case]:
    """One case."""
    yield Case(
        NAME, case_name(scale), {OURS: Contender(measure, FLUSHED)}, Task(name="reopen", count=scale.reopen_actors)
    )


def case_name(scale: Scale) -> str:
    """Name the case, with the number of its actors."""
    return f"{scale.reopen_actors:,} actors with work"


def measure(place: Place) -> list[Sample]:
    """Let a child leave work behind, kill it, open its file."""
    path = place.own / "work.db"
    leave(path, place.scale.reopen_actors)
    samples = asyncio.run(_reopen(path, place.scale.reopen_actors))
    with closing(sqlite3.connect(path)) as connection:
        left = connection.execute(
            "SELECT (SELECT count(*) FROM message), (SELECT count(*) FROM dead_letter)"
        ).fetchone()
    if left != (0, 0):
        raise AssertionError(f"(messages, dead letters) left after everything was answered: {left}")
    return samples


def leave(path: Path, count: int) -> None:
    """Make a file with *count* actors that have one unfinished message each, as a killed process leaves it."""
    with start("leave_work", path, count) as child:
        try:
            first_line(child)
        finally:
            child.kill()


async def _reopen(path: Path, count: int) -> list[Sample]:
    gate = Gate(expected=count)
    began = time.perf_counter()
    async with System(path, [Worker], resources=[gate]) as system:
        opened_s = time.perf_counter() - began
        await gate.first.wait()
        # A query answers when the state that it saw is on disk: the turn has been answered then.
        await system.actor(Worker, "worker-0").done()
        first_s = time.perf_counter() - began
        await gate.all.wait()
        await system.actor(Worker, f"worker-{count - 1}").done()
        all_s = time.perf_counter() - began
    return [Sample("opened", "s", opened_s), Sample("first answered", "s", first_s), Sample("all answered", "s", all_s)]
