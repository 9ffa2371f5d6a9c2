"""Suspended actors: listed with what a person needs to mend them, and everybody who waits for one is told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from understudy import Actor, ActorSuspended, Backoff, HandlerFailed, Limits, Policy, System, handler, on, retry
from understudy.supervisor.policy import suspend
from understudy.testing import VirtualTimeLoop

pytestmark = pytest.mark.anyio


class Jammed(Exception):
    pass


class Press(Actor, kind="press"):
    policy = Policy(on(Jammed, suspend()))
    jammed: set[str] = set()
    printed: list[int] = []

    @handler
    async def run(self, page: int, seconds: float = 0.0) -> int:
        await asyncio.sleep(seconds)
        if self.id in Press.jammed:
            raise Jammed(f"paper in {self.id}")
        Press.printed.append(page)
        return page


class Pair(Actor, kind="pair"):
    """Two turns at a time."""

    concurrency = 2
    policy = Policy(on(Jammed, suspend()))

    @handler
    async def run(self, seconds: float, jams: bool) -> str:
        await asyncio.sleep(seconds)
        if jams:
            raise Jammed
        return "done"


class Desk(Actor, kind="desk"):
    policy = Policy(on(ActorSuspended, retry(times=1, backoff=Backoff(100.0, jitter=0.0))))

    @handler
    async def print(self, page: int) -> int:
        return await self.actor(Press, "p").run(page)

    @handler
    async def try_to_print(self, page: int) -> str:
        try:
            return str(await self.actor(Press, "p").run(page))
        except ActorSuspended as error:
            return error.reason

    @handler
    async def print_beside(self) -> str:
        return await self.actor(Pair, "p").run(20, jams=False)


class Failing(Actor, kind="failing"):
    @handler
    async def fail(self, text: str, times: int = 3) -> None:
        raise ValueError(text)


@pytest.fixture(autouse=True)
def _new_day() -> None:
    Press.jammed, Press.printed = set(), []


def system_at(path: Path, *classes: Any, **limits: Any) -> System:
    return System(path, classes or (Press, Desk, Pair, Failing), limits=Limits(**limits))


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_suspended_actors_are_listed_with_reason_mail_and_a_ref_to_resume_them(path: Path) -> None:
    Press.jammed = {"b", "d"}
    async with system_at(path) as system:
        for id in "abcd":
            await system.actor(Press, id).run.tell(1)
        await asyncio.sleep(1)
        await system.actor(Press, "b").run.tell(2)

        held = [each async for each in system.suspended()]
        assert [(each.kind, each.id, each.status, each.waiting) for each in held] == [
            ("press", "b", "suspended", 2),
            ("press", "d", "suspended", 1),
        ]
        assert "paper in b" in held[0].reason
        loop: Any = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        assert held[0].oldest_at == pytest.approx(loop.wall_time(), abs=5)
        Press.jammed = set()
        for each in held:
            assert each.ref is not None
            await system.resume(each.ref)
        assert [each async for each in system.suspended()] == []


async def test_suspended_actors_are_listed_in_another_life_also_without_their_code(path: Path) -> None:
    Press.jammed = {"b"}
    async with system_at(path) as system:
        await system.actor(Press, "b").run.tell(1)
        await asyncio.sleep(1)
    async with system_at(path, Failing) as system:
        (held,) = [each async for each in system.suspended()]
        (known,) = [each async for each in system.actors()]

    assert (held.kind, held.id, held.ref) == ("press", "b", None)
    assert known == held


async def test_hundreds_of_suspended_actors_are_all_listed(path: Path) -> None:
    Press.jammed = {f"p{i}" for i in range(0, 1200, 2)}
    async with system_at(path) as system:
        await asyncio.gather(*(system.actor(Press, f"p{i}").run.tell(i) for i in range(1200)))
        await asyncio.sleep(10)

        assert [each.id async for each in system.suspended()] == [f"p{i}" for i in range(0, 1200, 2)]


async def test_dead_letter_is_readable_without_its_code(path: Path) -> None:
    async with system_at(path) as system:
        with pytest.raises(HandlerFailed):
            await system.actor(Failing, "f").fail("oh no")
    async with system_at(path, Press) as system:
        (letter,) = [each async for each in system.dead_letters()]

    assert (letter.kind, letter.actor, letter.ref) == ("failing", "f", None)
    assert letter.arguments == {"text": "oh no"}


async def test_turn_whose_ask_lies_on_disk_is_told_when_the_actor_is_suspended(path: Path) -> None:
    async with system_at(path, window_messages=2) as system:
        press = system.actor(Press, "p")
        await press.run.tell(0, seconds=10)
        for page in range(1, 6):
            await press.run.tell(page)
        asking = asyncio.ensure_future(system.actor(Desk, "d").try_to_print(6))
        await asyncio.sleep(5)
        activation = system.population.by_no(1)
        assert activation is not None
        assert activation.tail  # The ask is one of those that lie on disk only.
        Press.jammed = {"p"}
        since = now()

        assert "paper in p" in await asking
        assert now() - since < 10


async def test_retried_turn_gets_the_answer_of_the_ask_that_waited_on_disk(path: Path) -> None:
    async with system_at(path, window_messages=2) as system:
        press = system.actor(Press, "p")
        await press.run.tell(0, seconds=10)
        for page in range(1, 6):
            await press.run.tell(page)
        asking = asyncio.ensure_future(system.actor(Desk, "d").print(6))
        await asyncio.sleep(5)
        Press.jammed = {"p"}
        await asyncio.sleep(30)
        Press.jammed = set()
        await system.resume(press)

        assert await asking == 6
        assert Press.printed == [0, 1, 2, 3, 4, 5, 6]


async def test_turn_that_runs_beside_the_one_that_failed_still_answers(path: Path) -> None:
    async with system_at(path) as system:
        since = now()
        asking = asyncio.ensure_future(system.actor(Desk, "d").print_beside())
        await asyncio.sleep(5)

        await system.actor(Pair, "p").run.tell(5, jams=True)

        assert await asking == "done"
        assert now() - since >= 20


async def test_waiters_for_jobs_of_a_suspended_actor_are_told_and_others_wait_on(path: Path) -> None:
    async with system_at(path) as system:
        jobs = [await system.actor(Press, id).run.submit(1, seconds=10) for id in "aab"]
        waiting = [asyncio.ensure_future(job.result()) for job in jobs]
        await asyncio.sleep(5)
        Press.jammed = {"a"}

        results = await asyncio.gather(*waiting, return_exceptions=True)

        assert [type(each) for each in results] == [ActorSuspended, ActorSuspended, int]
        assert len(system.jobs._waiters) == 0


async def test_caller_of_a_delayed_ask_is_told_when_it_is_due_at_a_suspended_actor(path: Path) -> None:
    async with system_at(path) as system:
        press = system.actor(Press, "p")
        asking = asyncio.ensure_future(press.run.options(delay_s=20)(1))
        await asyncio.sleep(1)
        Press.jammed = {"p"}
        await press.run.tell(0)

        with pytest.raises(ActorSuspended, match="paper in p"):
            await asking

        Press.jammed = set()
        await system.resume(press)
        await asyncio.sleep(1)
        assert Press.printed == [0, 1]
