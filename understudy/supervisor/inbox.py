"""A supervisor's mailbox: work that is handled one after the other, by a task that exists only while there is some."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

Work = Callable[[], Awaitable[Any]]


class Inbox:
    """What waits to be handled, in the order in which it came."""

    def __init__(self, name: str, spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[Any]]) -> None:
        self._name = name
        self._spawn = spawn
        self._waiting: deque[tuple[Work, asyncio.Future[Any] | None]] = deque()
        self._worker: asyncio.Task[Any] | None = None

    def is_idle(self) -> bool:
        """Whether nothing is handled and nothing waits."""
        return self._worker is None

    def post(self, work: Work) -> asyncio.Future[Any]:
        """Have *work* handled in its turn; the future gets its result or error, or is cancelled when it is dropped."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._add(work, done)
        return done

    def post_own(self, work: Work) -> None:
        """Have *work* handled that nobody waits for; an error in it is ours, and stops the system."""
        self._add(work, None)

    def drop(self) -> None:
        """End what is handled, and refuse what waits."""
        self._refuse_waiting()
        if self._worker is not None:
            self._worker.cancel()
            self._worker = None

    def _add(self, work: Work, done: asyncio.Future[Any] | None) -> None:
        self._waiting.append((work, done))
        if self._worker is None:
            self._worker = self._spawn(self._work(), self._name)
            self._worker.add_done_callback(self._worker_ended)

    def _worker_ended(self, worker: asyncio.Task[Any]) -> None:
        if self._worker is worker:  # It was ended from outside, with the system: nobody handles what is left.
            self._worker = None
            self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for _, done in waiting:
            if done is not None and not done.done():
                done.cancel()

    async def _work(self) -> None:
        while self._waiting:
            work, done = self._waiting.popleft()
            if done is None:
                await work()
                continue
            try:
                result = await work()
            except asyncio.CancelledError:
                done.cancel()
                raise
            except Exception as error:
                if not done.done():
                    done.set_exception(error)
                    done.exception()  # Seen: who asked may be gone.
            else:
                if not done.done():
                    done.set_result(result)
        self._worker = None
