"""The running of a step: journaled when it ends, joined when it cannot be stopped, never doubled.

The body starts after the commit that covers everything that led to it, the failures of its earlier attempts included.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import msgspec

from understudy.actors.failures import to_error, to_failure
from understudy.actors.ladder import Input, Ladder, Verdict
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
from understudy.supervisor.policy import Policy

Interrupted = Literal["rerun", "fail"]


class Witness:
    """Tells the trace about the attempts of one step."""

    __slots__ = ("name", "role", "span", "turn")

    def __init__(self, turn: Turn, name: str, role: str, span: str) -> None:
        self.turn = turn
        self.name = name
        self.role = role
        self.span = span

    def began(self, attempt: int) -> None:
        """Tell that an attempt starts."""
        self.turn.emit(
            StepStarted, span=self.span, parent=self.turn.span, step=self.name, role=self.role, attempt=attempt
        )

    def ended(self, attempt: int, duration_s: float, verdict: Verdict | None, _value: Any, _error: Any) -> None:
        """Tell how an attempt ended; *verdict* is None when it succeeded."""
        failure = verdict.failure if verdict is not None else None
        self.turn.emit(
            StepFinished,
            span=self.span,
            parent=self.turn.span,
            step=self.name,
            role=self.role,
            duration_s=duration_s,
            error=failure.type if failure else None,
            message=failure.message if failure else None,
            attempt=attempt,
            decision=verdict.verb if verdict else "",
            delay_s=verdict.delay_s if verdict else 0.0,
            reason=verdict.reason if verdict else "",
        )


class _Silent(Witness):
    """Of a step that is all that its turn does: the turn tells, but for attempts that another one follows."""

    __slots__ = ("speaks",)

    speaks: bool

    def began(self, attempt: int) -> None:
        self.speaks = attempt > 1
        if self.speaks:
            super().began(attempt)

    def ended(self, attempt: int, duration_s: float, verdict: Verdict | None, value: Any, error: Any) -> None:
        if self.speaks or (verdict is not None and verdict.again):
            super().ended(attempt, duration_s, verdict, value, error)


class Spec:
    """How one kind of step runs."""

    __slots__ = (
        "decode",
        "function",
        "gate",
        "input",
        "interrupted",
        "name",
        "policies",
        "quiet",
        "raises",
        "role",
        "span",
        "timeout_s",
        "witness",
    )

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        timeout_s: float | None = None,
        policies: Sequence[Policy] = (),
        raises: tuple[type[Exception], ...] = (),
        interrupted: Interrupted = "rerun",
        role: str = "step",
        quiet: bool = False,
        span: str | None = None,
        gate: Callable[[], Awaitable[None]] | None = None,
        witness: Witness | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.quiet = quiet  # its turn tells the trace about it
        self.witness = witness
        self.input: Callable[[], Input] | None = None  # what amendments change
        self.span = span
        self.gate = gate  # waits for the body's permission to start
        self.decode: Callable[[bytes], Any] | None = None  # reads its result
        self.timeout_s = timeout_s
        self.policies = policies  # asked in order
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
    turn: Turn,
    spec: Spec,
    arguments: bytes,
    decode: Callable[[bytes], Any],
    *,
    key: str | None = None,
    slot: Slot | None = None,
) -> Any:
    """Run a step of *turn*, or return what the journal knows of it; *slot* is its own, if it was claimed before.

    Raises:
        Exception: A declared error of the step, `StepFailed`, `StepTimeout`, `OutcomeUnknown`, `EncodingFailed`.
        KeyConflict: The key stands for other arguments already.
        TurnEnded: The system ended the turn.
    """
    spec.decode = decode
    outcome = await _outcome(turn, spec, arguments, key, slot)
    if outcome.value is not None:
        return turn.decode_stored(decode, outcome.value, f"the journaled result of {spec.role} {spec.name}")
    assert outcome.failure is not None
    raise to_error(outcome.failure, spec.name, spec.raises, role=spec.role)


async def _outcome(turn: Turn, spec: Spec, arguments: bytes, key: str | None, slot: Slot | None) -> Outcome:
    """Run a step of *turn*, or return what the journal knows of it, as an outcome."""
    turn.check(f"{spec.role} {spec.name}")
    if slot is None:
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
        if not task.cancelled():
            task.exception()  # Seen: what becomes of the turn was decided already.
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
    ladder = Ladder(turn, slot, spec.policies)
    amended = ladder.rungs.amended
    by: Input | None = None  # made for a failure: most steps have none
    if amended is not None and spec.input is not None:
        by = spec.input()
        by.use(amended)
    witness = spec.witness or (_Silent if spec.quiet else Witness)(turn, spec.name, spec.role, turn.step_span(slot))
    turn.trace()
    while True:
        attempt = ladder.attempt
        await _begin(turn, spec, slot, ladder, witness)
        if (view := scope.get()) is not None:
            view.places.clear()  # Each attempt gets the same names.
        began_s = system.loop.time()
        value: Any = None
        error: Exception | None = None
        verdict: Verdict | None = None
        try:
            value = await _run(turn, spec, slot)
        except asyncio.CancelledError:
            # A thread goes on and will tell; of anything else nobody knows how far it got.
            if spec.interrupted == "fail" and slot.work is None:
                turn.settle(slot, Outcome(failure=unknown(spec.name, "it was cancelled while it ran")))
            raise
        except Exception as raised:
            error = raised
        duration_s = system.loop.time() - began_s
        if error is None:
            try:
                outcome = Outcome(value=_encoded(value, spec, turn))
            except (EncodingFailed, LimitExceeded) as unstorable:
                # It ran: whatever the rules say, it does not run again.
                outcome = Outcome(failure=to_failure(unstorable))
                verdict = Verdict(to_failure(unstorable), None)
        else:
            if by is None and spec.input is not None:
                by = spec.input()
            verdict = await ladder.judge(error, _failure_of(error, spec), by)
            outcome = Outcome(failure=verdict.failure)
        witness.ended(attempt, duration_s, verdict, value, error)
        if verdict is None or not (verdict.again or verdict.ends_turn):
            if verdict is None:
                ladder.keep()
            turn.settle(slot, outcome)
            return outcome
        assert error is not None
        if spec.interrupted == "fail" and slot.work is None:
            write_row(turn, slot, Outcome())  # It has failed, and nothing runs until the next attempt.
        if verdict.ends_turn:
            ladder.conclude(verdict, error)
        ladder.tell_amended(verdict, witness.span)


async def _begin(turn: Turn, spec: Spec, slot: Slot, ladder: Ladder, witness: Witness) -> None:
    """Return when an attempt may start: its time has come, and all that led to it is on disk."""
    await ladder.wait()
    # A tool waits for its rate before it begins: that takes nothing from its timeout, and a crash leaves no doubt.
    if spec.gate is not None and slot.work is None:
        await spec.gate()
    witness.began(ladder.attempt)
    turn.mark_started()
    if spec.interrupted == "fail":
        # The start mark is the outcome that a crash leaves behind.
        mark = unknown(spec.name, "the process died or the turn was ended while it ran")
        write_row(turn, slot, Outcome(failure=mark))
    try:
        await turn.activation.system.committer.wait_durable()
    except asyncio.CancelledError:
        if spec.interrupted == "fail" and slot.work is None:
            write_row(turn, slot, Outcome())  # It never began.
        raise
    if turn.ended is not None:
        if spec.interrupted == "fail" and slot.work is None:
            write_row(turn, slot, Outcome())
        raise TurnEnded(f"step {spec.name}: its turn has ended ({turn.ended}).")


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
