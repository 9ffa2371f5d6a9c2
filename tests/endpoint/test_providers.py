"""What every provider does, against a fake of its own wire protocol."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import traceback
from typing import NamedTuple

import pytest

from understudy.endpoint.anthropic import AnthropicProvider
from understudy.endpoint.model import ChatMessage, ModelAnswer, ModelRequest, Text, Usage
from understudy.endpoint.openai import OpenAICompatibleProvider
from understudy.errors import AuthenticationFailed, EndpointUnavailable, InvalidDefinition
from understudy.testing import (
    FakeAnthropic,
    FakeOpenAI,
    broken_tool_json,
    calls,
    cut_by_max_tokens,
    drops,
    fails,
    says,
    stalls,
    thinks,
    together,
)
from understudy.testing.fake_endpoint import FakeEndpoint

pytestmark = pytest.mark.anyio

REQUEST = ModelRequest("model-5-5", [ChatMessage("user", [Text("hello")])], max_tokens=100)


class Wire(NamedTuple):
    """A provider, and the fake that speaks its wire protocol."""

    fake: type[FakeEndpoint]
    provider: type[AnthropicProvider | OpenAICompatibleProvider]
    package: str
    counts_at_the_start: bool


WIRES = [
    Wire(FakeAnthropic, AnthropicProvider, "anthropic", counts_at_the_start=True),
    Wire(FakeOpenAI, OpenAICompatibleProvider, "openai", counts_at_the_start=False),
]


@pytest.fixture(params=WIRES, ids=lambda wire: wire.package)
def wire(request) -> Wire:
    return request.param


@pytest.fixture(params=["aiohttp", "httpx"])
def transport(request, monkeypatch):
    if request.param == "httpx":
        monkeypatch.setitem(sys.modules, "aiohttp", None)  # Importing it raises ImportError.
    return request.param


async def answer_to(wire: Wire, *answers, request=REQUEST, **options) -> ModelAnswer:
    async with wire.fake(*answers, **options) as fake:
        return await fake.endpoint().call(request)


@pytest.mark.usefixtures("transport")
async def test_events_split_at_any_byte_give_the_same_answer(wire, seed):
    content = together(thinks("hm 🤔"), says("Grüße, 世界! 🎭\n\nevent: x\r\ndata: y"), calls("f", ü="🎭" * 9))
    whole = await answer_to(wire, content)

    for split_seed in range(seed, seed + 5):
        assert await answer_to(wire, content, split_seed=split_seed) == whole


async def test_text_is_seen_while_it_arrives(wire):
    seen: list[str] = []

    async with wire.fake(together(thinks("hm"), says("one two three four five"))) as fake:
        answer = await fake.endpoint().call(REQUEST, on_text=seen.append)

    assert len(seen) > 1
    assert "".join(seen) == answer.text == "one two three four five"


async def test_what_the_callback_raises_is_not_taken_for_a_failure_of_the_endpoint(wire):
    def fail(_text: str) -> None:
        raise TimeoutError("mine")

    async with wire.fake(says("hello")) as fake:
        with pytest.raises(TimeoutError, match="mine"):
            await fake.endpoint().call(REQUEST, on_text=fail)
        await fake.wait_idle()


async def test_broken_tool_arguments_are_marked_and_keep_their_usage(wire):
    answer = await answer_to(wire, broken_tool_json("search", '{"query": "sup').used(input_tokens=5, output_tokens=7))

    assert [(call.arguments, call.malformed) for call in answer.tool_calls] == [({}, '{"query": "sup')]
    assert answer.usage == Usage(5, 7)


async def test_tool_arguments_that_are_no_object_are_marked(wire):
    answer = await answer_to(wire, broken_tool_json("search", "[1]"))

    assert [call.malformed for call in answer.tool_calls] == ["[1]"]


async def test_a_tool_call_cut_by_max_tokens_is_marked(wire):
    answer = await answer_to(wire, cut_by_max_tokens(together(says("ok"), calls("search", query="supervisors"))))

    assert answer.stop_reason == "max_tokens"
    assert answer.tool_calls[0].malformed


async def test_nothing_is_retried(wire):
    async with wire.fake(fails(529), fails(500), drops(0)) as fake:
        for _ in range(3):
            with pytest.raises(Exception):  # noqa: B017 - which one is the classifier's business
                await fake.endpoint().call(REQUEST)

        assert fake.calls == 3


@pytest.mark.usefixtures("transport")
async def test_a_connection_serves_call_after_call(wire, monkeypatch, seed):
    opened: list[object] = []
    accept = FakeEndpoint._connected

    async def counted(fake, reader, writer):
        opened.append(writer)
        await accept(fake, reader, writer)

    monkeypatch.setattr(FakeEndpoint, "_connected", counted)
    # In pieces, so that the end of a body comes after its last event.
    async with wire.fake(lambda _request: says("x" * 500), split_seed=seed) as fake:
        endpoint = fake.endpoint()
        for _ in range(5):
            await endpoint.call(REQUEST)

    assert len(opened) == 1


@pytest.mark.usefixtures("transport")
async def test_an_error_of_the_callback_closes_the_stream(wire):
    def fail(_text: str) -> None:
        raise KeyError("mine")

    async with wire.fake(stalls()) as fake:
        with pytest.raises(KeyError) as caught:
            await fake.endpoint().call(REQUEST, on_text=fail)
        await fake.wait_idle()  # The server saw the client hang up, though the error still holds all that was there.

    assert caught.value.args == ("mine",)


@pytest.mark.usefixtures("transport")
async def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(wire, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    assert (await answer_to(wire, says("x"))).text == "x"


@pytest.mark.usefixtures("transport")
async def test_a_connection_that_drops_before_the_answer_is_not_called_slow(wire):
    async with wire.fake(drops(0)) as fake:
        with pytest.raises(EndpointUnavailable, match="the connection dropped before the answer"):
            await fake.endpoint().call(REQUEST)


@pytest.mark.usefixtures("transport")
async def test_cancellation_closes_the_stream(wire):
    arrived = asyncio.Event()

    async with wire.fake(stalls(), says("next")) as fake:
        endpoint = fake.endpoint(concurrency=1)
        call = asyncio.create_task(endpoint.call(REQUEST, on_text=lambda _text: arrived.set()))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await fake.wait_idle()  # The server saw the client hang up.

        assert (await endpoint.call(REQUEST)).text == "next"


@pytest.mark.usefixtures("transport")
async def test_an_attempt_that_takes_too_long_as_a_whole_fails_with_its_usage(wire):
    async with wire.fake(stalls()) as fake:
        with pytest.raises(EndpointUnavailable, match=r"timeout_s=0\.3") as caught:
            await fake.endpoint(timeout_s=0.3).call(REQUEST)
        await fake.wait_idle()

    assert (caught.value.usage is not None) == wire.counts_at_the_start


async def test_the_key_is_shown_nowhere(wire):
    async with wire.fake(fails(401)) as fake:
        provider = wire.provider(base_url=fake.url, api_key="sk-very-secret")
        with pytest.raises(AuthenticationFailed) as caught:
            await provider.call(REQUEST)
        await provider.close()

    shown = [repr(provider), str(provider), repr(caught.value), *traceback.format_exception(caught.value)]
    shown += [str(vars(caught.value))]
    assert not any("very-secret" in text for text in shown)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(provider)


async def test_two_loops_have_a_client_each(wire):
    async with wire.fake(lambda _request: says("x")) as fake:
        provider = wire.provider(base_url=fake.url, api_key="k")

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


async def test_a_closed_provider_opens_again(wire):
    async with wire.fake(says("a"), says("b")) as fake:
        endpoint = fake.endpoint()
        await endpoint.call(REQUEST)
        await endpoint.close()
        await endpoint.close()

        assert (await endpoint.call(REQUEST)).text == "b"


def test_importing_the_provider_does_not_import_the_sdk(wire):
    code = f"import sys, understudy.endpoint.{wire.package}; sys.exit({wire.package!r} in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout_s": 0}, "timeout_s"),
        ({"read_timeout_s": float("inf")}, "read_timeout_s"),
        ({"base_url": "api.anthropic.com"}, "http"),
        ({"api_key": ""}, "_API_KEY"),
    ],
)
def test_settings_that_cannot_work_are_refused(wire, options, said):
    with pytest.raises(InvalidDefinition, match=said):
        wire.provider(**options)
