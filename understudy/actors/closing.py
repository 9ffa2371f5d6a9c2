"""How a system ends: running turns get their time, the tree is stopped in reverse, and nobody is left waiting."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from understudy.actors import parking
from understudy.actors.activation import closed_error
from understudy.events import SystemStopped

if TYPE_CHECKING:
    from understudy.actors.system import System

logger = logging.getLogger(__name__)
_AGAIN_S = 1.0  # how often a turn that swallows its cancellation is cancelled again


async def close(system: System) -> None:
    """Close everything in reverse order of its opening; what is unfinished goes on at the next opening."""
    system.accepting = False
    interrupted = 0
    await system.timers.stop()
    system.alarms.stop()
    if system.failure is None:
        await _drain(system)
        system._ending = True
        interrupted = sum(1 for turn in system.turns.values() if turn.ended != "finished")
        await system.supervision.stop()
    abandoned = await _settle_turns(system) or bool(system.leaked)
    for task in system.leaked:
        task.cancel()
    await system.control.stop()
    system.usable = False
    refuse_waiters(system)
    for task in list(system._tasks):
        task.cancel()
    if system._tasks:
        await asyncio.wait(system._tasks)
    for end_listening in system.deaf:
        end_listening()  # There may be other systems at the same endpoint.
    if system.failure is None:
        system.recorder.emit(
            SystemStopped(
                at=system.wall(),
                correlation="system",
                span=f"life {system.life}",
                life=system.life,
                interrupted=interrupted,
            )
        )
    await system.committer.stop()
    await system.store.close(clean=system.failure is None and not abandoned)
    for endpoint in system.registry.endpoints:
        await endpoint.close()
    for listener in system.recorder.listeners:
        listener.hear(None)
    system.watching.end()
    for type in system.registry.types.values():
        type.live.clear()
    system.population.active.clear()


async def _drain(system: System) -> None:
    """Let running turns finish, within the grace period; those that only wait for the outside are parked."""
    parking.park_all(system)
    try:
        async with asyncio.timeout(system.limits.grace_s):
            while system.turn_tasks and any(not turn.ended for turn in system.turns.values()):
                await asyncio.wait(system.turn_tasks, return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError:
        pass


async def _settle_turns(system: System) -> bool:
    """Wait for the turns that were ended; return whether one swallows its cancellation and had to be abandoned."""
    until = system.loop.time() + system.limits.grace_s
    while system.turn_tasks:
        left_s = until - system.loop.time()
        if left_s <= 0:
            names = sorted(turn.activation.name for turn in system.turns.values())
            logger.warning("system.turns_abandoned", extra={"actors": names, "grace_s": system.limits.grace_s})
            return True
        await asyncio.wait(system.turn_tasks, timeout=min(left_s, _AGAIN_S))
        for turn in list(system.turns.values()):
            turn.stop("shutdown")
        for task in system.turn_tasks:
            task.cancel()
    return False


def refuse_waiters(system: System) -> None:
    """Tell everybody who still waits that no answer will come in this life."""
    error = system.failure or system.collapsed or closed_error()
    waiters = [*system.asked.everybody(), *system.timers.waiters()]
    for type in system.registry.types.values():
        for activation in type.live.values():
            activation.door.refuse_all(error)
            waiters.extend(envelope.waiter for envelope in activation.inbox or () if envelope.waiter is not None)
    waiters.extend(turn.envelope.waiter for turn in system.turns.values() if turn.envelope.waiter is not None)
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)
            waiter.exception()
    system.jobs.refuse_all(error)
    system.streams.refuse_all(error)
    for handle in system.withdrawals.deadlines.values():
        handle.cancel()
