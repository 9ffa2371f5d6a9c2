"""A conversation that was summarised stays shorter: for later runs, after restarts, in memory. Nothing is rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.actors.agents.test_memory import check_calls_closed, open_at
from tests.actors.turns.world import World, dying, world
from understudy import Agent, ContextOverflow, ModelRequest, Policy, amend, compact, on, switch_model, tool
from understudy.actors import changes
from understudy.actors.changes import Changes
from understudy.actors.ladder import Rungs
from understudy.endpoint.amendments import SUMMARY
from understudy.endpoint.model import ChatMessage, Text, ToolCall, ToolResult, append_message
from understudy.endpoint.windows import WINDOWS, estimated_tokens, is_near, window_of
from understudy.events import Amended
from understudy.supervisor.policy import Past
from understudy.testing import Answer, FakeAnthropic, FakeRequest, calls, fails, says, stops, together

pytestmark = pytest.mark.anyio

TOO_LONG = "prompt is too long: 210000 tokens > 200000 maximum"


@tool
async def look(what: str) -> str:
    """Look something up."""
    world().did.append(what)
    return f"{what}: " + "word " * 300


class Chat(Agent[str], kind="chat"):
    model = "claude-sonnet-5-5"
    tools = [look]


def asks_for_summary(request: FakeRequest) -> bool:
    return "<conversation>" in str(request.messages)


def texts(request: FakeRequest) -> list[str]:
    return [block.get("text", "") for message in request.messages for block in message["content"]]


def overflowing(length_max: int, *script: Answer) -> Any:
    """Overflow while a request's messages are longer than that; summarise when asked to; else as the script says."""
    left = list(script)

    def answer(request: FakeRequest) -> Answer:
        if asks_for_summary(request):
            return says("They looked things up.")
        if len(str(request.messages)) > length_max:
            return fails(400, message=TOO_LONG)
        return left.pop(0)

    return answer


LOOKS = [calls(look, name) for name in "abcd"]


async def test_later_runs_and_restarts_send_the_summary_and_what_was_kept(tmp_path: Path) -> None:
    outside = World()

    async with FakeAnthropic(overflowing(5_000, *LOOKS, says("done"), says("again"), says("and again"))) as model:
        async with open_at(tmp_path, outside, model, Chat) as system:
            await system.actor(Chat, "c").run("What is known?")
            await system.actor(Chat, "c").run("More?")
        async with open_at(tmp_path, outside, model, Chat) as system:
            await system.actor(Chat, "c").run("And more?")

    second, third = list(model.requests)[-2:]
    for request in (second, third):
        assert texts(request)[0] == "What is known?"
        assert texts(request)[1].startswith(SUMMARY)
        assert len(str(request.messages)) < 5_000
        check_calls_closed(request)
    assert third.messages[: len(second.messages)] == second.messages
    assert sum(map(asks_for_summary, model.requests)) == 1


async def test_people_still_read_the_whole_conversation(tmp_path: Path) -> None:
    outside = World()

    async with FakeAnthropic(overflowing(5_000, *LOOKS, says("done"), says("again"))) as model:
        async with open_at(tmp_path, outside, model, Chat) as system:
            await system.actor(Chat, "c").run("What is known?")
            before = await system.actor(Chat, "c").messages()
        async with open_at(tmp_path, outside, model, Chat) as system:
            after = await system.actor(Chat, "c").messages()

    assert before == after
    assert [each.text[:2] for each in after if each.role == "tool"] == ["a:", "b:", "c:", "d:"]
    assert sum(each.text.startswith(SUMMARY) for each in after) == 1


async def test_memory_holds_no_more_than_what_is_sent(tmp_path: Path) -> None:
    class Small(Chat, kind="small"):
        context_tokens = 4_000
        max_tokens = 1_000

    def answer(request: FakeRequest) -> Answer:
        if asks_for_summary(request):
            return says("They said much.")
        return says("word " * 200)

    async with FakeAnthropic(answer) as model, open_at(tmp_path, World(), model, Small) as system:
        small = system.actor(Small, "s")
        for number in range(60):
            await small.run(f"{number} " + "word " * 200)
        held = len(system.registry.type_of(Small).live["s"].state.log or ())
        said = await small.messages()

    assert held < 15
    assert sum(each.text[0].isdigit() for each in said) == 60
    assert max(len(request.messages) for request in model.requests) < 15


async def test_prompt_that_is_near_the_window_is_shortened_before_the_call(tmp_path: Path) -> None:
    class Small(Chat, kind="small"):
        context_tokens = 2_500
        max_tokens = 1_000

    script = [*LOOKS, says("done")]

    def answer(request: FakeRequest) -> Answer:
        return says("They looked.") if asks_for_summary(request) else script.pop(0)

    async with FakeAnthropic(answer) as model, open_at(tmp_path, World(), model, Small) as system:
        job = await system.actor(Small, "s").run.submit("What is known?")
        assert await job == "done"
        events = (await system.trace(job.id)).events

    told = [(each.amendment, each.reason) for each in events if isinstance(each, Amended)]
    assert told
    assert set(told) <= {
        ("compact", "ContextOverflow: amend compact 1 of 2"),
        ("compact", "ContextOverflow: amend compact 2 of 2"),
    }
    for request in model.requests:
        check_calls_closed(request)
    assert max(len(str(request.messages)) for request in model.requests if not asks_for_summary(request)) < 7_500


async def test_guess_that_cannot_be_shortened_is_sent_and_the_service_decides(tmp_path: Path) -> None:
    class Small(Chat, kind="small"):
        context_tokens = 200
        max_tokens = 100

    def answer(request: FakeRequest) -> Answer:
        if asks_for_summary(request):
            return says("no shorter " * 500)
        return calls(look, "a") if request.index == 2 else says("fine")

    async with FakeAnthropic(answer) as model, open_at(tmp_path, World(), model, Small) as system:
        assert await system.actor(Small, "s").run("word " * 200) == "fine"
        assert await system.actor(Small, "s").run("word " * 200) == "fine"

    # Tried once in a run, however many calls that makes.
    assert [asks_for_summary(request) for request in model.requests] == [False, True, False, False]


async def test_measuring_a_request_runs_no_code_of_the_user(tmp_path: Path) -> None:
    class Prompted(Chat, kind="prompted"):
        async def prompt(self) -> str:
            world().did.append("prompt")
            return "Be brief."

    outside = World()
    async with (
        FakeAnthropic(calls(look, "a"), says("fine")) as model,
        open_at(tmp_path, outside, model, Prompted) as system,
    ):
        await system.actor(Prompted, "p").run("Hi")

    assert outside.did == ["prompt", "a", "prompt"]


async def test_policy_without_a_rule_for_overflow_shortens_nothing_beforehand(tmp_path: Path) -> None:
    class Small(Chat, kind="small"):
        context_tokens = 200
        call_policy = Policy()

    async with (
        FakeAnthropic(says("fine"), says("fine")) as model,
        open_at(tmp_path, World(), model, Small) as system,
    ):
        await system.actor(Small, "s").run("word " * 200)
        assert await system.actor(Small, "s").run("word " * 200) == "fine"


async def test_window_that_is_full_is_answered_with_a_shorter_conversation(tmp_path: Path) -> None:
    full = stops("model_context_window_exceeded", together(says("half an ans"), calls(look, "never")))
    script = [*LOOKS, full, says("done")]

    def answer(request: FakeRequest) -> Answer:
        return says("They looked.") if asks_for_summary(request) else script.pop(0)

    outside = World()
    async with FakeAnthropic(answer) as model, open_at(tmp_path, outside, model, Chat) as system:
        job = await system.actor(Chat, "c").run.submit("What is known?")
        assert await job == "done"
        events = (await system.trace(job.id)).events
        said = [each.text for each in await system.actor(Chat, "c").messages()]

    last = model.requests[-1]
    assert any(text.startswith(SUMMARY) for text in texts(last))
    assert last.messages[-1]["role"] == "user"
    assert "half an ans" not in said
    assert outside.did == list("abcd")
    check_calls_closed(last)
    assert [each.reason for each in events if isinstance(each, Amended)] == ["ContextOverflow: amend compact 1 of 2"]


@pytest.mark.parametrize("point", ["summary", "call after it"])
async def test_crash_in_the_middle_of_a_compaction_repeats_nothing_that_was_finished(
    tmp_path: Path, point: str
) -> None:
    outside = World()
    script = [*LOOKS, says("done"), says("again")]

    async def answer(request: FakeRequest) -> Answer:
        if asks_for_summary(request):
            if point == "summary":
                await outside.stop_at(point)
            return says("They looked.")
        if len(str(request.messages)) > 5_000:
            return fails(400, message=TOO_LONG)
        if SUMMARY in str(request.messages) and point != "summary":
            await outside.stop_at(point)
        return script.pop(0)

    async with FakeAnthropic(answer) as model:
        async with dying(open_at(tmp_path, outside, model, Chat)) as system:
            job = await system.actor(Chat, "c").run.submit("What is known?")
            await outside.wait(point)
        outside.open(point)
        async with open_at(tmp_path, outside, model, Chat) as system:
            assert await system.job(job.id) == "done"
            assert await system.actor(Chat, "c").run("More?") == "again"
            said = await system.actor(Chat, "c").messages()

    digests = [paid.digest for paid in model.paid]
    assert len(digests) == len(set(digests))
    assert outside.did == list("abcd")
    assert sum(each.text.startswith(SUMMARY) for each in said) == 1
    check_calls_closed(model.requests[-1])
    assert texts(model.requests[-1])[1].startswith(SUMMARY)


async def test_cancelled_run_keeps_its_summary(tmp_path: Path) -> None:
    outside = World()
    script = overflowing(5_000, *LOOKS)

    async def answer(request: FakeRequest) -> Answer:
        if SUMMARY in str(request.messages):
            if not outside.reached("then"):
                await outside.stop_at("then")
            return says("fine")
        answered: Answer = script(request)
        return answered

    async with FakeAnthropic(answer) as model, open_at(tmp_path, outside, model, Chat) as system:
        job = await system.actor(Chat, "c").run.submit("What is known?")
        await outside.wait("then")
        await system.committer.wait_durable()
        await job.cancel()
        assert await system.actor(Chat, "c").run("And?") == "fine"

    assert texts(model.requests[-1])[1].startswith(SUMMARY)
    assert sum(map(asks_for_summary, model.requests)) == 1
    check_calls_closed(model.requests[-1])


async def test_model_switched_for_its_window_is_switched_before_the_call(tmp_path: Path) -> None:
    class Small(Chat, kind="small"):
        model = "claude-haiku-4-5"
        call_policy = Policy(on(ContextOverflow, amend(switch_model("claude-haiku-5-5")), amend(compact)))

    async with (
        FakeAnthropic(says("fine"), says("big")) as model,
        open_at(tmp_path, World(), model, Small) as system,
    ):
        await system.actor(Small, "s").run("Hi")
        assert await system.actor(Small, "s").run("word " * 130_000) == "big"

    assert [request.model for request in model.requests] == ["claude-haiku-4-5", "claude-haiku-5-5"]


# --- pure parts ---------------------------------------------------------------------------------------------------------


def user(text: str) -> ChatMessage:
    return ChatMessage("user", [Text(text)])


def called(id: str) -> list[ChatMessage]:
    return [ChatMessage("assistant", [ToolCall(id, "f", {})]), ChatMessage("user", [ToolResult(id, "x")])]


def test_summary_takes_the_place_of_what_it_stands_for() -> None:
    messages = [user("first"), *called("1"), *called("2"), user("last")]

    append_message(messages, summary := ChatMessage("user", [Text("s")], keeps=(1, 3)))

    assert messages == [user("first"), summary, *called("2"), user("last")]


@pytest.mark.parametrize("last", range(8))
def test_summary_made_of_another_conversation_parts_no_call_from_its_result(last: int) -> None:
    messages = [user("first"), *called("1"), *called("2"), user("last")]

    append_message(messages, ChatMessage("user", [Text("s")], keeps=(1, last)))

    for number, message in enumerate(messages):
        results = [block.call_id for block in message.content if isinstance(block, ToolResult)]
        before = messages[number - 1].content if number else []
        assert results == [block.id for block in before if isinstance(block, ToolCall)][: len(results)]


def test_entries_of_the_log_that_earlier_versions_wrote_are_read() -> None:
    # {"role": "user", "content": [{"type": "text", "text": "hi"}]}, as it was written before there were summaries.
    written = bytes.fromhex("82a4726f6c65a475736572a7636f6e74656e749182a474797065a474657874a474657874a26869")

    assert msgspec.msgpack.decode(written, type=Agent.log_entry) == user("hi")
    assert msgspec.msgpack.encode(user("hi")) == written


def test_ladders_and_changed_requests_that_earlier_versions_wrote_are_read() -> None:
    rungs = bytes.fromhex(
        "949192af436f6e746578744f766572666c6f7701cb0000000000000000cb0000000000000000c41182a776657273696f6e02a564726f7073c3"
    )

    read = msgspec.msgpack.decode(rungs, type=Rungs)

    assert (read.history, read.final) == ((Past("ContextOverflow", 1),), False)
    assert changes.read(read.amended) == Changes(version=2, drops=True)


def test_windows_are_found_by_dated_names_and_unknown_ones_are_not_guessed() -> None:
    assert window_of("claude-haiku-4-5-20251001") == WINDOWS["claude-haiku-4-5"]
    assert window_of("some-new-model").context_tokens is None


def test_estimate_is_rather_too_high_and_leaves_room_for_the_answer() -> None:
    request = ModelRequest("m", [user("word " * 3_000)], max_tokens=1_000)

    assert 4_000 < estimated_tokens(request) < 6_000
    assert is_near(request, 6_000)
    assert not is_near(request, 7_000)
    assert not is_near(request, None)
