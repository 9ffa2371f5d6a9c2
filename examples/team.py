"""Agents as tools of another agent: each call is a fresh conversation of its own.

python examples/team.py
"""

import asyncio
from pathlib import Path

import msgspec

from understudy import Agent, System
from understudy.testing import Answer, FakeAnthropic, FakeRequest, calls, says, together


class Findings(msgspec.Struct):
    claims: list[str]


class Article(msgspec.Struct):
    title: str
    text: str


class Researcher(Agent[Findings], kind="researcher"):
    """Finds facts about one topic."""

    model = "claude-haiku-5-5"
    instructions = "You find facts."


class Writer(Agent[Article], kind="writer"):
    """Writes an article from facts."""

    model = "claude-opus-5-5"
    instructions = "You write."


class Editor(Agent[Article], kind="editor"):
    model = "claude-opus-5-5"
    instructions = "You lead a team."
    tools = [Researcher.run, Writer.run]


def play(request: FakeRequest) -> Answer:
    """Play all three models: which one is asked stands in the request."""
    if request.system == Researcher.instructions:
        return says(Findings([f"{request.messages[0]['content'][0]['text']}: it grows"]))
    if request.system == Writer.instructions:
        return says(Article("On fruit", request.messages[0]["content"][0]["text"]))
    results = [
        block["content"]
        for block in request.messages[-1]["content"]
        if isinstance(block, dict) and block["type"] == "tool_result"
    ]
    if not results:
        # Two researchers at the same time.
        return together(calls(Researcher.run, "apples"), calls(Researcher.run, "pears"))
    if len(results) == 2:
        return calls(Writer.run, " and ".join(results))
    return says(msgspec.json.decode(results[0], type=Article))


async def main(path: Path = Path("team.db")) -> None:
    async with FakeAnthropic(play) as fake, System(path, [Editor], endpoints=[fake.endpoint()]) as system:
        job = await system.actor(Editor, "issue-1").run.submit("Fruit")
        article = await job
        print(article.title)
        print(article.text)
        print()
        print(await system.trace(job.id))


if __name__ == "__main__":
    asyncio.run(main())
