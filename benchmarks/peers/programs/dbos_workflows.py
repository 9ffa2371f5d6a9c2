"""DBOS: functions whose steps its library stores in a database, in SQLite as it comes, in WAL mode or in PostgreSQL.

Measured is its synchronous API, called as programs on asyncio call such a thing: directly when nothing else is to be
done meanwhile, otherwise by `asyncio.to_thread`. With each of the databases it was at least as fast as the
asynchronous one, whose every access to the database is a hop to another thread.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from dbos import DBOS, DBOSConfig

from benchmarks.load import measure
from benchmarks.peers.programs.leaving import leave
from benchmarks.peers.programs.postgres import postgres
from benchmarks.peers.task import Job, serve
from benchmarks.sample import Sample

_STEPS = 5
_LEAVE = "leave"  # what the command line of the child says that is killed
_LEAVE_THREADS = 8
_POLL_S = 0.02


class _Gate:
    """Holds steps back, or counts those that come through."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.first = threading.Event()
        self.passed: list[str] = []

    def enter(self, name: str) -> None:
        self.opened.wait()
        self.passed.append(name)
        self.first.set()


_gate = _Gate()


@DBOS.step()
def fetch(number: int) -> int:
    """Stand for something that reaches outside, and costs nothing itself."""
    return number + 1


@DBOS.workflow()
def one_step(number: int) -> int:
    return fetch(number)


@DBOS.workflow()
def five_steps(number: int) -> int:
    for _ in range(_STEPS):
        number = fetch(number)
    return number


@DBOS.step()
def enter_gate(name: str) -> str:
    _gate.enter(name)
    return name


@DBOS.workflow()
def held_back(name: str) -> str:
    return enter_gate(name)


def asks(job: Job) -> Iterable[Sample]:
    """Measure workflows of one step; each is stored as begun, with its step's result, and as finished."""
    return _measure(job, one_step)


def workflow(job: Job) -> Iterable[Sample]:
    """Measure workflows of five steps."""
    return _measure(job, five_steps)


def _measure(job: Job, run: Callable[[int], int]) -> list[Sample]:
    async def call(number: int) -> int:
        return run(number) if job.callers == 1 else await asyncio.to_thread(run, number)

    with _database(job) as url, _launched(url):
        return asyncio.run(measure(call, job.callers, job.seconds, job.directory))


def reopen(job: Job) -> Iterable[Sample]:
    """Measure from the start of DBOS until workflows that had begun in a killed process are finished and stored so."""
    with _database(job) as url:
        leave("benchmarks.peers.programs.dbos_workflows", _LEAVE, url, str(job.count))
        _gate.opened.set()
        began = time.perf_counter()
        with _launched(url):
            # The database is asked only when the answer is near: questions would take part in what is measured.
            _gate.first.wait()
            _wait(lambda: _any_workflow("SUCCESS"))
            first_s = time.perf_counter() - began
            _wait(lambda: len(_gate.passed) >= job.count)
            _wait(lambda: not _any_workflow("PENDING", "ENQUEUED"))
            all_s = time.perf_counter() - began
            finished = len(DBOS.list_workflows(status="SUCCESS", load_input=False, load_output=False))
    if finished != job.count:
        raise AssertionError(f"of {job.count} workflows {finished} have finished")
    return [Sample("first answered", "s", first_s), Sample("all answered", "s", all_s)]


def _any_workflow(*status: str) -> bool:
    return bool(DBOS.list_workflows(status=list(status), limit=1, load_input=False, load_output=False))


def _wait(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(_POLL_S)


def _begin(url: str, count: int) -> None:
    """Say `ready` once all workflows are stored as begun, and wait to be killed."""
    # Those held back keep a thread each; the others need none for being stored.
    with _launched(url, max_executor_threads=_LEAVE_THREADS):
        for number in range(count):
            DBOS.start_workflow(held_back, f"worker-{number}")
        print("ready", flush=True)
        threading.Event().wait()


@contextmanager
def _launched(url: str, max_executor_threads: int | None = None) -> Iterator[None]:
    config = DBOSConfig(
        name="benchmarks",
        system_database_url=url,
        max_executor_threads=max_executor_threads,
        log_level="ERROR",
    )
    DBOS(config=config)
    try:
        DBOS.launch()
        yield
    finally:
        DBOS.destroy()


@contextmanager
def _database(job: Job) -> Iterator[str]:
    """Yield the address of an empty database."""
    if job.setting == "postgres":
        with postgres(job.directory) as at:
            yield f"postgresql://{at}/dbos"
        return
    path = job.directory / "dbos.sqlite"
    if job.setting == "wal":
        _switch_to_wal(path)
    yield f"sqlite:///{path}"


def _switch_to_wal(path: Path) -> None:
    # The file remembers it. `synchronous` is FULL where nobody says otherwise, and DBOS does not.
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


if __name__ == "__main__":
    if sys.argv[1] == _LEAVE:
        _begin(sys.argv[2], int(sys.argv[3]))
    else:
        serve({"asks": asks, "workflow": workflow, "reopen": reopen})
