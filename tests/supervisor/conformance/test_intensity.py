"""Restart intensity: what counts as an entry, what does not, and when a supervisor gives up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.supervisor.conformance.cast import (
    VIRTUAL_TIME,
    Missed,
    Part,
    Play,
    causes,
    restarts,
    soon,
    statuses,
    told,
)
from understudy import ActorStopped, Child, Supervisor, SystemFailed
from understudy.errors import RestartIntensityExceeded
from understudy.events import ChildStartFailed
from understudy.supervisor.specs import Strategy

pytestmark = VIRTUAL_TIME


def pool(*children: Any, **settings: Any) -> Supervisor:
    """Return a supervisor that is not restarted when it gives up: the system lives on, and can be asked."""
    return Supervisor("pool", children or [Child(Part, "a")], restart="temporary", **settings)


@pytest.mark.parametrize("max_restarts", [0, 1, 3, 7])
async def test_supervisor_restarts_so_often_and_gives_up_at_the_next_failure(play: Play, max_restarts: int) -> None:
    async with play.system(pool(max_restarts=max_restarts)) as system:
        play.fail("a hears x", times=max_restarts + 1)

        with pytest.raises(ActorStopped):
            await system.actor(Part, "a").hear("x")

        await soon()
        assert play.lines.count("start a") == 1 + max_restarts
        assert await statuses(system) == {}


@pytest.mark.parametrize("max_restarts", [1, 3, 7])
async def test_as_many_failures_as_are_allowed_are_only_restarts(play: Play, max_restarts: int) -> None:
    async with play.system(pool(max_restarts=max_restarts)) as system:
        play.fail("a hears x", times=max_restarts)

        assert await system.actor(Part, "a").hear("x") == ["x"]

        assert play.lines.count("start a") == 1 + max_restarts
        assert restarts(system, "pool") == max_restarts


async def test_max_restarts_of_zero_never_restarts(play: Play) -> None:
    async with play.system(pool(max_restarts=0)) as system:
        await soon(1000.0)
        play.fail("a hears x")

        with pytest.raises(ActorStopped):
            await system.actor(Part, "a").hear("x")

        assert play.moves() == ["start a", "stop a"]


async def test_default_is_three_restarts_within_five_seconds(play: Play) -> None:
    async with play.system(Supervisor("pool", [Child(Part, "a")], restart="temporary")) as system:
        play.fail("a hears x", times=3)
        await system.actor(Part, "a").hear("x")
        await soon(5.5)
        play.fail("a hears y", times=3)
        await system.actor(Part, "a").hear("y")

        play.fail("a hears z")
        with pytest.raises(ActorStopped):
            await system.actor(Part, "a").hear("z")


@pytest.mark.parametrize(("gap_s", "gives_up"), [(4.0, True), (4.0 + 2**-10, False), (4.0 - 2**-10, True)])
async def test_bound_is_inclusive_at_exactly_within_s(play: Play, gap_s: float, gives_up: bool) -> None:
    async with play.system(pool(max_restarts=1, within_s=4.0)) as system:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(1008.0 - loop.time())  # Seconds that a float holds exactly.
        play.forget()
        play.fail("a hears x")
        await system.actor(Part, "a").hear("x")
        await asyncio.sleep(1008.0 + gap_s - loop.time())
        play.fail("a hears y")
        await system.actor(Part, "a").hear.tell("y")
        await soon()

        failed_at = [at for line, at in zip(play.lines, play.at, strict=True) if "hears" in line]
        assert failed_at[0] == 1008.0
        assert failed_at[2] == 1008.0 + gap_s
        assert await statuses(system) == ({} if gives_up else {"pool": "running"})


async def test_window_slides_so_that_entries_leave_one_after_the_other(play: Play) -> None:
    async with play.system(pool(max_restarts=2, within_s=5.0)) as system:
        actor = system.actor(Part, "a")
        for _ in range(10):  # never three within five seconds, though far more than two in all
            play.fail("a hears x")
            await actor.hear("x")
            await soon(2.6)
        assert restarts(system, "pool") == 1
        await soon(0.1)

        play.fail("a hears y")
        await actor.hear("y")
        play.fail("a hears z", times=2)
        with pytest.raises(ActorStopped):
            await actor.hear("z")


async def test_children_of_one_supervisor_share_its_window(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Part, "b"), max_restarts=2)) as system:
        for id in "ab":
            play.fail(f"{id} hears x")
            await system.actor(Part, id).hear("x")
        assert restarts(system, "pool") == 2

        play.fail("a hears y")
        with pytest.raises(ActorStopped):
            await system.actor(Part, "a").hear("y")

        await soon()
        assert play.moves()[-2:] == ["stop a", "stop b"]


async def test_supervisors_have_windows_of_their_own(play: Play) -> None:
    inner = Supervisor("inner", [Child(Part, "b")], max_restarts=1)
    async with play.system(pool(Child(Part, "a"), inner, max_restarts=1)) as system:
        for id in "ab":
            play.fail(f"{id} hears x")
            assert await system.actor(Part, id).hear("x") == ["x"]

        assert restarts(system, "pool") == restarts(system, "inner") == 1


@pytest.mark.parametrize("max_restarts", [0, 1, 4])
@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
async def test_restart_whose_start_fails_is_a_further_entry(play: Play, strategy: Strategy, max_restarts: int) -> None:
    children = [Child(Part, "a"), Child(Part, "b")]
    async with play.system(pool(*children, strategy=strategy, max_restarts=max_restarts)) as system:
        play.forget()
        play.fail("start a", times=100)
        play.fail("a hears x")

        with pytest.raises(ActorStopped):
            await system.actor(Part, "a").hear("x")

        await soon()
        assert play.lines.count("start a") == max_restarts  # the failure, and each start that failed, is one entry
        assert play.lines.count("start b") == 0
        assert await statuses(system) == {}
        assert len(await told(system, "supervisor pool", ChildStartFailed)) == max_restarts


async def test_start_that_succeeds_at_the_last_attempt_goes_on(play: Play) -> None:
    async with play.system(pool(max_restarts=3)) as system:
        play.fail("start a", times=2)
        play.fail("a hears x")

        assert await system.actor(Part, "a").hear("x") == ["x"]

        assert restarts(system, "pool") == 3


async def test_attempts_that_lie_further_apart_than_the_window_are_made_for_ever(play: Play) -> None:
    class Slow(Part, kind="slow"):
        async def on_start(self) -> None:
            if "a hears x" in self.turn.resource(Play).lines:
                await asyncio.sleep(3.0)
            await super().on_start()

    async with play.system(pool(Child(Slow, "a"), max_restarts=1, within_s=2.0)) as system:
        play.fail("start a", times=20)
        play.fail("a hears x")
        await system.actor(Slow, "a").hear.tell("x")

        await soon(29.0)
        assert play.lines.count("start a") == 10
        assert await statuses(system, "pool") == {"a": "restarting"}

        await soon(60.0)
        assert await statuses(system, "pool") == {"a": "running"}
        assert await system.actor(Slow, "a").memory() == ["x"]


async def test_only_restarts_are_entries_not_what_is_ordered_or_ends_well(play: Play) -> None:
    children = [
        Child(Part, "a"),
        Child(Part, "quits", restart="transient"),
        Child(Part, "once", restart="temporary"),
    ]
    async with play.system(pool(*children, max_restarts=1)) as system:
        orders = system.supervisor("pool")
        for _ in range(3):
            await orders.terminate_child("a")
            await orders.restart_child("a")
        await system.actor(Part, "quits").leave("normal")
        await system.actor(Part, "once").leave("broken")
        await orders.start_child(Child(Part, "added"))
        await soon()

        assert restarts(system, "pool") == 0
        assert await statuses(system, "pool") == {"a": "running", "quits": "stopped", "added": "running"}


async def test_child_that_ends_itself_is_an_entry_like_one_that_fails(play: Play) -> None:
    async with play.system(pool(max_restarts=2)) as system:
        for reason in ("normal", "shutdown", "broken"):
            await system.actor(Part, "a").leave(reason)
            await soon()

        assert play.lines.count("start a") == 3
        assert await statuses(system) == {}


async def test_window_is_empty_when_a_supervisor_was_restarted(play: Play) -> None:
    inner = Supervisor("inner", [Child(Part, "a")], max_restarts=1)
    async with play.system(pool(inner, max_restarts=2, within_s=100.0)) as system:
        play.fail("a hears x", times=3)  # one restart, giving up, and one restart again

        assert await system.actor(Part, "a").hear("x") == ["x"]

        assert restarts(system, "inner") == 1
        assert restarts(system, "pool") == 1


async def test_giving_up_names_the_supervisor_its_limit_and_the_last_failure(play: Play) -> None:
    with pytest.raises(SystemFailed) as caught:  # noqa: PT012 - its end is what raises
        async with play.system(Supervisor("pool", [Child(Part, "a")], max_restarts=2, within_s=7.5)) as system:
            play.fail("a hears x", times=1000)
            await system.actor(Part, "a").hear.tell("x")
            await asyncio.Event().wait()

    assert causes(caught.value) == [SystemFailed, *[RestartIntensityExceeded] * 2, Missed]
    root = caught.value.__cause__
    assert isinstance(root, RestartIntensityExceeded)
    assert (root.supervisor, root.max_restarts, root.within_s) == ("root", 3, 5.0)
    inner = root.__cause__
    assert isinstance(inner, RestartIntensityExceeded)
    assert (inner.supervisor, inner.max_restarts, inner.within_s) == ("pool", 2, 7.5)
    assert "supervisor 'pool' gave up: more than 2 restarts within 7.5 s, the last one for 'a'" in str(inner)
