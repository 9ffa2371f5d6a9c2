"""The Anthropic provider, against the wire protocol."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
import traceback

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
from understudy.errors import AuthenticationFailed, EndpointUnavailable, InvalidDefinition
from understudy.testing import (
    FakeAnthropic,
    broken_tool_json,
    calls,
    cut_by_max_tokens,
    drops,
    fails,
    junk,
    says,
    stalls,
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


@pytest.mark.usefixtures("transport")
async def test_events_split_at_any_byte_give_the_same_answer(seed):
    content = together(thinks("hm 🤔"), says("Grüße, 世界! 🎭\n\nevent: x\r\ndata: y"), calls("f", ü="🎭" * 9))
    whole = await answer_to(content)

    for split_seed in range(seed, seed + 5):
        assert await answer_to(content, split_seed=split_seed) == whole


async def test_text_is_seen_while_it_arrives():
    seen: list[str] = []

    async with FakeAnthropic(together(thinks("hm"), says("one two three four five"))) as fake:
        answer = await fake.endpoint().call(REQUEST, on_text=seen.append)

    assert len(seen) > 1
    assert "".join(seen) == answer.text == "one two three four five"


async def test_what_the_callback_raises_is_not_taken_for_a_failure_of_the_endpoint():
    def fail(_text: str) -> None:
        raise TimeoutError("mine")

    async with FakeAnthropic(says("hello")) as fake:
        with pytest.raises(TimeoutError, match="mine"):
            await fake.endpoint().call(REQUEST, on_text=fail)
        await fake.wait_idle()


async def test_broken_tool_arguments_are_marked_and_keep_their_usage():
    answer = await answer_to(broken_tool_json("search", '{"query": "sup').used(input_tokens=5, output_tokens=7))

    assert [(call.arguments, call.malformed) for call in answer.tool_calls] == [({}, '{"query": "sup')]
    assert answer.usage == Usage(5, 7)


async def test_tool_arguments_that_are_no_object_are_marked():
    answer = await answer_to(broken_tool_json("search", "[1]"))

    assert [call.malformed for call in answer.tool_calls] == ["[1]"]


async def test_a_tool_call_cut_by_max_tokens_is_marked():
    answer = await answer_to(cut_by_max_tokens(together(says("ok"), calls("search", query="supervisors"))))

    assert answer.stop_reason == "max_tokens"
    assert answer.tool_calls[0].malformed


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
        await fake.endpoint().call(request)

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


async def test_nothing_is_retried():
    async with FakeAnthropic(fails(529), fails(500), drops(0)) as fake:
        for _ in range(3):
            with pytest.raises(Exception):  # noqa: B017 - which one is the classifier's business
                await fake.endpoint().call(REQUEST)

        assert fake.calls == 3


async def test_a_connection_serves_call_after_call(monkeypatch):
    opened: list[object] = []
    accept = FakeAnthropic._connected

    async def counted(fake, reader, writer):
        opened.append(writer)
        await accept(fake, reader, writer)

    monkeypatch.setattr(FakeAnthropic, "_connected", counted)
    async with FakeAnthropic(lambda _request: says("x" * 500)) as fake:
        endpoint = fake.endpoint()
        for _ in range(5):
            await endpoint.call(REQUEST)

    assert len(opened) == 1


@pytest.mark.usefixtures("transport")
async def test_cancellation_closes_the_stream():
    arrived = asyncio.Event()

    async with FakeAnthropic(stalls(), says("next")) as fake:
        endpoint = fake.endpoint(concurrency=1)
        call = asyncio.create_task(endpoint.call(REQUEST, on_text=lambda _text: arrived.set()))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await fake.wait_idle()  # The server saw the client hang up.

        assert (await endpoint.call(REQUEST)).text == "next"


@pytest.mark.usefixtures("transport")
async def test_an_attempt_that_takes_too_long_as_a_whole_fails_with_its_usage():
    async with FakeAnthropic(stalls()) as fake:
        with pytest.raises(EndpointUnavailable, match=r"timeout_s=0\.3") as caught:
            await fake.endpoint(timeout_s=0.3).call(REQUEST)
        await fake.wait_idle()

    assert caught.value.usage is not None


async def test_the_key_is_shown_nowhere():
    async with FakeAnthropic(fails(401)) as fake:
        provider = AnthropicProvider(base_url=fake.url, api_key="sk-very-secret")
        with pytest.raises(AuthenticationFailed) as caught:
            await provider.call(REQUEST)
        await provider.close()

    shown = [repr(provider), str(provider), repr(caught.value), *traceback.format_exception(caught.value)]
    shown += [str(vars(caught.value))]
    assert not any("very-secret" in text for text in shown)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(provider)


async def test_two_loops_have_a_client_each():
    async with FakeAnthropic(lambda _request: says("x")) as fake:
        provider = AnthropicProvider(base_url=fake.url, api_key="k")

        def run_elsewhere() -> str:
            async def call() -> str:
                try:
                    return (await provider.call(REQUEST)).text
                finally:
                    await provider.close()

            return asyncio.run(call())

        here = (await provider.call(REQUEST)).text
        there = await asyncio.gather(asyncio.to_thread(run_elsewhere), asyncio.to_thread(run_elsewhere))
        again = (await provider.call(REQUEST)).text
        await provider.close()

    assert [here, *there, again] == ["x"] * 4


async def test_a_closed_provider_opens_again():
    async with FakeAnthropic(says("a"), says("b")) as fake:
        endpoint = fake.endpoint()
        await endpoint.call(REQUEST)
        await endpoint.close()
        await endpoint.close()

        assert (await endpoint.call(REQUEST)).text == "b"


def test_importing_the_provider_does_not_import_the_sdk():
    code = "import sys, understudy.endpoint.anthropic; sys.exit('anthropic' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout_s": 0}, "timeout_s"),
        ({"read_timeout_s": float("inf")}, "read_timeout_s"),
        ({"base_url": "api.anthropic.com"}, "http"),
        ({"api_key": ""}, "ANTHROPIC_API_KEY"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, said):
    with pytest.raises(InvalidDefinition, match=said):
        AnthropicProvider(**options)
