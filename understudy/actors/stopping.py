"""How actors are ended from outside: their turns are cancelled and put back, their objects release what they took.

A turn that does not end in time is abandoned. Python cannot kill it, so it is fenced: the actor's epoch grows, and
nothing that the old turn still does counts any more. Its message is delivered again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from understudy.actors import endings, parking
from understudy.events import ActorAbandoned

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.system import System
    from understudy.actors.turn import Turn

logger = logging.getLogger(__name__)
_AGAIN_S = 1.0  # how often a turn that swallows its cancellation is cancelled again


async def stop_actors(system: System, activations: Sequence[Activation], shutdown_s: float, reason: str) -> None:
    """End turns and objects of actors that have gone down, side by side under one timer; abandon what does not end."""
    until_s = system.loop.time() + shutdown_s
    if shutdown_s > 0:
        await asyncio.sleep(0)  # A turn whose task has not begun finds that its actor is down.
        turns = _turns_of(system, activations)
        for turn in turns:
            turn.stop(reason)
        await _ended({turn.task for turn in turns if turn.task is not None}, until_s)
    for each in activations:
        abandon(each, reason, shutdown_s)
    left_s = until_s - system.loop.time()
    for each in activations:
        if left_s > 0:
            each.drop_object()
        each.object = None
    await wait_released([task for each in activations for task in each.releasing or ()], left_s)


def _turns_of(system: System, activations: Sequence[Activation]) -> list[Turn]:
    if len(activations) == 1:
        return activations[0].turns()
    wanted = set(activations)  # One look at all turns: an actor with several at a time would look through them alone.
    return [turn for turn in system.turns.values() if turn.activation in wanted]


async def _ended(tasks: Collection[asyncio.Task[Any]], until_s: float) -> None:
    loop = asyncio.get_running_loop()
    waiting = {task for task in tasks if not task.done()}
    while waiting and (left_s := until_s - loop.time()) > 0:
        _, waiting = await asyncio.wait(waiting, timeout=min(left_s, _AGAIN_S))
        for task in waiting:
            task.cancel()


async def wait_released(stops: Collection[asyncio.Task[Any]], left_s: float) -> None:
    """Wait until `on_stop` has ended, also of objects that were let go before; cancel what takes longer."""
    if not stops:
        return
    _, late = await asyncio.wait(stops, timeout=None if left_s == math.inf else max(0.0, left_s))
    for task in late:
        task.cancel()
    if late:
        logger.warning("actor.on_stop_late", extra={"count": len(late), "left_s": left_s})
        await asyncio.wait(late, timeout=_AGAIN_S)


def has_to_end(activation: Activation) -> bool:
    """Whether there is something to wait for when the actor is stopped: a turn, or `on_stop`."""
    if activation.running or activation.releasing:
        return True
    return activation.object is not None and activation.type.stops


def abandon_all(activation: Activation, reason: str) -> None:
    """Leave behind whatever still runs, and wait for nothing."""
    abandon(activation, reason, 0.0)
    activation.object = None
    for task in activation.releasing or ():
        task.cancel()


def abandon(activation: Activation, reason: str, shutdown_s: float) -> None:
    """Leave the turns behind that still run; nothing they do counts any more, and their messages are delivered again."""
    turns = [turn for turn in activation.turns() if turn.task is not None and not turn.task.done()]
    if not turns:
        return
    for turn in turns:
        turn.stop(reason)
        _leave_behind(activation, turn)
    activation.epoch += 1
    activation.object = None
    activation.forget_waits()
    report_abandoned(activation, shutdown_s)


def report_abandoned(activation: Activation, shutdown_s: float) -> None:
    """Tell the trace and the log that something of the actor was left behind."""
    activation.system.recorder.emit_actor(ActorAbandoned, activation, shutdown_s=shutdown_s)
    logger.warning("actor.abandoned", extra={"actor": activation.name, "shutdown_s": shutdown_s})


def _leave_behind(activation: Activation, turn: Turn) -> None:
    system = activation.system
    endings.drop_sends(turn)
    turn.ended = turn.ended or "abandoned"
    parking.end(turn)
    endings.put_back(activation, turn, turn.stopped or "abandoned")
    system.turns.pop(turn.no, None)
    if turn.task is not None:
        system.turn_tasks.discard(turn.task)
        system.leaked.add(turn.task)
    if system.recovery.suspects:
        system.recovery.suspect_ended(turn.envelope)
    activation.running -= 1
