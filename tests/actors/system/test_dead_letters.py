"""What becomes of messages that were given up: seen, tried again, forgotten."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from understudy import Actor, InvalidArguments, NotFound, StepFailed, System, handler, step

pytestmark = pytest.mark.anyio


class World:
    """What is done outside."""

    did: list[str] = []
    broken = True


@step
async def charge(what: str) -> str:
    World.did.append(what)
    return what


@step
async def ship(what: str) -> str:
    if World.broken:
        raise ValueError("no stock")
    return what


class Order(Actor):
    @handler
    async def place(self, what: str) -> str:
        await charge(what)
        return await ship(what)


@pytest.fixture(autouse=True)
def _world() -> None:
    World.did, World.broken = [], True


async def test_dead_letter_is_tried_again_without_repeating_its_finished_steps(tmp_path: Path) -> None:
    async with System(tmp_path / "o.db", [Order]) as system:
        job = await system.actor(Order, "o").place.submit("book")
        with pytest.raises(StepFailed, match="no stock") as raised:
            await job
        World.broken = False

        await system.redeliver(raised.value.dead_letter)

        assert await job == "book"
        assert [each async for each in system.dead_letters()] == []
    assert World.did == ["book"]


async def test_dead_letter_is_tried_again_in_another_life(tmp_path: Path) -> None:
    async with System(tmp_path / "o.db", [Order]) as system:
        job = await system.actor(Order, "o").place.options(key="k").submit("book")
        with pytest.raises(StepFailed):
            await job
    World.broken = False

    async with System(tmp_path / "o.db", [Order]) as system:
        await system.redeliver(job.id)
        assert await system.actor(Order, "o").place.options(key="k")("book") == "book"

    assert World.did == ["book"]


async def test_discarded_letter_frees_its_key(tmp_path: Path) -> None:
    async with System(tmp_path / "o.db", [Order]) as system:
        order = system.actor(Order, "o")
        with pytest.raises(StepFailed) as raised:
            await order.place.options(key="k")("book")
        World.broken = False

        await system.discard(raised.value.dead_letter)

        assert await order.place.options(key="k")("pen") == "pen"
        with pytest.raises(NotFound, match="is no dead letter"):
            await system.discard(raised.value.dead_letter)


async def test_failure_says_where_it_happened_and_what_can_be_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with System(tmp_path / "o.db", [Order]) as system:
            with pytest.raises(StepFailed) as raised:
                await system.actor(Order, "o").place("book")

    notes = "\n".join(raised.value.__notes__)
    assert f"system.redeliver('{raised.value.dead_letter}')" in notes
    assert [each.message for each in caplog.records] == ["message.dead_lettered"]


async def test_what_is_no_dead_letter_is_refused(tmp_path: Path) -> None:
    async with System(tmp_path / "o.db", [Order]) as system:
        with pytest.raises(NotFound):
            await system.redeliver(system.job_id(17))
        with pytest.raises((NotFound, InvalidArguments)):
            await system.redeliver("nonsense")
