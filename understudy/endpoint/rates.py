"""The rate limiter of one key and model family: calls start in the order they came, when there is enough for them.

A large call at the head waits for its tokens, and the small ones behind it wait too: nobody starves. A call reserves
what it is thought to need, and settles with what it used. Knows no provider and makes no calls.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

from understudy.endpoint.meters import Meters, Need, RateLimits, Reservation
from understudy.endpoint.model import Allowance
from understudy.errors import InvalidDefinition

__all__ = ["Buckets", "Grant", "Need", "RateLimits"]

# A service that asks for more than an hour means a limit that no wait cures, or errs.
_CLOSED_MAX_S = 3600.0
# The timer of the head never fires sooner: a wait below the clock's resolution would spin.
_TICK_S = 1e-3


class Grant:
    """The leave to make one call; ends with `settle` or `give_back`, whichever comes first, once."""

    def __init__(self, buckets: Buckets, reservation: Reservation, task: asyncio.Task[Any] | None) -> None:
        self._buckets = buckets
        self._reservation = reservation
        self._task = task
        self._ended = False

    def settle(self, input_tokens: int, output_tokens: int) -> None:
        """Say what the call really used: the rest of the estimate comes back, or the difference is taken too.

        Input tokens are those that count for the limit: uncached input and cache writes, not cache reads.
        """
        self._end(1, input_tokens, output_tokens)

    def give_back(self) -> None:
        """Say that nothing was sent, or that the service refused it: everything comes back."""
        self._end(0, 0, 0)

    def _end(self, requests: int, input_tokens: int, output_tokens: int) -> None:
        if not self._ended:
            self._ended = True
            self._buckets._end(self, requests, input_tokens, output_tokens)


class _Waiter:
    def __init__(self, need: Need, future: asyncio.Future[Grant], task: asyncio.Task[Any] | None) -> None:
        self.need = need
        self.future = future
        self.task = task


class Buckets:
    """The buckets and the queue of one key and model family; belongs to one event loop.

    `clock` is monotonic, in seconds; `wall` (seconds since the epoch) only names times for people.
    """

    def __init__(self, limits: RateLimits, *, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        if not isinstance(cast(object, limits), RateLimits):
            raise InvalidDefinition(
                f"rates must be RateLimits(requests_per_min=..., ...); got {limits!r}. Leave them out to learn the "
                "limits from the service's answers."
            )
        self._clock = clock
        self._wall = wall
        self._meters = Meters(limits, clock())
        self._closed_until = clock()
        # Ordered, so that the head and a cancelled waiter in the middle are both taken out at once.
        self._waiting: OrderedDict[_Waiter, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._of_task: dict[asyncio.Task[Any], Grant] = {}

    @property
    def waiting(self) -> int:
        """How many calls wait for their turn."""
        return len(self._waiting)

    @property
    def open_calls(self) -> int:
        """How many grants have neither been settled nor given back."""
        return self._meters.open_calls

    @property
    def reopens_at(self) -> float | None:
        """Wall time at which a refusal of the service ends; None when there is none."""
        closed_s = self._closed_until - self._clock()
        return self._wall() + closed_s if closed_s > 0 else None

    def levels(self) -> tuple[float | None, ...]:
        """Return what is left of requests, input tokens, output tokens, tokens; None where no limit is known."""
        return self._meters.levels(self._clock())

    def wait_s(self, need: Need) -> float:
        """Return how long a call would wait if it came now and nothing else changed."""
        now = self._clock()
        ahead = [waiter.need for waiter in self._waiting]
        return max(self._closed_until - now, self._meters.wait_s(need, now, ahead=ahead), 0.0)

    async def acquire(self, need: Need) -> Grant:
        """Wait for the call's turn and reserve what it needs; the caller must end the grant.

        A call that needs more than a bucket holds starts when that bucket is full. If cancelled, also by a timeout,
        the call leaves the queue and nothing stays reserved.
        """
        now = self._clock()
        task = asyncio.current_task()
        if not self._waiting and self._wait_s(need, now) <= 0:
            return self._start(need, now, task)
        waiter = _Waiter(need, asyncio.get_running_loop().create_future(), task)
        self._waiting[waiter] = None
        if len(self._waiting) == 1:
            self._pump()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled():
                waiter.future.result().give_back()  # Granted and cancelled before it ran again.
            raise
        finally:
            if waiter in self._waiting:
                del self._waiting[waiter]
                self._pump()  # It may have been the head; the one behind it may need less.

    def learn(self, allowance: Allowance, *, grant: Grant | None = None) -> None:
        """Take over what the headers of an answer say, as soon as they are there.

        They know nothing of calls that started after the one they answer. That one is *grant*, or else the last one that the running task
        acquired; when it is neither, all young calls count as unknown to them.
        """
        if grant is None and (task := _current_task()) is not None:
            grant = self._of_task.get(task)
        self._meters.learn(allowance, grant._reservation if grant is not None else None, self._clock())
        self._pump()

    def close_until(self, seconds_from_now: float) -> None:
        """Start nothing for so many seconds, at most an hour: the service refused a call. The longest time wins."""
        if not seconds_from_now > 0:
            return
        now = self._clock()
        self._closed_until = max(self._closed_until, now + min(seconds_from_now, _CLOSED_MAX_S))
        self._meters.hold(self._closed_until, now)
        self._pump()

    def _wait_s(self, need: Need, now: float) -> float:
        return max(self._closed_until - now, self._meters.wait_s(need, now))

    def _start(self, need: Need, now: float, task: asyncio.Task[Any] | None) -> Grant:
        grant = Grant(self, self._meters.start(need, now), task)
        if task is not None:
            self._of_task[task] = grant
        return grant

    def _end(self, grant: Grant, requests: int, input_tokens: int, output_tokens: int) -> None:
        self._meters.end(grant._reservation, requests, input_tokens, output_tokens, self._clock())
        if grant._task is not None and self._of_task.get(grant._task) is grant:
            del self._of_task[grant._task]
        self._pump()

    def _pump(self) -> None:
        """Start everybody whose turn it is, then set the one timer for the head."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            waiter = next(iter(self._waiting))
            if not waiter.future.done():  # Otherwise it was cancelled, and leaves the queue when it runs.
                now = self._clock()
                wait_s = self._wait_s(waiter.need, now)
                if wait_s > 0:
                    self._timer = waiter.future.get_loop().call_later(max(wait_s, _TICK_S), self._pump)
                    return
                waiter.future.set_result(self._start(waiter.need, now, waiter.task))
            del self._waiting[waiter]


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # No loop runs: a callback of a test, a thread.
