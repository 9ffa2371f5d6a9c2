"""The class that users subclass: state, messages and what a turn may do. Wrong definitions are refused at once."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Never

from typing_extensions import TypeVar

from understudy.actors.handler import Handler, Query
from understudy.actors.signature import type_arguments
from understudy.actors.step import Step
from understudy.actors.turn import Turn, current_turn
from understudy.errors import InvalidDefinition, NoTurn
from understudy.mailbox.journal import Journal
from understudy.supervisor.policy import Policy

S = TypeVar("S", default=None)
E = TypeVar("E", default=Never)
A = TypeVar("A", bound="Actor[Any, Any]")

# Coroutines that a class may override although they are no messages.
_HOOKS = frozenset({"on_start", "on_stop"})


class Actor(Generic[S, E]):
    """One thing with a name, a state and a mailbox; handles one message at a time.

    `Actor[State]` keeps a state of that type, stored after each turn that changed it. `Actor[State, Event]` appends
    events with `record`; its state is what `apply` makes of them, and a snapshot is stored every `snapshot_every`.
    The class's `kind` is its stable name on disk (default: the class's name).
    """

    state: S
    id: str
    kind: ClassVar[str] = "Actor"
    policy: ClassVar[Policy] = Policy()  # of its turns
    call_policy: ClassVar[Policy] = Policy()  # of steps, model calls and tool calls inside its turns
    snapshot_every: ClassVar[int] = 100
    concurrency: ClassVar[int] = 1  # turns at a time; more than 1 only without state
    hooks: ClassVar[frozenset[str]] = _HOOKS
    log_list: ClassVar[type[list[Any]]] = list  # what holds the log in memory
    log_entry: ClassVar[Any] = None  # type of the entries of a log beside the state; agents keep their conversation so
    _ref: Any = None
    _log: Any = None
    _abstract: ClassVar[bool] = True

    def __init_subclass__(cls, *, kind: str | None = None, **kwargs: Any) -> None:
        if (wrong := next(iter(kwargs), None)) in _settings(cls):
            raise InvalidDefinition(f"{cls.__qualname__}: write {wrong} = {kwargs[wrong]!r} in the body of the class.")
        super().__init_subclass__(**kwargs)
        cls.kind = kind if kind is not None else cls.__name__
        cls._abstract = False
        check_definition(cls)

    @property
    def turn(self) -> Turn:
        """The running turn: id, attempt, resources. Raises `NoTurn` outside one."""
        return current_turn()

    def actor(self, cls: type[A], id: str | None = None, /) -> A:
        """Return the address of another actor; without an id a fresh one, the same on every redelivery."""
        return current_turn().actor(cls, id)

    def record(self, event: E) -> None:
        """Append *event* and apply it to the state; it is stored when the turn commits, and not at all if it fails."""
        turn = current_turn()
        if turn.actor_object is not self:
            raise NoTurn("record() belongs to the actor's own turn; queries and step bodies change nothing.")
        turn.record(event)

    if TYPE_CHECKING:
        # Many actors have a message called stop, and may: to type checkers this is whatever a subclass makes of it.
        stop: Any
    else:

        def stop(self, reason: str = "normal") -> None:
            """End this actor once the running turn has committed; not at all if the turn fails.

            An actor on demand comes back with its next message, as a new object. What becomes of a static child depends on
            its restart type: any *reason* but "normal", "shutdown" and "shutdown(...)" is an abnormal end.
            """
            turn = current_turn()
            turn.check("stop()")
            if turn.actor_object is not self:
                raise NoTurn("stop() belongs to the actor's own turn.")
            turn.exits = reason

    def apply(self, event: E) -> None:
        """Change the state by one event; called by `record` and when events are read back. Must do nothing else."""
        raise NotImplementedError

    @classmethod
    def log_append(cls, log: list[Any], entry: Any) -> None:
        """Take an entry into the log as it is kept in memory; see `log_entry`."""
        log.append(entry)

    @classmethod
    def log_closing(cls, journal: Journal, why: str) -> list[Any]:  # noqa: ARG003 - for overrides
        """Return what the log keeps of a turn that was given up, from its journal; see `log_entry`."""
        return []

    async def on_start(self) -> None:
        """Load and prepare; runs before the first turn of each life of the object. Sends nothing, changes no state.

        A static child whose `on_start` fails is not started; of an actor on demand the message's attempt fails. Raise
        `Ignore` to say that the actor is not to run, and that this is no failure.
        """

    async def on_stop(self) -> None:
        """Release what `on_start` took; runs when the object leaves memory in good order."""


def _settings(cls: type[Actor[Any, Any]]) -> set[str]:
    names: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.startswith("understudy.actors"):
            names.update(name for name in getattr(base, "__annotations__", {}) if not name.startswith("_"))
    return names - {"state", "id", "kind", "hooks", "log_entry", "log_list", "log_closing"}


def check_definition(cls: type[Actor[Any, Any]]) -> None:
    """Refuse a class that would not do what its author means.

    Raises:
        InvalidDefinition: Names the class, the attribute, and what is allowed.
    """
    name = cls.__qualname__
    if not 0 < len(cls.kind.encode()) <= 255 or "/" in cls.kind:
        raise InvalidDefinition(f"{name}: kind={cls.kind!r}; expected 1 to 255 bytes without '/'.")
    settings = _settings(cls)
    for attribute, value in vars(cls).items():
        if attribute.startswith("_") or isinstance(value, (Handler, Query, Step, property, classmethod, staticmethod)):
            continue
        if inspect.iscoroutinefunction(value) and attribute not in cls.hooks:
            raise InvalidDefinition(
                f"{name}.{attribute} is a public coroutine without a decorator; make it a @handler, a @query or a "
                f"@step, or call it _{attribute}."
            )
        if attribute not in settings and not callable(value):
            close = difflib.get_close_matches(attribute, settings, 1, cutoff=0.8)
            if close:
                raise InvalidDefinition(f"{name}.{attribute}: no such setting; did you mean '{close[0]}'?")
    for setting in ("snapshot_every", "concurrency"):
        value = getattr(cls, setting)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidDefinition(f"{name}.{setting}={value!r}; expected a whole number, 1 or more.")
    for setting in ("policy", "call_policy"):
        value = getattr(cls, setting)
        if not isinstance(value, Policy):
            raise InvalidDefinition(f"{name}.{setting}={value!r}; expected Policy(on(...), ...).")
    init = inspect.signature(cls.__init__)
    if (
        len(
            [
                p
                for p in init.parameters.values()
                if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            ]
        )
        > 1
    ):
        raise InvalidDefinition(f"{name}.__init__ takes arguments; an actor is made by the system. Use on_start.")
    if event_type(cls) is not Never and cls.apply is Actor.apply:
        raise InvalidDefinition(
            f"{name} records events but has no apply(self, event); define how one changes the state."
        )
    if cls.concurrency > 1 and (state_type(cls) is not type(None) or event_type(cls) is not Never):
        raise InvalidDefinition(
            f"{name}: concurrency={cls.concurrency} needs an actor without state; it has {state_type(cls)}."
        )
    check_migrations(cls)


def state_type(cls: type[Any]) -> Any:
    """Return the type of the class's state; NoneType for none."""
    given = type_arguments(cls, Actor)[0]
    return type(None) if given is None or isinstance(given, typing.TypeVar) else given


def event_type(cls: type[Any]) -> Any:
    """Return the type of the class's events; Never for none."""
    given = type_arguments(cls, Actor)[1]
    return Never if isinstance(given, typing.TypeVar) else given


class Migration:
    """Steps stored state from one version to the next."""

    def __init__(self, version: int, function: Callable[[Any], Any]) -> None:
        self.version = version
        self.function = function


def migrate(version: int, /) -> Callable[[Callable[[Any], Any]], Migration]:
    """Make a function of the class body step stored state from *version* to the next one.

    It takes the state as plain data (dicts, lists, numbers, text) and returns it in the next version's shape. The
    first version of a state is 1; a class with `@migrate(1)` and `@migrate(2)` stores version 3.
    """
    if version < 1:
        raise InvalidDefinition(f"@migrate({version!r}): expected the version it starts from, 1 or more.")

    def mark(function: Callable[[Any], Any]) -> Migration:
        return Migration(version, function.__func__ if isinstance(function, staticmethod) else function)

    return mark


def migrations(cls: type[Any]) -> dict[int, Callable[[Any], Any]]:
    """Return the class's migrations by the version they start from."""
    found: dict[int, Callable[[Any], Any]] = {}
    for base in reversed(cls.__mro__):
        for value in vars(base).values():
            if isinstance(value, Migration):
                found[value.version] = value.function
    return found


def check_migrations(cls: type[Any]) -> None:
    """Refuse gaps: versions must run from 1 without a hole."""
    versions = sorted(migrations(cls))
    if versions != list(range(1, len(versions) + 1)):
        raise InvalidDefinition(
            f"{cls.__qualname__}: @migrate versions are {versions}; expected 1, 2, ... without a gap."
        )
