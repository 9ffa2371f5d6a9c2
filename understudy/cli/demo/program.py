"""The program that the demo kills: three agents, three tools and the actor that leads them.

Nothing in it saves, retries or resumes anything. Library code imports from the modules that define things; a program
of yours writes `from understudy import Actor, Agent, System, handler, step, tool`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec

from understudy.actors.actor import Actor
from understudy.actors.agent import Agent
from understudy.actors.handler import handler
from understudy.actors.step import step
from understudy.actors.tool import tool
from understudy.actors.turn import current_turn
from understudy.cli.demo.corpus import Index, NoSuchDocumentError, Passage

MODEL = "claude-sonnet-5-5"


class Context(msgspec.Struct):
    """What was found."""

    passages: list[Passage]


class Finding(msgspec.Struct):
    """One thing that the documents say, in their own words."""

    topic: str
    quote: str
    source: str  # file:line


class Analysis(msgspec.Struct):
    """What the passages say about the question."""

    findings: list[Finding]
    remarks: list[str]


class Report(msgspec.Struct):
    """The answer, as it is sent."""

    title: str
    summary: str
    findings: list[Finding]


class Mentions(msgspec.Struct):
    """How often the documents mention a term."""

    term: str
    passages: int
    documents: int


# Tools: the docstring and the signature are what the model reads ---------------------------------------------------


@tool
async def search_documents(query: str, limit: int = 4) -> list[Passage]:
    """Find the passages that match any word of the query, best first."""
    return current_turn().resource(Index).search(query, min(limit, 20))


@tool(raises=[NoSuchDocumentError])
async def read_document(source: str, line: int) -> list[Passage]:
    """Read on in a document, around a line."""
    return current_turn().resource(Index).around(source, line)


@tool
async def count_mentions(term: str) -> Mentions:
    """Count the passages and documents that mention a term."""
    await current_turn().resource(Trapdoor).step_on()  # the demo's: here the process dies, once
    passages, documents = current_turn().resource(Index).count(term)
    return Mentions(term, passages, documents)


# Agents: a loop of model calls and tool calls, with a typed answer --------------------------------------------------


class GatherContext(Agent[Context], kind="gather_context"):
    """Finds what the documents say."""

    model = MODEL
    max_steps = 12
    instructions = (
        "You find passages that answer a question. Search with a few different queries at once, read on around the best "
        "hits, then answer with the four to six passages that matter, copied exactly."
    )
    tools = [search_documents, read_document]  # noqa: RUF012 - as users write it


class Analyze(Agent[Analysis], kind="analyze"):
    """Says what the passages mean for the question."""

    model = MODEL
    max_steps = 12
    instructions = (
        "You analyze passages. First call count_mentions, for the two or three terms that matter most, all at once. Then "
        "answer with findings: a topic, a sentence quoted exactly, and its source as file:line. Remark on the counts."
    )
    tools = [count_mentions]  # noqa: RUF012


class GenerateReport(Agent[Report], kind="generate_report"):
    """Writes the report."""

    model = MODEL
    max_steps = 6
    instructions = "You write a short report from findings. Keep quotes and sources exactly as they are."


# The workflow: plain Python ----------------------------------------------------------------------------------------


class ResearchReport(Actor, kind="research_report"):
    """Gathers, analyzes, writes and sends."""

    @handler
    async def run(self, question: str) -> Report:
        """Answer *question* from the documents."""
        context = await self.actor(GatherContext, self.id).run(f"Question: {question}")
        analysis = await self.actor(Analyze, self.id).run(_with(question, context.passages))
        report = await self.actor(GenerateReport, self.id).run(_with(question, analysis))
        await send_report(report)
        return report


@step
async def send_report(report: Report) -> str:
    """Deliver the report: here into a file."""
    await current_turn().resource(Trapdoor).step_on()  # for a model that never counted anything
    path = current_turn().resource(Outbox).path
    draft = path.with_suffix(".draft")
    draft.write_text(to_markdown(report), encoding="utf-8")
    draft.replace(path)
    return path.name


class Outbox:
    """Where reports go; a resource."""

    def __init__(self, path: Path) -> None:
        self.path = path


class Trapdoor:
    """Kills the process, as a power cut or an impatient scheduler would; a resource.

    It opens a moment after somebody stepped on it, so that what runs beside can finish first: the demo then shows both
    a step that was in flight and steps that were done.
    """

    def __init__(self, *, is_armed: bool) -> None:
        self.is_armed = is_armed

    async def step_on(self) -> None:
        """Die, if armed."""
        if self.is_armed:
            self.is_armed = False
            await asyncio.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)


def _with(question: str, data: object) -> str:
    return f"Question: {question}\n\n{msgspec.json.encode(data).decode()}"


def to_markdown(report: Report) -> str:
    """Return the report as a Markdown document."""
    parts = [f"# {report.title}", report.summary]
    parts += [f"## {each.topic}\n\n> {each.quote}\n\n({each.source})" for each in report.findings]
    return "\n\n".join(parts) + "\n"
