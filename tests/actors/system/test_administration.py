"""What a person asks of a running system: events, lists, dead letters, backup, erase, resume; and what retention takes."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from understudy import Actor, HandlerFailed, InvalidArguments, Limits, NotFound, StoreRefused, System, events, handler
from understudy.testing import VirtualTimeLoop

pytestmark = pytest.mark.anyio


class Note(msgspec.Struct):
    text: str = ""


class Pad(Actor[Note], kind="pad"):
    @handler
    async def write(self, text: str) -> str:
        self.state.text = text
        return text

    @handler
    async def read(self) -> str:
        return self.state.text

    @handler
    async def fail(self, text: str) -> None:
        raise ValueError(text)

    @handler
    async def crash(self) -> None:
        raise OSError("no network")


class Diary(Actor[Note, str], kind="diary"):
    def apply(self, event: str) -> None:
        self.state.text += event

    @handler
    async def add(self, text: str) -> str:
        self.record(text)
        return self.state.text


def system_at(path: Path, trace: Any = "steps", **limits: float) -> System:
    return System(path, [Pad, Diary], trace=trace, limits=Limits(**limits))  # type: ignore[arg-type]


def loop() -> VirtualTimeLoop:
    running: Any = asyncio.get_running_loop()
    return running


async def test_events_are_streamed_as_they_commit_until_the_system_closes(path: Path) -> None:
    seen: list[events.TraceEvent] = []

    async def listen(system: System) -> None:
        async for event in system.events():
            seen.append(event)  # noqa: PERF401 - as they come

    async with system_at(path) as system:
        listening = asyncio.ensure_future(listen(system))
        await asyncio.sleep(1)
        with pytest.raises(HandlerFailed):
            await system.actor(Pad, "p").fail("oh no")
    await asyncio.wait_for(listening, 10)

    names = [type(event).__name__ for event in seen]
    assert "TurnFailed" in names
    assert "MessageDeadLettered" in names
    (failed,) = [event for event in seen if isinstance(event, events.TurnFailed)]
    assert (failed.actor, failed.error, failed.message, failed.decision) == ("p", "ValueError", "oh no", "dead_letter")


async def test_events_are_heard_from_the_call_on(path: Path) -> None:
    async with system_at(path, trace="all") as system:
        await asyncio.sleep(1)
        stream = system.events()

        await system.actor(Pad, "p").write("a")

        assert isinstance(await anext(stream), events.TurnStarted)
    rest = [type(event).__name__ async for event in stream]
    assert rest[-1] == "SystemStopped"
    assert [event async for event in stream] == []


async def test_stream_of_events_that_nobody_reads_is_forgotten(path: Path) -> None:
    async with system_at(path) as system:
        stream = system.events()
        assert len(system.recorder.listeners) == 1

        del stream
        gc.collect()

        assert not system.recorder.listeners


async def test_closed_stream_of_events_ends_for_who_waits(path: Path) -> None:
    async with system_at(path) as system:
        await asyncio.sleep(1)
        stream = system.events()
        waiting = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(1)

        await stream.aclose()

        assert await waiting is None


async def test_listener_that_goes_disturbs_nobody(path: Path) -> None:
    async with system_at(path, trace="all") as system:
        await asyncio.sleep(1)
        stream = system.events()
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(1)
        await system.actor(Pad, "p").write("a")
        assert isinstance(await first, events.TurnStarted)
        await stream.aclose()

        await system.actor(Pad, "p").write("b")
        assert not system.recorder.listeners


async def test_dead_letter_tells_the_message_the_error_and_its_traceback(path: Path) -> None:
    async with system_at(path) as system:
        with pytest.raises(HandlerFailed) as caught:
            await system.actor(Pad, "p").fail("oh no")
    async with system_at(path) as system:
        (letter,) = [letter async for letter in system.dead_letters()]

        assert letter.id == caught.value.dead_letter
        assert (letter.kind, letter.actor, letter.handler) == ("pad", "p", "fail")
        assert letter.arguments == {"text": "oh no"}
        assert (letter.error, letter.message) == ("ValueError", "oh no")
        assert "raise ValueError(text)" in letter.traceback
        assert (letter.attempts, letter.crashes) == (1, 0)
        assert letter.ref == system.actor(Pad, "p")
        assert letter.at == pytest.approx(loop().wall_time(), abs=60)


async def test_told_message_that_fails_is_retried_and_kept(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Pad, "p").crash.tell()
        await asyncio.sleep(100)

        (letter,) = [letter async for letter in system.dead_letters()]
        assert letter.attempts == 3
        assert await system.actor(Pad, "p").write("still here") == "still here"


async def test_hundreds_of_dead_letters_are_all_listed_in_order(path: Path) -> None:
    async with system_at(path) as system:
        await asyncio.gather(*(system.actor(Pad, f"p{i}").fail.tell(str(i)) for i in range(1200)))
        await asyncio.sleep(10)

        letters = [letter async for letter in system.dead_letters()]
        numbers = [system.message_no(letter.id) for letter in letters]
        assert numbers == sorted(numbers)
        assert {(letter.actor, letter.arguments["text"]) for letter in letters} == {
            (f"p{i}", str(i)) for i in range(1200)
        }


async def test_hundreds_of_actors_are_all_listed_with_their_mail(path: Path) -> None:
    async with system_at(path) as system:
        await asyncio.gather(*(system.actor(Pad, f"p{i}").write.options(delay_s=100).tell("x") for i in range(1200)))

        rows = [(row.id, row.waiting) async for row in system.actors(Pad)]
        assert rows == [(f"p{i}", 1) for i in range(1200)]


async def test_backup_made_while_work_goes_on_opens_and_has_the_data(path: Path) -> None:
    copy = path.with_name("copy.db")
    async with system_at(path) as system:
        await system.actor(Pad, "p").write("before")
        job = await system.actor(Pad, "late").write.options(delay_s=500).submit("later")

        async def work() -> None:
            for i in range(200):
                await system.actor(Pad, f"w{i % 10}").write(str(i))

        working = asyncio.ensure_future(work())
        await system.backup(copy)
        await working
        await system.actor(Pad, "p").write("after")

        # The copy opens beside its original: it is another file, with an owner of its own.
        async with system_at(copy) as copied:
            assert await copied.actor(Pad, "p").read() == "before"
            assert await copied.job(job.id, Pad.write) == "later"
        assert await system.actor(Pad, "p").read() == "after"


async def test_backup_overwrites_nothing(path: Path) -> None:
    target = path.with_name("precious")
    target.write_text("mine")
    async with system_at(path) as system:
        with pytest.raises(StoreRefused, match="overwrites nothing"):
            await system.backup(target)

    assert target.read_text() == "mine"


async def test_erased_actor_is_gone_from_the_file_and_its_id_is_free(path: Path) -> None:
    secret = "a secret that must not stay"
    async with system_at(path, trace="all") as system:
        job = await system.actor(Pad, "p").write.submit(secret)
        await job
        await system.actor(Diary, "d").add(secret)
        with pytest.raises(HandlerFailed):
            await system.actor(Pad, "p").fail(secret)
        await system.actor(Pad, "other").write("stays")

        await system.erase(system.actor(Pad, "p"))
        await system.erase(system.actor(Diary, "d"))

        for file in path.parent.iterdir():
            assert secret.encode() not in file.read_bytes(), file.name
        with pytest.raises(NotFound):
            await job
        assert [letter async for letter in system.dead_letters()] == []
        assert [row.id async for row in system.actors()] == ["other"]
        assert await system.actor(Pad, "p").read() == ""
        assert await system.actor(Diary, "d").add("new") == "new"


async def test_actor_with_mail_is_not_erased(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Pad, "p").write("a")
        job = await system.actor(Pad, "p").write.options(delay_s=100).submit("b")
        with pytest.raises(InvalidArguments, match="1 waiting"):
            await system.erase(system.actor(Pad, "p"))
        assert await system.actor(Pad, "p").read() == "a"
        await job.cancel()

        await system.erase(system.actor(Pad, "p"))


async def test_message_sent_while_its_actor_is_erased_reaches_a_new_actor(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Pad, "p").write("old")
        erasing = asyncio.ensure_future(system.erase(system.actor(Pad, "p")))
        await asyncio.sleep(0)
        sending = [asyncio.ensure_future(system.actor(Pad, "p").read()) for _ in range(5)]

        await erasing
        assert await asyncio.gather(*sending) == [""] * 5
        (row,) = await system.store.actors(None, 0, 9)
        assert row.no == 2
    async with system_at(path) as system:
        await system.actor(Pad, "p").write("new")
        assert await system.actor(Pad, "p").read() == "new"


async def test_actor_that_was_never_there_is_erased_without_complaint(path: Path) -> None:
    async with system_at(path) as system:
        await system.erase(system.actor(Pad, "nobody"))

        assert [row async for row in system.actors()] == []


async def test_administration_takes_refs_of_its_own_system_only(path: Path) -> None:
    async with system_at(path) as one, system_at(path.with_name("two.db")) as two:
        with pytest.raises(InvalidArguments, match="ref of this system"):
            await one.erase(two.actor(Pad, "p"))
        with pytest.raises(InvalidArguments, match="ref of this system"):
            await one.resume("p")  # type: ignore[arg-type]


async def test_resume_of_an_actor_that_is_not_suspended_does_nothing(path: Path) -> None:
    async with system_at(path) as system:
        await system.actor(Pad, "p").write("a")

        await system.resume(system.actor(Pad, "p"))

        assert await system.actor(Pad, "p").read() == "a"


def rows(path: Path, table: str) -> int:
    connection = sqlite3.connect(path)
    try:
        count: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return count
    finally:
        connection.close()


async def test_trace_goes_when_it_is_old(path: Path) -> None:
    async with system_at(path, trace="all", trace_ttl_s=1000) as system:
        for i in range(20):
            await system.actor(Pad, "p").write(str(i))
        await asyncio.sleep(900)
        assert rows(path, "trace") >= 20
        await asyncio.sleep(300)

        assert rows(path, "trace") == 0


async def test_trace_goes_when_it_is_too_large_oldest_first(path: Path) -> None:
    async with system_at(path, trace="all", trace_bytes=50_000) as system:
        jobs = [await system.actor(Pad, "p").write.submit(str(i)) for i in range(1000)]
        await jobs[-1]
        await asyncio.sleep(300)

        assert 50 < rows(path, "trace") < 600
        with pytest.raises(NotFound):
            await system.trace(jobs[0].id)
        assert await system.trace(jobs[-1].id)


async def test_plain_turns_are_counters_unless_all_are_traced(path: Path) -> None:
    async with system_at(path) as system:
        for i in range(50):
            await system.actor(Pad, "p").write(str(i))
        assert rows(path, "trace") <= 3
        assert ("pad", "write", 50, 0) in await system.store.turns()


async def test_bad_step_of_the_wall_clock_deletes_nothing(path: Path) -> None:
    async with system_at(path, trace="all", result_ttl_s=7 * 86_400) as system:
        job = await system.actor(Pad, "p").write.options(key="k").submit("a")
        await job

        loop().jump_wall(365 * 86_400)
        await asyncio.sleep(1000)
        assert await job == "a"
        assert await system.trace(job.id)
        loop().jump_wall(-365 * 86_400)
        await asyncio.sleep(1000)

        assert await system.actor(Pad, "p").write.options(key="k").submit("a") == job


async def test_retention_goes_on_after_a_small_step_of_the_wall_clock(path: Path) -> None:
    async with system_at(path, result_ttl_s=5000) as system:
        job = await system.actor(Pad, "p").write.submit("a")
        await job
        loop().jump_wall(3000)
        await asyncio.sleep(2500)

        with pytest.raises(NotFound):
            await job
