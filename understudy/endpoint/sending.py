"""Tells whoever makes a model call when it leaves: before that it costs nothing, after that it may have been paid for."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

# Not a parameter: between the one who counts the money and the one who sends lie the guard and its queues, which have
# nothing to do with it.
on_send: ContextVar[Callable[[], None] | None] = ContextVar("understudy_on_send", default=None)


def tell_sent() -> None:
    """Say that the call of this context is handed to its provider now."""
    call = on_send.get()
    if call is not None:
        call()
