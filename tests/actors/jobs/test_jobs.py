"""A job is a handle for ever: awaited, asked for its status, and found again after a restart, with its type."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from understudy import (
    Actor,
    ActorSuspended,
    HandlerFailed,
    Job,
    Limits,
    NotFound,
    System,
    handler,
)

pytestmark = pytest.mark.anyio


class Overdrawn(Exception):
    pass


class Balance(msgspec.Struct):
    cents: int = 0
    last: Job[int] | None = None


class Receipt(msgspec.Struct):
    cents: int
    note: str = ""


class Account(Actor[Balance], kind="account"):
    @handler
    async def deposit(self, cents: int) -> int:
        self.state.cents += cents
        return self.state.cents

    @handler(raises=[Overdrawn])
    async def withdraw(self, cents: int) -> Receipt:
        if cents > self.state.cents:
            raise Overdrawn(f"{cents} wanted")
        self.state.cents -= cents
        return Receipt(cents)

    @handler
    async def slow(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "slow"

    @handler
    async def broken(self) -> None:
        raise ValueError("a bug")

    @handler
    async def remember(self, job: Job[int]) -> None:
        self.state.last = job

    @handler
    async def last(self) -> Job[int] | None:
        return self.state.last

    @handler
    async def await_last(self) -> int:
        assert self.state.last is not None
        return await self.state.last


class NewBalance(msgspec.Struct):
    cents: int = 0
    currency: int = 0


class Text(msgspec.Struct):
    cents: str = ""


class TextAccount(Actor[Text], kind="account"):
    @handler
    async def deposit(self, cents: int) -> int:
        return cents


def system_at(path: Path, limits: Limits | None = None) -> System:
    return System(path, [Account], limits=limits)


async def test_job_is_awaited_as_often_as_one_likes(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Account, "a").deposit.submit(5)

        assert [await job, await job, await job.result()] == [5, 5, 5]


async def test_job_is_found_again_by_its_id_with_its_type(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Account, "a").deposit(100)
        id = (await system.actor(Account, "a").withdraw.submit(30)).id

        assert await system.job(id, Account.withdraw) == Receipt(30)
    async with system_at(path) as system:
        assert await system.job(id, Account.withdraw) == Receipt(30)
        assert await system.job(id) == {"cents": 30, "note": ""}
        assert (await system.job(id).status()).state == "done"


async def test_job_that_had_not_finished_goes_on_after_a_restart(path: Path) -> None:
    async with system_at(path, Limits(grace_s=1)) as system:
        job = await system.actor(Account, "a").slow.submit(100)
        queued = await system.actor(Account, "a").deposit.submit(5)
        await asyncio.sleep(1)
        assert (await job.status()).state == "running"
        assert (await queued.status()).state == "queued"

    async with system_at(path) as system:
        assert await system.job(job.id, Account.slow) == "slow"
        assert await system.job(queued.id, Account.deposit) == 5


async def test_refusal_is_raised_with_its_declared_type_after_a_restart(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Account, "a").withdraw.submit(30)
        with pytest.raises(Overdrawn, match="30 wanted"):
            await job
    async with system_at(path) as system:
        again = system.job(job.id, Account.withdraw)
        with pytest.raises(Overdrawn, match="30 wanted"):
            await again
        status = await again.status()
        assert status.state == "failed"
        assert status.reason is not None
        assert "30 wanted" in status.reason


async def test_bug_is_told_with_its_traceback_and_dead_letter(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Account, "a").broken.submit()
        with pytest.raises(HandlerFailed):
            await job
    async with system_at(path) as system:
        with pytest.raises(HandlerFailed, match="a bug") as caught:
            await system.job(job.id)

        assert caught.value.cause_type == "ValueError"
        assert caught.value.dead_letter == job.id
        assert "raise ValueError" in caught.value.traceback
        (letter,) = [letter async for letter in system.dead_letters()]
        assert "raise ValueError" in letter.traceback


async def test_status_follows_the_job(path: Path) -> None:
    async with system_at(path) as system:
        account = system.actor(Account, "a")
        delayed = await account.deposit.options(delay_s=100).submit(1)
        running = await account.slow.submit(10)
        await asyncio.sleep(1)
        queued = await account.deposit.submit(1)

        states = [(await job.status()).state for job in (delayed, running, queued)]
        await asyncio.sleep(200)
        later = [(await job.status()).state for job in (delayed, running, queued)]

        assert states == ["waiting", "running", "queued"]
        assert later == ["done", "done", "done"]


@pytest.mark.parametrize(
    "id", ["", "x", "17", "-abc", "17-", "1.5-abcdef", "٣-abcdef", "\ud800", "9" * 400, "9" * 5000 + "-abcdef"]
)
async def test_text_that_is_no_id_is_not_found(path: Path, id: str) -> None:
    async with system_at(path) as system:
        with pytest.raises(NotFound, match="no job id"):
            system.job(id)


async def test_id_of_another_store_is_not_found(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Account, "a").deposit.submit(5)
    async with system_at(path.with_name("other.db")) as system:
        with pytest.raises(NotFound, match="another store"):
            system.job(job.id)


async def test_unknown_and_expired_ids_say_which_of_the_two_is_possible(path: Path) -> None:
    limits = Limits(result_ttl_s=100)
    async with system_at(path, limits) as system:
        job = await system.actor(Account, "a").deposit.submit(5)
        await job
        number, _, tag = job.id.partition("-")
        unknown = system.job(f"{int(number) + 1_000_000}-{tag}")
        huge = system.job(f"{10**17}-{tag}")
        await asyncio.sleep(300)

        with pytest.raises(NotFound, match="expired"):
            await job
        with pytest.raises(NotFound, match="expired"):
            await job.status()
        for each in (unknown, huge):
            with pytest.raises(NotFound, match="never given"):
                await each
            with pytest.raises(NotFound, match="never given"):
                await each.status()
            with pytest.raises(NotFound, match="never given"):
                await each.cancel()


async def test_result_lives_as_long_as_its_time_to_live(path: Path) -> None:
    limits = Limits(result_ttl_s=1000)
    async with system_at(path, limits) as system:
        job = await system.actor(Account, "a").slow.submit(500)
        await asyncio.sleep(1400)

        assert await job == "slow"

        await asyncio.sleep(200)
        with pytest.raises(NotFound):
            await job


async def test_plain_message_leaves_no_result(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Account, "a").deposit(5)
        job = await system.actor(Account, "a").deposit.submit(5)
        number, _, tag = job.id.partition("-")

        with pytest.raises(NotFound, match="no job"):
            await system.job(f"{int(number) - 1}-{tag}")


async def test_awaiting_a_job_of_a_suspended_actor_says_why_and_again_after_resume(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Account, "a").deposit(5)
        job = await system.actor(Account, "a").deposit.options(delay_s=1000).submit(7)
    async with System(path, [TextAccount]) as system:
        await asyncio.sleep(2000)
        with pytest.raises(ActorSuspended, match="does not decode"):
            await system.job(job.id)
        status = await system.job(job.id).status()
        assert status.state == "suspended"
        assert status.reason is not None
        assert "does not decode" in status.reason
        with pytest.raises(ActorSuspended, match="stays suspended"):
            await system.resume(system.actor(TextAccount, "a"))
    async with system_at(path) as system:
        again = system.job(job.id, Account.deposit)
        with pytest.raises(ActorSuspended) as caught:
            await again
        assert "does not decode" in caught.value.reason

        await system.resume(system.actor(Account, "a"))

        assert await again == 12


async def test_waiting_for_a_timer_is_not_suspension(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Account, "a").deposit.options(delay_s=1000).submit(7)

        assert await job == 7


async def test_cancelled_waiter_leaves_the_job_alone(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Account, "a").slow.submit(100)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await job

        assert await job == "slow"


async def test_many_waiters_get_one_outcome(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Account, "a").slow.submit(100)

        assert await asyncio.gather(*(job.result() for _ in range(100))) == ["slow"] * 100


async def test_job_is_kept_in_state_and_passed_in_messages_across_a_restart(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Account, "a").deposit.submit(5)
        await system.actor(Account, "b").remember(job)
    async with system_at(path) as system:
        account = system.actor(Account, "b")

        found = await account.last()

        assert found == job
        assert found is not None
        assert await found == 5
        assert await account.await_last() == 5


async def test_result_that_the_asked_type_does_not_fit_is_told(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Account, "a").deposit.submit(5)

        with pytest.raises(Exception, match="does not decode"):
            await system.job(job.id, Account.slow)


async def test_message_that_was_only_told_is_no_job_while_it_runs_and_afterwards(path: Path) -> None:
    async with System(path, [Account]) as system:
        await system.actor(Account, "a").slow.tell(10)
        id = system.job_id(system.last_message)

        with pytest.raises(NotFound, match="was no job"):
            await asyncio.wait_for(system.job(id).result(), 5)
        await asyncio.sleep(20)
        with pytest.raises(NotFound, match="was no job"):
            await asyncio.wait_for(system.job(id).result(), 5)
