"""Opening a file with very much unfinished work: the first of it is done soon, and all of it in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from understudy import Actor, DeadlineExceeded, Limits, System, current_turn, handler, query
from understudy.actors import population
from understudy.mailbox.store import Loaded
from understudy.testing import InlineSQLiteStore

pytestmark = pytest.mark.anyio


class Seen(msgspec.Struct):
    numbers: list[int] = []


class Reads:
    """What has been read of mailboxes when, in messages."""

    def __init__(self) -> None:
        self.largest = 0
        self.total = 0
        self.at_first_turn: int | None = None


class Counter(Actor[Seen], kind="counter"):
    @handler
    async def count(self, number: int) -> None:
        self.state.numbers.append(number)

    @handler
    async def wait(self, seconds: float) -> None:
        reads = current_turn().resource(Reads)
        if reads.at_first_turn is None:
            reads.at_first_turn = reads.total
        await asyncio.sleep(seconds)

    @query
    async def seen(self) -> list[int]:
        return self.state.numbers


class CountingStore(InlineSQLiteStore):
    """A store that notes how many messages each read of actors brings."""

    reads: Reads

    async def load(self, addresses: Sequence[tuple[str, str] | int], window: int) -> list[Loaded | None]:
        found = await super().load(addresses, window)
        count = sum(len(each.window) for each in found if each is not None)
        self.reads.total += count
        self.reads.largest = max(self.reads.largest, count)
        return found


async def leave_work(path: Path, actors: int, messages: int) -> None:
    limits = Limits(grace_s=0.1)
    async with System(InlineSQLiteStore(path), [Counter], resources=[Reads()], limits=limits) as system:
        for number in range(actors):
            await system.actor(Counter, str(number)).wait.tell(5)
        for number in range(messages):
            await asyncio.gather(*(system.actor(Counter, str(i)).count.tell(number) for i in range(actors)))


def opened(path: Path, limits: Limits | None = None) -> tuple[System, Reads]:
    store, reads = CountingStore(path), Reads()
    store.reads = reads
    return System(store, [Counter], resources=[reads], limits=limits), reads


async def test_first_turns_do_not_wait_until_much_is_read(path: Path) -> None:
    await leave_work(path, actors=150, messages=10)
    system, reads = opened(path)

    async with system:
        await asyncio.sleep(100)

        assert reads.total == 150 * 11
        assert reads.at_first_turn is not None
        assert reads.at_first_turn <= 0.4 * reads.total


async def test_read_brings_a_bounded_number_of_messages_and_the_others_follow_in_order(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(population, "_MESSAGES", 64)
    await leave_work(path, actors=40, messages=10)
    system, reads = opened(path)

    async with system:
        await asyncio.sleep(100)

        assert [await system.actor(Counter, str(i)).seen() for i in range(40)] == [list(range(10))] * 40
        assert 0 < reads.largest <= 64


async def test_more_actors_than_messages_may_be_read_at_once_are_all_brought_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(population, "_MESSAGES", 5)
    await leave_work(path, actors=20, messages=2)
    system, _ = opened(path)

    async with system:
        await asyncio.sleep(100)

        assert [await system.actor(Counter, str(i)).seen() for i in range(20)] == [[0, 1]] * 20


async def test_deadline_is_kept_also_of_a_message_that_was_left_on_disk_at_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(population, "_MESSAGES", 3)
    async with System(path, [Counter], resources=[Reads()], limits=Limits(grace_s=0.1)) as system:
        await system.actor(Counter, "busy").wait.tell(1_000)
        for number in range(10):
            await system.actor(Counter, "busy").count.tell(number)
        job = await system.actor(Counter, "busy").count.options(deadline_s=60).submit(10)
    system, _ = opened(path)

    async with system:
        async with asyncio.timeout(70):
            with pytest.raises(DeadlineExceeded):
                await system.job(job.id)

        await asyncio.sleep(2_000)
        assert await system.actor(Counter, "busy").seen() == list(range(10))
