"""A connection on a thread of its own: one function per visit, run whole.

Statement by statement, a transaction would pay a round trip between the threads for each, and a cancellation could leave
it half done. Work that was handed over is always waited for, and only then is a cancellation delivered.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, Protocol, TypeAlias, TypeVar

import aiosqlite

from understudy.clock import outside

T = TypeVar("T")
_Jobs: TypeAlias = SimpleQueue[tuple[asyncio.Future[Any] | None, Callable[[], Any]]]


async def settle(work: asyncio.Future[T]) -> T:
    """Wait until *work* has finished; deliver a cancellation only then."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])  # unlike `await work`, leaves *work* running
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from work.exception()
    return work.result()


async def settle_task(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* to its end in a task of its own; deliver a cancellation only then."""
    return await settle(asyncio.get_running_loop().create_task(work))


class _Visit(asyncio.Future[T]):
    """What a visit to the thread returns. Cancelling who waits for it takes effect once it is over.

    A task whose future refuses to be cancelled gets its cancellation when it goes on: `settle` without the round of the
    loop that `asyncio.wait` takes.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, then: Callable[[], None] | None) -> None:
        super().__init__(loop=loop)
        self._then = then

    def set_result(self, result: T) -> None:
        """Call what is to be called at once, and let who waits go on in the next round of the loop."""
        if self._then is not None:
            try:
                self._then()
            except BaseException as error:
                self.set_exception(error)
                return
        super().set_result(result)

    def cancel(self, msg: Any | None = None) -> bool:
        """Refuse."""
        return False


class _Way:
    """Gives way to a connection's thread while work is in flight there.

    A loop that is never idle gives the interpreter lock up in every round, for the instant of an empty `select`, and has it
    back before another core has woken up. Each such instant also ends the 5 ms after which a waiting thread would ask for
    the lock, so the thread starves: commits beside twenty busy tasks took up to 8 s. A pause that is long enough to wake
    up in bounds that (12 ms in 99 of 100). One pause is due for each millisecond that the loop has worked: while it is
    idle, the thread has the lock anyway, and would only be heard of later.
    """

    EVERY_S = 0.001
    PAUSE_S = 0.0001

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._in_flight = 0
        self._worked_s = 0.0  # by the loop's thread, at the last pause

    def __enter__(self) -> None:
        self._in_flight += 1
        if self._in_flight == 1:
            self._worked_s = time.thread_time()
            self._timer = self._loop.call_later(self.EVERY_S, self._pause)

    def __exit__(self, *_: object) -> None:
        self._in_flight -= 1
        if self._in_flight == 0 and self._timer is not None:
            self._timer.cancel()

    def _pause(self) -> None:
        if self._in_flight:
            # Nearly all of the time: the loop's own waking up is no work.
            if time.thread_time() - self._worked_s >= 0.9 * self.EVERY_S:
                time.sleep(self.PAUSE_S)
                self._worked_s = time.thread_time()
            self._timer = self._loop.call_later(self.EVERY_S, self._pause)


class Runner(Protocol):
    """Where the functions of one connection run."""

    async def start(self) -> None:
        """Make the connection."""
        ...

    async def run(self, function: Callable[[sqlite3.Connection], T], then: Callable[[], None] | None = None) -> T:
        """Run *function* whole and return what it returns. *then* may be called on the loop a round before that."""
        ...

    def post(self, function: Callable[[sqlite3.Connection], None]) -> None:
        """Run *function* after what was handed over before, without waiting for it. It must not raise."""
        ...

    async def close(self) -> None:
        """Close the connection when all work handed over is done. Closing twice is one closing."""
        ...


class ThreadRunner(aiosqlite.Connection):
    """Runs functions on the connection's thread, in the order in which they are handed over."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connect, iter_chunk_size=64)
        # Whatever goes wrong above us, an interpreter that wants to exit does not wait for this thread.
        self._thread.daemon = True
        self._thread.name = "understudy-store"
        self._ending: asyncio.Future[Any] | None = None
        self._loop: asyncio.AbstractEventLoop  # kept: `get_running_loop` of CPython 3.11 asks for the process id
        self._way: _Way
        self._jobs: _Jobs = self._tx  # pyright: ignore[reportUnknownMemberType] - aiosqlite does not say of what

    async def start(self) -> None:
        """Start the thread and make the connection there."""
        self._loop = asyncio.get_running_loop()
        self._way = _Way(self._loop)
        with outside():
            await settle_task(self._start())

    async def _start(self) -> None:
        try:
            _ = await super().__aenter__()
        except BaseException:
            # The thread is ending. It reports to this loop, which may be closed soon: wait for it.
            if self._ending is not None:
                await self._ending
            raise

    def stop(self) -> asyncio.Future[Any] | None:
        """Ask the thread to end; the future is done when it does."""
        self._ending = super().stop()  # pyright: ignore[reportUnknownMemberType] - nor here
        return self._ending

    async def run(self, function: Callable[[sqlite3.Connection], T], then: Callable[[], None] | None = None) -> T:
        """Run *function* whole on the connection's thread; call *then* as soon as the loop hears of it."""
        visit: _Visit[T] = _Visit(self._loop, then)
        # A closure, not a `partial`: aiosqlite logs what it runs, and a partial shows its arguments, users' data.
        self._jobs.put_nowait((visit, lambda: function(self._conn)))
        with outside(), self._way:
            try:
                return await visit
            except asyncio.CancelledError as cancelled:
                raise cancelled from visit.exception()

    def post(self, function: Callable[[sqlite3.Connection], None]) -> None:
        """Run *function* on the connection's thread, without waiting for it."""
        self._jobs.put_nowait((None, lambda: function(self._conn)))

    async def close(self) -> None:
        """Close the connection and end its thread."""
        with outside():
            await settle_task(super().close())


class InlineRunner:
    """Runs functions on the loop's own thread, at once: deterministic, for tests and simulation."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._connection: sqlite3.Connection | None = None

    async def start(self) -> None:
        """Make the connection."""
        self._connection = self._connect()

    async def run(self, function: Callable[[sqlite3.Connection], T], then: Callable[[], None] | None = None) -> T:
        """Let the loop go round once, as a thread would, then run *function*."""
        await asyncio.sleep(0)
        if self._connection is None:
            raise ValueError("no active connection")
        return function(self._connection)

    def post(self, function: Callable[[sqlite3.Connection], None]) -> None:
        """Run *function* at once."""
        if self._connection is not None:
            function(self._connection)

    async def close(self) -> None:
        """Close the connection."""
        self.close_now()

    def close_now(self) -> None:
        """Close the connection, in the middle of anything."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
