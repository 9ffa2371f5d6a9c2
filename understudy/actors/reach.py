"""Which classes a system needs: those that it was given, and those that the tools of its agents reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from understudy.actors.actor import Actor
from understudy.actors.agent import Agent
from understudy.actors.handler import Handler, Query
from understudy.actors.tool import Tool
from understudy.errors import InvalidDefinition


def reached(children: Sequence[Any]) -> Iterator[type[Actor[Any, Any]] | Tool[..., Any]]:
    """Yield the classes and tools, each once, in the order in which they are reached.

    Raises:
        InvalidDefinition: Something in the list is no actor class.
    """
    seen: set[int] = set()
    if not isinstance(children, Sequence):
        raise InvalidDefinition(f"System(path, [classes]) takes a list of actor classes; got {children!r}.")
    queue: list[Any] = list(children)
    while queue:
        each = queue.pop(0)
        if isinstance(each, (Handler, Query)):
            each = each.owner
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Tool):
            yield each
            continue
        if not (isinstance(each, type) and issubclass(each, Actor)) or each in (Actor, Agent):
            raise InvalidDefinition(f"System(..., children) takes actor classes; got {each!r}.")
        yield each
        if issubclass(each, Agent):
            queue.extend(each.tools)
