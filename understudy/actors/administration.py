"""What a person asks about a system: its actors, its dead letters; and to forget an actor for good.

Everything told here is on disk. It is read in pages, so that a list may be longer than the memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import TYPE_CHECKING, Any, cast

import msgspec

from understudy.actors import standing
from understudy.actors.actor import Actor
from understudy.errors import ActorSuspended, InvalidArguments, NotFound, StateUndecodable
from understudy.events import ActorErased

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.kinds import ActorType
    from understudy.actors.system import System
    from understudy.mailbox.commit import DeadLetter
    from understudy.mailbox.store import ActorRow

_PAGE = 500  # rows read at a time
_NEAR = 50  # actors read at a time to find the one with a number: those made together fail together


class ActorInfo(msgspec.Struct, frozen=True):
    """One stored actor."""

    kind: str
    id: str
    status: str  # "active", "waiting", "suspended" or "stopped"
    reason: str  # why it is not active
    waiting: int  # messages in its mailbox, delayed ones included
    oldest_at: float | None  # wall time at which the oldest of them was sent
    ref: Actor[Any, Any] | None  # None: its class is not registered with this system


class DeadLetterInfo(msgspec.Struct, frozen=True):
    """One message that was given up, and why."""

    id: str  # for `system.redeliver(id)` and `system.discard(id)`
    kind: str
    actor: str
    handler: str
    arguments: dict[str, Any] | None  # as plain data, those equal to their default left out; None: they are no data
    error: str  # the name of the error's type
    message: str
    traceback: str
    attempts: int  # how often it was tried, the last time included
    crashes: int  # how often the process died while its turn ran
    at: float  # wall time at which it was given up
    ref: Actor[Any, Any] | None  # None: its actor's class is not registered with this system


async def actors(system: System, type: ActorType | None) -> AsyncIterator[ActorInfo]:
    """Stream the stored actors, of one class or all, in order of creation."""
    await system.committer.wait_durable()
    after = 0
    while page := await system.store.actors(type.kind if type is not None else None, after, _PAGE):
        for row in page:
            yield _actor_info(system, row)
        after = page[-1].no


async def suspended(system: System) -> AsyncIterator[ActorInfo]:
    """Stream the suspended actors, in order of creation."""
    await system.committer.wait_durable()
    after = 0
    while page := await system.store.held("suspended", after, _PAGE):
        for row in page:
            yield _actor_info(system, row)
        after = page[-1].no


async def dead_letters(system: System) -> AsyncIterator[DeadLetterInfo]:
    """Stream the messages that were given up, oldest first."""
    await system.committer.wait_durable()
    after = 0
    while page := await system.store.dead_letters(after, _PAGE):
        addresses = await _addresses(system, {letter.envelope.actor for letter in page})
        for letter in page:
            address = addresses.get(letter.envelope.actor)
            if address is not None:  # Else its actor was erased meanwhile, and the letter with it.
                yield _dead_letter_info(system, letter, *address)
        after = page[-1].envelope.no


async def resume(activation: Activation) -> None:
    """Let an actor go on that is suspended or stopped; raises `ActorSuspended` when the cause is still there."""
    before = activation.status
    if before not in ("suspended", "stopped"):
        return
    activation.door.held = True  # It must not leave memory while it is read.
    try:
        await activation.reload()
    except StateUndecodable as error:
        activation.reason = str(error)
        raise ActorSuspended(f"{activation.name} stays suspended: {error}", reason=str(error)) from error
    finally:
        activation.door.release()
    if activation.status != before:
        return  # Somebody else resumed it meanwhile.
    member = activation.member
    resumed = False
    # A temporary child that its supervisor has forgotten is in the tree again at the next opening.
    if member is not None and member.supervisor.has(member):
        try:
            await member.supervisor.orders.resume_child(member.child_id)
            resumed = True
        except NotFound:
            pass  # Its supervisor is down, and starts it when it is started.
    if not resumed:
        standing.revive(activation)
        activation.pump()
    await activation.system.committer.wait_durable()


async def erase(system: System, activation: Activation) -> None:
    """Delete everything stored about an actor; raises `InvalidArguments` when it has mail or a running turn."""
    activation.door.held = True  # Who sends to it now finds a new actor.
    no = activation.no
    try:
        await system.committer.wait_durable()
        if activation.running or activation.depth or activation.reserved:
            raise InvalidArguments(
                f"{activation.name} has {activation.depth} waiting messages; nothing was erased. Cancel them first."
            )
        if activation.member is not None and activation.status in standing.HELD:
            raise InvalidArguments(
                f"{activation.name} is a static child and {activation.status}; nothing was erased. Resume it, or take it "
                "out of the tree, first."
            )
        if not no:
            return
        try:
            await system.store.erase(no)
        finally:
            # Its rows may be gone although the rewriting of the file failed: what is on disk decides.
            (record,) = await system.store.load([no], 0)
            if record is None:
                system.population.active.pop(no, None)
                await system.population.stop_object(activation, activation.object)
                activation.forget()
    finally:
        activation.door.release()
    system.recorder.emit(
        ActorErased(
            at=system.wall(),
            correlation="system",
            span=f"life {system.life}",
            life=system.life,
            kind=activation.type.kind,
            actor_no=no,
        )
    )
    await system.committer.wait_durable()


async def _addresses(system: System, numbers: Collection[int]) -> dict[int, tuple[str, str]]:
    """Return kind and id of the actors with these numbers; an actor that was erased is missing."""
    found: dict[int, tuple[str, str]] = {}
    for no in sorted(numbers):
        activation = system.population.by_no(no)
        if activation is not None:
            found[no] = (activation.type.kind, activation.id)
        elif no not in found:
            for row in await system.store.actors(None, no - 1, _NEAR):
                found[row.no] = (row.kind, row.id)
    return found


def _actor_info(system: System, row: ActorRow) -> ActorInfo:
    return ActorInfo(row.kind, row.id, row.status, row.reason, row.depth, row.oldest_at, _ref(system, row.kind, row.id))


def _dead_letter_info(system: System, letter: DeadLetter, kind: str, id: str) -> DeadLetterInfo:
    envelope, failure = letter.envelope, letter.failure
    return DeadLetterInfo(
        id=system.job_id(envelope.no),
        kind=kind,
        actor=id,
        handler=envelope.handler,
        arguments=_arguments(envelope.body),
        error=failure.type,
        message=failure.message,
        traceback=failure.traceback,
        attempts=envelope.attempts + 1,
        crashes=envelope.crashes,
        at=letter.at,
        ref=_ref(system, kind, id),
    )


def _arguments(body: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.msgpack.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError):  # A damaged letter is listed all the same.
        return None


def _ref(system: System, kind: str, id: str) -> Actor[Any, Any] | None:
    type = system.registry.types.get(kind)
    return cast(Actor[Any, Any], system.ref(type, id)) if type is not None else None
