"""A peer in one of its settings, and how it is asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO

import msgspec

from benchmarks.case import Case, Contender, Place, Task
from benchmarks.peers.environment import Environment
from benchmarks.peers.task import MARK, UNABLE
from benchmarks.sample import NotMeasured, Sample

_ROOT = Path(__file__).parent.parent.parent
_TASK_S_MAX = 300.0
_SLOW_TASK_S_MAX = 1_200.0  # some replay ten thousand workflows for minutes


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Another system, set as its documentation recommends for speed."""

    name: str  # as the report calls it, with the setting
    program: str  # a module of *package*
    environment: Environment
    durability: str
    tasks: frozenset[str]  # which of them it has an equivalent for
    meaning: str  # what a figure of it stands for, in a sentence or two
    settings: str  # how it is set, in words
    package: str = "benchmarks.peers.programs"
    setting: str = ""
    callers_max: int = 1_024
    slow: frozenset[str] = frozenset()  # tasks that take it minutes, and that it is asked once


def with_peers(case: Case, peers: Sequence[Peer]) -> Case:
    """Return *case* with every peer that can answer it, after ours and the floors."""
    task = case.task
    if task is None:
        return case
    able = [peer for peer in peers if task.name in peer.tasks and task.callers <= peer.callers_max]
    return msgspec.structs.replace(
        case, contenders={**case.contenders, **{peer.name: _contender(peer, task) for peer in able}}
    )


def _contender(peer: Peer, task: Task) -> Contender:
    if task.name in peer.slow:
        slowly = partial(measure, peer=peer, task=task, seconds_max=_SLOW_TASK_S_MAX)
        return Contender(slowly, peer.durability, repeats_max=1)
    return Contender(partial(measure, peer=peer, task=task), peer.durability)


def measure(place: Place, peer: Peer, task: Task, seconds_max: float = _TASK_S_MAX) -> list[Sample]:
    """Let the peer's program do the task in a process of its own.

    When it has ended, or has taken *seconds_max*, what it started and left behind is killed.

    Raises:
        NotMeasured: It is not installed, ended with an error, or took too long.
    """
    peer.environment.install()
    with tempfile.TemporaryDirectory(prefix="peer-") as sockets:
        return _measure(place, peer, task, Path(sockets), seconds_max)


def _measure(place: Place, peer: Peer, task: Task, sockets: Path, seconds_max: float) -> list[Sample]:
    job = {
        "setting": peer.setting,
        "directory": str(place.own),
        "seconds": place.scale.seconds,
        "callers": task.callers,
        "count": task.count,
        "sockets": str(sockets),
    }
    command = [str(peer.environment.python), "-m", f"{peer.package}.{peer.program}", task.name]
    # Files, not pipes: what the program leaves behind would keep a pipe open. Not in its directory: that is empty.
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        # A session of its own, so that whatever it started ends with it.
        child = subprocess.Popen(
            [*command, json.dumps(job)],
            cwd=_ROOT,
            stdout=said,
            stderr=errors,
            start_new_session=True,
        )
        try:
            child.wait(timeout=seconds_max)
        except subprocess.TimeoutExpired:
            raise NotMeasured(f"took longer than {seconds_max:g} s") from None
        finally:
            _end(child)
        lines = [line for line in _text(said).splitlines() if line.startswith(MARK)]
        answers = [json.loads(line.removeprefix(MARK)) for line in lines]
        if child.returncode == UNABLE and answers:
            raise NotMeasured(answers[-1])
        if child.returncode != 0 or not answers:
            raise NotMeasured(f"ended with {child.returncode}: {_last_line(_text(errors))}")
    return [Sample(*answer) for answer in answers]


def _end(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no word"
