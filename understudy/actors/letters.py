"""Dead letters: a person tries one again, or forgets it. Until then its journal and its key stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from understudy.actors.sent import sent_began
from understudy.errors import NotFound, NotRegistered
from understudy.events import DeadLetterDiscarded, DeadLetterRedelivered
from understudy.mailbox import letters

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.system import System
    from understudy.mailbox.commit import DeadLetter


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
    activation = await _enter(system, letter)
    if activation is None:
        raise NotRegistered(f"dead letter {id} is for an actor whose class is not registered with this system.")
    try:
        entries = await system.store.journal(letter.envelope.no)
        letter = await find(system, id)  # Somebody else may have been quicker.
        activation.check_room()
        batch = system.committer.touch()
        envelope = letters.redeliver(batch, letter, entries, system.next_message())
        envelope.hold = "recovered"
        if envelope.head.keep:
            system.open_jobs[envelope.no] = envelope.actor
        if envelope.head.workflow is not None:
            sent_began(batch, envelope, activation.type.kind)
        system.recorder.emit_for(envelope, DeadLetterRedelivered)
        activation.depth += 1
        activation.accept(envelope)
    finally:
        activation.door.release()
    await system.committer.wait_durable()


async def discard(system: System, id: str) -> None:
    """Delete a dead letter, its journal and its key."""
    letter = await find(system, id)
    activation = await _enter(system, letter)
    try:
        letter = await find(system, id)
        letters.discard(system.committer.touch(), letter)
        system.recorder.emit_for(letter.envelope, DeadLetterDiscarded)
    finally:
        if activation is not None:
            activation.door.release()
    await system.committer.wait_durable()


async def _enter(system: System, letter: DeadLetter) -> Activation | None:
    """Bring the letter's actor to life and hold its door; None when its class is not registered.

    Two that move one letter at the same time would both find it: one after the other, the second finds it gone.
    """
    activation = await system.population.of_no(letter.envelope.actor)
    if activation is not None:
        if not activation.door.nobody_waits():
            await activation.door.enter()
        activation.door.held = True
    return activation
