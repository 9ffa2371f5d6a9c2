"""An expired message never starts; one whose deadline passes while it runs is ended, today or after a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from understudy import Actor, DeadlineExceeded, InvalidArguments, Limits, System, handler

pytestmark = pytest.mark.anyio


class Log(msgspec.Struct):
    done: list[str] = []


class Worker(Actor[Log], kind="worker"):
    @handler
    async def work(self, what: str, takes_s: float = 0.0) -> str:
        await asyncio.sleep(takes_s)
        self.state.done.append(what)
        return what

    @handler
    async def done(self) -> list[str]:
        return self.state.done


class Boss(Actor, kind="boss"):
    @handler
    async def delegate(self, deadline_s: float) -> str:
        try:
            return await self.actor(Worker, "w").work.options(deadline_s=deadline_s)("slow", 100)
        except DeadlineExceeded:
            return "too late"


def system_at(path: Path, limits: Limits | None = None) -> System:
    return System(path, [Worker, Boss], limits=limits)


async def test_message_in_time_is_answered(path: Path) -> None:
    async with system_at(path) as system:
        assert await system.actor(Worker, "w").work.options(deadline_s=10)("a", 9) == "a"


async def test_turn_that_runs_past_its_deadline_is_ended_and_leaves_nothing(path: Path) -> None:
    async with system_at(path) as system:
        start = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded):
            await system.actor(Worker, "w").work.options(deadline_s=10)("a", 100)

        assert asyncio.get_running_loop().time() - start == pytest.approx(10, abs=0.5)
        assert await system.actor(Worker, "w").done() == []


async def test_queued_message_expires_in_time_and_never_starts(path: Path) -> None:
    async with system_at(path) as system:
        work = system.actor(Worker, "w").work
        slow = asyncio.ensure_future(work("slow", 100))
        await asyncio.sleep(1)
        start = asyncio.get_running_loop().time()

        with pytest.raises(DeadlineExceeded):
            await work.options(deadline_s=10)("late")

        assert asyncio.get_running_loop().time() - start == pytest.approx(10, abs=0.5)
        await slow
        assert await system.actor(Worker, "w").done() == ["slow"]


async def test_message_that_waits_on_disk_expires_in_time(path: Path) -> None:
    async with system_at(path, Limits(window_messages=2)) as system:
        work = system.actor(Worker, "w").work
        slow = [asyncio.ensure_future(work(f"slow {i}", 100)) for i in range(5)]
        await asyncio.sleep(1)
        start = asyncio.get_running_loop().time()

        with pytest.raises(DeadlineExceeded):
            await work.options(deadline_s=10)("late")

        assert asyncio.get_running_loop().time() - start == pytest.approx(10, abs=0.5)
        await asyncio.gather(*slow)
        assert await system.actor(Worker, "w").done() == [f"slow {i}" for i in range(5)]


async def test_delayed_message_expires_before_it_is_due(path: Path) -> None:
    async with system_at(path, Limits(idle_s=2.0)) as system:
        job = await system.actor(Worker, "w").work.options(delay_s=100, deadline_s=10).submit("late")
        start = asyncio.get_running_loop().time()

        with pytest.raises(DeadlineExceeded):
            await job

        assert asyncio.get_running_loop().time() - start == pytest.approx(10, abs=0.5)
        await asyncio.sleep(200)
        assert await system.actor(Worker, "w").done() == []
        (row,) = [row async for row in system.actors(Worker)]
        assert row.waiting == 0


async def test_deadline_is_absolute_and_outlives_a_restart(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Worker, "w").work.options(delay_s=5, deadline_s=100).submit("a", 1000)
    await asyncio.sleep(50)
    async with system_at(path) as system:
        start = asyncio.get_running_loop().time()

        with pytest.raises(DeadlineExceeded):
            await system.job(job.id)

        assert asyncio.get_running_loop().time() - start == pytest.approx(50, abs=1)


async def test_message_that_expired_during_an_outage_never_starts(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Worker, "w").work.options(delay_s=5, deadline_s=10).submit("a")
    await asyncio.sleep(50)
    async with system_at(path) as system:
        with pytest.raises(DeadlineExceeded):
            await system.job(job.id)
        assert await system.actor(Worker, "w").done() == []


async def test_asking_turn_gets_the_expiry_as_an_error(path: Path) -> None:
    async with system_at(path) as system:
        assert await system.actor(Boss, "b").delegate(10) == "too late"


@pytest.mark.parametrize("deadline_s", [0.0, -1.0, float("nan")])
async def test_deadline_that_is_no_time_is_refused(path: Path, deadline_s: float) -> None:
    async with system_at(path) as system:
        with pytest.raises(InvalidArguments, match="deadline_s"):
            system.actor(Worker, "w").work.options(deadline_s=deadline_s)
