"""Floor without a disk: the least that one task needs to ask another one, a deque and two futures."""

from __future__ import annotations

import asyncio
from collections import deque

from benchmarks.case import Place, Sample
from benchmarks.load import measure as measure_load

NAME = "asyncio, in memory"


class _Answerer:
    """A task with a mailbox; it parks on a future while there is no mail."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._mail: deque[asyncio.Future[int]] = deque()
        self._parked: asyncio.Future[None] | None = None
        self._count = 0
        self.task = self._loop.create_task(self._answer())

    def ask(self) -> asyncio.Future[int]:
        reply: asyncio.Future[int] = self._loop.create_future()
        self._mail.append(reply)
        parked = self._parked
        if parked is not None:
            self._parked = None
            parked.set_result(None)
        return reply

    async def _answer(self) -> None:
        while True:
            while self._mail:
                self._count += 1
                self._mail.popleft().set_result(self._count)
            self._parked = self._loop.create_future()
            await self._parked


def measure(place: Place, callers: int) -> list[Sample]:
    """Measure as many answerers as callers."""
    return asyncio.run(_measure(place, callers))


async def _measure(place: Place, callers: int) -> list[Sample]:
    answerers = [_Answerer() for _ in range(callers)]
    try:
        return await measure_load(lambda number: answerers[number].ask(), callers, place.scale.seconds)
    finally:
        for answerer in answerers:
            answerer.task.cancel()
        await asyncio.gather(*(answerer.task for answerer in answerers), return_exceptions=True)
