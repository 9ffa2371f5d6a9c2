"""What a model may call: the tools of one agent class, by name, and as the model reads of them.

A tool is a `@tool` function, or a handler or query: the agent's own, or that of another actor. Knows nothing of runs.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeAlias

from understudy.actors.handler import Handler, Query
from understudy.actors.schema import schema_of
from understudy.actors.signature import Signature
from understudy.actors.tool import Tool
from understudy.endpoint.model import ToolSpec
from understudy.errors import InvalidDefinition

if TYPE_CHECKING:
    from understudy.actors.agent import Agent
    from understudy.actors.registry import Registry

ToolLike: TypeAlias = Tool[..., Any] | Handler[Any] | Query[Any]


class Toolbox:
    """The tools of one agent class, each under the name that models call it by.

    Raises:
        InvalidDefinition: Something in `tools` is no tool, or two have one name.
    """

    def __init__(self, cls: type[Agent[Any, Any]]) -> None:
        self._cls = cls
        self.by_name: dict[str, ToolLike] = {}
        tools: object = cls.tools
        if not isinstance(tools, (list, tuple)):
            raise InvalidDefinition(f"{cls.__qualname__}.tools is {tools!r}; expected a list of tools.")
        for each in cls.tools:
            given: object = each
            if not isinstance(given, (Tool, Handler, Query)):
                raise InvalidDefinition(
                    f"{cls.__qualname__}.tools holds {each!r}; expected @tool functions, handlers or queries."
                )
            name = each.name if self.owns(each) else each.tool_name
            if self.by_name.setdefault(name, each) is not each:
                raise InvalidDefinition(
                    f"{cls.__qualname__}.tools has two tools called {name!r}; give one of them a name=."
                )

    def owns(self, each: ToolLike | None) -> bool:
        """Whether it is a handler or query of the agent itself: a method call in the same turn, no message."""
        return isinstance(each, (Handler, Query)) and (each.owner is None or issubclass(self._cls, each.owner))

    def specs(self, registry: Registry) -> list[ToolSpec]:
        """Return what the model reads of each tool."""
        return [
            registry.once((ToolSpec, name, each), functools.partial(_spec, name, each, registry))
            for name, each in self.by_name.items()
        ]


def _spec(name: str, each: ToolLike, registry: Registry) -> ToolSpec:
    signature = each.signature() if isinstance(each, Tool) else Signature(each.function, name, owner=each.owner)
    description = signature.doc
    if isinstance(each, Handler) and each.owner is not None:
        of_owner = (each.owner.__doc__ or "").strip()
        # The `run` of all agents has one docstring; what sets an agent apart is its class's.
        is_run = each.name == "run" and registry.type_of(each.owner).role == "agent"
        description = (of_owner or description) if is_run else (description or of_owner)
    return ToolSpec(name, description, schema_of(signature.arguments))
