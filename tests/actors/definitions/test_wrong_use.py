"""Wrong use gets a sentence that names what was written, before anything is stored."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.actors.definitions.conftest import Open
from understudy import (
    Actor,
    EncodingFailed,
    InvalidArguments,
    LimitExceeded,
    Limits,
    NoSuchHandler,
    NotFound,
    NotRegistered,
    NoTurn,
    System,
    SystemClosed,
    WrongLoop,
    current_turn,
    handler,
    query,
)

pytestmark = pytest.mark.anyio


class Total(msgspec.Struct):
    cents: int = 0


class Account(Actor[Total], kind="account"):
    @handler
    async def deposit(self, cents: int, note: str = "") -> int:
        self.state.cents += cents
        return self.state.cents

    @handler
    async def deposit_many(self, amounts: dict[str, int]) -> int:
        return sum(amounts.values())

    @handler
    async def ask_stranger(self) -> None:
        await self.actor(Stranger, "s").ping()

    @query
    async def balance(self) -> int:
        return self.state.cents

    def helper(self) -> None: ...


class Stranger(Actor, kind="stranger"):
    @handler
    async def ping(self) -> None: ...


WRONG: list[Any] = [
    (lambda a: a.deposit("five"), r"account.deposit was called with wrong arguments: .*`int`.*`cents`.*takes: cents"),
    (lambda a: a.deposit(), r"account.deposit was called with wrong arguments: .*cents"),
    (lambda a: a.deposit(1, "a", 2), r"account.deposit was called with wrong arguments"),
    (lambda a: a.deposit(1, color="red"), r"account.deposit was called with wrong arguments: .*color"),
    (lambda a: a.deposit_many({"a": "b"}), r"account.deposit_many .*amounts"),
    (lambda a: a.balance(1), r"account.balance was called with wrong arguments"),
]


@pytest.mark.parametrize(("call", "says"), WRONG)
async def test_wrong_argument_is_named_before_anything_is_stored(open_system: Open, call: Any, says: str) -> None:
    async with open_system(Account) as system:
        before = system.last_message

        with pytest.raises(InvalidArguments, match=says) as caught:
            await call(system.actor(Account, "alice"))

        assert isinstance(caught.value, TypeError)
        assert "Nothing was stored" in str(caught.value)
        assert system.last_message == before
        assert [row async for row in system.actors()] == []


@pytest.mark.parametrize("verb", ["tell", "submit"])
async def test_tell_and_submit_refuse_wrong_arguments_too(open_system: Open, verb: str) -> None:
    async with open_system(Account) as system:
        with pytest.raises(InvalidArguments, match=r"account.deposit was called with wrong arguments"):
            await getattr(system.actor(Account, "alice").deposit, verb)("five")

        assert [row async for row in system.actors()] == []


async def test_argument_that_is_no_data_is_refused(open_system: Open) -> None:
    async with open_system(Account) as system:
        with pytest.raises((EncodingFailed, InvalidArguments), match=r"account.deposit"):
            await system.actor(Account, "alice").deposit(1, note=object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("depositt", r"Account has no handler or query 'depositt'; did you mean 'deposit'\?.* It has: ask_stranger, "),
        ("transfer", r"Account has no handler or query 'transfer'\. It has: "),
        ("state", r"'state' of account/alice cannot be reached from outside: this is an address"),
        ("helper", r"'helper' of account/alice cannot be reached from outside"),
    ],
)
async def test_unknown_handler_is_named_with_those_that_exist(open_system: Open, name: str, says: str) -> None:
    async with open_system(Account) as system:
        alice = system.actor(Account, "alice")

        with pytest.raises(NoSuchHandler, match=says) as caught:
            getattr(alice, name)

        assert isinstance(caught.value, AttributeError)


async def test_address_cannot_be_written_to(open_system: Open) -> None:
    async with open_system(Account) as system:
        with pytest.raises(NoSuchHandler, match="'state' cannot be set from outside"):
            system.actor(Account, "alice").state = Total()


async def test_class_that_was_not_given_to_the_system_is_named(open_system: Open) -> None:
    async with open_system(Account) as system:
        with pytest.raises(NotRegistered, match=r"Stranger is not registered with this system; .* It has: Account"):
            system.actor(Stranger, "s")
        with pytest.raises(NotRegistered, match="Stranger is not registered"):
            await (await system.actor(Account, "alice").ask_stranger.submit())


@pytest.mark.parametrize("id", ["", "x" * 256])
async def test_id_of_a_wrong_size_is_refused(open_system: Open, id: str) -> None:
    async with open_system(Account) as system:
        with pytest.raises(LimitExceeded, match=r"expected 1 to Limits.id_bytes=255"):
            system.actor(Account, id)


async def test_arguments_that_are_too_large_are_refused(open_system: Open) -> None:
    async with open_system(Account, limits=Limits(payload_bytes=100)) as system:
        with pytest.raises(LimitExceeded, match=r"more than Limits.payload_bytes=100; nothing was stored"):
            await system.actor(Account, "alice").deposit(1, "x" * 200)


@pytest.mark.parametrize("call", [lambda a: a.deposit(1), lambda a: a.deposit.tell(1), lambda a: a.balance()])
async def test_system_that_is_not_open_says_so(open_system: Open, call: Any) -> None:
    system = open_system(Account)
    alice = system.actor(Account, "alice")
    with pytest.raises(SystemClosed, match="not open: use it inside 'async with System"):
        await call(alice)

    async with system:
        await alice.deposit(1)

    with pytest.raises(SystemClosed, match="not open"):
        await call(alice)


async def test_open_system_cannot_be_opened_again(open_system: Open) -> None:
    async with open_system(Account) as system:
        with pytest.raises(InvalidArguments, match="open already"):
            await system.__aenter__()

        assert await system.actor(Account, "alice").deposit(1) == 1


async def test_call_from_another_event_loop_says_so(tmp_path: Path) -> None:
    seen: list[BaseException] = []
    async with System(tmp_path / "store.db", [Account]) as system:
        alice = system.actor(Account, "alice")

        def elsewhere() -> None:
            try:
                asyncio.run(alice.deposit(1))
            except BaseException as error:
                seen.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

        assert await alice.deposit(1) == 1
    assert [type(each) for each in seen] == [WrongLoop]
    assert "another event loop" in str(seen[0])


async def test_what_belongs_to_a_turn_says_so_outside_one(open_system: Open) -> None:
    with pytest.raises(NoTurn, match=r"no running turn here; this works inside handlers, tools"):
        current_turn()


@pytest.mark.parametrize("id", ["", "17", "x-y", "17-", "-abc"])
async def test_text_that_is_no_job_id_is_refused(open_system: Open, id: str) -> None:
    async with open_system(Account) as system:
        with pytest.raises(NotFound, match=r"is no job id|another store"):
            system.job(id)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"key": ""}, "key=''"),
        ({"delay_s": -1}, "delay_s=-1"),
        ({"deadline_s": 0}, "deadline_s=0"),
    ],
)
async def test_wrong_option_is_named(open_system: Open, options: Any, says: str) -> None:
    async with open_system(Account) as system:
        with pytest.raises(InvalidArguments, match=says):
            system.actor(Account, "alice").deposit.options(**options)
