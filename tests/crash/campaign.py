"""A program that kills a loaded system with SIGKILL, hundreds of times, and then checks every promise.

`python tests/crash/campaign.py --kills 500 --seed 7 --directory D`; ends with 0, or with 1 and what was broken.

This process imports everything once and starts no thread; each life of the system is a fork of it, with all it needs
to know in memory, and reports what was acknowledged through a pipe. Bodies of steps write to a file, as a payment
service would. The model endpoint is a third process. All three see what the killed process can no longer deny.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import select
import signal
import sqlite3
import sys
import time
import traceback
from collections import Counter as Count
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import anthropic  # noqa: F401 - each life would import it anew
import msgspec

from understudy import (
    Actor,
    Agent,
    AnthropicProvider,
    Endpoint,
    Limits,
    OutcomeUnknown,
    System,
    current_turn,
    handler,
    query,
    step,
    tool,
)
from understudy.events import Event, ModelCalled, StepFinished, TurnFinished
from understudy.mailbox.rows import read_trace
from understudy.mailbox.sqlite import SQLiteStore
from understudy.testing import FakeAnthropic, FakeRequest, calls, says

GENERATION = 25  # so many lives share their actors; then new ones keep states small


class Witness:
    """Where step bodies leave traces that a crash cannot undo."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.life = 0
        self.dice = random.Random()

    async def act(self, name: str) -> None:
        turn = current_turn()
        self.write("begin", turn.id, name)
        await asyncio.sleep(self.dice.choice((0.0, 0.001, 0.004)))
        self.write("end", turn.id, name)

    def write(self, *facts: Any) -> None:
        os.write(self.file, json.dumps([self.life, *facts]).encode() + b"\n")


async def act(name: str) -> None:
    await current_turn().resource(Witness).act(name)


@step
async def left(label: str) -> str:
    await act("left")
    return f"left {label}"


@step
async def right(label: str) -> str:
    await act("right")
    return f"right {label}"


@step(interrupted="fail")
async def pay(label: str, idempotency_key: str) -> str:
    await act("pay")
    return f"paid {label}"


@tool
async def lookup(word: str) -> str:
    """Look a word up."""
    await act("lookup")
    return f"{word} explained"


class Seen(msgspec.Struct):
    by: dict[str, list[int]] = {}  # sender -> its numbers, in the order in which they came


class Noted(msgspec.Struct):
    sender: str
    number: int


class Counter(Actor[Seen], kind="counter"):
    @handler
    async def add(self, sender: str, number: int) -> int:
        self.state.by.setdefault(sender, []).append(number)
        return number

    @handler
    async def add_slowly(self, sender: str, number: int) -> int:
        """Be under way for a while, so that the process dies between question and answer."""
        await asyncio.sleep(current_turn().resource(Witness).dice.choice((0.0, 0.003, 0.01)))
        self.state.by.setdefault(sender, []).append(number)
        return number

    @query
    async def all(self) -> dict[str, list[int]]:
        return self.state.by


class Ledger(Actor[Seen, Noted], kind="ledger"):
    snapshot_every = 7

    def apply(self, event: Noted) -> None:
        self.state.by.setdefault(event.sender, []).append(event.number)

    @handler
    async def add(self, sender: str, number: int) -> int:
        self.record(Noted(sender, number))
        return number

    @query
    async def all(self) -> dict[str, list[int]]:
        return self.state.by


class Relay(Actor[Seen], kind="relay"):
    """Asks, tells and submits within one turn."""

    @handler
    async def add(self, sender: str, number: int, where: str) -> int:
        asked = self.actor(Counter, f"asked-{where}")
        await asked.add_slowly(sender, number)
        await asyncio.gather(
            self.actor(Counter, f"side1-{where}").add(sender, number),
            self.actor(Counter, f"side2-{where}").add_slowly(sender, number),
            self.actor(Counter, f"side3-{where}").add.options(key=f"{sender}/{number}")(sender, number),
        )
        job = await self.actor(Counter, f"submitted-{where}").add.submit(sender, number)
        await self.actor(Counter, f"told-{where}").add.tell(sender, number)
        await self.actor(Counter, f"late-{where}").add.options(delay_s=0.01).tell(sender, number)
        await self.actor(Ledger, f"booked-{where}").add.tell(sender, number)
        self.state.by.setdefault(sender, []).append(number)
        return await job

    @query
    async def all(self) -> dict[str, list[int]]:
        return self.state.by


class Worker(Actor[dict[str, str]], kind="worker"):
    """Works in steps."""

    @handler
    async def work(self, label: str) -> str:
        one, two = await asyncio.gather(left(label), right(label))
        try:
            receipt = await pay(label, str(self.turn.uuid()))
        except OutcomeUnknown:
            receipt = "unknown"
        self.state[label] = f"{receipt} after {self.state.get(label)}"
        return f"{one}, {two}, {receipt}"

    @query
    async def all(self) -> dict[str, str]:
        return self.state


class Clerk(Agent[str], kind="clerk"):
    model = "claude-sonnet-5-5"
    tools = [lookup]


async def answer(request: FakeRequest) -> Any:
    await asyncio.sleep(random.random() * 0.01)
    label = str(request.messages[0]["content"][0]["text"])
    if request.messages[-1]["role"] == "user" and len(request.messages) > 1:
        return says(f"done {label}")
    return calls("lookup", word=label)


# One life ----------------------------------------------------------------------------------------------------------


class Book:
    """What the world was told, over all lives."""

    def __init__(self) -> None:
        self.acknowledged: list[tuple[str, str, str, int]] = []  # kind, id, sender, number
        self.keyed: dict[str, tuple[str, str]] = {}  # key -> kind and id of its actor, as long as nobody has a reply
        self.jobs: dict[str, tuple[str, str]] = {}  # id -> handler, label
        self.replies: dict[str, Any] = {}  # job or key -> reply
        self.broken: list[str] = []
        self.epochs: list[int] = []

    def take(self, line: list[Any]) -> None:
        what, *facts = line
        if what == "ack":
            self.acknowledged.append(tuple(facts))
        elif what == "trying":
            self.keyed[facts[0]] = (facts[1], facts[2])
        elif what == "job":
            self.jobs[facts[0]] = (facts[1], facts[2])
        elif what == "reply":
            name, reply = facts
            if name in self.replies and self.replies[name] != reply:
                self.broken.append(f"{name} was answered {self.replies[name]!r} first and {reply!r} later")
            self.replies[name] = reply
        elif what == "open":
            self.epochs.append(facts[0])
        elif what == "broken":
            self.broken.append(facts[0])


class Life:
    """One life of the system, in a forked process."""

    def __init__(self, campaign: Campaign, number: int, pipe: int, how: str) -> None:
        self.campaign = campaign
        self.number = number
        self.book = campaign.book
        self.pipe = pipe
        self.how = how
        self.dice = random.Random(f"{campaign.seed}/{number}")
        self.generation = number // GENERATION

    def tell(self, *line: Any) -> None:
        os.write(self.pipe, json.dumps(line).encode() + b"\n")

    async def run(self) -> None:
        witness = self.campaign.witness
        agents = self.dice.random() < 0.4
        system = System(
            # Some lives wait for the disk, so that the kill meets commits under way; more would be slow and show no more.
            SQLiteStore(self.campaign.path, durability=self.dice.choice(("full", "process", "process", "process"))),
            [Counter, Ledger, Relay, Worker, Clerk],
            endpoints=[Endpoint(AnthropicProvider(base_url=self.campaign.url, api_key="fake"))],
            resources=[witness],
            limits=Limits(
                window_messages=self.dice.choice((2, 8, 256)),
                active_max=self.dice.choice((6, 20_000)),
                idle_s=self.dice.choice((0.01, 300.0)),
                recoveries_max=self.dice.choice((2, 256)),
                crashes_max=1_000_000,  # every message here is innocent
                grace_s=self.dice.choice((0.005, 1.0)),
            ),
        )
        async with system:
            self.system = system
            witness.life = system.life
            witness.dice = self.dice
            self.tell("open", system.life)
            work = [] if self.how == "quiet" else self.load(agents)
            if self.how == "last":
                work = [self.rejoin, partial(self.keep_trying, all_of_them=True)]
            tasks = [asyncio.create_task(each()) for each in work]
            if self.how == "close":
                await asyncio.sleep(self.dice.random() * 0.05)
                for task in tasks:
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    self.tell("broken", f"life {self.number}: {''.join(traceback.format_exception(result))}")
            if self.how == "last":
                await self.drain()
                (self.campaign.directory / "end").write_bytes(msgspec.json.encode(await self.collect()))
            elif self.how != "close":
                await asyncio.sleep(60)  # until the end comes

    def load(self, agents: bool) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        work = [
            partial(self.send, Counter, f"c{self.generation}.1", "tell"),
            partial(self.send, Counter, f"c{self.generation}.1", "ask"),
            partial(self.send, Counter, f"c{self.generation}.2", "burst"),
            partial(self.send, Ledger, f"l{self.generation}", "tell"),
            partial(self.send, Ledger, f"l{self.generation}", "ask"),
            self.late,
            partial(self.relay, "submit"),
            partial(self.relay, "tell"),
            self.steps,
            self.steps,
            self.keep_trying,
            self.rejoin,
        ]
        if agents:
            work += [partial(self.agent, each) for each in range(2)]
        self.dice.shuffle(work)
        return work[: self.dice.randint(3, len(work))]

    def sender(self, what: str) -> str:
        return f"{self.number}.{what}.{self.dice.randrange(1 << 30)}"

    async def send(self, kind: type[Any], id: str, how: str) -> None:
        actor = self.system.actor(kind, id)
        sender = self.sender(how)

        async def one(number: int) -> None:
            await (actor.add(sender, number) if how == "ask" else actor.add.tell(sender, number))
            self.tell("ack", kind.kind, id, sender, number)

        for start in range(0, 24, 6):
            if how == "burst":
                await asyncio.gather(*(one(number) for number in range(start, start + 6)))
            else:
                for number in range(start, start + 6):
                    await one(number)

    async def late(self) -> None:
        id = f"t{self.generation}"
        for number in range(4):
            sender = self.sender(f"late{number}")
            delay_s = self.dice.choice((0.0, 0.02, 0.3))
            await self.system.actor(Counter, id).add.options(delay_s=delay_s).tell(sender, 0)
            self.tell("ack", "counter", id, sender, 0)

    async def relay(self, how: str) -> None:
        relay = self.system.actor(Relay, f"r{self.generation}.{how}")
        sender = self.sender(f"relay-{how}")
        for number in range(4):
            if how == "submit":
                job = await relay.add.submit(sender, number, str(self.generation))
                self.tell("job", job.id, "Relay.add", str(number))
                reply = await job
                self.tell("reply", job.id, reply)
            else:
                await relay.add.tell(sender, number, str(self.generation))
            self.tell("ack", "relay", f"r{self.generation}.{how}", sender, number)

    async def steps(self) -> None:
        worker = self.system.actor(Worker, f"w{self.generation}.{self.dice.randrange(2)}")
        for _ in range(3):
            label = self.sender("work")
            job = await worker.work.submit(label)
            self.tell("job", job.id, "Worker.work", label)
            self.tell("reply", job.id, await job)

    async def agent(self, each: int) -> None:
        label = self.sender(f"agent{each}")
        job = await self.system.actor(Clerk, label).run.submit(label)
        self.tell("job", job.id, "Clerk.run", label)
        self.tell("reply", job.id, await job)

    async def keep_trying(self, *, all_of_them: bool = False) -> None:
        """Send keyed messages until each has a reply; those of earlier lives first, and some answered ones too."""
        mine = [key for key in self.book.keyed if key not in self.book.replies]
        answered = [key for key in self.book.keyed if key in self.book.replies]
        mine += self.dice.sample(answered, min(5, len(answered)))
        if not all_of_them:
            mine += [self.sender("key") for _ in range(4)]
            self.dice.shuffle(mine)
        for key in mine:
            kind, id = self.book.keyed.get(key) or (self.dice.choice(("counter", "ledger")), f"k{self.generation}")
            self.tell("trying", key, kind, id)
            actor: Any = self.system.actor(Counter if kind == "counter" else Ledger, id)
            how = self.dice.randrange(3)
            keyed = actor.add.options(key=key)
            if how == 0:
                reply = await keyed(key, 0)
            elif how == 1:
                reply = await (await keyed.submit(key, 0))
            else:
                first, second = await asyncio.gather(keyed(key, 0), keyed(key, 0))
                reply = first if first == second else f"{first} and {second}"
            self.tell("reply", key, reply)
            self.tell("ack", kind, id, key, 0)

    async def rejoin(self) -> None:
        """Wait for the jobs of earlier lives."""
        handlers: dict[str, Any] = {"Relay.add": Relay.add, "Worker.work": Worker.work, "Clerk.run": Clerk.run}
        old = [id for id in self.book.jobs if id not in self.book.replies]
        if self.how != "last":
            old = old[-20:]

        async def one(id: str) -> None:
            self.tell("reply", id, await self.system.job(id, handlers[self.book.jobs[id][0]]))

        await asyncio.gather(*(one(id) for id in old))

    async def drain(self) -> None:
        while any([row.waiting async for row in self.system.actors()]):
            await asyncio.sleep(0.02)

    async def collect(self) -> dict[str, Any]:
        states: dict[str, Any] = {}
        kinds: dict[str, Any] = {"counter": Counter, "ledger": Ledger, "relay": Relay, "worker": Worker}
        for row in [row async for row in self.system.actors()]:
            if row.kind in kinds:
                states[f"{row.kind}/{row.id}"] = await self.system.actor(kinds[row.kind], row.id).all()
        return {
            "states": states,
            "dead": [(each.handler, each.message) async for each in self.system.dead_letters()],
            "suspended": [row.id async for row in self.system.actors() if row.status != "active"],
        }


# The parent --------------------------------------------------------------------------------------------------------


class Campaign:
    """Kills and restarts until it is enough, then checks."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.path = directory / "store.db"
        self.seed = seed
        self.dice = random.Random(seed)
        self.book = Book()
        self.witness = Witness(directory / "witness")
        self.url = ""
        self.kills = 0

    def run(self, kills: int) -> list[str]:
        """Return what was broken."""
        model, self.url = _model_process(self.directory / "paid")
        number = 0
        try:
            while self.kills < kills and not self.book.broken:
                number += 1
                self._live(number, self.dice.choices(("load", "quiet", "close"), (6, 2, 1))[0], *self._lifetime_s())
            self._live(number + 1, "last", 100.0, True)
        finally:
            os.kill(model, signal.SIGKILL)
            os.waitpid(model, 0)
        return self.book.broken or list(self.verify())

    def _lifetime_s(self) -> tuple[float, bool]:
        """Return how long a life lasts, and whether that counts from its start or from when the store was open."""
        if self.dice.random() < 0.15:
            return self.dice.random() * 0.06, True
        return 0.002 + self.dice.random() ** 2 * 0.16, False

    def _live(self, number: int, how: str, lifetime_s: float, from_start: bool) -> None:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _child(lambda: Life(self, number, writer, how).run(), self.directory / f"error-{number}")
        os.close(writer)
        end = time.monotonic() + (lifetime_s if from_start else 10.0)
        rest = b""
        killed = False
        while True:
            left_s = end - time.monotonic()
            if left_s <= 0 and not killed:
                os.kill(child, signal.SIGKILL)
                killed = True
            if not select.select([reader], [], [], None if killed else max(0.0, left_s))[0]:
                continue
            chunk = os.read(reader, 1 << 16)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self.book.take(fact := json.loads(line))
                if fact[0] == "open" and not from_start:
                    end = time.monotonic() + lifetime_s
        os.close(reader)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.kills += status == -signal.SIGKILL
        if status not in (0, -signal.SIGKILL):
            error = self.directory / f"error-{number}"
            self.book.broken.append(
                f"life {number} ({how}) failed with {status}:\n{error.read_text() if error.exists() else ''}"
            )
        if how == "last" and killed:
            self.book.broken.append(f"the last life did not come to an end within {lifetime_s:g} s")

    # --- the promises ----------------------------------------------------------------------------------------------

    def verify(self) -> Any:
        """Yield each promise that was broken."""
        book = self.book
        end = json.loads((self.directory / "end").read_text())
        states: dict[str, dict[str, list[int]]] = end["states"]
        if end["dead"]:
            yield f"dead letters, and nothing was wrong with them: {end['dead'][:5]}"
        if end["suspended"]:
            yield f"suspended: {end['suspended']}"
        for kind, id, sender, number in book.acknowledged:
            times = states.get(f"{kind}/{id}", {}).get(sender, []).count(number)
            if times != 1:
                yield f"{sender}:{number} was acknowledged by {kind}/{id} and applied {times} times"
        for name, state in states.items():
            if name.startswith("worker/"):
                twice = [label for label, receipt in state.items() if not str(receipt).endswith("after None")]
                if twice:
                    yield f"{name} finished turns twice: {twice}"
                continue
            for sender, numbers in state.items():
                if len(set(numbers)) != len(numbers):
                    yield f"{name} applied messages of {sender} twice: {numbers}"
                elif numbers != sorted(numbers) and not name.startswith("counter/late-"):
                    yield f"{name} got messages of {sender} in the order {numbers}"
        yield from self._verify_relays(states)
        for key, reply in book.replies.items():
            if key in book.keyed and reply != 0:
                yield f"key {key} was answered {reply!r}"
            if key in book.jobs:
                yield from self._verify_job(*book.jobs[key], reply)
        missing = [id for id in book.jobs if id not in book.replies]
        if missing:
            yield f"jobs without an outcome: {missing}"
        yield from self._verify_store()

    def _verify_relays(self, states: dict[str, dict[str, list[int]]]) -> Any:
        """What one turn did to seven actors happened once, and all of it or none."""
        done: dict[str, list[tuple[str, int]]] = {}
        for name, state in states.items():
            pairs = sorted((sender, number) for sender, numbers in state.items() for number in numbers)
            kind, _, id = name.partition("/")
            if kind == "relay":
                where = id[1:].partition(".")[0]
                done.setdefault(where, []).extend(pairs)
        for where, pairs in done.items():
            for name in ("asked", "side1", "side2", "side3", "submitted", "told", "late"):
                there = states.get(f"counter/{name}-{where}", {})
                found = sorted((sender, number) for sender, numbers in there.items() for number in numbers)
                if found != sorted(pairs):
                    differ = set(found) ^ set(pairs)
                    yield f"relays of {where} did {len(pairs)} turns, counter/{name}-{where} has {len(found)}: {differ}"
            there = states.get(f"ledger/booked-{where}", {})
            if sorted((sender, n) for sender, numbers in there.items() for n in numbers) != sorted(pairs):
                yield f"ledger/booked-{where} differs from its relays"

    def _verify_job(self, handler_: str, label: str, reply: Any) -> Any:
        if handler_ == "Relay.add":
            good = str(reply) == label
        elif handler_ == "Clerk.run":
            good = reply == f"done {label}"
        else:
            good = reply in (f"left {label}, right {label}, paid {label}", f"left {label}, right {label}, unknown")
        if not good:
            yield f"job {handler_} {label} was answered {reply!r}"

    def _verify_store(self) -> Any:
        connection = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)
        try:
            for table in ("message", "journal", "dead_letter"):
                (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
                if rows:
                    yield f"{rows} rows are left over in table {table}"
            (check,) = connection.execute("PRAGMA integrity_check").fetchone()
            if check != "ok":
                yield f"the file is corrupt: {check}"
            decode = msgspec.msgpack.Decoder(Event).decode
            rows = connection.execute("SELECT body FROM trace ORDER BY no").fetchall()
            events = [decode(event) for (body,) in rows for event in read_trace(body)]
        finally:
            connection.close()
        begun: dict[tuple[str, str], list[int]] = {}
        for line in (self.directory / "witness").read_bytes().splitlines():
            life, what, turn, name = json.loads(line)
            if what == "begin":
                begun.setdefault((turn.partition("-")[0], name), []).append(life)
        lost = 0
        for (turn, name), lives in begun.items():
            lost += len(lives) - 1
            if len(set(lives)) != len(lives):
                yield f"step {name} of turn {turn} began twice in one life: {lives}"
            if name == "pay" and len(lives) > 1:
                yield f"pay of turn {turn} is declared interrupted='fail' and began in lives {lives}"
        finished: dict[tuple[str, str], list[int]] = {}
        for event in events:
            if isinstance(event, StepFinished) and event.error is None:
                finished.setdefault((event.span.partition("/")[0], event.step), []).append(event.life)
        ended = {event.span: event.life for event in events if isinstance(event, TurnFinished)}
        for (turn, name), lives in begun.items():
            journaled = finished.get((turn, name), [])
            if len(journaled) > 1:
                yield f"step {name} of turn {turn} was journaled in lives {journaled}"
            until = journaled[0] if journaled else ended.get(turn)
            if until is not None and max(lives) > until:
                yield f"step {name} of turn {turn} was journaled in life {until} and began in lives {lives}"
        calls_ = Count(event.span for event in events if isinstance(event, ModelCalled) and event.error is None)
        twice = {span: count for span, count in calls_.items() if count > 1}
        if twice:
            yield f"model calls were paid again after they were journaled: {twice}"
        turns = Count(event.span for event in events if isinstance(event, TurnFinished))
        twice = {span: count for span, count in turns.items() if count > 1}
        if twice:
            yield f"turns committed twice: {twice}"
        paid = sum(1 for _ in (self.directory / "paid").open()) if (self.directory / "paid").exists() else 0
        if paid < sum(calls_.values()):
            yield f"{sum(calls_.values())} model calls are in the trace, {paid} were paid"
        self.facts = {
            "lives": len(self.book.epochs), "acknowledged": len(self.book.acknowledged), "jobs": len(self.book.jobs),
            "keys": len(self.book.keyed), "step bodies": sum(map(len, begun.values())),
            "steps that ran again": lost, "model calls": paid, "model calls lost in flight": paid - sum(calls_.values()),
        }  # fmt: skip


def _child(work: Callable[[], Coroutine[Any, Any, None]], error: Path) -> None:
    status = 1
    try:
        asyncio.run(work())
        status = 0
    except BaseException:
        error.write_text(traceback.format_exc())
    finally:
        os._exit(status)


def _model_process(ledger: Path) -> tuple[int, str]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:

        async def serve() -> None:
            async with FakeAnthropic(answer, ledger_path=ledger) as fake:
                os.write(writer, fake.url.encode() + b"\n")
                await asyncio.Event().wait()

        _child(serve, ledger.with_suffix(".error"))
    os.close(writer)
    with os.fdopen(reader) as lines:
        return child, lines.readline().strip()


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--kills", type=int, default=100)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--directory", type=Path, required=True)
    given = arguments.parse_args()
    given.directory.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(given.directory, given.seed)
    broken = campaign.run(given.kills)
    for each in broken[:20]:
        print(each)
    with contextlib.suppress(AttributeError):
        print(json.dumps({"kills": campaign.kills, **campaign.facts}))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
