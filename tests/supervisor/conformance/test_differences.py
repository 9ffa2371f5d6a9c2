"""Where we differ from OTP: what survives, who decides about the message, abandonment, templates, backoff, the policy plane."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.conformance.cast import (
    AT_ONCE,
    VIRTUAL_TIME,
    Extra,
    Fire,
    Hurt,
    Missed,
    Odd,
    Part,
    Play,
    Walker,
    dying,
    letters,
    rehearse,
    restarts,
    soon,
    statuses,
    told,
)
from understudy import (
    Actor,
    ActorSuspended,
    Backoff,
    Child,
    HandlerFailed,
    Limits,
    OutcomeUnknown,
    Policy,
    RateLimited,
    StepFailed,
    Supervisor,
    answer,
    current_turn,
    dead_letter,
    handler,
    on,
    restart,
    retry,
)
from understudy.events import ActorAbandoned, ActorRestarted, Amended, Escalated, TurnFailed
from understudy.supervisor.policy import amend, suspend
from understudy.testing import FaultyStore

pytestmark = VIRTUAL_TIME


# --- 1. state survives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("child", [Child(Part, "a"), Part])
async def test_restart_makes_a_new_object_from_the_state_of_the_last_finished_turn(
    tmp_path: Path, child: Child | type[Part]
) -> None:
    play = Play(tmp_path)
    async with play.system(child) as system:
        a = system.actor(Part, "a")
        await a.hear("first")
        await a.wear("cap")
        play.forget()
        play.fail("a hears second")

        # What the failed turn had changed before it failed is gone, or it would be heard twice.
        assert await a.hear("second") == ["first", "second"]

        assert await a.worn() is None
        assert play.moves() == ["stop a", "start a"]


async def test_failure_that_is_retried_keeps_the_object_but_not_what_the_failed_turn_did_to_the_state(
    tmp_path: Path,
) -> None:
    class Stubborn(Part, kind="stubborn"):
        policy = Policy(on(Missed, retry(times=1, backoff=AT_ONCE)))

    play = Play(tmp_path)
    async with play.system(Child(Stubborn, "a")) as system:
        a = system.actor(Stubborn, "a")
        await a.wear("cap")
        play.forget()
        play.fail("a hears x")

        assert await a.hear("x") == ["x"]

        assert await a.worn() == "cap"
        assert play.moves() == []


async def test_state_survives_also_when_it_is_ahead_of_the_disk(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a")) as system:
        a = system.actor(Part, "a")
        await a.hear("first")
        play.fail("a hears third")
        store = system.store
        assert isinstance(store, FaultyStore)
        store.hold()
        told_ = [asyncio.ensure_future(a.hear.tell(line)) for line in ("second", "third")]
        await soon()
        store.release()
        await asyncio.gather(*told_)

        assert await a.hear("fourth") == ["first", "second", "third", "fourth"]


# --- 2. the failing message survives -------------------------------------------------------------------------------


@pytest.mark.parametrize("child", [Child(Part, "a"), Part])
async def test_failing_message_is_delivered_to_the_new_incarnation_before_later_mail(
    tmp_path: Path, child: Child | type[Part]
) -> None:
    play = Play(tmp_path)
    async with play.system(child) as system:
        a = system.actor(Part, "a")
        play.fail("a hears x", times=2)
        await a.hear.tell("x")

        assert await a.hear("y") == ["x", "y"]

        assert [line for line in play.lines if " hears " in line] == ["a hears x"] * 3 + ["a hears y"]


async def test_dead_letter_of_a_static_child_is_no_restart_and_its_object_stays(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Supervisor("group", [Child(Part, "a")], max_restarts=0)) as system:
        a = system.actor(Part, "a")
        await a.wear("cap")
        play.forget()
        play.fail("a hears x", error=ValueError)

        with pytest.raises(HandlerFailed, match="ValueError"):
            await a.hear("x")

        assert await a.worn() == "cap"
        assert play.moves() == []
        assert restarts(system, "group") == restarts(system) == 0
        assert await letters(system) == [("a", "hear", "a hears x")]


async def test_static_child_restarts_twice_by_default_and_then_the_message_is_a_dead_letter(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Supervisor("group", [Child(Part, "a")], max_restarts=2)) as system:
        play.fail("a hears x", times=99, error=Odd)

        with pytest.raises(HandlerFailed, match="Odd"):
            await system.actor(Part, "a").hear("x")

        assert play.lines.count("a hears x") == 3
        assert play.lines.count("start a") == 3
        assert restarts(system, "group") == 2
        assert await system.actor(Part, "a").hear("y") == ["y"]


async def test_every_decision_is_an_event_with_its_reason(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Part, "a")) as system:
        play.fail("a hears x", times=3, error=Odd)
        job = await system.actor(Part, "a").hear.submit("x")
        with pytest.raises(HandlerFailed):
            await job

        events = await told(system, job.id, TurnFailed)

        assert [(each.attempt, each.decision) for each in events] == [
            (1, "restart"),
            (2, "restart"),
            (3, "dead_letter"),
        ]
        assert [each.reason for each in events] == [
            "Odd: restart 1 of 2",
            "Odd: restart 2 of 2",
            "Odd: given up",
        ]
        assert all((each.error.endswith("Odd"), each.message) == (True, "a hears x") for each in events)


# --- 3. abandonment ------------------------------------------------------------------------------------------------


def theatre(shutdown_s: float) -> Supervisor:
    children = [Child(Part, "a"), Child(Part, "friend"), Child(Part, "d", shutdown_s=shutdown_s)]
    return Supervisor("group", children, strategy="one_for_all")


@pytest.mark.parametrize("shutdown_s", [0.0, 3.0])
async def test_turn_that_does_not_end_in_time_is_left_behind_and_its_sibling_waits_no_longer(
    tmp_path: Path, shutdown_s: float
) -> None:
    play = Play(tmp_path)
    async with play.system(theatre(shutdown_s)) as system:
        await system.actor(Part, "d").dawdle.tell("door", "friend")
        await play.reached("door")
        play.forget()
        play.fail("a hears x")

        await system.actor(Part, "a").hear("x")

        assert play.at[-1] - play.at[0] == pytest.approx(shutdown_s)
        (event,) = await told(system, "actor part/d", ActorAbandoned)
        assert event.shutdown_s == shutdown_s
        assert len(system.leaked) == 1
        play.open("door")


async def test_nothing_counts_any_more_that_an_abandoned_turn_still_does(tmp_path: Path) -> None:
    class Sender(Part, kind="sender"):
        @handler
        async def send_late(self, point: str) -> str:
            if "the first one" in self.play.lines:
                return "second reply"
            self.play.write("the first one")
            self.state.heard.append("changed by one left behind")
            await self.play.dawdle(point)
            friend = self.actor(Part, "friend")
            for send in (friend.hear.tell, friend.hear.options(delay_s=1.0).tell, friend.hear, rehearse):
                try:
                    await send("late")
                except BaseException as error:
                    self.play.lines.append(f"refused: {type(error).__name__}")
            return "late reply"

    play = Play(tmp_path)
    children = [Child(Part, "a"), Child(Part, "friend"), Child(Sender, "s", shutdown_s=1.0)]
    async with play.system(Supervisor("group", children, strategy="one_for_all")) as system:
        sender = system.actor(Sender, "s")
        job = await sender.send_late.submit("door")
        await play.reached("door")
        play.fail("a hears x")
        await system.actor(Part, "a").hear("x")

        play.open("door")
        await soon(20.0)

        assert await job == "second reply"
        assert [line for line in play.lines if line.startswith("refused")] == ["refused: TurnEnded"] * 4
        assert await sender.memory() == []
        assert await system.actor(Part, "friend").memory() == []
        assert not system.leaked


async def test_tells_and_timers_of_an_abandoned_turn_never_leave_and_its_message_is_handled_once_more(
    tmp_path: Path,
) -> None:
    play = Play(tmp_path)
    async with play.system(theatre(1.0)) as system:
        job = await system.actor(Part, "d").dawdle.submit("door", "friend")
        await play.reached("door")
        play.fail("a hears x")
        await system.actor(Part, "a").hear("x")
        await soon()

        play.open("door")
        assert await job == "late"
        await soon(20.0)

        assert play.lines.count("d dawdles") == 2
        assert await system.actor(Part, "friend").memory() == [
            "told by one who dawdled",
            "told late by one who dawdled",
        ]
        assert await system.actor(Part, "d").memory() == ["dawdled"]


async def test_places_that_an_abandoned_turn_had_reserved_in_mailboxes_are_free_again(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(theatre(1.0), limits=Limits(mailbox_messages=2)) as system:
        job = await system.actor(Part, "d").dawdle.submit("door", "friend")
        await play.reached("door")
        play.fail("a hears x")
        await system.actor(Part, "a").hear("x")
        await job.cancel()
        play.open("door")
        await soon()

        assert await system.actor(Part, "friend").hear("y") == ["y"]


async def test_actors_of_a_template_are_abandoned_together_under_one_timer(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = Supervisor("group", [Child(Part, "a"), Extra], strategy="one_for_all")
    async with play.system(tree, limits=Limits(grace_s=4.0)) as system:
        for id in ("d", "e", "f"):
            await system.actor(Extra, id).dawdle.tell(f"door {id}", "friend")
            await play.reached(f"door {id}")
        play.forget()
        play.fail("a hears x")

        await system.actor(Part, "a").hear("x")

        assert play.moves() == ["stop a", "start a", *(f"start {id}" for id in "def")][: len(play.moves())]
        assert asyncio.get_running_loop().time() - play.at[0] == pytest.approx(4.0)
        assert len(system.leaked) == 3
        for id in ("d", "e", "f"):
            play.open(f"door {id}")


# --- 4. templates --------------------------------------------------------------------------------------------------


async def fail(play: Play, actor: Extra | Walker, id: str, line: str, error: type[Exception] = ValueError) -> None:
    """Let one message end badly."""
    play.fail(f"{id} hears {line}", error=error)
    with pytest.raises(HandlerFailed):
        await actor.hear(line)


async def test_one_message_more_than_max_restarts_that_ended_badly_holds_the_actor(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Supervisor("group", [Extra], max_restarts=2, within_s=60.0)) as system:
        e = system.actor(Extra, "e")
        for line in ("1", "2"):
            await fail(play, e, "e", line)
        between = [each.id async for each in system.suspended()]

        await fail(play, e, "e", "3")

        assert between == []
        with pytest.raises(ActorSuspended) as caught:
            await e.hear("4")
        assert "more than 2 messages ended badly within 60 s" in caught.value.reason
        assert "ValueError: e hears 3" in caught.value.reason


async def test_limit_of_actors_that_stand_in_the_systems_list_is_three_within_five_seconds(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Extra) as system:
        e = system.actor(Extra, "e")
        for line in ("1", "2", "3"):
            await fail(play, e, "e", line)
        await soon(5.1)
        for line in ("4", "5", "6"):
            await fail(play, e, "e", line)
        assert [each.id async for each in system.suspended()] == []

        await fail(play, e, "e", "7")

        assert [each.id async for each in system.suspended()] == ["e"]


async def test_siblings_of_a_held_actor_work_on(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Supervisor("group", [Extra], max_restarts=0)) as system:
        await system.actor(Extra, "sibling").wear("cap")

        await fail(play, system.actor(Extra, "e"), "e", "1")

        assert await system.actor(Extra, "sibling").worn() == "cap"
        assert restarts(system, "group") == 0


async def test_count_is_kept_for_each_actor(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Supervisor("group", [Extra], max_restarts=1)) as system:
        for id in ("a", "b", "c", "d"):
            await fail(play, system.actor(Extra, id), id, "1")

        assert [each.id async for each in system.suspended()] == []


async def test_committed_turn_resets_the_count(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Supervisor("group", [Extra], max_restarts=1, within_s=60.0)) as system:
        e = system.actor(Extra, "e")
        for line in ("1", "2", "3"):
            await fail(play, e, "e", line)
            await e.hear(f"good {line}")

        assert [each.id async for each in system.suspended()] == []


async def test_count_outlives_the_actors_stay_in_memory(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = Supervisor("group", [Extra], max_restarts=1, within_s=9_000.0)
    async with play.system(tree, limits=Limits(idle_s=10.0)) as system:
        e = system.actor(Extra, "e")
        await fail(play, e, "e", "1")
        await soon(1_000.0)
        assert system.population.live == 0

        await fail(play, e, "e", "2")

        assert [each.id async for each in system.suspended()] == ["e"]


async def test_attempts_are_not_counted_only_messages(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Supervisor("group", [Extra], max_restarts=1, within_s=60.0)) as system:
        play.fail("e hears x", times=3, error=Odd)

        with pytest.raises(HandlerFailed):
            await system.actor(Extra, "e").hear("x")

        assert play.lines.count("e hears x") == 3
        assert [each.id async for each in system.suspended()] == []


class Declared(Exception):
    pass


class Asker(Actor, kind="asker"):
    """Fails with what others did."""

    @handler
    async def ask(self, line: str) -> None:
        await self.actor(Extra, "e").hear(line)

    @handler
    async def step(self) -> None:
        await rehearse("badly")

    @handler
    async def call(self) -> None:
        raise RateLimited("the model is busy")

    @handler
    async def unknown(self) -> None:
        raise OutcomeUnknown("nobody knows")

    @handler(raises=[Declared])
    async def refuse(self) -> None:
        raise Declared("no")

    @handler
    async def own(self) -> None:
        raise ValueError("its own")


async def _ask(asker: Asker) -> None:
    await asker.ask("x")


async def _step(asker: Asker) -> None:
    await asker.step()


async def _call(asker: Asker) -> None:
    await asker.call()


async def _unknown(asker: Asker) -> None:
    await asker.unknown()


async def _refuse(asker: Asker) -> None:
    await asker.refuse()


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (_ask, HandlerFailed),
        (_step, StepFailed),
        (_call, RateLimited),
        (_unknown, OutcomeUnknown),
        (_refuse, Declared),
    ],
)
async def test_failure_that_crossed_a_boundary_or_is_an_answer_does_not_count(
    tmp_path: Path, what: Callable[[Asker], Awaitable[None]], error: type[Exception]
) -> None:
    play = Play(tmp_path)
    tree = [Supervisor("group", [Asker], max_restarts=0), Supervisor("others", [Extra], max_restarts=99)]
    async with play.system(*tree) as system:
        asker = system.actor(Asker, "a")
        play.fail("e hears x", times=9, error=ValueError)
        play.fail("rehearse badly", times=9, error=ValueError)

        for _ in range(2):
            with pytest.raises(error):
                await what(asker)
            assert [each.id async for each in system.suspended()] == []

        with pytest.raises(HandlerFailed):
            await asker.own()
        assert [each.id async for each in system.suspended()] == ["a"]


async def test_actor_that_asks_a_held_one_is_not_held_itself(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Supervisor("group", [Asker, Extra], max_restarts=0)) as system:
        await fail(play, system.actor(Extra, "e"), "e", "x")

        for _ in range(2):
            with pytest.raises(ActorSuspended):
                await system.actor(Asker, "a").ask("y")

        assert [each.id async for each in system.suspended()] == ["e"]


async def test_resume_lets_a_held_actor_go_on_and_begins_its_count_anew(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Supervisor("group", [Extra], max_restarts=1, within_s=60.0)) as system:
        e = system.actor(Extra, "e")
        for line in ("1", "2"):
            await fail(play, e, "e", line)
        await e.hear.tell("kept")

        await system.resume(e)

        assert await e.hear("new") == ["kept", "new"]
        await fail(play, e, "e", "3")
        assert [each.id async for each in system.suspended()] == []


async def test_resume_of_an_actor_that_its_policy_held_begins_its_count_anew_too(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Supervisor("group", [Extra], max_restarts=1, within_s=60.0)) as system:
        e = system.actor(Extra, "e")
        await fail(play, e, "e", "1")
        play.fail("e hears x", error=Hurt)
        await e.hear.tell("x")
        await soon()
        play.fail("e hears x", error=ValueError)

        await system.resume(e)
        await soon()

        assert [each[2] for each in await letters(system)] == ["e hears 1", "e hears x"]
        assert [each.id async for each in system.suspended()] == []


async def test_with_escalate_all_actors_of_the_class_count_together_and_fail_as_one_child(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = Supervisor("group", [Extra, Child(Part, "p")], max_restarts=1, on_exceeded="escalate")
    async with play.system(tree) as system:
        e, f = system.actor(Extra, "e"), system.actor(Extra, "f")
        await fail(play, e, "e", "1")
        for actor in (e, f):
            await actor.wear("cap")
        play.forget()

        await fail(play, f, "f", "1")
        await soon()

        assert [each.id async for each in system.suspended()] == []
        assert restarts(system, "group") == 1
        assert "stop e" in play.moves()
        assert "stop p" not in play.moves()
        assert (await e.worn(), await f.worn()) == (None, None)


async def test_group_that_fails_is_restarted_with_the_strategy_of_its_supervisor(tmp_path: Path) -> None:
    play = Play(tmp_path)
    children: list[Any] = [Child(Part, "p"), Extra, Child(Part, "q"), Walker]
    tree = Supervisor("group", children, max_restarts=1, on_exceeded="escalate", strategy="rest_for_one")
    async with play.system(tree) as system:
        await system.actor(Walker, "w").hear("hello")
        e = system.actor(Extra, "e")
        await fail(play, e, "e", "1")
        play.forget()

        await fail(play, e, "e", "2")
        await soon()

        assert play.moves() == ["start e", "stop e", "stop w", "stop q", "start q"]
        assert restarts(system, "group") == 1
        assert await e.hear("3") == ["3"]


async def test_group_that_fails_more_often_than_its_supervisor_allows_makes_it_give_up(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = Supervisor("group", [Extra, Child(Part, "p")], max_restarts=0, on_exceeded="escalate")
    async with play.system(tree) as system:
        play.forget()

        await fail(play, system.actor(Extra, "e"), "e", "1")
        await soon()

        assert restarts(system) == 1
        assert [line for line in play.moves() if line.endswith("p")] == ["stop p", "start p"]
        own, above = await told(system, "supervisor group", Escalated)
        assert (own.child, above.child) == ("extra", "extra")
        assert own.reason.startswith("more than 0 messages ended badly within 5 s")
        assert above.reason.startswith("more than 0 restarts within 5 s")


async def test_group_that_fails_is_an_event_with_the_reason(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = Supervisor("group", [Extra], max_restarts=1, on_exceeded="escalate")
    async with play.system(tree) as system:
        for line in ("1", "2"):
            await fail(play, system.actor(Extra, "e"), "e", line)
        await soon()

        (event,) = await told(system, "supervisor group", Escalated)
        assert event.child == "extra"
        assert "more than 1 messages ended badly within 5 s" in event.reason
        assert "ValueError: e hears 2" in event.reason


async def test_committed_turn_of_one_actor_does_not_forgive_its_class(tmp_path: Path) -> None:
    # With "escalate" the window is the supervisor's own kind: OTP's, which nothing but time empties.
    play = Play(tmp_path)
    tree = Supervisor("group", [Extra], max_restarts=1, on_exceeded="escalate")
    async with play.system(tree) as system:
        await fail(play, system.actor(Extra, "e"), "e", "1")
        await system.actor(Extra, "e").hear("good")

        await fail(play, system.actor(Extra, "f"), "f", "1")
        await soon()

        assert restarts(system, "group") == 1


async def test_turns_that_run_beside_the_one_that_failed_end_with_their_object_and_run_again(tmp_path: Path) -> None:
    class Pair(Actor, kind="pair"):
        concurrency = 2
        policy = Policy(on(Missed, restart(times=9, backoff=AT_ONCE)))

        @handler
        async def play(self, point: str) -> int:
            play = current_turn().resource(Play)
            play.write(f"play {point}")
            await play.wait(point)
            return id(self)

    play = Play(tmp_path)
    async with play.system(Child(Pair, "p")) as system:
        beside = await system.actor(Pair, "p").play.submit("slow")
        await play.reached("slow")
        play.fail("play quick")
        play.open("quick")

        await system.actor(Pair, "p").play("quick")
        play.open("slow")
        await beside

        assert [play.lines.count(f"play {point}") for point in ("slow", "quick")] == [2, 2]
        assert restarts(system) == 1


# --- 5. backoff ----------------------------------------------------------------------------------------------------


class Patient(Part, kind="patient"):
    policy = Policy(on(Missed, restart(times=3, backoff=Backoff(10.0, max_s=25.0, jitter=0.0))))


@pytest.mark.parametrize("child", [Child(Patient, "a"), Patient])
async def test_restarts_of_one_message_wait_longer_and_longer_up_to_the_cap(
    tmp_path: Path, child: Child | type[Patient]
) -> None:
    play = Play(tmp_path)
    async with play.system(child) as system:
        play.fail("a hears x", times=3)

        await system.actor(Patient, "a").hear("x")

        heard = [at for at, line in zip(play.at, play.lines, strict=True) if line == "a hears x"]
        assert [round(later - earlier, 1) for earlier, later in pairwise(heard)] == [10, 20, 25]


async def test_static_child_is_back_at_once_and_only_its_message_waits_with_later_mail_behind_it(
    tmp_path: Path,
) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Patient, "a")) as system:
        a = system.actor(Patient, "a")
        play.fail("a hears x")
        since = asyncio.get_running_loop().time()
        await a.hear.tell("x")
        await soon()

        assert play.moves() == ["start a", "stop a", "start a"]
        assert await statuses(system) == {"a": "running"}
        assert await a.memory() == []
        assert await a.hear("y") == ["x", "y"]
        assert asyncio.get_running_loop().time() - since == pytest.approx(10.0, abs=0.5)


@pytest.mark.parametrize("child", [Child(Patient, "a"), Patient])
async def test_wait_goes_on_after_the_process_was_restarted(tmp_path: Path, child: Child | type[Patient]) -> None:
    play = Play(tmp_path)
    play.fail("a hears x", times=2)
    async with dying(play.system(child)) as system:
        await system.actor(Patient, "a").hear.tell("x")
        await soon(12.0)
        since = asyncio.get_running_loop().time()
    play.forget()

    async with play.system(child) as system:
        await system.actor(Patient, "a").hear("y")

    assert [line for line in play.lines if "hears" in line] == ["a hears x", "a hears y"]
    assert play.at[play.lines.index("a hears x")] - since == pytest.approx(18.0, abs=0.5)


async def test_next_message_begins_its_waits_anew(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Patient) as system:
        a = system.actor(Patient, "a")
        play.fail("a hears x", times=2)
        await a.hear("x")
        play.fail("a hears y")
        since = asyncio.get_running_loop().time()

        await a.hear("y")

        assert asyncio.get_running_loop().time() - since == pytest.approx(10.0, abs=0.5)


async def test_strategy_that_restarts_a_waiting_child_neither_shortens_nor_doubles_its_wait(tmp_path: Path) -> None:
    play = Play(tmp_path)
    tree = Supervisor("group", [Child(Part, "p"), Child(Patient, "a")], strategy="one_for_all")
    async with play.system(tree) as system:
        play.fail("a hears x")
        since = asyncio.get_running_loop().time()
        job = await system.actor(Patient, "a").hear.submit("x")
        await soon(4.0)
        play.fail("p hears z")
        await system.actor(Part, "p").hear("z")

        await job

        assert asyncio.get_running_loop().time() - since == pytest.approx(10.0, abs=0.5)


# --- 6. retries and amendments are no restarts ----------------------------------------------------------------------


def louder(arguments: dict[str, str], failure: Exception) -> dict[str, str]:
    return {**arguments, "line": f"{arguments['line']}! ({failure})"}


async def softer(arguments: dict[str, str], failure: Exception) -> dict[str, str]:
    await asyncio.sleep(3.0)
    return {"line": "psst"}


class Learner(Part, kind="learner"):
    policy = Policy(
        on(Missed, retry(times=2, backoff=AT_ONCE), amend(louder)),
        on(Odd, amend(softer)),
        on(Hurt, amend(louder, backoff=Backoff(10.0, jitter=0.0)), suspend()),
    )


@pytest.mark.parametrize("child", [Child(Learner, "a"), Learner])
async def test_retries_and_amendments_are_no_restarts_and_not_counted(
    tmp_path: Path, child: Child | type[Learner]
) -> None:
    play = Play(tmp_path)
    async with play.system(Supervisor("group", [child], max_restarts=0)) as system:
        a = system.actor(Learner, "a")
        await a.wear("cap")
        play.forget()
        play.fail("a hears x", times=3)

        assert await a.hear("x") == ["x! (a hears x)"]

        assert await a.worn() == "cap"
        assert play.moves() == []
        assert restarts(system, "group") == restarts(system) == 0
        assert [each.id async for each in system.suspended()] == []


async def test_second_amendment_changes_what_the_first_one_made(tmp_path: Path) -> None:
    class Twice(Part, kind="twice"):
        policy = Policy(on(Missed, amend(louder, times=2), dead_letter()))

    play = Play(tmp_path)
    async with play.system(Child(Twice, "a")) as system:
        play.fail("a hears x")
        play.fail("a hears x! (a hears x)")

        assert await system.actor(Twice, "a").hear("x") == ["x! (a hears x)! (a hears x! (a hears x))"]


async def test_amendment_gets_the_arguments_as_dict_and_the_failure_and_may_wait(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Child(Learner, "a")) as system:
        play.fail("a hears x", error=Odd)

        assert await system.actor(Learner, "a").hear("x") == ["psst"]


async def test_amendment_is_an_event_with_its_name_and_reason(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Learner) as system:
        play.fail("a hears x", error=Odd)
        job = await system.actor(Learner, "a").hear.submit("x")
        await job

        (event,) = await told(system, job.id, Amended)
        assert (event.amendment, event.reason) == ("softer", "Odd: amend softer 1 of 1")


@pytest.mark.parametrize("child", [Child(Learner, "a"), Learner])
async def test_amended_arguments_survive_a_crash_and_are_not_amended_twice(
    tmp_path: Path, child: Child | type[Learner]
) -> None:
    play = Play(tmp_path)
    play.fail("a hears x", error=Hurt)
    async with dying(play.system(child)) as system:
        await system.actor(Learner, "a").hear.tell("x")
        await soon(5.0)

    async with play.system(child) as system:
        assert await system.actor(Learner, "a").hear("y") == ["x! (a hears x)", "y"]
    assert play.lines.count("a hears x") == 1


async def test_amendment_that_fails_gives_the_message_up_with_both_errors(tmp_path: Path) -> None:
    def broken(arguments: dict[str, str], failure: Exception) -> dict[str, str]:
        raise KeyError("nothing here")

    class Clumsy(Part, kind="clumsy"):
        policy = Policy(on(Missed, amend(broken), restart(times=3)))

    play = Play(tmp_path)
    async with play.system(Child(Clumsy, "a")) as system:
        play.fail("a hears x")

        with pytest.raises(HandlerFailed, match="Missed: a hears x"):
            await system.actor(Clumsy, "a").hear("x")

        assert len(await letters(system)) == 1


async def test_amendment_whose_arguments_do_not_fit_gives_the_message_up(tmp_path: Path) -> None:
    def wrong(arguments: dict[str, str], failure: Exception) -> dict[str, int]:
        return {"lime": 1}

    class Clumsy(Part, kind="clumsy"):
        policy = Policy(on(Missed, amend(wrong)))

    play = Play(tmp_path)
    async with play.system(Clumsy) as system:
        play.fail("a hears x")
        job = await system.actor(Clumsy, "a").hear.submit("x")

        with pytest.raises(HandlerFailed, match="Missed: a hears x"):
            await job

        (event,) = await told(system, job.id, TurnFailed)
        assert event.decision == "dead_letter"
        assert "wrong failed" in event.reason


# --- whose rules decide --------------------------------------------------------------------------------------------


class Plain(Part, kind="plain"):
    policy = Policy()


def said(word: str) -> Policy:
    def mark(arguments: dict[str, str], failure: Exception) -> dict[str, str]:
        return {"line": word}

    return Policy(on(Odd, amend(mark)))


@pytest.mark.parametrize("static", [True, False], ids=["static", "on demand"])
async def test_rules_are_the_actors_then_its_supervisors_then_their_parents_then_the_default(
    tmp_path: Path, static: bool
) -> None:
    class Own(Plain, kind="own"):
        policy = said("own")

    class Near(Plain, kind="near"):
        pass

    class Far(Plain, kind="far"):
        pass

    class Nobody(Plain, kind="nobody"):
        pass

    def child(cls: type[Plain]) -> Any:
        return Child(cls, cls.kind) if static else cls

    inner = Supervisor("inner", [child(Own), child(Near)], policy=said("near"))
    bare = Supervisor("bare", [child(Far)])
    play = Play(tmp_path)
    async with play.system(Supervisor("outer", [inner, bare], policy=said("far")), child(Nobody)) as system:
        for cls in (Own, Near, Far, Nobody):
            play.fail(f"{cls.kind} hears x", error=Odd)

        heard = [await system.actor(cls, cls.kind).hear("x") for cls in (Own, Near, Far, Nobody)]

        assert heard == [["own"], ["near"], ["far"], ["x"]]
        assert play.moves().count("start nobody") == 2  # The default restarts.


async def test_supervisors_rule_about_another_error_leaves_this_one_to_its_parents(tmp_path: Path) -> None:
    play = Play(tmp_path)
    inner = Supervisor("inner", [Plain], policy=Policy(on(Fire, dead_letter())))
    async with play.system(Supervisor("outer", [inner], policy=said("far"))) as system:
        play.fail("a hears x", error=Odd)

        assert await system.actor(Plain, "a").hear("x") == ["far"]


async def test_first_rule_that_matches_decides_alone_and_its_supervisors_are_not_asked_when_it_is_used_up(
    tmp_path: Path,
) -> None:
    class Once(Plain, kind="once"):
        policy = Policy(on(Odd, retry(times=1, backoff=AT_ONCE)))

    play = Play(tmp_path)
    async with play.system(Supervisor("outer", [Once], policy=said("far"))) as system:
        play.fail("a hears x", times=9, error=Odd)

        with pytest.raises(HandlerFailed, match="Odd"):
            await system.actor(Once, "a").hear("x")

        assert play.lines.count("a hears x") == 2


async def test_answer_gives_the_error_to_the_caller_and_costs_nothing(tmp_path: Path) -> None:
    class Frank(Part, kind="frank"):
        policy = Policy(on(Odd, answer()))

    play = Play(tmp_path)
    async with play.system(Supervisor("group", [Frank], max_restarts=0)) as system:
        play.fail("a hears x", times=2, error=Odd)

        for _ in range(2):
            with pytest.raises(HandlerFailed, match="Odd: a hears x"):
                await system.actor(Frank, "a").hear("x")

        assert await letters(system) == []
        assert [each.id async for each in system.suspended()] == []


async def test_restart_of_an_actor_on_demand_is_an_event_with_its_reason(tmp_path: Path) -> None:
    play = Play(tmp_path)
    async with play.system(Extra) as system:
        play.fail("e hears x")
        job = await system.actor(Extra, "e").hear.submit("x")
        await job

        (event,) = await told(system, job.id, ActorRestarted)
        assert (event.kind, event.actor, event.reason) == ("extra", "e", "Missed: restart 1 of 100")


async def test_turn_of_the_new_incarnation_has_the_same_id_and_the_next_attempt_number(tmp_path: Path) -> None:
    class Counting(Part, kind="counting"):
        @handler
        async def count(self) -> str:
            turn = current_turn()
            self.play.lines.append(f"{turn.id} {turn.uuid()}")
            if turn.attempt == 1:
                raise Missed
            return f"attempt {turn.attempt}"

    play = Play(tmp_path)
    async with play.system(Child(Counting, "a")) as system:
        assert await system.actor(Counting, "a").count() == "attempt 2"

    first, second = (line for line in play.lines if "-" in line)
    assert first.split()[0] == second.split()[0]
