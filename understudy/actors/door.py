"""Senders come in one after the other, in order of arrival, so that the order of one sender's messages holds."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.actors.activation import Activation


class Door:
    """Where senders wait while an actor is loaded, or while a key is looked up."""

    __slots__ = ("_activation", "_waiting", "arriving", "held")

    def __init__(self, activation: Activation) -> None:
        self._activation = activation
        self.held = False  # somebody has come in and lets nobody else in
        self.arriving = 0  # senders that wait, or were let in and have not run yet
        self._waiting: deque[asyncio.Future[None]] | None = None

    def nobody_waits(self) -> bool:
        """Whether a sender may go on at once."""
        return not self.held and not self._waiting

    async def enter(self) -> None:
        """Wait for one's turn at the door, in order of arrival; go on without an await after it."""
        waiter: asyncio.Future[None] = self._activation.system.loop.create_future()
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(waiter)
        if self._activation.ready and not self.held:
            self._activation.system.loop.call_soon(self.let_in)
        self.arriving += 1
        try:
            await waiter
        except asyncio.CancelledError:
            door: deque[asyncio.Future[None]] | None = self._waiting  # None when the actor could not be loaded
            if door and waiter in door:
                door.remove(waiter)
            raise
        finally:
            self.arriving -= 1
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._activation.passing = False
                self._activation.system.loop.call_soon(self.let_in)

    def let_in(self) -> None:
        """Let the first who waits come in; the next one follows when it has passed, unless it holds the door."""
        door = self._waiting
        while door and not self.held and not self._activation.passing:
            waiter = door.popleft()
            if not waiter.done():
                # It may hold the door when it runs, so nobody follows before.
                self._activation.passing = True
                waiter.set_result(None)
                return
        if not door:
            self._waiting = None

    def refuse_all(self, error: BaseException) -> None:
        """Turn away everybody at the door: the actor could not be loaded."""
        for waiter in self._waiting or ():
            if not waiter.done():
                waiter.set_exception(error)
        self._waiting = None

    def release(self) -> None:
        """Let the next sender in."""
        self.held = False
        self.let_in()
