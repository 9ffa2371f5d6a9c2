"""Streams of what happens, for people who listen: in order, and no slow reader fills the memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, Self, TypeVar
from weakref import WeakSet

from understudy.errors import LimitExceeded

T = TypeVar("T")


class Stream(AsyncIterator[T], Generic[T]):
    """One listener's stream; one that is too slow is cut off rather than fill the memory."""

    BEHIND_MAX = 100_000

    def __init__(
        self,
        name: str,
        read: Callable[[Any], T],
        others: WeakSet[Stream[T]],
        *,
        instead: str = "read the store instead",
    ) -> None:
        """Join *others*, who hear the same things; *read* makes of a thing what the listener gets.

        *instead* is what one that was cut off is told to do.
        """
        self._name = name
        self._read = read
        self._instead = instead
        self._others = others
        others.add(self)
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._lost = False
        self._ended = False

    def hear(self, thing: Any) -> None:
        """Take a thing, or None: there will be no more."""
        if self._ended:
            return
        if self._queue.qsize() >= self.BEHIND_MAX:
            self._lost = True
        elif not self._lost:
            self._queue.put_nowait(thing)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return what comes next; raises `LimitExceeded` when something was lost."""
        if self._ended:
            raise StopAsyncIteration
        if self._lost and self._queue.empty():
            self._ended = True
            raise LimitExceeded(
                f"a listener of {self._name} fell {self.BEHIND_MAX} events behind and was cut off; {self._instead}.",
                limit="BEHIND_MAX",
                value=self.BEHIND_MAX + 1,
                value_max=self.BEHIND_MAX,
            )
        thing = await self._queue.get()
        if thing is None:
            self._end()
            raise StopAsyncIteration
        return self._read(thing)

    async def aclose(self) -> None:
        """End the stream; who waits for what comes next sees the end."""
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._others.discard(self)
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)  # Somebody may wait.
