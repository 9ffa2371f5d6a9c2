"""Who waits for an actor is found without looking at who waits for others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from understudy.actors.waiters import Waiters

pytestmark = pytest.mark.anyio


class Unscanned(dict[Any, Any]):
    """A dict that nobody may go through."""

    def __iter__(self) -> Any:
        pytest.fail("somebody looked at everybody")

    keys = values = items = __iter__  # type: ignore[assignment]


def future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


async def test_one_actor_among_fifty_thousand_is_told_without_looking_at_the_others() -> None:
    waiters = Waiters()
    for table in ("_waiting", "_actors", "_by_actor"):
        setattr(waiters, table, Unscanned())
    for no in range(50_000):
        waiters.add(no, future(), actor=no + 1)
    mine = [future(), future()]
    waiters.add(60_000, mine[0], actor=17)
    waiters.add(60_000, mine[1])

    assert waiters.take_actor(17)[1:] == mine
    assert waiters.take_actor(17) == []
    assert len(waiters) == 49_999


async def test_waiters_are_forgotten_with_all_that_was_known_of_them() -> None:
    waiters = Waiters()
    first, second, third = future(), future(), future()
    waiters.add(1, first)
    waiters.locate(1, 7)
    waiters.add(1, second)
    waiters.add(2, third, actor=7)

    waiters.leave(1, first)
    assert waiters.actor_of(1) == 7
    waiters.leave(1, second)
    waiters.leave(1, second)
    assert waiters.actor_of(1) == 0
    assert waiters.take_first(2) is third
    assert waiters.take_first(2) is None
    assert waiters.take_actor(7) == []
    assert not waiters._by_actor


async def test_actor_of_a_message_that_nobody_waits_for_is_not_remembered() -> None:
    waiters = Waiters()

    waiters.locate(1, 7)

    assert waiters.actor_of(1) == 0
    assert waiters.everybody() == []
