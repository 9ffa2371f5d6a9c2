"""Agents of one system on several providers: each model's calls go to the endpoint that serves it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from understudy import Agent, Overloaded, Policy, System, amend, on, switch_model, tool
from understudy.events import ModelCalled
from understudy.testing import FakeAnthropic, FakeOpenAI, calls, fails, says, thinks, together

pytestmark = pytest.mark.anyio


class Report(msgspec.Struct):
    title: str


@tool
async def look_up(word: str) -> str:
    """What a word means."""
    return f"{word}: a part"


class OnClaude(Agent[Report], kind="on_claude"):
    model = "claude-sonnet-5-5"
    tools = [look_up]


class OnGpt(Agent[Report], kind="on_gpt"):
    model = "gpt-5.5"
    tools = [look_up]


class Moving(Agent[str], kind="moving"):
    model = "claude-sonnet-5-5"
    tools = [look_up]
    call_policy = Policy(on(Overloaded, amend(switch_model("gpt-5.5"))))


async def test_two_endpoints_serve_a_system_each_its_own_models(tmp_path: Path) -> None:
    script = [calls(look_up, "actor"), says(Report("t"))]

    async with (
        FakeAnthropic(*script) as claude,
        FakeOpenAI(*script) as gpt,
        System(
            tmp_path / "a.db",
            [OnClaude, OnGpt],
            endpoints=[claude.endpoint(models=["claude-*"]), gpt.endpoint(models=["gpt-*"])],
        ) as system,
    ):
        assert await system.actor(OnClaude, "a").run("What is an actor?") == Report("t")
        job = await system.actor(OnGpt, "a").run.submit("What is an actor?")
        assert await job == Report("t")
        trace = await system.trace(job.id)

    assert {request.model for request in claude.requests} == {"claude-sonnet-5-5"}
    assert {request.model for request in gpt.requests} == {"gpt-5.5"}
    assert gpt.requests[1].messages[-1]["content"] == "actor: a part"
    called = [event for event in trace.events if isinstance(event, ModelCalled)]
    assert [event.input_tokens for event in called] == [paid.input_tokens for paid in gpt.paid]
    assert [event.usd_micros for event in called] == [None, None]  # Nobody has told what this model costs.


async def test_a_conversation_with_thinking_and_tools_moves_to_another_provider(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(together(thinks("hm"), says("I look it up."), calls(look_up, "actor")), fails(529)) as claude,
        FakeOpenAI(says("A part.")) as gpt,
        System(
            tmp_path / "a.db",
            [Moving],
            endpoints=[claude.endpoint(models=["claude-*"]), gpt.endpoint(models=["gpt-*"])],
        ) as system,
    ):
        assert await system.actor(Moving, "a").run("What is an actor?") == "A part."

    question, answer, result = gpt.requests[0].messages
    assert (question["role"], question["content"]) == ("user", "What is an actor?")
    assert answer["content"] == "I look it up."
    assert result["tool_call_id"] == answer["tool_calls"][0]["id"]
    assert "hm" not in str(gpt.requests[0].messages)
