"""A chain that waits for a person and for the outside dies at every boundary, and ends like the one that never died."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from understudy import (
    Actor,
    Agent,
    AlreadyDecided,
    Endpoint,
    KeyConflict,
    Limits,
    NotFound,
    System,
    current_turn,
    external,
    handler,
    step,
    tool,
)
from understudy.endpoint.model import Allowance, ModelAnswer, ModelRequest, Text, ToolCall, ToolResult, Usage
from understudy.testing.crash import World, crash_at_every_point

pytestmark = pytest.mark.watchdog(240)


def note(*facts: Any) -> None:
    turn = current_turn()
    turn.resource(World).note(facts[0], turn.id, *facts[1:])


@tool(approval="always")
async def refund(order: str) -> str:
    """Pay back."""
    note("begin", "refund")
    await asyncio.sleep(0.05)
    note("end", "refund")
    return f"refunded {order}"


@step
async def ship(order: str) -> str:
    note("begin", "ship")
    await asyncio.sleep(0.05)
    note("end", "ship")
    return order


class Support(Agent[str], kind="support"):
    """Helps."""

    model = "scripted"
    tools = [refund]


class Order(Actor, kind="order"):
    @handler
    async def place(self, order: str) -> str:
        current_turn().resource(World).note("address", self.turn.id)
        shipped, told = await asyncio.gather(ship(order), self.actor(Support, "s").run(order))
        cents = await external("paid", int)
        by_hand = await refund(f"{order} by hand")
        return f"{shipped}, {told}, {cents}, {by_hand}"


class Scripted:
    def __init__(self, world: World) -> None:
        self.world = world

    async def call(
        self,
        request: ModelRequest,
        *,
        on_text: Callable[[str], None] | None = None,
        on_allowance: Callable[[Allowance], None] | None = None,
    ) -> ModelAnswer:
        results = [block for block in request.messages[-1].content if isinstance(block, ToolResult)]
        await asyncio.sleep(0.05)
        usage = Usage(input_tokens=10, output_tokens=10)
        if results:
            return ModelAnswer("m", "scripted", [Text(results[0].content)], "end_turn", usage)
        return ModelAnswer("m", "scripted", [ToolCall("call-1", "refund", {"order": "o"})], "tool_use", usage)

    async def close(self) -> None:
        pass


async def decided(decide: Callable[[], Awaitable[None]]) -> None:
    """Do what a person, or a webhook, does again when they got no answer."""
    try:
        await decide()
    except (AlreadyDecided, NotFound, KeyConflict):
        pass


async def workload(world: World) -> dict[str, Any]:
    system = System(
        world.store(),
        [Order, Support],
        endpoints=[Endpoint(Scripted(world))],
        resources=[world],
        limits=Limits(park_after_s=5.0, idle_s=4.0),
    )
    async with system:
        job = await system.actor(Order, "a").place.options(key="one").submit("o")
        while (status := await job.status()).state not in ("done", "failed"):
            await asyncio.sleep(30)  # Whatever waits is parked and has left memory, who asks for its status included.
            for approval in await system.approvals():
                world.note("asked", approval.id, approval.tool, approval.arguments)
                await decided(approval.approve)
            if status.reason == "external paid":
                await decided(lambda: system.deliver(job.id, "paid", 7))
            await asyncio.sleep(30)
        await system.committer.wait_durable()
        return {
            "reply": await job,
            "actors": sorted([[each.kind, each.status, each.waiting] async for each in system.actors()]),
            "leftovers": await leftovers(system),
        }


async def leftovers(system: System) -> list[int]:
    reader: Any = system.store
    counts: list[int] = await reader._read(
        lambda connection: [
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("message", "journal", "record WHERE kind IN ('wait', 'alarm')")
        ]
    )
    return counts


def check(world: World, result: Any) -> None:
    notes = world.notes()
    assert result["leftovers"] == [0, 0, 0]
    asked = {(fact[3], fact[2]) for fact in notes if fact[1] == "asked"}
    assert len(asked) == 2, f"an approval has come back under another id: {asked}"
    begun: dict[tuple[str, str], list[int]] = {}
    for life, what, *facts in notes:
        if what == "begin":
            begun.setdefault((facts[0], facts[1]), []).append(life)
    assert sorted(name for _, name in begun) == ["refund", "refund", "ship"]
    for (turn, name), lives in begun.items():
        # Only what was in flight at the crash runs again, in the next life.
        assert len(lives) == len(set(lives)), f"{name} of {turn} began twice in one life: {lives}"


def test_chain_that_waits_ends_the_same_whenever_it_dies(tmp_path: Path) -> None:
    report = crash_at_every_point(workload, directory=tmp_path, check=check, again=30, seed=7)

    assert report.result["reply"] == "o, refunded o, 7, refunded o by hand"
    assert report.result["actors"] == [
        ["order", "active", 0],
        ["support", "active", 0],
        ["tool:refund", "active", 0],
    ]
    assert report.crashes >= report.runs >= 60
