"""Faults at each durable step: a full disk, a failed commit, an erased actor, a copy of a file that is being written."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from understudy.errors import StoreFailed, StoreRefused
from understudy.events import StepStarted, TurnStarted
from understudy.mailbox.commit import Batch, DeadLetter, KeptResult, Snapshot
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.journal import Failure, JournalEntry, Outcome
from understudy.mailbox.sqlite import SQLiteStore
from understudy.mailbox.store import Timer
from understudy.testing.stores import FaultyStore

pytestmark = pytest.mark.anyio


def message(no: int, actor: int = 1, body: bytes = b"", **fields: Any) -> Envelope:
    return Envelope(no, actor, no, "h", body, Head(1.0, "c"), **fields)


def accepting(*numbers: int, body: bytes = b"") -> Batch:
    batch = Batch(1)
    batch.envelopes = {no: message(no, body=body) for no in numbers}
    return batch


def check(path: Path) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


async def test_full_disk_fails_the_store_and_leaves_it_intact(faulty: FaultyStore, opened: Any, path: Path) -> None:
    await faulty.commit(accepting(1))
    await faulty.fill_disk()

    with pytest.raises(sqlite3.OperationalError, match="full"):
        await faulty.commit(accepting(2, 3, body=b"x" * 100_000))
    with pytest.raises(StoreFailed):
        await faulty.commit(accepting(4))

    assert [each.no for each in await faulty.mailbox(1, 0, 9)] == [1]
    await faulty.close(clean=False)
    again = await opened()
    await again.commit(accepting(5, body=b"x" * 100_000))
    assert [each.no for each in await again.mailbox(1, 0, 9)] == [1, 5]
    await again.close(clean=True)
    check(path)


async def test_store_is_not_clean_after_a_failed_commit(faulty: FaultyStore, opened: Any) -> None:
    faulty.fail_before()
    with pytest.raises(sqlite3.OperationalError):
        await faulty.commit(accepting(1))

    await faulty.close(clean=True)

    again = FaultyStore(faulty.path)
    assert not (await again.open()).clean
    await again.close(clean=True)


async def test_log_of_a_failed_store_is_left_for_the_next_opening(faulty: FaultyStore, path: Path) -> None:
    await faulty.commit(accepting(1))
    log = Path(f"{path}-wal")
    before = log.read_bytes()
    faulty.fail_before()
    with pytest.raises(sqlite3.OperationalError):
        await faulty.commit(accepting(2))

    await faulty.close(clean=False)

    assert log.read_bytes() == before


@pytest.mark.parametrize(("fault", "found"), [("fail_before", [1]), ("fail_after", [1, 2])])
async def test_reopening_decides_what_a_failed_commit_has_done(
    faulty: FaultyStore, opened: Any, fault: str, found: list[int]
) -> None:
    getattr(faulty, fault)(2)
    await faulty.commit(accepting(1))
    with pytest.raises(sqlite3.OperationalError):
        await faulty.commit(accepting(2))
    faulty.crash()

    again = await opened()

    assert [each.no for each in await again.mailbox(1, 0, 9)] == found


async def test_hooks_are_crash_points(faulty: FaultyStore, opened: Any) -> None:
    seen: list[int] = []
    faulty.before_commit = lambda batch: seen.append(batch.number)
    faulty.after_commit = lambda batch: faulty.crash()

    await faulty.commit(accepting(1))

    again = await opened()
    assert seen == [1]
    assert (await again.message(1)).pending is not None


async def test_unclean_death_loses_nothing_that_was_committed(faulty: FaultyStore, opened: Any) -> None:
    for no in range(1, 30):
        await faulty.commit(accepting(no))
    faulty.crash()

    again = await opened()

    assert len(await again.mailbox(1, 0, 99)) == 29


async def test_log_does_not_grow_for_ever(opened: Any, path: Path) -> None:
    store = await opened(SQLiteStore, checkpoint_pages=50)

    for round_ in range(300):
        batch = Batch(round_)
        batch.snapshots = {no: Snapshot(1, round_, b"s" * 300) for no in range(64)}
        await store.commit(batch)

    assert Path(f"{path}-wal").stat().st_size < 400 * 4096
    await store.tidy(0.0, 1e9, 10**9)
    assert Path(f"{path}-wal").stat().st_size == 0


async def test_log_that_became_large_is_cut(opened: Any, path: Path) -> None:
    store = await opened(checkpoint_pages=10, log_bytes_max=200_000)
    await store.commit(accepting(*range(1, 200), body=b"x" * 4000))

    await store.commit(accepting(1000))

    assert Path(f"{path}-wal").stat().st_size <= 200_000


SECRET = b"my-secret-canary"


def full_of_secrets(number: int, actor: int) -> Batch:
    batch = Batch(number)
    base = actor * 100 + number * 10
    failure = Failure(kind="failed", type="E", message=SECRET.decode())
    batch.snapshots[actor] = Snapshot(1, number, SECRET * (50 - number))
    batch.events.append((actor, number, SECRET * 3))
    batch.envelopes[base] = message(base, actor, SECRET * 300, key=SECRET.decode() + str(base))
    batch.journal[base, SECRET] = JournalEntry(base, SECRET, Outcome(value=SECRET))
    batch.dead[base + 1] = DeadLetter(message(base + 1, actor, SECRET), failure, 1.0)
    batch.journal[base + 1, b"k"] = JournalEntry(base + 1, b"k", Outcome(value=SECRET))
    batch.results[base + 2] = KeptResult(
        base + 2, actor, "h", SECRET.decode(), b"d", Outcome(value=SECRET), "done", 1.0, 2.0, "c"
    )
    return batch


def tell(batch: Batch, turn: int | None, what: Any, span: str, **fields: Any) -> None:
    batch.tell(1.0, "c", msgspec.msgpack.encode(what(at=1.0, correlation="c", span=span, **fields)), turn)


async def test_no_byte_of_an_erased_actor_is_left(opened: Any, path: Path, store_class: Any) -> None:
    store = await opened(store_class)
    first = Batch(1)
    first.actors = {1: ("user", SECRET.decode()), 2: ("user", "bystander")}
    await store.commit(first)
    for number in range(2, 20):
        batch = full_of_secrets(number, 1)  # of every second number the message finishes, and its row is only garbage
        tell(batch, 9000, TurnStarted, "9000", kind="user", actor=SECRET.decode(), handler="h")
        tell(batch, 9000, StepStarted, "9000/" + SECRET.decode(), parent="9000", step=SECRET.decode())
        tell(batch, None, StepStarted, f"{100 + number // 2 * 20}/x", step=SECRET.decode())
        tell(batch, None, TurnStarted, "90001", kind="user", actor="bystander", handler="h")
        assert [len(row.events) for row in batch.traces] == [2, 1, 1]
        batch.snapshots[2] = Snapshot(1, number, b"innocent")
        await store.commit(batch)
        ended = Batch(number)
        ended.finished = [100 + number * 10] if number % 2 else []
        ended.forgotten = list(ended.finished)
        await store.commit(ended)
    assert SECRET in path.read_bytes() + Path(f"{path}-wal").read_bytes()

    await store.erase(1)

    assert SECRET not in path.read_bytes() + Path(f"{path}-wal").read_bytes()
    assert (await store.load([2], 1))[0].snapshot.body == b"innocent"
    assert [each.body.count(b"bystander") for each in await store.traces(None, 0, 99)] == [1] * 18


@pytest.mark.parametrize(("intact", "damaged"), [(b"\xa6damage", b"\xc1damage"), (b"damage", b"\xffamage")])
async def test_damaged_row_of_the_trace_hides_nothing_from_erasure(
    opened: Any, path: Path, intact: bytes, damaged: bytes
) -> None:
    store = await opened()
    batch = Batch(1)
    batch.actors = {1: ("user", "one"), 2: ("user", "bystander")}
    tell(batch, 7, TurnStarted, "7", kind="user", actor="one", handler="h")
    tell(batch, None, TurnStarted, "8", kind="user", actor="bystander", handler="h")
    tell(batch, 7, StepStarted, "7/damage", step="damage")
    tell(batch, 7, StepStarted, "7/x", step=SECRET.decode())
    assert [len(row.events) for row in batch.traces] == [1, 1, 2]
    batch.traces[2].events[0] = batch.traces[2].events[0].replace(intact, damaged)
    await store.commit(batch)
    assert SECRET in path.read_bytes() + Path(f"{path}-wal").read_bytes()

    await store.erase(1)

    assert SECRET not in path.read_bytes() + Path(f"{path}-wal").read_bytes()
    assert len(await store.traces(None, 0, 99)) == 1


async def test_full_disk_during_maintenance_does_not_end_the_store(faulty: FaultyStore) -> None:
    batch = Batch(1)
    batch.actors[1] = ("user", "x")
    await faulty.commit(batch)
    faulty._broken = None

    def no_room(connection: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with pytest.raises(StoreFailed, match="full"):
        faulty._maintain(faulty._writer._connection, no_room)  # type: ignore[union-attr]

    await faulty.commit(accepting(1))


async def test_backup_is_one_state_though_commits_go_on(opened: Any, path: Path, tmp_path: Path) -> None:
    store = await opened(SQLiteStore)
    done = False
    count = 0

    async def keep_committing() -> None:
        nonlocal count
        while not done:
            count += 1
            batch = Batch(count)
            batch.snapshots = {no: Snapshot(1, count, b"%d" % count) for no in range(1, 200)}
            batch.actors = {count: ("k", str(count))}
            await store.commit(batch)

    committing = asyncio.ensure_future(keep_committing())
    for number in range(5):
        await store.backup(tmp_path / f"{number}.db")
    done = True
    await committing

    for number in range(5):
        check(tmp_path / f"{number}.db")
        copy = sqlite3.connect(tmp_path / f"{number}.db")
        ((seq,),) = copy.execute("SELECT DISTINCT seq FROM snapshot").fetchall() or ((0,),)
        assert copy.execute("SELECT count(*) FROM actor").fetchone() == (seq,)
        copy.close()
    assert count > 5
    assert not list(tmp_path.glob("*.partial"))


async def test_backup_overwrites_nothing(store: Any, tmp_path: Path) -> None:
    there = tmp_path / "there.db"
    there.write_bytes(b"precious")

    with pytest.raises(StoreRefused, match="overwrites nothing"):
        await store.backup(there)

    assert there.read_bytes() == b"precious"


async def test_backup_that_cannot_be_written_says_why(store: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="could not be written"):
        await store.backup(tmp_path / "nowhere" / "copy.db")

    await store.commit(accepting(1))


async def test_reads_see_committed_data_only(faulty: FaultyStore) -> None:
    faulty.hold()
    commit = asyncio.ensure_future(faulty.commit(accepting(1)))
    await faulty.wait_held()

    assert (await faulty.message(1)).pending is None
    faulty.release()
    await commit

    assert (await faulty.message(1)).pending is not None


async def test_no_read_walks_through_all_messages(store: Any) -> None:
    statements: list[str] = []
    connection = store._reader._connection
    connection.set_trace_callback(statements.append)
    await store.load([("a", "b"), 1], 5)
    await store.mailbox(1, 0, 9)
    await store.keyed(1, "h", "k")
    await store.journal(1)
    await store.asked_by(1)
    await store.timers(Timer(1.0, 1, 1), 9)
    await store.waiting(0, 9)
    await store.suspects()
    await store.held(None, 3, 9)
    await store.held("stopped", 3, 9)
    connection.set_trace_callback(None)

    plans = [
        (step[3], sql)
        for sql in statements
        if not sql.startswith(("BEGIN", "ROLLBACK"))
        for step in connection.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()
    ]

    walked = [
        each
        for each in plans
        if each[0].startswith("SCAN")
        and not any(word in each[0] for word in ("wanted", "addressed", "CONSTANT", "(subquery"))
    ]
    assert [step for step, _ in walked if "message_due" not in step and "message_suspect" not in step] == []


async def test_busy_loop_does_not_starve_commits(opened: Any) -> None:
    store = await opened(SQLiteStore)

    async def spin() -> None:
        while True:
            sum(range(300))
            await asyncio.sleep(0)

    loop = asyncio.get_running_loop()
    busy = [asyncio.ensure_future(spin()) for _ in range(20)]
    began = loop.time()
    for no in range(100):
        await store.commit(accepting(no))
    took_s = loop.time() - began
    for task in busy:
        task.cancel()

    # 0.4 s where it was written, and more than 10 s there when the loop gives no way.
    assert took_s < 5
