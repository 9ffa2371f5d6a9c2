"""How a peer's program is asked: `python -m benchmarks.peers.programs.NAME TASK JSON`, and how it answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.sample import NotMeasured, Sample

MARK = "understudy sample: "  # begins each line that is meant for us; libraries print as well
UNABLE = 3  # how a program ends that says why it cannot measure: the text follows on a line with the mark


class Job(NamedTuple):
    """What a task is told."""

    setting: str  # which of the peer's settings
    directory: Path  # an empty one, on the disk that is measured
    seconds: float
    callers: int
    count: int
    sockets: Path  # another empty one, with a path as short as those of sockets have to be


def serve(tasks: Mapping[str, Callable[[Job], Iterable[Sample]]]) -> None:
    """Do the task that the command line names; call it last in the program."""
    # Each answer begins with a new line: a library may have left its own without an end.
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    paths = {name: Path(arguments[name]) for name in ("directory", "sockets")}
    job = Job(**{**arguments, **paths})
    try:
        for sample in tasks[name](job):
            print("\n" + MARK + json.dumps(sample), flush=True)
    except NotMeasured as reason:
        print("\n" + MARK + json.dumps(str(reason)), flush=True)
        sys.exit(UNABLE)
