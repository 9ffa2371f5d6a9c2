"""The process that is killed: `python -m understudy.cli.demo.worker CONFIG`.

It does the same in every life: open the store, submit the question under a key, await the report. That the work began
in an earlier life is known to the store alone. What happens is told to the parent, one JSON line per event.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import cast

import msgspec

from understudy.actors.system import System
from understudy.cli.demo.corpus import Index
from understudy.cli.demo.ledger import LedgerProvider
from understudy.cli.demo.program import Analyze, GatherContext, GenerateReport, Outbox, Report, ResearchReport, Trapdoor
from understudy.endpoint.anthropic import AnthropicProvider
from understudy.endpoint.endpoint import Endpoint
from understudy.events import Event


class Config(msgspec.Struct, kw_only=True):
    """What the parent tells a worker; only `is_armed` differs between its lives."""

    store: str
    docs: str
    endings: list[str]
    question: str
    report: str
    ledger: str
    base_url: str | None  # of the fake endpoint; None: the real one
    is_armed: bool


class Told(msgspec.Struct, omit_defaults=True):
    """One line from the worker to its parent."""

    event: Event | None = None
    job: str | None = None
    report: Report | None = None


async def work(config: Config) -> None:
    """Answer the question."""
    if config.base_url is None:
        provider = LedgerProvider(AnthropicProvider(), Path(config.ledger))
        endpoint = Endpoint(provider)
    else:
        endpoint = Endpoint(AnthropicProvider(base_url=config.base_url, api_key="no-key"))
    resources = [
        Index(Path(config.docs), config.endings),
        Outbox(Path(config.report)),
        Trapdoor(is_armed=config.is_armed),
    ]
    children = [ResearchReport, GatherContext, Analyze, GenerateReport]
    async with (
        asyncio.TaskGroup() as tasks,
        System(config.store, children, endpoints=[endpoint], resources=resources) as system,
    ):
        tasks.create_task(_tell_events(system))  # It ends when the system closes.
        await asyncio.sleep(0)  # It listens before anything happens.
        # The key makes the second life's submission the same one as the first's.
        job = await system.actor(ResearchReport, "q-17").run.options(key="q-17").submit(config.question)
        _tell(Told(job=job.id))
        _tell(Told(report=await job))


async def _tell_events(system: System) -> None:
    async for event in system.events():
        _tell(Told(event=event))


def _tell(told: Told) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    sys.stdout.buffer.flush()


def _end_with_parent() -> None:
    """Die when the parent does: its end of our standard input closes with it, however it ended."""
    while os.read(0, 1024):  # Not through `sys.stdin`, whose lock an ending interpreter would wait for.
        pass
    os._exit(1)


def main() -> None:
    """Run one life."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        asyncio.run(work(msgspec.json.decode(sys.argv[1], type=Config)))
    except* Exception as group:
        traceback.print_exception(group)
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = cast("BaseExceptionGroup[BaseException]", first).exceptions[0]
        sys.exit(f"{type(first).__name__}: {first}")  # the line that the parent shows


if __name__ == "__main__":
    main()
