"""Asks that would wait for themselves, or for each other, are refused at once; all others are not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from understudy import Actor, CallCycle, Deadlock, System, handler, step

pytestmark = pytest.mark.anyio


class Node(Actor, kind="node"):
    @handler
    async def go(self, path: list[str]) -> list[str]:
        if not path:
            return [self.id]
        return [self.id, *await self.actor(Node, path[0]).go(path[1:])]

    @handler
    async def go_later(self, after_s: float, to: str) -> str:
        await pause(after_s)
        try:
            await self.actor(Node, to).wait(50)
        except Deadlock:
            return "refused"
        return "answered"

    @handler
    async def wait(self, seconds: float) -> str:
        await pause(seconds)
        return self.id

    @handler
    async def cross(self, after_s: float, to: str) -> str:
        await pause(after_s)
        try:
            return await self.actor(Node, to).wait(0)
        except Deadlock:
            return "refused"

    @handler
    async def ask_itself(self) -> None:
        await self.actor(Node, self.id).wait(0)

    @handler
    async def await_own_job(self) -> None:
        await (await self.actor(Node, self.id).wait.submit(0))

    @handler
    async def tell_itself(self) -> None:
        await self.actor(Node, self.id).wait.tell(0)

    @handler
    async def fan_out(self, to: list[str]) -> list[str]:
        return await asyncio.gather(*(self.actor(Node, each).wait(1) for each in to))

    @handler
    async def ask_door(self, seconds: float) -> str:
        return await self.actor(Door, "d").ask_back(seconds, self.id)

    @handler
    async def ask_door_wait(self, seconds: float) -> str:
        await pause(1)
        try:
            return await self.actor(Door, "d").hold(seconds)
        except Deadlock:
            return "refused"


class Door(Actor, kind="door"):
    """Two turns at a time."""

    concurrency = 2

    @handler
    async def hold(self, seconds: float) -> str:
        await pause(seconds)
        return "held"

    @handler
    async def ask_back(self, seconds: float, id: str) -> str:
        await pause(seconds)
        return "back"

    @handler
    async def ask_node(self, id: str) -> str:
        return await self.actor(Node, id).wait(0)


@step
async def pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


@pytest.fixture
async def system(path: Path) -> System:
    return System(path, [Node, Door])


async def test_chain_of_asks_is_no_cycle(system: System) -> None:
    async with system:
        assert await system.actor(Node, "a").go(["b", "c", "d"]) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("chain", [["a"], ["b", "a"], ["b", "c", "a"], ["b", "c", "b"], list("bcdefgha")])
async def test_ask_that_would_wait_for_itself_is_refused_at_once(system: System, chain: list[str]) -> None:
    async with system:
        start = asyncio.get_running_loop().time()
        with pytest.raises(CallCycle, match="wait for itself"):
            await system.actor(Node, "a").go(chain)

        assert asyncio.get_running_loop().time() - start < 1
        assert await system.actor(Node, "a").go([]) == ["a"]


async def test_actor_that_asks_itself_is_told_what_to_do_instead(system: System) -> None:
    async with system:
        with pytest.raises(CallCycle, match=r"Use \.tell"):
            await system.actor(Node, "a").ask_itself()
        await system.actor(Node, "a").tell_itself()


async def test_turn_that_awaits_a_job_of_its_own_actor_is_refused(system: System) -> None:
    async with system:
        with pytest.raises(CallCycle, match="job"):
            await system.actor(Node, "a").await_own_job()


async def test_two_actors_that_ask_each_other_are_refused_once_and_go_on(system: System) -> None:
    async with system:
        first = asyncio.ensure_future(system.actor(Node, "a").cross(1, "b"))
        second = asyncio.ensure_future(system.actor(Node, "b").cross(1, "a"))

        assert sorted(await asyncio.gather(first, second)) == sorted(["refused", "b"]) or sorted(
            [await first, await second]
        ) == sorted(["refused", "a"])


async def test_circle_of_five_is_refused_once(system: System) -> None:
    async with system:
        names = "abcde"
        replies = await asyncio.gather(
            *(system.actor(Node, name).cross(1, names[(i + 1) % 5]) for i, name in enumerate(names))
        )

        assert sorted(replies).count("refused") == 1


async def test_two_that_ask_the_same_third_are_no_circle(system: System) -> None:
    async with system:
        replies = await asyncio.gather(*(system.actor(Node, name).cross(1, "z") for name in "abcdef"))

        assert replies == ["z"] * 6


async def test_parallel_asks_are_no_circle(system: System) -> None:
    async with system:
        assert await system.actor(Node, "a").fan_out(list("bcdefg")) == list("bcdefg")


async def test_actor_with_a_slot_that_does_not_wait_closes_no_circle(path: Path) -> None:
    async with System(path, [Node, Door]) as system:
        door = system.actor(Door, "d")
        free = asyncio.ensure_future(door.hold(5))  # this slot waits for nobody and will be free
        asker = asyncio.ensure_future(system.actor(Node, "n").ask_door_wait(1))
        await asyncio.sleep(0.5)
        waiting = asyncio.ensure_future(door.ask_node("n"))  # and this one waits for the node

        assert await asyncio.gather(free, asker, waiting) == ["held", "held", "n"]


async def test_circle_closes_when_every_slot_waits(path: Path) -> None:
    async with System(path, [Node, Door]) as system:
        asker = asyncio.ensure_future(system.actor(Node, "n").ask_door_wait(1))
        await asyncio.sleep(0.5)
        door = system.actor(Door, "d")
        waiting = [asyncio.ensure_future(door.ask_node("n")) for _ in range(2)]

        assert await asyncio.gather(asker, *waiting) == ["refused", "n", "n"]
