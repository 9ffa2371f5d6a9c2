"""Budgets of runs: what is set aside, booked, refused, held and let go on; against the SDK over a real socket."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.actors.agents.test_memory import open_at
from tests.actors.turns.world import World, dying, world
from understudy import (
    Actor,
    ActorSuspended,
    Agent,
    Budget,
    Endpoint,
    InvalidArguments,
    Message,
    Policy,
    RequestRejected,
    System,
    dead_letter,
    handler,
    on,
    tool,
)
from understudy.actors import holding
from understudy.actors.ledgers import Ledgers
from understudy.actors.open_ledger import OpenLedger
from understudy.endpoint.model import ModelAnswer, ModelRequest, Text, Usage
from understudy.errors import BudgetExceeded, ModelFailure
from understudy.events import BudgetRaised, BudgetWarned, ModelCalled
from understudy.mailbox.commit import Record
from understudy.testing import (
    FakeAnthropic,
    FakeRequest,
    calls,
    drops,
    ends_early,
    fails,
    in_stream_error,
    says,
    stalls,
    stops,
)

pytestmark = pytest.mark.anyio
PRICE_IN, PRICE_OUT = 2, 10  # micro-dollars per token of the model that all of these ask
MODEL = "claude-sonnet-5-5"


@tool
async def search(query: str) -> str:
    """Search."""
    return f"about {query}"


@tool
async def slowly(query: str) -> str:
    """Search, when the test says so."""
    await world().stop_at(query)
    return f"about {query}"


class Free(Agent[str], kind="free"):
    model = MODEL
    max_tokens = 1_000
    tools = [search, slowly]


class Frugal(Free, kind="frugal"):
    """Its first calls are set aside about 0.0135 dollars each and use 0.0055."""

    budget = Budget(usd=0.02)


class Poor(Free, kind="poor"):
    """No call of it fits."""

    budget = Budget(usd=0.00913)


def cost_of(model: FakeAnthropic) -> int:
    """What the endpoint itself counts, in micro-dollars."""
    return sum(each.input_tokens * PRICE_IN + each.output_tokens * PRICE_OUT for each in model.paid)


def micros(usd: float | None) -> int:
    assert usd is not None
    return round(usd * 1_000_000)


def text_of(message: dict[str, Any]) -> str:
    return "".join(str(block.get("text", "")) for block in message["content"])


def used(answer: Any, **tokens: int) -> Any:
    return answer.used(**{"input_tokens": 50, "output_tokens": 540, **tokens})


@pytest.fixture
def never_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> list[OpenLedger]:
    """Look at every change of every ledger: what is spent and set aside is never more than the limit."""
    seen: list[OpenLedger] = []

    def look(_: Ledgers, ledger: OpenLedger) -> None:
        seen.append(ledger)
        state, budget = ledger.state, ledger.state.budget
        together_ = state.spent + state.reserved
        assert min(state.reserved.usd_micros, state.reserved.tokens, state.reserved.calls) >= 0
        assert budget.usd is None or together_.usd_micros <= budget.usd * 1_000_000
        assert budget.tokens is None or together_.tokens <= budget.tokens
        assert budget.model_calls is None or together_.calls <= budget.model_calls

    monkeypatch.setattr(Ledgers, "changed", look)
    return seen


async def records(system: System, kind: str) -> list[str]:
    await system.committer.wait_durable()
    return [each.id for each in await system.store.records(kind, None, "", 500)]


async def all_settled(system: System) -> None:
    """Wait until no call is under way, and what all of them have used is booked."""
    while await records(system, "reservation"):
        await asyncio.sleep(0.1)


async def test_a_job_tells_what_its_run_has_spent(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(calls(search, "a"), says("done")) as model,
        System(tmp_path / "a.db", [Free], endpoints=[model.endpoint()]) as system,
    ):
        job = await system.actor(Free, "f").run.submit("What?")
        await job

        status = await job.status()

        assert micros(status.usd) == cost_of(model)
        assert await records(system, "reservation") == []


async def test_a_run_waits_for_the_disk_no_more_often_for_its_ledger(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(*[calls(search, str(number)) for number in range(5)], says("done")) as model,
        System(tmp_path / "a.db", [Free], endpoints=[model.endpoint()]) as system,
    ):
        before = system.committer.durable

        await system.actor(Free, "f").run("What?")

        # One commit per model call and one per tool call, and that of the end: as without any ledger.
        assert system.committer.durable - before == 12


async def test_fifty_agents_share_a_budget_and_go_on_when_it_is_raised(
    tmp_path: Path, never_above_the_limit: list[OpenLedger]
) -> None:
    prompts: Counter[str] = Counter()

    def answers(request: FakeRequest) -> Any:
        prompts[text_of(request.messages[0]).split("\n")[0][:6]] += 1
        if request.messages[-1]["content"][0]["type"] == "tool_result":
            return used(says("done"))
        return used(calls(search, "a"))

    async with (
        FakeAnthropic(answers) as model,
        System(tmp_path / "a.db", [Free], endpoints=[model.endpoint()]) as system,
    ):
        workflow = system.workflow("fifty", budget=Budget(usd=0.3))
        jobs = [await workflow.actor(Free, f"f{n}").run.submit(f"no {n:03d}") for n in range(50)]

        first = await asyncio.gather(*jobs, return_exceptions=True)

        held = [each for each in first if isinstance(each, ActorSuspended)]
        assert 0 < len(held) < 50
        assert len(held) == sum(1 for each in first if each != "done")
        assert "the budget of workflow 'fifty' does not allow the next model call" in str(held[0])
        spent = await workflow.spent()
        assert micros(spent.usd) == cost_of(model) <= 300_000
        assert spent.model_calls == len(model.paid)
        paid_before = len(model.paid)

        await workflow.raise_budget(usd=0.62)
        second = await asyncio.gather(*jobs)

        assert second == ["done"] * 50
        assert len(model.paid) == 100 > paid_before
        assert len({each.digest for each in model.paid}) == 100, "a call was paid twice"
        assert micros((await workflow.spent()).usd) == cost_of(model)
        assert await records(system, "held") == []
        assert await records(system, "reservation") == []


async def test_a_run_beyond_its_budget_is_held_and_goes_on_when_it_is_raised(
    tmp_path: Path, never_above_the_limit: list[OpenLedger]
) -> None:
    async with (
        FakeAnthropic(used(calls(search, "a"), output_tokens=900), says("done")) as model,
        System(tmp_path / "a.db", [Frugal], endpoints=[model.endpoint()]) as system,
    ):
        ref = system.actor(Frugal, "f")
        job = await ref.run.submit("What?")
        with pytest.raises(ActorSuspended, match=r"\$0\.0091 of \$0\.02 are spent, and the next call may use up to"):
            await job
        assert (await job.status()).state == "suspended"
        await system.resume(ref)  # Nothing has changed: it is held again.
        with pytest.raises(ActorSuspended, match=f"system\\.job\\('{job.id}'\\)\\.raise_budget"):
            await job
        with pytest.raises(InvalidArguments, match="no less than the limit is now"):
            await system.job(job.id).raise_budget(usd=0.01)
        with pytest.raises(InvalidArguments, match=r"tokens=\): there is no such limit"):
            await job.raise_budget(tokens=5)

        await job.raise_budget(usd=0.05)

        assert await job == "done"
        assert len(model.paid) == 2
        assert micros((await job.status()).usd) == cost_of(model)
        assert any(isinstance(each, BudgetRaised) for each in (await system.trace(job.id)).events)


async def test_an_asked_run_is_told_of_as_suspended_and_its_budget_is_raised_by_its_name(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(used(calls(search, "a"), output_tokens=900), says("done")) as model,
        System(tmp_path / "a.db", [Frugal], endpoints=[model.endpoint()]) as system,
    ):
        with pytest.raises(ActorSuspended) as told:
            await system.actor(Frugal, "f").run("What?")
        id = str(told.value).split("system.job('")[1].split("'")[0]

        await system.job(id).raise_budget(usd=1)
        while (await system.actor(Frugal, "f").messages())[-1:] != [Message("assistant", "done")]:
            await asyncio.sleep(1)

        assert not [each async for each in system.suspended()]


async def test_a_policy_of_ones_own_may_give_a_run_up(tmp_path: Path) -> None:
    class Strict(Frugal, kind="strict"):
        call_policy = Policy(on(ModelFailure, dead_letter()))
        policy = Policy(on(ModelFailure, dead_letter()))

    async with (
        FakeAnthropic(used(calls(search, "a"), output_tokens=900)) as model,
        System(tmp_path / "a.db", [Strict], endpoints=[model.endpoint()]) as system,
    ):
        with pytest.raises(BudgetExceeded) as told:
            await system.actor(Strict, "s").run("What?")

        error = told.value
        assert (error.limit, error.value_max, error.spent) == ("usd", 0.02, 0.0091)
        assert error.wanted > 0.01


async def test_a_model_without_a_price_is_refused_by_a_budget_of_money_only(tmp_path: Path) -> None:
    class Unknown(Agent[str], kind="unknown"):
        model = "llama-5"
        budget = Budget(usd=1)

    class Counted(Agent[str], kind="counted"):
        model = "llama-5"
        budget = Budget(tokens=20_000)

    async with (
        FakeAnthropic(says("done")) as model,
        System(tmp_path / "a.db", [Unknown, Counted], endpoints=[model.endpoint()]) as system,
    ):
        with pytest.raises(RequestRejected, match="nobody knows what model 'llama-5' costs"):
            await system.actor(Unknown, "u").run("What?")
        job = await system.actor(Counted, "c").run.submit("What?")

        assert await job == "done"
        assert (await job.status()).usd is None


FAULTS = {
    "rate limited": (fails(429), "nothing"),
    "overloaded": (fails(529), "nothing"),
    "rejected": (fails(400), "nothing"),
    "dropped in the answer": (drops(1_500), "bound"),
    "dropped after its start": (drops(700), "bound"),
    "dropped before the answer": (drops(0), "all"),
    "stalled": (stalls(1_500), "bound"),
    "ended early": (ends_early(), "bound"),
    "error in the answer": (in_stream_error("overloaded_error"), "bound"),
    "refused": (stops("refusal", says("no")), "exact"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failed_call_is_booked_as_far_as_it_may_have_been_paid(tmp_path: Path, fault: str) -> None:
    class Once(Free, kind="once"):
        call_policy = Policy()

    answer, booked = FAULTS[fault]
    async with (
        FakeAnthropic(answer) as model,
        System(tmp_path / "a.db", [Once], endpoints=[model.endpoint(read_timeout_s=5)]) as system,
    ):
        workflow = system.workflow("w")
        with pytest.raises(ModelFailure):
            await workflow.actor(Once, "o").run("What?")

        spent = await workflow.spent()
        assert await records(system, "reservation") == []

    assert micros(spent.usd) >= cost_of(model)
    if booked in ("nothing", "exact"):
        assert micros(spent.usd) == cost_of(model)
        assert spent.unknown_usd == 0
        assert spent.model_calls == len(model.paid)
    else:
        assert spent.model_calls == 1
        known = 0 if booked == "all" else model.paid[0].input_tokens * PRICE_IN
        assert micros(spent.usd) - micros(spent.unknown_usd) <= known + 100
        assert micros(spent.usd) <= known + 1_000 * PRICE_OUT + 10_000


async def test_a_call_cancelled_in_flight_is_booked_whole_and_one_that_waits_not_at_all(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(stalls(0)) as model,
        System(tmp_path / "a.db", [Free], endpoints=[model.endpoint(concurrency=1)]) as system,
    ):
        one, two = system.workflow("one"), system.workflow("two")
        sent = await one.actor(Free, "a").run.submit("What?")
        await model.wait_calls(1)
        waits = await two.actor(Free, "b").run.submit("What?")
        while len(await records(system, "reservation")) < 2:
            await asyncio.sleep(0.01)

        await waits.cancel()
        await sent.cancel()
        await all_settled(system)

        assert (await two.spent()).usd == 0
        spent = await one.spent()
        assert spent.usd == spent.unknown_usd > 0.01
        assert spent.model_calls == 1


async def test_calls_that_do_not_fit_beside_others_wait_in_order(
    tmp_path: Path, never_above_the_limit: list[OpenLedger]
) -> None:
    order: list[str] = []
    go = asyncio.Event()

    async def answers(request: FakeRequest) -> Any:
        order.append(text_of(request.messages[0]))
        if len(order) == 1:
            await go.wait()
        return used(says("done"), output_tokens=10)

    async with (
        FakeAnthropic(answers) as model,
        System(tmp_path / "a.db", [Free], endpoints=[model.endpoint()]) as system,
    ):
        workflow = system.workflow("w", budget=Budget(usd=0.02))  # room for one at a time
        jobs = []
        for name in "abcd":
            jobs.append(await workflow.actor(Free, name).run.submit(name))
            await asyncio.sleep(1)
        assert order == ["a"]
        await jobs[2].cancel()  # One that waits gives its place up.

        go.set()
        assert await asyncio.gather(jobs[0], jobs[1], jobs[3]) == ["done"] * 3

    assert order == ["a", "b", "d"]


class Lead(Agent[str], kind="lead"):
    model = MODEL
    max_tokens = 1_000
    tools = [Free.run, Frugal.run, slowly]
    budget = Budget(usd=0.03)


async def test_what_a_sub_agent_spends_counts_in_the_run_that_asked_it(tmp_path: Path) -> None:
    def answers(request: FakeRequest) -> Any:
        if text_of(request.messages[0]).startswith("sub"):
            return used(says("found"))
        if len(request.messages) == 1:
            return used(calls("free", prompt="sub"))
        return used(says("led"))

    async with (
        FakeAnthropic(answers) as model,
        System(tmp_path / "a.db", [Lead], endpoints=[model.endpoint()]) as system,
    ):
        job = await system.actor(Lead, "l").run.submit("lead")

        assert await job == "led"
        assert micros((await job.status()).usd) == cost_of(model) == 3 * 5_500


def leads(request: FakeRequest) -> Any:
    """A lead that asks a sub-agent, which makes two calls; each uses 900 tokens."""
    last = request.messages[-1]["content"][0]["type"]
    if text_of(request.messages[0]).startswith("sub"):
        return used(says("found") if last == "tool_result" else calls(search, "a"), output_tokens=900)
    return used(says("led") if last == "tool_result" else calls("free", prompt="sub"), output_tokens=900)


@pytest.mark.parametrize("restarted", [False, True], ids=["in one life", "after a restart"])
async def test_a_sub_agent_held_by_a_budget_of_the_asking_run_holds_that_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, restarted: bool
) -> None:
    monkeypatch.setattr(holding, "_TOGETHER", 1)  # The asking one goes on after the asked one, not just beside it.
    async with FakeAnthropic(leads) as model:
        async with System(tmp_path / "a.db", [Lead], endpoints=[model.endpoint()]) as system:
            job = await system.actor(Lead, "l").run.submit("lead")
            with pytest.raises(ActorSuspended, match="is held by a budget of this run too"):
                await job
            assert {each.kind async for each in system.suspended()} == {"lead", "free"}
            assert len(await records(system, "held")) == 2
            if not restarted:
                await job.raise_budget(usd=0.1)
                assert await job == "led"
        if restarted:
            async with System(tmp_path / "a.db", [Lead], endpoints=[model.endpoint()]) as system:
                await system.resume(system.actor(Lead, "l"))  # It asks again, and is held again.
                with pytest.raises(ActorSuspended, match="is held by a budget of this run too"):
                    await system.job(job.id)
                await system.job(job.id).raise_budget(usd=0.1)
                assert await system.job(job.id, Lead.run) == "led"
                assert await records(system, "held") == []

        assert len(model.paid) == len({each.digest for each in model.paid}) == 4
        assert not any("is_error': True" in str(request.messages[-1]) for request in model.requests)


class Boss(Agent[str], kind="boss"):
    model = MODEL
    max_tokens = 1_000
    tools = [Lead.run]
    budget = Budget(model_calls=3)


async def test_those_that_a_budget_holds_go_on_from_the_innermost_to_the_outermost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "_TOGETHER", 1)

    def answers(request: FakeRequest) -> Any:
        asked = {"boss": calls("lead", prompt="lead"), "lead": calls("free", prompt="sub"), "sub": calls(search, "a")}
        if request.messages[-1]["content"][0]["type"] == "tool_result":
            return says("done")
        return asked[text_of(request.messages[0])]

    async with (
        FakeAnthropic(answers) as model,
        System(tmp_path / "a.db", [Boss], endpoints=[model.endpoint()]) as system,
    ):
        job = await system.actor(Boss, "b").run.submit("boss")
        with pytest.raises(ActorSuspended, match="is held by a budget of this run too"):
            await job
        assert [each.kind async for each in system.suspended()] == ["boss", "lead", "free"]

        await job.raise_budget(model_calls=6)

        assert await job == "done"
        assert len(model.paid) == 6


async def test_a_sub_agent_held_by_a_budget_of_its_own_is_told_to_the_model(tmp_path: Path) -> None:
    class Rich(Lead, kind="rich"):
        budget = Budget(usd=1)

    def answers(request: FakeRequest) -> Any:
        last = request.messages[-1]["content"][0]
        if text_of(request.messages[0]).startswith("sub"):
            return used(calls(search, "a"), output_tokens=900)
        return used(says("led") if last["type"] == "tool_result" else calls("frugal", prompt="sub"))

    async with (
        FakeAnthropic(answers) as model,
        System(tmp_path / "a.db", [Rich], endpoints=[model.endpoint()]) as system,
    ):
        assert await system.actor(Rich, "r").run("lead") == "led"
        assert {each.kind async for each in system.suspended()} == {"frugal"}

    told = model.requests[-1].messages[-1]["content"][0]
    assert told["is_error"]
    assert "frugal" in str(told["content"])


class Crew(Actor, kind="crew"):
    """Runs agents by messages of all kinds."""

    @handler
    async def work(self) -> str:
        await self.actor(Free, "told").run.tell("told")
        job = await self.actor(Free, "submitted").run.submit("submitted")
        return await self.actor(Free, "asked").run("asked") + await job


class Chief(Agent[str], kind="chief"):
    model = MODEL
    max_tokens = 1_000
    budget = Budget(usd=1)

    @handler
    async def twice(self) -> str:
        before = await self.run("one")
        await self.actor(Free, "told between").run.tell("told")
        return before + await self.run("two")

    @handler
    async def delegate(self, prompt: str) -> str:
        """Delegate."""
        await self.actor(Free, "told").run.tell("told")
        return await self.actor(Free, "asked").run("asked")

    tools = [delegate]


async def test_all_kinds_of_messages_draw_on_the_workflow(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(lambda _: used(says("x"))) as model,
        System(tmp_path / "a.db", [Crew, Free], endpoints=[model.endpoint()]) as system,
    ):
        workflow = system.workflow("w")
        await workflow.actor(Crew, "c").work()
        while len(model.paid) < 3:
            await asyncio.sleep(1)
        await all_settled(system)
        await system.actor(Free, "outside").run("not in it")

        assert (await workflow.spent()).model_calls == 3


async def test_what_a_run_tells_draws_on_it_and_what_its_handler_tells_beside_it_does_not(tmp_path: Path) -> None:
    def answers(request: FakeRequest) -> Any:
        first = text_of(request.messages[0])
        asks = first == "delegate" and request.messages[-1]["content"][0]["type"] != "tool_result"
        return used(calls("delegate", prompt="x") if asks else says("x"))

    async with (
        FakeAnthropic(answers) as model,
        System(tmp_path / "a.db", [Chief, Free], endpoints=[model.endpoint()]) as system,
    ):
        delegated = await system.actor(Chief, "a").run.submit("delegate")
        await delegated
        while len(model.paid) < 4:
            await asyncio.sleep(1)
        twice = await system.actor(Chief, "b").twice.submit()
        await twice
        while len(model.paid) < 7:
            await asyncio.sleep(1)
        await all_settled(system)

        assert micros((await delegated.status()).usd) == 4 * 5_500  # its own two calls, the asked and the told one
        assert micros((await twice.status()).usd) == 2 * 5_500  # of two runs of one turn


async def test_a_limit_of_calls_counts_calls_and_one_of_tokens_tokens(tmp_path: Path) -> None:
    class Counted(Free, kind="counted"):
        budget = Budget(model_calls=2)

    class Measured(Free, kind="measured"):
        budget = Budget(tokens=3_000)

    def answers(_: FakeRequest) -> Any:
        return used(calls(search, "a"), output_tokens=900)

    async with (
        FakeAnthropic(answers) as model,
        System(tmp_path / "a.db", [Counted, Measured], endpoints=[model.endpoint()]) as system,
    ):
        with pytest.raises(ActorSuspended, match="2 model calls of 2 model calls are spent"):
            await system.actor(Counted, "c").run("What?")
        with pytest.raises(ActorSuspended, match="1,900 tokens of 3,000 tokens are spent"):
            await system.actor(Measured, "m").run("What?")

    assert len(model.paid) == 4


async def test_answers_of_a_server_that_counts_nothing_use_up_a_budget(tmp_path: Path) -> None:
    class Uncounted:
        async def call(self, request: ModelRequest, *, on_text: Any = None, on_allowance: Any = None) -> ModelAnswer:
            return ModelAnswer("m", request.model, [Text("Hm.")], "end_turn", Usage())

        async def close(self) -> None:
            pass

    async with System(tmp_path / "a.db", [Free], endpoints=[Endpoint(Uncounted())]) as system:
        workflow = system.workflow("w", budget=Budget(usd=5, tokens=200_000))
        job = await workflow.actor(Free, "f").run.submit("What?")
        await job

        spent = await workflow.spent()

        assert spent.tokens > Free.max_tokens
        assert spent.usd == spent.unknown_usd > 0
        called = [each for each in (await system.trace(job.id)).events if isinstance(each, ModelCalled)]
        assert [each.usd_micros for each in called] == [None]


async def test_the_model_is_told_when_a_limit_is_nearly_reached(tmp_path: Path) -> None:
    class Watched(Free, kind="watched"):
        budget = Budget(usd=1, model_calls=4, warn_at=0.5)

    answers = [calls(search, "a"), calls(search, "b"), calls(search, "c"), says("done")]
    async with (
        FakeAnthropic(*answers) as model,
        System(tmp_path / "a.db", [Watched], endpoints=[model.endpoint()]) as system,
    ):
        job = await system.actor(Watched, "w").run.submit("What?")
        await job
        conversation = await system.actor(Watched, "w").messages()
        events = (await system.trace(job.id)).events

    notes = [text_of(request.messages[-1]) for request in model.requests]
    assert notes[:2] == ["What?", ""]
    assert notes[2].startswith(f"[Budget: 2 model calls of 4 model calls left of the run {job.id}. Finish now")
    assert notes[3].startswith("[Budget: 1 model call of 4 model calls")
    assert "[Budget" not in str(model.requests[3].messages[:-1])
    assert not any("Budget" in message.text for message in conversation)
    (warned,) = [each for each in events if isinstance(each, BudgetWarned)]
    assert (warned.budget, warned.limit, warned.spent, warned.value_max) == (job.id, "model_calls", 2, 4)


async def test_compaction_is_booked_and_held_like_any_call(tmp_path: Path) -> None:
    too_long = fails(400, message="prompt is too long: 210000 tokens > 200000 maximum")

    class Counted(Free, kind="counted"):
        budget = Budget(model_calls=2)

    async with (
        FakeAnthropic(
            *[says("an answer")] * 3,
            used(calls(search, "a")),
            too_long,
            used(says("a summary")),
            too_long,
            used(says("another summary")),
            says("done"),
        ) as model,
        System(tmp_path / "a.db", [Counted], endpoints=[model.endpoint()]) as system,
    ):
        ref = system.actor(Counted, "c")
        for number in range(3):
            await ref.run(f"question {number}")
        job = await ref.run.submit("What?")
        with pytest.raises(ActorSuspended, match="2 model calls of 2 model calls are spent"):
            await job  # The call of the run and that of the summary.
        await job.raise_budget(model_calls=10)

        assert await job == "done"
        assert micros((await job.status()).usd) == sum(
            each.input_tokens * PRICE_IN + each.output_tokens * PRICE_OUT for each in model.paid[3:]
        )


async def test_a_summary_that_a_budget_does_not_allow_holds_the_run(tmp_path: Path) -> None:
    go = asyncio.Event()
    told: list[str] = []

    async def answers(request: FakeRequest) -> Any:
        told.append(text_of(request.messages[-1]))
        if told[-1] == "What?" and told.count("What?") <= 2:
            await go.wait()
            return fails(400, message="prompt is too long: 210000 tokens > 200000 maximum")
        return says("an answer")

    async with (
        FakeAnthropic(answers) as model,
        System(tmp_path / "a.db", [Free], endpoints=[model.endpoint()]) as system,
    ):
        for number in range(3):
            await system.actor(Free, "f").run(f"question {number}")
        workflow = system.workflow("w", budget=Budget(model_calls=2))
        job = await workflow.actor(Free, "f").run.submit("What?")
        await model.wait_calls(4)
        assert await workflow.actor(Free, "g").run("one") == "an answer"
        waits = await workflow.actor(Free, "h").run.submit("two")
        await asyncio.sleep(1)

        go.set()  # The call that waits takes the place of the one that was too long.

        assert await waits == "an answer"
        with pytest.raises(ActorSuspended, match="2 model calls of 2 model calls are spent"):
            await job
        await workflow.raise_budget(model_calls=10)
        assert await job == "an answer"


async def test_ledgers_go_on_after_a_restart_and_no_call_is_paid_twice(tmp_path: Path) -> None:
    outside = World()
    async with FakeAnthropic(used(calls(slowly, "a")), used(says("done"))) as model:
        async with dying(open_at(tmp_path, outside, model, Frugal)) as system:
            workflow = system.workflow("w", budget=Budget(usd=1))
            job = await workflow.actor(Frugal, "f").run.submit("What?")
            await outside.wait("a")
        outside.open("a")
        async with open_at(tmp_path, outside, model, Frugal) as system:
            workflow = system.workflow("w", budget=Budget(usd=1))
            assert await system.job(job.id) == "done"

            assert micros((await workflow.spent()).usd) == cost_of(model) == 11_000
            assert micros((await system.job(job.id).status()).usd) == 11_000

    assert len(model.paid) == 2


async def test_a_call_that_a_crash_cut_off_is_booked_whole(tmp_path: Path) -> None:
    outside = World()
    async with FakeAnthropic(stalls(0), used(says("done"))) as model:
        async with dying(open_at(tmp_path, outside, model, Free)) as system:
            workflow = system.workflow("w")
            job = await workflow.actor(Free, "f").run.submit("What?")
            await model.wait_calls(1)
            (reserved,) = await records(system, "reservation")
        async with open_at(tmp_path, outside, model, Free) as system:
            assert reserved not in await records(system, "reservation")
            assert await system.job(job.id) == "done"
            spent = await system.workflow("w").spent()

    assert spent.model_calls == 2
    assert spent.unknown_usd > 0.01
    assert micros(spent.usd) == micros(spent.unknown_usd) + cost_of(model)


async def test_time_that_a_run_was_held_or_down_does_not_count(tmp_path: Path) -> None:
    @tool
    async def nap(seconds: int) -> str:
        """Sleep."""
        await asyncio.sleep(seconds)
        return "rested"

    class Timed(Agent[str], kind="timed"):
        model = MODEL
        tools = [nap]
        budget = Budget(wall_s=100)

    answers = [calls(nap, 60), calls(nap, 60), says("done")]
    async with (
        FakeAnthropic(*answers) as model,
        System(tmp_path / "a.db", [Timed], endpoints=[model.endpoint()]) as system,
    ):
        job = await system.actor(Timed, "t").run.submit("What?")
        with pytest.raises(ActorSuspended, match=r"12\d s of 100 s are spent\. It was not sent"):
            await job
        await asyncio.sleep(10_000)
        await job.raise_budget(wall_s=150)

        assert await job == "done"


async def test_a_workflow_counts_the_time_since_it_was_opened(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(says("one"), says("two")) as model,
        System(tmp_path / "a.db", [Free], endpoints=[model.endpoint()]) as system,
    ):
        workflow = system.workflow("w", budget=Budget(wall_s=100))
        assert await workflow.actor(Free, "f").run("one") == "one"
        await asyncio.sleep(200)

        with pytest.raises(ActorSuspended, match="of 100 s are spent"):
            await workflow.actor(Free, "f").run("two")


async def test_what_is_kept_of_a_run_goes_with_its_outcome(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(used(calls(search, "a"), output_tokens=900), says("x"), stalls(0)) as model,
        System(tmp_path / "a.db", [Frugal, Free], endpoints=[model.endpoint()]) as system,
    ):
        held = await system.actor(Frugal, "f").run.submit("What?")
        with pytest.raises(ActorSuspended):
            await held
        (record,) = await system.store.records("ledger", None, "", 9)
        assert record.expires_at is None
        await held.cancel()
        await system.actor(Free, "g").run("What?")
        running = await system.actor(Free, "h").run.submit("What?")
        await model.wait_calls(3)
        await running.cancel()
        await all_settled(system)

        ledgers = await system.store.records("ledger", None, "", 9)

        now, ttl_s = system.wall(), system.limits.result_ttl_s
        assert [each.expires_at is not None and 0 < each.expires_at - now <= ttl_s for each in ledgers] == [True] * 3
        assert await records(system, "held") == []
        assert not system.ledgers._open
        assert not system.ledgers.of_messages


async def test_a_ledger_that_does_not_decode_holds_its_run(tmp_path: Path) -> None:
    async with FakeAnthropic(used(calls(search, "a"), output_tokens=900)) as model:
        async with System(tmp_path / "a.db", [Frugal], endpoints=[model.endpoint()]) as system:
            job = await system.actor(Frugal, "f").run.submit("What?")
            with pytest.raises(ActorSuspended):
                await job
            batch = system.committer.touch()
            batch.put(Record("ledger", job.id, b"no ledger"))
        async with System(tmp_path / "a.db", [Frugal], endpoints=[model.endpoint()]) as system:
            await system.resume(system.actor(Frugal, "f"))

            with pytest.raises(ActorSuspended, match=f"the ledger {job.id}"):
                await system.job(job.id)

    assert len(model.paid) == 1


async def test_limits_that_a_person_has_raised_stay_raised_in_later_lives(tmp_path: Path) -> None:
    async with FakeAnthropic(used(calls(search, "a"), output_tokens=900)) as model:
        async with System(tmp_path / "a.db", [Frugal], endpoints=[model.endpoint()]) as system:
            job = await system.actor(Frugal, "f").run.submit("What?")
            with pytest.raises(ActorSuspended, match=r"of \$0\.02 are spent"):
                await job
            await job.raise_budget(usd=0.021)
            with pytest.raises(ActorSuspended, match=r"of \$0\.021 are spent"):
                await job
        async with System(tmp_path / "a.db", [Frugal], endpoints=[model.endpoint()]) as system:
            await system.resume(system.actor(Frugal, "f"))

            with pytest.raises(ActorSuspended, match=r"of \$0\.021 are spent"):
                await system.job(job.id)


async def test_budgets_of_an_edited_class_count(tmp_path: Path) -> None:
    def held_one(usd: float) -> type[Agent[str]]:
        class Edited(Free, kind="edited"):
            budget = Budget(usd=usd)

        return Edited

    async with FakeAnthropic(used(calls(search, "a"), output_tokens=900), says("done")) as model:
        before, after = held_one(0.02), held_one(0.5)
        async with System(tmp_path / "a.db", [before], endpoints=[model.endpoint()]) as system:
            job = await system.actor(before, "e").run.submit("What?")
            with pytest.raises(ActorSuspended):
                await job
        async with System(tmp_path / "a.db", [after], endpoints=[model.endpoint()]) as system:
            await system.resume(system.actor(after, "e"))

            assert await system.job(job.id) == "done"


async def test_caller_of_an_actor_that_a_budget_holds_is_told_to_raise_it_and_nothing_else(tmp_path: Path) -> None:
    async with FakeAnthropic() as model, open_at(tmp_path, World(), model, Poor) as system:
        job = await system.actor(Poor, "p").run.submit("Go")
        with pytest.raises(ActorSuspended) as caught:
            await job

    text = str(caught.value)
    assert f"system.job('{job.id}').raise_budget(usd=...)" in text
    assert text.endswith("Its mail is kept; it goes on when the budget is raised.")
    assert "resume" not in text


async def test_error_of_a_budget_tells_money_to_the_last_micro_dollar(tmp_path: Path) -> None:
    async with FakeAnthropic() as model, open_at(tmp_path, World(), model, Poor) as system:
        job = await system.actor(Poor, "p").run.submit("Go")
        with pytest.raises(
            ActorSuspended, match=r"\$0\.00 of \$0\.00913 are spent, and the next call may use up to \$0\.01308\."
        ):
            await job


async def test_job_that_has_ended_refuses_a_higher_budget_unless_it_holds_somebody(tmp_path: Path) -> None:
    async with FakeAnthropic(says("done")) as model, open_at(tmp_path, World(), model, Frugal) as system:
        job = await system.actor(Frugal, "f").run.submit("Go")
        await job

        with pytest.raises(InvalidArguments, match="has ended, and its budget holds no actor"):
            await job.raise_budget(usd=1.0)
