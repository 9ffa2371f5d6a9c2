"""Reopening after `kill -9`: how soon a system answers that finds work, very much work, or very many timers."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks.actors import Counter, Gate, Worker
from benchmarks.case import FLUSHED, OURS, Case, Contender, Place, Sample, Scale, Task
from benchmarks.children.process import first_line, start
from benchmarks.stored_rows import copied
from benchmarks.stored_work import pending_file, timers_file, worker_id
from understudy import System

NAME = "reopening"
OPENED, FRESH, FIRST, ALL = "opened", "a new ask answered", "first answered", "all answered"


def cases(scale: Scale) -> Iterator[Case]:
    """Work that is done to its end; more than one waits for; timers, some of which are due."""
    yield Case(
        NAME, case_name(scale), {OURS: Contender(measure, FLUSHED)}, Task(name="reopen", count=scale.reopen_actors)
    )
    for actors in pending_actors(scale):
        contender = Contender(partial(_measure_pending, actors=actors), FLUSHED)
        yield Case(NAME, pending_name(scale.pending_messages, actors), {OURS: contender})
    yield Case(NAME, timers_name(scale), {OURS: Contender(_measure_timers, FLUSHED)})


def case_name(scale: Scale) -> str:
    """Name the case, with the number of its actors."""
    return f"{scale.reopen_actors:,} actors with work"


def pending_name(messages: int, actors: int) -> str:
    """Name the case of so many messages that wait."""
    return f"{messages:,} messages for {actors:,} actors"


def timers_name(scale: Scale) -> str:
    """Name the case of timers."""
    return f"{scale.timers:,} timers, a tenth of them due"


def pending_actors(scale: Scale) -> tuple[int, int]:
    """Return how many actors share the messages that wait: few with long mailboxes, and one for each."""
    return max(1, scale.pending_messages // 100), scale.pending_messages


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
    return [Sample(OPENED, "s", opened_s), Sample(FIRST, "s", first_s), Sample(ALL, "s", all_s)]


def _measure_pending(place: Place, actors: int) -> list[Sample]:
    """Open a file with more work than anybody waits for, ask somebody new, and see the first of the work done."""
    path = pending_file(place.shared, actors=actors, messages=place.scale.pending_messages)
    return asyncio.run(_open_pending(copied(path, place.own)))


async def _open_pending(path: Path) -> list[Sample]:
    gate = Gate(expected=1 << 60)
    began = time.perf_counter()
    async with System(path, [Worker, Counter], resources=[gate]) as system:
        opened_s = time.perf_counter() - began
        await system.actor(Counter, "new").add(1)
        fresh_s = time.perf_counter() - began
        await gate.first.wait()
        await system.actor(Worker, worker_id(0)).done()
        first_s = time.perf_counter() - began
    return [Sample(OPENED, "s", opened_s), Sample(FRESH, "s", fresh_s), Sample(FIRST, "s", first_s)]


def _measure_timers(place: Place) -> list[Sample]:
    """Open a file with many timers, and see those fire that are due."""
    due = max(1, place.scale.timers // 10)
    path = timers_file(place.shared, far=place.scale.timers - due, due=due)
    return asyncio.run(_open_timers(copied(path, place.own), due))


async def _open_timers(path: Path, due: int) -> list[Sample]:
    gate = Gate(expected=due)
    began = time.perf_counter()
    async with System(path, [Worker], resources=[gate]) as system:
        opened_s = time.perf_counter() - began
        await gate.first.wait()
        first_s = time.perf_counter() - began
        await gate.all.wait()
        await system.committer.wait_durable()
        all_s = time.perf_counter() - began
    return [Sample(OPENED, "s", opened_s), Sample("first fired", "s", first_s), Sample("all fired", "s", all_s)]
