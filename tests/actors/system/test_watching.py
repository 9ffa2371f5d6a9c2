"""Who watches an actor is told what becomes of it: in order, once it is on disk, and nothing of others."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from understudy import Actor, ActorSuspended, InvalidArguments, LimitExceeded, Policy, System, handler, on
from understudy.actors.stream import Stream
from understudy.events import ActorChange
from understudy.supervisor.policy import suspend
from understudy.testing import FaultyStore

pytestmark = pytest.mark.anyio


class Jammed(Exception):
    pass


class Press(Actor, kind="press"):
    policy = Policy(on(Jammed, suspend()))
    jammed: set[str] = set()

    @handler
    async def run(self) -> str:
        if self.id in Press.jammed:
            raise Jammed(f"paper in {self.id}")
        return self.id


@pytest.fixture(autouse=True)
def _nothing_is_jammed() -> None:
    Press.jammed = set()


async def jam(system: System, id: str) -> None:
    Press.jammed.add(id)
    with pytest.raises(ActorSuspended):
        await system.actor(Press, id).run()


async def mend(system: System, id: str) -> None:
    Press.jammed.discard(id)
    await system.resume(system.actor(Press, id))


def told(stream: AsyncIterator[ActorChange]) -> list[str]:
    """What lies ready in the stream."""
    queue: Any = stream
    return [each.change for each in queue._queue._queue if each is not None]


async def test_suspension_and_resumption_are_told_in_order_with_reason_and_time(path: Path) -> None:
    async with System(path, [Press]) as system:
        changes = system.watch(system.actor(Press, "p"))
        await jam(system, "p")
        await asyncio.sleep(30)
        await mend(system, "p")

        first, second = await anext(changes), await anext(changes)

    assert (first.change, second.change) == ("suspended", "resumed")
    assert "paper in p" in first.reason
    assert second.at - first.at == pytest.approx(30, abs=1)


async def test_suspension_is_told_only_when_it_is_on_disk(path: Path) -> None:
    store = FaultyStore(path)
    async with System(store, [Press]) as system:
        changes = system.watch(system.actor(Press, "p"))
        Press.jammed.add("p")
        store.hold()
        asking = asyncio.ensure_future(system.actor(Press, "p").run())
        await store.wait_held()
        await asyncio.sleep(1)
        activation = system.population.by_no(1)
        assert activation is not None
        assert activation.status == "suspended"
        before = told(changes)

        store.release()
        with pytest.raises(ActorSuspended):
            await asking

        assert before == []
        assert (await anext(changes)).change == "suspended"
        assert [row.id for row in await store.held("suspended", 0, 9)] == ["p"]


async def test_changes_before_the_call_and_of_other_actors_are_not_told(path: Path) -> None:
    async with System(path, [Press]) as system:
        await jam(system, "p")
        changes = system.watch(system.actor(Press, "p"))
        await jam(system, "q")
        await mend(system, "q")
        await mend(system, "p")

        assert told(changes) == ["resumed"]


async def test_everybody_who_watches_an_actor_is_told(path: Path) -> None:
    async with System(path, [Press]) as system:
        one, two = system.watch(system.actor(Press, "p")), system.watch(system.actor(Press, "p"))

        await jam(system, "p")

        assert told(one) == told(two) == ["suspended"]


async def test_watching_ends_with_the_system(path: Path) -> None:
    async with System(path, [Press]) as system:
        changes = system.watch(system.actor(Press, "p"))
        other = system.watch(system.actor(Press, "q"))
        waiting = asyncio.ensure_future(anext(other, None))
        await jam(system, "p")

    assert [each.change async for each in changes] == ["suspended"]
    assert await waiting is None


async def test_closed_watch_ends_for_who_waits_and_hears_nothing_more(path: Path) -> None:
    async with System(path, [Press]) as system:
        changes: Any = system.watch(system.actor(Press, "p"))
        waiting = asyncio.ensure_future(anext(changes, None))
        await asyncio.sleep(1)

        await changes.aclose()
        await jam(system, "p")

        assert await waiting is None
        assert [each async for each in changes] == []


async def test_watcher_that_nobody_reads_is_forgotten(path: Path) -> None:
    async with System(path, [Press]) as system:
        changes = system.watch(system.actor(Press, "p"))
        assert system.watching.watchers

        del changes
        gc.collect()

        assert not system.watching.watchers


async def test_watcher_that_is_too_slow_is_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "BEHIND_MAX", 2)
    async with System(path, [Press]) as system:
        changes = system.watch(system.actor(Press, "p"))
        for _ in range(3):
            await jam(system, "p")
            await mend(system, "p")

        assert [(await anext(changes)).change for _ in range(2)] == ["suspended", "resumed"]
        with pytest.raises(LimitExceeded, match=r"watch\(press/p\) fell 2 events behind"):
            await anext(changes)


async def test_only_actors_of_this_system_can_be_watched(path: Path) -> None:
    async with System(path, [Press]) as one, System(path.with_name("two.db"), [Press]) as two:
        with pytest.raises(InvalidArguments, match="ref of this system"):
            one.watch(two.actor(Press, "p"))
