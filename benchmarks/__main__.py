"""Command line: measure, print, keep the result."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from benchmarks.aims import judge
from benchmarks.case import FULL, QUICK, Missing
from benchmarks.catalogue import WORKLOADS, all_cases
from benchmarks.machine import Others, look
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.peer import Peer
from benchmarks.report import Report, Told
from benchmarks.reporting.files import write
from benchmarks.reporting.page import make
from benchmarks.reporting.questions import seeds
from benchmarks.reporting.terminal import show
from benchmarks.run import run
from benchmarks.sample import NotMeasured

RESULTS = Path(__file__).parent / "results"
_WIDTH_IN_FILES = 130
_RUNNING = "running-"


@click.command()
@click.option("--only", type=click.Choice(list(WORKLOADS)), multiple=True, help="Measure this workload; repeatable.")
@click.option("--peers", "with_all", is_flag=True, help="Measure all peers beside ours; installs them first.")
@click.option("--peer", "named", multiple=True, help="Measure the peers whose name begins so; repeatable.")
@click.option("--repeats", type=click.IntRange(min=1), help="Samples of each figure.")
@click.option("--quick", is_flag=True, help="One short repetition with smaller numbers: shows that all works.")
@click.option(
    "--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here, and nothing else."
)
def main(
    only: tuple[str, ...],
    named: tuple[str, ...],
    repeats: int | None,
    *,
    with_all: bool,
    quick: bool,
    path: Path | None,
) -> None:
    """Measure understudy, the floors under it and the peers beside it.

    Files are made beside the results, in the checkout, and removed: temporary directories are often in memory.
    """
    scale = QUICK if quick else FULL
    if repeats is not None:
        scale = msgspec.structs.replace(scale, repeats=repeats)
    peers = _chosen(named, with_all=with_all)
    if path is not None:
        _check_writable(path)
    RESULTS.mkdir(exist_ok=True)
    started = datetime.now(UTC)
    began = time.perf_counter()
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH_IN_FILES
    with _progress() as bar, _own_directory() as directory:
        installed, told, absent = _install(peers, bar)
        machine = look(directory)
        others = Others()
        task = bar.add_task("")

        def note(done: int, total: int, following: str) -> None:
            bar.update(task, completed=done, total=total, description=following, refresh=True)

        figures, missing = run(list(all_cases(scale, only, installed)), scale, directory, note)
    report = Report(
        started_at=started.isoformat(timespec="seconds"),
        took_s=time.perf_counter() - began,
        others_cores=others.cores(),
        machine=machine,
        scale=scale,
        figures=figures,
        missing=[*absent, *missing],
        peers=told,
        aims=[] if quick else judge(figures, machine, scale),  # they are about the large numbers
        seeds=seeds(),
    )
    show(report, console)
    if path is None:
        path = make(report, RESULTS / f"{started:%Y-%m-%dT%H%M%S}")
    else:
        write(report, path)
    console.print(f"\nwritten to {path}", highlight=False)


def _check_writable(path: Path) -> None:
    """Find out now, not after minutes of measuring."""
    try:
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise click.BadParameter(
            f"{path} cannot be written ({error.strerror}); name a file in a directory of yours.", param_hint="--json"
        ) from error


@contextmanager
def _own_directory() -> Iterator[Path]:
    """Make a directory for the files of this run, and remove it however the run ends.

    What a run that was killed has left is removed by the next one.
    """
    for left in RESULTS.glob(f"{_RUNNING}*"):
        pid = left.name.removeprefix(_RUNNING).partition("-")[0]
        if not pid.isdecimal() or not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    # As Ctrl-C, which event loops know how to end on; an error out of a handler may strike them anywhere.
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with tempfile.TemporaryDirectory(prefix=f"{_RUNNING}{os.getpid()}-", dir=RESULTS) as directory:
            yield Path(directory)
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _chosen(named: Sequence[str], *, with_all: bool) -> list[Peer]:
    for name in named:
        if not name or not any(peer.name.startswith(name) for peer in PEERS):
            raise click.BadParameter(
                f"no peer's name begins with {name!r}; there are {'; '.join(peer.name for peer in PEERS)}",
                param_hint="--peer",
            )
    return [peer for peer in PEERS if with_all or peer.name.startswith(tuple(named))] if named or with_all else []


def _progress() -> Progress:
    # Drawn between measurements only: a thread that draws would take part in them.
    # What is measured gives way where there is little room, the numbers never do.
    return Progress(
        TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=20),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        console=Console(stderr=True),
        expand=True,
        auto_refresh=False,
        transient=True,
    )


def _install(peers: Sequence[Peer], bar: Progress) -> tuple[list[Peer], list[Told], list[Missing]]:
    """Return those that can be measured, what there is to tell about them, and those that could not be installed."""
    installed: list[Peer] = []
    told: list[Told] = []
    absent: list[Missing] = []
    task = bar.add_task("", total=len(peers), visible=bool(peers))
    for peer in peers:
        bar.update(task, description=f"installing {peer.name}", refresh=True)
        try:
            peer.environment.install()
            versions = peer.environment.versions()
        except NotMeasured as reason:
            absent.append(Missing("all", "all", peer.name, str(reason)))
        else:
            installed.append(peer)
            told.append(Told(peer.name, peer.durability, peer.settings, versions, peer.meaning))
        bar.advance(task)
    return installed, told, absent


if __name__ == "__main__":
    main()
