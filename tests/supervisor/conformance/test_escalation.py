"""Escalation: a supervisor that gives up exits with `shutdown`, its parent decides, and over the root the system stops."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.conformance.cast import (
    VIRTUAL_TIME,
    Extra,
    Fire,
    Missed,
    Part,
    Play,
    causes,
    letters,
    restarts,
    soon,
    statuses,
    told,
)
from understudy import (
    ActorStopped,
    Child,
    NotFound,
    RestartIntensityExceeded,
    Supervisor,
    System,
    SystemFailed,
)
from understudy.events import Escalated, SupervisorRestarted, SupervisorStopped, SystemStarted, SystemStopped
from understudy.supervisor.specs import RestartType

pytestmark = VIRTUAL_TIME


def group(*children: Any, name: str = "group", max_restarts: int = 0, **settings: Any) -> Supervisor:
    """Return a supervisor that gives up at the first failure, unless told otherwise."""
    given = children or (Child(Part, "a"), Child(Part, "b"), Child(Part, "c"))
    return Supervisor(name, given, max_restarts=max_restarts, **settings)


async def hear_until_it_fails(system: System, cls: type[Part], id: str, *before: str) -> None:
    """Live through a life that the failing line "x" ends."""
    async with system:
        for line in before:
            await system.actor(cls, id).hear(line)
        await system.actor(cls, id).hear.tell("x")
        await soon(60.0)


# --- a supervisor under another ------------------------------------------------------------------------------------


async def test_supervisor_over_its_limit_stops_all_children_in_reverse(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group(restart="temporary")) as system:
        play.forget()
        play.fail("b hears x")

        await system.actor(Part, "b").hear.tell("x")
        await soon()

        assert play.moves() == ["stop b", "stop c", "stop a"]


async def test_it_exits_with_shutdown_and_says_that_its_restart_intensity_was_exceeded(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group(restart="temporary", max_restarts=1, within_s=7.0)) as system:
        play.fail("b hears x", times=2)

        await system.actor(Part, "b").hear.tell("x")
        await soon()

        (gave_up,) = await told(system, "supervisor group", Escalated)
        (stopped,) = await told(system, "supervisor group", SupervisorStopped)
        assert gave_up.child == "b"
        assert "more than 1 restarts within 7 s" in gave_up.reason
        assert "Missed" in gave_up.reason
        assert stopped.reason == "shutdown"


async def test_permanent_supervisor_is_restarted_with_one_entry_in_the_parents_window(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group()) as system:
        play.forget()
        play.fail("b hears x")

        await system.actor(Part, "b").hear("x")
        await soon()

        assert play.moves() == ["stop b", "stop c", "stop a", "start a", "start b", "start c"]
        assert restarts(system) == 1
        assert await statuses(system) == {"group": "running"}
        (event,) = await told(system, "supervisor group", SupervisorRestarted)
        assert "shutdown" in event.reason


async def test_restarted_supervisor_begins_with_an_empty_window(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group(max_restarts=1)) as system:
        play.fail("b hears x", times=3)

        assert await system.actor(Part, "b").hear("x") == ["x"]

        assert restarts(system) == 1
        assert restarts(system, "group") == 1


async def test_transient_supervisor_is_not_restarted_because_shutdown_is_a_normal_exit(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group(restart="transient"), Child(Part, "beside")) as system:
        play.forget()
        play.fail("b hears x")

        with pytest.raises(ActorStopped):
            await system.actor(Part, "b").hear("x")
        await soon()

        assert play.moves() == ["stop b", "stop c", "stop a"]
        assert await statuses(system) == {"group": "stopped", "beside": "running"}
        assert restarts(system) == 0
        with pytest.raises(ActorStopped):
            await system.actor(Part, "a").hear("y")


async def test_everybody_below_a_supervisor_that_does_not_come_back_refuses_mail(tmp_path: Path) -> None:
    play = Play(tmp_path)
    inner = Supervisor("inner", [Child(Part, "deep")])
    async with play.system(group(Child(Part, "b"), Extra, inner, restart="transient")) as system:
        await system.actor(Extra, "e").hear("hello")
        play.fail("b hears x")
        await system.actor(Part, "b").hear.tell("x")
        await soon()

        for actor in (system.actor(Extra, "e"), system.actor(Extra, "new"), system.actor(Part, "deep")):
            with pytest.raises(ActorStopped, match="shutdown"):
                await actor.hear("y")


async def test_transient_supervisor_that_gave_up_is_started_by_restart_child_and_its_mail_goes_on(
    tmp_path: Path,
) -> None:
    play = Play(tmp_path)
    async with play.system(group(restart="transient")) as system:
        play.fail("b hears x")
        await system.actor(Part, "b").hear.tell("x")
        await soon()

        await system.supervisor().restart_child("group")

        assert await system.actor(Part, "b").hear("y") == ["x", "y"]


async def test_temporary_supervisor_is_forgotten(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group(restart="temporary")) as system:
        play.fail("b hears x")

        with pytest.raises(ActorStopped):
            await system.actor(Part, "b").hear("x")
        await soon()

        assert await statuses(system) == {}
        with pytest.raises(NotFound):
            await system.supervisor("group").which_children()


async def test_restarted_supervisor_starts_its_static_children_only(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group()) as system:
        await system.supervisor("group").start_child(Child(Part, "added"))
        play.forget()
        play.fail("b hears x")

        await system.actor(Part, "b").hear("x")
        await soon()

        assert play.moves() == ["stop b", "stop added", "stop c", "stop a", "start a", "start b", "start c"]
        assert list(await statuses(system, "group")) == ["a", "b", "c"]
        with pytest.raises(ActorStopped, match="static children only"):
            await system.actor(Part, "added").hear("y")


async def test_static_child_that_was_deleted_is_there_again_after_a_restart(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group()) as system:
        await system.supervisor("group").terminate_child("c")
        await system.supervisor("group").delete_child("c")
        play.fail("b hears x")

        await system.actor(Part, "b").hear("x")
        await soon()

        assert await statuses(system, "group") == {"a": "running", "b": "running", "c": "running"}


async def test_parent_treats_it_as_one_child_of_its_strategy(tmp_path: Path) -> None:
    play = Play(tmp_path)
    inner = group(Child(Part, "b"), Child(Part, "c"), name="inner")
    outer = group(Child(Part, "a"), inner, Child(Part, "d"), name="outer", strategy="rest_for_one", max_restarts=1)
    async with play.system(outer) as system:
        play.forget()
        play.fail("b hears x")

        await system.actor(Part, "b").hear("x")
        await soon()

        assert play.moves() == ["stop b", "stop c", "stop d", "start b", "start c", "start d"]
        assert restarts(system, "outer") == 1


async def test_escalation_goes_through_as_many_levels_as_have_no_restart_left(tmp_path: Path) -> None:
    play = Play(tmp_path)
    low = group(Child(Part, "c"), name="low")
    middle = group(Child(Part, "b"), low, name="middle")
    high = group(Child(Part, "a"), middle, Child(Part, "d"), name="high", max_restarts=1)
    async with play.system(high) as system:
        play.forget()
        play.fail("c hears x")

        await system.actor(Part, "c").hear("x")
        await soon()

        assert play.moves() == ["stop c", "stop b", "start b", "start c"]
        assert [restarts(system, name) for name in ("low", "middle", "high", "root")] == [0, 0, 1, 0]
        (above,) = await told(system, "supervisor middle", Escalated)
        assert above.child == "low"
        (below,) = await told(system, "supervisor low", Escalated)
        assert below.child == "c"


async def test_transient_supervisor_in_the_middle_ends_the_escalation(tmp_path: Path) -> None:
    play = Play(tmp_path)
    low = group(Child(Part, "c"), name="low", restart="transient")
    async with play.system(group(Child(Part, "b"), low, name="middle")) as system:
        play.forget()
        play.fail("c hears x")

        await system.actor(Part, "c").hear.tell("x")
        await soon()

        assert play.moves() == ["stop c"]
        assert await statuses(system, "middle") == {"b": "running", "low": "stopped"}


async def test_failing_message_is_kept_when_supervisors_are_restarted(tmp_path: Path) -> None:
    play = Play(tmp_path)
    low = group(Child(Part, "c"), name="low")
    async with play.system(group(low, name="high", max_restarts=1)) as system:
        play.fail("c hears x")

        assert await system.actor(Part, "c").hear("x") == ["x"]

        assert play.lines.count("c hears x") == 2


async def test_supervisor_whose_restart_fails_is_tried_again_with_a_further_entry(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group()) as system:
        play.forget()
        play.fail("b hears x")
        play.fail("start c")

        await system.actor(Part, "b").hear("x")
        await soon()

        assert play.moves()[3:] == [
            "start a",
            "start b",
            "start c",
            "stop b",
            "stop a",
            "start a",
            "start b",
            "start c",
        ]
        assert restarts(system) == 2


# --- over the root -------------------------------------------------------------------------------------------------


async def test_over_the_root_the_system_stops_with_the_chain_of_causes(tmp_path: Path) -> None:
    play = Play(tmp_path)
    low = group(Child(Part, "c"), name="low")
    play.fail("c hears x", times=99)

    with pytest.raises(SystemFailed) as caught:
        await hear_until_it_fails(play.system(group(low, name="middle")), Part, "c")

    exceeded = RestartIntensityExceeded
    assert causes(caught.value) == [SystemFailed, exceeded, exceeded, exceeded, Missed]
    levels: list[tuple[str, int, float]] = []
    error = caught.value.__cause__
    while isinstance(error, RestartIntensityExceeded):
        levels.append((error.supervisor, error.max_restarts, error.within_s))
        error = error.__cause__
    assert levels == [("root", 3, 5.0), ("middle", 0, 5.0), ("low", 0, 5.0)]
    assert str(error) == "c hears x"


async def test_over_the_root_everything_is_stopped_in_reverse_start_order(tmp_path: Path) -> None:
    play = Play(tmp_path)
    children = [Child(Part, "a"), group(Child(Part, "b"), Child(Part, "c")), Extra, Child(Part, "d")]

    with pytest.raises(SystemFailed):  # noqa: PT012 - its end is what raises
        async with play.system(*children) as system:
            await system.actor(Extra, "e").hear("hello")
            play.forget()
            play.fail("a hears x", times=4)
            await system.actor(Part, "a").hear.tell("x")
            await soon(60.0)

    assert play.moves() == [*["stop a", "start a"] * 3, "stop a", "stop d", "stop e", "stop c", "stop b"]


async def test_host_can_wait_for_the_failure(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.fail("a hears x", times=99)
    hosts: list[asyncio.Future[BaseException]] = []

    async def live() -> None:
        async with play.system(Child(Part, "a")) as system:
            hosts.append(asyncio.ensure_future(system.failed()))
            await system.actor(Part, "a").hear.tell("x")
            await soon(60.0)

    with pytest.raises(SystemFailed) as caught:
        await live()

    assert await hosts[0] is caught.value


async def test_callers_who_wait_get_the_failure_and_new_calls_are_refused_with_it(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.fail("a hears x", times=99)
    got: list[object] = []
    refused: list[SystemFailed] = []

    async def live() -> None:
        async with play.system(Child(Part, "a"), Child(Part, "b")) as system:
            a, b = system.actor(Part, "a"), system.actor(Part, "b")
            job = await b.pause.submit("door")
            calls = (b.hear("y"), a.hear("z"), a.hear("x"), a.hear("behind it"), job.result())
            asked = [asyncio.ensure_future(each) for each in calls]
            try:
                await asyncio.Event().wait()  # for the system to cancel us
            finally:
                got.extend(await asyncio.gather(*asked, return_exceptions=True))
                with pytest.raises(SystemFailed) as caught:
                    await b.hear("late")
                refused.append(caught.value)

    with pytest.raises(SystemFailed) as caught:
        await live()

    assert got == [refused[0], ["z"], refused[0], refused[0], refused[0]]
    assert refused == [caught.value]


async def test_file_is_closed_in_good_order_and_reopening_goes_on_with_the_kept_message(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.fail("a hears x", times=4)
    with pytest.raises(SystemFailed):
        await hear_until_it_fails(play.system(Child(Part, "a")), Part, "a", "before")
    play.forget()

    async with play.system(Child(Part, "a")) as system:
        assert await system.actor(Part, "a").hear("after") == ["before", "x", "after"]
        assert [each.clean for each in await told(system, "system", SystemStarted)] == [True, True]
        assert len(await told(system, "system", SystemStopped)) == 1
    assert play.lines.count("a hears x") == 1


async def test_why_the_system_stopped_is_an_event_that_the_next_life_can_read(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.fail("a hears x", times=4)
    with pytest.raises(SystemFailed):
        await hear_until_it_fails(play.system(Child(Part, "a")), Part, "a")

    async with play.system(Child(Part, "a")) as system:
        (gave_up,) = await told(system, "supervisor root", Escalated)
        stopped = await told(system, "supervisor root", SupervisorStopped)

    assert gave_up.child == "a"
    assert gave_up.reason.startswith("more than 3 restarts within 5 s; the last one: Missed")
    assert [each.reason for each in stopped] == ["shutdown"]


async def test_restarts_before_the_system_failed_are_neither_attempts_nor_crashes_to_poison_the_message(
    tmp_path: Path,
) -> None:
    play = Play(tmp_path)
    play.fail("a hears x", times=4 * 6)
    for _ in range(6):
        with pytest.raises(SystemFailed):  # noqa: PT012 - its end is what raises
            async with play.system(Child(Part, "a")) as system:
                if not play.lines.count("a hears x"):
                    await system.actor(Part, "a").hear.tell("x")
                await soon(60.0)

    async with play.system(Child(Part, "a")) as system:
        assert await system.actor(Part, "a").hear("y") == ["x", "y"]
        assert await letters(system) == []


async def test_same_system_can_be_entered_again_after_it_failed(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.fail("a hears x", times=4)
    system = System(tmp_path / "twice.db", [Child(Part, "a")], resources=[play])
    with pytest.raises(SystemFailed):
        await hear_until_it_fails(system, Part, "a")

    async with system:
        assert await system.actor(Part, "a").hear("y") == ["x", "y"]


async def test_error_of_the_body_passes_unchanged(tmp_path: Path) -> None:
    play = Play(tmp_path)

    with pytest.raises(ZeroDivisionError):
        async with play.system(Child(Part, "a")):
            _ = 1 // 0


# --- escalate() ----------------------------------------------------------------------------------------------------


async def test_escalate_makes_the_supervisor_of_a_static_child_fail_at_once(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group(max_restarts=99)) as system:
        play.forget()
        play.fail("b hears x", error=Fire)

        assert await system.actor(Part, "b").hear("x") == ["x"]
        await soon()

        assert play.moves() == ["stop b", "stop c", "stop a", "start a", "start b", "start c"]
        assert restarts(system) == 1
        assert restarts(system, "group") == 0
        (event,) = await told(system, "supervisor group", Escalated)
        assert (event.child, event.reason) == ("b", "Fire: escalated to the supervisor")


async def test_escalate_of_an_actor_on_demand_makes_its_supervisor_fail_and_its_message_is_delivered_again(
    tmp_path: Path,
) -> None:
    play = Play(tmp_path)
    async with play.system(group(Child(Part, "a"), Extra)) as system:
        await system.actor(Extra, "sibling").hear("hello")
        play.forget()
        play.fail("e hears x", error=Fire)

        assert await system.actor(Extra, "e").hear("x") == ["x"]
        await soon()

        assert sorted(play.moves()) == ["start a", "start e", "start e", "stop a", "stop e", "stop sibling"]
        assert play.lines.count("e hears x") == 2
        assert restarts(system) == 1


async def test_escalate_over_the_root_stops_the_system_with_the_failure_as_cause(tmp_path: Path) -> None:
    play = Play(tmp_path)
    play.fail("e hears x", error=Fire)

    with pytest.raises(SystemFailed) as caught:
        await hear_until_it_fails(play.system(Extra), Extra, "e")

    assert causes(caught.value) == [SystemFailed, Fire]
    async with play.system(Extra) as system:
        assert await system.actor(Extra, "e").hear("y") == ["x", "y"]


async def test_supervisor_that_failed_by_escalate_is_treated_by_its_own_restart_type(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(group(restart="transient"), Child(Part, "beside")) as system:
        play.fail("b hears x", error=Fire)

        with pytest.raises(ActorStopped):
            await system.actor(Part, "b").hear("x")

        assert await statuses(system) == {"group": "stopped", "beside": "running"}


@pytest.mark.parametrize("restart", ["permanent", "transient"])
async def test_escalate_does_not_ask_for_the_restart_type_of_the_child(tmp_path: Path, restart: RestartType) -> None:
    play = Play(tmp_path)
    async with play.system(group(Child(Part, "a"), Child(Part, "b", restart=restart))) as system:
        play.forget()
        play.fail("b hears x", error=Fire)

        assert await system.actor(Part, "b").hear("x") == ["x"]
        await soon()

        assert play.moves() == ["stop b", "stop a", "start a", "start b"]


async def test_temporary_child_that_escalates_refuses_its_caller_and_comes_back_with_its_supervisor(
    tmp_path: Path,
) -> None:
    play = Play(tmp_path)
    async with play.system(group(Child(Part, "a"), Child(Part, "b", restart="temporary"))) as system:
        play.fail("b hears x", error=Fire)

        with pytest.raises(ActorStopped):
            await system.actor(Part, "b").hear("x")
        await soon()

        assert await system.actor(Part, "b").hear("y") == ["x", "y"]
