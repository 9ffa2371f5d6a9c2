"""The fake of chat completions, seen by the plain SDK; what it shares with the other fake is tested there."""

from __future__ import annotations

import openai
import pytest

from understudy import OpenAICompatibleProvider, RateLimits
from understudy.endpoint.model import Allowance, ChatMessage, ModelRequest, Text
from understudy.errors import InvalidDefinition
from understudy.testing import FakeOpenAI, calls, fails, says, thinks, together

pytestmark = pytest.mark.anyio

ASKED = {
    "model": "gpt-5.5",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
}
REQUEST = ModelRequest("gpt-5.5", [ChatMessage("user", [Text("hello")])])


def plain_client(fake: FakeOpenAI) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=fake.url, api_key="k", max_retries=0)


async def test_the_plain_sdk_gets_the_same_message_streamed_and_whole():
    content = together(thinks("hm"), says("Grüße"), calls("search", query="世界"))

    async with FakeOpenAI(lambda _request: content) as fake, plain_client(fake) as client:
        whole = await client.chat.completions.create(**ASKED)
        async with client.chat.completions.stream(**ASKED, stream_options={"include_usage": True}) as stream:
            streamed = await stream.get_final_completion()

    for completion in (whole, streamed):
        (choice,) = completion.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Grüße"
        assert choice.message.tool_calls is not None
        assert choice.message.tool_calls[0].function.arguments == '{"query":"世界"}'
    assert whole.usage is not None
    assert streamed.usage is not None
    assert whole.usage.completion_tokens == streamed.usage.completion_tokens > 0
    assert fake.requests[0].system == "Be brief."
    assert fake.requests[0].messages == [{"role": "user", "content": "hello"}]


async def test_usage_of_a_stream_is_told_only_to_those_who_ask():
    async with FakeOpenAI(says("x")) as fake, plain_client(fake) as client:
        chunks = [chunk async for chunk in await client.chat.completions.create(**ASKED, stream=True)]

    assert [chunk.usage for chunk in chunks if chunk.usage] == []
    assert all(chunk.choices for chunk in chunks)


async def test_other_paths_of_the_api_answer():
    async with FakeOpenAI() as fake, plain_client(fake) as client:
        assert [model async for model in client.models.list()] == []
        with pytest.raises(openai.NotFoundError, match="no such path"):
            await client.get("/nowhere", cast_to=object)

        assert fake.calls == 0


async def test_a_request_that_the_service_would_not_take_is_refused():
    async with FakeOpenAI() as fake, plain_client(fake) as client:
        with pytest.raises(openai.BadRequestError, match="Missing required parameter: 'messages'"):
            await client.post("/chat/completions", cast_to=object, body={"model": "m"})

    assert fake.calls == 1


@pytest.mark.parametrize(
    ("answer", "code", "kind"),
    [
        (fails(429), "rate_limit_exceeded", "requests"),
        (fails(429, error_code="enforced_spend_limit_reached"), "insufficient_quota", "insufficient_quota"),
        (fails(400, error_code="context_length_exceeded"), "context_length_exceeded", "invalid_request_error"),
        (fails(500), None, "server_error"),
        (fails(418, type="teapot"), None, "teapot"),
    ],
)
async def test_failures_are_told_in_the_services_own_words(answer, code, kind):
    async with FakeOpenAI(answer) as fake, plain_client(fake) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**ASKED)

    assert (caught.value.code, caught.value.type) == (code, kind)
    assert caught.value.status_code == answer.status
    assert caught.value.request_id


async def test_a_call_beyond_the_script_names_the_fake_that_was_asked():
    with pytest.raises(AssertionError, match="FakeOpenAI has no answer left"):  # noqa: PT012 - leaving the block raises
        async with FakeOpenAI() as fake:
            with pytest.raises(Exception, match="no answer left"):
                await fake.endpoint().call(REQUEST)


def test_a_fake_that_is_not_open_has_no_endpoint():
    with pytest.raises(InvalidDefinition, match=r"async with FakeOpenAI"):
        FakeOpenAI().endpoint()


async def test_limits_are_told_in_the_words_of_this_api():
    async with FakeOpenAI(
        says("hello"), limits=RateLimits(requests_per_min=60, input_tokens_per_min=600, output_tokens_per_min=60)
    ) as fake:
        allowances: list[Allowance] = []
        provider = OpenAICompatibleProvider(base_url=fake.url, api_key="k")

        await provider.call(REQUEST, on_allowance=allowances.append)
        await provider.close()

    assert [each.requests and (each.requests.limit, each.requests.remaining) for each in allowances] == [(60, 59)]
    assert allowances[0].tokens is not None
    assert allowances[0].tokens.limit == 660
