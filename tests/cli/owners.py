"""A program that owns a store, in a process of its own, until it is killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from understudy import Actor, Child, HandlerFailed, Supervisor, System, handler, step


@step
async def reserve(what: str) -> str:
    return what


class Order(Actor, kind="order"):
    """Fails as long as its store has no file `mended` beside it."""

    folder = Path()

    @handler
    async def place(self, what: str, pieces: int = 1) -> str:
        await reserve(what)
        with Path(self.folder / "reserved").open("a") as file:
            file.write(f"{what}\n")
        if not (self.folder / "mended").exists():
            raise ValueError(f"no {what} for \x1b[31m{self.id}")
        (self.folder / "placed").write_text(what)
        return what

    @handler
    async def wait(self) -> None:
        await asyncio.Event().wait()


TREE: list[Any] = [
    Supervisor("shop", [Order, Child(Order, "counter", restart="transient")], strategy="rest_for_one", max_restarts=2),
]


async def own(store: Path, jobs: int) -> None:
    """Own *store*; leave *jobs* dead letters and one turn that runs."""
    Order.folder = store.parent
    async with System(store, TREE) as system:
        for number in range(jobs):
            with suppress(HandlerFailed):
                await system.actor(Order, f"o-{number}").place(f"book-{number}")
        await system.actor(Order, "w-1").wait.tell()
        await system.actor(Order, "w-1").wait.tell()
        print("ready", flush=True)
        await asyncio.Event().wait()


@contextmanager
def owner(store: Path, jobs: int = 2) -> Iterator[subprocess.Popen[str]]:
    """Run `own` in another process as long as the context lasts."""
    code = (
        "import asyncio, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from tests.cli.owners import own; asyncio.run(own(Path(sys.argv[2]), int(sys.argv[3])))"
    )
    root = Path(__file__).parent.parent.parent
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root), str(store), str(jobs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()
