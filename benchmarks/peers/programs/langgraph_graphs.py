"""LangGraph: graphs whose threads are stored by its AsyncSqliteSaver, in WAL mode with `synchronous` at FULL.

An entity is a thread; a turn is a run of a graph of one node on it, a workflow one of five. There is no mailbox: of two
runs on one thread at a time the second would not wait, so each caller has a thread to itself. Nothing resumes by
itself either: after a crash the program names the threads and resumes them.
"""

from __future__ import annotations

import asyncio
import operator
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from benchmarks.load import measure
from benchmarks.peers.programs.leaving import leave
from benchmarks.peers.task import Job, serve
from benchmarks.sample import Sample

_STEPS = 5
_AT_A_TIME = 64  # threads that are left and resumed side by side; more of them is no faster
_LEAVE = "leave"  # what the command line of the child says that is killed

Durability = Literal["sync", "exit"]


class State(TypedDict):
    count: Annotated[int, operator.add]


# What LangGraph's own types leave open: the graph's context, its input and its output.
Graph = CompiledStateGraph[State, Any, Any, Any]


async def fetch(state: State) -> State:  # noqa: ARG001 - LangGraph wants this very name
    """Stand for something that reaches outside, and costs nothing itself."""
    return {"count": 1}


def asks(job: Job) -> Iterable[Sample]:
    """Measure runs of a graph of one node, each on the thread of its caller."""
    return asyncio.run(_measure(job, nodes=1))


def workflow(job: Job) -> Iterable[Sample]:
    """Measure runs of a graph of five nodes."""
    return asyncio.run(_measure(job, nodes=_STEPS))


async def _measure(job: Job, nodes: int) -> list[Sample]:
    durability: Durability = "exit" if job.setting == "exit" else "sync"
    async with AsyncSqliteSaver.from_conn_string(str(_file(job))) as saver:
        graph = _graph(saver, nodes)
        return await measure(
            lambda number: graph.ainvoke({"count": 0}, _thread(number), durability=durability),
            job.callers,
            job.seconds,
            job.directory,
        )


def reopen(job: Job) -> Iterable[Sample]:
    """Measure from the opening of the file until threads that a killed process left before their node have run it."""
    leave("benchmarks.peers.programs.langgraph_graphs", _LEAVE, str(_file(job)), str(job.count))
    return asyncio.run(_resume(_file(job), job.count))


async def _resume(path: Path, count: int) -> list[Sample]:
    began = time.perf_counter()
    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        graph = _graph(saver, nodes=1)
        await _run(graph, 0, {"count": 1}, None)
        first_s = time.perf_counter() - began
        await _run_many(graph, range(1, count), {"count": 1}, None)
        all_s = time.perf_counter() - began
    return [Sample("first answered", "s", first_s), Sample("all answered", "s", all_s)]


async def _stop_before_node(path: Path, count: int) -> None:
    """Say `ready` once all threads are stored with their node still to run, and wait to be killed."""
    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        await _run_many(_graph(saver, nodes=1, stopped=True), range(count), {"count": 0}, {"count": 0})
        print("ready", flush=True)
        await asyncio.get_running_loop().create_future()


async def _run_many(graph: Graph, numbers: Iterable[int], expected: State, given: State | None) -> None:
    waiting = iter(numbers)

    async def runner() -> None:
        for number in waiting:
            await _run(graph, number, expected, given)

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_A_TIME):
            group.create_task(runner())


async def _run(graph: Graph, number: int, expected: State, given: State | None) -> None:
    """Run a thread from its beginning with what is *given*, or from where it stopped."""
    got = await graph.ainvoke(given, _thread(number), durability="sync")
    if got["count"] != expected["count"]:
        raise AssertionError(f"thread {number} came to {got}; expected {expected}")


def _graph(saver: AsyncSqliteSaver, nodes: int, *, stopped: bool = False) -> Graph:
    """Return a chain of *nodes*, or one that stops before the first of them."""
    builder = StateGraph(State)
    names = [f"step-{number}" for number in range(nodes)]
    for name in names:
        builder.add_node(name, fetch)
    for before, after in zip([START, *names], [*names, END], strict=True):
        builder.add_edge(before, after)
    return builder.compile(checkpointer=saver, interrupt_before=names[:1] if stopped else None)


def _thread(number: int) -> RunnableConfig:
    return {"configurable": {"thread_id": f"worker-{number}"}}


def _file(job: Job) -> Path:
    return job.directory / "langgraph.sqlite"


if __name__ == "__main__":
    if sys.argv[1] == _LEAVE:
        asyncio.run(_stop_before_node(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        serve({"asks": asks, "workflow": workflow, "reopen": reopen})
