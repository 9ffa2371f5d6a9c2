"""Strategies: who else is restarted with a child that failed, in which order, and what a failed start on the way costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.conformance.cast import (
    VIRTUAL_TIME,
    Extra,
    Hurt,
    Part,
    Play,
    Walker,
    restarts,
    soon,
    statuses,
    told,
)
from understudy import ActorStopped, Child, Supervisor, handler
from understudy.events import ActorRestarted, ChildStartFailed, TurnEndedBySystem, TurnFailed, TurnStarted
from understudy.supervisor.specs import RestartType, Strategy

pytestmark = VIRTUAL_TIME


def group(strategy: Strategy, *children: Any, **settings: Any) -> Supervisor:
    return Supervisor("group", children or parts("abc"), strategy=strategy, **settings)


def parts(ids: str) -> list[Child]:
    return [Child(Part, id) for id in ids]


async def test_one_for_one_restarts_that_child_and_nobody_else(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("one_for_one")) as system:
        play.forget()
        play.fail("b hears x")

        await system.actor(Part, "b").hear("x")

        assert play.lines == ["b hears x", "stop b", "start b", "b hears x"]


async def test_one_for_all_stops_all_others_in_reverse_start_order_and_starts_all_in_order(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("one_for_all")) as system:
        play.forget()
        play.fail("b hears x")

        await system.actor(Part, "b").hear("x")
        await soon()

        assert play.moves() == ["stop b", "stop c", "stop a", "start a", "start b", "start c"]


async def test_rest_for_one_does_the_same_for_the_child_and_everything_started_after_it(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("rest_for_one", *parts("abcd"))) as system:
        play.forget()
        play.fail("b hears x")

        await system.actor(Part, "b").hear("x")
        await soon()

        assert play.moves() == ["stop b", "stop d", "stop c", "start b", "start c", "start d"]


async def test_rest_for_one_takes_nobody_along_when_the_last_one_fails(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("rest_for_one")) as system:
        play.forget()
        play.fail("c hears x")

        await system.actor(Part, "c").hear("x")
        await soon()

        assert play.moves() == ["stop c", "start c"]


async def test_rest_for_one_counts_children_that_were_added_as_started_last(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("rest_for_one")) as system:
        await system.supervisor("group").start_child(Child(Part, "0"))
        play.forget()
        play.fail("c hears x")

        await system.actor(Part, "c").hear("x")
        await soon()

        assert play.moves() == ["stop c", "stop 0", "start c", "start 0"]


async def test_old_object_has_released_what_it_took_before_the_new_one_is_started(tmp_path: Path) -> None:
    class Slow(Part, kind="slow"):
        async def on_stop(self) -> None:
            await soon(2.0)
            self.play.write(f"stop {self.id}")

    play = Play(tmp_path)
    async with play.system(group("one_for_one", Child(Slow, "s"))) as system:
        play.forget()
        play.fail("s hears x")

        await system.actor(Slow, "s").hear("x")

        assert play.lines == ["s hears x", "stop s", "start s", "s hears x"]


async def test_restart_waits_for_on_stop_of_the_one_that_failed_no_longer_than_its_shutdown_time(
    tmp_path: Path,
) -> None:
    class Stuck(Part, kind="stuck"):
        async def on_stop(self) -> None:
            self.play.write(f"stop {self.id}")
            await self.play.wait("never")

    play = Play(tmp_path)
    async with play.system(group("one_for_one", Child(Stuck, "s", shutdown_s=2.0))) as system:
        play.forget()
        play.fail("s hears x")

        await system.actor(Stuck, "s").hear("x")

        assert play.lines == ["s hears x", "stop s", "start s", "s hears x"]
        assert play.at[2] - play.at[1] == pytest.approx(2.0)
        play.open("never")


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
async def test_one_failure_is_one_entry_whatever_it_takes_along(tmp_path: Path, strategy: Strategy) -> None:
    play = Play(tmp_path)
    async with play.system(group(strategy, max_restarts=2)) as system:
        play.fail("a hears x", times=2)

        await system.actor(Part, "a").hear("x")

        assert restarts(system, "group") == 2
        assert await statuses(system, "group") == {"a": "running", "b": "running", "c": "running"}


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_temporary_siblings_swept_up_are_stopped_and_dropped(tmp_path: Path, strategy: Strategy) -> None:
    play = Play(tmp_path)
    tree = group(strategy, Child(Part, "a"), Child(Part, "t", restart="temporary"), Child(Part, "c"))
    async with play.system(tree) as system:
        play.forget()
        play.fail("a hears x")

        await system.actor(Part, "a").hear("x")
        await soon()

        assert play.moves() == ["stop a", "stop c", "stop t", "start a", "start c"]
        assert await statuses(system, "group") == {"a": "running", "c": "running"}
        with pytest.raises(ActorStopped, match="temporary"):
            await system.actor(Part, "t").hear("y")


async def test_transient_siblings_swept_up_are_started_again(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("one_for_all", Child(Part, "a"), Child(Part, "t", restart="transient"))) as system:
        play.forget()
        play.fail("a hears x")

        await system.actor(Part, "a").hear("x")
        await soon()

        assert play.moves() == ["stop a", "stop t", "start a", "start t"]


async def test_temporary_child_that_fails_takes_nobody_along(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("one_for_all", Child(Part, "a"), Child(Part, "t", restart="temporary"))) as system:
        play.forget()
        play.fail("t hears x")

        with pytest.raises(ActorStopped):
            await system.actor(Part, "t").hear("x")

        assert play.moves() == ["stop t"]
        assert restarts(system, "group") == 0


async def test_one_for_all_whose_start_fails_part_way_stops_those_just_restarted_and_retries_all(
    tmp_path: Path,
) -> None:
    play = Play(tmp_path)
    async with play.system(group("one_for_all")) as system:
        play.forget()
        play.fail("a hears x")
        play.fail("start c")

        await system.actor(Part, "a").hear("x")
        await soon()

        swept = ["stop a", "stop c", "stop b", "start a", "start b", "start c"]
        assert play.moves() == [*swept, "stop b", "stop a", "start a", "start b", "start c"]
        assert restarts(system, "group") == 2


async def test_rest_for_one_whose_start_fails_part_way_goes_on_from_the_failed_one(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("rest_for_one", *parts("abcd"))) as system:
        play.forget()
        play.fail("b hears x")
        play.fail("start c")

        await system.actor(Part, "b").hear("x")
        await soon()

        assert play.moves() == ["stop b", "stop d", "stop c", "start b", "start c", "start c", "start d"]
        assert restarts(system, "group") == 2
        assert await statuses(system, "group") == dict.fromkeys("abcd", "running")


async def test_start_that_fails_in_a_restart_is_an_event_with_its_error(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("one_for_one")) as system:
        play.fail("a hears x")
        play.fail("start a")

        await system.actor(Part, "a").hear("x")

        (event,) = await told(system, "supervisor group", ChildStartFailed)
        assert (event.child, event.error, event.message) == ("a", "Missed", "start a")


async def test_sibling_that_fails_while_it_is_swept_up_is_no_failure_of_its_own(tmp_path: Path) -> None:
    class Sore(Part, kind="sore"):
        """Turns its cancellation into a failure."""

        @handler
        async def rest(self) -> None:
            try:
                await self.play.wait("rested")
            finally:
                raise Hurt

    play = Play(tmp_path)
    async with play.system(group("one_for_all", Child(Part, "a"), Child(Sore, "s"))) as system:
        await system.actor(Sore, "s").rest.tell()
        await play.reached("rested")
        play.fail("a hears x")

        await system.actor(Part, "a").hear("x")
        await soon()

        assert restarts(system, "group") == 1
        assert await statuses(system, "group") == {"a": "running", "s": "running"}


@pytest.mark.parametrize(("strategy", "entries"), [("one_for_all", 1), ("rest_for_one", 1), ("one_for_one", 2)])
async def test_two_that_fail_at_the_same_moment_are_swept_up_once_where_one_takes_the_other_along(
    tmp_path: Path, strategy: Strategy, entries: int
) -> None:
    play = Play(tmp_path)
    async with play.system(group(strategy)) as system:
        jobs = [await system.actor(Part, id).hear_at.submit("door", "x") for id in "bc"]
        play.fail("b hears x")
        play.fail("c hears x")
        play.forget()

        play.open("door")
        for job in jobs:
            await job

        assert restarts(system, "group") == entries
        assert play.moves().count("start b") == play.moves().count("start c") == 1


async def test_every_child_that_is_restarted_is_an_event_with_the_reason(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("rest_for_one")) as system:
        play.fail("b hears x")

        await system.actor(Part, "b").hear("x")
        await soon()

        (own,) = await told(system, "actor part/b", ActorRestarted)
        (swept,) = await told(system, "actor part/c", ActorRestarted)
        assert "Missed" in own.reason
        assert "rest_for_one: b" in swept.reason
        assert "Missed" in swept.reason


async def test_supervisor_swept_up_stops_all_below_it_in_reverse_and_starts_it_in_order(tmp_path: Path) -> None:
    play = Play(tmp_path)
    inner = Supervisor("inner", parts("bc"))
    async with play.system(group("one_for_all", Child(Part, "a"), inner, Child(Part, "d"))) as system:
        play.forget()
        play.fail("a hears x")

        await system.actor(Part, "a").hear("x")
        await soon()

        assert play.moves() == ["stop a", "stop d", "stop c", "stop b", "start a", "start b", "start c", "start d"]
        assert restarts(system, "inner") == 0


async def test_actors_of_a_template_swept_up_are_ended_and_their_messages_delivered_again(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("one_for_all", Child(Part, "a"), Extra)) as system:
        job = await system.actor(Extra, "e").pause.submit("door")
        await play.reached("door")
        play.forget()
        play.fail("a hears x")

        await system.actor(Part, "a").hear("x")
        play.open("door")
        await job

        assert play.lines.count("e pauses") == 1
        assert play.moves() == ["stop a", "stop e", "start a", "start e"]


async def test_turn_that_a_strategy_ended_counts_neither_as_attempt_nor_as_failure(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("one_for_all", Child(Part, "a"), Child(Part, "b")), trace="all") as system:
        job = await system.actor(Part, "b").pause.submit("door")
        await play.reached("door")
        play.fail("a hears x")

        await system.actor(Part, "a").hear("x")
        play.open("door")
        await job

        (ended,) = await told(system, job.id, TurnEndedBySystem)
        assert ended.reason == "stopped by its supervisor"
        assert [each.attempt for each in await told(system, job.id, TurnStarted)] == [1, 1]
        assert await told(system, job.id, TurnFailed) == []


async def test_template_stands_in_the_start_order_and_is_swept_up_with_its_place(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group("rest_for_one", Extra, Child(Part, "a"), Walker)) as system:
        await system.actor(Extra, "e").hear("hello")
        await system.actor(Walker, "w").hear("hello")
        play.forget()
        play.fail("a hears x")

        await system.actor(Part, "a").hear("x")
        await soon()

        assert play.moves() == ["stop a", "stop w", "start a"]
        assert await system.actor(Extra, "e").worn() is None
        assert play.moves() == ["stop a", "stop w", "start a"]


@pytest.mark.parametrize("restart", ["permanent", "transient"])
async def test_strategies_start_stopped_siblings_too(tmp_path: Path, restart: RestartType) -> None:
    # As OTP does: one_for_all starts every spec that the supervisor has.
    play = Play(tmp_path)
    async with play.system(group("one_for_all", Child(Part, "a"), Child(Part, "b", restart=restart))) as system:
        await system.supervisor("group").terminate_child("b")
        play.forget()
        play.fail("a hears x")

        await system.actor(Part, "a").hear("x")
        await soon()

        assert play.moves() == ["stop a", "start a", "start b"]
        assert await system.actor(Part, "b").hear("y") == ["y"]
