"""What an agent can change about a model request that failed: pure functions from (request, failure) to a request.

Only `compact` needs a model for it: it asks the one that `asks` holds, which the agent sets and whose answer it
journals. What an amendment appends to the messages becomes part of the conversation; anything else it changes counts
for the rest of the run. The agent stores what it returns, so that it is called once for each failure.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import msgspec

from understudy.endpoint.model import (
    Block,
    ChatMessage,
    Media,
    ModelAnswer,
    ModelRequest,
    Opaque,
    Text,
    ToolCall,
    ToolResult,
    append_message,
)
from understudy.errors import InvalidArguments, ToolFailed

asks: ContextVar[Callable[[ModelRequest], Awaitable[ModelAnswer]]] = ContextVar("understudy_asks")
"""How an amendment asks a model: once, even when the process dies after the answer."""

SUMMARY = "[Summary of the conversation until here]"  # what a summary begins with
_SUMMARY_TOKENS_MAX = 2_048  # enough for a page; a longer summary is no shortening
_SUMMARISE = (
    "You shorten the record of a conversation between a user and an assistant that uses tools, because it does not fit "
    "the model's context any more. Write what the assistant must know to go on: what the user asked for, in the user's "
    "own words where they matter, every fact, number, name, address and id that was found, what was done and decided, "
    "and what is still to be done. Leave out nothing that may be needed. Answer with that summary and nothing else."
)


def remind_format(request: ModelRequest, failure: Exception) -> ModelRequest:
    """Return the request with a message more: what was wrong with the last answer, and what form is wanted."""
    _check("remind_format", request)
    wanted = (
        "Answer with plain text only."
        if request.output_schema is None
        else "Answer with one JSON value of the required form and nothing else."
    )
    reminder = ChatMessage("user", [Text(f"Your last answer could not be used: {failure}. {wanted}")])
    return msgspec.structs.replace(request, messages=[*request.messages, reminder])


def disable_tool(request: ModelRequest, failure: Exception) -> ModelRequest:
    """Return the request without the tool that failed; the model is told that it is not available any more."""
    _check("disable_tool", request)
    if not isinstance(failure, ToolFailed) or not failure.tool:
        raise InvalidArguments(
            f"disable_tool learns the tool from ToolFailed; got {type(failure).__name__}. Name ToolFailed in its rule."
        )
    return msgspec.structs.replace(request, tools=[tool for tool in request.tools if tool.name != failure.tool])


def switch_model(model: str) -> Callable[[ModelRequest, Exception], ModelRequest]:
    """Return the amendment that goes on with another model.

    Blocks that only the model before understands, such as signed thinking, are not sent to it: the provider leaves out
    what other models wrote, and those of which nobody noted the model are left out here.
    """

    def switch(request: ModelRequest, _failure: Exception) -> ModelRequest:
        _check("switch_model", request)
        messages = [
            msgspec.structs.replace(message, content=[block for block in message.content if not _is_unmarked(block)])
            for message in request.messages
        ]
        return msgspec.structs.replace(request, model=model, messages=messages)

    switch.__name__ = f"switch_model({model!r})"
    return switch


def _is_unmarked(block: Block) -> bool:
    return isinstance(block, Opaque) and not block.model


def describe_schema(request: ModelRequest, _failure: Exception) -> ModelRequest:
    """Return the request with its output schema in words, for a service that cannot hold the model to it."""
    _check("describe_schema", request)
    if request.output_schema is None:
        raise InvalidArguments(
            "the request has no output schema that could be described; it is its tools' that are too complex."
        )
    system = f"{request.system}{described(request.output_schema)}"
    return msgspec.structs.replace(request, system=system, output_schema=None)


def described(schema: dict[str, Any]) -> str:
    """Return what the instructions say of the form of an answer."""
    written = msgspec.json.encode(schema).decode()
    return f"\n\nAnswer with one JSON value that fits this JSON schema, and with nothing else:\n{written}"


async def compact(request: ModelRequest, _failure: Exception) -> ModelRequest:
    """Return the request with the older half of its messages summarised by one model call, which costs money.

    The first prompt stays as it is unless it is longer than all the rest, and every tool call stays with its result. An
    agent's conversation is shorter from there on, for later runs too; images and documents are left out of a summary.

    Raises:
        InvalidArguments: There is nothing that could be shortened, or the summary is no shorter.
        ModelFailure: The summary could not be had.
    """
    _check("compact", request)
    messages = request.messages
    half = older_half(messages)
    if half is None:
        raise InvalidArguments(
            f"compact finds nothing to summarise: of {len(messages)} messages the first prompt, and the newest exchange "
            "with its tool calls, stay as they are. Let tools return less, or use a model with a larger context."
        )
    ask = asks.get(None)
    if ask is None:
        raise InvalidArguments(
            "compact asks a model for the summary; it works as an amendment of an agent's calls only."
        )
    first, end = half
    record = "\n\n".join(_told(message) for message in messages[first:end])
    answer = await ask(
        ModelRequest(
            model=request.model,
            system=_SUMMARISE,
            messages=[ChatMessage("user", [Text(f"<conversation>\n{record}\n</conversation>")])],
            max_tokens=min(request.max_tokens, _SUMMARY_TOKENS_MAX),
        )
    )
    if not answer.text or len(answer.text) >= len(record):
        raise InvalidArguments(
            f"compact got a summary of {len(answer.text)} characters for {len(record)}: nothing would be gained."
        )
    summary = ChatMessage("user", [Text(f"{SUMMARY}\n{answer.text}")], keeps=(first, len(messages) - end))
    shorter = [*messages]
    append_message(shorter, summary)
    return msgspec.structs.replace(request, messages=shorter)


def older_half(messages: list[ChatMessage]) -> tuple[int, int] | None:
    """Return where the older half begins and ends; None when nothing can be left out.

    It begins after the first prompt, unless that is longer than all the rest. What follows it begins with no result of a
    tool, as that belongs to the call before it.
    """
    sizes = [len(msgspec.msgpack.encode(message)) for message in messages]
    first = 0 if sizes[0] > sum(sizes[1:]) else 1
    half = sum(sizes[first:]) / 2
    found: int | None = None
    before = 0
    for end in range(first + 1, len(messages)):
        before += sizes[end - 1]
        if any(isinstance(block, ToolResult) for block in messages[end].content):
            continue
        found = end
        if before >= half:
            break
    return None if found is None else (first, found)


def _told(message: ChatMessage) -> str:
    lines: list[str] = []
    for block in message.content:
        if isinstance(block, Text):
            lines.append(f"{message.role}: {block.text}")
        elif isinstance(block, ToolCall):
            lines.append(f"assistant calls {block.name} ({block.id}): {msgspec.json.encode(block.arguments).decode()}")
        elif isinstance(block, ToolResult):
            lines.append(f"{'error' if block.is_error else 'result'} of {block.call_id}: {block.content}")
        elif isinstance(block, Media):
            lines.append(f"{message.role}: {block} {block.text}".rstrip())
    return "\n".join(lines)


def _check(name: str, request: Any) -> None:
    if not isinstance(request, ModelRequest):
        raise InvalidArguments(
            f"{name} changes a model's request; got a {type(request).__qualname__}. Amend a step by a function of its "
            "arguments."
        )
