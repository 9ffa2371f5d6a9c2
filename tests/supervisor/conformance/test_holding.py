"""How an actor ends or is held: by itself, by its policy, by a person, because `on_start` says so; and how it comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.supervisor.conformance.cast import (
    AT_ONCE,
    VIRTUAL_TIME,
    Extra,
    Fell,
    Hurt,
    Missed,
    Odd,
    Part,
    Play,
    Walker,
    dying,
    letters,
    restarts,
    soon,
    statuses,
    told,
)
from understudy import (
    Actor,
    ActorStopped,
    ActorSuspended,
    Child,
    HandlerFailed,
    Ignore,
    Limits,
    NoTurn,
    Policy,
    Running,
    StartFailed,
    Supervisor,
    System,
    handler,
    on,
    query,
    restart,
    retry,
)
from understudy.events import (
    ActorResumed,
    ActorStopped as ActorStoppedEvent,
    ActorSuspended as ActorSuspendedEvent,
    MessageDeadLettered,
    TurnFailed,
)
from understudy.supervisor.policy import suspend
from understudy.supervisor.specs import RestartType

pytestmark = VIRTUAL_TIME

EITHER = pytest.mark.parametrize("child", [Child(Part, "a"), Part], ids=["static", "on demand"])
EVERY_TYPE = pytest.mark.parametrize(
    "child",
    [Child(Part, "a"), Child(Part, "a", restart="transient"), Child(Part, "a", restart="temporary"), Part],
    ids=["permanent", "transient", "temporary", "on demand"],
)
Given = Child | type[Part]


async def held(system: System) -> dict[str, str]:
    return {each.id: each.reason async for each in system.suspended()}


# --- self.stop(reason) ---------------------------------------------------------------------------------------------


async def test_actor_on_demand_that_stopped_itself_comes_back_with_its_next_message(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Extra) as system:
        e = system.actor(Extra, "e")
        await e.hear("before")
        await e.wear("cap")
        play.forget()

        assert await e.leave("normal") == "bye"
        await soon()

        assert play.lines == ["e leaves", "stop e"]
        assert await e.hear("after") == ["before", "after"]
        assert await e.worn() is None


@pytest.mark.parametrize("reason", ["normal", "shutdown", "broken"])
async def test_reason_makes_no_difference_to_an_actor_on_demand_which_counts_no_failure(
    tmp_path: Path, reason: str
) -> None:
    play = Play(tmp_path)
    async with play.system(Supervisor("group", [Extra], max_restarts=0)) as system:
        for _ in range(3):
            await system.actor(Extra, "e").leave(reason)

        assert await held(system) == {}
        assert restarts(system, "group") == restarts(system) == 0


async def test_waiting_mail_of_an_actor_on_demand_that_stops_itself_goes_on_with_a_new_object(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Extra) as system:
        e = system.actor(Extra, "e")
        await e.pause.tell("door")
        await play.reached("door")
        await e.leave.tell("normal")
        await e.hear.tell("kept")
        play.open("door")

        assert await e.hear("new") == ["kept", "new"]

        assert play.moves() == ["start e", "stop e", "start e"]


async def test_what_the_turn_did_is_committed_before_the_actor_ends(tmp_path: Path) -> None:
    class Leaver(Part, kind="leaver"):
        @handler
        async def last(self) -> str:
            self.stop("normal")
            self.state.heard.append("last words")
            await self.actor(Extra, "e").hear.tell("farewell")
            return "bye"

    play = Play(tmp_path)
    async with play.system(Child(Leaver, "a", restart="transient"), Extra) as system:
        assert await system.actor(Leaver, "a").last() == "bye"
        assert await system.actor(Extra, "e").hear("?") == ["farewell", "?"]
        await system.supervisor().restart_child("a")

        assert await system.actor(Leaver, "a").memory() == ["last words"]


@EITHER
async def test_turn_that_fails_after_it_called_stop_ends_nothing_by_it(tmp_path: Path, child: Given) -> None:
    play = Play(tmp_path)
    async with play.system(child) as system:
        play.fail("give up", error=ValueError)

        with pytest.raises(HandlerFailed):
            await system.actor(Part, "a").leave_and_fail("give up")
        await soon()

        assert restarts(system) == 0
        assert await system.actor(Part, "a").hear("y") == ["y"]


async def test_only_the_actors_own_turn_may_stop_it(tmp_path: Path) -> None:
    class Asked(Part, kind="asked"):
        @query
        async def peek(self) -> str:
            try:
                self.stop("normal")
            except NoTurn:
                return "refused"
            return "stopped"

    play = Play(tmp_path)
    async with play.system(Asked) as system:
        await system.actor(Asked, "a").wear("cap")

        assert await system.actor(Asked, "a").peek() == "refused"

        assert await system.actor(Asked, "a").worn() == "cap"


@pytest.mark.parametrize("reason", ["normal", "shutdown", "shutdown(x)", "broken"])
async def test_permanent_child_that_stops_itself_is_restarted_whatever_the_reason(tmp_path: Path, reason: str) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a")) as system:
        await system.actor(Part, "a").leave(reason)
        await soon()

        assert play.moves() == ["start a", "stop a", "start a"]
        assert restarts(system) == 1


@pytest.mark.parametrize("reason", ["normal", "shutdown", "shutdown(x)", "shutdown(two\nlines)"])
async def test_transient_child_that_ends_normally_keeps_its_spec_not_running(tmp_path: Path, reason: str) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a", restart="transient")) as system:
        await system.actor(Part, "a").leave(reason)
        await soon()

        assert play.moves() == ["start a", "stop a"]
        assert await statuses(system) == {"a": "stopped"}
        with pytest.raises(ActorStopped):
            await system.actor(Part, "a").hear("x")


@pytest.mark.parametrize("reason", ["broken", "Normal", "normally", "shutdown?", "shutdown(", ""])
async def test_any_other_text_is_an_abnormal_end_and_a_transient_child_is_restarted(
    tmp_path: Path, reason: str
) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a", restart="transient")) as system:
        await system.actor(Part, "a").leave(reason)
        await soon()

        assert await statuses(system) == {"a": "running"}
        assert restarts(system) == 1


@pytest.mark.parametrize("reason", ["normal", "broken"])
async def test_temporary_child_that_stops_itself_is_forgotten(tmp_path: Path, reason: str) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a", restart="temporary")) as system:
        await system.actor(Part, "a").leave(reason)
        await soon()

        assert await statuses(system) == {}
        with pytest.raises(ActorStopped):
            await system.actor(Part, "a").hear("x")


async def test_mail_of_a_transient_child_that_ended_is_kept_and_goes_on_after_restart_child(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a", restart="transient")) as system:
        a = system.actor(Part, "a")
        await a.pause.tell("door")
        await play.reached("door")
        await a.leave.tell("normal")
        await a.hear.tell("kept")
        asked = asyncio.ensure_future(a.hear("asked"))
        await soon()
        play.open("door")
        with pytest.raises(ActorStopped):
            await asked

        await system.supervisor().restart_child("a")

        assert await a.hear("new") == ["kept", "asked", "new"]


async def test_static_child_that_ended_normally_is_started_again_with_the_next_life(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a", restart="transient")) as system:
        await system.actor(Part, "a").leave("normal")

    async with play.system(Child(Part, "a", restart="transient")) as system:
        assert await system.actor(Part, "a").hear("x") == ["x"]


@EITHER
async def test_end_of_an_actor_is_an_event_with_its_reason(tmp_path: Path, child: Given) -> None:
    play = Play(tmp_path)
    async with play.system(child) as system:
        await system.actor(Part, "a").leave("broken for good")
        await soon()

        (event,) = await told(system, "actor part/a", ActorStoppedEvent)
        assert event.reason == "broken for good"


async def test_static_children_are_not_passivated(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a"), Extra, limits=Limits(idle_s=10.0)) as system:
        await system.actor(Part, "a").wear("cap")
        await system.actor(Extra, "e").wear("cap")
        await soon(1_000.0)

        assert await system.actor(Part, "a").worn() == "cap"
        assert await system.actor(Extra, "e").worn() is None


# --- on_start: Ignore, and failures, of actors on demand ------------------------------------------------------------


async def test_actor_on_demand_whose_on_start_raises_ignore_refuses_the_message_and_counts_no_failure(
    tmp_path: Path,
) -> None:
    play = Play(tmp_path)
    async with play.system(Supervisor("group", [Extra], max_restarts=0)) as system:
        e = system.actor(Extra, "e")
        play.fail("start e", times=2, error=Ignore)

        for line in ("1", "2"):
            with pytest.raises(ActorStopped, match="on_start raised Ignore"):
                await e.hear(line)

        assert await held(system) == {}
        assert [each[:2] for each in await letters(system)] == [("e", "hear")] * 2
        assert await e.hear("3") == ["3"]


async def test_message_that_was_refused_because_of_ignore_is_delivered_by_redeliver(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Extra) as system:
        e = system.actor(Extra, "e")
        play.fail("start e", error=Ignore)
        with pytest.raises(ActorStopped) as caught:
            await e.hear("1")

        await system.redeliver(caught.value.dead_letter)

        assert await e.hear("2") == ["1", "2"]


async def test_on_start_that_fails_is_a_failed_attempt_of_the_message(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Extra) as system:
        play.fail("start e", times=2)

        job = await system.actor(Extra, "e").hear.submit("x")
        assert await job == ["x"]

        assert [each.decision for each in await told(system, job.id, TurnFailed)] == ["restart", "restart"]


@EITHER
async def test_on_start_neither_sends_nor_changes_state(tmp_path: Path, child: Given) -> None:
    class Eager(Actor[list[str]], kind="eager"):
        async def on_start(self) -> None:
            await self.actor(Part, "a").hear.tell("hello")

        @handler
        async def greet(self) -> None:
            pass

    class Changing(Actor[list[str]], kind="changing"):
        async def on_start(self) -> None:
            self.state.append("hello")

        @handler
        async def greet(self) -> None:
            pass

    play = Play(tmp_path)
    async with play.system(child, Eager, Changing) as system:
        with pytest.raises(Exception, match="on_start of eager/e"):
            await system.actor(Eager, "e").greet()
        with pytest.raises(Exception, match="on_start of changing/c changed the state"):
            await system.actor(Changing, "c").greet()

        assert await system.actor(Part, "a").hear("x") == ["x"]


# --- suspend() -----------------------------------------------------------------------------------------------------


@EITHER
async def test_suspend_holds_the_actor_and_tells_callers_why(tmp_path: Path, child: Given) -> None:
    play = Play(tmp_path)
    async with play.system(child) as system:
        a = system.actor(Part, "a")
        play.fail("a hears x", error=Hurt)

        with pytest.raises(ActorSuspended) as caught:
            await a.hear("x")

        assert "Hurt" in caught.value.reason
        assert "a hears x" in caught.value.reason
        with pytest.raises(ActorSuspended) as later:
            await a.hear("y")
        assert later.value.reason == caught.value.reason
        with pytest.raises(ActorSuspended):
            await a.memory()
        assert await held(system) == {"a": caught.value.reason}


@EITHER
async def test_suspend_keeps_the_message_before_later_mail_and_resume_goes_on_with_it(
    tmp_path: Path, child: Given
) -> None:
    play = Play(tmp_path)
    async with play.system(child) as system:
        a = system.actor(Part, "a")
        play.fail("a hears x", error=Hurt)
        await a.hear.tell("x")
        await a.hear.tell("y")
        await soon()
        await a.hear.tell("z")

        await system.resume(a)

        assert await a.hear("!") == ["x", "y", "z", "!"]
        assert await letters(system) == []


@EITHER
async def test_resume_repeats_no_finished_step(tmp_path: Path, child: Given) -> None:
    play = Play(tmp_path)
    async with play.system(child) as system:
        a = system.actor(Part, "a")
        play.fail("a hears x", error=Hurt)
        job = await a.learn.submit("x")
        with pytest.raises(ActorSuspended):
            await job

        await system.resume(a)

        assert await job == ["x"]
        assert play.lines.count("rehearse x") == 1
        assert play.lines.count("a hears x") == 2


class Climber(Part, kind="climber"):
    policy = Policy(on(Missed, retry(times=2, backoff=AT_ONCE), suspend()))


@pytest.mark.parametrize("child", [Child(Climber, "a"), Climber], ids=["static", "on demand"])
async def test_resume_begins_the_ladder_anew(tmp_path: Path, child: Child | type[Climber]) -> None:
    play = Play(tmp_path)
    async with play.system(child) as system:
        a = system.actor(Climber, "a")
        play.fail("a hears x", times=3)
        job = await a.hear.submit("x")
        with pytest.raises(ActorSuspended):
            await job
        play.fail("a hears x", times=2)

        await system.resume(a)

        assert await job == ["x"]
        decisions = [each.decision for each in await told(system, job.id, TurnFailed)]
        assert decisions == ["retry", "retry", "suspend", "retry", "retry"]


@EITHER
async def test_suspension_survives_the_end_of_the_process_with_message_and_journal(
    tmp_path: Path, child: Given
) -> None:
    play = Play(tmp_path)
    play.fail("a hears x", error=Hurt)
    async with dying(play.system(child)) as system:
        job_id = (await system.actor(Part, "a").learn.submit("x")).id
        await soon()

    async with play.system(child) as system:
        a = system.actor(Part, "a")
        with pytest.raises(ActorSuspended, match="Hurt"):
            await a.hear("y")
        with pytest.raises(ActorSuspended, match="Hurt"):
            await system.job(job_id, Part.learn)
        await soon()
        assert play.lines.count("a hears x") == 1

        await system.resume(a)

        assert await system.job(job_id, Part.learn) == ["x"]
        assert play.lines.count("rehearse x") == 1


@EITHER
async def test_actor_that_was_resumed_is_active_in_the_next_life(tmp_path: Path, child: Given) -> None:
    play = Play(tmp_path)
    play.fail("a hears x", error=Hurt)
    async with play.system(child) as system:
        await system.actor(Part, "a").hear.tell("x")
        await soon()
        await system.resume(system.actor(Part, "a"))

    async with play.system(child) as system:
        assert await system.actor(Part, "a").hear("y") == ["x", "y"]


async def test_suspended_static_child_is_no_failure_of_its_supervisor_and_its_siblings_work_on(tmp_path: Path) -> None:
    play = Play(tmp_path)
    children = [Child(Part, "a"), Child(Part, "b")]
    async with play.system(Supervisor("group", children, strategy="one_for_all", max_restarts=0)) as system:
        await system.actor(Part, "b").wear("cap")
        play.fail("a hears x", error=Hurt)

        await system.actor(Part, "a").hear.tell("x")
        await soon()

        assert await statuses(system, "group") == {"a": "suspended", "b": "running"}
        assert await system.actor(Part, "b").worn() == "cap"
        assert restarts(system, "group") == 0


async def test_suspended_static_child_stays_suspended_when_its_supervisor_starts_it_again(tmp_path: Path) -> None:
    play = Play(tmp_path)
    children = [Child(Part, "a"), Child(Part, "b")]
    async with play.system(Supervisor("group", children, strategy="one_for_all")) as system:
        play.fail("a hears x", error=Hurt)
        await system.actor(Part, "a").hear.tell("x")
        await soon()
        play.forget()
        play.fail("b hears y")

        await system.actor(Part, "b").hear("y")
        await soon()

        assert play.moves() == ["stop b", "start b"]
        assert await statuses(system, "group") == {"a": "suspended", "b": "running"}
        await system.resume(system.actor(Part, "a"))
        assert await system.actor(Part, "a").hear("z") == ["x", "z"]


async def test_resume_of_a_suspended_static_child_is_no_restart(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a")) as system:
        play.fail("a hears x", error=Hurt)
        await system.actor(Part, "a").hear.tell("x")
        await soon()
        play.forget()

        await system.resume(system.actor(Part, "a"))
        await soon()

        assert play.moves() == ["start a"]
        assert restarts(system) == 0


async def test_resume_whose_on_start_fails_raises_start_failed_and_can_be_given_again(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a")) as system:
        a = system.actor(Part, "a")
        play.fail("a hears x", error=Hurt)
        await a.hear.tell("x")
        await soon()
        play.fail("start a", error=Odd)

        with pytest.raises(StartFailed) as caught:
            await system.resume(a)

        assert isinstance(caught.value.__cause__, Odd)
        await system.supervisor().restart_child("a")
        assert await a.hear("y") == ["x", "y"]


@EITHER
async def test_suspension_and_resume_are_events_with_the_reason(tmp_path: Path, child: Given) -> None:
    play = Play(tmp_path)
    async with play.system(child) as system:
        a = system.actor(Part, "a")
        play.fail("a hears x", error=Hurt)
        await a.hear.tell("x")
        await soon()
        await system.resume(a)

        (suspended,) = await told(system, "actor part/a", ActorSuspendedEvent)
        assert "Hurt" in suspended.reason
        assert len(await told(system, "actor part/a", ActorResumed)) == 1


async def test_resume_of_an_actor_that_works_does_nothing(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a"), Extra) as system:
        await system.actor(Part, "a").wear("cap")
        await system.actor(Extra, "e").wear("cap")

        await system.resume(system.actor(Part, "a"))
        await system.resume(system.actor(Extra, "e"))

        assert await system.actor(Part, "a").worn() == "cap"
        assert await system.actor(Extra, "e").worn() == "cap"


# --- stop() --------------------------------------------------------------------------------------------------------


@EVERY_TYPE
async def test_stop_gives_the_message_up_keeps_other_mail_and_refuses_new(tmp_path: Path, child: Given) -> None:
    play = Play(tmp_path)
    async with play.system(child) as system:
        a = system.actor(Part, "a")
        play.fail("a hears x", error=Fell)
        await a.pause.tell("door")
        await play.reached("door")
        job = await a.hear.submit("x")
        await a.hear.tell("kept")
        asked = asyncio.ensure_future(a.hear("asked"))
        await soon()
        play.open("door")

        with pytest.raises(HandlerFailed, match="Fell: a hears x"):
            await job
        with pytest.raises(ActorStopped):
            await asked
        for send in (a.hear, a.hear.tell, a.hear.submit):
            with pytest.raises(ActorStopped, match="Fell"):
                await send("new")
        assert await letters(system) == [("a", "hear", "a hears x")]
        (info,) = [each async for each in system.actors()]
        assert (info.status, info.waiting) == ("stopped", 2)
        assert restarts(system) == 0


@EVERY_TYPE
async def test_actor_that_stop_stopped_stays_so_in_the_next_life_and_resume_revives_it(
    tmp_path: Path, child: Given
) -> None:
    play = Play(tmp_path)
    play.fail("a hears x", error=Fell)
    async with dying(play.system(child)) as system:
        a = system.actor(Part, "a")
        await a.pause.tell("door")
        await play.reached("door")
        await a.hear.tell("x")
        await a.hear.tell("kept")
        play.open("door")
        await soon()
    play.forget()

    async with play.system(child) as system:
        a = system.actor(Part, "a")
        with pytest.raises(ActorStopped, match="Fell"):
            await a.hear("y")
        await soon()
        assert play.lines == []

        await system.resume(a)

        assert await a.hear("z") == ["kept", "z"]


@EVERY_TYPE
async def test_resume_revives_an_actor_that_stop_stopped(tmp_path: Path, child: Given) -> None:
    play = Play(tmp_path)
    async with play.system(child) as system:
        a = system.actor(Part, "a")
        play.fail("a hears x", error=Fell)
        with pytest.raises(HandlerFailed):
            await a.hear("x")
        await soon()

        await system.resume(a)

        assert await a.hear("y") == ["y"]
    async with play.system(child) as system:
        assert await system.actor(Part, "a").hear("z") == ["y", "z"]


@pytest.mark.parametrize("restart_type", ["permanent", "transient"])
async def test_restart_child_revives_a_static_child_that_stop_stopped(
    tmp_path: Path, restart_type: RestartType
) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a", restart=restart_type)) as system:
        play.fail("a hears x", error=Fell)
        with pytest.raises(HandlerFailed):
            await system.actor(Part, "a").hear("x")
        await soon()
        assert await statuses(system) == {"a": "stopped"}

        await system.supervisor().restart_child("a")

        assert await statuses(system) == {"a": "running"}
        assert await system.actor(Part, "a").hear("y") == ["y"]
        assert restarts(system) == 0


async def test_restart_child_revives_an_actor_on_demand_that_stop_stopped(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Extra) as system:
        e = system.actor(Extra, "e")
        play.fail("e hears x", error=Fell)
        with pytest.raises(HandlerFailed):
            await e.hear("x")

        await system.supervisor().restart_child(e)

        assert await e.hear("y") == ["y"]
        with pytest.raises(Running):
            await system.supervisor().restart_child(e)


async def test_strategy_does_not_start_a_child_that_stop_stopped(tmp_path: Path) -> None:
    play = Play(tmp_path)
    children = [Child(Part, "a"), Child(Part, "b")]
    async with play.system(Supervisor("group", children, strategy="one_for_all")) as system:
        play.fail("a hears x", error=Fell)
        with pytest.raises(HandlerFailed):
            await system.actor(Part, "a").hear("x")
        await soon()
        play.forget()
        play.fail("b hears y")

        await system.actor(Part, "b").hear("y")
        await soon()

        assert play.moves() == ["stop b", "start b"]
        assert await statuses(system, "group") == {"a": "stopped", "b": "running"}


async def test_siblings_of_an_actor_that_stop_stopped_work_on(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Walker) as system:
        play.fail("w hears x", error=Fell)
        with pytest.raises(HandlerFailed):
            await system.actor(Walker, "w").hear("x")

        assert await system.actor(Walker, "v").hear("y") == ["y"]


@EITHER
async def test_stop_is_an_event_and_so_is_the_dead_letter_each_with_its_reason(tmp_path: Path, child: Given) -> None:
    play = Play(tmp_path)
    async with play.system(child) as system:
        stream = system.events()
        play.fail("a hears x", error=Fell)
        with pytest.raises(HandlerFailed):
            await system.actor(Part, "a").hear("x")
    events = [each async for each in stream]

    (letter,) = [each for each in events if isinstance(each, MessageDeadLettered)]
    (stopped,) = [each for each in events if isinstance(each, ActorStoppedEvent)]
    (failed,) = [each for each in events if isinstance(each, TurnFailed)]
    assert failed.decision == "stop"
    assert letter.reason == stopped.reason == failed.reason == "Fell: the actor stops"


# --- an actor on demand that a person stopped ----------------------------------------------------------------------


async def test_actor_on_demand_stopped_by_terminate_child_does_not_come_back_with_its_next_message(
    tmp_path: Path,
) -> None:
    play = Play(tmp_path)
    async with play.system(Extra) as system:
        e = system.actor(Extra, "e")
        await e.pause.tell("door")
        await play.reached("door")
        await e.hear.tell("kept")

        await system.supervisor().terminate_child(e)

        with pytest.raises(ActorStopped, match="terminate_child"):
            await e.hear("new")
        assert play.moves() == ["start e", "stop e"]

    async with play.system(Extra) as system:
        e = system.actor(Extra, "e")
        with pytest.raises(ActorStopped, match="terminate_child"):
            await e.hear("new")
        play.open("door")
        await system.supervisor().restart_child(e)

        assert await e.hear("after") == ["kept", "after"]


async def test_terminate_child_of_an_actor_on_demand_that_is_stopped_is_fine(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Extra) as system:
        e = system.actor(Extra, "e")
        await e.hear("x")

        await system.supervisor().terminate_child(e)
        await system.supervisor().terminate_child(e)

        assert len(await told(system, "actor extra/e", ActorStoppedEvent)) == 1


async def test_watcher_is_told_of_everything_that_becomes_of_an_actor_in_order(tmp_path: Path) -> None:
    class Watched(Part, kind="watched"):
        policy = Policy(on(Missed, restart(times=9, backoff=AT_ONCE)), on(Hurt, suspend()))

    play = Play(tmp_path)
    async with play.system(Child(Watched, "a", restart="transient")) as system:
        a = system.actor(Watched, "a")
        changes = system.watch(a)
        play.fail("a hears x")
        play.fail("a hears y", error=Hurt)
        await a.hear("x")
        await a.hear.tell("y")
        await soon()
        await system.resume(a)
        await a.leave("normal")
        await soon()
    seen = [each.change async for each in changes]

    assert seen == ["restarted", "suspended", "resumed", "stopped"]


@pytest.mark.parametrize(
    ("restart_type", "reason", "changes"),
    [
        ("permanent", "normal", [("restarted", "normal")]),
        ("transient", "broken", [("restarted", "broken")]),
        ("transient", "normal", [("stopped", "normal")]),
        ("temporary", "broken", [("stopped", "broken")]),
    ],
)
async def test_end_of_a_static_child_is_one_event_and_who_watches_is_told_what_follows(
    tmp_path: Path, restart_type: RestartType, reason: str, changes: list[tuple[str, str]]
) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a", restart=restart_type)) as system:
        watching = system.watch(system.actor(Part, "a"))

        await system.actor(Part, "a").leave(reason)
        await soon()

        assert [each.reason for each in await told(system, "actor part/a", ActorStoppedEvent)] == [reason]
    assert [(each.change, each.reason) async for each in watching] == changes


async def test_static_child_stopped_by_terminate_child_is_an_event_and_told_once(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a")) as system:
        changes = system.watch(system.actor(Part, "a"))

        await system.supervisor().terminate_child("a")

        (event,) = await told(system, "actor part/a", ActorStoppedEvent)
        assert event.reason == "terminate_child"
    assert [(each.change, each.reason) async for each in changes] == [("stopped", "terminate_child")]


async def test_caller_of_an_actor_that_is_stopped_is_told_and_its_message_is_kept(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Extra) as system:
        e = system.actor(Extra, "e")
        await e.pause.tell("door")
        await play.reached("door")
        asked = asyncio.ensure_future(e.hear("kept"))
        await soon()

        await system.supervisor().terminate_child(e)

        with pytest.raises(ActorStopped, match="terminate_child"):
            await asked
        with pytest.raises(ActorStopped, match="refused and not stored"):
            await e.hear("new")
        await system.resume(e)
        play.open("door")
        assert await e.hear("after") == ["kept", "after"]


async def test_turn_that_asked_an_actor_that_is_stopped_is_told(tmp_path: Path) -> None:
    class Asker(Actor, kind="asker"):
        @handler
        async def ask(self) -> str:
            try:
                return str(await self.actor(Part, "a").hear("asked"))
            except ActorStopped as error:
                return f"refused: {error}"

    play = Play(tmp_path)
    async with play.system(
        Supervisor("group", [Child(Part, "a")], max_restarts=0, restart="transient"), Asker
    ) as system:
        await system.actor(Part, "a").pause.tell("door")
        await play.reached("door")
        asked = asyncio.ensure_future(system.actor(Asker, "b").ask())
        await soon()
        await system.actor(Part, "a").hear.tell("y")

        await system.supervisor().terminate_child("group")

        assert "refused" in await asked


async def test_message_that_is_due_while_its_actor_is_held_is_kept(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Part) as system:
        a = system.actor(Part, "a")
        await a.hear.options(delay_s=5.0).tell("due")
        play.fail("a hears x", error=Hurt)
        await a.hear.tell("x")
        await soon(20.0)
        assert play.lines.count("a hears due") == 0

        await system.resume(a)

        assert await a.hear("y") == ["x", "due", "y"]
