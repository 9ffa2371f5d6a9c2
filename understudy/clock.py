"""Time as the rest of the library sees it: wall clock for records and due times, the loop's clock for waiting.

Both come from the running loop, so that a loop with virtual time (see `understudy.testing`) moves them together.
`outside` marks work that goes on beyond the loop (a commit, a thread): virtual time stands still meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast


class TimedLoop(Protocol):
    """What a loop with virtual time adds to an event loop."""

    outside_work: int

    def wall_time(self) -> float:
        """Seconds since the epoch, in virtual time."""
        ...


def wall_clock(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the function that tells the wall time (seconds since the epoch) of *loop*."""
    if hasattr(loop, "wall_time"):
        return cast(TimedLoop, loop).wall_time
    return time.time


@contextmanager
def outside() -> Iterator[None]:
    """Mark work of the running loop that other threads do: a loop with virtual time does not jump meanwhile."""
    loop = asyncio.get_running_loop()
    if not hasattr(loop, "outside_work"):
        yield
        return
    timed = cast(TimedLoop, loop)
    timed.outside_work += 1
    try:
        yield
    finally:
        timed.outside_work -= 1
