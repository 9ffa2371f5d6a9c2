"""Two hundred agents before a service that keeps its limits: the guard uses what is allowed and is hardly ever refused.

Real HTTP and real agents; time is virtual. The service has token buckets of its own, written apart from the guard's.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from understudy import Agent, Breaker, RateLimits, System, tool
from understudy.testing import Answer, FakeAnthropic, FakeRequest, InlineSQLiteStore, calls, says
from understudy.testing.wire import input_tokens

pytestmark = pytest.mark.anyio

AGENTS = 200
MINUTES = 3
SERVICE = RateLimits(requests_per_min=400, input_tokens_per_min=100_000, output_tokens_per_min=60_000)


@tool
async def look_up(word: str) -> str:
    """Look a word up."""
    return word * 100


class Reader(Agent[str], kind="reader"):
    model = "claude-sonnet-5-5"
    instructions = "Look a word up, then answer."
    tools = (look_up,)


@pytest.mark.watchdog(120)
@pytest.mark.parametrize("known", ["configured", "told in headers"])
async def test_two_hundred_agents_use_the_rate_and_are_hardly_refused(tmp_path: Path, seed: int, known: str) -> None:
    dice = random.Random(seed)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    used: list[tuple[float, int]] = []  # seconds, input tokens

    async def answer(request: FakeRequest) -> Answer:
        used.append((loop.time() - began_s, input_tokens(request.body)))
        await asyncio.sleep(dice.randrange(1, 16))  # Whole seconds: fewer instants for the clock to stop at.
        if len(request.messages) == 1:
            return calls(look_up, word="a" * dice.randrange(1, 20))
        return says("so " * dice.randrange(10, 200))

    store = InlineSQLiteStore(tmp_path / "agents.db", durability="process")
    async with FakeAnthropic(answer, limits=SERVICE, headers=known != "configured") as fake:
        endpoint = fake.endpoint(
            concurrency=AGENTS, rates=SERVICE if known == "configured" else None, breaker=Breaker(window_s=30.0)
        )
        async with System(store, [Reader], endpoints=[endpoint]) as system:

            async def work(number: int) -> None:
                while loop.time() < began_s + 60 * MINUTES:
                    prompt = "word " * dice.randrange(50, 400)
                    await system.actor(Reader, f"{number}-{loop.time()}").run(prompt)

            await asyncio.gather(*(work(number) for number in range(AGENTS)))

    # The first minute begins with full buckets, and in the last the agents leave one after the other.
    taken = sum(tokens for at, tokens in used if 60 <= at <= 60 * MINUTES)
    assert taken >= 0.9 * SERVICE.input_tokens_per_min * (MINUTES - 1)
    assert fake.rejected < fake.calls / 100
