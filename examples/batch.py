"""A hundred documents, one budget. What the budget holds goes on when it is raised; nothing is paid for twice.

    python examples/batch.py

Stop it with Ctrl-C and start it again: each document has a key, so those that are done stay done. A fake endpoint plays
the model; with a key, replace it by `Endpoint(AnthropicProvider())`.
"""

import asyncio
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from understudy import ActorSuspended, Agent, Budget, Job, System, Workflow
from understudy.testing import Answer, FakeAnthropic, FakeRequest, says

DOCUMENTS = {
    f"report-{number:03}.txt": f"Sales of month {number} were {number * 7919 % 1000} crates. "
    + "They went by rail. " * 400
    for number in range(100)
}


class Summary(msgspec.Struct):
    title: str
    sentence: str


class Summarizer(Agent[Summary], kind="summarizer"):
    model = "claude-haiku-5-5"
    instructions = "Summarise the document in one sentence."
    max_tokens = 400


def play(request: FakeRequest) -> Answer:
    """Play the model: it repeats the first sentence."""
    sentence = request.messages[0]["content"][0]["text"].split(".")[0]
    return says(Summary(sentence.split(" were ")[0], f"{sentence}."))


async def summarise(batch: Workflow) -> list[Job[Summary]]:
    """Submit every document; the key makes a second submission the same one."""
    return [await batch.actor(Summarizer, name).run.options(key=name).submit(text) for name, text in DOCUMENTS.items()]


async def watch(jobs: list[Job[Summary]], bar: Progress, what: str) -> int:
    """Draw how many are done; return how many the budget holds."""
    task = bar.add_task(what, total=len(jobs))
    held = 0
    for result in asyncio.as_completed(jobs):
        try:
            await result
            bar.advance(task)
        except ActorSuspended:
            held += 1
    return held


async def main(path: Path = Path("batch.db")) -> None:
    console = Console(highlight=False)
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn())
    async with FakeAnthropic(play) as fake, System(path, [Summarizer], endpoints=[fake.endpoint()]) as system:
        batch = system.workflow("sales-2026-11", budget=Budget(usd=0.015))
        jobs = await summarise(batch)
        with Progress(*columns, console=console) as bar:
            held = await watch(jobs, bar, "with $0.015")
            console.print(f"held by the budget: {held}; spent so far: ${(await batch.spent()).usd:.4f}")
            if held:
                await batch.raise_budget(usd=0.05)  # What it held goes on.
                await watch(jobs, bar, "with $0.05")
        print(f"spent: ${(await batch.spent()).usd:.4f} for {len(fake.paid)} paid calls")
        print((await jobs[-1]).sentence)


if __name__ == "__main__":
    asyncio.run(main())
