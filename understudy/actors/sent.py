"""Which messages were sent through a workflow: a record of each, that goes with its outcome."""

from __future__ import annotations

import msgspec

from understudy.codec import encode
from understudy.mailbox.commit import Batch, Record
from understudy.mailbox.envelope import Envelope

SENT, SUBMITTED = "sent", "submitted"  # through a workflow: under way; ended, with an outcome that is kept


class Sent(msgspec.Struct, frozen=True, array_like=True):
    """A message that was sent through a workflow, as it is stored."""

    kind: str
    handler: str
    keep: bool


def sent_id(no: int) -> str:
    """Return the id of a message's record: records are listed by id, messages by number."""
    return f"{no:019d}"


def sent_began(batch: Batch, envelope: Envelope, kind: str) -> None:
    """Note that a message was sent through a workflow, in the batch that stores it."""
    body = encode(Sent(kind, envelope.handler, envelope.head.keep))
    batch.put(Record(SENT, sent_id(envelope.no), body, envelope.head.workflow or ""))


def sent_ended(batch: Batch, envelope: Envelope, kind: str, expires_at: float) -> None:
    """Note that it has ended; that it was a job is known as long as its outcome."""
    batch.drop(SENT, sent_id(envelope.no))
    if envelope.head.keep:
        body = encode(Sent(kind, envelope.handler, keep=True))
        batch.put(Record(SUBMITTED, sent_id(envelope.no), body, envelope.head.workflow or "", expires_at))


decode_sent = msgspec.msgpack.Decoder(Sent).decode
