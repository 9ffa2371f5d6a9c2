"""What rate-limit headers say, and that the provider tells it as soon as it is there."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from understudy import AnthropicProvider, ModelFailure, RateLimits
from understudy.endpoint.allowance import allowance_of
from understudy.endpoint.model import Allowance, ChatMessage, Meter, ModelRequest, Text
from understudy.errors import EndpointUnavailable, RateLimited
from understudy.testing import FakeAnthropic, drops, fails, in_stream_error, says

pytestmark = pytest.mark.anyio

REQUEST = ModelRequest("claude-opus-5-5", [ChatMessage("user", [Text("hello")])], max_tokens=100)
PREFIX = "anthropic-ratelimit-"
NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z


def test_all_meters_are_read():
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2026-01-01T00:00:01Z",
        "anthropic-ratelimit-input-tokens-limit": "40000",
        "anthropic-ratelimit-input-tokens-remaining": "0",
        "anthropic-ratelimit-input-tokens-reset": "2026-01-01T01:01:00+01:00",
        "anthropic-ratelimit-output-tokens-remaining": "7000",
        "anthropic-ratelimit-tokens-limit": "48000",
        "retry-after": "12",
    }

    assert allowance_of(headers, NOW) == Allowance(
        requests=Meter(50, 49, NOW + 1),
        input_tokens=Meter(40_000, 0, NOW + 60),
        output_tokens=Meter(None, 7_000, None),
        tokens=Meter(48_000, None, None),
    )


def test_an_answer_without_such_headers_says_nothing():
    assert allowance_of({"request-id": "req_1", "retry-after": "3"}, NOW) is None


@pytest.mark.parametrize(
    "value", ["", " ", "-5", "1.5", "many", "1e3", "٣", "9" * 5_000, "0x10", "1_000", "NaN", "+3", "None"]
)
def test_a_count_that_is_none_is_ignored(value):
    headers = {PREFIX + "requests-limit": value, PREFIX + "requests-remaining": "7"}

    assert allowance_of(headers, NOW) == Allowance(requests=Meter(remaining=7))
    assert allowance_of({PREFIX + "requests-remaining": value}, NOW) is None


def test_a_limit_of_zero_is_ignored_as_it_would_be_waited_for_without_end():
    headers = {PREFIX + "tokens-limit": "0", PREFIX + "tokens-remaining": "0"}

    assert allowance_of(headers, NOW) == Allowance(tokens=Meter(remaining=0))


@pytest.mark.parametrize(
    ("value", "at"),
    [("12", NOW + 12), ("0.5", NOW + 0.5), ("1767225660", NOW + 60), ("2026-01-01", None), ("2026-01-01T00:00:00", None),
     ("soon", None), ("6m0s", None), ("9999-12-31T23:59:59-23:59", None), ("0001-01-01T00:00:00+23:59", None)],
)  # fmt: skip
def test_a_reset_is_a_time_with_a_zone_or_seconds(value, at):
    told = allowance_of({PREFIX + "requests-limit": "5", PREFIX + "requests-reset": value}, NOW)

    assert told is not None
    assert told.requests is not None
    if value.startswith("9999"):
        return  # Whether such a time can be told depends on the platform; it must not raise.
    assert told.requests == Meter(limit=5, reset_at=at) or value.startswith("0001")


@given(
    st.dictionaries(
        st.sampled_from(
            [
                f"{PREFIX}{name}-{field}"
                for name in ("requests", "tokens", "input-tokens")
                for field in ("limit", "remaining", "reset")
            ]
        ),
        st.text() | st.from_regex(r"[0-9T:Z.+-]*"),
    )
)
def test_no_header_ever_raises(headers):
    told = allowance_of(headers, NOW)

    for meter in (told.requests, told.input_tokens, told.tokens) if told else ():
        assert meter is None or meter.limit is None or meter.limit > 0


async def heard_from(*answers, headers=True, limits: RateLimits | None = None, calls=1) -> list[Allowance]:
    heard: list[Allowance] = []
    async with FakeAnthropic(*answers, limits=limits, headers=headers) as fake:
        provider = AnthropicProvider(base_url=fake.url, api_key="k")
        try:
            for _ in range(calls):
                try:
                    await provider.call(REQUEST, on_allowance=heard.append)
                except ModelFailure:
                    pass
        finally:
            await provider.close()
    return heard


LIMITS = RateLimits(requests_per_min=2, input_tokens_per_min=1_000)


async def test_the_headers_of_an_answer_are_told():
    (told,) = await heard_from(says("hi"), limits=LIMITS)

    assert told.requests is not None
    assert (told.requests.limit, told.requests.remaining) == (2, 1)
    assert told.input_tokens is not None
    assert told.input_tokens.remaining is not None
    assert 900 < told.input_tokens.remaining < 1_000
    assert told.output_tokens is told.tokens is None


async def test_the_headers_of_a_refused_call_are_told():
    told = await heard_from(says("1"), says("2"), limits=LIMITS, calls=3)

    assert [each.requests.remaining for each in told if each.requests] == [1, 0, 0]


@pytest.mark.parametrize("answer", [fails(529), fails(400), in_stream_error(), drops(500)])
async def test_the_headers_of_a_failed_call_are_told_once(answer):
    assert len(await heard_from(answer, limits=LIMITS)) == 1


async def test_without_headers_nothing_is_told():
    assert await heard_from(says("hi"), limits=LIMITS, headers=False) == []
    assert await heard_from(says("hi")) == []


async def test_headers_are_told_before_the_text():
    seen: list[str] = []
    async with FakeAnthropic(says("hello"), limits=LIMITS) as fake:
        provider = AnthropicProvider(base_url=fake.url, api_key="k")

        await provider.call(REQUEST, on_text=seen.append, on_allowance=lambda _told: seen.append("headers"))
        await provider.close()

    assert seen[0] == "headers"
    assert seen.count("headers") == 1


@pytest.mark.parametrize(("answer", "failure"), [(says("hi"), OSError), (fails(429), OSError)])
async def test_what_the_callback_raises_is_not_taken_for_a_failure_of_the_endpoint(answer, failure):
    def fail(_told: Allowance) -> None:
        raise OSError("mine")

    async with FakeAnthropic(answer, limits=LIMITS) as fake:
        provider = AnthropicProvider(base_url=fake.url, api_key="k")
        with pytest.raises(failure, match="mine") as caught:
            await provider.call(REQUEST, on_allowance=fail)
        await provider.close()

    assert not isinstance(caught.value, EndpointUnavailable | RateLimited)
