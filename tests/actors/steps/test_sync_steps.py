"""Sync steps run in threads, which nobody can cancel: the next attempt joins them, never doubles them (rule 9).

These run on a real clock: a thread that waits for the test would hold a virtual one.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.actors.steps.conftest import Open
from tests.actors.turns.world import World, dying, world
from understudy import (
    Actor,
    Backoff,
    OutcomeUnknown,
    Policy,
    Rate,
    StepFailed,
    StepTimeout,
    handler,
    on,
    restart,
    retry,
    step,
    tool,
)

pytestmark = pytest.mark.anyio

AT_ONCE = Backoff(0.0, max_s=0.0)


@pytest.fixture
def anyio_backend() -> Any:
    return "asyncio"


def work(what: str) -> str:
    outside = world()
    outside.did.append(f"{what} began")
    outside.seen["began"]()
    outside.threads["go on"].wait(20)
    if outside.seen.get("thread raises"):
        raise outside.seen.pop("thread raises")
    outside.did.append(f"{what} ended")
    return f"{what} done"


@step
def blocking(what: str) -> str:
    return work(what)


@step(timeout_s=0.02)
def blocking_with_timeout(what: str) -> str:
    return work(what)


@step(timeout_s=0.02, policy=Policy(on(StepTimeout, retry(times=50, backoff=Backoff(0.01, factor=1.0)))))
def patient(what: str) -> str:
    return work(what)


@step(interrupted="fail")
def charge(what: str) -> str:
    return work(what)


@step(interrupted="fail", timeout_s=0.02)
def charge_with_timeout(what: str) -> str:
    return work(what)


@tool(
    rate=Rate(1_000), timeout_s=0.02, policy=Policy(on(StepTimeout, retry(times=50, backoff=Backoff(0.01, factor=1.0))))
)
def blocking_tool(what: str) -> str:
    """Work on a thread."""
    return work(what)


class Worker(Actor, kind="worker"):
    policy = Policy(
        on((StepTimeout, OutcomeUnknown), restart(times=1, backoff=Backoff(0.01, max_s=0.01))),
        on(RuntimeError, restart(times=1, backoff=AT_ONCE)),
    )

    @handler
    async def beside_a_failure(self, which: str) -> str:
        does = {"blocking": blocking, "charge": charge}[which]
        working = asyncio.ensure_future(does("x"))
        if self.turn.attempt == 1:
            await world().wait("began")
            raise RuntimeError("the other branch")
        world().reach("second attempt")
        return await working

    @handler
    async def after_a_timeout(self) -> str:
        if self.turn.attempt == 2:
            world().threads["go on"].set()
        return await blocking_with_timeout("x")

    @handler
    async def after_the_thread(self) -> str:
        try:
            return await blocking_with_timeout("x")
        except StepTimeout:
            world().threads["go on"].set()
            while "x ended" not in world().did and "thread raises" in world().seen:
                await asyncio.sleep(0.001)
            raise

    @handler
    async def patiently(self) -> str:
        asyncio.get_running_loop().call_later(0.1, world().threads["go on"].set)
        return await patient("x")

    @handler
    async def by_tool(self) -> str:
        asyncio.get_running_loop().call_later(0.1, world().threads["go on"].set)
        return await blocking_tool("x")

    @handler
    async def charge_with_timeout(self) -> str:
        return await charge_with_timeout("x")

    @handler
    async def plainly(self) -> str:
        return await blocking("x")


@pytest.fixture
def outside() -> Any:
    made = World()
    loop_of: list[asyncio.AbstractEventLoop] = []

    def began() -> None:
        loop_of[0].call_soon_threadsafe(made.reach, "began")

    def arm() -> World:
        loop_of.append(asyncio.get_running_loop())
        return made

    made.seen["began"] = began
    made.seen["arm"] = arm
    yield made
    made.threads["go on"].set()


@pytest.fixture(autouse=True)
async def armed(outside: World) -> None:
    outside.seen["arm"]()


async def test_sync_step_runs_on_a_thread_and_its_result_is_journaled(open_system: Open, outside: World) -> None:
    outside.threads["go on"].set()

    async with open_system(Worker) as system:
        assert await system.actor(Worker, "w").plainly() == "x done"

    assert outside.did == ["x began", "x ended"]


@pytest.mark.parametrize("which", ["blocking", "charge"])
async def test_thread_that_outlives_its_attempt_is_joined_by_the_next(
    open_system: Open, outside: World, which: str
) -> None:
    async with open_system(Worker) as system:
        working = asyncio.ensure_future(system.actor(Worker, "w").beside_a_failure(which))
        await outside.wait("second attempt")
        outside.threads["go on"].set()

        assert await working == "x done"

    assert outside.did == ["x began", "x ended"]


async def test_thread_that_timed_out_is_joined_by_the_next_attempt(open_system: Open, outside: World) -> None:
    async with open_system(Worker) as system:
        assert await system.actor(Worker, "w").after_a_timeout() == "x done"

    assert outside.did == ["x began", "x ended"]


async def test_thread_that_ended_after_its_timeout_is_not_run_again(open_system: Open, outside: World) -> None:
    async with open_system(Worker) as system:
        assert await system.actor(Worker, "w").after_the_thread() == "x done"

    assert outside.did == ["x began", "x ended"]


async def test_retry_of_a_timed_out_thread_waits_for_it_again(open_system: Open, outside: World) -> None:
    async with open_system(Worker) as system:
        assert await system.actor(Worker, "w").patiently() == "x done"

    assert outside.did == ["x began", "x ended"]


async def test_sync_tool_with_a_rate_is_joined_too(open_system: Open, outside: World) -> None:
    async with open_system(Worker, blocking_tool) as system:
        assert await system.actor(Worker, "w").by_tool() == "x done"

    assert outside.did == ["x began", "x ended"]


async def test_timed_out_thread_of_a_step_that_must_not_run_twice_is_unknown(open_system: Open, outside: World) -> None:
    async with open_system(Worker) as system:
        with pytest.raises(OutcomeUnknown, match=r"timeout_s=0.02"):
            await system.actor(Worker, "w").charge_with_timeout()

    assert outside.did == ["x began"]


async def test_thread_still_running_when_the_process_dies_leaves_its_step_unknown(
    open_system: Open, outside: World
) -> None:
    async with dying(open_system(Worker)) as system:
        job = await system.actor(Worker, "w").beside_a_failure.submit("charge")
        await outside.wait("second attempt")

    async with open_system(Worker) as again:
        with pytest.raises(OutcomeUnknown):
            await again.job(job.id)

    assert outside.did == ["x began"]


async def test_error_of_a_thread_is_the_steps_failure(open_system: Open, outside: World) -> None:
    outside.seen["thread raises"] = OSError("broken")
    outside.threads["go on"].set()

    async with open_system(Worker) as system:
        with pytest.raises(StepFailed, match="broken"):
            await system.actor(Worker, "w").plainly()
