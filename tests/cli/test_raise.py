from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import Boss, Frugal, Helper, open_at, run, wait_until
from understudy import ActorSuspended, Budget, System
from understudy.testing import FakeAnthropic, calls, says

pytestmark = pytest.mark.anyio


async def hold(system: System) -> str:
    """Leave an agent that its budget holds; return the job."""
    job = await system.actor(Frugal, "x").run.submit("Go")
    with pytest.raises(ActorSuspended):
        await job
    return job.id


async def test_budget_that_is_raised_without_a_process_lets_its_run_go_on_at_the_next_opening(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    async with FakeAnthropic() as model, open_at(file, model) as system:
        job = await hold(system)

    result = await run("raise", file, job.partition("-")[0], "--usd", "1")

    assert (result.exit_code, result.stdout) == (0, f"raised the budget of {job}\n")
    assert "it goes on when its program starts" in result.stderr
    async with FakeAnthropic(says("done")) as model, open_at(file, model) as system:
        assert await system.job(job) == "done"
        ledger = await system.ledgers.find(job)
        assert ledger is not None
        assert ledger.state.budget == Budget(usd=1.0)
        assert [each async for each in system.suspended()] == []
    assert "budget raised" in (await run("trace", file, job)).output


async def test_process_that_owns_the_store_raises_the_budget_at_once(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    async with FakeAnthropic(says("done")) as model, open_at(file, model) as system:
        job = await hold(system)

        result = await run("raise", file, job, "--usd", "1")

        assert await system.job(job) == "done"
    assert (result.exit_code, result.output) == (0, f"raised the budget of {job}\n")


async def test_whole_numbers_stay_whole_on_their_way_to_the_owner(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    async with FakeAnthropic(says("done")) as model, open_at(file, model) as system:
        work = system.workflow("november", budget=Budget(tokens=10, model_calls=1))
        job = await work.actor(Frugal, "x").run.submit("Go")
        await wait_until(system, job.id, "suspended")

        both = await run("raise", file, "workflow:november", "--tokens", "100000", "--calls", "5")
        ledger = await system.ledgers.find("workflow:november")

        assert both.exit_code == 0, both.output
        assert ledger is not None
        assert ledger.state.budget == Budget(tokens=100_000, model_calls=5)


@pytest.mark.parametrize("is_live", [False, True])
async def test_workflow_lets_all_go_on_that_it_holds(tmp_path: Path, *, is_live: bool) -> None:
    file = tmp_path / "agents.db"
    answers = [calls(Helper.run, "Do it"), says("below"), says("above")]

    async with FakeAnthropic(*answers) as model:
        async with open_at(file, model) as system:
            job = await system.workflow("november", budget=Budget(model_calls=1)).actor(Boss, "b").run.submit("Go")
            await wait_until(system, job.id, "suspended")
            held = [each.kind async for each in system.suspended()]
            if is_live:
                result = await run("raise", file, "workflow:november", "--calls", "9")
        if not is_live:
            result = await run("raise", file, "workflow:november", "--calls", "9")
        async with open_at(file, model) as system:
            said = await system.job(job.id)
            left = [each async for each in system.suspended()]

    assert (held, result.exit_code, said, left) == (["boss", "helper"], 0, "above", [])


@pytest.mark.parametrize("is_live", [False, True])
async def test_limit_that_is_wrong_and_job_that_has_none_are_refused(tmp_path: Path, *, is_live: bool) -> None:
    file = tmp_path / "agents.db"
    wrong = [("JOB", "--usd", "0.0001"), ("JOB", "--tokens", "9"), ("999", "--usd", "1"), ("workflow:x", "--usd", "1")]
    wrong.append(("nope", "--usd", "1"))
    async with FakeAnthropic() as model, open_at(file, model) as system:
        job = await hold(system)
        live = [await run("raise", file, *(job if each == "JOB" else each for each in one)) for one in wrong if is_live]

    results = live or [await run("raise", file, *(job if each == "JOB" else each for each in one)) for one in wrong]

    assert [each.exit_code for each in results] == [1] * 5
    says_ = [each.stderr for each in results]
    assert "expected no less than the limit is now" in says_[0]
    assert "there is no such limit that could be raised; this budget has usd" in says_[1]
    assert says_[2].strip()
    assert "workflow 'x' is not known" in says_[3]
    assert "'nope' is no job" in says_[4]


async def test_command_without_a_limit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    async with FakeAnthropic() as model, open_at(file, model):
        pass

    result = await run("raise", file, "1")

    assert (result.exit_code, "give a new limit: --usd, --tokens, --calls or --wall-s." in result.output) == (2, True)


async def test_job_that_has_ended_and_holds_nobody_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "agents.db"
    async with FakeAnthropic(says("done")) as model, open_at(file, model) as system:
        job = await hold(system)
        await system.job(job).raise_budget(usd=1.0)
        await system.job(job)
        live = await run("raise", file, job, "--usd", "2")

    alone = await run("raise", file, job, "--usd", "2")

    assert [live.exit_code, alone.exit_code] == [1, 1]
    for each in (live, alone):
        assert f"job {job} has ended, and its budget holds no actor: there is nothing that could go on." in each.output
