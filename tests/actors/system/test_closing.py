"""Opening, closing and opening again: what waits is told, what ran goes on, and nothing is charged for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from understudy import (
    Actor,
    Limits,
    NotRegistered,
    StoreLocked,
    System,
    SystemClosed,
    handler,
    step,
)
from understudy.mailbox.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

RAN: list[str] = []

OWNER = """
import asyncio, sys
from understudy import System

async def main():
    async with System(sys.argv[1]):
        print("open", flush=True)
        sys.stdin.read()

asyncio.run(main())
"""


class Log(msgspec.Struct):
    done: list[str] = []


@step
async def effect(text: str) -> str:
    RAN.append(text)
    return text


class Worker(Actor[Log], kind="worker"):
    @handler
    async def work(self, what: str, seconds: float = 0.0) -> str:
        await effect(f"{what} began")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            RAN.append(f"{what} cancelled")
            raise
        self.state.done.append(f"{what} {self.turn.attempt}")
        return what

    @handler
    async def stubborn(self) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            self.state.done.append("stubborn")

    @handler
    async def done(self) -> list[str]:
        return self.state.done


class Boss(Actor, kind="boss"):
    @handler
    async def delegate(self, seconds: float) -> str:
        return await self.actor(Worker, "w").work("asked", seconds)


class Hooked(Actor[Log], kind="hooked"):
    async def on_start(self) -> None:
        RAN.append(f"start {self.id}")

    async def on_stop(self) -> None:
        RAN.append(f"stop {self.id}")
        if self.id == "bad":
            raise OSError("cannot stop")

    @handler
    async def work(self) -> None:
        RAN.append(f"work {self.id}")

    @handler
    async def fail(self) -> None:
        raise OSError("restart me")


class BadStart(Actor, kind="badstart"):
    async def on_start(self) -> None:
        RAN.append("try")
        if RAN.count("try") < 3:
            raise OSError("not yet")

    @handler
    async def work(self) -> str:
        return "worked"


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


def system_at(path: Path, **limits: float) -> System:
    return System(path, [Worker, Boss, Hooked, BadStart], limits=Limits(**limits))  # type: ignore[arg-type]


async def test_running_turn_finishes_within_the_grace(path: Path) -> None:
    async with system_at(path) as system:
        asking = asyncio.ensure_future(system.actor(Worker, "w").work("a", 5))
        await asyncio.sleep(1)

    assert await asking == "a"
    async with system_at(path) as system:
        assert await system.actor(Worker, "w").done() == ["a 1"]


async def test_turn_that_outlasts_the_grace_goes_on_at_the_next_opening_uncharged(path: Path) -> None:
    async with system_at(path, grace_s=2) as system:
        job = await system.actor(Worker, "w").work.submit("a", 50)
        await asyncio.sleep(1)
        start = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - start == pytest.approx(2, abs=0.5)
    for _ in range(7):
        async with system_at(path, grace_s=2):
            await asyncio.sleep(1)

    async with system_at(path) as system:
        assert await system.job(job.id) == "a"
        assert await system.actor(Worker, "w").done() == ["a 1"]
        assert [letter async for letter in system.dead_letters()] == []
    assert RAN.count("a began") == 1


async def test_queued_work_does_not_start_during_the_grace(path: Path) -> None:
    async with system_at(path) as system:
        worker = system.actor(Worker, "w")
        await worker.work.tell("running", 5)
        await worker.work.tell("queued")
        await asyncio.sleep(1)
    assert "queued began" not in RAN

    async with system_at(path) as system:
        assert await system.actor(Worker, "w").done() == ["running 1", "queued 1"]


async def test_what_a_running_turn_asks_is_answered_during_the_grace(path: Path) -> None:
    async with system_at(path) as system:
        asking = asyncio.ensure_future(system.actor(Boss, "b").delegate(5))
        await asyncio.sleep(1)

    assert await asking == "asked"


async def test_what_was_asked_does_not_start_again_after_the_grace(path: Path) -> None:
    async with system_at(path, grace_s=2) as system:
        asking = asyncio.ensure_future(system.actor(Boss, "b").delegate(500))
        await asyncio.sleep(1)
        start = asyncio.get_running_loop().time()

    assert asyncio.get_running_loop().time() - start == pytest.approx(2, abs=0.5)
    with pytest.raises(SystemClosed):
        await asking
    assert RAN.count("asked cancelled") == 1


async def test_turn_that_swallows_its_cancellation_at_closing_cannot_commit(path: Path) -> None:
    async with system_at(path, grace_s=1) as system:
        await system.actor(Worker, "w").stubborn.tell()
        await asyncio.sleep(0.5)
    async with system_at(path, grace_s=1) as system:
        (row,) = [row async for row in system.actors()]
        assert row.waiting == 1


async def test_callers_that_wait_get_system_closed(path: Path) -> None:
    async with system_at(path, grace_s=1) as system:
        worker = system.actor(Worker, "w")
        asking = [asyncio.ensure_future(worker.work(str(i), 500)) for i in range(3)]
        keyed = asyncio.ensure_future(worker.work.options(key="k")("k", 500))
        delayed = asyncio.ensure_future(worker.work.options(delay_s=500)("d"))
        job = await worker.work.submit("j", 500)
        awaiting = asyncio.ensure_future(job.result())
        await asyncio.sleep(1)

    outcomes = await asyncio.gather(*asking, keyed, delayed, awaiting, return_exceptions=True)
    assert [type(each) for each in outcomes] == [SystemClosed] * 6


async def test_what_was_told_is_stored_when_the_system_closes_at_once(path: Path) -> None:
    async with system_at(path) as system:
        telling = [asyncio.ensure_future(system.actor(Worker, "w").work.tell(str(i))) for i in range(20)]
        await asyncio.sleep(0)

    outcomes = await asyncio.gather(*telling, return_exceptions=True)
    stored = [str(i) for i, outcome in enumerate(outcomes) if outcome is None]
    async with system_at(path) as system:
        done = [each.split()[0] for each in await system.actor(Worker, "w").done()]
        assert set(stored) <= set(done)


async def test_closed_system_refuses_and_says_so(path: Path) -> None:
    system = system_at(path)
    with pytest.raises(SystemClosed):
        await system.actor(Worker, "w").work("early")
    async with system:
        worker = system.actor(Worker, "w")
        job = await worker.work.submit("a")
    for call in (lambda: worker.work("late"), lambda: worker.work.tell("late"), job.result, job.status):
        with pytest.raises(SystemClosed):
            await call()


async def test_second_cancellation_does_not_keep_the_file(path: Path) -> None:
    async def body() -> None:
        async with system_at(path, grace_s=30) as system:
            await system.actor(Worker, "w").work.tell("a", 500)
            await asyncio.sleep(1000)

    host = asyncio.ensure_future(body())
    await asyncio.sleep(1)
    host.cancel()
    await asyncio.sleep(1)
    host.cancel()
    await asyncio.wait([host])

    assert host.cancelled()
    async with System(SQLiteStore(path, lock_wait_s=0), [Worker]) as system:
        assert [row.waiting async for row in system.actors()] == [1]


async def test_error_of_the_body_is_raised_after_closing(path: Path) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the error is the body's
        async with system_at(path) as system:
            await system.actor(Worker, "w").work("a")
            raise ZeroDivisionError
    async with system_at(path) as system:
        assert await system.actor(Worker, "w").done() == ["a 1"]


async def test_one_system_object_opens_again(path: Path) -> None:
    system = system_at(path)
    for life in range(3):
        async with system:
            await system.actor(Worker, "w").work(str(life))
            assert len(await system.actor(Worker, "w").done()) == life + 1


async def test_two_systems_on_two_files_in_one_process_know_nothing_of_each_other(path: Path) -> None:
    async with system_at(path) as one, system_at(path.with_name("two.db")) as two:
        await asyncio.gather(one.actor(Worker, "w").work("a"), two.actor(Worker, "w").work("b"))

        assert await one.actor(Worker, "w").done() == ["a 1"]
        assert await two.actor(Worker, "w").done() == ["b 1"]


async def test_turn_of_one_system_calls_another_as_somebody_from_outside(path: Path) -> None:
    class Bridge(Actor, kind="bridge"):
        @handler
        async def cross(self) -> str:
            return await self.turn.resource(System).actor(Worker, "w").work("crossed")

    two = system_at(path.with_name("two.db"))
    async with two, System(path, [Bridge], resources=[two]) as one:
        assert await one.actor(Bridge, "b").cross() == "crossed"


async def test_second_opening_of_one_file_is_refused_with_the_pid_of_its_owner(path: Path) -> None:
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            OWNER,
            str(path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "open\n"
    try:
        with pytest.raises(StoreLocked, match=str(owner.pid)) as caught:
            async with System(SQLiteStore(path, lock_wait_s=0), [Worker]):
                pass
        assert caught.value.pid == owner.pid
    finally:
        owner.communicate("")
    async with system_at(path) as system:
        await system.actor(Worker, "w").work("a")


async def test_unregistered_class_is_named(path: Path) -> None:
    async with System(path, [Worker]) as system:
        with pytest.raises(NotRegistered, match=r"Boss.*It has: Worker"):
            system.actor(Boss, "b")


async def test_hooks_run_once_before_the_first_turn_and_when_the_system_closes(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Hooked, "h").work()
        await system.actor(Hooked, "h").work()
        assert RAN == ["start h", "work h", "work h"]

    assert RAN == ["start h", "work h", "work h", "stop h"]


async def test_hooks_run_around_each_stay_in_memory(path: Path) -> None:
    async with system_at(path, idle_s=10) as system:
        await system.actor(Hooked, "h").work()
        await asyncio.sleep(100)
        await system.actor(Hooked, "h").work()

    assert RAN == ["start h", "work h", "stop h"] * 2


async def test_actor_that_never_ran_is_not_stopped(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Hooked, "h").work.options(delay_s=1000).tell()

    assert RAN == []


async def test_error_of_on_stop_is_logged_and_stops_nobody(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with system_at(path, idle_s=10) as system:
        await system.actor(Hooked, "bad").work()
        await asyncio.sleep(100)
        assert "actor.on_stop_failed" in caplog.text
        await system.actor(Hooked, "bad").work()

    assert caplog.text.count("cannot stop") >= 2


async def test_restart_runs_on_start_again(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Hooked, "h").fail.tell()
        await asyncio.sleep(100)

    assert RAN.count("start h") == 3


async def test_failing_on_start_is_a_failed_attempt(path: Path) -> None:
    async with system_at(path) as system:
        assert await system.actor(BadStart, "b").work() == "worked"
