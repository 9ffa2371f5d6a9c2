"""Whoever asks for a step ends it: it runs in the task that asked, and in a context of its own."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from tests.actors.steps.conftest import Open
from tests.actors.turns.world import World, world
from understudy import Actor, handler, step
from understudy.actors.asking import open_branch

pytestmark = pytest.mark.anyio

user: ContextVar[str] = ContextVar("user", default="nobody")


@step
async def sign_in(name: str) -> str:
    user.set(name)
    await asyncio.sleep(0)
    return user.get()


@step
async def stubborn() -> str:
    """Do its work whatever happens."""
    world().did.append("stubborn")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(1)
    return "done all the same"


@step
async def give_up() -> str:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return "given up"


class Clerk(Actor, kind="clerk"):
    @handler
    async def serve(self) -> list[str]:
        user.set("the handler")
        return [await sign_in("the step"), user.get()]

    @handler
    async def hurry(self) -> list[str]:
        try:
            async with asyncio.timeout(5):
                return [await stubborn()]
        except TimeoutError:
            world().did.append("too late")
            raise

    @handler
    async def race(self) -> list[str]:
        async with asyncio.TaskGroup() as group:
            slow = group.create_task(stubborn())
            await asyncio.sleep(5)
            slow.cancel()
        return [str(slow.cancelled())]

    @handler
    async def give_up(self) -> list[str]:
        try:
            return [await give_up()]
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # Nothing of it is left over.
            return ["cancelled"]

    @handler
    async def nest(self) -> list[str]:
        async def branch() -> list[str]:
            waiting: list[str] = []
            with open_branch(self.turn):
                with open_branch(self.turn):
                    pass
                waiting += ["the outer one" for task in self.turn.open or () if task is asyncio.current_task()]
            return waiting + ["nobody" for _ in range(not self.turn.open)]

        return await asyncio.create_task(branch())


async def test_what_a_body_sets_in_its_context_its_handler_does_not_see(open_system: Open) -> None:
    async with open_system(Clerk) as system:
        assert await system.actor(Clerk, "c").serve() == ["the step", "the handler"]


async def test_body_that_swallows_a_timeout_keeps_its_outcome_and_not_its_caller(
    open_system: Open, outside: World
) -> None:
    async with open_system(Clerk) as system:
        said = await system.actor(Clerk, "c").hurry()

    # The first attempt was too late and failed; the second one found the outcome in the journal.
    assert said == ["done all the same"]
    assert outside.did == ["stubborn", "too late"]


async def test_branch_is_cancelled_although_its_step_swallows_that(open_system: Open) -> None:
    async with open_system(Clerk) as system:
        assert await system.actor(Clerk, "c").race() == ["True"]


async def test_body_that_cancels_its_own_task_cancels_who_asked_for_it_once(open_system: Open) -> None:
    async with open_system(Clerk) as system:
        assert await system.actor(Clerk, "c").give_up() == ["cancelled"]


async def test_branch_stays_known_to_its_turn_while_a_step_within_its_step_ends(open_system: Open) -> None:
    async with open_system(Clerk) as system:
        assert await system.actor(Clerk, "c").nest() == ["the outer one", "nobody"]
