"""Agents, tools, budgets and the guard under random failures of the model: no invariant breaks, whatever comes.

The provider is a stub that fails in every way that the error tree knows; the store, the actors and the guard are real,
and time is virtual. A failure prints the command that runs its storm again.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from understudy import (
    ActorSuspended,
    Agent,
    Budget,
    Endpoint,
    HandlerFailed,
    Job,
    Limits,
    ModelRequest,
    RetryBudget,
    System,
    tool,
)
from understudy.endpoint.model import Allowance, ModelAnswer, Text, ToolCall, Usage
from understudy.endpoint.prices import cost_micros
from understudy.errors import (
    ContextOverflow,
    EndpointUnavailable,
    ModelFailure,
    Overloaded,
    RateLimited,
    Refused,
    RequestRejected,
)
from understudy.testing import InlineSQLiteStore

pytestmark = pytest.mark.anyio

AGENTS = 40
# What a call meets, and how often.
FATES: dict[str, float] = {
    "text": 40, "tool": 25, "garbage": 3, "cut": 1, "overloaded": 6, "down": 6, "dropped": 4, "limited": 4, "hangs": 3,
    "refused": 0.5, "rejected": 0.5, "overflow": 0.5,
}  # fmt: skip


class Answer(msgspec.Struct):
    text: str


@tool
async def flip(coin: int) -> int:
    """Flip a coin; it may fall off the table."""
    if coin % 5 == 0:
        raise OSError("it fell off the table")
    return coin % 2


class Storm:
    """A provider that fails by the dice and counts what it would charge for."""

    def __init__(self, seed: str) -> None:
        self.dice = random.Random(seed)
        self.calls = 0
        self.in_flight = 0
        self.billed_micros = 0
        self.met: Counter[str] = Counter()
        self.is_calm = False

    async def call(
        self,
        request: ModelRequest,
        *,
        on_text: Callable[[str], None] | None = None,
        on_allowance: Callable[[Allowance], None] | None = None,
    ) -> ModelAnswer:
        self.calls += 1
        self.in_flight += 1
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        pass

    async def _answer(self, request: ModelRequest) -> ModelAnswer:
        (fate,) = ["text"] if self.is_calm else self.dice.choices(list(FATES), list(FATES.values()))
        self.met[fate] += 1
        await asyncio.sleep(self.dice.random() * 4)
        match fate:
            case "overloaded":
                raise Overloaded("overloaded", status=529)
            case "down":
                raise EndpointUnavailable("refused", sent=False)
            case "limited":
                raise RateLimited("slow down", status=429, retry_after_s=self.dice.choice([None, 1.0, 10.0]))
            case "rejected":
                raise RequestRejected("no such thing", status=404)
            case "overflow":
                raise ContextOverflow("prompt is too long", status=400)
            case "dropped":
                usage = self._bill(request, self.dice.randrange(50))
                raise EndpointUnavailable("dropped", billed=True, usage=usage, received_bytes=usage.output_tokens)
            case "hangs":
                self._bill(request, self.dice.randrange(request.max_tokens))
                await asyncio.sleep(60)
                raise EndpointUnavailable("no answer in time", billed=True)
            case "refused":
                raise Refused("no", billed=True, usage=self._bill(request, 1))
            case _:
                return self._complete(fate, request)

    def _complete(self, fate: str, request: ModelRequest) -> ModelAnswer:
        content: list[Any] = [Text('{"text":"fine"}')]
        reason = "end_turn"
        if fate == "tool" and request.tools:
            content = [
                ToolCall(
                    f"call-{self.calls}-{number}", self.dice.choice(["flip", "flip", "flop"]), {"coin": self.calls}
                )
                for number in range(self.dice.randrange(1, 4))
            ]
            reason = "tool_use"
        elif fate == "garbage":
            content = [Text("not what was asked for")]
        elif fate == "cut":
            content, reason = [Text('{"te')], "max_tokens"
        return ModelAnswer("m", request.model, content, reason, self._bill(request, self.dice.randrange(60)))

    def _bill(self, request: ModelRequest, output_tokens: int) -> Usage:
        # No more than a token for three bytes, as texts have.
        usage = Usage(len(msgspec.json.encode(request.messages)) // 4, output_tokens)
        self.billed_micros += cost_micros(request.model, usage, datetime.now(UTC)) or 0
        return usage


class Gambler(Agent[Answer], kind="gambler"):
    model = "claude-sonnet-5-5"
    instructions = "Flip coins."
    tools = [flip]
    max_steps = 40  # more than the unluckiest needs
    max_tokens = 200


async def weather(path: Path, seed: str, calls: int) -> None:
    """Run agents until so many calls were made, then let the sky clear; check that nothing was lost or overspent."""
    storm = Storm(seed)
    endpoint = Endpoint(storm, concurrency=16, retry_budget=RetryBudget())
    store = InlineSQLiteStore(path, durability="process")
    jobs: list[Job[Answer]] = []
    async with System(store, [Gambler], endpoints=[endpoint], limits=Limits(trace_bytes=1 << 22)) as system:
        scope = system.workflow("storm", budget=Budget(usd=calls * 0.0004))
        turns = iter(range(1 << 30))
        ends: Counter[str] = Counter()

        async def gamble() -> None:
            while storm.calls < calls:
                number = next(turns)
                job = await scope.actor(Gambler, f"gambler-{number}").run.submit("Flip.")
                jobs.append(job)
                try:
                    await job
                    ends["answered"] += 1
                except ActorSuspended:
                    ends["suspended"] += 1
                    return
                except HandlerFailed:
                    ends["given up"] += 1
                except ModelFailure as error:
                    ends[type(error).__name__] += 1

        await asyncio.gather(*(gamble() for _ in range(AGENTS)))

        spent = await scope.spent()
        assert storm.in_flight == 0
        assert spent.usd is not None
        # Every cent that was charged is booked, and no more than the budget was ever promised.
        assert storm.billed_micros <= round(spent.usd * 1e6)
        states = Counter([(await job.status()).state for job in jobs])
        assert set(states) <= {"done", "failed", "suspended"}, states
        dead = [letter async for letter in system.dead_letters()]
        assert len(dead) == states["failed"]

        storm.is_calm = True
        await scope.raise_budget(usd=calls * 0.01)
        outcomes = await asyncio.gather(*(job.result() for job in jobs), return_exceptions=True)
        assert not [each for each in outcomes if isinstance(each, ActorSuspended)]
        assert storm.billed_micros <= round(((await scope.spent()).usd or 0.0) * 1e6)
        assert [info async for info in system.suspended()] == []
    assert sum(storm.met.values()) == storm.calls
    print(dict(ends), dict(storm.met), storm.billed_micros)
    assert ends["answered"] > 0


@pytest.mark.parametrize("seed", ["1", "2"])
@pytest.mark.watchdog(120)
async def test_storm_of_failures_breaks_no_invariant(tmp_path: Path, seed: str) -> None:
    print(f"again: pytest {__file__} -k 'storm_of and {seed}'")

    await weather(tmp_path / "storm.db", seed, 4_000)


@pytest.mark.soak
@pytest.mark.watchdog(3_600)
async def test_storm_of_a_million_calls_breaks_no_invariant(tmp_path: Path) -> None:
    seed = str(random.SystemRandom().randrange(1 << 32))
    print(f"again: with seed {seed}")

    await weather(tmp_path / "storm.db", seed, 1_000_000)
