"""Handlers and queries: the methods of an actor that others may call.

`@handler` marks a message, `@query` a read beside the running turn. On an actor's own object a handler is a plain
method call in the same turn; its `.tell`, `.submit` and `.options` are messages to itself.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, overload

import msgspec
from typing_extensions import TypeVar

from understudy.actors.job import Job
from understudy.actors.signature import check_annotations
from understudy.codec import text_bytes
from understudy.errors import InvalidArguments, InvalidDefinition
from understudy.supervisor.policy import is_exception_class

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
F_co = TypeVar("F_co", bound=Callable[..., Coroutine[Any, Any, Any]], covariant=True)


class Options(msgspec.Struct, frozen=True):
    """How a message is sent."""

    key: str | None = None
    delay_s: float | None = None
    at: datetime | None = None
    deadline_s: float | None = None
    workflow: str | None = None  # the ledger of the workflow that it is sent through


PLAIN = Options()


class Address(Protocol):
    """Whom a message goes to: a ref, or an actor's own object. Implemented by the system."""

    def ask(
        self, name: str, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Send and wait for the reply."""
        ...

    def tell(
        self, name: str, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, None]:
        """Send; return when the message is stored."""
        ...

    def submit(
        self, name: str, options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Job[Any]]:
        """Send; return a durable handle when the message is stored."""
        ...

    def ask_query(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """Read beside the running turn."""
        ...


class Bound(Generic[P, R_co]):
    """One handler of one actor, ready to be called; cheap to make, valid across the actor's restarts."""

    __slots__ = ("_address", "_local", "_name", "_options")

    def __init__(
        self, address: Address, name: str, options: Options = PLAIN, local: Callable[..., Any] | None = None
    ) -> None:
        self._address = address
        self._name = name
        self._options = options
        self._local = local

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Ask: send the message and return its reply once its turn has committed.

        Outside a turn a cancelled caller leaves the message where it is. Inside a turn the ask is a step: it leaves at
        once and is not repeated when the turn is delivered again. On the actor's own object it is a plain method call.

        Raises:
            MailboxFull: Too many messages wait already; nothing was stored.
            InvalidArguments: The arguments do not fit; nothing was stored.
            HandlerFailed: The message was given up; it is kept as a dead letter.
            ActorSuspended: The actor is held, with its mail.
        """
        if self._local is not None:
            here: Coroutine[Any, Any, R_co] = self._local(*args, **kwargs)
            return here
        return self._address.ask(self._name, self._options, args, kwargs)

    def tell(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, None]:
        """Store the message; return once it is durable, without waiting for its turn.

        Messages of one sender keep their order. Inside a turn the message leaves when the turn commits, and not at all
        if it fails. If cancelled outside a turn, the message may or may not be stored; send it again with the same
        `options(key=...)` to be sure of exactly one.

        Raises:
            MailboxFull: Too many messages wait already; nothing was stored.
            InvalidArguments: The arguments do not fit; nothing was stored.
            ActorStopped: The actor has stopped; nothing was stored.
        """
        return self._address.tell(self._name, self._options, args, kwargs)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Job[R_co]]:
        """Store the message and return a durable handle to it; its outcome is kept for `Limits.result_ttl_s`.

        Raises:
            MailboxFull: Too many messages wait already; nothing was stored.
            InvalidArguments: The arguments do not fit; nothing was stored.
        """
        return self._address.submit(self._name, self._options, args, kwargs)

    def options(
        self,
        *,
        key: str | None = None,
        delay_s: float | None = None,
        at: datetime | None = None,
        deadline_s: float | None = None,
    ) -> Self:
        """Return the same handler with options for the next message.

        Args:
            key: At most one message per key and handler: a second one joins the first or gets its outcome.
            delay_s: Deliver no sooner than so many seconds after it was stored.
            at: Deliver no sooner than this moment (aware datetime).
            deadline_s: A message that has not committed within so many seconds never starts, or is cancelled.
        """
        wrong = None
        if key is not None and not 0 < text_bytes(key, "options(key=...)") <= 255:
            wrong = f"key={key!r}: expected 1 to 255 bytes"
        elif delay_s is not None and at is not None:
            wrong = "delay_s and at are both set: give one"
        elif delay_s is not None and not 0 <= delay_s < 1e10:
            wrong = f"delay_s={delay_s}: expected 0 or more seconds"
        elif at is not None and at.tzinfo is None:
            wrong = f"at={at}: expected an aware datetime, e.g. datetime.now(timezone.utc)"
        elif deadline_s is not None and not deadline_s > 0:
            wrong = f"deadline_s={deadline_s}: expected more than 0 seconds"
        if wrong:
            raise InvalidArguments(f"options({wrong}).")
        return type(self)(self._address, self._name, Options(key, delay_s, at, deadline_s))


class BoundQuery(Generic[P, R_co]):
    """One query of one actor, ready to be called."""

    __slots__ = ("_address", "_local", "_name")

    def __init__(self, address: Address, name: str, local: Callable[..., Any] | None = None) -> None:
        self._address = address
        self._name = name
        self._local = local

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Read the state of the last finished turn, beside a running one; returns once that state is durable."""
        if self._local is not None:
            here: Coroutine[Any, Any, R_co] = self._local(*args, **kwargs)
            return here
        return self._address.ask_query(self._name, args, kwargs)


class _Exposed(Generic[F_co]):
    """A method that others may call: what handlers and queries share."""

    def __init__(self, function: Callable[..., Any], decorator: str) -> None:
        name = getattr(function, "__qualname__", repr(function))
        if not inspect.isfunction(function):
            raise InvalidDefinition(f"{decorator} decorates a method; got {function!r}.")
        if not inspect.iscoroutinefunction(function):
            raise InvalidDefinition(f"{name} is a plain 'def'; write 'async def' under {decorator}.")
        check_annotations(function, name, method=True)
        self.function = function
        self.name: str = function.__name__
        self.owner: type[Any] | None = None
        self._of: dict[type[Any], Self] = {}
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self.owner = owner
        self.name = name

    def of(self, owner: type[Any]) -> Self:
        """Return this method as *owner* has it, inherited or its own: `Writer.run` knows that it is the writer's."""
        if owner is self.owner:
            return self
        mine = self._of.get(owner)
        if mine is None:
            mine = self._of[owner] = copy.copy(self)
            mine.owner = owner
        return mine

    @property
    def tool_name(self) -> str:
        """What a model calls it by."""
        kind = getattr(self.owner, "kind", "")
        return tool_name(kind if self.name == "run" else f"{kind}_{self.name}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} {getattr(self.owner, '__name__', '')}.{self.name}>"


class Handler(_Exposed[F_co]):
    """A message that an actor understands. `Class.name` is this object; `ref.name` a `Bound`."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        raises: Sequence[type[Exception]] = (),
        timeout_s: float | None = None,
    ) -> None:
        super().__init__(function, "@handler")
        self.raises = declared_errors(raises, self.function.__qualname__)
        self.timeout_s = positive_or_none(timeout_s, "timeout_s", self.function.__qualname__)

    @overload
    def __get__(self, instance: None, owner: type[Any], /) -> Self: ...
    @overload
    def __get__(
        self: Handler[Callable[P, Coroutine[Any, Any, R]]], instance: object, owner: type[Any], /
    ) -> Bound[P, R]: ...
    def __get__(self, instance: Any, owner: type[Any], /) -> Any:
        if instance is None:
            return self.of(owner)
        bound: Bound[..., Any] = Bound(instance._ref._target, self.name, PLAIN, self.function.__get__(instance))
        return bound


class Query(_Exposed[F_co]):
    """A read of an actor's state. `Class.name` is this object; `ref.name` a `BoundQuery`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function, "@query")
        self.raises: tuple[type[Exception], ...] = ()

    @overload
    def __get__(self, instance: None, owner: type[Any], /) -> Self: ...
    @overload
    def __get__(
        self: Query[Callable[P, Coroutine[Any, Any, R]]], instance: object, owner: type[Any], /
    ) -> BoundQuery[P, R]: ...
    def __get__(self, instance: Any, owner: type[Any], /) -> Any:
        if instance is None:
            return self.of(owner)
        bound: BoundQuery[..., Any] = BoundQuery(instance._ref._target, self.name, self.function.__get__(instance))
        return bound


class _HandlerMaker(Protocol):
    def __call__(
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
    ) -> Handler[Callable[P, Coroutine[Any, Any, R]]]: ...


@overload
def handler(
    function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
) -> Handler[Callable[P, Coroutine[Any, Any, R]]]: ...
@overload
def handler(*, raises: Sequence[type[Exception]] = (), timeout_s: float | None = None) -> _HandlerMaker: ...
def handler(function: Any = None, /, **options: Any) -> Any:
    """Make an async method a message of its actor.

    Args:
        raises: Errors that are answers: the turn is rolled back, the error is raised at the caller; no retry.
        timeout_s: A turn that takes longer fails with `StepTimeout`.
    """

    def make(method: Callable[..., Any]) -> Handler[Any]:
        return Handler(method, **options)

    if function is None:
        return make
    return make(function)


def query(
    function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
) -> Query[Callable[P, Coroutine[Any, Any, R]]]:
    """Make an async method a read: it sees the state of the last finished turn, runs beside turns, changes nothing."""
    return Query(function)


def declared_errors(raises: Sequence[type[Exception]], name: str) -> tuple[type[Exception], ...]:
    """Return *raises* checked: exception classes with different names."""
    for each in raises:
        if not is_exception_class(each):
            raise InvalidDefinition(f"{name}: raises= takes exception classes; got {each!r}.")
    names = [each.__name__ for each in raises]
    if len(set(names)) < len(names):
        raise InvalidDefinition(f"{name}: raises= has two classes with one name ({', '.join(names)}).")
    return tuple(raises)


def positive_or_none(value: float | None, setting: str, name: str) -> float | None:
    """Return *value* checked: None or more than 0."""
    given: object = value
    if given is not None and not (isinstance(given, (int, float)) and given > 0):
        raise InvalidDefinition(f"{name}: {setting}={given!r}; expected more than 0 seconds, or None.")
    return value


def tool_name(name: str) -> str:
    """Return *name* as the model's API takes it: letters, digits, '_' and '-', at most 128."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:128]
