"""Code of users that runs without a turn: queries and `on_start`. It reads, and sees its surroundings, and changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors.failures import to_error, to_failure
from understudy.actors.turn import Turn, scope
from understudy.codec import encode
from understudy.errors import InvalidDefinition
from understudy.mailbox.envelope import Envelope, Head

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.kinds import BoundHandler


async def query(activation: Activation, handler: BoundHandler, arguments: Any, caller: Turn | None) -> Any:
    """Run a query on a copy of the last finished state; inside a turn its result may be ahead of the disk."""
    if (refusal := activation.unavailable()) is not None:
        raise refusal
    state = activation.state.fold_up() if activation.type.has_events else activation.state.current()
    reader = activation.new_object(state)
    finished_in = activation.finished_in
    view = _view(activation, reader, f"query {handler.where}")
    token = scope.set(view)
    try:
        result = await handler.function(reader, *msgspec.structs.astuple(arguments))
    except Exception as error:
        raise to_error(to_failure(error, handler.raises), handler.where, handler.raises) from error
    finally:
        scope.reset(token)
    reply = handler.wire.copy_result(result)
    if caller is None and finished_in > activation.system.committer.durable:
        await activation.system.committer.wait_durable()
    return reply


async def prepare_object(activation: Activation, made: Any) -> None:
    """Run the object's `on_start`, once; raises what it raises, and refuses one that changes the state."""
    type = activation.type
    before = encode(made.state) if type.has_state else b""
    token = scope.set(_view(activation, made, f"on_start of {activation.name}"))
    try:
        await made.on_start()
    finally:
        scope.reset(token)
    if type.has_state and encode(made.state) != before:
        raise InvalidDefinition(
            f"on_start of {activation.name} changed the state; it may load and prepare only. Change it in a handler."
        )
    made.__dict__["_started"] = True


def _view(activation: Activation, made: Any, what: str) -> Turn:
    """Return what such code sees of its surroundings: resources and addresses, but nothing that changes anything."""
    view = Turn(activation, Envelope(0, activation.no, 0, "", b"", Head(activation.system.wall(), "")), made)
    view.within = what
    return view
