"""`understudy demo`: start the worker, watch it die, start it again, and show what was paid."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import click
import msgspec

import understudy.cli as here
from understudy.cli.demo.corpus import PLAIN, Index
from understudy.cli.demo.ledger import read_ledger, repeated
from understudy.cli.demo.program import MODEL, Report
from understudy.cli.demo.screen import Screen, console
from understudy.cli.demo.script import Script
from understudy.cli.demo.worker import Config, Told
from understudy.events import Event, ModelCalled, TurnFinished, TurnStarted
from understudy.mailbox import reading
from understudy.mailbox.visitor import visit
from understudy.testing import FakeAnthropic
from understudy.trace import words
from understudy.trace.tree import Trace, build_trace, decode_events

_PACKAGE: Final = Path(here.__file__).parent.parent
_QUESTION: Final = (
    "When a process dies, is a finished step repeated, and is a model call that was in flight paid again?"
)
_LINE_BYTES_MAX: Final = 1 << 22  # of one line from the worker
_EVENTS_MAX: Final = 100_000
_NO_KEY: Final = (
    "--live calls the real model and needs a key: set ANTHROPIC_API_KEY. Without --live a script on this machine plays "
    "the model, and no key is needed."
)


@click.command()
@click.option("--docs", type=click.Path(path_type=Path), help="Folder of text files to ask (default: this project's).")
@click.option("--question", help="What to ask them.")
@click.option("--live", is_flag=True, help="Call the real model (ANTHROPIC_API_KEY); it costs a few cents.")
@click.option("--pace", default=1.0, hidden=True, type=click.FloatRange(min=0), help="Slowness of the scripted model.")
def demo(docs: Path | None, question: str | None, live: bool, pace: float) -> None:  # noqa: FBT001 - click's signature
    """Kill an agent in the middle of its work and watch it go on.

    A research agent answers a question from a folder of text files. Half-way its process is killed with SIGKILL and
    started again; it goes on where it was, and no model call is paid twice.
    """
    folder, endings = _folder(docs)
    index = _index(folder, endings)
    if live and not os.environ.get("ANTHROPIC_API_KEY"):
        raise click.UsageError(_NO_KEY)
    play = _Play(
        folder, endings, index, question or _question(docs, index), place=_place(), pace=None if live else pace
    )
    code = asyncio.run(play.run())
    if code:
        raise click.exceptions.Exit(code)


def _folder(docs: Path | None) -> tuple[Path, Sequence[str]]:
    """Return the folder, and the endings of the files to read in it."""
    if docs is not None:
        if not docs.exists():
            raise click.BadParameter(f"there is no folder {str(docs)!r}.", param_hint="--docs")
        if not docs.is_dir():
            raise click.BadParameter(f"{str(docs)!r} is a file; name the folder it lies in.", param_hint="--docs")
        return docs, PLAIN
    if _is_repository(Path.cwd()):
        return Path.cwd(), (".md",)
    return _PACKAGE, (".py",)  # What is installed everywhere: the library's own docstrings.


def _is_repository(folder: Path) -> bool:
    return (folder / "README.md").is_file() and (folder / "understudy" / "cli" / "demo").is_dir()


def _index(folder: Path, endings: Sequence[str]) -> Index:
    try:
        index = Index(folder, endings)
    except sqlite3.OperationalError as error:
        raise click.ClickException(f"this Python's SQLite has no full text search (FTS5): {error}.") from error
    if not len(index):
        raise click.BadParameter(
            f"{str(folder)!r} has no text to search: no file {', '.join(endings)} with at least one paragraph.",
            param_hint="--docs",
        )
    return index


def _question(docs: Path | None, index: Index) -> str:
    if docs is None:
        return _QUESTION
    topics = index.topics(2)
    if not topics:
        return "What do these documents say?"
    return f"What do these documents say about {' and '.join(topics)}?"


def _place() -> Path:
    """Make the folder for this run's files: in the repository where git ignores it, else among temporary files."""
    if not _is_repository(Path.cwd()):
        return Path(tempfile.mkdtemp(prefix="understudy-demo-"))
    number = 1
    while True:
        place = Path.cwd() / ".demo" / f"run-{number}"
        try:
            place.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return place


def _shown(path: Path) -> str:
    """Return *path* as the user would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class _Phase(msgspec.Struct):
    """One agent's turn, as far as it got."""

    name: str
    is_done: bool = False
    model_calls: int = 0
    usd_micros: int = 0


class _Life(msgspec.Struct):
    """What the parent learned from one life of the worker."""

    exit_code: int = 0
    job: str = ""
    report: Report | None = None
    phases: dict[str, _Phase] = {}  # by span
    tools: dict[str, str] = {}  # tools that have not finished: span -> name

    def note(self, event: Event) -> None:
        """Take in what the worker tells."""
        match event:
            case TurnStarted(role="tool"):
                self.tools[event.span] = f"tool {event.kind.removeprefix('tool:')}"
            case TurnStarted(role="agent"):
                self.phases[event.span] = _Phase(event.kind)
            case TurnFinished():
                self.tools.pop(event.span, None)
                if event.span in self.phases:
                    self.phases[event.span].is_done = True
            case ModelCalled(parent=str(parent)) if parent in self.phases:
                self.phases[parent].model_calls += 1
                self.phases[parent].usd_micros += event.usd_micros or 0
            case _:
                pass


class _Play:
    """One run of the demo."""

    def __init__(
        self, folder: Path, endings: Sequence[str], index: Index, question: str, *, place: Path, pace: float | None
    ) -> None:
        self._pace = pace  # None: the real model
        self._index = index
        self._place = place
        self._screen = Screen(console())
        self._store = self._place / "agents.db"
        self._ledger = self._place / "ledger.jsonl"
        self._log = self._place / "worker.log"
        self._config = Config(
            store=str(self._store),
            docs=str(folder.absolute()),
            endings=list(endings),
            question=question,
            report=str(self._place / "report.md"),
            ledger=str(self._ledger),
            base_url=None,
            is_armed=True,
        )

    async def run(self) -> int:
        """Play to the end, or until a signal stops it; return the exit code."""
        loop = asyncio.get_running_loop()
        playing = loop.create_task(self._play())
        stopped_by: list[int] = []

        def stop(number: int) -> None:
            stopped_by.append(number)
            playing.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        try:
            return await playing
        except asyncio.CancelledError:
            if not stopped_by:
                raise
            self._screen.say("")
            self._screen.say(f"Stopped. The worker has ended; its store is {_shown(self._store)}.", "yellow")
            return 128 + stopped_by[0]

    async def _play(self) -> int:
        screen, index = self._screen, self._index
        screen.title(
            "An agent that is killed at work, and goes on",
            "Three agents answer a question from a folder of text files. Half-way their process kills itself with SIGKILL: no "
            "handler runs, nothing is saved. It is started again, finds in one SQLite file what it had done, and goes on.",
        )
        files = words.count(len(index.documents), "file")
        place = "the current folder" if index.folder == Path.cwd() else _shown(index.folder)
        screen.facts(
            {
                "question": self._config.question,
                "documents": f"{files}, {words.count(len(index), 'passage')}, in {place}",
                "model": MODEL if self._pace is None else f"{MODEL}, played by a script here: no key, no network",
                "store": _shown(self._store),
            }
        )
        async with AsyncExitStack() as stack:
            if self._pace is not None:
                fake = await stack.enter_async_context(
                    FakeAnthropic(
                        Script(self._pace), ledger_path=self._ledger
                    )  # It lives here, and outlives the worker.
                )
                self._config.base_url = fake.url
            first = await self._live(1, "", [])
            before = len(read_ledger(self._ledger))
            if first.exit_code == -signal.SIGKILL:
                screen.killed(", ".join(first.tools.values()) or "a step", before)
                self._config.is_armed = False
                done = [phase for phase in first.phases.values() if phase.is_done]
                remark = "The same program on the same file. Nobody tells it what had been done."
                last = await self._live(2, remark, done)
            else:
                last = first
        if last.exit_code != 0 or last.report is None:
            return self._failed(last)
        screen.heading("The report")
        screen.report(last.report)
        return self._account(last.job, before)

    async def _live(self, number: int, remark: str, done: list[_Phase]) -> _Life:
        """Run the worker once, and show what it tells; *done* are the agents that answered in its life before."""
        life = _Life()
        async with self._worker() as process:
            self._screen.begin_life(number, process.pid, remark)
            assert process.stdout is not None
            async for line in process.stdout:
                try:
                    told = msgspec.json.decode(line, type=Told)
                except msgspec.DecodeError:
                    continue  # The kill cut it.
                life.job = told.job or life.job
                life.report = told.report or life.report
                if told.event is not None:
                    life.note(told.event)
                    names = {phase.name for phase in life.phases.values()}
                    if done and names and not names & {phase.name for phase in done}:
                        # The work went on behind them: their answers came from the journal.
                        for phase in done:
                            self._screen.carried_over(phase.name, phase.model_calls, phase.usd_micros)
                        done = []
                    self._screen.show(told.event)
            life.exit_code = await process.wait()
        return life

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """Start the worker; it ends with this block, whatever happens."""
        python_path = [str(_PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self._log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # What lies in the current folder is not our program.
                "-m",
                "understudy.cli.demo.worker",
                msgspec.json.encode(self._config).decode(),
                stdin=asyncio.subprocess.PIPE,  # Its end tells the worker that we are gone.
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(python_path)},
                limit=_LINE_BYTES_MAX,
                start_new_session=True,  # Ctrl-C is for us; we end it.
            )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _failed(self, life: _Life) -> int:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        self._screen.say("")
        why = lines[-1] if lines else "it said nothing"
        self._screen.say(f"The worker ended with exit code {life.exit_code}: {why}", "bold red")
        self._screen.say(f"All it said is in {_shown(self._log)}.")
        return 1

    def _account(self, job: str, before: int) -> int:
        """Show the trace and what was paid; return the exit code."""
        screen = self._screen
        trace = _read_trace(self._store, job)
        screen.heading("The trace, across both lives")
        screen.trace(trace)
        paid = read_ledger(self._ledger)
        twice = repeated(paid)
        totals = trace.totals
        again = sum(
            event.usd_micros or 0 for event in trace.events if isinstance(event, ModelCalled) and event.life == 1
        )
        screen.heading("The ledger")
        screen.ledger(
            [
                ("model calls paid in life 1", str(before), ""),
                ("model calls paid in life 2", str(len(paid) - before), ""),
                ("model calls paid twice", str(twice), "bold red" if twice else "bold green"),
                ("cost of the whole answer", words.cost(totals.usd_micros, is_unknown=totals.usd_unknown), ""),
                ("what starting over would have cost on top", words.money(again), "dim"),
            ]
        )
        keeper = "the worker, at each answer" if self._pace is None else "the endpoint, outside the worker"
        screen.say(f"Kept by {keeper}: {_shown(self._ledger)}", "dim")
        screen.heading("Look again")
        screen.facts(
            {
                "the trace": f"understudy trace {_shown(self._store)} {job}",
                "the report": _shown(Path(self._config.report)),
                "the program": _shown(_PACKAGE / "cli" / "demo" / "program.py"),
            }
        )
        if not totals.crashes:
            screen.say("")
            screen.say("The process was not killed: the model never came to a step where that happens.", "yellow")
        return 1 if twice else 0


def _read_trace(store: Path, job: str) -> Trace:
    with visit(store) as connection:
        bodies = [row.body for row in reading.traces(connection, job, 0, _EVENTS_MAX)]
    events, _ = decode_events(bodies)
    return build_trace(job, events, is_live=False)
