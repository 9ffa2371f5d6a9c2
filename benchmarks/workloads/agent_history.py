"""Agent history: what one run of an agent writes, early and late in a long conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.case import FLUSHED, OURS, Case, Contender, Place, Sample, Scale
from understudy import Agent, Endpoint, System
from understudy.endpoint.model import Allowance, ModelAnswer, ModelRequest, Text, Usage
from understudy.mailbox.sqlite import SQLiteStore

NAME = "agent history"

_ITEMS_PER_RUN = 2  # the prompt and the answer
_RUNS_MEASURED = 5
# Nothing is copied out of the log while it is measured, so that its size is all that was written.
_NO_CHECKPOINT_PAGES = 1 << 30
_PROMPT = "A prompt of some two hundred bytes, about as long as what people type into a chat: " * 3


class Talker(Agent[str], kind="talker"):
    """Remembers every word."""

    model = "fake"


class Parrot:
    """A model provider that answers at once, always the same."""

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
    """A short and a long history."""
    for items in scale.history_items:
        yield Case(NAME, case_name(items), {OURS: Contender(partial(measure, items=items), FLUSHED)})


def case_name(items: int) -> str:
    """Name the case of so many items in the history."""
    return f"{items:,} items"


def measure(place: Place, items: int) -> list[Sample]:
    """Measure a few runs after so many items."""
    return asyncio.run(_measure(place.own / "agents.db", items))


async def _measure(path: Path, items: int) -> list[Sample]:
    store = SQLiteStore(path, checkpoint_pages=_NO_CHECKPOINT_PAGES)
    async with System(store, [Talker], endpoints=[Endpoint(Parrot())]) as system:
        talker = system.actor(Talker, "talker")
        for _ in range(items // _ITEMS_PER_RUN):
            await talker.run(_PROMPT)
        log = path.with_name(f"{path.name}-wal")
        before = log.stat().st_size
        for _ in range(_RUNS_MEASURED):
            await talker.run(_PROMPT)
        written = log.stat().st_size - before
        if len(await talker.messages()) != items + _RUNS_MEASURED * _ITEMS_PER_RUN:
            raise AssertionError("the agent's history has not the expected length")
    return [Sample("written per run", "bytes", written / _RUNS_MEASURED)]
