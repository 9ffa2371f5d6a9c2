"""Actors come and go in memory; nothing is lost by it, and nobody outside notices."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from understudy import Actor, Limits, System, handler, query
from understudy.testing import FaultyStore

pytestmark = pytest.mark.anyio


class Count(msgspec.Struct):
    value: int = 0


class Counter(Actor[Count], kind="counter"):
    @handler
    async def add(self, number: int) -> int:
        self.state.value += number
        return self.state.value

    @handler
    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @query
    async def value(self) -> int:
        return self.state.value


class Sum(Actor[Count, int], kind="sum"):
    snapshot_every = 10

    def apply(self, event: int) -> None:
        self.state.value += event

    @handler
    async def add(self, number: int) -> int:
        self.record(number)
        return self.state.value


def system_at(path: Path, **limits: float) -> System:
    return System(path, [Counter, Sum], limits=Limits(**limits))  # type: ignore[arg-type]


def in_memory(system: System) -> set[str]:
    return {f"{type.kind}/{id}" for type in system.registry.types.values() for id in type.live}


async def test_idle_actor_leaves_memory_and_comes_back_with_its_state(path: Path) -> None:
    async with system_at(path, idle_s=60) as system:
        await system.actor(Counter, "a").add(5)
        await asyncio.sleep(50)
        assert in_memory(system) == {"counter/a"}
        await asyncio.sleep(60)
        assert in_memory(system) == set()

        assert await system.actor(Counter, "a").add(1) == 6


@pytest.mark.parametrize("cls", [Counter, Sum])
async def test_actor_that_leaves_between_all_its_messages_loses_nothing(path: Path, cls: type[Counter]) -> None:
    async with system_at(path, idle_s=2) as system:
        for number in range(25):
            await system.actor(cls, "a").add(number)
            await asyncio.sleep(10)
            assert in_memory(system) == set()

        assert await system.actor(cls, "a").add(0) == sum(range(25))


async def test_busy_actor_stays_however_long_its_turn_takes(path: Path) -> None:
    async with system_at(path, idle_s=5) as system:
        waiting = asyncio.ensure_future(system.actor(Counter, "a").wait(1000))
        await asyncio.sleep(500)

        assert in_memory(system) == {"counter/a"}
        await waiting


async def test_more_actors_than_memory_may_hold_take_turns(path: Path) -> None:
    async with system_at(path, active_max=20) as system:
        for round_ in range(3):
            replies = await asyncio.gather(*(system.actor(Counter, f"c{i}").add(1) for i in range(300)))
            assert set(replies) == {round_ + 1}
        await system.actor(Counter, "one more").add(1)

        assert len(in_memory(system)) <= 21
        assert [await system.actor(Counter, f"c{i}").value() for i in range(300)] == [3] * 300


async def test_used_actors_stay_and_unused_ones_go(path: Path) -> None:
    async with system_at(path, active_max=10) as system:
        for i in range(40):
            await system.actor(Counter, "hot").add(1)
            await system.actor(Counter, f"cold {i}").add(1)

        assert "counter/hot" in in_memory(system)


async def test_recovery_brings_back_every_actor_with_work_however_few_fit_into_memory(path: Path) -> None:
    async with system_at(path, grace_s=0.1) as system:
        for i in range(120):
            await system.actor(Counter, f"c{i}").wait.tell(5)
            await system.actor(Counter, f"c{i}").add.tell(i)
    async with system_at(path, recoveries_max=7, active_max=10) as system:
        await asyncio.sleep(1000)
        assert sum([row.waiting async for row in system.actors()]) == 0
        assert [await system.actor(Counter, f"c{i}").value() for i in range(120)] == list(range(120))


async def test_actor_without_work_is_not_brought_back(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Counter, "idle").add(1)
        await system.actor(Counter, "timer").add.options(delay_s=1000).tell(1)
    async with system_at(path) as system:
        await asyncio.sleep(10)

        assert in_memory(system) == set()


async def test_actors_have_numbers_in_order_of_creation_that_are_never_given_again(path: Path) -> None:
    async with system_at(path) as system:
        for name in "cab":
            await system.actor(Counter, name).add(1)
        await system.erase(system.actor(Counter, "b"))
    async with system_at(path) as system:
        await system.actor(Counter, "b").add(1)
        await system.actor(Sum, "b").add(1)

        rows = [(row.no, row.kind, row.id) for row in await system.store.actors(None, 0, 9)]

        assert rows == [(1, "counter", "c"), (2, "counter", "a"), (4, "counter", "b"), (5, "sum", "b")]
        assert [row.id async for row in system.actors(Sum)] == ["b"]


async def test_burst_of_new_actors_is_numbered_without_gaps(path: Path) -> None:
    async with system_at(path) as system:
        await asyncio.gather(*(system.actor(Counter, f"c{i}").add(1) for i in range(500)))

        assert [row.no for row in await system.store.actors(None, 0, 999)] == list(range(1, 501))


async def test_fresh_actors_have_ids_of_their_own(path: Path) -> None:
    async with system_at(path) as system:
        ids = {system.actor(Counter).id for _ in range(1000)}

        assert len(ids) == 1000


async def test_actor_whose_last_turn_is_not_on_disk_does_not_leave_memory(path: Path) -> None:
    store = FaultyStore(path)
    async with System(store, [Counter], limits=Limits(active_max=3)) as system:
        await asyncio.sleep(1)
        store.hold()
        adding = asyncio.ensure_future(system.actor(Counter, "a").add(5))
        await store.wait_held()
        asking = [asyncio.ensure_future(system.actor(Counter, f"c{i}").value()) for i in range(20)]
        again = asyncio.ensure_future(system.actor(Counter, "a").add(1))
        await asyncio.sleep(1)

        assert "counter/a" in in_memory(system)
        store.release()
        assert [await adding, await again] == [5, 6]
        await asyncio.gather(*asking)
