"""What goes, and what is copied: expired rows, old trace, erased actors, backups. Functions of a connection."""

# Paths stay text here: this module works with descriptors.
# ruff: noqa: PTH108, PTH119, PTH120
from __future__ import annotations

import contextlib
import os
import sqlite3

import msgspec

from understudy.errors import StoreRefused
from understudy.mailbox.envelope import Head
from understudy.mailbox.rows import read_trace
from understudy.mailbox.writing import numbers, roll_back

# A part is about a millisecond of work; a call of tidy does at most so many.
ROWS_PER_PART = 1_000
PARTS_MAX = 20
# Rows looked at to estimate the size of the trace, and what a row costs beside its text and body.
_SAMPLES = 100
_ROW_OVERHEAD = 48


def tidy_part(connection: sqlite3.Connection, now: float, trace_ttl_s: float, trace_bytes: int) -> bool:
    """Delete one part of what may go; whether there may be more."""
    execute = connection.execute
    excess = _trace_excess(connection, trace_bytes)
    execute("BEGIN IMMEDIATE")
    try:
        expired = execute(
            "DELETE FROM result WHERE no IN (SELECT no FROM result WHERE expires_at <= ? LIMIT ?)", (now, ROWS_PER_PART)
        ).rowcount
        records = execute(
            "DELETE FROM record WHERE (kind, id) IN (SELECT kind, id FROM record WHERE expires_at <= ? LIMIT ?)",
            (now, ROWS_PER_PART),
        ).rowcount
        # The oldest rows stand first. Looking at them only costs no index over the whole trace.
        old = execute(
            "DELETE FROM trace WHERE no IN (SELECT no FROM (SELECT no, at FROM trace ORDER BY no LIMIT ?) WHERE at <= ?)",
            (ROWS_PER_PART, now - trace_ttl_s),
        ).rowcount
        many = 0
        if excess > old:
            many = execute(
                "DELETE FROM trace WHERE no IN (SELECT no FROM trace ORDER BY no LIMIT ?)",
                (min(excess - old, ROWS_PER_PART),),
            ).rowcount
        execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise
    return ROWS_PER_PART in (expired, records, old, many)


def _trace_excess(connection: sqlite3.Connection, bytes_max: int) -> int:
    """Return about how many of the oldest trace rows are too many: counts by number and samples sizes."""
    first, last = connection.execute("SELECT min(no), max(no) FROM trace").fetchone()
    if first is None:
        return 0
    count: int = last - first + 1
    stride = max(1, count // _SAMPLES)
    # length() of a column reads the row's header only, not its overflow pages.
    (average,) = connection.execute(
        "WITH RECURSIVE sample(no) AS (SELECT ?1 UNION ALL SELECT no + ?2 FROM sample WHERE no + ?2 <= ?3)"
        " SELECT avg((SELECT length(body) + 2 * length(correlation) FROM trace WHERE no >= sample.no ORDER BY no LIMIT 1))"
        " FROM sample",
        (first, stride, last),
    ).fetchone()
    return max(0, count - int(bytes_max / (average + _ROW_OVERHEAD)))


def truncate_log(connection: sqlite3.Connection) -> None:
    """Copy the whole log into the file and cut it; leaves it for another time when a reader needs it."""
    connection.execute("PRAGMA busy_timeout=0").fetchall()
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError as error:
        if primary_code(error) != sqlite3.SQLITE_BUSY:
            raise
    finally:
        connection.execute("PRAGMA busy_timeout=5000").fetchall()


class _Place(msgspec.Struct):
    """What tells whose an event is; the rest of it does not matter here."""

    correlation: str = ""
    span: str = ""


def traces_of(connection: sqlite3.Connection, actor: int) -> list[int]:
    """Return the numbers of the trace rows of the actor's turns, and of all steps and calls in them.

    Reads the whole trace. Turns are known by the events that name the actor, and by the messages that it still has.
    """
    execute = connection.execute
    row = execute("SELECT kind, id FROM actor WHERE no = ?", (actor,)).fetchone()
    if row is None:
        return []
    encode = msgspec.msgpack.encode
    name = encode("kind") + encode(row[0]) + encode("actor") + encode(row[1])  # two fields of an encoded event
    rows: set[int] = set()
    spans: dict[str, set[str]] = {}  # by correlation
    for no, body in execute("SELECT no, body FROM trace WHERE instr(body, ?)", (name,)).fetchall():
        rows.add(no)
        for place in _places(body) or ():
            spans.setdefault(place.correlation, set()).add(place.span)
    for no, correlation in execute("SELECT no, correlation FROM result WHERE actor = ?", (actor,)).fetchall():
        spans.setdefault(correlation, set()).add(str(no))
    for no, head in execute(
        "SELECT no, head FROM message WHERE actor = ?1 UNION ALL SELECT no, head FROM dead_letter WHERE actor = ?1",
        (actor,),
    ).fetchall():
        with contextlib.suppress(msgspec.DecodeError):
            spans.setdefault(msgspec.msgpack.decode(head, type=Head).correlation, set()).add(str(no))
    for correlation, turns in spans.items():
        for no, body in execute("SELECT no, body FROM trace WHERE correlation = ?", (correlation,)).fetchall():
            places = _places(body)
            if places is None or any(place.span.partition("/")[0] in turns for place in places):
                rows.add(no)
    return sorted(rows)


def _places(body: bytes) -> list[_Place] | None:
    """Return where the events of a row happened; None when it is damaged, so that nobody can say."""
    try:
        return [msgspec.msgpack.decode(event, type=_Place) for event in read_trace(body)]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def delete_traces(connection: sqlite3.Connection, rows: list[int]) -> None:
    """Delete these trace rows."""
    connection.execute("DELETE FROM trace WHERE no IN (SELECT value FROM json_each(?))", (numbers(rows),))


def erase(connection: sqlite3.Connection, actor: int) -> None:
    """Delete the actor's rows, its messages' journals included."""
    execute = connection.execute
    execute("BEGIN IMMEDIATE")
    try:
        execute(
            "DELETE FROM journal WHERE message IN (SELECT no FROM message WHERE actor = ?1 UNION ALL"
            " SELECT no FROM result WHERE actor = ?1 UNION ALL SELECT no FROM dead_letter WHERE actor = ?1)",
            (actor,),
        )
        for table in ("message", "result", "dead_letter", "event", "snapshot"):
            execute(f"DELETE FROM {table} WHERE actor = ?", (actor,))  # noqa: S608 - our own names
        execute("DELETE FROM actor WHERE no = ?", (actor,))
        # Its number is in other actors' call chains: it is never given again.
        execute("UPDATE owner SET last_actor = max(last_actor, ?)", (actor,))
        execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def rewrite(connection: sqlite3.Connection) -> None:
    """Write the file anew from its live rows and empty the log."""
    connection.execute("PRAGMA temp_store=FILE").fetchall()  # The new copy may be larger than memory.
    try:
        connection.execute("VACUUM")
    finally:
        connection.execute("PRAGMA temp_store=MEMORY").fetchall()
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        error = sqlite3.OperationalError("a reader held the log, whose old bytes are still there")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error


def copy(connection: sqlite3.Connection, target: str) -> None:
    """Copy one state of the file to *target*, which appears whole or not at all.

    `VACUUM INTO` from a reader: it never blocks a commit, while SQLite's backup interface starts anew whenever another
    connection has written, and under constant commits never ends.
    """
    import tempfile  # Rarely needed, and slow to import.

    if os.path.lexists(target):
        raise StoreRefused(f"{target} exists already; a backup overwrites nothing. Choose another path.", path=target)
    try:
        fd, draft = tempfile.mkstemp(".partial", f"{os.path.basename(target)}.", os.path.dirname(target))
        try:
            # The connection stays read-only by its mode; VACUUM INTO refuses to run under this pragma.
            connection.execute("PRAGMA query_only=OFF").fetchall()
            connection.execute("VACUUM INTO ?", (draft,))
            os.fsync(fd)  # SQLite does not sync the copy.
            os.link(draft, target)  # Unlike a rename, refuses a file that has appeared meanwhile.
        finally:
            os.close(fd)
            os.unlink(draft)
        sync_directory(target)
    except FileExistsError as error:
        raise StoreRefused(f"{target} exists already; a backup overwrites nothing.", path=target) from error
    except (sqlite3.Error, OSError) as error:
        raise StoreRefused(
            f"the backup {target} could not be written ({error}). Check the directory, permissions and space.",
            path=target,
        ) from error


def sync_directory(path: str) -> None:
    """Make the name *path* as durable as the file."""
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 for errors of the Python module itself."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF
