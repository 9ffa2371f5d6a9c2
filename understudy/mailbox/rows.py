"""Structs to rows and back, with checksums that cover the key columns as well, so that swapped rows are found.

The counters of a message (started, crashes, attempts, not_before) are not covered: opening a store changes them in SQL.
Rows on disk are untrusted input: a damaged one becomes an error or a damaged outcome, never a wrong value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from zlib import crc32

import msgspec

from understudy.errors import StateUndecodable
from understudy.mailbox.commit import DeadLetter, KeptResult, Record, Snapshot, Told
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.journal import Failure, JournalEntry, Outcome, decode_outcome, encode_failure, encode_outcome

Row = Sequence[Any]  # what sqlite3 returns: its columns have the types of schema.sql

MESSAGE_COLUMNS = (
    "no",
    "actor",
    "position",
    "handler",
    "body",
    "head",
    "key",
    "caller",
    "caller_key",
    "due_at",
    "started",
    "crashes",
    "attempts",
    "not_before",
    "history",
    "amended",
    "checksum",
)

_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(Head).decode
_decode_failure = msgspec.msgpack.Decoder(Failure).decode
_decode_events = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def seed(actor: int, seq: int, version: int = 0) -> int:
    """Mix key numbers into the start value of a checksum; odd factors keep different keys apart."""
    return (actor * 0x9E3779B1 + seq * 0x85EBCA6B + version * 0xC2B2AE35) & 0xFFFFFFFF


def snapshot_row(actor: int, snapshot: Snapshot) -> Row:
    """Return the row of table snapshot."""
    version, seq, body = snapshot.version, snapshot.seq, snapshot.body
    return actor, version, seq, body, crc32(body, seed(actor, seq, version))


def read_snapshot(row: Row) -> Snapshot | None:
    """Return the snapshot, or None when its checksum fails."""
    actor, version, seq, body, checksum = row
    if crc32(body, seed(actor, seq, version)) != checksum:
        return None
    return Snapshot(version=version, seq=seq, body=body)


def picture_row(body: bytes) -> Row:
    """Return the row of table picture."""
    return 1, body, crc32(body)


def read_picture(row: Row) -> bytes | None:
    """Return the stored picture, or None when its checksum fails."""
    _, body, checksum = row
    return body if crc32(body) == checksum else None


def record_row(record: Record) -> Row:
    """Return the row of table record."""
    kind, id, owner, body = record.kind, record.id, record.owner, record.body
    return kind, id, owner, body, record.expires_at, crc32(body, _record_seed(kind, id, owner))


def read_record(row: Row) -> Record:
    """Return the record; raises StateUndecodable when its checksum fails."""
    kind, id, owner, body, expires_at, checksum = row
    if crc32(body, _record_seed(kind, id, owner)) != checksum:
        raise StateUndecodable(
            f"{kind} {id} is damaged: its checksum fails. Restore the store from a backup.", row=f"{kind} {id}"
        )
    return Record(kind, id, body, owner, expires_at)


def _record_seed(kind: str, id: str, owner: str) -> int:
    return crc32(f"{kind}\0{id}\0{owner}".encode())


def event_row(actor: int, seq: int, body: bytes) -> Row:
    """Return the row of table event."""
    return actor, seq, body, crc32(body, seed(actor, seq))


def read_event(actor: int, row: Row) -> tuple[int, bytes]:
    """Return (number, bytes); raises StateUndecodable when the checksum fails."""
    seq, body, checksum = row
    if crc32(body, seed(actor, seq)) != checksum:
        raise StateUndecodable(
            f"event {seq} of actor number {actor} is damaged: its checksum fails. Restore the store from a backup.",
            actor=actor,
            row=seq,
        )
    return seq, body


def trace_row(told: Told) -> Row:
    """Return the row of table trace: of several events the body is their array."""
    events = told.events
    body = events[0] if len(events) == 1 else _encode([msgspec.Raw(event) for event in events])
    return told.at, told.correlation, body


def read_trace(body: bytes) -> list[bytes]:
    """Return the events of a row; a body that is neither an event nor several stands for itself."""
    try:
        return [bytes(event) for event in _decode_events(body)]
    except msgspec.DecodeError:
        return [body]


def message_row(envelope: Envelope) -> Row:
    """Return the row of table message."""
    head = _encode(envelope.head)
    due_at = envelope.due_at
    row = (
        envelope.no,
        envelope.actor,
        envelope.position,
        envelope.handler,
        envelope.body,
        head,
        envelope.key,
        envelope.caller,
        envelope.caller_key,
        None if due_at is None else float(due_at),
        envelope.started,
        envelope.crashes,
        envelope.attempts,
        envelope.not_before,
        envelope.history,
        envelope.amended,
    )
    return (*row, _message_checksum(row))


def _message_checksum(row: Row) -> int:
    no, actor, position, handler, body, head, key, caller, caller_key, due_at = row[:10]
    history, amended = row[14:16]
    names = f"{no} {actor} {position} {handler} {key} {caller} {due_at}".encode()
    checksum = crc32(body, crc32(head, crc32(history or b"", crc32(caller_key or b"", crc32(names)))))
    # Version 1 had no amendments: a row without one keeps the checksum that it had.
    return checksum if amended is None else crc32(amended, crc32(b"amended", checksum))


def message_damage(row: Row) -> str | None:
    """Return why the row is not to be trusted, or None."""
    if _message_checksum(row) != row[16]:
        return f"message {row[0]} of actor number {row[1]} is damaged: its checksum fails"
    return None


def read_message(row: Row) -> Envelope:
    """Return the message; raises StateUndecodable when the row is damaged."""
    damage = message_damage(row)
    if damage is not None:
        raise StateUndecodable(f"{damage}. Restore the store from a backup.", actor=row[1], row=row[0])
    try:
        return Envelope(*_fields(row, _decode_head(row[5])))
    except msgspec.DecodeError as error:
        raise StateUndecodable(
            f"the head of message {row[0]} of actor number {row[1]} does not decode ({error}).",
            actor=row[1],
            row=row[0],
        ) from error


def _fields(row: Row, head: Head) -> list[Any]:
    """Return the stored fields of an Envelope, in its order."""
    return [*row[:5], head, *row[6:16]]


def journal_row(entry: JournalEntry) -> Row:
    """Return the row of table journal, without its number."""
    outcome = encode_outcome(entry.outcome)
    return (
        entry.message,
        entry.key,
        outcome,
        entry.after,
        entry.child,
        _journal_checksum(entry.message, entry.key, outcome, entry.after),
    )


def _journal_checksum(message: int, key: bytes, outcome: bytes, after: bytes | None) -> int:
    return crc32(outcome, crc32(after or b"", crc32(key, seed(message, 0))))


def read_journal(rows: Iterable[Row]) -> list[JournalEntry]:
    """Return the entries in order of writing; of several rows of one key the last counts, in the place of the first."""
    entries: dict[bytes, JournalEntry] = {}
    for message, key, body, after, child, checksum in rows:
        if _journal_checksum(message, key, body, after) != checksum:
            outcome = _unknown(f"the journal row of message {message}")
        else:
            outcome = _outcome(body, f"the journal row of message {message}")
        entries[key] = JournalEntry(message=message, key=key, outcome=outcome, after=after, child=child)
    return list(entries.values())


def result_row(result: KeptResult) -> Row:
    """Return the row of table result."""
    row = (
        result.no,
        result.actor,
        result.handler,
        result.key,
        result.digest,
        encode_outcome(result.outcome),
        result.state,
        result.finished_at,
        result.expires_at,
        result.correlation,
    )
    return (*row, _result_checksum(row))


def _result_checksum(row: Row) -> int:
    no, actor, handler, key, digest, outcome, state = row[:7]
    return crc32(outcome, crc32(digest, crc32(f"{no} {actor} {handler} {key} {state}".encode())))


def read_result(row: Row) -> KeptResult:
    """Return the result; the outcome of a damaged row is `OutcomeUnknown`."""
    no, actor, handler, key, digest, body, state, finished_at, expires_at, correlation, checksum = row
    where = f"the stored result of message {no}"
    outcome = _outcome(body, where) if _result_checksum(row) == checksum else _unknown(where)
    return KeptResult(
        no=no,
        actor=actor,
        handler=handler,
        key=key,
        digest=digest,
        outcome=outcome,
        state=state,
        finished_at=finished_at,
        expires_at=expires_at,
        correlation=correlation,
    )


def without_key(row: Row) -> Row:
    """Return the row of table result with its key freed."""
    freed = (*row[:3], None, *row[4:10])
    checksum = _result_checksum(freed)
    if _result_checksum(row) != row[10]:
        checksum ^= 0xFFFFFFFF  # A damaged row stays a damaged row.
    return (*freed, checksum)


def dead_letter_row(letter: DeadLetter) -> Row:
    """Return the row of table dead_letter; its checksum covers the failure too."""
    row = message_row(letter.envelope)
    failure = encode_failure(letter.failure)
    return (*row[:16], crc32(failure, row[16]), failure, letter.at)


def read_dead_letter(row: Row) -> DeadLetter:
    """Return the dead letter; a damaged one is still listed, with its damage as the failure."""
    failure_body, at = row[17:19]
    damage: str | None = None
    if crc32(failure_body, _message_checksum(row)) != row[16]:
        damage = f"dead letter {row[0]} of actor number {row[1]} is damaged: its checksum fails"
    failure: Failure | None
    try:
        head = _decode_head(row[5])
        failure = _decode_failure(failure_body)
    except msgspec.DecodeError as error:
        head = Head(sent_at=at, correlation="")
        failure = None
        damage = damage or f"dead letter {row[0]} of actor number {row[1]} does not decode ({error})"
    if failure is None or damage is not None:
        failure = Failure(kind="own", type="StateUndecodable", message=damage or "")
    return DeadLetter(envelope=Envelope(*_fields(row, head)), failure=failure, at=at, damaged=damage is not None)


def _outcome(body: bytes, where: str) -> Outcome:
    try:
        return decode_outcome(body)
    except msgspec.DecodeError:
        return _unknown(where)


def _unknown(where: str) -> Outcome:
    text = f"{where} is damaged: nobody knows the outcome any more. Restore the store from a backup or resolve it."
    return Outcome(failure=Failure(kind="own", type="OutcomeUnknown", message=text))
