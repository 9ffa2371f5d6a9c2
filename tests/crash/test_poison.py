"""A message that kills the process is found out; its bystanders, and long turns at deploys, are not punished."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from understudy import Actor, Job, Limits, System, current_turn, handler, query, step
from understudy.testing.crash import World, _append, _in_child, _lines  # the machinery of forked lives

DIED = 77


class Done(msgspec.Struct):
    names: list[str] = []


class Poisoned(Actor[Done], kind="poisoned"):
    @handler
    async def drink(self, name: str) -> None:
        current_turn().resource(World).note("drinks", name, [turn.envelope.no for turn in running(self)])
        await asyncio.sleep(0.05)
        os._exit(DIED)

    @handler
    async def water(self, name: str) -> None:
        self.state.names.append(name)

    @query
    async def all(self) -> list[str]:
        return self.state.names


class Bystander(Actor[Done], kind="bystander"):
    @handler
    async def work(self, name: str, seconds: float) -> str:
        current_turn().resource(World).note("works", name, self.turn.attempt)
        await asyncio.sleep(seconds)
        self.state.names.append(name)
        return name

    @query
    async def all(self) -> list[str]:
        return self.state.names


@step
async def part(number: int) -> int:
    """Get on by one part, then let the process die in the middle of the next."""
    world = current_turn().resource(World)
    world.note("part", number)
    if sum(1 for note in world.notes() if note[:2] == [world.life, "part"]) == 2 and number < 9:
        os._exit(DIED)
    return number


class Long(Actor[Done], kind="long"):
    @handler
    async def work(self) -> int:
        return sum([await part(number) for number in range(12)])


class Asking(Actor[Done], kind="asking"):
    @handler
    async def ask(self, *, by_job: bool) -> str:
        other = self.actor(Answering, "one")
        return await (await other.answer.submit()) if by_job else await other.answer()


class Answering(Actor[Done], kind="answering"):
    @handler
    async def answer(self) -> str:
        world = current_turn().resource(World)
        world.note("answers", self.turn.id)
        await asyncio.sleep(0.02)
        if world.life <= 4:
            os._exit(DIED)
        return "answer"


def running(actor: Actor[Any]) -> list[Any]:
    return list(actor.turn.activation.system.turns.values())


def live(directory: Path, life: int, body: Callable[[System, World], Coroutine[Any, Any, Any]], **settings: Any) -> int:
    """Run one life with real time in a forked process; return its exit status."""
    world = World(directory, life)

    async def main() -> None:
        system = System(
            directory / "store.db", [Poisoned, Bystander, Long, Asking, Answering], resources=[world], **settings
        )
        async with system:
            _append(directory / "result", await body(system, world))

    return _in_child(lambda: asyncio.run(main()))


async def settle(system: System, world: World) -> dict[str, Any]:
    """Wait until no mail is left, and tell how it ended."""
    while any([row.waiting async for row in system.actors()]):
        await asyncio.sleep(0.01)
    return {
        "poisoned": await system.actor(Poisoned, "p").all(),
        "bystanders": [await system.actor(Bystander, str(number)).all() for number in range(3)],
        "dead": [(letter.handler, letter.crashes, letter.message) async for letter in system.dead_letters()],
    }


@pytest.mark.watchdog(60)
def test_a_message_that_kills_the_process_is_a_dead_letter_after_five_crashes(tmp_path: Path) -> None:
    async def begin(system: System, world: World) -> None:
        await asyncio.gather(
            *(system.actor(Bystander, str(number)).work.tell(f"work {number}", 0.2) for number in range(3)),
            system.actor(Poisoned, "p").drink.tell("poison"),
            system.actor(Poisoned, "p").water.tell("after it"),
        )
        await asyncio.sleep(5)

    statuses = [live(tmp_path, 1, begin)]
    while statuses[-1] == DIED and len(statuses) < 12:
        statuses.append(live(tmp_path, len(statuses) + 1, settle))

    assert statuses[-1] == 0, statuses
    end = _lines(tmp_path / "result")[-1]
    assert end["poisoned"] == ["after it"]
    assert end["bystanders"] == [["work 0"], ["work 1"], ["work 2"]]
    ((handler_, crashes, message),) = end["dead"]
    assert (handler_, crashes) == ("drink", 5)
    assert "the process died 5 times" in message
    # A fresh message carries no start mark (that is what makes it cheap), so its first crash is not counted.
    assert statuses == [DIED] * 6 + [0]


@pytest.mark.watchdog(60)
def test_a_message_that_crashed_twice_runs_as_the_only_suspect(tmp_path: Path) -> None:
    async def begin(system: System, world: World) -> None:
        await system.actor(Bystander, "0").work.tell("long", 0.4)
        for name in ("p", "q"):
            await system.actor(Poisoned, name).drink.tell(f"poison of {name}")
        await asyncio.sleep(5)

    statuses = [live(tmp_path, 1, begin, limits=Limits(crashes_alone=2))]
    while statuses[-1] == DIED and len(statuses) < 20:
        statuses.append(live(tmp_path, len(statuses) + 1, settle))

    assert statuses[-1] == 0, statuses
    assert len(_lines(tmp_path / "result")[-1]["dead"]) == 2
    assert _lines(tmp_path / "result")[-1]["bystanders"][0] == ["long"]
    drinks: dict[int, list[str]] = {}
    for note in World(tmp_path).notes():
        if note[1] == "drinks":
            drinks.setdefault(note[0], []).append(note[2])
    # Both are suspects after three crashes: the first was not counted, two were. From then on only one runs at a time.
    assert all(len(names) == 1 for life, names in drinks.items() if life > 3), drinks


@pytest.mark.watchdog(60)
def test_a_long_turn_in_flight_at_many_deploys_is_no_poison(tmp_path: Path) -> None:
    async def begin(system: System, world: World) -> None:
        job = await system.actor(Long, "l").work.submit()
        world.note("job", job.id)
        await go_on(system, world)

    async def go_on(system: System, world: World) -> None:
        (id,) = (note[2] for note in world.notes() if note[1] == "job")
        job: Job[int] = system.job(id, Long.work)
        _append(tmp_path / "sum", await job)

    statuses = [live(tmp_path, 1, begin, limits=Limits(crashes_max=2))]
    while statuses[-1] == DIED and len(statuses) < 20:
        statuses.append(live(tmp_path, len(statuses) + 1, go_on, limits=Limits(crashes_max=2)))

    assert statuses[-1] == 0, statuses
    assert statuses.count(DIED) == 8
    assert _lines(tmp_path / "sum") == [66]


@pytest.mark.watchdog(60)
def test_a_turn_that_a_clean_shutdown_ends_is_no_poison(tmp_path: Path) -> None:
    async def begin(system: System, world: World) -> None:
        await system.actor(Bystander, "0").work.tell("slow", 0.3)

    async def leave(system: System, world: World) -> None:
        await asyncio.sleep(0.02)

    deploy = Limits(crashes_max=2, crashes_alone=1, grace_s=0.01)
    assert live(tmp_path, 1, begin, limits=deploy) == 0
    assert [live(tmp_path, life, leave, limits=deploy) for life in range(2, 6)] == [0] * 4
    assert live(tmp_path, 6, settle) == 0

    end = _lines(tmp_path / "result")[-1]
    assert end["bystanders"][0] == ["slow"]
    assert end["dead"] == []
    assert {note[3] for note in World(tmp_path).notes() if note[1] == "works"} == {1}


@pytest.mark.watchdog(60)
@pytest.mark.parametrize("by_job", [False, True])
def test_a_suspect_does_not_wait_for_the_suspect_that_waits_for_it(tmp_path: Path, by_job: bool) -> None:
    async def begin(system: System, world: World) -> None:
        # Two askers, so that one suspect waits for a third behind the other's question.
        for name in ("a", "b"):
            await system.actor(Asking, name).ask.tell(by_job=by_job)
        await asyncio.sleep(5)

    settings = {"limits": Limits(crashes_max=100)}
    statuses = [live(tmp_path, life, begin if life == 1 else settle, **settings) for life in range(1, 6)]

    assert statuses == [DIED] * 4 + [0]
    assert _lines(tmp_path / "result")[-1]["dead"] == []
