"""Stores with very many pending messages or timers, made by plain SQL, as a killed process leaves them."""

from __future__ import annotations

import sqlite3
import time
from functools import partial
from pathlib import Path

from benchmarks.actors import Gate, Worker
from benchmarks.stored_rows import NUMBERS, actor_id, insert_actors, made_once
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.rows import MESSAGE_COLUMNS, message_row

_YEAR_S = 365 * 86_400.0
_STARTED = 256  # turns that were under way when the process was killed


def worker_id(number: int) -> str:
    """Return the id of a stored worker; they are numbered from 0."""
    return actor_id("worker", number)


def pending_file(directory: Path, *, messages: int, actors: int) -> Path:
    """Return the file with *messages* messages in the mailboxes of *actors* workers, to each in turn; made the first time."""
    fill = partial(_fill, messages=messages, actors=actors, due=0)
    return made_once(directory / f"pending-{messages}-{actors}.db", [Worker], fill, Gate(expected=None))


def timers_file(directory: Path, *, far: int, due: int) -> Path:
    """Return the file of workers with a timer each: the first *due* are over, *far* are next year's; made the first time."""
    fill = partial(_fill, messages=far + due, actors=far + due, due=due, timers=True)
    return made_once(directory / f"timers-{far}-{due}.db", [Worker], fill, Gate(expected=None))


def _fill(connection: sqlite3.Connection, messages: int, actors: int, due: int, *, timers: bool = False) -> None:
    last = insert_actors(connection, "worker", actors)
    if last:
        raise AssertionError("a new store has actors already")
    # No parameters: an empty map, as the library encodes the arguments of `Worker.work`.
    envelope = Envelope(1, 1, 1, "work", b"\x80", Head(1.0, ""))
    constant = dict(zip(MESSAGE_COLUMNS, message_row(envelope), strict=True))
    now = time.time()

    def due_at(no: int) -> float | None:
        if not timers:
            return None
        return now - due + no if no <= due else now + _YEAR_S + no

    def checksum(no: int, actor: int) -> int:
        envelope.no = envelope.position = no
        envelope.actor = actor
        envelope.due_at = due_at(no)
        return int(message_row(envelope)[-1])

    connection.create_function("due_at", 1, due_at)
    connection.create_function("checksum", 2, checksum)
    (index,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'message_mailbox'").fetchone()
    connection.execute("DROP INDEX message_mailbox")  # Row by row it takes longer than all the rest.
    made = {
        "no": "n",
        "actor": f"1 + (n - 1) % {actors}",
        "position": "n",
        "due_at": "due_at(n)",
        "started": "0" if timers else f"n <= {_STARTED}",
        "checksum": f"checksum(n, 1 + (n - 1) % {actors})",
    }
    values = ", ".join(made.get(column, f":{column}") for column in MESSAGE_COLUMNS)
    connection.execute(
        f"INSERT INTO message ({', '.join(MESSAGE_COLUMNS)}) {NUMBERS.format(count=messages)}"
        f" SELECT {values} FROM number",
        constant,
    )
    connection.execute(index)
    connection.execute("UPDATE owner SET clean = 0, last_message = ?, last_actor = ?", (messages, actors))
