"""Floor of a model call: the vendor's SDK in a loop by hand, which keeps nothing and survives nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic

NAME = "bare SDK"


def client(url: str, transport: str) -> anthropic.AsyncAnthropic:
    """Return a client whose own retries and traces are off, as ours are."""
    made: Callable[..., Any] = (
        anthropic.DefaultAioHttpClient if transport == "aiohttp" else anthropic.DefaultAsyncHttpxClient
    )
    return anthropic.AsyncAnthropic(
        api_key="fake-key", base_url=url, max_retries=0, open_telemetry=False, http_client=made(trust_env=False)
    )


async def converse(
    sdk: anthropic.AsyncAnthropic, prompt: str, tools: list[dict[str, Any]], run_tool: Callable[..., str], **asked: Any
) -> int:
    """Let the model answer, running its tool calls; return how many calls it took."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]
    stream_of: Any = sdk.messages.stream  # its parameters are TypedDicts by the hundred
    count = 0
    while True:
        count += 1
        async with stream_of(messages=messages, tools=tools, **asked) as stream:
            answer = await stream.get_final_message()
        if answer.stop_reason != "tool_use":
            return count
        messages.append({"role": "assistant", "content": answer.content})
        results: list[Any] = [
            {"type": "tool_result", "tool_use_id": block.id, "content": run_tool(**block.input)}
            for block in answer.content
            if block.type == "tool_use"
        ]
        messages.append({"role": "user", "content": results})
