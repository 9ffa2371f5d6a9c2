"""The vendor's SDK in a loop by hand, which keeps nothing and survives nothing.

Once as its documentation streams, with the helper that puts the answer together: what people write instead of an agent.
And once with as little of the SDK as an answer needs: the floor of a streamed call.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import anthropic

HELPER = "bare SDK"
BY_HAND = "bare SDK, events by hand"


class Answer(NamedTuple):
    """What a loop needs of one."""

    stop_reason: str | None
    content: Sequence[Any]  # as the next request takes it
    calls: list[tuple[str, dict[str, Any]]]  # of tools: their ids and arguments


Call = Callable[..., Awaitable[Answer]]
"""Makes one call with a client."""


def client(url: str, transport: str) -> anthropic.AsyncAnthropic:
    """Return a client whose own retries and traces are off, as ours are."""
    made: Callable[..., Any] = (
        anthropic.DefaultAioHttpClient if transport == "aiohttp" else anthropic.DefaultAsyncHttpxClient
    )
    return anthropic.AsyncAnthropic(
        api_key="fake-key", base_url=url, max_retries=0, open_telemetry=False, http_client=made(trust_env=False)
    )


async def with_helper(sdk: anthropic.AsyncAnthropic, **asked: Any) -> Answer:
    """Stream with the SDK's own accumulator."""
    stream_of: Any = sdk.messages.stream  # its parameters are TypedDicts by the hundred
    async with stream_of(**asked) as stream:
        answer = await stream.get_final_message()
    calls = [(block.id, block.input) for block in answer.content if block.type == "tool_use"]
    return Answer(answer.stop_reason, answer.content, calls)


async def by_hand(sdk: anthropic.AsyncAnthropic, **asked: Any) -> Answer:
    """Read the events, keeping text and tool calls only."""
    create: Any = sdk.messages.create
    stop_reason: str | None = None
    content: list[dict[str, Any]] = []
    parts: list[str] = []
    async for event in await create(**asked, stream=True):
        if event.type == "content_block_start":
            begun = event.content_block
            is_tool = begun.type == "tool_use"
            content.append({"type": "tool_use", "id": begun.id, "name": begun.name} if is_tool else {"type": "text"})
            parts = []
        elif event.type == "content_block_delta":
            parts.append(event.delta.text if event.delta.type == "text_delta" else event.delta.partial_json)
        elif event.type == "content_block_stop":
            told = "".join(parts)
            if content[-1]["type"] == "text":
                content[-1]["text"] = told
            else:
                content[-1]["input"] = json.loads(told)
        elif event.type == "message_delta":
            stop_reason = event.delta.stop_reason
    return Answer(stop_reason, content, [(block["id"], block["input"]) for block in content if "input" in block])


async def converse(
    call: Call,
    sdk: anthropic.AsyncAnthropic,
    prompt: str,
    tools: list[dict[str, Any]],
    run_tool: Callable[..., str],
    **asked: Any,
) -> int:
    """Let the model answer, running its tool calls; return how many calls it took."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    count = 0
    while True:
        count += 1
        answer = await call(sdk, messages=messages, tools=tools, **asked)
        if answer.stop_reason != "tool_use":
            return count
        messages.append({"role": "assistant", "content": answer.content})
        results = [
            {"type": "tool_result", "tool_use_id": id, "content": run_tool(**arguments)}
            for id, arguments in answer.calls
        ]
        messages.append({"role": "user", "content": results})
