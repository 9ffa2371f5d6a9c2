"""Thousands of messages to one actor: a window of them in memory, the rest on disk, all handled in order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from understudy import Actor, Limits, System, SystemClosed, handler
from understudy.mailbox.envelope import Envelope
from understudy.testing import InlineSQLiteStore

pytestmark = pytest.mark.anyio


class Seen(msgspec.Struct):
    numbers: list[int] = []


class Counter(Actor[Seen], kind="counter"):
    @handler
    async def count(self, number: int) -> int:
        self.state.numbers.append(number)
        return number

    @handler
    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @handler
    async def seen(self) -> list[int]:
        return self.state.numbers


class Tally(msgspec.Struct):
    last: int = -1
    wrong: int = 0


class Checker(Actor[Tally], kind="checker"):
    @handler
    async def check(self, number: int) -> None:
        self.state.wrong += number != self.state.last + 1
        self.state.last = number

    @handler
    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @handler
    async def tally(self) -> tuple[int, int]:
        return self.state.last, self.state.wrong


class Sender(Actor, kind="sender"):
    @handler
    async def send(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            await self.actor(Counter, "c").count.tell(number)


def system_at(path: Path, **limits: float) -> System:
    return System(path, [Counter, Sender, Checker], limits=Limits(**limits))  # type: ignore[arg-type]


async def test_memory_holds_a_window_of_a_long_mailbox_and_order_is_kept(path: Path) -> None:
    async with system_at(path, mailbox_messages=20_000) as system:
        checker = system.actor(Checker, "c")
        busy = asyncio.ensure_future(checker.wait(1000))
        await asyncio.sleep(1)
        await asyncio.gather(*(checker.check.tell(number) for number in range(10_000)))

        assert len(system.registry.types["checker"].live["c"].inbox or ()) == 256
        await busy
        assert await checker.tally() == (9_999, 0)


async def test_order_is_kept_while_senders_and_the_actor_run_against_each_other(path: Path) -> None:
    async with system_at(path, window_messages=4) as system:
        counter = system.actor(Counter, "c")

        async def sender(start: int) -> None:
            for number in range(start, start + 100):
                await counter.count.tell(number)

        await asyncio.gather(*(sender(start) for start in range(0, 1000, 100)))
        seen = await counter.seen()

        assert sorted(seen) == list(range(1000))
        for start in range(0, 1000, 100):
            mine = [number for number in seen if start <= number < start + 100]
            assert mine == sorted(mine)


async def test_every_caller_in_a_long_queue_gets_its_own_reply(path: Path) -> None:
    async with system_at(path, window_messages=5) as system:
        counter = system.actor(Counter, "c")

        replies = await asyncio.gather(*(counter.count(number) for number in range(300)))

        assert replies == list(range(300))


@pytest.mark.parametrize("window", [1, 2, 3, 256])
async def test_window_of_any_size_keeps_the_order_of_turns_that_tell(path: Path, window: int) -> None:
    async with system_at(path, window_messages=window) as system:
        busy = asyncio.ensure_future(system.actor(Counter, "c").wait(10))
        await asyncio.sleep(1)
        for first in range(0, 100, 10):
            await system.actor(Sender, "s").send(first, 10)
        await busy

        assert await system.actor(Counter, "c").seen() == list(range(100))


async def test_long_queue_goes_on_in_order_after_a_restart(path: Path) -> None:
    async with system_at(path, window_messages=16, grace_s=0.1) as system:
        counter = system.actor(Counter, "c")
        await counter.wait.tell(1000)
        for number in range(100):
            await counter.count.tell(number)
    async with system_at(path, window_messages=16) as system:
        assert await system.actor(Counter, "c").seen() == list(range(100))


async def test_queue_survives_restart_after_restart(path: Path) -> None:
    for life in range(5):
        async with system_at(path, window_messages=8, grace_s=0.1) as system:
            counter = system.actor(Counter, "c")
            await counter.wait.tell(50)
            for number in range(life * 20, life * 20 + 20):
                await counter.count.tell(number)
    async with system_at(path, window_messages=8) as system:
        assert await system.actor(Counter, "c").seen() == list(range(100))


async def test_caller_in_the_part_on_disk_is_told_that_the_system_closed(path: Path) -> None:
    async with system_at(path, window_messages=2, grace_s=0.1) as system:
        counter = system.actor(Counter, "c")
        await counter.wait.tell(50)
        waiting = [asyncio.ensure_future(counter.count(number)) for number in range(10)]
        await asyncio.sleep(1)

    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(each) for each in outcomes} == {SystemClosed}
    async with system_at(path, window_messages=2) as system:
        assert await system.actor(Counter, "c").seen() == list(range(10))


class SlowReads(InlineSQLiteStore):
    """A store whose reads of mailboxes are delivered when the test says."""

    gate: asyncio.Event | None = None
    reading: asyncio.Event

    async def mailbox(self, actor: int, after: int, limit: int) -> list[Envelope]:
        found = await super().mailbox(actor, after, limit)
        if self.gate is not None:
            self.reading.set()
            await self.gate.wait()
        return found


async def held_refill(system: System, store: SlowReads) -> None:
    """Bring the counter to where its window is used up, and the read of the next one is under way."""
    counter = system.actor(Counter, "c")
    busy = asyncio.ensure_future(counter.wait(10))
    await asyncio.sleep(1)
    for number in range(4):
        await counter.count.tell(number)
    store.gate, store.reading = asyncio.Event(), asyncio.Event()
    await busy
    await store.reading.wait()


async def test_message_that_comes_while_the_next_window_is_read_is_not_forgotten(path: Path) -> None:
    store = SlowReads(path)
    async with System(store, [Counter], limits=Limits(window_messages=3)) as system:
        await held_refill(system, store)
        await system.actor(Counter, "c").count.tell(4)
        assert store.gate is not None
        store.gate.set()
        store.gate = None
        await asyncio.sleep(1)

        assert sum([row.waiting async for row in system.actors()]) == 0
        assert await system.actor(Counter, "c").seen() == [0, 1, 2, 3, 4]


async def test_actor_whose_next_window_is_being_read_does_not_leave_memory(path: Path) -> None:
    store = SlowReads(path)
    async with System(store, [Counter, Checker], limits=Limits(window_messages=3, active_max=2)) as system:
        await held_refill(system, store)
        for number in range(10):
            await system.actor(Checker, f"other {number}").tally()

        assert "c" in system.registry.types["counter"].live
        assert store.gate is not None
        store.gate.set()
        store.gate = None
        assert await system.actor(Counter, "c").seen() == [0, 1, 2, 3]
