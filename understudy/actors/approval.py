"""The handle of one approval: what a person looks at, and how they decide."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from understudy.errors import InvalidArguments


class Decider(Protocol):
    """What an approval needs of its system."""

    async def decide(self, id: str, *, approved: bool, reason: str) -> None:
        """Store the decision; return once it is durable."""
        ...


class Approval:
    """One call of a tool that waits for a person; from `system.approval(id)` only its `id` is known.

    `arguments` are those that the tool will run with, by name; `actor` is who calls it, `job` the message that does.
    """

    __slots__ = ("_decider", "actor", "arguments", "asked_at", "id", "job", "tool")

    def __init__(
        self,
        decider: Decider,
        id: str,
        *,
        tool: str = "",
        arguments: Mapping[str, Any] | None = None,
        actor: str = "",
        job: str = "",
        asked_at: datetime | None = None,
    ) -> None:
        self._decider = decider
        self.id = id
        self.tool = tool
        self.arguments: dict[str, Any] = dict(arguments or {})
        self.actor = actor
        self.job = job
        self.asked_at = asked_at

    async def approve(self) -> None:
        """Let the call go on; returns once that is durable.

        Raises:
            AlreadyDecided: Somebody was quicker; the text says what was decided, and when.
            NotFound: There is no such approval, or who called the tool has ended.
        """
        await self._decider.decide(self.id, approved=True, reason="")

    async def reject(self, reason: str) -> None:
        """Refuse the call: a model is told the reason, a handler gets `ApprovalRejected`. Returns once that is durable.

        Raises:
            AlreadyDecided: Somebody was quicker; the text says what was decided, and when.
            NotFound: There is no such approval, or who called the tool has ended.
        """
        given: object = reason
        if not isinstance(given, str):
            raise InvalidArguments(f"reject() takes the reason as text; got {reason!r}.")
        await self._decider.decide(self.id, approved=False, reason=reason)

    def __repr__(self) -> str:
        return f"Approval({self.id!r}, tool={self.tool!r}, arguments={self.arguments!r})"
