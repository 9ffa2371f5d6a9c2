"""What one system was given: actor classes, tools, endpoints, resources; and the decoders that their types need."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from understudy.actors.actor import Actor
from understudy.actors.agent import Agent
from understudy.actors.job import Job
from understudy.actors.kinds import ActorType
from understudy.actors.reach import reached
from understudy.actors.tool import Tool, ToolType
from understudy.codec import Codec
from understudy.endpoint.endpoint import Endpoint
from understudy.errors import InvalidDefinition, NotRegistered

if TYPE_CHECKING:
    from understudy.actors.system import System

T = TypeVar("T")


class Registry:
    """The classes, tools, endpoints and resources of one system."""

    def __init__(
        self, system: System, children: Sequence[Any], endpoints: Sequence[Endpoint], resources: Sequence[object]
    ) -> None:
        self._system = system
        self.endpoints = tuple(endpoints)
        self.resources = tuple(resources)
        self.types: dict[str, ActorType] = {}
        self.codec = Codec(self.revive)
        self._made: dict[Any, Any] = {}
        for each in reached(children):
            self.take(each)

    def take(self, each: type[Actor[Any, Any]] | Tool[..., Any]) -> ActorType:
        """Take an actor class or a tool, or find it; raises `InvalidDefinition` when its kind is taken."""
        return self.add_tool(each) if isinstance(each, Tool) else self._add(each)

    def _add(self, cls: type[Actor[Any, Any]]) -> ActorType:
        other = self.types.get(cls.kind)
        if other is not None:
            if other.cls is cls:
                return other
            raise InvalidDefinition(
                f"{cls.__qualname__} and {other.cls.__qualname__} have one kind, {cls.kind!r}: give one of them "
                "another, class X(Actor, kind='...')."
            )
        made = self.types[cls.kind] = ActorType(cls, self.codec, "agent" if issubclass(cls, Agent) else "actor")
        return made

    def add_tool(self, tool: Tool[..., Any]) -> ToolType:
        """Take a tool, or find it; raises `InvalidDefinition` when its name is taken."""
        known = self.types.get(tool.kind)
        if isinstance(known, ToolType) and known.tool.function is tool.function:
            return known
        if known is not None:
            raise InvalidDefinition(f"two tools are called {tool.name!r}: give one of them a name=.")
        made = self.types[tool.kind] = ToolType(tool, self.codec)
        return made

    def type_of(self, cls: type[Any]) -> ActorType:
        """Return what this system knows of the class; raises `NotRegistered`."""
        type = self.types.get(getattr(cls, "kind", ""))
        if type is None or type.cls is not cls:
            known = ", ".join(sorted(each.cls.__name__ for each in self.types.values())) or "none"
            raise NotRegistered(
                f"{getattr(cls, '__name__', cls)} is not registered with this system; add it to System(..., [...]). "
                f"It has: {known}."
            )
        return type

    def endpoint_for(self, model: str) -> Endpoint:
        """Return the endpoint that serves the model, the first in order; raises `NotRegistered`."""
        for endpoint in self.endpoints:
            if endpoint.serves(model):
                return endpoint
        raise NotRegistered(
            f"no endpoint serves model {model!r}; give one to System(..., endpoints=[Endpoint(AnthropicProvider())])."
        )

    def declared_errors(self) -> list[type[Exception]]:
        """Return every error that a handler of this system declares."""
        return [error for type in self.types.values() for each in type.handlers.values() for error in each.raises]

    def decoder(self, of: Any) -> Callable[[bytes], Any]:
        """Return the decoder for a type, made once."""
        return self.once(of, functools.partial(self.codec.decoder, of))

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """Return what *make* makes, made once for *key*; each time for one that cannot be hashed."""
        try:
            found = self._made.get(key)
        except TypeError:
            return make()
        if found is None:
            found = self._made[key] = make()
        return cast(T, found)

    def revive(self, cls: Any, data: Any) -> Any:
        """Return the ref or job that *data* stands for, or NotImplemented for any other type."""
        origin = getattr(cls, "__origin__", cls)
        if origin is Job:
            returns = getattr(cls, "__args__", (Any,))[0]
            job: Job[Any] = Job(self._system.jobs, data, Any if isinstance(returns, TypeVar) else returns)
            return job
        if isinstance(origin, type) and issubclass(origin, Actor):
            kind, id = data
            type_ = self.types.get(kind)
            if type_ is None:
                raise NotRegistered(f"a stored ref names kind {kind!r}, which is not registered with this system.")
            if not issubclass(type_.cls, origin):
                raise ValueError(  # noqa: TRY004 - msgspec reports wrong data by this type
                    f"expected a ref to a {origin.__name__}, got one to {kind}/{id}"
                )
            return self._system.ref(type_, id)
        return NotImplemented

    def resource(self, kind: type[T]) -> T:
        """Return the resource of that type.

        Raises:
            NotRegistered: There is none, or more than one.
        """
        found = [each for each in self.resources if isinstance(each, kind)]
        if len(found) == 1:
            return found[0]
        what = "no resource" if not found else f"{len(found)} resources"
        raise NotRegistered(f"{what} of type {kind.__name__}; give exactly one to System(..., resources=[...]).")
