"""Damaged rows and unregistered kinds: what they stop, and that nothing is dropped."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import msgspec
import pytest

from understudy import Actor, ActorSuspended, Limits, OutcomeUnknown, System, handler, query

pytestmark = pytest.mark.anyio


class Balance(msgspec.Struct):
    cents: int = 0


class Account(Actor[Balance], kind="account"):
    @handler
    async def deposit(self, cents: int) -> int:
        self.state.cents += cents
        return self.state.cents

    @query
    async def balance(self) -> int:
        return self.state.cents


class Entry(msgspec.Struct):
    cents: int


class Ledger(Actor[Balance, Entry], kind="ledger"):
    snapshot_every = 3

    def apply(self, event: Entry) -> None:
        self.state.cents += event.cents

    @handler
    async def enter(self, cents: int) -> int:
        self.record(Entry(cents))
        return self.state.cents

    @query
    async def total(self) -> int:
        return self.state.cents


class Pair(msgspec.Struct):
    account: Account | None = None


class Holder(Actor[Pair], kind="holder"):
    @handler
    async def hold(self, account: Account) -> None:
        self.state.account = account

    @handler
    async def pay(self) -> int:
        assert self.state.account is not None
        return await self.state.account.deposit(1)


class Other(Actor, kind="other"):
    @handler
    async def ping(self) -> str:
        return "pong"


def system_at(path: Path) -> System:
    return System(path, [Account, Ledger, Holder, Other])


def change(path: Path, sql: str) -> None:
    """Do to the file what a bad disk would."""
    connection = sqlite3.connect(path)
    with connection:
        assert connection.execute(sql).rowcount > 0
    connection.close()


async def test_damaged_state_suspends_its_actor_and_nobody_else(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Account, "a").deposit(5)
        await system.actor(Account, "b").deposit(7)
    change(path, "UPDATE snapshot SET body = x'80' WHERE actor = 1")

    async with system_at(path) as system:
        with pytest.raises(ActorSuspended, match="checksum") as caught:
            await system.actor(Account, "a").deposit(1)
        with pytest.raises(ActorSuspended, match="checksum"):
            await system.actor(Account, "a").balance()
        with pytest.raises(ActorSuspended, match="stays suspended"):
            await system.resume(system.actor(Account, "a"))

        assert "account/a" in caught.value.reason
        assert await system.actor(Account, "b").deposit(1) == 8
        rows = {row.id: row.status async for row in system.actors(Account)}
        assert rows == {"a": "suspended", "b": "active"}


async def test_swapped_states_are_found(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Account, "a").deposit(5)
        await system.actor(Account, "b").deposit(7)
    change(path, "UPDATE snapshot SET actor = CASE actor WHEN 1 THEN -2 ELSE -1 END")
    change(path, "UPDATE snapshot SET actor = -actor")

    async with system_at(path) as system:
        for name in "ab":
            with pytest.raises(ActorSuspended, match="checksum"):
                await system.actor(Account, name).deposit(1)


async def test_mended_state_goes_on_after_resume(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Account, "a").deposit(5)
    change(path, "UPDATE snapshot SET checksum = checksum + 1")
    async with system_at(path) as system:
        await system.actor(Account, "a").deposit.tell(7)
        with pytest.raises(ActorSuspended):
            await system.actor(Account, "a").deposit(1)
    change(path, "UPDATE snapshot SET checksum = checksum - 1")

    async with system_at(path) as system:
        with pytest.raises(ActorSuspended):
            await system.actor(Account, "a").deposit(1)
        await system.resume(system.actor(Account, "a"))

        assert await system.actor(Account, "a").deposit(1) == 13


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE event SET body = x'93' WHERE seq = 2",
        "UPDATE event SET checksum = 0 WHERE seq = 2",
        "DELETE FROM event WHERE seq = 1",
    ],
)
async def test_damaged_event_suspends_its_actor_for_good(path: Path, damage: str) -> None:
    async with system_at(path) as system:
        await system.actor(Ledger, "l").enter(1)
        await system.actor(Ledger, "l").enter(2)
    change(path, damage)

    async with system_at(path) as system:
        with pytest.raises(ActorSuspended):
            await system.actor(Ledger, "l").enter(3)
        with pytest.raises(ActorSuspended, match="stays suspended"):
            await system.resume(system.actor(Ledger, "l"))
        with pytest.raises(ActorSuspended):
            await system.actor(Ledger, "l").total()


async def test_damaged_message_suspends_its_actor(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Account, "a").deposit(1)
        for cents in (2, 3):
            await system.actor(Account, "a").deposit.options(delay_s=1000).tell(cents)
    change(path, "UPDATE message SET body = x'80', due_at = NULL WHERE no = 2")

    async with system_at(path) as system:
        with pytest.raises(ActorSuspended, match="message 2"):
            await system.actor(Account, "a").deposit(1)
        (row,) = [row async for row in system.actors(Account)]
        assert (row.status, row.waiting) == ("suspended", 2)


async def test_damaged_timer_does_not_stop_the_others(path: Path) -> None:
    async with system_at(path) as system:
        for cents in (2, 3):
            await system.actor(Account, f"a{cents}").deposit.options(delay_s=1000).tell(cents)
    change(path, "UPDATE message SET body = x'80' WHERE no = 1")

    async with system_at(path) as system:
        await asyncio.sleep(1100)

        assert await system.actor(Account, "a3").balance() == 3


async def test_damaged_result_is_an_unknown_outcome(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Account, "a").deposit.submit(5)
        await job
    change(path, "UPDATE result SET outcome = x'9105'")

    async with system_at(path) as system:
        with pytest.raises(OutcomeUnknown):
            await system.job(job.id)
        assert await system.actor(Account, "a").balance() == 5


async def test_state_with_a_ref_to_an_unregistered_kind_suspends_and_says_so(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Holder, "h").hold(system.actor(Account, "a"))
    async with System(path, [Holder, Other]) as system:
        with pytest.raises(ActorSuspended, match="'account'"):
            await system.actor(Holder, "h").pay()
        assert await system.actor(Other, "o").ping() == "pong"
    async with system_at(path) as system:
        await system.resume(system.actor(Holder, "h"))
        assert await system.actor(Holder, "h").pay() == 1


async def test_mail_of_an_unregistered_kind_waits_and_goes_on_when_its_code_is_back(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Account, "a").deposit(1)
        job = await system.actor(Account, "a").deposit.options(delay_s=10).submit(2)
        await system.actor(Account, "a").deposit.options(delay_s=20).tell(3)
        keyed = await system.actor(Account, "a").deposit.options(delay_s=20, key="k").submit(4)
    for _ in range(2):
        async with System(path, [Other]) as system:
            await asyncio.sleep(100)
            assert (await system.job(job.id).status()).state == "queued"
            (row,) = [row async for row in system.actors()]
            assert (row.kind, row.id, row.status, row.waiting) == ("account", "a", "active", 3)
            assert await system.actor(Other, "o").ping() == "pong"
            system_rows = [letter async for letter in system.dead_letters()]
            assert system_rows == []
        change(path, "DELETE FROM actor WHERE kind = 'other'")
    async with system_at(path) as system:
        assert await system.job(job.id) == 3
        assert await system.actor(Account, "a").deposit.options(key="k")(4) == 10
        assert await system.job(keyed.id) == 10


async def test_queue_of_an_unregistered_kind_waits_too(path: Path) -> None:
    class Slow(Actor, kind="slow"):
        @handler
        async def work(self) -> None:
            await asyncio.sleep(100)

    async with System(path, [Slow, Other]) as system:
        jobs = [await system.actor(Slow, "s").work.submit() for _ in range(3)]
        system.limits = type(system.limits)(grace_s=0.1)
    async with System(path, [Other]) as system:
        await asyncio.sleep(1000)
        (row,) = [row async for row in system.actors()]
        assert row.waiting == 3
    async with System(path, [Slow, Other]) as system:
        start = asyncio.get_running_loop().time()
        for job in jobs:
            await system.job(job.id)
        assert asyncio.get_running_loop().time() - start == pytest.approx(300, abs=5)


class Slow(Actor, kind="slow"):
    @handler
    async def work(self) -> int:
        await asyncio.sleep(100)
        return 1


class Asker(Actor, kind="asker"):
    @handler
    async def go(self) -> int:
        return await self.actor(Slow, "s").work()


async def test_damaged_message_suspends_the_actor_whose_turn_asked_it_and_nobody_else(path: Path) -> None:
    async with System(path, [Asker, Slow, Other], limits=Limits(grace_s=1)) as system:
        job = await system.actor(Asker, "a").go.submit()
        await asyncio.sleep(1)
    change(path, "UPDATE message SET checksum = checksum + 1 WHERE handler = 'work'")
    for _ in range(2):
        async with System(path, [Asker, Slow, Other], limits=Limits(grace_s=1)) as system:
            await asyncio.sleep(1)

            assert await system.actor(Other, "o").ping() == "pong"
            assert {row.kind: row.status async for row in system.actors()}["asker"] == "suspended"
            with pytest.raises(ActorSuspended, match="checksum"):
                await system.job(job.id)
    change(path, "UPDATE message SET checksum = checksum - 1 WHERE handler = 'work'")

    async with System(path, [Asker, Slow, Other]) as system:
        await system.resume(system.actor(Slow, "s"))
        await system.resume(system.actor(Asker, "a"))

        assert await system.job(job.id) == 1
