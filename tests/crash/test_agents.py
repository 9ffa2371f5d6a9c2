"""An agent with tools, a shortened conversation and a fallback dies at every boundary, and ends like one that never died."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from understudy import (
    Agent,
    ContextOverflow,
    Endpoint,
    Overloaded,
    System,
    amend,
    compact,
    current_turn,
    on,
    retry,
    tool,
)
from understudy.endpoint.amendments import SUMMARY
from understudy.endpoint.model import ChatMessage, ModelAnswer, ModelRequest, Opaque, Text, ToolCall, ToolResult, Usage
from understudy.events import Amended, ModelCalled, StepFinished
from understudy.supervisor.backoff import Backoff
from understudy.supervisor.policy import Policy
from understudy.testing.crash import World, crash_at_every_point

pytestmark = pytest.mark.watchdog(240)

WINDOW_BYTES = 2_600


@tool
async def look(word: str) -> str:
    """Look a word up."""
    turn = current_turn()
    turn.resource(World).note("look", turn.id, word)
    await asyncio.sleep(0.05)
    return f"{word}: " + "much " * 60


class Clerk(Agent[str], kind="clerk"):
    model = ("first", "second")
    tools = [look]
    call_policy = Policy(
        on(Overloaded, retry(times=1, backoff=Backoff(0.5))),
        on(ContextOverflow, amend(compact, times=2)),
    )


class Scripted:
    """A model that looks two words up at a time, four times; one of them is overloaded from its third answer on."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def call(
        self, request: ModelRequest, *, on_text: Callable[[str], None] | None = None, on_allowance: Any = None
    ) -> ModelAnswer:
        await asyncio.sleep(0.05)
        check_valid(request)
        usage = Usage(input_tokens=10, output_tokens=10)
        if "<conversation>" in str(request.messages[0].content[0]):
            self.world.note("paid", "summary")
            return ModelAnswer("s", request.model, [Text("They looked words up.")], "end_turn", usage)
        size = sum(len(msgspec.msgpack.encode(message)) for message in request.messages)
        if size > WINDOW_BYTES:
            raise ContextOverflow("too long", sent=True, tokens=size, tokens_max=WINDOW_BYTES)
        results = [block for message in request.messages for block in message.content if isinstance(block, ToolResult)]
        newest = results[-1].call_id if results else "w0-0"
        number = int(newest[1:].partition("-")[0]) + 1
        if request.model == "first" and number == 3:
            raise Overloaded("busy", sent=True)
        self.world.note("paid", number)
        if number == 5:
            prompts = [message for message in request.messages if message.role == "user"]
            return ModelAnswer("e", request.model, [Text(f"done, {len(prompts)} asked")], "end_turn", usage)
        thought = Opaque("scripted", {"thinking": str(number)}, request.model)
        asked = [ToolCall(f"w{number}-{each}", "look", {"word": f"w{number}-{each}"}) for each in range(2)]
        return ModelAnswer(f"m{number}", request.model, [thought, *asked], "tool_use", usage)

    async def close(self) -> None:
        pass


def check_valid(request: ModelRequest) -> None:
    """Every tool call has exactly one result, in the very next message; the conversation begins with a user."""
    messages: list[ChatMessage] = request.messages
    assert messages[0].role == "user"
    assert messages[-1].role == "user"
    for number, message in enumerate(messages):
        asked = [block.id for block in message.content if isinstance(block, ToolCall)]
        following = messages[number + 1].content if number + 1 < len(messages) else []
        assert [block.call_id for block in following if isinstance(block, ToolResult)] == asked, messages


async def workload(world: World) -> dict[str, Any]:
    system = System(world.store(), [Clerk], endpoints=[Endpoint(Scripted(world))], resources=[world])
    async with system:
        clerk = system.actor(Clerk, "c")
        job = await clerk.run.options(key="question").submit("What is known?")
        answer = await job
        said = await clerk.messages()
        events = (await system.trace(job.id)).events
        finished = [(each.span, each.model) for each in events if isinstance(each, ModelCalled) and each.error is None]
        looked = [each.span for each in events if isinstance(each, StepFinished) and each.error is None]
        world.note("finished", finished, looked)
        return {
            "answer": answer,
            "said": [[message.role, message.text] for message in said],
            "amended": [each.amendment for each in events if isinstance(each, Amended)],
            "models": [model for _, model in finished],
        }


def check(world: World, result: Any) -> None:
    notes = world.notes()
    finished, looked = [note[2:] for note in notes if note[1] == "finished"][-1]
    spans = [span for span, _ in finished]
    assert len(spans) == len(set(spans)), f"model calls were paid again after they were journaled: {spans}"
    assert len(looked) == len(set(looked)), f"tools ran again after they were journaled: {looked}"
    lives = max(note[0] for note in notes)
    paid = Counter(str(note[2]) for note in notes if note[1] == "paid")
    assert all(count <= lives for count in paid.values()), paid
    assert sum(paid.values()) <= len(paid) + lives - 1, f"a crash loses the one answer that was under way: {paid}"
    # The same turn of the same tool each time it was delivered.
    turns = {(note[2], note[3]) for note in notes if note[1] == "look"}
    assert len(turns) == len({turn for turn, _ in turns}) == len({word for _, word in turns}) == 8
    # What is sent is short, what people read is whole.
    assert sum(text.startswith(SUMMARY) for _, text in result["said"]) == result["amended"].count("compact") >= 1
    assert [text.partition(":")[0] for role, text in result["said"] if role == "tool"] == [
        f"w{number}-{each}" for number in range(1, 5) for each in range(2)
    ]
    assert result["amended"].count("fallback second") == 1


def test_agent_that_dies_at_any_boundary_ends_like_one_that_never_died(tmp_path: Path) -> None:
    report = crash_at_every_point(workload, directory=tmp_path, check=check)

    assert report.crashes == len(report.boundaries) > 60
    bodies = [boundary.what for boundary in report.boundaries if boundary.kind == "body ended"]
    assert any("amendment" in what for what in bodies)
    assert set(report.result["models"]) == {"first", "second"}


def test_agent_that_dies_again_while_it_recovers_ends_like_one_that_never_died(tmp_path: Path, seed: int) -> None:
    report = crash_at_every_point(workload, directory=tmp_path, check=check, only=[], again=15, seed=seed)

    assert report.crashes >= 15
