"""What an agent's conversation holds when a run does not end well, and what a model was told once (rules 17, 20, 31)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.actors.turns.world import World, dying, world
from understudy import (
    Agent,
    HandlerFailed,
    InvalidArguments,
    Job,
    LimitExceeded,
    Limits,
    Policy,
    System,
    handler,
    on,
    retry,
    tool,
)
from understudy.supervisor.backoff import Backoff
from understudy.testing import FakeAnthropic, FakeRequest, FaultyStore, calls, says, stops, together

pytestmark = pytest.mark.anyio


@tool
async def charge_a(cents: int) -> str:
    """Charge with a."""
    world().did.append("a")
    if world().should_fail("a"):
        raise RuntimeError("declined by a")
    return "CHARGED"


@tool
async def charge_b(cents: int) -> str:
    """Charge with b."""
    world().did.append("b")
    await world().stop_at("b")
    return "CHARGED"


@tool
async def slow() -> str:
    """Takes for ever."""
    await world().stop_at("slow")
    return ""


def buyer(*tools_: Any) -> Any:
    class Buyer(Agent[str], kind="buyer"):
        model = "claude-sonnet-5-5"
        tools = tools_
        policy = Policy(on(ConnectionError, retry(times=2, backoff=Backoff(0.01))))
        call_policy = Policy()  # The model hears of every failure.

        @handler
        async def buy(self) -> str:
            answer = await self.run("Buy")
            if world().should_fail("buy"):
                raise ConnectionError
            return answer

    return Buyer


def open_at(path: Path, outside: World, model: FakeAnthropic, *classes: Any, limits: Limits | None = None) -> System:
    store = FaultyStore(path / "a.db", lock_wait_s=0.0)
    limits = limits or Limits(grace_s=0.05)
    return System(store, classes, endpoints=[model.endpoint()], resources=[outside], limits=limits)


def results(request: FakeRequest) -> list[tuple[str, bool]]:
    return [
        (str(block["content"]), bool(block.get("is_error")))
        for message in request.messages
        for block in message["content"]
        if block["type"] == "tool_result"
    ]


def check_calls_closed(request: FakeRequest) -> None:
    """Every tool call has exactly one result, in the very next message."""
    for number, message in enumerate(request.messages):
        asked = [block["id"] for block in message["content"] if block["type"] == "tool_use"]
        following: list[Any] = request.messages[number + 1]["content"] if number + 1 < len(request.messages) else []
        assert [block["tool_use_id"] for block in following if block["type"] == "tool_result"] == asked


async def test_failure_that_the_model_was_told_is_not_undone_by_a_retry(tmp_path: Path) -> None:
    outside = World()
    outside.fails["a"] = outside.fails["buy"] = 1
    outside.open("b")
    buying = buyer(charge_a, charge_b)

    async with (
        FakeAnthropic(calls(charge_a, 5), calls(charge_b, 5), says("with b")) as model,
        open_at(tmp_path, outside, model, buying) as system,
    ):
        assert await system.actor(buying, "x").buy() == "with b"
        said = [each.text for each in await system.actor(buying, "x").messages() if each.role == "tool"]

    assert outside.did == ["a", "b"]
    assert len(model.paid) == 3
    assert "declined by a" in said[0]
    assert said[1] == "CHARGED"


async def test_refusal_that_the_model_was_told_stays_one_after_a_crash(tmp_path: Path) -> None:
    outside = World()
    before, after = buyer(charge_b), buyer(charge_a, charge_b)

    async with FakeAnthropic(calls("charge_a", cents=5), calls(charge_b, 5), says("with b")) as model:
        async with dying(open_at(tmp_path, outside, model, before)) as system:
            job = await system.actor(before, "x").run.submit("Buy")
            await outside.wait("b")
        outside.open("b")
        async with open_at(tmp_path, outside, model, after) as again:
            assert await again.job(job.id) == "with b"

    assert "a" not in outside.did
    assert len(model.paid) == 3


async def test_result_is_told_as_it_was_and_no_tool_runs_again_after_a_crash(tmp_path: Path) -> None:
    outside = World()
    buying = buyer(charge_a, charge_b)

    async with FakeAnthropic(calls(charge_a, 5), calls(charge_b, 5), says("both")) as model:
        async with dying(open_at(tmp_path, outside, model, buying)) as system:
            job = await system.actor(buying, "x").run.submit("Buy")
            await outside.wait("b")
        outside.open("b")
        async with open_at(tmp_path, outside, model, buying) as again:
            await again.job(job.id)
            drawn = str(await again.trace(job.id))

    assert outside.did.count("a") == 1
    assert all("CHARGED" in text and not is_error for text, is_error in results(model.requests[-1]))
    assert len(results(model.requests[-1])) == 2
    assert "diverged" not in drawn


class Notes(msgspec.Struct):
    lines: list[str] = []


class Scribe(Agent[str, Notes], kind="scribe"):
    model = "claude-sonnet-5-5"

    @handler
    async def note(self, line: str) -> int:
        """Write a line into the notes."""
        self.state.lines.append(line)
        return len(self.state.lines)

    @handler
    async def lines(self) -> list[str]:
        return self.state.lines

    tools = [note, slow]


async def test_own_handler_as_a_tool_changes_the_state_also_when_the_turn_is_delivered_again(tmp_path: Path) -> None:
    outside = World()

    async with FakeAnthropic(calls("note", line="likes apples"), calls(slow), says("noted")) as model:
        async with dying(open_at(tmp_path, outside, model, Scribe)) as system:
            job = await system.actor(Scribe, "s").run.submit("Hi")
            await outside.wait("slow")
        outside.open("slow")
        async with open_at(tmp_path, outside, model, Scribe) as again:
            await again.job(job.id)
            assert await again.actor(Scribe, "s").lines() == ["likes apples"]


async def test_cancelled_run_remembers_what_its_finished_tools_did(tmp_path: Path) -> None:
    outside = World()
    buying = buyer(charge_a, slow)

    async with (
        FakeAnthropic(together(calls(charge_a, 5), calls(slow)), says("I charged")) as model,
        open_at(tmp_path, outside, model, buying) as system,
    ):
        agent = system.actor(buying, "x")
        job = await agent.run.submit("Buy")
        await outside.wait("slow")
        await system.committer.wait_durable()
        await job.cancel()
        await agent.run("What did you do?")

    told = results(model.requests[-1])
    assert "CHARGED" in told[0][0]
    assert not told[0][1]
    assert "nobody knows how far it got" in told[1][0]
    check_calls_closed(model.requests[-1])


@pytest.mark.parametrize("crashed", [False, True], ids=["shutdown", "crash"])
async def test_run_of_an_earlier_life_is_remembered_when_it_is_cancelled(tmp_path: Path, *, crashed: bool) -> None:
    outside = World()
    buying = buyer(charge_a, slow)

    async with FakeAnthropic(calls(charge_a, 5), calls(slow)) as model:
        first = open_at(tmp_path, outside, model, buying)
        async with dying(first) if crashed else first as system:
            job = await system.actor(buying, "x").run.submit("Buy")
            await outside.wait("slow")
        async with open_at(tmp_path, outside, model, buying) as again:
            await again.job(job.id).cancel()
            said = [(each.role, each.text) for each in await again.actor(buying, "x").messages()]

    assert said[0] == ("user", "Buy")
    assert said[1] == ("tool", "CHARGED")
    assert "nobody knows" in said[2][1]
    assert "it was cancelled" in said[3][1]


async def test_tool_calls_beside_a_final_answer_are_closed(tmp_path: Path) -> None:
    outside = World()
    buying = buyer(charge_a)

    async with (
        FakeAnthropic(stops("end_turn", together(says("hi"), calls(charge_a, 5))), says("ok")) as model,
        open_at(tmp_path, outside, model, buying) as system,
    ):
        assert await system.actor(buying, "x").run("One") == "hi"
        assert await system.actor(buying, "x").run("Two") == "ok"

    assert outside.did == []
    check_calls_closed(model.requests[-1])


class Twice(Agent[str], kind="twice"):
    model = "claude-sonnet-5-5"
    tools = [slow]

    @handler
    async def in_order(self) -> list[str]:
        return [await self.run("one"), await self.run("two")]

    @handler
    async def at_once(self) -> list[str]:
        return list(await asyncio.gather(self.run("one"), self.run("two")))

    @handler
    async def limited(self) -> str:
        try:
            async with asyncio.timeout(1):
                return await self.run("one")
        except TimeoutError:
            return await self.run("two")


async def test_second_run_of_a_turn_sees_the_first(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(says("1"), says("2")) as model,
        open_at(tmp_path, World(), model, Twice) as system,
    ):
        assert await system.actor(Twice, "x").in_order() == ["1", "2"]

    assert [message["role"] for message in model.requests[-1].messages] == ["user", "assistant", "user"]


async def test_two_runs_at_once_in_one_turn_are_refused(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(says("1"), says("2")) as model,
        open_at(tmp_path, World(), model, Twice) as system,
    ):
        with pytest.raises(InvalidArguments, match="runs already in this turn"):
            await system.actor(Twice, "x").at_once()


async def test_run_that_its_handler_ended_leaves_no_call_open(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(calls(slow), says("2")) as model,
        open_at(tmp_path, World(), model, Twice) as system,
    ):
        assert await system.actor(Twice, "x").limited() == "2"

    assert len(results(model.requests[-1])) == 1
    check_calls_closed(model.requests[-1])


class Thinker(Agent[str], kind="thinker"):
    model = "claude-sonnet-5-5"
    tools = [charge_a]

    async def prompt(self) -> str:
        if world().did:
            await world().stop_at(world().seen["life"])
        return ""


async def test_run_that_killed_the_process_too_often_is_remembered(tmp_path: Path) -> None:
    outside = World()
    limits = Limits(grace_s=0.05, crashes_max=1, crashes_alone=1)
    job: Job[str] | None = None

    async with FakeAnthropic(calls(charge_a, 5)) as model:
        for life in ("first", "second"):  # The first death came after journaled progress: it does not count.
            outside.seen["life"] = life
            async with dying(open_at(tmp_path, outside, model, Thinker, limits=limits)) as system:
                job = job or await system.actor(Thinker, "x").run.submit("Buy")
                await outside.wait(life)
        async with open_at(tmp_path, outside, model, Thinker, limits=limits) as last:
            assert job is not None
            with pytest.raises(HandlerFailed, match="died 1 times"):
                await last.job(job.id)
            said = [(each.role, each.text) for each in await last.actor(Thinker, "x").messages()]

    assert said[:2] == [("user", "Buy"), ("tool", "CHARGED")]
    assert "Crash" in said[2][1]


async def test_no_tool_call_outlives_its_run(tmp_path: Path) -> None:
    outside = World()

    class Tidy(Agent[str], kind="tidy"):
        model = "claude-sonnet-5-5"

        @handler
        async def note(self, word: str) -> str:
            """Note a word."""
            try:
                await world().stop_at("note")
            finally:
                for _ in range(9):
                    await asyncio.sleep(0)
                world().did.append("the note is closed")
            return ""

        tools = (note, slow)

        @handler
        async def report(self) -> str:
            try:
                return await self.run("Go")
            except LimitExceeded:
                world().did.append("the run has ended")
                return "too much"

    # The prompt, the answer and the first result are three steps already.
    limits = Limits(grace_s=0.05, steps_per_turn=3)

    async with (
        FakeAnthropic(together(calls("note", word="x"), calls(slow))) as model,
        open_at(tmp_path, outside, model, Tidy, limits=limits) as system,
    ):
        assert await system.actor(Tidy, "t").report() == "too much"

    assert outside.did == ["the note is closed", "the run has ended"]
