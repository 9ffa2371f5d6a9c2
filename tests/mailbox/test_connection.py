"""Visits to a connection's thread: whole, whatever happens to who waits for them."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator

import pytest

from understudy.mailbox.connection import ThreadRunner

pytestmark = pytest.mark.anyio


@pytest.fixture
async def runner() -> AsyncIterator[ThreadRunner]:
    runner = ThreadRunner(lambda: sqlite3.connect(":memory:", check_same_thread=False))
    await runner.start()
    yield runner
    await runner.close()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("times", [1, 2])
async def test_cancellation_of_a_visit_is_delivered_when_it_is_over(
    runner: ThreadRunner, times: int, fails: bool
) -> None:
    begun, may_end = threading.Event(), threading.Event()
    done: list[str] = []

    def visit(_connection: sqlite3.Connection) -> None:
        begun.set()
        assert may_end.wait(10)
        done.append("visit")
        if fails:
            raise OSError("the disk is gone")

    waiting = asyncio.create_task(runner.run(visit))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    for _ in range(times):
        waiting.cancel()
        await asyncio.sleep(0.01)
    is_held = not waiting.done()
    may_end.set()
    await asyncio.wait([waiting])

    assert is_held
    assert done == ["visit"]
    assert waiting.cancelled()


async def test_error_of_a_visit_is_raised_where_it_is_waited_for(runner: ThreadRunner) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await runner.run(lambda connection: connection.execute("SELECT * FROM elsewhere"))


async def test_visit_that_was_cancelled_before_it_was_waited_for_is_still_made_whole(runner: ThreadRunner) -> None:
    done: list[str] = []

    async def cancelled_first() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await runner.run(lambda _connection: done.append("visit"))

    waiting = asyncio.create_task(cancelled_first())
    await asyncio.wait([waiting])

    assert waiting.cancelled()
    assert done == ["visit"]
