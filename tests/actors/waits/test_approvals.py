"""Tools that ask a person: an agent's calls and calls by hand, approved, rejected, over restarts, in any order."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.actors.agents.test_memory import check_calls_closed, results
from tests.actors.turns.world import World, dying, world
from tests.actors.waits.shop import in_memory, open_at, until_gone
from understudy import (
    Actor,
    Agent,
    AlreadyDecided,
    ApprovalRejected,
    Budget,
    InvalidArguments,
    InvalidDefinition,
    JobCancelled,
    Limits,
    NotFound,
    Policy,
    StateUndecodable,
    System,
    ToolFailed,
    amend,
    answer,
    handler,
    on,
    retry,
    tool,
)
from understudy.events import WaitBegan, WaitEnded
from understudy.testing import FakeAnthropic, calls, says, together

pytestmark = pytest.mark.anyio


@tool(approval="always", timeout_s=30)
async def refund(order: str, cents: int = 100) -> str:
    """Pay money back to the customer."""
    world().did.append(f"refund {order} {cents}")
    if world().should_fail("refund"):
        raise OSError("the bank is away")
    return f"refunded {cents}"


@tool
async def status(order: str) -> str:
    """Where the order is."""
    world().did.append(f"status {order}")
    return "shipped"


def is_large(cents: int, **_: Any) -> bool:
    return cents > 1_000


@tool(approval=is_large)
async def pay(to: str, cents: int) -> str:
    """Pay somebody."""
    world().did.append(f"pay {to} {cents}")
    return "paid"


class Support(Agent[str], kind="support"):
    """Helps customers."""

    model = "claude-sonnet-5-5"
    tools = [status, refund, pay]


class Boss(Agent[str], kind="boss"):
    model = "claude-sonnet-5-5"
    tools = [Support.run]


async def pending(system: System, count: int = 1) -> list[Any]:
    while len(found := await system.approvals()) < count:
        await asyncio.sleep(0.05)
    return found


# --- an agent's calls -----------------------------------------------------------------------------------------------------


async def test_call_waits_for_a_person_and_runs_when_it_is_approved(tmp_path: Path) -> None:
    outside = World()

    async with (
        FakeAnthropic(calls(refund, "o1", cents=500), says("done")) as model,
        open_at(tmp_path, outside, Support, model=model) as system,
    ):
        job = await system.actor(Support, "s").run.submit("Refund me")
        (approval,) = await pending(system)
        before = list(outside.did)
        standing = await job.status()
        mine = await job.approvals()
        await approval.approve()
        said = await job
        left = await system.approvals()
        events = (await system.trace(job.id)).events

    assert (approval.tool, approval.arguments) == ("refund", {"order": "o1", "cents": 500})
    assert (approval.actor, approval.job) == ("support/s", job.id)
    assert approval.asked_at is not None
    assert [each.id for each in mine] == [approval.id]
    assert before == []
    assert (standing.state, standing.reason) == ("waiting", f"approval {approval.id} of tool refund")
    assert said == "done"
    assert outside.did == ["refund o1 500"]
    assert left == []
    assert [(each.wait, each.tool, each.arguments) for each in events if isinstance(each, WaitBegan)] == [
        (approval.id, "refund", "order='o1', cents=500")
    ]
    assert [each.outcome for each in events if isinstance(each, WaitEnded)] == ["approved"]


async def test_model_is_told_of_a_rejection_and_nothing_is_retried(tmp_path: Path) -> None:
    outside = World()

    async with (
        FakeAnthropic(calls(refund, "o1"), says("sorry")) as model,
        open_at(tmp_path, outside, Support, model=model) as system,
    ):
        job = await system.actor(Support, "s").run.submit("Refund me")
        (approval,) = await pending(system)
        await approval.reject("too much")
        said = await job

    assert said == "sorry"
    assert outside.did == []
    assert results(model.requests[-1]) == [("A person rejected this call: too much", True)]
    assert [each["name"] for each in model.requests[-1].tools] == ["status", "refund", "pay"]
    check_calls_closed(model.requests[-1])


async def test_second_decision_is_refused_and_says_what_was_decided(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(calls(refund, "o1"), says("done"), calls(refund, "o2"), says("sorry")) as model,
        open_at(tmp_path, World(), Support, model=model) as system,
    ):
        job = await system.actor(Support, "s").run.submit("Refund me")
        (approval,) = await pending(system)
        await approval.approve()
        with pytest.raises(
            AlreadyDecided, match=r"was approved at 2026-01-01T\d\d:\d\d:\d\d\+00:00; nothing was changed"
        ):
            await approval.reject("no")
        await job
        with pytest.raises(AlreadyDecided):
            await system.approval(approval.id).approve()
        other = await system.actor(Support, "s").run.submit("Again")
        (second,) = await pending(system)
        await second.reject("no")
        with pytest.raises(AlreadyDecided, match=r"was rejected \(no\)") as caught:
            await second.approve()
        await other

        assert (caught.value.approved, caught.value.reason) == (False, "no")
        with pytest.raises(NotFound, match="waits for nobody"):
            await system.approval(system.job_id(999_999)).approve()
        with pytest.raises(NotFound, match="is no approval of this store"):
            system.approval("hello")
        with pytest.raises(InvalidArguments, match="takes the reason as text"):
            await second.reject(None)  # type: ignore[arg-type]


async def test_two_who_decide_at_once_decide_once(tmp_path: Path) -> None:
    outside = World()

    async with (
        FakeAnthropic(calls(refund, "o1"), says("done")) as model,
        open_at(tmp_path, outside, Support, model=model) as system,
    ):
        job = await system.actor(Support, "s").run.submit("Refund me")
        (approval,) = await pending(system)
        await until_gone()
        told = await asyncio.gather(*[approval.approve() for _ in range(5)], return_exceptions=True)
        await job

    assert sorted(type(each).__name__ for each in told) == ["AlreadyDecided"] * 4 + ["NoneType"]
    assert outside.did == ["refund o1 100"]


async def test_calls_of_the_same_answer_that_need_nobody_run_meanwhile(tmp_path: Path) -> None:
    outside = World()

    async with (
        FakeAnthropic(together(calls(refund, "o1"), calls(status, "o1"), calls(pay, "bob", 10)), says("done")) as model,
        open_at(tmp_path, outside, Support, model=model) as system,
    ):
        job = await system.actor(Support, "s").run.submit("Refund me")
        (approval,) = await pending(system)
        await until_gone()
        meanwhile = sorted(outside.did)
        await approval.approve()
        await job

    assert meanwhile == ["pay bob 10", "status o1"]
    assert outside.did[-1] == "refund o1 100"
    assert len(outside.did) == 3
    assert len(model.paid) == 2


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_approvals_of_one_answer_are_decided_in_any_order_one_after_the_other(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    outside = World()

    async with (
        FakeAnthropic(together(*[calls(refund, f"o{number}") for number in range(3)]), says("done")) as model,
        open_at(tmp_path, outside, Support, model=model) as system,
    ):
        job = await system.actor(Support, "s").run.submit("Refund all")
        asked = await pending(system, 3)
        for place, number in enumerate(order):
            await until_gone()
            if number == 1:
                await asked[number].reject("not this one")
            else:
                await asked[number].approve()
            await asyncio.sleep(1)
            ran = [each for each in order[: place + 1] if each != 1]
            assert outside.did == [f"refund o{each} 100" for each in ran]  # Each at once, not with the last.
            assert len(await system.approvals()) == 2 - place
        await job

    told = results(model.requests[-1])
    assert told == [
        ("refunded 100", False),
        ("A person rejected this call: not this one", True),
        ("refunded 100", False),
    ]
    assert len(model.paid) == 2


async def test_person_is_asked_only_where_the_function_says_so(tmp_path: Path) -> None:
    outside = World()

    async with (
        FakeAnthropic(calls(pay, "bob", 10), calls(pay, "bob", 5_000), says("done")) as model,
        open_at(tmp_path, outside, Support, model=model) as system,
    ):
        job = await system.actor(Support, "s").run.submit("Pay bob")
        (approval,) = await pending(system)
        first = list(outside.did)
        await approval.approve()
        await job

    assert first == ["pay bob 10"]
    assert approval.arguments == {"to": "bob", "cents": 5_000}
    assert outside.did == ["pay bob 10", "pay bob 5000"]


async def test_same_call_made_again_by_the_model_needs_an_approval_of_its_own(tmp_path: Path) -> None:
    outside = World()

    async with (
        FakeAnthropic(calls(refund, "o1"), calls(refund, "o1"), says("done")) as model,
        open_at(tmp_path, outside, Support, model=model) as system,
    ):
        job = await system.actor(Support, "s").run.submit("Refund me")
        (first,) = await pending(system)
        await first.approve()
        while not (second := [each for each in await system.approvals() if each.id != first.id]):
            await asyncio.sleep(0.05)
        assert outside.did == ["refund o1 100"]
        await second[0].approve()
        await job

    assert outside.did == ["refund o1 100"] * 2


async def test_failed_tool_is_retried_under_the_same_approval(tmp_path: Path) -> None:
    outside = World()
    outside.fails["refund"] = 2

    async with (
        FakeAnthropic(calls(refund, "o1"), says("done")) as model,
        open_at(tmp_path, outside, Support, model=model) as system,
    ):
        job = await system.actor(Support, "s").run.submit("Refund me")
        (approval,) = await pending(system)
        await approval.approve()
        await job
        asked = await system.approvals()

    assert outside.did == ["refund o1 100"] * 3
    assert asked == []


async def test_call_with_wrong_arguments_is_refused_without_asking_anybody(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(calls("refund", order="o1", cents="many"), says("sorry")) as model,
        open_at(tmp_path, World(), Support, model=model) as system,
    ):
        assert await system.actor(Support, "s").run("Refund me") == "sorry"

    assert "wrong arguments for refund" in results(model.requests[-1])[0][0]


@pytest.mark.parametrize("crashes", [False, True])
@pytest.mark.parametrize("approves", [False, True])
async def test_approval_survives_restarts_under_the_same_id(tmp_path: Path, crashes: bool, approves: bool) -> None:
    outside = World()
    opened = dying if crashes else (lambda system: system)

    async with FakeAnthropic(calls(refund, "o1"), says("done")) as model:
        async with opened(open_at(tmp_path, outside, Support, model=model)) as system:
            job = await system.actor(Support, "s").run.submit("Refund me")
            (approval,) = await pending(system)
        for _ in range(2):
            async with opened(open_at(tmp_path, outside, Support, model=model)) as system:
                await until_gone()
                assert in_memory(system) == []
                assert [each.id for each in await system.approvals()] == [approval.id]
                assert [each.id for each in await system.job(job.id).approvals()] == [approval.id]
        async with opened(open_at(tmp_path, outside, Support, model=model)) as system:
            handle = system.approval(approval.id)
            await (handle.approve() if approves else handle.reject("no"))
        async with open_at(tmp_path, outside, Support, model=model) as system:
            assert await system.job(job.id, Support.run) == "done"
            with pytest.raises(AlreadyDecided):
                await system.approval(approval.id).approve()

    assert outside.did == (["refund o1 100"] if approves else [])
    assert len(model.paid) == 2


async def test_job_of_a_workflow_has_its_own_approvals_and_those_below_it_only(tmp_path: Path) -> None:
    outside = World()
    script = [calls(Support.run, "Refund o1"), calls(refund, "o1"), calls(refund, "o2")]

    async with (
        FakeAnthropic(*script) as model,
        open_at(tmp_path, outside, Boss, Support, model=model) as system,
    ):
        workflow = system.workflow("w")
        above = await workflow.actor(Boss, "b").run.submit("Refund o1")
        (first,) = await pending(system)
        beside = await workflow.actor(Support, "s").run.submit("Refund o2")
        both = await pending(system, 2)
        of_each = [[each.id for each in await job.approvals()] for job in (above, beside)]
        await until_gone()
        later = [[each.id for each in await job.approvals()] for job in (above, beside)]
        gone = in_memory(system)
        await workflow.cancel()
        left = await system.approvals()
        ends = [(await job.status()).state for job in (above, beside)]

    second = next(each for each in both if each.id != first.id)
    assert of_each == later == [[first.id], [second.id]]
    assert gone == []
    assert left == []
    assert ends == ["cancelled", "cancelled"]
    assert outside.did == []


async def test_more_waits_than_are_read_at_a_time_keep_their_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("understudy.actors.outside._PAGE", 2)
    outside = World()
    asked = [calls(refund, f"o{number}") for number in range(5)]

    async with FakeAnthropic(together(*asked), says("done")) as model:
        async with open_at(tmp_path, outside, Support, model=model) as system:
            job = await system.actor(Support, "s").run.submit("Refund all")
            before = [each.id for each in await pending(system, 5)]
            await until_gone()
        async with open_at(tmp_path, outside, Support, model=model) as system:
            for id in before:
                await system.approval(id).approve()
            said = await system.job(job.id, Support.run)
            left = await system.approvals()

    assert said == "done"
    assert left == []
    assert sorted(outside.did) == [f"refund o{number} 100" for number in range(5)]


async def test_time_in_which_a_run_waits_for_a_person_is_none_of_its_budget(tmp_path: Path) -> None:
    class Timed(Agent[str], kind="timed"):
        model = "claude-sonnet-5-5"
        tools = [refund]
        budget = Budget(wall_s=20)

    class Lead(Agent[str], kind="lead"):
        model = "claude-sonnet-5-5"
        tools = [Timed.run]
        budget = Budget(wall_s=20)

    script = [calls(Timed.run, "Refund o1"), calls(refund, "o1"), says("refunded"), says("done")]
    async with (
        FakeAnthropic(*script) as model,
        open_at(tmp_path, World(), Lead, Timed, model=model) as system,
    ):
        job = await system.actor(Lead, "t").run.submit("Refund me")
        (approval,) = await pending(system)
        await asyncio.sleep(50)
        in_memory_still = in_memory(system)
        await approval.approve()

        assert await job == "done"

    assert any(each.startswith("timed/") for each in in_memory_still)


async def test_agent_that_asks_an_agent_is_parked_with_it_and_goes_on_with_it(tmp_path: Path) -> None:
    outside = World()

    class Desk(Actor, kind="desk"):
        @handler
        async def ask(self, question: str) -> str:
            return await self.actor(Boss, "b").run(question)

    script = [calls(Support.run, "Refund o1"), calls(refund, "o1"), says("refunded"), says("all done")]
    async with FakeAnthropic(*script) as model:
        async with open_at(tmp_path, outside, Desk, Boss, Support, model=model) as system:
            job = await system.actor(Desk, "d").ask.submit("Refund o1")
            (approval,) = await pending(system)
            mine = await job.approvals()
            await until_gone()
            gone = in_memory(system)
            standing = await job.status()
        async with open_at(tmp_path, outside, Desk, Boss, Support, model=model) as system:
            await until_gone()
            loaded = in_memory(system)
            await system.approval(approval.id).approve()

            assert await system.job(job.id) == "all done"

    assert [each.id for each in mine] == [approval.id]
    assert gone == []
    assert loaded == []
    assert standing.state == "waiting"
    assert (standing.reason or "").startswith(f"approval {approval.id} of tool refund of actor support/b.")
    assert outside.did == ["refund o1 100"]
    assert len(model.paid) == 4


async def test_cancelled_run_waits_for_nobody_and_remembers_its_calls_as_closed(tmp_path: Path) -> None:
    outside = World()

    async with (
        FakeAnthropic(calls(refund, "o1"), says("hello")) as model,
        open_at(tmp_path, outside, Support, model=model) as system,
    ):
        job = await system.actor(Support, "s").run.submit("Refund me")
        (approval,) = await pending(system)
        await until_gone()
        await job.cancel()
        with pytest.raises(JobCancelled):
            await job
        left = await system.approvals()
        with pytest.raises(NotFound, match="who called the tool has ended"):
            await approval.approve()
        assert await system.actor(Support, "s").run("Hello") == "hello"

    assert left == []
    assert outside.did == []
    check_calls_closed(model.requests[-1])


# --- calls by hand ----------------------------------------------------------------------------------------------------------


class Clerk(Actor, kind="clerk"):
    policy = Policy(on(ConnectionError, retry(times=3)))

    @handler(raises=[ApprovalRejected])
    async def back(self, order: str) -> str:
        done = await refund(order, cents=world().seen.get("cents", 100))
        if world().should_fail("clerk"):
            raise ConnectionError
        return done

    @handler
    async def forgiving(self, order: str) -> str:
        try:
            return await refund(order)
        except ApprovalRejected as error:
            return f"{error.tool}: {error.reason}"


async def test_call_by_hand_waits_and_runs_once(tmp_path: Path) -> None:
    outside = World()
    outside.fails["clerk"] = 2

    async with open_at(tmp_path, outside, Clerk) as system:
        job = await system.actor(Clerk, "c").back.submit("o1")
        (approval,) = await pending(system)
        await until_gone()
        await approval.approve()

        assert await job == "refunded 100"
    assert approval.arguments == {"order": "o1", "cents": 100}
    assert outside.did == ["refund o1 100"]


async def test_call_by_hand_that_is_rejected_raises(tmp_path: Path) -> None:
    outside = World()

    async with open_at(tmp_path, outside, Clerk) as system:
        job = await system.actor(Clerk, "c").back.submit("o1")
        (approval,) = await pending(system)
        await approval.reject("never")
        with pytest.raises(ApprovalRejected, match="a person rejected the call of tool refund: never"):
            await job
        other = await system.actor(Clerk, "c").forgiving.submit("o1")
        (approval,) = await pending(system)
        await approval.reject("never")

        assert await other == "refund: never"
    assert outside.did == []


async def test_other_arguments_than_those_approved_need_a_new_approval(tmp_path: Path) -> None:
    outside = World()
    outside.fails["clerk"] = 1
    # The turn fails after the first call; when it is tried again it asks for more.

    async with open_at(tmp_path, outside, Clerk) as system:
        job = await system.actor(Clerk, "c").back.submit("o1")
        (approval,) = await pending(system)
        outside.seen["cents"] = 999
        await approval.approve()
        (second,) = await pending(system)
        assert outside.did == ["refund o1 100"]
        assert second.id != approval.id
        assert second.arguments == {"order": "o1", "cents": 999}
        await second.approve()
        await job

    assert outside.did == ["refund o1 100", "refund o1 999"]


async def test_call_outside_any_turn_asks_nobody() -> None:
    @tool(approval="always")
    async def plain(number: int) -> int:
        """Plain."""
        return number

    assert await plain(3) == 3


# --- definitions ----------------------------------------------------------------------------------------------------------------


async def never(**_: Any) -> bool:
    return False


@pytest.mark.parametrize(
    ("approval", "message"),
    [
        ("allways", "must be one of 'never', 'always'"),
        (True, "expected 'never', 'always' or a plain function"),
        (never, "not async: it may not wait"),
        (lambda amount: True, "cannot be called with the tool's arguments by name (order, cents)"),
    ],
)
def test_wrong_approval_is_refused_when_the_tool_is_defined(approval: Any, message: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:

        @tool(approval=approval)
        async def broken(order: str, cents: int) -> None:
            """Broken."""

    assert message in str(caught.value)


def test_policy_that_changes_arguments_is_refused_with_an_approval() -> None:
    with pytest.raises(InvalidDefinition, match="approval='always' binds them to what a person has seen"):

        @tool(approval="always", policy=Policy(on(OSError, amend(lambda given, _: given), answer())))
        async def changing(order: str) -> None:
            """Changing."""


async def test_function_that_returns_no_bool_lets_nothing_run(tmp_path: Path) -> None:
    @tool(approval=lambda number: number)  # type: ignore[arg-type,return-value]
    async def odd(number: int) -> int:
        """Odd."""
        world().did.append("odd")
        return number

    class Odd(Actor, kind="odd"):
        @handler
        async def go(self) -> int:
            return await odd(0)

    outside = World()

    async with open_at(tmp_path, outside, Odd, limits=Limits()) as system:
        with pytest.raises(InvalidDefinition, match="returned 0; expected True or False"):
            await system.actor(Odd, "a").go()

    assert outside.did == []


# --- what goes wrong ------------------------------------------------------------------------------------------------------


def cannot_say(to: str) -> bool:
    raise LookupError(f"no account {to}")


@tool(approval=cannot_say)
async def wire(to: str) -> str:
    """Send money."""
    world().did.append(f"wire {to}")
    return "sent"


class Banker(Agent[str], kind="banker"):
    model = "claude-sonnet-5-5"
    tools = [wire]


class ByHand(Actor, kind="by_hand"):
    @handler(raises=[ToolFailed])
    async def go(self) -> str:
        return await wire("x")


async def test_function_that_cannot_say_whether_to_ask_fails_the_call_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = World()

    async with (
        FakeAnthropic(calls(wire, "x"), says("sorry")) as model,
        open_at(tmp_path, outside, Banker, ByHand, model=model) as system,
    ):
        said = await system.actor(Banker, "b").run("Send it")
        with pytest.raises(ToolFailed) as caught:
            await system.actor(ByHand, "h").go()

    told = "tool wire: approval=cannot_say failed with LookupError: no account x; the call was not made."
    assert said == "sorry"
    assert results(model.requests[-1]) == [(f"ToolFailed: {told}", True)]
    assert told in str(caught.value)
    assert outside.did == []
    assert "tool.approval_failed" in caplog.messages


@pytest.mark.parametrize(
    "damage", ["UPDATE record SET body = x'80' WHERE {}", "UPDATE record SET owner = '7' WHERE {}"]
)
async def test_damaged_wait_hides_no_other_and_is_logged(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        FakeAnthropic(*[calls(refund, "o1")] * 3, says("done")) as model,
        open_at(tmp_path, World(), Support, model=model) as system,
    ):
        jobs = [await system.actor(Support, id).run.submit("Refund me") for id in "abc"]
        first, second, third = await pending(system, 3)
        connection = sqlite3.connect(tmp_path / "a.db")
        where = f"kind = 'wait' AND id = '{int(second.id.partition('-')[0]):020d}'"
        connection.execute(damage.format(where))
        connection.commit()
        connection.close()

        left = await system.approvals()
        with pytest.raises(StateUndecodable):
            await second.approve()
        await third.approve()
        said = await next(job for job in jobs if job.id == third.job)

    assert [each.id for each in left] == [first.id, third.id]
    assert said == "done"
    assert "system.record_damaged" in caplog.messages
