"""What the model hears of tools that fail, that do not exist, or of which nobody knows whether they ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.actors.agents.test_memory import check_calls_closed, open_at, results
from tests.actors.turns.world import World, dying, world
from understudy import Agent, LimitExceeded, current_turn, tool
from understudy.testing import FakeAnthropic, broken_tool_json, calls, says, together

pytestmark = pytest.mark.anyio


@tool(interrupted="fail")
async def transfer(cents: int) -> str:
    """Transfer money."""
    world().did.append(f"transfer {current_turn().id}")
    await world().stop_at("transferring")
    return "transferred"


@tool
async def book(room: str) -> str:
    """Book a room."""
    world().did.append((current_turn().id, current_turn().uuid()))
    await world().stop_at("booking")
    return "booked"


@tool
async def look(what: str) -> str:
    """Look something up."""
    world().did.append(what)
    return "x"


class Clerk(Agent[str], kind="clerk"):
    model = "claude-sonnet-5-5"
    tools = [transfer, book, look]
    max_steps = 4


async def test_model_is_told_in_words_that_nobody_knows_whether_a_tool_ran(tmp_path: Path) -> None:
    outside = World()

    async with FakeAnthropic(calls(transfer, 5), says("I do not know")) as model:
        async with dying(open_at(tmp_path, outside, model, Clerk)) as system:
            job = await system.actor(Clerk, "c").run.submit("Pay")
            await outside.wait("transferring")
        outside.open("transferring")
        async with open_at(tmp_path, outside, model, Clerk) as system:
            assert await system.job(job.id) == "I do not know"

    ((told, is_error),) = results(model.requests[-1])
    assert is_error
    assert "OutcomeUnknown" in told
    assert "nobody knows" in told
    assert len(outside.did) == 1


async def test_turn_of_a_tool_has_one_id_in_every_life(tmp_path: Path) -> None:
    outside = World()

    async with FakeAnthropic(calls(book, "blue"), says("done")) as model:
        async with dying(open_at(tmp_path, outside, model, Clerk)) as system:
            job = await system.actor(Clerk, "c").run.submit("Book")
            await outside.wait("booking")
        outside.open("booking")
        async with open_at(tmp_path, outside, model, Clerk) as system:
            assert await system.job(job.id) == "done"

    assert len(outside.did) == 2
    assert outside.did[0] == outside.did[1]
    assert results(model.requests[-1]) == [("booked", False)]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (calls("loook", what="a"), "There is no tool 'loook'. Tools: transfer, book, look."),
        (calls("look", wat="a"), "wrong arguments for look"),
        (calls("look", what=5), "It takes: what."),
        (broken_tool_json("look", '{"what": a'), 'not valid JSON: {"what": a'),
    ],
    ids=["unknown tool", "unknown argument", "wrong type", "malformed JSON"],
)
async def test_wrong_call_is_told_to_the_model_and_bounded_by_max_steps(tmp_path: Path, wrong: Any, told: str) -> None:
    outside = World()

    async with (
        FakeAnthropic(wrong, together(wrong, calls(look, "a")), wrong, wrong) as model,
        open_at(tmp_path, outside, model, Clerk) as system,
    ):
        with pytest.raises(LimitExceeded, match="max_steps"):
            await system.actor(Clerk, "c").run("Go")
        said = [each.text for each in await system.actor(Clerk, "c").messages() if each.role == "tool"]

    assert outside.did == ["a"]
    assert sum(told in text for text in said) == 4
    assert all(is_error == (text != "x") for text, is_error in results(model.requests[-1]))
    check_calls_closed(model.requests[-1])
