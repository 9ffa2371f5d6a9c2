"""Who waits for whom: the graph of open asks, walked to find circles and what a suspect may need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.actors.activation import Activation


def waits_for(actor: Activation, other: Activation) -> bool:
    """Whether *actor*, directly or through others, waits for *other*; with a slot that does not wait, it waits for nobody."""
    seen: set[int] = set()
    stack: list[Activation] = [actor]
    while stack:
        one = stack.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if one is other:
            return True
        if one.waiting >= one.type.slots:
            stack.extend(one.waits or ())
    return False


def may_need(actor: Activation, other: Activation) -> bool:
    """Whether a turn of *actor* perhaps cannot go on before *other* does, directly or through others."""
    seen: set[int] = set()
    stack: list[Activation] = [actor]
    while stack:
        one = stack.pop()
        if one is other or one.waits_unknown:
            return True
        if id(one) not in seen:
            seen.add(id(one))
            stack.extend(one.waits or ())
    return False
