"""The address of a supervisor: what people and programs may order it to do while it works."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from understudy.actors import standing, stopping
from understudy.actors.actor import Actor
from understudy.actors.ref import Ref
from understudy.actors.target import ActorTarget
from understudy.actors.tool import Tool
from understudy.actors.turn import scope
from understudy.errors import InvalidArguments, NotFound, Running
from understudy.supervisor.orders import ChildCounts, ChildInfo
from understudy.supervisor.specs import Child, Supervisor
from understudy.supervisor.tree import RunningSupervisor

if TYPE_CHECKING:
    from understudy.actors.activation import Activation
    from understudy.actors.system import System

T = TypeVar("T")


class SupervisorRef:
    """The address of a supervisor, valid across its restarts: `system.supervisor("research")`.

    A child is named by its id within the supervisor: the id of a static child, the name of a supervisor, the kind of a
    template. An actor on demand is named by its ref. Orders are carried out one after the other, in the order in which
    they come, also when who gave them is cancelled meanwhile. All raise `NotFound` when the supervisor does not run.
    """

    def __init__(self, system: System, name: str) -> None:
        self._system = system
        self.name = name

    def __repr__(self) -> str:
        return f"<supervisor {self.name}>"

    async def start_child(self, spec: type[Actor[Any, Any]] | Tool[..., Any] | Child | Supervisor, /) -> ChildInfo:
        """Add a child at the end and start it; it is forgotten when the supervisor, or the process, is started again.

        Raises:
            AlreadyStarted: A child with this id runs.
            AlreadyPresent: A child with this id is there, not running.
            StartFailed: It could not be started; its spec is not kept, the cause is chained.
            InvalidDefinition: The spec does not fit this supervisor, or is in the tree already.
        """
        return await self._given(self._running().orders.start_child(spec))

    async def terminate_child(self, child: str | Actor[Any, Any], /) -> None:
        """Stop a child and keep its spec, or stop an actor on demand for good; nothing when it does not run.

        A temporary child is forgotten. An actor on demand stays stopped, also after a restart of the process.

        Raises:
            NotFound: The supervisor has no such child.
        """
        if isinstance(child, str):
            await self._given(self._running().orders.terminate_child(child))
            return
        activation = await self._instance(child)
        turn = scope.get()
        if turn is not None and turn.activation is activation:
            raise InvalidArguments(
                f"{activation.name} cannot terminate itself from its own turn; use self.stop(reason)."
            )
        await self._given(self._running().orders.carry_out(partial(self._terminate_instance, activation)))
        await self._system.committer.wait_durable()

    async def _terminate_instance(self, activation: Activation) -> None:
        if activation.status != "stopped":
            standing.go_down(activation)
            await stopping.stop_actors(
                self._system, [activation], self._system.limits.grace_s, "stopped by terminate_child"
            )
            standing.stop_for_good(activation, "terminate_child")

    async def restart_child(self, child: str | Actor[Any, Any], /) -> None:
        """Start a child that was stopped, or an actor on demand; no restart is counted.

        Raises:
            Running: It runs.
            Restarting: It is being restarted already.
            StartFailed: It could not be started; it is kept, not running.
            NotFound: The supervisor has no such child.
        """
        if isinstance(child, str):
            await self._given(self._running().orders.restart_child(child))
            return
        activation = await self._instance(child)
        if activation.status != "stopped":
            raise Running(f"{activation.name} is not stopped.", child=activation.id)
        standing.revive(activation)
        activation.pump()
        await self._system.committer.wait_durable()

    async def delete_child(self, id: str, /) -> None:
        """Forget a child that was stopped; its actor's state and mail stay in the store.

        Raises:
            Running: It runs: `terminate_child` first.
            Restarting: It is being restarted.
            NotFound: The supervisor has no such child.
        """
        await self._given(self._running().orders.delete_child(id))

    async def which_children(self) -> list[ChildInfo]:
        """Return the children in start order."""
        return await self._given(self._running().orders.which_children())

    async def count_children(self) -> ChildCounts:
        """Return how many specs, running children, supervisors and workers there are."""
        return await self._given(self._running().orders.count_children())

    async def _given(self, order: Coroutine[Any, Any, T]) -> T:
        try:
            return await order
        except NotFound:
            self._system.check_usable()  # Its supervisor went with the system, which says why.
            raise

    def _running(self) -> RunningSupervisor:
        self._system.check_usable()
        return self._system.supervision.find(self.name)

    async def _instance(self, ref: Any) -> Activation:
        running = self._running()
        target = ref._target if isinstance(ref, Ref) else None
        if isinstance(target, ActorTarget) and target.system is self._system:
            activation = await target.enter()
            group = activation.type.group
            if activation.member is None and group is not None and group.supervisor is running:
                return activation
        raise NotFound(
            f"{ref!r} is no actor on demand of supervisor {self.name!r}; name a static child by its id, as text."
        )
