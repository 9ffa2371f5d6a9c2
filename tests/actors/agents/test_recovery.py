"""What an agent's `call_policy` does about failures: the default ladder, example by example, each told by the trace."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.actors.agents.test_memory import check_calls_closed, open_at, results
from tests.actors.turns.world import World, dying, world
from understudy import (
    Actor,
    ActorSuspended,
    Agent,
    AuthenticationFailed,
    Backoff,
    ContextOverflow,
    Endpoint,
    HandlerFailed,
    MalformedOutput,
    ModelRequest,
    Policy,
    RateLimited,
    RequestRejected,
    System,
    SystemFailed,
    ToolFailed,
    Trace,
    amend,
    compact,
    dead_letter,
    disable_tool,
    handler,
    on,
    remind_format,
    restart,
    retry,
    step,
    suspend,
    switch_model,
    tool,
)
from understudy.endpoint.model import ChatMessage, Text
from understudy.events import Amended, ModelCalled, StepFinished, TurnFailed
from understudy.testing import Answer, FakeAnthropic, FakeRequest, calls, fails, says, stops, together
from understudy.trace.render import to_text

pytestmark = pytest.mark.anyio

TOO_LONG = "prompt is too long: 210000 tokens > 200000 maximum"
SUMMARY = "[Summary"


class Report(msgspec.Struct):
    title: str


class Refusal(Exception):
    pass


@tool
async def search(query: str) -> str:
    """Search the corpus."""
    outside = world()
    outside.did.append(query)
    outside.seen.setdefault("at", []).append(asyncio.get_running_loop().time())
    if outside.should_fail("search"):
        raise OSError(f"the index of {query} is away")
    if outside.seen.get("stop at") == query:
        await outside.stop_at("searching")
    words: int = outside.seen.get("words", 1)
    return f"about {query}: " + "word " * words


@tool(raises=[Refusal])
async def refuse(query: str) -> str:
    """Refuse."""
    world().did.append(query)
    raise Refusal(query)


class Researcher(Agent[Report], kind="researcher"):
    model = "claude-sonnet-5-5"
    instructions = "Answer from the corpus."
    tools = [search, refuse]


DONE = says(Report("t"))


def agent(call_policy: Policy, **settings: Any) -> Any:
    """Return a researcher with these rules."""
    rules = call_policy

    class Careful(Researcher, kind="careful"):
        call_policy = rules
        model = settings.get("model", "claude-sonnet-5-5")
        policy = settings.get("policy", Researcher.policy)

    return Careful


def offered(request: FakeRequest) -> list[str]:
    return [each["name"] for each in request.tools]


def texts(request: FakeRequest) -> list[str]:
    """The text blocks of a request, in order."""
    found: list[str] = []
    for message in request.messages:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found += [block["text"] for block in blocks if block["type"] == "text"]
    return found


def booked(events: Any) -> list[tuple[str | None, str, str]]:
    return [(each.error, each.decision, each.reason) for each in events if isinstance(each, ModelCalled)]


def judged(events: Any, role: str) -> list[tuple[int, str, str]]:
    found = [each for each in events if isinstance(each, StepFinished) and each.role == role]
    return [(each.attempt, each.decision, each.reason) for each in found]


def amended(events: Any) -> list[tuple[str, str]]:
    return [(each.amendment, each.reason) for each in events if isinstance(each, Amended)]


def one_line(trace: Trace) -> str:
    """The drawing of a trace on a page so wide that nothing is cut."""
    return " ".join(to_text(trace, 2_000).split())


# --- rate limit ---------------------------------------------------------------------------------------------------------


async def test_rate_limit_is_waited_out_as_long_as_the_service_asks(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    async with (
        FakeAnthropic(fails(429, retry_after_s=120), fails(429, retry_after_s=30), DONE) as model,
        open_at(tmp_path, World(), model, Researcher) as system,
    ):
        job = await system.actor(Researcher, "q").run.submit("What?")
        assert await job == Report("t")
        took_s = loop.time() - began_s
        trace = await system.trace(job.id)

    assert 150 <= took_s < 160
    assert booked(trace.events) == [
        ("RateLimited", "retry", "RateLimited: retry 1 of 8"),
        ("RateLimited", "retry", "RateLimited: retry 2 of 8"),
        (None, "", ""),
    ]
    assert "FAILED rate limited, retry 1 of 8 in 2 min 0 s" in one_line(trace)


async def test_endless_rate_limit_ends_as_the_failure_after_eight_retries(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(*[fails(429)] * 9) as model,
        open_at(tmp_path, World(), model, Researcher) as system,
    ):
        job = await system.actor(Researcher, "q").run.submit("What?")
        with pytest.raises(RateLimited):
            await job
        trace = await system.trace(job.id)

    assert booked(trace.events)[-1] == ("RateLimited", "", "RateLimited: every reaction is used up")
    assert "every reaction is used up" in one_line(trace)


async def test_rate_limit_goes_on_at_the_same_rung_after_a_crash(tmp_path: Path) -> None:
    outside = World()
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    async with FakeAnthropic(fails(429, retry_after_s=600), fails(429, retry_after_s=600), DONE) as model:
        async with dying(open_at(tmp_path, outside, model, Researcher)) as system:
            job = await system.actor(Researcher, "q").run.submit("What?")
            await model.wait_calls(2)
            await asyncio.sleep(60)
        async with open_at(tmp_path, outside, model, Researcher) as again:
            assert await again.job(job.id) == {"title": "t"}
            events = (await again.trace(job.id)).events

    assert 1_199 <= loop.time() - began_s < 1_230
    assert [each.attempt for each in events if isinstance(each, ModelCalled)] == [1, 2, 3]


async def test_key_that_is_not_accepted_is_escalated(tmp_path: Path) -> None:
    with pytest.raises(SystemFailed):
        async with (
            FakeAnthropic(lambda _request: fails(401)) as model,
            open_at(tmp_path, World(), model, Researcher) as system,
        ):
            await system.actor(Researcher, "q").run("What?")


# --- context overflow ---------------------------------------------------------------------------------------------------


def answers_by_length(count_max: int, *script: Answer) -> Any:
    """Overflow while a request has more messages than that; summarise when asked to; else answer as the script says."""
    left = list(script)

    def answer(request: FakeRequest) -> Answer:
        if any("<conversation>" in text for text in texts(request)):
            return says("They asked; much was found.")
        if len(request.messages) > count_max:
            return fails(400, message=TOO_LONG)
        return left.pop(0)

    return answer


SEARCHES = [calls(search, name) for name in ("a", "b", "c")]


async def test_context_overflow_is_answered_with_a_shorter_history(tmp_path: Path) -> None:
    outside = World()
    outside.seen["words"] = 200

    async with (
        FakeAnthropic(answers_by_length(6, *SEARCHES, DONE)) as model,
        open_at(tmp_path, outside, model, Researcher) as system,
    ):
        job = await system.actor(Researcher, "q").run.submit("What is known?")
        assert await job == Report("t")
        trace = await system.trace(job.id)
        said = await system.actor(Researcher, "q").messages()

    shorter = model.requests[-1]
    assert texts(shorter)[0] == "What is known?"
    assert any(text.startswith(SUMMARY) for text in texts(shorter))
    assert len(shorter.messages) < 7
    check_calls_closed(shorter)
    assert booked(trace.events)[3:] == [
        (None, "", ""),  # the summary
        ("ContextOverflow", "amend", "ContextOverflow: amend compact 1 of 2"),
        (None, "", ""),
    ]
    assert amended(trace.events) == [("compact", "ContextOverflow: amend compact 1 of 2")]
    assert "amended: history summarised (1 of 2)" in one_line(trace)
    # What the agent remembers is the whole of it.
    assert [each.role for each in said] == ["user", "tool", "tool", "tool", "user", "assistant"]
    assert said[4].text.startswith(SUMMARY)


async def test_amended_request_is_the_base_of_the_calls_that_follow(tmp_path: Path) -> None:
    outside = World()
    outside.seen["words"] = 200
    script = [*SEARCHES, calls(search, "d"), DONE]

    async with (
        FakeAnthropic(answers_by_length(6, *script)) as model,
        open_at(tmp_path, outside, model, Researcher) as system,
    ):
        await system.actor(Researcher, "q").run("What is known?")

    before, after = model.requests[-2], model.requests[-1]
    assert after.messages[: len(before.messages)] == before.messages
    assert len(after.messages) == len(before.messages) + 2
    check_calls_closed(after)


async def test_amended_base_is_restored_after_a_crash_without_another_summary(tmp_path: Path) -> None:
    outside = World()
    outside.seen |= {"words": 200, "stop at": "d"}

    async with FakeAnthropic(answers_by_length(6, *SEARCHES, calls(search, "d"), DONE)) as model:
        async with dying(open_at(tmp_path, outside, model, Researcher)) as system:
            job = await system.actor(Researcher, "q").run.submit("What is known?")
            await outside.wait("searching")
            before = model.requests[-1]
        outside.open("searching")
        async with open_at(tmp_path, outside, model, Researcher) as again:
            assert await again.job(job.id) == {"title": "t"}
            events = (await again.trace(job.id)).events

    after = model.requests[-1]
    assert after.messages[: len(before.messages)] == before.messages
    assert sum("<conversation>" in text for request in model.requests for text in texts(request)) == 1
    assert len(amended(events)) == 1


async def test_summary_that_was_paid_is_not_paid_again_after_a_crash(tmp_path: Path) -> None:
    outside = World()
    outside.seen["words"] = 200
    asked = 0

    async def answer(request: FakeRequest) -> Answer:
        nonlocal asked
        if any("<conversation>" in text for text in texts(request)):
            asked += 1
            return says("much was found")
        if asked and not any(text.startswith(SUMMARY) for text in texts(request)):
            return fails(400, message=TOO_LONG)
        if asked:
            await outside.stop_at("amended call")
        answered: Answer = script(request)
        return answered

    script = answers_by_length(6, *SEARCHES, DONE)
    async with FakeAnthropic(answer) as model:
        async with dying(open_at(tmp_path, outside, model, Researcher)) as system:
            job = await system.actor(Researcher, "q").run.submit("What is known?")
            await outside.wait("amended call")
        outside.open("amended call")
        async with open_at(tmp_path, outside, model, Researcher) as again:
            assert await again.job(job.id) == {"title": "t"}

    assert asked == 1


async def test_overflow_of_a_single_prompt_stays_the_failure_and_says_why(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(fails(400, message=TOO_LONG)) as model,
        open_at(tmp_path, World(), model, Researcher) as system,
    ):
        job = await system.actor(Researcher, "q").run.submit("x" * 1_000)
        with pytest.raises(ContextOverflow, match="compact finds nothing to summarise"):
            await job
        drawn = one_line(await system.trace(job.id))

    assert "FAILED context overflow, amend compact 1 of 2, but compact failed" in drawn


# --- tools --------------------------------------------------------------------------------------------------------------


async def test_failed_tool_is_retried_three_times_and_then_disabled(tmp_path: Path) -> None:
    outside = World()
    outside.fails["search"] = 99

    async with (
        FakeAnthropic(calls(search, "a"), calls("search", query="b"), DONE) as model,
        open_at(tmp_path, outside, model, Researcher) as system,
    ):
        job = await system.actor(Researcher, "q").run.submit("What?")
        assert await job == Report("t")
        trace = await system.trace(job.id)

    assert outside.did == ["a"] * 4
    assert [offered(request) for request in model.requests] == [["search", "refuse"], ["refuse"], ["refuse"]]
    told = results(model.requests[-1])
    assert "the index of a is away" in told[0][0]
    assert "Tool search is not available any more: go on without it." in told[0][0]
    assert told[1] == ("Tool search is not available any more. Tools: refuse.", True)
    assert judged(trace.events, "tool") == [
        (1, "retry", "ToolFailed: retry 1 of 3"),
        (2, "retry", "ToolFailed: retry 2 of 3"),
        (3, "retry", "ToolFailed: retry 3 of 3"),
        (4, "amend", "ToolFailed: amend disable_tool 1 of 1"),
    ]
    drawn = one_line(trace)
    assert "FAILED ToolFailed, retry 3 of 3 in" in drawn
    assert "amended: tool disabled" in drawn


async def test_tool_that_recovers_stays(tmp_path: Path) -> None:
    outside = World()
    outside.fails["search"] = 2

    async with (
        FakeAnthropic(calls(search, "a"), DONE) as model,
        open_at(tmp_path, outside, model, Researcher) as system,
    ):
        await system.actor(Researcher, "q").run("What?")

    assert outside.did == ["a"] * 3
    assert "search" in offered(model.requests[-1])
    assert results(model.requests[-1]) == [("about a: word ", False)]


async def test_retries_of_a_tool_go_on_at_the_same_rung_after_a_crash(tmp_path: Path) -> None:
    outside = World()
    outside.fails["search"] = 99
    slowly = agent(
        Policy(on(ToolFailed, retry(times=3, backoff=Backoff(600.0, max_s=600.0, jitter=0.0)), amend(disable_tool)))
    )

    async with FakeAnthropic(calls(search, "a"), calls(refuse, "b"), DONE) as model:
        async with dying(open_at(tmp_path, outside, model, slowly)) as system:
            job = await system.actor(slowly, "q").run.submit("What?")
            while len(outside.did) < 2:
                await asyncio.sleep(60)
        async with open_at(tmp_path, outside, model, slowly) as again:
            assert await again.job(job.id) == {"title": "t"}
            events = (await again.trace(job.id)).events

    assert outside.did == ["a"] * 4 + ["b"]
    gaps = [later - sooner for sooner, later in zip(outside.seen["at"], outside.seen["at"][1:], strict=False)]
    assert [round(gap / 10) for gap in gaps] == [60, 60, 60]
    assert [number for number, _, _ in judged(events, "tool")] == [1, 2, 3, 4]
    assert offered(model.requests[-1]) == ["refuse"]


async def test_disabled_tool_stays_disabled_after_a_crash(tmp_path: Path) -> None:
    outside = World()
    outside.fails["search"] = 4

    async def answer(request: FakeRequest) -> Answer:
        if request.index == 0:
            return calls(search, "a")
        await outside.stop_at("second call")
        return DONE

    async with FakeAnthropic(answer) as model:
        async with dying(open_at(tmp_path, outside, model, Researcher)) as system:
            job = await system.actor(Researcher, "q").run.submit("What?")
            await outside.wait("second call")
        outside.open("second call")
        async with open_at(tmp_path, outside, model, Researcher) as again:
            await again.job(job.id)
            events = (await again.trace(job.id)).events

    assert [offered(request) for request in model.requests][1:] == [["refuse"], ["refuse"]]
    assert len(amended(events)) == 1
    assert len(outside.did) == 4


async def test_declared_error_of_a_tool_goes_to_the_model_at_once(tmp_path: Path) -> None:
    outside = World()

    async with (
        FakeAnthropic(calls(refuse, "a"), DONE) as model,
        open_at(tmp_path, outside, model, Researcher) as system,
    ):
        await system.actor(Researcher, "q").run("What?")

    assert outside.did == ["a"]
    assert results(model.requests[-1]) == [("Refusal: a", True)]


async def test_without_a_rule_the_model_hears_of_a_failed_tool_at_once(tmp_path: Path) -> None:
    outside = World()
    outside.fails["search"] = 1
    bare = agent(Policy())

    async with (
        FakeAnthropic(calls(search, "a"), DONE) as model,
        open_at(tmp_path, outside, model, bare) as system,
    ):
        await system.actor(bare, "q").run("What?")

    assert outside.did == ["a"]
    assert "the index of a is away" in results(model.requests[-1])[0][0]


async def test_two_tools_that_fail_side_by_side_are_both_disabled(tmp_path: Path) -> None:
    outside = World()
    outside.fails["search"] = 99

    @tool
    async def fetch(url: str) -> str:
        """Fetch a page."""
        raise OSError("no network")

    class Both(Agent[str], kind="both"):
        model = "claude-sonnet-5-5"
        tools = [search, fetch, refuse]

    async with (
        FakeAnthropic(together(calls(search, "a"), calls(fetch, "b")), says("so be it")) as model,
        open_at(tmp_path, outside, model, Both) as system,
    ):
        await system.actor(Both, "q").run("What?")

    assert offered(model.requests[-1]) == ["refuse"]
    assert len(results(model.requests[-1])) == 2


async def test_tool_failure_may_suspend_the_agent_and_is_asked_again_when_it_is_resumed(tmp_path: Path) -> None:
    outside = World()
    outside.fails["search"] = 1
    holding = agent(Policy(on(ToolFailed, suspend())))

    async with (
        FakeAnthropic(calls(search, "a"), DONE) as model,
        open_at(tmp_path, outside, model, holding) as system,
    ):
        job = await system.actor(holding, "q").run.submit("What?")
        with pytest.raises(ActorSuspended, match="the index of a is away"):
            await job
        await system.resume(system.actor(holding, "q"))
        assert await job == Report("t")

    assert outside.did == ["a", "a"]
    assert len(model.paid) == 2


# --- malformed output ---------------------------------------------------------------------------------------------------


async def test_malformed_output_gets_up_to_three_reminders_of_the_format(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(says("no json"), says({"titel": 1}), says("[]"), DONE) as model,
        open_at(tmp_path, World(), model, Researcher) as system,
    ):
        job = await system.actor(Researcher, "q").run.submit("What?")
        assert await job == Report("t")
        trace = await system.trace(job.id)
        said = await system.actor(Researcher, "q").messages()

    assert [text.startswith("Your last answer could not be used") for text in texts(model.requests[-1])] == [
        False, False, True, False, True, False, True,
    ]  # fmt: skip
    assert judged(trace.events, "model") == [
        (1, "amend", "MalformedOutput: amend remind_format 1 of 3"),
        (1, "amend", "MalformedOutput: amend remind_format 2 of 3"),
        (1, "amend", "MalformedOutput: amend remind_format 3 of 3"),
    ]
    assert [each.attempt for each in trace.events if isinstance(each, ModelCalled)] == [1, 2, 3, 4]
    assert "amended: format reminder added (3 of 3)" in one_line(trace)
    assert len(said) == 8  # The reminders are part of the conversation.


async def test_fourth_malformed_answer_is_the_failure(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(*[says("never")] * 4) as model,
        open_at(tmp_path, World(), model, Researcher) as system,
    ):
        job = await system.actor(Researcher, "q").run.submit("What?")
        with pytest.raises(MalformedOutput, match="after 3 reminders"):
            await job
        said = await system.actor(Researcher, "q").messages()
        trace = await system.trace(job.id)

    assert sum("could not be used" in each.text for each in said) == 3
    assert "every reaction is used up" in one_line(trace)


async def test_reminder_is_given_once_whatever_crashes(tmp_path: Path) -> None:
    outside = World()

    async def answer(request: FakeRequest) -> Answer:
        if request.index < 2:
            return says("no json")
        await outside.stop_at("third call")
        return DONE

    async with FakeAnthropic(answer) as model:
        async with dying(open_at(tmp_path, outside, model, Researcher)) as system:
            job = await system.actor(Researcher, "q").run.submit("What?")
            await outside.wait("third call")
        outside.open("third call")
        async with open_at(tmp_path, outside, model, Researcher) as again:
            assert await again.job(job.id) == {"title": "t"}
            events = (await again.trace(job.id)).events

    before, after = list(model.requests)[-2:]
    assert before.messages == after.messages
    assert len(amended(events)) == 2


async def test_cancelled_run_remembers_its_reminders(tmp_path: Path) -> None:
    outside = World()

    async def answer(request: FakeRequest) -> Answer:
        if request.index == 1:
            await outside.stop_at("second call")
        return says("no json") if request.index < 2 else DONE

    async with (
        FakeAnthropic(answer) as model,
        open_at(tmp_path, outside, model, Researcher) as system,
    ):
        job = await system.actor(Researcher, "q").run.submit("What?")
        await outside.wait("second call")
        await job.cancel()
        said = [each.text for each in await system.actor(Researcher, "q").messages()]

    assert said[:2] == ["What?", "no json"]


async def test_malformed_answer_that_is_retried_is_not_part_of_the_conversation(tmp_path: Path) -> None:
    stubborn = agent(Policy(on(MalformedOutput, retry(times=2, backoff=Backoff(1.0)), amend(remind_format))))

    async with (
        FakeAnthropic(stops("tool_use", says("none")), says("no"), says("json"), DONE) as model,
        open_at(tmp_path, World(), model, stubborn) as system,
    ):
        job = await system.actor(stubborn, "q").run.submit("What?")
        assert await job == Report("t")
        said = [each.text for each in await system.actor(stubborn, "q").messages()]

    assert [len(request.messages) for request in model.requests] == [1, 1, 1, 3]
    assert [said[0], said[1]] == ["What?", "json"]
    check_calls_closed(model.requests[-1])


async def test_malformed_answer_that_restarts_the_turn_is_not_part_of_the_conversation(tmp_path: Path) -> None:
    anew = agent(Policy(on(MalformedOutput, restart(times=1, backoff=Backoff(1.0)), dead_letter())))

    async with (
        FakeAnthropic(says("no"), DONE) as model,
        open_at(tmp_path, World(), model, anew) as system,
    ):
        job = await system.actor(anew, "q").run.submit("What?")
        assert await job == Report("t")
        said = [each.text for each in await system.actor(anew, "q").messages()]

    assert [len(request.messages) for request in model.requests] == [1, 1]
    assert said == ["What?", '{"title":"t"}']


# --- anything else ------------------------------------------------------------------------------------------------------


async def test_unknown_exception_restarts_the_agent_and_is_then_a_dead_letter(tmp_path: Path) -> None:
    outside = World()

    class Shaky(Researcher, kind="shaky"):
        policy = Policy(on(Exception, restart(times=3, backoff=Backoff(0.2, max_s=10.0)), dead_letter()))

        @handler
        async def report(self) -> Report:
            found = await self.run("What?")
            world().did.append(self.turn.attempt)
            raise OSError("nobody knows")
            return found

    async with (
        FakeAnthropic(calls(search, "a"), DONE) as model,
        open_at(tmp_path, outside, model, Shaky) as system,
    ):
        job = await system.actor(Shaky, "q").report.submit()
        with pytest.raises(HandlerFailed, match="nobody knows") as raised:
            await job
        trace = await system.trace(job.id)
        letters = [each async for each in system.dead_letters()]

    assert outside.did == ["a", 1, 2, 3, 4]
    assert len(model.paid) == 2
    assert [each.reason for each in trace.events if isinstance(each, TurnFailed)] == [
        "OSError: restart 1 of 3",
        "OSError: restart 2 of 3",
        "OSError: restart 3 of 3",
        "OSError: given up",
    ]
    assert "FAILED OSError, restart 1 of 3 in" in one_line(trace)
    assert raised.value.dead_letter
    assert len(letters) == 1


# --- other amendments ---------------------------------------------------------------------------------------------------


async def test_run_goes_on_with_another_model(tmp_path: Path) -> None:
    moving = agent(Policy(on(RequestRejected, amend(switch_model("claude-haiku-5-5")))))

    def answer(request: FakeRequest) -> Answer:
        if request.model == "claude-sonnet-5-5" and request.index:
            return fails(400, message="not with this model")
        return DONE if request.index > 2 else calls(search, "a")

    async with (
        FakeAnthropic(answer) as model,
        open_at(tmp_path, World(), model, moving) as system,
    ):
        job = await system.actor(moving, "q").run.submit("What?")
        await job
        drawn = one_line(await system.trace(job.id))

    assert [request.model for request in model.requests] == [
        "claude-sonnet-5-5", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-haiku-5-5",
    ]  # fmt: skip
    assert "amended: switch model('claude-haiku-5-5')" in drawn


async def test_model_that_nobody_serves_is_no_amendment(tmp_path: Path) -> None:
    moving = agent(Policy(on(RequestRejected, amend(switch_model("gpt-99")))))

    async with FakeAnthropic(fails(400, message="not with this model")) as model:
        endpoint: Endpoint = model.endpoint(models=["claude-*"])
        async with System(tmp_path / "a.db", [moving], endpoints=[endpoint]) as system:
            with pytest.raises(RequestRejected, match="no endpoint serves model 'gpt-99'"):
                await system.actor(moving, "q").run("What?")


def nudge(request: ModelRequest, failure: Exception) -> ModelRequest:
    """Append a message."""
    said = ChatMessage("user", [Text(f"Mind: {type(failure).__name__}")])
    return msgspec.structs.replace(request, messages=[*request.messages, said])


async def test_message_that_an_amendment_appends_is_part_of_the_conversation(tmp_path: Path) -> None:
    nudging = agent(Policy(on(RequestRejected, amend(nudge))))

    async with (
        FakeAnthropic(fails(400, message="bad"), DONE, DONE) as model,
        open_at(tmp_path, World(), model, nudging) as system,
    ):
        await system.actor(nudging, "q").run("What?")
        await system.actor(nudging, "q").run("And?")

    assert texts(model.requests[1]) == ["What?", "Mind: RequestRejected"]
    assert texts(model.requests[2]) == ["What?", "Mind: RequestRejected", '{"title":"t"}', "And?"]


async def test_message_appended_for_a_tool_follows_the_results(tmp_path: Path) -> None:
    outside = World()
    outside.fails["search"] = 1
    nudging = agent(Policy(on(ToolFailed, amend(nudge))))

    async with (
        FakeAnthropic(calls(search, "a"), DONE) as model,
        open_at(tmp_path, outside, model, nudging) as system,
    ):
        await system.actor(nudging, "q").run("What?")

    check_calls_closed(model.requests[-1])
    assert texts(model.requests[-1])[-1] == "Mind: ToolFailed"


async def test_cancelled_run_remembers_the_message_appended_for_a_tool(tmp_path: Path) -> None:
    outside = World()
    outside.fails["search"] = 1
    nudging = agent(Policy(on(ToolFailed, amend(nudge))))

    async def answer(request: FakeRequest) -> Answer:
        if request.index == 1:
            await outside.stop_at("second call")
        return DONE if request.index else calls(search, "a")

    async with (
        FakeAnthropic(answer) as model,
        open_at(tmp_path, outside, model, nudging) as system,
    ):
        job = await system.actor(nudging, "q").run.submit("What?")
        await outside.wait("second call")
        asked = texts(model.requests[-1])
        await job.cancel()
        said = await system.actor(nudging, "q").messages()

    assert asked == ["What?", "Mind: ToolFailed"]
    assert [each.text for each in said if each.role == "user"][:2] == asked


@step
async def flaky() -> str:
    world().did.append("flaky")
    if world().should_fail("flaky"):
        raise OSError("away")
    return "ok"


async def test_default_rules_leave_other_failures_of_steps_to_the_handler(tmp_path: Path) -> None:
    outside = World()
    outside.fails["flaky"] = 1

    class Stepping(Researcher, kind="stepping"):
        @handler
        async def go(self) -> str:
            try:
                return await flaky()
            except Exception as error:
                return type(error).__name__

    class Plain(Actor, kind="plain"):
        call_policy = Policy(on(AuthenticationFailed, dead_letter()))

    async with (
        FakeAnthropic() as model,
        open_at(tmp_path, outside, model, Stepping, Plain) as system,
    ):
        assert await system.actor(Stepping, "q").go() == "StepFailed"

    assert outside.did == ["flaky"]


def test_amendments_are_functions_of_their_own(tmp_path: Path) -> None:
    request = ModelRequest("m", [ChatMessage("user", [Text("hi")])])

    reminded = remind_format(request, MalformedOutput("no JSON"))

    assert reminded.messages[:1] == request.messages
    assert "no JSON" in msgspec.json.encode(reminded.messages[1]).decode()
    assert compact.__name__ == "compact"
