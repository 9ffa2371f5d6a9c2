"""The provider of chat completions, against the wire protocol, and what other servers make of that protocol."""

from __future__ import annotations

import importlib.util
import json

import msgspec
import pytest

from understudy import OpenAICompatibleProvider
from understudy.endpoint.chat_completions import allowance_of, body_of, duration_s
from understudy.endpoint.model import (
    Allowance,
    ChatMessage,
    Meter,
    ModelAnswer,
    ModelRequest,
    Opaque,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
    Usage,
)
from understudy.endpoint.sse import event_data
from understudy.endpoint.strict_schema import is_strict
from understudy.errors import EndpointUnavailable, InvalidDefinition, RateLimited, Refused, RequestRejected
from understudy.testing import FakeOpenAI, calls, fails, junk, says, stalls, stops, thinks, together

pytestmark = pytest.mark.anyio

REQUEST = ModelRequest("gpt-5.5", [ChatMessage("user", [Text("hello")])], max_tokens=100)


async def answer_to(*answers, request=REQUEST) -> ModelAnswer:
    async with FakeOpenAI(*answers) as fake:
        return await fake.endpoint().call(request)


def stream(*chunks: dict | str) -> object:
    """The answer of a server that writes its chunks in its own way."""
    data = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    return junk("".join(f"data: {each}\n\n" for each in data), content_type="text/event-stream")


def delta(finish_reason: str | None = None, **fields: object) -> dict:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}]}


def counts(prompt: int, completion: int) -> dict:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


END = (delta("stop"), counts(9, 1), "[DONE]")


async def test_an_answer_comes_whole():
    answer = await answer_to(
        together(thinks("hm"), says("Grüße, 世界! 🎭"), calls("search", query="世界"), calls("now")).used(
            input_tokens=12, output_tokens=34, cache_read_tokens=5
        )
    )

    text, *asked = answer.content
    assert text == Text("Grüße, 世界! 🎭")  # Thinking that is shown is not content: nobody wants it back.
    assert [(call.name, call.arguments) for call in asked if isinstance(call, ToolCall)] == [
        ("search", {"query": "世界"}),
        ("now", {}),
    ]
    assert len({call.id for call in answer.tool_calls}) == 2
    assert (answer.model, answer.stop_reason) == ("gpt-5.5", "tool_use")
    assert answer.usage == Usage(input_tokens=12, output_tokens=34, cache_read_tokens=5)
    assert answer.id.startswith("chatcmpl-")
    assert answer.request_id is not None


async def test_a_request_is_written_in_the_services_words():
    request = ModelRequest(
        "gpt-5.5",
        [
            ChatMessage("user", [Text("hello"), Text("")]),
            ChatMessage("assistant", [Opaque("anthropic", {"type": "thinking"}), Text("I see."), ToolCall("t1", "f", {"a": 1}),
                                      ToolCall("t2", "f", {}, malformed='{"a"')]),
            ChatMessage("user", [Text("and?"), ToolResult("t1", "no", is_error=True), ToolResult("t2", "yes"), Text("so?")]),
            ChatMessage("assistant", [Opaque("anthropic", {"type": "thinking"}), Text("")]),
        ],
        system="Be brief.",
        tools=[ToolSpec("f", "does it", {"type": "object"})],
        max_tokens=77,
        output_schema={"type": "object", "properties": {}, "additionalProperties": False},
    )  # fmt: skip

    async with FakeOpenAI(says("{}")) as fake:
        await fake.endpoint().call(request)

    assert fake.requests[0].body == {
        "model": "gpt-5.5",
        "max_completion_tokens": 77,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [
            {"type": "function", "function": {"name": "f", "description": "does it", "parameters": {"type": "object"}}}
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "answer",
                "strict": True,
                "schema": {"type": "object", "properties": {}, "additionalProperties": False},
            },
        },
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hello"},
            {
                "role": "assistant",
                "content": "I see.",
                "tool_calls": [
                    {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                    {"id": "t2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "Error: no"},
            {"role": "tool", "tool_call_id": "t2", "content": "yes"},
            {"role": "user", "content": [{"type": "text", "text": "and?"}, {"type": "text", "text": "so?"}]},
        ],
    }


async def test_an_older_server_is_told_the_limit_in_its_own_word():
    async with FakeOpenAI(says("x")) as fake:
        provider = OpenAICompatibleProvider(base_url=fake.url, api_key="k", max_tokens_field="max_tokens")
        await provider.call(REQUEST)
        await provider.close()

    assert fake.requests[0].body["max_tokens"] == 100
    assert "max_completion_tokens" not in fake.requests[0].body


class Picture(msgspec.Struct, frozen=True, tag="picture"):
    data: bytes


def test_a_block_that_cannot_be_sent_is_refused_before_anything_is_sent():
    request = ModelRequest("m", [ChatMessage("user", [Text("what is this?"), Picture(b"")])])  # type: ignore[list-item]

    with pytest.raises(RequestRejected, match="a Picture block") as caught:
        body_of(request, "max_tokens")

    assert caught.value.sent is False


# The answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "reason"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "end_turn"), ("some_day_more", "some_day_more")],
)
async def test_reasons_to_stop_are_told_in_our_words(said, reason):
    answer = await answer_to(stops(said, says("so far")))

    assert (answer.stop_reason, answer.text) == (reason, "so far")


@pytest.mark.parametrize("said", ["stop", "tool_calls", "function_call"])
async def test_an_answer_with_tool_calls_stopped_for_them_whatever_the_server_says(said):
    assert (await answer_to(stops(said, calls("now")))).stop_reason == "tool_use"


async def test_a_filtered_answer_is_refused_and_its_usage_known():
    with pytest.raises(Refused) as caught:
        await answer_to(stops("refusal", says("so f")).used(input_tokens=3, output_tokens=4))

    assert (caught.value.category, caught.value.usage) == ("content_filter", Usage(3, 4))


async def test_a_model_that_declines_is_refused_in_its_own_words():
    with pytest.raises(Refused, match="I cannot help with that") as caught:
        await answer_to(stream(delta(refusal="I cannot "), delta(refusal="help with that."), *END))

    assert caught.value.usage == Usage(9, 1)


async def test_counts_and_text_of_a_broken_answer_survive_and_its_length_is_no_measure():
    seen: list[str] = []
    told = {**delta(content="hello"), "usage": {"prompt_tokens": 20, "completion_tokens": 2}}

    async with FakeOpenAI(stream(told, delta(content=" there"))) as fake:
        with pytest.raises(EndpointUnavailable, match=r"without \[DONE\]") as caught:
            await fake.endpoint().call(REQUEST, on_text=seen.append)

    assert seen == ["hello", " there"]
    assert (caught.value.usage, caught.value.billed) == (Usage(20, 2), True)
    assert caught.value.received_bytes == 0  # What the model thought unseen would be missing.


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ((delta(content="x"), "[DONE]"), "finish_reason"),
        ((delta(content="x"), delta("stop"), counts(1, 1)), r"\[DONE\]"),
        (("[1]",), "does not decode"),
    ],
)
async def test_an_answer_without_its_end_is_no_answer(chunks, said):
    with pytest.raises(EndpointUnavailable, match=said) as caught:
        await answer_to(stream(*chunks))

    assert (caught.value.sent, caught.value.billed) == (True, True)


# Servers that speak it in their own way --------------------------------------------------------------------------

WHOLE_CALLS = [
    {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
    {"id": "b", "type": "function", "function": {"name": "g", "arguments": '{"y": 2}'}},
]


@pytest.mark.parametrize(
    "chunks",
    [
        [delta(tool_calls=WHOLE_CALLS)],  # without an index
        [delta(tool_calls=[{"index": 0, **call}]) for call in WHOLE_CALLS],  # all with the same
        [
            delta(tool_calls=[{"index": 1, "id": "b", "function": {"name": "g", "arguments": '{"y"'}}]),
            delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f"}}]),
            delta(tool_calls=[{"index": 0, "id": "a", "function": {"arguments": '{"x": 1}'}}]),
            delta(tool_calls=[{"index": 1, "id": None, "function": {"name": None, "arguments": ": 2}"}}]),
        ],
    ],
)
async def test_tool_calls_come_in_whatever_pieces(chunks):
    answer = await answer_to(stream(*chunks, *END))

    assert sorted((call.id, call.name, str(call.arguments)) for call in answer.tool_calls) == [
        ("a", "f", "{'x': 1}"),
        ("b", "g", "{'y': 2}"),
    ]
    assert answer.stop_reason == "tool_use"


async def test_calls_without_an_id_get_one_and_the_older_form_is_a_call():
    by_index = [{"index": index, "function": {"name": "f", "arguments": ""}} for index in (0, 1)]

    several = await answer_to(stream({**delta(tool_calls=by_index), "id": "c1"}, *END))
    older = await answer_to(stream(delta(function_call={"name": "f", "arguments": "{}"}), *END))

    assert [call.id for call in several.tool_calls] == ["call_c1_0", "call_c1_1"]
    assert [(call.name, call.arguments) for call in older.tool_calls] == [("f", {})]


async def test_chunks_with_less_and_with_more_do_no_harm():
    answer = await answer_to(
        stream(
            {"choices": [], "prompt_filter_results": [], "model": "", "id": ""},
            {"id": "c1", "model": "gpt-5.5-2026-10-01", **delta(role="assistant", content=None, reasoning={"a": 1})},
            {"choices": [{"index": 1, "delta": {"content": "another"}}, {"index": 0, "delta": {"content": "ours"}}]},
            {"choices": None},
            *END,
        )
    )

    assert (answer.id, answer.model, answer.text) == ("c1", "gpt-5.5-2026-10-01", "ours")


async def test_a_server_that_tells_no_usage_has_used_an_unknown_amount():
    answer = await answer_to(stream(delta("stop", content="x"), "[DONE]"))

    assert answer.usage == Usage()


@pytest.mark.parametrize("error", [{"message": "out of memory", "code": 500}, "out of memory"])
async def test_an_error_in_the_stream_is_told_in_any_form(error):
    with pytest.raises(EndpointUnavailable, match="out of memory") as caught:
        await answer_to(stream(delta(content="x"), {"error": error}, "[DONE]"))

    assert caught.value.billed


# Allowances ------------------------------------------------------------------------------------------------------

LIMITS = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-tokens": "6m0s",
}


@pytest.mark.parametrize("answer", [says("x"), fails(429)])
async def test_what_the_headers_allow_is_told_with_an_answer_and_with_a_refusal(answer):
    seen: list[Allowance] = []

    async with FakeOpenAI(msgspec.structs.replace(answer, headers=LIMITS)) as fake:
        provider = OpenAICompatibleProvider(base_url=fake.url, api_key="k")
        try:
            await provider.call(REQUEST, on_allowance=seen.append)
        except RateLimited:
            pass
        await provider.close()

    (allowance,) = seen
    assert allowance.requests is not None
    assert allowance.tokens is not None
    assert (allowance.requests.limit, allowance.requests.remaining) == (60, 59)
    assert (allowance.tokens.limit, allowance.tokens.remaining) == (150_000, 149_984)
    assert allowance.tokens.reset_at is not None
    assert allowance.requests.reset_at is not None
    assert round(allowance.tokens.reset_at - allowance.requests.reset_at) == 359


async def test_what_the_callback_of_allowances_raises_is_not_taken_for_a_failure_of_the_endpoint():
    def fail(_allowance: Allowance) -> None:
        raise TimeoutError("mine")

    async with FakeOpenAI(msgspec.structs.replace(stalls(), headers=LIMITS)) as fake:
        provider = OpenAICompatibleProvider(base_url=fake.url, api_key="k")
        with pytest.raises(TimeoutError, match="mine"):
            await provider.call(REQUEST, on_allowance=fail)
        await fake.wait_idle()  # The stream is closed.
        await provider.close()


@pytest.mark.parametrize(
    ("headers", "allowance"),
    [
        ({}, None),
        ({"x-ratelimit-limit-requests": "many"}, None),
        ({"x-ratelimit-reset-tokens": "2s"}, Allowance(tokens=Meter(reset_at=102.0))),
        ({"x-ratelimit-remaining-requests": "0"}, Allowance(requests=Meter(remaining=0))),
    ],
)
def test_headers_that_say_less_are_read_as_far_as_they_go(headers, allowance):
    assert allowance_of(headers, 100.0) == allowance


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1s", 1), ("6m0s", 360), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("1d", 86_400), ("7.66s", 7.66), ("12", 12),
        ("", None), ("soon", None), ("1s later", None), ("-1s", None), ("2026-10-21T07:28:00Z", None),
    ],
)  # fmt: skip
def test_times_until_a_reset_are_read(written, seconds):
    assert duration_s(written) == pytest.approx(seconds)


# Schemas ---------------------------------------------------------------------------------------------------------


def strict_object(**properties: object) -> dict:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


STRING = {"type": "string"}


@pytest.mark.parametrize(
    "schema",
    [
        strict_object(),
        strict_object(a=STRING, b={"type": "array", "items": strict_object(c={"type": "integer", "minimum": 0})}),
        strict_object(a={"anyOf": [STRING, {"type": "null"}]}, at={"type": "string", "format": "date-time"}),
        {**strict_object(a={"$ref": "#/$defs/A"}), "$defs": {"A": strict_object(b=STRING)}},
    ],
)
def test_a_schema_that_can_be_enforced_is_strict(schema):
    assert is_strict(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": STRING},
        {"type": "object", "additionalProperties": STRING},
        {**strict_object(a=STRING), "required": []},
        {**strict_object(a=STRING), "additionalProperties": True},
        {**strict_object(), "anyOf": []},
        strict_object(a={"type": "string", "maxLength": 5}),
        strict_object(a={"type": "string", "default": "x"}),
        strict_object(a={"type": "string", "format": "binary"}),
        strict_object(a={"enum": ["x", "y"]}),
        strict_object(a={}),
        strict_object(a={"type": "array"}),
        strict_object(a={"$ref": "#/$defs/A", "description": "x"}),
        {**strict_object(a={"$ref": "#/$defs/A"}), "$defs": {"A": {"type": "object", "properties": {"b": STRING}}}},
    ],
)
def test_a_schema_with_anything_else_is_a_wish(schema):
    assert not is_strict(schema)


# Events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
async def test_events_are_found_however_they_are_cut_and_ended(end):
    text = end.join(
        [": ping", "event: x", "data: a\u2028b", "data:c", "", "", "id: 1", "", "data: [DONE]", "", "data: last"]
    )
    written = text.encode()

    async def cut(size: int):
        for start in range(0, len(written), size):
            yield written[start : start + size]

    for size in (1, 2, 3, 5, len(written)):
        assert [each.decode() async for each in event_data(cut(size))] == ["a\u2028b\nc", "[DONE]", "last"]


# Settings --------------------------------------------------------------------------------------------------------


def test_a_limit_by_another_name_is_refused():
    with pytest.raises(InvalidDefinition, match="'max_completion_tokens', 'max_tokens'; got 'max_output_tokens'"):
        OpenAICompatibleProvider(max_tokens_field="max_output_tokens")  # type: ignore[arg-type]


def test_a_missing_package_is_told_when_the_provider_is_made(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)

    with pytest.raises(InvalidDefinition, match=r"pip install 'understudy\[openai\]'"):
        OpenAICompatibleProvider()
