"""Steps: whatever reaches outside. A finished step of a turn is journaled and not repeated when the turn is."""

from __future__ import annotations

import functools
import inspect
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, cast, overload

import msgspec

from understudy.actors.body import run_function
from understudy.actors.handler import declared_errors, positive_or_none
from understudy.actors.performing import Interrupted, Spec, perform
from understudy.actors.signature import Signature, check_annotations
from understudy.actors.turn import Turn, scope
from understudy.codec import digest, encode
from understudy.errors import InvalidArguments, InvalidDefinition
from understudy.supervisor.policy import Policy

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class _Resolved:
    """The types and the parameters of a function."""

    __slots__ = ("_names", "_needed", "parameters", "signature")

    def __init__(self, signature: Signature, parameters: inspect.Signature) -> None:
        self.signature = signature
        self.parameters = parameters
        self._names: list[str] = []  # of the parameters that arguments by position go to
        self._needed = 0  # how many arguments by position are enough
        for each in parameters.parameters.values():
            by_position = each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
            if by_position:
                self._names.append(each.name)
            if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                self._needed = len(self._names) if by_position else sys.maxsize

    def by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the given arguments by name; raises TypeError when the function does not take them."""
        if not kwargs and self._needed <= len(args) <= len(self._names):
            return dict(zip(self._names, args, strict=False))  # What `bind` finds as well, in ten times the time.
        return dict(self.parameters.bind(*args, **kwargs).arguments)


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
        self._signatures: dict[type[Any] | None, _Resolved] = {}
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
        resolved = self._resolved()
        try:
            given = resolved.by_name(args, kwargs)
        except TypeError as error:
            raise InvalidArguments(f"step {self.name}: {error}.") from error
        spec = Spec(
            self.name,
            functools.partial(self.function, *args, **kwargs),
            timeout_s=self.timeout_s,
            policies=self.policies(turn),
            raises=self.raises,
            interrupted=self.interrupted,
        )
        spec.input = functools.partial(Arguments, self, turn, given)
        # The order of keyword arguments says nothing, so they are matched by name.
        arguments = digest(given)
        decode = turn.activation.system.registry.decoder(resolved.signature.returns)
        return await perform(turn, spec, arguments, decode, key=self._key)

    def policies(self, turn: Turn) -> tuple[Policy, ...]:
        """Return the policies that are asked about a failed attempt, in order: its own, then its actor's."""
        of_actor = turn.activation.type.cls.call_policy
        return (of_actor,) if self.policy is None else (self.policy, of_actor)

    def _resolved(self) -> _Resolved:
        """Return the types and the parameters of the function; found once for each class that has it."""
        instance: object = self._instance
        owner: type[Any] | None = None if instance is None else type(instance)
        known = self._signatures.get(owner)
        if known is None:
            known = self._signatures[owner] = _Resolved(self._resolve(), inspect.signature(self.function))
        return known

    def _resolve(self) -> Signature:
        function = self.__wrapped__
        instance: object = self._instance
        if instance is not None:
            return Signature(function, self.name, owner=type(instance))
        try:
            return Signature(function, self.name, owner=None)
        except (InvalidDefinition, KeyError, TypeError, ValueError):
            # `step(fn)` wraps any function, also one without annotations: its result stays plain data.
            signature = Signature.__new__(Signature)
            signature.returns = Any
            plain: Any = dict[str, Any]
            signature.arguments = plain
            return signature

    def _copy(self) -> Self:
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        return copy

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} {self.name}>"


class Arguments:
    """The arguments of one step, as amendments take and change them: a dict by name, defaults included."""

    def __init__(self, step: Step[..., Any], turn: Turn, given: Mapping[str, Any], spec: Spec) -> None:
        self._turn = turn
        self._spec = spec
        self._function = step.function
        self._what = f"the amended arguments of {spec.role} {spec.name}"
        resolved = step._resolved()
        self._parameters = resolved.parameters
        self._decode = turn.activation.system.registry.decoder(resolved.signature.arguments)
        self._bound = self._bind(given)

    async def given(self) -> dict[str, Any]:
        """Return a copy of them."""
        current = self._bind(self._bound.arguments)
        current.apply_defaults()
        return dict(current.arguments)

    def stored(self, changed: Any) -> bytes:
        """Return the bytes of changed arguments; raises when the function does not take them."""
        if not isinstance(changed, Mapping):
            raise InvalidArguments(f"expected a dict of arguments by name; got a {type(changed).__qualname__}")
        arguments = cast(Mapping[str, Any], changed)
        body = encode(dict(self._bind(arguments).arguments))
        self._decode(body)
        return body

    def use(self, body: bytes) -> None:
        """Let the next attempt have the stored arguments."""
        stored = self._turn.decode_stored(self._decode, body, self._what)
        if isinstance(stored, msgspec.Struct):
            stored = {name: getattr(stored, name) for name in stored.__struct_fields__}
        self._bound = self._bind(stored)
        self._spec.function = functools.partial(self._function, *self._bound.args, **self._bound.kwargs)

    def _bind(self, arguments: Mapping[str, Any]) -> inspect.BoundArguments:
        names = self._parameters.parameters
        unknown = [repr(name) for name in arguments if name not in names]
        if unknown:
            raise InvalidArguments(f"no arguments called {', '.join(unknown)}; it takes {', '.join(names)}")
        ordered = OrderedDict((name, arguments[name]) for name in names if name in arguments)
        bound = inspect.BoundArguments(self._parameters, ordered)
        return self._parameters.bind(*bound.args, **bound.kwargs)


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
        policy: What becomes of its failures; what it does not name is up to the actor's `call_policy`.
        raises: Errors that arrive as themselves; all others arrive as `StepFailed`.
        interrupted: What a crash while it runs means: "rerun" runs it again, "fail" raises `OutcomeUnknown`.
    """

    def make(wrapped: Callable[..., Any]) -> Step[..., Any]:
        return Step(_annotated(wrapped), **options)

    if function is None:
        return make
    plain: Step[..., Any] = Step(function, **options)
    return plain


def _annotated(function: Callable[..., Any]) -> Callable[..., Any]:
    check_annotations(function, getattr(function, "__qualname__", repr(function)), method=False)
    return function
