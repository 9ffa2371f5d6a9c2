"""Files of every earlier version are brought up to date, and what they hold is read as it was written."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import StoreRefused
from understudy.mailbox.commit import Batch
from understudy.mailbox.migrations import APPLICATION_ID, MIGRATIONS, upgrade
from understudy.mailbox.visitor import visit
from understudy.testing.stores import InlineSQLiteStore

pytestmark = pytest.mark.anyio

# Rows as version 1 wrote them, checksums included.
HEAD = bytes.fromhex("98cb408f440000000000a163a170c0920304c0c2c2")
FAILURE = bytes.fromhex("96a66661696c6564aa56616c75654572726f72a26e6fa154c0c0")
VERSION_1 = {
    "owner": [(1, "e45c469e-7792-4469-b0cf-9b7467e078b7", 1795390087.9788527, 1, 1, 10003, 0)],
    "actor": [(1, "account", "alice", "active", ""), (2, "account", "bob", "suspended", "budget")],
    "message": [
        (1, 1, 1, "h", b"\x91\x05", HEAD, "k", 3, b"ck", 9.5, 0, 2, 3, 7.5, b"past", 3296133853),
        (2, 1, 2, "h", b"\x90", HEAD, None, None, None, None, 0, 0, 0, None, None, 2928330892),
    ],
    "dead_letter": [
        (3, 2, 3, "h", b"\x90", HEAD, None, None, None, None, 0, 0, 1, None, b"h", 2046935424, FAILURE, 12.5)
    ],
}


@pytest.fixture
def version_1(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        upgrade(connection, MIGRATIONS[:1])
        for table, rows in VERSION_1.items():
            connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    return path


async def test_messages_of_version_1_are_read_with_their_checksums(version_1: Path, opened: Any) -> None:
    store = await opened()

    first = (await store.message(1)).pending
    second = (await store.message(2)).pending
    (letter,) = await store.dead_letters(0, 9)
    assert (first.body, first.key, first.due_at, first.history, first.attempts) == (b"\x91\x05", "k", 9.5, b"past", 3)
    assert (first.head.sent_at, first.head.chain) == (1000.5, (3, 4))
    assert (first.amended, second.amended, letter.envelope.amended) == (None, None, None)
    assert (letter.failure.type, letter.failure.message, letter.at) == ("ValueError", "no", 12.5)


async def test_message_of_version_1_can_be_amended(version_1: Path, opened: Any) -> None:
    store = await opened()
    envelope = (await store.message(2)).pending
    envelope.amended = b"\x91\x09"
    batch = Batch(1)
    batch.note_progress(envelope)
    await store.commit(batch)
    await store.close(clean=True)

    again = await opened()

    assert (await again.message(2)).pending.amended == b"\x91\x09"


async def test_held_actors_of_version_1_are_listed_and_it_has_no_picture(version_1: Path, opened: Any) -> None:
    store = await opened()

    assert [(row.id, row.reason) for row in await store.held(None, 0, 9)] == [("bob", "budget")]
    assert await store.picture() is None


async def test_visitor_of_version_1_says_what_to_do_and_changes_nothing(version_1: Path) -> None:
    before = version_1.read_bytes()

    with pytest.raises(StoreRefused, match=r"schema 1; this one reads .* Start its program once"), visit(version_1):
        pass

    assert version_1.read_bytes() == before


async def test_store_of_version_1_that_was_not_closed_is_upgraded_with_its_log(version_1: Path) -> None:
    with closing(sqlite3.connect(version_1)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("UPDATE owner SET clean = 0")
        connection.execute("UPDATE message SET started = 1 WHERE no = 2")
        connection.commit()
        for each in (version_1, version_1.with_name(version_1.name + "-wal")):
            each.with_name("copy-" + each.name).write_bytes(each.read_bytes())
    store = InlineSQLiteStore(version_1.with_name("copy-" + version_1.name))

    opening = await store.open()
    pending = (await store.message(2)).pending
    await store.close(clean=True)

    assert (opening.clean, pending.crashes, pending.started) == (False, 1, -1)
