"""A coroutine that runs in its caller's task, but in a context of its own.

A task of its own would isolate it as well, for the price of the task, of waiting for it and of two rounds of the event
loop; and whoever cancels the caller would have to see that the task ends.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


_NOT_BEGUN: Any = object()


class Apart(Generic[T]):
    """Awaits *work* so that every part of it runs in *context*; what it changes there, its caller does not see.

    Of work that was begun already, *waits_for* is what it has yielded.
    """

    __slots__ = ("_context", "_waits_for", "_work")

    def __init__(self, work: Coroutine[Any, Any, T], context: Context, waits_for: Any = _NOT_BEGUN) -> None:
        self._work = work
        self._context = context
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        run, waits_for = self._context.run, self._waits_for
        go_on: Callable[[Any], Any] = self._work.send
        given: Any = None
        while True:
            if waits_for is not _NOT_BEGUN:
                try:
                    yield waits_for  # A task sends nothing but None.
                except GeneratorExit:
                    run(self._work.close)
                    raise
                except BaseException as error:
                    go_on, given = self._work.throw, error
                else:
                    go_on, given = self._work.send, None
            try:
                waits_for = run(go_on, given)
            except StopIteration as end:
                value: T = end.value
                return value
