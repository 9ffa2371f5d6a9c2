"""One batch as one transaction, in few statements.

Every statement that runs on the connection's thread gives up the interpreter lock, and on a busy loop waits up to 5 ms
to get it back. So rows go in by the hundred: 256 upserts beside a spinning thread took 576 ms with `executemany` and
16 ms as one statement. What is written is fixed on the loop's thread, before turns change their messages further.

Parameters are of types that CPython's sqlite3 binds as they are. Bytes and None it first offers to be adapted, for about
a microsecond each: so blobs are handed over as bytearrays, and NULL as a number that nobody stores. It is an integer:
decimals in a statement's text do not everywhere become the double that they were.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from understudy.errors import StoreFailed
from understudy.mailbox.commit import Batch
from understudy.mailbox.journal import storable
from understudy.mailbox.rows import (
    MESSAGE_COLUMNS,
    Row,
    dead_letter_row,
    event_row,
    journal_row,
    message_row,
    picture_row,
    record_row,
    result_row,
    snapshot_row,
    trace_row,
    without_key,
)

# Rows of one statement. More gains nothing, and 512 rows of the widest table are 9,728 of 32,766 possible parameters.
ROWS_MAX = 512
# Numbers are reserved on disk in blocks, so that a commit need not write the counter's page as well.
NUMBER_BLOCK = 10_000

_NULL = -(1 << 62)  # stands for NULL in what is inserted

_encode_numbers = msgspec.json.Encoder().encode


class _Table(NamedTuple):
    name: str
    columns: tuple[str, ...]
    conflict: str = ""


def _upsert(name: str, columns: tuple[str, ...], changed: tuple[str, ...]) -> _Table:
    changes = ", ".join(f"{column} = excluded.{column}" for column in changed)
    return _Table(name, columns, f" ON CONFLICT ({columns[0]}) DO UPDATE SET {changes}")


_RESULT = (
    "no",
    "actor",
    "handler",
    "key",
    "digest",
    "outcome",
    "state",
    "finished_at",
    "expires_at",
    "correlation",
    "checksum",
)
# The head is written anew with its checksum: one of an earlier version has fewer fields.
_PROGRESS = (
    "head",
    "position",
    "due_at",
    "started",
    "crashes",
    "attempts",
    "not_before",
    "history",
    "amended",
    "checksum",
)
_DEAD = (*MESSAGE_COLUMNS, "failure", "at")

_actor = _Table("actor", ("no", "kind", "id", "status", "reason"))
_snapshot = _upsert("snapshot", ("actor", "version", "seq", "body", "checksum"), ("version", "seq", "body", "checksum"))
_message = _upsert("message", MESSAGE_COLUMNS, _PROGRESS)
_event = _Table("event", ("actor", "seq", "body", "checksum"))
_journal = _Table("journal", ("message", "key", "outcome", "after", "child", "checksum"))
_result = _upsert("result", _RESULT, _RESULT[1:])
_dead = _upsert("dead_letter", _DEAD, _DEAD[1:])
_trace = _Table("trace", ("at", "correlation", "body"))
_picture = _upsert("picture", ("one", "body", "checksum"), ("body", "checksum"))
_RECORD = ("kind", "id", "owner", "body", "expires_at", "checksum")
_record = _Table(
    "record",
    _RECORD,
    " ON CONFLICT (kind, id) DO UPDATE SET " + ", ".join(f"{column} = excluded.{column}" for column in _RECORD[2:]),
)
_turns = _Table(
    "turns",
    ("kind", "handler", "finished", "failed"),
    " ON CONFLICT (kind, handler) DO UPDATE SET finished = finished + excluded.finished,"
    " failed = failed + excluded.failed",
)

_STARTED = "UPDATE message SET started = ? WHERE no IN (SELECT value FROM json_each(?))"
_WAKE = (
    "UPDATE actor SET status = 'active', reason = '' WHERE status = 'waiting'"
    " AND no IN (SELECT value FROM json_each(?))"
)


class Plan(msgspec.Struct, frozen=True):
    """A batch as statements, in the order in which they keep the tables consistent."""

    last_message: int
    discarded: list[int]  # dead letters that go
    forgotten: list[int]  # messages whose journal rows go
    finished: list[int]
    statements: list[tuple[str, Sequence[Any]]]
    rows: int


def plan(batch: Batch) -> Plan:
    """Fix what the batch writes; nothing that changes in memory afterwards changes it."""
    statements: list[tuple[str, Sequence[Any]]] = []
    rows = 0

    def insert(table: _Table, values: Sequence[Row]) -> None:
        nonlocal rows
        rows += len(values)
        statements.extend(_inserts(table, values))

    if batch.actors:
        insert(_actor, [(no, kind, id_, "active", "") for no, (kind, id_) in batch.actors.items()])
    if batch.statuses:
        statements.extend(
            ("UPDATE actor SET status = ?, reason = ? WHERE no = ?", (status, storable(reason), actor))
            for actor, (status, reason) in batch.statuses.items()
        )
    if batch.woken:
        rows += len(batch.woken)
        statements.append((_WAKE, (numbers(batch.woken),)))
    if batch.envelopes or batch.progress:
        insert(_message, [message_row(each) for each in chain(batch.envelopes.values(), batch.progress.values())])
    if batch.started:
        rows += len(batch.started)
        by_value: dict[int, list[int]] = {}
        for no, each in batch.started.items():
            by_value.setdefault(each.started, []).append(no)
        statements.extend((_STARTED, (value, numbers(those))) for value, those in by_value.items())
    if batch.snapshots:
        insert(_snapshot, [snapshot_row(actor, each) for actor, each in batch.snapshots.items()])
    if batch.events:
        insert(_event, [event_row(*each) for each in batch.events])
    if batch.journal:
        insert(_journal, [journal_row(each) for each in batch.journal.values()])
    if batch.results:
        insert(_result, [result_row(each) for each in batch.results.values()])
    if batch.dead:
        insert(_dead, [dead_letter_row(each) for each in batch.dead.values()])
    if batch.traces:
        insert(_trace, [trace_row(each) for each in batch.traces])
    if batch.records:
        insert(_record, [record_row(each) for each in batch.records.values() if each is not None])
        rows += len(batch.records)
        statements.extend(
            ("DELETE FROM record WHERE kind = ? AND id = ?", key) for key, each in batch.records.items() if each is None
        )
    if batch.picture is not None:
        insert(_picture, [picture_row(batch.picture)])
    if batch.turns:
        insert(_turns, [(*names, *counts) for names, counts in batch.turns.items()])
    # A discarded letter's journal goes, unless its message lives on: delivered again, or dead a second time.
    gone = [no for no in batch.discarded if no not in batch.envelopes and no not in batch.dead]
    return Plan(
        last_message=max(
            batch.last_message,
            max(batch.envelopes, default=0),
            max(batch.finished, default=0),
            max(batch.results, default=0),
            max(batch.dead, default=0),
            max((message for message, _ in batch.journal), default=0),
        ),
        discarded=list(batch.discarded),
        forgotten=[*batch.forgotten, *gone],
        finished=list(batch.finished),
        statements=statements,
        rows=rows + len(batch.finished) + len(batch.forgotten),
    )


def write(connection: sqlite3.Connection, epoch: int, todo: Plan) -> None:
    """Write the whole plan in one transaction, or raise: then nobody knows whether it is on disk."""
    execute = connection.execute
    execute("BEGIN IMMEDIATE")
    try:
        reserved = fence(connection, epoch)
        if todo.last_message > reserved:
            execute("UPDATE owner SET last_message = ?", (todo.last_message + NUMBER_BLOCK,))
        if todo.discarded:
            _discard(connection, todo.discarded)
        if todo.finished:
            execute("DELETE FROM message WHERE no IN (SELECT value FROM json_each(?))", (numbers(todo.finished),))
        if todo.forgotten:
            execute("DELETE FROM journal WHERE message IN (SELECT value FROM json_each(?))", (numbers(todo.forgotten),))
        for sql, values in todo.statements:
            execute(sql, values)
        execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def fence(connection: sqlite3.Connection, epoch: int) -> int:
    """Refuse to write for an owner that is not the newest; return the highest reserved message number."""
    newest, reserved = connection.execute("SELECT epoch, last_message FROM owner").fetchone()
    if newest != epoch:
        raise StoreFailed(
            f"another owner has opened the store since (its epoch is {newest}, ours is {epoch}); nothing was written. "
            "Stop this process: the newer one goes on from what is on disk."
        )
    return int(reserved)


def roll_back(connection: sqlite3.Connection) -> None:
    """Leave the transaction; the error that led here is the one to be told."""
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except sqlite3.Error:
        pass


def numbers(values: Iterable[int]) -> str:
    """Return numbers as one parameter, for json_each: one statement text serves any count."""
    return _encode_numbers(list(values)).decode()


def _discard(connection: sqlite3.Connection, letters: list[int]) -> None:
    """Delete dead letters; a result of the same message stays until it expires, but no longer holds the key."""
    parameter = numbers(letters)
    connection.execute("DELETE FROM dead_letter WHERE no IN (SELECT value FROM json_each(?))", (parameter,))
    held = connection.execute(
        f"SELECT {', '.join(_RESULT)} FROM result WHERE no IN (SELECT value FROM json_each(?)) AND key IS NOT NULL",  # noqa: S608 - our own column names
        (parameter,),
    ).fetchall()
    for sql, values in _inserts(_result, [without_key(row) for row in held]):
        connection.execute(sql, values)


def _inserts(table: _Table, rows: Sequence[Row]) -> Iterable[tuple[str, Sequence[Any]]]:
    width = len(table.columns)
    for start in range(0, len(rows), ROWS_MAX):
        part = rows[start : start + ROWS_MAX]
        # Rows are padded to a power of two, so that a dozen statement texts serve every count.
        size = 1 << (len(part) - 1).bit_length()
        values = [
            bytearray(each) if type(each) is bytes else _NULL if each is None else each
            for each in chain.from_iterable(part)
        ]
        values.extend([_NULL] * (width * (size - len(part))))
        yield _insert_sql(table, size), values


@cache
def _insert_sql(table: _Table, size: int) -> str:
    row = f"({', '.join('?' * len(table.columns))})"
    rows = ", ".join([row] * size)
    values = ", ".join(f"nullif(column{number}, {_NULL})" for number in range(1, len(table.columns) + 1))
    return (
        f"INSERT INTO {table.name} ({', '.join(table.columns)})"  # noqa: S608 - our own names
        f" SELECT {values} FROM (VALUES {rows}) WHERE column1 IS NOT {_NULL}{table.conflict}"
    )
