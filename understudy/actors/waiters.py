"""Who waits for the outcomes of messages: found by message, and by actor without looking at everybody else's."""

from __future__ import annotations

import asyncio
from typing import Any


class Waiters:
    """Futures of those who wait, by message; with the message's actor, once that is known."""

    __slots__ = ("_actors", "_by_actor", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[int, list[asyncio.Future[Any]]] = {}
        self._actors: dict[int, int] = {}
        self._by_actor: dict[int, set[int]] = {}

    def __len__(self) -> int:
        """How many messages somebody waits for."""
        return len(self._waiting)

    def add(self, no: int, waiter: asyncio.Future[Any], actor: int = 0) -> None:
        """Let *waiter* wait for the message; 0: nobody knows yet whose it is."""
        self._waiting.setdefault(no, []).append(waiter)
        if actor:
            self.locate(no, actor)

    def locate(self, no: int, actor: int) -> None:
        """Note whose message it is, while somebody waits for it."""
        if no in self._waiting and no not in self._actors:
            self._actors[no] = actor
            self._by_actor.setdefault(actor, set()).add(no)

    def actor_of(self, no: int) -> int:
        """Return whose message it is; 0 when nobody knows, or nobody waits."""
        return self._actors.get(no, 0)

    def take(self, no: int) -> list[asyncio.Future[Any]]:
        """Return who waits for the message, and forget them."""
        actor = self._actors.pop(no, 0)
        if actor:
            of_actor = self._by_actor[actor]
            of_actor.discard(no)
            if not of_actor:
                del self._by_actor[actor]
        return self._waiting.pop(no, [])

    def take_first(self, no: int) -> asyncio.Future[Any] | None:
        """Return who waits for the message, where that is one at most, and forget it."""
        waiters = self.take(no)
        return waiters[0] if waiters else None

    def take_actor(self, actor: int) -> list[asyncio.Future[Any]]:
        """Return who waits for messages of the actor, in the order of the messages, and forget them."""
        return [waiter for no in sorted(self._by_actor.get(actor, ())) for waiter in self.take(no)]

    def leave(self, no: int, waiter: asyncio.Future[Any]) -> None:
        """Forget one who waits no more, if it was not forgotten before."""
        waiters = self._waiting.get(no)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                self.take(no)

    def everybody(self) -> list[asyncio.Future[Any]]:
        """Return everybody who waits."""
        return [waiter for waiters in self._waiting.values() for waiter in waiters]
