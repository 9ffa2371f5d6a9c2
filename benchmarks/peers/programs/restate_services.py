"""Restate: one server that journals every call and step, and the service that it calls over HTTP, a process of its own.

Callers go through the server's ingress, as an application's requests do.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from benchmarks.load import Call, measure
from benchmarks.peers.programs.loopback import HOST, Server, free_ports
from benchmarks.peers.task import Job, serve
from benchmarks.sample import Sample

_SENDERS = 64
_POLL_S = 0.02
_TIMEOUT_S = 60.0


class Post(Protocol):
    """Calls a handler by its path and returns its reply."""

    def __call__(self, path: str, number: int, /) -> Awaitable[Any]: ...


class _Stack:
    """The server with its data in the job's directory, and the service that it calls."""

    def __init__(self, job: Job) -> None:
        self._directory = job.directory
        ingress, self._admin, node, self._service = free_ports(4)
        self.ingress = f"http://{HOST}:{ingress}"
        configuration = job.directory / "restate.toml"
        configuration.write_text(
            _CONFIGURATION.format(
                setting=job.setting,
                data=json.dumps(str(job.directory / "data")),
                host=HOST,
                node=node,
                ingress=ingress,
                admin=self._admin,
            ),
            encoding="utf-8",
        )
        self.server = Server([_executable(), "--no-logo", "--config-file", configuration], node, job.directory)

    def service(self, expected: int = 0) -> Server:
        """Describe the service's process; with *expected*, it is to be heard."""
        command = [sys.executable, "-m", "benchmarks.peers.programs.restate_handlers"]
        arguments = [str(self._service), str(expected)]
        return Server([*command, *arguments], self._service, self._directory, speaks=expected > 0)

    def start(self) -> None:
        """Start the server; return once it takes calls."""
        self.server.start()
        for url in (f"http://{HOST}:{self._admin}/health", f"{self.ingress}/restate/health"):
            self.server.wait(partial(_answers, url))

    def register(self) -> None:
        """Make the service known to the server, which asks it for its handlers; return once calls reach it."""
        self._administer("deployments", {"uri": f"http://{HOST}:{self._service}"})
        self.server.wait(partial(_answers, f"{self.ingress}/Counter/first/add", b"1"))

    def query(self, sql: str) -> int:
        """Return the one number that the server's own tables give; after a restart, wait until they can be read."""
        until = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                ((number,),) = (row.values() for row in self._administer("query", {"query": sql})["rows"])
                return int(number)
            except urllib.error.HTTPError as error:
                # It says that its former self "was shut down or removed", for a second or two.
                if time.monotonic() > until:
                    raise RuntimeError(f"{sql} gave {error.code}: {error.read().decode()}") from error
            time.sleep(_POLL_S)

    def _administer(self, path: str, body: object) -> Any:  # whatever JSON comes
        request = urllib.request.Request(
            f"http://{HOST}:{self._admin}/{path}",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json", "accept": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            return json.loads(response.read())


_CONFIGURATION = """
node-name = "benchmarks"
base-dir = {data}
listen-mode = "tcp"
bind-ip = "{host}"
bind-port = {node}
advertised-address = "http://{host}:{node}"
disable-telemetry = true
log-filter = "warn"
{setting}
[ingress]
bind-port = {ingress}
[admin]
bind-port = {admin}
disable-web-ui = true
"""


def _executable() -> Path:
    # Not the script of that name: it starts the server as a child, which would outlive it when it is killed.
    packages = Path(sys.prefix).parent / "node_modules" / "@restatedev"
    return next(packages.glob("restate-server-*/bin/restate-server"))


def _answers(url: str, body: bytes | None = None) -> bool:
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"} if body else {})
    try:
        urllib.request.urlopen(request, timeout=1.0).close()
    except OSError:
        return False
    return True


@contextmanager
def _running(job: Job) -> Iterator[_Stack]:
    """Run both, for callers."""
    stack = _Stack(job)
    with stack.service():
        try:
            stack.start()
            stack.register()
            yield stack
        finally:
            stack.server.kill()


@asynccontextmanager
async def _ingress(stack: _Stack) -> AsyncIterator[Post]:
    """Yield what calls a handler."""
    async with aiohttp.ClientSession(stack.ingress, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def post(path: str, number: int) -> Any:  # the handler's reply
            async with session.post(path, json=number) as response:
                if not response.ok:
                    raise RuntimeError(f"{path} gave {response.status}: {await response.text()}")
                return await response.json()

        yield post


def asks(job: Job) -> Iterable[Sample]:
    """Callers that each call a virtual object of their own, which counts."""
    return _load(job, lambda post: lambda number: post(f"/Counter/counter-{number}/add", 1))


def workflow(job: Job) -> Iterable[Sample]:
    """Callers that each call a handler of five steps."""
    return _load(job, lambda post: lambda number: post("/Workflow/run", number))


def _load(job: Job, caller: Callable[[Post], Call]) -> list[Sample]:
    with _running(job) as stack:
        return asyncio.run(_measure(job, stack, caller))


async def _measure(job: Job, stack: _Stack, caller: Callable[[Post], Call]) -> list[Sample]:
    async with _ingress(stack) as post:
        return await measure(caller(post), job.callers, job.seconds, job.directory)


def reopen(job: Job) -> Iterable[Sample]:
    """Calls that the server has accepted when it is killed, until they are done; each to an object of its own."""
    stack = _Stack(job)
    try:
        with stack.service() as service:
            stack.start()
            stack.register()
            # Calls to a service that is down are stored, and tried again and again.
            service.kill()
            asyncio.run(_leave(stack, job.count))
            waiting = stack.query(_UNDONE)
            stack.server.kill()
        if waiting != job.count:
            raise AssertionError(f"of {job.count} calls {waiting} waited when the server was killed")
        began = time.perf_counter()
        # Before the server: a first try that fails would wait for the next one.
        with stack.service(job.count) as service:
            stack.start()
            return _finish(stack, service, job.count, began)
    finally:
        stack.server.kill()


async def _leave(stack: _Stack, count: int) -> None:
    numbers = iter(range(count))
    async with _ingress(stack) as post, asyncio.TaskGroup() as group:

        async def sender() -> None:
            for number in numbers:
                await post(f"/Worker/worker-{number}/handle/send", 1)

        for _ in range(_SENDERS):
            group.create_task(sender())


def _finish(stack: _Stack, service: Server, count: int, began: float) -> list[Sample]:
    # The server's tables are read when there is something to see, not before: reading them takes it time.
    service.hear()
    while stack.query(_DONE) == 0:
        time.sleep(_POLL_S)
    first_s = time.perf_counter() - began
    service.hear()
    while stack.query(_UNDONE) > 0:
        time.sleep(_POLL_S)
    all_s = time.perf_counter() - began
    done = stack.query(_DONE)
    if done != count:
        raise AssertionError(f"of {count} calls {done} were done")
    return [Sample("first answered", "s", first_s), Sample("all answered", "s", all_s)]


_DONE = "SELECT count(*) FROM state WHERE service_name = 'Worker'"
_UNDONE = "SELECT count(*) FROM sys_invocation WHERE status <> 'completed'"


if __name__ == "__main__":
    serve({"asks": asks, "workflow": workflow, "reopen": reopen})
