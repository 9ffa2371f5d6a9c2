"""Why an answer stopped, row by row: what becomes of it, whether its tools run, and what bounds it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.actors.agents.test_memory import check_calls_closed, open_at, results
from tests.actors.turns.world import World, dying, world
from understudy import (
    ActorSuspended,
    Agent,
    HandlerFailed,
    LimitExceeded,
    MalformedOutput,
    Policy,
    SystemFailed,
    amend,
    dead_letter,
    escalate,
    handler,
    on,
    remind_format,
    retry,
    suspend,
    tool,
)
from understudy.events import Amended
from understudy.supervisor.backoff import Backoff
from understudy.testing import (
    Answer,
    FakeAnthropic,
    FakeRequest,
    calls,
    cut_by_max_tokens,
    says,
    stops,
    thinks,
    together,
)

pytestmark = pytest.mark.anyio


class Report(msgspec.Struct):
    title: str


@tool
async def look(what: str) -> str:
    """Look something up."""
    world().did.append(what)
    if world().seen.get("stop at") == what:
        await world().stop_at("looking")
    return f"about {what}"


class Chat(Agent[str], kind="chat"):
    model = "claude-haiku-4-5"
    tools = [look]


class Reporter(Agent[Report], kind="reporter"):
    model = "claude-haiku-4-5"
    tools = [look]


async def said(system: Any, cls: Any) -> list[str]:
    return [each.text for each in await system.actor(cls, "c").messages()]


async def test_answer_cut_by_max_tokens_is_asked_for_again_with_more_up_to_what_the_model_gives(tmp_path: Path) -> None:
    cut = cut_by_max_tokens("a long answer")

    async with (
        FakeAnthropic(cut, cut, cut, says("short")) as model,
        open_at(tmp_path, World(), model, Chat) as system,
    ):
        job = await system.actor(Chat, "c").run.submit("Hi")
        assert await job == "short"
        events = (await system.trace(job.id)).events
        conversation = await said(system, Chat)

    assert [request.body["max_tokens"] for request in model.requests] == [8_192, 32_768, 64_000, 64_000]
    assert [each.amendment for each in events if isinstance(each, Amended)] == [
        "more tokens", "more tokens", "remind_format",
    ]  # fmt: skip
    assert [len(request.messages) for request in model.requests] == [1, 1, 1, 3]
    assert "be shorter" in conversation[2]


async def test_endlessly_cut_answers_end_as_the_failure(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(lambda _request: cut_by_max_tokens("a long answer")) as model,
        open_at(tmp_path, World(), model, Chat) as system,
    ):
        with pytest.raises(MalformedOutput, match="cut off after 64000 tokens"):
            await system.actor(Chat, "c").run("Hi")

    assert model.calls == 6


async def test_tool_call_that_was_cut_is_never_run(tmp_path: Path) -> None:
    outside = World()
    whole = stops("max_tokens", together(calls(look, "whole"), says("and th")))

    async with (
        FakeAnthropic(whole, cut_by_max_tokens(calls(look, "half")), calls(look, "good"), says("done")) as model,
        open_at(tmp_path, outside, model, Chat) as system,
    ):
        await system.actor(Chat, "c").run("Hi")

    assert outside.did == ["good"]
    check_calls_closed(model.requests[-1])


async def test_greater_room_for_answers_survives_a_crash(tmp_path: Path) -> None:
    outside = World()

    async def answer(request: FakeRequest) -> Answer:
        if request.index == 0:
            return cut_by_max_tokens("a long answer")
        if request.index == 1:
            await outside.stop_at("second call")
        return says("done")

    async with FakeAnthropic(answer) as model:
        async with dying(open_at(tmp_path, outside, model, Chat)) as system:
            job = await system.actor(Chat, "c").run.submit("Hi")
            await outside.wait("second call")
        outside.open("second call")
        async with open_at(tmp_path, outside, model, Chat) as system:
            assert await system.job(job.id) == "done"
            events = (await system.trace(job.id)).events
            assert await said(system, Chat) == ["Hi", "done"]

    assert [request.body["max_tokens"] for request in model.requests] == [8_192, 32_768, 32_768]
    assert len([each for each in events if isinstance(each, Amended)]) == 1


async def test_greater_room_is_asked_for_once_however_often_the_turn_is_delivered(tmp_path: Path) -> None:
    outside = World()
    outside.fails["report"] = 2

    class Shaky(Chat, kind="shaky"):
        policy = Policy(on(ConnectionError, retry(times=2, backoff=Backoff(0.1))))

        @handler
        async def report(self) -> str:
            answer = await self.run("Hi")
            if world().should_fail("report"):
                raise ConnectionError
            return answer

    async with (
        FakeAnthropic(cut_by_max_tokens("a long answer"), calls(look, "a"), says("done")) as model,
        open_at(tmp_path, outside, model, Shaky) as system,
    ):
        job = await system.actor(Shaky, "c").report.submit()
        assert await job == "done"
        events = (await system.trace(job.id)).events
        assert await said(system, Shaky) == ["Hi", "about a", "done"]

    assert [request.body["max_tokens"] for request in model.requests] == [8_192, 32_768, 32_768]
    assert len([each for each in events if isinstance(each, Amended)]) == 1


async def test_paused_answers_go_back_as_they_are_and_only_so_often(tmp_path: Path) -> None:
    paused = stops("pause_turn", together(thinks("hm"), says("so far")))

    async with (
        FakeAnthropic(*[paused] * 20, paused, says("done")) as model,
        open_at(tmp_path, World(), model, Chat) as system,
    ):
        assert await system.actor(Chat, "c").run("Hi") == "done"

    assert model.requests[1].messages[-1]["role"] == "assistant"
    assert [block["type"] for block in model.requests[1].messages[-1]["content"]] == ["thinking", "text"]
    assert "paused more than 20 times" in str(model.requests[-1].messages[-1])


async def test_compaction_block_of_the_service_is_kept_and_the_model_goes_on(tmp_path: Path) -> None:
    block = Answer(blocks=({"type": "compaction", "content": "what was said"},), stop_reason="compaction")

    async with (
        FakeAnthropic(block, says("done"), says("again")) as model,
        open_at(tmp_path, World(), model, Chat) as system,
    ):
        assert await system.actor(Chat, "c").run("Hi") == "done"
        await system.actor(Chat, "c").run("And?")

    for request in list(model.requests)[1:]:
        assert request.messages[1] == {
            "role": "assistant", "content": [{"type": "compaction", "content": "what was said"}],
        }  # fmt: skip


async def test_stop_sequence_ends_an_answer(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(stops("stop_sequence", says("done"))) as model,
        open_at(tmp_path, World(), model, Chat) as system,
    ):
        assert await system.actor(Chat, "c").run("Hi") == "done"


async def test_tool_use_without_calls_is_mended(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(stops("tool_use", says("let me")), says("done")) as model,
        open_at(tmp_path, World(), model, Chat) as system,
    ):
        assert await system.actor(Chat, "c").run("Hi") == "done"

    assert "announced tool calls but holds none" in str(model.requests[-1].messages[-1])


async def test_reason_that_nobody_knows_runs_no_tool_and_is_mended(tmp_path: Path) -> None:
    outside = World()

    async with (
        FakeAnthropic(stops("cosmic_rays", calls(look, "never")), says("done")) as model,
        open_at(tmp_path, outside, model, Chat) as system,
    ):
        assert await system.actor(Chat, "c").run("Hi") == "done"

    assert outside.did == []
    assert "cosmic_rays" in str(model.requests[-1].messages)
    assert [is_error for _, is_error in results(model.requests[-1])] == [True]
    check_calls_closed(model.requests[-1])


async def test_limit_of_steps_says_what_to_do(tmp_path: Path) -> None:
    class Short(Chat, kind="short"):
        max_steps = 2

    async with (
        FakeAnthropic(calls(look, "a"), calls(look, "b"), says("c")) as model,
        open_at(tmp_path, World(), model, Short) as system,
    ):
        with pytest.raises(LimitExceeded, match=r"raise Short\.max_steps") as raised:
            await system.actor(Short, "c").run("Hi")
        assert await system.actor(Short, "c").run("Go on") == "c"

    assert (raised.value.limit, raised.value.value_max) == ("max_steps", 2)
    assert len(results(model.requests[-1])) == 2


async def test_fence_around_the_json_of_an_answer_is_no_fault(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(says('```json\n{"title": "t"}\n```')) as model,
        open_at(tmp_path, World(), model, Reporter) as system,
    ):
        assert await system.actor(Reporter, "c").run("Hi") == Report("t")


# --- held by a wrong answer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lives", [1, 2])
async def test_agent_held_by_a_malformed_answer_asks_anew_when_it_is_resumed(tmp_path: Path, lives: int) -> None:
    class Held(Reporter, kind="held"):
        call_policy = Policy(on(MalformedOutput, amend(remind_format), suspend()))

    async with FakeAnthropic(says("no"), says("nor this"), says("never"), says("no!"), says(Report("t"))) as model:
        async with open_at(tmp_path, World(), model, Held) as system:
            job = await system.actor(Held, "c").run.submit("Hi")
            with pytest.raises(ActorSuspended):
                await job
            if lives == 1:
                await system.resume(system.actor(Held, "c"))
                with pytest.raises(ActorSuspended):
                    await job
        async with open_at(tmp_path, World(), model, Held) as system:
            if lives == 2:
                await system.resume(system.actor(Held, "c"))
                with pytest.raises(ActorSuspended):
                    await system.job(job.id)
            await system.resume(system.actor(Held, "c"))
            assert await system.job(job.id) == {"title": "t"}
            texts = await said(system, Held)

    assert model.calls == 5
    # A person who lets it go on begins the ladder anew; what was wrong then is not part of the conversation.
    assert [len(request.messages) for request in model.requests] == [1, 3, 3, 5, 5]
    assert texts[-1] == '{"title":"t"}'
    assert "nor this" not in texts


async def test_system_stopped_by_a_malformed_answer_asks_anew_when_it_is_started_again(tmp_path: Path) -> None:
    class Grave(Reporter, kind="grave"):
        call_policy = Policy(on(MalformedOutput, escalate()))

    async def live() -> None:
        async with open_at(tmp_path, World(), model, Grave) as system:
            await system.actor(Grave, "c").run.options(key="k")("Hi")

    async with FakeAnthropic(says("no"), says(Report("t"))) as model:
        with pytest.raises(SystemFailed):
            await live()
        async with open_at(tmp_path, World(), model, Grave) as system:
            assert await system.actor(Grave, "c").run.options(key="k")("Hi") == Report("t")


@pytest.mark.parametrize("rules", ["used up", "given up"])
async def test_agent_asks_anew_when_a_dead_letter_of_malformed_answers_is_delivered_again(
    tmp_path: Path, rules: str
) -> None:
    class Wrong(Reporter, kind="wrong"):
        call_policy = Policy(
            on(MalformedOutput, amend(remind_format), dead_letter())
            if rules == "given up"
            else on(MalformedOutput, amend(remind_format))
        )

    async with (
        FakeAnthropic(says("no"), says("no again"), says(Report("t"))) as model,
        open_at(tmp_path, World(), model, Wrong) as system,
    ):
        with pytest.raises((MalformedOutput, HandlerFailed)):
            await system.actor(Wrong, "c").run("Hi")
        (letter,) = [each async for each in system.dead_letters()]
        await system.redeliver(letter.id)
        await asyncio.sleep(60)
        texts = await said(system, Wrong)

    assert model.calls == 3
    assert texts[-1] == '{"title":"t"}'


async def test_malformed_answer_that_the_handler_has_caught_is_no_other_one_after_a_crash(tmp_path: Path) -> None:
    outside = World()

    class Catching(Reporter, kind="catching"):
        call_policy = Policy()

        @handler
        async def report(self) -> str:
            try:
                await self.run("Hi")
            except MalformedOutput as error:
                await look("after")
                return str(error)
            return ""

    async with FakeAnthropic(says("no"), says(Report("never"))) as model:
        async with dying(open_at(tmp_path, outside, model, Catching)) as system:
            outside.seen["stop at"] = "after"
            job = await system.actor(Catching, "c").report.submit()
            await outside.wait("looking")
        outside.open("looking")
        async with open_at(tmp_path, outside, model, Catching) as system:
            assert "the answer is not a Report" in await system.job(job.id)

    assert model.calls == 1
