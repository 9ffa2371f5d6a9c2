"""What has ended is gone at once: no turn, with all it held, waits for Python's cyclic collector, which may come late."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from understudy import (
    Actor,
    Agent,
    HandlerFailed,
    Limits,
    Policy,
    System,
    answer,
    current_turn,
    handler,
    on,
    retry,
    step,
    tool,
)
from understudy.actors.agent_run import Run
from understudy.actors.turn import Turn
from understudy.testing import Answer, FakeAnthropic, FakeRequest, calls, says

pytestmark = pytest.mark.anyio

TIMES = 5
LONG_S = 10_000.0  # Timers that were cancelled, which hold what set them, are out of the event loop then.
STAYS = Limits(idle_s=10 * LONG_S)


class Rejected(Exception):
    """Declared."""


@step
async def look(number: int) -> int:
    return number


@tool
async def search(query: str) -> str:
    """Find something."""
    return f"Found {query}."


class Helper(Actor, kind="helper"):
    @handler
    async def wait(self) -> int:
        await asyncio.sleep(0)
        return 1

    @handler(raises=[Rejected])
    async def reject(self) -> None:
        raise Rejected


class Worker(Actor, kind="worker"):
    policy = Policy(on(ValueError, retry(times=1)), on(ZeroDivisionError, answer()))

    @handler
    async def asks(self) -> int:
        return await self.actor(Helper).wait()

    @handler
    async def asks_in_vain(self) -> None:
        try:
            await self.actor(Helper).reject()
        except Rejected:
            pass

    @handler
    async def submits(self) -> int:
        return await (await self.actor(Helper).wait.submit()).result()

    @handler
    async def steps(self) -> int:
        return sum(await asyncio.gather(look(await look(1)), look(2)))

    @handler(timeout_s=60)
    async def waits(self) -> None:
        await asyncio.sleep(1)

    @handler
    async def fails(self) -> int:
        return 1 // 0

    @handler
    async def fails_once(self) -> None:
        if current_turn().attempt == 1:
            raise ValueError


class Reader(Agent[str], kind="reader"):
    model = "claude-sonnet-5-5"
    tools = (search,)


async def _reader(request: FakeRequest) -> Answer:
    return says("Read.") if "Found" in str(request.messages[-1]) else calls("search", query="books")


@contextmanager
def nothing_left() -> Iterator[None]:
    """See that nothing of ours that was made meanwhile is in a circle of references, and that no more turns are there.

    A connection to a model may hold the turn that has opened it, by its context.
    """
    gc.collect()
    gc.disable()
    before = _turns()
    try:
        yield
        assert _turns() <= before
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = {type(each) for each in gc.garbage}
        assert {each for each in left if each is Rejected or each.__module__.startswith("understudy")} == set()
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def _turns() -> int:
    return sum(isinstance(each, (Turn, Run)) for each in gc.get_objects())


@pytest.mark.parametrize("name", ["asks", "asks_in_vain", "submits", "steps", "waits", "fails", "fails_once"])
async def test_turn_that_has_ended_is_freed(tmp_path: Path, name: str) -> None:
    async with System(tmp_path / "actors.db", [Worker, Helper], limits=STAYS) as system:
        await _repeated(getattr(system.actor(Worker), name))


async def test_error_that_was_raised_to_an_asker_is_freed(tmp_path: Path) -> None:
    async with System(tmp_path / "actors.db", [Helper], limits=STAYS) as system:
        await _repeated(system.actor(Helper).reject)


async def test_run_of_an_agent_is_freed(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(_reader) as fake,
        System(tmp_path / "actors.db", [Reader], endpoints=[fake.endpoint()], limits=STAYS) as system,
    ):
        reader = system.actor(Reader)
        await _repeated(lambda: reader.run("Read the books."))


async def _repeated(act: Callable[[], Awaitable[object]]) -> None:
    async def once() -> None:
        try:
            await act()
        except (Rejected, HandlerFailed):
            pass

    await once()  # What is made once and kept is made now.
    await asyncio.sleep(LONG_S)
    with nothing_left():
        for _ in range(TIMES):
            await once()
        await asyncio.sleep(LONG_S)
