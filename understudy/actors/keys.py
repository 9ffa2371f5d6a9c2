"""Keys: at most one message per key and handler. A key is known in memory until its outcome is on disk, then there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from understudy.actors.handler import Options
from understudy.errors import KeyConflict

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.kinds import BoundHandler
    from understudy.actors.turn import Send, Turn
    from understudy.mailbox.journal import Slot


async def send_keyed(
    activation: Activation,
    handler: BoundHandler,
    options: Options,
    body: bytes,
    arguments: Any,
    *,
    sender: Turn | None = None,
    slot: Slot | None = None,
) -> int:
    """Accept a message unless one with its key was accepted before; return the number of the one that counts.

    Raises:
        KeyConflict: The key was used with other arguments.
    """
    assert options.key is not None
    taken = await find_key(activation, handler, options.key, handler.wire.digest(arguments))
    try:
        if sender is not None:
            sender.check(handler.where)
        if taken is not None:
            return taken
        if sender is None:  # The system may have ended while the key was looked up.
            activation.system.check_usable()
            activation.system.check_accepting()
        envelope = activation.send(handler, options, body, arguments, sender=sender, slot=slot, keep=True)
        note_key(activation, handler.name, options.key, envelope.no, handler.wire.digest(arguments))
        return envelope.no
    finally:
        activation.door.release()


async def find_key(activation: Activation, handler: BoundHandler, key: str, arguments: bytes) -> int | None:
    """Return the number of the message with this key, or None; the door is held when it returns."""
    activation.door.held = True
    try:
        known = (activation.keys or {}).get((handler.name, key))
        if known is None and activation.on_disk:
            where = await activation.system.store.keyed(activation.no, handler.name, key)
            found = where.pending or (where.dead.envelope if where.dead else None)
            if where.result is not None:
                known = (where.result.no, where.result.digest)
            elif found is not None:
                known = (found.no, handler.wire.digest(handler.wire.decode(found.body)))
            known = (activation.keys or {}).get((handler.name, key)) or known
        if known is not None and known[1] != arguments:
            raise key_conflict(activation, handler, Options(key))
        return known[0] if known is not None else None
    except BaseException:  # Also a cancellation: nobody else would let the next sender in.
        activation.door.release()
        raise


def key_conflict(activation: Activation, handler: BoundHandler, options: Options) -> KeyConflict:
    """Return the error of a key that was used with other arguments."""
    return KeyConflict(
        f"key {options.key!r} of {activation.name}.{handler.name} was used before with other arguments; nothing was "
        "stored. Use a new key for a new message.",
        key=options.key,
    )


def note_key(activation: Activation, handler: str, key: str, no: int, arguments: bytes) -> None:
    """Remember the key until the message's outcome is on disk."""
    if activation.keys is None:
        activation.keys = {}
    activation.keys[(handler, key)] = (no, arguments)


def purge_keys(activation: Activation) -> None:
    """Forget keys whose outcome is on disk, unless a running turn counts on what it saw."""
    if activation.key_holds or not activation.keys:
        return
    pending = activation.system.open_jobs
    activation.keys = {key: held for key, held in activation.keys.items() if held[0] in pending} or None


def check_keys(sends: list[Send]) -> None:
    """Refuse to leave a message whose key was taken, since it was told, by one with other arguments."""
    for send in sends:
        key = send.options.key
        known = (send.activation.keys or {}).get((send.handler.name, key)) if key is not None else None
        if known is not None and known[1] != send.handler.wire.digest(send.arguments):
            raise key_conflict(send.activation, send.handler, send.options)
