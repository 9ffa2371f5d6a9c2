"""Command line: measure, print, keep the result."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

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
    with _progress() as bar, tempfile.TemporaryDirectory(prefix="running-", dir=RESULTS) as directory:
        installed, told, absent = _install(peers, bar)
        machine = look(Path(directory))
        others = Others()
        task = bar.add_task("")

        def note(done: int, total: int, following: str) -> None:
            bar.update(task, completed=done, total=total, description=following, refresh=True)

        figures, missing = run(list(all_cases(scale, only, installed)), scale, Path(directory), note)
    report = Report(
        started_at=started.isoformat(timespec="seconds"),
        took_s=time.perf_counter() - began,
        others_cores=others.cores(),
        machine=machine,
        scale=scale,
        figures=figures,
        missing=[*absent, *missing],
        peers=told,
        aims=judge(figures, machine, scale),
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
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.unlink()
    except OSError as error:
        raise click.BadParameter(
            f"{path} cannot be written ({error.strerror}); name a file in a directory of yours.", param_hint="--json"
        ) from error


def _chosen(named: Sequence[str], *, with_all: bool) -> list[Peer]:
    for name in named:
        if not any(peer.name.startswith(name) for peer in PEERS):
            raise click.BadParameter(
                f"no peer's name begins with {name!r}; there are {'; '.join(peer.name for peer in PEERS)}",
                param_hint="--peer",
            )
    return [peer for peer in PEERS if with_all or peer.name.startswith(tuple(named))] if named or with_all else []


def _progress() -> Progress:
    # Drawn between measurements only: a thread that draws would take part in them.
    return Progress(
        TextColumn("{task.description:60}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
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
            told.append(Told(peer.name, peer.durability, peer.settings, versions))
        bar.advance(task)
    return installed, told, absent


if __name__ == "__main__":
    main()
