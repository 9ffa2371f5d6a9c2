"""Delayed messages: each is delivered once when it is due, late after an outage, never twice.

Due times are wall time; waiting uses the loop's clock in short stretches, so that a jump of the wall clock neither
loses a timer nor fires it twice (what fires is a row, and it goes with its turn). Memory holds the nearest timers only.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import TYPE_CHECKING, Any

from understudy.mailbox.store import Timer

if TYPE_CHECKING:
    from understudy.actors.system import System
    from understudy.mailbox.envelope import Envelope

_PAGE = 1_000  # timers in memory at a time
_LOOK_AGAIN_S = 30.0  # a wall clock that was set forward is noticed within this
_TOGETHER = 256  # due timers whose actors are brought back in one read
_FIRST = 8  # of many that are due: the first need not wait until the others are read


class Timers:
    """The nearest delayed messages of one system."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._heap: list[Timer] = []
        self._pending: dict[int, Envelope] = {}  # accepted in this life: no need to read them back
        self._beyond: Timer | None = None  # later ones lie on disk only; None: all are in memory
        self._late: list[Timer] | None = None  # accepted beyond that while a page is read, which may not have them
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the nearest timers and begin to deliver."""
        await self._read_page()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="understudy-timers")
        self._task.add_done_callback(self._system.watch_task)

    async def stop(self) -> None:
        """Deliver nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def add(self, envelope: Envelope) -> None:
        """Take a delayed message that was just accepted."""
        assert envelope.due_at is not None
        timer = Timer(envelope.due_at, envelope.no, envelope.actor)
        self._pending[envelope.no] = envelope
        self._place(timer)

    def _place(self, timer: Timer) -> None:
        if self._beyond is not None and timer > self._beyond:
            if self._late is not None:
                self._late.append(timer)
            else:
                self._leave_on_disk(timer)
            return
        heapq.heappush(self._heap, timer)
        if self._heap[0] is timer:
            self._changed.set()
        if len(self._heap) > 2 * _PAGE:
            self._heap.sort()
            for far in self._heap[_PAGE:]:
                self._leave_on_disk(far)
            del self._heap[_PAGE:]
            self._beyond = self._heap[-1]

    def _leave_on_disk(self, timer: Timer) -> None:
        envelope = self._pending.pop(timer.no, None)
        if envelope is not None and envelope.waiter is not None:
            self._system.asked.add(envelope.no, envelope.waiter, envelope.actor)

    def waiters(self) -> list[asyncio.Future[Any]]:
        """Return who waits for the replies of delayed messages."""
        return [envelope.waiter for envelope in self._pending.values() if envelope.waiter is not None]

    def pending(self, no: int) -> Envelope | None:
        """Return a delayed message when it is in memory."""
        return self._pending.get(no)

    def withdraw(self, no: int) -> Envelope | None:
        """Forget a delayed message; return it when it is in memory."""
        self._heap = [timer for timer in self._heap if timer.no != no]
        heapq.heapify(self._heap)
        return self._pending.pop(no, None)

    async def _read_page(self) -> None:
        """Bring the next timers into memory."""
        withdrawals = self._system.withdrawals
        after = self._beyond
        late = self._late = []
        try:
            if after is not None:
                await self._system.committer.wait_durable()
            with withdrawals.reading():
                page = await self._system.store.timers(after, _PAGE)
                if self._beyond is after:  # Else so many nearer ones came that the page lies beyond them.
                    self._beyond = page[-1] if len(page) == _PAGE else None
                    known = {timer.no for timer in self._heap}
                    for timer in page:
                        if timer.no not in known and timer.no not in withdrawals.withdrawn:
                            heapq.heappush(self._heap, timer)
        finally:
            self._late = None
        known = {timer.no for timer in self._heap}
        for timer in late:
            if timer.no in self._pending and timer.no not in known:
                self._place(timer)

    async def _run(self) -> None:
        system = self._system
        together = _FIRST
        while True:
            self._changed.clear()
            if not self._heap and self._beyond is not None:
                await self._read_page()
            if not self._heap:
                if self._beyond is None:
                    together = _FIRST
                    await self._changed.wait()
                continue
            wait_s = self._heap[0].due_at - system.wall()
            if wait_s > 0:
                together = _FIRST
                # A wait that is interrupted by a nearer timer just starts again.
                handle = system.loop.call_later(min(wait_s, _LOOK_AGAIN_S), self._changed.set)
                try:
                    await self._changed.wait()
                finally:
                    handle.cancel()
                continue
            now = system.wall()
            due: list[Timer] = []
            while self._heap and self._heap[0].due_at <= now and len(due) < together:
                due.append(heapq.heappop(self._heap))
            together = min(2 * together, _TOGETHER)
            with system.withdrawals.reading():
                await self._fire(due)

    async def _fire(self, due: list[Timer]) -> None:
        """Deliver timers in order; their actors are brought back together, and so are those that are on disk only."""
        system = self._system
        await system.population.bring_back({timer.actor for timer in due})
        unknown = [timer.no for timer in due if timer.no not in self._pending]
        read = {each.no: each for each in await system.store.messages(unknown)} if unknown else {}
        for timer in due:
            envelope = self._pending.get(timer.no)
            known = envelope is not None
            envelope = envelope or read.get(timer.no)
            activation = await system.population.of_no(timer.actor)
            if timer.no in system.withdrawals.withdrawn:
                continue
            self._pending.pop(timer.no, None)
            if envelope is None or activation is None:
                continue  # Its code is not there: the mail waits.
            if not known:
                envelope.waiter = system.asked.take_first(timer.no)
                system.recovery.hold_if_recovered(envelope, activation)
            activation.arrive(envelope)
