"""Where a run works: a directory beside the results that goes with the run, however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

RESULTS = Path(__file__).parent / "results"
_RUNNING = "running-"


@contextmanager
def own_directory(results: Path) -> Iterator[Path]:
    """Make a directory for the files of this run, and remove it when the run ends, also by SIGTERM.

    What a run that was killed has left is removed by the next one.
    """
    results.mkdir(exist_ok=True)
    for left in results.glob(f"{_RUNNING}*"):
        pid = left.name.removeprefix(_RUNNING).partition("-")[0]
        if not pid.isdecimal() or not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    terminate = signal.signal(signal.SIGTERM, _as_interrupt)
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.SIG_IGN:  # As in what a script starts with `&`: event loops would not listen either.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix=f"{_RUNNING}{os.getpid()}-", dir=results) as directory:
            yield Path(directory)
    finally:
        signal.signal(signal.SIGTERM, terminate)
        signal.signal(signal.SIGINT, interrupt)


def _as_interrupt(_number: int, _frame: FrameType | None) -> None:
    """Take SIGTERM as Ctrl-C, which event loops know how to end on; an error out of a handler may strike them anywhere."""
    signal.raise_signal(signal.SIGINT)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
