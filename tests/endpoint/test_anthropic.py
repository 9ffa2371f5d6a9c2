"""The Anthropic provider, against the wire protocol."""

from __future__ import annotations

import itertools
import json
import sys

import pytest

from understudy.endpoint.anthropic import AnthropicProvider
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
from understudy.errors import EndpointUnavailable, InvalidDefinition
from understudy.testing import (
    FakeAnthropic,
    calls,
    junk,
    says,
    stops,
    thinks,
    together,
)

pytestmark = pytest.mark.anyio

REQUEST = ModelRequest("claude-opus-5-5", [ChatMessage("user", [Text("hello")])], max_tokens=100)


@pytest.fixture(params=["aiohttp", "httpx"])
def transport(request, monkeypatch):
    if request.param == "httpx":
        monkeypatch.setitem(sys.modules, "aiohttp", None)  # Importing it raises ImportError.
    return request.param


async def answer_to(*answers, request=REQUEST, **options) -> ModelAnswer:
    async with FakeAnthropic(*answers, **options) as fake:
        return await fake.endpoint().call(request)


@pytest.mark.usefixtures("transport")
async def test_an_answer_comes_whole():
    answer = await answer_to(says("Grüße, 世界! 🎭").used(input_tokens=12, output_tokens=34))

    assert answer.content == [Text("Grüße, 世界! 🎭")]
    assert (answer.model, answer.stop_reason, answer.usage) == ("claude-opus-5-5", "end_turn", Usage(12, 34))
    assert answer.id.startswith("msg_")
    assert answer.request_id is not None
    assert answer.request_id.startswith("req_")


async def test_parallel_tool_calls_and_thinking_are_put_together_in_order():
    answer = await answer_to(
        together(
            thinks("Two searches will do. " * 5, signature="c2lnbmF0dXJl"),
            says("Searching."),
            calls("search", query='"quoted" \\ 世界', limit=3),
            calls("search", query="b", nested={"a": [1, None, 2.5]}),
            calls("now"),
        )
    )

    thinking, text, *searches = answer.content
    assert thinking == Opaque(
        "anthropic",
        {"type": "thinking", "thinking": "Two searches will do. " * 5, "signature": "c2lnbmF0dXJl"},
        "claude-opus-5-5",
    )
    assert text == Text("Searching.")
    assert [(call.name, call.arguments) for call in searches if isinstance(call, ToolCall)] == [
        ("search", {"query": '"quoted" \\ 世界', "limit": 3}),
        ("search", {"query": "b", "nested": {"a": [1, None, 2.5]}}),
        ("now", {}),
    ]
    assert len({call.id for call in answer.tool_calls}) == 3
    assert answer.stop_reason == "tool_use"


@pytest.mark.parametrize("reason", ["pause_turn", "model_context_window_exceeded", "stop_sequence", "some_day_more"])
async def test_other_stop_reasons_are_handed_on(reason):
    answer = await answer_to(stops(reason, says("so far")))

    assert (answer.stop_reason, answer.text) == (reason, "so far")


async def test_cache_counts_are_kept_apart():
    answer = await answer_to(
        says("x").used(
            input_tokens=1, output_tokens=2, cache_read_tokens=3, cache_write_5m_tokens=4, cache_write_1h_tokens=5
        )
    )

    assert answer.usage == Usage(1, 2, 3, 4, 5)


def stream(*events: dict) -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events)


START = {
    "type": "message_start",
    "message": {"id": "m", "model": "x", "usage": {"input_tokens": 9, "output_tokens": 1}},
}
STOP = ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, {"type": "message_stop"})


@pytest.mark.parametrize(
    ("blocks", "received_bytes"),
    [
        ([{"type": "text", "text": "1234"}], 4),
        ([{"type": "thinking", "thinking": "1234", "signature": "123456"}], 10),
        ([{"type": "redacted_thinking", "data": "12345678"}], 8),
        ([{"type": "text", "text": "1234"}, {"type": "thinking", "thinking": ""}], 0),  # Nobody hears it think.
    ],
)
async def test_broken_answer_tells_how_much_had_come_unless_the_model_was_thinking(blocks, received_bytes):
    begun = [{"type": "content_block_start", "index": no, "content_block": block} for no, block in enumerate(blocks)]

    with pytest.raises(EndpointUnavailable) as broken:
        await answer_to(junk(stream(START, *begun), content_type="text/event-stream"))

    assert broken.value.received_bytes == received_bytes


async def test_counts_of_a_stream_replace_earlier_ones_and_keep_what_is_missing():
    answer = await answer_to(
        junk(
            stream(
                START,
                {
                    "type": "message_delta",
                    "delta": {},
                    "usage": {"output_tokens": 40, "cache_creation_input_tokens": 7},
                },
                {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 50, "input_tokens": None}},
                *STOP,
            ),
            content_type="text/event-stream",
        )
    )

    # Without a split by lifetime, the sum of cache writes is of the service's default, five minutes.
    assert answer.usage == Usage(input_tokens=9, output_tokens=50, cache_write_5m_tokens=7)


async def test_a_gateway_that_strips_event_names_and_adds_events_does_no_harm():
    answer = await answer_to(
        junk(
            stream(
                START,
                {"type": "news", "delta": {"x": 1}},
                {
                    "type": "content_block_start",
                    "index": 0,
                    "content_block": {"type": "gadget", "id": "g", "input": {}},
                },
                {
                    "type": "content_block_delta",
                    "index": 0,
                    "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'},
                },
                {"type": "content_block_delta", "index": 0, "delta": {"type": "gadget_delta", "state": "on"}},
                *STOP,
            ),
            content_type="text/event-stream",
        )
    )

    assert answer.content == [
        Opaque("anthropic", {"type": "gadget", "id": "g", "input": {"a": 1}, "state": "on"}, REQUEST.model)
    ]


def provider_of(fake: FakeAnthropic, **settings: object) -> AnthropicProvider:
    return AnthropicProvider(base_url=fake.url, api_key="fake-key", **settings)  # type: ignore[arg-type]


async def test_a_request_is_written_in_the_services_words():
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
    request = ModelRequest(
        "claude-opus-5-5",
        [
            ChatMessage("user", [Text("hello"), Text("")]),
            ChatMessage(
                "assistant", [Opaque("anthropic", thinking), Opaque("other", {}), ToolCall("t1", "f", {"a": 1})]
            ),
            ChatMessage("user", [Text("and?"), ToolResult("t1", "no", is_error=True)]),
            ChatMessage("assistant", [Text("")]),
        ],
        system="Be brief.",
        tools=[ToolSpec("f", "does it", {"type": "object"})],
        max_tokens=77,
        output_schema={"type": "object", "properties": {}},
    )

    async with FakeAnthropic(says("{}")) as fake:
        provider = provider_of(fake, cache=None)
        await provider.call(request)
        await provider.close()

    assert fake.requests[0].body == {
        "model": "claude-opus-5-5",
        "max_tokens": 77,
        "stream": True,
        "system": "Be brief.",
        "tools": [{"name": "f", "description": "does it", "input_schema": {"type": "object"}}],
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object", "properties": {}}}},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            {
                "role": "assistant",
                "content": [thinking, {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "no", "is_error": True},
                    {"type": "text", "text": "and?"},
                ],
            },
        ],
    }


# --- prompt caching -----------------------------------------------------------------------------------------------------

TOOLS = [ToolSpec("f", "does it", {"type": "object"}), ToolSpec("g", "does that", {"type": "object"})]


def used(*names: str) -> list[ChatMessage]:
    """An answer that uses so many tools, and its results."""
    return [
        ChatMessage("assistant", [ToolCall(name, "f", {}) for name in names]),
        ChatMessage("user", [ToolResult(name, "x") for name in names]),
    ]


def marked(body: dict[str, object]) -> list[str]:
    """Where the marks of a request are."""
    found = []
    for part in ("tools", "system", "messages"):
        for index, each in enumerate(body.get(part) or []):  # type: ignore[arg-type, var-annotated]
            if "cache_control" in each:
                found.append(f"{part} {index}")
            if part == "messages":
                found += [
                    f"{part} {index}.{at}" for at, block in enumerate(each["content"]) if "cache_control" in block
                ]
    return found


async def bodies_of(*conversations: list[ChatMessage], **settings: object) -> list[dict[str, object]]:
    async with FakeAnthropic(*[says("ok")] * len(conversations)) as fake:
        provider = provider_of(fake, **settings)
        for messages in conversations:
            await provider.call(ModelRequest("m", messages, system="Be brief.", tools=TOOLS))
        await provider.close()
        return [request.body for request in fake.requests]


async def test_each_call_marks_what_the_next_one_reads_and_what_the_last_one_wrote():
    first = [ChatMessage("user", [Text("hello"), Text("there")])]
    second = [*first, *used("1", "2")]
    third = [*second, *used("3")]

    bodies = await bodies_of(first, second, third)

    assert [marked(body) for body in bodies] == [
        ["tools 1", "system 0", "messages 0.1"],
        ["tools 1", "system 0", "messages 0.1", "messages 2.1"],
        ["tools 1", "system 0", "messages 2.1", "messages 4.0"],
    ]
    for before, after in itertools.pairwise(bodies):
        assert set(marked(before)) & set(marked(after)) >= {f"messages {len(before['messages']) - 1}.1"}  # type: ignore[arg-type]


async def test_marks_are_four_at_most_and_never_on_what_the_model_thought():
    thinking = Opaque("anthropic", {"type": "thinking", "thinking": "hm", "signature": "s"}, "m")
    paused = [ChatMessage("user", [Text("hi")]), *used("1"), *used("2"), ChatMessage("assistant", [thinking])]

    (body,) = await bodies_of(paused)

    assert marked(body) == ["tools 1", "system 0", "messages 2.0", "messages 4.0"]


@pytest.mark.parametrize(
    ("cache", "mark"), [("5m", {"type": "ephemeral"}), ("1h", {"type": "ephemeral", "ttl": "1h"}), (None, None)]
)
async def test_how_long_prompts_are_cached_is_a_setting(cache, mark):
    (body,) = await bodies_of([ChatMessage("user", [Text("hello")])], cache=cache)

    assert body["messages"][0]["content"][-1].get("cache_control") == mark  # type: ignore[index]
    assert body["tools"][-1].get("cache_control") == mark  # type: ignore[index]
    assert bool(marked(body)) == (cache is not None)


def test_a_wrong_cache_lifetime_is_refused():
    with pytest.raises(InvalidDefinition, match="cache must be '5m', '1h' or None; got '1d'"):
        AnthropicProvider(cache="1d")  # type: ignore[arg-type]
