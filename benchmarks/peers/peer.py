"""A peer in one of its settings, and how it is asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.case import Case, Contender, Place, Task
from benchmarks.peers.environment import Environment
from benchmarks.peers.task import MARK, UNABLE
from benchmarks.sample import NotMeasured, Sample

_ROOT = Path(__file__).parent.parent.parent
_TASK_S_MAX = 420.0


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Another system, set as its documentation recommends for speed."""

    name: str  # as the report calls it, with the setting
    program: str  # of `benchmarks.peers.programs`
    environment: Environment
    durability: str
    tasks: frozenset[str]  # which of them it has an equivalent for
    setting: str = ""
    settings: str = ""  # what the report says about them
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
    return Contender(
        partial(measure, peer=peer, task=task), peer.durability, repeats_max=1 if task.name in peer.slow else None
    )


def measure(place: Place, peer: Peer, task: Task) -> list[Sample]:
    """Let the peer's program do the task in a process of its own.

    Raises:
        NotMeasured: It is not installed, ended with an error, or took too long.
    """
    peer.environment.install()
    job = {
        "setting": peer.setting,
        "directory": str(place.own),
        "seconds": place.scale.seconds,
        "callers": task.callers,
        "count": task.count,
    }
    command = [str(peer.environment.python), "-m", f"benchmarks.peers.programs.{peer.program}", task.name]
    with (place.own / "errors").open("w+b") as errors:
        # A session of its own, so that whatever it started ends with it.
        child = subprocess.Popen(
            [*command, json.dumps(job)],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = child.communicate(timeout=_TASK_S_MAX)
        except subprocess.TimeoutExpired:
            raise NotMeasured(f"took longer than {_TASK_S_MAX:g} s") from None
        finally:
            _end(child)
        answers = [json.loads(line.removeprefix(MARK)) for line in said.splitlines() if line.startswith(MARK)]
        if child.returncode == UNABLE:
            raise NotMeasured(answers[-1])
        if child.returncode != 0 or not answers:
            errors.seek(0)
            raise NotMeasured(f"ended with {child.returncode}: {_last_line(errors.read().decode(errors='replace'))}")
    return [Sample(*answer) for answer in answers]


def _end(child: subprocess.Popen[str]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no word"
