"""The approvals that wait, read from a store as a visitor."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from understudy.actors.outside import KIND, Wait, decode_wait
from understudy.cli.facts import decoded
from understudy.errors import StateUndecodable
from understudy.mailbox import letters, reading
from understudy.trace import words


class Pending(msgspec.Struct, frozen=True):
    """One call that waits for a person."""

    id: str
    job: str
    wait: Wait

    @property
    def call(self) -> str:
        """The call on one line."""
        arguments = decoded(self.wait.arguments)
        told = "?" if arguments is None else ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return words.one_line(f"{self.wait.tool}({told})", 200)

    def facts(self) -> dict[str, Any]:
        """Return what is known of it, to be printed as JSON."""
        wait = self.wait
        return {
            "id": self.id,
            "tool": wait.tool,
            "arguments": decoded(wait.arguments),
            "actor": wait.actor,
            "job": self.job,
            "asked_at": wait.asked_at,
            "trace": wait.correlation,
        }


def approvals(connection: sqlite3.Connection) -> tuple[list[Pending], list[str]]:
    """Return those that wait, oldest first, and the ids of those whose rows are damaged."""
    store_id = reading.store_id(connection)
    found: list[Pending] = []
    damaged: list[str] = []
    # One by one: a page with a damaged row is not read at all.
    for (id,) in connection.execute("SELECT id FROM record WHERE kind = ? ORDER BY id", (KIND,)).fetchall():
        try:
            record = reading.record(connection, KIND, id)
            wait = decode_wait(record.body) if record is not None else None
        except (StateUndecodable, msgspec.MsgspecError):
            damaged.append(letters.name_of(int(id), store_id))
            continue
        if wait is not None and wait.kind == "approval":
            name = letters.name_of(int(id), store_id)
            found.append(Pending(name, letters.name_of(wait.message, store_id), wait))
    return found, damaged
