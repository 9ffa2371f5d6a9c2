"""Refs are data: kept in state, passed in messages, the same actor after a restart."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from understudy import Actor, InvalidArguments, Job, NoSuchHandler, System, handler

pytestmark = pytest.mark.anyio


class Count(msgspec.Struct):
    value: int = 0


class Counter(Actor[Count], kind="counter"):
    @handler
    async def add(self, number: int = 1) -> int:
        self.state.value += number
        return self.state.value


class Book(msgspec.Struct):
    counters: dict[str, Counter] = {}
    favourite: Counter | None = None
    jobs: list[Job[int]] = []


class Registry(Actor[Book], kind="registry"):
    @handler
    async def put(self, counter: Counter, *, favourite: bool = False) -> Counter:
        self.state.counters[counter.id] = counter
        if favourite:
            self.state.favourite = counter
        return counter

    @handler
    async def add_to_all(self) -> int:
        return sum([await counter.add() for counter in self.state.counters.values()])

    @handler
    async def favourite(self) -> Counter | None:
        return self.state.favourite

    @handler
    async def submit_to(self, counter: Counter) -> Job[int]:
        self.state.jobs.append(await counter.add.submit(10))
        return self.state.jobs[-1]

    @handler
    async def results(self) -> list[int]:
        return [await job for job in self.state.jobs]


def system_at(path: Path) -> System:
    return System(path, [Counter, Registry])


async def test_ref_in_a_message_is_the_same_actor(path: Path) -> None:
    async with system_at(path) as system:
        counter = system.actor(Counter, "a")

        back = await system.actor(Registry, "r").put(counter)

        assert back == counter
        assert hash(back) == hash(counter)
        assert await back.add() == 1
        assert await counter.add() == 2


async def test_refs_and_jobs_in_state_outlive_a_restart(path: Path) -> None:
    async with system_at(path) as system:
        registry = system.actor(Registry, "r")
        for name in "ab":
            await registry.put(system.actor(Counter, name), favourite=name == "b")
        job = await registry.submit_to(system.actor(Counter, "z"))
        assert await job == 10
    async with system_at(path) as system:
        registry = system.actor(Registry, "r")
        assert await registry.add_to_all() == 2
        favourite = await registry.favourite()
        assert favourite == system.actor(Counter, "b")
        assert favourite is not None
        assert await favourite.add() == 2
        assert await registry.results() == [10]


async def test_ref_of_another_class_is_refused(path: Path) -> None:
    async with system_at(path) as system:
        with pytest.raises(InvalidArguments, match="Counter"):
            await system.actor(Registry, "r").put(system.actor(Registry, "x"))  # type: ignore[arg-type]
        assert [row async for row in system.actors()] == []


async def test_address_has_handlers_only(path: Path) -> None:
    async with system_at(path) as system:
        counter = system.actor(Counter, "a")
        with pytest.raises(NoSuchHandler, match="did you mean 'add'"):
            counter.ad  # noqa: B018
        with pytest.raises(NoSuchHandler, match="cannot be reached"):
            counter.state  # noqa: B018
        with pytest.raises(NoSuchHandler, match="cannot be set"):
            counter.state = Count()


class Abacus(Counter, kind="abacus"):
    add_one = Counter.add

    @handler
    async def clear(self) -> None:
        self.state.value = 0


async def test_ref_has_the_handlers_that_its_class_inherits_or_names_again(tmp_path: Path) -> None:
    async with System(tmp_path / "refs.db", [Abacus, Counter]) as system:
        abacus = system.actor(Abacus, "a")

        await abacus.add(2)
        await abacus.add_one(3)

        assert await abacus.add(0) == 5
        await abacus.clear()
        assert await abacus.add(0) == 0
        assert isinstance(abacus, Counter)
        assert abacus == system.workflow("w").actor(Abacus, "a")
        assert abacus != system.actor(Counter, "a")
        with pytest.raises(NoSuchHandler, match="It has: add"):
            getattr(system.actor(Counter, "a"), Abacus.clear.name)
