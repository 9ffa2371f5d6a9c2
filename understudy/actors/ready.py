"""Turns that may start, and the tasks that run them: each turn in a context of its own, not each in a task of its own.

A task costs as much as half of a small turn, and a round of the event loop between two turns of one actor lets commits go
by with few turns in each. So turns that do not wait share a task. A turn that waits keeps its task to itself until it has
ended: who cancels the task of a turn cancels that turn and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any

from understudy.actors import running
from understudy.actors.apart import Apart
from understudy.actors.turn import scope

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.kinds import BoundHandler
    from understudy.mailbox.envelope import Envelope

# What becomes ready meanwhile is taken too, until the other tasks of the loop should run. Under virtual time no time passes,
# so turns are counted as well.
_TURNS_MAX = 64
_SECONDS_MAX = 0.001
# After a turn that has waited, so many of its handler get tasks of their own: those behind a turn that waits unexpectedly
# wait for another round of the event loop.
_ALONE = 1_000


class ReadyTurns:
    """The turns of one system that may start now, and the tasks that run turns."""

    __slots__ = ("_beginning", "_context", "_loop", "_ready", "_taker", "tasks")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self._loop = loop
        self._context = Context()  # A turn sees no context variable of who has sent its message.
        self._ready: deque[tuple[Activation, Envelope, BoundHandler | None]] = deque()
        self._taker: asyncio.Task[Any] | None = None  # takes what is ready
        self._beginning: set[int] = set()  # messages whose turns have a task of their own that has not begun

    def add(self, activation: Activation, envelope: Envelope) -> None:
        """Start the turn of a message soon: not in this stretch of code, but before anything that waits for the outside."""
        handler = activation.type.handlers.get(envelope.handler)
        if handler is not None and handler.alone:
            handler.alone -= 1
            self._beginning.add(envelope.no)
            _ = self._start(self._run(activation, envelope, handler))
            return
        self._ready.append((activation, envelope, handler))
        if self._taker is None:
            self._taker = self._start(self._take())

    def holds(self, no: int) -> bool:
        """Whether the turn of that message is ready and has not begun."""
        return no in self._beginning or any(envelope.no == no for _, envelope, _ in self._ready)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[Any]:
        # Not `loop.create_task`: what it does for names that are not given costs 1 us.
        task = asyncio.Task(work, loop=self._loop, name="understudy-turn", context=self._context.copy())
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if self._taker is not task:
            return
        # It has not come to its end. A loop that is torn down cancels what has not begun; what broke a turn, such as
        # SystemExit, is not to keep the others from running.
        self._taker = None
        if not task.cancelled():
            self._leave()

    async def _run(self, activation: Activation, envelope: Envelope, handler: BoundHandler) -> None:
        self._beginning.discard(envelope.no)
        try:
            await running.run(activation, envelope, handler, asyncio.current_task())
        finally:
            # The turn knows its task, and the task this context: nothing of a turn is to stay until a collector comes by.
            scope.set(None)

    async def _take(self) -> None:
        """Run turns one after the other, up to the first that waits."""
        task, ready = self._taker, self._ready
        assert task is not None
        until = self._loop.time() + _SECONDS_MAX
        begun, owed = 0, len(ready)  # As with tasks, nothing that is ready now waits for another round.
        while ready:
            activation, envelope, handler = ready.popleft()
            begun += 1
            if handler is not None and handler.alone:  # Another turn of it has waited since.
                self.add(activation, envelope)
                continue
            context = self._context.copy()
            turn = running.run(activation, envelope, handler, task)
            try:
                waits_for = context.run(turn.send, None)
            except StopIteration:
                # Who has cancelled the task that its turn ran in has not cancelled the next turn.
                if task.cancelling() or (begun >= owed and (begun >= _TURNS_MAX or self._loop.time() >= until)):
                    break
                continue
            if handler is not None:
                handler.alone = _ALONE
            self._leave()
            await Apart(turn, context, waits_for)
            return
        self._leave()

    def _leave(self) -> None:
        """Let another task take what is ready."""
        self._taker = self._start(self._take()) if self._ready else None
