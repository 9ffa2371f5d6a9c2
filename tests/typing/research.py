from pathlib import Path

import msgspec

from understudy import Agent, AnthropicProvider, Budget, Endpoint, System, tool


class Passage(msgspec.Struct):
    text: str
    source: str


@tool(timeout_s=10, concurrency=8)
async def search(query: str, limit: int = 5) -> list[Passage]:
    """Passages of the corpus that match the query, best first."""
    return []


@tool
def read_file(path: str) -> str:
    """Read one file."""
    return Path(path).read_text()


class Report(msgspec.Struct):
    title: str
    findings: list[str]


class Researcher(Agent[Report], kind="researcher"):
    model = "claude-sonnet-5-5"
    instructions = "Answer from the corpus and cite passages."
    tools = [search, read_file]
    budget = Budget(usd=0.50, model_calls=20)

    async def prompt(self) -> str:  # instructions that depend on state
        return f"{self.instructions} You are {self.id}."


async def main() -> None:
    async with System("agents.db", [Researcher], endpoints=[Endpoint(AnthropicProvider())]) as system:
        job = await system.actor(Researcher, "q-17").run.submit("What do supervisors guarantee?")
        report = await job
        print(report)
        print(await system.job(job.id, Researcher.run))
        print(await search("x"))
        print(await read_file("x"))
