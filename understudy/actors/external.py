"""`await external("paid", Payment)`: a handler waits for the outside, for days if need be, and across restarts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

import msgspec

from understudy.actors.failures import to_error
from understudy.actors.handler import positive_or_none
from understudy.actors.outside import check_name, step_name
from understudy.actors.turn import current_turn
from understudy.errors import InvalidArguments

T = TypeVar("T")


@overload
async def external(name: str, of: type[T], /, *, timeout_s: float | None = None) -> T: ...
@overload
async def external(name: str, of: Any, /, *, timeout_s: float | None = None) -> Any: ...
async def external(name: str, of: Any, /, *, timeout_s: float | None = None) -> Any:
    """Wait inside a handler for a value that somebody outside delivers: `await system.deliver(self.turn.id, name, value)`.

    Waiting survives restarts and costs no memory after `Limits.park_after_s`: the turn is ended then, and delivered
    again with the value in its journal. Code beside it that is no step is broken off by that. The handler's own
    `timeout_s`, and those of who asked it, stand still meanwhile; a deadline does not. A value that was delivered
    before the turn came here is there at once. Several waits under one name are answered one after the other.

    Args:
        name: What the outside delivers it by; the same in every delivery of the turn.
        of: The value's type.
        timeout_s: How long to wait, by the wall clock and across restarts.

    Raises:
        InvalidArguments: What was delivered is not of that type.
        StepTimeout: Nobody delivered it in time.
        NoTurn: This is no handler: steps, tools and queries do not wait for the outside.
    """
    turn = current_turn()
    check_name(name)
    turn.check(f"external({name!r})")
    positive_or_none(timeout_s, "timeout_s", f"external({name!r})")
    system = turn.activation.system
    try:
        decode = system.registry.decoder(of)
    except TypeError as error:
        raise InvalidArguments(f"external({name!r}): a value of type {of!r} cannot be stored: {error}") from error
    read = _reader(decode, name, of)
    slot = await turn.claim(step_name(name), b"")
    outcome = await system.waits.wait(turn, slot, name=name, timeout_s=timeout_s, check=read)
    if outcome.value is None:
        assert outcome.failure is not None
        raise to_error(outcome.failure, name)
    return read(outcome.value)


def _reader(decode: Callable[[bytes], Any], name: str, of: Any) -> Callable[[bytes], Any]:
    def read(body: bytes) -> Any:
        try:
            return decode(body)
        except (msgspec.MsgspecError, ValueError, TypeError, NotImplementedError) as error:
            raise InvalidArguments(
                f"the value delivered as {name!r} is not of the type {getattr(of, '__name__', of)} that the handler waits "
                f"for: {error}"
            ) from error

    return read
