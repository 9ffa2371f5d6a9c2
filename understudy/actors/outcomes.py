"""What becomes of a step in the journal: its value as bytes, its error as a failure, and the row that holds one.

A step that must not run twice has a start mark, the outcome that a crash leaves behind: nobody knows whether it
happened. Knows nothing of attempts and ladders.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors.failures import to_failure
from understudy.actors.turn import Turn
from understudy.codec import encode
from understudy.errors import EncodingFailed, LimitExceeded, OutcomeUnknown
from understudy.mailbox.journal import Failure, JournalEntry, Outcome, Slot

if TYPE_CHECKING:
    from understudy.actors.performing import Spec


def failure_of(error: Exception, spec: Spec) -> Failure:
    """Return the failure that an attempt's error is, as it is journaled."""
    # After sending, a timeout or a lost connection tells nothing; a refused one was never sent.
    lost = isinstance(error, (TimeoutError, ConnectionError)) and not isinstance(error, ConnectionRefusedError)
    if spec.interrupted == "fail" and lost:
        return unknown(spec.name, f"{type(error).__name__}: {error}")
    return to_failure(error, spec.raises)


def unknown(name: str, why: str) -> Failure:
    """Return the outcome of a step that must not run twice and of which nobody knows whether it happened."""
    return Failure(
        "own",
        OutcomeUnknown.__name__,
        f"nobody knows whether step {name} happened: {why}. It is declared interrupted='fail', so it is not run again.",
        arguments=encode({"step": name}),
    )


def encoded(value: Any, spec: Spec, turn: Turn) -> tuple[bytes, Any]:
    """Return the bytes of a step's value, and the copy of it that they hold.

    Raises:
        EncodingFailed: It cannot be stored, or would not be read as its annotated type.
        LimitExceeded: It is larger than `Limits.payload_bytes`.
    """
    what = f"the result of {spec.role} {spec.name}"
    try:
        body = encode(value)
    except EncodingFailed as error:
        raise EncodingFailed(f"{what}: {error}") from error
    limit = turn.activation.system.limits.payload_bytes
    if len(body) > limit:
        raise LimitExceeded(
            f"{what} is {len(body)} bytes, more than Limits.payload_bytes={limit}; it ran and is not run again. Store "
            "large data elsewhere and return its address.",
            limit="payload_bytes",
            value=len(body),
            value_max=limit,
        )
    try:
        return body, spec.decode(body) if spec.decode is not None else None
    except (msgspec.MsgspecError, ValueError, TypeError, NotImplementedError) as error:
        raise EncodingFailed(
            f"{what} is a {type(value).__qualname__}, which is not of its annotated type: {error}"
        ) from error


def write_row(turn: Turn, slot: Slot, outcome: Outcome) -> None:
    """Journal a row without giving the outcome to anybody."""
    if _has_another_owner(turn, slot):
        return
    journal = turn.ensure_journal()
    system = turn.activation.system
    if system.journals.get(journal.message) is not journal:
        return  # The message has ended: its journal is gone, or kept as it is with its dead letter.
    batch = system.committer.touch()
    batch.journal[(journal.message, slot.key)] = JournalEntry(journal.message, slot.key, outcome, slot.after)
    batch.work += 1
    journal.wrote(batch.number)


def mark_begun(turn: Turn, spec: Spec, slot: Slot) -> None:
    """Journal that a step that must not run twice is about to run: what a crash leaves behind."""
    if spec.interrupted == "fail":
        write_row(turn, slot, _mark(spec))


def hold_mark(spec: Spec, slot: Slot) -> None:
    """Let the mark be the outcome from now on, also for an attempt that finds the turn of this one abandoned.

    Not while the body is a thread: that one is joined.
    """
    if spec.interrupted == "fail":
        slot.outcome = _mark(spec)


def clear_mark(turn: Turn, spec: Spec, slot: Slot) -> None:
    """Journal that such a step does not run: it never began, or it has failed. A thread that goes on keeps the mark."""
    if spec.interrupted != "fail" or slot.work is not None or _has_another_owner(turn, slot):
        return
    slot.outcome = None
    write_row(turn, slot, Outcome())


def _mark(spec: Spec) -> Outcome:
    return Outcome(failure=unknown(spec.name, "the process died or the turn was ended while it ran"))


def _has_another_owner(turn: Turn, slot: Slot) -> bool:
    # What was abandoned is claimable again; once the next attempt has claimed it, it is no more this one's.
    return turn.is_fenced() and slot.claimed
