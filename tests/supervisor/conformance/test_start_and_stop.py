"""Start and stop: in which order, how long it is waited, what a start that fails or hangs costs, what is left behind."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any, TypeVar

import pytest

from tests.supervisor.conformance.cast import (
    VIRTUAL_TIME,
    Extra,
    Missed,
    Part,
    Play,
    Shy,
    Walker,
    causes,
    letters,
    rehearse,
    restarts,
    soon,
    statuses,
    told,
)
from understudy import ActorStopped, Child, Limits, Supervisor, System, handler
from understudy.errors import NotFound, StartFailed
from understudy.events import ActorAbandoned, ActorRestarted, ChildStartFailed, TurnEndedBySystem, TurnFailed
from understudy.supervisor.specs import RestartType, Strategy

pytestmark = [*VIRTUAL_TIME, pytest.mark.watchdog(8)]
E = TypeVar("E")
EVER = 1_000_000  # restarts that no test gets to


class Slow(Part, kind="slow"):
    """Takes two seconds to start and three to stop."""

    async def on_start(self) -> None:
        self.turn.resource(Play).lines.append(f"starting {self.id}")
        await asyncio.sleep(2.0)
        await super().on_start()

    async def on_stop(self) -> None:
        self.play.lines.append(f"stopping {self.id}")
        await asyncio.sleep(3.0)
        await super().on_stop()


class Late(Part, kind="late"):
    """Is started at once the first time, and later not before the test opens the door."""

    async def on_start(self) -> None:
        await super().on_start()
        if self.play.lines.count(f"start {self.id}") > 1:
            await self.play.wait(f"door of {self.id}")


class Deaf(Part, kind="deaf"):
    """Like `Late`, and heeds no cancellation meanwhile."""

    async def on_start(self) -> None:
        await super().on_start()
        if self.play.lines.count(f"start {self.id}") > 1:
            await self.play.dawdle(f"door of {self.id}")


class Numb(Part, kind="numb"):
    """Can be told to heed no cancellation until the test opens a door."""

    @handler
    async def hold(self, point: str) -> None:
        self.play.write(f"{self.id} holds")
        await self.play.dawdle(point)


class Crowd(Numb, kind="crowd"):
    """Many of them, on demand."""


class Stuck(Numb, kind="stuck"):
    """Never ends its on_stop."""

    async def on_stop(self) -> None:
        self.play.write(f"stop {self.id}")
        await self.play.wait("never")


class Author(Part, kind="author"):
    """Does everything that a turn can do, before and after it was told to end."""

    @handler
    async def write(self, point: str) -> str:
        first = "first attempt" not in self.play.lines
        self.play.write("first attempt" if first else "second attempt")
        await rehearse("early")
        self.state.heard.append("first" if first else "second")
        if not first:
            return "second reply"
        friend = self.actor(Part, "friend")
        await friend.hear.tell("told early")
        await self.play.dawdle(point)
        self.state.heard.append("late")
        for name, send in (
            ("step", lambda: rehearse("late")),
            ("tell", lambda: friend.hear.tell("told late")),
            ("timer", lambda: friend.hear.options(delay_s=1.0).tell("told later")),
            ("ask", lambda: friend.hear("asked late")),
            ("submit", lambda: friend.hear.submit("submitted late")),
        ):
            try:
                await send()
            except BaseException as error:
                self.play.lines.append(f"late {name}: {type(error).__name__}")
        return "first reply"


def now() -> float:
    return asyncio.get_running_loop().time()


def mend(play: Play, line: str) -> None:
    """Let *line* go wrong no more."""
    play._errors.pop(line, None)


async def told_at_all(system: System, about: str, kind: type[E]) -> list[E]:
    """Like `told`, when there may be nothing at all."""
    try:
        return await told(system, about, kind)
    except NotFound:
        return []


def pool(*children: Any, **settings: Any) -> Supervisor:
    return Supervisor("pool", children, **settings)


def parts(ids: str, **settings: Any) -> list[Child]:
    return [Child(Part, id, **settings) for id in ids]


# --- starting ------------------------------------------------------------------------------------------------------


async def test_children_start_from_left_to_right_each_when_the_one_before_has_started(play: Play) -> None:
    began = now()
    async with play.system(*(Child(Slow, id) for id in "abc")):
        assert play.lines == ["starting a", "start a", "starting b", "start b", "starting c", "start c"]
        assert [at - began for at in play.at] == [2.0, 4.0, 6.0]


async def test_supervisor_has_started_when_all_below_it_has(play: Play) -> None:
    inner = Supervisor("inner", [Child(Slow, "b"), Supervisor("deep", [Child(Slow, "c")])])

    async with play.system(Child(Part, "a"), inner, Child(Part, "d")):
        assert play.moves() == ["start a", "start b", "start c", "start d"]


async def test_system_is_entered_when_everything_has_started(play: Play) -> None:
    async with play.system(Child(Slow, "a"), pool(Child(Slow, "b"), Extra)) as system:
        assert await statuses(system) == {"a": "running", "pool": "running"}
        assert await statuses(system, "pool") == {"b": "running", "extra": "running"}


async def test_template_starts_nobody_before_there_is_mail(play: Play) -> None:
    async with play.system(Extra) as system:
        assert play.lines == []

        await system.actor(Extra, "x").hear("hello")

        assert play.lines == ["start x", "x hears hello"]


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
async def test_start_that_fails_stops_the_started_ones_in_reverse_order_and_is_not_tried_again(
    play: Play, strategy: Strategy
) -> None:
    play.fail("start c")

    with pytest.raises(StartFailed):
        async with play.system(pool(*parts("abcd"), strategy=strategy)):
            pytest.fail("it was entered")

    assert play.moves() == ["start a", "start b", "start c", "stop b", "stop a"]


async def test_start_failed_names_the_child_its_supervisor_and_the_cause(play: Play) -> None:
    play.fail("start b")

    with pytest.raises(StartFailed) as caught:
        await play.system(*parts("ab")).__aenter__()

    assert (caught.value.child, caught.value.supervisor) == ("b", "root")
    assert isinstance(caught.value.__cause__, Missed)
    assert "child 'b' of supervisor 'root' could not be started: Missed: start b" in str(caught.value)


async def test_start_that_fails_deep_in_the_tree_stops_everything_and_is_told_with_the_chain_of_causes(
    play: Play,
) -> None:
    play.fail("start d")
    inner = Supervisor("inner", [Child(Part, "b"), Supervisor("deep", parts("cd"))])

    with pytest.raises(StartFailed) as caught:
        await play.system(Child(Part, "a"), inner, Child(Part, "e")).__aenter__()

    assert play.moves() == ["start a", "start b", "start c", "start d", "stop c", "stop b", "stop a"]
    assert causes(caught.value) == [StartFailed, StartFailed, StartFailed, Missed]
    assert (caught.value.child, caught.value.supervisor) == ("inner", "root")
    inner_failure = caught.value.__cause__
    assert isinstance(inner_failure, StartFailed)
    deepest = inner_failure.__cause__
    assert isinstance(deepest, StartFailed)
    assert (deepest.child, deepest.supervisor) == ("d", "deep")


async def test_start_that_fails_ends_the_turns_that_ran_already_and_their_messages_are_kept(play: Play) -> None:
    async with play.system(Child(Part, "a")) as system:
        await system.supervisor().terminate_child("a")
        await system.supervisor().restart_child("a")
        await system.actor(Part, "a").pause.options(delay_s=50.0).tell("door")
    await soon(60.0)
    play.forget()
    play.fail("start b")

    with pytest.raises(StartFailed):
        await play.system(Child(Part, "a"), Child(Slow, "b")).__aenter__()
    assert play.moves() == ["start a", "start b", "stop a"]

    play.open("door")
    play.forget()
    async with play.system(Child(Part, "a")):
        await soon()
    assert play.lines == ["start a", "a pauses", "stop a"]


async def test_file_of_a_system_whose_start_failed_can_be_opened_again_and_the_failure_is_in_its_trace(
    play: Play,
) -> None:
    play.fail("start b")
    with pytest.raises(StartFailed):
        await play.system(*parts("ab")).__aenter__()

    async with play.system(*parts("ab")) as system:
        assert await statuses(system) == {"a": "running", "b": "running"}
        (event,) = await told(system, "supervisor root", ChildStartFailed)
        assert (event.child, event.error, event.message) == ("b", "Missed", "start b")


async def test_opening_that_is_cancelled_while_a_child_starts_stops_the_started_ones(play: Play) -> None:
    play.lines.append("start b")  # It was started before: this time it is late.
    opening = asyncio.ensure_future(play.system(Child(Part, "a"), Child(Late, "b")).__aenter__())
    await play.reached("door of b")

    opening.cancel()

    with pytest.raises(asyncio.CancelledError):
        await opening
    assert play.moves()[-1] == "stop a"
    async with play.system(Child(Part, "a")):
        pass  # Nobody holds the file.


# --- Ignore --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", ["permanent", "transient"])
async def test_child_whose_on_start_raises_ignore_is_kept_not_running(play: Play, restart: RestartType) -> None:
    play.fail("start b")

    async with play.system(Child(Part, "a"), Child(Shy, "b", restart=restart), Child(Part, "c")) as system:
        assert await statuses(system) == {"a": "running", "b": "stopped", "c": "running"}
        with pytest.raises(ActorStopped, match=r"Ignore.*It goes on when a supervisor starts it again"):
            await system.actor(Shy, "b").hear("x")

        await system.supervisor().restart_child("b")

        assert await statuses(system) == {"a": "running", "b": "running", "c": "running"}
        assert await system.actor(Shy, "b").hear("y") == ["y"]


async def test_temporary_child_whose_on_start_raises_ignore_is_dropped(play: Play) -> None:
    play.fail("start b")

    async with play.system(Child(Part, "a"), Child(Shy, "b", restart="temporary")) as system:
        assert await statuses(system) == {"a": "running"}
        with pytest.raises(ActorStopped, match="Ignore"):
            await system.actor(Shy, "b").hear("x")


async def test_ignore_in_a_restart_is_no_failed_start_and_the_child_is_kept_not_running(play: Play) -> None:
    async with play.system(Child(Part, "a"), Child(Shy, "b")) as system:
        play.fail("b hears x")
        play.fail("start b")

        with pytest.raises(ActorStopped, match="Ignore"):
            await system.actor(Shy, "b").hear("x")

        await soon()
        assert await statuses(system) == {"a": "running", "b": "stopped"}
        assert restarts(system) == 1
        assert await told_at_all(system, "supervisor root", ChildStartFailed) == []
        assert play.moves() == ["start a", "start b", "stop b", "start b"]


async def test_child_that_ignored_its_start_is_started_with_the_others_by_one_for_all(play: Play) -> None:
    play.fail("start b")
    async with play.system(pool(Child(Part, "a"), Child(Shy, "b"), strategy="one_for_all")) as system:
        assert await statuses(system, "pool") == {"a": "running", "b": "stopped"}
        play.fail("a hears x")

        await system.actor(Part, "a").hear("x")
        await soon()

        assert await statuses(system, "pool") == {"a": "running", "b": "running"}


async def test_actor_of_a_template_that_ignores_its_start_is_not_kept_as_a_child(play: Play) -> None:
    class Guest(Shy, kind="guest"):
        pass

    play.fail("start g")
    async with play.system(Guest) as system:
        with pytest.raises(ActorStopped, match="Ignore"):
            await system.actor(Guest, "g").hear("x")
        assert await statuses(system) == {"guest": "running"}

        assert await system.actor(Guest, "g").hear("y") == ["y"]


# --- restarts whose start fails or hangs -----------------------------------------------------------------------------


class Weak(Part, kind="weak"):
    """Takes a second to start."""

    async def on_start(self) -> None:
        await asyncio.sleep(1.0)
        await super().on_start()


async def failing(play: Play, system: Any, id: str = "w") -> None:
    """Let a `Weak` one fail, and every later start of it."""
    play.fail(f"start {id}", times=EVER)
    play.fail(f"{id} hears x")
    await system.actor(Weak, id).hear.tell("x")
    await soon(3.5)  # Within one of its attempts.


async def test_child_whose_restart_fails_is_restarting_and_the_supervisor_answers_between_attempts(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Weak, "w"), max_restarts=EVER)) as system:
        await failing(play, system)

        assert await statuses(system, "pool") == {"a": "running", "w": "restarting"}
        assert (await system.supervisor("pool").count_children()).active == 1
        assert await system.actor(Part, "a").hear("hello") == ["hello"]

        await soon(0.5)
        before = play.lines.count("start w")
        await soon(10.0)
        assert play.lines.count("start w") == before + 10


async def test_child_that_can_be_started_after_all_goes_on_with_the_message_that_failed(play: Play) -> None:
    async with play.system(pool(Child(Weak, "w"), max_restarts=EVER)) as system:
        await failing(play, system)
        mend(play, "start w")

        assert await system.actor(Weak, "w").hear("y") == ["x", "y"]

        assert len(await told(system, "actor weak/w", ActorRestarted)) == 1


async def test_start_that_fails_at_once_keeps_nobody_else_waiting(play: Play) -> None:
    async with play.system(pool(*parts("aw"), max_restarts=10**12)) as system:
        play.fail("start w", times=EVER)
        play.fail("w hears x")
        await system.actor(Part, "w").hear.tell("x")

        assert await system.actor(Part, "a").hear("hello") == ["hello"]
        assert await statuses(system, "pool") == {"a": "running", "w": "restarting"}
        await system.supervisor("pool").terminate_child("w")
        assert await statuses(system, "pool") == {"a": "running", "w": "stopped"}


async def test_terminate_child_ends_the_attempts(play: Play) -> None:
    async with play.system(pool(Child(Weak, "w"), max_restarts=EVER)) as system:
        await failing(play, system)

        await system.supervisor("pool").terminate_child("w")

        attempts = play.lines.count("start w")
        await soon(10.0)
        assert play.lines.count("start w") == attempts
        assert await statuses(system, "pool") == {"w": "stopped"}
        with pytest.raises(ActorStopped):
            await system.actor(Weak, "w").hear("y")


async def test_supervisor_can_be_stopped_between_attempts(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Weak, "w"), max_restarts=EVER)) as system:
        await failing(play, system)

        await system.supervisor().terminate_child("pool")

        attempts = play.lines.count("start w")
        await soon(10.0)
        assert play.lines.count("start w") == attempts
        assert play.moves()[-1] == "stop a"
        assert await statuses(system) == {"pool": "stopped"}


async def test_system_can_be_closed_between_attempts(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Weak, "w"), max_restarts=EVER)) as system:
        await failing(play, system)

    assert play.moves()[-1] == "stop a"
    mend(play, "start w")
    async with play.system(Child(Weak, "w")) as system:
        assert await system.actor(Weak, "w").hear("y") == ["x", "y"]


async def test_siblings_that_fail_meanwhile_are_restarted_between_the_attempts(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Weak, "w"), max_restarts=EVER)) as system:
        await failing(play, system)
        play.fail("a hears y")

        assert await system.actor(Part, "a").hear("y") == ["y"]

        assert await statuses(system, "pool") == {"a": "running", "w": "restarting"}


async def late_again(play: Play, system: Any, actor: type[Part]) -> None:
    """Let an actor fail whose restart is then late, and return when its `on_start` waits."""
    play.fail("h hears x")
    await system.actor(actor, "h").hear.tell("x")
    await play.reached("door of h")


async def test_start_that_hangs_in_a_restart_is_given_up_when_the_supervisor_is_stopped(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Late, "h"), Child(Part, "z"))) as system:
        await late_again(play, system, Late)
        began = now()

        await system.supervisor().terminate_child("pool")

        assert now() == began
        assert play.moves()[-2:] == ["stop z", "stop a"]
        assert await statuses(system) == {"pool": "stopped"}


async def test_start_that_hangs_in_a_restart_is_given_up_when_the_system_closes(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Late, "h"))) as system:
        await late_again(play, system, Late)
        began = now()

    assert now() == began
    assert play.moves()[-1] == "stop a"
    play.open("door of h")
    async with play.system(Child(Late, "h")) as system:
        assert await system.actor(Late, "h").hear("y") == ["x", "y"]


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_start_that_hangs_part_way_through_a_strategy_is_given_up_and_the_rest_is_not_started(
    play: Play, strategy: Strategy
) -> None:
    children = [Child(Part, "a"), Child(Part, "b"), Child(Late, "h"), Child(Part, "z")]
    async with play.system(pool(*children, strategy=strategy)) as system:
        play.fail("b hears x")
        await system.actor(Part, "b").hear.tell("x")
        await play.reached("door of h")
        play.forget()

        await system.supervisor().terminate_child("pool")

        assert play.moves() == ["stop b", "stop a"]


async def test_start_that_hangs_in_start_child_is_given_up_when_the_supervisor_is_stopped(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"))) as system:
        play.lines.append("start h")
        adding = asyncio.ensure_future(system.supervisor("pool").start_child(Child(Late, "h")))
        await play.reached("door of h")

        await system.supervisor().terminate_child("pool")

        with pytest.raises(StartFailed, match="'h' of supervisor 'pool' could not be started: it was stopped"):
            await adding
        assert play.moves()[-1] == "stop a"


async def test_start_that_heeds_no_cancellation_is_left_behind_after_its_shutdown_time_when_the_supervisor_is_stopped(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Deaf, "h", shutdown_s=2.0))) as system:
        await late_again(play, system, Deaf)
        began = now()

        await system.supervisor().terminate_child("pool")

        assert now() == began + 2.0
        assert play.moves()[-1] == "stop a"
        assert "actor.abandoned" in caplog.messages
        play.open("door of h")
        await soon()
        assert "h hears x" not in play.lines[play.lines.index("stop a") :]  # It was never started.
        with pytest.raises(ActorStopped):
            await system.actor(Deaf, "h").hear("y")

        await system.supervisor().restart_child("pool")

        assert await system.actor(Deaf, "h").hear("z") == ["x", "z"]


async def test_start_that_heeds_no_cancellation_does_not_keep_the_system_from_closing(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Child(Deaf, "h", shutdown_s=2.0))) as system:
        await late_again(play, system, Deaf)
        began = now()

    assert now() == began + 2.0
    assert play.moves()[-1] == "stop a"
    play.open("door of h")
    async with play.system(Child(Deaf, "h")) as system:
        assert await system.actor(Deaf, "h").hear("y") == ["x", "y"]


@pytest.mark.parametrize("shutdown_s", [0.0, 3.0])
async def test_supervisor_that_is_abandoned_leaves_no_late_start_behind_that_comes_to_life(
    play: Play, shutdown_s: float
) -> None:
    tree = pool(Child(Part, "a"), Child(Deaf, "h", shutdown_s=math.inf), shutdown_s=shutdown_s)
    async with play.system(tree) as system:
        await late_again(play, system, Deaf)
        began = now()

        await system.supervisor().terminate_child("pool")

        assert now() == began + shutdown_s
        play.forget()
        play.open("door of h")
        await soon()
        assert [line for line in play.lines if "hears" in line] == []
        assert await statuses(system) == {"pool": "stopped"}


async def test_on_start_that_cancels_itself_is_a_start_that_failed(play: Play) -> None:
    class Torn(Part, kind="torn"):
        async def on_start(self) -> None:
            try:
                await super().on_start()
            except Missed:
                raise asyncio.CancelledError("a library below gave up") from None

    async with play.system(pool(Child(Torn, "t"), max_restarts=5)) as system:
        play.fail("start t", times=2)
        play.fail("t hears x")

        assert await system.actor(Torn, "t").hear("x") == ["x"]

        assert restarts(system, "pool") == 3
        assert len(await told(system, "supervisor pool", ChildStartFailed)) == 2


# --- stopping ------------------------------------------------------------------------------------------------------


async def test_children_are_stopped_one_after_the_other_in_exact_reverse_start_order(play: Play) -> None:
    async with play.system(*(Child(Slow, id) for id in "abc")):
        play.forget()
        began = now()

    assert play.lines == ["stopping c", "stop c", "stopping b", "stop b", "stopping a", "stop a"]
    assert [at - began for at in play.at] == [3.0, 6.0, 9.0]


async def test_supervisors_are_stopped_in_their_place_with_all_below_them(play: Play) -> None:
    inner = Supervisor("inner", [Child(Part, "b"), Supervisor("deep", parts("cd"))])
    async with play.system(Child(Part, "a"), inner, Child(Part, "e")):
        play.forget()

    assert play.moves() == ["stop e", "stop d", "stop c", "stop b", "stop a"]


async def test_children_that_were_added_are_stopped_first_and_restarted_ones_in_their_place(play: Play) -> None:
    async with play.system(pool(*parts("abc"))) as system:
        orders = system.supervisor("pool")
        await orders.start_child(Child(Part, "0"))
        await orders.terminate_child("b")
        await orders.restart_child("b")
        play.fail("a hears x")
        await system.actor(Part, "a").hear("x")
        play.forget()

    assert play.moves() == ["stop 0", "stop c", "stop b", "stop a"]


async def test_turn_is_asked_to_end_and_its_message_is_put_back(play: Play) -> None:
    async with play.system(Child(Part, "a"), trace="all") as system:
        job = await system.actor(Part, "a").pause.submit("door")
        await play.reached("door")
        began = now()

        await system.supervisor().terminate_child("a")

        assert now() == began
        assert play.moves() == ["start a", "stop a"]
        play.open("door")
        await system.supervisor().restart_child("a")
        await job
        assert play.lines.count("a pauses") == 2
        (ended,) = await told(system, job.id, TurnEndedBySystem)
        assert ended.reason == "stopped by its supervisor"
        assert await told(system, job.id, TurnFailed) == []


@pytest.mark.parametrize(("shutdown_s", "left_behind"), [(0.0, True), (3.0, True), (5.0, False), (math.inf, False)])
async def test_turn_that_does_not_end_gets_its_shutdown_time_and_is_then_abandoned(
    play: Play, shutdown_s: float, left_behind: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with play.system(Child(Numb, "a", shutdown_s=shutdown_s)) as system:
        await system.actor(Numb, "a").hold.tell("door")
        await play.reached("door")
        began = now()
        asyncio.get_running_loop().call_later(4.0, play.open, "door")

        await system.supervisor().terminate_child("a")

        assert now() - began == pytest.approx(shutdown_s if left_behind else 4.0)
        assert len(system.leaked) == left_behind
        events = await told_at_all(system, "actor numb/a", ActorAbandoned)
        assert [event.shutdown_s for event in events] == ([shutdown_s] if left_behind else [])
        records = [record for record in caplog.records if record.message == "actor.abandoned"]
        assert [(each.levelno, vars(each)["actor"]) for each in records] == (
            [(logging.WARNING, "numb/a")] if left_behind else []
        )
        await soon(5.0)
        assert not system.leaked  # It has come to its end after all.


@pytest.mark.parametrize(("shutdown_s", "waited_s"), [(0.0, 0.0), (2.0, 2.0)])
async def test_on_stop_gets_the_shutdown_time_too_and_no_more(play: Play, shutdown_s: float, waited_s: float) -> None:
    async with play.system(Child(Part, "a"), Child(Stuck, "s", shutdown_s=shutdown_s)) as system:
        began = now()

        await system.supervisor().terminate_child("s")

        assert now() == began + waited_s
        assert ("stop s" in play.lines) is (shutdown_s > 0)  # One that is abandoned at once has no time for it.


async def test_turn_and_on_stop_share_one_shutdown_time(play: Play) -> None:
    async with play.system(Child(Stuck, "s", shutdown_s=5.0)) as system:
        await system.actor(Stuck, "s").hold.tell("door")
        await play.reached("door")
        began = now()
        asyncio.get_running_loop().call_later(3.0, play.open, "door")

        await system.supervisor().terminate_child("s")

        assert now() == began + 5.0


async def test_static_child_of_a_supervisor_with_a_finite_time_gets_no_more_than_its_supervisor(play: Play) -> None:
    tree = pool(Child(Part, "a"), Child(Numb, "b", shutdown_s=math.inf), shutdown_s=3.0)
    async with play.system(tree, Child(Part, "c")) as system:
        await system.actor(Numb, "b").hold.tell("door")
        await play.reached("door")
        began = now()

        await system.supervisor().terminate_child("pool")

        assert now() == began + 3.0
        assert await statuses(system) == {"pool": "stopped", "c": "running"}
        assert len(system.leaked) == 1
        play.open("door")
        await soon()


async def test_supervisor_whose_time_is_zero_is_abandoned_with_all_below_it(play: Play) -> None:
    tree = pool(Child(Part, "a"), Supervisor("deep", [Child(Numb, "b"), Crowd]), shutdown_s=0)
    async with play.system(tree, Child(Part, "c")) as system:
        await system.actor(Numb, "b").hold.tell("door b")
        await system.actor(Crowd, "x").hold.tell("door x")
        await play.reached("door b")
        await play.reached("door x")
        began = now()

        await system.supervisor().terminate_child("pool")

        assert now() == began
        assert await statuses(system) == {"pool": "stopped", "c": "running"}
        assert len(system.leaked) == 2
        play.open("door b")
        play.open("door x")
        await system.supervisor().restart_child("pool")
        await soon()
        assert play.lines.count("b holds") == play.lines.count("x holds") == 2


async def test_actors_of_a_template_are_stopped_side_by_side_under_one_timer(play: Play) -> None:
    class Lazy(Crowd, kind="lazy"):
        async def on_stop(self) -> None:
            await asyncio.sleep(2.0)
            await super().on_stop()

    async with play.system(Lazy, limits=Limits(grace_s=5.0)) as system:
        for number in range(20):
            await system.actor(Lazy, f"calm {number}").hear("x")
        for id in ("quick", "never", "never too"):
            await system.actor(Lazy, id).hold.tell(f"door {id}")
            await play.reached(f"door {id}")
        play.forget()
        began = now()
        asyncio.get_running_loop().call_later(1.0, play.open, "door quick")

        await system.supervisor().terminate_child("lazy")

        assert now() == began + 5.0
        assert len(system.leaked) == 2
        assert sum(line.startswith("stop calm") for line in play.lines) == 0  # The timer is one for turns and on_stop.
        play.open("door never")
        play.open("door never too")
        await soon()


async def test_actors_of_a_template_that_end_in_time_take_as_long_as_the_slowest(play: Play) -> None:
    class Lazy(Crowd, kind="lazy"):
        async def on_stop(self) -> None:
            await asyncio.sleep(float(self.id))
            await super().on_stop()

    async with play.system(Lazy, limits=Limits(grace_s=5.0)) as system:
        for id in ("1", "2", "4"):
            await system.actor(Lazy, id).hear("x")
        play.forget()
        began = now()

        await system.supervisor().terminate_child("lazy")

        assert now() == began + 4.0
        assert play.moves() == ["stop 1", "stop 2", "stop 4"]


async def test_template_is_stopped_in_its_place(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"), Extra, Child(Part, "b"), Walker)) as system:
        await system.actor(Extra, "x").hear("x")
        await system.actor(Walker, "w").hear("x")
        play.forget()

    assert play.moves() == ["stop w", "stop b", "stop x", "stop a"]


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
async def test_child_that_ends_meanwhile_does_not_disturb_the_sweep_and_is_not_restarted(
    play: Play, restart: RestartType
) -> None:
    tree = pool(Child(Part, "a", restart=restart), Child(Part, "b", restart=restart), Child(Slow, "z"))
    async with play.system(tree) as system:
        stopping = asyncio.ensure_future(system.supervisor().terminate_child("pool"))
        await soon(1.0)  # It waits for z.
        play.forget()
        play.fail("b hears x", error=Missed)

        await system.actor(Part, "a").leave("broken")
        await system.actor(Part, "b").hear.tell("x")
        await stopping

        assert sorted(line for line in play.moves() if line != "stop z") == ["stop a", "stop b"]
        assert await statuses(system) == {"pool": "stopped"}
        await soon(10.0)
        assert not [line for line in play.lines if line.startswith("start ")]
        assert restarts(system, "pool") == 0


async def test_child_that_ends_while_it_is_being_stopped_is_not_restarted(play: Play) -> None:
    class Leaver(Part, kind="leaver"):
        @handler
        async def leave_when_asked(self) -> None:
            try:
                await self.play.wait("never")
            except asyncio.CancelledError:
                self.stop("broken")
                raise

    async with play.system(Child(Leaver, "a")) as system:
        await system.actor(Leaver, "a").leave_when_asked.tell()
        await play.reached("never")

        await system.supervisor().terminate_child("a")

        await soon()
        assert play.moves() == ["start a", "stop a"]
        assert await statuses(system) == {"a": "stopped"}


async def test_error_in_on_stop_does_not_disturb_the_sweep(play: Play) -> None:
    async with play.system(*parts("abc")):
        play.forget()
        play.fail("stop b")

    assert play.moves() == ["stop c", "stop b", "stop a"]


# --- what is left behind -------------------------------------------------------------------------------------------

LATE = [f"late {name}: TurnEnded" for name in ("step", "tell", "timer", "ask", "submit")]


@pytest.mark.parametrize("shutdown_s", [0.0, 2.0])
async def test_nothing_of_an_abandoned_turn_counts_and_its_message_goes_to_the_new_incarnation(
    play: Play, shutdown_s: float
) -> None:
    tree = [Child(Author, "a", shutdown_s=shutdown_s), Child(Part, "friend")]
    async with play.system(*tree, trace="all") as system:
        author = system.actor(Author, "a")
        job = await author.write.submit("door")
        await play.reached("door")

        await system.supervisor().terminate_child("a")
        await system.supervisor().restart_child("a")

        assert await job == "second reply"
        play.open("door")
        await soon(20.0)
        assert play.lines.count("rehearse early") == 1  # What it did before it was left behind is journaled.
        assert "rehearse late" not in play.lines
        assert [line for line in play.lines if line.startswith("late ")] == LATE
        assert await author.memory() == ["second"]
        assert await system.actor(Part, "friend").memory() == []
        assert len(await told(system, "actor author/a", ActorAbandoned)) == 1
        assert await letters(system) == []

    async with play.system(*tree) as system:  # And on disk.
        assert await system.actor(Author, "a").memory() == ["second"]
        assert await system.actor(Part, "friend").memory() == []
        assert await system.job(job.id, Author.write) == "second reply"
        assert play.lines.count("second attempt") == 1


async def test_abandoned_turn_that_ends_before_the_new_incarnation_starts_counts_for_nothing_either(
    play: Play,
) -> None:
    async with play.system(Child(Author, "a", shutdown_s=0), Child(Part, "friend")) as system:
        job = await system.actor(Author, "a").write.submit("door")
        await play.reached("door")
        await system.supervisor().terminate_child("a")

        play.open("door")
        await soon(5.0)
        assert [line for line in play.lines if line.startswith("late ")] == LATE
        await system.supervisor().restart_child("a")

        assert await job == "second reply"
        assert await system.actor(Author, "a").memory() == ["second"]


async def test_turn_that_is_abandoned_when_the_system_closes_goes_on_in_the_next_life(play: Play) -> None:
    tree = [Child(Author, "a", shutdown_s=1.0), Child(Part, "friend")]
    async with play.system(*tree, limits=Limits(grace_s=3.0)) as system:
        job = await system.actor(Author, "a").write.submit("door")
        await play.reached("door")
        began = now()

    assert now() <= began + 3.0 + 1.0 + 3.0  # the grace period, its shutdown time, and that of what is left
    play.open("door")
    async with play.system(*tree) as system:
        assert await system.job(job.id, Author.write) == "second reply"
        await soon(5.0)
        assert await system.actor(Author, "a").memory() == ["second"]
        assert await system.actor(Part, "friend").memory() == []
        assert play.lines.count("rehearse early") == 1


async def test_caller_of_an_abandoned_turn_gets_the_reply_of_the_new_incarnation(play: Play) -> None:
    async with play.system(Child(Author, "a", shutdown_s=0), Child(Part, "friend"), Child(Part, "b")) as system:
        asking = asyncio.ensure_future(system.actor(Author, "a").write("door"))
        await play.reached("door")
        tree = system.supervisor()
        await tree.terminate_child("a")

        with pytest.raises(ActorStopped):  # It is told at once; its message is kept.
            await asking

        play.open("door")
        await tree.restart_child("a")
        await soon(5.0)
        assert await system.actor(Author, "a").memory() == ["second"]


async def test_supervisor_that_does_not_run_takes_no_orders(play: Play) -> None:
    async with play.system(pool(Child(Part, "a"))) as system:
        orders = system.supervisor("pool")
        await system.supervisor().terminate_child("pool")

        for order in (orders.which_children(), orders.count_children(), orders.terminate_child("a")):
            with pytest.raises(NotFound, match="supervisor 'pool' is not running"):
                await order
