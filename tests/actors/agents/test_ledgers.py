"""Ledgers under many calls at once: first come first served, never beyond a limit, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from pathlib import Path

import pytest

from understudy import Budget, System
from understudy.actors.ledgers import Ledgers
from understudy.actors.open_ledger import RESERVATION, WORKFLOW, OpenLedger, Reserved
from understudy.codec import encode
from understudy.endpoint.ledger import NOTHING, Amount
from understudy.errors import BudgetExceeded
from understudy.mailbox.commit import Record

pytestmark = pytest.mark.anyio


def calls(number: int) -> Amount:
    return Amount(0, 0, number)


async def kept(system: System, name: str, model_calls: int | None) -> OpenLedger:
    ledger = await system.ledgers.workflow(name, Budget(model_calls=model_calls))
    system.ledgers.keep(ledger)
    return ledger


async def test_a_small_call_does_not_overtake_a_large_one_that_waits(tmp_path: Path) -> None:
    async with System(tmp_path / "a.db") as system:
        ledger = await kept(system, "w", 10)
        first = await system.ledgers.reserve([ledger], calls(8))
        large = asyncio.create_task(system.ledgers.reserve([ledger], calls(5)))
        await asyncio.sleep(0)
        small = asyncio.create_task(system.ledgers.reserve([ledger], calls(1)))
        await asyncio.sleep(1)
        assert not large.done()
        assert not small.done()

        system.ledgers.settle(first, calls(1))
        await asyncio.sleep(0)

        assert large.done()
        assert small.done()
        assert ledger.state.reserved == calls(6)


async def test_a_call_that_waits_in_one_ledger_does_not_hold_up_the_others_of_another(tmp_path: Path) -> None:
    async with System(tmp_path / "a.db") as system:
        outer, inner = await kept(system, "outer", 10), await kept(system, "inner", 2)
        taken = await system.ledgers.reserve([outer, inner], calls(2))
        waits = asyncio.create_task(system.ledgers.reserve([outer, inner], calls(2)))
        await asyncio.sleep(0)

        await system.ledgers.reserve([outer], calls(6))  # At once, although another call waits that draws on it too.

        assert outer.state.reserved == calls(8)
        beside = await system.ledgers.reserve([outer], calls(2))
        system.ledgers.settle(taken, calls(0))  # Room in both of them.
        assert (await waits).amount == calls(2)
        assert outer.state.reserved == calls(10)
        system.ledgers.settle(beside, NOTHING)


async def test_a_call_keeps_its_place_when_it_is_held_up_by_one_ledger_after_the_other(tmp_path: Path) -> None:
    async with System(tmp_path / "a.db") as system:
        outer, inner = await kept(system, "outer", 4), await kept(system, "inner", 2)
        within = await system.ledgers.reserve([outer, inner], calls(2))
        waits = asyncio.create_task(system.ledgers.reserve([outer, inner], calls(1)))
        await asyncio.sleep(0)
        around = await system.ledgers.reserve([outer], calls(2))
        later = asyncio.create_task(system.ledgers.reserve([outer], calls(3)))
        await asyncio.sleep(0)
        assert [len(each.queue) for each in (outer, inner)] == [1, 1]

        system.ledgers.settle(within, calls(0))

        assert (await waits).amount == calls(1)
        assert not later.done()
        system.ledgers.settle(around, NOTHING)
        assert (await later).amount == calls(3)


async def test_a_later_call_does_not_overtake_one_that_came_to_the_same_ledger_after_it(tmp_path: Path) -> None:
    async with System(tmp_path / "a.db") as system:
        reserve, settle = system.ledgers.reserve, system.ledgers.settle
        outer, one, two = await kept(system, "outer", 10), await kept(system, "one", 5), await kept(system, "two", 2)
        in_one, in_two = await reserve([one], calls(5)), await reserve([two], calls(2))
        first = asyncio.create_task(reserve([outer, one], calls(5)))
        await asyncio.sleep(0)
        second = asyncio.create_task(reserve([outer, two], calls(1)))
        await asyncio.sleep(0)
        around = await reserve([outer], calls(8))

        settle(in_one, NOTHING)  # The first one waits in the outer ledger from now on, for more room than there is.
        settle(in_two, NOTHING)
        await asyncio.sleep(1)

        assert not second.done()
        settle(around, NOTHING)
        assert (await first).amount == calls(5)
        assert (await second).amount == calls(1)


async def test_a_call_that_waits_is_refused_when_what_is_spent_leaves_no_room(tmp_path: Path) -> None:
    async with System(tmp_path / "a.db") as system:
        ledger = await kept(system, "w", 10)
        first = await system.ledgers.reserve([ledger], calls(8))
        waits = asyncio.create_task(system.ledgers.reserve([ledger], calls(5)))
        behind = asyncio.create_task(system.ledgers.reserve([ledger], calls(2)))
        await asyncio.sleep(0)

        system.ledgers.settle(first, calls(8))

        with pytest.raises(BudgetExceeded, match=r"8 model calls of 10 .* up to 5 model calls"):
            await waits
        await behind
        assert ledger.state.reserved == calls(2)


async def test_a_raised_limit_lets_those_go_on_that_wait(tmp_path: Path) -> None:
    async with System(tmp_path / "a.db") as system:
        workflow = system.workflow("w", budget=Budget(model_calls=10))
        ledger = await kept(system, "w", 10)
        await system.ledgers.reserve([ledger], calls(8))
        waits = asyncio.create_task(system.ledgers.reserve([ledger], calls(5)))
        await asyncio.sleep(0)
        assert ledger.queue

        await workflow.raise_budget(model_calls=13)

        assert (await waits).amount == calls(5)


@pytest.mark.parametrize("damage", ["body = x'ff'", "checksum = 7"])
async def test_a_damaged_reservation_keeps_no_other_from_its_ledger(tmp_path: Path, damage: str) -> None:
    async with System(tmp_path / "a.db") as system:
        await kept(system, "w", 100)
        for number in range(3):
            body = encode(Reserved([WORKFLOW + "w"], calls(10**number)))
            system.committer.touch().put(Record(RESERVATION, f"r{number}", body))
        await system.committer.wait_durable()
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as connection, connection:
        connection.execute(f"UPDATE record SET {damage} WHERE id = 'r1'")

    for _ in range(2):  # Booked once.
        async with System(tmp_path / "a.db") as system:
            assert (await system.workflow("w").spent()).model_calls == 101


async def test_a_ledger_that_nobody_uses_leaves_memory_and_comes_back_as_it_was(tmp_path: Path) -> None:
    async with System(tmp_path / "a.db") as system:
        ledger = await kept(system, "w", 10)
        system.ledgers.settle(await system.ledgers.reserve([ledger], calls(8)), calls(3), calls(1))
        assert ledger.id in system.ledgers._open
        system.ledgers.release(ledger)
        await system.committer.wait_durable()
        await asyncio.sleep(0.1)

        assert not system.ledgers._open
        again = await system.ledgers.workflow("w", None)
        assert again is not ledger
        assert (again.state.spent, again.state.unknown, again.state.reserved) == (calls(3), calls(1), NOTHING)


async def test_many_calls_in_nested_ledgers_never_go_beyond_a_limit_and_all_end(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(seed)
    granted: dict[tuple[str, ...], list[int]] = {}
    outcomes = {"done": 0, "refused": 0, "cancelled": 0}

    def look(_: Ledgers, ledger: OpenLedger) -> None:
        most = ledger.state.budget.model_calls
        together = ledger.state.spent + ledger.state.reserved
        assert most is None or together.calls <= most
        assert ledger.state.reserved.calls >= 0

    monkeypatch.setattr(Ledgers, "changed", look)

    async with System(tmp_path / "a.db") as system:
        root = await kept(system, "root", 400)
        teams = [await kept(system, f"team{number}", 40) for number in range(8)]
        runs = [await kept(system, f"run{number}", dice.choice([None, 6, 20])) for number in range(40)]

        async def call(number: int) -> None:
            run = dice.randrange(40)
            chain = dice.choice([[root, teams[run % 8], runs[run]], [root, teams[run % 8]], [root]])
            wanted = dice.randint(1, 5)
            try:
                reservation = await system.ledgers.reserve(chain, calls(wanted))
            except BudgetExceeded:
                outcomes["refused"] += 1
                return
            granted.setdefault((*(each.id for each in chain), str(wanted)), []).append(number)
            try:
                await asyncio.sleep(dice.random())
                used = dice.randint(0, wanted)
                system.ledgers.settle(reservation, calls(used))
                outcomes["done"] += 1
            finally:
                system.ledgers.settle(reservation, calls(wanted))  # Of a cancelled one; else it was settled.

        tasks = [asyncio.create_task(call(number)) for number in range(600)]
        for task in dice.sample(tasks, 60):
            await asyncio.sleep(dice.random() / 10)
            outcomes["cancelled"] += task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        assert outcomes["done"] > 50
        assert outcomes["refused"] > 50
        assert outcomes["cancelled"] > 5
        for ledger in (root, *teams, *runs):
            assert ledger.state.reserved == NOTHING
            assert not ledger.queue
        await system.committer.wait_durable()
        assert await system.store.records("reservation", None, "", 9) == []
    # Calls that want the same are served in the order in which they came.
    assert all(numbers == sorted(numbers) for numbers in granted.values())
