"""Workflows: what belongs to one, today and after a restart; its trace, its jobs, its budget, its cancellation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.actors.turns.world import World, world
from understudy import (
    Actor,
    ActorSuspended,
    Agent,
    Budget,
    HandlerFailed,
    InvalidArguments,
    JobCancelled,
    LimitExceeded,
    Limits,
    NotFound,
    Spent,
    System,
    handler,
    query,
)
from understudy.events import BudgetRaised
from understudy.testing import FakeAnthropic, VirtualTimeLoop, says

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Log(Actor[list[str]], kind="log"):
    @handler
    async def add(self, name: str) -> int:
        self.state.append(name)
        return len(self.state)

    @handler
    async def add_when(self, name: str) -> int:
        await world().stop_at(name)
        return await self.add(name)

    @handler
    async def pass_on(self, name: str) -> None:
        await self.actor(Log, "next").add.tell(name)

    @query
    async def all(self) -> list[str]:
        return self.state


class Fails(Actor, kind="fails"):
    @handler
    async def fail(self) -> None:
        if not world().seen:
            world().seen["once"] = True
            raise ValueError("no")
        await world().stop_at("tried again")


class Talker(Agent[str], kind="talker"):
    model = "claude-sonnet-5-5"
    max_tokens = 1_000


async def records(system: System, kind: str) -> list[Any]:
    await system.committer.wait_durable()
    return await system.store.records(kind, None, "", 500)


def open_log(path: Path, outside: World | None = None, **settings: Any) -> System:
    return System(path / "a.db", [Log], resources=[outside or World()], **settings)


async def test_jobs_of_a_workflow_are_listed_in_every_life_as_long_as_their_outcomes(tmp_path: Path) -> None:
    outside = World()
    async with open_log(tmp_path, outside, limits=Limits(result_ttl_s=1_000, grace_s=0.05)) as system:
        workflow = system.workflow("w")
        one = await workflow.actor(Log, "a").add.submit("one")
        two = await workflow.actor(Log, "b").add_when.submit("two")
        keyed = await workflow.actor(Log, "c").add.options(key="k").submit("three")
        again = await workflow.actor(Log, "c").add.options(key="k").submit("three")
        await workflow.actor(Log, "a").add.tell("told")
        await workflow.actor(Log, "a").add("asked")
        await system.actor(Log, "a").add.submit("beside")
        assert again.id == keyed.id
        assert [job async for job in workflow.jobs()] == [one, two, keyed]
    outside.open("two")
    async with open_log(tmp_path, outside, limits=Limits(result_ttl_s=1_000)) as system:
        workflow = system.workflow("w")
        found = [job async for job in workflow.jobs()]
        assert found == [one, two, keyed]
        assert await asyncio.gather(*found) == [1, 1, 1]
        assert await records(system, "sent") == []
        await asyncio.sleep(10_000)
        assert [job async for job in workflow.jobs()] == []


async def test_cancel_ends_all_that_was_sent_through_it_and_nothing_else(tmp_path: Path) -> None:
    outside = World()
    async with open_log(tmp_path, outside) as system:
        workflow = system.workflow("w")
        running = await workflow.actor(Log, "a").add_when.submit("running")
        await outside.wait("running")
        queued = await workflow.actor(Log, "a").add.submit("queued")
        await workflow.actor(Log, "a").add.tell("told")
        await workflow.actor(Log, "b").add.options(delay_s=60).tell("delayed")
        done = await workflow.actor(Log, "c").add.submit("done")
        await done
        beside = await system.actor(Log, "a").add.submit("beside")

        await workflow.cancel()

        for job in (running, queued):
            with pytest.raises(JobCancelled):
                await job
        assert await beside == 1
        assert await done == 1
        await asyncio.sleep(100)
        assert await system.actor(Log, "a").all() == ["beside"]
        assert await system.actor(Log, "b").all() == []
        assert await records(system, "sent") == []
        assert await workflow.actor(Log, "a").add("after it") == 2


async def test_cancel_finds_what_was_sent_in_an_earlier_life(tmp_path: Path) -> None:
    async with open_log(tmp_path) as system:
        await system.workflow("w").actor(Log, "b").add.options(delay_s=60).tell("delayed")
    async with open_log(tmp_path) as system:
        await system.workflow("w").cancel()
        await asyncio.sleep(100)

        assert await system.actor(Log, "b").all() == []


async def test_trace_of_a_workflow_has_its_jobs_side_by_side_and_that_of_a_job_only_its_own(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(says("one"), says("two")) as model,
        System(tmp_path / "a.db", [Talker], endpoints=[model.endpoint()]) as system,
    ):
        workflow = system.workflow("november")
        with pytest.raises(NotFound):
            await workflow.trace()
        one = await workflow.actor(Talker, "a").run.submit("one")
        await one
        two = await workflow.actor(Talker, "b").run.submit("two")
        await two

        whole, part = await workflow.trace(), await system.trace(two.id)

        assert [root.name for root in whole.roots] == ["talker  a", "talker  b"]
        assert whole.correlation == "workflow:november"
        assert [root.name for root in part.roots] == ["talker  b"]
        assert part.correlation == two.id
        assert {event.span.partition("/")[0] for event in part.events} == {two.id.partition("-")[0]}
        assert part.totals.usd_micros == whole.roots[1].totals.usd_micros
        assert str(whole).startswith("workflow:november")


async def test_budget_of_a_workflow_stays_what_it_was_and_what_a_person_made_of_it(tmp_path: Path) -> None:
    async with open_log(tmp_path) as system:
        workflow = system.workflow("w", budget=Budget(usd=1))
        assert await workflow.spent() == Spent(0.0, 0.0, 0, 0)
        await workflow.actor(Log, "a").add("x")
        with pytest.raises(InvalidArguments, match=r"workflow 'w' has Budget\(usd=1\.0, .*got Budget\(usd=3"):
            await system.workflow("w", budget=Budget(usd=3)).actor(Log, "a").add("y")
        await workflow.raise_budget(usd=5)
        with pytest.raises(InvalidArguments, match=r"usd=2 \(now 5\)"):
            await workflow.raise_budget(usd=2)
        told = await system.trace("workflow:w")
        assert any(isinstance(each, BudgetRaised) for each in told.events)
    async with open_log(tmp_path) as system:
        assert await system.workflow("w").actor(Log, "a").add("z") == 2
        assert await system.workflow("w", budget=Budget(usd=1)).actor(Log, "a").add("z") == 3
        ledger = await system.ledgers.find("workflow:w")
        assert ledger is not None
        assert ledger.state.budget == Budget(usd=5)
        assert ledger.state.declared == Budget(usd=1)


async def test_budget_can_be_raised_before_anything_was_sent(tmp_path: Path) -> None:
    async with open_log(tmp_path) as system:
        await system.workflow("w", budget=Budget(usd=1)).raise_budget(usd=5)
    async with open_log(tmp_path) as system:
        ledger = await system.ledgers.find("workflow:w")

        assert ledger is not None
        assert ledger.state.budget == Budget(usd=5)


async def test_what_a_workflow_holds_goes_on_in_a_later_life(tmp_path: Path) -> None:
    async with FakeAnthropic(says("one").used(output_tokens=1_000), says("two"), says("three")) as model:
        async with System(tmp_path / "a.db", [Talker], endpoints=[model.endpoint()]) as system:
            workflow = system.workflow("w", budget=Budget(usd=0.02))
            assert await workflow.actor(Talker, "a").run("one") == "one"
            jobs = [await workflow.actor(Talker, name).run.submit(name) for name in "bc"]
            for job in jobs:
                with pytest.raises(ActorSuspended, match="the budget of workflow 'w'"):
                    await job
                assert (await job.status()).state == "suspended"
        async with System(tmp_path / "a.db", [Talker], endpoints=[model.endpoint()]) as system:
            await system.workflow("w").raise_budget(usd=1)

            assert {await system.job(job.id) for job in jobs} == {"two", "three"}
            assert await records(system, "held") == []


async def test_actor_that_is_held_for_another_reason_by_now_is_left_alone(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(says("one").used(output_tokens=1_000), says("two")) as model,
        System(tmp_path / "a.db", [Talker], endpoints=[model.endpoint()]) as system,
    ):
        workflow = system.workflow("w", budget=Budget(usd=0.02))
        await workflow.actor(Talker, "a").run("one")
        with pytest.raises(ActorSuspended):
            await workflow.actor(Talker, "b").run("two")
        activation = await system._entered(system.actor(Talker, "b"))
        activation.reason = "a person looks at it"

        await workflow.raise_budget(usd=1)

        assert [each.reason async for each in system.suspended()] != []
        assert activation.status == "suspended"


async def test_workflow_goes_when_nothing_was_sent_through_it_for_long(tmp_path: Path) -> None:
    outside = World()
    async with open_log(tmp_path, outside, limits=Limits(result_ttl_s=1_000)) as system:
        await system.workflow("ended").actor(Log, "a").add("x")
        job = await system.workflow("goes on").actor(Log, "b").add_when.submit("later")
        await asyncio.sleep(20_000)
        assert [each.id for each in await records(system, "ledger")] == ["workflow:goes on"]
        outside.open("later")
        assert await job == 1
        await asyncio.sleep(20_000)

        assert await records(system, "ledger") == []
        assert await records(system, "submitted") == []


async def test_what_a_message_of_the_workflow_tells_is_not_cancelled_but_counts(tmp_path: Path) -> None:
    async with open_log(tmp_path) as system:
        workflow = system.workflow("w")
        await workflow.actor(Log, "a").pass_on("x")
        await workflow.cancel()
        await asyncio.sleep(1)

        assert await system.actor(Log, "next").all() == ["x"]
        assert await records(system, "sent") == []


class Starter(Actor, kind="starter"):
    @handler
    async def start(self, name: str) -> None:
        workflow = self.turn.resource(Office).system.workflow(name)
        await workflow.actor(Log, "told").add.tell("told")
        await workflow.actor(Log, "asked").add("asked")
        await workflow.actor(Log, "submitted").add.submit("submitted")


class Office:
    system: System


async def test_a_handler_may_send_through_a_workflow(tmp_path: Path) -> None:
    office = Office()
    async with System(tmp_path / "a.db", [Log, Starter], resources=[office], trace="all") as system:
        office.system = system
        outer = system.workflow("outer")
        await outer.actor(Starter, "s").start("inner")

        (job,) = [job async for job in system.workflow("inner").jobs()]

        assert await job == 1
        assert len((await outer.trace()).roots) == 1  # What a turn sends lies in its own tree.
        assert [job async for job in outer.jobs()] == []


async def test_dead_letter_that_is_tried_again_belongs_to_its_workflow_again(tmp_path: Path) -> None:
    outside = World()
    async with System(tmp_path / "a.db", [Log, Fails], resources=[outside]) as system:
        workflow = system.workflow("w")
        job = await workflow.actor(Fails, "f").fail.submit()
        with pytest.raises(HandlerFailed):
            await job
        assert await records(system, "sent") == []
        await system.redeliver(job.id)
        await outside.wait("tried again")

        await workflow.cancel()

        with pytest.raises(JobCancelled):
            await job


async def test_queries_and_fresh_actors_work_through_a_workflow(tmp_path: Path) -> None:
    async with open_log(tmp_path) as system:
        workflow = system.workflow("w")
        fresh = workflow.actor(Log)
        await fresh.add("x")

        assert await fresh.all() == ["x"]
        assert await workflow.actor(Log, fresh.id).all() == ["x"]
        assert fresh == system.actor(Log, fresh.id)


async def test_messages_sent_first_by_many_at_once_keep_their_order(tmp_path: Path) -> None:
    async with open_log(tmp_path) as system:
        workflow = system.workflow("w", budget=Budget(usd=1))
        log = workflow.actor(Log, "a")

        await asyncio.gather(*(log.add.tell(str(number)) for number in range(20)))

        assert await log.add("end") == 21
        assert await log.all() == [*map(str, range(20)), "end"]


async def test_wrong_workflows_are_refused_at_once(tmp_path: Path) -> None:
    async with open_log(tmp_path) as system:
        with pytest.raises(LimitExceeded, match="the id of a workflow is 0 bytes"):
            system.workflow("")
        with pytest.raises(LimitExceeded, match="is 256 bytes"):
            system.workflow("x" * 256)
        with pytest.raises(InvalidArguments, match="characters that cannot be printed"):
            system.workflow("a\nb")
        with pytest.raises(InvalidArguments, match=r"expected Budget\(usd=5\.0\)"):
            system.workflow("w", budget=5)  # type: ignore[arg-type]
