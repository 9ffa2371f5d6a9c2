"""What stands between a supervisor and the world: the members that it starts and stops, and the stage it stands on."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from understudy.errors import Ignore
from understudy.events import TraceEvent
from understudy.supervisor.picture import Picture
from understudy.supervisor.specs import Child, RestartType, Spec, Supervisor, child_id

if TYPE_CHECKING:
    from understudy.supervisor.tree import RunningSupervisor

SlotState = Literal["stopped", "running", "restarting"]

_NORMAL = re.compile(r"normal|shutdown(\(.*\))?", re.DOTALL)


def is_normal(reason: str) -> bool:
    """Whether an actor that ended by itself with *reason* ended as it should: a transient one is then not restarted."""
    return _NORMAL.fullmatch(reason) is not None


class Member(Protocol):
    """What a supervisor starts and stops. A coroutine is returned only when there is something to wait for."""

    child_id: str
    incarnation: int  # grows with each start: ends of earlier ones are told from the present one's

    def start(self) -> Coroutine[Any, Any, None] | None:
        """Start; raises what kept it from starting, or `Ignore`."""
        ...

    def stop(self, shutdown_s: float) -> Coroutine[Any, Any, None] | None:
        """End whatever runs within *shutdown_s*, and abandon what does not end; nothing new begins. Never fails."""
        ...

    def abandon(self) -> None:
        """End at once, without waiting for anything."""
        ...

    def retire(self, reason: str) -> None:
        """Note that it has been stopped and does not come back by itself."""
        ...

    def forget(self, reason: str) -> None:
        """Note that it is no child any more."""
        ...

    def is_held(self) -> bool:
        """Whether it is suspended, or stopped for good."""
        ...

    def revive(self) -> Callable[[str], None]:
        """Let it be started although it was held or stopped; return what undoes that, when it cannot be started."""
        ...

    def restarted(self, reason: str) -> None:
        """Tell the trace that it was started again, and why."""
        ...

    def picture(self) -> Picture:
        """Return it as it can be drawn."""
        ...


class Stage(Protocol):
    """What supervisors stand on."""

    def now(self) -> float:
        """Return monotonic seconds."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[Any]:
        """Run a task; an error in it stops the system."""
        ...

    def make(self, spec: Spec, supervisor: RunningSupervisor) -> Member:
        """Return the member for a static child or a template."""
        ...

    async def prepare(self, members: Sequence[Member]) -> None:
        """Bring into memory what many members need, in few reads."""
        ...

    def check_new(self, spec: Spec) -> None:
        """Refuse a child whose actor, class or name is in the tree already; raises `InvalidDefinition`."""
        ...

    def enter(self, supervisor: RunningSupervisor) -> None:
        """Note the supervisor under its name."""
        ...

    def leave(self, supervisor: RunningSupervisor) -> None:
        """Forget the supervisor: it is in the tree no more."""
        ...

    def note(self, event: Callable[..., TraceEvent], supervisor: str, **facts: Any) -> None:
        """Put an event about a supervisor into the trace."""
        ...

    def ended(self, cause: BaseException | None) -> None:
        """Take notice that the root has ended: the system stops."""
        ...


class StoppedForGood(Ignore):
    """A member does not start, because its policy or a person stopped it; it is kept, whatever its restart type."""


class Slot:
    """A child's place under its supervisor, in start order."""

    __slots__ = ("id", "member", "restart", "retrying", "shutdown_s", "significant", "spec", "state")

    def __init__(self, spec: Spec, member: Member) -> None:
        self.spec = spec
        self.id = child_id(spec)
        self.member = member
        self.state: SlotState = "stopped"
        self.retrying = False  # another attempt to start it waits in the mailbox
        self.restart: RestartType = "permanent"
        self.shutdown_s = math.inf  # a template bounds its own
        self.significant = False
        if isinstance(spec, (Child, Supervisor)):
            self.restart, self.shutdown_s, self.significant = spec.restart, spec.shutdown_s, spec.significant
