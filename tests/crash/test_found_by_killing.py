"""What the campaign has found, each in its smallest form."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from pathlib import Path

import msgspec
import pytest

from understudy import Actor, Limits, System, handler, query
from understudy.testing import FaultyStore, InlineSQLiteStore

pytestmark = pytest.mark.anyio


class Numbers(msgspec.Struct):
    numbers: list[int] = []


class Log(Actor[Numbers], kind="log"):
    @handler
    async def add(self, number: int) -> None:
        self.state.numbers.append(number)

    @query
    async def all(self) -> list[int]:
        return self.state.numbers


@pytest.mark.parametrize("pages", [1, 3])
async def test_a_store_whose_owner_died_while_it_copied_its_log_opens(tmp_path: Path, pages: int) -> None:
    path, whole = tmp_path / "store.db", tmp_path / "whole.db"
    store = InlineSQLiteStore(path)
    system = System(store, [Log])
    await system.__aenter__()
    for number in range(200):
        await system.actor(Log, f"actor {number} {'x' * 200}").add(number)
    log = Path(f"{path}-wal").read_bytes()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{whole}{suffix}")
    await system.__aexit__(None, None, None)
    other = sqlite3.connect(whole)
    page_bytes = other.execute("PRAGMA page_size").fetchone()[0]
    before = whole.read_bytes()
    other.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
    after = whole.read_bytes()
    other.close()
    assert len(after) > len(before)
    # The owner got as far as so many pages, then it was killed.
    path.write_bytes(after[: pages * page_bytes] + before[pages * page_bytes :])
    Path(f"{path}-wal").write_bytes(log)

    async with System(path, [Log]) as system:
        rows = [row async for row in system.actors()]
        assert [await system.actor(Log, row.id).all() for row in rows] == [[number] for number in range(200)]


async def test_an_actor_that_was_only_told_something_later_is_made_once(tmp_path: Path) -> None:
    store = FaultyStore(tmp_path / "store.db")
    async with System(store, [Log], limits=Limits(active_max=1)) as system:
        store.hold()
        delayed = [
            asyncio.create_task(system.actor(Log, "a").add.options(delay_s=0.01).tell(number)) for number in range(2)
        ]
        await store.wait_held()
        others = [asyncio.create_task(system.actor(Log, str(each)).add(each)) for each in range(5)]
        await asyncio.sleep(0.05)
        store.release()
        await asyncio.gather(*delayed, *others, system.actor(Log, "a").add(2))
        while len(await system.actor(Log, "a").all()) < 3:
            await asyncio.sleep(0.01)

        assert len([row async for row in system.actors() if row.id == "a"]) == 1


async def test_senders_at_the_door_keep_their_actor_in_memory(tmp_path: Path) -> None:
    async with System(tmp_path / "store.db", [Log], limits=Limits(active_max=1, window_messages=2)) as system:
        for round_ in range(20):
            await asyncio.gather(*(system.actor(Log, str(each % 5)).add(5 * round_ + each) for each in range(10)))
        found = [await system.actor(Log, str(each)).all() for each in range(5)]

    assert [len(numbers) for numbers in found] == [40] * 5


async def test_mail_that_arrives_while_the_window_is_refilled_is_delivered_in_order(tmp_path: Path) -> None:
    async with System(tmp_path / "store.db", [Log], limits=Limits(window_messages=1)) as system:
        log = system.actor(Log, "a")

        async def send() -> None:
            for number in range(300):
                sent.append(asyncio.create_task(log.add.tell(number)))
                if number % 3 == 0:
                    await asyncio.sleep(0)

        sent: list[asyncio.Task[None]] = []
        await send()
        await asyncio.gather(*sent)
        async with asyncio.timeout(10):
            while len(await log.all()) < 300:
                await asyncio.sleep(0.01)

        assert await log.all() == list(range(300))
