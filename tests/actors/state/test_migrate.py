"""State that was written by other code: stepped forward, or held with the reason, never guessed at."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from understudy import Actor, ActorSuspended, EncodingFailed, InvalidDefinition, System, handler, migrate, query

pytestmark = pytest.mark.anyio


class V1(msgspec.Struct):
    cents: int = 0


class First(Actor[V1], kind="account"):
    @handler
    async def deposit(self, cents: int) -> int:
        self.state.cents += cents
        return self.state.cents


class V1More(msgspec.Struct):
    cents: int = 0
    currency: str = "EUR"


class FirstMore(Actor[V1More], kind="account"):
    @handler
    async def deposit(self, cents: int) -> tuple[int, str]:
        self.state.cents += cents
        return self.state.cents, self.state.currency


class V2(msgspec.Struct):
    euros: float = 0.0


class Second(Actor[V2], kind="account"):
    @migrate(1)
    def to_euros(state: dict[str, Any]) -> dict[str, Any]:  # type: ignore[misc]  # noqa: N805
        return {"euros": state["cents"] / 100}

    @handler
    async def deposit(self, cents: int) -> float:
        self.state.euros += cents / 100
        return self.state.euros

    @query
    async def total(self) -> float:
        return self.state.euros


class V3(msgspec.Struct):
    amounts: dict[str, float] = {}


class Third(Actor[V3], kind="account"):
    @migrate(2)
    @staticmethod
    def by_currency(state: dict[str, Any]) -> dict[str, Any]:
        return {"amounts": {"EUR": state["euros"]}}

    @migrate(1)
    @staticmethod
    def to_euros(state: dict[str, Any]) -> dict[str, Any]:
        return {"euros": state["cents"] / 100}

    @handler
    async def amounts(self) -> dict[str, float]:
        return self.state.amounts


class Broken(Actor[V2], kind="account"):
    @migrate(1)
    @staticmethod
    def fails(state: dict[str, Any]) -> dict[str, Any]:
        return {"euros": state["no such field"]}

    @handler
    async def deposit(self, cents: int) -> float:
        return 0.0


class NoData(Actor[V2], kind="account"):
    @migrate(1)
    @staticmethod
    def fails(state: dict[str, Any]) -> Any:
        return object()

    @handler
    async def deposit(self, cents: int) -> float:
        return 0.0


class WrongShape(Actor[V2], kind="account"):
    @migrate(1)
    @staticmethod
    def fails(state: dict[str, Any]) -> Any:
        return {"euros": "many"}

    @handler
    async def deposit(self, cents: int) -> float:
        return 0.0


class TextState(msgspec.Struct):
    cents: str = ""


class OtherType(Actor[TextState], kind="account"):
    @handler
    async def deposit(self, cents: int) -> int:
        return 0


class Careless(Actor[V1], kind="careless"):
    @handler
    async def set(self, value: Any) -> int:
        self.state.cents = value
        return 1

    @handler
    async def add(self, cents: int) -> int:
        self.state.cents += cents
        return self.state.cents


async def begin(path: Path) -> None:
    async with System(path, [First]) as system:
        await system.actor(First, "a").deposit(150)


async def test_added_field_with_a_default_just_decodes(path: Path) -> None:
    await begin(path)
    async with System(path, [FirstMore]) as system:
        assert await system.actor(FirstMore, "a").deposit(1) == (151, "EUR")


async def test_state_is_stepped_to_the_next_version(path: Path) -> None:
    await begin(path)
    async with System(path, [Second]) as system:
        assert await system.actor(Second, "a").total() == 1.5
        assert await system.actor(Second, "a").deposit(50) == 2.0
    async with System(path, [Second]) as system:
        assert await system.actor(Second, "a").deposit(0) == 2.0


async def test_state_is_stepped_over_several_versions_in_order(path: Path) -> None:
    await begin(path)
    async with System(path, [Third]) as system:
        assert await system.actor(Third, "a").amounts() == {"EUR": 1.5}


async def test_state_of_a_middle_version_takes_the_last_step_only(path: Path) -> None:
    async with System(path, [Second]) as system:
        await system.actor(Second, "a").deposit(150)
    async with System(path, [Third]) as system:
        assert await system.actor(Third, "a").amounts() == {"EUR": 1.5}


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Broken, "@migrate\\(1\\) failed.*no such field"),
        (NoData, "no data"),
        (WrongShape, "does not decode"),
        (OtherType, "does not decode"),
    ],
)
async def test_state_that_cannot_be_brought_here_suspends_the_actor_and_says_why(
    path: Path, cls: type[Any], reason: str
) -> None:
    await begin(path)
    async with System(path, [cls]) as system:
        with pytest.raises(ActorSuspended, match=reason) as caught:
            await system.actor(cls, "a").deposit(1)
        assert "account/a" in caught.value.reason
        await system.actor(cls, "a").deposit.tell(7)
        with pytest.raises(ActorSuspended, match="stays suspended"):
            await system.resume(system.actor(cls, "a"))
        assert await system.actor(cls, "new").deposit(1) == 0

    async with System(path, [First]) as system:
        with pytest.raises(ActorSuspended):
            await system.actor(First, "a").deposit(1)
        await system.resume(system.actor(First, "a"))
        await asyncio.sleep(1)

        assert await system.actor(First, "a").deposit(1) == 158


async def test_state_of_newer_code_is_not_touched_by_older(path: Path) -> None:
    async with System(path, [Second]) as system:
        await system.actor(Second, "a").deposit(150)
    async with System(path, [First]) as system:
        with pytest.raises(ActorSuspended, match="newer code"):
            await system.actor(First, "a").deposit(1)
    async with System(path, [Second]) as system:
        await system.resume(system.actor(Second, "a"))
        assert await system.actor(Second, "a").deposit(0) == 1.5


async def test_suspension_outlives_a_restart_and_resume_is_durable(path: Path) -> None:
    await begin(path)
    async with System(path, [Broken]) as system:
        with pytest.raises(ActorSuspended):
            await system.actor(Broken, "a").deposit(1)
    async with System(path, [First]) as system:
        (row,) = [row async for row in system.actors()]
        assert row.status == "suspended"
        assert "@migrate(1) failed" in row.reason
        await system.resume(system.actor(First, "a"))
    async with System(path, [First]) as system:
        (row,) = [row async for row in system.actors()]
        assert (row.status, row.reason) == ("active", "")
        assert await system.actor(First, "a").deposit(0) == 150


@pytest.mark.parametrize("value", ["text", 2**70, [1], None, 0.5, {1, 2}])
async def test_state_that_could_not_be_read_back_is_refused_and_rolled_back(path: Path, value: Any) -> None:
    async with System(path, [Careless]) as system:
        careless = system.actor(Careless, "c")
        await careless.add(5)
        with pytest.raises(EncodingFailed):
            await careless.set(value)

        assert await careless.add(1) == 6
    async with System(path, [Careless]) as system:
        assert await system.actor(Careless, "c").add(1) == 7


async def test_gap_between_versions_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(InvalidDefinition, match=r"\[1, 3\]"):

        class Gap(Actor[V1]):
            @migrate(1)
            @staticmethod
            def one(state: Any) -> Any:
                return state

            @migrate(3)
            @staticmethod
            def three(state: Any) -> Any:
                return state
