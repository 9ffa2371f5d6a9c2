"""The requests of one run: what its model is asked next, and what amendments of failed calls do to it.

A request is what the agent's class says and what was said so far, but for what amendments have changed; those changes
count for the rest of the run. Knows nothing of how a model is called.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from understudy.actors import changes
from understudy.actors.changes import Changes
from understudy.actors.schema import enforceable, schema_of
from understudy.codec import encode
from understudy.endpoint.amendments import asks, described
from understudy.endpoint.model import ChatMessage, ModelAnswer, ModelRequest, ToolSpec
from understudy.endpoint.windows import window_of

if TYPE_CHECKING:
    from understudy.actors.agent import Agent
    from understudy.actors.conversation import Conversation
    from understudy.actors.toolbox import Toolbox


class Requests:
    """What one run asks its model; `changes` is what amendments have changed, for all calls to come."""

    def __init__(self, agent: Agent[Any, Any], conversation: Conversation, toolbox: Toolbox, output: Any) -> None:
        self.conversation = conversation
        self.turn = conversation.turn
        self.registry = self.turn.activation.system.registry
        self.changes = Changes()
        self.models: tuple[str, ...] = (agent.model,) if isinstance(agent.model, str) else tuple(agent.model)
        self._agent = agent
        self._instructions: str = agent.instructions
        self._toolbox = toolbox
        self._output = output
        self._after_results: list[tuple[int, list[ChatMessage]]] = []  # by version

    @property
    def model(self) -> str:
        """The model that is asked next."""
        return self.changes.detour or self.changes.model or self.models[0]

    @property
    def context_tokens(self) -> int | None:
        """How much prompt and answer may come to; None when nobody knows."""
        return self._agent.context_tokens or window_of(self.model).context_tokens

    @property
    def max_tokens(self) -> int:
        """How long the next answer may be."""
        return self.changes.max_tokens or self._agent.max_tokens

    async def upcoming(self) -> ModelRequest:
        """Return what the model is asked next."""
        if self.changes.system is None:
            self._instructions = await self._agent.prompt()
        return self.draft()

    def draft(self) -> ModelRequest:
        """Return the same, with the instructions as they were last: to measure it, and not to ask users' code for it."""
        changed = self.changes
        schema, in_words = self._form
        system = changed.system if changed.system is not None else self._instructions + in_words
        return ModelRequest(
            model=self.model,
            system=system + changed.system_more,
            messages=changed.messages(self.conversation.messages),
            tools=changed.tools if changed.tools is not None else self._tools,
            max_tokens=self.max_tokens,
            output_schema=schema if changed.output_schema is msgspec.UNSET else changed.output_schema,
        )

    @functools.cached_property
    def _tools(self) -> list[ToolSpec]:
        return self._toolbox.specs(self.registry)

    @functools.cached_property
    def _form(self) -> tuple[dict[str, Any] | None, str]:
        """The output schema, or what the instructions say of it when no service can enforce it."""
        if self._output is str:
            return None, ""
        return self.registry.once(("form", self._output), functools.partial(_form_of, self._output))

    def offers(self, tool: str) -> bool:
        """Whether the model may call that tool: whether the agent has it, and no amendment has taken it away."""
        if self.changes.tools is None:
            return tool in self._toolbox.by_name
        return any(each.name == tool for each in self.changes.tools)

    def stored_changes(self, body: bytes | None) -> Changes:
        """Return changes that were stored; those that do not decode end the turn and suspend the actor."""
        if body is None:
            return Changes()
        what = f"the amended request of {self.turn.activation.name}"
        stored: Changes = self.turn.decode_stored(changes.read, body, what)
        return stored

    def append_after_results(self, version: int, messages: list[ChatMessage]) -> None:
        """Let messages that an amendment of a tool call has added follow the results of its answer's calls."""
        self._after_results.append((version, messages))

    def close_results(self) -> None:
        """Append what is to follow the results, which the conversation has now."""
        for _, messages in sorted(self._after_results, key=lambda each: each[0]):
            for message in messages:
                self.conversation.append(message)
        self._after_results = []


def _form_of(output: Any) -> tuple[dict[str, Any] | None, str]:
    schema = schema_of(output)
    enforced = enforceable(schema)
    return (enforced, "") if enforced is not None else (None, described(schema))


class NextRequest:
    """The request that follows, as the amendments of a failed tool call take and change it: an `Input` of its ladder."""

    def __init__(self, requests: Requests, ask_aside: Callable[[ModelRequest], Awaitable[ModelAnswer]]) -> None:
        self.requests = requests
        self.appended: list[ChatMessage] = []  # what is in the conversation by amendments of this call
        self.drops = False  # The answer before it is not part of the conversation.
        self._ask_aside = ask_aside
        self._given: ModelRequest | None = None

    async def given(self) -> ModelRequest:
        """Return the next request as it is."""
        asks.set(self._ask_aside)
        given = self._given = await self.requests.upcoming()
        return msgspec.structs.replace(given, messages=list(given.messages), tools=list(given.tools))

    def stored(self, changed: Any) -> bytes:
        """Return the bytes of what was changed; raises when it cannot be used."""
        requests = self.requests
        assert self._given is not None
        made = changes.changed(
            requests.changes, self._given, changed, requests.conversation.messages, self.appended, drops=self.drops
        )
        if made.model is not None:
            requests.registry.endpoint_for(made.model)
        return encode(made)

    def use(self, body: bytes) -> None:
        """Let the calls to come be asked so; those changes that are used already are not used again."""
        stored = self.requests.stored_changes(body)
        if stored.version > self.requests.changes.version:
            self.requests.changes = stored
        self.append(stored)

    def append(self, stored: Changes) -> None:
        """Add what the amendment has appended to the conversation."""
        if stored.appended:
            self.requests.append_after_results(stored.version, stored.appended)
