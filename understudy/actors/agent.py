"""Agents: actors whose `run` answers a prompt with a model and tools, in one turn.

The class says which model, with which instructions and tools, and what becomes of failed calls; a wrong definition is
refused at once. Its conversation is a log beside its state. How a run goes is `agent_run`'s.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Generic, Literal, Never

import msgspec
from msgspec import Meta
from typing_extensions import TypeVar

from understudy.actors import conversation
from understudy.actors.actor import Actor
from understudy.actors.agent_run import Run
from understudy.actors.content import Content
from understudy.actors.handler import Handler, Query, handler, query
from understudy.actors.signature import type_arguments
from understudy.actors.tool import Tool
from understudy.actors.toolbox import Toolbox, ToolLike
from understudy.actors.turn import current_turn
from understudy.endpoint.amendments import compact, disable_tool, remind_format
from understudy.endpoint.budget import Budget
from understudy.endpoint.model import ChatMessage, Media, Text, ToolResult, append_message
from understudy.endpoint.sizes import Messages
from understudy.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ContextOverflow,
    EndpointUnavailable,
    InvalidDefinition,
    MalformedOutput,
    ModelFailure,
    Overloaded,
    RateLimited,
    SpendLimitReached,
    ToolFailed,
)
from understudy.mailbox.journal import Journal, storable
from understudy.supervisor.backoff import Backoff
from understudy.supervisor.policy import Policy, amend, dead_letter, escalate, on, retry, suspend

Output = TypeVar("Output")
State = TypeVar("State", default=None)


class Message(msgspec.Struct):
    """One message of a conversation, as people read it."""

    role: Literal["user", "assistant", "tool"]
    text: str


class Agent(Actor[State, Never], Generic[Output, State]):
    """An actor that answers prompts with a model and tools. `Agent[Report]` answers with a validated `Report`.

    `Agent[Report, Notes]` has a state of its own beside the conversation.
    """

    model: ClassVar[str | Sequence[str]] = (
        ""  # several: the first whose endpoint is not blocked, the others as fallbacks
    )
    instructions: ClassVar[str] = ""
    tools: ClassVar[Sequence[ToolLike]] = ()
    max_steps: ClassVar[int] = 50  # model calls of one run
    max_tokens: ClassVar[int] = 8_192  # of one answer; one that is cut off is asked for again with more
    context_tokens: ClassVar[int | None] = None  # the model's window; None: what is known of the model
    budget: ClassVar[Budget | None] = None  # of one run and all that it asks, tells and submits
    hooks: ClassVar[frozenset[str]] = Actor.hooks | {"prompt"}
    log_entry: ClassVar[Any] = ChatMessage
    log_list: ClassVar[type[list[Any]]] = Messages
    # The model's failures used up their own ladder inside the run: the message is not run again for them.
    policy: ClassVar[Policy] = Policy(on(ModelFailure, dead_letter()))
    call_policy: ClassVar[Policy] = Policy(
        on((RateLimited, Overloaded, EndpointUnavailable), retry(times=8, backoff=Backoff(1.0, max_s=60.0))),
        on(ContextOverflow, amend(compact, times=2)),
        on(ToolFailed, retry(times=3), amend(disable_tool)),  # first the same, then without the tool
        on(MalformedOutput, amend(remind_format, times=3)),
        on(BudgetExceeded, suspend()),  # with everything kept: it goes on when the budget is raised
        on((SpendLimitReached, AuthenticationFailed), escalate()),
    )

    def __init_subclass__(cls, *, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(kind=kind, **kwargs)
        _check_agent(cls)

    async def prompt(self) -> str:
        """Return the instructions of this run; override it when they depend on state."""
        return self.instructions

    @handler
    async def run(
        self, prompt: Annotated[str, Meta(min_length=1)] | Annotated[list[Content], Meta(min_length=1)]
    ) -> Output:
        """Answer *prompt*, using the tools.

        Raises:
            ModelFailure: The model could not be used; what `call_policy` does about it is used up.
            MalformedOutput: Its answers do not fit the output type, and reminders are used up.
            LimitExceeded: `max_steps` model calls were not enough.
            ActorSuspended: A budget does not allow the next model call; raise it, and await again.
            InvalidArguments: Another run of the same turn has not ended: a conversation is one thing after another.
        """
        output = type_arguments(type(self), Agent)[0]
        return typing.cast(Output, await Run(self, output, self._log or ()).result(prompt))

    @classmethod
    def log_append(cls, log: list[Any], entry: Any) -> None:
        """Take a message into the conversation as it is kept in memory; a summary shortens it."""
        append_message(log, entry)

    @classmethod
    def log_closing(cls, journal: Journal, why: str) -> list[Any]:
        """Return what is remembered of a run that was given up: what its journal holds, and a note."""
        entries = conversation.remembered(journal)
        if entries:
            entries.append(ChatMessage("user", [Text(storable(f"[The run ended without an answer: {why}]"))]))
        return entries

    @query
    async def messages(self) -> list[Message]:
        """Return the whole conversation so far, as text.

        A summary stands where the conversation was shortened; what it stands for is read from the store.
        """
        entries: Sequence[ChatMessage] = self._log or ()
        if any(entry.keeps is not None for entry in entries):
            entries = await current_turn().activation.state.whole_log()
        return [message for entry in entries for message in _readable(entry)]


def _check_agent(cls: type[Agent[Any, Any]]) -> None:
    name = cls.__qualname__
    _check_models(name, cls.model, abstract=bool(getattr(cls, "__parameters__", ())))
    budget = vars(cls).get("budget")
    if budget is not None and not isinstance(budget, (Budget, Handler, Query, Tool, property)) and not callable(budget):
        raise InvalidDefinition(f"{name}.budget={budget!r}; expected Budget(usd=0.50, model_calls=20) or the like.")
    Toolbox(cls)
    if cls.max_steps < 1 or cls.max_tokens < 1:
        raise InvalidDefinition(f"{name}: max_steps={cls.max_steps}, max_tokens={cls.max_tokens}; expected 1 or more.")
    window: object = cls.context_tokens
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
        raise InvalidDefinition(
            f"{name}.context_tokens={window!r}; expected a number of tokens, or None for what is known of the model."
        )


def _check_models(name: str, model: object, *, abstract: bool) -> None:
    if model == "":
        if abstract:
            return
        raise InvalidDefinition(f"{name} has no model; write e.g. model = 'claude-sonnet-5-5'.")
    models = typing.cast(Sequence[object], model) if isinstance(model, (list, tuple)) else [model]
    if not models or not all(isinstance(each, str) and each for each in models):
        raise InvalidDefinition(
            f"{name}.model={model!r}; expected a model's name, or a tuple of names: the first is asked, the others are its "
            "fallbacks, in order."
        )
    twice = [each for index, each in enumerate(models) if each in models[:index]]
    if twice:
        raise InvalidDefinition(f"{name}.model names {twice[0]!r} twice; each fallback is another model.")


def _readable(entry: ChatMessage) -> list[Message]:
    found: list[Message] = []
    for block in entry.content:
        if isinstance(block, (Text, Media)):
            found.append(Message(entry.role, block.text if isinstance(block, Text) else str(block)))
        elif isinstance(block, ToolResult):
            found.append(Message("tool", block.content))
    return found
