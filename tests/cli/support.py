"""Agents of the tests that a person has to decide about, and the command line beside a system that runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from understudy import Actor, Agent, Budget, Policy, System, external, handler, on, suspend, tool
from understudy.cli import main
from understudy.testing import FakeAnthropic


@tool(approval="always")
async def refund(order: str, cents: int = 100) -> str:
    """Pay money back."""
    return f"refunded {cents} for {order}"


class Support(Agent[str], kind="support"):
    """Helps customers."""

    model = "claude-sonnet-5-5"
    tools = [refund]


class Frugal(Agent[str], kind="frugal"):
    """Its budget allows no call, until it is raised."""

    model = "claude-sonnet-5-5"
    max_tokens = 1_000
    budget = Budget(usd=0.001)


class Helper(Agent[str], kind="helper"):
    """Helps the boss."""

    model = "claude-sonnet-5-5"


class Boss(Agent[str], kind="boss"):
    """Is held with the agent that it asks, by a budget of both."""

    model = "claude-sonnet-5-5"
    tools = [Helper.run]


class Shop(Actor[int], kind="shop"):
    is_broken = True
    policy = Policy(on(OSError, suspend()))

    @handler
    async def sell(self) -> int:
        if Shop.is_broken:
            raise OSError("no stock")
        self.state += 1
        return self.state

    @handler
    async def wait(self) -> str:
        return await external("paid", str)


CLASSES: list[Any] = [Support, Frugal, Boss, Helper, Shop]


def open_at(path: Path, model: FakeAnthropic, **settings: Any) -> System:
    """Open the store of these tests."""
    return System(path, CLASSES, endpoints=[model.endpoint()], **settings)


async def run(*arguments: Any) -> Result:
    """Run the command line in a thread: it has a loop of its own, and systems of the test go on beside it."""
    return await asyncio.to_thread(CliRunner().invoke, main, [str(each) for each in arguments])


async def wait_until(system: System, id: str, state: str) -> None:
    """Wait until a job is in that state."""
    while (await system.job(id).status()).state != state:
        await asyncio.sleep(0.01)
