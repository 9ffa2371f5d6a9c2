"""Turns run ahead of the disk; nothing leaves the process before the commit that covers it (rules 1 to 7)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.actors.turns.world import World, world
from understudy import (
    Actor,
    HandlerFailed,
    Limits,
    MailboxFull,
    Policy,
    StoreFailed,
    SystemFailed,
    answer,
    handler,
    on,
    query,
    step,
)
from understudy.mailbox.commit import Batch, Committer

pytestmark = pytest.mark.anyio


class Balance(msgspec.Struct):
    cents: int = 0
    items: list[str] = []


@step
async def print_slip(text: str) -> None:
    world().did.append(text)


class Account(Actor[Balance], kind="account"):
    policy = Policy(on(OSError, answer()))

    @handler
    async def deposit(self, cents: int) -> int:
        self.state.cents += cents
        return self.state.cents

    @handler
    async def fail(self) -> None:
        self.state.cents = -1
        raise OSError("no paper")

    @handler
    async def deposit_and_print(self, cents: int) -> None:
        self.state.cents += cents
        await print_slip(f"+{cents}")

    @handler
    async def pass_on(self, to: str, cents: int) -> int:
        self.state.cents -= cents
        return await self.actor(Account, to).deposit(cents)

    @handler
    async def tell_on(self, to: str, cents: int) -> None:
        await self.actor(Account, to).deposit.tell(cents)

    @handler
    async def add(self, item: str) -> list[str]:
        self.state.items.append(item)
        return self.state.items

    @handler
    async def mark(self, at: str) -> None:
        world().reach(at)

    @query
    async def balance(self) -> int:
        return self.state.cents

    @query
    async def items(self) -> list[str]:
        return self.state.items


async def settle_loop() -> None:
    """Let everything run that can run."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_failed_turn_goes_back_to_the_last_finished_turn_not_the_last_committed_one(open_system: Any) -> None:
    async with open_system(Account) as system:
        alice = system.actor(Account, "alice")
        system.store.hold()
        deposit = asyncio.create_task(alice.deposit(500))
        failed = asyncio.create_task(alice.fail())
        await settle_loop()

        more = asyncio.create_task(alice.deposit(1))
        await settle_loop()
        system.store.release()

        assert await deposit == 500
        with pytest.raises(HandlerFailed, match="no paper"):
            await failed
        assert await more == 501


async def test_reply_to_an_outside_caller_waits_for_the_commit_that_covers_it(open_system: Any) -> None:
    async with open_system(Account) as system:
        alice = system.actor(Account, "alice")
        await alice.deposit(1)
        system.store.hold()

        ask = asyncio.create_task(alice.deposit(2))
        await system.store.wait_held()
        await settle_loop()

        assert not ask.done()
        system.store.release()
        assert await ask == 3


@pytest.mark.parametrize("verb", ["tell", "submit"])
async def test_tell_and_submit_return_when_the_message_is_on_disk(open_system: Any, verb: str) -> None:
    async with open_system(Account) as system:
        alice = system.actor(Account, "alice")
        await alice.deposit(1)
        system.store.hold()

        sent = asyncio.create_task(getattr(alice.deposit, verb)(2))
        await system.store.wait_held()
        await settle_loop()

        assert not sent.done()
        system.store.release()
        await sent


async def test_query_reads_the_last_finished_turn_and_its_reply_waits_for_that_turns_commit(open_system: Any) -> None:
    async with open_system(Account) as system:
        alice = system.actor(Account, "alice")
        await alice.deposit(1)
        system.store.hold()
        deposit = asyncio.create_task(alice.deposit(2))
        await system.store.wait_held()
        await settle_loop()

        balance = asyncio.create_task(alice.balance())
        await settle_loop()

        assert not balance.done()
        system.store.release()
        assert await balance == 3
        await deposit


async def test_step_body_waits_for_the_commit_of_its_own_message_and_of_what_came_before(
    open_system: Any, outside: World
) -> None:
    async with open_system(Account) as system:
        alice = system.actor(Account, "alice")
        await alice.deposit(1)
        system.store.hold()
        earlier = asyncio.create_task(alice.deposit(2))

        printed = asyncio.create_task(alice.deposit_and_print(3))
        await system.store.wait_held()
        await settle_loop()

        assert outside.did == []
        system.store.release()
        await asyncio.gather(earlier, printed)
        assert outside.did == ["+3"]


async def test_turns_of_other_actors_start_before_their_cause_is_on_disk(open_system: Any, outside: World) -> None:
    async with open_system(Account) as system:
        alice, bob = system.actor(Account, "alice"), system.actor(Account, "bob")
        await asyncio.gather(alice.deposit(10), bob.deposit(0))
        system.store.hold()
        blocked = asyncio.create_task(alice.deposit(0))
        await system.store.wait_held()

        passed = asyncio.create_task(alice.pass_on("bob", 4))
        seen = asyncio.create_task(bob.mark("bob has run"))
        await outside.wait("bob has run")

        assert not passed.done()
        system.store.release()
        assert await passed == 4
        await asyncio.gather(blocked, seen)


async def test_effect_is_never_in_an_earlier_commit_than_its_cause(open_system: Any) -> None:
    batches: list[tuple[set[int], set[int]]] = []

    async with open_system(Account) as system:
        alice = system.actor(Account, "alice")
        await asyncio.gather(alice.deposit(10), system.actor(Account, "bob").deposit(1))
        system.store.before_commit = lambda batch: batches.append((set(batch.snapshots), set(batch.envelopes)))

        await alice.pass_on("bob", 4)

    states = [number for number, (snapshots, _) in enumerate(batches) if snapshots]
    assert states == sorted(states)
    assert {1, 2} <= set.union(*(snapshots for snapshots, _ in batches))


async def test_message_stored_and_handled_in_one_commit_never_touches_the_table(open_system: Any) -> None:
    written: list[Any] = []

    def look(batch: Batch) -> None:
        written.extend([*batch.envelopes, *batch.finished])

    async with open_system(Account) as system:
        alice = system.actor(Account, "alice")
        await alice.deposit(1)
        system.store.before_commit = look

        await alice.deposit(2)
        system.store.before_commit = None

    assert written == []


async def test_of_several_states_of_one_actor_only_the_last_is_written(open_system: Any) -> None:
    bodies: list[bytes] = []

    async with open_system(Account) as system:
        alice = system.actor(Account, "alice")
        await alice.deposit(1)
        system.store.before_commit = lambda batch: bodies.extend(each.body for each in batch.snapshots.values())

        await asyncio.gather(*(alice.deposit(1) for _ in range(20)))
        system.store.before_commit = None

    assert len(bodies) <= 3
    assert msgspec.msgpack.decode(bodies[-1])["cents"] == 21


async def test_turn_that_changes_nothing_writes_no_state(open_system: Any) -> None:
    snapshots: list[int] = []

    async with open_system(Account) as system:
        alice = system.actor(Account, "alice")
        await alice.deposit(5)
        system.store.before_commit = lambda batch: snapshots.extend(batch.snapshots)

        await alice.deposit(0)
        unchanged = list(snapshots)
        await alice.deposit(1)

        assert (unchanged, len(snapshots)) == ([], 1)


async def test_accepted_messages_are_never_refused_afterwards_only_before(open_system: Any) -> None:
    async with open_system(Account, limits=Limits(mailbox_messages=3)) as system:
        alice = system.actor(Account, "alice")
        await alice.deposit(0)
        system.store.hold()

        tells = [asyncio.create_task(alice.deposit.options(delay_s=1).tell(1)) for _ in range(4)]
        await settle_loop()

        assert [each.done() for each in tells] == [False, False, False, True]
        system.store.release()
        results = await asyncio.gather(*tells, return_exceptions=True)
        assert [type(each) for each in results] == [type(None)] * 3 + [MailboxFull]


async def test_slow_disk_pauses_actors_that_tell_each_other_and_keeps_their_order(
    open_system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Committer, "BATCH_WORK", 50)
    ahead: list[int] = []

    async with open_system(Pinger) as system:
        left, right = system.actor(Pinger, "left"), system.actor(Pinger, "right")
        await asyncio.gather(left.heard(), right.heard())
        system.store.before_commit = lambda batch: ahead.append(batch.work)
        system.store.hold()

        await_done = asyncio.create_task(left.ping.tell("right", 300))
        await system.store.wait_held()
        for _ in range(2_000):
            await asyncio.sleep(0)
        waiting = system.committer.open.work
        system.store.release()
        await await_done
        while await right.heard() + await left.heard() < 301:
            await asyncio.sleep(0.01)

        assert waiting < 100
        assert max(ahead) < 100
        assert await left.order() == sorted(await left.order(), reverse=True)


class Heard(msgspec.Struct):
    numbers: list[int] = []


class Pinger(Actor[Heard]):
    @handler
    async def ping(self, other: str, left: int) -> None:
        self.state.numbers.append(left)
        if left:
            await self.actor(Pinger, other).ping.tell(self.id, left - 1)

    @query
    async def heard(self) -> int:
        return len(self.state.numbers)

    @query
    async def order(self) -> list[int]:
        return self.state.numbers


@pytest.mark.parametrize("fault", ["fail_before", "fail_after"])
async def test_failed_commit_stops_the_store_and_reopening_decides_from_the_disk(open_system: Any, fault: str) -> None:
    system = open_system(Account)
    outcome: list[BaseException] = []
    with pytest.raises(SystemFailed, match="outcome is unknown"):  # noqa: PT012 - its end is what raises
        async with system:
            alice = system.actor(Account, "alice")
            await alice.deposit(100)
            getattr(system.store, fault)()
            caller = asyncio.create_task(alice.deposit(1))
            try:
                await asyncio.Event().wait()
            finally:
                outcome.extend(await asyncio.gather(caller, system.failed(), return_exceptions=True))

    async with open_system(Account) as again:
        balance = await again.actor(Account, "alice").balance()

    assert [type(each) for each in outcome] == [StoreFailed, StoreFailed]
    assert balance == (100 if fault == "fail_before" else 101)


async def test_failed_commit_cancels_the_body_of_the_system(open_system: Any) -> None:
    waited_for_ever = False

    with pytest.raises(SystemFailed):  # noqa: PT012 - its end is what raises
        async with open_system(Account) as system:
            await system.actor(Account, "alice").deposit(1)
            system.store.fail_before()
            asyncio.get_running_loop().call_later(
                1, lambda: asyncio.ensure_future(refused(system.actor(Account, "alice").deposit(1)))
            )
            await asyncio.Event().wait()
            waited_for_ever = True

    assert not waited_for_ever


async def refused(sent: Any) -> None:
    with pytest.raises(StoreFailed):
        await sent


async def test_reply_is_a_copy_that_the_caller_may_change(open_system: Any) -> None:
    async with open_system(Account) as system:
        alice = system.actor(Account, "alice")

        items = await alice.add("tea")
        items.append("never sent")
        asked = await alice.items()
        asked.clear()

        assert await alice.add("milk") == ["tea", "milk"]
        assert await alice.items() == ["tea", "milk"]


async def test_reply_inside_a_turn_is_a_copy_too(open_system: Any) -> None:
    async with open_system(Account, Shopper) as system:
        await system.actor(Shopper, "s").shop()

        assert await system.actor(Account, "s").items() == ["tea"]


class Shopper(Actor):
    @handler
    async def shop(self) -> None:
        items = await self.actor(Account, self.id).add("tea")
        items.append("never sent")


async def test_argument_is_a_copy_that_the_caller_may_change_while_it_waits(open_system: Any) -> None:
    async with open_system(Basket) as system:
        goods = ["tea"]

        sent = asyncio.create_task(system.actor(Basket, "b").fill(goods))
        await asyncio.sleep(0)
        goods.append("late")

        assert await sent == ["tea"]


class Basket(Actor):
    @handler
    async def fill(self, goods: list[str]) -> list[str]:
        return goods
