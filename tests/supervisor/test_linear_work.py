"""Work grows with the number of children, and not faster; counted, not timed.

What is counted is calls of functions and reads of the store: the same on every machine.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

from understudy import Actor, Child, Limits, Policy, Supervisor, System, handler, on
from understudy.mailbox.store import Loaded
from understudy.supervisor.policy import suspend
from understudy.testing import InlineSQLiteStore, VirtualTimeLoop

pytestmark = pytest.mark.anyio

FEW, MANY = 300, 3_000


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Broken(Exception):
    pass


class Plain(Actor[int], kind="plain"):
    policy = Policy(on(Broken, suspend()))

    @handler
    async def fail(self) -> None:
        raise ValueError("dead letter")

    @handler
    async def hold(self) -> None:
        raise Broken("suspended")

    @handler
    async def end(self) -> None:
        self.stop("broken")

    @handler
    async def work(self) -> int:
        return 1


class Hooked(Plain, kind="hooked"):
    async def on_start(self) -> None:
        pass

    async def on_stop(self) -> None:
        pass


class CountingStore(InlineSQLiteStore):
    reads = 0

    async def load(self, wanted: Sequence[tuple[str, str] | int], window: int) -> list[Loaded | None]:
        self.reads += 1
        return await super().load(wanted, window)


class Calls:
    """Counts calls of functions, written in Python or in C, while it is entered."""

    count = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        sys.setprofile(None)

    def _note(self, _frame: FrameType, event: str, _argument: object) -> None:
        if event in {"call", "c_call"}:
            self.count += 1


def counting(path: Path) -> CountingStore:
    return CountingStore(path, durability="process")


async def start_and_stop(path: Path, cls: type[Plain], count: int) -> tuple[int, int, int]:
    """Return calls for starting, calls for stopping, and reads of the store."""
    store = counting(path)
    system = System(store, [Child(cls, f"child-{number}") for number in range(count)])
    with Calls() as starting:
        await system.__aenter__()
    with Calls() as stopping:
        await system.__aexit__(None, None, None)
    return starting.count, stopping.count, store.reads


@pytest.mark.parametrize("cls", [Plain, Hooked])
async def test_starting_and_stopping_ten_times_the_children_is_ten_times_the_work(
    cls: type[Plain], tmp_path: Path
) -> None:
    few = await start_and_stop(tmp_path / "few.db", cls, FEW)
    many = await start_and_stop(tmp_path / "many.db", cls, MANY)

    for before, after in zip(few[:2], many[:2], strict=True):
        assert after < 10.5 * before
    assert many[2] <= MANY // 512 + 2


async def calls_of_failures(path: Path, count: int) -> list[int]:
    """Return the calls for a dead letter, a suspension, and another actor that comes to life, among so many actors."""
    async with System(counting(path), [Plain], limits=Limits(active_max=10 * count)) as system:
        await asyncio.gather(*(system.actor(Plain, f"actor-{number}").work() for number in range(count)))
        found: list[int] = []
        victim = system.actor(Plain, "victim")
        await asyncio.sleep(1.0)  # All of that is on disk.
        for each in (victim.work, victim.fail, victim.hold):
            with Calls() as calls:
                await each.tell()
                await asyncio.sleep(0.1)
            found.append(calls.count)
        return found


async def test_a_failure_among_many_actors_on_demand_is_as_much_work_as_among_few(tmp_path: Path) -> None:
    few = await calls_of_failures(tmp_path / "few.db", FEW)
    many = await calls_of_failures(tmp_path / "many.db", MANY)

    for before, after in zip(few, many, strict=True):
        assert after < 1.2 * before + 20


async def calls_of_a_restart(path: Path, count: int) -> int:
    children = [Child(Plain, f"child-{number}") for number in range(count)]
    async with System(counting(path), [Supervisor("many", children)]) as system:
        middle = system.actor(Plain, f"child-{count // 2}")
        await middle.work()
        await asyncio.sleep(1.0)
        with Calls() as calls:
            await middle.end.tell()
            await asyncio.sleep(0.1)
        assert await middle.work() == 1
    return calls.count


async def test_a_restart_among_many_children_is_as_much_work_as_among_few(tmp_path: Path) -> None:
    few = await calls_of_a_restart(tmp_path / "few.db", FEW)
    many = await calls_of_a_restart(tmp_path / "many.db", MANY)

    assert many < 1.2 * few + 20


async def calls_of_an_actor_on_demand(path: Path, count: int) -> int:
    """Return the calls for one actor that comes to life, while more static children are pinned than may be in memory."""
    children: list[Any] = [Child(Hooked, f"child-{number}") for number in range(count)]
    async with System(counting(path), [*children, Plain], limits=Limits(active_max=count // 3)) as system:
        await system.actor(Plain, "warm").work()
        await asyncio.sleep(1.0)
        with Calls() as calls:
            await system.actor(Plain, "other").work()
    return calls.count


async def test_an_actor_comes_to_life_beside_many_static_children_as_beside_few(tmp_path: Path) -> None:
    few = await calls_of_an_actor_on_demand(tmp_path / "few.db", FEW)
    many = await calls_of_an_actor_on_demand(tmp_path / "many.db", MANY)

    assert many < 1.2 * few + 20


async def test_static_children_leave_actors_on_demand_their_place_in_memory(tmp_path: Path) -> None:
    children: list[Any] = [Child(Hooked, f"child-{number}") for number in range(40)]

    async with System(counting(tmp_path / "a.db"), [*children, Plain], limits=Limits(active_max=20)) as system:
        for number in range(10):
            await system.actor(Plain, str(number)).work()
        await system.committer.wait_durable()

        assert len(system.registry.types["plain"].live) == 10
