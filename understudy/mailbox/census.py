"""What a store holds, counted: actors and mail by kind, and of each kind the few that a person wants to see.

Made for a million actors: counted by SQLite from its indexes, read row by row, and only the few are kept in memory.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Collection
from typing import NamedTuple

import msgspec

from understudy.mailbox.envelope import Head
from understudy.mailbox.reading import one_state
from understudy.mailbox.writing import numbers

_HELD = """
    SELECT no, kind, id, substr(reason, 1, 2000) FROM actor WHERE status = ?1 AND status <> 'active' ORDER BY no
"""

# The mailbox index has all columns of the inner query, so no message is read.
_MAIL = """
    SELECT a.no, a.kind, a.id, a.status, mail.ready, mail.later, mail.first FROM (
        SELECT actor, count(*) FILTER (WHERE due_at IS NULL OR due_at <= ?1) AS ready,
            count(*) FILTER (WHERE due_at > ?1) AS later,
            min(CASE WHEN due_at > ?1 THEN NULL ELSE no END) AS first
        FROM message GROUP BY actor
    ) AS mail CROSS JOIN actor AS a ON a.no = mail.actor
"""

_STATICS = """
    SELECT a.no, a.kind, a.id, a.status, a.reason FROM json_each(?) AS wanted CROSS JOIN actor AS a
    ON a.kind = json_extract(wanted.value, '$[0]') AND a.id = json_extract(wanted.value, '$[1]')
"""

_WAITING = """
    SELECT no, status, substr(reason, 1, 2000) FROM actor
    WHERE no IN (SELECT value FROM json_each(?)) AND status = 'waiting'
"""

_decode_head = msgspec.msgpack.Decoder(Head).decode


class Seen(msgspec.Struct):
    """One actor that is looked at. `oldest_at` is when the oldest message that waits was sent (wall time)."""

    no: int
    kind: str
    id: str
    status: str = "active"
    reason: str = ""
    mail: int = 0  # messages that could be delivered now
    later: int = 0  # messages whose time has not come
    oldest_at: float | None = None


class KindCount(msgspec.Struct):
    """The actors of one kind, those that were counted one by one left out."""

    stored: int = 0
    suspended: int = 0
    stopped: int = 0
    mailed: int = 0  # those of the others that have mail now
    mail: int = 0
    later: int = 0
    oldest_at: float | None = None
    held: list[Seen] = []  # suspended ones first, then those that have stopped
    deepest: list[Seen] = []  # active ones, and those that wait for the outside, by mail, the most first


class Census(msgspec.Struct):
    """What one state of a store holds."""

    kinds: dict[str, KindCount] = {}
    statics: dict[tuple[str, str], Seen] = {}  # those that were asked for and are stored, by (kind, id)
    dead_letters: int = 0


def take(connection: sqlite3.Connection, statics: Collection[tuple[str, str]], *, shown_max: int, now: float) -> Census:
    """Count the store; *statics* are actors (kind, id) to be counted one by one, *shown_max* bounds each kind's lists."""
    with one_state(connection):
        return _Counting(connection, shown_max, now).run(statics)


class _Deep(NamedTuple):
    """An actor with mail; of equally deep mailboxes the oldest actor's counts more."""

    mail: int
    minus_no: int
    id: str
    later: int
    first: int


class _Counting:
    def __init__(self, connection: sqlite3.Connection, shown_max: int, now: float) -> None:
        self._execute = connection.execute
        self._shown_max = shown_max
        self._now = now
        self._census = Census()
        self._seen: dict[int, Seen] = {}  # statics and the held that are shown, by number
        self._first: dict[int, int] = {}  # number of an actor that is shown -> of its oldest message
        self._first_of: dict[str, int] = {}  # the same of kinds

    def run(self, statics: Collection[tuple[str, str]]) -> Census:
        census = self._census
        for kind, count in self._execute("SELECT kind, count(*) FROM actor GROUP BY kind"):
            census.kinds[kind] = KindCount(stored=count)
        (census.dead_letters,) = self._execute("SELECT count(*) FROM dead_letter").fetchone()
        if statics:
            wanted = msgspec.json.encode(list(statics)).decode()
            for no, kind, id_, status, reason in self._execute(_STATICS, (wanted,)):
                self._seen[no] = census.statics[kind, id_] = Seen(no, kind, id_, status, reason)
                census.kinds[kind].stored -= 1
        self._count_held()
        self._count_mail()
        self._find_ages()
        return census

    def _count_held(self) -> None:
        for status in ("suspended", "stopped"):
            for no, kind, id_, reason in self._execute(_HELD, (status,)):
                if no in self._seen:
                    continue
                count = self._census.kinds[kind]
                if status == "suspended":
                    count.suspended += 1
                else:
                    count.stopped += 1
                if len(count.held) < self._shown_max:
                    self._seen[no] = Seen(no, kind, id_, status, reason)
                    count.held.append(self._seen[no])

    def _count_mail(self) -> None:
        heaps: dict[str, list[_Deep]] = {}
        for no, kind, id_, status, mail, later, first in self._execute(_MAIL, (self._now,)):
            seen = self._seen.get(no)
            if seen is not None:
                seen.mail, seen.later = mail, later
                self._first[no] = first or 0
                if (kind, id_) in self._census.statics:
                    continue
            count = self._census.kinds[kind]
            count.mail += mail
            count.later += later
            if first is not None:
                self._first_of[kind] = min(first, self._first_of.get(kind, first))
            if status not in ("active", "waiting") or first is None:
                continue
            count.mailed += 1
            heap = heaps.setdefault(kind, [])
            if len(heap) < self._shown_max:
                heapq.heappush(heap, _Deep(mail, -no, id_, later, first))
            elif mail > heap[0].mail:
                heapq.heapreplace(heap, _Deep(mail, -no, id_, later, first))
        for kind, heap in heaps.items():
            for mail, minus_no, id_, later, first in sorted(heap, reverse=True):
                seen = self._seen[-minus_no] = Seen(-minus_no, kind, id_, mail=mail, later=later)
                self._census.kinds[kind].deepest.append(seen)
                self._first[seen.no] = first
        self._find_reasons()

    def _find_reasons(self) -> None:
        """Tell of those with mail that are shown what they wait for outside, if they do."""
        shown = [seen.no for count in self._census.kinds.values() for seen in count.deepest]
        for no, status, reason in self._execute(_WAITING, (numbers(sorted(shown)),)):
            self._seen[no].status, self._seen[no].reason = status, reason

    def _find_ages(self) -> None:
        wanted = {first for first in (*self._first.values(), *self._first_of.values()) if first}
        sent: dict[int, float | None] = {}
        for no, head in self._execute(
            "SELECT no, head FROM message WHERE no IN (SELECT value FROM json_each(?))", (numbers(sorted(wanted)),)
        ):
            try:
                sent[no] = _decode_head(head).sent_at
            except msgspec.DecodeError:
                sent[no] = None  # A damaged message is told by the actor that it suspends.
        for no, first in self._first.items():
            self._seen[no].oldest_at = sent.get(first)
        for kind, first in self._first_of.items():
            self._census.kinds[kind].oldest_at = sent.get(first)
