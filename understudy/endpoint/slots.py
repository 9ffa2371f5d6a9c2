"""The places for calls in flight: handed out in the order of asking, fewer while the service says that it is too much.

Additive increase, multiplicative decrease: an overload halves the places, and as many successes as there are places give
one back. Never less than one, never more than the setting. Who is cancelled while waiting leaves the queue.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

_DECREASE = 0.5
_ROUNDING = 1e-9  # sixteen sixteenths are one


class Slots:
    """The places of one endpoint on one event loop. A place is its number: how many were handed out before it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0
        self._allowed = float(count)
        self._handed_out = 0
        self._lowered_at = 0  # places with a lower number were taken before the last decrease
        # Futures by the order of asking; a set with an order, from which a cancelled wait goes at once.
        self._queue: OrderedDict[asyncio.Future[int], None] = OrderedDict()

    @property
    def allowed(self) -> int:
        """How many calls may be in flight now."""
        return int(self._allowed + _ROUNDING)

    @property
    def waiting(self) -> int:
        """How many callers wait for a place."""
        return len(self._queue)

    async def acquire(self) -> int:
        """Wait for a place and return it; `release` it on every path."""
        if not self._queue and self.taken < self.allowed:
            return self._take()
        place: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue[place] = None
        try:
            return await place
        except asyncio.CancelledError:
            if place in self._queue:
                del self._queue[place]
            elif not place.cancelled():
                self.release()  # It was handed over in the same instant.
            raise

    def release(self) -> None:
        """Give a place back, to the next in the queue."""
        self.taken -= 1
        self._serve()

    def succeeded(self) -> None:
        """Take note that a call was answered: a little more may be in flight."""
        if self._allowed < self.count:
            self._allowed = min(float(self.count), self._allowed + 1.0 / self._allowed)
            self._serve()

    def overloaded(self, place: int) -> None:
        """Take note that the service had too much of us when the call at *place* was made: less may be in flight.

        One decrease for all that were in flight together: they are one overload, and not as many as there were calls.
        """
        if place >= self._lowered_at:
            self._allowed = max(1.0, self._allowed * _DECREASE)
            self._lowered_at = self._handed_out

    def _take(self) -> int:
        self.taken += 1
        self._handed_out += 1
        return self._handed_out - 1

    def _serve(self) -> None:
        while self._queue and self.taken < self.allowed:
            waiter, _ = self._queue.popitem(last=False)
            if not waiter.done():  # A place goes to a live waiter only.
                waiter.set_result(self._take())
