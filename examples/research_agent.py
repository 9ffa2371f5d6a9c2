"""An agent with tools and a typed answer. A fake endpoint plays the model, so it runs without a key.

    python examples/research_agent.py

With a key, replace the endpoint: `Endpoint(AnthropicProvider())` calls the real model (ANTHROPIC_API_KEY).
"""

import asyncio
from pathlib import Path

import msgspec

from understudy import Agent, System, current_turn, tool
from understudy.testing import FakeAnthropic, calls, fails, says, together

NOTES = {
    "supervision.md": "A supervisor restarts what failed; its siblings are left alone.",
    "journal.md": "A finished step is journaled, and a turn that is delivered again does not run it again.",
}


class Corpus:
    """A resource: whatever tools need that is not data. Found by its type."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts


class Passage(msgspec.Struct):
    text: str
    source: str


class Report(msgspec.Struct):
    title: str
    findings: list[str]
    sources: list[str]


@tool(timeout_s=10, concurrency=8)
async def search(query: str, limit: int = 5) -> list[Passage]:
    """Passages of the corpus that match the query, best first."""
    texts = current_turn().resource(Corpus).texts
    found = [Passage(text, source) for source, text in texts.items() if query.lower() in text.lower()]
    return found[:limit]


class Researcher(Agent[Report], kind="researcher"):
    model = "claude-sonnet-5-5"
    instructions = "Answer from the corpus and cite passages."
    tools = [search]


def script() -> FakeAnthropic:
    """What the model will say, in order: it is overloaded once, searches twice at the same time, then answers."""
    report = Report(
        "What is never done twice?",
        ["A finished step is journaled, and a turn that is delivered again does not run it again."],
        ["journal.md"],
    )
    return FakeAnthropic(
        fails(529),
        together(says("Let me look."), calls(search, "journaled"), calls(search, "supervisor", limit=1)),
        says(report),
    )


async def main(path: Path = Path("research.db")) -> None:
    async with (
        script() as fake,
        System(path, [Researcher], endpoints=[fake.endpoint()], resources=[Corpus(NOTES)]) as system,
    ):
        job = await system.actor(Researcher, "q-17").run.submit("What is never done twice?")
        report = await job  # a Report, validated
        print(report.title)
        for finding, source in zip(report.findings, report.sources, strict=True):
            print(f"- {finding} ({source})")
        print()
        print(await system.trace(job.id))


if __name__ == "__main__":
    asyncio.run(main())
