"""The retry ladder of a step is durable: a crash in the middle goes on at the same rung (rules 8, 9, 16 to 18)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.actors.steps.conftest import Open
from tests.actors.turns.world import World, dying, world
from understudy import (
    Actor,
    ActorSuspended,
    Backoff,
    Child,
    HandlerFailed,
    InvalidDefinition,
    Limits,
    OutcomeUnknown,
    Policy,
    StepFailed,
    System,
    Tool,
    amend,
    answer,
    dead_letter,
    handler,
    on,
    restart,
    retry,
    step,
    stop,
    suspend,
    tool,
)
from understudy.events import Amended, StepFinished, StepStarted, TurnDiverged, TurnFailed
from understudy.testing import World as CrashWorld, crash_at_every_point

pytestmark = pytest.mark.anyio

HOUR = Backoff(3_600.0, max_s=3_600.0, factor=1.0, jitter=0.0)
SECOND = Backoff(1.0, max_s=1.0, factor=1.0, jitter=0.0)
AT_ONCE = Backoff(0.0)


class Order(msgspec.Struct):
    sku: str
    count: int = 1


class Declined(Exception):
    pass


def _attempt(what: str, *facts: Any) -> None:
    """Note an attempt and when it ran; fail as often as the test says."""
    outside = world()
    outside.did.append((what, *facts))
    outside.seen.setdefault("at", []).append(asyncio.get_running_loop().time())
    if outside.should_fail(what):
        raise ConnectionRefusedError(f"{what} is away")


@step(policy=Policy(on(OSError, retry(times=3, backoff=HOUR))))
async def call(what: str) -> str:
    _attempt(what)
    return f"{what} done"


def halve(arguments: dict[str, Any], failure: Exception) -> dict[str, Any]:
    """Amend an order to half of it."""
    assert isinstance(failure, OSError)
    order = arguments["order"]
    return {**arguments, "order": Order(order.sku, order.count // 2)}


@step(policy=Policy(on(OSError, amend(halve, times=3, backoff=HOUR))))
async def reserve(order: Order, *, patience: int = 3) -> str:
    _attempt("reserve", order.count, patience)
    return f"{order.count} of {order.sku}"


@step(interrupted="fail", policy=Policy(on(ConnectionRefusedError, retry(times=3, backoff=HOUR))))
async def charge(cents: int) -> str:
    _attempt("charge", cents)
    await world().stop_at("charging")
    return "charged"


async def wait_for_a_price(arguments: dict[str, Any], _failure: Exception) -> dict[str, Any]:
    await world().stop_at("amending")
    return arguments


@step(interrupted="fail", policy=Policy(on(ConnectionRefusedError, amend(wait_for_a_price))))
async def bid(cents: int) -> str:
    _attempt("bid", cents)
    return "bid"


@step
async def plain(what: str) -> str:
    _attempt(what)
    return f"{what} done"


async def slower(arguments: dict[str, Any], _failure: Exception) -> dict[str, Any]:
    """Amend asynchronously."""
    await asyncio.sleep(5)
    return {"what": f"{arguments['what']}, slower"}


def no_dict(_arguments: dict[str, Any], _failure: Exception) -> Any:
    return "no dict"


def other_names(_arguments: dict[str, Any], _failure: Exception) -> Any:
    return {"wat": "x"}


def other_types(_arguments: dict[str, Any], _failure: Exception) -> Any:
    return {"what": 5}


def not_data(_arguments: dict[str, Any], _failure: Exception) -> Any:
    return {"what": object()}


def too_long(_arguments: dict[str, Any], _failure: Exception) -> Any:
    return {"what": "x" * 5_000}


async def acts_itself(_arguments: dict[str, Any], _failure: Exception) -> Any:
    return {"what": await plain("more")}


def broken(_arguments: dict[str, Any], _failure: Exception) -> Any:
    raise KeyError("amending")


class Desk(Actor, kind="desk"):
    policy = Policy(on(RuntimeError, restart(times=3, backoff=AT_ONCE)), on((StepFailed, OutcomeUnknown), answer()))

    @handler
    async def call(self, what: str) -> str:
        return await call(world().seen.get("what", what))

    @handler
    async def reserve(self, count: int) -> str:
        return await reserve(Order("pens", count))

    @handler
    async def charge(self, cents: int) -> str:
        return await charge(cents)

    @handler
    async def bid_in_time(self) -> str:
        try:
            async with asyncio.timeout(60):
                return await bid(5)
        except TimeoutError:
            await world().stop_at("too late")
            return "too late"

    @handler
    async def call_beside_a_failure(self) -> str:
        calling = asyncio.ensure_future(call("x"))
        if self.turn.attempt == 1:
            while len(world().did) < 2:
                await asyncio.sleep(60)
            raise RuntimeError("the other branch")
        return await calling

    @handler
    async def limited(self, within_s: float) -> str:
        try:
            async with asyncio.timeout(within_s):
                return await call("x")
        except TimeoutError:
            return "too slow"


def with_policy(policy: Policy, *, own: Policy | None = None, of_turn: Policy | None = None) -> Any:
    @step(name="work", policy=own, raises=[Declined])
    async def work(what: str) -> str:
        if world().should_fail("decline"):
            raise Declined(what)
        _attempt("work", what)
        return f"{what} done"

    class Worker(Actor, kind="worker"):
        policy = of_turn or Policy(on(StepFailed, answer()))
        call_policy = with_policy_of

        @handler
        async def work(self, what: str) -> str:
            try:
                return await work(what)
            except Declined:
                return "declined"
            except Exception as error:
                world().seen["handler saw"] = str(error)
                raise

    return Worker


with_policy_of = Policy()


def worker(call_policy: Policy, *, own: Policy | None = None, of_turn: Policy | None = None) -> Any:
    """Return an actor class with one step, whose `call_policy` this is."""
    made = with_policy(call_policy, own=own, of_turn=of_turn)
    made.call_policy = call_policy
    return made


def attempts(events: Any) -> list[tuple[int, str, str]]:
    return [(each.attempt, each.decision, each.reason) for each in events if isinstance(each, StepFinished)]


# --- across crashes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crashed", [True, False], ids=["crash", "shutdown"])
async def test_ladder_goes_on_at_the_same_rung_and_waits_until_its_time(
    open_system: Open, outside: World, *, crashed: bool
) -> None:
    outside.fails["x"] = 2
    loop = asyncio.get_running_loop()

    async with (dying if crashed else _open)(open_system(Desk, limits=Limits(grace_s=0.1))) as system:
        job = await system.actor(Desk, "d").call.submit("x")
        while len(outside.did) < 2:
            await asyncio.sleep(60)
        await asyncio.sleep(600)
    async with open_system(Desk) as again:
        assert await again.job(job.id) == "x done"
        events = (await again.trace(job.id)).events

    first, second, third = outside.seen["at"]
    assert (round(second - first), round(third - second)) == (3_600, 3_600)
    assert loop.time() - third < 60
    assert attempts(events) == [
        (1, "retry", "ConnectionRefusedError: retry 1 of 3"),
        (2, "retry", "ConnectionRefusedError: retry 2 of 3"),
        (3, "", ""),
    ]
    assert not [each for each in events if isinstance(each, TurnDiverged)]


def _open(system: System) -> System:
    return system


async def test_ladder_that_is_used_up_across_crashes_fails_as_it_would_have_without_them(
    open_system: Open, outside: World
) -> None:
    outside.fails["x"] = 99
    job = None
    for life in range(1, 4):
        async with dying(open_system(Desk)) as system:
            job = job or await system.actor(Desk, "d").call.submit("x")
            while len(outside.did) < life:
                await asyncio.sleep(60)
    assert job is not None
    async with open_system(Desk) as last:
        with pytest.raises(StepFailed, match="x is away"):
            await last.job(job.id)
        events = (await last.trace(job.id)).events

    assert len(outside.did) == 4
    assert attempts(events)[-1] == (4, "", "ConnectionRefusedError: every reaction is used up")


async def test_waiting_for_the_next_rung_is_no_crash_of_the_message(open_system: Open, outside: World) -> None:
    outside.fails["x"] = 1
    limits = Limits(crashes_alone=1, crashes_max=1)
    job = None
    for _ in range(4):
        async with dying(open_system(Desk, limits=limits)) as system:
            job = job or await system.actor(Desk, "d").call.submit("x")
            await asyncio.sleep(60)
    assert job is not None
    async with open_system(Desk, limits=limits) as again:
        assert await again.job(job.id) == "x done"


async def test_amended_input_is_kept_and_amended_once_for_each_failure(open_system: Open, outside: World) -> None:
    outside.fails["reserve"] = 2

    async with dying(open_system(Desk)) as system:
        job = await system.actor(Desk, "d").reserve.submit(8)
        while len(outside.did) < 2:
            await asyncio.sleep(60)
    async with open_system(Desk) as again:
        assert await again.job(job.id) == "2 of pens"
        events = (await again.trace(job.id)).events
        drawn = str(await again.trace(job.id))

    assert outside.did == [("reserve", 8, 3), ("reserve", 4, 3), ("reserve", 2, 3)]
    assert [(each.amendment, each.reason) for each in events if isinstance(each, Amended)] == [
        ("halve", "ConnectionRefusedError: amend halve 1 of 3"),
        ("halve", "ConnectionRefusedError: amend halve 2 of 3"),
    ]
    assert "amended: halve (2 of 3)" in " ".join(drawn.split())


async def test_redelivered_turn_that_does_something_else_does_not_diverge_from_a_step_without_outcome(
    open_system: Open, outside: World
) -> None:
    outside.fails["x"] = 1
    async with dying(open_system(Desk)) as system:
        job = await system.actor(Desk, "d").call.submit("x")
        await asyncio.sleep(60)
    outside.seen["what"] = "y"
    async with open_system(Desk) as again:
        assert await again.job(job.id) == "y done"
        events = (await again.trace(job.id)).events
        assert await again.store.journal(again.message_no(job.id)) == []

    assert not [each for each in events if isinstance(each, TurnDiverged)]


async def test_step_that_must_not_run_twice_is_not_in_doubt_while_it_waits_for_its_next_attempt(
    open_system: Open, outside: World
) -> None:
    outside.fails["charge"] = 1
    outside.open("charging")

    async with dying(open_system(Desk)) as system:
        job = await system.actor(Desk, "d").charge.submit(5)
        await asyncio.sleep(60)
    async with open_system(Desk) as again:
        assert await again.job(job.id) == "charged"

    assert outside.did == [("charge", 5)] * 2


async def test_crash_in_a_later_attempt_of_such_a_step_leaves_it_unknown(open_system: Open, outside: World) -> None:
    outside.fails["charge"] = 1

    async with dying(open_system(Desk)) as system:
        job = await system.actor(Desk, "d").charge.submit(5)
        await outside.wait("charging")
    async with open_system(Desk) as again:
        with pytest.raises(OutcomeUnknown):
            await again.job(job.id)

    assert outside.did == [("charge", 5)] * 2


async def test_such_a_step_that_was_cancelled_while_its_failure_was_amended_is_not_in_doubt(
    open_system: Open, outside: World
) -> None:
    outside.fails["bid"] = 1

    async with dying(open_system(Desk)) as system:
        job = await system.actor(Desk, "d").bid_in_time.submit()
        await outside.wait("too late")
    async with open_system(Desk) as again:
        assert await again.job(job.id) == "bid"

    assert outside.did == [("bid", 5)] * 2


@pytest.mark.parametrize("failed_before", [0, 1])
async def test_such_a_step_that_is_abandoned_while_it_runs_is_not_run_again(
    open_system: Open, outside: World, failed_before: int
) -> None:
    outside.fails["charge"] = failed_before

    async with open_system(Child(Desk, "d", shutdown_s=0)) as system:
        job = await system.actor(Desk, "d").charge.submit(5)
        await outside.wait("charging")
        await system.supervisor().terminate_child("d")
        await system.supervisor().restart_child("d")
        outside.open("charging")
        with pytest.raises(OutcomeUnknown):
            await job

    assert outside.did == [("charge", 5)] * (1 + failed_before)


async def test_next_attempt_starts_when_the_failure_before_it_is_on_disk(open_system: Open, outside: World) -> None:
    outside.fails["work"] = 1
    working = worker(Policy(on(OSError, retry(times=1, backoff=AT_ONCE))))

    async with open_system(working) as system:
        before = asyncio.ensure_future(system.actor(working, "w").work("x"))
        while not outside.did:
            await asyncio.sleep(0)
        store: Any = system.store
        store.hold()
        await store.wait_held()
        for _ in range(50):
            await asyncio.sleep(0)

        assert len(outside.did) == 1
        store.release()
        assert await before == "x done"


async def test_rows_of_a_ladder_go_with_the_message_also_when_its_turn_ends_meanwhile(
    open_system: Open, outside: World
) -> None:
    outside.fails["x"] = 9
    async with open_system(Desk) as system:
        for within_s in (0.001, 600):
            job = await system.actor(Desk, "d").limited.submit(within_s)
            assert await job == "too slow"
            await system.committer.wait_durable()
            assert await system.store.journal(system.message_no(job.id)) == []
        assert system.journals == {}


# --- new attempts of the turn -------------------------------------------------------------------------------------------


async def test_new_attempt_that_a_policy_decided_begins_the_ladder_anew(open_system: Open, outside: World) -> None:
    outside.fails["x"] = 4

    async with open_system(Desk) as system:
        job = await system.actor(Desk, "d").call_beside_a_failure.submit()
        assert await job == "x done"
        events = (await system.trace(job.id)).events

    assert [number for number, _, _ in attempts(events)] == [1, 2, 1, 2, 3]


async def test_dead_letter_that_is_delivered_again_begins_the_ladder_anew(open_system: Open, outside: World) -> None:
    outside.fails["work"] = 3
    working = worker(Policy(on(OSError, retry(times=1, backoff=SECOND), dead_letter())))

    async with open_system(working) as system:
        job = await system.actor(working, "w").work.submit("x")
        with pytest.raises(HandlerFailed) as raised:
            await job
        await system.redeliver(raised.value.dead_letter)
        assert await job == "x done"

    assert len(outside.did) == 4


# --- verbs about the whole turn -----------------------------------------------------------------------------------------


async def test_restart_in_a_ladder_is_a_rung_of_it(open_system: Open, outside: World) -> None:
    outside.fails["work"] = 99
    working = worker(
        Policy(on(OSError, retry(times=1, backoff=SECOND), restart(times=2, backoff=SECOND), dead_letter()))
    )

    async with open_system(working) as system:
        job = await system.actor(working, "w").work.submit("x")
        with pytest.raises(HandlerFailed, match="work is away"):
            await job
        trace = await system.trace(job.id)

    assert len(outside.did) == 4
    assert [decision for _, decision, _ in attempts(trace.events)] == ["retry", "restart", "restart", "dead_letter"]
    assert [each.decision for each in trace.events if isinstance(each, TurnFailed)] == [
        "restart",
        "restart",
        "dead_letter",
    ]
    assert "handler saw" not in outside.seen


async def test_suspend_holds_the_actor_and_the_step_runs_again_when_it_is_resumed(
    open_system: Open, outside: World
) -> None:
    outside.fails["work"] = 1
    working = worker(Policy(on(OSError, suspend())))

    async with open_system(working) as system:
        job = await system.actor(working, "w").work.submit("x")
        with pytest.raises(ActorSuspended, match="work is away"):
            await job
        assert await system.store.journal(system.message_no(job.id)) == []
        await system.resume(system.actor(working, "w"))
        assert await job == "x done"

    assert "handler saw" not in outside.seen


async def test_stop_ends_the_actor_and_its_message_is_a_dead_letter(open_system: Open, outside: World) -> None:
    outside.fails["work"] = 1
    working = worker(Policy(on(OSError, stop())))

    async with open_system(working) as system:
        job = await system.actor(working, "w").work.submit("x")
        with pytest.raises(HandlerFailed, match="work is away"):
            await job

    assert len(outside.did) == 1


async def test_answer_gives_the_failure_to_the_handler(open_system: Open, outside: World) -> None:
    outside.fails["work"] = 1
    working = worker(Policy(on(OSError, answer())))

    async with open_system(working) as system:
        with pytest.raises(StepFailed):
            await system.actor(working, "w").work("x")

    assert "work is away" in outside.seen["handler saw"]


# --- which rules decide -------------------------------------------------------------------------------------------------


async def test_steps_own_rules_come_before_those_of_its_actor(open_system: Open, outside: World) -> None:
    outside.fails["work"] = 9
    working = worker(
        Policy(on(OSError, retry(times=9, backoff=AT_ONCE))), own=Policy(on(OSError, retry(times=1, backoff=AT_ONCE)))
    )

    async with open_system(working) as system:
        with pytest.raises(StepFailed):
            await system.actor(working, "w").work("x")

    assert len(outside.did) == 2


async def test_what_the_steps_own_rules_do_not_name_is_for_those_of_its_actor(
    open_system: Open, outside: World
) -> None:
    outside.fails["work"] = 1
    working = worker(Policy(on(OSError, retry(times=1, backoff=AT_ONCE))), own=Policy(on(KeyError, retry(times=1))))

    async with open_system(working) as system:
        assert await system.actor(working, "w").work("x") == "x done"


async def test_declared_error_is_an_answer_whatever_the_rules_say(open_system: Open, outside: World) -> None:
    outside.fails["decline"] = 1
    working = worker(Policy(on(Exception, retry(times=9))))

    async with open_system(working) as system:
        assert await system.actor(working, "w").work("x") == "declined"


async def test_tool_has_a_ladder_of_its_own_that_its_trace_shows(open_system: Open, outside: World) -> None:
    outside.fails["look"] = 1

    @tool(name="look", policy=Policy(on(OSError, amend(slower, backoff=SECOND))))
    async def look(what: str) -> str:
        """Look."""
        _attempt("look", what)
        return what

    looking: Tool[..., Any] = look

    class Looker(Actor, kind="looker"):
        @handler
        async def start(self) -> str:
            return str(await looking("hard"))

    async with open_system(Looker) as system:
        job = await system.actor(Looker, "l").start.submit()
        assert await job == "hard, slower"
        drawn = " ".join(str(await system.trace(job.id)).split())

    assert "FAILED ConnectionRefusedError" in drawn
    assert "amended: slower" in drawn


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (no_dict, "expected a dict of arguments by name; got a str"),
        (other_names, "no arguments called 'wat'; it takes what"),
        (other_types, "Expected `str`, got `int`"),
        (not_data, "cannot be stored"),
        (too_long, "more than Limits.payload_bytes=1000"),
        (acts_itself, "NoTurn: step plain inside step work: only the handler itself may do that"),
        (broken, "KeyError: 'amending'"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_amendment_that_fails_leaves_the_failure_as_it_was_with_a_note(
    open_system: Open, outside: World, how: Any, says: str
) -> None:
    outside.fails["work"] = 1
    working = worker(Policy(on(OSError, amend(how, times=3))))

    async with open_system(working, limits=Limits(payload_bytes=1_000)) as system:
        job = await system.actor(working, "w").work.submit("x")
        with pytest.raises(StepFailed, match="ConnectionRefusedError: work is away") as raised:
            await job
        drawn = " ".join(str(await system.trace(job.id)).split())

    assert f"The amendment {how.__name__} failed with" in str(raised.value)
    assert says in str(raised.value)
    assert f"1 of 3, but {how.__name__} failed" in drawn
    assert len(outside.did) == 1


async def test_asynchronous_amendment_is_awaited(open_system: Open, outside: World) -> None:
    outside.fails["work"] = 1
    working = worker(Policy(on(OSError, amend(slower))))

    async with open_system(working) as system:
        assert await system.actor(working, "w").work("x") == "x, slower done"

    assert outside.did == [("work", "x"), ("work", "x, slower")]


def test_call_policy_that_is_none_is_refused_when_the_class_is_defined() -> None:
    with pytest.raises(InvalidDefinition, match=r"Wrong.call_policy='retry'; expected Policy\(on"):

        class Wrong(Actor):
            call_policy = "retry"  # type: ignore[assignment]


async def test_retried_attempts_say_that_they_begin(open_system: Open, outside: World) -> None:
    outside.fails["x"] = 1

    async with open_system(Desk) as system:
        job = await system.actor(Desk, "d").call.submit("x")
        await job
        events = (await system.trace(job.id)).events

    assert [each.attempt for each in events if isinstance(each, StepStarted)] == [1, 2]


# --- every crash point --------------------------------------------------------------------------------------------------


def longer(arguments: dict[str, Any], _failure: Exception) -> dict[str, Any]:
    """Amend by a word."""
    return {**arguments, "what": arguments["what"] + "!"}


@step(policy=Policy(on(ConnectionError, retry(times=2, backoff=SECOND), amend(longer, times=2, backoff=SECOND))))
async def noted(what: str) -> str:
    outside = world_of_crashes()
    outside.note("ran", what)
    if what != "x!!":
        raise ConnectionError(what)
    return what


def world_of_crashes() -> CrashWorld:
    from understudy import current_turn

    return current_turn().resource(CrashWorld)


class Climber(Actor, kind="climber"):
    @handler
    async def climb(self) -> str:
        return await noted("x")


async def climbing(outside: CrashWorld) -> object:
    async with System(outside.store(), [Climber], resources=[outside]) as system:
        done = await system.actor(Climber, "c").climb.options(key="once")()
        return [done, len(await system.store.journal(1))]


def test_no_crash_makes_a_ladder_longer_than_the_attempt_that_was_in_flight(tmp_path: Path) -> None:
    def check(outside: CrashWorld, result: Any) -> None:
        ran = [what for _, _, what in outside.notes()]
        lives = {life for life, _, _ in outside.notes()}
        assert result == ["x!!", 0]
        assert ran == sorted(ran, key=len)
        assert len(ran) <= 5 + max(lives) - 1

    report = crash_at_every_point(climbing, directory=tmp_path, check=check, again=3)

    assert report.crashes
