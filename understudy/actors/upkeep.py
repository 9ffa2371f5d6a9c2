"""Idle actors leave memory, and old rows the file."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from understudy.errors import StoreFailed

if TYPE_CHECKING:
    from understudy.actors.system import System

logger = logging.getLogger(__name__)
_TIDY_S = 60.0  # how often old rows are looked for
_SWEEP_S = 30.0  # how often idle actors are looked for, at most
_DRIFT_MAX_S = 3_600.0  # a wall clock that jumped by more pauses retention


class Upkeep:
    """The housekeeping of one system."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._offset_s = system.wall() - system.loop.time()

    async def _tidy(self) -> None:
        # One bad step of the wall clock must not delete every key: nothing is too old while the clocks disagree.
        drift_s = self._system.wall() - self._system.loop.time() - self._offset_s
        if abs(drift_s) > _DRIFT_MAX_S:
            logger.warning("system.retention_paused", extra={"drift_s": drift_s})
            return
        try:
            await self._system.store.tidy(
                self._system.wall(), self._system.limits.trace_ttl_s, self._system.limits.trace_bytes
            )
            await self._system.ledgers.tidy()
        except StoreFailed as error:
            # Without space, or beside a reader that stays; if it is worse, the next commit finds out.
            logger.warning("system.tidy_failed", extra={"error": str(error)})

    async def run(self) -> None:
        """Let idle actors leave memory, and old rows the file."""
        last_tidy = -_TIDY_S
        while True:
            await self._tidy()
            last_tidy = self._system.loop.time()
            while self._system.loop.time() - last_tidy < _TIDY_S:
                await asyncio.sleep(min(_SWEEP_S, self._system.limits.idle_s / 2))
                now_s = self._system.loop.time()
                failing = self._system.failing
                for no in [no for no, window in failing.items() if not window.count(now_s)]:
                    del failing[no]
                before = now_s - self._system.limits.idle_s
                for type in self._system.registry.types.values():
                    for activation in [each for each in type.live.values() if each.used_at <= before]:
                        if activation.may_leave():
                            self._system.population.passivate(activation)
