"""The rate limiter against a service that keeps limits: many callers, real HTTP, several minutes of virtual time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from understudy import AnthropicProvider, RateLimited, RateLimits
from understudy.clock import wall_clock
from understudy.endpoint.estimates import Estimator, counted_input
from understudy.endpoint.model import ChatMessage, ModelRequest, Text
from understudy.endpoint.rates import Buckets
from understudy.testing import FakeAnthropic, FakeRequest, VirtualTimeLoop, says
from understudy.testing.wire import input_tokens

pytestmark = pytest.mark.anyio

CALLERS = 200
MINUTES = 3
# About a hundred calls a minute, bound by one of the three.
INPUT_BOUND = RateLimits(requests_per_min=300, input_tokens_per_min=64_000, output_tokens_per_min=60_000)
OUTPUT_BOUND = RateLimits(requests_per_min=300, input_tokens_per_min=256_000, output_tokens_per_min=16_000)
REQUEST_BOUND = RateLimits(requests_per_min=100, input_tokens_per_min=256_000, output_tokens_per_min=60_000)
# Room for all callers at once: nothing can know of a wrong limit before the first answer.
ROOMY = RateLimits(requests_per_min=300, input_tokens_per_min=160_000, output_tokens_per_min=60_000)
TWICE = RateLimits(requests_per_min=600, input_tokens_per_min=320_000, output_tokens_per_min=120_000)


@pytest.fixture
def anyio_backend():
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


@dataclass
class Load:
    """Callers that each make one call after the other, as an endpoint does, until the time is over."""

    limits: RateLimits
    dice: random.Random
    callers: int = CALLERS
    used: list[tuple[float, int, int, int]] = field(
        default_factory=list
    )  # seconds since the start, requests, input, output
    calls: int = 0
    rejected: int = 0

    async def run(self, service: RateLimits, *, headers: bool) -> None:
        loop = asyncio.get_running_loop()
        self.began = loop.time()
        async with FakeAnthropic(self._answer, limits=service, headers=headers) as fake:
            provider = AnthropicProvider(base_url=fake.url, api_key="k")
            self.buckets = Buckets(self.limits, clock=loop.time, wall=wall_clock(loop))
            self.estimator = Estimator()
            try:
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(self.callers):
                        tasks.create_task(self._caller(provider))
            finally:
                await provider.close()
            self.calls, self.rejected = fake.calls, fake.rejected
        assert (self.buckets.open_calls, self.buckets.waiting) == (0, 0)

    async def _caller(self, provider: AnthropicProvider) -> None:
        loop = asyncio.get_running_loop()
        end = self.began + 60 * MINUTES
        request: ModelRequest | None = None
        while loop.time() < end:
            if request is None:
                letters = self.dice.choice(("a", "a", "a", "ü")) * self.dice.randrange(1_000, 4_000)
                request = ModelRequest("claude-opus-5-5", [ChatMessage("user", [Text(letters)])])
            try:
                async with asyncio.timeout_at(end):
                    grant = await self.buckets.acquire(self.estimator.need(request))
            except TimeoutError:
                return
            try:
                answer = await provider.call(request, on_allowance=self.buckets.learn)
            except RateLimited as refused:
                self.buckets.close_until(refused.retry_after_s or 1.0)
                grant.give_back()
                continue
            grant.settle(counted_input(answer.usage), answer.usage.output_tokens)
            self.estimator.learn(request, answer.usage)
            request = None

    async def _answer(self, request: FakeRequest):
        output = self.dice.randrange(20, 300)
        loop = asyncio.get_running_loop()
        self.used.append((loop.time() - self.began, 1, input_tokens(request.body), 0))
        await asyncio.sleep(self.dice.randrange(1, 21))  # Whole seconds: fewer instants for the clock to stop at.
        self.used.append((loop.time() - self.began, 0, 0, output))  # Counted by the service when it is written.
        return says("x").used(output_tokens=output)

    def used_share(self, service: RateLimits) -> float:
        """Return how much of the tightest limit was used after the first minute, whose full buckets tell nothing."""
        limits = (service.requests_per_min, service.input_tokens_per_min, service.output_tokens_per_min)
        later = [facts for at, *facts in self.used if 60 <= at <= 60 * MINUTES]
        used = [sum(each) for each in zip(*later, strict=True)]
        return max(each / ((MINUTES - 1) * limit) for each, limit in zip(used, limits, strict=True) if limit)


@pytest.mark.parametrize(
    ("service", "known"),
    [
        (INPUT_BOUND, "both"),
        (INPUT_BOUND, "configured"),
        (OUTPUT_BOUND, "configured"),
        (REQUEST_BOUND, "configured"),
        (ROOMY, "headers"),
    ],
    ids=["input-both", "input-configured", "output-configured", "requests-configured", "headers"],
)
async def test_many_callers_use_what_is_allowed_and_are_hardly_refused(service, known, seed):
    load = Load(RateLimits() if known == "headers" else service, random.Random(seed))

    await load.run(service, headers=known != "configured")

    assert load.rejected < load.calls / 100
    assert load.used_share(service) >= 0.9


async def test_headers_mend_configured_limits_that_are_too_high(seed):
    load = Load(TWICE, random.Random(seed))

    await load.run(ROOMY, headers=True)

    assert load.rejected < load.calls / 100
    assert load.used_share(ROOMY) >= 0.9


async def test_limits_that_are_too_high_and_no_headers_still_let_most_of_the_work_through(seed):
    load = Load(TWICE, random.Random(seed))

    await load.run(ROOMY, headers=False)

    assert load.rejected < load.calls / 4
    assert load.used_share(ROOMY) >= 0.7
