"""The committer: order, elision, who is released when, and the stop after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import StoreFailed
from understudy.mailbox.commit import Batch, Committer, Snapshot
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.sqlite import SQLiteStore
from understudy.testing.stores import FaultyStore

pytestmark = pytest.mark.anyio


def message(no: int) -> Envelope:
    return Envelope(no, 1, no, "h", b"", Head(1.0, "c"))


class Bench:
    def __init__(self, store: Any) -> None:
        self.store = store
        self.failures: list[BaseException] = []
        self.committer = Committer(store, self.failures.append)
        self.batches: list[Batch] = []
        self.committer.committed = self.batches.append
        self.committer.start()

    def accept(self, envelope: Envelope) -> None:
        batch = self.committer.touch()
        batch.envelopes[envelope.no] = envelope
        batch.work += 1

    def reply(self, value: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        batch = self.committer.touch()
        batch.released.append((future, value))
        batch.work += 1
        return future


@pytest.fixture
async def bench(faulty: FaultyStore) -> AsyncIterator[Bench]:
    bench = Bench(faulty)
    yield bench
    faulty.release()
    await bench.committer.stop()


async def test_wait_returns_when_what_was_handed_over_is_on_disk(bench: Bench) -> None:
    bench.accept(message(1))

    await bench.committer.wait_durable()

    assert (await bench.store.message(1)).pending is not None
    assert bench.committer.durable == 1


async def test_wait_returns_at_once_when_everything_is_on_disk(bench: Bench) -> None:
    await bench.committer.wait_durable()

    assert bench.store.commits == 0


async def test_wait_covers_the_batch_that_is_being_written(bench: Bench) -> None:
    bench.store.hold()
    bench.accept(message(1))
    await bench.store.wait_held()

    waiting = asyncio.ensure_future(bench.committer.wait_durable())
    await asyncio.sleep(0)
    assert not waiting.done()
    bench.store.release()
    await waiting

    assert bench.committer.durable == 1


async def test_what_comes_during_a_commit_is_one_commit_after_it(bench: Bench) -> None:
    bench.store.hold()
    bench.accept(message(1))
    await bench.store.wait_held()
    for no in range(2, 50):
        bench.accept(message(no))
        await asyncio.sleep(0)

    bench.store.release()
    await bench.committer.wait_durable()

    assert [sorted(batch.envelopes) for batch in bench.batches] == [[1], list(range(2, 50))]


async def test_nothing_is_released_before_its_commit_and_all_in_order(bench: Bench) -> None:
    order: list[str] = []
    bench.store.hold()
    first = bench.reply("first")
    first.add_done_callback(lambda _: order.append("first"))
    await bench.store.wait_held()
    second = bench.reply(ValueError("second"))
    second.add_done_callback(lambda _: order.append("second"))
    await asyncio.sleep(0)
    assert order == []

    bench.store.release()

    assert await first == "first"
    with pytest.raises(ValueError, match="second"):
        await second
    assert order == ["first", "second"]


async def test_message_that_ends_in_the_batch_it_came_in_is_never_written(bench: Bench) -> None:
    envelope = message(1)
    bench.accept(envelope)
    bench.committer.touch().note_progress(envelope)
    bench.committer.touch().finish(envelope)

    await bench.committer.wait_durable()

    (batch,) = bench.batches
    assert (batch.envelopes, batch.progress, batch.finished) == ({}, {}, [])


async def test_message_of_an_earlier_batch_is_deleted(bench: Bench) -> None:
    envelope = message(1)
    bench.accept(envelope)
    await bench.committer.wait_durable()
    bench.committer.touch().note_progress(envelope)
    bench.committer.touch().finish(envelope)

    await bench.committer.wait_durable()

    assert (await bench.store.message(1)).pending is None
    assert bench.batches[1].progress == {}


async def test_of_several_states_the_last_is_written(bench: Bench) -> None:
    for seq in range(1, 5):
        batch = bench.committer.touch()
        batch.actors[1] = ("k", "a")
        batch.snapshots[1] = Snapshot(1, seq, b"%d" % seq)
        batch.work += 1

    await bench.committer.wait_durable()

    (loaded,) = await bench.store.load([1], 1)
    assert loaded is not None
    assert loaded.snapshot == Snapshot(1, 4, b"4")


@pytest.mark.parametrize("fault", ["fail_before", "fail_after"])
async def test_failed_commit_stops_everything_and_releases_nothing(bench: Bench, fault: str) -> None:
    getattr(bench.store, fault)()
    bench.store.hold()
    replies = [bench.reply("flying")]
    await bench.store.wait_held()
    replies.append(bench.reply("open"))
    waiting = asyncio.ensure_future(bench.committer.wait_durable())
    await asyncio.sleep(0)

    bench.store.release()

    for future in [*replies, waiting]:
        with pytest.raises(StoreFailed, match="outcome is unknown"):
            await future
    with pytest.raises(StoreFailed):
        await bench.committer.wait_durable()
    assert bench.failures == [bench.committer.failure]
    assert bench.batches == []


async def test_cancelled_waiter_does_not_disturb_the_others(bench: Bench) -> None:
    bench.store.hold()
    bench.accept(message(1))
    await bench.store.wait_held()
    gone, stays = (asyncio.ensure_future(bench.committer.wait_durable()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()

    bench.store.release()
    await stays

    assert gone.cancelled()


async def test_stop_commits_what_is_left(bench: Bench) -> None:
    bench.accept(message(1))

    await bench.committer.stop()

    assert (await bench.store.message(1)).pending is not None


@pytest.mark.parametrize("where", ["released", "after", "committed", "taking"])
async def test_error_beside_the_commit_stops_the_store_and_tells_who_waits(faulty: FaultyStore, where: str) -> None:
    bench = Bench(faulty)

    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    bench.accept(message(1))
    if where == "released":
        bench.committer.release(asyncio.get_running_loop().create_future(), StopIteration())  # No future takes it.
    elif where == "after":
        bench.committer.touch().after.append(fail)
    elif where == "committed":
        bench.committer.committed = fail
    else:
        bench.committer.taking = fail

    reply = bench.reply("late") if where == "released" else None
    with suppress(StoreFailed):  # Who waited for this commit alone may have been told already that it is on disk.
        await bench.committer.wait_durable()
    bench.accept(message(2))
    with pytest.raises(StoreFailed):
        await bench.committer.wait_durable()

    if reply is not None:
        with pytest.raises(StoreFailed):
            await reply
    assert len(bench.failures) == 1
    await bench.committer.stop()


async def two_messages_in_two_rounds(bench: Bench) -> list[set[int]]:
    """Accept a message and wait for it; accept another one a round of the loop later. Return what each commit held."""

    async def later() -> None:
        await asyncio.sleep(0)
        bench.accept(message(2))

    bench.batches.clear()
    bench.accept(message(1))
    await asyncio.gather(bench.committer.wait_durable(), later())
    await bench.committer.wait_durable()
    return [set(batch.envelopes) for batch in bench.batches]


async def test_batch_is_not_held_open_when_every_turn_waits_for_it(bench: Bench) -> None:
    bench.committer.turns = ["the only turn"]

    assert await two_messages_in_two_rounds(bench) == [{1}, {2}]


async def test_batch_is_held_open_for_turns_that_run(bench: Bench) -> None:
    bench.committer.turns = ["the turn that waits", "another one"]

    assert await two_messages_in_two_rounds(bench) == [{1, 2}]


async def test_batch_is_held_open_for_callers_who_have_just_got_their_answer(bench: Bench) -> None:
    bench.committer.turns = ["the only turn"]
    await bench.reply("answer")

    assert await two_messages_in_two_rounds(bench) == [{1, 2}]


async def test_error_in_what_follows_a_commit_on_a_thread_stops_the_store(opened: Any) -> None:
    bench = Bench(await opened(SQLiteStore))

    def fail(_batch: Batch) -> None:
        raise OSError("nobody listens")

    bench.committer.committed = fail
    bench.accept(message(1))
    await bench.committer.wait_durable()  # It is on disk, and was released before that failed.
    await bench.committer.stop()

    assert bench.committer.durable == 1
    assert ["what follows a commit failed" in str(failure) for failure in bench.failures] == [True]


async def test_who_waits_for_a_commit_on_a_thread_is_released_once(opened: Any) -> None:
    bench = Bench(await opened(SQLiteStore))
    calls: list[str] = []

    bench.accept(message(1))
    bench.committer.open.after.append(lambda: calls.append("called"))
    await bench.committer.wait_durable()
    await bench.committer.stop()

    assert calls == ["called"]
    assert [batch.number for batch in bench.batches] == [1]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["exit", "interrupt"])
async def test_signal_that_comes_after_a_commit_ends_the_program_and_not_only_the_store(
    path: Path, error: BaseException
) -> None:
    def fail(_batch: Batch) -> None:
        raise error

    async def program() -> None:
        store = SQLiteStore(path)
        await store.open()
        bench = Bench(store)
        bench.committer.committed = fail
        bench.accept(message(1))
        try:
            await asyncio.sleep(5)
        finally:
            await bench.committer.stop()
            await store.close(clean=False)

    with pytest.raises(type(error)):
        await asyncio.to_thread(asyncio.run, program())
