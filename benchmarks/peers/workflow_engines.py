"""Peers in the program's own process that store each step."""

from __future__ import annotations

from benchmarks.case import FLUSHED
from benchmarks.peers.environment import Environment
from benchmarks.peers.peer import Peer

_CALLERS_MAX = 256  # a thousand take seconds per call, and tell nothing new
_ALL = frozenset({"asks", "workflow", "reopen"})
_SLOW = frozenset({"reopen"})

_DBOS = Environment("dbos", ("dbos",), tells=("dbos",))
_LANGGRAPH = Environment(
    "langgraph",
    ("langgraph", "langgraph-checkpoint-sqlite"),
    tells=("langgraph", "langgraph-checkpoint-sqlite"),
)


def _dbos(name: str, setting: str, database: str) -> Peer:
    return Peer(
        name=name,
        program="dbos_workflows",
        environment=_DBOS,
        durability=FLUSHED,
        tasks=_ALL,
        setting=setting,
        settings=(
            f"{database}; otherwise as it comes. An ask is a workflow of one step, which nothing orders per entity; "
            "a workflow has five. Its synchronous API, called directly by one caller and by asyncio.to_thread, "
            "with asyncio's own number of threads, by several: at least as fast as its asynchronous one."
        ),
        callers_max=_CALLERS_MAX,
        slow=_SLOW,
    )


def _langgraph(name: str, setting: str, tasks: frozenset[str], durability: str) -> Peer:
    return Peer(
        name=name,
        program="langgraph_graphs",
        environment=_LANGGRAPH,
        durability=FLUSHED,
        tasks=tasks,
        setting=setting,
        settings=(
            f"SQLite in WAL mode, synchronous FULL, as its saver sets it; {durability}. An ask is ainvoke of a graph of "
            "one node on a thread per caller, without a mailbox; a workflow is one of five nodes. After a crash the "
            "program resumes the threads itself, 64 at a time."
        ),
        callers_max=_CALLERS_MAX,
        slow=_SLOW & tasks,
    )


WORKFLOW_ENGINES: tuple[Peer, ...] = (
    _dbos("DBOS, SQLite", "sqlite", "SQLite with its default, a rollback journal, synchronous FULL"),
    _dbos(
        "DBOS, SQLite in WAL mode",
        "wal",
        "SQLite, the file switched to WAL mode before DBOS opens it, synchronous FULL",
    ),
    _dbos("DBOS, PostgreSQL", "postgres", "PostgreSQL as initdb sets it (fsync, synchronous_commit on), on loopback"),
    _langgraph(
        "LangGraph, AsyncSqliteSaver", "sync", _ALL, 'durability="sync": each step is stored before the next begins'
    ),
    # Faster, with the same promise for an answered ask; of steps it stores nothing before the last.
    _langgraph(
        "LangGraph, saved at exit",
        "exit",
        frozenset({"asks"}),
        'durability="exit": stored once, when the run ends and before it answers',
    ),
)
