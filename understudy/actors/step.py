"""Steps: whatever reaches outside. A finished step of a turn is journaled and not repeated when the turn is."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, Self, TypeVar, overload

import msgspec

from understudy.actors.failures import to_error, to_failure
from understudy.actors.handler import declared_errors, positive_or_none
from understudy.actors.signature import Signature, check_annotations
from understudy.actors.turn import Turn, scope
from understudy.clock import outside
from understudy.codec import digest, encode
from understudy.errors import (
    EncodingFailed,
    InvalidArguments,
    InvalidDefinition,
    LimitExceeded,
    OutcomeUnknown,
    StepTimeout,
    TurnEnded,
)
from understudy.events import StepFinished, StepStarted
from understudy.mailbox.journal import Failure, JournalEntry, Outcome, Slot
from understudy.supervisor.policy import NO_RULES, Decision, Past, Policy, decide, deciding_rule

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
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


class Step(Generic[P, R_co]):
    """A function whose result is journaled inside a turn; outside any turn it is a plain call."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        timeout_s: float | None = None,
        policy: Policy | None = None,
        raises: Sequence[type[Exception]] = (),
        interrupted: Interrupted = "rerun",
    ) -> None:
        if not callable(function):
            raise InvalidDefinition(f"step takes a function; got {function!r}.")
        given = getattr(function, "__qualname__", repr(function))
        self.name: str = name or str(getattr(function, "__name__", given))
        if interrupted not in ("rerun", "fail"):
            raise InvalidDefinition(
                f"step {self.name}: interrupted must be one of 'rerun', 'fail'; got {interrupted!r}."
            )
        self.function = function
        self.timeout_s = positive_or_none(timeout_s, "timeout_s", given)
        self.policy = policy
        self.raises = declared_errors(raises, given)
        self.interrupted: Interrupted = interrupted
        self._key: str | None = None
        self._instance: Any = None
        self._signatures: dict[type[Any] | None, tuple[Signature, inspect.Signature]] = {}
        self.__doc__ = getattr(function, "__doc__", None)
        self.__wrapped__ = function

    @overload
    def __get__(self, instance: None, owner: type[Any], /) -> Self: ...
    @overload
    def __get__(self: Step[Concatenate[Any, Q], R], instance: object, owner: type[Any], /) -> Step[Q, R]: ...
    def __get__(self, instance: Any, owner: type[Any], /) -> Any:
        if instance is None:
            return self
        bound = self._copy()
        bound._instance = instance
        bound.function = self.function.__get__(instance)
        return bound

    def options(self, *, key: str) -> Self:
        """Return the same step, matched in the journal by *key* instead of its arguments.

        Within one message a key stands for one set of arguments; another raises `KeyConflict`.
        """
        keyed = self._copy()
        keyed._key = key
        return keyed

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Run the function; inside a turn its outcome is journaled and returned again instead of a second run.

        The body starts once everything that led to it is on disk. The result is a decoded copy.

        Raises:
            StepFailed: The function raised an error that it does not declare in `raises`.
            StepTimeout: It took longer than `timeout_s`.
            OutcomeUnknown: It was interrupted by a crash and is declared `interrupted="fail"`.
        """
        return self._call(args, kwargs)

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        turn = scope.get()
        if turn is None:
            return await run_function(self.function, args, kwargs)
        turn.check(f"step {self.name}")
        signature, parameters = self._resolved()
        try:
            bound = parameters.bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArguments(f"step {self.name}: {error}.") from error
        spec = Spec(
            self.name,
            functools.partial(self.function, *args, **kwargs),
            timeout_s=self.timeout_s,
            policy=self.policy,
            raises=self.raises,
            interrupted=self.interrupted,
        )
        # The order of keyword arguments says nothing, so they are matched by name.
        arguments = digest(dict(bound.arguments))
        decode = turn.activation.system.decoder(signature.returns)
        return await perform(turn, spec, arguments, decode, key=self._key)

    def _resolved(self) -> tuple[Signature, inspect.Signature]:
        """Return the types and the parameters of the function; found once for each class that has it."""
        owner: type[Any] | None = None if self._instance is None else type(self._instance)
        known = self._signatures.get(owner)
        if known is None:
            known = self._signatures[owner] = (self._resolve(), inspect.signature(self.function))
        return known

    def _resolve(self) -> Signature:
        function = self.__wrapped__
        if self._instance is not None:
            return Signature(function, self.name, owner=type(self._instance))
        try:
            return Signature(function, self.name, owner=None)
        except (InvalidDefinition, KeyError, TypeError, ValueError):
            # `step(fn)` wraps any function, also one without annotations: its result stays plain data.
            signature = Signature.__new__(Signature)
            signature.returns = Any
            return signature

    def _copy(self) -> Self:
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} {self.name}>"


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
        if spec.role != "tool":  # The replayed call of a tool is told by its own turn.
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
    if not spec.quiet:
        turn.emit(StepStarted, span=span, parent=turn.span, step=name, role=spec.role)
    turn.mark_started()
    if spec.interrupted == "fail":
        # The start mark is the outcome that a crash leaves behind.
        _write(turn, slot, Outcome(failure=unknown(name, "the process died or the turn was ended while it ran")))
    try:
        await system.committer.wait_durable()
    except asyncio.CancelledError:
        if spec.interrupted == "fail" and slot.work is None:
            _write(turn, slot, Outcome())  # It never began.
        raise
    if turn.ended is not None:
        if spec.interrupted == "fail" and slot.work is None:
            _write(turn, slot, Outcome())
        raise TurnEnded(f"step {name}: its turn has ended ({turn.ended}).")
    began_s = system.loop.time()
    history: list[Past] = []
    while True:
        outcome: Outcome | None = None
        decision: Decision | None = None
        attempt = len(history) + 1
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
    if slot.work is None and spec.gate is not None:
        await spec.gate()
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
            _write(turn, slot, Outcome())


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


def _write(turn: Turn, slot: Slot, outcome: Outcome) -> None:
    """Journal a row without giving the outcome to anybody."""
    journal = turn.ensure_journal()
    system = turn.activation.system
    if system.journals.get(journal.message) is not journal:
        return  # The message has ended: its journal is gone, or kept as it is with its dead letter.
    batch = system.committer.touch()
    batch.journal[(journal.message, slot.key)] = JournalEntry(journal.message, slot.key, outcome, slot.after)
    batch.work += 1
    journal.wrote(batch.number)


class _StepMaker(Protocol):
    @overload
    def __call__(self, function: Callable[P, Awaitable[R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Step[P, R]: ...


@overload
def step(function: Callable[P, Awaitable[R]], /, *, name: str | None = None) -> Step[P, R]: ...
@overload
def step(function: Callable[P, R], /, *, name: str | None = None) -> Step[P, R]: ...
@overload
def step(
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    policy: Policy | None = None,
    raises: Sequence[type[Exception]] = (),
    interrupted: Interrupted = "rerun",
) -> _StepMaker: ...
def step(function: Any = None, /, **options: Any) -> Any:
    """Make a function a step: inside a turn its outcome is journaled, and a redelivered turn does not run it again.

    Args:
        name: Its stable name in the journal and the trace (default: the function's name).
        timeout_s: Longer runs end as `StepTimeout`; a thread goes on and is joined by the next attempt.
        policy: Retries of this step.
        raises: Errors that arrive as themselves; all others arrive as `StepFailed`.
        interrupted: What a crash while it runs means: "rerun" runs it again, "fail" raises `OutcomeUnknown`.
    """
    if function is not None:
        return Step(function, **options)
    return lambda wrapped: Step(_annotated(wrapped), **options)


def _annotated(function: Callable[..., Any]) -> Callable[..., Any]:
    check_annotations(function, getattr(function, "__qualname__", repr(function)), method=False)
    return function
