"""A workload with every feature dies at every boundary, and ends like the run that never died."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from understudy import (
    Actor,
    Agent,
    Backoff,
    Endpoint,
    HandlerFailed,
    Limits,
    OutcomeUnknown,
    Policy,
    System,
    current_turn,
    handler,
    on,
    query,
    restart,
    step,
    tool,
)
from understudy.endpoint.model import ModelAnswer, ModelRequest, Text, ToolCall, ToolResult, Usage
from understudy.events import ModelCalled, StepFinished, TurnFinished
from understudy.testing.crash import World, crash_at_every_point

pytestmark = pytest.mark.watchdog(240)


class Names(msgspec.Struct):
    names: list[str] = []


class Added(msgspec.Struct):
    name: str


class Declined(Exception):
    pass


def witness(what: str, name: str) -> None:
    turn = current_turn()
    turn.resource(World).note(what, turn.id, name)


async def acted(name: str) -> None:
    witness("begin", name)
    await asyncio.sleep(0.05)
    witness("end", name)


@step
async def left(name: str) -> str:
    await acted("left")
    return f"left of {name}"


@step
async def right(name: str) -> str:
    await acted("right")
    return f"right of {name}"


@step(raises=[Declined])
async def decline(name: str) -> str:
    await acted("decline")
    raise Declined(name)


@step(interrupted="fail")
async def pay(name: str, idempotency_key: str) -> str:
    await acted("pay")
    return f"receipt for {name}"


class Log(Actor[Names], kind="log"):
    """Remembers names."""

    @handler
    async def add(self, name: str) -> int:
        """Remember a name."""
        self.state.names.append(name)
        return len(self.state.names)

    @handler
    async def add_slowly(self, name: str) -> int:
        await asyncio.sleep(0.07)
        self.state.names.append(name)
        return len(self.state.names)

    @query
    async def all(self) -> list[str]:
        return self.state.names


class Ledger(Actor[Names, Added], kind="ledger"):
    snapshot_every = 3

    def apply(self, event: Added) -> None:
        self.state.names.append(event.name)

    @handler
    async def post(self, name: str) -> int:
        self.record(Added(name))
        self.record(Added(f"{name} again"))
        return len(self.state.names)

    @query
    async def all(self) -> list[str]:
        return self.state.names


class Flow(Actor[Names], kind="flow"):
    policy = Policy(on(ConnectionError, restart(times=3, backoff=Backoff(0.1))))

    @handler
    async def run(self, name: str) -> str:
        one, two = await asyncio.gather(left(name), right(name))
        number = await self.actor(Log, "asked").add(name)
        job = await self.actor(Log, "submitted").add.submit(name)
        await self.actor(Log, "told").add.tell(name)
        await self.actor(Log, "later").add.options(delay_s=20).tell(name)
        await self.actor(Log, "keyed").add.options(key="once").tell("once for all")
        await self.actor(Ledger, "books").post.tell(name)
        third = await job
        try:
            receipt = await pay(name, str(self.turn.uuid()))
        except OutcomeUnknown:
            receipt = "unknown"
        current_turn().resource(World).note("receipt", name, receipt)
        self.state.names.append(name)
        return f"{one}, {two}, {number}, {third}"

    @handler
    async def both(self, name: str) -> list[int]:
        """Ask two actors side by side, one of them with a key."""
        one = self.actor(Log, "side-a").add_slowly(name)
        two = self.actor(Log, "side-b").add_slowly.options(key=name)(name)
        return list(await asyncio.gather(one, two))

    @handler(raises=[Declined])
    async def refuse(self, name: str) -> None:
        self.state.names.append("never kept")
        await self.actor(Log, "told").add.tell("never told")
        await decline(name)

    @handler
    async def retried(self, name: str) -> str:
        done = await left(name)
        await self.actor(Log, "told").add.tell(f"{name} told")
        self.state.names.append(name)
        if self.turn.envelope.attempts == 0:
            raise ConnectionError("the first attempt fails")
        return done

    @handler
    async def broken(self, name: str) -> None:
        await right(name)
        await self.actor(Log, "told").add.tell("never told")
        raise ValueError(name)

    @query
    async def all(self) -> list[str]:
        return self.state.names


@tool
async def lookup(word: str) -> str:
    """Look a word up."""
    await acted("lookup")
    return f"{word} means much"


class Clerk(Agent[str], kind="clerk"):
    model = "scripted"
    tools = [lookup, Log.add]


class Scripted:
    """A model that asks for two tools at once, then answers."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def call(self, request: ModelRequest, **_callbacks: object) -> ModelAnswer:
        last = request.messages[-1].content
        results = [block for block in last if isinstance(block, ToolResult)]
        number = sum(1 for message in request.messages if message.role == "assistant")
        self.world.note("model", "paid", number)
        await asyncio.sleep(0.05)
        usage = Usage(input_tokens=10, output_tokens=10)
        if results:
            text = " / ".join(result.content for result in results)
            return ModelAnswer(f"m{number}", "scripted", [Text(text)], "end_turn", usage)
        content = [
            ToolCall("call-1", "lookup", {"word": "supervisor"}),
            ToolCall("call-2", "log_add", {"name": "from the model"}),
        ]
        return ModelAnswer(f"m{number}", "scripted", list(content), "tool_use", usage)

    async def close(self) -> None:
        pass


async def drained(system: System) -> None:
    while any([row.waiting async for row in system.actors()]):
        await asyncio.sleep(1.0)


async def workload(world: World) -> dict[str, Any]:
    system = System(
        world.store(),
        [Log, Ledger, Flow, Clerk],
        endpoints=[Endpoint(Scripted(world))],
        resources=[world],
        limits=Limits(window_messages=2),
    )
    async with system:
        plain, books = system.actor(Log, "plain"), system.actor(Ledger, "own")
        flow, clerk = system.actor(Flow, "f"), system.actor(Clerk, "c")

        async def plainly() -> None:
            for number in range(3):
                await world.once(f"tell {number}", lambda number=number: plain.add.tell(f"tell {number}"))
                await world.once(f"ask {number}", lambda number=number: plain.add(f"ask {number}"))

        async def burst() -> None:
            many = system.actor(Log, "many")
            await asyncio.gather(*(many.add.options(key=f"b{each}").tell(str(each)) for each in range(6)))

        async def in_order() -> str:
            return await flow.run.options(key="one")("one")

        async def submitted() -> list[Any]:
            sent = await flow.run.options(key="two").submit("two")
            await system.actor(Log, "later").add.options(key="timer", delay_s=30).tell("timer")
            with pytest.raises(Declined, match="no"):
                await flow.refuse.options(key="refused")("no")
            with pytest.raises(HandlerFailed, match="ValueError: bad"):
                await flow.broken.options(key="broken")("bad")
            retried = await flow.retried.options(key="retried")("again")
            return [await sent, retried]

        async def others() -> list[Any]:
            both = await system.actor(Flow, "g").both.options(key="both")("x")
            posted = [await books.post.options(key=str(each))(f"entry {each}") for each in range(2)]
            return [both, posted]

        async def asked() -> str:
            return await clerk.run.options(key="question")("What is a supervisor?")

        replies = await asyncio.gather(in_order(), submitted(), others(), asked(), burst(), plainly())
        await drained(system)
        logs = ("asked", "submitted", "told", "later", "keyed", "side-a", "side-b", "many", "c")
        states = {name: await system.actor(Log, name).all() for name in logs}
        if world.fate("tell 2") != "unsent":
            world.note("plain", *await plain.all())
        finished = [
            (event.step, event.span.partition("/")[0], event.life)
            for event in await stored_events(system, StepFinished)
            if event.error is None or event.error == "Declined"
        ]
        world.note("finished", *finished)
        world.note("called", *[(event.span, event.life) for event in await stored_events(system, ModelCalled)])
        turns = Counter(event.span for event in await stored_events(system, TurnFinished))
        return {
            # "later" gets one of its messages from a turn and one from outside: their order is not promised.
            "states": {name: sorted(names) if name in ("later", "told") else names for name, names in states.items()},
            "flow": sorted(await flow.all()),
            "books": [sorted(await system.actor(Ledger, "books").all()), await books.all()],
            "replies": [sorted(map(str, reply)) if isinstance(reply, list) else reply for reply in replies[:4]],
            "conversation": [[message.role, message.text] for message in await clerk.messages()],
            "dead": [[letter.handler, letter.error] async for letter in system.dead_letters()],
            "turns committed twice": [span for span, count in turns.items() if count > 1],
            "leftovers": await leftovers(system),
        }


async def stored_events(system: System, kind: type[Any]) -> list[Any]:
    await system.committer.wait_durable()
    decode = system.registry.decoder(kind)
    found = []
    after = 0
    while rows := await system.store.traces(None, after, 1_000):
        after = rows[-1].no
        for row in rows:
            try:
                found.append(decode(row.body))
            except msgspec.ValidationError:
                continue
    return found


async def leftovers(system: System) -> dict[str, int]:
    """Count rows that nothing will ever need again."""
    reader: Any = system.store

    def count(connection: Any) -> dict[str, int]:
        return {
            "messages": connection.execute("SELECT count(*) FROM message").fetchone()[0],
            "journal of nobody": connection.execute(
                "SELECT count(*) FROM journal WHERE message NOT IN (SELECT no FROM dead_letter)"
            ).fetchone()[0],
        }

    return await reader._read(count)


def check(world: World, result: Any) -> None:
    notes = world.notes()
    lives = max(note[0] for note in notes)
    begun: dict[tuple[str, str], list[int]] = {}
    for life, what, *facts in notes:
        if what == "begin":
            begun.setdefault((facts[0], facts[1]), []).append(life)
    for (turn, name), in_lives in begun.items():
        assert len(in_lives) == len(set(in_lives)), f"{name} of turn {turn} began twice in one life: {in_lives}"
        if name == "pay":
            assert len(in_lives) == 1, (
                f"pay of turn {turn} is declared interrupted='fail' and began in lives {in_lives}"
            )
    finished = [note[2:] for note in notes if note[1] == "finished"][-1]
    assert len({(name, turn) for name, turn, _ in finished}) == len(finished), f"steps finished twice: {finished}"
    for name, turn, life in finished:
        for (begun_turn, begun_name), in_lives in begun.items():
            if begun_name == name and begun_turn.partition("-")[0] == turn:
                assert max(in_lives) <= life, (
                    f"{name} of turn {turn} was journaled in life {life} and began in {in_lives}"
                )
    called = [note[2:] for note in notes if note[1] == "called"][-1]
    assert len({span for span, _ in called}) == len(called), (
        f"model calls were paid again after they were journaled: {called}"
    )
    paid = Counter(note[3] for note in notes if note[1] == "model")
    assert all(count <= lives for count in paid.values()), paid
    # A payment that turned out unknown must have been in flight when a life ended.
    unknown = [note[2] for note in notes if note[1:2] == ["receipt"] and note[3] == "unknown"]
    assert not unknown or lives > 1, "a payment is unknown though nothing crashed"
    seen = next(note[2:] for note in reversed(notes) if note[1] == "plain")
    for number in range(3):
        for sent in (f"tell {number}", f"ask {number}"):
            fate = world.fate(sent)
            assert seen.count(sent) <= 1, f"'{sent}' was applied {seen.count(sent)} times: {seen}"
            assert fate != "acknowledged" or sent in seen, f"'{sent}' was acknowledged and is lost: {seen}"
    order = [f"{what} {number}" for number in range(3) for what in ("tell", "ask")]
    assert seen == [name for name in order if name in seen], f"messages of one sender changed places: {seen}"
    names = result["states"]["many"]
    assert sorted(names) == sorted(set(names)), f"a keyed message was applied twice: {names}"


def test_a_run_that_dies_at_any_boundary_ends_like_the_run_that_never_died(tmp_path: Path) -> None:
    report = crash_at_every_point(workload, directory=tmp_path, check=check)

    assert report.crashes == len(report.boundaries) > 60
    kinds = Counter(boundary.kind for boundary in report.boundaries)
    assert min(kinds.values()) >= 10
    assert len(kinds) == 4


def test_a_run_that_dies_again_while_it_recovers_ends_like_the_run_that_never_died(tmp_path: Path, seed: int) -> None:
    report = crash_at_every_point(workload, directory=tmp_path, check=check, only=[], again=25, seed=seed)

    assert report.crashes >= 25
