"""Orders beside running work: an object is never replaced while a turn runs, and nothing is left half done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from understudy import (
    Actor,
    ActorStopped,
    ActorSuspended,
    Child,
    InvalidArguments,
    NotFound,
    Policy,
    StartFailed,
    Supervisor,
    System,
    SystemFailed,
    escalate,
    handler,
    on,
    suspend,
)
from understudy.testing import VirtualTimeLoop


@pytest.fixture(params=[pytest.param(("asyncio", {"loop_factory": VirtualTimeLoop}), id="virtual")])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


pytestmark = pytest.mark.anyio


class Sum(msgspec.Struct):
    total: int = 0


class Fatal(Exception):
    """Escalates."""


class Hold(Exception):
    """Suspends."""


class Adder(Actor[Sum], kind="adder"):
    policy = Policy(on(Hold, suspend()), on(Fatal, escalate()))
    fails = False
    holds = False

    async def on_start(self) -> None:
        if type(self).fails:
            raise OSError("not now")

    @handler
    async def add(self, number: int, delay_s: float = 0.0) -> int:
        if number == -1 and type(self).holds:
            raise Hold
        if number == -2:
            raise Fatal
        number = max(0, number)
        await asyncio.sleep(delay_s)
        self.state.total += number
        return self.state.total


class Slow(Actor, kind="slow"):
    async def on_start(self) -> None:
        await asyncio.sleep(5.0)


class Releasing(Actor, kind="releasing"):
    lines: ClassVar[list[str]] = []

    async def on_start(self) -> None:
        self.lines.append("start")

    async def on_stop(self) -> None:
        self.lines.append("stop")

    @handler
    async def work(self) -> None:
        pass


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    Adder.fails = False
    children = [Supervisor("s", [Child(Adder, "static")]), Adder, Slow, Releasing]
    async with System(tmp_path / "races.db", children) as opened:
        yield opened


async def held(system: System, id: str) -> Adder:
    adder = system.actor(Adder, id)
    Adder.holds = True
    with pytest.raises(ActorSuspended):
        await adder.add(-1)
    Adder.holds = False
    return adder


async def test_second_resume_disturbs_no_turn_of_the_actor_that_the_first_has_started(system: System) -> None:
    adder = await held(system, "static")
    supervisor = system.supervisor("s")
    starting = asyncio.create_task(supervisor.start_child(Child(Slow, "busy")))
    await asyncio.sleep(0.1)
    first, second = (asyncio.create_task(system.resume(adder)) for _ in range(2))
    await asyncio.sleep(0.1)
    await asyncio.gather(starting, first)
    adding = asyncio.create_task(adder.add(100, 10.0))
    await second
    await adding

    assert await adder.add(1) == 101


async def test_actor_on_demand_that_becomes_a_static_child_loses_no_update(system: System) -> None:
    adder = system.actor(Adder, "x")
    running = asyncio.create_task(adder.add(100, 1.0))
    await asyncio.sleep(0.5)

    await system.supervisor("s").start_child(Child(Adder, "x"))

    await running
    assert await adder.add(1) == 101


async def test_object_of_an_actor_on_demand_is_released_before_it_becomes_a_static_child(system: System) -> None:
    Releasing.lines.clear()
    await system.actor(Releasing, "r").work()

    await system.supervisor("s").start_child(Child(Releasing, "r"))

    assert Releasing.lines == ["start", "stop", "start"]


async def test_terminate_child_is_carried_out_although_its_caller_is_cancelled(system: System) -> None:
    adder = system.actor(Adder, "y")
    waiting = asyncio.create_task(adder.add(1, 3.0))
    await asyncio.sleep(0.1)
    order = asyncio.create_task(system.supervisor().terminate_child(adder))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    order.cancel()
    await asyncio.sleep(1.0)

    assert [info.id async for info in system.actors() if info.status == "stopped"] == ["y"]
    with pytest.raises(ActorStopped):
        await waiting
    await system.supervisor().restart_child(adder)
    assert await adder.add(0) == 1  # Its message was kept.


async def test_resume_that_fails_leaves_the_actor_suspended(system: System) -> None:
    adder = await held(system, "static")
    Adder.fails = True
    with pytest.raises(StartFailed, match="not now"):
        await system.resume(adder)

    assert [info.id async for info in system.suspended()] == ["static"]
    Adder.fails = False


async def test_held_static_child_cannot_be_erased(system: System) -> None:
    adder = await held(system, "static")
    with pytest.raises(InvalidArguments):
        await system.erase(adder)


async def test_children_of_a_supervisor_that_was_deleted_leave_nothing_behind(system: System) -> None:
    root = system.supervisor()
    for _ in range(3):
        await root.start_child(Supervisor("t", [Child(Adder, "nested")]))
        assert await system.actor(Adder, "nested").add(1) > 0
        await root.terminate_child("t")
        await root.delete_child("t")

    assert await system.actor(Adder, "nested").add(0) == 3  # It is one on demand again.
    with pytest.raises(NotFound):
        system.supervisor("t")


async def live(system: System, *numbers: int) -> None:
    async with system:
        for number in numbers:
            await system.actor(Adder, "a").add.tell(number)
        await asyncio.sleep(10)


async def test_root_that_gives_up_before_the_body_has_begun_raises_system_failed(tmp_path: Path) -> None:
    Adder.fails = False
    path = tmp_path / "early.db"
    with pytest.raises(SystemFailed):
        await live(System(path, [Child(Adder, "a")]), -2)

    with pytest.raises(SystemFailed) as caught:
        await live(System(path, [Child(Adder, "a"), Child(Slow, "b")]))

    assert isinstance(caught.value.__cause__, Fatal)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
