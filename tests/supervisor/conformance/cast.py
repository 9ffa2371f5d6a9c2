"""Actors that do as they are told and write down what happens to them, and the play that tells them what goes wrong.

A `Play` outlives its systems, as the world does: a test opens the same file again and reads on in the same lines.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from understudy import (
    Actor,
    Backoff,
    Ignore,
    Policy,
    System,
    SystemFailed,
    TurnEnded,
    current_turn,
    handler,
    on,
    query,
    restart,
    step,
)
from understudy.supervisor.policy import escalate, stop, suspend
from understudy.testing import FaultyStore, VirtualTimeLoop

E = TypeVar("E")

VIRTUAL_TIME = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "anyio_backend",
        [pytest.param(("asyncio", {"loop_factory": partial(VirtualTimeLoop, strict=True)}), id="virtual")],
    ),
]
AT_ONCE = Backoff(0.0)


class Missed(Exception):
    """Costs the object: its actor is restarted and hears the message again, at once."""


class Hurt(Exception):
    """Holds the actor."""


class Fell(Exception):
    """Stops the actor for good."""


class Fire(Exception):
    """Is the supervisor's affair."""


class Odd(Exception):
    """No actor's own policy says anything of it."""


class Play:
    """What happened, in order, and what is still to go wrong."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[str] = []
        self.at: list[float] = []  # when each line was written, in seconds of the loop
        self._path = folder / "play.db"
        self._errors: defaultdict[str, list[type[Exception]]] = defaultdict(list)
        self._reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._open: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    # --- the test's side -------------------------------------------------------------------------------------------

    def system(self, *children: Any, **settings: Any) -> System:
        """Make a system on the play's file; every call is another life of it."""
        return System(
            FaultyStore(self._path, durability="process", lock_wait_s=0.0), children, resources=[self], **settings
        )

    def fail(self, line: str, times: int = 1, error: type[Exception] = Missed) -> None:
        """Let *line* go wrong so many times when its time comes."""
        self._errors[line] += [error] * times

    def open(self, point: str) -> None:
        """Let everybody go on who waits at *point*, or comes there later."""
        self._open[point].set()

    async def reached(self, point: str) -> None:
        """Return when somebody waits at *point*."""
        await self._reached[point].wait()

    def moves(self) -> list[str]:
        """Return the lines about starts and stops."""
        return [line for line in self.lines if line.startswith(("start ", "stop "))]

    def forget(self) -> None:
        """Begin a new page."""
        self.lines, self.at = [], []

    # --- the actors' side ------------------------------------------------------------------------------------------

    def write(self, line: str) -> None:
        """Note a line, which goes wrong if the test says so."""
        self.lines.append(line)
        self.at.append(asyncio.get_running_loop().time())
        if self._errors[line]:
            raise self._errors[line].pop(0)(line)

    async def wait(self, point: str) -> None:
        """Say that *point* was reached, and wait until the test opens it."""
        self._reached[point].set()
        await self._open[point].wait()

    async def dawdle(self, point: str) -> None:
        """Wait at *point* and heed no cancellation."""
        self._reached[point].set()
        while not self._open[point].is_set():
            try:
                await self._open[point].wait()
            except (asyncio.CancelledError, TurnEnded):
                self.lines.append(f"cancelled {point}")


@step
async def rehearse(what: str) -> str:
    """Do something outside, once."""
    current_turn().resource(Play).write(f"rehearse {what}")
    return what


class Memory(msgspec.Struct):
    """What an actor remembers."""

    heard: list[str] = []


class Part(Actor[Memory], kind="part"):
    """One that hears lines and remembers them."""

    policy = Policy(
        on(Missed, restart(times=100, backoff=AT_ONCE)), on(Hurt, suspend()), on(Fell, stop()), on(Fire, escalate())
    )

    async def on_start(self) -> None:
        self.play = self.turn.resource(Play)
        self.dressed = True
        self.play.write(f"start {self.id}")

    async def on_stop(self) -> None:
        self.play.write(f"stop {self.id}")

    @handler
    async def hear(self, line: str) -> list[str]:
        self.state.heard.append(line)
        self.play.write(f"{self.id} hears {line}")
        return self.state.heard

    @handler
    async def learn(self, line: str) -> list[str]:
        """Rehearse it first, which happens once whatever becomes of the turn."""
        await rehearse(line)
        return await self.hear(line)

    @handler
    async def leave(self, reason: str) -> str:
        self.play.write(f"{self.id} leaves")
        self.stop(reason)
        return "bye"

    @handler
    async def leave_and_fail(self, line: str) -> None:
        self.stop("broken")
        self.play.write(line)

    @handler
    async def pause(self, point: str) -> None:
        self.play.write(f"{self.id} pauses")
        await self.play.wait(point)

    @handler
    async def hear_at(self, point: str, line: str) -> list[str]:
        """Wait at *point* first."""
        await self.play.wait(point)
        return await self.hear(line)

    @handler
    async def dawdle(self, point: str, friend: str) -> str:
        """Tell a friend, now and later, and heed no cancellation before *point* is open."""
        self.play.write(f"{self.id} dawdles")
        self.state.heard.append("dawdled")
        await self.actor(type(self), friend).hear.tell("told by one who dawdled")
        await self.actor(type(self), friend).hear.options(delay_s=5.0).tell("told late by one who dawdled")
        await self.play.dawdle(point)
        return "late"

    @handler
    async def wear(self, hat: str) -> None:
        self.hat = hat

    @handler
    async def worn(self) -> str | None:
        return getattr(self, "hat", None)

    @query
    async def memory(self) -> list[str]:
        return self.state.heard


class Extra(Part, kind="extra"):
    """One on demand."""


class Walker(Part, kind="walker"):
    """Another one on demand."""


async def soon(seconds: float = 0.5) -> None:
    """Let everything happen that is under way; only virtual seconds pass."""
    await asyncio.sleep(seconds)


async def told(system: System, about: str, kind: type[E]) -> list[E]:
    """Return the stored events of one kind about a supervisor ("supervisor root"), an actor ("actor part/a") or a job."""
    return [each for each in (await system.trace(about)).events if isinstance(each, kind)]


async def statuses(system: System, supervisor: str = "root") -> dict[str, str]:
    """Return how the children of a supervisor are, in start order."""
    return {each.id: each.status for each in await system.supervisor(supervisor).which_children()}


def restarts(system: System, supervisor: str = "root") -> int:
    """Return how many restarts lie within a supervisor's window."""
    todo = [system.picture()]
    while todo:
        each = todo.pop()
        if each.role == "supervisor" and each.name == supervisor:
            return each.restarts
        todo += each.children
    raise AssertionError(f"no supervisor {supervisor}")


def causes(error: BaseException | None) -> list[type[BaseException]]:
    """Return the types of an error and of what caused it, the outermost first."""
    found: list[type[BaseException]] = []
    while error is not None:
        found.append(type(error))
        error = error.__cause__
    return found


async def letters(system: System) -> list[tuple[str, str, str]]:
    """Return the dead letters: whose, which handler's, and the error's text."""
    return [(each.actor, each.handler, each.message) async for each in system.dead_letters()]


@asynccontextmanager
async def dying(system: System) -> AsyncIterator[System]:
    """Open a system for a life that ends with the body: no commit after it happens, as if the process had died."""
    try:
        async with system:
            yield system
            await system.committer.wait_durable()
            store = system.store
            assert isinstance(store, FaultyStore)
            store.fail_before()
            system.committer.touch().work += 1
            await asyncio.Event().wait()  # for the system to cancel us
    except SystemFailed:
        pass


class Shy(Part, kind="shy"):
    """Does not want to run as long as the test says so."""

    async def on_start(self) -> None:
        try:
            await super().on_start()
        except Missed:
            raise Ignore("not today") from None
