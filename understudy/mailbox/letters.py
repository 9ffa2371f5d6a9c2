"""How a dead letter leaves: what a batch writes to deliver it again, or to forget it, whoever does so.

A running system changes its own mailboxes as well (`actors/letters.py`); without one the command line writes the batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from understudy.errors import NotFound, StateUndecodable
from understudy.events import TraceEvent
from understudy.mailbox.commit import Batch, DeadLetter
from understudy.mailbox.envelope import Envelope
from understudy.mailbox.journal import JournalEntry, Outcome

_VOID = Outcome()
_NO_BYTES_MAX = 18  # digits: numbers have 63 bits
_encode = msgspec.msgpack.Encoder().encode


def name_of(no: int, store_id: str) -> str:
    """Return the public name of a message: its number, and the store that it belongs to."""
    return f"{no}-{_tag(store_id)}"


def number_of(name: str, store_id: str) -> int:
    """Return the number of the message called *name*, which may be given without its store.

    Raises:
        NotFound: No message of this store can have that name.
    """
    number, _, tag = name.partition("-")
    if not (number.isascii() and number.isdigit() and len(number) <= _NO_BYTES_MAX):
        raise NotFound(f"{name!r} is no id of a dead letter; expected one like {name_of(17, store_id)!r}.")
    if tag not in ("", _tag(store_id)):
        raise NotFound(f"{name} belongs to another store than this one, whose ids end in -{_tag(store_id)}.")
    return int(number)


def _tag(store_id: str) -> str:
    return store_id.replace("-", "")[:6]


def redeliver(batch: Batch, letter: DeadLetter, journal: Iterable[JournalEntry], position: int) -> Envelope:
    """Let *batch* put the letter back at *position*, as if it had never been tried; return its message.

    What its finished steps returned stays and is not done again; failures of steps are forgotten, unless nobody knows
    their outcome. The caller puts the message into the batch.

    Raises:
        StateUndecodable: The letter is damaged: what it says is not to be believed.
    """
    envelope = letter.envelope
    if letter.damaged:
        raise StateUndecodable(
            f"{letter.failure.message}. It cannot be delivered again: restore the store from a backup, or discard it.",
            row=envelope.no,
        )
    envelope.position = position
    envelope.started = -1  # Its journal is read back before its turn starts.
    envelope.crashes = envelope.attempts = 0
    envelope.due_at = envelope.not_before = envelope.history = envelope.amended = None
    batch.discarded.append(envelope.no)
    for entry in journal:
        failure = entry.outcome.failure
        if failure is not None and failure.type != "OutcomeUnknown":
            batch.journal[(envelope.no, entry.key)] = JournalEntry(envelope.no, entry.key, _VOID, entry.after)
    return envelope


def discard(batch: Batch, letter: DeadLetter) -> None:
    """Let *batch* delete the letter, its journal and its key."""
    batch.discarded.append(letter.envelope.no)
    batch.work += 1


def tell(batch: Batch, event: type[TraceEvent], letter: DeadLetter, *, store_id: str, life: int, at: float) -> None:
    """Put an event about the letter's message into the batch, in the tree that the message belongs to."""
    envelope = letter.envelope
    told = event(
        at=at,
        correlation=envelope.head.correlation or name_of(envelope.no, store_id),
        span=str(envelope.no),
        parent=envelope.head.parent,
        life=life,
    )
    batch.tell(told.at, told.correlation, _encode(told))
