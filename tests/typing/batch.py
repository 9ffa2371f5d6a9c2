import asyncio
from pathlib import Path

import msgspec

from understudy import ActorSuspended, Agent, Budget, System


class Summary(msgspec.Struct):
    title: str


class Summarizer(Agent[Summary]):
    model = "claude-haiku-5-5"
    instructions = "Summarise the document."


async def main(folder: Path) -> None:
    async with System(folder / "batch.db", [Summarizer]) as system:
        batch = system.workflow("summaries-2026-11", budget=Budget(usd=5.00))
        jobs = [
            await batch.actor(Summarizer, p.name).run.options(key=p.name).submit(p.read_text())
            for p in sorted(folder.iterdir())
        ]
        for n, result in enumerate(asyncio.as_completed(jobs), 1):
            try:
                print(f"{n}/{len(jobs)}", (await result).title)
            except ActorSuspended as held:
                print("held:", held.reason)
        print(await batch.spent())
        await batch.raise_budget(usd=10.0)
