"""Random batches, with crashes and reopenings between them, against dictionaries."""

from __future__ import annotations

import asyncio
import copy
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings

from understudy.mailbox.commit import Batch, DeadLetter, KeptResult, Record, Snapshot
from understudy.mailbox.envelope import Envelope, Head
from understudy.mailbox.journal import Failure, JournalEntry, Outcome
from understudy.mailbox.store import Timer
from understudy.testing.stores import InlineSQLiteStore

FAILURE = Failure(kind="own", type="JobCancelled", message="")
FIELDS = Envelope.__struct_fields__[:16]
ACTORS = (1, 2, 3)

# What may happen, each with numbers that choose to whom: (name, which, more).
STEPS = st.tuples(
    st.sampled_from(
        [
            "accept",
            "accept",
            "accept",
            "delay",
            "start",
            "fail",
            "due",
            "finish",
            "bury",
            "discard",
            "redeliver",
            "journal",
            "journal",
            "forget",
            "snapshot",
            "event",
            "keep",
            "picture",
            "record",
            "drop",
            "status",
            "commit",
            "commit",
            "crash",
            "close",
        ]
    ),
    st.integers(0, 30),
    st.binary(max_size=40),
)


def facts(envelope: Envelope) -> tuple[Any, ...]:
    return tuple(getattr(envelope, name) for name in FIELDS)


class Model:
    """What should be in the store. `live` runs ahead of `durable` by the open batch."""

    def __init__(self) -> None:
        self.messages: dict[int, Envelope] = {}
        self.journal: dict[int, dict[bytes, JournalEntry]] = {}
        self.snapshots: dict[int, Snapshot] = {}
        self.events: dict[int, list[tuple[int, bytes]]] = {actor: [] for actor in ACTORS}
        self.results: dict[int, KeptResult] = {}
        self.dead: dict[int, DeadLetter] = {}
        self.statuses: dict[int, tuple[str, str]] = {}
        self.picture: bytes | None = None
        self.records: dict[str, Record] = {}

    def crash(self) -> None:
        alone = any(each.started == 2 for each in self.messages.values())
        for each in self.messages.values():
            each.crashes += each.started == (2 if alone else 1)
            each.started = min(each.started, -1) if each.started else 0

    def close(self) -> None:
        for each in self.messages.values():
            each.started = -1 if each.started else 0


class Life:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.live = Model()
        self.durable = Model()
        self.last = self.durable_last = 0
        self.opened = False

    async def open(self) -> None:
        self.store = InlineSQLiteStore(self.path, durability="process", lock_wait_s=0)
        opening = await self.store.open()
        assert opening.last_message >= self.durable_last
        self.last = opening.last_message
        self.live = copy.deepcopy(self.durable)
        self.batch = Batch(1)
        if not self.opened:
            self.batch.actors = {actor: ("kind", str(actor)) for actor in ACTORS}
            self.opened = True
            await self.commit()

    async def commit(self) -> None:
        self.batch.last_message = self.durable_last = self.last
        await self.store.commit(self.batch)
        self.batch = Batch(self.batch.number + 1)
        self.durable = copy.deepcopy(self.live)

    def pick(self, which: int) -> Envelope | None:
        numbers = sorted(self.live.messages)
        return self.live.messages[numbers[which % len(numbers)]] if numbers else None

    def accept(self, which: int, body: bytes, **fields: Any) -> None:
        self.last += 1
        envelope = Envelope(
            self.last, ACTORS[which % 3], self.last, f"h{which % 2}", body, Head(float(which), "c"), **fields
        )
        self.batch.envelopes[self.last] = self.live.messages[self.last] = envelope

    async def step(self, name: str, which: int, body: bytes) -> None:
        live, batch = self.live, self.batch
        actor = ACTORS[which % 3]
        envelope = self.pick(which)
        buried = sorted(live.dead)[which % len(live.dead)] if live.dead else None
        match name:
            case "accept":
                key = f"k{self.last}" if which % 4 == 0 else None
                self.accept(which, body, key=key, caller=which % 5 or None, caller_key=body or None)
            case "delay":
                self.accept(which, body, due_at=which / 7)
            case "start" if envelope:
                envelope.started = 1 + (which % 9 == 0)
                batch.note_progress(envelope)
            case "fail" if envelope:
                envelope.started, envelope.attempts = 0, envelope.attempts + 1
                envelope.history, envelope.not_before = body, which / 3
                envelope.amended = body if which % 2 else None
                batch.note_progress(envelope)
            case "due" if envelope:
                self.last += 1
                envelope.due_at, envelope.position = None, self.last
                batch.note_progress(envelope)
            case "finish" if envelope:
                del live.messages[envelope.no]
                batch.finish(envelope)
                for key in live.journal.pop(envelope.no, {}):
                    batch.journal.pop((envelope.no, key), None)
                batch.forgotten.append(envelope.no)
            case "bury" if envelope:
                del live.messages[envelope.no]
                batch.finish(envelope)
                batch.dead[envelope.no] = live.dead[envelope.no] = DeadLetter(envelope, FAILURE, which / 3)
            case "discard" if buried:
                del live.dead[buried]
                batch.dead.pop(buried, None)
                for key in live.journal.pop(buried, {}):
                    batch.journal.pop((buried, key), None)
                batch.discarded.append(buried)
            case "redeliver" if buried:
                batch.dead.pop(buried, None)
                batch.discarded.append(buried)
                batch.envelopes[buried] = live.messages[buried] = live.dead.pop(buried).envelope
            case "journal" if envelope:
                key = b"%d" % (which // 4)
                entry = JournalEntry(envelope.no, key, Outcome(value=body), body or None)
                live.journal.setdefault(envelope.no, {})[key] = entry
                batch.journal[envelope.no, key] = entry
            case "forget" if envelope:
                for key in live.journal.pop(envelope.no, {}):
                    batch.journal.pop((envelope.no, key), None)
                batch.forgotten.append(envelope.no)
            case "snapshot":
                batch.snapshots[actor] = live.snapshots[actor] = Snapshot(which, len(live.events[actor]), body)
            case "event":
                live.events[actor].append((len(live.events[actor]) + 1, body))
                batch.events.append((actor, *live.events[actor][-1]))
            case "keep" if envelope:
                outcome = Outcome(value=body) if which % 2 else Outcome(failure=FAILURE)
                result = KeptResult(
                    envelope.no, envelope.actor, "h", None, body, outcome, "done", 1.0, which + 0.5, "c"
                )
                batch.results[envelope.no] = live.results[envelope.no] = result
            case "record":
                live.records[str(which)] = record = Record("ledger", str(which), body, str(which % 3))
                batch.put(record)
            case "drop":
                live.records.pop(str(which), None)
                batch.drop("ledger", str(which))
            case "picture":
                batch.picture = live.picture = body
            case "status":
                batch.statuses[actor] = live.statuses[actor] = (("active", "suspended", "stopped")[which % 3], "why")
            case "commit":
                await self.commit()
                await self.compare()
            case "crash":
                self.store.crash()
                self.durable.crash()
                await self.open()
                await self.compare()
            case "close":
                await self.store.close(clean=True)
                self.durable.close()
                await self.open()
                await self.compare()
            case _:
                pass

    async def compare(self) -> None:
        store, model = self.store, self.durable
        loaded = await store.load([*ACTORS, ("kind", "2"), ("kind", "x")], 3)
        assert loaded[3] is not None
        assert loaded[3].no == 2
        assert loaded[4] is None
        for actor, found in zip(ACTORS, loaded, strict=False):
            assert found is not None
            mine = [each for each in model.messages.values() if each.actor == actor]
            ready = sorted((each for each in mine if each.due_at is None), key=lambda each: each.position)
            assert found.damage is None
            assert found.snapshot == model.snapshots.get(actor)
            assert (found.status, found.reason) == model.statuses.get(actor, ("active", ""))
            assert (found.depth, found.last_event) == (len(mine), len(model.events[actor]))
            assert [facts(each) for each in found.window] == [facts(each) for each in ready[:3]]
            assert [each.no for each in await store.mailbox(actor, 0, 1000)] == [each.no for each in ready]
            assert await store.events(actor, 0, 1000) == model.events[actor]
        for no in model.messages:
            where = await store.message(no)
            assert where.pending is not None
            assert facts(where.pending) == facts(model.messages[no])
            assert await store.journal(no) == list(model.journal.get(no, {}).values())
        for no, result in model.results.items():
            if no not in model.messages:
                assert (await store.message(no)).result == result
        letters = await store.dead_letters(0, 1000)
        assert [facts(each.envelope) for each in letters] == [
            facts(model.dead[no].envelope) for no in sorted(model.dead)
        ]
        for no in model.dead:
            assert await store.journal(no) == list(model.journal.get(no, {}).values())
        delayed = [
            Timer(each.due_at, each.no, each.actor) for each in model.messages.values() if each.due_at is not None
        ]
        assert await store.timers(None, 1000) == sorted(delayed)
        addressed = {each.actor for each in model.messages.values() if each.due_at is None}
        active = [actor for actor in ACTORS if model.statuses.get(actor, ("active",))[0] == "active"]
        assert await store.waiting(0, 9) == [actor for actor in active if actor in addressed]
        held = [actor for actor in ACTORS if actor not in active]
        assert [row.no for row in await store.held(None, 0, 9)] == held
        assert await store.picture() == model.picture
        assert {each.id: each for each in await store.records("ledger", None, "", 999)} == model.records
        assert await store.suspects() == sorted({each.actor for each in model.messages.values() if each.crashes >= 2})
        for caller in range(1, 5):
            asked = sorted(each.no for each in model.messages.values() if each.caller == caller)
            assert [each.no for each in await store.asked_by(caller)] == asked


@given(steps=st.lists(STEPS, min_size=20, max_size=120))
@settings(max_examples=100)
def test_store_holds_what_was_committed_whatever_happens(steps: list[tuple[str, int, bytes]]) -> None:
    async def live(directory: str) -> None:
        life = Life(Path(directory) / "store.db")
        await life.open()
        for step in steps:
            await life.step(*step)
        await life.commit()
        await life.compare()
        await life.store.close(clean=True)

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(live(directory))
