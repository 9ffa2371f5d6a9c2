"""Crash points: let the process die at every boundary of a run, recover, and compare the ends.

A boundary is a moment at which a crash could tell: right before a commit; right after one, when it is on disk and
nobody has been told; as the body of a step, tool or model call begins; and as it has ended, before its outcome is
journaled. The workload runs once to count them, and then once for each of them: it dies there as under `kill -9`
(`os._exit` in a forked process), is started again on what it left behind, and must end like the run that never died.

```python
async def workload(world: World) -> object:
    async with System(world.store(), [Account]) as system:
        alice = system.actor(Account, "alice")
        await alice.deposit.options(key="salary")(500)      # sent again by the next life: the key makes it one
        await world.once("bonus", lambda: alice.deposit.tell(5))
        return await alice.balance()

def test_the_balance_survives_every_crash(tmp_path):
    crash_at_every_point(workload, directory=tmp_path)
```

Needs `os.fork`. Time is virtual and all SQL runs on the loop's thread, so that each run meets the same boundaries; a
workload that uses threads or sockets may not. It cannot lose synced writes, tear one, or flip bits.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import traceback
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, cast

import msgspec
from typing_extensions import override

from understudy.actors import performing
from understudy.mailbox.commit import Batch
from understudy.testing.stores import InlineSQLiteStore
from understudy.testing.virtual_time import VirtualTimeLoop

T = TypeVar("T")
BoundaryKind = Literal["before commit", "after commit", "body begins", "body ended"]

_CRASHED = 86  # exit status of a life that died where it was told to
_FAILED = 87
_RESTART_S = 1.0  # how long the world waits before it starts a dead process again
_SHOWN = 30  # lines of what happened that a failure shows
_LIVES_MAX = 50


class Boundary(msgspec.Struct, frozen=True):
    """One moment at which a life can die. `number` counts from 1 within its life."""

    number: int
    kind: BoundaryKind
    what: str

    def __str__(self) -> str:
        return f"boundary {self.number}: {self.kind} {self.what}"


class CrashTestFailed(AssertionError):
    """A run that crashed did not end like the run that did not; the text says where it died and what differs."""


class World:
    """What survives a crash: the store's file, and what was noted outside the process. Made by `crash_at_every_point`."""

    def __init__(self, directory: Path, life: int = 1) -> None:
        self.directory = directory
        self.life = life  # 1, then one more after each crash
        self.path = directory / "store.db"

    def store(self, **settings: Any) -> InlineSQLiteStore:
        """Return the store for this life's `System`; its commits are boundaries. Takes what `SQLiteStore` takes."""
        # Here the process dies and not the machine: what was written is kept without waiting for the disk.
        settings = {"lock_wait_s": 0.0, "durability": "process", **settings}
        return _CrashStore(self.path, **settings)

    def note(self, *facts: Any) -> None:
        """Write down plain data outside the process, such as the effect of a step's body; a crash cannot undo it."""
        _append(self.directory / "notes", [self.life, *facts])

    def notes(self) -> list[list[Any]]:
        """Return everything noted so far, each with its life in front."""
        return _lines(self.directory / "notes")

    async def once(self, name: str, send: Callable[[], Awaitable[T]]) -> T | None:
        """Await `send()` and write its plain result down; never a second time under this name, in no life.

        A later life gets the result of the first; None when the process died before there was one, and nobody knows
        whether it happened: `fate(name)` tells the two apart.
        """
        fate, result = self._fate(name)
        if fate != "unsent":
            return cast(T | None, result)
        _append(self.directory / "sent", [name])
        result = await send()
        _append(self.directory / "sent", [name, result])
        return result

    def fate(self, name: str) -> Literal["unsent", "unknown", "acknowledged"]:
        """Tell what became of `once(name, ...)`: "unknown" when the process died while it was under way."""
        return self._fate(name)[0]

    def _fate(self, name: str) -> tuple[Literal["unsent", "unknown", "acknowledged"], Any]:
        found = [line for line in _lines(self.directory / "sent") if line[0] == name]
        if not found:
            return "unsent", None
        return ("acknowledged", found[-1][1]) if len(found) > 1 else ("unknown", None)


_Json: TypeAlias = dict[str, Any] | list[Any] | str | float | bool | None
Workload = Callable[[World], Coroutine[Any, Any, Any]]
Check = Callable[[World, Any], None]


class CrashReport(msgspec.Struct, frozen=True):
    """What was done: the boundaries of the run without a crash, its result, and how many runs crashed."""

    boundaries: list[Boundary]
    result: Any
    runs: int
    crashes: int


def crash_at_every_point(
    workload: Workload,
    *,
    directory: str | os.PathLike[str],
    check: Check | None = None,
    only: Sequence[int] | None = None,
    again: int = 0,
    seed: int = 0,
) -> CrashReport:
    """Run *workload* once without a crash, then once for each boundary with a crash there; compare the ends.

    The workload opens a `System(world.store(), ...)`, works, and returns plain data: what the world can see in the end.
    A life that follows a crash calls it from its beginning, so it sends with keys or through `world.once`. Call this from
    a plain function, not from a coroutine.

    Args:
        workload: What to run.
        directory: Where the files go, one folder for each run.
        check: Called after each run with its world and its result; raises `AssertionError` when something is wrong.
        only: Numbers of the boundaries to crash at; default: all of them.
        again: How many more runs to make that crash twice, at boundaries chosen by *seed*.
        seed: Of the second crashes.

    Raises:
        CrashTestFailed: A run ended differently, or *check* refused it; the text names the boundary.
    """
    home = Path(directory)
    plain = _Run(home / "plain")
    result = plain.finish(workload, [])
    _check(check, plain, result, None)
    boundaries = plain.boundaries(1)
    plans = [[number] for number in (only if only is not None else range(1, len(boundaries) + 1))]
    dice = random.Random(seed)
    plans += [[dice.randint(1, len(boundaries)), dice.randint(1, 1 + len(boundaries) // 3)] for _ in range(again)]
    crashes = 0
    for plan in plans:
        run = _Run(home / "-".join(["crash", *map(str, plan)]))
        ended = run.finish(workload, plan)
        crashes += len(run.died_at)
        if not run.died_at:
            raise CrashTestFailed(
                f"boundary {plan[0]} was not met again, the run without a crash had {len(boundaries)}: the workload is "
                "not deterministic. Keep threads, sockets and random choices out of it."
            )
        if run.died_at[0].what != boundaries[plan[0] - 1].what:
            raise CrashTestFailed(
                f"{run.died_at[0]} was {boundaries[plan[0] - 1]} in the run without a crash: the workload is not "
                "deterministic. Keep threads, sockets and random choices out of it."
            )
        if ended != result:
            raise CrashTestFailed(f"{run.story()}\nIt ended differently:\n{_difference(result, ended)}")
        _check(check, run, ended, run.story())
        run.clear()
    return CrashReport(boundaries, result, len(plans), crashes)


def _check(check: Check | None, run: _Run, result: Any, story: str | None) -> None:
    if check is None:
        return
    try:
        check(World(run.directory), result)
    except AssertionError as error:
        raise CrashTestFailed(f"{story or 'In the run without a crash:'}\n{error}") from error


class _Run:
    """One world, from its beginning to its end, through all its lives."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.died_at: list[Boundary] = []
        directory.mkdir(parents=True)

    def finish(self, workload: Workload, plan: Sequence[int]) -> Any:
        """Run lives until one comes to the end; the n-th dies at boundary `plan[n]`."""
        for life in range(1, _LIVES_MAX):
            die_at = plan[life - 1] if life <= len(plan) else 0
            status = _in_child(functools.partial(_live, self.directory, life, die_at, workload))
            if status == 0:
                return _lines(self.directory / "result")[-1]
            if status != _CRASHED:
                text = (self.directory / "error").read_text() if (self.directory / "error").exists() else ""
                raise CrashTestFailed(f"{self.story()}\nLife {life} failed (exit status {status}):\n{text}")
            self.died_at.append(self.boundaries(life)[-1])
        raise CrashTestFailed(f"{self.story()}\nIt did not come to an end.")

    def boundaries(self, life: int) -> list[Boundary]:
        return [Boundary(*line) for line in _lines(self.directory / f"boundaries-{life}")]

    def story(self) -> str:
        """Return where each life died, and what it had noted."""
        if not self.died_at:
            return "In the run without a crash:"
        text = "\n".join(f"Life {life} died at {each}" for life, each in enumerate(self.died_at, 1))
        before = "\n".join(f"    {each}" for each in self.boundaries(1)[-8:-1])
        notes = "\n".join(f"    {line}" for line in _lines(self.directory / "notes")[-_SHOWN:])
        return f"{text}\n  before that, in life 1:\n{before}\n  noted outside (life first):\n{notes}"

    def clear(self) -> None:
        """Remove what a good run has left."""
        for file in self.directory.iterdir():
            file.unlink()
        self.directory.rmdir()


class _Points:
    """Counts the boundaries of this process, and dies at one of them."""

    def __init__(self, world: World, die_at: int) -> None:
        self.world = world
        self.die_at = die_at
        self.count = 0
        self._path = world.directory / f"boundaries-{world.life}"

    def reach(self, kind: BoundaryKind, what: str) -> None:
        """Note a boundary; do not return from the one to die at."""
        self.count += 1
        _append(self._path, [self.count, kind, what])
        if self.count == self.die_at:
            loop = asyncio.get_running_loop()
            if isinstance(loop, VirtualTimeLoop):
                _append(self.world.directory / "wall", loop.wall_time())
            os._exit(_CRASHED)


# Set in the forked child only, which lives for one run.
_points: _Points | None = None


class _CrashStore(InlineSQLiteStore):
    @override
    async def commit(self, batch: Batch) -> None:
        if _points is not None:
            _points.reach("before commit", _told(batch))
        await super().commit(batch)
        if _points is not None:
            _points.reach("after commit", _told(batch))


def _told(batch: Batch) -> str:
    """Return what a commit holds, for people."""
    parts = [
        f"{len(rows)} {name}"
        for name, rows in (
            ("accepted", batch.envelopes), ("ended", batch.finished), ("states", batch.snapshots),
            ("events", batch.events), ("outcomes", batch.journal), ("results", batch.results),
            ("dead letters", batch.dead), ("progress notes", batch.progress | batch.started), ("trace rows", batch.traces),
        )
        if rows
    ]  # fmt: skip
    return f"{batch.number} ({', '.join(parts)})"


def _live(directory: Path, life: int, die_at: int, workload: Workload) -> None:
    """Run one life in this process, to its end or its crash."""
    global _points  # noqa: PLW0603 - the store of this process, which lives for one run, has no other way to it
    world = World(directory, life)
    _points = _Points(world, die_at)
    points = _points
    random.seed(life)  # Back-offs spread; each run must spread alike.
    bodies = performing._run

    async def body(turn: Any, spec: performing.Spec, slot: Any) -> Any:
        name = f"of {spec.role} {spec.name} in turn {turn.no} of {turn.activation.name}"
        points.reach("body begins", name)
        try:
            return await bodies(turn, spec, slot)
        finally:
            points.reach("body ended", name)

    performing._run = body
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        loop = cast(VirtualTimeLoop, runner.get_loop())
        walls = _lines(directory / "wall")
        if walls:
            loop.jump_wall(walls[-1] + _RESTART_S - loop.wall_time())
        result = runner.run(workload(world))
    _append(directory / "result", result)


def _in_child(work: Callable[[], None]) -> int:
    """Run *work* in a forked process; return its exit status."""
    with warnings.catch_warnings():
        # Newer Pythons warn of threads here. The child uses none of them, and leaves without cleaning up.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = _FAILED
    try:
        asyncio._set_running_loop(None)
        work()
        status = 0
    except BaseException:
        directory = _points.world.directory if _points is not None else None
        if directory is not None:
            (directory / "error").write_text(traceback.format_exc())
        else:
            traceback.print_exc()
    finally:
        os._exit(status)


def _append(path: Path, fact: Any) -> None:
    # One write of an appending file: whole or not there. The page cache outlives the process.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, msgspec.json.encode(fact) + b"\n")
    finally:
        os.close(file)


def _lines(path: Path) -> list[Any]:
    try:
        return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []


def _difference(expected: _Json, got: _Json) -> str:
    if isinstance(expected, dict) and isinstance(got, dict):
        lines = [
            f"  {name}: expected {expected.get(name)!r}\n  {' ' * len(name)}       got {got.get(name)!r}"
            for name in {**expected, **got}
            if expected.get(name) != got.get(name)
        ]
        return "\n".join(lines)
    return f"  expected {expected!r}\n       got {got!r}"
