"""Agent history: what one run of an agent writes and works, early and late in a long conversation."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.case import FLUSHED, OURS, Case, Contender, Place, Sample, Scale
from understudy import Agent, Endpoint, System
from understudy.endpoint.model import Allowance, ModelAnswer, ModelRequest, Text, Usage
from understudy.mailbox.sqlite import SQLiteStore

NAME = "agent history"
WRITTEN, WORKED = "written per run", "CPU per run"

_ITEMS_PER_RUN = 2  # the prompt and the answer
_RUNS_WRITTEN = 5
_RUNS_WORKED = 300
# Nothing is copied out of the log while it is measured, so that its size is all that was written.
_NO_CHECKPOINT_PAGES = 1 << 30
_PROMPT = "A prompt of some two hundred bytes, about as long as what people type into a chat: " * 3


class Talker(Agent[str], kind="talker"):
    """Remembers every word."""

    model = "claude-sonnet-5-5"


class Parrot:
    """A model provider that answers at once, always the same; it encodes nothing, so that only the agent works."""

    async def call(
        self,
        request: ModelRequest,
        *,
        on_text: Callable[[str], None] | None = None,
        on_allowance: Callable[[Allowance], None] | None = None,
    ) -> ModelAnswer:
        return ModelAnswer(
            id="answer", model=request.model, content=[Text(_PROMPT)], stop_reason="end_turn", usage=Usage(60, 60)
        )

    async def close(self) -> None:
        pass


def cases(scale: Scale) -> Iterator[Case]:
    """Shorter and longer histories."""
    for items in scale.history_items:
        yield Case(NAME, case_name(items), {OURS: Contender(partial(measure, items=items), FLUSHED)})


def case_name(items: int) -> str:
    """Name the case of so many items in the history."""
    return f"{items:,} items"


def measure(place: Place, items: int) -> list[Sample]:
    """Measure a few runs after so many items."""
    return asyncio.run(_measure(place, items))


async def _measure(place: Place, items: int) -> list[Sample]:
    path = await _talked(place, items)
    store = SQLiteStore(path, checkpoint_pages=_NO_CHECKPOINT_PAGES)
    async with System(store, [Talker], endpoints=[Endpoint(Parrot())]) as system:
        talker = system.actor(Talker, "talker")
        await talker.run(_PROMPT)  # The history is in memory now.
        log = path.with_name(f"{path.name}-wal")
        before = log.stat().st_size
        for _ in range(_RUNS_WRITTEN):
            await talker.run(_PROMPT)
        written = (log.stat().st_size - before) / _RUNS_WRITTEN
        gc.collect()
        began = time.process_time()
        for _ in range(_RUNS_WORKED):
            await talker.run(_PROMPT)
        worked_us = (time.process_time() - began) / _RUNS_WORKED * 1e6
        if len(await talker.messages()) != items + (1 + _RUNS_WRITTEN + _RUNS_WORKED) * _ITEMS_PER_RUN:
            raise AssertionError("the agent's history has not the expected length")
    return [Sample(WRITTEN, "bytes", written), Sample(WORKED, "µs", worked_us)]


async def _talked(place: Place, items: int) -> Path:
    """Return a copy of the store of an agent that has talked so much, made the first time."""
    kept = place.shared / f"talked-{items}.db"
    if not kept.exists():
        draft = place.shared / f"talked-{items}.draft.db"
        async with System(draft, [Talker], endpoints=[Endpoint(Parrot())], durability="process") as system:
            for _ in range(items // _ITEMS_PER_RUN):
                await system.actor(Talker, "talker").run(_PROMPT)
            await system.backup(kept)
    path = place.own / "agents.db"
    path.write_bytes(kept.read_bytes())
    return path
