"""A commit fails: the system stops, nothing acknowledged is lost, nothing unacknowledged was seen, reopening goes on."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from understudy import Actor, Limits, StoreFailed, System, SystemFailed, current_turn, handler, query, step
from understudy.testing import FaultyStore, VirtualTimeLoop


class Names(msgspec.Struct):
    names: list[str] = []
    room: str = "." * 3_000  # so that each actor needs a page of its own


class Effects:
    """What step bodies did."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.finished: list[str] = []


@step
async def act(name: str) -> str:
    effects = current_turn().resource(Effects)
    effects.begun.append(name)
    await asyncio.sleep(0.01)
    effects.finished.append(name)
    return name


class Log(Actor[Names], kind="log"):
    @handler
    async def add(self, name: str) -> int:
        self.state.names.append(name)
        return len(self.state.names)

    @query
    async def all(self) -> list[str]:
        return self.state.names


class Flow(Actor[Names], kind="flow"):
    @handler
    async def run(self, name: str) -> str:
        done = await asyncio.gather(act(f"{name} left"), act(f"{name} right"))
        await self.actor(Log, "asked").add(name)
        await self.actor(Log, "told").add.tell(name)
        self.state.names.append(name)
        return " ".join(done)

    @query
    async def all(self) -> list[str]:
        return self.state.names


class Acknowledged:
    """What callers were told, and what they were refused."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {"plain": [], "flow": []}
        self.seen: list[str] = []  # by a query
        self.errors: list[BaseException] = []


async def work(system: System, told: Acknowledged) -> None:
    plain, flow = system.actor(Log, "plain"), system.actor(Flow, "f")

    async def call(where: str, name: str, send: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        try:
            await send()
        except Exception as error:
            told.errors.append(error)
            raise
        told.names[where].append(name)

    async def plainly(how: str) -> None:
        for number in range(4):
            name = f"{how} {number}"
            await call("plain", name, lambda name=name: plain.add(name) if how == "ask" else plain.add.tell(name))
            told.seen = await plain.all()

    async def flows() -> None:
        for number in range(2):
            await call("flow", f"flow {number}", lambda number=number: flow.run(f"flow {number}"))
        job = await flow.run.submit("job")
        await call("flow", "job", job.result)

    await asyncio.gather(plainly("ask"), plainly("tell"), flows(), return_exceptions=True)


def run(main: Coroutine[Any, Any, None]) -> list[dict[str, Any]]:
    """Run in virtual time; return what nobody handled."""
    unhandled: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.get_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
        runner.run(main)
        gc.collect()
    return unhandled


def new_system(path: Path, effects: Effects) -> tuple[System, FaultyStore]:
    store = FaultyStore(path, lock_wait_s=0.0)
    return System(store, [Log, Flow], resources=[effects], limits=Limits(window_messages=2)), store


async def broken_run(path: Path, effects: Effects, told: Acknowledged, break_: Callable[[FaultyStore], Any]) -> str:
    """Run until the disk fails; return how far the body came."""
    system, store = new_system(path, effects)
    reached = "opening"
    noticed: list[BaseException] = []

    async def watch() -> None:
        noticed.append(await system.failed())

    watcher = asyncio.create_task(watch())
    try:
        with pytest.raises(SystemFailed) as raised:  # noqa: PT012 - raised when the system closes, whatever the body does
            async with system:
                reached = "body"
                outcome = break_(store)
                if outcome is not None:
                    await outcome
                await work(system, told)
                reached = "leaving" if system.failure is None else "past the failure"
    finally:
        await asyncio.sleep(1.0)
        watcher.cancel()
    assert isinstance(raised.value.__cause__, StoreFailed)
    assert "open the store again" in str(raised.value)
    assert "unknown" in str(raised.value)
    assert noticed == [raised.value.__cause__]
    for error in told.errors:
        assert isinstance(error, StoreFailed), error
        assert "open the store again" in str(error)
    with pytest.raises(StoreFailed):
        await system.actor(Log, "plain").add("too late")
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]  # this is a task
    assert asyncio.all_tasks() == {asyncio.current_task()}, "tasks of the system outlived it"
    return reached


async def mended_run(path: Path, effects: Effects, told: Acknowledged) -> None:
    """Open what is left, let it finish, and compare with what callers were told."""
    system, _ = new_system(path, effects)
    async with system:
        while any([row.waiting async for row in system.actors()]):
            await asyncio.sleep(0.1)
        plain, flow = await system.actor(Log, "plain").all(), await system.actor(Flow, "f").all()
        for have, acknowledged in ((plain, told.names["plain"]), (flow, told.names["flow"])):
            assert len(set(have)) == len(have), f"applied twice: {have}"
            assert set(acknowledged) <= set(have), f"acknowledged: {acknowledged}; there: {have}"
        assert plain[: len(told.seen)] == told.seen, f"a query had seen {told.seen}; there: {plain}"
        for how in ("ask", "tell"):
            mine = [name for name in plain if name.startswith(how)]
            assert mine == sorted(mine)
        for other in ("asked", "told"):
            assert sorted(await system.actor(Log, other).all()) == sorted(flow)
        assert [letter async for letter in system.dead_letters()] == []
        assert set(effects.finished) >= {f"{name} {side}" for name in flow for side in ("left", "right")}
        # A failed commit interrupts steps once, so each ran twice at most.
        assert max(map(effects.begun.count, effects.begun), default=0) <= 2
        assert await system.actor(Log, "plain").add("after") == len(plain) + 1


@pytest.mark.watchdog(120)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_commit_loses_nothing_and_shows_nothing(tmp_path: Path, when: str) -> None:
    reached: dict[str, int] = {}
    for nth in range(1, 200):
        path, effects, told = tmp_path / f"{nth}.db", Effects(), Acknowledged()
        ends: list[str] = []

        async def broken(
            nth: int = nth, path: Path = path, effects: Effects = effects, told: Any = told, ends: list[str] = ends
        ) -> None:
            def fail(store: FaultyStore) -> None:
                (store.fail_before if when == "before" else store.fail_after)(nth)

            ends.append(await broken_run(path, effects, told, fail))

        try:
            unhandled = run(broken())
        except pytest.fail.Exception:
            break  # There were fewer commits: nothing failed.
        assert unhandled == [], f"commit {nth}"
        reached[ends[0]] = reached.get(ends[0], 0) + 1
        assert run(mended_run(path, effects, told)) == [], f"commit {nth}"
    else:
        pytest.fail("the workload does not end")

    assert set(reached) == {"body", "leaving"}, "a body that goes on after the failure was not cancelled"
    assert reached["body"] >= 6
    assert reached["leaving"] >= 1, "also the last commit, while the system closes, must tell that it failed"


@pytest.mark.watchdog(120)
def test_a_full_disk_loses_nothing_and_shows_nothing(tmp_path: Path) -> None:
    failed = 0
    for spare in range(12):
        path, effects, told = tmp_path / f"{spare}.db", Effects(), Acknowledged()

        async def broken(spare: int = spare, path: Path = path, effects: Effects = effects, told: Any = told) -> None:
            await broken_run(path, effects, told, lambda store: store.fill_disk(spare))

        try:
            assert run(broken()) == []
        except pytest.fail.Exception:
            break
        failed += 1
        assert run(mended_run(path, effects, told)) == []

    assert failed >= 2


@pytest.mark.watchdog(30)
def test_the_first_commit_of_a_life_may_fail(tmp_path: Path) -> None:
    async def main() -> None:
        system, store = new_system(tmp_path / "store.db", Effects())
        store.fail_before(1)
        with pytest.raises(SystemFailed, match="open the store again"):
            async with system:
                await asyncio.sleep(3_600)
        system, _ = new_system(tmp_path / "store.db", Effects())
        async with system:
            assert await system.actor(Log, "plain").add("works") == 1

    assert run(main()) == []
