"""The rate limits of the fake model endpoint, in virtual time."""

from __future__ import annotations

import asyncio

import anthropic
import pytest

from understudy import RateLimits
from understudy.testing import FakeAnthropic, VirtualTimeLoop, fails, says

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


async def ask(fake: FakeAnthropic, model: str = "claude-opus-5-5", text: str = "hello"):
    """The status and the headers of one call of the plain SDK."""
    async with anthropic.AsyncAnthropic(base_url=fake.url, api_key="k", max_retries=0) as client:
        try:
            raw = await client.messages.with_raw_response.create(
                model=model, max_tokens=100, messages=[{"role": "user", "content": text}]
            )
        except anthropic.APIStatusError as error:
            return error.response.status_code, error.response.headers
        return raw.status_code, raw.headers


def left(headers, name: str) -> list[str]:
    return [headers[f"anthropic-ratelimit-{name}-{field}"] for field in ("limit", "remaining", "reset")]


async def test_a_call_beyond_the_limit_is_refused_and_may_come_again_when_it_was_told_to():
    async with FakeAnthropic(says("1"), says("2"), says("3"), limits=RateLimits(requests_per_min=2)) as fake:
        statuses = [(await ask(fake))[0] for _ in range(3)]
        _, headers = await ask(fake)
        await asyncio.sleep(float(headers["retry-after"]) - 1)
        early, _ = await ask(fake)
        await asyncio.sleep(1)
        late, _ = await ask(fake)

    assert statuses == [200, 200, 429]
    assert headers["retry-after"] == "30"
    assert (early, late) == (429, 200)
    assert (fake.calls, fake.rejected, len(fake.paid), fake.unused) == (6, 3, 3, 0)


async def test_every_answer_tells_what_is_left_and_when_it_is_full_again():
    limits = RateLimits(requests_per_min=60, input_tokens_per_min=6_000, output_tokens_per_min=600)
    answers = [says("x").used(input_tokens=1_000, output_tokens=300), fails(529)]
    async with FakeAnthropic(*answers, limits=limits) as fake:
        _, first = await ask(fake)
        _, second = await ask(fake)

    assert left(first, "requests") == ["60", "59", "2026-01-01T00:00:01Z"]
    counted = 6_000 - int(first["anthropic-ratelimit-input-tokens-remaining"])
    assert 5 < counted < 30  # Headers come before the answer is counted.
    assert left(second, "requests")[1] == "58"
    assert left(second, "output-tokens") == ["600", "300", "2026-01-01T00:00:30Z"]
    assert left(second, "input-tokens")[1] == str(6_000 - 1_000 - counted)
    assert left(second, "tokens")[:2] == ["6600", str(6_000 - 1_000 - counted + 300)]


async def test_cache_reads_do_not_count_and_cache_writes_do():
    limits = RateLimits(input_tokens_per_min=6_000)
    answer = says("x").used(input_tokens=10, cache_read_tokens=5_000, cache_write_5m_tokens=90)
    async with FakeAnthropic(answer, says("x"), limits=limits) as fake:
        _, before = await ask(fake)
        _, after = await ask(fake)

    own = 6_000 - int(before["anthropic-ratelimit-input-tokens-remaining"])
    assert left(after, "input-tokens")[1] == str(6_000 - 100 - own)


async def test_written_output_counts_and_whoever_has_none_left_waits():
    limits = RateLimits(output_tokens_per_min=60)
    async with FakeAnthropic(says("x").used(output_tokens=90), says("x"), limits=limits) as fake:
        await ask(fake)
        status, headers = await ask(fake)
        await asyncio.sleep(31)
        assert (await ask(fake))[0] == 200

    assert (status, headers["retry-after"]) == (429, "31")
    assert left(headers, "output-tokens")[1] == "0"


async def test_a_request_above_the_limit_is_admitted_when_the_bucket_is_full():
    async with FakeAnthropic(says("x"), limits=RateLimits(input_tokens_per_min=600)) as fake:
        large, _ = await ask(fake, text="x" * 4_000)
        small, headers = await ask(fake)

    assert (large, small) == (200, 429)
    assert int(headers["retry-after"]) > 40


async def test_each_model_family_has_its_own_limits():
    async with FakeAnthropic(lambda _request: says("x"), limits=RateLimits(requests_per_min=1)) as fake:
        models = ["claude-opus-5-5", "claude-haiku-4-5", "claude-haiku-4-5-20251001"]
        statuses = [(await ask(fake, model))[0] for model in models]

    assert statuses == [200, 200, 429]


async def test_headers_can_be_left_out_but_for_retry_after():
    async with FakeAnthropic(says("x"), limits=RateLimits(requests_per_min=1), headers=False) as fake:
        _, good = await ask(fake)
        _, refused = await ask(fake)

    assert not [name for name in [*good, *refused] if name.startswith("anthropic-ratelimit")]
    assert refused["retry-after"] == "60"


async def test_without_limits_nothing_is_told_or_refused():
    async with FakeAnthropic(says("x")) as fake:
        _, headers = await ask(fake)

    assert not [name for name in headers if name.startswith("anthropic-ratelimit")]
    assert fake.rejected == 0
