"""The fake model endpoint, seen by the plain SDK and by the library."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace

import anthropic
import msgspec
import pytest

from understudy.endpoint.model import ChatMessage, ModelRequest, Text
from understudy.errors import EndpointUnavailable, InvalidDefinition, ModelFailure, RequestRejected
from understudy.testing import (
    Answer,
    FakeAnthropic,
    calls,
    drops,
    ends_early,
    fails,
    html_error,
    in_stream_error,
    junk,
    says,
    stalls,
    thinks,
    together,
)

pytestmark = pytest.mark.anyio

REQUEST = ModelRequest("claude-opus-5-5", [ChatMessage("user", [Text("hello")])], max_tokens=100)
ASKED = {"model": "claude-opus-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}


def plain_client(fake: FakeAnthropic) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=fake.url, api_key="k", max_retries=0)


async def test_the_plain_sdk_gets_the_same_message_streamed_and_whole():
    content = together(thinks("hm"), says("Grüße"), calls("search", query="世界"))

    async with FakeAnthropic(lambda _request: content) as fake, plain_client(fake) as client:
        whole = await client.messages.create(**ASKED)
        async with client.messages.stream(**ASKED) as stream:
            streamed = await stream.get_final_message()

    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use"]
    for ours, theirs in zip(whole.content, streamed.content, strict=True):
        unlike = {"id"}  # Ids tell calls apart.
        assert ours.model_dump(exclude=unlike) == theirs.model_dump(exclude=unlike | {"parsed_output"})
    assert whole.usage.output_tokens == streamed.usage.output_tokens
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    assert whole._request_id
    assert whole._request_id.startswith("req_")


async def test_other_paths_of_the_api_answer():
    async with FakeAnthropic() as fake, plain_client(fake) as client:
        counted = await client.messages.count_tokens(model="m", messages=[{"role": "user", "content": "x" * 400}])
        models = [model async for model in client.models.list()]

        assert counted.input_tokens > 100
        assert models == []
        assert fake.calls == 0


async def test_a_request_that_the_service_would_not_take_is_refused():
    async with FakeAnthropic() as fake, plain_client(fake) as client:
        with pytest.raises(anthropic.BadRequestError, match="max_tokens: Field required"):
            await client.post("/v1/messages", cast_to=object, body={"model": "m"})

    assert fake.calls == 1


@dataclass
class Report:
    title: str
    findings: list[str]


async def test_a_value_is_said_as_its_json():
    async with FakeAnthropic(says(Report("t", ["ü"]))) as fake:
        answer = await fake.endpoint().call(REQUEST)

    assert msgspec.json.decode(answer.text, type=Report) == Report("t", ["ü"])


async def search(query: str, limit: int = 5, **more: object) -> None: ...


class Cart:
    async def add(self, sku: str, count: int = 1) -> None: ...


@pytest.mark.parametrize(
    ("answer", "name", "arguments"),
    [
        (calls(SimpleNamespace(name="search", function=search), "a", limit=3), "search", {"query": "a", "limit": 3}),
        (calls(SimpleNamespace(name="search", function=search), "a", x=1), "search", {"query": "a", "x": 1}),
        (calls(SimpleNamespace(name="add", tool_name="cart_add", function=Cart.add), "s"), "cart_add", {"sku": "s"}),
        (calls("search", report=Report("t", [])), "search", {"report": {"title": "t", "findings": []}}),
    ],
)
async def test_tools_are_called_by_their_signature(answer, name, arguments):
    async with FakeAnthropic(answer) as fake:
        (call,) = (await fake.endpoint().call(REQUEST)).tool_calls

    assert (call.name, call.arguments) == (name, arguments)


def test_arguments_that_do_not_fit_are_refused_where_they_are_written():
    with pytest.raises(TypeError, match="missing a required argument"):
        calls(SimpleNamespace(name="search", function=search))
    with pytest.raises(InvalidDefinition, match="name arguments only"):
        calls("search", "a")
    with pytest.raises(InvalidDefinition):
        calls(7)


async def test_a_function_answers_each_request_and_may_wait():
    async def answer(request):
        await asyncio.sleep(0)
        return says(
            f"{request.index}: {request.system}, {request.messages[0]['content'][0]['text']}, {len(request.tools)}"
        )

    async with FakeAnthropic(answer) as fake:
        endpoint = fake.endpoint()
        first = await endpoint.call(REQUEST)
        second = await endpoint.call(msgspec.structs.replace(REQUEST, system="Be brief."))

    assert [first.text, second.text] == ["0: , hello, 0", "1: Be brief., hello, 0"]


async def test_paid_calls_are_those_with_content_delivered_or_not():
    answers = [
        fails(429), says("four" * 10), html_error(), drops(), drops(0), in_stream_error(), ends_early(), junk(),
        stalls(), stalls(0), says("end"),
    ]  # fmt: skip

    async with FakeAnthropic(*answers) as fake:
        endpoint = fake.endpoint(read_timeout_s=0.05)
        for _ in answers:
            with suppress(ModelFailure):
                await endpoint.call(REQUEST)

    assert [(paid.index, paid.delivered) for paid in fake.paid] == [
        (1, True), (3, False), (5, False), (6, False), (8, False), (10, True),
    ]  # fmt: skip
    assert fake.calls == len(answers)
    assert fake.paid[0].output_tokens == 10
    assert len({paid.digest for paid in fake.paid}) == 1
    assert fake.unused == 0


async def test_usage_is_the_same_every_time():
    async def usage():
        async with FakeAnthropic(says("hello")) as fake:
            return (await fake.endpoint().call(REQUEST)).usage

    assert await usage() == await usage()


async def test_a_call_beyond_the_script_fails_and_the_test_with_it():
    with pytest.raises(AssertionError, match="script has 1 and this is call 2"):  # noqa: PT012 - leaving the block raises
        async with FakeAnthropic(says("one")) as fake:
            endpoint = fake.endpoint()
            await endpoint.call(REQUEST)
            with pytest.raises(RequestRejected, match="no answer left") as caught:
                await endpoint.call(REQUEST)

    assert caught.value.status == 400
    assert fake.exhausted is not None


async def test_a_test_that_failed_already_keeps_its_own_error():
    with pytest.raises(RequestRejected) as caught:
        async with FakeAnthropic() as fake:
            await fake.endpoint().call(REQUEST)

    assert any("no answer left" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("wrong", [lambda _request: 1 / 0, lambda _request: "text"])
async def test_an_error_of_the_answering_function_reaches_the_test(wrong):
    with pytest.raises((ZeroDivisionError, InvalidDefinition)):  # noqa: PT012 - leaving the block raises
        async with FakeAnthropic(wrong) as fake:
            with pytest.raises(RequestRejected, match="the function given to FakeAnthropic"):
                await fake.endpoint().call(REQUEST)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FakeAnthropic("text"),  # type: ignore[call-overload]
        lambda: FakeAnthropic(says("x"), says),  # type: ignore[call-overload]
        lambda: fails(200),
        together,
        lambda: together(says("x"), fails(500)),
        lambda: says("x").used(tokens=1),
        lambda: FakeAnthropic().endpoint(),
    ],
)
def test_answers_that_make_no_sense_are_refused(make):
    with pytest.raises(InvalidDefinition):
        make()


async def test_a_client_that_hangs_up_while_the_function_waits_is_no_longer_in_flight():
    async def answer(_request) -> Answer:
        await asyncio.Event().wait()
        return says("never")

    async with FakeAnthropic(answer) as fake:
        call = asyncio.create_task(fake.endpoint().call(REQUEST))
        await fake.wait_calls(1)
        call.cancel()
        await asyncio.wait([call])
        await fake.wait_idle()

        assert fake.paid == []


async def test_leaving_does_not_wait_for_calls_in_flight():
    async with FakeAnthropic(stalls()) as fake:
        endpoint = fake.endpoint()
        call = asyncio.create_task(endpoint.call(REQUEST))
        await fake.wait_calls(1)

    with pytest.raises(EndpointUnavailable):
        await call
    await endpoint.close()


CHILD = """
import asyncio, os, sys
from understudy.endpoint.anthropic import AnthropicProvider
from understudy.endpoint.model import *

async def main():
    provider = AnthropicProvider(base_url=sys.argv[1], api_key="k")
    answer = await provider.call(ModelRequest("claude-opus-5-5", [ChatMessage("user", [Text("hello")])]))
    assert answer.text == "x"
    os._exit(7)

asyncio.run(main())
"""


async def test_calls_of_a_process_that_dies_are_in_the_ledger(tmp_path):
    ledger = tmp_path / "paid.jsonl"

    async with FakeAnthropic(says("x"), says("y"), ledger_path=ledger) as fake:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, fake.url)
        status = await child.wait()
        await fake.endpoint().call(REQUEST)

    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert status == 7
    assert [(line["index"], line["model"]) for line in lines] == [(0, "claude-opus-5-5"), (1, "claude-opus-5-5")]
    assert lines[0].keys() == {"index", "model", "input_tokens", "output_tokens", "digest"}
