"""durable-actors: its development server on this machine, which runs each actor in a process of its own.

Each actor keeps its state in SQLite; callers reach it through the package's asynchronous client, over HTTP on loopback.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from durable_actors import AsyncClient

from benchmarks.load import measure
from benchmarks.peers.programs.loopback import HOST, Server, free_port
from benchmarks.peers.task import Job, serve
from benchmarks.sample import NotMeasured, Sample

_EXECUTABLE = Path(sys.executable).parent / "durable-actors"
_TIMEOUT_S = 180.0
_STARTING_MAX = 4  # processes at a time: the server gives each 30 s to begin, and too many at once take longer
_PROCESS_MB = 31  # as measured: memory that a host and its Python share with no other
_STAY_MS = 600_000  # actors end when they are idle, and some of many would while the others are being started
_STOP_S_MAX = 60.0
_ACTORS = """
from durable_actors import AsyncActor, persisted


class Counter(AsyncActor):
    count: int = persisted(0)

    async def add(self, number: int) -> int:
        self.count += number
        return self.count
"""
_PROJECT = """
[project]
name = "benchmarks"
version = "1"
requires-python = ">=3.11"
"""


@contextmanager
def _server(directory: Path) -> Iterator[Server]:
    """Run a development server for a project in *directory*."""
    (directory / "src").mkdir()
    (directory / "src" / "actors.py").write_text(_ACTORS, encoding="utf-8")
    (directory / "pyproject.toml").write_text(_PROJECT, encoding="utf-8")
    port = free_port()
    command = [_EXECUTABLE, "dev", "--no-watch", "--storage", "local", "--port", str(port)]
    places = ["--project", directory, "--entrypoint", "src/actors.py", "--data-dir", directory / "data"]
    stay = {"DURABLE_ACTORS_HOST_IDLE_TIMEOUT_MS": str(_STAY_MS)}
    with Server([*command, *places], port, directory, environment=stay) as server:
        try:
            yield server
        finally:
            # Asked to, it ends the actors' processes as well; what it leaves when it has failed ends with our session.
            server.running.send_signal(signal.SIGINT)
            server.running.wait(_STOP_S_MAX)


def asks(job: Job) -> Iterable[Sample]:
    """Callers that each call an actor of their own, which counts."""
    with _server(job.directory) as server:
        return asyncio.run(_asks(job, server))


async def _asks(job: Job, server: Server) -> list[Sample]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        httpx.AsyncClient(timeout=_TIMEOUT_S, limits=limits) as http,
        AsyncClient(f"http://{HOST}:{server.port}", http=http) as client,
    ):

        async def call(number: int) -> object:
            return await client.invoke("Counter", f"counter-{number}", "add", [1])

        starting = asyncio.Semaphore(_STARTING_MAX)

        async def start(number: int) -> None:
            async with starting:
                await call(number)

        async with asyncio.TaskGroup() as group:
            for number in range(job.callers):
                group.create_task(start(number))
        return await measure(call, job.callers, job.seconds, job.directory)


def reopen(job: Job) -> Iterable[Sample]:
    """Tell why not."""
    raise NotMeasured(f"each actor is a process of about {_PROCESS_MB} MB of its own: {job.count:,} of them do not fit")


if __name__ == "__main__":
    serve({"asks": asks, "reopen": reopen})
