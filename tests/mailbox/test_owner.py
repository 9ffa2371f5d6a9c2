"""One owner per store: the lock, the epoch, and who is charged with a crash."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import StoreFailed, StoreLocked, WrongLoop
from understudy.mailbox.commit import Batch
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.lock import OwnerLock
from understudy.mailbox.sqlite import SQLiteStore
from understudy.mailbox.visitor import is_owned, visit
from understudy.testing.stores import InlineSQLiteStore

pytestmark = pytest.mark.anyio

OWNER = """
import asyncio, sys
from understudy.mailbox.sqlite import SQLiteStore
from understudy.mailbox.commit import Batch
from understudy.mailbox.envelope import Envelope, Head

async def main():
    store = SQLiteStore(sys.argv[1])
    await store.open()
    batch = Batch(1)
    batch.envelopes[1] = Envelope(1, 1, 1, "h", b"", Head(0.0, "c"), started=1)
    await store.commit(batch)
    print("open", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


def start_owner(path: Path) -> subprocess.Popen[str]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "open\n"
    return owner


def end(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.communicate()


def started(no: int, value: int) -> Envelope:
    return Envelope(no, no, 1, "h", b"", Head(0.0, "c"), started=value)


async def crashes(store: Any, count: int) -> list[tuple[int, int]]:
    found = [(await store.message(no)).pending for no in range(1, count + 1)]
    return [(each.crashes, each.started) for each in found]


async def test_second_process_is_told_who_owns_the_store(path: Path) -> None:
    owner = start_owner(path)

    try:
        with pytest.raises(StoreLocked, match=str(owner.pid)) as caught:
            await SQLiteStore(path, lock_wait_s=0).open()
    finally:
        end(owner)

    assert caught.value.pid == owner.pid


async def test_killed_owner_frees_the_store_and_its_started_message_has_crashed(path: Path, opened: Any) -> None:
    owner = start_owner(path)
    end(owner)

    store = await opened(SQLiteStore)

    assert await crashes(store, 1) == [(1, -1)]


async def test_store_is_opened_once_in_a_process_too(path: Path, opened: Any, store_class: Any) -> None:
    await opened(store_class)

    with pytest.raises(StoreLocked, match="this process"):
        await store_class(path, lock_wait_s=0).open()


async def test_link_to_a_store_is_the_store(path: Path, opened: Any, store_class: Any) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    store = await opened(store_class, at=link)

    with pytest.raises(StoreLocked):
        await store_class(path, lock_wait_s=0).open()

    assert store.path == str(path.resolve())
    assert link.is_symlink()
    assert is_owned(link)
    assert not link.with_name("link.db.lock").exists()
    with visit(link) as connection:
        assert connection.execute("SELECT epoch FROM owner").fetchone() == (1,)


async def test_open_waits_for_an_owner_that_goes(path: Path, opened: Any) -> None:
    first = await opened(SQLiteStore)
    second = SQLiteStore(path, lock_wait_s=30)

    opening = asyncio.ensure_future(second.open())
    await asyncio.sleep(0)
    await first.close(clean=True)

    assert (await opening).epoch == 2
    await second.close(clean=True)


async def test_cancelled_wait_for_the_lock_leaves_nothing_behind(path: Path, opened: Any) -> None:
    first = await opened(SQLiteStore)
    opening = asyncio.ensure_future(SQLiteStore(path, lock_wait_s=30).open())
    await asyncio.sleep(0)

    opening.cancel()
    await asyncio.wait([opening])
    await first.close(clean=True)

    assert opening.cancelled()
    await opened(SQLiteStore)


async def test_cancelled_open_gives_the_store_up_again(path: Path, opened: Any) -> None:
    for rounds in range(12):
        opening = asyncio.ensure_future(SQLiteStore(path).open())
        for _ in range(rounds):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()

    await opened(SQLiteStore)


async def test_deleted_lock_file_is_made_anew_by_the_next_owner(path: Path, opened: Any) -> None:
    waiting = OwnerLock(f"{path}.lock")
    held = OwnerLock(f"{path}.lock")
    assert held.acquire_nowait()
    assert not waiting.acquire_nowait()
    Path(held.path).unlink()

    held.release()

    assert waiting.acquire_nowait()
    assert Path(waiting.path).exists()
    waiting.release()


async def test_forked_child_neither_uses_nor_keeps_nor_frees_the_store(path: Path, opened: Any) -> None:
    store = await opened(InlineSQLiteStore)
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        code = 3
        try:
            store.load([1], 1).send(None)
        except WrongLoop:
            code = 0
        except BaseException:
            code = 4
        os.write(told, bytes([code]))
        signal.pause()
        os._exit(0)
    try:
        code = os.read(ready, 1)[0]

        with pytest.raises(StoreLocked):
            await SQLiteStore(path, lock_wait_s=0).open()
        await store.close(clean=True)
        await opened(SQLiteStore)  # The child is alive and does not hold the lock.
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(told)
    assert code == 0


async def test_forked_child_that_closes_its_copies_leaves_the_log_to_its_parent(path: Path, opened: Any) -> None:
    script = """
import asyncio, os, sys
from understudy.mailbox.sqlite import SQLiteStore
from understudy.mailbox.commit import Batch

async def main():
    store = SQLiteStore(sys.argv[1])
    await store.open()
    for number in range(1, 4):
        batch = Batch(number)
        batch.actors[number] = ("k", str(number))
        await store.commit(batch)
        child = os.fork()
        if child == 0:
            # What the end of an interpreter may do. The loop itself survives no fork that runs it again.
            store._reader._connection.close()
            store._writer._connection.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert all(await store.load([1, 2, 3], 1))
    await store.close(clean=True)

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(path)], check=True, stderr=subprocess.PIPE)

    store = await opened(SQLiteStore)

    assert all(await store.load([1, 2, 3], 1))


async def test_interpreter_exits_though_a_store_was_left_open(path: Path) -> None:
    script = """
import asyncio, sys
from understudy.mailbox.sqlite import SQLiteStore
asyncio.run(SQLiteStore(sys.argv[1]).open())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(path)], check=False, timeout=30, stderr=subprocess.PIPE
    )

    assert done.returncode == 0


async def test_owner_that_was_replaced_can_write_nothing_more(path: Path, store: Any) -> None:
    batch = Batch(1)
    batch.actors[1] = ("k", "a")
    other = sqlite3.connect(path)
    with other:
        other.execute("UPDATE owner SET epoch = epoch + 1")
    other.close()

    with pytest.raises(StoreFailed, match="another owner"):
        await store.commit(batch)

    assert await store.load([1], 1) == [None]


async def test_replaced_owner_does_not_call_the_store_clean(path: Path, opened: Any) -> None:
    store = await opened(InlineSQLiteStore)
    other = sqlite3.connect(path)
    with other:
        other.execute("UPDATE owner SET epoch = epoch + 1")

    await store.close(clean=True)

    assert other.execute("SELECT clean FROM owner").fetchone() == (0,)
    other.close()


async def test_file_that_was_deleted_under_its_owner_is_noticed(path: Path, opened: Any) -> None:
    store = await opened(InlineSQLiteStore)
    path.rename(path.with_suffix(".gone"))
    store._file_seen = float("-inf")  # long ago

    with pytest.raises(StoreFailed, match="deleted or replaced"):
        await store.commit(Batch(1))


@pytest.mark.parametrize(
    ("before", "clean", "after"),
    [
        ([0, 1, 1], False, [(0, 0), (1, -1), (1, -1)]),
        ([1, 2, 0], False, [(0, -1), (1, -1), (0, 0)]),
        ([-1, 1, 0], False, [(0, -1), (1, -1), (0, 0)]),
        ([1, 2, 0], True, [(0, -1), (0, -1), (0, 0)]),
    ],
    ids=["all that were started", "only the one that ran alone", "not those of earlier lives", "nobody after closing"],
)
async def test_crash_is_charged_to(opened: Any, before: list[int], clean: bool, after: list[tuple[int, int]]) -> None:
    store = await opened()
    batch = Batch(1)
    batch.envelopes = {no: started(no, value) for no, value in enumerate(before, 1)}
    await store.commit(batch)
    await store.close(clean=clean)

    again = await opened()

    assert await crashes(again, 3) == after


async def test_actors_of_messages_that_crashed_twice_are_suspects(opened: Any) -> None:
    for _ in range(2):
        store = await opened()
        batch = Batch(1)
        seen = [(await store.message(no)).pending for no in (1, 2)]
        for envelope in [each or started(no, 0) for no, each in enumerate(seen, 1)]:
            envelope.started = 1 if envelope.no == 2 else 0
            batch.envelopes[envelope.no] = envelope
        await store.commit(batch)
        store.crash()

    store = await opened()

    assert await store.suspects() == [2]
