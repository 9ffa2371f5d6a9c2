"""Model calls as data."""

from __future__ import annotations

import msgspec

from understudy.endpoint.model import (
    ChatMessage,
    ModelAnswer,
    ModelRequest,
    Opaque,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
)


def test_a_request_survives_encoding():
    request = ModelRequest(
        "claude-opus-5-5",
        [
            ChatMessage("user", [Text("hello")]),
            ChatMessage(
                "assistant",
                [Opaque("anthropic", {"type": "thinking", "signature": "s"}), ToolCall("1", "f", {"a": [1]})],
            ),
            ChatMessage("user", [ToolResult("1", "no", is_error=True)]),
        ],
        system="Be brief.",
        tools=[ToolSpec("f", "does it", {"type": "object"})],
        output_schema={"type": "object"},
    )

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=ModelRequest) == request


def test_an_answer_survives_encoding():
    answer = ModelAnswer(
        "msg", "m", [Text("a"), ToolCall("1", "f", {}, malformed='{"a')], "tool_use", Usage(1, 2, 3, 4, 5), "req"
    )

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(answer), type=ModelAnswer) == answer
    assert answer.text == "a"
    assert [call.malformed for call in answer.tool_calls] == ['{"a']


def test_the_length_of_a_prompt_includes_its_cached_parts():
    assert Usage(1, 100, 10, 1_000, 10_000).prompt_tokens == 11_011
