"""The classifier: every failure of the table, over a real socket where a server can cause it."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import socket
import sys

import anthropic
import msgspec
import openai
import pydantic
import pytest

from understudy.endpoint.anthropic import AnthropicProvider
from understudy.endpoint.failures import classify, retry_after
from understudy.endpoint.model import ChatMessage, ModelRequest, Text, Usage
from understudy.endpoint.openai import OpenAICompatibleProvider
from understudy.errors import (
    AuthenticationFailed,
    ContextOverflow,
    DeadlineExceeded,
    EndpointUnavailable,
    InvalidDefinition,
    MalformedOutput,
    ModelFailure,
    Overloaded,
    RateLimited,
    Refused,
    RequestRejected,
    SchemaTooComplex,
    SpendLimitReached,
)
from understudy.testing import (
    FakeAnthropic,
    FakeOpenAI,
    broken_tool_json,
    drops,
    ends_early,
    fails,
    html_error,
    in_stream_error,
    junk,
    stalls,
    stops,
)

pytestmark = pytest.mark.anyio

REQUEST = ModelRequest("claude-opus-5-5", [ChatMessage("user", [Text("hello")])], max_tokens=100)

# What the endpoint does; what that is; and facts of it: (sent, billed, usage known).
BEFORE_ANSWER, IN_ANSWER, REFUSED_REQUEST = (True, True, False), (True, True, True), (True, False, False)
ROWS = {
    "rate limit": (fails(429, retry_after_s=7), RateLimited, REFUSED_REQUEST),
    "rate limit without a time": (fails(429), RateLimited, REFUSED_REQUEST),
    "acceleration": (fails(429, error_code="ramp_limit_exceeded"), RateLimited, REFUSED_REQUEST),
    "spend limit": (fails(429, error_code="enforced_spend_limit_reached"), SpendLimitReached, REFUSED_REQUEST),
    "contract spend limit": (fails(429, error_code="contract_spend_limit_reached"), SpendLimitReached, REFUSED_REQUEST),
    "a spend limit to come": (fails(429, error_code="team_spend_limit_reached"), SpendLimitReached, REFUSED_REQUEST),
    "empty account": (fails(400, message="Your credit balance is too low to access the API"), SpendLimitReached, REFUSED_REQUEST),
    "own spend limit": (fails(400, message="You have reached your specified API usage limits."), SpendLimitReached, REFUSED_REQUEST),
    "payment required": (fails(402), SpendLimitReached, REFUSED_REQUEST),
    "billing error": (fails(400, type="billing_error"), SpendLimitReached, REFUSED_REQUEST),
    "overloaded": (fails(529), Overloaded, REFUSED_REQUEST),
    "compaction overloaded": (fails(529, error_code="compaction_unavailable"), Overloaded, REFUSED_REQUEST),
    "internal error": (fails(500), EndpointUnavailable, REFUSED_REQUEST),
    "bad gateway": (html_error(502), EndpointUnavailable, REFUSED_REQUEST),
    "unavailable": (html_error(503), EndpointUnavailable, REFUSED_REQUEST),
    "gateway timeout": (fails(504), EndpointUnavailable, REFUSED_REQUEST),
    "request timeout": (fails(408), EndpointUnavailable, REFUSED_REQUEST),
    "conflict": (fails(409), EndpointUnavailable, REFUSED_REQUEST),
    "rate limit of a proxy": (html_error(429), RateLimited, REFUSED_REQUEST),
    "silence before the headers": (stalls(0), EndpointUnavailable, BEFORE_ANSWER),
    "drop before the headers": (drops(0), EndpointUnavailable, BEFORE_ANSWER),
    "drop within the answer": (drops(), EndpointUnavailable, IN_ANSWER),
    "silence within the answer": (stalls(), EndpointUnavailable, IN_ANSWER),
    "overloaded within the answer": (in_stream_error("overloaded_error"), Overloaded, IN_ANSWER),
    "rate limit within the answer": (in_stream_error("rate_limit_error"), RateLimited, IN_ANSWER),
    "internal error within the answer": (in_stream_error("api_error"), EndpointUnavailable, IN_ANSWER),
    "spend limit within the answer": (
        in_stream_error("rate_limit_error", error_code="enforced_spend_limit_reached"), SpendLimitReached, IN_ANSWER,
    ),
    "unknown error within the answer": (in_stream_error("solar_flare_error"), EndpointUnavailable, IN_ANSWER),
    "end without message_stop": (ends_early(), EndpointUnavailable, IN_ANSWER),
    "a hotel's login page": (junk(), EndpointUnavailable, BEFORE_ANSWER),
    "other JSON": (junk("[]", content_type="application/json"), EndpointUnavailable, BEFORE_ANSWER),
    "a stream of other things": (junk("event: x\ndata: {\n\n", content_type="text/event-stream"), EndpointUnavailable, BEFORE_ANSWER),
    "a message without its parts": (
        junk('event: message_start\ndata: {"type":"message_start","message":{}}\n\n', content_type="text/event-stream"),
        EndpointUnavailable, BEFORE_ANSWER,
    ),
    "an answer without a beginning": (
        junk('event: message_stop\ndata: {"type":"message_stop"}\n\n', content_type="text/event-stream"),
        EndpointUnavailable, BEFORE_ANSWER,
    ),
    "prompt too long": (
        fails(400, message="prompt is too long: 210000 tokens > 200000 maximum"), ContextOverflow, REFUSED_REQUEST,
    ),
    "schema too complex": (fails(400, message="compiled grammar is too large"), SchemaTooComplex, REFUSED_REQUEST),
    "bad request": (fails(400), RequestRejected, REFUSED_REQUEST),
    "no such model": (fails(404), RequestRejected, REFUSED_REQUEST),
    "too large": (fails(413), ContextOverflow, REFUSED_REQUEST),
    "unprocessable": (fails(422), RequestRejected, REFUSED_REQUEST),
    "bad key": (fails(401), AuthenticationFailed, REFUSED_REQUEST),
    "forbidden": (fails(403), AuthenticationFailed, REFUSED_REQUEST),
    "on hold": (fails(400, error_code="organization_on_hold"), AuthenticationFailed, REFUSED_REQUEST),
    "refusal": (stops("refusal", category="cyber"), Refused, IN_ANSWER),
}  # fmt: skip


@pytest.fixture(params=["aiohttp", "httpx"])
def transport(request, monkeypatch):
    """Both HTTP transports of the SDK: they report the same faults by different exceptions."""
    if request.param == "httpx":
        monkeypatch.setitem(sys.modules, "aiohttp", None)  # Importing it raises ImportError.
    return request.param


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("fake_class", [FakeAnthropic, FakeOpenAI])
@pytest.mark.usefixtures("transport")
async def test_a_fault_on_the_wire_gets_its_class_and_its_facts(fake_class, row):
    answer, expected, (sent, billed, counted) = ROWS[row]
    if fake_class is FakeOpenAI and row != "refusal":
        counted = False  # This API counts at the end of an answer only.

    async with fake_class(answer) as fake:
        with pytest.raises(ModelFailure) as caught:
            await fake.endpoint(read_timeout_s=0.1).call(REQUEST)

    failure = caught.value
    assert type(failure) is expected
    assert (failure.sent, failure.billed) == (sent, billed)
    assert isinstance(failure.usage, Usage) if counted else failure.usage is None
    assert failure.retry_after_s == (7 if row == "rate limit" else None)
    assert (failure.request_id is None) == (row in ("silence before the headers", "drop before the headers"))
    assert type(pickle.loads(pickle.dumps(failure))) is expected
    assert copy.copy(failure).usage == failure.usage


NO_LENGTHS = {"tokens": None, "tokens_max": None}
# What only chat completions say: status, code, type and text; and what of it is a fact.
CHAT_ROWS = {
    "no money": (fails(429, error_code="insufficient_quota", type="insufficient_quota"), SpendLimitReached, {}),
    "no money, told by the type": (fails(429, type="insufficient_quota"), SpendLimitReached, {}),
    "no account": (fails(429, error_code="billing_not_active"), SpendLimitReached, {}),
    "rate limit": (fails(429, error_code="rate_limit_exceeded", type="tokens"), RateLimited, {}),
    "rate limit, told by the status": (fails(429, error_code="429"), RateLimited, {}),
    "longer than a minute's tokens": (
        fails(429, error_code="rate_limit_exceeded", type="tokens", message=(
            "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Requested 30601. "
            "The input or output tokens must be reduced in order to run successfully."
        )), ContextOverflow, {"tokens": 30_601, "tokens_max": 30_000},
    ),
    "too long": (
        fails(400, error_code="context_length_exceeded", message=(
            "This model's maximum context length is 4097 tokens. However, your messages resulted in 4619 tokens. "
            "Please reduce the length of the messages."
        )), ContextOverflow, {"tokens": 4619, "tokens_max": 4097},
    ),
    "too long with its answer": (
        fails(400, error_code="context_length_exceeded", message=(
            "This model's maximum context length is 4096 tokens. However, you requested 4222 tokens (1222 in the "
            "messages, 3000 in the completion). Please reduce the length of the messages or completion."
        )), ContextOverflow, {"tokens": 4222, "tokens_max": 4096},
    ),
    "too long, told in words": (
        fails(400, type="BadRequestError", error_code="400", message=(
            "This model's maximum context length is 262144 tokens. However, you requested 128000 output tokens and your "
            "prompt contains at least 134145 input tokens, for a total of at least 262145 tokens."
        )), ContextOverflow, {"tokens": 262_145, "tokens_max": 262_144},
    ),
    "too long without lengths": (fails(400, error_code="context_length_exceeded"), ContextOverflow, NO_LENGTHS),
    "too long for a small server": (fails(400, type="exceed_context_size_error"), ContextOverflow, NO_LENGTHS),
    "too long, told late": (in_stream_error("invalid_request_error", error_code="context_length_exceeded"), ContextOverflow, NO_LENGTHS),
    "bad key": (fails(401, error_code="invalid_api_key"), AuthenticationFailed, {}),
    "no such model": (fails(404, error_code="model_not_found"), RequestRejected, {}),
    "no such model for this key": (fails(403, error_code="model_not_found"), RequestRejected, {}),
    "a prompt that is filtered": (fails(400, error_code="content_filter"), Refused, {"category": "content_filter"}),
    "overloaded": (fails(503, error_code="server_is_overloaded"), Overloaded, {}),
    "asked to slow down": (fails(503, error_code="slow_down"), Overloaded, {}),
    "internal error": (fails(500, type="server_error"), EndpointUnavailable, {}),
    "a status within the answer": (in_stream_error("upstream_error", error_code="429"), RateLimited, {}),
    "a broken upstream within the answer": (in_stream_error("upstream_error", error_code="502"), EndpointUnavailable, {}),
    "no money within the answer": (in_stream_error("insufficient_quota"), SpendLimitReached, {}),
}  # fmt: skip


@pytest.mark.parametrize("row", CHAT_ROWS)
async def test_an_error_of_chat_completions_gets_its_class_whoever_raises_it(row):
    answer, expected, facts = CHAT_ROWS[row]

    async with FakeOpenAI(answer, answer) as fake:
        with pytest.raises(ModelFailure) as caught:
            await fake.endpoint().call(REQUEST)
        plain = classify(await plain_openai_error(fake, streamed=True))

    for failure in (caught.value, plain):
        assert type(failure) is expected
        assert {name: vars(failure)[name] for name in facts} == facts
        assert failure.status == answer.status
        assert (failure.sent, failure.billed) == (True, answer.status == 200)


@pytest.mark.parametrize("provider_class", [AnthropicProvider, OpenAICompatibleProvider])
@pytest.mark.usefixtures("transport")
async def test_a_refused_connection_was_not_sent(provider_class):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    provider = provider_class(base_url=f"http://127.0.0.1:{port}", api_key="k")

    with pytest.raises(EndpointUnavailable) as caught:
        await provider.call(REQUEST)

    assert (caught.value.sent, caught.value.billed, caught.value.usage) == (False, False, None)
    await provider.close()


@pytest.mark.parametrize("provider_class", [AnthropicProvider, OpenAICompatibleProvider])
async def test_a_missing_key_or_profile_was_not_sent(provider_class, monkeypatch, tmp_path):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE", "ANTHROPIC_IDENTITY_TOKEN",
                 "OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path))
    provider = provider_class(base_url="http://127.0.0.1:1")

    with pytest.raises(AuthenticationFailed) as caught:
        await provider.call(REQUEST)

    assert caught.value.sent is False
    await provider.close()


async def test_facts_of_an_error_status_are_attributes():
    async with FakeAnthropic(fails(429, retry_after_s=1.5, error_code="ramp_limit_exceeded")) as fake:
        with pytest.raises(RateLimited, match=r"it asks to wait 1\.5 s") as caught:
            await fake.endpoint().call(REQUEST)

    failure = caught.value
    assert (failure.status, failure.retry_after_s) == (429, 1.5)
    assert vars(failure)["error_code"] == "ramp_limit_exceeded"
    assert failure.request_id is not None
    assert failure.request_id in str(failure)


async def test_an_overflow_tells_both_lengths():
    async with FakeAnthropic(fails(400, message="prompt is too long: 210000 tokens > 200000 maximum")) as fake:
        with pytest.raises(ContextOverflow) as caught:
            await fake.endpoint().call(REQUEST)

    assert (caught.value.tokens, caught.value.tokens_max) == (210_000, 200_000)


async def test_a_refusal_tells_its_category():
    async with FakeAnthropic(stops("refusal", category="bio")) as fake:
        with pytest.raises(Refused) as caught:
            await fake.endpoint().call(REQUEST)

    assert caught.value.category == "bio"


async def sdk_error(fake: FakeAnthropic, *, streamed: bool) -> Exception:
    """What users of the plain SDK catch."""
    async with anthropic.AsyncAnthropic(base_url=fake.url, api_key="k", max_retries=0) as client:
        asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
        try:
            if not streamed:
                await client.messages.create(**asked)
            else:
                async with client.messages.stream(**asked) as stream:
                    await stream.get_final_message()
        except Exception as error:
            return error
    pytest.fail("the SDK raised nothing")


@pytest.mark.parametrize(
    ("answer", "streamed", "expected"),
    [
        (broken_tool_json("f"), True, MalformedOutput),  # ValueError
        (junk("{", content_type="application/json"), False, EndpointUnavailable),  # JSONDecodeError
        (junk("", content_type="text/event-stream"), True, EndpointUnavailable),  # AssertionError
        (drops(), True, EndpointUnavailable),  # httpx2.RemoteProtocolError
        (drops(0), False, EndpointUnavailable),  # APIConnectionError
        (in_stream_error(), True, Overloaded),  # APIStatusError with status 200
    ],
)
async def test_what_the_sdk_raises_by_itself_is_understood_too(answer, streamed, expected):
    async with FakeAnthropic(answer) as fake:
        error = await sdk_error(fake, streamed=streamed)

        assert type(classify(error)) is expected


async def plain_openai_error(fake: FakeOpenAI, *, streamed: bool) -> Exception:
    """What users of the plain SDK catch."""
    async with openai.AsyncOpenAI(base_url=fake.url, api_key="k", max_retries=0) as client:
        try:
            made = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}], stream=streamed
            )
            if streamed:
                async for _ in made:
                    pass
        except Exception as error:
            return error
    pytest.fail("the SDK raised nothing")


@pytest.mark.parametrize(
    ("answer", "streamed", "expected"),
    [
        (junk("{", content_type="application/json"), False, EndpointUnavailable),  # JSONDecodeError
        (drops(), True, EndpointUnavailable),  # APIConnectionError
        (drops(0), False, EndpointUnavailable),  # APIConnectionError
        (in_stream_error(), True, Overloaded),  # APIError without a status
    ],
)
async def test_what_the_sdk_for_chat_completions_raises_by_itself_is_understood_too(answer, streamed, expected):
    async with FakeOpenAI(answer) as fake:
        error = await plain_openai_error(fake, streamed=streamed)

        assert type(classify(error)) is expected


def pydantic_error() -> Exception:
    try:
        pydantic.TypeAdapter(int).validate_python("x")
    except pydantic.ValidationError as error:
        return error
    pytest.fail("pydantic accepted it")


@pytest.mark.parametrize(
    ("error", "expected", "sent"),
    [
        (pydantic_error(), MalformedOutput, True),
        (json.JSONDecodeError("no", "", 0), EndpointUnavailable, True),
        (TypeError("unexpected keyword argument 'temperature'"), RequestRejected, False),
        (ValueError("Streaming is required for operations that may take longer"), RequestRejected, False),
        (TypeError("Could not resolve authentication method."), AuthenticationFailed, False),
        (ConnectionRefusedError(), EndpointUnavailable, False),
        (socket.gaierror(-2, "Name or service not known"), EndpointUnavailable, False),
        (ConnectionResetError(), EndpointUnavailable, True),
        (TimeoutError(), EndpointUnavailable, True),
        (anthropic.CredentialsError("no such profile"), AuthenticationFailed, False),
    ],
)
def test_errors_without_an_answer_have_a_class(error, expected, sent):
    failure = classify(error)

    assert type(failure) is expected
    assert failure is not None
    assert failure.sent is sent
    assert classify(failure) is failure


@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        ValueError("mine"),
        KeyError("mine"),
        InvalidDefinition("mine"),  # A TypeError, which from the SDK would be a wrong request.
        DeadlineExceeded("mine"),  # A TimeoutError
    ],
)
def test_errors_that_are_not_the_endpoints_stay_what_they_are(error):
    assert classify(error) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "30"}, 30),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "-1"}, 0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:27:30 GMT"}, 30),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:29:00 GMT"}, 0),
        ({"retry-after": "Thu, 01 Jan 1970 00:02:00 GMT"}, 20),
    ],
)
def test_the_time_to_wait_is_read_in_every_form(headers, seconds):
    assert retry_after(headers, now=100.0) == seconds


def test_a_failure_of_the_msgspec_codec_is_no_failure_of_the_endpoint():
    assert classify(msgspec.ValidationError("Expected `int`")) is None
