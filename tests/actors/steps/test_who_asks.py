"""Whoever asks for a step ends it: it runs in the task that asked, and in a context of its own."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import ContextVar

import anyio
import pytest

from tests.actors.steps.conftest import Open
from tests.actors.turns.world import World, world
from understudy import Actor, StepTimeout, handler, step
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
async def times_out(timeout: str) -> str:
    """Wait too long, in one of the ways in which that is ended."""
    task = asyncio.current_task()
    assert task is not None
    if timeout == "anyio":
        with anyio.move_on_after(1):
            await anyio.sleep(60)
    elif timeout == "asyncio":
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.sleep(60)
    else:
        asyncio.get_running_loop().call_later(1, task.cancel)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
    return "it took too long"


@step
async def nap() -> str:
    await asyncio.sleep(60)
    world().did.append("nap")
    return "rested"


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
        async with asyncio.timeout(5):
            return [await stubborn()]

    @handler(timeout_s=5)
    async def limited(self) -> list[str]:
        said = [await stubborn()]
        await asyncio.sleep(60)
        return said

    @handler
    async def leave_a_stubborn_branch(self) -> list[str]:
        async def go_on() -> None:
            for _ in range(10):
                with suppress(asyncio.CancelledError):
                    await nap()

        world().seen["branch"] = asyncio.create_task(go_on())
        await asyncio.sleep(1)
        return ["finished"]

    @handler
    async def leave_behind(self) -> list[str]:
        async def go_on() -> None:
            while True:
                await stubborn()

        world().seen["branch"] = asyncio.create_task(go_on())
        await asyncio.sleep(5)
        return ["finished"]

    @handler
    async def use(self, timeout: str) -> list[str]:
        said = [await times_out(timeout) for _ in range(2)]
        task = asyncio.current_task()
        assert task is not None
        return [*said, f"{task.cancelling()} cancellations"]

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


async def test_body_that_swallows_a_timeout_outlasts_it_as_any_coroutine_does(
    open_system: Open, outside: World
) -> None:
    async with open_system(Clerk) as system:
        assert await system.actor(Clerk, "c").hurry() == ["done all the same"]

    assert outside.did == ["stubborn"]


async def test_turn_ends_a_branch_whose_steps_swallow_that(open_system: Open, outside: World) -> None:
    async with open_system(Clerk) as system:
        assert await system.actor(Clerk, "c").leave_behind() == ["finished"]

    assert outside.seen["branch"].cancelled()
    assert outside.did == ["stubborn"]


@pytest.mark.parametrize("timeout", ["asyncio", "anyio", "older libraries"])
async def test_timeout_within_a_body_cancels_nobody_else(open_system: Open, timeout: str) -> None:
    async with open_system(Clerk) as system:
        assert await system.actor(Clerk, "c").use(timeout) == ["it took too long"] * 2 + ["0 cancellations"]


async def test_body_that_cancels_its_own_task_cancels_who_asked_for_it_once(open_system: Open) -> None:
    async with open_system(Clerk) as system:
        assert await system.actor(Clerk, "c").give_up() == ["cancelled"]


async def test_branch_stays_known_to_its_turn_while_a_step_within_its_step_ends(open_system: Open) -> None:
    async with open_system(Clerk) as system:
        assert await system.actor(Clerk, "c").nest() == ["the outer one", "nobody"]


async def test_handler_is_over_when_its_time_is_although_a_step_swallows_that(open_system: Open) -> None:
    async with open_system(Clerk) as system:
        with pytest.raises(StepTimeout, match="timeout_s=5"):
            await system.actor(Clerk, "c").limited()


async def test_branch_that_swallows_its_end_begins_no_further_step(open_system: Open, outside: World) -> None:
    async with open_system(Clerk) as system:
        assert await system.actor(Clerk, "c").leave_a_stubborn_branch() == ["finished"]

        await asyncio.sleep(1_000)
        assert outside.did == []
