"""A coroutine that runs in its caller's task, but in a context of its own.

A task of its own would isolate it as well, for the price of the task, of waiting for it and of two rounds of the event
loop; and whoever cancels the caller would have to see that the task ends.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Apart(Generic[T]):
    """Awaits *work* so that every part of it runs in *context*; what it changes there, its caller does not see."""

    __slots__ = ("_context", "_work")

    def __init__(self, work: Coroutine[Any, Any, T], context: Context) -> None:
        self._work = work
        self._context = context

    def __await__(self) -> Generator[Any, Any, T]:
        run = self._context.run
        go_on, given = self._work.send, None
        while True:
            try:
                awaited = run(go_on, given)
            except StopIteration as end:
                value: T = end.value
                return value
            try:
                yield awaited  # A task sends nothing but None.
            except GeneratorExit:
                run(self._work.close)
                raise
            except BaseException as error:
                go_on, given = self._work.throw, error
            else:
                go_on, given = self._work.send, None
