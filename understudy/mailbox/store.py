"""What a store must do. One conformance suite checks every implementation.

Writing happens in one place, one batch at a time, in order. Reads see committed data only and may run beside a write.
A store is opened by one owner at a time; each commit first checks that the owner's epoch is still the newest.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Protocol

import msgspec

from understudy.mailbox.commit import Batch, DeadLetter, KeptResult, Record, Snapshot
from understudy.mailbox.envelope import Envelope
from understudy.mailbox.journal import JournalEntry


class Opening(msgspec.Struct, frozen=True):
    """What the store says when it is opened."""

    store_id: str
    epoch: int  # grows with every opening: the life number in the trace
    last_message: int  # no message number above it was ever given (0 when none); numbers between were perhaps not
    last_actor: int
    clean: bool  # the last owner closed it in good order


class Loaded(msgspec.Struct, frozen=True):
    """One actor as it is on disk."""

    no: int
    kind: str
    id: str
    status: str  # "active", "waiting" (its first message waits for the outside), "suspended" or "stopped"
    reason: str
    snapshot: Snapshot | None
    last_event: int  # highest event number on disk (0 when none)
    depth: int  # messages that wait, delayed ones included
    window: list[Envelope]  # the first of those without a due time, in order of position
    damage: str | None = None  # why a row of this actor is not to be trusted (its checksum fails)


class Timer(msgspec.Struct, frozen=True, order=True):
    """A delayed message."""

    due_at: float
    no: int
    actor: int


class TraceRow(msgspec.Struct, frozen=True):
    """One stored event."""

    no: int  # of its row, which events of one turn may share
    place: int  # in its row, from 0
    at: float
    correlation: str
    body: bytes


class ActorRow(msgspec.Struct, frozen=True):
    """One line of the list of actors."""

    no: int
    kind: str
    id: str
    status: str
    reason: str
    depth: int
    oldest_at: float | None  # when the oldest waiting message was sent


class Standing(msgspec.Struct, frozen=True):
    """Whose a message is, and how that actor is."""

    kind: str
    id: str
    status: str  # "active", "waiting", "suspended" or "stopped"
    reason: str

    @property
    def name(self) -> str:
        """The actor as people call it."""
        return f"{self.kind}/{self.id}"


class Whereabouts(msgspec.Struct, frozen=True):
    """Where a message is; nothing is set when the store does not know it.

    A message that waits is pending and nothing else. One that has ended has a result, a dead letter, or both: a failed job.
    """

    pending: Envelope | None = None
    result: KeptResult | None = None
    dead: DeadLetter | None = None


class Store(Protocol):
    """Where everything durable is."""

    async def open(self) -> Opening:
        """Take ownership and bring the schema up to date.

        Messages found started have crashed once more (see `Envelope.started`); the count is made here.

        Raises:
            StoreLocked: Another process owns it.
            StoreRefused: It is no store of ours, newer, corrupt, vanished or on a network file system; not touched.
        """
        ...

    async def close(self, *, clean: bool) -> None:
        """Give up ownership. *clean* says that no turn was interrupted."""
        ...

    async def commit(self, batch: Batch) -> None:
        """Write the whole batch durably, or raise: then the outcome is unknown and the store must not be used again."""
        ...

    async def load(self, addresses: Sequence[tuple[str, str] | int], window: int) -> list[Loaded | None]:
        """Return the actors with these (kind, id) or numbers, in the same order; None for one that is not there."""
        ...

    async def mailbox(self, actor: int, after: int, limit: int) -> list[Envelope]:
        """Return messages without a due time whose position is above *after*, in order."""
        ...

    async def message(self, no: int) -> Whereabouts:
        """Return where the message is."""
        ...

    async def messages(self, numbers: Sequence[int]) -> list[Envelope]:
        """Return those of the messages that wait, by number; one that is damaged is left out."""
        ...

    async def keyed(self, actor: int, handler: str, key: str) -> Whereabouts:
        """Return where the message with this key is."""
        ...

    async def journal(self, message: int) -> list[JournalEntry]:
        """Return the outcomes of the message's steps and asks, in order of writing."""
        ...

    async def asked_by(self, message: int) -> list[Envelope]:
        """Return the messages that the turn of *message* asked and that have not ended."""
        ...

    async def events(self, actor: int, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Return (number, bytes) of the actor's events above *after*, in order."""
        ...

    async def timers(self, after: Timer | None, limit: int) -> list[Timer]:
        """Return delayed messages in order of (due_at, no), those above *after*."""
        ...

    async def waiting(self, after: int, limit: int) -> list[int]:
        """Return numbers of active actors above *after* that have messages without a due time, in order."""
        ...

    async def suspects(self) -> list[int]:
        """Return numbers of actors whose messages have crashed the process twice or more."""
        ...

    async def traces(self, correlation: str | None, after: int, limit: int) -> list[TraceRow]:
        """Return the stored events of *limit* rows above number *after*, in order, of one correlation or of all."""
        ...

    async def correlations(self, limit: int) -> list[tuple[str, float]]:
        """Return the newest correlation ids with the time of their first event, newest first."""
        ...

    async def dead_letters(self, after: int, limit: int) -> list[DeadLetter]:
        """Return dead letters by message number above *after*."""
        ...

    async def actors(self, kind: str | None, after: int, limit: int) -> list[ActorRow]:
        """Return a page of the list of actors, by number."""
        ...

    async def held(self, status: str | None, after: int, limit: int) -> list[ActorRow]:
        """Return actors above number *after* that are "suspended", or "stopped", or (None) either, by number."""
        ...

    async def picture(self) -> bytes | None:
        """Return the newest `Batch.picture`; None when there is none that can be trusted."""
        ...

    async def record(self, kind: str, id: str) -> Record | None:
        """Return the record stored under (kind, id); raises StateUndecodable when it is damaged."""
        ...

    async def records(self, kind: str, owner: str | None, after: str, limit: int) -> list[Record]:
        """Return records of one kind, of one owner or all, whose id is above *after*, in order of their ids."""
        ...

    async def turns(self) -> list[tuple[str, str, int, int]]:
        """Return (kind, handler, finished turns, failed turns)."""
        ...

    async def tidy(self, now: float, trace_ttl_s: float, trace_bytes: int) -> None:
        """Delete expired results, expired records and trace rows that are too old or too many, a bounded part per call; checkpoint."""
        ...

    async def erase(self, actor: int) -> None:
        """Delete every row of the actor, so that its bytes are no longer in the file nor its log."""
        ...

    async def backup(self, path: str | PathLike[str]) -> None:
        """Write a consistent copy to *path* while commits go on. Refuses an existing file."""
        ...
