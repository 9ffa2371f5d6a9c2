"""Damaged rows are found before anything is decoded from them, swapped ones included."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import StateUndecodable
from understudy.mailbox.commit import Batch, DeadLetter, KeptResult, Record, Snapshot
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.journal import Failure, JournalEntry, Outcome

pytestmark = pytest.mark.anyio

FAILURE = Failure(kind="failed", type="E", message="m")


def message(no: int, actor: int, **fields: Any) -> Envelope:
    return Envelope(no, actor, no, "h", b"body%d" % no, Head(1.0, "c"), **fields)


def result(no: int) -> KeptResult:
    return KeptResult(no, 1, "h", "k", b"d", Outcome(value=b"v%d" % no), "done", 1.0, 2.0, "c")


@pytest.fixture
async def damaged(opened: Any, path: Path) -> Any:
    """Write one row of everything for two actors, then let the test change the file behind the store's back."""
    store = await opened()
    batch = Batch(1)
    for no in (1, 2):
        batch.actors[no] = ("kind", str(no))
        batch.snapshots[no] = Snapshot(1, 3, b"state%d" % no)
        batch.events.append((no, 1, b"event%d" % no))
        batch.envelopes[no] = message(no, no, caller=9)
        batch.journal[no, b"key"] = JournalEntry(no, b"key", Outcome(value=b"value%d" % no))
        batch.results[no + 10] = result(no + 10)
        batch.picture = b"picture"
        batch.put(Record("ledger", "v", b"record", "run"))
        batch.dead[no + 20] = DeadLetter(message(no + 20, no), FAILURE, 1.0)
    await store.commit(batch)
    await store.close(clean=True)

    async def damage(sql: str) -> Any:
        with closing(sqlite3.connect(path)) as connection, connection:
            assert connection.execute(sql).rowcount > 0
        return await opened()

    return damage


def swap(table: str, column: str, key: str, offset: int = 0) -> str:
    """Exchange one column of the two rows."""
    first = 1 + offset
    return (
        f"UPDATE {table} SET {column} = theirs.{column} FROM (SELECT {key} AS other, {column} FROM {table}) AS theirs"
        f" WHERE theirs.other = {2 * first + 1} - {table}.{key} AND {table}.{key} IN ({first}, {first + 1})"
    )


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE snapshot SET body = CAST('state9' AS BLOB) WHERE actor = 1",
        "UPDATE snapshot SET seq = 4 WHERE actor = 1",
        "UPDATE snapshot SET actor = CASE actor WHEN 1 THEN 1001 ELSE 1002 END",
    ],
)
async def test_damaged_state_is_named_and_not_returned(damaged: Any, sql: str) -> None:
    store = await damaged(sql)
    if "1001" in sql:  # the rows themselves change places: actor 1 gets that of actor 2
        await store.close(clean=True)
        store = await damaged("UPDATE snapshot SET actor = 1003 - actor")

    loaded, _ = await store.load([1, 2], 9)

    assert loaded.snapshot is None
    assert "state of kind/1" in loaded.damage


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE message SET body = CAST('other' AS BLOB) WHERE no = 1",
        "UPDATE message SET handler = 'g' WHERE no = 1",
        "UPDATE message SET position = 17 WHERE no = 1",
        "UPDATE message SET key = 'k' WHERE no = 1",
        "UPDATE message SET history = CAST('x' AS BLOB) WHERE no = 1",
        "UPDATE message SET amended = CAST('x' AS BLOB) WHERE no = 1",
        "UPDATE message SET amended = x'' WHERE no = 1",
        "UPDATE message SET checksum = checksum + 1 WHERE no = 1",
        swap("message", "actor", "no"),
        swap("message", "body", "no"),
    ],
)
async def test_damaged_message_is_named(damaged: Any, sql: str) -> None:
    store = await damaged(sql)
    actor = 2 if "SET actor" in sql else 1

    with pytest.raises(StateUndecodable, match=f"message 1 of actor number {actor}"):
        await store.mailbox(actor, 0, 9)
    with pytest.raises(StateUndecodable):
        await store.message(1)
    assert [each.no for each in await store.messages([1])] == []
    with pytest.raises(StateUndecodable):
        await store.asked_by(9)
    (loaded,) = await store.load([actor], 9)
    assert "message 1 of actor" in loaded.damage
    assert loaded.window == []


async def test_counters_of_a_message_may_change_in_sql(damaged: Any) -> None:
    store = await damaged("UPDATE message SET crashes = 4, attempts = 2, started = -1, not_before = 3.0 WHERE no = 1")

    assert (await store.message(1)).pending.crashes == 4


@pytest.mark.parametrize("sql", ["UPDATE event SET body = x'00' WHERE actor = 1", "UPDATE event SET seq = 2"])
async def test_damaged_event_is_named(damaged: Any, sql: str) -> None:
    store = await damaged(sql)

    with pytest.raises(StateUndecodable, match=r"event . of actor number 1"):
        await store.events(1, 0, 9)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE journal SET outcome = x'92c400c0' WHERE message = 1",
        "UPDATE journal SET after = x'00' WHERE message = 1",
        swap("journal", "outcome", "message"),
        swap("journal", "message", "no"),
    ],
)
async def test_damaged_journal_row_is_an_unknown_outcome(damaged: Any, sql: str) -> None:
    store = await damaged(sql)

    (entry,) = await store.journal(1)

    assert (entry.key, entry.outcome.value) == (b"key", None)
    assert (entry.outcome.failure.kind, entry.outcome.failure.type) == ("own", "OutcomeUnknown")


@pytest.mark.parametrize("sql", ["UPDATE result SET state = 'failed'", swap("result", "outcome", "no", 10)])
async def test_damaged_result_is_an_unknown_outcome(damaged: Any, sql: str) -> None:
    store = await damaged(sql)

    kept = (await store.message(11)).result

    assert kept.outcome.failure.type == "OutcomeUnknown"


async def test_damaged_result_stays_damaged_when_its_key_is_freed(damaged: Any) -> None:
    store = await damaged("UPDATE result SET outcome = x'92c400c0' WHERE no = 11")
    batch = Batch(1)
    batch.discarded = [11]

    await store.commit(batch)

    kept = (await store.message(11)).result
    assert (kept.key, kept.outcome.failure.type) == (None, "OutcomeUnknown")


@pytest.mark.parametrize("column", ["body", "head", "failure"])
async def test_damaged_dead_letter_is_listed_with_its_damage(damaged: Any, column: str) -> None:
    store = await damaged(f"UPDATE dead_letter SET {column} = x'c1' WHERE no = 21")

    first, second = await store.dead_letters(0, 9)

    assert first.failure.type == "StateUndecodable"
    assert "dead letter 21" in first.failure.message
    assert second.failure == FAILURE


async def test_damaged_picture_of_the_tree_is_none(damaged: Any) -> None:
    store = await damaged("UPDATE picture SET body = x'00'")

    assert await store.picture() is None


@pytest.mark.parametrize("change", ["body = x'00'", "owner = 'else'", "id = 'w'"])
async def test_damaged_record_is_refused(damaged: Any, change: str) -> None:
    store = await damaged(f"UPDATE record SET {change}")

    with pytest.raises(StateUndecodable, match=r"ledger \w is damaged"):
        await store.records("ledger", None, "", 9)
