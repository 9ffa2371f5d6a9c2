"""Agents on one budget die at every boundary: no ledger ever tells less than was paid, nor more than was in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from understudy import ActorSuspended, Agent, Budget, Endpoint, System, tool
from understudy.endpoint import charges
from understudy.endpoint.model import Allowance, ModelAnswer, ModelRequest, Text, ToolCall, ToolResult, Usage
from understudy.endpoint.prices import cost_micros
from understudy.errors import EndpointUnavailable
from understudy.testing.crash import World, crash_at_every_point

pytestmark = pytest.mark.watchdog(240)
MODEL = "claude-sonnet-5-5"
AGENTS = 3
NOW = datetime(2026, 11, 1, tzinfo=UTC)


@tool
async def lookup(word: str) -> str:
    """Look a word up."""
    await asyncio.sleep(0.05)
    return f"{word} means much"


class Helper(Agent[str], kind="helper"):
    model = MODEL
    max_tokens = 1_000


class Worker(Agent[str], kind="worker"):
    model = MODEL
    max_tokens = 1_000
    tools = [lookup, Helper.run]
    budget = Budget(model_calls=1_000)


class Scripted:
    """A model that is paid as soon as it is asked; one of its answers breaks off."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def call(
        self,
        request: ModelRequest,
        *,
        on_text: Callable[[str], None] | None = None,
        on_allowance: Callable[[Allowance], None] | None = None,
    ) -> ModelAnswer:
        prompt = request.messages[0].content[0]
        assert isinstance(prompt, Text)
        results = [block for block in request.messages[-1].content if isinstance(block, ToolResult)]
        usage = Usage(input_tokens=charges.prompt_tokens(request) // 2, output_tokens=500)
        self.world.note("most", charges.most(request, NOW).usd_micros)
        self.world.note("paid", cost_micros(MODEL, usage, NOW))
        await asyncio.sleep(0.05)
        if prompt.text == "worker 1" and results and self.world.fate("broke") == "unsent":
            await self.world.once("broke", lambda: asyncio.sleep(0, True))
            raise EndpointUnavailable("broke off", billed=True, usage=Usage(usage.input_tokens, 1), received_bytes=400)
        if prompt.text.startswith("help") or results:
            return ModelAnswer("m", MODEL, [Text(f"done: {prompt.text}")], "end_turn", usage)
        asks = [ToolCall("c1", "lookup", {"word": "x"}), ToolCall("c2", "helper", {"prompt": f"help {prompt.text}"})]
        return ModelAnswer("m", MODEL, [*asks], "tool_use", usage)

    async def close(self) -> None:
        pass


def paid(world: World) -> int:
    return sum(note[2] for note in world.notes() if note[1] == "paid")


async def workload(world: World) -> dict[str, Any]:
    async with System(world.store(), [Worker], endpoints=[Endpoint(Scripted(world))]) as system:
        # Before anything runs in this life, the ledger tells all that was paid in earlier ones.
        workflow = system.workflow("batch", budget=Budget(usd=0.05))
        before = paid(world)
        record = await system.store.record("ledger", "workflow:batch")
        ledger = await system.ledgers.find("workflow:batch")
        world.note("opened", ledger.state.spent.usd_micros if ledger is not None else 0, before, record is not None)
        workers = [workflow.actor(Worker, f"w{number}") for number in range(AGENTS)]
        jobs = [await each.run.options(key="k").submit(f"worker {no}") for no, each in enumerate(workers)]
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        world.note("held", sum(1 for each in outcomes if isinstance(each, ActorSuspended)))
        await workflow.raise_budget(usd=100.0)
        replies = await asyncio.gather(*jobs)
        await system.committer.wait_durable()
        spent = await workflow.spent()
        statuses = [await job.status() for job in jobs]
        world.note("spent", round((spent.usd or 0) * 1_000_000), paid(world), spent.model_calls)
        world.note("jobs", sum(round((each.usd or 0) * 1_000_000) for each in statuses))
        kinds = ("reservation", "held", "sent")
        left = {kind: len(await system.store.records(kind, None, "", 99)) for kind in kinds}
        suspended = [info.id async for info in system.suspended()]
        return {"replies": replies, "left": left, "suspended": suspended}


def check(world: World, _: Any) -> None:
    notes = world.notes()
    lives = max(note[0] for note in notes)
    most = max(note[2] for note in notes if note[1] == "most")
    for _, what, *facts in notes:
        if what == "opened":
            ledger, so_far, _ = facts
            assert ledger >= so_far, f"opened with {ledger} on the ledger, and {so_far} were paid"
    spent, really, calls = next(note[2:] for note in reversed(notes) if note[1] == "spent")
    # One broke off by itself and is booked with what may have been under way.
    in_flight = (lives - 1) * AGENTS
    assert really <= spent <= really + in_flight * most + 10 * charges.SLACK_TOKENS, (spent, really, lives)
    made = sum(1 for note in notes if note[1] == "paid")
    assert made <= calls <= made + in_flight, (made, calls)
    jobs = next(note[2] for note in reversed(notes) if note[1] == "jobs")
    assert jobs == spent, "what the runs have spent is what the workflow has spent"


def test_ledgers_tell_no_less_than_was_paid_wherever_a_life_ends(tmp_path: Path) -> None:
    report = crash_at_every_point(workload, directory=tmp_path, check=check)

    assert report.crashes == len(report.boundaries) > 50


def test_ledgers_tell_no_less_than_was_paid_when_recovery_dies_too(tmp_path: Path, seed: int) -> None:
    report = crash_at_every_point(workload, directory=tmp_path, check=check, only=[], again=20, seed=seed)

    assert report.crashes >= 20
