"""Peers in the program's own process that store each step."""

from __future__ import annotations

from benchmarks.case import FLUSHED
from benchmarks.peers.environment import Environment
from benchmarks.peers.peer import Peer

_CALLERS_MAX = 256  # a thousand take seconds per call, and tell nothing new
_ALL = frozenset({"asks", "workflow", "reopen"})
_SLOW = frozenset({"reopen"})

_DBOS = Environment("dbos", ("dbos==3.4.0",), tells=("dbos",))
_LANGGRAPH = Environment(
    "langgraph",
    ("langgraph==1.2.22", "langgraph-checkpoint-sqlite==3.1.2"),
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
        meaning="A workflow of one step for an ask: its start, the step's result and its end are stored. No mailbox: "
        "nothing puts two calls to the same entity in order.",
        settings=(
            f"{database}; otherwise as it comes. Its synchronous API, called directly by one caller and by asyncio.to_thread, "
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
        meaning="A run of a graph on a thread of its own, with checkpoints; one of a single node for an ask, of five for "
        "a workflow. No mailbox, and no restart by itself: after a crash the application has to find and resume its "
        "threads.",
        settings=(
            f"SQLite in WAL mode, synchronous FULL, as its saver sets it; {durability}. Its graphs are run by ainvoke, "
            "on a thread per caller; after a crash they are resumed 64 at a time."
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
