"""The running of a step: journaled when it ends, joined when it cannot be stopped, never doubled.

The body starts after the commit that covers everything that led to it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec

from understudy.actors.failures import to_error, to_failure
from understudy.actors.turn import Turn, scope
from understudy.clock import outside
from understudy.codec import encode
from understudy.errors import (
    EncodingFailed,
    LimitExceeded,
    OutcomeUnknown,
    StepTimeout,
    TurnEnded,
)
from understudy.events import StepFinished, StepStarted
from understudy.mailbox.journal import Failure, JournalEntry, Outcome, Slot
from understudy.supervisor.policy import NO_RULES, Decision, Past, Policy, decide, deciding_rule

Interrupted = Literal["rerun", "fail"]


class Spec:
    """How one kind of step runs."""

    __slots__ = (
        "decode",
        "function",
        "gate",
        "interrupted",
        "name",
        "policy",
        "quiet",
        "raises",
        "role",
        "span",
        "timeout_s",
    )

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        timeout_s: float | None = None,
        policy: Policy | None = None,
        raises: tuple[type[Exception], ...] = (),
        interrupted: Interrupted = "rerun",
        role: str = "step",
        quiet: bool = False,
        span: str | None = None,
        gate: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.quiet = quiet  # its owner tells the trace about it
        self.span = span
        self.gate = gate  # waits for the body's permission to start
        self.decode: Callable[[bytes], Any] | None = None  # reads its result
        self.timeout_s = timeout_s
        self.policy = policy
        self.raises = raises
        self.interrupted: Interrupted = interrupted
        self.role = role


async def run_function(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call *function* where it belongs: an async one here, a sync one on a thread."""
    if _is_async(function):
        return await function(*args, **kwargs)
    result = await _in_thread(functools.partial(function, *args, **kwargs))
    return await result if inspect.isawaitable(result) else result


def _is_async(function: Callable[..., Any]) -> bool:
    target = function.func if isinstance(function, functools.partial) else function
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(type(target).__call__)


async def _in_thread(function: Callable[[], Any]) -> Any:
    import anyio.to_thread

    with outside():
        return await anyio.to_thread.run_sync(function, abandon_on_cancel=True)


async def perform(
    turn: Turn, spec: Spec, arguments: bytes, decode: Callable[[bytes], Any], *, key: str | None = None
) -> Any:
    """Run a step of *turn*, or return what the journal knows of it.

    Raises:
        Exception: A declared error of the step, `StepFailed`, `StepTimeout`, `OutcomeUnknown`, `EncodingFailed`.
        KeyConflict: The key stands for other arguments already.
        TurnEnded: The system ended the turn.
    """
    spec.decode = decode
    outcome = await _outcome(turn, spec, arguments, key)
    if outcome.value is not None:
        return turn.decode_stored(decode, outcome.value, f"the journaled result of {spec.role} {spec.name}")
    assert outcome.failure is not None
    raise to_error(outcome.failure, spec.name, spec.raises, role=spec.role)


async def _outcome(turn: Turn, spec: Spec, arguments: bytes, key: str | None) -> Outcome:
    """Run a step of *turn*, or return what the journal knows of it, as an outcome."""
    turn.check(f"{spec.role} {spec.name}")
    slot = await turn.claim(f"{spec.role} {spec.name}", arguments, repeatable=spec.interrupted == "rerun", key=key)
    if slot.outcome is not None:
        unknown_yet = slot.outcome.failure is not None and slot.outcome.failure.type == OutcomeUnknown.__name__
        if spec.role != "tool" and not unknown_yet:  # The replayed call of a tool is told by its own turn.
            turn.replayed(spec.name, slot, spec.role, spec.span)
        return slot.outcome
    context = contextvars.copy_context()
    context.run(scope.set, turn.inside(f"{spec.role} {spec.name}"))
    task = asyncio.get_running_loop().create_task(
        _body(turn, spec, slot), name=f"understudy-{spec.role} {spec.name}", context=context
    )
    if turn.open is None:
        turn.open = set()
    turn.open.add(task)
    task.add_done_callback(turn.open.discard)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        # The branch that asked for it is gone (a timeout, a cancelled sibling): the step must not outlive it.
        task.cancel()
        while not task.done():
            await asyncio.wait([task])
        raise
    if task.cancelled():
        turn.check(f"{spec.role} {spec.name}")
        raise asyncio.CancelledError
    return task.result()


async def _body(turn: Turn, spec: Spec, slot: Slot) -> Outcome:
    slot.running = True
    try:
        return await _attempts(turn, spec, slot)
    finally:
        slot.running = False


async def _attempts(turn: Turn, spec: Spec, slot: Slot) -> Outcome:
    system = turn.activation.system
    name = spec.name
    span = turn.step_span(slot)
    turn.trace()
    # A tool waits for its rate before it begins: that takes nothing from its timeout, and a crash leaves no doubt.
    if spec.gate is not None and slot.work is None:
        await spec.gate()
    if not spec.quiet:
        turn.emit(StepStarted, span=span, parent=turn.span, step=name, role=spec.role)
    turn.mark_started()
    if spec.interrupted == "fail":
        # The start mark is the outcome that a crash leaves behind.
        write_row(turn, slot, Outcome(failure=unknown(name, "the process died or the turn was ended while it ran")))
    try:
        await system.committer.wait_durable()
    except asyncio.CancelledError:
        if spec.interrupted == "fail" and slot.work is None:
            write_row(turn, slot, Outcome())  # It never began.
        raise
    if turn.ended is not None:
        if spec.interrupted == "fail" and slot.work is None:
            write_row(turn, slot, Outcome())
        raise TurnEnded(f"step {name}: its turn has ended ({turn.ended}).")
    began_s = system.loop.time()
    history: list[Past] = []
    while True:
        outcome: Outcome | None = None
        decision: Decision | None = None
        attempt = len(history) + 1
        if (view := scope.get()) is not None:
            view.places.clear()  # Each attempt gets the same names.
        try:
            value = await _run(turn, spec, slot)
            outcome = Outcome(value=_encoded(value, spec, turn))
        except asyncio.CancelledError:
            # A thread goes on and will tell; of anything else nobody knows how far it got.
            if spec.interrupted == "fail" and slot.work is None:
                turn.settle(slot, Outcome(failure=unknown(name, "it was cancelled while it ran")))
            raise
        except Exception as error:
            failure = _failure_of(error, spec)
            outcome = Outcome(failure=failure)
            if failure.kind != "declared" and failure.type != "OutcomeUnknown" and spec.policy is not None:
                # What the step's own policy does not name is not repeated: the default is for turns.
                decision = decide(spec.policy, error, tuple(history), default=NO_RULES)
                history.append(Past(type(error).__name__, deciding_rule(spec.policy, error)))
        again = decision is not None and decision.verb in ("retry", "restart")
        if not spec.quiet:
            turn.emit(
                StepFinished,
                span=span,
                parent=turn.span,
                step=name,
                role=spec.role,
                duration_s=system.loop.time() - began_s,
                error=outcome.failure.type if outcome.failure else None,
                message=outcome.failure.message if outcome.failure else None,
                attempt=attempt,
                decision=decision.verb if decision and again else "",
                delay_s=decision.delay_s if decision and again else 0.0,
            )
        if not again:
            turn.settle(slot, outcome)
            return outcome
        assert decision is not None
        await asyncio.sleep(decision.delay_s)
        if spec.gate is not None and slot.work is None:
            await spec.gate()
        began_s = system.loop.time()
        if not spec.quiet:
            turn.emit(StepStarted, span=span, parent=turn.span, step=name, role=spec.role, attempt=attempt + 1)


async def _run(turn: Turn, spec: Spec, slot: Slot) -> Any:
    if spec.timeout_s is None:
        return await _once(turn, spec, slot)
    limit = asyncio.timeout(spec.timeout_s)
    try:
        async with limit:
            return await _once(turn, spec, slot)
    except TimeoutError:
        if limit.expired():
            raise StepTimeout(
                f"{spec.role} {spec.name} took longer than timeout_s={spec.timeout_s}.", timeout_s=spec.timeout_s
            ) from None
        raise


async def _once(turn: Turn, spec: Spec, slot: Slot) -> Any:
    """Run the body once; a thread that an earlier attempt left behind is joined instead of a second one."""
    if _is_async(spec.function):
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
    return await result if inspect.isawaitable(result) else result


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
            turn.settle(slot, Outcome(value=_encoded(work.result(), spec, turn)))
        except (EncodingFailed, LimitExceeded) as unstorable:
            turn.settle(slot, Outcome(failure=to_failure(unstorable)))
    elif spec.interrupted == "fail":
        # Its failure goes with the attempt that started it, unless nobody knows what it means.
        failure = _failure_of(error, spec) if isinstance(error, Exception) else None
        if failure is not None and failure.type == OutcomeUnknown.__name__:
            turn.settle(slot, Outcome(failure=failure))
        else:
            write_row(turn, slot, Outcome())


def _failure_of(error: Exception, spec: Spec) -> Failure:
    # After sending, a timeout or a lost connection tells nothing; a refused one was never sent.
    lost = isinstance(error, (TimeoutError, ConnectionError)) and not isinstance(error, ConnectionRefusedError)
    if spec.interrupted == "fail" and lost:
        return unknown(spec.name, f"{type(error).__name__}: {error}")
    return to_failure(error, spec.raises)


def unknown(name: str, why: str) -> Failure:
    """Return the outcome of a step that must not run twice and of which nobody knows whether it happened."""
    return Failure(
        "own",
        OutcomeUnknown.__name__,
        f"nobody knows whether step {name} happened: {why}. It is declared interrupted='fail', so it is not run again.",
        arguments=encode({"step": name}),
    )


def _encoded(value: Any, spec: Spec, turn: Turn) -> bytes:
    what = f"the result of {spec.role} {spec.name}"
    try:
        body = encode(value)
    except EncodingFailed as error:
        raise EncodingFailed(f"{what}: {error}") from error
    limit = turn.activation.system.limits.payload_bytes
    if len(body) > limit:
        raise LimitExceeded(
            f"{what} is {len(body)} bytes, more than Limits.payload_bytes={limit}; it ran and is not run again. Store "
            "large data elsewhere and return its address.",
            limit="payload_bytes",
            value=len(body),
            value_max=limit,
        )
    try:
        if spec.decode is not None:
            spec.decode(body)
    except (msgspec.MsgspecError, ValueError, TypeError, NotImplementedError) as error:
        raise EncodingFailed(
            f"{what} is a {type(value).__qualname__}, which is not of its annotated type: {error}"
        ) from error
    return body


def write_row(turn: Turn, slot: Slot, outcome: Outcome) -> None:
    """Journal a row without giving the outcome to anybody."""
    journal = turn.ensure_journal()
    system = turn.activation.system
    if system.journals.get(journal.message) is not journal:
        return  # The message has ended: its journal is gone, or kept as it is with its dead letter.
    batch = system.committer.touch()
    batch.journal[(journal.message, slot.key)] = JournalEntry(journal.message, slot.key, outcome, slot.after)
    batch.work += 1
    journal.wrote(batch.number)
