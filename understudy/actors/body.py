"""The body of a step: an async one runs in its task, a sync one on a thread.

A thread cannot be stopped: one that an attempt left behind is joined by the next, never doubled, and what it ends with
is journaled also when no attempt waits for it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from types import CodeType
from typing import TYPE_CHECKING, Any

from understudy.actors.failures import to_failure
from understudy.actors.outcomes import encoded, failure_of, hold_mark, write_row
from understudy.actors.turn import Turn
from understudy.clock import outside
from understudy.errors import EncodingFailed, LimitExceeded, OutcomeUnknown
from understudy.mailbox.journal import Outcome, Slot

if TYPE_CHECKING:
    from understudy.actors.performing import Spec


async def run_function(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call *function* where it belongs: an async one here, a sync one on a thread."""
    if is_async(function):
        return await function(*args, **kwargs)
    result = await _in_thread(functools.partial(function, *args, **kwargs))
    return await result if inspect.isawaitable(result) else result


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call of *function* needs no thread."""
    target = function.func if isinstance(function, functools.partial) else function
    code = getattr(target, "__code__", None)
    if isinstance(code, CodeType) and code.co_flags & inspect.CO_COROUTINE:
        return True  # Of most functions this is all there is to know.
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(type(target).__call__)


async def _in_thread(function: Callable[[], Any]) -> Any:
    import anyio.to_thread

    with outside():
        return await anyio.to_thread.run_sync(function, abandon_on_cancel=True)


async def run_body(turn: Turn, spec: Spec, slot: Slot) -> Any:
    """Run the body once; a thread that an earlier attempt left behind is joined instead of a second one."""
    if is_async(spec.function):
        hold_mark(spec, slot)
        return await spec.function()
    work = slot.work
    if work is None:
        system = turn.activation.system
        work = slot.work = system.loop.create_task(_in_thread(spec.function), name=f"understudy-thread {spec.name}")
        work.add_done_callback(functools.partial(_thread_ended, turn, spec, slot))
        system.keep_task(work)
    await asyncio.wait([work])  # Unlike `await work`, this leaves it alone when it is cancelled.
    slot.work = None
    result = work.result()
    if not inspect.isawaitable(result):
        return result
    hold_mark(spec, slot)
    return await result


def _thread_ended(turn: Turn, spec: Spec, slot: Slot, work: asyncio.Task[Any]) -> None:
    """Journal the outcome of a thread that no attempt waits for: the next one gets its value, not a second run."""
    if work.cancelled():
        return  # The system closes.
    error = work.exception()
    system = turn.activation.system
    if slot.running or slot.outcome is not None or system.journals.get(turn.no) is not turn.journal:
        return
    slot.work = None
    if error is None:
        try:
            turn.settle_late(slot, Outcome(value=encoded(work.result(), spec, turn)[0]))
        except (EncodingFailed, LimitExceeded) as unstorable:
            turn.settle_late(slot, Outcome(failure=to_failure(unstorable)))
    elif spec.interrupted == "fail":
        # Its failure goes with the attempt that started it, unless nobody knows what it means.
        failure = failure_of(error, spec) if isinstance(error, Exception) else None
        if failure is not None and failure.type == OutcomeUnknown.__name__:
            turn.settle_late(slot, Outcome(failure=failure))
        else:
            write_row(turn, slot, Outcome())
