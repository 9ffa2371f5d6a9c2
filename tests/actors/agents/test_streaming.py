"""What people see of a job while it goes on: `job.stream()`."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.actors.agents.test_memory import open_at
from tests.actors.turns.world import World, dying, world
from understudy import (
    Actor,
    ActorSuspended,
    Agent,
    Backoff,
    Endpoint,
    EndpointUnavailable,
    HandlerFailed,
    InvalidArguments,
    Job,
    LimitExceeded,
    Limits,
    ModelRequest,
    NotFound,
    Overloaded,
    Policy,
    RateLimited,
    RequestRejected,
    StoreFailed,
    System,
    SystemClosed,
    handler,
    on,
    retry,
    suspend,
    tool,
)
from understudy.actors.stream import Stream
from understudy.endpoint.model import ModelAnswer, Text, ToolCall, Usage
from understudy.events import ApprovalRequested, Finished, Restarted, StreamEvent, TextDelta, ToolCalled
from understudy.testing import (
    Answer,
    FakeAnthropic,
    FakeRequest,
    FaultyStore,
    calls,
    drops,
    fails,
    holds,
    says,
    stops,
    together,
)

pytestmark = pytest.mark.anyio

STORY = "Once upon a time there was a supervisor who had seven children, and none of them ever fell. "
GLYPHS = "Grüße 👩‍👩‍👧‍👦 aus 世界 — e\u0301 𝄞 " * 6
AGAIN = Restarted("the turn was delivered again, after a failure or a restart of the process")


@tool
async def look(where: str) -> str:
    """Look somewhere."""
    outside = world()
    outside.did.append(where)
    if outside.seen.get("stop at") == where:
        await outside.stop_at("looking")
    return f"nothing in {where}"


class Teller(Agent[str], kind="teller"):
    model = "claude-sonnet-5-5"
    tools = [look]
    policy = Policy(on(ConnectionError, retry(times=2)), *Agent.policy)

    @handler
    async def tell_twice(self, prompt: str) -> str:
        told = await self.run(prompt)
        if world().should_fail("between"):
            raise ConnectionError
        return told + await self.run("And now?")


class Report(msgspec.Struct):
    title: str


class Reporter(Agent[Report], kind="reporter"):
    model = "claude-sonnet-5-5"


class Editor(Agent[str], kind="editor"):
    model = "claude-opus-5-5"
    tools = [Teller.run]


class Plain(Actor, kind="plain"):
    @handler
    async def work(self, what: str) -> str:
        if what == "stop":
            await world().stop_at("working")
        if what == "fail":
            raise LookupError(what)
        return what

    @handler
    async def watch(self, job: Job[str]) -> None:
        async for _ in job.stream():
            pass


def told(events: list[StreamEvent]) -> list[Any]:
    """What was told, pieces of one text joined, and calls by the names of their tools."""
    found: list[Any] = []
    for is_text, group in groupby(events, lambda each: isinstance(each, TextDelta)):
        some = list(group)
        if is_text:
            found.append("".join(each.text for each in some if isinstance(each, TextDelta)))
        else:
            found += [each.tool if isinstance(each, ToolCalled) else each for each in some]
    return found


async def all_of(stream: AsyncIterator[StreamEvent]) -> list[StreamEvent]:
    return [event async for event in stream]


class Ear:
    """Somebody who listens, and what was heard so far."""

    def __init__(self, job: Job[Any]) -> None:
        self.events: list[StreamEvent] = []
        self.task = asyncio.ensure_future(self._listen(job))

    async def _listen(self, job: Job[Any]) -> list[StreamEvent]:
        async for event in job.stream():
            self.events.append(event)
        return self.events

    async def until(self, enough: Callable[[list[StreamEvent]], bool]) -> list[StreamEvent]:
        while not enough(self.events):
            assert not self.task.done(), self.events
            await asyncio.sleep(0.001)
        return list(self.events)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))


@asynccontextmanager
async def listening(job: Job[Any]) -> AsyncIterator[Ear]:
    ear = Ear(job)
    try:
        yield ear
    finally:
        ear.task.cancel()
        await asyncio.wait([ear.task])


async def settled() -> None:
    """Return when whatever is on its way has arrived: virtual time moves only then."""
    await asyncio.sleep(1)


# --- what a listener hears ----------------------------------------------------------------------------------------------


async def test_text_comes_as_it_is_written_then_the_calls_then_the_end(tmp_path: Path) -> None:
    model = FakeAnthropic(together(says(GLYPHS), calls(look, "Rome"), calls(look, "Oslo")), says(STORY), split_seed=7)
    async with model, open_at(tmp_path, World(), model, Teller) as system:
        job = await system.actor(Teller, "t").run.submit("Tell")
        events = await all_of(system.job(job.id, Teller.run).stream())

        assert told(events) == [GLYPHS, "look", "look", STORY, Finished()]
        assert sum(isinstance(event, TextDelta) for event in events) == 16  # as many as the endpoint sent
        assert len({event.call_id for event in events if isinstance(event, ToolCalled)}) == 2
        assert await job == STORY


async def test_listener_who_comes_in_the_middle_gets_what_there_is_then_the_rest(tmp_path: Path) -> None:
    async with FakeAnthropic(holds(answer=says(STORY))) as model, open_at(tmp_path, World(), model, Teller) as system:
        job = await system.actor(Teller, "t").run.submit("Tell")
        async with listening(job) as first:
            await model.wait_held()
            await settled()
            so_far = first.text

            async with listening(job) as second:
                await settled()
                came_late = list(second.events)
                model.release()
                await asyncio.gather(first.task, second.task)

    assert 0 < len(so_far) < len(STORY)
    assert came_late == [TextDelta(so_far)]
    assert told(first.events) == told(second.events) == [STORY, Finished()]


async def test_listener_who_comes_while_tools_run_gets_the_answer_that_called_them(tmp_path: Path) -> None:
    outside = World()
    outside.seen["stop at"] = "Rome"
    script = [calls(look, "Oslo"), together(says("Let me look."), calls(look, "Rome")), says(STORY)]
    async with FakeAnthropic(*script) as model, open_at(tmp_path, outside, model, Teller) as system:
        job = await system.actor(Teller, "t").run.submit("Tell")
        await outside.wait("looking")
        async with listening(job) as ear:
            await settled()
            so_far = told(ear.events)
            outside.open("looking")
            await ear.task

    assert so_far == ["Let me look.", "look"]
    assert told(ear.events) == ["Let me look.", "look", STORY, Finished()]


async def test_stream_of_a_job_that_has_ended_says_so_at_once(tmp_path: Path) -> None:
    async with FakeAnthropic(says(STORY), fails(400)) as model:
        async with open_at(tmp_path, World(), model, Teller, Plain) as system:
            done = await system.actor(Teller, "t").run.submit("Tell")
            await done
            failed = await system.actor(Teller, "t").run.submit("Tell")
            with pytest.raises((RequestRejected, HandlerFailed)):
                await failed
            cancelled = await system.actor(Plain, "p").work.options(delay_s=60).submit("later")
            await cancelled.cancel()

            for job in (done, failed, cancelled):
                assert await all_of(job.stream()) == [Finished()]
        async with open_at(tmp_path, World(), model, Teller, Plain) as system:
            for job in (done, failed, cancelled):
                assert await all_of(system.job(job.id).stream()) == [Finished()]


@pytest.mark.parametrize("end", ["done", "failed", "cancelled"])
async def test_stream_of_a_plain_job_waits_for_its_end_however_it_ends(tmp_path: Path, end: str) -> None:
    outside = World()
    async with FakeAnthropic() as model, open_at(tmp_path, outside, model, Plain) as system:
        plain = system.actor(Plain, "p")
        await plain.work.tell("stop")
        job = await plain.work.submit("fail" if end == "failed" else "ok")
        async with listening(job) as ear:
            await settled()
            assert (ear.events, ear.task.done()) == ([], False)  # queued behind another
            if end == "cancelled":
                await job.cancel()
            outside.open("working")
            assert await ear.task == [Finished()]

        assert (await job.status()).state == end


async def test_stream_of_an_unknown_job_is_refused(tmp_path: Path) -> None:
    async with FakeAnthropic() as model, open_at(tmp_path, World(), model, Plain) as system:
        job = await system.actor(Plain, "p").work.submit("ok")
        number, _, tag = job.id.partition("-")

        with pytest.raises(NotFound):
            await all_of(system.job(f"{int(number) + 100}-{tag}").stream())
        await system.actor(Plain, "p").work("ok")
        with pytest.raises(NotFound):
            await all_of(system.job(f"{int(number) + 1}-{tag}").stream())  # an ask, which keeps no outcome
        assert len(system.streams) == 0


async def test_stream_cannot_be_read_inside_a_turn(tmp_path: Path) -> None:
    async with FakeAnthropic() as model, open_at(tmp_path, World(), model, Plain) as system:
        job = await system.actor(Plain, "p").work.submit("ok")

        with pytest.raises(InvalidArguments, match=r"cannot be streamed inside a turn.* Await the job"):
            await system.actor(Plain, "q").watch(job)


async def test_what_a_sub_agent_writes_is_not_in_the_stream(tmp_path: Path) -> None:
    script = [calls("teller", prompt="a story"), says(STORY), says("Edited.")]
    async with FakeAnthropic(*script) as model, open_at(tmp_path, World(), model, Editor, Teller) as system:
        job = await system.actor(Editor, "e").run.submit("Edit")

        assert told(await all_of(job.stream())) == ["teller", "Edited.", Finished()]
        assert len(system.streams) == 0


# --- what does not count --------------------------------------------------------------------------------------------------


async def test_dropped_answer_is_taken_back_when_the_next_attempt_begins(tmp_path: Path) -> None:
    script = [fails(529), drops(900, answer=says("A tale that breaks off, " * 4)), says(STORY)]
    async with FakeAnthropic(*script) as model, open_at(tmp_path, World(), model, Teller) as system:
        job = await system.actor(Teller, "t").run.submit("Tell")
        broken, restarted, *rest = told(await all_of(job.stream()))

    assert broken  # and nothing before it: of the 529 there was nothing to take back
    assert isinstance(restarted, Restarted)
    assert restarted.reason.startswith("EndpointUnavailable: ")
    assert rest == [STORY, Finished()]


async def test_answer_that_cannot_be_used_is_taken_back(tmp_path: Path) -> None:
    async with (
        FakeAnthropic(says("I would rather not."), says(Report("t"))) as model,
        open_at(tmp_path, World(), model, Reporter) as system,
    ):
        job = await system.actor(Reporter, "r").run.submit("Report")
        refused, restarted, *rest = told(await all_of(job.stream()))

    assert refused == "I would rather not."
    assert restarted.reason.startswith("MalformedOutput: ")
    assert rest == ['{"title":"t"}', Finished()]


async def test_text_of_a_paused_answer_counts_and_comes_again_after_a_drop(tmp_path: Path) -> None:
    script = [stops("pause_turn", says("First. ")), drops(900, answer=says(STORY)), says("Then.")]
    async with FakeAnthropic(*script) as model, open_at(tmp_path, World(), model, Teller) as system:
        job = await system.actor(Teller, "t").run.submit("Tell")
        before, restarted, *rest = told(await all_of(job.stream()))

    assert before.startswith("First. Once")
    assert isinstance(restarted, Restarted)
    assert rest == ["First. Then.", Finished()]


async def test_turn_that_is_tried_again_repeats_no_calls(tmp_path: Path) -> None:
    outside = World()
    outside.fails["between"] = 1
    script = [calls(look, "Rome"), says("One."), says("Two.")]
    async with FakeAnthropic(*script) as model, open_at(tmp_path, outside, model, Teller) as system:
        job = await system.actor(Teller, "t").tell_twice.submit("Tell")

        assert told(await all_of(job.stream())) == ["look", "One.Two.", Finished()]
        assert await job == "One.Two."


@pytest.mark.parametrize("crash", [False, True], ids=["closed", "killed"])
@pytest.mark.parametrize("paused", ["", "Well: "], ids=["", "paused"])
async def test_answer_in_flight_at_a_restart_of_the_process_is_taken_back(
    tmp_path: Path, crash: bool, paused: str
) -> None:
    before = [calls(look, "Rome"), *([stops("pause_turn", says(paused))] if paused else [])]
    async with FakeAnthropic(*before, holds(answer=says(STORY)), holds(answer=says(STORY))) as model:
        system = open_at(tmp_path, World(), model, Teller)
        async with dying(system) if crash else system:
            job = await system.actor(Teller, "t").run.submit("Tell")
            ear = Ear(job)
            await model.wait_held()
            await settled()
        with pytest.raises(StoreFailed if crash else SystemClosed):
            await ear.task
        assert ear.text.startswith(f"{paused}Once")

        async with open_at(tmp_path, World(), model, Teller) as system, listening(system.job(job.id)) as early:
            await model.wait_held()
            await settled()
            async with listening(system.job(job.id)) as late:
                await settled()
                model.release()
                await asyncio.gather(early.task, late.task)

    assert told(early.events) == told(late.events) == [AGAIN, paused + STORY, Finished()]


async def test_listener_after_a_restart_gets_the_answer_whose_tools_still_run(tmp_path: Path) -> None:
    outside = World()
    outside.seen["stop at"] = "Rome"
    script = [
        together(says("First Oslo."), calls(look, "Oslo")),
        together(says("Now Rome."), calls(look, "Rome")),
        says(STORY),
    ]
    async with FakeAnthropic(*script) as model:
        async with dying(open_at(tmp_path, outside, model, Teller)) as system:
            job = await system.actor(Teller, "t").run.submit("Tell")
            await outside.wait("looking")

        async with open_at(tmp_path, outside, model, Teller) as system, listening(system.job(job.id)) as early:
            await settled()
            async with listening(system.job(job.id)) as late:
                await settled()
                seen = told(early.events), told(late.events)
                outside.open("looking")
                await asyncio.gather(early.task, late.task)

    assert seen == (["Now Rome.", "look"], ["Now Rome.", "look"])
    assert told(early.events)[2:] == [STORY, Finished()]


async def test_calls_are_told_after_the_commit_that_covers_them(tmp_path: Path) -> None:
    outside = World()
    async with FakeAnthropic(holds(answer=together(says(STORY), calls(look, "Rome")))) as model:
        async with dying(open_at(tmp_path, outside, model, Teller)) as system:
            job = await system.actor(Teller, "t").run.submit("Tell")
            ear = Ear(job)
            await model.wait_held()
            store = system.store
            assert isinstance(store, FaultyStore)
            store.fail_before()
            model.release()
            await asyncio.Event().wait()
        with pytest.raises(StoreFailed):
            await ear.task

    assert told(ear.events) == [STORY]
    assert outside.did == []


def as_shown(events: list[StreamEvent]) -> list[str]:
    """What a page shows in the end that does as it is told: texts, and the tools between them."""
    shown: list[str] = []
    draft = ""
    for event in events:
        match event:
            case TextDelta(text=text):
                draft += text
            case Restarted():
                draft = ""
            case _:
                shown += [draft] if draft else []
                shown.append(event.tool if isinstance(event, ToolCalled) else "end")
                draft = ""
    return shown


async def test_whoever_comes_whenever_sees_the_rest_whatever_fails(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    failures: list[list[Answer]] = []  # before each answer of the run
    answers: list[Answer] = []
    shown: list[str] = []  # what counts
    before = ""  # text of paused answers
    for number in range(20):
        text = f"{number} says {'something ' * chance.randrange(1, 9)}"
        failures.append(
            [
                chance.choice([fails(529), drops(chance.randrange(0, 1_500), answer=says(text * 2))])
                for _ in range(chance.randrange(3))
            ]
        )
        what = chance.choice(["pause", "call", "calls", "text and calls"])
        if what == "pause":
            answers.append(stops("pause_turn", says(text)))
            before += text
            continue
        used = [calls(look, f"{number}.{each}") for each in range(1 if what == "call" else 2)]
        said = text if what == "text and calls" else ""
        answers.append(together(*([says(said)] if said else []), *used))
        shown += [before + said] if before + said else []
        shown += ["look"] * len(used)
        before = ""
    failures.append([])
    answers.append(says(STORY))
    shown += [before + STORY, "end"]

    async def slowly(request: FakeRequest) -> Answer:
        await asyncio.sleep(chance.random())
        number = sum(message["role"] == "assistant" for message in request.messages)
        return failures[number].pop() if failures[number] else answers[number]

    class Patient(Teller, kind="patient"):
        call_policy = Policy(on((Overloaded, EndpointUnavailable), retry(times=100, backoff=Backoff(0.5, max_s=2.0))))

    id = ""
    ended = 0
    async with FakeAnthropic(slowly, split_seed=seed) as model:
        for life in range(6):
            ears: list[Ear] = []
            async with open_at(tmp_path, World(), model, Patient) as system:
                if not id:
                    id = (await system.actor(Patient, "p").run.submit("Tell")).id
                job = system.job(id, Patient.run)
                for _ in range(6):
                    ears.append(Ear(job))
                    await asyncio.sleep(chance.random())
                if life == 5:
                    assert await job == STORY
            await asyncio.wait([ear.task for ear in ears])
            for ear in ears:
                seen = as_shown(ear.events)
                if isinstance(ear.task.exception(), SystemClosed):
                    assert any(seen == shown[at : at + len(seen)] for at in range(len(shown)))
                else:
                    assert ear.task.exception() is None
                    assert seen == shown[-len(seen) :]
                    ended += 1
    assert ended


# --- when nothing comes ---------------------------------------------------------------------------------------------------


async def test_suspended_actor_ends_the_stream_with_the_reason_and_it_goes_on_after_resume(tmp_path: Path) -> None:
    class Held(Teller, kind="held"):
        call_policy = Policy(on(EndpointUnavailable, suspend()))

    script = [drops(900, answer=says(STORY)), says(STORY)]
    async with FakeAnthropic(*script) as model, open_at(tmp_path, World(), model, Held) as system:
        held = system.actor(Held, "h")
        job = await held.run.submit("Tell")
        ear = Ear(job)
        with pytest.raises(ActorSuspended, match="EndpointUnavailable"):
            await ear.task
        with pytest.raises(ActorSuspended, match="EndpointUnavailable"):
            await all_of(job.stream())
        await system.resume(held)

        assert ear.text
        assert told(await all_of(job.stream()))[-2:] == [STORY, Finished()]


async def test_closing_system_ends_the_stream_with_an_error(tmp_path: Path) -> None:
    outside = World()
    async with FakeAnthropic() as model:
        async with open_at(tmp_path, outside, model, Plain) as system:
            job = await system.actor(Plain, "p").work.submit("stop")
            ear = Ear(job)
            await outside.wait("working")
        with pytest.raises(SystemClosed):
            await ear.task
        with pytest.raises(SystemClosed):
            job.stream()


# --- what listening costs -------------------------------------------------------------------------------------------------


async def test_leaving_early_leaves_nothing_behind(tmp_path: Path) -> None:
    async with FakeAnthropic(holds(answer=says(STORY))) as model, open_at(tmp_path, World(), model, Teller) as system:
        job = await system.actor(Teller, "t").run.submit("Tell")
        await model.wait_held()
        gc.collect()
        gc.disable()
        try:
            async for _ in job.stream():
                break
            task = asyncio.ensure_future(all_of(job.stream()))
            await settled()
            task.cancel()
            await asyncio.wait([task])
            del task
            stream = job.stream()
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            assert await all_of(stream) == []
            hub = system.streams.hub_of(int(job.id.partition("-")[0]))
            assert len(hub.listeners) == 0
            del hub
        finally:
            gc.enable()
        model.release()
        assert await job == STORY
        assert len(system.streams) == 0


async def test_wait_that_is_cancelled_can_be_begun_again(tmp_path: Path) -> None:
    async with FakeAnthropic(holds(answer=says(STORY))) as model, open_at(tmp_path, World(), model, Teller) as system:
        job = await system.actor(Teller, "t").run.submit("Tell")
        stream = job.stream()
        waiting = asyncio.ensure_future(anext(stream))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await model.wait_held()
        model.release()

        assert told(await all_of(stream)) == [STORY, Finished()]


async def test_listener_who_is_too_slow_is_cut_off_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "BEHIND_MAX", 4)
    async with FakeAnthropic(holds(answer=says(STORY))) as model, open_at(tmp_path, World(), model, Teller) as system:
        job = await system.actor(Teller, "t").run.submit("Tell")
        slow = job.stream()
        heard = [await anext(slow)]
        await model.wait_held()
        model.release()

        assert await job == STORY
        with pytest.raises(LimitExceeded, match=r"stream\(\) of job .* call stream\(\) again"):
            await all_of(slow)
        assert heard
        assert await all_of(job.stream()) == [Finished()]


async def test_answer_too_long_to_be_kept_is_missed_by_who_comes_late(tmp_path: Path) -> None:
    long = "word " * 1_000
    limits = Limits(grace_s=0.05, payload_bytes=2_000)
    async with (
        FakeAnthropic(holds(6_000, answer=says(long))) as model,
        open_at(tmp_path, World(), model, Teller, limits=limits) as system,
    ):
        job = await system.actor(Teller, "t").run.submit("Tell")
        async with listening(job) as early:
            await model.wait_held()
            await settled()
            async with listening(job) as late:
                await settled()
                model.release()
                await asyncio.gather(early.task, late.task)

    assert told(early.events) == [long, Finished()]
    assert late.events == [Finished()]


async def test_provider_that_shows_nothing_has_its_text_in_one_piece(tmp_path: Path) -> None:
    class Silent:
        async def call(self, request: ModelRequest, **_: Any) -> ModelAnswer:
            if len(request.messages) > 1:
                return ModelAnswer("2", "m", [Text(STORY)], "end_turn", Usage())
            return ModelAnswer(
                "1", "m", [Text("Look: "), ToolCall("c", "look", {"where": "Rome"})], "tool_use", Usage()
            )

        async def close(self) -> None:
            pass

    async with System(tmp_path / "a.db", [Teller], endpoints=[Endpoint(Silent())], resources=[World()]) as system:
        job = await system.actor(Teller, "t").run.submit("Tell")

        assert await all_of(job.stream()) == [
            TextDelta("Look: "),
            ToolCalled("c", "look"),
            TextDelta(STORY),
            Finished(),
        ]


async def test_what_an_earlier_attempt_still_writes_is_not_shown(tmp_path: Path) -> None:
    writers: list[Callable[[str], None]] = []

    class Stubborn:
        async def call(self, request: ModelRequest, *, on_text: Any = None, **_: Any) -> ModelAnswer:
            writers.append(on_text)
            for write in writers:
                write(f"{len(writers)}")
            if len(writers) == 1:
                raise RateLimited("later", sent=True)
            return ModelAnswer("1", "m", [Text("2")], "end_turn", Usage())

        async def close(self) -> None:
            pass

    async with System(tmp_path / "a.db", [Teller], endpoints=[Endpoint(Stubborn())], resources=[World()]) as system:
        job = await system.actor(Teller, "t").run.submit("Tell")

        events = told(await all_of(job.stream()))
    assert events == ["1", Restarted("RateLimited: later"), "2", Finished()]


# --- approvals --------------------------------------------------------------------------------------------------------------


@tool(approval="always")
async def pay(cents: int) -> str:
    """Pay."""
    world().did.append(cents)
    await world().stop_at("paying")
    return f"{cents} paid"


class Clerk(Agent[str], kind="clerk"):
    model = "claude-sonnet-5-5"
    tools = [pay]


class Boss(Agent[str], kind="boss"):
    model = "claude-sonnet-5-5"
    tools = [Clerk.run]


def has_approval(events: list[StreamEvent]) -> bool:
    return any(isinstance(event, ApprovalRequested) for event in events)


@pytest.mark.parametrize("cls", [Clerk, Boss])
async def test_approval_is_told_to_the_job_that_waits_for_it(tmp_path: Path, cls: type[Agent[str]]) -> None:
    outside = World()
    script: list[Answer] = [calls(pay, 5), says("Paid.")]
    if cls is Boss:
        script = [calls("clerk", prompt="pay"), *script, says("He has paid.")]
    async with FakeAnthropic(*script) as model, open_at(tmp_path, outside, model, Boss, Clerk) as system:
        job = await system.actor(cls, "c").run.submit("Pay")
        async with listening(job) as early:
            before = await early.until(has_approval)
            async with listening(job) as late:
                seen = await late.until(has_approval)
                (approval,) = await job.approvals()
                await approval.approve()
                await outside.wait("paying")
            async with listening(job) as later:
                await settled()
                outside.open("paying")
                await asyncio.gather(early.task, later.task)

    called = "clerk" if cls is Boss else "pay"
    asked = ApprovalRequested(approval.id, "pay")
    assert told(before) == told(seen) == [called, asked]
    assert told(early.events) == [called, asked, script[-1].blocks[0]["text"], Finished()]
    assert told(later.events) == [called, script[-1].blocks[0]["text"], Finished()]  # It is decided.


@pytest.mark.parametrize("life", ["same", "closed", "killed", "killed before it was parked"])
async def test_job_that_is_parked_for_an_approval_shows_what_it_waits_for(tmp_path: Path, life: str) -> None:
    outside = World()
    outside.open("paying")
    limits = Limits(grace_s=0.05, park_after_s=2.0)
    script = [together(says("I ask. "), calls(pay, 5)), says("Paid.")]

    async def heard_until_asked(job: Job[str]) -> list[StreamEvent]:
        async with listening(job) as ear:
            return await ear.until(has_approval)

    async def opened(system: System, id: str) -> list[Any]:
        job = system.job(id, Clerk.run)
        async with listening(job) as ear:
            await ear.until(has_approval)
            async with listening(job) as late:
                await late.until(has_approval)
                assert ear.events == late.events
                await asyncio.sleep(10)
                (approval,) = await job.approvals()
                await approval.approve()
                assert await ear.task == ear.events
                assert await late.task == late.events
                assert told(ear.events) == told(late.events)
                return told(ear.events)

    async with FakeAnthropic(*script) as model:
        system = open_at(tmp_path, outside, model, Clerk, limits=limits)
        async with dying(system) if life.startswith("killed") else system:
            job = await system.actor(Clerk, "c").run.submit("Pay")
            before = await heard_until_asked(job)
            if life != "killed before it was parked":
                await asyncio.sleep(10)
                gc.collect()
                assert len(system.streams) == 0
            shown = await opened(system, job.id) if life == "same" else []
        if life != "same":
            async with open_at(tmp_path, outside, model, Clerk, limits=limits) as system:
                shown = await opened(system, job.id)

    called = ["I ask. ", "pay", before[-1]]
    assert told(before) == called
    assert shown == [*called, "Paid.", Finished()]
    assert outside.did == [5]
