from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import Frugal, Shop, open_at, run, wait_until
from understudy import ActorSuspended, System
from understudy.events import ActorResumed
from understudy.testing import FakeAnthropic

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _broken() -> None:
    Shop.is_broken = True


async def hold(system: System) -> str:
    """Leave the shop suspended with its mail; return the job."""
    job = await system.actor(Shop, "a/1").sell.submit()
    with pytest.raises(ActorSuspended):  # Told once it is on disk.
        await job
    return job.id


async def test_actor_that_is_resumed_without_a_process_goes_on_at_the_next_opening(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    async with FakeAnthropic() as model, open_at(file, model) as system:
        job = await hold(system)
    Shop.is_broken = False

    result = await run("resume", file, "shop/a/1")

    assert (result.exit_code, result.stdout) == (0, "resumed shop/a/1\n")
    assert "it goes on when its program starts" in result.stderr
    async with FakeAnthropic() as model, open_at(file, model) as system:
        assert await system.job(job) == 1
        events = await system.recorder.events_of("actor shop/a/1")
    assert [type(each) for each in events][-1] is ActorResumed


async def test_process_that_owns_the_store_resumes_the_actor_at_once(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    async with FakeAnthropic() as model, open_at(file, model) as system:
        job = await hold(system)
        Shop.is_broken = False

        result = await run("resume", file, "shop/a/1")

        assert (result.exit_code, result.output) == (0, "resumed shop/a/1\n")
        assert await system.job(job) == 1


async def test_actor_that_is_not_held_or_not_there_is_refused_with_a_hint(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    async with FakeAnthropic() as model, open_at(file, model) as system:
        await hold(system)
        job = await system.actor(Shop, "b").wait.submit()
        await wait_until(system, job.id, "waiting")

    mistyped, waiting, plain = [await run("resume", file, name) for name in ("shp/a/1", "shop/b", "shop")]

    assert (mistyped.exit_code, waiting.exit_code, plain.exit_code) == (1, 1, 1)
    assert "has no actor 'shp/a/1' (expected KIND/ID). Did you mean shop/a/1?" in mistyped.output
    assert "shop/b is waiting: there is nothing to resume" in waiting.output
    assert "has no actor 'shop' (expected KIND/ID)" in plain.output


async def test_actor_that_a_budget_holds_is_resumed_with_a_word_about_it(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    async with FakeAnthropic() as model, open_at(file, model) as system:
        job = await system.actor(Frugal, "x").run.submit("Go")
        with pytest.raises(ActorSuspended):
            await job

    result = await run("resume", file, "frugal/x")

    assert result.exit_code == 0
    assert f"understudy raise {file} {job.id} --usd" in result.stderr
