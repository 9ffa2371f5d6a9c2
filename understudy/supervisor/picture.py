"""The tree as it can be drawn, live or from what was stored of it: plain data, no behaviour."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["supervisor", "child", "template"]
ChildStatus = Literal["running", "restarting", "stopped", "suspended"]


class Picture(msgspec.Struct, frozen=True, omit_defaults=True):
    """One supervisor, static child or template, and what is below it, in start order.

    Of a template `instances` are alive in memory; a stored picture tells nothing of status, restarts and instances.
    """

    role: Role
    name: str  # of the supervisor, or the child's id within it
    kind: str = ""  # of the actors; of a supervisor its strategy
    id: str = ""  # of a static child's actor
    status: ChildStatus = "running"
    restart: str = ""  # restart type
    restarts: int = 0  # within the window, of a supervisor
    max_restarts: int = 0
    within_s: float = 0.0
    instances: int = 0
    also: tuple[str, ...] = ()  # kinds that a template's class reaches: its tools and agents
    children: tuple[Picture, ...] = ()
