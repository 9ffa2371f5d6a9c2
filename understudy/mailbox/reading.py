"""What a store answers, as functions of a read-only connection. Each reads one state of the file, and all its rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from understudy.errors import StateUndecodable
from understudy.mailbox.commit import DeadLetter, Record
from understudy.mailbox.envelope import Envelope
from understudy.mailbox.journal import JournalEntry
from understudy.mailbox.rows import (
    MESSAGE_COLUMNS,
    Row,
    message_damage,
    read_dead_letter,
    read_event,
    read_journal,
    read_message,
    read_picture,
    read_record,
    read_result,
    read_snapshot,
    read_trace,
)
from understudy.mailbox.store import ActorRow, Loaded, Standing, Timer, TraceRow, Whereabouts
from understudy.mailbox.writing import numbers

_MESSAGE = ", ".join(f"m.{column}" for column in MESSAGE_COLUMNS)
_DEAD = ", ".join((*MESSAGE_COLUMNS, "failure", "at"))
_RESULT = "no, actor, handler, key, digest, outcome, state, finished_at, expires_at, correlation, checksum"

_LOAD = """
    SELECT a.no, a.kind, a.id, a.status, a.reason, s.version, s.seq, s.body, s.checksum,
        coalesce((SELECT max(seq) FROM event WHERE actor = a.no), 0),
        (SELECT count(*) FROM message WHERE actor = a.no)
    FROM json_each(?) AS wanted CROSS JOIN actor AS a ON a.no = wanted.value LEFT JOIN snapshot AS s ON s.actor = a.no
"""

# Of each actor the messages up to the position of the last one in its window.
_WINDOWS = f"""
    SELECT {_MESSAGE} FROM json_each(?1) AS wanted CROSS JOIN message AS m
    WHERE m.actor = wanted.value AND m.due_at IS NULL AND m.position <= coalesce(
        (SELECT position FROM message WHERE actor = wanted.value AND due_at IS NULL
         ORDER BY position LIMIT 1 OFFSET ?2 - 1), 9223372036854775807)
    ORDER BY m.actor, m.position
"""  # noqa: S608 - our own column names

# Jumps from actor to actor in the mailbox index instead of reading every message.
_WAITING = """
    WITH RECURSIVE addressed(actor) AS (
        SELECT min(actor) FROM message WHERE actor > ?1
        UNION ALL
        SELECT (SELECT min(actor) FROM message WHERE actor > addressed.actor) FROM addressed
        WHERE addressed.actor IS NOT NULL
    )
    SELECT a.no FROM addressed CROSS JOIN actor AS a ON a.no = addressed.actor
    WHERE a.status = 'active' AND EXISTS (SELECT 1 FROM message WHERE actor = a.no AND due_at IS NULL)
    LIMIT ?2
"""

_ACTOR_ROW = f"""
    SELECT a.no, a.kind, a.id, a.status, a.reason, (SELECT count(*) FROM message WHERE actor = a.no), {_MESSAGE}
    FROM actor AS a LEFT JOIN message AS m ON m.no = (SELECT min(no) FROM message WHERE actor = a.no)
"""  # noqa: S608 - our own column names
_ACTORS = f"{_ACTOR_ROW} WHERE a.no > ?1 AND (?2 IS NULL OR a.kind = ?2) ORDER BY a.no LIMIT ?3"

# The index has the held actors of one status in order of number; each status gives a page, and the first of both count.
# Its condition is repeated, because SQLite takes an index of some rows only for a query that says the same.
_HELD = f"""{_ACTOR_ROW} WHERE a.no IN (
        SELECT no FROM (
            SELECT * FROM (SELECT no FROM actor WHERE status = 'suspended' AND status <> 'active' AND no > ?1
                AND coalesce(?2, status) = status ORDER BY no LIMIT ?3)
            UNION ALL
            SELECT * FROM (SELECT no FROM actor WHERE status = 'stopped' AND status <> 'active' AND no > ?1
                AND coalesce(?2, status) = status ORDER BY no LIMIT ?3)
        ) ORDER BY no LIMIT ?3
    ) ORDER BY a.no
"""  # noqa: S608 - our own text

# Looks at the newest rows only: a trace has millions. What began among them is complete, older ones may be missing.
_CORRELATIONS = """
    SELECT t.correlation, t.at FROM (
        SELECT DISTINCT correlation FROM (SELECT correlation FROM trace ORDER BY no DESC LIMIT 20000)
    ) AS recent JOIN trace AS t ON t.no = (SELECT min(no) FROM trace WHERE correlation = recent.correlation)
    ORDER BY t.no DESC LIMIT ?
"""


_RECORDS = "SELECT kind, id, owner, body, expires_at, checksum FROM record WHERE kind = ?"


@contextmanager
def one_state(connection: sqlite3.Connection) -> Iterator[None]:
    """Let several statements see the same commit."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def load(
    connection: sqlite3.Connection, addresses: Sequence[tuple[str, str] | int], window: int
) -> list[Loaded | None]:
    """Return the actors in the order of *addresses*."""
    with one_state(connection):
        places = [_number(connection, address) for address in addresses]
        parameter = numbers(sorted({no for no in places if no is not None}))
        rows = connection.execute(_LOAD, (parameter,)).fetchall()
        mail = connection.execute(_WINDOWS, (parameter, window)).fetchall() if window > 0 else []
    windows: dict[int, list[Envelope]] = {}
    damages: dict[int, str] = {}
    for row in mail:
        damage = message_damage(row)
        if damage is None:
            windows.setdefault(row[1], []).append(read_message(row))
        else:
            damages.setdefault(row[1], damage)
    found: dict[int, Loaded] = {}
    for no, kind, id_, status, reason, version, seq, body, checksum, last_event, depth in rows:
        snapshot = None
        if body is not None:
            snapshot = read_snapshot((no, version, seq, body, checksum))
            if snapshot is None:
                damages[no] = f"the state of {kind}/{id_} (actor number {no}) is damaged: its checksum fails"
        found[no] = Loaded(
            no=no,
            kind=kind,
            id=id_,
            status=status,
            reason=reason,
            snapshot=snapshot,
            last_event=last_event,
            depth=depth,
            window=windows.get(no, []),
            damage=damages.get(no),
        )
    return [None if no is None else found.get(no) for no in places]


def _number(connection: sqlite3.Connection, address: tuple[str, str] | int) -> int | None:
    if isinstance(address, int):
        return address
    row = connection.execute("SELECT no FROM actor WHERE kind = ? AND id = ?", address).fetchone()
    return None if row is None else int(row[0])


def mailbox(connection: sqlite3.Connection, actor: int, after: int, limit: int) -> list[Envelope]:
    """Return messages without a due time above position *after*."""
    rows = connection.execute(
        f"SELECT {_MESSAGE} FROM message AS m WHERE actor = ? AND due_at IS NULL AND position > ?"  # noqa: S608
        " ORDER BY position LIMIT ?",
        (actor, after, limit),
    ).fetchall()
    return [read_message(row) for row in rows]


def message(connection: sqlite3.Connection, no: int) -> Whereabouts:
    """Return where the message is."""
    with one_state(connection):
        return _whereabouts(connection, no)


def messages(connection: sqlite3.Connection, wanted: Iterable[int]) -> list[Envelope]:
    """Return those of the messages that wait and can be read, by number."""
    rows = connection.execute(
        f"SELECT {_MESSAGE} FROM json_each(?) AS wanted CROSS JOIN message AS m ON m.no = wanted.value",  # noqa: S608
        (numbers(sorted(wanted)),),
    ).fetchall()
    found: list[Envelope] = []
    for row in rows:
        try:
            found.append(read_message(row))
        except StateUndecodable:
            continue  # Its actor is suspended when it is loaded: the damage is found there.
    return found


def keyed(connection: sqlite3.Connection, actor: int, handler: str, key: str) -> Whereabouts:
    """Return where the newest message with this key is."""
    with one_state(connection):
        (no,) = connection.execute(
            "SELECT max(no) FROM ("
            "SELECT no FROM message WHERE actor = ?1 AND handler = ?2 AND key = ?3 UNION ALL "
            "SELECT no FROM result WHERE actor = ?1 AND handler = ?2 AND key = ?3 UNION ALL "
            "SELECT no FROM dead_letter WHERE actor = ?1 AND handler = ?2 AND key = ?3)",
            (actor, handler, key),
        ).fetchone()
        return Whereabouts() if no is None else _whereabouts(connection, no)


def _whereabouts(connection: sqlite3.Connection, no: int) -> Whereabouts:
    row = connection.execute(f"SELECT {_MESSAGE} FROM message AS m WHERE no = ?", (no,)).fetchone()  # noqa: S608
    if row is not None:
        return Whereabouts(pending=read_message(row))
    result = connection.execute(f"SELECT {_RESULT} FROM result WHERE no = ?", (no,)).fetchone()  # noqa: S608
    dead = connection.execute(f"SELECT {_DEAD} FROM dead_letter WHERE no = ?", (no,)).fetchone()  # noqa: S608
    return Whereabouts(
        result=None if result is None else read_result(result),
        dead=None if dead is None else read_dead_letter(dead),
    )


def journal(connection: sqlite3.Connection, message: int) -> list[JournalEntry]:
    """Return the message's journal in order of writing."""
    rows = connection.execute(
        "SELECT message, key, outcome, after, child, checksum FROM journal WHERE message = ? ORDER BY no", (message,)
    ).fetchall()
    return read_journal(rows)


def asked_by(connection: sqlite3.Connection, message: int) -> list[Envelope]:
    """Return the open asks of the message's turn."""
    rows = connection.execute(
        f"SELECT {_MESSAGE} FROM message AS m WHERE caller = ? ORDER BY no",  # noqa: S608
        (message,),
    ).fetchall()
    return [read_message(row) for row in rows]


def events(connection: sqlite3.Connection, actor: int, after: int, limit: int) -> list[tuple[int, bytes]]:
    """Return the actor's events above number *after*."""
    rows = connection.execute(
        "SELECT seq, body, checksum FROM event WHERE actor = ? AND seq > ? ORDER BY seq LIMIT ?", (actor, after, limit)
    ).fetchall()
    return [read_event(actor, row) for row in rows]


def timers(connection: sqlite3.Connection, after: Timer | None, limit: int) -> list[Timer]:
    """Return delayed messages by due time."""
    due_at, no = (float("-inf"), 0) if after is None else (after.due_at, after.no)
    rows = connection.execute(
        "SELECT due_at, no, actor FROM message WHERE due_at IS NOT NULL AND (due_at, no) > (?, ?)"
        " ORDER BY due_at, no LIMIT ?",
        (due_at, no, limit),
    ).fetchall()
    return [Timer(*row) for row in rows]


def waiting(connection: sqlite3.Connection, after: int, limit: int) -> list[int]:
    """Return active actors that have mail to be delivered."""
    return [no for (no,) in connection.execute(_WAITING, (after, limit)).fetchall()]


def suspects(connection: sqlite3.Connection) -> list[int]:
    """Return actors whose messages have crashed the process twice or more."""
    rows = connection.execute("SELECT DISTINCT actor FROM message WHERE crashes >= 2 ORDER BY actor").fetchall()
    return [actor for (actor,) in rows]


def traces(connection: sqlite3.Connection, correlation: str | None, after: int, limit: int) -> list[TraceRow]:
    """Return the stored events of *limit* rows, in order; those of one row have its number."""
    if correlation is None:
        rows = connection.execute(
            "SELECT no, at, correlation, body FROM trace WHERE no > ? ORDER BY no LIMIT ?", (after, limit)
        ).fetchall()
    else:
        rows = connection.execute(
            "SELECT no, at, correlation, body FROM trace WHERE correlation = ? AND no > ? ORDER BY no LIMIT ?",
            (correlation, after, limit),
        ).fetchall()
    return [
        TraceRow(no, place, at, told_of, event)
        for no, at, told_of, body in rows
        for place, event in enumerate(read_trace(body))
    ]


def correlations(connection: sqlite3.Connection, limit: int) -> list[tuple[str, float]]:
    """Return the newest correlations with the time of their first event."""
    return connection.execute(_CORRELATIONS, (limit,)).fetchall()


def dead_letters(connection: sqlite3.Connection, after: int, limit: int) -> list[DeadLetter]:
    """Return dead letters by number."""
    rows = connection.execute(
        f"SELECT {_DEAD} FROM dead_letter WHERE no > ? ORDER BY no LIMIT ?",  # noqa: S608
        (after, limit),
    ).fetchall()
    return [read_dead_letter(row) for row in rows]


def newest_letters(connection: sqlite3.Connection, limit: int) -> list[DeadLetter]:
    """Return dead letters, the newest messages first."""
    rows = connection.execute(f"SELECT {_DEAD} FROM dead_letter ORDER BY no DESC LIMIT ?", (limit,)).fetchall()  # noqa: S608
    return [read_dead_letter(row) for row in rows]


def letter_numbers(connection: sqlite3.Connection) -> list[int]:
    """Return the numbers of all dead letters, in order."""
    return [no for (no,) in connection.execute("SELECT no FROM dead_letter ORDER BY no")]


def standing(connection: sqlite3.Connection, actors: Iterable[int]) -> dict[int, Standing]:
    """Return name and status of the actors with these numbers; one that was erased is missing."""
    rows = connection.execute(
        "SELECT no, kind, id, status, reason FROM actor WHERE no IN (SELECT value FROM json_each(?))",
        (numbers(sorted(set(actors))),),
    )
    return {no: Standing(*facts) for no, *facts in rows}


def store_id(connection: sqlite3.Connection) -> str:
    """Return the store's id, which names of messages end in."""
    (found,) = connection.execute("SELECT store_id FROM owner").fetchone()
    return str(found)


def actors(connection: sqlite3.Connection, kind: str | None, after: int, limit: int) -> list[ActorRow]:
    """Return a page of the list of actors."""
    return _actor_rows(connection.execute(_ACTORS, (after, kind, limit)).fetchall())


def _actor_rows(rows: Sequence[Row]) -> list[ActorRow]:
    return [
        ActorRow(
            no=row[0],
            kind=row[1],
            id=row[2],
            status=row[3],
            reason=row[4],
            depth=row[5],
            oldest_at=None if row[6] is None or message_damage(row[6:]) else read_message(row[6:]).head.sent_at,
        )
        for row in rows
    ]


def held(connection: sqlite3.Connection, status: str | None, after: int, limit: int) -> list[ActorRow]:
    """Return a page of the list of actors that are suspended, stopped, or either."""
    return _actor_rows(connection.execute(_HELD, (after, status, limit)).fetchall())


def picture(connection: sqlite3.Connection) -> bytes | None:
    """Return the stored picture of the tree; None when there is none, or it is damaged."""
    row = connection.execute("SELECT one, body, checksum FROM picture").fetchone()
    return None if row is None else read_picture(row)


def record(connection: sqlite3.Connection, kind: str, id: str) -> Record | None:
    """Return the record stored under (kind, id)."""
    row = connection.execute(f"{_RECORDS} AND id = ?", (kind, id)).fetchone()
    return None if row is None else read_record(row)


def records(connection: sqlite3.Connection, kind: str, owner: str | None, after: str, limit: int) -> list[Record]:
    """Return a page of the records of one kind, by id."""
    if owner is None:
        rows = connection.execute(f"{_RECORDS} AND id > ? ORDER BY id LIMIT ?", (kind, after, limit)).fetchall()
    else:
        rows = connection.execute(
            f"{_RECORDS} AND owner = ? AND owner <> '' AND id > ? ORDER BY id LIMIT ?", (kind, owner, after, limit)
        ).fetchall()
    return [read_record(row) for row in rows]


def turns(connection: sqlite3.Connection) -> list[tuple[str, str, int, int]]:
    """Return the counters of turns."""
    return connection.execute("SELECT kind, handler, finished, failed FROM turns ORDER BY kind, handler").fetchall()
