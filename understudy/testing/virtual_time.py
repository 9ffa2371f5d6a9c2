"""An event loop with virtual time: a test that sleeps for an hour takes no time.

The loop's clock stands still while anything can run, and jumps to the next timer when every task waits. The wall
clock that the library sees (`wall_time`) moves with it.

What could still wake a task holds the clock:

- *Outside work*: jobs of `run_in_executor`, `asyncio.to_thread` and `anyio.to_thread.run_sync`, and what
  `understudy.clock.outside` marks (the store does). A thread that waits for a timer of the loop would wait for ever, so
  after `HOLD_MAX_S` in which nothing happened time moves on, as far as it really did.
- *Bytes on their way* between sockets of this loop: they travel through the kernel, so the loop looks for them for a few
  real milliseconds before it jumps.

It cannot see what other processes do, and not threads that were started by hand: mark such waits with `outside`.
Code that spins on the clock (`while loop.time() < end: await sleep(0)`) spins for ever, since something can always run.
"""

from __future__ import annotations

import array
import asyncio
import math
import selectors
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, TypeVarTuple, Unpack

from typing_extensions import override

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_Ready: TypeAlias = list[tuple[selectors.SelectorKey, int]]

WALL_START: Final = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
"""Wall time of a new loop: 2026-01-01T00:00:00Z, in seconds since the epoch."""

TIME_START: Final = 1000.0
"""`time()` of a new loop. Not zero: some libraries take a zero for "not set"."""

HOLD_MAX_S: Final = 5.0
"""Real seconds for which outside work holds the clock while nothing happens at all; longer than a slow disk needs."""

# The kernel delivers loopback bytes within the sender's system call, except under load. Five milliseconds without a
# byte were enough on two busy cores, and are paid only once after each burst of traffic.
_GRACE_S = 0.005

# A thread that is about to wake the loop gets this long before the loop calls it a deadlock.
_DEADLOCK_GRACE_S = 0.2


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when every task waits.

    In tests: `anyio_backend = ("asyncio", {"loop_factory": VirtualTimeLoop})`. Elsewhere:
    `asyncio.Runner(loop_factory=VirtualTimeLoop)`.

    With `strict=True` the loop raises `RuntimeError`, naming the tasks, when every task waits and there is no timer, no
    outside work and no socket to wake one. Otherwise it blocks, as every event loop does: a signal or a thread may come.
    """

    outside_work: int
    """How many pieces of work go on beyond the loop; see `understudy.clock.outside`."""

    def __init__(self, *, strict: bool = False) -> None:
        # The base class registers its self-pipe while it is built, so these come first.
        self.outside_work = 0
        self._now = TIME_START
        self._wall_offset = WALL_START - TIME_START
        self._strict = strict
        self._pool: Executor | None = None
        super().__init__(_VirtualSelector(self))

    @override
    def time(self) -> float:
        """Virtual seconds; moves only when every task waits."""
        return self._now

    def wall_time(self) -> float:
        """Seconds since the epoch, in virtual time: starts at `WALL_START` and moves with `time`."""
        return self._now + self._wall_offset

    def jump_wall(self, seconds: float) -> None:
        """Step the wall clock alone, forward or back, as NTP or an operator would."""
        self._wall_offset += seconds

    @override
    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run *func* on another thread or process; the clock stands still until it has finished, even if cancelled."""
        if executor is None:
            if self._pool is None:
                self.set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio"))
            executor = self._pool
            assert executor is not None
        job = executor.submit(func, *args)
        self.outside_work += 1
        future = asyncio.wrap_future(job, loop=self)
        # After `wrap_future`, whose callback must be the first: the result is on the loop before the clock is free.
        job.add_done_callback(self._job_finished)
        return future

    @override
    def set_default_executor(self, executor: Executor) -> None:
        """Use *executor*, a `ThreadPoolExecutor`, where `run_in_executor` is given none."""
        # The base classes disagree on the type; at run time a wrong one is refused with TypeError.
        super().set_default_executor(executor)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        self._pool = executor

    @override
    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """Join the default executor's threads; the clock stands still meanwhile."""  # `Any`: 3.12 added a timeout
        self.outside_work += 1
        try:
            await super().shutdown_default_executor(*args, **kwargs)
        finally:
            self.outside_work -= 1

    def _job_finished(self, _job: Future[Any]) -> None:
        """Runs on the job's thread; the count belongs to the loop's."""
        try:
            self.call_soon_threadsafe(self._release)
        except RuntimeError:
            pass  # The loop was closed first; nobody reads its clock any more.

    def _release(self) -> None:
        self.outside_work -= 1

    def _advance(self, seconds: float) -> None:
        self._now += seconds
        # asyncio fires what is due before `time() + 1e-9`; after three virtual months that sum is `time()` itself.
        if self._now + 1e-9 == self._now:
            self._now = math.nextafter(self._now, math.inf)

    def _has_outside_work(self) -> bool:
        return self.outside_work > 0 or any(_works_for(thread, self) for thread in threading.enumerate())

    def _deadlock(self) -> RuntimeError:
        tasks = "".join(sorted(f"\n  {_describe(task)}" for task in asyncio.all_tasks(self)))
        return RuntimeError(
            "every task waits and nothing can wake them: no timer, no thread, no socket. "
            f"Waiting tasks:{tasks or ' none'}"
        )


class _VirtualSelector(selectors.BaseSelector):
    """The loop's only place to wait, and so the place where its time passes."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()
        self._self_pipe: int | None = None  # The loop's first registration; threads and signals wake it through this.
        self._quiet = True  # No sign of traffic since the last grace in which none came.

    @override
    def select(self, timeout: float | None = None) -> _Ready:
        """Wait until something is ready, or until virtual time has moved on, at most by *timeout*."""
        ready = self._poll(0)
        if ready or timeout == 0:
            return ready
        if self._loop._has_outside_work():
            return self._hold(timeout)
        has_sockets = len(self._real.get_map()) > 1
        if timeout is None:
            if not self._loop._strict or has_sockets:
                return self._poll(None)
            if ready := self._poll(_DEADLOCK_GRACE_S):
                return ready
            raise self._loop._deadlock()
        if has_sockets and not (self._quiet and not self._has_unsent_bytes()):
            if ready := self._poll(_GRACE_S):
                return ready
            self._quiet = True
        self._loop._advance(timeout)
        return []

    def _hold(self, timeout: float | None) -> _Ready:
        """Wait for outside work in real time."""
        if timeout is None:
            return self._poll(None)
        started = time.monotonic()
        ready = self._poll(HOLD_MAX_S)
        if not ready:
            self._loop._advance(min(timeout, time.monotonic() - started))
        return ready

    def _poll(self, timeout: float | None) -> _Ready:
        ready = self._real.select(timeout)
        if any(key.fd != self._self_pipe for key, _ in ready):
            self._quiet = False
        return ready

    def _has_unsent_bytes(self) -> bool:
        """Whether some socket of the loop holds bytes that its peer's kernel has not confirmed."""
        return any(_unsent_bytes(fd) for fd in self._real.get_map() if fd != self._self_pipe)

    @override
    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self._real.register(fileobj, events, data)
        if self._self_pipe is None:
            self._self_pipe = key.fd
        else:
            self._quiet = False
        return key

    @override
    def unregister(self, fileobj: FileDescriptorLike) -> selectors.SelectorKey:
        self._quiet = False
        return self._real.unregister(fileobj)

    @override
    def modify(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        self._quiet = False
        return self._real.modify(fileobj, events, data)

    @override
    def close(self) -> None:
        self._real.close()

    @override
    def get_map(self) -> Mapping[FileDescriptorLike, selectors.SelectorKey]:
        return self._real.get_map()


def _works_for(thread: threading.Thread, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether *thread* is one of anyio's workers and busy with a job of *loop*.

    anyio hands jobs to its threads without telling the loop. Its workers put themselves back on `idle_workers` on the
    loop's own thread, in the callback that delivers the result, so there is no moment at which both are missing. The
    attributes are anyio's own; a test notices if they go.
    """
    facts = vars(thread)
    return (
        facts.get("loop") is loop and not facts.get("stopping") and thread not in facts.get("idle_workers", (thread,))
    )


def _describe(task: asyncio.Task[Any]) -> str:
    stack = task.get_stack(limit=1)
    place = f" at {stack[0].f_code.co_filename}:{stack[0].f_lineno}" if stack else ""
    return f"{task.get_name()}: {getattr(task.get_coro(), '__qualname__', task.get_coro())}{place}"


def _unsent_bytes(fd: Any) -> int:  # `Any`: a selector's map types its keys as anything with a descriptor
    if sys.platform == "win32":
        return 1  # Windows does not tell; taking the grace each time is slower, never wrong.
    import fcntl
    import termios

    count = array.array("i", [0])
    try:
        fcntl.ioctl(fd, termios.TIOCOUTQ, count)
    except OSError:
        return 0  # A listening socket, a pipe.
    return count[0]
