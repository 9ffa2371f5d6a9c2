"""Errors cross every boundary as data: declared ones are rebuilt, others arrive with their cause (rule 13)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.actors.turns.conftest import Open
from understudy import (
    Actor,
    ActorSuspended,
    HandlerFailed,
    Job,
    Policy,
    StepFailed,
    answer,
    handler,
    on,
    step,
)

pytestmark = pytest.mark.anyio


class Declined(Exception):
    """Several arguments."""

    def __init__(self, cents: int, why: str) -> None:
        super().__init__(cents, why)
        self.cents = cents
        self.why = why


class Rejected(Exception):
    """Keyword-only arguments."""

    def __init__(self, *, code: int, note: str = "") -> None:
        super().__init__(f"rejected with {code}")
        self.code = code
        self.note = note


class Plain(Exception):
    pass


class Special(Plain):
    pass


class Holding(Exception):
    def __init__(self, connection: Any) -> None:
        super().__init__("lost", connection)
        self.connection = connection
        self.host = "db"


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


ERRORS: dict[str, Any] = {
    "declined": lambda: Declined(5, "no cover"),
    "rejected": lambda: Rejected(code=7, note="late"),
    "special": lambda: Special("very"),
    "holding": lambda: Holding(object()),
    "mute": Mute,
    "surrogate": lambda: Plain("\udc80 odd"),
    "undeclared": lambda: OSError("disk"),
    "huge": lambda: OSError("x" * 50_000),
}


def error_called(name: str) -> Exception:
    made: Exception = ERRORS[name]()
    return made


@step(raises=[Declined, Rejected, Plain, Holding])
async def raise_in_a_step(what: str) -> None:
    raise error_called(what)


class Clerk(Actor, kind="clerk"):
    policy = Policy(on((OSError, Mute), answer()))

    @handler(raises=[Declined, Rejected, Plain, Holding])
    async def fail(self, what: str) -> None:
        raise error_called(what)

    @handler(raises=[Declined, Rejected, Plain, Holding])
    async def fail_in_a_step(self, what: str) -> None:
        await raise_in_a_step(what)

    @handler
    async def ask(self, what: str) -> list[Any]:
        try:
            await self.actor(Clerk, "other").fail(what)
        except Exception as error:
            return [type(error).__name__, str(error), list(vars(error)) and sorted(map(str, vars(error)))]
        return []

    @handler(raises=[Plain])
    async def wrong_again(self) -> None:
        raise Plain("first") from KeyError("cause")


@pytest.mark.parametrize("method", ["fail", "fail_in_a_step"])
@pytest.mark.parametrize("way", ["ask", "job"])
async def test_declared_error_is_rebuilt_with_all_its_arguments(open_system: Open, method: str, way: str) -> None:
    async with open_system(Clerk) as system:
        with pytest.raises(Declined) as caught:
            await call(getattr(system.actor(Clerk, "c"), method), "declined", way)

    assert (caught.value.args, caught.value.cents, caught.value.why) == ((5, "no cover"), 5, "no cover")


async def call(bound: Any, what: str, way: str) -> Any:
    if way == "ask":
        return await bound(what)
    job: Job[Any] = await bound.submit(what)
    return await job


@pytest.mark.parametrize("method", ["fail", "fail_in_a_step"])
async def test_declared_error_with_keyword_only_arguments_keeps_its_attributes(open_system: Open, method: str) -> None:
    async with open_system(Clerk) as system:
        with pytest.raises(Rejected, match="rejected with 7") as caught:
            await getattr(system.actor(Clerk, "c"), method)("rejected")

    assert (caught.value.code, caught.value.note) == (7, "late")


@pytest.mark.parametrize("method", ["fail", "fail_in_a_step"])
async def test_subclass_of_a_declared_error_arrives_as_the_declared_class(open_system: Open, method: str) -> None:
    async with open_system(Clerk) as system:
        with pytest.raises(Plain, match="very") as caught:
            await getattr(system.actor(Clerk, "c"), method)("special")

    assert type(caught.value) is Plain


async def test_declared_error_with_what_cannot_be_stored_keeps_the_rest(open_system: Open) -> None:
    async with open_system(Clerk) as system:
        with pytest.raises(Holding) as caught:
            await system.actor(Clerk, "c").fail("holding")

    assert caught.value.host == "db"
    assert "lost" in str(caught.value)


async def test_declared_error_is_no_dead_letter_and_no_attempt(open_system: Open) -> None:
    async with open_system(Clerk) as system:
        with pytest.raises(Declined):
            await system.actor(Clerk, "c").fail("declined")

        assert [each async for each in system.dead_letters()] == []


async def test_undeclared_error_arrives_with_type_text_and_traceback(open_system: Open) -> None:
    async with open_system(Clerk) as system:
        with pytest.raises(HandlerFailed) as caught:
            await system.actor(Clerk, "c").fail("undeclared")

    assert (caught.value.cause_type, caught.value.cause) == ("OSError", "disk")
    assert "in fail\n    raise error_called(what)" in caught.value.traceback


async def test_undeclared_error_of_a_step_arrives_as_step_failed(open_system: Open) -> None:
    async with open_system(Failing) as system:
        seen = await system.actor(Failing, "f").catch()

    assert seen == ["OSError", "disk", "raise_in_a_step"]


class Failing(Actor):
    @handler
    async def catch(self) -> list[str]:
        try:
            await raise_in_a_step("undeclared")
        except StepFailed as error:
            return [error.cause_type, error.cause, error.step]
        return []


@pytest.mark.parametrize("what", ["mute", "surrogate", "huge"])
async def test_error_that_is_hard_to_print_stops_nothing(open_system: Open, what: str) -> None:
    async with open_system(Clerk) as system:
        with pytest.raises((HandlerFailed, Plain)):
            await system.actor(Clerk, "c").fail(what)
        with pytest.raises(Declined):
            await system.actor(Clerk, "c").fail("declined")


async def test_errors_are_the_same_for_an_asking_turn_as_for_an_outside_caller(open_system: Open) -> None:
    async with open_system(Clerk) as system:
        assert (await system.actor(Clerk, "c").ask("declined"))[:2] == ["Declined", "(5, 'no cover')"]
        name, text, _ = await system.actor(Clerk, "c").ask("undeclared")

    assert (name, text) == ("HandlerFailed", "clerk.fail failed with OSError: disk")


class Fragile(Actor, kind="fragile"):
    broken = False

    def __init__(self) -> None:
        if type(self).broken:
            raise OSError("no connection")

    @handler
    async def ping(self) -> str:
        return "pong"


async def test_constructor_that_fails_suspends_its_actor_and_not_the_system(
    open_system: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_system(Fragile, Clerk) as system:
        monkeypatch.setattr(Fragile, "broken", True)
        with pytest.raises(ActorSuspended, match="no connection"):
            await system.actor(Fragile, "f").ping()
        assert (await system.actor(Clerk, "c").ask("special"))[0] == "Plain"
        monkeypatch.setattr(Fragile, "broken", False)
        await system.resume(system.actor(Fragile, "f"))

        assert await system.actor(Fragile, "f").ping() == "pong"
