"""What a store holds, counted."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from understudy.mailbox import census
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.migrations import upgrade
from understudy.mailbox.rows import MESSAGE_COLUMNS, message_row

NOW = 5_000.0


class Town:
    """A store that is filled row by row."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.no = 0

    def actor(self, kind: str, id: str, status: str = "active", *, mail: int = 0, due_at: float | None = None) -> None:
        self.no += 1
        self.connection.execute("INSERT INTO actor VALUES (?, ?, ?, ?, ?)", (self.no, kind, id, status, f"why {id}"))
        actor = self.no
        for _ in range(mail):
            self.no += 1
            envelope = Envelope(self.no, actor, self.no, "h", b"\x80", Head(1_000.0 + self.no, "c"), due_at=due_at)
            row = message_row(envelope)
            places = ", ".join("?" * len(row))
            self.connection.execute(f"INSERT INTO message ({', '.join(MESSAGE_COLUMNS)}) VALUES ({places})", row)

    def count(self, *statics: tuple[str, str], shown_max: int = 3) -> census.Census:
        return census.take(self.connection, statics, shown_max=shown_max, now=NOW)


@pytest.fixture
def town() -> Iterator[Town]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        upgrade(connection)
        yield Town(connection)


def ids(seen: list[census.Seen]) -> list[str]:
    return [each.id for each in seen]


def test_actors_and_mail_are_counted_by_kind(town: Town) -> None:
    town.actor("shop", "a", mail=2)
    town.actor("shop", "b")
    town.actor("shop", "c", "suspended", mail=1)
    town.actor("shop", "d", "stopped")
    town.actor("clerk", "a", mail=1)

    kinds = town.count().kinds

    shop = kinds["shop"]
    assert list(kinds) == ["clerk", "shop"]
    assert (shop.stored, shop.suspended, shop.stopped, shop.mailed, shop.mail) == (4, 1, 1, 1, 3)
    assert shop.oldest_at == 1_002.0
    assert [(each.id, each.status, each.reason, each.mail) for each in shop.held] == [
        ("c", "suspended", "why c", 1),
        ("d", "stopped", "why d", 0),
    ]
    assert [(each.id, each.mail, each.oldest_at) for each in shop.deepest] == [("a", 2, 1_002.0)]


def test_of_many_the_deepest_mailboxes_are_listed_and_all_are_counted(town: Town) -> None:
    for number in range(20):
        town.actor("shop", f"s-{number}", mail=(number * 7) % 20)
        town.actor("shop", f"h-{number}", "stopped" if number % 2 else "suspended")

    shop = town.count().kinds["shop"]

    assert (shop.stored, shop.mailed, shop.mail, shop.suspended, shop.stopped) == (40, 19, 190, 10, 10)
    assert [each.mail for each in shop.deepest] == [19, 18, 17]
    assert ids(shop.held) == ["h-0", "h-2", "h-4"]


def test_of_equally_deep_mailboxes_the_oldest_actors_are_listed(town: Town) -> None:
    for number in range(9):
        town.actor("shop", f"s-{number}", mail=1)

    assert ids(town.count().kinds["shop"].deepest) == ["s-0", "s-1", "s-2"]


def test_messages_whose_time_has_not_come_are_counted_apart(town: Town) -> None:
    town.actor("shop", "late", mail=3, due_at=NOW + 1)
    town.actor("shop", "due", mail=2, due_at=NOW - 1)

    shop = town.count().kinds["shop"]

    assert (shop.mail, shop.later, shop.mailed) == (2, 3, 1)
    assert [(each.id, each.mail, each.later) for each in shop.deepest] == [("due", 2, 0)]


def test_static_actors_are_counted_one_by_one_and_not_with_their_kind(town: Town) -> None:
    town.actor("shop", "corner", "suspended", mail=4)
    town.actor("shop", "other", mail=1)

    found = town.count(("shop", "corner"), ("shop", "never stored"), ("clerk", 'o\'brien "x"'))

    corner = found.statics["shop", "corner"]
    assert list(found.statics) == [("shop", "corner")]
    assert (corner.status, corner.reason, corner.mail, corner.oldest_at) == ("suspended", "why corner", 4, 1_002.0)
    shop = found.kinds["shop"]
    assert (shop.stored, shop.mail, shop.suspended, ids(shop.held), ids(shop.deepest)) == (1, 1, 0, [], ["other"])


def test_damaged_head_has_no_age(town: Town) -> None:
    town.actor("shop", "a", mail=1)
    town.connection.execute("UPDATE message SET head = x'c1'")

    (seen,) = town.count().kinds["shop"].deepest

    assert (seen.mail, seen.oldest_at) == (1, None)


def test_counting_reads_indexes_and_not_every_message(town: Town) -> None:
    statements: list[str] = []
    town.connection.set_trace_callback(statements.append)
    town.count(("shop", "corner"))
    town.connection.set_trace_callback(None)

    plans: list[Any] = [
        step[3]
        for sql in statements
        if sql.lstrip().startswith("SELECT")
        for step in town.connection.execute(f"EXPLAIN QUERY PLAN {sql}")
    ]
    scans = [step for step in plans if step.startswith("SCAN")]
    assert [
        step
        for step in scans
        if "COVERING INDEX" not in step
        and "(subquery" not in step
        and "mail" not in step
        and "wanted" not in step
        and "json_each" not in step
    ] == []
    assert "SCAN message USING COVERING INDEX message_mailbox" in scans
