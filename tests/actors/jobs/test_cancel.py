"""Cancelling a message: queued, delayed, running or in backoff, and what its turn had asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from understudy import Actor, InvalidArguments, JobCancelled, Limits, System, handler, step
from understudy.mailbox.envelope import Envelope
from understudy.mailbox.store import Whereabouts
from understudy.testing import InlineSQLiteStore

pytestmark = pytest.mark.anyio


class Log(msgspec.Struct):
    done: list[str] = []


class Notes:
    """What handlers did, beside all durability."""

    def __init__(self) -> None:
        self.seen: list[str] = []


class Worker(Actor[Log], kind="worker"):
    @handler
    async def work(self, what: str, takes_s: float = 0.0) -> str:
        notes = self.turn.resource(Notes)
        notes.seen.append(f"start {what}")
        try:
            await asyncio.sleep(takes_s)
        finally:
            notes.seen.append(f"end {what}")
        self.state.done.append(what)
        return what

    @handler
    async def stubborn(self) -> str:
        self.state.done.append("stubborn")
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            pass
        return "done all the same"

    @handler
    async def failing(self) -> None:
        raise OSError("no network")

    @handler
    async def done(self) -> list[str]:
        return self.state.done


class Boss(Actor[Log], kind="boss"):
    @handler
    async def delegate(self, *, first: str, second: str) -> str:
        await self.actor(Worker, "first").work(first)
        await self.actor(Worker, "second").work(second, 100)
        return "all"

    @handler
    async def delegate_to_two(self) -> None:
        await asyncio.gather(self.actor(Worker, "a").work("a", 100), self.actor(Worker, "b").work("b", 100))

    @handler
    async def delegate_deep(self, depth: int) -> None:
        if depth == 0:
            await self.actor(Worker, "deep").work("deep", 100)
        else:
            await self.actor(Boss, f"level {depth}").delegate_deep(depth - 1)

    @handler
    async def submit(self) -> str:
        job = await self.actor(Worker, "w").work.submit("submitted", 10)
        await asyncio.sleep(100)
        return job.id

    @handler
    async def compensate(self) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await note_step("compensated")

    @handler
    async def cancel_itself(self, id: str) -> None:
        system = self.turn.resource(list)[0]
        await system.job(self.turn.id).cancel()


NOTES: list[str] = []


@step
async def note_step(text: str) -> None:
    NOTES.append(text)


def system_at(path: Path, notes: Notes | None = None, limits: Limits | None = None) -> System:
    return System(path, [Worker, Boss], resources=[notes or Notes()], limits=limits)


async def depth(system: System) -> int:
    return sum([row.waiting async for row in system.actors()])


async def test_queued_message_is_withdrawn(path: Path) -> None:
    async with system_at(path) as system:
        worker = system.actor(Worker, "w")
        slow = await worker.work.submit("slow", 10)
        queued = [await worker.work.submit(f"queued {i}") for i in range(3)]
        await queued[1].cancel()

        assert (await queued[1].status()).state == "cancelled"
        with pytest.raises(JobCancelled):
            await queued[1]
        assert await slow == "slow"
        assert await worker.done() == ["slow", "queued 0", "queued 2"]
        assert await depth(system) == 0


async def test_message_that_waits_on_disk_is_withdrawn(path: Path) -> None:
    async with system_at(path, limits=Limits(window_messages=2)) as system:
        worker = system.actor(Worker, "w")
        await worker.work.submit("slow", 10)
        queued = [await worker.work.submit(str(i)) for i in range(20)]
        for job in queued[::2]:
            await job.cancel()

        assert await queued[-1] == "19"
        assert await worker.done() == ["slow", *(str(i) for i in range(1, 20, 2))]
        assert await depth(system) == 0


async def test_running_turn_is_cancelled_and_leaves_nothing(path: Path) -> None:
    notes = Notes()
    async with system_at(path, notes) as system:
        job = await system.actor(Worker, "w").work.submit("slow", 100)
        await asyncio.sleep(1)

        await job.cancel()

        with pytest.raises(JobCancelled):
            await job
        assert await system.actor(Worker, "w").done() == []
        assert notes.seen == ["start slow", "end slow"]


async def test_cancellation_is_durable_when_it_returns(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Worker, "w").work.submit("slow", 100)
        await asyncio.sleep(1)
        await job.cancel()
    notes = Notes()
    async with system_at(path, notes) as system:
        assert (await system.job(job.id).status()).state == "cancelled"
        with pytest.raises(JobCancelled):
            await system.job(job.id)
        assert notes.seen == []


async def test_turn_that_swallows_its_cancellation_cannot_commit(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Worker, "w").stubborn.submit()
        await asyncio.sleep(1)

        await job.cancel()

        with pytest.raises(JobCancelled):
            await job
        assert await system.actor(Worker, "w").done() == []


async def test_message_in_backoff_is_cancelled(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Worker, "w").failing.submit()
        while (await job.status()).state != "waiting":
            await asyncio.sleep(0.01)

        await job.cancel()

        with pytest.raises(JobCancelled):
            await job
        assert [letter async for letter in system.dead_letters()] == []
        assert await system.actor(Worker, "w").work("next") == "next"


async def test_what_a_running_turn_asked_is_cancelled_too_and_what_has_committed_stays(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Boss, "b").delegate.submit(first="one", second="two")
        await asyncio.sleep(1)

        await job.cancel()

        assert await system.actor(Worker, "first").done() == ["one"]
        assert await system.actor(Worker, "second").done() == []
        assert await depth(system) == 0


async def test_asks_in_parallel_are_all_cancelled(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Worker, "b").work.tell("busy", 50)
        job = await system.actor(Boss, "b").delegate_to_two.submit()
        await asyncio.sleep(1)

        await job.cancel()

        assert await system.actor(Worker, "a").done() == []
        assert await system.actor(Worker, "b").done() == ["busy"]
        assert await depth(system) == 0


async def test_cancel_goes_down_the_whole_tree(path: Path) -> None:
    notes = Notes()
    async with system_at(path, notes) as system:
        job = await system.actor(Boss, "b").delegate_deep.submit(10)
        await asyncio.sleep(1)

        await job.cancel()
        await asyncio.sleep(1)

        assert notes.seen == ["start deep", "end deep"]
        assert await system.actor(Worker, "deep").done() == []
        assert await depth(system) == 0


async def test_submitted_job_of_a_cancelled_turn_goes_on(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Boss, "b").submit.submit()
        await asyncio.sleep(1)
        await job.cancel()
        await asyncio.sleep(20)

        assert await system.actor(Worker, "w").done() == ["submitted"]


async def test_cancelled_turn_compensates_nothing(path: Path) -> None:
    NOTES.clear()
    async with system_at(path) as system:
        job = await system.actor(Boss, "b").compensate.submit()
        await asyncio.sleep(1)
        await job.cancel()
        with pytest.raises(JobCancelled):
            await job

    assert NOTES == []


async def test_what_a_turn_asked_in_an_earlier_life_is_cancelled_with_it(path: Path) -> None:
    async with system_at(path, limits=Limits(grace_s=1)) as system:
        blocker = await system.actor(Boss, "b").submit.submit()
        await asyncio.sleep(0.1)
        job = await system.actor(Boss, "c").delegate_deep.submit(2)
        await asyncio.sleep(1)
    notes = Notes()
    async with system_at(path, notes) as system:
        await system.job(job.id).cancel()
        await system.job(blocker.id).cancel()
        await asyncio.sleep(300)

        assert "start deep" not in notes.seen or notes.seen.count("end deep") == 1
        assert await system.actor(Worker, "deep").done() == []
        assert await depth(system) == 0


async def test_job_that_has_ended_is_not_cancelled(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Worker, "w").work.submit("a")
        assert await job == "a"

        await job.cancel()

        assert await job == "a"
        assert (await job.status()).state == "done"


async def test_cancelling_twice_is_cancelling_once(path: Path) -> None:
    async with system_at(path) as system:
        job = await system.actor(Worker, "w").work.submit("a", 100)
        await asyncio.sleep(1)

        await asyncio.gather(*(job.cancel() for _ in range(10)))

        assert (await job.status()).state == "cancelled"
        assert await depth(system) == 0


@pytest.mark.parametrize("rounds", range(24))
async def test_cancel_at_any_moment_either_comes_in_time_or_too_late(path: Path, rounds: int) -> None:
    async with system_at(path) as system:
        worker = system.actor(Worker, "w")
        await worker.work("warm")
        jobs = [await worker.work.submit(f"job {i}") for i in range(3)]
        for _ in range(rounds):
            await asyncio.sleep(0)

        await jobs[1].cancel()

        state = (await jobs[1].status()).state
        await jobs[2]
        done = await worker.done()
        assert done == ["warm", "job 0", *(["job 1"] if state == "done" else []), "job 2"]
        assert state in ("done", "cancelled")
        assert await depth(system) == 0


async def test_turn_cannot_cancel_itself(path: Path) -> None:
    systems: list[System] = []
    async with System(path, [Boss, Worker], resources=[systems]) as system:
        systems.append(system)
        with pytest.raises(InvalidArguments, match="cannot cancel its own"):
            await system.actor(Boss, "b").cancel_itself("x")


async def test_outside_caller_of_a_cancelled_message_is_told(path: Path) -> None:
    async with system_at(path) as system:
        worker = system.actor(Worker, "w")
        await worker.work.submit("slow", 10)
        waiting = asyncio.ensure_future(worker.work.options(key="k")("late"))
        await asyncio.sleep(1)
        job = await worker.work.options(key="k").submit("late")

        await job.cancel()

        with pytest.raises(JobCancelled):
            await waiting


class HeldReads(InlineSQLiteStore):
    """A store whose reads of one sort wait until the test lets them go."""

    held = ""  # the reads that wait
    after = 0  # how many of them go through first

    def hold(self, what: str, after: int = 0) -> None:
        self.held, self.after = what, after
        self.reading = asyncio.Event()
        self.gate = asyncio.Event()

    async def _pass(self, what: str) -> None:
        if self.held == what:
            if self.after == 0:
                self.reading.set()
                await self.gate.wait()
            else:
                self.after -= 1

    async def message(self, no: int) -> Whereabouts:
        found = await super().message(no)
        await self._pass("message")
        return found

    async def asked_by(self, message: int) -> list[Envelope]:
        found = await super().asked_by(message)
        await self._pass("asked_by")
        return found


@pytest.mark.parametrize("reads", [0, 1])
async def test_cancel_that_is_cancelled_itself_goes_to_its_end(path: Path, reads: int) -> None:
    store = HeldReads(path)
    async with System(store, [Worker, Boss], resources=[Notes()], limits=Limits(window_messages=2)) as system:
        worker = system.actor(Worker, "w")
        await worker.work.submit("slow", 10)
        queued = [await worker.work.submit(str(i)) for i in range(20)]
        store.hold("message", after=reads)
        cancelling = asyncio.ensure_future(queued[15].cancel())
        await store.reading.wait()

        cancelling.cancel()
        await asyncio.sleep(1)
        store.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await cancelling

        assert (await queued[15].status()).state == "cancelled"
        with pytest.raises(JobCancelled):
            await queued[15]
        assert await queued[19] == "19"
        assert await depth(system) == 0


async def test_cancel_that_is_cancelled_leaves_nothing_running_that_the_message_asked(path: Path) -> None:
    async with system_at(path, limits=Limits(grace_s=1)) as system:
        job = await system.actor(Boss, "b").delegate_to_two.submit()
        await asyncio.sleep(1)
    store = HeldReads(path)
    store.hold("asked_by")
    async with System(store, [Worker, Boss], resources=[Notes()]) as system:
        await store.reading.wait()
        cancelling = asyncio.ensure_future(system.job(job.id).cancel())
        await asyncio.sleep(1)

        cancelling.cancel()
        await asyncio.sleep(1)
        store.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await cancelling

        assert (await system.job(job.id).status()).state == "cancelled"
        assert await depth(system) == 0


async def test_message_is_cancelled_once_however_many_cancel_it(path: Path) -> None:
    async with system_at(path, limits=Limits(window_messages=2)) as system:
        worker = system.actor(Worker, "w")
        await worker.work.submit("slow", 10)
        queued = [await worker.work.submit(str(i)) for i in range(10)]

        await asyncio.gather(*(queued[i].cancel() for i in (0, 0, 0, 7, 7, 7)))

        assert await queued[-1] == "9"
        assert await depth(system) == 0


async def test_caller_of_a_message_on_disk_is_told_of_its_cancellation(path: Path) -> None:
    store = HeldReads(path)
    async with System(store, [Worker, Boss], resources=[Notes()], limits=Limits(window_messages=2)) as system:
        worker = system.actor(Worker, "w")
        await worker.work.submit("slow", 1)
        for i in range(3):
            await worker.work.submit(str(i))
        asking = asyncio.ensure_future(worker.work("asked"))
        await asyncio.sleep(0.5)
        no = system.last_message
        store.hold("message", after=1)
        cancelling = asyncio.ensure_future(system.job(system.job_id(no)).cancel())
        await store.reading.wait()
        await asyncio.sleep(10)  # The mailbox is read to its end meanwhile.

        store.gate.set()
        await cancelling

        with pytest.raises(JobCancelled):
            await asyncio.wait_for(asking, 10)


async def test_what_was_cancelled_on_disk_is_forgotten(path: Path) -> None:
    async with system_at(path, limits=Limits(window_messages=2)) as system:
        worker = system.actor(Worker, "w")
        await worker.work.submit("slow", 10)
        for job in [await worker.work.submit(str(i)) for i in range(20)]:
            await job.cancel()

        assert not system.withdrawals.withdrawn
