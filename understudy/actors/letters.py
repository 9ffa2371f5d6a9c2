"""Dead letters: a person tries one again, or forgets it. Until then its journal and its key stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from understudy.errors import NotFound, NotRegistered
from understudy.events import DeadLetterDiscarded, DeadLetterRedelivered
from understudy.mailbox.journal import JournalEntry, Outcome

if TYPE_CHECKING:
    from understudy.actors.system import System
    from understudy.mailbox.commit import DeadLetter

_VOID = Outcome()


async def find(system: System, id: str) -> DeadLetter:
    """Return the dead letter called *id*; raises `NotFound`."""
    await system.committer.wait_durable()
    letter = (await system.store.message(system.message_no(id))).dead
    if letter is None:
        raise NotFound(f"{id} is no dead letter (any more); system.dead_letters() lists them.")
    return letter


async def redeliver(system: System, id: str) -> None:
    """Put a dead letter back at the end of its actor's mailbox; what its finished steps returned is not done again."""
    letter = await find(system, id)
    activation = await system.population.of_no(letter.envelope.actor)
    if activation is None:
        raise NotRegistered(f"dead letter {id} is for an actor whose class is not registered with this system.")
    entries = await system.store.journal(letter.envelope.no)
    activation.door.held = True
    try:
        letter = await find(system, id)  # Somebody else may have been quicker.
        envelope = letter.envelope
        activation.check_room()
        envelope.position = system.next_message()
        envelope.started = -1  # Its journal is read back before its turn starts.
        envelope.crashes = envelope.attempts = 0
        envelope.due_at = envelope.not_before = envelope.history = None
        envelope.hold = "recovered"
        batch = system.committer.touch()
        batch.discarded.append(envelope.no)
        for entry in entries:
            failure = entry.outcome.failure
            if failure is not None and failure.type != "OutcomeUnknown":
                batch.journal[(envelope.no, entry.key)] = JournalEntry(envelope.no, entry.key, _VOID, entry.after)
        if envelope.head.keep:
            system.open_jobs[envelope.no] = envelope.actor
        system.recorder.emit_for(envelope, DeadLetterRedelivered)
        activation.depth += 1
        activation.accept(envelope)
    finally:
        activation.door.release()
    await system.committer.wait_durable()


async def discard(system: System, id: str) -> None:
    """Delete a dead letter, its journal and its key."""
    letter = await find(system, id)
    batch = system.committer.touch()
    batch.discarded.append(letter.envelope.no)
    batch.work += 1
    system.recorder.emit_for(letter.envelope, DeadLetterDiscarded)
    await system.committer.wait_durable()
