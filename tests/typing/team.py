import msgspec

from understudy import Agent, Budget, System


class Finding(msgspec.Struct):
    claim: str


class Article(msgspec.Struct):
    title: str


class Researcher(Agent[list[Finding]]):
    """Finds facts."""

    model = "claude-sonnet-5-5"


class Writer(Agent[Article]):
    """Writes an article from findings."""

    model = ("claude-opus-5-5", "claude-sonnet-5-5")


class Editor(Agent[Article]):
    model = "claude-opus-5-5"
    instructions = "Lead the team."
    tools = [Researcher.run, Writer.run]
    budget = Budget(usd=2.0)


async def main() -> None:
    async with System("team.db", [Editor]) as system:
        print((await system.actor(Editor, "issue-1").run("The state of durable execution")).title)
