"""A finished step is never repeated: what a redelivered turn gets from its journal (rules 16 to 19, 21 to 24)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from tests.actors.steps.conftest import Open
from tests.actors.turns.world import World, dying, world
from understudy import (
    Actor,
    ActorSuspended,
    Backoff,
    EncodingFailed,
    KeyConflict,
    LimitExceeded,
    Limits,
    OutcomeUnknown,
    Policy,
    StepFailed,
    StepTimeout,
    answer,
    current_turn,
    handler,
    on,
    query,
    restart,
    retry,
    step,
    tool,
)
from understudy.events import StepReplayed, TurnDiverged

pytestmark = pytest.mark.anyio

AT_ONCE = Backoff(0.0, max_s=0.0)


class Declined(Exception):
    pass


class Notes(msgspec.Struct):
    lines: list[str] = []


@step(raises=[Declined])
async def call(what: str) -> str:
    """Do something outside, once; it fails as often as the test says."""
    world().did.append(what)
    if world().should_fail(what):
        raise OSError(f"{what} is out of order")
    if world().should_fail(f"decline {what}"):
        raise Declined(what)
    return f"{what} done"


@step
async def stop_at(point: str) -> None:
    await world().stop_at(point)


@step
async def make_id() -> int:
    world().seen["ids"] = world().seen.get("ids", 0) + 1
    return int(world().seen["ids"])


@step
async def pay(id: int, who: str) -> str:
    world().did.append((id, who))
    return f"{id} for {who}"


@step(interrupted="fail")
async def charge(cents: int) -> str:
    world().did.append(f"charge {cents}")
    error = world().seen.pop("charge raises", None)
    if error is not None:
        raise error
    if "charge waits" in world().seen:
        await world().stop_at("charging")
    return "charged"


@step(interrupted="fail", timeout_s=5)
async def charge_with_timeout(cents: int) -> str:
    world().did.append(f"charge {cents}")
    await asyncio.sleep(10)
    return "charged"


@step(timeout_s=5, policy=Policy(on(StepTimeout, retry(times=2, backoff=AT_ONCE))))
async def slow_call() -> str:
    world().did.append("slow call")
    if world().should_fail("slow call"):
        await asyncio.sleep(10)
    return "in the end"


@step(policy=Policy(on(KeyError, retry(times=2, backoff=AT_ONCE))))
async def retried_for_keys_only(what: str) -> str:
    world().did.append(what)
    raise OSError(what)


@step
async def give(what: str) -> Any:
    world().did.append(what)
    return {"large": "x" * 5_000, "task": asyncio.current_task(), "surrogate": "\udc80"}[what]


@step
async def promise_a_number(what: str) -> int:
    world().did.append(what)
    return what  # type: ignore[return-value]


@step(name="stable name")
async def renamed_since(what: str) -> str:
    return await call.__wrapped__(what)  # type: ignore[no-any-return]


@tool(interrupted="fail")
async def send_mail(to: str) -> str:
    """Send a mail."""
    world().did.append(f"mail to {to}")
    await world().stop_at("mailing")
    return "sent"


class Desk(Actor[Notes], kind="desk"):
    policy = Policy(on(RuntimeError, restart(times=3, backoff=AT_ONCE)), on((StepFailed, OutcomeUnknown), answer()))

    @handler
    async def first_or_second(self) -> str:
        try:
            done = await call("first")
        except StepFailed:
            done = await call("second")
        await stop_at("after")
        return done

    @handler
    async def declined_or_done(self) -> str:
        try:
            done = await call("first")
        except Declined as error:
            done = f"declined: {error}"
        await world().stop_at("declined")
        return done

    @handler
    async def calls(self, names: list[str], fails: int = 0) -> list[str]:
        done = [await call(name) for name in names]
        if self.turn.attempt <= fails:
            raise RuntimeError("again")
        return done

    @handler
    async def calls_and_stops(self, names: list[str]) -> list[str]:
        done = [await call(name) for name in world().seen.get("names", names)]
        await world().stop_at("stopped")
        return done

    @handler
    async def twice(self, what: str) -> list[str]:
        done = []
        for _ in range(2):
            try:
                done.append(await call(what))
            except StepFailed:
                done.append("failed")
        if self.turn.attempt == 1:
            raise RuntimeError("again")
        return done

    @handler
    async def two_branches(self, order: list[str]) -> list[str]:
        done = await asyncio.gather(*(self._branch(who) for who in world().seen.get("order", order)))
        await world().stop_at("paid")
        return sorted(done)

    async def _branch(self, who: str) -> str:
        await call(f"fetch {who}")
        return await pay(await make_id(), who)

    @handler
    async def charge(self, cents: int) -> str:
        return await charge(world().seen.get("cents", cents))

    @handler
    async def charge_then_stop(self, cents: int) -> str:
        done = await charge(world().seen.get("cents", cents))
        await world().stop_at("charged")
        return done

    @handler
    async def charge_with_timeout(self) -> str:
        return await charge_with_timeout(1)

    @handler
    async def charge_beside_a_failure(self) -> str:
        charging = asyncio.ensure_future(charge(1))
        await world().wait("charging")
        if self.turn.attempt == 1:
            raise RuntimeError("the other branch")
        return await charging

    @handler
    async def slowly(self) -> str:
        return await slow_call()

    @handler
    async def not_this_one(self, what: str) -> str:
        return await retried_for_keys_only(what)

    @handler
    async def give(self, what: str) -> str:
        try:
            await give(what)
        except (LimitExceeded, EncodingFailed) as error:
            await stop_at("given")
            return f"{type(error).__name__}: {error}"
        return "stored"

    @handler
    async def number(self, what: str) -> str:
        try:
            return str(await promise_a_number(what))
        except EncodingFailed as error:
            return str(error)

    @handler
    async def keyed(self, first: str, second: str) -> list[str]:
        return [await call.options(key="k")(first), await call.options(key="k")(second)]

    @handler
    async def keyed_and_stops(self, what: str) -> str:
        done = await call.options(key="k")(world().seen.get("what", what))
        await world().stop_at("keyed")
        return done

    @handler
    async def ask_keyed(self, first: str, second: str) -> list[str]:
        other = self.actor(Desk, "other")
        return [await other.note.options(key="k")(first), await other.note.options(key="k")(second)]

    @handler
    async def note(self, line: str) -> str:
        self.state.lines.append(line)
        return line

    @handler
    async def by_keywords(self) -> str:
        if self.turn.attempt == 1:
            await two_arguments(a=1, b=2)
            raise RuntimeError("again")
        return await two_arguments(b=2, a=1)

    @handler
    async def stable(self) -> str:
        done = await renamed_since("thing")
        await world().stop_at("renamed")
        return done

    @handler
    async def facts(self) -> list[Any]:
        turn = self.turn
        fresh = self.actor(Desk)
        found = [turn.id, turn.started_at.isoformat(), turn.caller_id, str(turn.uuid()), str(turn.uuid()), fresh.id]
        world().did.append((turn.attempt, *found))
        await call("facts")
        world().did.append(("inside a tool or helper", current_turn().id == turn.id))
        if turn.attempt == 1:
            raise RuntimeError("again")
        await world().stop_at("facts")
        return found

    @handler
    async def many(self, count: int) -> None:
        for number in range(count):
            await call(f"step {number}")

    @handler
    async def mail(self, to: str) -> str:
        return await send_mail(to)

    @query
    async def lines(self) -> list[str]:
        return self.state.lines


@step
async def two_arguments(a: int, b: int) -> str:
    world().did.append((a, b))
    return "ok"


async def lives(open_system: Open, start: Any, *, at: str, outside: World, **settings: Any) -> Any:
    """Submit a message, crash when its turn stops at *at*, and return its outcome in the next life."""
    job = None
    async with dying(open_system(Desk, **settings)) as system:
        job = await start(system.actor(Desk, "d"))
        await outside.wait(at)
    assert job is not None
    outside.open(at)
    async with open_system(Desk, **settings) as again:
        try:
            outcome = await again.job(job.id)
        except Exception as error:
            outcome = error
        events = (await again.trace(job.id)).events
    return outcome, events


# --- values and failures ----------------------------------------------------------------------------------------------


async def test_crash_replays_values_and_failures_so_that_the_other_card_is_not_charged_too(
    open_system: Open, outside: World
) -> None:
    outside.fails["first"] = 1

    done, events = await lives(open_system, lambda d: d.first_or_second.submit(), at="after", outside=outside)

    assert done == "second done"
    assert outside.did == ["first", "second"]
    assert [each.step for each in events if isinstance(each, StepReplayed)] == ["call", "call"]


async def test_declared_failure_of_a_step_is_replayed_too(open_system: Open, outside: World) -> None:
    outside.fails["decline first"] = 1

    done, _ = await lives(open_system, lambda d: d.declined_or_done.submit(), at="declined", outside=outside)

    assert done == "declined: first"
    assert outside.did == ["first"]


async def test_new_attempt_keeps_values_and_runs_failed_steps_again(open_system: Open, outside: World) -> None:
    outside.fails["x"] = 1

    async with open_system(Desk) as system:
        done = await system.actor(Desk, "d").twice("x")

    assert outside.did == ["x", "x", "x"]
    assert done == ["x done", "x done"]


async def test_steps_of_a_turn_that_fails_are_not_repeated_by_the_next_attempt(
    open_system: Open, outside: World
) -> None:
    async with open_system(Desk) as system:
        done = await system.actor(Desk, "d").calls(["a", "b"], 2)

    assert done == ["a done", "b done"]
    assert outside.did == ["a", "b"]


async def test_same_step_twice_is_two_steps(open_system: Open, outside: World) -> None:
    async with open_system(Desk) as system:
        await system.actor(Desk, "d").calls(["a", "a"], 1)

    assert outside.did == ["a", "a"]


async def test_step_result_is_on_disk_before_the_turn_that_made_it_ends(open_system: Open, outside: World) -> None:
    done, _ = await lives(open_system, lambda d: d.calls_and_stops.submit(["a", "b"]), at="stopped", outside=outside)

    assert done == ["a done", "b done"]
    assert outside.did == ["a", "b"]


# --- matching -----------------------------------------------------------------------------------------------------------


async def test_steps_may_be_reordered_added_and_removed_between_lives(open_system: Open, outside: World) -> None:
    def start(desk: Any) -> Any:
        return desk.calls_and_stops.submit(["a", "b", "c"])

    async with dying(open_system(Desk)) as system:
        job = await start(system.actor(Desk, "d"))
        await outside.wait("stopped")
    outside.seen["names"] = ["new", "c", "a"]
    outside.open("stopped")
    async with open_system(Desk) as again:
        done = await again.job(job.id)
        events = (await again.trace(job.id)).events

    assert done == ["new done", "c done", "a done"]
    assert outside.did == ["a", "b", "c", "new"]
    assert [each.step for each in events if isinstance(each, TurnDiverged)] == ["step call"]


async def test_branches_replayed_in_another_order_do_not_swap_their_ids(open_system: Open, outside: World) -> None:
    async with dying(open_system(Desk)) as system:
        job = await system.actor(Desk, "d").two_branches.submit(["ann", "ben"])
        await outside.wait("paid")
    before = sorted(each for each in outside.did if isinstance(each, tuple))
    outside.seen["order"] = ["ben", "ann"]
    outside.open("paid")
    async with open_system(Desk) as again:
        done = await again.job(job.id)

    assert sorted(each for each in outside.did if isinstance(each, tuple)) == before
    assert len(before) == 2
    assert done == sorted(f"{id} for {who}" for id, who in before)


async def test_order_of_keyword_arguments_says_nothing(open_system: Open, outside: World) -> None:
    async with open_system(Desk) as system:
        await system.actor(Desk, "d").by_keywords()

    assert outside.did == [(1, 2)]


async def test_name_survives_a_rename_of_the_function(
    open_system: Open, outside: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with dying(open_system(Desk)) as system:
        job = await system.actor(Desk, "d").stable.submit()
        await outside.wait("renamed")
    outside.open("renamed")

    @step(name="stable name")
    async def called_otherwise_now(what: str) -> str:
        raise AssertionError("it ran before")

    monkeypatch.setitem(globals(), "renamed_since", called_otherwise_now)
    async with open_system(Desk) as again:
        assert await again.job(job.id) == "thing done"

    assert outside.did == ["thing"]


async def test_key_with_other_arguments_raises_a_conflict(open_system: Open, outside: World) -> None:
    async with open_system(Desk) as system:
        with pytest.raises(KeyConflict, match="key 'k' of step call was used with other arguments"):
            await system.actor(Desk, "d").keyed("a", "b")

    assert outside.did == ["a"]


async def test_key_with_other_arguments_after_a_crash_raises_a_conflict(open_system: Open, outside: World) -> None:
    async def start(desk: Any) -> Any:
        job = await desk.keyed_and_stops.submit("a")
        await outside.wait("keyed")
        outside.seen["what"] = "b"
        return job

    error, _ = await lives(open_system, start, at="keyed", outside=outside)

    assert isinstance(error, KeyConflict)
    assert outside.did == ["a"]


async def test_keyed_ask_with_other_arguments_raises_a_conflict(open_system: Open) -> None:
    async with open_system(Desk) as system:
        with pytest.raises(KeyConflict):
            await system.actor(Desk, "d").ask_keyed("a", "b")

        assert await system.actor(Desk, "other").lines() == ["a"]


async def test_keyed_ask_with_the_same_arguments_joins_the_first(open_system: Open) -> None:
    async with open_system(Desk) as system:
        assert await system.actor(Desk, "d").ask_keyed("a", "a") == ["a", "a"]
        assert await system.actor(Desk, "other").lines() == ["a"]


async def test_facts_of_a_turn_are_the_same_on_every_redelivery_but_for_the_attempt(
    open_system: Open, outside: World
) -> None:
    async def start(desk: Any) -> Any:
        return await desk.facts.submit()

    found, _ = await lives(open_system, start, at="facts", outside=outside)

    seen = [each for each in outside.did if isinstance(each, tuple) and isinstance(each[0], int)]
    assert [each[0] for each in seen] == [1, 2, 2]
    assert len({each[1:] for each in seen}) == 1
    assert list(seen[0][1:]) == found
    assert found[3] != found[4]


async def test_number_of_steps_is_limited_per_turn_and_not_per_attempt(open_system: Open, outside: World) -> None:
    async with open_system(Desk, limits=Limits(steps_per_turn=3)) as system:
        await system.actor(Desk, "d").calls(["a", "b", "c"], 2)
        with pytest.raises(LimitExceeded, match=r"Limits.steps_per_turn=3"):
            await system.actor(Desk, "d").many(4)

    assert outside.did == ["a", "b", "c", "step 0", "step 1", "step 2"]


# --- what cannot be stored or read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("large", "LimitExceeded: the result of step give is 5003 bytes, more than Limits.payload_bytes=1000"),
        ("task", "EncodingFailed: the result of step give: a value of type .* cannot be stored"),
        ("surrogate", "EncodingFailed: the result of step give"),
    ],
)
async def test_outcome_that_cannot_be_stored_is_journaled_as_that_failure(
    open_system: Open, outside: World, what: str, says: str
) -> None:
    outcome, _ = await lives(
        open_system,
        lambda d: d.give.submit(what),
        at="given",
        outside=outside,
        limits=Limits(payload_bytes=1_000),
    )

    assert outside.did == [what]
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(outcome)


async def test_result_of_another_type_than_annotated_is_a_failure_of_the_step(
    open_system: Open, outside: World
) -> None:
    async with open_system(Desk) as system:
        says = await system.actor(Desk, "d").number("seven")

    assert says.startswith("the result of step promise_a_number is a str, which is not of its annotated type")
    assert outside.did == ["seven"]


@pytest.mark.parametrize("swallows", [False, True])
async def test_stored_value_that_no_longer_decodes_suspends_the_actor(
    open_system: Open, outside: World, monkeypatch: pytest.MonkeyPatch, swallows: bool
) -> None:
    async with dying(open_system(Desk)) as system:
        job = await system.actor(Desk, "d").calls_and_stops.submit(["a", "b"])
        await outside.wait("stopped")

    @step(name="call")
    async def answers_numbers_now(what: str) -> int:
        outside.did.append("ran again")
        return 1

    async def swallowing(what: str) -> Any:
        try:
            return await answers_numbers_now(what)
        except Exception:
            return "swallowed"

    monkeypatch.setitem(globals(), "call", swallowing if swallows else answers_numbers_now)
    outside.open("stopped")
    async with open_system(Desk) as again:
        with pytest.raises(ActorSuspended, match="the journaled result of step call does not decode"):
            await again.job(job.id)
        monkeypatch.undo()
        await again.resume(again.actor(Desk, "d"))
        assert await again.job(job.id) == ["a done", "b done"]

    assert outside.did == ["a", "b"]


# --- interrupted="fail" ----------------------------------------------------------------------------------------------------


async def test_crash_in_a_step_that_must_not_run_twice_leaves_its_outcome_unknown(
    open_system: Open, outside: World
) -> None:
    outside.seen["charge waits"] = True

    error, _ = await lives(open_system, lambda d: d.charge.submit(100), at="charging", outside=outside)

    assert isinstance(error, OutcomeUnknown)
    assert outside.did == ["charge 100"]


async def test_crash_after_such_a_step_has_finished_replays_it(open_system: Open, outside: World) -> None:
    done, _ = await lives(open_system, lambda d: d.charge_then_stop.submit(100), at="charged", outside=outside)

    assert done == "charged"
    assert outside.did == ["charge 100"]


@pytest.mark.parametrize("error", [TimeoutError("no answer"), ConnectionResetError("gone"), BrokenPipeError("gone")])
async def test_timeout_or_lost_connection_after_sending_leaves_the_same_unknown_state(
    open_system: Open, outside: World, error: Exception
) -> None:
    outside.seen["charge raises"] = error

    async with open_system(Desk) as system:
        with pytest.raises(OutcomeUnknown, match=type(error).__name__):
            await system.actor(Desk, "d").charge(1)


async def test_refused_connection_was_never_sent_and_is_an_ordinary_failure(open_system: Open, outside: World) -> None:
    outside.seen["charge raises"] = ConnectionRefusedError("nobody there")

    async with open_system(Desk) as system:
        with pytest.raises(StepFailed, match="nobody there"):
            await system.actor(Desk, "d").charge(1)


async def test_own_timeout_of_such_a_step_leaves_it_unknown(open_system: Open, outside: World) -> None:
    async with open_system(Desk) as system:
        with pytest.raises(OutcomeUnknown, match="took longer than timeout_s=5"):
            await system.actor(Desk, "d").charge_with_timeout()

    assert outside.did == ["charge 1"]


async def test_such_a_step_cancelled_by_the_failure_of_another_branch_is_unknown_and_does_not_run_again(
    open_system: Open, outside: World
) -> None:
    outside.seen["charge waits"] = True

    async with open_system(Desk) as system:
        with pytest.raises(OutcomeUnknown, match="cancelled while it ran"):
            await system.actor(Desk, "d").charge_beside_a_failure()

    assert outside.did == ["charge 1"]


async def test_redelivered_turn_that_diverged_does_not_run_such_a_step(open_system: Open, outside: World) -> None:
    async def start(desk: Any) -> Any:
        job = await desk.charge_then_stop.submit(100)
        await outside.wait("charged")
        outside.seen["cents"] = 101
        return job

    error, events = await lives(open_system, start, at="charged", outside=outside)

    assert isinstance(error, OutcomeUnknown)
    assert outside.did == ["charge 100"]
    assert [each.step for each in events if isinstance(each, TurnDiverged)] == ["step charge"]


async def test_start_mark_is_in_the_commit_that_the_body_waits_for(open_system: Open, outside: World) -> None:
    outside.seen["charge waits"] = True

    async with open_system(Desk) as system:
        job = await system.actor(Desk, "d").charge.submit(100)
        await outside.wait("charging")
        (row,) = await system.store.journal(system.message_no(job.id))
        outside.open("charging")
        await job

    assert row.outcome.failure is not None
    assert row.outcome.failure.type == "OutcomeUnknown"


async def test_body_of_a_tool_is_a_step_that_starts_after_the_commit_of_its_message(
    open_system: Open, outside: World
) -> None:
    async with open_system(Desk, send_mail) as system:
        await system.actor(Desk, "d").note("warm")
        system.store.hold()
        mailing = asyncio.ensure_future(system.actor(Desk, "d").mail("ann"))
        await system.store.wait_held()
        for _ in range(50):
            await asyncio.sleep(0)

        assert outside.did == []
        system.store.release()
        await outside.wait("mailing")
        rows = [await system.store.journal(no) for no in range(1, system.last_message + 1)]
        outside.open("mailing")
        assert await mailing == "sent"

    assert "OutcomeUnknown" in [row.outcome.failure.type for each in rows for row in each if row.outcome.failure]


# --- the step's own policy -------------------------------------------------------------------------------------------------


async def test_steps_own_policy_retries_it(open_system: Open, outside: World) -> None:
    outside.fails["slow call"] = 2

    async with open_system(Desk) as system:
        assert await system.actor(Desk, "d").slowly() == "in the end"

    assert outside.did == ["slow call"] * 3


async def test_steps_own_policy_that_is_used_up_ends_as_the_failure(open_system: Open, outside: World) -> None:
    outside.fails["slow call"] = 9

    async with open_system(Desk) as system:
        with pytest.raises(StepTimeout):
            await system.actor(Desk, "d").slowly()

    assert outside.did == ["slow call"] * 3


async def test_error_that_the_steps_policy_does_not_name_is_not_retried(open_system: Open, outside: World) -> None:
    async with open_system(Desk) as system:
        with pytest.raises(StepFailed):
            await system.actor(Desk, "d").not_this_one("x")

    assert outside.did == ["x"]


async def test_step_outside_any_turn_is_a_plain_call() -> None:
    @step
    async def add(a: int, b: int) -> int:
        return a + b

    assert await add(1, 2) == 3


async def test_journal_of_a_finished_message_is_gone(open_system: Open) -> None:
    async with open_system(Desk) as system:
        job = await system.actor(Desk, "d").calls.submit(["a", "b"], 1)
        await job

        assert await system.store.journal(system.message_no(job.id)) == []
        assert system.journals == {}


async def test_journal_of_a_dead_letter_stays_with_it(open_system: Open) -> None:
    async with open_system(Desk) as system:
        job = await system.actor(Desk, "d").calls.submit(["a", "b"], 99)
        with pytest.raises(Exception, match="again"):
            await job

        assert len(await system.store.journal(system.message_no(job.id))) == 2
