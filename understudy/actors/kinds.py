"""An actor class as one system knows it: its handlers with their decoders, and which of its actors are in memory."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Never

import msgspec

from understudy.actors.actor import Actor, event_type, migrations, state_type
from understudy.actors.failures import to_error
from understudy.actors.handler import Handler, Query
from understudy.actors.ref import ref_class
from understudy.actors.signature import Signature, Wire
from understudy.codec import Codec, decode_or_suspend, encode
from understudy.errors import EncodingFailed, InvalidDefinition, StateUndecodable
from understudy.mailbox.commit import Snapshot
from understudy.mailbox.journal import Outcome

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.members import Group, StaticActor


class BoundHandler:
    """One handler or query of one actor class in one system."""

    __slots__ = ("alone", "function", "name", "raises", "timeout_s", "where", "wire")

    def __init__(self, kind: str, exposed: Handler[Any] | Query[Any], owner: type[Any], codec: Codec) -> None:
        self.name = exposed.name
        self.alone = 0  # how many of its next turns get a task of their own
        self.where = f"{kind}.{exposed.name}"
        self.function: Callable[..., Any] = exposed.function
        self.raises = exposed.raises
        self.timeout_s = exposed.timeout_s if isinstance(exposed, Handler) else None
        self.wire = Wire(Signature(exposed.function, self.where, owner=owner), codec)
        if self.wire.signature.keywords:
            self.function = _by_position(exposed.function, self.wire.signature.keywords)

    def reply(self, outcome: Outcome) -> Any:
        """Return the decoded value, or raise the failure."""
        if outcome.value is not None:
            return decode_or_suspend(self.wire.decode_result, outcome.value, f"the reply of {self.where}")
        assert outcome.failure is not None
        raise to_error(outcome.failure, self.where, self.raises)


def _by_position(function: Callable[..., Any], keywords: tuple[str, ...]) -> Callable[..., Any]:
    """Return *function* with its keyword-only parameters, the last ones, taken by position."""
    count = len(keywords)

    def call(made: Any, *values: Any) -> Any:
        return function(made, *values[:-count], **dict(zip(keywords, values[-count:], strict=True)))

    return call


class ActorType:
    """One actor class in one system."""

    def __init__(self, cls: type[Actor[Any, Any]], codec: Codec, role: str = "actor") -> None:
        self.cls = cls
        self.kind = cls.kind
        self.role = role
        self.ref = ref_class(cls)
        self.live: dict[str, Activation] = {}
        self.handlers: dict[str, BoundHandler] = {}
        self.queries: dict[str, BoundHandler] = {}
        for name in dir(cls):
            exposed: Handler[Any] | Query[Any] | None = getattr(cls, name, None)  # or anything else
            if isinstance(exposed, Handler):
                self.handlers[exposed.name] = BoundHandler(self.kind, exposed, cls, codec)
            elif isinstance(exposed, Query):
                self.queries[exposed.name] = BoundHandler(self.kind, exposed, cls, codec)
        self.slots = cls.concurrency
        self.policy = cls.policy
        self.turn_policy = cls.policy  # with the rules of its supervisors
        self.group: Group | None = None  # the template that its actors on demand belong to
        self.statics: dict[str, StaticActor] = {}  # its actors that are static children
        self.starts = cls.on_start is not Actor.on_start
        self.stops = cls.on_stop is not Actor.on_stop
        state = state_type(cls)
        self.has_state = state is not type(None)
        self.state_type = state
        event = event_type(cls)
        self.has_events = event is not Never
        self.has_log = cls.log_entry is not None
        self.snapshot_every = cls.snapshot_every
        self._migrations = migrations(cls)
        self.version = len(self._migrations) + 1
        try:
            self._decode_state = codec.decoder(state)
            self._decode_event = codec.decoder(event) if self.has_events else None
        except TypeError as error:
            raise InvalidDefinition(f"{cls.__qualname__}: its state or event type cannot be stored: {error}") from error
        self._decode_log = codec.decoder(cls.log_entry) if self.has_log else None
        if self.has_state:
            self._check_initial()

    def _check_initial(self) -> None:
        try:
            encode(self.initial_state())
        except TypeError as error:
            raise InvalidDefinition(
                f"{self.cls.__qualname__}: a new actor's state is {self.state_type}(), which fails: {error}. "
                "Give every field of the state a default."
            ) from error

    def initial_state(self) -> Any:
        """Return the state of an actor that has none yet."""
        if not self.has_state:
            return None
        return (typing.get_origin(self.state_type) or self.state_type)()

    def state_of(self, snapshot: Snapshot | None, name: str) -> Any:
        """Return the state in *snapshot*, brought to this version.

        Raises:
            StateUndecodable: It does not decode, or it was written by newer code.
        """
        if snapshot is None or not self.has_state:
            return self.initial_state()
        what = f"the state of {name}"
        if snapshot.version > self.version:
            raise StateUndecodable(
                f"{what} has version {snapshot.version}, this code knows {self.version}: it was written by newer code."
            )
        body = snapshot.body
        if snapshot.version < self.version:
            data = decode_or_suspend(msgspec.msgpack.decode, body, what)
            for version in range(snapshot.version, self.version):
                try:
                    data = self._migrations[version](data)
                except Exception as error:
                    raise StateUndecodable(f"{what}: @migrate({version}) failed: {error!r}") from error
            try:
                body = encode(data)
            except EncodingFailed as error:
                raise StateUndecodable(f"{what}: what the @migrate functions return is no data: {error}") from error
        return decode_or_suspend(self._decode_state, body, what)

    def check_state(self, body: bytes) -> None:
        """Refuse a state that could not be read back.

        Raises:
            EncodingFailed: It does not decode as the state's type.
        """
        try:
            self._decode_state(body)
        except Exception as error:
            raise EncodingFailed(
                f"the state of {self.kind} is not the annotated {self.state_type} any more: {error}. The turn was rolled "
                "back."
            ) from error

    def copy_event(self, body: bytes) -> Any:
        """Return an event that is to be stored, as it will be read back.

        Raises:
            EncodingFailed: It does not decode as the event's type.
        """
        decode = self._decode_event
        if decode is None:
            raise InvalidDefinition(f"{self.cls.__qualname__} records no events: write class X(Actor[State, Event]).")
        try:
            return decode(body)
        except Exception as error:
            raise EncodingFailed(f"the event recorded by {self.kind} is not of the annotated type: {error}.") from error

    def event_of(self, body: bytes, name: str) -> Any:
        """Return a stored event; raises `StateUndecodable` when it does not decode."""
        assert self._decode_event is not None
        return decode_or_suspend(self._decode_event, body, f"an event of {name}")

    def log_entry_of(self, body: bytes, name: str) -> Any:
        """Return a stored entry of the log; raises `StateUndecodable` when it does not decode."""
        assert self._decode_log is not None
        return decode_or_suspend(self._decode_log, body, f"an entry of the log of {name}")

    def new_object(self, id: str, state: Any) -> Any:
        """Return a new object of the user's class; raises `StateUndecodable` when its constructor fails."""
        try:
            made = self.cls()
        except Exception as error:
            raise StateUndecodable(
                f"{self.cls.__qualname__}() of {self.kind}/{id} raised {type(error).__name__}: {error}."
            ) from error
        made.id = id
        made.state = state
        return made
