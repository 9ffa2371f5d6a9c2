"""The running of a step: attempt by attempt until it has an outcome, which is journaled before anybody gets it.

The body starts after the commit that covers everything that led to it, the failures of its earlier attempts included.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

from understudy.actors import parking
from understudy.actors.apart import Apart
from understudy.actors.asking import open_branch
from understudy.actors.body import run_body
from understudy.actors.failures import to_error, to_failure
from understudy.actors.ladder import Input, Ladder, Verdict
from understudy.actors.outcomes import clear_mark, encoded, failure_of, mark_begun, unknown
from understudy.actors.turn import Turn, scope
from understudy.actors.witness import SilentWitness, Witness
from understudy.errors import EncodingFailed, LimitExceeded, OutcomeUnknown, StepTimeout, TurnEnded
from understudy.mailbox.journal import Outcome, Slot
from understudy.supervisor.policy import Policy

Interrupted = Literal["rerun", "fail"]


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
        "title",
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
        gate: Callable[[], Coroutine[Any, Any, None]] | None = None,
        witness: Witness | None = None,
    ) -> None:
        self.name = name
        self.title = f"{role} {name}"  # as the journal and errors call it
        self.function = function
        self.quiet = quiet  # its turn tells the trace about it
        self.witness = witness
        self.input: Callable[[Spec], Input] | None = None  # what amendments change
        self.span = span
        self.gate = gate  # waits for the body's permission to start
        self.decode: Callable[[bytes], Any] | None = None  # reads its result
        self.timeout_s = timeout_s
        self.policies = policies  # asked in order
        self.raises = raises
        self.interrupted: Interrupted = interrupted
        self.role = role


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
    turn.check(spec.title)
    if slot is None:
        slot = await turn.claim(spec.title, arguments, repeatable=spec.interrupted == "rerun", key=key)
    outcome = slot.outcome
    if outcome is None:
        outcome, copy = await _run_apart(turn, spec, slot)
        if outcome.failure is None:
            return copy
    elif spec.role != "tool" and not _is_unknown(outcome):  # The replayed call of a tool is told by its own turn.
        turn.replayed(spec.name, slot, spec.role, spec.span)
    if outcome.value is not None:
        return turn.decode_stored(decode, outcome.value, f"the journaled result of {spec.role} {spec.name}")
    assert outcome.failure is not None
    raise to_error(outcome.failure, spec.name, spec.raises, role=spec.role)


def _is_unknown(outcome: Outcome) -> bool:
    return outcome.failure is not None and outcome.failure.type == OutcomeUnknown.__name__


async def _run_apart(turn: Turn, spec: Spec, slot: Slot) -> tuple[Outcome, Any]:
    """Run the step in the task that asked for it, which ends it with itself, but the body in a context of its own."""
    task = asyncio.current_task(turn.activation.system.loop)
    assert task is not None
    cancels = task.cancelling()
    context = contextvars.copy_context()
    context.run(scope.set, turn.inside(spec.title))
    parking.begin_step(turn)
    slot.running = True
    try:
        if task is turn.task:
            ended = await _attempts(turn, spec, slot, context)
        else:
            with open_branch(turn):
                ended = await _attempts(turn, spec, slot, context)
    finally:
        slot.running = False
        parking.end_step(turn)
    if task.cancelling() > cancels:
        await _forget_cancels(turn, spec, task, cancels)
    return ended


async def _forget_cancels(turn: Turn, spec: Spec, task: asyncio.Task[Any], cancels: int) -> None:
    """Go on after a body that swallowed a cancellation without `uncancel`, unless the turn or its branch is to end.

    Older libraries make their timeouts so: their cancellations must not count against who asked for the step.
    """
    await asyncio.sleep(0)  # One that is still on its way arrives here.
    if turn.closing and task is not turn.task:
        raise asyncio.CancelledError
    turn.check(spec.title)
    if turn.limit is not None and turn.limit.expired() and task is turn.task:
        raise asyncio.CancelledError  # The time of the handler is over, whoever heard of it first.
    while task.cancelling() > cancels:
        task.uncancel()


async def _attempts(turn: Turn, spec: Spec, slot: Slot, context: contextvars.Context) -> tuple[Outcome, Any]:
    """Run the body until there is an outcome: its value, with a copy of it, or the failure that no attempt follows.

    What users wrote, the body, the gate of a model call and the amendments, runs in *context*.
    """
    system = turn.activation.system
    ladder = Ladder(turn, slot, spec.policies)
    by = _input(spec) if ladder.rungs.amended is not None else None  # Most steps need none.
    if by is not None and ladder.rungs.amended is not None:
        by.use(ladder.rungs.amended)
    witness = spec.witness
    if witness is None:
        made = SilentWitness if spec.quiet else Witness
        witness = made(turn, spec.name, spec.role, turn.step_span(slot))
    turn.trace()
    while True:
        attempt = ladder.attempt
        await _begin(turn, spec, slot, ladder, witness, context)
        began_s = system.loop.time()
        value, error = await Apart(_attempt(turn, spec, slot), context)
        duration_s = system.loop.time() - began_s
        copy = None
        if error is None:
            outcome, copy, verdict = _keep(value, spec, turn)
        else:
            by = by or _input(spec)
            verdict = await Apart(_judge(turn, spec, slot, ladder, error, by), context)
            outcome = Outcome(failure=verdict.failure)
        witness.ended(attempt, duration_s, verdict, value, error)
        if verdict is None or not (verdict.again or verdict.ends_turn):
            if verdict is None:
                ladder.keep()
            turn.settle(slot, outcome)
            return outcome, copy
        assert error is not None
        clear_mark(turn, spec, slot)  # It has failed, and nothing runs until the next attempt.
        if verdict.ends_turn:
            ladder.conclude(verdict, error)
        ladder.tell_amended(verdict, witness.span)


def _input(spec: Spec) -> Input | None:
    return spec.input(spec) if spec.input is not None else None


async def _begin(
    turn: Turn, spec: Spec, slot: Slot, ladder: Ladder, witness: Witness, context: contextvars.Context
) -> None:
    """Return when an attempt may start: its time has come, and all that led to it is on disk."""
    if ladder.rungs.not_before:
        await ladder.wait()
    # A tool waits for its rate before it begins: that takes nothing from its timeout, and a crash leaves no doubt.
    if spec.gate is not None and slot.work is None:
        await Apart(spec.gate(), context)
    witness.began(ladder.attempt)
    turn.mark_started()
    mark_begun(turn, spec, slot)
    try:
        # Not `wait_durable`: every step waits here, and each coroutine on its way costs.
        durable = turn.activation.system.committer.durable_soon()
        if durable is not None:
            await durable
    except asyncio.CancelledError:
        clear_mark(turn, spec, slot)
        raise
    if turn.ended is not None:
        clear_mark(turn, spec, slot)
        raise TurnEnded(f"step {spec.name}: its turn has ended ({turn.ended}).")


async def _attempt(turn: Turn, spec: Spec, slot: Slot) -> tuple[Any, Exception | None]:
    """Run the body once, and return its value or its error."""
    if (view := scope.get()) is not None:
        view.places.clear()  # Each attempt gets the same names.
    try:
        return await _run(turn, spec, slot), None
    except asyncio.CancelledError:
        # A thread goes on and will tell; of anything else nobody knows how far it got.
        if spec.interrupted == "fail" and slot.work is None:
            turn.settle(slot, Outcome(failure=unknown(spec.name, "it was cancelled while it ran")))
        raise
    except Exception as error:
        return None, error


async def _run(turn: Turn, spec: Spec, slot: Slot) -> Any:
    if spec.timeout_s is None:
        return await run_body(turn, spec, slot)
    limit = asyncio.timeout(spec.timeout_s)
    try:
        async with limit:
            return await run_body(turn, spec, slot)
    except TimeoutError:
        if limit.expired():
            raise StepTimeout(
                f"{spec.role} {spec.name} took longer than timeout_s={spec.timeout_s}.", timeout_s=spec.timeout_s
            ) from None
        raise


def _keep(value: Any, spec: Spec, turn: Turn) -> tuple[Outcome, Any, Verdict | None]:
    """Return the outcome that a value is, and a copy; one that cannot be stored is a failure, which no rule is about."""
    try:
        body, copy = encoded(value, spec, turn)
        return Outcome(value=body), copy, None
    except (EncodingFailed, LimitExceeded) as unstorable:
        failure = to_failure(unstorable)
        return Outcome(failure=failure), None, Verdict(failure, None)  # It ran: it does not run again.


async def _judge(turn: Turn, spec: Spec, slot: Slot, ladder: Ladder, error: Exception, by: Input | None) -> Verdict:
    try:
        return await ladder.judge(error, failure_of(error, spec), by)
    except asyncio.CancelledError:
        clear_mark(turn, spec, slot)  # While it was amended: it has failed, and is in no doubt.
        raise
